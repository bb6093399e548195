from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.analysis.recipe_verdict import RecipeEvidence, judge_recipe, reduction_estimate
from fewbits.records.divergence import WindowDivergence
from fewbits.records.estimate import Estimate
from fewbits.records.recipe import RecipeVerdict
from fewbits.records.summary import VerdictCode

TAG = "Q4_K_M"


def windows(values: list[float] | np.ndarray, positions: int = 1) -> list[WindowDivergence]:
    return [
        WindowDivergence(kl_nats=(float(value),) * positions, same_top=0, reference_nll_nats=None, variant_nll_nats=None)
        for value in values
    ]


def reduction(value: float, low: float | None, high: float | None, reason: str = "") -> Estimate:
    return Estimate(value=value, low=low, high=high, level=0.95, method="m", n=48, reason=reason)


def evidence(
    reduced: Estimate | None,
    *,
    equal: Estimate | None = None,
    sizes: tuple[int, int] = (100, 100),
    tasks: VerdictCode | None = None,
) -> RecipeEvidence:
    return RecipeEvidence(
        recipe_bytes=sizes[0],
        stock_bytes=sizes[1],
        stock_tag=TAG,
        reduction=reduced,
        equal_size=equal if equal is not None else reduced,
        tasks=tasks,
    )


class TestReduction:
    def test_it_is_one_minus_the_ratio_of_sums(self) -> None:
        found = reduction_estimate(windows([1.0, 2.0, 3.0]), windows([2.0, 3.0, 7.0]))
        assert found is not None
        assert found.value == pytest.approx(0.5)
        assert found.low is not None
        assert found.high is not None
        assert found.low < 0.5 < found.high
        assert "window" in found.method

    def test_windows_count_by_their_positions(self) -> None:
        ours = [*windows([0.1], 10), *windows([1.0], 2)]
        stock = [*windows([0.2], 10), *windows([1.0], 2)]
        found = reduction_estimate(ours, stock)
        assert found is not None
        assert found.value == pytest.approx(1 - 3.0 / 4.0)

    def test_a_hard_window_is_hard_for_both(self) -> None:
        """Where the same windows are hard for both files, the ratio is known far better than either mean."""
        hard = np.array([0.01, 0.5, 0.02, 2.0, 0.1, 0.9, 0.03, 1.4] * 3)
        ours = hard * np.linspace(0.58, 0.62, len(hard))
        paired = reduction_estimate(windows(ours), windows(hard))
        assert paired is not None
        assert paired.low == pytest.approx(0.4, abs=0.02)
        mixed = reduction_estimate(windows(np.roll(ours, 1)), windows(hard))
        assert mixed is not None
        assert mixed.low is not None
        assert mixed.high is not None
        assert mixed.high - mixed.low > 0.5

    def test_other_windows_are_refused(self) -> None:
        with pytest.raises(ValueError, match="not the same windows"):
            reduction_estimate(windows([1.0]), windows([1.0, 2.0]))
        with pytest.raises(ValueError, match="not the same windows"):
            reduction_estimate(windows([1.0], 3), windows([1.0], 4))

    def test_nothing_to_compare_with(self) -> None:
        assert reduction_estimate([], []) is None
        assert reduction_estimate(windows([0.1, 0.1]), windows([0.0, 0.0])) is None

    def test_one_window_has_no_interval(self) -> None:
        found = reduction_estimate(windows([0.5]), windows([1.0]))
        assert found is not None
        assert found.low is None
        assert "one window" in found.reason

    def test_equal_files_leave_room_for_what_was_not_seen(self) -> None:
        found = reduction_estimate(windows([0.5, 0.7, 0.2]), windows([0.5, 0.7, 0.2]))
        assert found is not None
        assert found.value == 0
        assert found.low is not None
        assert found.high is not None
        assert found.low < 0 < found.high

    @given(st.lists(st.tuples(st.floats(1e-4, 5), st.floats(1e-4, 5)), min_size=2, max_size=20))
    def test_the_interval_holds_the_value_and_never_exceeds_one(self, pairs: list[tuple[float, float]]) -> None:
        found = reduction_estimate(windows([a for a, _ in pairs]), windows([b for _, b in pairs]))
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        assert found.low - 1e-5 <= found.value <= found.high + 1e-5
        assert found.high <= 1 + 1e-9

    def test_it_covers_the_truth(self) -> None:
        """48 windows, log-normal difficulty that both files share, noise of their own: the 95 % interval covers >= 92 %."""
        draws, runs, hits = np.random.default_rng(7), 400, 0
        ratio = 0.6
        for _ in range(runs):
            difficulty = draws.lognormal(0, 0.5, 48)
            ours = ratio * difficulty * draws.lognormal(-0.125 * 0.3**2 * 4, 0.3, 48)
            stock = difficulty * draws.lognormal(-0.125 * 0.3**2 * 4, 0.3, 48)
            found = reduction_estimate(windows(ours), windows(stock))
            assert found is not None
            assert found.low is not None
            assert found.high is not None
            hits += found.low <= 1 - ratio <= found.high
        assert hits / runs >= 0.92

    def test_equal_files_are_rarely_called_different(self) -> None:
        draws, runs, false = np.random.default_rng(8), 400, 0
        for _ in range(runs):
            difficulty = draws.lognormal(0, 0.5, 48)
            ours, stock = (difficulty * draws.lognormal(0, 0.3, 48) for _ in range(2))
            verdict, _ = judge_recipe(evidence(reduction_estimate(windows(ours), windows(stock))))
            false += verdict is RecipeVerdict.BETTER
        assert false / runs <= 0.045  # one side of a 95 % interval, with room for 400 runs


