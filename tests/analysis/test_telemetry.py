from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.analysis.telemetry import derive_telemetry, overhead_ratio
from fewbits.records.base import TokenStatus, Unavailable
from fewbits.records.trial import RawReply, Telemetry, TokenMetrics


def reply(**changes: Any) -> RawReply:
    fields: dict[str, Any] = {
        "text": "42",
        "wall_seconds": 0.5,
        "streamed": True,
        "first_output_seconds": 0.1,
        "prompt_tokens": 20,
        "output_tokens": 30,
        "cached_prompt_tokens": 0,
        "prompt_ms": 100.0,
        "predicted_ms": 300.0,
    }
    return RawReply(**(fields | changes))


def derive(raw: RawReply | None, **changes: Any) -> Telemetry:
    fields: dict[str, Any] = {
        "init_latency_seconds": 1.0,
        "peak_memory_rss": 1000,
        "peak_memory_gpu_bytes": None,
        "unavailable": {},
    }
    return derive_telemetry(raw, **(fields | changes))


def test_full_metadata_is_ok_and_each_clock_keeps_to_itself() -> None:
    found = derive(reply())
    assert found.token_metrics.status is TokenStatus.OK
    assert (found.total_latency, found.prefill_seconds, found.decode_seconds) == (0.5, 0.1, 0.3)
    assert found.internal_model_seconds == pytest.approx(0.4)
    assert found.orchestration_overhead_ratio == pytest.approx(0.2)
    assert found.token_metrics.prompt_tokens_per_second == pytest.approx(200)
    assert found.token_metrics.generation_tokens_per_second == pytest.approx(100)
    assert found.token_metrics.total_tokens == 50


def test_rates_come_from_unrounded_times() -> None:
    assert derive(reply(output_tokens=10, predicted_ms=1.4)).token_metrics.generation_tokens_per_second == pytest.approx(
        7142.857142857
    )


def test_prefill_rate_counts_only_prompt_tokens_really_processed() -> None:
    assert derive(reply(cached_prompt_tokens=15)).token_metrics.prompt_tokens_per_second == pytest.approx(50)
    assert derive(reply(cached_prompt_tokens=20)).token_metrics.prompt_tokens_per_second == 0.0
    contradiction = derive(reply(cached_prompt_tokens=21))
    assert contradiction.token_metrics.prompt_tokens_per_second is None
    assert contradiction.unavailable["token_metrics.prompt_tokens_per_second"] == "COUNTS_DISAGREE"
    assert contradiction.token_metrics.generation_tokens_per_second == pytest.approx(100)


def test_zero_token_completion_is_a_count() -> None:
    found = derive(reply(text="", output_tokens=0, predicted_ms=5.0, first_output_seconds=None))
    assert found.token_metrics.status is TokenStatus.OK
    assert found.token_metrics.generation_tokens_per_second == 0.0
    assert found.unavailable["time_to_first_token_seconds"] == "NO_OUTPUT"


def test_zero_milliseconds_give_no_rate() -> None:
    found = derive(reply(output_tokens=0, predicted_ms=0.0))
    assert found.token_metrics.status is TokenStatus.OK
    assert found.decode_seconds == 0.0
    assert found.token_metrics.generation_tokens_per_second is None
    assert found.unavailable["token_metrics.generation_tokens_per_second"] == "ZERO_DENOMINATOR"


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"prompt_tokens": None}, TokenStatus.TOKEN_COUNT_UNAVAILABLE),
        ({"output_tokens": None}, TokenStatus.TOKEN_COUNT_UNAVAILABLE),
        ({"prompt_ms": None}, TokenStatus.TIMING_UNAVAILABLE),
        ({"predicted_ms": None}, TokenStatus.TIMING_UNAVAILABLE),
        ({"prompt_tokens": None, "predicted_ms": None}, TokenStatus.TOKEN_AND_TIMING_UNAVAILABLE),
        ({"output_tokens": -1}, TokenStatus.TOKEN_COUNT_UNAVAILABLE),
        ({"output_tokens": True}, TokenStatus.TOKEN_COUNT_UNAVAILABLE),
        ({"prompt_ms": math.nan}, TokenStatus.TIMING_UNAVAILABLE),
        ({"predicted_ms": math.inf}, TokenStatus.TIMING_UNAVAILABLE),
        ({"predicted_ms": -0.1}, TokenStatus.TIMING_UNAVAILABLE),
        ({"prompt_tokens": 0, "output_tokens": 0}, TokenStatus.OK),
    ],
)
def test_status_machine(changes: dict[str, Any], status: TokenStatus) -> None:
    found = derive(reply(**changes))
    assert found.token_metrics.status is status
    if status is not TokenStatus.OK:
        assert found.token_metrics.generation_tokens_per_second is None
        assert found.unavailable["token_metrics.generation_tokens_per_second"] == "TOKEN_STATUS_NOT_OK"


