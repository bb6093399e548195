from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.analysis.run_quality import controls_not_applied, environment_delta, judge_row, judge_trial
from fewbits.analysis.telemetry import derive_telemetry
from fewbits.records.base import PollutionReason, RunQuality
from fewbits.records.plan import Controls, EffectiveControls, QualityPolicy
from fewbits.records.trial import EnvironmentDelta, EnvironmentSample, RawReply, Telemetry
from fewbits.spec.affinity import parse_cores

POLICY = QualityPolicy()
COUNTERS = (
    "cpu_busy_seconds",
    "cpu_steal_seconds",
    "own_cpu_seconds",
    "cpu_pressure_seconds",
    "memory_pressure_seconds",
    "io_pressure_seconds",
)


def sample(at: float, **changes: Any) -> EnvironmentSample:
    fields: dict[str, Any] = dict.fromkeys(COUNTERS, 0.0) | {"throttle_events": 0}
    fields |= dict.fromkeys(("load_1m", "cpu_mhz", "temperature_c", "memory_available_bytes"))
    return EnvironmentSample(monotonic_seconds=at, **(fields | changes))


def telemetry(**changes: Any) -> Telemetry:
    fields: dict[str, Any] = {"prompt_tokens": 5, "output_tokens": 5, "prompt_ms": 40.0, "predicted_ms": 50.0}
    raw = RawReply(text="x", wall_seconds=0.1, **(fields | changes))
    return derive_telemetry(raw, init_latency_seconds=None, peak_memory_rss=None, peak_memory_gpu_bytes=None, unavailable={})


def judge(wall: float = 1.0, cores: int = 2, **after: Any) -> tuple[RunQuality, tuple[PollutionReason, ...]]:
    delta = environment_delta(sample(0.0), sample(wall, **after), cores)
    return judge_trial(delta, telemetry(), Controls(threads=2), EffectiveControls(), POLICY)


def test_own_engine_saturating_every_core_is_clean() -> None:
    assert judge(cpu_busy_seconds=2.0, own_cpu_seconds=1.98, cpu_pressure_seconds=0.3) == (RunQuality.CLEAN, ())


def test_a_hog_on_one_of_two_cores_pollutes() -> None:
    quality, reasons = judge(cpu_busy_seconds=2.0, own_cpu_seconds=1.5, cpu_pressure_seconds=0.6)
    assert quality is RunQuality.POLLUTED
    assert reasons == (PollutionReason.CPU_PRESSURE, PollutionReason.FOREIGN_CPU_LOAD)


def test_pressure_needs_evidence_of_others() -> None:
    assert judge(cpu_busy_seconds=2.0, own_cpu_seconds=1.92, cpu_pressure_seconds=0.9)[0] is RunQuality.CLEAN
    assert judge(cpu_busy_seconds=2.0, own_cpu_seconds=1.86, cpu_pressure_seconds=0.9)[1] == (PollutionReason.CPU_PRESSURE,)
    assert judge(cpu_steal_seconds=0.06, cpu_pressure_seconds=0.9)[1] == (PollutionReason.CPU_PRESSURE,)


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        ({"cpu_steal_seconds": 0.2}, PollutionReason.CPU_STEAL),
        ({"memory_pressure_seconds": 0.1}, PollutionReason.MEMORY_PRESSURE),
        ({"io_pressure_seconds": 0.3}, PollutionReason.IO_PRESSURE),
        ({"throttle_events": 1}, PollutionReason.THERMAL_THROTTLING),
    ],
)
def test_each_sensor_has_its_reason(after: dict[str, Any], reason: PollutionReason) -> None:
    assert judge(**after) == (RunQuality.POLLUTED, (reason,))


def test_very_short_trials_are_not_polluted_by_clock_ticks() -> None:
    # one tick of foreign time on each of two cores within 40 ms looks like 25 % load
    assert judge(wall=0.04, cpu_busy_seconds=0.09, own_cpu_seconds=0.07)[0] is RunQuality.CLEAN
    assert judge(wall=0.4, cpu_busy_seconds=0.8, own_cpu_seconds=0.5)[0] is RunQuality.POLLUTED


def test_missing_sensors_never_pollute() -> None:
    blind = dict.fromkeys(COUNTERS) | {"throttle_events": None}
    delta = environment_delta(sample(0.0, **blind), sample(1.0, **blind), 2)
    assert set(delta.unavailable.values()) == {"NO_SENSOR"}
    assert judge_trial(delta, telemetry(), Controls(threads=2), EffectiveControls(), POLICY)[0] is RunQuality.CLEAN
    assert judge_trial(None, telemetry(), Controls(threads=2), EffectiveControls(), POLICY)[0] is RunQuality.CLEAN


def test_counters_that_run_backwards_are_no_measurement() -> None:
    delta = environment_delta(sample(0.0, cpu_busy_seconds=5.0), sample(1.0, cpu_busy_seconds=1.0), 2)
    assert delta.foreign_cpu_ratio is None
    assert delta.unavailable["foreign_cpu_ratio"] == "CLOCKS_DISAGREE"
    assert environment_delta(sample(1.0), sample(1.0), 2).unavailable["steal_ratio"] == "ZERO_DENOMINATOR"


