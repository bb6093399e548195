"""Rounding a layer's weights so that its output suffers least. Plain linear algebra on one layer; nothing here knows a detector.

Shapes: `weights` float64[groups, rows, columns] (a convolution's groups; output channels of the group; input channels of the
group x kernel height x kernel width), `gram` float64[groups, columns, columns]: the mean of x x^T over sampled input columns x,
centred where biases are refitted. The error of a layer's output is then the sum over rows of e gram e^T, e = rounded - target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CLIP_STEPS = 40
"""Candidates for a weight scale: the largest magnitude times 1.00, 0.98, ... 0.22."""
_CLIP_STEP = 0.02
DAMPING = 0.01
"""Share of the mean diagonal added to a gram matrix before it is inverted. Source: GPTQ, arXiv 2210.17323, section 3.3."""
TARGET_RIDGE = 0.02
"""The same for the fit to the float model's output, which has more freedom and so overfits sooner."""
_TINY = 1e-12


@dataclass(frozen=True, slots=True)
class Rounded:
    """Weights on their grid: `values` = integers x `scales` (float64[groups, rows, 1]), integers within +-largest."""

    values: torch.Tensor
    scales: torch.Tensor


def largest_code(bits: int) -> int:
    """Return the largest integer of a signed, narrow range: 7 for 4 bits, 127 for 8."""
    return (1 << (bits - 1)) - 1


def nearest(weights: torch.Tensor, scales: torch.Tensor, bits: int) -> torch.Tensor:
    """Round each weight to the nearest point of its row's grid (ties to even)."""
    largest = largest_code(bits)
    return (weights / scales).round().clamp(-largest, largest) * scales


def absmax_scales(weights: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the scale of each row at which its largest magnitude is just representable: float64[groups, rows, 1]."""
    return weights.abs().amax(dim=2, keepdim=True).clamp_min(_TINY) / largest_code(bits)


def whole_number_scales(weights: torch.Tensor, bits: int) -> torch.Tensor | None:
    """Return the finest scales that hold weights exactly, 1 / whole number, where all weights are whole numbers that fit.

    Shaped as the weights, with one column; `None` where some weight is no whole number, or too large for the codes.
    """
    import torch

    widest = weights.abs().amax(dim=2, keepdim=True)
    if not bool((weights == weights.round()).all()) or float(widest.max()) > largest_code(bits) or float(widest.min()) < 1:
        return None
    return 1 / torch.floor(largest_code(bits) / widest)


def clipped_scales(weights: torch.Tensor, gram: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the scale of each row that gives the smallest output error under rounding to nearest, of `CLIP_STEPS` candidates."""
    import torch

    widest = absmax_scales(weights, bits)
    best = torch.full_like(widest, float("inf"))
    scales = widest
    for step in range(CLIP_STEPS):
        candidate = widest * (1 - _CLIP_STEP * step)
        error = output_error(nearest(weights, candidate, bits) - weights, gram)
        better = error < best
        best, scales = torch.where(better, error, best), torch.where(better, candidate, scales)
    return scales


def output_error(difference: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error of each row's output: float64[groups, rows, 1]."""
    return ((difference @ gram) * difference).sum(dim=2, keepdim=True)


def compensated(weights: torch.Tensor, gram: torch.Tensor, scales: torch.Tensor, bits: int) -> torch.Tensor:
    """Round column by column, each column's error spread over those that follow (GPTQ).

    Columns with the most input energy go first: later ones can still compensate. Source: arXiv 2210.17323, algorithm 1, with the
    order of its `act-order` variant.
    """
    import torch

    groups, rows, columns = weights.shape
    order = torch.diagonal(gram, dim1=1, dim2=2).argsort(dim=1, descending=True)
    back = order.argsort(dim=1)
    across = order[:, None, :].expand(-1, rows, -1)
    left = torch.gather(weights, 2, across).clone()
    factor = _inverse_factor(_reordered(gram, order))
    result = torch.empty_like(left)
    for column in range(columns):
        rounded = nearest(left[:, :, column : column + 1], scales, bits)[:, :, 0]
        error = (left[:, :, column] - rounded) / factor[:, column, column][:, None]
        left[:, :, column + 1 :] -= error[:, :, None] * factor[:, column, column + 1 :][:, None, :]
        result[:, :, column] = rounded
    return torch.gather(result, 2, back[:, None, :].expand(groups, rows, columns))


def fitted_target(weights: torch.Tensor, gram: torch.Tensor, drift: torch.Tensor) -> torch.Tensor:
    """Return the real weights whose output on the inputs as they are comes closest to the float output: the target of rounding.

    `drift` float64[groups, columns, columns] is the mean of (x_float - x) x^T. Ridge regression of the float layer's output on
    the inputs that the quantized model gives it: W + W drift (gram + ridge)^-1. Source: normal equations of
    |W x_float - T x|^2 + ridge |T - W|^2; asymmetric calibration as in GPTAQ (arXiv 2504.02692).
    """
    import torch

    damped = _damped(gram, TARGET_RIDGE)
    correction = torch.linalg.solve(damped, (weights @ drift).transpose(1, 2)).transpose(1, 2)
    return weights + correction


def _reordered(gram: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    import torch

    columns = gram.shape[1]
    rows_moved = torch.gather(gram, 1, order[:, :, None].expand(-1, -1, columns))
    return torch.gather(rows_moved, 2, order[:, None, :].expand(-1, columns, -1))


def _damped(gram: torch.Tensor, share: float) -> torch.Tensor:
    import torch

    damped = gram.clone()
    energy = torch.diagonal(gram, dim1=1, dim2=2).mean(dim=1, keepdim=True)
    torch.diagonal(damped, dim1=1, dim2=2).add_(share * energy + _TINY)
    return damped


def _inverse_factor(gram: torch.Tensor) -> torch.Tensor:
    """Return the upper Cholesky factor of the damped inverse: its rows say how an error is spread over later columns."""
    import torch

    inverse = torch.cholesky_inverse(torch.linalg.cholesky(_damped(gram, DAMPING)))
    return torch.linalg.cholesky(inverse, upper=True)
