"""Thermal stability over runs in their order: heat soak, pollution by heat, cooldown. Pure, from summaries or live samples.

What a sensor did not show is `null` with a reason: it is never a pass and never a fail.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec

from fewbits.analysis.rises import longest_rise, rise_probability
from fewbits.analysis.statistics import rounded, wilson_estimate
from fewbits.analysis.thermal_series import ThermalLabels, ThermalRun, ThermalSeries, work_differs
from fewbits.analysis.thermal_words import live_recommendation, recommendation
from fewbits.records.base import ExecutionLane, RunQuality, Unavailable, VramProfile
from fewbits.records.estimate import Estimate
from fewbits.records.explorer import ArtifactProvenance
from fewbits.records.summary import DeviceConditions, QuantRow
from fewbits.records.thermal import (
    DeviceReading,
    RisingRuns,
    ThermalArtifact,
    ThermalDevice,
    ThermalGap,
    ThermalMode,
    ThermalNote,
    ThermalNoteCode,
    ThermalPoint,
    ThermalReason,
    ThermalSample,
    ThermalThresholds,
)
from fewbits.records.trial import EnvironmentSample

_POLLUTING = frozenset({ThermalReason.RUN_QUALITY_NOT_CLEAN, ThermalReason.THERMAL_END_ABOVE_THRESHOLD, ThermalReason.THROTTLED})
_CLOCK = frozenset({ThermalNoteCode.CLOCK_UNKNOWN, ThermalNoteCode.CLOCK_NOT_INCREASING})
_LATENCY_FIELDS = ("heat_soak_detected", "longest_latency_rise", "heat_soak_certain", "heat_soak_chance")
_SENSORS: Mapping[ThermalDevice, Callable[[EnvironmentSample], float | None]] = MappingProxyType(
    {
        ThermalDevice.CPU_PACKAGE: lambda sample: sample.temperature_c,
        ThermalDevice.GPU: lambda sample: sample.gpu_temperature_c,
    }
)
_DIGITS = 6
Judged = dict[str, tuple[Any, ThermalGap]]
"""Field name -> its value, and why it is `None` where it is."""


def profile_series(
    series: ThermalSeries, thresholds: ThermalThresholds, *, provenance: ArtifactProvenance, generated_at: str
) -> ThermalArtifact:
    """Judge every run and the series. `generated_at` (UTC, ISO 8601) is carried, nothing is computed from it."""
    runs, first = series.runs, series.runs[0]
    devices = [_recorded_readings(run.row) for run in runs]
    device = _hottest(devices)
    points = tuple(
        _point(index, run, readings, device, thresholds)
        for index, (run, readings) in enumerate(zip(runs, devices, strict=True), start=1)
    )
    judged = {
        **_heat_soak(points, thresholds.monotonic_window, work_differs=work_differs(runs)),
        **_temperature_soak(points, thresholds.monotonic_window),
        **_rates(points),
        "variant_sha256": (first.row.variant_sha256, ThermalGap.NOT_REPORTED),
        "device": (device, ThermalGap.NO_SENSOR),
        "cooled_down_after_seconds": (None, ThermalGap.NOT_WATCHED),
    }
    artifact = ThermalArtifact(
        generated_at=generated_at,
        execution_lane=first.summary.execution_lane,
        vram_profile=first.summary.vram_profile,
        provenance=provenance,
        mode=ThermalMode.SUMMARIES,
        hardware_fingerprint=first.summary.hardware_fingerprint,
        model_id=first.session.model_id,
        quant_tag=first.row.quant_tag,
        selection=series.selection,
        thresholds=thresholds,
        clock_note=next((note.text for note in series.notes if note.code in _CLOCK), None),
        notes=series.notes,
        recommendation="",
        points=points,
        **_values(judged),
        unavailable=_gaps(judged),
    )
    return msgspec.structs.replace(artifact, recommendation=recommendation(artifact))


def profile_watch(
    samples: Sequence[EnvironmentSample],
    thresholds: ThermalThresholds,
    *,
    labels: ThermalLabels,
    hardware_fingerprint: str,
    provenance: ArtifactProvenance,
    generated_at: str,
    interrupted: bool = False,
) -> ThermalArtifact:
    """Judge live samples (at least one, in order): one point from the first to the last. Nothing was run, so nothing is slow."""
    readings = _live_readings(samples)
    device = _hottest([readings])
    point = _live_point(samples, readings, device, thresholds)
    no_runs = (None, ThermalGap.NO_RUNS)
    judged: Judged = {
        **dict.fromkeys(
            (*_LATENCY_FIELDS, "heat_soak_by_temperature", "longest_temperature_rise", "variant_sha256"),
            no_runs,
        ),
        **_rates((point,)),
        "model_id": (labels.model_id, ThermalGap.NOT_TOLD),
        "quant_tag": (labels.quant_tag, ThermalGap.NOT_TOLD),
        "device": (device, ThermalGap.NO_SENSOR),
        "cooled_down_after_seconds": _cooled_down(samples, thresholds.cooldown_target_c),
    }
    text = f"The watch was ended early, after {_elapsed(samples, samples[-1]):.1f} s."
    artifact = ThermalArtifact(
        generated_at=generated_at,
        execution_lane=labels.execution_lane or ExecutionLane.LAB.value,
        vram_profile=labels.vram_profile or VramProfile.SAFE.value,
        provenance=provenance,
        mode=ThermalMode.LIVE,
        hardware_fingerprint=hardware_fingerprint,
        selection="This machine's own sensors, watched live: no run was profiled.",
        thresholds=thresholds,
        clock_note=None,
        notes=(ThermalNote(code=ThermalNoteCode.WATCH_INTERRUPTED, text=text),) if interrupted else (),
        recommendation="",
        points=(point,),
        samples=tuple(_sample(samples, sample) for sample in samples),
        **_values(judged),
        unavailable=_gaps(judged),
    )
    return msgspec.structs.replace(artifact, recommendation=live_recommendation(artifact))


def has_sensor(sample: EnvironmentSample) -> bool:
    """Tell whether a live sample shows any temperature."""
    return sample.temperature_c is not None or sample.gpu_temperature_c is not None


def _values(judged: Judged) -> dict[str, Any]:
    return {name: value for name, (value, _) in judged.items()}


def _gaps(judged: Judged) -> dict[str, ThermalGap]:
    return {name: gap for name, (value, gap) in sorted(judged.items()) if value is None}


def _recorded_readings(row: QuantRow) -> tuple[DeviceReading, ...]:
    if row.conditions is None:
        return ()
    pairs = ((ThermalDevice.CPU_PACKAGE, row.conditions.host), (ThermalDevice.GPU, row.conditions.gpu))
    return tuple(
        _reading(device, conditions.temperature_start_c, conditions.temperature_end_c, conditions.temperature_max_c)
        for device, conditions in pairs
        if not _is_silent(conditions)
    )


def _is_silent(conditions: DeviceConditions) -> bool:
    return (conditions.temperature_start_c, conditions.temperature_end_c, conditions.temperature_max_c) == (None, None, None)


def _live_readings(samples: Sequence[EnvironmentSample]) -> tuple[DeviceReading, ...]:
    readings = []
    for device, read in _SENSORS.items():
        known = [value for sample in samples if (value := read(sample)) is not None]
        if known:
            readings.append(_reading(device, read(samples[0]), read(samples[-1]), max(known)))
    return tuple(readings)


def _reading(device: ThermalDevice, start: float | None, end: float | None, hottest: float | None) -> DeviceReading:
    delta = None if start is None or end is None else round(end - start, _DIGITS)
    return DeviceReading(device=device, thermal_start_c=start, thermal_end_c=end, thermal_max_c=hottest, thermal_delta_c=delta)


def _hottest(runs: Sequence[Sequence[DeviceReading]]) -> ThermalDevice | None:
    """Return the device that gave the hottest reading of all; `None` without any reading."""
    heat: dict[ThermalDevice, float] = {}
    for reading in (reading for run in runs for reading in run):
        known = [value for value in (reading.thermal_start_c, reading.thermal_end_c, reading.thermal_max_c) if value is not None]
        heat[reading.device] = max((heat.get(reading.device, -math.inf), *known))
    return max(heat, key=lambda device: (heat[device], device is ThermalDevice.CPU_PACKAGE), default=None)


def _point(
    index: int,
    run: ThermalRun,
    readings: tuple[DeviceReading, ...],
    device: ThermalDevice | None,
    thresholds: ThermalThresholds,
) -> ThermalPoint:
    row, events = run.row, _recorded_events(run.row)
    reasons = _heat_reasons(readings, events, thresholds)
    if row.run_quality_status is not RunQuality.CLEAN:
        reasons.add(ThermalReason.RUN_QUALITY_NOT_CLEAN)
    if row.total_latency is None:
        reasons.add(ThermalReason.NO_LATENCY)
    silent = _why_silent(row)
    if not readings:
        reasons.add(ThermalReason(silent.value))
    facts: Judged = {
        "first_trial_at": (run.summary.provenance.first_trial_at, ThermalGap.NOT_REPORTED),
        "total_latency": (row.total_latency, ThermalGap.NO_LATENCY),
        "latency_median": (row.latency_median, ThermalGap.NO_LATENCY if row.total_latency is None else ThermalGap.NO_INTERVAL),
        "throttle_events": (events, silent),
        **_judge_heat(readings, device, reasons, silent),
    }
    return ThermalPoint(
        run_index=index,
        summary_path=run.source.path,
        summary_sha256=run.source.sha256,
        tasks=row.tasks,
        test_runs=row.test_runs,
        devices=readings,
        reasons=tuple(sorted(reasons)),
        **_values(facts),
        unavailable=_gaps(facts),
    )


def _live_point(
    samples: Sequence[EnvironmentSample],
    readings: tuple[DeviceReading, ...],
    device: ThermalDevice | None,
    thresholds: ThermalThresholds,
) -> ThermalPoint:
    events = _live_events(samples)
    reasons = _heat_reasons(readings, events, thresholds)
    if not readings:
        reasons.add(ThermalReason.NO_SENSOR)
    no_run = ("summary_path", "summary_sha256", "first_trial_at", "total_latency", "latency_median", "tasks", "test_runs")
    facts: Judged = {
        **dict.fromkeys(no_run, (None, ThermalGap.NO_RUNS)),
        "throttle_events": (events, ThermalGap.NO_SENSOR),
        **_judge_heat(readings, device, reasons, ThermalGap.NO_SENSOR),
    }
    return ThermalPoint(run_index=1, devices=readings, reasons=tuple(sorted(reasons)), **_values(facts), unavailable=_gaps(facts))


def _heat_reasons(readings: Sequence[DeviceReading], events: int | None, thresholds: ThermalThresholds) -> set[ThermalReason]:
    """Hold every device against the limits, which are inclusive: at the limit is within it."""
    reasons = set()
    if any(r.thermal_end_c is not None and r.thermal_end_c > thresholds.polluted_thermal_threshold_c for r in readings):
        reasons.add(ThermalReason.THERMAL_END_ABOVE_THRESHOLD)
    if any(r.thermal_start_c is not None and r.thermal_start_c > thresholds.cooldown_target_c for r in readings):
        reasons.add(ThermalReason.COOLDOWN_TARGET_NOT_REACHED)
    if events:
        reasons.add(ThermalReason.THROTTLED)
    return reasons


def _judge_heat(
    readings: Sequence[DeviceReading], device: ThermalDevice | None, reasons: set[ThermalReason], silent: ThermalGap
) -> Judged:
    own = next((reading for reading in readings if reading.device is device), None)
    ended = any(r.thermal_end_c is not None for r in readings)
    polluted = True if reasons & _POLLUTING else False if ended else None
    started = any(r.thermal_start_c is not None for r in readings)
    cool = ThermalReason.COOLDOWN_TARGET_NOT_REACHED not in reasons if started else None
    return {
        **{
            name: (getattr(own, name) if own is not None else None, silent if not readings else ThermalGap.NO_SENSOR)
            for name in ("thermal_start_c", "thermal_end_c", "thermal_max_c", "thermal_delta_c")
        },
        "polluted": (polluted, silent),
        "cooldown_ok": (cool, silent),
    }


def _why_silent(row: QuantRow) -> ThermalGap:
    """Return why a row shows no temperature: nothing recorded the machine, or there is no sensor."""
    if row.conditions is None:
        return ThermalGap.NO_TRIALS
    codes = {
        row.conditions.host.unavailable.get("temperature_start_c"),
        row.conditions.gpu.unavailable.get("temperature_start_c"),
    }
    return ThermalGap.NO_TRIALS if codes == {Unavailable.NO_TRIALS.value} else ThermalGap.NO_SENSOR


def _recorded_events(row: QuantRow) -> int | None:
    if row.conditions is None:
        return None
    known = [events for device in (row.conditions.host, row.conditions.gpu) if (events := device.throttle_events) is not None]
    return sum(known) if known else None


def _live_events(samples: Sequence[EnvironmentSample]) -> int | None:
    """Return what the CPU counted since the first sample, and one for a GPU that ever said it throttles after it."""
    first, last = samples[0].throttle_events, samples[-1].throttle_events
    counted = None if first is None or last is None else max(0, last - first)
    throttled = [sample.gpu_throttled for sample in samples[1:] if sample.gpu_throttled is not None]
    if counted is None and not throttled:
        return None
    return (counted or 0) + (1 if any(throttled) else 0)


def _heat_soak(points: Sequence[ThermalPoint], window: int, *, work_differs: bool) -> Judged:
    values = [point.total_latency for point in points]
    detected, rise, why = _rising(values, window, ThermalGap.NO_LATENCY)
    certain, why_uncertain = _is_certain(points, rise, work_differs=work_differs) if detected else (None, ThermalGap.NOT_DETECTED)
    chance = rise_probability(len(points), window) if len(points) > window else None
    return {
        "heat_soak_detected": (detected, why),
        "longest_latency_rise": (rise, ThermalGap.NO_LATENCY),
        "heat_soak_certain": (certain, why_uncertain),
        "heat_soak_chance": (rounded(chance), ThermalGap.TOO_FEW_RUNS),
    }


def _temperature_soak(points: Sequence[ThermalPoint], window: int) -> Judged:
    detected, rise, why = _rising([point.thermal_start_c for point in points], window, ThermalGap.NO_SENSOR)
    return {
        "heat_soak_by_temperature": (detected, why),
        "longest_temperature_rise": (rise, ThermalGap.NO_SENSOR),
    }


def _rising(
    values: Sequence[float | None], window: int, missing: ThermalGap
) -> tuple[bool | None, RisingRuns | None, ThermalGap]:
    """Look for `window` strict rises in a row. `None` and why, where a hole or too few runs leave it open."""
    stretch = longest_rise(values)
    if stretch is None:
        return None, None, missing
    start, end = stretch
    rise = RisingRuns(first_run=start + 1, last_run=end + 1, first_value=values[start] or 0.0, last_value=values[end] or 0.0)
    if end - start >= window:
        return True, rise, missing
    if None in values:
        return None, rise, missing
    return (False if len(values) > window else None), rise, ThermalGap.TOO_FEW_RUNS


def _is_certain(points: Sequence[ThermalPoint], rise: RisingRuns | None, *, work_differs: bool) -> tuple[bool | None, ThermalGap]:
    """Tell whether the intervals of a rise's first and last run lie apart."""
    if work_differs or rise is None:
        return None, ThermalGap.WORK_DIFFERS
    first, last = points[rise.first_run - 1].latency_median, points[rise.last_run - 1].latency_median
    if first is None or last is None or first.high is None or last.low is None:
        return None, ThermalGap.NO_INTERVAL
    return last.low > first.high, ThermalGap.NO_INTERVAL


