"""Resolve a spec into a plan, pure: which trials, in which order, under which digest, writing which files.

Trials run in blocks. A block is one task of one repetition where all variants fit into memory together, else a few; every variant
answers the whole block before the next block starts, in an order that is drawn anew for each block. Slow drift and heat then fall
on all variants alike, and ratios between variants can be taken inside a block.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import msgspec

from fewbits.analysis.items import item_blocks, item_order, keyed_shuffle
from fewbits.core.codec import digest, to_builtins
from fewbits.core.errors import Problem, SpecError
from fewbits.core.files import safe_name
from fewbits.records.base import Unavailable
from fewbits.records.divergence import EvaluationText
from fewbits.records.plan import Controls, Plan, PlannedTask, PlannedTrial, SweepSpec
from fewbits.records.task import Task, task_digest
from fewbits.records.variant import ModelSource
from fewbits.spec.affinity import parse_cores

SWAPPING_BLOCK_TASKS = 5
"""Tasks per block where variants swap: small enough that the machine stays the same within a block, large enough that loading a
variant once per block does not dominate."""
_RESIDENT_SHARE = 0.6
"""Of the machine's memory, what all variants together may need to count as resident."""
_RESIDENT_FACTOR = 1.25
"""Weights plus compute buffers and KV cache, as a multiple of the file."""

_NOT_IN_DIGEST = (
    "baselines",
    "block_tasks",
    "control_profile",
    "description",
    "models",
    "out_dir",
    "script",
    "selection",
    "sidecar",
    "summary_out",
    "task_bank",
)
"""Fields of the spec that the plan digest leaves out: paths and words, what it covers in resolved form instead, and what is only
compared or measured beside the trials."""

_PLACES = ("annotations", "images", "calibration_source", "pages")
"""Of the settings of detection and extraction, paths and words: tasks and digests pin what lies there."""


def build_plan(
    spec: SweepSpec,
    models: Sequence[ModelSource],
    tasks: Sequence[Task],
    *,
    bank_digest: str,
    cores: int,
    fingerprint: str,
    commit_sha: str | None,
    block_tasks: int = SWAPPING_BLOCK_TASKS,
    evaluation_text: EvaluationText | None = None,
) -> Plan:
    """Resolve a spec on a machine. `models` are the spec's, resolved, in its order; `tasks` are the selected ones, in bank order.

    `block_tasks` is what the spec's `None` resolves to (see `resolve_block_tasks`). `cores` (at least 1) is what `threads = None`
    resolves to, or fewer where the affinity policy lists fewer. Raises `SpecError` when no task is selected, an id is there
    twice, or the canary's task is not among them.
    """
    if tuple(source.model_id for source in models) != spec.models:
        msg = f"the resolved models are not the spec's: {[source.model_id for source in models]}, {list(spec.models)}"
        raise ValueError(msg)
    _check_tasks(spec, tasks)
    planned = tuple(
        PlannedTask(task_id=task.id, revision=task.revision, digest=task_digest(task), bucket=task.bucket, tier=int(task.tier))
        for task in tasks
    )
    controls = resolve_controls(spec.controls, cores)
    block_tasks = spec.block_tasks or block_tasks
    asked = min(len(planned), (spec.decide.enabled and spec.decide.maximum_items) or len(planned))
    return Plan(
        digest=plan_digest(
            spec,
            models=models,
            tasks=planned,
            controls=controls,
            fingerprint=fingerprint,
            block_tasks=block_tasks,
            evaluation_text=evaluation_text,
        ),
        spec=spec,
        models=tuple(models),
        tasks=planned,
        task_bank_digest=bank_digest,
        controls=controls,
        hardware_fingerprint=fingerprint,
        commit_sha=commit_sha,
        trials_total=len(models) * len(spec.quants) * asked * spec.runs_per_quant,
        block_tasks=block_tasks,
        evaluation_text=evaluation_text,
        artifacts=artifact_paths(spec, evaluation_text),
    )


def _check_tasks(spec: SweepSpec, tasks: Sequence[Task]) -> None:
    ids = Counter(task.id for task in tasks)
    problems = [
        Problem("task_bank", f"task id {task_id!r} is there {count} times", "ids are unique in a bank")
        for task_id, count in ids.items()
        if count > 1
    ]
    problems += [
        Problem("task_ids", f"no selected task has the id {task_id!r}", "check the id, or drop the other filters")
        for task_id in spec.selection.ids
        if task_id not in ids
    ]
    if not tasks:
        problems.append(Problem("task_bank", "the selection leaves no task", "loosen buckets, tiers, task_ids or id bounds"))
    elif spec.canary.runs > 0 and spec.canary.task_id is not None and spec.canary.task_id not in ids:
        problems.append(
            Problem("canary_task_id", f"{spec.canary.task_id!r} is not among the selected tasks", "choose one that is")
        )
    if problems:
        raise SpecError(problems)


