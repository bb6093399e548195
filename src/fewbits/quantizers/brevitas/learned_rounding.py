"""Learned rounding of one layer (AdaRound): whether each weight goes up or down is found by descent on the layer's output error.

Rounding to nearest is best for each weight alone; the errors of a row's weights meet in one output, so the best choice is a joint
one. A soft choice in 0..1 per weight is learned, pushed to 0 or 1 towards the end. Weights stay within one step of their real
value; `rounding.compensated` (GPTQ) goes column by column instead and may move a weight further.

The error is a quadratic form in the weights, so one pass over the samples gives all that the descent needs: every step sees every
sample, no batch is drawn, and nothing is random.

What Brevitas 0.13.4 has for this, and why it is not called. Its package holds the parametrisation
(`brevitas.core.function_wrapper.learned_round`), which holds up: put into our layers it keeps their scales, starts at rounding to
nearest and exports. The optimiser around it is an example (`brevitas_examples.common.learned_round`) that imports `accelerate`,
which Brevitas installs with its own examples' extras only, and that runs a block over its stored inputs at every iteration. And
the learned choices stay in the quantizer, on top of `layer.weight`: the layer then computes up to one step beside weights that
are set later, and every other step of the ladder sets `layer.weight`.

Source: Nagel et al., arXiv 2004.10568, equations 20 to 25.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fewbits.quantizers.brevitas.rounding import largest_code, nearest, output_error

if TYPE_CHECKING:
    import torch

_STRETCH_LOW, _STRETCH_HIGH = -0.1, 1.1
"""The sigmoid is stretched to this range and cut to 0..1, so that a choice can arrive. Source: arXiv 2004.10568, equation 23."""
_FIRST_POWER, _LAST_POWER = 20.0, 2.0
"""Power of the regulariser, lowered while learning: undecided weights are left alone at first. Source: the same, equation 24."""
_EDGE = 1e-3
"""Starting choices keep this distance from 0 and 1, where the sigmoid's inverse ends."""
_TINY = 1e-12


@dataclass(frozen=True, slots=True)
class RoundingDescent:
    """How long and how fast roundings are learned."""

    iterations: int = 600
    learning_rate: float = 0.03
    regularisation: float = 5.0
    """Cost of a row whose choices are all undecided, in units of the output error that rounding to nearest costs the row."""
    free_share: float = 0.2
    """Share of the iterations before the regulariser sets in, 0..1, below 1. Source: section 4 of the paper (warm start)."""


@dataclass(frozen=True, slots=True)
class LayerSamples:
    """A layer's real weights, and what it is to make of the inputs that it gets."""

    weights: torch.Tensor
    """float64[groups, rows, columns]."""
    columns_seen: torch.Tensor
    """float32[groups, samples, columns]: inputs as the quantized model gives them."""
    outputs_wanted: torch.Tensor
    """float32[groups, samples, rows]: without the bias; means taken off both where the bias is fitted afterwards."""


@dataclass(frozen=True, slots=True)
class _Objective:
    """The output error of one layer as a function of weights: |residual - difference x|^2 over the samples, by its moments."""

    gram: torch.Tensor
    """float64[groups, columns, columns]: mean of x x^T."""
    pull: torch.Tensor
    """float64[groups, rows, columns]: mean of residual x^T, residual = wanted - weights x."""

    def change(self, difference: torch.Tensor) -> torch.Tensor:
        """Return how much each row's mean squared error changes when `difference` is added to the weights: [groups, rows, 1]."""
        return output_error(difference, self.gram) - 2 * (difference * self.pull).sum(dim=2, keepdim=True)


def learned_rounding(layer: LayerSamples, scales: torch.Tensor, bits: int, descent: RoundingDescent) -> torch.Tensor:
    """Round each weight up or down so that the layer's outputs come closest to those wanted, in the mean square.

    `scales` float64[groups, rows, 1]. Returns float64[groups, rows, columns] on the grid: integers within
    +-`largest_code(bits)`, times the scales, each the floor or the ceiling of its weight or the end of the grid. A row for which
    rounding to nearest does better is rounded to nearest. The same arguments give the same weights.
    """
    import torch

    weights, objective = layer.weights, _objective(layer)
    simple = nearest(weights, scales, bits)
    with torch.enable_grad():
        up = _descend(weights, scales, bits, objective, descent)
    largest = largest_code(bits)
    learned = ((weights / scales).floor() + up).clamp(-largest, largest) * scales
    better = objective.change(learned - weights) < objective.change(simple - weights)
    return torch.where(better, learned, simple)


def _objective(layer: LayerSamples) -> _Objective:
    seen, wanted = layer.columns_seen, layer.outputs_wanted
    residual = wanted - seen @ layer.weights.to(seen.dtype).transpose(1, 2)
    samples = seen.shape[1]
    return _Objective((seen.transpose(1, 2) @ seen / samples).double(), (residual.transpose(1, 2) @ seen / samples).double())


def _descend(
    weights: torch.Tensor, scales: torch.Tensor, bits: int, objective: _Objective, descent: RoundingDescent
) -> torch.Tensor:
    """Return 1 where a weight goes up, else 0: float64[groups, rows, columns]."""
    import torch

    largest = largest_code(bits)
    simple = output_error(nearest(weights, scales, bits) - weights, objective.gram).clamp_min(_TINY)
    # float32 and in units of each row's own error: rows of every magnitude learn at one rate
    gram, codes = objective.gram.float(), (weights / scales).float()
    pull, unit = (objective.pull / scales).float(), (scales.square() / simple).float()
    floor = codes.floor()
    choices = _inverse_sigmoid((codes - floor).clamp(_EDGE, 1 - _EDGE)).requires_grad_(True)
    optimiser = torch.optim.Adam([choices], lr=descent.learning_rate)
    for iteration in range(descent.iterations):
        share = _rectified_sigmoid(choices)
        error = _Objective(gram, pull).change((floor + share).clamp(-largest, largest) - codes)
        cost = (error * unit).sum() + descent.regularisation * _undecided(share, iteration, descent)
        optimiser.zero_grad()
        cost.backward()
        optimiser.step()
    return (_rectified_sigmoid(choices.detach()) > 0.5).double()


def _undecided(share: torch.Tensor, iteration: int, descent: RoundingDescent) -> torch.Tensor:
    """Return the regulariser, summed over rows: the mean of 1 - |2 h - 1|^power over a row's weights."""
    free = descent.free_share * descent.iterations
    if iteration < free:
        return share.new_zeros(())
    progress = (iteration - free) / (descent.iterations - free)
    power = _LAST_POWER + (_FIRST_POWER - _LAST_POWER) * (1 - progress)
    return (1 - (2 * share - 1).abs().pow(power)).mean(dim=2).sum()


def _rectified_sigmoid(choices: torch.Tensor) -> torch.Tensor:
    return (choices.sigmoid() * (_STRETCH_HIGH - _STRETCH_LOW) + _STRETCH_LOW).clamp(0, 1)


def _inverse_sigmoid(share: torch.Tensor) -> torch.Tensor:
    return ((share - _STRETCH_LOW) / (_STRETCH_HIGH - _STRETCH_LOW)).logit()
