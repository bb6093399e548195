"""Rounding one layer's weights: linear algebra against brute force and plain facts."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from fewbits.quantizers.brevitas.rounding import (  # noqa: E402
    absmax_scales,
    clipped_scales,
    compensated,
    fitted_target,
    largest_code,
    nearest,
    output_error,
    whole_number_scales,
)


def layer(seed: int, groups: int = 1, rows: int = 6, columns: int = 9, samples: int = 400) -> tuple[Any, Any, Any]:
    """Weights, correlated inputs, and their gram matrix."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(groups, rows, columns, generator=generator, dtype=torch.float64)
    mixing = torch.randn(groups, columns, columns, generator=generator, dtype=torch.float64)
    inputs = torch.randn(groups, samples, columns, generator=generator, dtype=torch.float64) @ mixing
    return weights, inputs, inputs.transpose(1, 2) @ inputs / samples


def test_largest_codes_are_symmetric() -> None:
    assert [largest_code(bits) for bits in (2, 3, 4, 8)] == [1, 3, 7, 127]


def test_nearest_stays_on_the_grid_and_inside_it() -> None:
    weights, _, _ = layer(1)
    scales = absmax_scales(weights, 4)
    codes = nearest(weights, scales, 4) / scales
    assert torch.equal(codes.round(), codes.round().clamp(-7, 7))
    assert float((codes - codes.round()).abs().max()) < 1e-9
    assert float(codes.abs().amax(dim=2).min()) == pytest.approx(7)
    assert float((nearest(weights, scales, 4) - weights).abs().amax()) <= float(scales.max()) / 2 + 1e-12


def test_a_row_of_zeros_stays_zero() -> None:
    weights = torch.zeros(1, 2, 4, dtype=torch.float64)
    assert torch.equal(nearest(weights, absmax_scales(weights, 4), 4), weights)


def test_output_error_is_the_mean_square_over_the_samples() -> None:
    weights, inputs, gram = layer(2)
    difference = weights * 0.1
    measured = (inputs @ difference.transpose(1, 2)).square().mean(dim=1)
    assert torch.allclose(output_error(difference, gram)[:, :, 0], measured)


def test_clipping_never_costs_and_often_helps() -> None:
    for seed in range(5):
        weights, _, gram = layer(seed)
        weights[0, :, 0] *= 6  # one outlier a row
        widest, clipped = absmax_scales(weights, 3), clipped_scales(weights, gram, 3)
        before = output_error(nearest(weights, widest, 3) - weights, gram)
        after = output_error(nearest(weights, clipped, 3) - weights, gram)
        assert bool((after <= before + 1e-12).all())
        assert float(after.sum()) < float(before.sum())


@pytest.mark.parametrize("groups", [1, 3])
def test_compensation_beats_rounding_to_nearest_on_correlated_inputs(groups: int) -> None:
    plain = compensation = 0.0
    for seed in range(8):
        weights, _, gram = layer(seed, groups=groups)
        scales = absmax_scales(weights, 3)
        values = compensated(weights, gram, scales, 3)
        codes = values / scales
        assert float((codes - codes.round()).abs().max()) < 1e-9
        assert float(codes.abs().max()) <= 3 + 1e-9
        plain += float(output_error(nearest(weights, scales, 3) - weights, gram).sum())
        compensation += float(output_error(values - weights, gram).sum())
    assert compensation < 0.8 * plain


def test_groups_are_rounded_as_if_alone() -> None:
    weights, _, gram = layer(7, groups=3)
    scales = absmax_scales(weights, 4)
    together = compensated(weights, gram, scales, 4)
    for group in range(3):
        part = slice(group, group + 1)
        assert torch.allclose(compensated(weights[part], gram[part], scales[part], 4), together[part])


def test_compensation_equals_nearest_where_inputs_are_uncorrelated() -> None:
    weights, _, _ = layer(3)
    scales = absmax_scales(weights, 4)
    identity = torch.eye(9, dtype=torch.float64)[None]
    assert torch.allclose(compensated(weights, identity, scales, 4), nearest(weights, scales, 4))


def test_compensation_lies_between_rounding_to_nearest_and_the_best_of_all_roundings() -> None:
    best = found = plain = 0.0
    for seed in range(8):
        weights, _, gram = layer(seed, rows=1, columns=4)
        scales = absmax_scales(weights, 3)
        codes = torch.tensor(list(itertools.product(range(-3, 4), repeat=4)), dtype=torch.float64)[None]
        best += float(output_error(codes * scales - weights, gram).min())
        values = compensated(weights, gram, scales, 3)
        assert float(output_error(values - weights, gram)) >= float(output_error(codes * scales - weights, gram).min()) - 1e-12
        found += float(output_error(values - weights, gram))
        plain += float(output_error(nearest(weights, scales, 3) - weights, gram))
    assert best < found < plain
    assert found - best < 0.5 * (plain - best)


def test_the_target_repairs_what_the_inputs_lost() -> None:
    weights, inputs, _ = layer(5, samples=2000)
    spoiled = inputs * 0.8 + 0.05 * torch.randn(inputs.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gram = spoiled.transpose(1, 2) @ spoiled / 2000
    drift = (inputs - spoiled).transpose(1, 2) @ spoiled / 2000
    target = fitted_target(weights, gram, drift)
    wanted = inputs @ weights.transpose(1, 2)
    error = (spoiled @ target.transpose(1, 2) - wanted).square().mean()
    before = (spoiled @ weights.transpose(1, 2) - wanted).square().mean()
    assert float(error) < 0.2 * float(before)


def test_the_target_of_unspoiled_inputs_is_the_weights_themselves() -> None:
    weights, _, gram = layer(6)
    assert torch.equal(fitted_target(weights, gram, torch.zeros_like(gram)), weights)


def test_dead_inputs_do_no_harm() -> None:
    weights, _, gram = layer(8)
    gram[:, 0, :] = gram[:, :, 0] = 0
    scales = absmax_scales(weights, 4)
    assert bool(torch.isfinite(compensated(weights, gram, scales, 4)).all())
    assert bool(torch.isfinite(compensated(weights, torch.zeros_like(gram), scales, 4)).all())


def test_whole_numbers_keep_their_values_exactly() -> None:
    bins = torch.arange(16, dtype=torch.float64).reshape(1, 1, 16)
    scales = whole_number_scales(bins, 8)
    assert scales is not None
    assert float(scales) == 1 / 8
    assert torch.equal(nearest(bins, scales, 8), bins)
    assert whole_number_scales(bins, 4) is None
    assert whole_number_scales(bins + 0.5, 8) is None
    assert whole_number_scales(bins * 0, 8) is None
