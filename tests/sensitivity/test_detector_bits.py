"""Bits per layer under an average."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.core.errors import SpecError
from fewbits.quantizers.brevitas.output_scores import LayerCost
from fewbits.sensitivity.detector_bits import CANDIDATE_BITS, choose_layer_bits

COSTS = st.floats(1e-6, 1e3)
LAYERS = st.lists(st.tuples(st.integers(1, 500), COSTS), min_size=1, max_size=4)


def cost_of(layers: dict[str, LayerCost], bits: dict[str, int], base: int) -> float:
    return sum(layer.cost / 4.0 ** (bits[name] - base) for name, layer in layers.items())


@settings(deadline=None, max_examples=50)
@given(LAYERS, st.floats(4, 8))
def test_the_choice_fits_and_no_other_that_fits_is_cheaper(rows: list[tuple[int, float]], budget: float) -> None:
    layers = {f"layer{n}": LayerCost(*row) for n, row in enumerate(rows)}
    found = choose_layer_bits(layers, 4, budget)
    total = sum(layer.weights for layer in layers.values())
    assert sum(found[name] * layer.weights for name, layer in layers.items()) <= budget * total
    allowed = [bits for bits in CANDIDATE_BITS if bits >= 4]
    best = min(
        cost_of(layers, dict(zip(layers, picks, strict=True)), 4)
        for picks in itertools.product(allowed, repeat=len(layers))
        if sum(pick * layer.weights for pick, layer in zip(picks, layers.values(), strict=True)) <= budget * total
    )
    assert cost_of(layers, found, 4) == pytest.approx(best, rel=1e-6)


def test_small_and_costly_layers_get_the_bits() -> None:
    layers = {"small": LayerCost(10, 5.0), "large": LayerCost(1000, 5.0), "calm": LayerCost(10, 1e-9)}
    found = choose_layer_bits(layers, 4, 4.05)
    assert (found["small"], found["large"]) == (8, 4)
    assert found["calm"] < 8


def test_a_budget_below_the_base_is_refused() -> None:
    with pytest.raises(SpecError, match="the least is 4"):
        choose_layer_bits({"a": LayerCost(1, 1.0)}, 4, 3.9)
