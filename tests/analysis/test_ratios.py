from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.analysis.ratios import BlockRatios, block_ratios
from fewbits.analysis.trial_table import Group
from fewbits.records.base import PollutionReason, RunQuality, TokenStatus, TrialStatus, Unavailable
from fewbits.records.trial import TrialView

Build = Callable[..., TrialView]


def timed(trial: Build, quant: str, block: int, seconds: float, **changes: Any) -> TrialView:
    """A trial whose every time is proportional to `seconds`: rates are 10 and 100 tokens over it."""
    repetition = changes.pop("repetition", 0)
    row = trial(quant, changes.pop("task", f"t{block:03d}"), block=block, total_latency=seconds, repetition=repetition, **changes)
    tokens = msgspec.structs.replace(
        row.telemetry.token_metrics, generation_tokens_per_second=10 / seconds, prompt_tokens_per_second=100 / seconds
    )
    return msgspec.structs.replace(row, telemetry=msgspec.structs.replace(row.telemetry, token_metrics=tokens))


def group(rows: list[TrialView]) -> Group:
    return Group(tuple(sorted(rows, key=lambda row: (row.task_id, row.repetition))))


def ratios(trial: Build, factors: list[float], drift: list[float]) -> BlockRatios:
    return block_ratios(
        group([timed(trial, "Q", i, f * d) for i, (f, d) in enumerate(zip(factors, drift, strict=True))]),
        group([timed(trial, "F16", i, d) for i, d in enumerate(drift)]),
    )


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0.1, 10), st.integers(-8, 8)), min_size=1, max_size=20))
def test_a_drift_of_whole_blocks_changes_nothing(trial: Build, blocks: list[tuple[float, int]]) -> None:
    factors = [factor for factor, _ in blocks]
    still, drifting = ratios(trial, factors, [1.0] * len(blocks)), ratios(trial, factors, [2.0**power for _, power in blocks])
    assert still == drifting
    assert still.latency_ratio is not None
    assert still.latency_ratio.value == pytest.approx(float(np.median(factors)), abs=1e-6)
    assert still.unavailable == {}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), min_size=1, max_size=12), st.randoms())
def test_rates_mirror_seconds_and_order_is_nothing(trial: Build, blocks: list[tuple[float, float]], shuffler: Any) -> None:
    found = ratios(trial, [a for a, _ in blocks], [b for _, b in blocks])
    assert found.generation_rate_ratio is not None
    assert found.generation_rate_ratio == found.prompt_rate_ratio
    assert found.generation_rate_ratio.value == pytest.approx(float(np.median([1 / a for a, _ in blocks])), rel=1e-4, abs=1e-6)
    mixed = list(blocks)
    shuffler.shuffle(mixed)
    assert ratios(trial, [a for a, _ in mixed], [b for _, b in mixed]).latency_ratio == found.latency_ratio


def test_the_interval_covers_the_true_ratio_under_drift(trial: Build) -> None:
    rng, hits = np.random.default_rng(4), []
    for _ in range(250):
        found = ratios(trial, list(0.6 * rng.lognormal(0, 0.2, 20)), list(rng.lognormal(0, 1, 20))).latency_ratio
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        hits.append(found.low <= 0.6 <= found.high)
    assert 0.92 <= np.mean(hits) <= 0.99


def test_only_clean_answers_of_the_same_cell_are_paired(trial: Build) -> None:
    polluted = {"run_quality_reasons": (PollutionReason.FOREIGN_CPU_LOAD,)}
    assert trial("Q", "t", **polluted).run_quality_status is RunQuality.POLLUTED
    reference = group([timed(trial, "F16", i, 1.0) for i in range(5)])
    variant = group(
        [
            timed(trial, "Q", 0, 0.5),
            timed(trial, "Q", 1, 9.0, **polluted),
            timed(trial, "Q", 2, 9.0, status=TrialStatus.EMPTY),
            timed(trial, "Q", 3, 9.0, repetition=1),
            timed(trial, "Q", 7, 9.0, task="t004"),
        ]
    )
    found = block_ratios(variant, reference).latency_ratio
    assert found is not None
    assert (found.value, found.n) == (0.5, 1)
    assert found.low is None
    assert found.reason


def test_repetitions_and_tasks_of_one_block_are_one_unit(trial: Build) -> None:
    def rows(quant: str, seconds: float) -> Group:
        repeated = [timed(trial, quant, 2 * i + r, seconds, task=f"t{i}", repetition=r) for i in range(4) for r in range(2)]
        return group(repeated)

    found = block_ratios(rows("Q", 0.5), rows("F16", 1.0)).latency_ratio
    assert found is not None
    assert found.n == 4
    together = block_ratios(
        group([timed(trial, "Q", i // 5, 0.5, task=f"t{i}") for i in range(10)]),
        group([timed(trial, "F16", i // 5, 1.0, task=f"t{i}") for i in range(10)]),
    ).latency_ratio
    assert together is not None
    assert together.n == 2


def test_every_gap_has_its_reason(trial: Build, failure: Build) -> None:
    reference = group([timed(trial, "F16", 0, 1.0)])
    disturbed = timed(trial, "Q", 0, 1.0, run_quality_reasons=(PollutionReason.CPU_STEAL,))
    cases = {
        Unavailable.NO_TRIALS: Group(()),
        Unavailable.TRIAL_FAILED: group([failure("Q", "t000")]),
        Unavailable.NO_CLEAN_TRIALS: group([disturbed]),
    }
    for reason, variant in cases.items():
        found = block_ratios(variant, reference)
        assert found.latency_ratio is None
        assert set(found.unavailable.values()) == {reason}
    without_rates = block_ratios(group([trial("Q", "t000", token_status=TokenStatus.TIMING_UNAVAILABLE)]), reference)
    assert without_rates.latency_ratio is not None
    assert without_rates.unavailable == dict.fromkeys(("generation_rate_ratio", "prompt_rate_ratio"), "TOKEN_STATUS_NOT_OK")
    silent = block_ratios(group([timed(trial, "Q", 0, 1.0)]), group([trial("F16", "t000", total_latency=0.0)]))
    assert silent.unavailable["latency_ratio"] == Unavailable.ZERO_DENOMINATOR
