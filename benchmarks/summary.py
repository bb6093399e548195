"""Summarising a large run: 100,000 journal rows, in a fresh process each time.

The rows come from one real row (the scripted runtime through the whole trial path), varied in everything that a summary reads.
"""

from __future__ import annotations

import itertools
import random
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.result import Result, judged, timed_command
from fewbits import api
from fewbits.core.codec import text_digest, to_builtins
from fewbits.core.files import atomic_write
from fewbits.probes.environment import EnvironmentProbe
from fewbits.probes.machine import usable_cores
from fewbits.probes.memory import GpuMemory
from fewbits.records.base import Bucket
from fewbits.records.plan import Plan, PlannedTrial
from fewbits.records.variant import Artifact, Variant
from fewbits.runtimes.base import ServerCatalogue
from fewbits.sweep.plan import planned_trials
from fewbits.sweep.pool import OpenModel
from fewbits.sweep.trial import Cell, Instruments, ask, record

TASKS = 160
REPETITIONS = 125
RUNS = 3
MAX_SECONDS = 2.0
_MODEL = "bench-model"
_BITS = {"F16": 16.0, "Q8_0": 8.5, "Q6_K": 6.6, "Q4_K_M": 4.9, "Q2_K": 3.2}
_BUILD = """
import resource, sys, time
from pathlib import Path
from fewbits.api import build_summary
from fewbits.store.run_directory import RunDirectory
started = time.perf_counter()
build_summary(RunDirectory(Path(sys.argv[1])))
print(time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def measure() -> list[Result]:
    """Write the run, then summarise it `RUNS` times."""
    with tempfile.TemporaryDirectory(prefix="fewbits-bench-") as folder:
        run = Path(folder) / "run"
        rows, size = write_run(Path(folder), run)
        seconds, peaks = zip(*(_build(run) for _ in range(RUNS)), strict=True)
    listed = ", ".join(f"{value:.2f}" for value in seconds)
    note = (
        f"build_summary on {rows} rows ({size / 1e6:.0f} MB): {listed} s; {rows / statistics.median(seconds):,.0f} rows/s, "
        f"{size / 1e6 / statistics.median(seconds):,.0f} MB/s, peak {max(peaks) / 1024:.0f} MiB"
    )
    return [judged("summary of 100,000 trials", statistics.median(seconds), MAX_SECONDS, "s", note)]


def _build(run: Path) -> tuple[float, int]:
    """Seconds inside `build_summary` and the process's peak resident set in KiB."""
    seconds, peak = timed_command([sys.executable, "-c", _BUILD, run])[1].split()
    return float(seconds), int(peak)


def write_run(folder: Path, run: Path) -> tuple[int, int]:
    """Write plan, manifests and journal of a finished run. Returns the journal's number of rows and of bytes."""
    prepared = _prepare(folder, run)
    if not isinstance(prepared.runtime, ServerCatalogue):
        msg = "the scripted runtime describes its variants"
        raise RuntimeError(msg)
    artifacts = {tag: prepared.runtime.artifact_for(_MODEL, tag) for tag in _BITS}
    run.mkdir()
    prepared.directory.write_plan(prepared.plan)
    for artifact in artifacts.values():
        prepared.directory.write_manifest(artifact)
    cells = planned_trials(prepared.plan)
    template = _real_row(prepared, cells[0], artifacts[cells[0].quant_tag])
    with prepared.directory.trials_path.open("wb") as journal:
        for row in _rows(template, prepared.plan, cells, artifacts):
            journal.write(row)
    return len(cells), prepared.directory.trials_path.stat().st_size


