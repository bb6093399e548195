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
    layers: Mapping[str, LayerCost], base_bits: int, budget_bits: float, candidates: Sequence[int] = CANDIDATE_BITS
) -> dict[str, int]:
    """Return the weight bits of each layer, at least `base_bits`, that give the smallest total cost.

    The average over all weights stays within `budget_bits`. Costs at more bits follow from the cost at the base by a quarter per
    bit. Raises `SpecError` when the budget is below the base.
    """
    total = sum(layer.weights for layer in layers.values())
    if budget_bits < base_bits:
        raise SpecError.single("budget", f"{budget_bits:g} bits on average cannot be met", f"the least is {base_bits}")
    allowed = [bits for bits in candidates if bits >= base_bits]
    groups = {
        name: [
            Option(str(bits), bits * layer.weights, layer.cost / NOISE_RATIO_PER_BIT ** (bits - base_bits)) for bits in allowed
        ]
        for name, layer in layers.items()
    }
    # sizes are in bits here: the solver asks for whole units of any kind
    picks = choose(groups, int(budget_bits * total)).picks
    return {name: int(picks[name]) for name in layers}
