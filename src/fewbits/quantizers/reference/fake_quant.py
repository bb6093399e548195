"""Fake quantization: round to the values that a format can hold, and keep computing in float.

Every format of `records.quant_formats` works on any device, FP4 included. torch is imported on first use.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from fewbits.core.errors import SpecError
from fewbits.records.quant_formats import QuantFormat, ScaleShare
from fewbits.spec.quant_overlay import ACTIVATIONS, WEIGHTS, Overrides, check_overlay, overlaid_format

E4M3_MAX = 448.0
"""Largest E4M3 value. Source: Micikevicius et al. (2022), FP8 Formats for Deep Learning, table 1."""
E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Source: OCP Microscaling Formats (MX) Specification 1.0, section 5.3.3."""
_E2M1_EDGES = ((0.25, False), (0.75, True), (1.25, False), (1.75, True), (2.5, False), (3.5, True), (5.0, False))
"""Midpoints between neighbours, and whether a value exactly there goes up: ties go to the even mantissa."""
_E4M3_MIN = 2.0**-9
"""Smallest positive E4M3 value."""
_NO_SCALE = 1.0 / (1 << 24)
"""A largest value below this counts as 0: its reciprocal would overflow half precision."""


class ActivationScale(StrEnum):
    """What part of an activation shares a scale."""

    TENSOR = "tensor"
    CHANNEL = "channel"
    """One scale per feature (last axis)."""
    TOKEN = "token"  # noqa: S105 - a word of the vocabulary, not a password
    """One scale per vector of features."""


@dataclass(frozen=True, slots=True)
class FakeQuantization:
    """How weights and activations of a layer are rounded."""

    weight: str
    """`int8`, `int4`, `fp8` or `fp4`."""
    share: ScaleShare
    """How many weights share a scale."""
    per_input_channel: bool = False
    """For `ScaleShare.CHANNEL`: a scale per input channel instead of per output channel."""
    block: int | None = None
    """For `ScaleShare.BLOCK`: weights per scale, along the input."""
    power_of_two_scales: bool = False
    """fp4 only: scales are powers of two (MXFP4) instead of E4M3 numbers times one float per tensor (NVFP4)."""
    activation: str | None = None
    """`int8`, `int4` or `fp8`; `None` leaves activations in float."""
    activation_scale: ActivationScale = ActivationScale.TENSOR
    dynamic: bool = False
    """Scales of activations come from the values at hand instead of calibration."""

    @property
    def needs_ranges(self) -> bool:
        """Whether calibration must find the largest activations first."""
        return self.activation is not None and not self.dynamic


def quantization_of(fmt: QuantFormat, overrides: Overrides, where: str) -> FakeQuantization:
    """Return how `fmt` rounds under a granularity overlay (`GranularitySettings.quant_cfg_overrides`).

    `where` names the place the overlay was written at. Raises `SpecError` with every problem of the overlay.
    """
    if problems := check_overlay(fmt, overrides, where):
        raise SpecError(problems)
    overlaid = overlaid_format(fmt, overrides)
    weights, activations = overrides.get(WEIGHTS, {}), overrides.get(ACTIVATIONS, {})
    scale = ActivationScale.TENSOR if activations.get("axis") is None else ActivationScale.CHANNEL
    if activations.get("block_sizes") is not None:
        scale = ActivationScale.TOKEN
    return FakeQuantization(
        weight=overlaid.weight,
        share=overlaid.scale_share,
        per_input_channel=weights.get("axis") == 1,
        block=overlaid.block,
        power_of_two_scales=fmt.name.startswith("MXFP4"),
        activation=None if fmt.activation == "fp16" else fmt.activation,
        activation_scale=scale,
        dynamic=activations.get("type") == "dynamic",
    )


def quantize_weight(weight: Any, how: FakeQuantization) -> Any:
    """Return a fake-quantized copy of a layer's weight, `[out, in]` or `[out, in, ...]`; same dtype, the original untouched.

    A convolution's row is everything that makes one output channel. A row that the block does not divide ends with a short block.
    """
    rows = weight.detach().reshape(weight.shape[0], -1).float()
    if how.share is ScaleShare.BLOCK:
        rounded = _in_blocks(rows, how)
    elif how.weight == "fp4":
        msg = "fp4 has block scales in the format itself"
        raise ValueError(msg)
    elif how.share is ScaleShare.TENSOR:
        rounded = round_scaled(rows, rows.abs().amax(), how.weight)
    elif how.per_input_channel:
        tensor = weight.detach().float()
        others = [axis for axis in range(tensor.dim()) if axis != 1]
        rounded = round_scaled(tensor, tensor.abs().amax(dim=others, keepdim=True), how.weight)
    else:
        rounded = round_scaled(rows, rows.abs().amax(dim=1, keepdim=True), how.weight)
    return rounded.reshape(weight.shape).to(weight.dtype)