def _prepare(folder: Path, run: Path) -> api.PreparedSweep:
    buckets = itertools.cycle(Bucket)
    tasks = [
        {
            "id": f"task-{number:03d}",
            "bucket": next(buckets).value,
            "tier": 1 + number % 6,
            "prompt": f"Say {number}.",
            "checks": [{"kind": "number", "value": number}, {"kind": "regex", "pattern": "[0-9]"}],
        }
        for number in range(TASKS)
    ]
    reply = {
        "text": "It is 7, " + "as anybody can see who counts the lamps along the quay. " * 4,
        "prompt_tokens": 40,
        "output_tokens": 60,
        "cached_prompt_tokens": 0,
        "prompt_ms": 200.5,
        "predicted_ms": 900.25,
        "wall_seconds": 1.125,
        "first_output_seconds": 0.21,
    }
    sizes = {tag: {"bytes": int(bits * 16e6), "weights": 128_000_000, "bits_per_weight": bits} for tag, bits in _BITS.items()}
    bank = {"schema_version": "fewbits.task_bank.v1", "name": "bench", "version": "1", "tasks": tasks}
    script = {"schema_version": "fewbits.script.v1", "init_latency_seconds": 0.5, "default": reply, "variants": sizes}
    for name, document in (("bank.json", bank), ("script.json", script)):
        atomic_write(folder / name, msgspec.json.encode(document))
    flags = {
        "models": [_MODEL],
        "quants": list(_BITS),
        "reference_quant": "F16",
        "runs_per_quant": str(REPETITIONS),
        "runtime": "scripted",
        "script": str(folder / "script.json"),
        "task_bank": str(folder / "bank.json"),
        "out_dir": str(run),
        "canary_runs": "0",
    }
    return api.prepare_sweep(flags, None)


def _real_row(prepared: api.PreparedSweep, cell: PlannedTrial, artifact: Artifact) -> dict[str, Any]:
    """One trial through the whole path, as a tree with the timings object that llama.cpp's server adds."""
    session = prepared.runtime.open(Variant(artifact, None), prepared.plan.controls, 10.0)
    model = OpenModel(session, session.identity())
    probe = EnvironmentProbe()
    instruments = Instruments(environment=probe, gpu=GpuMemory(), cores=len(usable_cores()))
    task = prepared.tasks[cell.task_id]
    try:
        outcome = ask(model, task, prepared.plan, instruments)
        made = Cell(planned=cell, task=task, artifact=artifact, phase="matrix", attempt=1)
        row: dict[str, Any] = to_builtins(record(made, prepared.plan, model, outcome, instruments.cores))
    finally:
        session.close()
        probe.close()
    counts = {"cache_n": 0, "predicted_n": 60, "prompt_n": 40}
    rates = {"predicted_per_second": 66.64815, "predicted_per_token_ms": 15.004167, "prompt_per_second": 199.501247}
    row["telemetry"]["token_metrics"]["raw_timings"] |= {**counts, **rates, "prompt_per_token_ms": 5.0125}
    row["run_quality_status"], row["run_quality_reasons"] = "CLEAN", []  # whatever this machine did in that moment
    return row


def _rows(row: dict[str, Any], plan: Plan, cells: tuple[PlannedTrial, ...], artifacts: dict[str, Artifact]) -> Iterator[bytes]:
    """Vary the row over the plan: every cell its own identity, answer, score and times; one in fifty POLLUTED."""
    draw = random.Random(1337)
    tasks = {task.task_id: task for task in plan.tasks}
    telemetry, tokens = row["telemetry"], row["telemetry"]["token_metrics"]
    text = row["output_text"]
    encoder = msgspec.json.Encoder(order="sorted")
    for cell in cells:
        task, artifact = tasks[cell.task_id], artifacts[cell.quant_tag]
        prefill, decode = (
            draw.uniform(0.15, 0.25),
            draw.uniform(0.05, 0.1) * artifact.bits_per_weight if artifact.bits_per_weight else 1.0,
        )
        row.update(index=cell.index, block=cell.block, quant_tag=cell.quant_tag, task_id=cell.task_id, repetition=cell.repetition)
        row.update(task_digest=task.digest, bucket=task.bucket.value, tier=task.tier, bits_per_weight=artifact.bits_per_weight)
        row.update(variant_sha256=artifact.sha256, variant_bytes=artifact.bytes)
        row["trial_id"] = text_digest(f"{cell.index}")
        row["output_text"] = f"{text}{cell.index}"
        row["output_sha256"] = text_digest(row["output_text"])
        row["adherence_score"] = draw.choice((0.0, 0.5, 1.0, 1.0))
        polluted = cell.index % 50 == 0
        row["run_quality_status"] = "POLLUTED" if polluted else "CLEAN"
        row["run_quality_reasons"] = ["FOREIGN_CPU_LOAD"] if polluted else []
        telemetry.update(prefill_seconds=prefill, decode_seconds=decode, internal_model_seconds=prefill + decode)
        telemetry.update(total_latency=1.01 * (prefill + decode), orchestration_overhead_ratio=1 - 1 / 1.01)
        telemetry["time_to_first_token_seconds"] = prefill + 0.01
        tokens.update(prompt_tokens_per_second=40 / prefill, generation_tokens_per_second=60 / decode)
        yield encoder.encode(row) + b"\n"
