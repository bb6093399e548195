"""Artifacts of a context sweep: read what each context left behind, judge it, write ceiling, rollup and report, check them."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import msgspec

from fewbits import __version__
from fewbits.api.explorer import generated_at
from fewbits.core.codec import decode, encode_pretty
from fewbits.core.errors import FewbitsError, Problem, SpecError, StoreError
from fewbits.core.files import atomic_write
from fewbits.records.context import (
    CONTEXT_CEILING_SCHEMA,
    CONTEXT_PROFILES_SCHEMA,
    CONTEXT_ROLLUP_SCHEMA,
    ContextCeilingArtifact,
    ContextProfile,
    ContextProfiles,
    ContextReason,
    ContextRollupArtifact,
    ContextThresholds,
)
from fewbits.records.explorer import ArtifactProvenance
from fewbits.records.gates import GateReport
from fewbits.records.provenance import SourceFile
from fewbits.records.summary import SweepSummary
from fewbits.records.trial import TrialView
from fewbits.records.variant import Artifact
from fewbits.spec.load import find_input, repository_root
from fewbits.spec.values import nearest
from fewbits.store.journal import read_journal
from fewbits.store.run_directory import RunDirectory
from fewbits.store.summaries import declared_version, read_bounded, read_summary
from fewbits.workloads.text.bank import load_bank

if TYPE_CHECKING:
    from fewbits.analysis.context import ContextEvidence
    from fewbits.analysis.context_checks import FoundSummary
    from fewbits.analysis.trial_table import Group

DEFAULT_PROFILES = "benchmarks/configs/context_profiles.json"
PLACEHOLDER = "{context}"
TASKS_NAME = "tasks.json"
Variant = tuple[str, str]
"""(model id, quant tag)"""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a variant has nothing to judge at a context."""

    reason: ContextReason
    detail: str
    context_effective: int | None = None


@dataclass(frozen=True, slots=True)
class RecordedContext:
    """What lies on disk of one context: its summary, and (where its run folder is known) the trials behind it."""

    summary: SweepSummary
    source: SourceFile
    groups: Mapping[Variant, Group] | None
    answer_tokens: Mapping[str, int] | None
    artifacts: Mapping[Variant, Artifact]


@dataclass(frozen=True, slots=True)
class CeilingRequest:
    """What is judged, by what, and how the artifact is labelled."""

    contexts: tuple[int, ...]
    thresholds: ContextThresholds
    provenance_ref: str
    out: Path


# --- profiles --------------------------------------------------------------------------------------------------------


def read_profiles(path: str) -> tuple[ContextProfiles, SourceFile]:
    """Read the context profiles: from the current folder, else from the checkout. Raises `SpecError`, `StoreError`."""
    root = repository_root()
    found = Path(find_input(path, [Path(), *([root] if root is not None else [])]) or path)
    data = read_bounded(found, "--context-profiles-config", "give the path of a context_profiles.json")
    _require_schema(data, found, CONTEXT_PROFILES_SCHEMA)
    source = SourceFile(path=path, sha256=hashlib.sha256(data).hexdigest(), schema_version=CONTEXT_PROFILES_SCHEMA)
    return decode(data, ContextProfiles, str(found)), source


def profile_named(profiles: ContextProfiles, name: str, flag: str) -> ContextProfile:
    """Look a profile up. Raises `SpecError` at `flag`, which named it."""
    profile = profiles.profiles.get(name)
    if profile is None:
        known = sorted(profiles.profiles)
        hint = nearest(name, known) or f"known are {', '.join(known) or 'none'}"
        raise SpecError.single(flag, f"there is no context profile {name!r}", hint)
    return profile


def _require_schema(data: bytes, path: Path, wanted: str) -> None:
    version = declared_version(data, path)
    if version != wanted:
        msg = f"{path} has schema_version {version!r}, {wanted!r} is expected: it is another file, or of another fewbits."
        raise StoreError(msg)