class TestVerdict:
    def test_better_needs_the_whole_interval(self) -> None:
        verdict, why = judge_recipe(evidence(reduction(0.4, 0.3, 0.5)))
        assert verdict is RecipeVerdict.BETTER
        assert "40 % [30 %, 50 %]" in why
        assert "No tasks were run" in why
        assert judge_recipe(evidence(reduction(0.4, -0.01, 0.5)))[0] is RecipeVerdict.UNRESOLVED
        assert judge_recipe(evidence(reduction(0.4, 0.0, 0.5)))[0] is RecipeVerdict.UNRESOLVED

    def test_not_better_when_the_interval_lies_at_or_below_nothing(self) -> None:
        assert judge_recipe(evidence(reduction(-0.2, -0.3, 0.0)))[0] is RecipeVerdict.NOT_BETTER
        assert judge_recipe(evidence(reduction(-0.2, -0.3, -0.1)))[0] is RecipeVerdict.NOT_BETTER

    @pytest.mark.parametrize("reduced", [reduction(0.4, 0.3, 0.5), reduction(0.4, -0.3, 0.5), None])
    def test_worse_on_tasks_outweighs_everything(self, reduced: Estimate | None) -> None:
        assert judge_recipe(evidence(reduced, tasks=VerdictCode.WORSE))[0] is RecipeVerdict.NOT_BETTER

    @pytest.mark.parametrize("tasks", [None, VerdictCode.BETTER, VerdictCode.EQUIVALENT, VerdictCode.UNRESOLVED])
    def test_any_other_task_verdict_leaves_it_to_the_divergence(self, tasks: VerdictCode | None) -> None:
        assert judge_recipe(evidence(reduction(0.4, 0.3, 0.5), tasks=tasks))[0] is RecipeVerdict.BETTER
        assert judge_recipe(evidence(reduction(0.1, -0.3, 0.5), tasks=tasks))[0] is RecipeVerdict.UNRESOLVED

    def test_what_was_not_measured_is_unresolved(self) -> None:
        assert judge_recipe(evidence(None))[0] is RecipeVerdict.UNRESOLVED
        verdict, why = judge_recipe(evidence(reduction(0.4, None, None, "one window alone")))
        assert verdict is RecipeVerdict.UNRESOLVED
        assert "one window alone" in why

    def test_a_larger_file_is_not_better_by_its_size(self) -> None:
        better = reduction(0.4, 0.3, 0.5)
        verdict, why = judge_recipe(evidence(better, equal=reduction(0.1, -0.1, 0.3), sizes=(101, 100)))
        assert verdict is RecipeVerdict.UNRESOLVED
        assert "larger" in why
        lone = RecipeEvidence(101, 100, TAG, better, None, None)
        assert judge_recipe(lone)[0] is RecipeVerdict.UNRESOLVED

    def test_a_larger_file_may_be_better_when_one_of_equal_size_is(self) -> None:
        verdict, why = judge_recipe(evidence(reduction(0.4, 0.3, 0.5), equal=reduction(0.2, 0.1, 0.3), sizes=(101, 100)))
        assert verdict is RecipeVerdict.BETTER
        assert "20 % [10 %, 30 %]" in why

    @given(st.floats(-2, 1), st.floats(0, 0.5), st.sampled_from([None, *VerdictCode]), st.integers(90, 110))
    def test_the_rule(self, value: float, reach: float, tasks: VerdictCode | None, size: int) -> None:
        reduced = reduction(value, value - reach, value + reach)
        verdict, why = judge_recipe(RecipeEvidence(size, 100, TAG, reduced, reduced if size <= 100 else None, tasks))
        assert why
        if tasks is VerdictCode.WORSE or value + reach <= 0:
            assert verdict is RecipeVerdict.NOT_BETTER
        elif value - reach > 0 and size <= 100:
            assert verdict is RecipeVerdict.BETTER
        else:
            assert verdict is RecipeVerdict.UNRESOLVED
        assert math.isfinite(reduced.value)
