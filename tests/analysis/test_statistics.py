from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fewbits.analysis import statistics as sut
from fewbits.records.estimate import Estimate

Floats = npt.NDArray[np.float64]
Pairs = tuple[Floats, Floats]


def fractional(rng: np.random.Generator, n: int) -> Pairs:
    base = rng.beta(4, 2, n)
    return np.clip(base - rng.beta(1, 9, n) + 0.02, 0, 1), base


def pass_or_fail(rng: np.random.Generator, n: int) -> Pairs:
    base = (rng.random(n) < 0.7).astype(float)
    flips = rng.random(n)
    return np.where(flips < 0.15, 0.0, np.where(flips > 0.93, 1.0, base)), base


def rare_loss(rng: np.random.Generator, n: int) -> Pairs:
    base = np.ones(n)
    return base - (rng.random(n) < 0.05), base


def coverage(
    draw: Callable[[np.random.Generator, int], Pairs], make: Callable[[Floats, Floats], Estimate | None], truth: float
) -> float:
    rng = np.random.default_rng(11)
    found = [make(*draw(rng, 30)) for _ in range(600)]
    assert all(item is not None and item.low is not None and item.high is not None for item in found)
    return float(
        np.mean(
            [
                item.low - 1e-6 <= truth <= item.high + 1e-6
                for item in found
                if item and item.low is not None and item.high is not None
            ]
        )
    )


@pytest.mark.parametrize(("draw", "ceiling"), [(fractional, 0.98), (pass_or_fail, 0.98), (rare_loss, 1.0)])
def test_difference_and_ratio_cover_the_truth(draw: Callable[[np.random.Generator, int], Pairs], ceiling: float) -> None:
    variant, base = draw(np.random.default_rng(5), 2_000_000)
    difference = coverage(draw, sut.difference_estimate, float(np.mean(variant - base)))
    ratio = coverage(draw, sut.ratio_estimate, float(np.mean(variant) / np.mean(base)))
    assert 0.92 <= difference <= ceiling
    assert 0.92 <= ratio <= ceiling


def test_identical_answers_are_no_proof_of_equality() -> None:
    scores = np.array([1.0, 0.0] * 15)
    found = sut.difference_estimate(scores, scores)
    assert found is not None
    assert found.value == 0.0
    # 1 - 0.025 ** (1/30): what 30 equal tasks cannot exclude
    assert found.low == pytest.approx(-0.115703, abs=1e-6)
    assert found.high == pytest.approx(0.115703, abs=1e-6)
    ratio = sut.ratio_estimate(scores, scores)
    assert ratio is not None
    assert ratio.low == pytest.approx(1 - 0.115703 / 0.5, abs=1e-5)


def test_one_task_has_no_interval_and_says_so() -> None:
    found = sut.difference_estimate(np.array([0.5]), np.array([1.0]))
    assert found is not None
    assert (found.value, found.low, found.high) == (-0.5, None, None)
    assert "at least 2" in found.reason


def test_ratio_to_nothing_does_not_exist() -> None:
    assert sut.ratio_estimate(np.array([1.0, 0.5]), np.array([0.0, 0.0])) is None
    rarely = sut.ratio_estimate(np.array([1.0, 0.0, 1.0]), np.array([1.0, 0.0, 0.0]))
    assert rarely is not None
    assert rarely.low is None
    assert "too many resamples" in rarely.reason


def test_large_samples_use_the_t_interval_and_agree_with_the_bootstrap() -> None:
    variant, base = pass_or_fail(np.random.default_rng(3), 1000)
    bootstrap = sut.difference_estimate(variant, base)
    extended = sut.difference_estimate(np.append(variant, 0.0), np.append(base, 0.0))
    assert bootstrap is not None
    assert extended is not None
    assert (bootstrap.method, extended.method) == (sut.BOOTSTRAP, sut.T_INTERVAL)
    assert extended.low == pytest.approx(bootstrap.low, abs=0.003)
    assert extended.high == pytest.approx(bootstrap.high, abs=0.003)