def _in_blocks(rows: Any, how: FakeQuantization) -> Any:
    from torch.nn import functional

    width = rows.shape[1]
    block = how.block or width
    blocks = functional.pad(rows, (0, -width % block)).reshape(len(rows), -1, block)
    largest = blocks.abs().amax(dim=-1, keepdim=True)
    if how.weight == "fp4":
        rounded = _fp4(blocks, largest, power_of_two=how.power_of_two_scales)
    else:
        rounded = round_scaled(blocks, largest, how.weight)
    return rounded.reshape(len(rows), -1)[:, :width]


def quantize_activation(values: Any, how: FakeQuantization, largest: Any) -> Any:
    """Return activations `[..., features]` as the format holds them; unchanged when it leaves them in float.

    `largest` holds the largest magnitude that calibration saw of each feature (`[features]`, or of all, `[1]`). Static scales
    need it, and clip what lies beyond.
    """
    if how.activation is None:
        return values
    if how.dynamic:
        axes = {
            ActivationScale.TENSOR: tuple(range(values.dim())),
            ActivationScale.CHANNEL: tuple(range(values.dim() - 1)),
            ActivationScale.TOKEN: (-1,),
        }[how.activation_scale]
        bound = values.detach().abs().amax(dim=axes, keepdim=True).float()
    elif largest is None:
        msg = "static scales of activations need calibrated ranges"
        raise ValueError(msg)
    else:
        bound = largest.float() if how.activation_scale is ActivationScale.CHANNEL else largest.float().amax()
    return round_scaled(values.float(), bound, how.activation).to(values.dtype)


def round_scaled(values: Any, largest: Any, kind: str) -> Any:
    """Round `values` (float32) to the grid of `kind`, scaled so that `largest` (broadcastable) is the grid's end.

    Integers: symmetric, round half to even, -2^(b-1) .. 2^(b-1) - 1 steps of largest / (2^(b-1) - 1).
    fp8: E4M3 with `largest` at 448. Where `largest` is 0 so is the result.
    Source: Jacob et al. (2018), Quantization and Training of Neural Networks, section 3 (symmetric case: zero point 0).
    """
    import torch

    top = E4M3_MAX if kind == "fp8" else float(2 ** (int(kind.removeprefix("int")) - 1) - 1)
    usable = largest > _NO_SCALE
    # multiplied by the reciprocal and divided by it again, in this order, as ModelOpt does: the same bits come out
    factor = torch.where(usable, top / torch.where(usable, largest, torch.ones_like(largest)), torch.zeros_like(largest))
    scaled = values * factor
    grid = _e4m3(scaled.clamp(-top, top)) if kind == "fp8" else torch.round(scaled).clamp(-top - 1, top)
    return torch.where(usable, grid / torch.where(usable, factor, torch.ones_like(factor)), torch.zeros_like(grid))


def _e4m3(values: Any) -> Any:
    """Round to the nearest E4M3 value, ties to even; PyTorch's own conversion. What lies beyond 448 has none."""
    import torch

    return values.to(torch.float8_e4m3fn).float()


def _fp4(blocks: Any, largest: Any, *, power_of_two: bool) -> Any:
    """Round blocks `[rows, blocks, block]` to E2M1 with block scales.

    NVFP4: the block's scale largest/6 is itself rounded to E4M3, relative to one float per tensor that puts the tensor's largest
    block at 448. MXFP4: the scale is the smallest power of two that does not clip the block (ModelOpt's choice; the OCP text
    rounds the exponent down and clips).
    """
    import torch

    if power_of_two:
        scale = torch.exp2(torch.ceil(torch.log2((largest / E2M1_VALUES[-1]).clamp(min=2.0**-127))))
    else:
        whole = (largest.amax() / (E2M1_VALUES[-1] * E4M3_MAX)).clamp(min=torch.finfo(torch.float32).tiny)
        relative = (largest / E2M1_VALUES[-1] / whole).clamp(_E4M3_MIN, E4M3_MAX)
        scale = _e4m3(relative) * whole
    scaled = blocks / scale
    down = torch.tensor([edge for edge, _ in _E2M1_EDGES], device=blocks.device)
    lower = torch.nextafter(down, torch.zeros_like(down))
    ties_up = torch.tensor([up for _, up in _E2M1_EDGES], device=blocks.device)
    steps = torch.bucketize(scaled.abs().contiguous(), torch.where(ties_up, lower, down))
    grid = torch.tensor(E2M1_VALUES, device=blocks.device)[steps]
    return torch.where(largest > 0, torch.copysign(grid, scaled) * scale, torch.zeros_like(blocks))
