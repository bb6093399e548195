from __future__ import annotations

import time
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.analysis.uncertainty import MAX_RESAMPLES, MIN_RESAMPLES, VariantEvidence, joint_uncertainty, resamples_for
from fewbits.records.plan import PolicyName, SelectionPolicy
from fewbits.records.summary import RowUncertainty

THREE_ZONE = SelectionPolicy()
THRESHOLD = SelectionPolicy(name=PolicyName.THRESHOLD)
ITEMS = [f"t{i:03d}" for i in range(60)]


def evidence(tag: str, rank: int, scores: Any, seconds: Any, **changes: Any) -> VariantEvidence:
    def by_task(values: Any) -> dict[str, float]:
        return dict(zip(ITEMS, np.broadcast_to(values, len(ITEMS)).tolist(), strict=True))

    fields = {"peak_memory_rss": (rank + 1) * 100} | changes
    return VariantEvidence(tag, rank, by_task(scores), by_task(seconds), **fields)


def answers(share: float, seed: int) -> Any:
    return (np.random.default_rng(seed).random(len(ITEMS)) < share).astype(float)


def rows_of(variants: list[VariantEvidence], policy: SelectionPolicy = THREE_ZONE) -> dict[str, RowUncertainty]:
    found = joint_uncertainty(variants, "F16", policy)
    assert found is not None
    return found.rows


@pytest.mark.parametrize("policy", [THREE_ZONE, THRESHOLD])
def test_clear_cases_are_near_zero_and_one(policy: SelectionPolicy) -> None:
    base = answers(0.8, 1)
    rows = rows_of(
        [
            evidence("F16", 3, base, 1.0),
            evidence("Q8_0", 2, base, 0.7),
            evidence("Q4_K_M", 1, base, 0.5),
            evidence("Q2_K", 0, base * answers(0.4, 2), 0.6),
        ],
        policy,
    )
    assert rows["Q4_K_M"].minimum_viable_probability == 1.0
    assert rows["Q4_K_M"].best_value_probability == 1.0
    assert rows["Q2_K"].minimum_viable_probability == 0.0
    assert rows["Q8_0"].frontier_probability == 0.0
    assert rows["Q2_K"].frontier_probability == 1.0  # smallest
    assert rows["F16"].resamples == MAX_RESAMPLES


def test_two_equal_variants_share_the_best_value() -> None:
    rng, base = np.random.default_rng(8), answers(0.8, 1)
    wins = []
    for _ in range(25):
        pace = rng.lognormal(0, 0.3, (2, len(ITEMS)))
        rows = rows_of([evidence("F16", 2, base, 9.0), evidence("A", 1, base, pace[0]), evidence("B", 0, base, pace[1])])
        wins.append(rows["A"].best_value_probability)
        assert rows["A"].best_value_probability + rows["B"].best_value_probability == pytest.approx(1.0)
    assert 0.3 <= np.mean(wins) <= 0.7


def test_a_variant_at_the_margin_holds_up_half_the_time() -> None:
    base = np.ones(len(ITEMS))
    base[:3] = 0.0  # no policy asks for a perfect reference
    loss = base.copy()
    loss[10:13] = 0.0  # 3 of 60: exactly the margin of 5 points
    rows = rows_of([evidence("F16", 1, base, 1.0), evidence("Q", 0, loss, 1.0)])
    # P(at most 3 of 60 draws hit one of the 3 items)
    assert rows["Q"].minimum_viable_probability == pytest.approx(0.647, abs=0.05)
    assert rows["F16"].minimum_viable_probability == pytest.approx(1 - rows["Q"].minimum_viable_probability)


def test_the_bootstrap_probability_agrees_with_new_samples() -> None:
    """Mean bootstrap probability against the share of fresh samples that choose Q, over a known truth."""
    rng, said, happened = np.random.default_rng(5), [], []
    for _ in range(40):
        base = (rng.random(len(ITEMS)) < 0.8).astype(float)
        lost = base * (rng.random(len(ITEMS)) >= 0.06)
        said.append(rows_of([evidence("F16", 1, base, 1.0), evidence("Q", 0, lost, 1.0)])["Q"].minimum_viable_probability)
        happened.append(float((lost - base).mean()) >= -0.05)
    assert np.mean(said) == pytest.approx(np.mean(happened), abs=0.15)


def test_the_rules_of_each_policy() -> None:
    base = answers(0.8, 1)
    half = evidence("Half", 0, base * (np.arange(len(ITEMS)) % 30 != 0), 0.5)
    slow = evidence("Slow", 1, base, 99.0)
    fast = evidence("Fast", 2, base, 0.4, peak_memory_rss=900)
    light = evidence("Light", 3, base, 0.4)
    found = rows_of([evidence("F16", 4, base, 1.0), half, slow, fast, light])
    assert found["Slow"].minimum_viable_probability == 0.0
    # equally fast: the one with less memory, although it has more bits
    assert found["Light"].best_value_probability == 1.0
    assert rows_of([evidence("F16", 4, base, 1.0), slow, fast, light], THRESHOLD)["Light"].best_value_probability == 1.0
    gone = rows_of([evidence("F16", 4, base, 1.0), half, fast, evidence("Light", 3, base, 0.4, eliminated=True)])
    assert gone["Light"].best_value_probability == 0.0
    assert gone["Light"].frontier_probability == 1.0


