"""CLEAN or POLLUTED, from *foreign* disturbance: the model's own work may saturate the machine and stays clean.

Rules, all under a named `QualityPolicy`:

- Foreign CPU load is busy time minus our own processes' time; steal (time the hypervisor took) is judged by itself.
- Linux pressure (PSI `some`) also counts our own threads waiting for each other. It is a reason only together with
  evidence of others: foreign load or steal above half its own limit.
- A disturbance shorter than two clock ticks (20 ms) is within the resolution of the counters and never a reason,
  so very short trials are not polluted by rounding.
- A missing sensor never pollutes. A reply without token counts or timings does (roadmap, canary and phase 1); a trial
  that failed before any reply is a failure, not a gap in telemetry.
"""

from __future__ import annotations

from collections.abc import Iterable

from fewbits.records.base import COMPLETE_TELEMETRY, PollutionReason, RunQuality, Unavailable
from fewbits.records.plan import Controls, EffectiveControls, QualityPolicy
from fewbits.records.trial import EnvironmentDelta, EnvironmentSample, Telemetry
from fewbits.spec.affinity import parse_cores

TICK_SECONDS = 0.01
"""Resolution of Linux CPU accounting. Source: proc(5), USER_HZ = 100."""
NOISE_SECONDS = 2 * TICK_SECONDS
CONTEXT_PADDING_TOKENS = 256
"""llama.cpp rounds the context size up to a multiple of this. Source: llama-context.cpp, GGML_PAD(n_ctx, 256)."""
FLOAT32_RELATIVE_ERROR = 1e-6
"""Engines keep the temperature as a 32-bit float, so 0.2 reads back as 0.20000000298."""

FOREIGN_REASONS = frozenset(
    {
        PollutionReason.FOREIGN_CPU_LOAD,
        PollutionReason.CPU_PRESSURE,
        PollutionReason.CPU_STEAL,
        PollutionReason.MEMORY_PRESSURE,
        PollutionReason.IO_PRESSURE,
        PollutionReason.THERMAL_THROTTLING,
    }
)
"""Disturbances from outside: running the trial again at a quieter moment can help. The other reasons stay."""


def environment_delta(before: EnvironmentSample, after: EnvironmentSample, cores: int) -> EnvironmentDelta:
    """Return what happened between two samples, as shares of the wall time between them (0..1).

    `cores` are those that the busy counter covers. CPU ratios are per core (1.0 = all cores all the time); pressure
    ratios are shares of wall time. A counter that one sample lacks gives `null` with `NO_SENSOR`; one that ran backwards
    `CLOCKS_DISAGREE`; no time between the samples `ZERO_DENOMINATOR`.
    """
    wall = max(0.0, after.monotonic_seconds - before.monotonic_seconds)
    capacity = wall * max(1, cores)
    reasons: dict[str, str] = {}

    def spent(name: str) -> float | None:
        return _difference(getattr(before, name), getattr(after, name))

    def share(field: str, amount: float | None, whole: float, *sensors: str) -> float | None:
        if amount is None:
            present = all(getattr(sample, name) is not None for sample in (before, after) for name in sensors)
            reasons[field] = str(Unavailable.CLOCKS_DISAGREE if present else Unavailable.NO_SENSOR)
            return None
        if whole <= 0:
            reasons[field] = str(Unavailable.ZERO_DENOMINATOR)
            return None
        return min(1.0, max(0.0, amount / whole))

    busy, own = spent("cpu_busy_seconds"), spent("own_cpu_seconds")
    foreign = None if busy is None or own is None else busy - own
    throttled = _difference(before.throttle_events, after.throttle_events)
    if after.gpu_throttled is not None:
        throttled = (throttled or 0) + after.gpu_throttled
    if throttled is None:
        present = None not in (before.throttle_events, after.throttle_events)
        reasons["throttle_events"] = str(Unavailable.CLOCKS_DISAGREE if present else Unavailable.NO_SENSOR)
    return EnvironmentDelta(
        wall_seconds=wall,
        foreign_cpu_ratio=share("foreign_cpu_ratio", foreign, capacity, "cpu_busy_seconds", "own_cpu_seconds"),
        own_cpu_ratio=share("own_cpu_ratio", own, capacity, "own_cpu_seconds"),
        cpu_pressure_ratio=share("cpu_pressure_ratio", spent("cpu_pressure_seconds"), wall, "cpu_pressure_seconds"),
        steal_ratio=share("steal_ratio", spent("cpu_steal_seconds"), capacity, "cpu_steal_seconds"),
        memory_pressure_ratio=share("memory_pressure_ratio", spent("memory_pressure_seconds"), wall, "memory_pressure_seconds"),
        io_pressure_ratio=share("io_pressure_ratio", spent("io_pressure_seconds"), wall, "io_pressure_seconds"),
        throttle_events=None if throttled is None else int(throttled),
        unavailable=dict(sorted(reasons.items())),
    )


def _difference(before: float | None, after: float | None) -> float | None:
    """Return the growth of a counter; `None` when a reading is missing or it ran backwards by more than its resolution."""
    if before is None or after is None or after - before < -NOISE_SECONDS:
        return None
    return max(0.0, after - before)


