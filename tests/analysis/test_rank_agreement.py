from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fewbits.analysis import agreement
from fewbits.analysis.agreement import noise_ceiling, rank_agreement

NAMES = ("score", "truth")


def scored(values: object) -> dict[str, float]:
    return {f"layer.{index}": float(value) for index, value in enumerate(np.asarray(values))}


def correlated(rng: np.random.Generator, n: int, rho: float) -> tuple[dict[str, float], dict[str, float]]:
    x = rng.standard_normal(n)
    return scored(x), scored(rho * x + math.sqrt(1 - rho * rho) * rng.standard_normal(n))


def true_spearman(rho: float) -> float:
    """Of a bivariate normal. Source: Kruskal (1958), Ordinal Measures of Association, JASA 53(284), section 11."""
    return 6 / math.pi * math.asin(rho / 2)


@pytest.mark.parametrize(("n", "rho"), [(60, 0.0), (60, 0.7), (60, 0.95), (120, 0.0), (120, 0.7), (120, 0.95)])
def test_the_interval_covers_the_true_correlation(n: int, rho: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "RESAMPLES", 500)
    rng = np.random.default_rng(n)
    rounds, covered = 200, 0
    for _ in range(rounds):
        found = rank_agreement(*correlated(rng, n, rho), names=NAMES).spearman
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= true_spearman(rho) <= found.high
    assert 0.90 <= covered / rounds <= 0.985


@pytest.mark.parametrize("n", [60, 120])
def test_the_top_share_interval_covers_and_errs_on_the_wide_side(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "RESAMPLES", 10)
    rng = np.random.default_rng(5)
    upper = stats.norm.ppf(0.8)
    truth = stats.multivariate_normal(cov=[[1, 0.8], [0.8, 1]]).cdf([-upper, -upper]) / 0.2
    covered = 0
    for _ in range(300):
        found = rank_agreement(*correlated(rng, n, 0.8), names=NAMES).top_k_overlap
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= truth <= found.high
    assert covered / 300 >= 0.95


@settings(max_examples=40, deadline=None)
@given(
    left=st.lists(st.integers(-50, 50), min_size=12, max_size=25),
    right=st.lists(st.integers(-50, 50), min_size=25, max_size=25),
    power=st.sampled_from([1, 3, 5]),
    shift=st.integers(-100, 100),
)
def test_only_the_order_counts(left: list[int], right: list[int], power: int, shift: int) -> None:
    right = right[: len(left)]
    plain = rank_agreement(scored(left), scored(right), names=NAMES)
    bent = rank_agreement(scored([value**power for value in left]), scored([2 * value + shift for value in right]), names=NAMES)
    assert bent == plain


@settings(max_examples=40, deadline=None)
@given(values=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=10, max_size=20))
def test_value_with_ties_is_scipys_and_names_do_not_matter(values: list[tuple[int, int]]) -> None:
    left, right = zip(*values, strict=True)
    found = rank_agreement(scored(left), scored(right), names=NAMES)
    if len(set(left)) == 1 or len(set(right)) == 1:
        assert found.spearman is None
        assert "alike" in found.reason
        return
    assert found.spearman is not None
    assert found.spearman.value == pytest.approx(stats.spearmanr(left, right).statistic, abs=1e-6)
    renamed = rank_agreement(scored(left[::-1]), scored(right[::-1]), names=NAMES)
    assert renamed.spearman == found.spearman


def test_a_resample_is_scored_like_the_repeated_data() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.integers(0, 8, 15).astype(float), rng.integers(0, 8, 15).astype(float)
    counts = rng.multinomial(15, np.full(15, 1 / 15), size=20)
    expected = [stats.spearmanr(np.repeat(a, row), np.repeat(b, row)).statistic for row in counts]
    assert agreement._weighted_spearman(a, b, counts) == pytest.approx(expected)


def test_a_shuffled_ranking_does_not_agree() -> None:
    rng = np.random.default_rng(11)
    found = rank_agreement(scored(rng.standard_normal(200)), scored(rng.permutation(200)), names=NAMES)
    assert found.spearman is not None
    assert found.spearman.low is not None
    assert found.spearman.high is not None
    assert abs(found.spearman.value) < 0.2
    assert found.spearman.low < 0 < found.spearman.high
    assert found.top_k_overlap is not None
    assert found.top_k_overlap.value < 0.4


def test_perfect_agreement_is_not_certainty() -> None:
    widths = []
    for n in (10, 60, 145):
        found = rank_agreement(scored(range(n)), scored(range(n)), names=NAMES)
        assert found.spearman is not None
        assert found.spearman.low is not None
        assert (found.spearman.value, found.spearman.high) == (1.0, 1.0)
        assert found.top_k_overlap is not None
        assert found.top_k_overlap.value == 1.0
        widths.append(1 - found.spearman.low)
    assert widths == sorted(widths, reverse=True)
    assert widths[0] < 2
    opposite = rank_agreement(scored(range(60)), scored(range(60, 0, -1)), names=NAMES).spearman
    assert opposite is not None
    assert (opposite.value, opposite.low) == (-1.0, -1.0)
    assert opposite.high == pytest.approx(-0.6631, abs=1e-3)


