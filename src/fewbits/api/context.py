"""Context sweeps: the same questions in ever larger contexts, each context an ordinary sweep with a run folder of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from fewbits.api.context_artifacts import (
    TASKS_NAME,
    CeilingRequest,
    Failure,
    Variant,
    WrittenArtifacts,
    judge_contexts,
    read_context,
    write_artifacts,
)
from fewbits.api.explorer import Destination
from fewbits.api.sweeps import REPOSITORY_ROOT, PreparedSweep, make_variants, prepare_sweep, run_sweep, write_results
from fewbits.core.codec import decode, encode_pretty
from fewbits.core.errors import BackendError, SpecError, StoreError
from fewbits.core.files import atomic_write
from fewbits.probes.machine import usable_cores
from fewbits.records.context import ContextPlan, ContextReason, LoadOutcome, TokenDensity
from fewbits.records.plan import Plan, SweepSpec
from fewbits.records.task import TaskBank
from fewbits.records.variant import Variant as Weights
from fewbits.spec.load import load_spec
from fewbits.store.history import append_history
from fewbits.store.run_directory import RunDirectory
from fewbits.sweep.context_loads import try_load
from fewbits.sweep.guard import Guard
from fewbits.sweep.progress import SweepObserver
from fewbits.sweep.run import MAX_CONSECUTIVE_CRASHES
from fewbits.workloads.text import long_context
from fewbits.workloads.text.named_banks import open_bank

PLAN_NAME = "context_plan.json"
DEFAULT_ANSWER_TOKENS = 128
BASE_TIMEOUT_SECONDS = 120.0
SLOWEST_PROMPT_TOKENS_PER_SECOND = 10.0
"""What the default time for a trial allows for: reading the whole context at this rate, on top of the base."""
_DEFAULTS: Mapping[str, object] = {
    "canary_runs": "0",
    "evaluation_text": "none",
    "determinism_tasks": "0",
    "baselines": False,
    "max_tokens": str(DEFAULT_ANSWER_TOKENS),
}
"""How the sweep of one context differs from `fewbits sweep`, unless a flag says otherwise."""


@dataclass(frozen=True, slots=True)
class ContextRequest:
    """What a context sweep is asked for. `flags` are those of an ordinary sweep, by destination."""

    flags: Mapping[str, object]
    ceiling: CeilingRequest
    depths: tuple[float, ...]
    tasks_per_depth: int
    out_dir: Path
    history: Destination
    """Its `out` is not used: the artifacts lie in `out_dir`."""


@dataclass(frozen=True, slots=True)
class PreparedContextSweep:
    """A context sweep that was checked and has touched nothing yet."""

    request: ContextRequest
    smallest: PreparedSweep
    """The sweep of the smallest context, over the bank's own tasks: what the others are derived from."""
    tasks: long_context.LongTaskPlan
    inputs: Mapping[str, str]

    @property
    def spec(self) -> SweepSpec:
        """The settings that all contexts share."""
        return self.smallest.plan.spec

    @property
    def variants(self) -> tuple[Variant, ...]:
        """What is measured."""
        return self.spec.variant_keys


# --- planning --------------------------------------------------------------------------------------------------------


