"""Explorer artifacts: the frontier of a summary, the heat of a series of runs or of this machine now; each with its history."""

from __future__ import annotations

import datetime
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fewbits import __version__
from fewbits.analysis.frontier_artifact import frontier_artifact
from fewbits.analysis.thermal import has_sensor, profile_series, profile_watch
from fewbits.analysis.thermal_series import ThermalLabels, select_series
from fewbits.core.codec import encode_pretty
from fewbits.core.errors import PrerequisiteError, Problem, SpecError
from fewbits.core.files import atomic_write
from fewbits.probes.machine import hardware_fingerprint
from fewbits.records.explorer import ArtifactProvenance, ExplorerArtifact
from fewbits.records.frontier_artifact import FrontierArtifact
from fewbits.records.provenance import SourceFile
from fewbits.records.thermal import ThermalArtifact, ThermalThresholds
from fewbits.records.trial import EnvironmentSample
from fewbits.store.history import append_history
from fewbits.store.summaries import LoadedSummary, read_summary

MAX_SAMPLES = 3600
"""Live readings per artifact: an hour of seconds. A history of artifacts has to stay readable."""
MAX_WATCH_SECONDS = 86_400.0
MIN_INTERVAL_SECONDS = 0.01
HOTTEST_SENSIBLE_C = 150.0
"""No sensor of a working machine reads this: a limit of that much is a slip of the keyboard."""


@dataclass(frozen=True, slots=True)
class Destination:
    """Where an artifact goes: a file of its own, and a folder of histories (`None`: no history)."""

    out: Path
    storage_root: Path | None
    keep_last: int | None
    """Artifacts kept per history; `None`: all."""


@dataclass(frozen=True, slots=True)
class Watch:
    """How long to look at the sensors, and how often. Seconds."""

    seconds: float
    interval_seconds: float