def test_the_bound_of_perfect_agreement_is_the_worst_that_an_unseen_share_can_do() -> None:
    n, level = 60, 0.95
    share = 1 - ((1 - level) / 2) ** (1 / n)
    ranks = np.arange(100_000) / 100_000 - 0.5
    worst = np.where(np.abs(ranks) > (1 - share) / 2, -ranks, ranks)
    assert agreement._unseen_discordance(n, level) == pytest.approx(np.corrcoef(ranks, worst)[0, 1], abs=1e-3)
    rng = np.random.default_rng(0)
    others = (np.where(rng.permutation(ranks.size) < share * ranks.size, -ranks, ranks) for _ in range(20))
    assert all(np.corrcoef(ranks, other)[0, 1] > agreement._unseen_discordance(n, level) for other in others)


def test_top_k() -> None:
    left = scored([9, 8, 7, 1, 2, 3, 4, 5, 6, 0])
    right = scored([9, 1, 8, 7, 2, 3, 4, 5, 6, 0])
    found = rank_agreement(left, right, names=NAMES, top_k=3)
    assert (found.top_k, found.left, found.right, found.groups) == (3, "score", "truth", 10)
    assert found.top_k_overlap is not None
    assert found.top_k_overlap.value == pytest.approx(2 / 3, abs=1e-6)
    assert found.top_k_overlap.n == 3
    assert rank_agreement(left, right, names=NAMES).top_k == 2
    assert rank_agreement(scored([3, 2, 1]), scored([3, 2, 1]), names=NAMES).top_k == 1


def test_groups_that_tie_at_the_edge_share_its_places() -> None:
    flat = scored([5, 1, 1, 1, 1])
    found = rank_agreement(flat, scored([5, 4, 3, 2, 1]), names=NAMES, top_k=2)
    assert found.top_k_overlap is not None
    assert found.top_k_overlap.value == pytest.approx(1.25 / 2)
    same = rank_agreement(flat, flat, names=NAMES, top_k=2)
    assert same.top_k_overlap is not None
    assert same.top_k_overlap.value == 1.0


@pytest.mark.parametrize(
    ("left", "right", "words"),
    [([1, 2], [2, 1], "2 groups"), ([1, 1, 1, 1], [1, 2, 3, 4], "score scores all groups alike"), ([], [], "0 groups")],
)
def test_no_correlation_is_said_not_invented(left: list[int], right: list[int], words: str) -> None:
    found = rank_agreement(scored(left), scored(right), names=NAMES)
    assert found.spearman is None
    assert found.top_k_overlap is None
    assert words in found.reason


def test_a_few_groups_have_a_value_but_no_interval() -> None:
    found = rank_agreement(scored([1, 2, 3, 4]), scored([1, 2, 4, 3]), names=NAMES).spearman
    assert found is not None
    assert (found.value, found.low, found.high) == (0.8, None, None)
    assert "at least 10" in found.reason


def test_unusable_scores_are_refused() -> None:
    with pytest.raises(ValueError, match=r"only truth scores layer\.2, layer\.3"):
        rank_agreement(scored([1, 2]), scored([1, 2, 3, 4]), names=NAMES)
    with pytest.raises(ValueError, match="not finite"):
        rank_agreement(scored([1, 2, math.nan]), scored([1, 2, 3]), names=NAMES)
    with pytest.raises(ValueError, match="top_k is 4"):
        rank_agreement(scored([1, 2, 3]), scored([1, 2, 3]), names=NAMES, top_k=4)


@pytest.mark.parametrize(("noise", "samples"), [(1.0, 8), (3.0, 8), (6.0, 16)])
def test_the_ceiling_is_what_the_truth_itself_reaches(noise: float, samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known truth plus noise: the ceiling, which never sees the truth, is the truth's own correlation with the measurement."""
    monkeypatch.setattr(agreement, "RESAMPLES", 200)
    rng = np.random.default_rng(7)
    ceilings = []
    for _ in range(100):
        truth = rng.standard_normal(120)
        measured = truth[:, None] + noise * rng.standard_normal((120, samples))
        found, reason = noise_ceiling({f"g{index}": row.tolist() for index, row in enumerate(measured)})
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        assert not reason
        ceilings.append(found)
    expected = true_spearman(1 / math.sqrt(1 + noise**2 / samples))
    assert np.mean([found.value for found in ceilings]) == pytest.approx(expected, abs=0.025)
    covered = sum(found.low <= expected <= found.high for found in ceilings if found.low is not None and found.high is not None)
    assert covered / len(ceilings) >= 0.88


def test_a_measurement_of_noise_has_no_ceiling_to_speak_of() -> None:
    rng = np.random.default_rng(2)
    found, _ = noise_ceiling({f"g{index}": rng.standard_normal(8).tolist() for index in range(100)})
    assert found is not None
    assert found.low == 0.0
    assert found.value < 0.5


def test_a_measurement_without_noise_is_not_certainty() -> None:
    found, _ = noise_ceiling({f"g{index:02}": [float(index)] * 6 for index in range(60)})
    assert found is not None
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low is not None
    assert 0.8 < found.low < 1.0


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ({"a": [1.0] * 8, "b": [2.0] * 8}, "2 groups"),
        ({"a": [1.0] * 3, "b": [2.0] * 3, "c": [3.0] * 3}, "3 held-out samples"),
        ({"a": [1.0] * 8, "b": [1.0] * 8, "c": [1.0] * 8}, "alike"),
    ],
)
def test_a_ceiling_that_does_not_exist_is_explained(samples: dict[str, list[float]], words: str) -> None:
    found, reason = noise_ceiling(samples)
    assert found is None
    assert words in reason


def test_ceiling_needs_the_same_samples_everywhere() -> None:
    with pytest.raises(ValueError, match=r"\[4, 5\]"):
        noise_ceiling({"a": [1.0] * 4, "b": [1.0] * 5})