def prepare_context_sweep(request: ContextRequest) -> PreparedContextSweep:
    """Check everything that can be checked without an engine. Raises `SpecError` with what is wrong."""
    contexts = request.ceiling.contexts
    flags = _flags(request, contexts[0])
    spec = load_spec(flags, available_cores=usable_cores(), root=REPOSITORY_ROOT)
    if len(spec.models) != 1:
        message = f"{len(spec.models)} models, and tasks are cut to one model's tokens"
        raise SpecError.single("--model-id", message, "run it once per model, each with an --out-dir of its own")
    _check_depths(request.depths)
    bank = open_bank(spec.task_bank)
    sources = long_context.extraction_sources(bank.bank, len(request.depths) * request.tasks_per_depth)
    if not sources:
        message = "no extraction task of this bank has a passage, a blank line, and last the instruction"
        raise SpecError.single("--task-bank", message, "such tasks can be put into a longer text; see docs/context-sweep.md")
    smallest = prepare_sweep({**flags, "task_ids": [task.id for task in sources]}, None)
    tasks = long_context.LongTaskPlan(
        depths=request.depths,
        tasks_per_depth=request.tasks_per_depth,
        seed=spec.controls.seed,
        answer_tokens=spec.controls.max_tokens,
        sources=sources,
    )
    for blueprint in long_context.blueprints(tasks):
        long_context.filler_characters(blueprint, contexts[0], long_context.SPARSEST)
    source = smallest.sources[spec.models[0]]
    inputs = {
        "model": f"{source.model_id} {source.digest or ''}".strip(),
        "runtime": spec.runtime,
        "task bank": bank.digest,
        "extraction tasks": " ".join(task.id for task in sources),
        "depths": " ".join(f"{depth:g}" for depth in request.depths),
        "tasks per depth": str(request.tasks_per_depth),
        "seed": str(spec.controls.seed),
        "answer tokens": str(spec.controls.max_tokens),
    }
    return PreparedContextSweep(request, smallest, tasks, inputs)


def _check_depths(depths: tuple[float, ...]) -> None:
    hint = "for example 0.1,0.5,0.9"
    if not depths or list(depths) != sorted(set(depths)) or not all(0 <= depth <= 1 for depth in depths):
        raise SpecError.single("--depths", "depths are numbers from 0 to 1, each once, ascending", hint)
    if any(round(depth, 3) != depth for depth in depths) or len(depths) > long_context.MAX_DEPTHS:
        message = f"at most {long_context.MAX_DEPTHS} depths, with at most 3 decimals"
        raise SpecError.single("--depths", message, hint)


def _flags(request: ContextRequest, context: int) -> dict[str, object]:
    """The flags of the ordinary sweep that measures one context."""
    flags = {**_DEFAULTS, **request.flags}
    timeout = BASE_TIMEOUT_SECONDS + context / SLOWEST_PROMPT_TOKENS_PER_SECOND
    flags.setdefault("trial_timeout_seconds", f"{timeout:g}")
    return flags | {
        "context_size": str(context),
        "out_dir": str(run_folder(request.out_dir, context)),
        "summary_out": str(summary_path(request.out_dir, context)),
    }


def run_folder(out_dir: Path, context: int) -> Path:
    """Where the sweep of one context lies."""
    return out_dir / f"context_{context}"


def summary_path(out_dir: Path, context: int) -> Path:
    """Where the summary of one context lies."""
    return out_dir / f"context_{context}_summary.json"


def dry_run_context(prepared: PreparedContextSweep) -> dict[str, Any]:
    """What would be run, as a document. Touches nothing; prompt lengths are those aimed at."""
    request, spec = prepared.request, prepared.spec
    blueprints = long_context.blueprints(prepared.tasks)
    rows = []
    for context in request.ceiling.contexts:
        flags = _flags(request, context)
        target = [round(long_context.FILL_TARGET * (context - blueprint.answer_tokens)) for blueprint in blueprints]
        rows.append(
            {
                "context": context,
                "prompt_tokens": [min(target), max(target)],
                "trial_timeout_seconds": float(str(flags["trial_timeout_seconds"])),
                "run_folder": Path(str(flags["out_dir"])).as_posix(),
                "summary": Path(str(flags["summary_out"])).as_posix(),
            }
        )
    per_context = len(blueprints) * len(prepared.variants) * spec.runs_per_quant
    return {
        "model_id": spec.models[0],
        "quant_tags": list(spec.quants),
        "runtime": spec.runtime,
        "execution_lane": spec.execution_lane.value,
        "vram_profile": spec.vram_profile.value,
        "thresholds": msgspec.to_builtins(request.ceiling.thresholds),
        "tasks": [blueprint.task_id for blueprint in blueprints],
        "extraction_tasks": [task.id for task in prepared.tasks.sources],
        "contexts": rows,
        "trials_per_context": per_context,
        "trials_total": per_context * len(rows),
        "artifacts": [(request.out_dir / name).as_posix() for name in _ARTIFACT_NAMES],
    }