def resolve_controls(controls: Controls, cores: int) -> Controls:
    """Fill in `threads`: the cores that may be used, or the number that the affinity policy lists if that is fewer."""
    if controls.threads is not None:
        return controls
    pinned = parse_cores(controls.affinity_policy)
    return msgspec.structs.replace(controls, threads=cores if pinned is None else min(cores, len(pinned)))


def resolve_block_tasks(variant_bytes: Sequence[int | None], memory_bytes: int) -> int:
    """Return the tasks per block: 1 where the variants of a model stay resident together, else `SWAPPING_BLOCK_TASKS`.

    `variant_bytes` are the expected file sizes of one model's variants; an unknown one (a server's) counts as not resident.
    """
    known = [size for size in variant_bytes if size is not None]
    resident = len(known) == len(variant_bytes) and sum(known) * _RESIDENT_FACTOR <= memory_bytes * _RESIDENT_SHARE
    return 1 if resident else SWAPPING_BLOCK_TASKS


def plan_digest(
    spec: SweepSpec,
    *,
    models: Sequence[ModelSource],
    tasks: Sequence[PlannedTask],
    controls: Controls,
    fingerprint: str,
    block_tasks: int,
    evaluation_text: EvaluationText | None,
) -> str:
    """Return the identity of what will be measured: sha256 hex digits.

    Covers the machine's fingerprint, models (name and content digest), tasks (content and order), and every field of the spec
    except paths and free text; a new field is covered unless it is named in `_NOT_IN_DIGEST`. Covers neither the commit nor the
    clock, so a plan reads the same when it is made again.
    """
    settings = {key: value for key, value in to_builtins(spec).items() if key not in _NOT_IN_DIGEST}
    settings["controls"] = controls
    for kind in ("detection", "extraction"):
        own = settings.pop(kind)
        if own is not None:
            settings[kind] = {key: value for key, value in own.items() if key not in _PLACES}
    if evaluation_text is not None:  # by its content; where it lies does not matter
        settings["divergence"]["text"] = evaluation_text.digest
    return digest(
        {
            "schema": "fewbits.plan.v1",
            "settings": settings,
            "models": [[source.model_id, source.kind, source.digest, source.bytes] for source in models],
            "tasks": tasks,
            "block_tasks": block_tasks,
            "hardware_fingerprint": fingerprint,
        }
    )


def artifact_paths(spec: SweepSpec, evaluation_text: EvaluationText | None) -> dict[str, str]:
    """Every file that the sweep will write, by role. Relative when `out_dir` is."""
    run = PurePath(spec.out_dir)
    paths = {
        "plan": run / "plan.json",
        "trials": run / "trials.jsonl",
        "summary": PurePath(spec.summary_out),
        "report": run / "sweep_report.md",
        "scatter": run / "sweep_scatter.json",
    }
    if evaluation_text is not None:
        paths["divergence"] = run / "divergence.jsonl"
    if spec.canary.runs > 0:
        paths["canary"] = run / "canary.jsonl"
    if spec.baselines.enabled:
        paths["baselines"] = run / "baselines.json"
    if spec.sidecar.profile is not None:
        paths["sidecar"] = run / "sidecar.jsonl"
    for model_id in spec.models:
        paths[f"frontier {model_id}"] = run / f"sweep_frontier_{safe_name(model_id)}.svg"
        for tag in spec.quants:
            paths[f"manifest {model_id} {tag}"] = run / "manifests" / safe_name(model_id) / f"{safe_name(tag)}.json"
    return {role: path.as_posix() for role, path in paths.items()}


def planned_trials(plan: Plan) -> tuple[PlannedTrial, ...]:
    """List every trial of the full matrix in run order: each (model, quant, task, repetition) exactly once.

    By model, then repetition, then block; inside a block by variant, in an order that depends only on the seed, the block's
    number and the tags. `block` numbers run through the whole sweep and are shared by all variants. When deciding, a block holds
    all repetitions of its tasks, since a verdict may fall right after it.
    """
    trials: list[PlannedTrial] = []
    runs = range(plan.spec.runs_per_quant)
    rounds = [tuple(runs)] if plan.spec.decide.enabled else [(repetition,) for repetition in runs]
    block = 0
    for source in plan.models:
        for repetitions in rounds:
            for tasks in item_blocks(plan):
                for tag in keyed_shuffle(plan.spec.quants, f"{plan.controls.seed}\n{block}"):
                    cells = [(task, repetition) for task in tasks for repetition in repetitions]
                    trials += _cells(source.model_id, tag, cells, block, len(trials))
                block += 1
    return tuple(trials)