def test_without_a_usable_reference_nothing_is_picked() -> None:
    variants = [evidence("F16", 1, 0.05, 1.0), evidence("Q", 0, 0.9, 1.0)]
    for reference in ("F16", "gone", None):
        found = joint_uncertainty(variants, reference, THREE_ZONE)
        assert found is not None
        assert found.minimum_viable == found.best_value == ()
        assert found.rows["Q"].frontier_probability == 1.0
        assert found.rival(found.minimum_viable, None) is None


def test_missing_numbers_never_win() -> None:
    base = answers(0.8, 1)
    unscored = VariantEvidence("NoScore", 0, {}, dict.fromkeys(ITEMS, 0.1), peak_memory_rss=None)
    untimed = VariantEvidence("NoTime", 1, dict.fromkeys(ITEMS, 1.0), {}, peak_memory_rss=1)
    rows = rows_of([evidence("F16", 2, base, 1.0), unscored, untimed])
    for tag in ("NoScore", "NoTime"):
        assert msgspec.structs.astuple(rows[tag]) == (0.0, 0.0, 0.0, MAX_RESAMPLES)
    # the memory axis is that of the variants that can be compared at all
    assert rows["F16"].frontier_probability == 1.0


def test_a_variant_that_was_stopped_early_is_compared_on_its_own_items() -> None:
    easy = np.where(np.arange(len(ITEMS)) < 10, 1.0, answers(0.5, 3))
    early = VariantEvidence("Q", 0, dict.fromkeys(ITEMS[:10], 1.0), dict.fromkeys(ITEMS[:10], 0.5), peak_memory_rss=1)
    lost = VariantEvidence("R", 1, dict.fromkeys(ITEMS[:10], 0.8), dict.fromkeys(ITEMS[:10], 0.5), peak_memory_rss=2)
    rows = rows_of([evidence("F16", 2, easy, 1.0), early, lost])
    assert rows["Q"].minimum_viable_probability > 0.999
    assert rows["R"].minimum_viable_probability == 0.0


def test_a_variant_that_was_stopped_on_easy_items_is_not_the_faster_for_it() -> None:
    pace = np.where(np.arange(len(ITEMS)) < 20, 1.0, 3.0)
    base = answers(0.8, 1)
    early = ITEMS[:20]
    fast = VariantEvidence(
        "Early", 0, dict(zip(early, base.tolist(), strict=False)), dict.fromkeys(early, 0.9), peak_memory_rss=1
    )
    rows = rows_of([evidence("F16", 2, base, pace), fast, evidence("Whole", 1, base, pace * 0.5)])
    assert rows["Whole"].best_value_probability == 1.0
    assert rows["Early"].frontier_probability > 0.99  # smallest


def test_too_few_items_and_repeated_tags() -> None:
    one = VariantEvidence("F16", 0, {"t": 1.0}, {"t": 1.0})
    assert joint_uncertainty([one], "F16", THREE_ZONE) is None
    assert joint_uncertainty([], "F16", THREE_ZONE) is None
    with pytest.raises(ValueError, match="twice"):
        joint_uncertainty([one, one], "F16", THREE_ZONE)


cell = st.none() | st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.2, 0.5, 1.0]))
tables = st.lists(st.lists(cell, min_size=6, max_size=6), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(tables, st.sampled_from([THREE_ZONE, THRESHOLD]), st.randoms())
def test_laws(table: list[list[tuple[float, float] | None]], policy: SelectionPolicy, shuffler: Any) -> None:
    variants = [
        VariantEvidence(
            f"q{i}",
            i,
            {task: cell[0] for task, cell in zip(ITEMS, column, strict=False) if cell},
            {task: cell[1] for task, cell in reversed(list(zip(ITEMS, column, strict=False))) if cell},
            variant_bytes=100 - i,
        )
        for i, column in enumerate(table)
    ]
    found = joint_uncertainty(variants, "q0", policy)
    mixed = list(variants)
    shuffler.shuffle(mixed)
    again = joint_uncertainty(mixed, "q0", policy)
    assert found == again
    if found is None or again is None:
        return
    assert msgspec.json.encode(found.rows) == msgspec.json.encode(again.rows)
    for name in ("minimum_viable_probability", "best_value_probability"):
        assert sum(getattr(row, name) for row in found.rows.values()) <= 1 + 1e-9
    assert all(0 <= row.frontier_probability <= 1 for row in found.rows.values())
    # both races are won by somebody in the same resamples
    totals = [sum(pick.share for pick in race) for race in (found.minimum_viable, found.best_value)]
    assert totals[0] == pytest.approx(totals[1])


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), min_size=1, max_size=9))
def test_the_weighted_median_is_the_median_of_the_repeated_values(pairs: list[tuple[int, int]]) -> None:
    from fewbits.analysis.uncertainty import _weighted_median

    values, counts = np.array([float(value) for value, _ in pairs]), np.array([[count for _, count in pairs]], dtype=np.int32)
    found = _weighted_median(counts, values)[0]
    repeated = np.repeat(values, counts[0])
    assert np.isnan(found) if not repeated.size else found == np.median(repeated)


def test_large_journals_stay_fast() -> None:
    assert (resamples_for(10), resamples_for(500), resamples_for(1000), resamples_for(10**6)) == (1000, 1000, 500, MIN_RESAMPLES)
    tasks = [f"t{i}" for i in range(20_000)]
    rng = np.random.default_rng(1)
    variants = [
        VariantEvidence(f"q{i}", i, dict(zip(tasks, rng.random(20_000).tolist(), strict=True)), dict.fromkeys(tasks, 1.0 + i))
        for i in range(5)
    ]
    started = time.process_time()
    assert joint_uncertainty(variants, "q4", THREE_ZONE) is not None
    assert time.process_time() - started < 5
