"""Weight bits for every layer of a detector under an average: the budgeted choice from each layer's cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fewbits.analysis.knapsack import Option, choose
from fewbits.core.errors import SpecError
from fewbits.quantizers.brevitas.output_scores import LayerCost

CANDIDATE_BITS: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
NOISE_RATIO_PER_BIT = 4.0
"""One bit more halves a uniform quantizer's step and quarters its error. Source: Bennett (1948), Spectra of Quantized Signals."""


def choose_layer_bits(
    layers: Mapping[str, LayerCost],
    base_bits: int,
    least_bits: Mapping[str, int],
    budget_bits: float,
    candidates: Sequence[int] = CANDIDATE_BITS,
) -> dict[str, int]:
    """Return the weight bits of each layer, at least its `least_bits`, that give the smallest total cost.

    The average over all weights stays within `budget_bits`. Costs are those at `base_bits`; at more bits they follow by a quarter
    per bit. Raises `SpecError` when the budget is below what the layers need at least.
    """
    total = sum(layer.weights for layer in layers.values())
    least = sum(least_bits[name] * layer.weights for name, layer in layers.items())
    if budget_bits * total < least:
        hint = f"what is spared alone makes {least / total:.2f}"
        raise SpecError.single("budget", f"{budget_bits:g} bits on average cannot be met", hint)
    groups = {
        name: [
            Option(str(bits), bits * layer.weights, layer.cost / NOISE_RATIO_PER_BIT ** (bits - base_bits))
            for bits in candidates
            if bits >= least_bits[name]
        ]
        for name, layer in layers.items()
    }
    # sizes are in bits here: the solver asks for whole units of any kind
    picks = choose(groups, int(budget_bits * total)).picks
    return {name: int(picks[name]) for name in layers}