# --- reading ---------------------------------------------------------------------------------------------------------


def fill_in(template: str, context: int, flag: str) -> Path:
    """Put a context into a template. Raises `SpecError` when it has no place for one."""
    if PLACEHOLDER not in template:
        raise SpecError.single(flag, f"{template!r} has no {PLACEHOLDER}", "for example out/context_{context}_summary.json")
    return Path(template.replace(PLACEHOLDER, str(context)))


def read_context(context: int, summary_path: Path, run: Path | None, base: Path) -> RecordedContext:
    """Read one context's summary, and its trials where `run` is its folder. Raises `SpecError`, `StoreError`.

    A summary that was measured with another context, or that is not the summary of that folder's journal, is refused.
    """
    loaded = read_summary(summary_path, "--summary-template")
    asked = loaded.summary.experimental_controls.context_size
    if asked != context:
        message = f"{summary_path} was measured with a context of {asked:,} tokens, not {context:,}"
        raise SpecError.single("--summary-template", message, "name the summary of each context")
    source: SourceFile = msgspec.structs.replace(loaded.source, path=_relative(summary_path, base))
    if run is None:
        return RecordedContext(loaded.summary, source, None, None, {})
    directory = RunDirectory(run)
    groups = _read_groups(directory, loaded.summary, summary_path)
    tasks = load_bank(run / TASKS_NAME).bank.tasks
    limit = loaded.summary.experimental_controls.max_tokens
    rooms = {task.id: min(task.max_tokens or limit, limit) for task in tasks}
    return RecordedContext(loaded.summary, source, groups, rooms, directory.read_manifests())


def _read_groups(directory: RunDirectory, summary: SweepSummary, summary_path: Path) -> Mapping[Variant, Group]:
    from fewbits.analysis.trial_table import build_table

    plan = directory.read_plan()
    if plan is None:
        raise SpecError.single("--run-template", f"{directory.root} is not a run folder: it has no plan.json", "check the path")
    journal = read_journal(directory.trials_path, TrialView)
    if journal.digest != summary.provenance.journal_digest:
        msg = (
            f"{summary_path} is not the summary of the journal in {directory.root}: one of them was changed since. "
            f"`fewbits summarize {directory.root}` writes it again."
        )
        raise StoreError(msg)
    return build_table(plan, journal.rows).groups


def _relative(path: Path, base: Path) -> str:
    """Name a file as seen from the artifact's folder, so that both can move together."""
    return PurePath(os.path.relpath(path, base)).as_posix()


# --- judging and writing ---------------------------------------------------------------------------------------------


def judge_contexts(
    request: CeilingRequest,
    recorded: Mapping[int, RecordedContext],
    variants: Sequence[Variant],
    failures: Mapping[tuple[Variant, int], Failure],
    labels: Mapping[str, str],
) -> ContextCeilingArtifact:
    """Build the ceiling artifact. `labels`: hardware_fingerprint, execution_lane and vram_profile."""
    from fewbits.analysis.context import build_ceiling

    artifacts = {variant: each for context in recorded.values() for variant, each in context.artifacts.items()}
    ceilings = []
    for variant in variants:
        evidence = [
            dataclasses.replace(
                _evidence(variant, context, recorded.get(context), failures.get((variant, context))),
                artifact=artifacts.get(variant),
            )
            for context in request.contexts
        ]
        ceilings.append(build_ceiling(*variant, evidence, request.thresholds))
    commits = {each.summary.commit_sha for each in recorded.values()}
    return ContextCeilingArtifact(
        generated_at=generated_at(),
        provenance=ArtifactProvenance(
            ref=request.provenance_ref,
            sources=tuple(recorded[context].source for context in sorted(recorded)),
            commit_sha=commits.pop() if len(commits) == 1 else None,
            fewbits_version=__version__,
        ),
        contexts=request.contexts,
        thresholds=request.thresholds,
        ceilings=tuple(ceilings),
        **labels,
    )


