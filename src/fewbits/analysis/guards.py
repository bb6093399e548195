"""Lab guards: were the conditions under which a summary was measured those of a lab? Pure, from the summary alone.

A sensor that is not there gives SKIP with its reason, never PASS.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from fewbits.analysis.wording import count, percent
from fewbits.records.base import Unavailable, VramProfile
from fewbits.records.gates import GateCheck, GateStatus
from fewbits.records.summary import DeviceConditions, QuantRow, RowConditions, SweepSummary
from fewbits.spec.tags import SERVER_RUNTIMES

MEMORY_LIMITS: Mapping[VramProfile, float] = MappingProxyType(
    {VramProfile.SAFE: 0.50, VramProfile.BALANCED: 0.80, VramProfile.STRESS: 0.95}
)
"""Largest share of a device's memory in use, by anyone, per profile (the runbook's profiles)."""


def check_guards(summary: SweepSummary, *, cooldown_target_c: float, profile: VramProfile) -> tuple[GateCheck, ...]:
    """Judge every row: start temperature, memory in use, throttling; and that the summary was made under this profile."""
    checks = [_profile_check(summary, profile)]
    guarded = summary.guard_policy is not None and summary.guard_policy.enabled
    remote = summary.matrix.get("runtime") in SERVER_RUNTIMES
    for session in summary.sessions:
        for row in session.per_quant:
            subject = f"{session.model_id} {row.quant_tag}"
            checks += _row_checks(subject, row, cooldown_target_c, MEMORY_LIMITS[profile], guarded=guarded, remote=remote)
    if len(checks) == 1:
        checks.append(_skip("rows", "summary", Unavailable.NO_TRIALS, "the summary has no row that could be judged"))
    return tuple(checks)


def _profile_check(summary: SweepSummary, profile: VramProfile) -> GateCheck:
    same = summary.vram_profile == profile.value
    return GateCheck(
        name="vram_profile",
        subject="summary",
        status=GateStatus.PASS if same else GateStatus.FAIL,
        code="" if same else "VRAM_PROFILE_MISMATCH",
        evidence=f"measured under {summary.vram_profile!r}, judged as {profile.value!r}",
    )


def _row_checks(subject: str, row: QuantRow, target: float, limit: float, *, guarded: bool, remote: bool) -> Iterator[GateCheck]:
    conditions = row.conditions
    if conditions is None:
        for name in ("cooldown", "memory", "throttling"):
            why = "the summary holds no reading of the machine for this row (no trials, or made by an older fewbits)"
            yield _skip(name, subject, Unavailable.NOT_MEASURED, why)
        return
    yield _cooldown(subject, conditions, target, guarded=guarded)
    yield _memory(subject, row, conditions, limit, remote=remote)
    yield _throttling(subject, conditions)


def _devices(conditions: RowConditions) -> tuple[tuple[str, DeviceConditions], ...]:
    return (("CPU package", conditions.host), ("GPU", conditions.gpu))


def _cooldown(subject: str, conditions: RowConditions, target: float, *, guarded: bool) -> GateCheck:
    """Under the live guard every block had to start cool; without it, only the row's first one can be asked to."""
    field, when = ("block_temperature_max_c", "hottest start of a block") if guarded else ("temperature_start_c", "at the start")
    read = [(name, value) for name, device in _devices(conditions) if (value := getattr(device, field)) is not None]
    if not read:
        return _skip("cooldown", subject, Unavailable.NO_SENSOR, "this machine showed no CPU package or GPU temperature")
    hottest, value = max(read, key=lambda pair: pair[1])
    words = f"{hottest} {value:.1f} °C {when}, target {target:g} °C"
    failed = value > target
    return GateCheck(
        name="cooldown",
        subject=subject,
        status=GateStatus.FAIL if failed else GateStatus.PASS,
        code="COOLDOWN_TARGET_NOT_MET" if failed else "",
        measured=value,
        limit=target,
        evidence=words,
    )


def _memory(subject: str, row: QuantRow, conditions: RowConditions, limit: float, *, remote: bool) -> GateCheck:
    """Hold the memory of the device with the weights against the limit; that of a server may be another machine's: SKIP."""
    gpu, host = conditions.gpu.memory_used_ratio, conditions.host.memory_used_ratio
    on_gpu = row.peak_memory_gpu_bytes is not None and row.peak_memory_gpu_bytes > 0
    if remote or row.unavailable.get("peak_memory_rss") == Unavailable.REMOTE_PROCESS:
        why = "the weights are held by a server, whose memory cannot be read from here"
        return _skip("memory", subject, Unavailable.REMOTE_PROCESS, why, limit)
    name, value = ("GPU memory", gpu) if gpu is not None and (on_gpu or host is None) else ("RAM", host)
    if value is None:
        return _skip("memory", subject, Unavailable.NO_SENSOR, "neither RAM nor GPU memory in use was recorded", limit)
    failed = value > limit
    total = (conditions.gpu if name == "GPU memory" else conditions.host).memory_total_bytes
    of = f" of {total / 1024**3:.1f} GiB" if total else ""
    return GateCheck(
        name="memory",
        subject=subject,
        status=GateStatus.FAIL if failed else GateStatus.PASS,
        code="MEMORY_RATIO_EXCEEDED" if failed else "",
        measured=value,
        limit=limit,
        evidence=f"at most {percent(value)}{of} {name} in use, limit {percent(limit)}",
    )


def _throttling(subject: str, conditions: RowConditions) -> GateCheck:
    known = [events for _, device in _devices(conditions) if (events := device.throttle_events) is not None]
    if not known:
        return _skip("throttling", subject, Unavailable.NO_SENSOR, "this machine does not tell when it throttles")
    events = sum(known)
    return GateCheck(
        name="throttling",
        subject=subject,
        status=GateStatus.FAIL if events else GateStatus.PASS,
        code="THROTTLED" if events else "",
        measured=float(events),
        limit=0.0,
        evidence=f"{count(events, 'throttle event')} during the row's trials",
    )


def _skip(name: str, subject: str, reason: Unavailable, why: str, limit: float | None = None) -> GateCheck:
    return GateCheck(
        name=name, subject=subject, status=GateStatus.SKIP, code=f"{name.upper()}_{reason.value}", limit=limit, evidence=why
    )
