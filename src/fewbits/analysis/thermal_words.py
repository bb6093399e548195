"""What a thermal profile means, in sentences. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from fewbits.analysis.wording import count, listed, percent
from fewbits.records.thermal import RisingRuns, ThermalArtifact, ThermalGap, ThermalReason

_WHY_POLLUTED = {
    ThermalReason.THERMAL_END_ABOVE_THRESHOLD: "ended above the threshold",
    ThermalReason.THROTTLED: "throttled",
    ThermalReason.RUN_QUALITY_NOT_CLEAN: "not CLEAN",
}
_HEAT = frozenset({ThermalReason.THERMAL_END_ABOVE_THRESHOLD, ThermalReason.THROTTLED, ThermalReason.COOLDOWN_TARGET_NOT_REACHED})


def recommendation(artifact: ThermalArtifact) -> str:
    """Return the sentences of a profile over runs: heat soak first, then pollution, then cooldown, then what to do."""
    return " ".join((_soak(artifact), _pollution(artifact), _cooldown(artifact), _advice(artifact)))


def _soak(artifact: ThermalArtifact) -> str:
    runs, window = len(artifact.points), artifact.thresholds.monotonic_window
    rise = artifact.longest_latency_rise
    if artifact.heat_soak_detected and rise is not None:
        return f"Heat soak: latency rose in {_stretch(rise, _seconds)}, {_meaning(artifact)}{_likewise(artifact)}."
    if artifact.heat_soak_detected is False:
        return f"No heat soak: latency never rose {count(window, 'time')} in a row over {count(runs, 'run')}."
    if artifact.unavailable.get("heat_soak_detected") is ThermalGap.NO_LATENCY:
        return "Heat soak cannot be judged: at least one run has no latency."
    return (
        f"Heat soak cannot be judged: {count(window, 'rise')} in a row {'takes' if window == 1 else 'take'} "
        f"{count(window + 1, 'run')}, {runs} given."
    )


def _stretch(rise: RisingRuns, words: Callable[[float], str]) -> str:
    return f"every run from {rise.first_run} to {rise.last_run} ({words(rise.first_value)} to {words(rise.last_value)})"


def _seconds(value: float) -> str:
    return f"{value:.3f} s" if value < 10 else f"{value:.1f} s"


def _meaning(artifact: ThermalArtifact) -> str:
    if artifact.heat_soak_certain:
        return "by more than the intervals of the first and last of them"
    chance = artifact.heat_soak_chance or 0.0
    luck = f"and as many runs in random order show such a rise {percent(chance)} of the time"
    if artifact.heat_soak_certain is None:
        gap = artifact.unavailable.get("heat_soak_certain")
        why = "the runs did not do the same work" if gap is ThermalGap.WORK_DIFFERS else "there are no intervals to compare"
        return f"but {why}, {luck}"
    return f"but within the intervals of the first and last of them, {luck}"


def _likewise(artifact: ThermalArtifact) -> str:
    rise = artifact.longest_temperature_rise
    if artifact.heat_soak_by_temperature and rise is not None:
        return f"; start temperatures rose too, in {_stretch(rise, _temperature)}"
    return "" if artifact.heat_soak_by_temperature is None else "; start temperatures did not rise likewise"


def _pollution(artifact: ThermalArtifact) -> str:
    judged = [point for point in artifact.points if point.polluted is not None]
    if not judged:
        return "Without temperatures, pollution by heat was not judged."
    bad = [point for point in judged if point.polluted]
    unjudged = len(artifact.points) - len(judged)
    rest = f" ({count(unjudged, 'run')} could not be judged)" if unjudged else ""
    if not bad:
        return f"No run was polluted{rest}."
    reasons = Counter(reason for point in bad for reason in point.reasons if reason in _WHY_POLLUTED)
    why = listed([f"{times} {_WHY_POLLUTED[reason]}" for reason, times in sorted(reasons.items())])
    return f"{len(bad)} of {count(len(judged), 'run')} polluted: {why}{rest}."


def _cooldown(artifact: ThermalArtifact) -> str:
    target = artifact.thresholds.cooldown_target_c
    judged = [point for point in artifact.points if point.cooldown_ok is not None]
    if not judged:
        return "Cooldown was not judged: no start temperature was recorded."
    bad = [point for point in judged if not point.cooldown_ok]
    if not bad:
        return f"Every run with a start temperature began at or below {target:g} °C."
    hottest = max(r.thermal_start_c for point in bad for r in point.devices if r.thermal_start_c is not None)
    return f"{len(bad)} of {count(len(judged), 'run')} began above {target:g} °C (up to {hottest:g} °C)."


def _advice(artifact: ThermalArtifact) -> str:
    target = artifact.thresholds.cooldown_target_c
    if artifact.unavailable.get("heat_soak_certain") is ThermalGap.WORK_DIFFERS:
        return "Profile runs of one plan before concluding anything."
    seen = {reason for point in artifact.points for reason in point.reasons}
    if artifact.heat_soak_detected or seen & _HEAT:
        return f"Let the machine cool down to {target:g} °C before each run, and measure again."
    if ThermalReason.RUN_QUALITY_NOT_CLEAN in seen:
        return "No heat was seen: repeat the runs that are not CLEAN on a quiet machine."
    if artifact.heat_soak_detected is False and all(point.polluted is False for point in artifact.points):
        return "Thermally stable."
    return "Nothing speaks against these runs, but stability was not shown."


def live_recommendation(artifact: ThermalArtifact) -> str:
    """Return the sentences of a live watch: how hot, which way it goes, and whether a run may start."""
    point, limits = artifact.points[0], artifact.thresholds
    seconds = artifact.samples[-1].elapsed_seconds
    course = listed(
        [
            f"{reading.device.value} {_temperature(reading.thermal_start_c)} to {_temperature(reading.thermal_end_c)}, "
            f"at most {_temperature(reading.thermal_max_c)}"
            for reading in point.devices
        ]
    )
    ends = [reading.thermal_end_c for reading in point.devices if reading.thermal_end_c is not None]
    if not ends:
        return "No temperature was read at the end: nothing can be said."
    watched = f"Watched for {seconds:.1f} s: {course}."
    throttled = " The machine throttled meanwhile." if ThermalReason.THROTTLED in point.reasons else ""
    if max(ends) > limits.polluted_thermal_threshold_c:
        what = f"Above {limits.polluted_thermal_threshold_c:g} °C: what is measured now is polluted."
    elif max(ends) > limits.cooldown_target_c:
        what = f"Not below the target of {limits.cooldown_target_c:g} °C: wait before the next run."
    else:
        what = f"At or below the target of {limits.cooldown_target_c:g} °C: a run may start."
    return f"{watched}{throttled} {what}"


def _temperature(value: float | None) -> str:
    return "unknown" if value is None else f"{value:g} °C"