def _evidence(variant: Variant, context: int, recorded: RecordedContext | None, failure: Failure | None) -> ContextEvidence:
    from fewbits.analysis.context import ContextEvidence
    from fewbits.analysis.context_checks import find_row

    reason, detail = (failure.reason, failure.detail) if failure is not None else (None, "")
    effective: tuple[int, ...] = ()
    if failure is not None and failure.context_effective is not None:
        effective = (failure.context_effective,)
    if recorded is None:
        return ContextEvidence(context, failure=reason or ContextReason.NO_SUMMARY, detail=detail, effective_contexts=effective)
    row = find_row(recorded.summary, *variant)
    if row is None:
        # this variant's trials of that context were never planned, so the summary is no evidence about it
        failed = reason or ContextReason.NO_ROW
        return ContextEvidence(context, failure=failed, detail=detail, effective_contexts=effective)
    return ContextEvidence(
        context,
        row=row,
        group=_group(recorded, variant),
        answer_tokens=recorded.answer_tokens,
        effective_contexts=tuple(recorded.summary.controls_effective.get("context_size", ())),
        source=recorded.source,
        failure=reason,
        detail=detail,
    )


def _group(recorded: RecordedContext, variant: Variant) -> Group | None:
    from fewbits.analysis.trial_table import Group

    return None if recorded.groups is None else recorded.groups.get(variant, Group(()))


@dataclass(frozen=True, slots=True)
class WrittenArtifacts:
    """The artifacts of a sweep and where they lie."""

    ceiling: ContextCeilingArtifact
    rollup: ContextRollupArtifact
    paths: tuple[Path, ...]
    changed: bool
    """Whether this says anything that the file did not say before."""


def write_ceiling(artifact: ContextCeilingArtifact, path: Path) -> tuple[ContextCeilingArtifact, bool]:
    """Write the ceiling artifact; when the file already says the same, it stays as it is, with its date."""
    try:
        present = decode(path.read_bytes(), ContextCeilingArtifact, str(path))
    except (OSError, FewbitsError):
        present = None  # none yet, or one that was damaged or made by another fewbits: it is replaced as a whole
    if present is not None and msgspec.structs.replace(present, generated_at=artifact.generated_at) == artifact:
        return present, False
    atomic_write(path, encode_pretty(artifact))
    return artifact, True


def write_artifacts(artifact: ContextCeilingArtifact, folder: Path) -> WrittenArtifacts:
    """Write ceiling, rollup and report into a folder."""
    from fewbits.report.context import render_context_markdown

    ceiling_path, rollup_path, report_path = (
        folder / name for name in ("context_ceiling.json", "context_sweep_rollup.json", "context_report.md")
    )
    ceiling, changed = write_ceiling(artifact, ceiling_path)
    rollup = build_rollup(ceiling_path, rollup_path)
    atomic_write(report_path, render_context_markdown(ceiling).encode())
    return WrittenArtifacts(ceiling, rollup, (ceiling_path, rollup_path, report_path), changed)


def ceiling_from_summaries(
    request: CeilingRequest,
    summary_template: str,
    run_template: str | None,
    *,
    model_id: str | None,
    quant_tags: Sequence[str],
) -> ContextCeilingArtifact:
    """Judge recorded summaries again, under other limits if need be, and write the artifact. Needs no engine.

    With `run_template` the trials behind the summaries are read too. Raises `SpecError` when no summary is there, when they are
    of different machines or labels, and when a named model or variant is in none of them; `StoreError` for a damaged one.
    """
    base = request.out.parent
    recorded = {}
    for context in request.contexts:
        path = fill_in(summary_template, context, "--summary-template")
        run = fill_in(run_template, context, "--run-template") if run_template is not None else None
        if path.exists():
            recorded[context] = read_context(context, path, run, base)
    if not recorded:
        first = fill_in(summary_template, request.contexts[0], "--summary-template")
        raise SpecError.single("--summary-template", f"there is no summary of any context, such as {first}", "check the path")
    if request.out.resolve() in {fill_in(summary_template, context, "").resolve() for context in request.contexts}:
        raise SpecError.single("--out", f"{request.out} is one of the summaries that are read", "choose another file")
    labels = _common_labels(recorded)
    variants = _variants(recorded, model_id, quant_tags)
    artifact = judge_contexts(_as_far_as_known(request, run_template), recorded, variants, {}, labels)
    return write_ceiling(artifact, request.out)[0]