@given(st.integers(1, 200), st.data())
def test_wilson_equals_scipy(trials: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, trials))
    found = sut.wilson_estimate(successes, trials)
    expected = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    assert found.low == pytest.approx(expected.low, abs=2e-6)
    assert found.high == pytest.approx(expected.high, abs=2e-6)


@pytest.mark.parametrize(("n", "quantile"), [(6, 0.5), (20, 0.5), (101, 0.5), (80, 0.95), (400, 0.95)])
def test_order_statistics_hold_their_level_and_are_the_tightest(n: int, quantile: float) -> None:
    low, high = sut.order_statistic_ranks(n, quantile)
    assert low is not None
    assert high is not None
    distribution = stats.binom(n, quantile)
    assert distribution.cdf(low - 1) <= 0.025 < distribution.cdf(low)
    assert distribution.sf(high - 1) <= 0.025 < distribution.sf(high - 2)


def test_median_interval_covers_by_simulation() -> None:
    rng = np.random.default_rng(2)
    draws = rng.lognormal(size=(2000, 30))
    found = [sut.quantile_estimate(row, 0.5, units=30) for row in draws]
    hits = [item.low <= 1.0 <= item.high for item in found if item and item.low is not None and item.high is not None]
    assert len(hits) == 2000
    assert 0.94 <= np.mean(hits) <= 0.98


def test_p95_of_few_trials_has_no_upper_limit_and_never_exceeds_the_data() -> None:
    found = sut.quantile_estimate([float(i) for i in range(1, 21)], 0.95, units=20)
    assert found is not None
    assert (found.value, found.high) == (19.0, None)
    assert found.reason == "too few tasks: it takes 72 tasks for an upper limit"
    enough = sut.quantile_estimate([float(i) for i in range(1, 73)], 0.95, units=72)
    assert enough is not None
    assert enough.high == 72.0


def test_repetitions_of_a_task_are_not_independent_evidence() -> None:
    once = sut.quantile_estimate([float(i) for i in range(20)], 0.5, units=20)
    thrice = sut.quantile_estimate([float(i) for i in range(20) for _ in range(3)], 0.5, units=20)
    assert once is not None
    assert thrice is not None
    assert (once.low, once.high) == (thrice.low, thrice.high)


scores = st.lists(st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(0, 1)), min_size=1, max_size=12)


@given(scores, st.randoms())
def test_order_of_tasks_never_matters_and_the_value_lies_inside(pairs: list[tuple[float, float]], shuffler: object) -> None:
    mixed = list(pairs)
    shuffler.shuffle(mixed)  # type: ignore[attr-defined]
    for make in (sut.difference_estimate, sut.ratio_estimate):
        one = make(np.array([a for a, _ in pairs]), np.array([b for _, b in pairs]))
        other = make(np.array([a for a, _ in mixed]), np.array([b for _, b in mixed]))
        assert one == other
        if one is not None and one.low is not None and one.high is not None:
            assert one.low - 1e-6 <= one.value <= one.high + 1e-6


@given(st.lists(st.floats(0, 100), min_size=1, max_size=200), st.sampled_from([0.5, 0.95]))
def test_quantile_limits_are_data(values: list[float], quantile: float) -> None:
    found = sut.quantile_estimate(values, quantile, units=len(values))
    assert found is not None
    assert min(values) - 1e-6 <= found.value <= max(values) + 1e-6
    for limit in (found.low, found.high):
        assert limit is None or min(values) - 1e-6 <= limit <= max(values) + 1e-6
    assert (found.low is None or found.high is None) == bool(found.reason)


def test_rounding_refuses_nan_and_negative_zero() -> None:
    with pytest.raises(ValueError, match="not a number"):
        sut.rounded(float("nan"))
    assert str(sut.rounded(-1e-9)) == "0.0"