def generated_at() -> str:
    """Return now in UTC, ISO 8601; the moment in `SOURCE_DATE_EPOCH` where that is set. Raises `SpecError` for a bad one."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    try:
        moment = datetime.datetime.fromtimestamp(int(epoch), datetime.UTC) if epoch else datetime.datetime.now(datetime.UTC)
    except (ValueError, OverflowError, OSError) as error:
        what = f"{epoch!r} is no number of seconds since 1970"
        raise SpecError.single("SOURCE_DATE_EPOCH", what, "unset it, or give whole seconds") from error
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def explore_frontier(summary_path: Path, provenance_ref: str, destination: Destination) -> tuple[FrontierArtifact, list[Path]]:
    """Write the frontier artifact of a summary; returns it and every path written. Raises `SpecError`, `StoreError`."""
    _check(_bad_ref(provenance_ref), *_bad_destination(destination, [summary_path]))
    loaded = _readable(read_summary(summary_path))
    artifact = frontier_artifact(
        loaded.summary,
        provenance=_provenance(provenance_ref, [loaded]),
        source_summary=loaded.source.path,
        generated_at=generated_at(),
    )
    key = (artifact.hardware_fingerprint, artifact.execution_lane, artifact.vram_profile)
    return artifact, _write(artifact, key, destination)


def profile_runs(
    summary_paths: Sequence[Path],
    thresholds: ThermalThresholds,
    labels: ThermalLabels,
    provenance_ref: str,
    destination: Destination,
) -> tuple[ThermalArtifact, list[Path]]:
    """Write the thermal profile of recorded runs, in the order given; returns it and every path written.

    Raises `SpecError` (with every problem found) and `StoreError`.
    """
    _check(_bad_ref(provenance_ref), *_bad_thresholds(thresholds), *_bad_destination(destination, summary_paths))
    if not summary_paths:
        raise SpecError.single("--summaries", "no summary was given", "give their paths, separated by commas, in run order")
    loaded = [_readable(read_summary(path, "--summaries")) for path in summary_paths]
    series = select_series([(one.summary, one.source) for one in loaded], labels)
    provenance = _provenance(provenance_ref, loaded)
    artifact = profile_series(series, thresholds, provenance=provenance, generated_at=generated_at())
    return artifact, _write(artifact, _thermal_key(artifact), destination)


def profile_machine(
    watch: Watch,
    thresholds: ThermalThresholds,
    labels: ThermalLabels,
    provenance_ref: str,
    destination: Destination,
    *,
    sample: Callable[[], EnvironmentSample] | None = None,
    sleep: Callable[[float], None] = time.sleep,
    notice: Callable[[EnvironmentSample], None] = lambda _: None,
) -> tuple[ThermalArtifact, list[Path], bool]:
    """Watch this machine's sensors and write the profile; returns it, every path written, and whether Ctrl-C ended it early.

    `sample` and `sleep` stand in for the sensors and the clock. Raises `PrerequisiteError` where there is no sensor; nothing is
    written then.
    """
    _check(_bad_ref(provenance_ref), *_bad_thresholds(thresholds), *_bad_watch(watch), *_bad_destination(destination, ()))
    samples, interrupted = _watched(watch, sample or _machine_sampler(), sleep, notice)
    artifact = profile_watch(
        samples,
        thresholds,
        labels=labels,
        hardware_fingerprint=hardware_fingerprint(),
        provenance=ArtifactProvenance(ref=provenance_ref, sources=(), fewbits_version=__version__),
        generated_at=generated_at(),
        interrupted=interrupted,
    )
    return artifact, _write(artifact, _thermal_key(artifact), destination), interrupted


def _machine_sampler() -> Callable[[], EnvironmentSample]:
    from fewbits.probes.environment import EnvironmentProbe

    return EnvironmentProbe().sample


def _watched(
    watch: Watch,
    sample: Callable[[], EnvironmentSample],
    sleep: Callable[[float], None],
    notice: Callable[[EnvironmentSample], None],
) -> tuple[list[EnvironmentSample], bool]:
    """Take samples at fixed moments from the first one on, so that slow readings do not add up. Ctrl-C keeps what is there."""
    samples = [sample()]
    if not has_sensor(samples[0]):
        what = "SKIP: this machine shows neither a CPU package temperature nor an NVIDIA GPU, so there is nothing to watch"
        remedy = "Run it on a machine whose kernel lists coretemp or k10temp, or give recorded runs with --summaries"
        raise PrerequisiteError(what, remedy)
    notice(samples[0])
    began = samples[0].monotonic_seconds
    try:
        for step in range(1, math.floor(watch.seconds / watch.interval_seconds + 1e-9) + 1):
            sleep(max(0.0, began + step * watch.interval_seconds - samples[-1].monotonic_seconds))
            samples.append(sample())
            notice(samples[-1])
    except KeyboardInterrupt:
        return samples, True
    return samples, False


def _thermal_key(artifact: ThermalArtifact) -> tuple[str, ...]:
    """A live watch that was not told a model or variant has a history of its own."""
    labels = (artifact.hardware_fingerprint, artifact.execution_lane, artifact.vram_profile)
    return (*labels, artifact.model_id or "(live)", artifact.quant_tag or "(live)")


def _write(artifact: ExplorerArtifact, key: Sequence[str], destination: Destination) -> list[Path]:
    """Write the file, then append to the history: a failure in between is mended by the same command, without a double entry."""
    atomic_write(destination.out, encode_pretty(artifact))
    if destination.storage_root is None:
        return [destination.out]
    return [destination.out, append_history(destination.storage_root, key, artifact, keep_last=destination.keep_last)]


def _provenance(ref: str, loaded: Sequence[LoadedSummary]) -> ArtifactProvenance:
    commits = {one.summary.commit_sha for one in loaded}
    return ArtifactProvenance(
        ref=ref,
        sources=tuple(one.source for one in loaded),
        commit_sha=commits.pop() if len(commits) == 1 else None,
        fewbits_version=__version__,
    )


def _readable(loaded: LoadedSummary) -> LoadedSummary:
    """Replace bytes of the path that are no UTF-8: JSON cannot hold them."""
    path = loaded.source.path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    source: SourceFile = msgspec.structs.replace(loaded.source, path=path)
    return LoadedSummary(loaded.summary, source)


def _check(*problems: Problem | None) -> None:
    found = [problem for problem in problems if problem is not None]
    if found:
        raise SpecError(found)


def _bad_ref(ref: str) -> Problem | None:
    try:
        ref.encode()
    except UnicodeEncodeError:
        return Problem("--provenance-ref", "it holds bytes that are no UTF-8", "give plain text, like local-run:manual")
    return None


def _bad_destination(destination: Destination, inputs: Sequence[Path]) -> list[Problem]:
    problems = []
    if any(destination.out.resolve() == path.resolve() for path in inputs):
        problems.append(Problem("--out", f"{destination.out} is one of the summaries that are read", "choose another file"))
    if destination.keep_last is not None and destination.keep_last < 1:
        problems.append(Problem("--keep-last", f"{destination.keep_last} would keep nothing", "give 1 or more, or 0 to keep all"))
    return problems


def _bad_thresholds(thresholds: ThermalThresholds) -> list[Problem]:
    problems = []
    for flag, value in (
        ("--cooldown-target-c", thresholds.cooldown_target_c),
        ("--polluted-thermal-threshold-c", thresholds.polluted_thermal_threshold_c),
    ):
        if not (math.isfinite(value) and 0 < value < HOTTEST_SENSIBLE_C):
            what = f"{value:g} is no temperature to aim at"
            problems.append(Problem(flag, what, f"give degrees Celsius between 0 and {HOTTEST_SENSIBLE_C:g}"))
    if thresholds.monotonic_window < 1:
        what = f"{thresholds.monotonic_window} rises in a row mean nothing"
        problems.append(Problem("--monotonic-window", what, "give 1 or more"))
    return problems


def _bad_watch(watch: Watch) -> list[Problem]:
    problems = []
    if not (math.isfinite(watch.seconds) and 0 < watch.seconds <= MAX_WATCH_SECONDS):
        hint = f"give seconds above 0, at most {MAX_WATCH_SECONDS:g}"
        problems.append(Problem("--watch-seconds", f"{watch.seconds:g} is no time to watch", hint))
    if not (math.isfinite(watch.interval_seconds) and watch.interval_seconds >= MIN_INTERVAL_SECONDS):
        hint = f"give at least {MIN_INTERVAL_SECONDS:g} seconds"
        problems.append(Problem("--interval-seconds", f"{watch.interval_seconds:g} is no interval", hint))
    elif math.isfinite(watch.seconds) and watch.seconds / watch.interval_seconds > MAX_SAMPLES:
        what = f"{watch.seconds:g} s every {watch.interval_seconds:g} s are more than {MAX_SAMPLES} readings"
        problems.append(Problem("--interval-seconds", what, f"give at least {watch.seconds / MAX_SAMPLES:.3g}"))
    return problems
