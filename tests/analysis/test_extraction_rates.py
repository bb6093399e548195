from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from fewbits.analysis import extraction_rates as sut
from fewbits.extraction.metrics import field_counts, field_level_metrics
from fewbits.records.estimate import Estimate
from fewbits.records.extraction import Flag, LabReport, LabTest
from fewbits.records.extraction_metrics import ExtractionRates, FieldCounts, FieldMetrics, PageMetrics, Share

Floats = npt.NDArray[np.float64]
Pages = tuple[Floats, Floats]


def few_errors(rng: np.random.Generator, n: int) -> Pages:
    fields = rng.integers(30, 110, n)
    return (fields - rng.binomial(fields, 0.002)).astype(float), fields.astype(float)


def bad_pages(rng: np.random.Generator, n: int) -> Pages:
    fields = rng.integers(30, 110, n)
    wrong = np.where(rng.random(n) < 0.1, rng.binomial(fields, 0.1), 0)
    return (fields - wrong).astype(float), fields.astype(float)


def clustered(rng: np.random.Generator, n: int) -> Pages:
    fields = rng.integers(30, 110, n)
    return rng.binomial(fields, rng.beta(2, 2, n)).astype(float), fields.astype(float)


def covers(found: Estimate | None, truth: float) -> bool:
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.value <= found.high
    return found.low - 1e-6 <= truth <= found.high + 1e-6


@pytest.mark.parametrize("draw", [few_errors, bad_pages, clustered])
@pytest.mark.parametrize("n", [50, 200])
def test_pooled_rates_cover_the_truth(draw: Callable[[np.random.Generator, int], Pages], n: int) -> None:
    top, bottom = draw(np.random.default_rng(5), 400_000)
    truth = float(top.sum() / bottom.sum())
    rng = np.random.default_rng(11)
    share = np.mean([covers(sut.pooled_rate(*map(list, draw(rng, n))), truth) for _ in range(1000)])
    assert 0.93 <= share <= 0.995


def test_differences_cover_the_truth() -> None:
    def draw(rng: np.random.Generator, n: int) -> tuple[Pages, Pages]:
        top, bottom = bad_pages(rng, n)
        lost = np.where(rng.random(n) < 0.3, rng.binomial(top.astype(int), 0.05), 0)
        return (top - lost, bottom), (top, bottom)

    mine, theirs = draw(np.random.default_rng(5), 400_000)
    truth = float(mine[0].sum() / mine[1].sum() - theirs[0].sum() / theirs[1].sum())
    rng = np.random.default_rng(11)
    found = [sut.paired_difference(*((list(a), list(b)) for a, b in draw(rng, 60))).estimate for _ in range(400)]
    assert 0.92 <= np.mean([covers(each, truth) for each in found]) <= 0.98


def test_perfect_pages_get_an_honest_bound() -> None:
    found = sut.pooled_rate([40] * 50, [40] * 50)
    assert found is not None
    assert (found.value, found.high, found.n, found.method) == (1, 1, 50, sut.UNSEEN_PAGES)
    # Clopper-Pearson for 50 of 50 pages, not for 2000 of 2000 fields
    assert found.low == pytest.approx(stats.binomtest(50, 50).proportion_ci(method="exact").low, abs=1e-6)
    nothing = sut.pooled_rate([0] * 50, [40] * 50)
    assert nothing is not None
    assert nothing.low == 0
    assert nothing.high == pytest.approx(1 - (found.low or 0), abs=1e-6)


def test_independent_fields_give_clopper_and_pearson_on_fields() -> None:
    # where pages vary as a binomial would, the effective number of fields is their number
    rng = np.random.default_rng(3)
    top = rng.binomial(20, 0.8, 2000)
    found = sut.pooled_rate(top.tolist(), [20] * 2000)
    plain = stats.binomtest(int(top.sum()), 40_000).proportion_ci(method="exact")
    assert found is not None
    assert found.low == pytest.approx(plain.low, abs=5e-4)
    assert found.high == pytest.approx(plain.high, abs=5e-4)


def test_whole_pages_right_or_wrong_are_as_wide_as_pages_alone() -> None:
    top = [30.0] * 80 + [0.0] * 20
    fields = sut.pooled_rate(top, [30.0] * 100)
    pages = stats.binomtest(80, 100).proportion_ci(method="exact")
    assert fields is not None
    assert fields.low == pytest.approx(pages.low, abs=0.01)
    assert fields.high == pytest.approx(pages.high, abs=0.01)


def test_one_observation_on_each_page_is_wilson() -> None:
    found = sut.pooled_rate([1, 0, 1, 1, 0], [1, 1, 1, 1, 0])
    wilson = stats.binomtest(3, 4).proportion_ci(method="wilson")
    assert found is not None
    assert (found.method, found.n) == ("Wilson score", 4)
    assert found.low == pytest.approx(wilson.low, abs=1e-6)
    assert found.high == pytest.approx(wilson.high, abs=1e-6)


def test_what_does_not_exist_is_none_and_wrong_numbers_are_refused() -> None:
    assert sut.pooled_rate([], []) is None
    assert sut.pooled_rate([0, 0], [0, 0]) is None
    alone = sut.pooled_rate([9], [10])
    assert alone is not None
    assert (alone.value, alone.low, alone.high) == (0.9, None, None)
    assert "at least 2" in alone.reason
    for top, bottom in (([2], [1]), ([-1], [1]), ([1], [1, 1]), ([float("nan")], [1])):
        with pytest.raises(ValueError, match="one numerator"):
            sut.pooled_rate(top, bottom)