def _cells(model_id: str, tag: str, cells: Sequence[tuple[str, int]], block: int, first: int) -> list[PlannedTrial]:
    return [
        PlannedTrial(index=first + n, block=block, model_id=model_id, quant_tag=tag, task_id=task, repetition=repetition)
        for n, (task, repetition) in enumerate(cells)
    ]


def planned_repeats(plan: Plan) -> tuple[PlannedTrial, ...]:
    """List the trials that ask each variant its first few items once more; none where repetitions do so already.

    Their `repetition` is `runs_per_quant`, one beyond the matrix's, and their index and block numbers follow on the matrix's.
    """
    if plan.spec.runs_per_quant > 1:
        return ()
    tasks = item_order(plan)[: plan.spec.determinism_tasks]
    trials: list[PlannedTrial] = []
    block = len(item_blocks(plan)) * len(plan.models)
    for source in plan.models:
        for tag in plan.spec.quants:
            cells = [(task, plan.spec.runs_per_quant) for task in tasks]
            trials += _cells(source.model_id, tag, cells, block, plan.trials_total + len(trials))
    return tuple(trials)


def estimate_seconds(plan: Plan, seconds_per_trial: float | None) -> float | None:
    """Estimate the sweep's duration in seconds, canary included, from the seconds that one trial is expected to take."""
    if seconds_per_trial is None:
        return None
    return seconds_per_trial * (plan.trials_total + plan.spec.canary.runs + len(planned_repeats(plan)))


def dry_run_document(
    plan: Plan,
    *,
    disk_bytes_by_variant: Mapping[tuple[str, str], int | None],
    estimated_seconds: float | None,
) -> dict[str, Any]:
    """Describe what a sweep would do: the document that `--dry-run` prints.

    `disk_bytes_by_variant` maps (model, quant tag) to the artifact's expected bytes; absent or `None` means nobody could tell
    (`NOT_REPORTED`: a server keeps its files to itself). `estimated_seconds` is `None` when nothing was measured before
    (`NO_HISTORY`).
    """
    spec, tree = plan.spec, to_builtins(plan)
    return {
        "schema_version": "fewbits.dry_run.v1",
        "dry_run": True,
        "description": spec.description,
        "plan_digest": plan.digest,
        "commit_sha": plan.commit_sha,
        "hardware_fingerprint": plan.hardware_fingerprint,
        "runtime": {"name": spec.runtime, "base_url": spec.base_url, "script": spec.script},
        "labels": {
            "runtime_target": spec.runtime_target,
            "execution_mode": spec.execution_mode,
            "execution_lane": spec.execution_lane.value,
            "vram_profile": spec.vram_profile.value,
        },
        "matrix": _matrix_document(plan, tree),
        "controls": tree["controls"],
        "timeouts": {"trial_timeout_seconds": spec.trial_timeout_seconds, "load_timeout_seconds": spec.load_timeout_seconds},
        "policies": {name: tree["spec"][name] for name in ("canary", "quality", "policy", "decide", "divergence", "guard")},
        "lab": {name: tree["spec"][name] for name in ("sidecar", "baselines", "model_policies", "control_profile")},
        "estimates": {
            "disk": _disk_document(plan, disk_bytes_by_variant),
            "seconds": estimated_seconds,
            "seconds_unavailable": None if estimated_seconds is not None else Unavailable.NO_HISTORY.value,
        },
        "artifacts": tree["artifacts"],
    }


def _matrix_document(plan: Plan, tree: Mapping[str, Any]) -> dict[str, Any]:
    spec = plan.spec
    return {
        "models": tree["models"],
        "quants": list(spec.quants),
        "reference_quant": spec.reference_quant,
        "runs_per_quant": spec.runs_per_quant,
        "task_bank": spec.task_bank,
        "task_bank_digest": plan.task_bank_digest,
        "selection": tree["spec"]["selection"],
        "tasks": [task.task_id for task in plan.tasks],
        "tasks_by_bucket": dict(sorted(Counter(task.bucket.value for task in plan.tasks).items())),
        "tasks_total": len(plan.tasks),
        "block_tasks": plan.block_tasks,
        "trials_total": plan.trials_total,
        "determinism_trials": len(planned_repeats(plan)),
        "canary_trials": spec.canary.runs,
    }


def _disk_document(plan: Plan, sizes: Mapping[tuple[str, str], int | None]) -> dict[str, Any]:
    rows = []
    for source in plan.models:
        for tag in plan.spec.quants:
            size = sizes.get((source.model_id, tag))
            reason = None if size is not None else Unavailable.NOT_REPORTED.value
            rows.append({"model_id": source.model_id, "quant_tag": tag, "bytes": size, "unavailable": reason})
    known = [row["bytes"] for row in rows if isinstance(row["bytes"], int)]
    return {
        "variants": rows,
        "total_bytes": sum(known) if len(known) == len(rows) else None,
        "total_unavailable": None if len(known) == len(rows) else Unavailable.NOT_REPORTED.value,
    }