def test_missing_timings_pollute_but_a_failure_is_a_failure() -> None:
    args = (Controls(threads=2), EffectiveControls(), POLICY)
    assert judge_trial(None, telemetry(prompt_ms=None), *args)[1] == (PollutionReason.MISSING_TOKEN_TIMINGS,)
    failed = derive_telemetry(None, init_latency_seconds=None, peak_memory_rss=None, peak_memory_gpu_bytes=None, unavailable={})
    assert judge_trial(None, failed, *args) == (RunQuality.CLEAN, ())


def test_overhead_over_the_limit() -> None:
    slow = telemetry(prompt_ms=1.0, predicted_ms=10.0)
    assert judge_trial(None, slow, Controls(threads=2), EffectiveControls(), POLICY)[1] == (
        PollutionReason.HIGH_ORCHESTRATION_OVERHEAD,
    )


@pytest.mark.parametrize(
    ("requested", "effective", "names"),
    [
        ({"threads": 2}, {"threads": 2, "affinity": (0, 1), "context_size": 2048, "seed": 1337}, ()),
        ({"threads": 2}, {"threads": 1}, ("threads",)),
        ({"threads": 2}, {"affinity": (0, 1, 2)}, ("affinity",)),
        ({"threads": 2, "affinity_policy": "none"}, {"affinity": (0, 1, 2)}, ()),
        ({"threads": 2, "affinity_policy": "cores:0,2-3"}, {"affinity": (3, 2, 0)}, ()),
        ({"threads": 2, "affinity_policy": "cores:0,2-3"}, {"affinity": (0, 1, 2)}, ("affinity",)),
        ({"context_size": 2000}, {"context_size": 2048}, ()),
        ({"context_size": 2048}, {"context_size": 1024}, ("context_size",)),
        ({"context_size": 2048}, {"context_size": 4096}, ("context_size",)),
        ({"seed": 1}, {"seed": 2}, ("seed",)),
        ({"temperature": 0.2}, {"temperature": 0.20000000298}, ()),
        ({"temperature": 0.0}, {"temperature": 0.8}, ("temperature",)),
        ({"max_tokens": 100}, {"max_tokens": 50}, ()),
        ({"max_tokens": 100}, {"max_tokens": 200}, ("max_tokens",)),
        ({"threads": 2}, {}, ()),
    ],
)
def test_controls_read_back(requested: dict[str, Any], effective: dict[str, Any], names: tuple[str, ...]) -> None:
    assert controls_not_applied(Controls(**requested), EffectiveControls(**effective)) == names


def test_other_controls_pollute_trial_and_row() -> None:
    verdict = judge_trial(None, telemetry(), Controls(threads=2), EffectiveControls(threads=1), POLICY)
    assert verdict == (RunQuality.POLLUTED, (PollutionReason.CONTROLS_NOT_APPLIED,))
    row = judge_row(polluted_run_rate=0.01, missing_telemetry_rate=0.0, trial_reasons=verdict[1], policy=POLICY)
    assert row == verdict


def test_row_tolerances_are_inclusive() -> None:
    reasons = (PollutionReason.FOREIGN_CPU_LOAD,)
    assert judge_row(polluted_run_rate=0.25, missing_telemetry_rate=0.0, trial_reasons=reasons, policy=POLICY) == (
        RunQuality.CLEAN,
        (),
    )
    assert judge_row(polluted_run_rate=0.26, missing_telemetry_rate=0.0, trial_reasons=reasons, policy=POLICY)[1] == reasons
    missing = judge_row(polluted_run_rate=0.0, missing_telemetry_rate=0.01, trial_reasons=(), policy=POLICY)
    assert missing == (RunQuality.POLLUTED, (PollutionReason.MISSING_TOKEN_TIMINGS,))


def test_core_lists() -> None:
    assert parse_cores("cores:0,2-3") == (0, 2, 3)


seconds = st.none() | st.floats(0, 10)


@given(wall=st.floats(0, 10), cores=st.integers(1, 64), values=st.fixed_dictionaries(dict.fromkeys(COUNTERS, seconds)))
def test_ratios_stay_in_range_and_every_null_is_explained(wall: float, cores: int, values: dict[str, float | None]) -> None:
    delta = environment_delta(sample(0.0), sample(wall, **values), cores)
    fields = {
        name: getattr(delta, name) for name in EnvironmentDelta.__struct_fields__ if name not in {"unavailable", "wall_seconds"}
    }
    assert {name for name, value in fields.items() if value is None} == set(delta.unavailable)
    assert all(0 <= value <= 1 for name, value in fields.items() if value is not None and name != "throttle_events")
    quality, reasons = judge_trial(delta, telemetry(), Controls(threads=2), EffectiveControls(), POLICY)
    assert (quality is RunQuality.POLLUTED) == bool(reasons)
    assert list(reasons) == sorted(reasons)
