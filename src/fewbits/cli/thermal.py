"""`fewbits thermal`: heat over recorded runs, or on this machine now. Also `scripts/thermal_stability_profiler.py`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fewbits.cli.frontier import add_history_arguments
from fewbits.cli.numbers import at_least_one, celsius, finite
from fewbits.core.errors import ExitCode, SpecError

if TYPE_CHECKING:
    from fewbits.records.thermal import ThermalArtifact
    from fewbits.records.trial import EnvironmentSample

STORAGE_ROOT = ".orket/durable/diagnostics/thermal_profiles"
OUT = "benchmarks/results/thermal/thermal_profile.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--summaries", metavar="A,B,C", help="sweep_summary.json files, in the order in which they were run")
    source.add_argument("--watch-seconds", type=finite, metavar="N", help="watch this machine's sensors instead, for N seconds")
    parser.add_argument("--interval-seconds", type=finite, default=1.0, metavar="S", help="seconds between live readings (1)")
    parser.add_argument("--model-id", metavar="MODEL", help="which model of the summaries (the first one's first); live: a label")
    parser.add_argument(
        "--quant-tag",
        metavar="TAG",
        help="which variant (the first summary's minimum viable, else its most precise); live: a label",
    )
    parser.add_argument(
        "--cooldown-target-c", type=celsius, default=50.0, metavar="C", help="hottest start temperature, degrees Celsius (50)"
    )
    parser.add_argument(
        "--polluted-thermal-threshold-c", type=celsius, default=85.0, metavar="C", help="hottest end temperature (85)"
    )
    parser.add_argument(
        "--monotonic-window", type=at_least_one, default=3, metavar="N", help="rises in a row that make a heat soak (3)"
    )
    lane = "label that the runs should carry; another one is noted, the measured label is kept (live: lab)"
    parser.add_argument("--execution-lane", choices=("ci", "lab"), help=lane)
    parser.add_argument("--vram-profile", choices=("safe", "balanced", "stress"), help="likewise (live: safe)")
    parser.add_argument("--out", type=Path, default=Path(OUT), metavar="FILE", help=f"the artifact ({OUT})")
    add_history_arguments(parser, STORAGE_ROOT)


def run(arguments: argparse.Namespace) -> ExitCode:
    """Profile, write, append, print."""
    from fewbits.analysis.thermal_series import ThermalLabels
    from fewbits.api import explorer
    from fewbits.core.codec import encode_pretty
    from fewbits.records.thermal import ThermalThresholds

    labels = ThermalLabels(arguments.model_id, arguments.quant_tag, arguments.execution_lane, arguments.vram_profile)
    thresholds = ThermalThresholds(
        cooldown_target_c=arguments.cooldown_target_c,
        polluted_thermal_threshold_c=arguments.polluted_thermal_threshold_c,
        monotonic_window=arguments.monotonic_window,
    )
    root = None if arguments.no_history else arguments.storage_root
    destination = explorer.Destination(arguments.out, root, arguments.keep_last or None)
    interrupted = False
    if arguments.watch_seconds is None:
        paths = _paths(arguments.summaries)
        artifact, written = explorer.profile_runs(paths, thresholds, labels, arguments.provenance_ref, destination)
    else:
        watch = explorer.Watch(arguments.watch_seconds, arguments.interval_seconds)
        artifact, written, interrupted = explorer.profile_machine(
            watch, thresholds, labels, arguments.provenance_ref, destination, notice=_show_live
        )
    if arguments.json:
        sys.stdout.write(encode_pretty(artifact).decode())
    else:
        _print(artifact, written)
    return ExitCode.INTERRUPTED if interrupted else ExitCode.OK


def _paths(text: str) -> list[Path]:
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise SpecError.single("--summaries", f"{text!r} holds an empty path", "give paths separated by single commas")
    return [Path(word) for word in words]


def _show_live(sample: EnvironmentSample) -> None:
    """Show a reading in place where somebody is watching."""
    if sys.stderr.isatty():
        words = [
            f"{name} {value:g} °C"
            for name, value in (("CPU", sample.temperature_c), ("GPU", sample.gpu_temperature_c))
            if value is not None
        ]
        print(f"\r\x1b[K{', '.join(words) or 'no reading'}", end="", file=sys.stderr, flush=True)


def _print(artifact: ThermalArtifact, written: list[Path]) -> None:
    from fewbits.report.escape import visible

    if sys.stderr.isatty() and artifact.samples:
        print(file=sys.stderr)
    print(visible(artifact.selection))
    for point in artifact.points:
        if point.total_latency is None and point.summary_path is None:
            continue
        latency = "unknown" if point.total_latency is None else f"{point.total_latency:.3f} s"
        heat = ", ".join(
            f"{reading.device.value} {_celsius(reading.thermal_start_c)} to {_celsius(reading.thermal_end_c)}"
            for reading in point.devices
        )
        reasons = " ".join(reason.value for reason in point.reasons)
        line = f"  run {point.run_index}  {latency}  {heat or 'no temperatures'}  {reasons}"
        print(f"{line.rstrip()}  ({visible(point.summary_path or '')})")
    for note in artifact.notes:
        print(f"  {note.code.value}: {visible(note.text)}")
    print(visible(artifact.recommendation))
    for path in written:
        print(path)


def _celsius(value: float | None) -> str:
    return "?" if value is None else f"{value:g} °C"