def _as_far_as_known(request: CeilingRequest, run_template: str | None) -> CeilingRequest:
    """Without the trials nobody knows how full the context was: that limit is switched off, and the artifact says so."""
    if run_template is not None:
        return request
    thresholds = msgspec.structs.replace(request.thresholds, fill_min=None)
    return CeilingRequest(request.contexts, thresholds, request.provenance_ref, request.out)


def _common_labels(recorded: Mapping[int, RecordedContext]) -> dict[str, str]:
    problems = []
    labels = {}
    for name in ("hardware_fingerprint", "execution_lane", "vram_profile"):
        seen = sorted({str(getattr(each.summary, name)) for each in recorded.values()})
        labels[name] = seen[0]
        if len(seen) > 1:
            message = f"the summaries differ in {name}: {', '.join(seen)}"
            problems.append(Problem("--summary-template", message, "a ceiling is about one machine and one set of labels"))
    if problems:
        raise SpecError(problems)
    return labels


def _variants(recorded: Mapping[int, RecordedContext], model_id: str | None, quant_tags: Sequence[str]) -> list[Variant]:
    present = list(
        dict.fromkeys(
            (session.model_id, row.quant_tag)
            for context in sorted(recorded)
            for session in recorded[context].summary.sessions
            for row in session.per_quant
        )
    )
    models, tags = {model for model, _ in present}, {tag for _, tag in present}
    problems = [Problem("--quant-tags", f"no summary has {tag!r}", nearest(tag, tags)) for tag in quant_tags if tag not in tags]
    if model_id is not None and model_id not in models:
        problems.append(Problem("--model-id", f"no summary has {model_id!r}", f"they have {', '.join(sorted(models)) or 'none'}"))
    chosen = [(model, tag) for model, tag in present if model_id in (None, model) and (not quant_tags or tag in set(quant_tags))]
    if not problems and not chosen:
        problems.append(Problem("--summary-template", "the summaries have no such variant", "check model and quantization"))
    if problems:
        raise SpecError(problems)
    return chosen


# --- rollup and checks -----------------------------------------------------------------------------------------------


def read_ceiling(path: Path) -> tuple[ContextCeilingArtifact, SourceFile]:
    """Read a ceiling artifact. Raises `SpecError`, `StoreError`."""
    data = read_bounded(path, "--context-ceiling", "give the path of a context_ceiling.json")
    _require_schema(data, path, CONTEXT_CEILING_SCHEMA)
    source = SourceFile(path=path.name, sha256=hashlib.sha256(data).hexdigest(), schema_version=CONTEXT_CEILING_SCHEMA)
    return decode(data, ContextCeilingArtifact, str(path)), source


def build_rollup(ceiling_path: Path, out: Path) -> ContextRollupArtifact:
    """Write the rollup of a ceiling artifact, dated like it. Raises `SpecError`, `StoreError`."""
    from fewbits.analysis.context import roll_up

    if out.resolve() == ceiling_path.resolve():
        raise SpecError.single("--out", f"{out} is the artifact that is read", "choose another file")
    artifact, source = read_ceiling(ceiling_path)
    named: SourceFile = msgspec.structs.replace(source, path=_relative(ceiling_path, out.parent))
    rollup = roll_up(artifact, named, generated_at=artifact.generated_at)
    atomic_write(out, encode_pretty(rollup))
    return rollup


