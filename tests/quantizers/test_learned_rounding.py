"""Learned rounding of one layer: against rounding to nearest, against GPTQ, and what it promises about the grid."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from fewbits.quantizers.brevitas.learned_rounding import LayerSamples, RoundingDescent, learned_rounding  # noqa: E402
from fewbits.quantizers.brevitas.rounding import (  # noqa: E402
    absmax_scales,
    clipped_scales,
    compensated,
    largest_code,
    nearest,
)

SHORT = RoundingDescent(iterations=150)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads cost more than they bring on layers this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def samples(seed: int, groups: int = 1, rows: int = 12, columns: int = 27, count: int = 500, drift: float = 0.1) -> LayerSamples:
    """Correlated inputs, off by a share of their spread from the float model's, whose outputs are wanted."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(groups, rows, columns, generator=generator, dtype=torch.float64)
    mixing = torch.randn(groups, columns, columns, generator=generator, dtype=torch.float64)
    floats = torch.randn(groups, count, columns, generator=generator, dtype=torch.float64) @ mixing
    seen = floats + drift * floats.std() * torch.randn(floats.shape, generator=generator, dtype=torch.float64)
    return LayerSamples(weights, seen.float(), (floats @ weights.transpose(1, 2)).float())


def gram(layer: LayerSamples) -> Any:
    seen = layer.columns_seen.double()
    return seen.transpose(1, 2) @ seen / seen.shape[1]


def errors(layer: LayerSamples, values: Any) -> Any:
    """Mean squared output error of each row, from the samples themselves."""
    given = layer.columns_seen.double() @ values.transpose(1, 2)
    return (layer.outputs_wanted.double() - given).square().mean(dim=1)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("groups", [1, 3])
def test_it_beats_rounding_to_nearest_and_no_row_loses(bits: int, groups: int) -> None:
    layer = samples(bits, groups=groups, drift=0)  # so that all of the error is rounding's
    scales = clipped_scales(layer.weights, gram(layer), bits)
    learned = errors(layer, learned_rounding(layer, scales, bits, SHORT))
    simple = errors(layer, nearest(layer.weights, scales, bits))
    assert bool((learned <= simple * (1 + 1e-6)).all())
    assert float(learned.mean()) < 0.85 * float(simple.mean())


def test_it_is_no_worse_than_gptq_on_the_same_target_and_scales() -> None:
    ratios = []
    for seed in range(3):
        layer = samples(seed, rows=32, columns=72, count=1500)
        fitted = torch.linalg.lstsq(layer.columns_seen.double(), layer.outputs_wanted.double()).solution.transpose(1, 2)
        scales = clipped_scales(fitted, gram(layer), 3)
        learned = learned_rounding(dataclasses.replace(layer, weights=fitted), scales, 3, RoundingDescent())
        ratios.append(float(errors(layer, learned).mean() / errors(layer, compensated(fitted, gram(layer), scales, 3)).mean()))
    assert max(ratios) < 1


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 10_000), bits=st.integers(2, 8), shrunk=st.floats(0.3, 1.0), size=st.floats(1e-4, 1e4))
def test_every_weight_is_the_floor_or_the_ceiling_on_the_grid(seed: int, bits: int, shrunk: float, size: float) -> None:
    layer = samples(seed, groups=2, rows=3, columns=5, count=40)
    layer = dataclasses.replace(layer, weights=layer.weights * size, outputs_wanted=layer.outputs_wanted * size)
    largest = largest_code(bits)
    scales = absmax_scales(layer.weights, bits) * shrunk
    codes = learned_rounding(layer, scales, bits, RoundingDescent(iterations=20)) / scales
    assert float((codes - codes.round()).abs().max()) < 1e-9
    assert float(codes.abs().max()) <= largest + 1e-9
    real = layer.weights / scales
    low, high = real.floor().clamp(-largest, largest), real.ceil().clamp(-largest, largest)
    assert bool(((codes - low).abs().minimum((codes - high).abs()) < 1e-9).all())


def test_weights_that_are_on_the_grid_stay() -> None:
    layer = samples(1)
    scales = absmax_scales(layer.weights, 4)
    layer = dataclasses.replace(layer, weights=nearest(layer.weights, scales, 4))
    outputs = layer.columns_seen @ layer.weights.float().transpose(1, 2)
    found = learned_rounding(dataclasses.replace(layer, outputs_wanted=outputs), scales, 4, SHORT)
    assert torch.allclose(found, layer.weights)


def test_a_layer_that_sees_nothing_rounds_to_nearest() -> None:
    layer = samples(2)
    blind = dataclasses.replace(layer, columns_seen=layer.columns_seen * 0, outputs_wanted=layer.outputs_wanted * 0)
    scales = absmax_scales(layer.weights, 4)
    assert torch.equal(learned_rounding(blind, scales, 4, SHORT), nearest(layer.weights, scales, 4))


def test_a_row_of_zeros_stays_zero() -> None:
    layer = samples(3)
    layer = dataclasses.replace(layer, weights=layer.weights * 0, outputs_wanted=layer.outputs_wanted * 0)
    assert torch.equal(learned_rounding(layer, absmax_scales(layer.weights, 4), 4, SHORT), layer.weights)


def test_the_same_arguments_give_the_same_weights_and_no_random_number_is_drawn() -> None:
    layer = samples(4)
    scales = absmax_scales(layer.weights, 3)
    state = torch.get_rng_state()
    with torch.no_grad():  # as inside of a forward pass that fits layers
        first = learned_rounding(layer, scales, 3, SHORT)
    assert torch.equal(first, learned_rounding(layer, scales, 3, SHORT))
    assert torch.equal(torch.get_rng_state(), state)