_ARTIFACT_NAMES = (PLAN_NAME, "context_ceiling.json", "context_sweep_rollup.json", "context_report.md")


# --- running ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Progress:
    """What is known so far: the plan on disk, and why variants have nothing to show at some contexts."""

    plan: ContextPlan
    path: Path
    failures: dict[tuple[Variant, int], Failure] = field(default_factory=dict)
    stopped: dict[Variant, int] = field(default_factory=dict)
    """Variant -> the context that it could not be run at; larger ones are not tried."""

    def keep(self, **changes: object) -> None:
        """Change the plan and write it."""
        self.plan = msgspec.structs.replace(self.plan, **changes)
        atomic_write(self.path, encode_pretty(self.plan))

    def fail(self, variant: Variant, context: int, failure: Failure, *, stop: bool) -> None:
        """Note why a variant has nothing to show at a context."""
        self.failures[variant, context] = failure
        if stop:
            self.stopped[variant] = context


def run_context_sweep(
    prepared: PreparedContextSweep, observer: SweepObserver, *, fresh: bool = False
) -> tuple[WrittenArtifacts, list[Path]]:
    """Measure every context that the folder does not hold yet, judge them, write the artifacts; also returns the histories.

    A context that the engine cannot load or keep running fails, larger ones of that variant are not tried, and the artifacts are
    written all the same. Raises `StoreError` when the folder holds a sweep of other settings and `fresh` is not set, and what
    `run_sweep` raises, except `BackendError`.
    """
    request = prepared.request
    out = request.out_dir
    with RunDirectory(out).locked():
        if fresh:
            _set_aside(request, observer)
        progress = _open_plan(prepared)
        weights = make_variants(prepared.smallest, observer)
        for context in request.ceiling.contexts:
            _run_context(prepared, context, weights, progress, observer)
        recorded = {
            context: read_context(context, summary_path(out, context), run_folder(out, context), out)
            for context in request.ceiling.contexts
            if any((variant, context) not in progress.failures or _has_trials(prepared, context) for variant in prepared.variants)
        }
        labels = {
            "hardware_fingerprint": prepared.smallest.plan.hardware_fingerprint,
            "execution_lane": prepared.spec.execution_lane.value,
            "vram_profile": prepared.spec.vram_profile.value,
        }
        artifact = judge_contexts(request.ceiling, recorded, prepared.variants, progress.failures, labels)
        written = write_artifacts(artifact, out)
    return written, _append_histories(written, request.history)


def _append_histories(written: WrittenArtifacts, history: Destination) -> list[Path]:
    """Append each variant's ceiling to its own history, unless nothing was found out that is not there already."""
    if history.storage_root is None or not written.changed:
        return []
    artifact = written.ceiling
    paths = []
    for ceiling in artifact.ceilings:
        key = (
            artifact.hardware_fingerprint,
            artifact.execution_lane,
            artifact.vram_profile,
            ceiling.model_id,
            ceiling.quant_tag,
        )
        entry = msgspec.structs.replace(artifact, ceilings=(ceiling,))
        paths.append(append_history(history.storage_root, key, entry, keep_last=history.keep_last))
    return paths


def _set_aside(request: ContextRequest, observer: SweepObserver) -> None:
    """Move each context's earlier run, with its tasks and summary, into its folder's `superseded/<n>/`, and forget the plan."""
    for context in request.ceiling.contexts:
        folder = run_folder(request.out_dir, context)
        shelf = RunDirectory(folder).set_aside()
        if shelf is None:
            continue
        observer.notice(f"the earlier run was moved to {shelf}")
        for left in (folder / TASKS_NAME, summary_path(request.out_dir, context)):
            if left.exists():
                left.rename(shelf / left.name)
    (request.out_dir / PLAN_NAME).unlink(missing_ok=True)


