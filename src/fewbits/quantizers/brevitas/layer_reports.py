"""What quantization did to each layer of a finished model: bits, clipped weights, saturated inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fewbits.quantizers.brevitas import layers as brevitas_layers
from fewbits.quantizers.brevitas.build import BuiltVariant
from fewbits.quantizers.brevitas.layers import ActivationQuantizer, LayerPlan, WeightQuantizer
from fewbits.quantizers.brevitas.library_methods import quiet_brevitas
from fewbits.quantizers.brevitas.rounding import largest_code
from fewbits.records.detector_run import LayerReport

if TYPE_CHECKING:
    import torch

_BEYOND_STEPS = 0.51
"""Rounding moves a value by half a step; what moves further lay outside of the range (the rest is float rounding)."""


@quiet_brevitas()
def layer_reports(built: BuiltVariant, images: torch.Tensor) -> tuple[LayerReport, ...]:
    """Return one report per quantized layer, in the order in which they run.

    Saturation is counted on `images` (float32[images, 3, size, size]) as the finished model sees them. Layers of the runbook's
    quantizers keep their float weights, so what their scale clips is counted here; fitted layers told it when they were fitted.
    """
    found = {name: built.model.get_submodule(name) for name in built.plans}
    saturated = _saturated_shares(built, found, images)
    fits = {fit.name: fit for fit in built.fits}
    reports = []
    for name, plan in built.plans.items():
        fit = fits.get(name)
        reports.append(
            LayerReport(
                name=name,
                role=built.roles[name],
                weight_bits=brevitas_layers.weight_bits(found[name]),
                weights=found[name].weight.numel(),
                relative_error=fit.relative_error if fit is not None else None,
                clipped_weight_share=fit.clipped_weight_share if fit is not None else _clipped(found[name], plan),
                saturated_input_share=saturated.get(name),
            )
        )
    return tuple(reports)


def _clipped(layer: Any, plan: LayerPlan) -> float | None:
    """Return the share of the layer's own float weights beyond the largest code."""
    if plan.weights is not WeightQuantizer.RUNBOOK:
        return None
    limits = brevitas_layers.scales(layer) * (largest_code(plan.weight_bits) + 0.5)
    return float((layer.weight.detach().flatten(1).abs() > limits[:, None]).double().mean())


def _saturated_shares(built: BuiltVariant, found: dict[str, Any], images: torch.Tensor) -> dict[str, float]:
    import torch

    shares: dict[str, float] = {}
    hooks = []
    for name, layer in found.items():
        if built.plans[name].activations is ActivationQuantizer.NONE:
            continue

        def count(module: Any, inputs: tuple[Any, ...], name: str = name) -> None:
            moved = (brevitas_layers.quantized_input(module, inputs[0]) - inputs[0]).abs()
            step = brevitas_layers.input_scale(module)
            shares[name] = float((moved > _BEYOND_STEPS * step).double().mean())

        hooks.append(layer.register_forward_pre_hook(count))
    try:
        with torch.no_grad():
            built.model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return shares
