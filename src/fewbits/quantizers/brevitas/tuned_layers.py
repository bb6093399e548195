"""Brevitas layers while they are trained: which of their numbers move, in what unit, and the same arithmetic in fewer passes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fewbits.quantizers.brevitas import layers as brevitas_layers
from fewbits.quantizers.brevitas.layers import UNSIGNED_LEVELS
from fewbits.quantizers.brevitas.rounding import largest_code

if TYPE_CHECKING:
    import torch
    from torch import nn

_SMALLEST_UNIT = 1e-12
"""A channel without weights has no range."""


@dataclass(frozen=True, slots=True)
class Handle:
    """One trained tensor of a layer, held as shares of a unit, so that one learning rate suits layers of every magnitude."""

    parameter: torch.Tensor
    unit: torch.Tensor
    """float32, broadcasts to the parameter: the range of the channel for weights and biases, the starting value for scales."""
    shares: torch.Tensor
    """What the optimiser moves: parameter / unit."""

    def take_gradient(self) -> None:
        """Give `shares` the parameter's gradient, which is used up. A parameter that the loss does not reach gets zeros."""
        import torch

        found = self.parameter.grad
        self.shares.grad = torch.zeros_like(self.shares) if found is None else found * self.unit
        self.parameter.grad = None

    def write_back(self) -> None:
        """Set the parameter from `shares`."""
        self.parameter.data.copy_(self.shares.detach() * self.unit)


@dataclass(frozen=True, slots=True)
class InputRange:
    """The unsigned range of a layer's input: its scale is trained, its zero point, a code in 0..255, is not."""

    scale: torch.Tensor
    """Brevitas' parameter: the step times 255."""
    offset: torch.Tensor
    """Brevitas' parameter: the distance from zero to the real value of code 0."""
    zero_point: int

    def hold_zero_point(self) -> None:
        """Move the offset with the scale, so that the code of zero stays."""
        self.offset.data.copy_(self.scale.data * self.zero_point / UNSIGNED_LEVELS)


@dataclass(frozen=True, slots=True)
class TunedLayers:
    """Everything of a model that training moves."""

    weights: Sequence[Handle]
    """Weights and biases."""
    scales: Sequence[Handle]
    ranges: Sequence[InputRange]

    @property
    def handles(self) -> tuple[Handle, ...]:
        """All trained tensors."""
        return (*self.weights, *self.scales)

    def write_back(self) -> None:
        """Set the model's numbers from what the optimiser moved."""
        for handle in self.handles:
            handle.write_back()
        for found in self.ranges:
            found.hold_zero_point()

    def snapshot(self) -> tuple[torch.Tensor, ...]:
        """Return copies of the numbers that training moves."""
        return tuple(value.detach().clone() for value in self._values())

    def restore(self, values: Sequence[torch.Tensor]) -> None:
        """Set the numbers that training moves back to a snapshot, exactly."""
        for value, kept in zip(self._values(), values, strict=True):
            value.data.copy_(kept)

    def finite(self) -> bool:
        """Tell whether all of them are numbers. The loss may not show it: rounding an input makes a code of anything."""
        return all(bool(value.detach().isfinite().all()) for value in self._values())

    def _values(self) -> tuple[torch.Tensor, ...]:
        return (*(handle.parameter for handle in self.handles), *(found.offset for found in self.ranges))


def tuned_layers(layers: Mapping[str, Any]) -> TunedLayers:
    """Return what is trained in Brevitas layers: weights, biases, and the scales that are parameters."""
    weights: list[Handle] = []
    scales: list[Handle] = []
    for layer in layers.values():
        reach = brevitas_layers.scales(layer) * largest_code(brevitas_layers.weight_bits(layer))
        weights.append(_handle(layer.weight, reach[:, None, None, None]))
        if layer.bias is not None:
            weights.append(_handle(layer.bias, reach))
        own = (value for name, value in layer.named_parameters() if name.endswith("scaling_impl.value"))
        scales += [_handle(value, value.detach().abs()) for value in own]
    ranges = [found for layer in layers.values() if (found := input_range(layer)) is not None]
    return TunedLayers(weights, scales, ranges)


def _handle(parameter: torch.Tensor, unit: torch.Tensor) -> Handle:
    unit = unit.clamp_min(_SMALLEST_UNIT)
    return Handle(parameter, unit, (parameter.detach() / unit).requires_grad_(True))


def input_range(layer: Any) -> InputRange | None:
    """Return the range of a layer with `UNSIGNED` activations, else `None`."""
    if not layer.input_quant.is_quant_enabled:
        return None
    quantizer = layer.input_quant.fused_activation_quant_proxy.tensor_quant
    scale, offset = quantizer.scaling_impl.value, getattr(quantizer.zero_point_impl, "value", None)
    if offset is None:
        return None
    return InputRange(scale, offset, round(offset.item() / scale.item() * UNSIGNED_LEVELS))


@contextmanager
def trainable(model: nn.Module, tuned: TunedLayers) -> Iterator[None]:
    """Let gradients reach the trained tensors and nothing else; afterwards all is as it was, without gradients."""
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    chosen = {id(handle.parameter) for handle in tuned.handles}
    try:
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in chosen)
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name])
            parameter.grad = None


@contextmanager
def fused(layers: Mapping[str, Any]) -> Iterator[None]:
    """Let layers with unsigned inputs compute in fewer passes over memory; afterwards they are Brevitas' own again.

    The arithmetic is the same: round, clip, scale, convolve. Brevitas walks over every input about twenty times to do that, which
    costs several times what the convolutions do.
    """
    from fewbits.quantizers.brevitas.fused_rounding import fused_convolution

    chosen = [(layer, found) for layer in layers.values() if (found := input_range(layer)) is not None]
    try:
        for layer, found in chosen:
            layer.forward = fused_convolution(layer, found)
        yield
    finally:
        for layer, _ in chosen:
            layer.__dict__.pop("forward", None)