def _open_plan(prepared: PreparedContextSweep) -> _Progress:
    """Take the folder's plan up, or begin one. Raises `StoreError` when it is the plan of other tasks."""
    path = prepared.request.out_dir / PLAN_NAME
    inputs = dict(prepared.inputs)
    if not path.exists():
        return _Progress(ContextPlan(inputs=inputs, densities=()), path)
    try:
        plan = decode(path.read_bytes(), ContextPlan, str(path))
    except OSError as error:
        msg = f"cannot read {path}: {error.strerror or error}"
        raise StoreError(msg) from error
    if plan.inputs != inputs:
        names = sorted(plan.inputs.keys() | inputs.keys())
        lines = [
            f"\n  - {name}: {inputs.get(name, 'none')} now, {plan.inputs.get(name, 'none')} then"
            for name in names
            if inputs.get(name) != plan.inputs.get(name)
        ]
        msg = (
            f"{prepared.request.out_dir} holds a context sweep of other tasks. What differs:{''.join(lines)}\n"
            "Use --fresh to start over (earlier runs are kept in superseded/), or another --out-dir."
        )
        raise StoreError(msg)
    return _Progress(plan, path)


def _run_context(
    prepared: PreparedContextSweep,
    context: int,
    weights: Mapping[Variant, Weights],
    progress: _Progress,
    observer: SweepObserver,
) -> None:
    """Try each variant alone at a context, then sweep those that can be loaded."""
    ready = [variant for variant in prepared.variants if _is_ready(prepared, context, weights[variant], progress, observer)]
    if not ready:
        return
    density = progress.plan.densities[0]
    bank = long_context.long_bank(prepared.tasks, context, density)
    folder = run_folder(prepared.request.out_dir, context)
    _write_bank(bank, folder / TASKS_NAME)
    flags = _flags(prepared.request, context) | {
        "task_bank": str(folder / TASKS_NAME),
        "quants": [tag for _, tag in ready],
    }
    sweep = prepare_sweep(flags, None)
    observer.notice(f"context {context:,}: {len(bank.tasks)} tasks, {', '.join(tag for _, tag in ready)}")
    try:
        run_sweep(sweep, observer)
    except BackendError as error:
        observer.notice(f"context {context:,} could not be finished: {error}")
        _note_breakdown(sweep, context, ready, str(error), progress)


def _write_bank(bank: TaskBank, path: Path) -> None:
    data = encode_pretty(bank)
    if not path.exists() or path.read_bytes() != data:
        atomic_write(path, data)


def _note_breakdown(sweep: PreparedSweep, context: int, ready: list[Variant], error: str, progress: _Progress) -> None:
    """Keep what was measured before the engine broke down; variants that it broke or cut short fail, and go no further."""
    summary = write_results(sweep.directory)
    whole = {
        (session.model_id, row.quant_tag)
        for session in summary.sessions
        for row in session.per_quant
        if row.test_runs >= row.expected_runs and row.status_counts.crashed < MAX_CONSECUTIVE_CRASHES
    }
    for variant in ready:
        if variant not in whole:
            progress.fail(variant, context, Failure(ContextReason.ENGINE_FAILED, error), stop=True)


def _has_trials(prepared: PreparedContextSweep, context: int) -> bool:
    return RunDirectory(run_folder(prepared.request.out_dir, context)).trials_path.exists()


