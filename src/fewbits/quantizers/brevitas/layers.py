"""Convolutions as Brevitas layers, and their scales read and set. What is exported is exactly what these layers compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from fewbits.core.errors import PrerequisiteError
from fewbits.quantizers.brevitas.rounding import largest_code

if TYPE_CHECKING:
    import torch
    from torch import nn

UNSIGNED_LEVELS = 255
"""Largest code of an 8-bit unsigned activation."""


class WeightQuantizer(StrEnum):
    """Where weight scales come from."""

    RUNBOOK = "runbook"
    """Brevitas' own choice for that width, as the runbook took it: per channel at 8 bits; at 4 and below per tensor, with a scale
    from the root mean square of the channels' largest magnitudes, which is meant for retraining."""
    PER_CHANNEL = "per-channel"
    """One scale per output channel, a parameter that is set from outside."""


class ActivationQuantizer(StrEnum):
    """How a convolution's input is quantized to 8 bits, one scale for the whole tensor."""

    NONE = "none"
    SIGNED = "signed"
    """Symmetric, the 99.999th percentile of magnitudes seen in calibration: the runbook's."""
    UNSIGNED = "unsigned"
    """Unsigned with a zero point, set from outside."""


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """How one convolution is quantized."""

    weight_bits: int
    weights: WeightQuantizer
    activations: ActivationQuantizer


@dataclass(frozen=True, slots=True)
class ActivationRange:
    """Scale and zero point of an unsigned 8-bit tensor: real = scale x (code - zero_point), codes 0..255."""

    scale: float
    zero_point: int


def require_brevitas() -> None:
    """Raise `PrerequisiteError` where the extra is missing."""
    try:
        import brevitas  # noqa: F401
    except ImportError as error:
        raise PrerequisiteError("Brevitas is not installed", "Install it with `pip install 'fewbits[detection]'`.") from error


def quantize_layers(model: nn.Module, plans: Mapping[str, LayerPlan]) -> dict[str, nn.Module]:
    """Replace the named convolutions, in place, by Brevitas layers with the same weights; returns them by name."""
    require_brevitas()
    layers: dict[str, nn.Module] = {}
    for name, plan in plans.items():
        parent_name, _, own = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        layer = _quantized(parent.get_submodule(own), plan)
        setattr(parent, own, layer)
        layers[name] = layer
    return layers


def _quantized(convolution: Any, plan: LayerPlan) -> Any:
    from brevitas.nn import QuantConv2d

    layer: Any = QuantConv2d(
        convolution.in_channels,
        convolution.out_channels,
        convolution.kernel_size,
        stride=convolution.stride,
        padding=convolution.padding,
        dilation=convolution.dilation,
        groups=convolution.groups,
        bias=convolution.bias is not None,
        weight_quant=_weight_quantizer(plan),
        input_quant=_activation_quantizer(plan.activations),
        output_quant=None,
        return_quant_tensor=False,
    )
    layer.weight.data.copy_(convolution.weight.data)
    if convolution.bias is not None:
        layer.bias.data.copy_(convolution.bias.data)
    layer.quant_weight()  # the first call would overwrite scales that were set before it
    if plan.weights is WeightQuantizer.PER_CHANNEL:
        widest = convolution.weight.data.flatten(1).abs().amax(dim=1).clamp_min(1e-12)
        set_scales(layer, widest / largest_code(plan.weight_bits))
    layer.eval()
    return layer


def _weight_quantizer(plan: LayerPlan) -> Any:
    from brevitas.core.scaling import ScalingImplType
    from brevitas.quant import Int4WeightPerTensorFloatDecoupled, Int8WeightPerChannelFloat

    if plan.weights is WeightQuantizer.PER_CHANNEL:
        return Int8WeightPerChannelFloat.let(bit_width=plan.weight_bits, scaling_impl_type=ScalingImplType.PARAMETER_FROM_STATS)
    if plan.weight_bits > 4:
        return Int8WeightPerChannelFloat.let(bit_width=plan.weight_bits)
    return Int4WeightPerTensorFloatDecoupled.let(bit_width=plan.weight_bits)


def _activation_quantizer(kind: ActivationQuantizer) -> Any:
    from brevitas.quant import Int8ActPerTensorFloat, ShiftedUint8ActPerTensorFloat

    return {
        ActivationQuantizer.NONE: None,
        ActivationQuantizer.SIGNED: Int8ActPerTensorFloat,
        ActivationQuantizer.UNSIGNED: ShiftedUint8ActPerTensorFloat,
    }[kind]


def weight_bits(layer: Any) -> int:
    """Return the width of a layer's weights."""
    return int(layer.quant_weight().bit_width.item())


def quantized_weight(layer: Any) -> torch.Tensor:
    """Return the weights as the layer computes with them: float32, same shape as `layer.weight`."""
    value: torch.Tensor = layer.quant_weight().value
    return value.detach()


def scales(layer: Any) -> torch.Tensor:
    """Return the weight scale of each output channel: float32[out_channels]; a per-tensor scale is repeated."""
    scale = layer.quant_weight().scale.detach().flatten()
    return scale.expand(layer.out_channels) if scale.numel() == 1 else scale


def set_scales(layer: Any, values: torch.Tensor) -> None:
    """Set the scale of each output channel, float[out_channels], of a layer with `PER_CHANNEL` weights."""
    bits = int(layer.weight_quant.tensor_quant.msb_clamp_bit_width_impl().item())
    parameter = layer.weight_quant.tensor_quant.scaling_impl.value
    # Brevitas keeps the threshold, the real value of the largest code
    parameter.data.copy_((values * largest_code(bits)).reshape(parameter.shape))


def set_weights(layer: Any, values: torch.Tensor, new_scales: torch.Tensor) -> None:
    """Set weights that lie on the grid of the given scales (float[out_channels]): the layer rounds them to themselves."""
    layer.weight.data.copy_(values.reshape(layer.weight.shape))
    set_scales(layer, new_scales)


def set_activation_range(layer: Any, found: ActivationRange) -> None:
    """Set the input range of a layer with `UNSIGNED` activations."""
    quantizer = layer.input_quant.fused_activation_quant_proxy.tensor_quant
    quantizer.scaling_impl.value.data.fill_(found.scale * UNSIGNED_LEVELS)
    # Brevitas keeps the distance from zero to the real value of code 0
    quantizer.zero_point_impl.value.data.fill_(found.scale * found.zero_point)
    for part in (quantizer.scaling_impl, quantizer.zero_point_impl):
        part.counter = part.collect_stats_steps + 1  # no statistics are collected any more: the value holds


def input_scale(layer: Any) -> float:
    """Return the step of a layer's quantized input."""
    return float(layer.input_quant.scale().detach())


def quantized_input(layer: Any, values: torch.Tensor) -> torch.Tensor:
    """Return an input as the layer will see it: float32, same shape."""
    if not layer.input_quant.is_quant_enabled:
        return values
    seen: torch.Tensor = layer.input_quant(values).value
    return seen.detach()