def check_context(
    ceiling_path: Path,
    rollup_path: Path,
    *,
    contexts: Sequence[int] | None,
    summary_template: str | None,
    profiles_path: str,
) -> GateReport:
    """Check ceiling, rollup, summaries and profiles against each other. Raises `SpecError`, `StoreError` for unusable files."""
    from fewbits.analysis.context_checks import check_ceiling, check_profiles, check_rollup, check_summaries
    from fewbits.analysis.gate_report import build_report

    artifact, ceiling_source = read_ceiling(ceiling_path)
    data = read_bounded(rollup_path, "--rollup", "give the path of a context_sweep_rollup.json")
    _require_schema(data, rollup_path, CONTEXT_ROLLUP_SCHEMA)
    rollup = decode(data, ContextRollupArtifact, str(rollup_path))
    rollup_source = SourceFile(
        path=str(rollup_path), sha256=hashlib.sha256(data).hexdigest(), schema_version=CONTEXT_ROLLUP_SCHEMA
    )
    profiles, profiles_source = read_profiles(profiles_path)
    checks = [
        *check_ceiling(artifact, contexts),
        *check_rollup(rollup, artifact, ceiling_source),
        *check_summaries(artifact, _find_summaries(artifact, ceiling_path.parent, summary_template)),
        *check_profiles(profiles),
    ]
    named: SourceFile = msgspec.structs.replace(ceiling_source, path=str(ceiling_path))
    limits: dict[str, float | str | None] = {
        "adherence_min": artifact.thresholds.adherence_min,
        "adherence_retention_min": artifact.thresholds.adherence_retention_min,
        "ttft_ceiling_ms": artifact.thresholds.ttft_ceiling_ms,
        "decode_floor_tps": artifact.thresholds.decode_floor_tps,
        "fill_min": artifact.thresholds.fill_min,
    }
    return build_report("context", checks, sources=[named, rollup_source, profiles_source], thresholds=limits)


def _find_summaries(
    artifact: ContextCeilingArtifact, folder: Path, template: str | None
) -> dict[tuple[str, str, int], FoundSummary]:
    """Look for the summary of every point that names one; several variants share one file, which is read once."""
    read: dict[Path, FoundSummary] = {}
    found = {}
    for ceiling in artifact.ceilings:
        for point in ceiling.points:
            if point.summary_path is None:
                continue
            path = _summary_place(point.summary_path, folder, template, point.context)
            if path is not None and path not in read:
                read[path] = _find_summary(path)
            looked = read[path] if path is not None else _unsafe(point.summary_path)
            found[ceiling.model_id, ceiling.quant_tag, point.context] = looked
    return found


def _summary_place(recorded: str, folder: Path, template: str | None, context: int) -> Path | None:
    """Where a summary lies: as the template says, else as recorded, as long as that stays in the artifact's folder."""
    if template is not None:
        return fill_in(template, context, "--summary-template")
    pure = PurePath(recorded)
    return None if pure.is_absolute() or ".." in pure.parts else folder / pure


def _unsafe(recorded: str) -> FoundSummary:
    from fewbits.analysis.context_checks import FoundSummary

    return FoundSummary(recorded, "UNSAFE_SUMMARY_PATH", "it leads out of the artifact's folder: name it with --summary-template")


def _find_summary(path: Path) -> FoundSummary:
    from fewbits.analysis.context_checks import FoundSummary

    if not path.is_file():
        return FoundSummary(str(path), "MISSING_CONTEXT_SUMMARY_FILE", "there is no such file")
    try:
        loaded = read_summary(path, "--summary-template")
    except FewbitsError as error:
        return FoundSummary(str(path), "UNREADABLE_CONTEXT_SUMMARY", str(error))
    return FoundSummary(str(path), source=loaded.source, summary=loaded.summary)
