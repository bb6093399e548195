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
    found = choose_layer_bits(layers, 4, dict.fromkeys(layers, 4), budget)
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
    found = choose_layer_bits(layers, 4, dict.fromkeys(layers, 4), 4.05)
    assert (found["small"], found["large"]) == (8, 4)
    assert found["calm"] < 8


def test_spared_layers_keep_their_bits_whatever_they_cost() -> None:
    layers = {"spared": LayerCost(100, 1e-9), "costly": LayerCost(100, 5.0), "other": LayerCost(800, 5.0)}
    found = choose_layer_bits(layers, 4, {"spared": 8, "costly": 4, "other": 4}, 4.8)
    assert (found["spared"], found["costly"]) == (8, 8)


def test_a_budget_below_what_is_needed_at_least_is_refused() -> None:
    layers = {"a": LayerCost(1, 1.0), "b": LayerCost(1, 1.0)}
    assert choose_layer_bits(layers, 4, {"a": 8, "b": 4}, 6.0) == {"a": 8, "b": 4}
    with pytest.raises(SpecError, match=r"alone makes 6\.00"):
        choose_layer_bits(layers, 4, {"a": 8, "b": 4}, 5.9)
