"""What the harness adds to a trial: a bare loop over `generate` against the whole path from planned cell to journal row."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.result import MODEL, SCHEME, Result, judged, notice, quartiles
from fewbits import api
from fewbits.probes.environment import EnvironmentProbe
from fewbits.probes.machine import usable_cores
from fewbits.probes.memory import GpuMemory
from fewbits.records.runtime import GenerateRequest
from fewbits.records.trial import RawReply
from fewbits.records.variant import Variant
from fewbits.store.journal import JournalWriter
from fewbits.sweep.guard import Guard
from fewbits.sweep.plan import planned_trials
from fewbits.sweep.pool import ModelPool
from fewbits.sweep.trial import Cell, Instruments, ask, record

PAIRS = 24
TASK_ID = "structured-036"  # no code to run in a sandbox, and an answer that fills the token limit
MAX_TOKENS = 64
MIN_OUTPUT_TOKENS = 48
MAX_EXTRA_PERCENT = 2.0
MAX_CPU_MS = 5.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One trial: `beyond` is (wall - engine) / engine, `cpu_ms` what this process (not the engine's) computed meanwhile."""

    beyond: float
    cpu_ms: float
    output_tokens: int


def measure() -> list[Result]:
    """Alternate `PAIRS` pairs on one open model. Raises `PrerequisiteError` without an engine."""
    with tempfile.TemporaryDirectory(prefix="fewbits-bench-") as folder:
        flags = {"models": [MODEL], "quants": [SCHEME], "task_ids": [TASK_ID], "max_tokens": str(MAX_TOKENS)}
        prepared = api.prepare_sweep({**flags, "out_dir": folder}, None)
        if prepared.quantizer is None:
            msg = "the llamacpp runtime has a quantizer"
            raise RuntimeError(msg)
        variant = prepared.quantizer.ensure(prepared.sources[MODEL], SCHEME, notice)
        bare, full = _alternate(prepared, variant, Path(folder) / "journal.jsonl")
    return _results(bare, full)


def _alternate(prepared: api.PreparedSweep, variant: Variant, journal: Path) -> tuple[list[Sample], list[Sample]]:
    """Run both loops in turn, each first as often as the other."""
    plan, task, key = prepared.plan, prepared.tasks[TASK_ID], (MODEL, SCHEME)
    probe = EnvironmentProbe()
    instruments = Instruments(environment=probe, gpu=GpuMemory(), cores=len(usable_cores()))
    pool = ModelPool(
        prepared.runtime,
        variants={key: variant},
        controls=plan.controls,
        load_timeout_seconds=plan.spec.load_timeout_seconds,
        request_timeout_seconds=plan.spec.trial_timeout_seconds,
        available_bytes=lambda: probe.sample().memory_available_bytes,
        on_change=probe.track,
        guard=Guard(plan, probe.sample, notice),
    )
    session = pool.get(key).session
    request = GenerateRequest(
        prompt=task.prompt, system=task.system, seed=plan.controls.seed, temperature=0.0, max_tokens=MAX_TOKENS
    )
    cell = Cell(planned=planned_trials(plan)[0], task=task, artifact=variant.artifact, phase="matrix", attempt=1)
    writer = JournalWriter(journal)

    def bare_loop() -> RawReply:
        return session.generate(request, plan.spec.trial_timeout_seconds)

    def trial_path() -> RawReply:
        model = pool.get(key)
        outcome = ask(model, task, plan, instruments)
        writer.append(record(cell, plan, model, outcome, instruments.cores))
        if outcome.reply is None:
            raise RuntimeError(outcome.failure)
        return outcome.reply

    loops = (bare_loop, trial_path)
    samples: tuple[list[Sample], list[Sample]] = ([], [])
    try:
        for loop in loops:
            loop()  # unmeasured: first use imports what the checks need
        for pair in range(PAIRS):
            for which in (0, 1) if pair % 2 == 0 else (1, 0):
                samples[which].append(_sample(loops[which]))
    finally:
        writer.close()
        pool.close()
        probe.close()
    return samples


def _sample(loop: Callable[[], RawReply]) -> Sample:
    cpu, started = time.process_time(), time.perf_counter()
    reply = loop()
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    if reply.prompt_ms is None or reply.predicted_ms is None or (reply.output_tokens or 0) < MIN_OUTPUT_TOKENS:
        msg = f"{TASK_ID} gave {reply.output_tokens} tokens and timings {reply.raw_timings}: no basis for a ratio"
        raise RuntimeError(msg)
    internal = (reply.prompt_ms + reply.predicted_ms) / 1000.0
    return Sample(beyond=(wall - internal) / internal, cpu_ms=cpu * 1000.0, output_tokens=reply.output_tokens or 0)


def _results(bare: list[Sample], full: list[Sample]) -> list[Result]:
    extra = [100.0 * (b.beyond - a.beyond) for a, b in zip(bare, full, strict=True)]
    cpu = [b.cpu_ms - a.cpu_ms for a, b in zip(bare, full, strict=True)]
    both = [100.0 * statistics.median(sample.beyond for sample in side) for side in (bare, full)]
    wall_note = (
        f"wall beyond the engine's own time: bare loop {both[0]:.2f} %, full trial {both[1]:.2f} %; median difference of {PAIRS} "
        f"pairs, quartiles {_span(extra)} %; {full[0].output_tokens} tokens out, {MODEL} {SCHEME}"
    )
    cpus = [statistics.median(sample.cpu_ms for sample in side) for side in (bare, full)]
    cpu_note = (
        f"CPU of this process per trial: bare loop {cpus[0]:.2f} ms, full trial {cpus[1]:.2f} ms; quartiles {_span(cpu)} ms"
    )
    return [
        judged("trial path beyond the bare loop, of engine time", statistics.median(extra), MAX_EXTRA_PERCENT, "%", wall_note),
        judged("trial path beyond the bare loop, CPU", statistics.median(cpu), MAX_CPU_MS, "ms", cpu_note),
    ]


def _span(values: list[float]) -> str:
    first, third = quartiles(values)
    return f"{first:.2f} to {third:.2f}"