def _is_ready(
    prepared: PreparedContextSweep, context: int, weights: Weights, progress: _Progress, observer: SweepObserver
) -> bool:
    """Whether a variant can be run at a context; if not, the reason is noted."""
    variant = (weights.artifact.model_id, weights.artifact.scheme)
    before = progress.stopped.get(variant)
    if before is not None:
        failure = Failure(ContextReason.NOT_RUN, f"{before:,} tokens could not be run")
        progress.fail(variant, context, failure, stop=False)
        return False
    outcome = _load_outcome(prepared, context, weights, progress, observer)
    if outcome.failure:
        loaded_before = context != prepared.request.ceiling.contexts[0]
        reason = ContextReason.CONTEXT_TOO_LARGE if loaded_before else ContextReason.LOAD_FAILED
        observer.notice(f"context {context:,}: {variant[1]} could not be loaded, so larger ones are not tried. {outcome.failure}")
        progress.fail(variant, context, Failure(reason, outcome.failure), stop=True)
        return False
    effective = outcome.context_effective
    if effective is not None and effective < context:
        words = f"the engine gave {effective:,} of {context:,} tokens, so no trial was run"
        observer.notice(f"context {context:,}: {variant[1]}: {words}")
        progress.fail(variant, context, Failure(ContextReason.CONTEXT_NOT_APPLIED, words, effective), stop=False)
        return False
    return True


def _load_outcome(
    prepared: PreparedContextSweep, context: int, weights: Weights, progress: _Progress, observer: SweepObserver
) -> LoadOutcome:
    """Load a variant at a context, unless the plan says how that went; count tokens while it is open, if nobody has yet.

    A failure is tried again where no trial of this context was run; afterwards it stands, since the plan of the context's sweep
    is made for the variants that loaded.
    """
    artifact = weights.artifact
    known = next((each for each in progress.plan.loads if (each.context, each.quant_tag) == (context, artifact.scheme)), None)
    calibrated = bool(progress.plan.densities)
    if known is not None and calibrated and (not known.failure or _has_trials(prepared, context)):
        return known
    plan = _plan_at(prepared, context)
    refusal = _memory_refusal(plan, weights, observer)
    if refusal:
        outcome = LoadOutcome(
            context=context, model_id=artifact.model_id, quant_tag=artifact.scheme, failure=refusal, context_effective=None
        )
    else:
        texts = () if calibrated else long_context.calibration_prompts(prepared.tasks, context)
        tried = try_load(prepared.smallest.runtime, weights, plan, texts)
        outcome = tried.outcome
        if texts and not outcome.failure:
            density = _density(artifact.model_id, texts, tried.tokens, tried.count_problem)
            observer.notice(_density_words(density))
            progress.keep(densities=(density,))
    others = tuple(each for each in progress.plan.loads if each is not known)
    progress.keep(loads=(*others, outcome))
    return outcome


def _plan_at(prepared: PreparedContextSweep, context: int) -> Plan:
    """The plan of the smallest context, with this context's size and time limit: enough to load a model by."""
    plan = prepared.smallest.plan
    timeout = float(str(_flags(prepared.request, context)["trial_timeout_seconds"]))
    return msgspec.structs.replace(
        plan,
        controls=msgspec.structs.replace(plan.controls, context_size=context),
        spec=msgspec.structs.replace(plan.spec, trial_timeout_seconds=timeout),
    )


def _memory_refusal(plan: Plan, weights: Weights, observer: SweepObserver) -> str:
    """What the live guard says about loading this variant at this context; empty when it may be loaded, or is off."""
    if not plan.spec.guard.enabled:
        return ""
    from fewbits.probes.environment import EnvironmentProbe

    probe = EnvironmentProbe()
    try:
        return Guard(plan, probe.sample, observer.notice).refuses(weights, ())
    finally:
        probe.close()


def _density(model_id: str, texts: tuple[str, ...], tokens: tuple[int | None, ...] | None, problem: str) -> TokenDensity:
    if tokens is None or any(count is None for count in tokens):
        return long_context.assumed_density(model_id, problem or "the engine counts no prompt tokens")
    few, many, fixed = texts
    return long_context.measured_density(model_id, (few, many, fixed), tokens)


def _density_words(density: TokenDensity) -> str:
    rate = f"{1 / density.filler_tokens_per_character:.1f} characters per token"
    return f"token count: {rate}" if density.measured else f"token count: assuming {rate}, because {density.detail}"


def anything_ran(written: WrittenArtifacts) -> bool:
    """Whether any context of any variant has a trial."""
    return any(point.trials for ceiling in written.ceiling.ceilings for point in ceiling.points)
