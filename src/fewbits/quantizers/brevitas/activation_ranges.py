"""Ranges of 8-bit activations from calibration inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewbits.quantizers.brevitas.layers import UNSIGNED_LEVELS, ActivationRange

if TYPE_CHECKING:
    import torch

_SHARES = tuple(1 - 0.05 * step for step in range(17))
"""Candidates for either end of a range, as shares of the extreme value seen: 1.00, 0.95, ... 0.20."""
_SAMPLE_VALUES = 500_000
_SMALLEST_SCALE = 1e-12


def least_squares_range(values: torch.Tensor) -> ActivationRange:
    """Return the unsigned range with the smallest mean squared error on `values` (any shape); zero is always exact.

    Both ends are searched in turn over 17 candidates each, on at most 500,000 of the values, evenly spread.
    """
    import torch

    flat = values.flatten()
    sample = flat[:: max(1, flat.numel() // _SAMPLE_VALUES)]
    low, high = min(0.0, float(flat.min())), max(0.0, float(flat.max()))
    ends = {"low": low, "high": high}
    for name, extreme in (("high", high), ("low", low), ("high", high)):
        candidates = [{**ends, name: extreme * share} for share in _SHARES]
        errors = torch.stack([_squared_error(sample, range_between(**ends)) for ends in candidates])
        ends = candidates[int(errors.argmin())]
    return range_between(**ends)


def range_between(low: float, high: float) -> ActivationRange:
    """Return the unsigned 8-bit range that covers `low` <= 0 <= `high`."""
    scale = max((high - low) / UNSIGNED_LEVELS, _SMALLEST_SCALE)
    return ActivationRange(scale, min(UNSIGNED_LEVELS, max(0, round(-low / scale))))


def saturated_share(values: torch.Tensor, found: ActivationRange) -> float:
    """Return the share of values that lie more than half a step outside of a range, 0..1."""
    codes = values / found.scale + found.zero_point
    return float(((codes < -0.5) | (codes > UNSIGNED_LEVELS + 0.5)).float().mean())


def _squared_error(values: torch.Tensor, found: ActivationRange) -> torch.Tensor:
    codes = ((values / found.scale).round() + found.zero_point).clamp(0, UNSIGNED_LEVELS)
    return ((codes - found.zero_point) * found.scale - values).square().mean()
