"""Anytime-valid evidence against simulations whose truth is known, and the laws that it rests on."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.analysis.anytime import Hypothesis, PairedEvidence, confidence_bounds, minimum_detectable_loss

Floats = npt.NDArray[np.float64]
MARGIN = 0.05
DIFFERENCES = st.lists(st.floats(-1, 1), min_size=1, max_size=60).map(lambda values: np.array(values, dtype=np.float64))


def outcomes(rng: np.random.Generator, loss: float, gain: float, items: int) -> Floats:
    """Differences of binary outcomes: -1 with probability `loss`, +1 with probability `gain`, else 0."""
    draws = rng.random(items)
    return np.where(draws < loss, -1.0, np.where(draws < loss + gain, 1.0, 0.0))


def evidence(differences: Floats) -> PairedEvidence:
    found = PairedEvidence(MARGIN)
    found.extend(differences)
    return found


def rejection_rate(hypothesis: Hypothesis, level: float, samples: list[Floats]) -> float:
    return float(np.mean([evidence(sample).p_value(hypothesis) <= level for sample in samples]))


@given(DIFFERENCES)
def test_one_by_one_and_all_at_once_agree(differences: Floats) -> None:
    together, single = evidence(differences), PairedEvidence(MARGIN)
    for difference in differences:
        single.add(float(difference))
    assert single.items == together.items == len(differences)
    for hypothesis in Hypothesis:
        assert single.p_value(hypothesis) == pytest.approx(together.p_value(hypothesis), rel=1e-9)


@given(DIFFERENCES, st.integers(0, 59))
def test_evidence_is_never_lost(differences: Floats, cut: int) -> None:
    early, late = evidence(differences[: cut + 1]), evidence(differences)
    assert all(late.p_value(hypothesis) <= early.p_value(hypothesis) * (1 + 1e-9) for hypothesis in Hypothesis)


@given(DIFFERENCES)
def test_the_mirror_image_swaps_loss_and_gain(differences: Floats) -> None:
    one, other = evidence(differences), evidence(-differences)
    for left, right in (
        (Hypothesis.NO_LOSS, Hypothesis.NO_GAIN),
        (Hypothesis.LOSS_BEYOND_MARGIN, Hypothesis.GAIN_BEYOND_MARGIN),
    ):
        assert one.p_value(left) == pytest.approx(other.p_value(right), rel=1e-9)


@given(DIFFERENCES, st.floats(0.01, 0.2))
def test_interval_and_test_agree(differences: Floats, level: float) -> None:
    low, high = confidence_bounds(differences, level)
    found = evidence(differences)
    assert -1 <= low <= high <= 1
    # a bound within rounding of the hypothesis may fall on either side
    if abs(high) > 1e-6 and low < high:
        assert (high < 0) == (found.p_value(Hypothesis.NO_LOSS) <= level)
    if abs(low + MARGIN) > 1e-6 and low < high:
        assert (low > -MARGIN) == (found.p_value(Hypothesis.LOSS_BEYOND_MARGIN) <= level)


def test_bets_are_fair_at_the_edge_of_each_hypothesis() -> None:
    """The expected factor of one bet is 1 when the mean lies exactly at the hypothesis, whatever the spread."""
    found = PairedEvidence(MARGIN)
    edges = {
        Hypothesis.NO_LOSS: 0.0,
        Hypothesis.NO_GAIN: 0.0,
        Hypothesis.LOSS_BEYOND_MARGIN: -MARGIN,
        Hypothesis.GAIN_BEYOND_MARGIN: MARGIN,
    }
    for hypothesis, mean in edges.items():
        for low in (-1.0, -0.5, mean - 0.01):
            share = (1.0 - mean) / (1.0 - low)  # two values, `low` and 1, with that mean
            factors = [found._bets.constant[hypothesis] + found._bets.slope[hypothesis] * value for value in (low, 1.0)]
            np.testing.assert_allclose(share * factors[0] + (1 - share) * factors[1], 1.0, rtol=1e-12)
            assert min(factor.min() for factor in factors) > 0


@pytest.mark.parametrize(
    ("hypothesis", "loss", "gain"),
    [
        (Hypothesis.NO_LOSS, 0.06, 0.06),
        (Hypothesis.NO_GAIN, 0.02, 0.02),
        (Hypothesis.LOSS_BEYOND_MARGIN, 0.08, 0.03),
        (Hypothesis.LOSS_BEYOND_MARGIN, 0.05, 0.0),
        (Hypothesis.GAIN_BEYOND_MARGIN, 0.01, 0.06),
    ],
)
def test_type_one_error_with_a_look_after_every_item(hypothesis: Hypothesis, loss: float, gain: float) -> None:
    """Truth at the edge of the hypothesis: the p-value falls to 0.05 at any moment of 400 items in at most 5 %."""
    rng = np.random.default_rng(11)
    rate = rejection_rate(hypothesis, 0.05, [outcomes(rng, loss, gain, 400) for _ in range(1000)])
    assert rate <= 0.05


def test_type_one_error_with_skewed_partial_scores() -> None:
    """Rare large losses, common small gains, mean 0: what breaks t and sign-flip tests of few items."""
    rng = np.random.default_rng(12)
    samples = [np.where(rng.random(60) < 0.02, -0.98, 0.02) for _ in range(1000)]
    assert rejection_rate(Hypothesis.NO_GAIN, 0.05, samples) <= 0.05
    assert rejection_rate(Hypothesis.LOSS_BEYOND_MARGIN, 0.05, [s - MARGIN for s in samples]) <= 0.05


def test_power_at_five_points_of_loss() -> None:
    rng = np.random.default_rng(13)
    rate = rejection_rate(Hypothesis.NO_LOSS, 0.04, [outcomes(rng, 0.07, 0.02, 500) for _ in range(500)])
    assert rate >= 0.87  # 0.913 in 8,000 runs; three standard errors below


@pytest.mark.parametrize(("loss", "gain"), [(0.03, 0.03), (0.3, 0.02), (0.1, 0.0)])
def test_the_interval_covers_at_every_moment(loss: float, gain: float) -> None:
    rng = np.random.default_rng(14)
    truth, misses = gain - loss, 0
    for _ in range(200):
        sample = outcomes(rng, loss, gain, 150)
        low, high = confidence_bounds(sample, 0.05)
        misses += not low <= truth <= high
    assert misses / 200 <= 0.1


def test_without_items_nothing_is_known() -> None:
    empty = np.array([], dtype=np.float64)
    assert confidence_bounds(empty, 0.05) == (-1.0, 1.0)
    assert minimum_detectable_loss(empty, 0.05) is None
    found = PairedEvidence(MARGIN)
    assert [found.p_value(hypothesis) for hypothesis in Hypothesis] == [1.0] * 4
    assert found.items_to_reject(Hypothesis.NO_LOSS, 0.05) is None


def test_identical_outcomes_prove_equivalence_no_sooner_than_an_exact_bound() -> None:
    """All-equal outcomes leave a share of unseen others: 1 - 0.05^(1/n) falls to the margin at 59 items."""
    assert evidence(np.zeros(58)).p_value(Hypothesis.LOSS_BEYOND_MARGIN) > 0.05
    assert evidence(np.zeros(120)).p_value(Hypothesis.LOSS_BEYOND_MARGIN) < 0.05


@pytest.mark.parametrize(("loss", "gain"), [(0.3, 0.03), (0.1, 0.02)])
def test_projection_tells_about_how_many_items_it_takes(loss: float, gain: float) -> None:
    """Projected from the first 40 items, the median total lies within a factor of two of where evidence really suffices."""
    rng = np.random.default_rng(15)
    projected, real = [], []
    for _ in range(60):
        sample = outcomes(rng, loss, gain, 1500)
        found = evidence(sample[:40])
        projected.append(found.items_to_reject(Hypothesis.NO_LOSS, 0.01) or math.inf)
        while found.p_value(Hypothesis.NO_LOSS) > 0.01:
            found.add(float(sample[found.items]))
        real.append(found.items)
    ratio = float(np.median(projected)) / float(np.median(real))
    assert 0.5 < ratio < 2


@given(st.integers(2, 400), st.floats(0.001, 0.2))
def test_more_items_detect_smaller_losses(items: int, level: float) -> None:
    rng = np.random.default_rng(items)
    sample = outcomes(rng, 0.05, 0.05, items)
    few, many = minimum_detectable_loss(sample, level), minimum_detectable_loss(np.tile(sample, 4), level)
    assert few is not None
    assert many is not None
    assert 0 < many < few <= 1


@pytest.mark.parametrize(("items", "loss", "gain"), [(500, 0.03, 0.03), (100, 0.05, 0.03), (51, 0.06, 0.06), (200, 0.2, 0.2)])
def test_the_detectable_loss_is_detected_about_four_times_in_five(items: int, loss: float, gain: float) -> None:
    rng = np.random.default_rng(16)
    sample = outcomes(rng, loss, gain, items)
    detectable = minimum_detectable_loss(sample, 0.04)
    assert detectable is not None
    spread = max(float(np.mean(sample**2)), detectable)
    worse, better = (spread + detectable) / 2, (spread - detectable) / 2
    rate = rejection_rate(Hypothesis.NO_LOSS, 0.04, [outcomes(rng, worse, better, items) for _ in range(300)])
    assert 0.65 <= rate <= 0.96