def judge_trial(
    delta: EnvironmentDelta | None,
    telemetry: Telemetry,
    requested: Controls,
    effective: EffectiveControls,
    policy: QualityPolicy,
) -> tuple[RunQuality, tuple[PollutionReason, ...]]:
    """Return CLEAN or POLLUTED with every reason, sorted. `requested` has its thread count resolved; `delta` may be absent."""
    reasons = set(_disturbances(delta, policy)) if delta is not None else set()
    if telemetry.token_metrics.status not in COMPLETE_TELEMETRY and not _failed_before_reply(telemetry):
        reasons.add(PollutionReason.MISSING_TOKEN_TIMINGS)
    if controls_not_applied(requested, effective):
        reasons.add(PollutionReason.CONTROLS_NOT_APPLIED)
    overhead = telemetry.orchestration_overhead_ratio
    if overhead is not None and overhead > policy.max_orchestration_overhead_ratio:
        reasons.add(PollutionReason.HIGH_ORCHESTRATION_OVERHEAD)
    return _verdict(reasons)


def judge_row(
    *,
    polluted_run_rate: float,
    missing_telemetry_rate: float,
    trial_reasons: Iterable[PollutionReason],
    policy: QualityPolicy,
) -> tuple[RunQuality, tuple[PollutionReason, ...]]:
    """Return the quality of a row of trials, from its rates (0..1) and the reasons seen in any of its trials.

    Two rates have a tolerance. `CONTROLS_NOT_APPLIED` has none: load disturbs only timings, but other controls give
    other answers, and answers of polluted trials stay in the mean.
    """
    seen = set(trial_reasons)
    reasons = {PollutionReason.CONTROLS_NOT_APPLIED} & seen
    if missing_telemetry_rate > policy.row_max_missing_telemetry_rate:
        reasons.add(PollutionReason.MISSING_TOKEN_TIMINGS)
    if polluted_run_rate > policy.row_max_polluted_rate:
        reasons |= seen
    return _verdict(reasons)


def _verdict(reasons: set[PollutionReason]) -> tuple[RunQuality, tuple[PollutionReason, ...]]:
    return (RunQuality.POLLUTED if reasons else RunQuality.CLEAN), tuple(sorted(reasons))


def _failed_before_reply(telemetry: Telemetry) -> bool:
    return telemetry.unavailable.get("token_metrics.output_tokens") == Unavailable.TRIAL_FAILED


def _disturbances(delta: EnvironmentDelta, policy: QualityPolicy) -> Iterable[PollutionReason]:
    def above(ratio: float | None, limit: float) -> bool:
        # the counters cover all cores at once, so a ratio x wall is seconds per core, as is one tick on every core
        return ratio is not None and ratio > limit and ratio * delta.wall_seconds >= NOISE_SECONDS

    rules = (
        (PollutionReason.FOREIGN_CPU_LOAD, above(delta.foreign_cpu_ratio, policy.max_foreign_cpu_ratio)),
        (PollutionReason.CPU_STEAL, above(delta.steal_ratio, policy.max_steal_ratio)),
        (PollutionReason.MEMORY_PRESSURE, above(delta.memory_pressure_ratio, policy.max_memory_pressure_ratio)),
        (PollutionReason.IO_PRESSURE, above(delta.io_pressure_ratio, policy.max_io_pressure_ratio)),
        (PollutionReason.THERMAL_THROTTLING, (delta.throttle_events or 0) > policy.max_throttle_events),
        (
            PollutionReason.CPU_PRESSURE,
            above(delta.cpu_pressure_ratio, policy.max_cpu_pressure_ratio)
            and (
                above(delta.foreign_cpu_ratio, policy.max_foreign_cpu_ratio / 2)
                or above(delta.steal_ratio, policy.max_steal_ratio / 2)
            ),
        ),
    )
    return (reason for reason, applies in rules if applies)


def controls_not_applied(requested: Controls, effective: EffectiveControls) -> tuple[str, ...]:
    """Return the names of the controls whose effective value is known and is not what was asked for.

    A context up to 255 tokens larger is the engine's padding; fewer output tokens is the task's own limit.
    """
    checks = {
        "affinity": effective.affinity is not None and not _affinity_matches(requested, effective.affinity),
        "context_size": effective.context_size is not None
        and not 0 <= effective.context_size - requested.context_size < CONTEXT_PADDING_TOKENS,
        "max_tokens": effective.max_tokens is not None and effective.max_tokens > requested.max_tokens,
        "seed": effective.seed is not None and effective.seed != requested.seed,
        "temperature": effective.temperature is not None
        and abs(effective.temperature - requested.temperature) > FLOAT32_RELATIVE_ERROR * max(1.0, requested.temperature),
        "threads": effective.threads is not None and requested.threads is not None and effective.threads != requested.threads,
    }
    return tuple(name for name, differs in checks.items() if differs)


def _affinity_matches(requested: Controls, cores: tuple[int, ...]) -> bool:
    if requested.affinity_policy == "none":
        return True
    if requested.affinity_policy == "auto":
        return requested.threads is None or len(set(cores)) == requested.threads
    return set(cores) == set(parse_cores(requested.affinity_policy) or ())