def test_partial_metadata_keeps_what_was_reported_and_substitutes_nothing() -> None:
    found = derive(reply(predicted_ms=None, output_tokens=None))
    assert (found.prefill_seconds, found.decode_seconds, found.internal_model_seconds) == (0.1, None, None)
    assert found.orchestration_overhead_ratio is None
    assert (found.token_metrics.prompt_tokens, found.token_metrics.total_tokens) == (20, None)


def test_overhead_is_never_clamped_silently() -> None:
    assert overhead_ratio(1.0, 1.001) == (0.0, Unavailable.NOT_REPORTED)
    assert overhead_ratio(1.0, 1.2) == (None, Unavailable.CLOCKS_DISAGREE)
    assert overhead_ratio(0.0, 0.0)[1] is Unavailable.ZERO_DENOMINATOR
    assert derive(reply(predicted_ms=900.0)).unavailable["orchestration_overhead_ratio"] == "CLOCKS_DISAGREE"


def test_monolithic_reply_has_no_first_token_moment() -> None:
    found = derive(reply(streamed=False, first_output_seconds=0.1))
    assert found.time_to_first_token_seconds is None
    assert found.unavailable["time_to_first_token_seconds"] == "NOT_STREAMED"


def test_failed_trial_keeps_only_what_is_known() -> None:
    found = derive(None, wall_seconds=30.0)
    assert (found.total_latency, found.init_latency, found.peak_memory_rss) == (30.0, 1.0, 1000)
    assert found.token_metrics.status is TokenStatus.TOKEN_AND_TIMING_UNAVAILABLE
    assert found.unavailable["internal_model_seconds"] == "TRIAL_FAILED"
    assert derive(None).unavailable["total_latency"] == "TRIAL_FAILED"


def test_callers_reason_is_kept() -> None:
    found = derive(reply(), peak_memory_rss=None, unavailable={"peak_memory_rss": "REMOTE_PROCESS"})
    assert found.unavailable["peak_memory_rss"] == "REMOTE_PROCESS"
    assert found.unavailable["peak_memory_gpu_bytes"] == "NO_SENSOR"


numbers = st.none() | st.floats() | st.integers(-5, 10**6)


@given(
    raw=st.none()
    | st.builds(
        RawReply,
        text=st.sampled_from(["", "x"]),
        streamed=st.booleans(),
        wall_seconds=st.floats(),
        first_output_seconds=numbers,
        prompt_tokens=st.none() | st.integers(-5, 10**6),
        output_tokens=st.none() | st.integers(-5, 10**6),
        cached_prompt_tokens=st.none() | st.integers(-5, 10**6),
        prompt_ms=numbers,
        predicted_ms=numbers,
    ),
    rss=st.none() | st.integers(-5, 10**6),
)
def test_every_null_has_a_reason_and_every_number_is_finite(raw: RawReply | None, rss: int | None) -> None:
    found = derive(raw, peak_memory_rss=rss)
    fields = {name: getattr(found, name) for name in Telemetry.__struct_fields__ if name not in {"token_metrics", "unavailable"}}
    tokens = {f"token_metrics.{name}": getattr(found.token_metrics, name) for name in TokenMetrics.__struct_fields__}
    everything = fields | tokens
    assert {name for name, value in everything.items() if value is None} == set(found.unavailable)
    assert all(math.isfinite(value) and value >= 0 for value in everything.values() if isinstance(value, int | float))
    assert set(found.unavailable.values()) <= {reason.value for reason in Unavailable}
    assert msgspec.json.decode(msgspec.json.encode(found), type=Telemetry) == found


def test_decode_rate_counts_the_steps_that_its_clock_covers() -> None:
    found = derive(reply(output_tokens=11, decode_steps=10, predicted_ms=100.0)).token_metrics
    assert (found.output_tokens, found.decode_steps) == (11, 10)
    assert found.generation_tokens_per_second == pytest.approx(100)


def test_a_single_token_has_no_decode_rate() -> None:
    found = derive(reply(output_tokens=1, decode_steps=0, predicted_ms=0.002))
    assert found.token_metrics.generation_tokens_per_second is None
    assert found.unavailable["token_metrics.generation_tokens_per_second"] == "NO_DECODE_STEP"


def test_work_without_tokens_has_a_time_inside_the_model_and_misses_nothing() -> None:
    image = {"prompt_tokens": None, "output_tokens": None, "cached_prompt_tokens": None, "prompt_ms": None, "has_tokens": False}
    found = derive(reply(**image, streamed=False, first_output_seconds=None, predicted_ms=400.0))
    assert found.token_metrics.status is TokenStatus.NO_TOKENS
    assert found.internal_model_seconds == pytest.approx(0.4)
    assert found.orchestration_overhead_ratio == pytest.approx(0.2)
    assert found.prefill_seconds is None
    assert found.unavailable["prefill_seconds"] == found.unavailable["token_metrics.output_tokens"] == Unavailable.NO_TOKENS
    silent = derive(reply(**image, predicted_ms=None))
    assert silent.token_metrics.status is TokenStatus.TIMING_UNAVAILABLE
    assert silent.unavailable["internal_model_seconds"] == Unavailable.NOT_REPORTED
