from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.analysis.canary import judge_canary
from fewbits.records.base import PollutionReason, TokenStatus, TrialStatus
from fewbits.records.plan import CanaryPolicy
from fewbits.records.summary import CanaryBlock, CanaryReason
from fewbits.records.trial import TrialView

Make = Callable[..., TrialView]
STEADY = (9.0, 1.0, 1.01, 0.99, 1.0, 1.005)
FOREIGN = (PollutionReason.FOREIGN_CPU_LOAD,)


def repeats(trial: Make, seconds: tuple[float | None, ...] = STEADY, **changes: Any) -> list[TrialView]:
    return [
        trial("F16", "t", phase="canary", index=i, repetition=i, internal_model_seconds=value, **changes)
        for i, value in enumerate(seconds)
    ]


def judge(trials: list[TrialView], foreign: float | None = None, **policy: Any) -> CanaryBlock:
    settings = CanaryPolicy(**({"runs": 6, "max_polluted_retries": 2} | policy))
    return judge_canary(trials, settings, model_id="m", quant_tag="F16", task_id="t", worst_foreign_cpu_ratio=foreign)


def test_steady_machine_passes_and_the_first_run_is_dropped(trial: Make) -> None:
    block = judge(repeats(trial))
    assert block.passed is True
    assert (block.latency_sample_count_raw, block.latency_sample_count_used) == (6, 5)
    assert block.adherence_variance == 0.0
    # sample standard deviation of (1, 1.01, 0.99, 1, 1.005) over its mean 1.001
    assert block.latency_variation == pytest.approx(0.007409, abs=1e-6)
    assert (block.failed_reasons, block.remedies) == ((), ())


def test_first_run_counts_when_told_so(trial: Make) -> None:
    block = judge(repeats(trial), drop_first_run=False)
    assert block.failed_reasons == (CanaryReason.LATENCY_VARIANCE_THRESHOLD_EXCEEDED,)


def test_equal_odd_scores_have_no_variance_but_any_difference_fails(trial: Make) -> None:
    assert judge(repeats(trial, adherence_score=0.1)).passed is True
    mixed = repeats(trial)[:5] + repeats(trial, adherence_score=1 - 1e-9)[5:]
    block = judge(mixed)
    assert block.failed_reasons == (CanaryReason.ADHERENCE_VARIANCE_NON_ZERO,)
    assert block.adherence_variance is not None
    assert block.adherence_variance > 0


def test_no_scores_is_a_failure_not_zero_variance(trial: Make) -> None:
    block = judge(repeats(trial, adherence_score=None))
    assert block.failed_reasons == (CanaryReason.NO_ADHERENCE_SCORES,)
    assert block.adherence_variance is None


def test_two_samples_prove_nothing(trial: Make) -> None:
    block = judge(repeats(trial, (1.0, 1.0, 1.0)), runs=3)
    assert block.failed_reasons == (CanaryReason.LATENCY_VARIANCE_UNAVAILABLE, CanaryReason.TOO_FEW_LATENCY_SAMPLES)
    assert "--canary-runs 4" in block.remedies[1]


def test_no_trials_at_all_fail(trial: Make) -> None:
    block = judge([])
    assert block.passed is False
    assert CanaryReason.TOO_FEW_CLEAN_RUNS in block.failed_reasons
    assert block.missing_telemetry_rate is None


def test_polluted_repeats_are_replaced_within_the_budget(trial: Make) -> None:
    spoiled = repeats(trial, (5.0, 7.0), run_quality_reasons=FOREIGN)
    assert judge(repeats(trial) + spoiled).passed is True
    assert judge(repeats(trial) + spoiled).polluted_retries == 2
    block = judge(repeats(trial)[:5] + spoiled + spoiled[:1], foreign=0.23)
    assert block.failed_reasons == (CanaryReason.FOREIGN_LOAD, CanaryReason.TOO_FEW_CLEAN_RUNS)
    assert "took up to 23 % of the CPU" in block.remedies[0]
    assert "Only 5 of 6 repeats" in block.remedies[1]


def test_missing_telemetry_is_not_excused_as_pollution(trial: Make) -> None:
    blind = repeats(
        trial, (None,), token_status=TokenStatus.TIMING_UNAVAILABLE, run_quality_reasons=(PollutionReason.MISSING_TOKEN_TIMINGS,)
    )
    block = judge(repeats(trial)[1:] + blind)
    assert block.failed_reasons == (CanaryReason.MISSING_TELEMETRY_RATE_EXCEEDED,)
    assert block.missing_telemetry_rate == pytest.approx(1 / 6, abs=1e-6)


def test_any_failed_trial_blocks(trial: Make, failure: Make) -> None:
    block = judge([*repeats(trial), failure("F16", "t", TrialStatus.TIMEOUT, index=6)])
    assert CanaryReason.FAILED_TRIALS in block.failed_reasons
    assert "1 repeat ended as TIMEOUT" in block.remedies[block.failed_reasons.index(CanaryReason.FAILED_TRIALS)]


def test_other_controls_block(trial: Make) -> None:
    block = judge(repeats(trial, run_quality_reasons=(PollutionReason.CONTROLS_NOT_APPLIED,)))
    assert block.failed_reasons == (CanaryReason.CONTROLS_NOT_APPLIED,)


def test_unsteady_times_name_the_remedy_with_numbers(trial: Make) -> None:
    block = judge(repeats(trial, (1.0, 1.0, 1.2, 0.9, 1.0, 1.1)), foreign=0.08)
    assert block.failed_reasons == (CanaryReason.LATENCY_VARIANCE_THRESHOLD_EXCEEDED,)
    assert "varied by 11 %, the limit is 3 %" in block.remedies[0]
    assert "foreign load was up to 8 %" in block.remedies[0]
    assert "--canary-latency-variance-threshold above 0.110" in block.remedies[0]


def test_switched_off(trial: Make) -> None:
    block = judge([], runs=0)
    assert (block.enabled, block.passed, block.failed_reasons) == (False, None, ())


@given(order=st.permutations(range(6)))
def test_order_of_rows_never_matters(trial: Make, order: list[int]) -> None:
    rows = repeats(trial)
    assert judge([rows[i] for i in order]) == judge(rows)