def _rates(points: Sequence[ThermalPoint]) -> Judged:
    polluted = _share([point.polluted for point in points])
    failed = _share([None if point.cooldown_ok is None else not point.cooldown_ok for point in points])
    return {
        "polluted_run_rate": (polluted.value if polluted else None, ThermalGap.NOTHING_JUDGED),
        "polluted_run_estimate": (polluted, ThermalGap.NOTHING_JUDGED),
        "cooldown_failure_rate": (failed.value if failed else None, ThermalGap.NOTHING_JUDGED),
        "cooldown_failure_estimate": (failed, ThermalGap.NOTHING_JUDGED),
    }


def _share(judged: Sequence[bool | None]) -> Estimate | None:
    known = [answer for answer in judged if answer is not None]
    return wilson_estimate(sum(known), len(known)) if known else None


def _elapsed(samples: Sequence[EnvironmentSample], sample: EnvironmentSample) -> float:
    return round(sample.monotonic_seconds - samples[0].monotonic_seconds, _DIGITS)


def _sample(samples: Sequence[EnvironmentSample], sample: EnvironmentSample) -> ThermalSample:
    return ThermalSample(
        elapsed_seconds=_elapsed(samples, sample),
        cpu_package_c=sample.temperature_c,
        gpu_c=sample.gpu_temperature_c,
        load_1m=sample.load_1m,
    )


def _cooled_down(samples: Sequence[EnvironmentSample], target: float) -> tuple[float | None, ThermalGap]:
    """Return when every device was first at or below the target."""
    for sample in samples:
        known = [value for read in _SENSORS.values() if (value := read(sample)) is not None]
        if known and max(known) <= target:
            return _elapsed(samples, sample), ThermalGap.NOT_REACHED
    return None, ThermalGap.NOT_REACHED if any(map(has_sensor, samples)) else ThermalGap.NO_SENSOR