def test_a_difference_with_itself_is_zero_with_room_for_unseen_pages() -> None:
    pages = ([9.0, 10.0, 4.0], [10.0, 10.0, 10.0])
    found = sut.paired_difference(pages, pages)
    assert found.pages_that_differ == 0
    assert found.estimate is not None
    assert found.estimate.value == 0
    assert found.estimate.high == -(found.estimate.low or 0) == pytest.approx(1 - 0.025 ** (1 / 3), abs=1e-6)
    assert sut.paired_difference(([0], [0]), ([1], [1])).estimate is None


HIGH = LabTest(test_name="Potassium", value="6.9", unit="mmol/L", flag=Flag.CRITICAL_HIGH)
PLAIN = LabTest(test_name="Sodium", value="140", unit="mmol/L", flag=Flag.NORMAL)
TRUTH = LabReport(tests=(HIGH, PLAIN))


def page(name: str, *tests: LabTest, level: str | None = "clean") -> PageMetrics:
    return PageMetrics(page=name, level=level, metrics=field_level_metrics(LabReport(tests=tests), TRUTH))


def test_rates_are_micro_averages_by_level() -> None:
    pages = [page("a", HIGH, PLAIN), page("b", HIGH), page("c", level="photo"), page("d", PLAIN, HIGH, level=None)]
    whole, levels = sut.extraction_rates(pages), sut.rates_by_level(pages)
    assert whole.pages == 4
    assert whole.field_f1 is not None
    assert whole.field_f1.value == pytest.approx(2 * 15 / (2 * 15 + 9), abs=1e-6)
    assert whole.field_f1.value == pytest.approx(whole.counts.fields.f1, abs=1e-6)
    assert whole.critical_sensitivity is not None
    assert (whole.critical_sensitivity.value, whole.critical_sensitivity.method) == (0.75, "Wilson score")
    assert list(levels) == ["clean", "photo"]
    assert levels["photo"].value_accuracy is None
    assert levels["photo"].field_f1 is not None
    assert levels["photo"].field_f1.value == 0
    assert msgspec.json.decode(msgspec.json.encode(whole), type=ExtractionRates) == whole


def test_variants_are_compared_on_the_same_pages_whatever_their_order() -> None:
    reference = [page(str(n), HIGH, PLAIN) for n in range(10)]
    variant = [page(str(n), PLAIN) if n < 3 else page(str(n), HIGH, PLAIN) for n in reversed(range(10))]
    found = sut.extraction_difference(variant, reference)
    assert (found.pages, found.field_f1.pages_that_differ) == (10, 3)
    assert found.field_f1.estimate is not None
    assert found.field_f1.estimate.value == pytest.approx(2 * 51 / (2 * 51 + 9) - 1, abs=1e-6)
    assert found.critical_sensitivity.estimate is not None
    assert found.critical_sensitivity.estimate.value == pytest.approx(-0.3)
    assert found == sut.extraction_difference(list(reversed(variant)), reference)
    assert sut.differences_by_level(variant, reference) == {"clean": found}
    for other in (variant[:-1], [*variant, variant[0]], []):
        with pytest.raises(ValueError, match="same pages"):
            sut.extraction_difference(other, reference)


def test_self_consistency_needs_an_engine_that_samples() -> None:
    runs = {"a": [TRUTH, TRUTH, TRUTH], "b": [TRUTH, LabReport(), TRUTH], "c": [LabReport()] * 3}
    greedy = sut.self_consistency(runs, deterministic=True)
    assert (greedy.estimate, greedy.reason) == (None, "the engine is deterministic")
    found = sut.self_consistency(runs, deterministic=False)
    assert found.pages == {"a": 1, "b": pytest.approx(1 / 3), "c": None}
    assert found.estimate is not None
    assert found.estimate.value == pytest.approx(2 / 3, abs=1e-6)
    assert found.estimate.n == 2
    assert "2 runs" in sut.self_consistency({"a": [TRUTH]}, deterministic=False).reason
    assert "nothing to agree on" in sut.self_consistency({"c": runs["c"]}, deterministic=False).reason
    assert sut.self_consistency({}, deterministic=False).estimate is None


def test_groups_hold_the_pages_that_have_them() -> None:
    right = FieldMetrics(**_whole(field_counts(4, 0, 0), 4, 4))
    wrong = FieldMetrics(**_whole(field_counts(1, 3, 3), 1, 4))
    found = sut.grouped_rates([{"cbc": right}, {"cbc": wrong, "lipid": right}, {}])
    assert list(found) == ["cbc", "lipid"]
    assert (found["cbc"].pages, found["lipid"].pages) == (2, 1)
    assert found["cbc"].counts.fields == field_counts(5, 3, 3)
    assert found["cbc"].field_f1 is not None
    assert found["cbc"].field_f1.value == pytest.approx(10 / 16)
    assert found["lipid"].field_f1 is not None
    assert found["lipid"].field_f1.low is None  # one page has no spread


def _whole(fields: FieldCounts, correct: int, total: int) -> dict[str, Any]:
    share = Share(correct=correct, total=total, value=correct / total)
    shares = dict.fromkeys(("value_accuracy", "unit_accuracy", "range_accuracy", "flag_accuracy"), share)
    counts = dict.fromkeys(("names", "fields", "abnormal_flags", "critical_flags"), fields)
    return {"predicted_tests": 1, "true_tests": 1, "matched_tests": 1, **shares, **counts}
