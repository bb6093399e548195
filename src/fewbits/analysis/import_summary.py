"""An older 1.1.x summary in this schema's shape, so that old results can be gated and rendered. Pure.

Taken over: what the file holds. Judged anew, by this schema's rule: which rows meet the limits, the picks, the KPIs; where that
differs from the file, a note says so. Everything else is `None` with a reason.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from fewbits.analysis.import_rows import Notes, RowContext, import_row
from fewbits.analysis.kpis import determinism_kpi
from fewbits.analysis.ranking import nominal_bits, rank_quants
from fewbits.analysis.recommend import Selection, frontier_block, select
from fewbits.analysis.statistics import rounded
from fewbits.analysis.wording import count, listed
from fewbits.core.errors import Problem
from fewbits.records.legacy_summary import LegacyCanary, LegacyRow, LegacySession, LegacySummary
from fewbits.records.plan import Controls, PolicyName, QualityPolicy, SelectionPolicy
from fewbits.records.summary import (
    CanaryBlock,
    ImportedFrom,
    Provenance,
    QuantRow,
    RecommendationDetail,
    RunQualityDiagnostics,
    Session,
    StabilityKpis,
    SweepSummary,
)

_LABELS = (
    "Quant tags were only labels in the tool that wrote this: nothing shows that two rows ran on different weights. Ranks here "
    "follow the nominal bits of the tags."
)
_ADHERENCE = (
    "adherence_score was the share of style rules that a generated file met (1.0 for a task without rules), averaged over the "
    "runs that had one (0 where none had): it does not say whether answers were right, and failed runs are not in it."
)
_MEANS = (
    "total_latency and the rates were means over the runs of a whole agent process; this schema has medians of single requests."
)
_MEMORY = (
    "peak_memory_rss was the mean of the client's process tree in MiB, here in bytes: another process held the model, so it says "
    "nothing about what a variant needs."
)
_NOTHING_ELSE = "There are no intervals, verdicts, per-task results or digests: the older shape does not hold them."
_SIDECAR = (
    "The sidecar was one reading of the first GPU after each row's runs, start and end temperature alike; its zeros are unknown "
    "values. Times to first token, of kernels and of loading are left out."
)
_FINISHED = "The older tool wrote its summary once, after the last run, and counted failed runs too; how runs ended is not in it."
_DETERMINISM = (
    "determinism_rate compared the runner's whole standard output, run ids and times included, so equal answers could count as "
    "different, and two equal crashes as the same."
)
_FLOOR = "The older rule had no absolute floor; this schema's default of {floor:g} holds here."
_NO_PROOF = "Tags were only labels there: nothing shows that their weights differed."
_UNCERTAIN = (_LABELS, _ADHERENCE, _MEANS, _MEMORY)


def legacy_problems(old: LegacySummary) -> Iterator[Problem]:
    """Yield what types and ranges cannot show: names that are there twice, rows whose runs nobody can count."""
    models = Counter(session.model_id for session in old.sessions)
    yield from (
        Problem("sessions", f"{model!r} is there {n} times", "one session per model") for model, n in models.items() if n > 1
    )
    for index, session in enumerate(old.sessions):
        tags = Counter(row.quant_tag for row in session.per_quant)
        for tag, times in tags.items():
            if times > 1:
                yield Problem(f"sessions[{index}].per_quant", f"{tag!r} is there {times} times", "one row per quant tag")
    rows = [row for session in old.sessions for row in session.per_quant]
    if any(row.test_runs is None for row in rows) and _runs_of_each(old) is None:
        hint = "test_runs of every row, or stability_kpis.weighted_runs"
        yield Problem("sessions", "nothing says how many runs each row stands for", hint)


def _runs_of_each(old: LegacySummary) -> int | None:
    """Return the runs of each row where only their sum is told: every row of a sweep had as many."""
    rows = sum(len(session.per_quant) for session in old.sessions)
    total = old.stability_kpis.weighted_runs if old.stability_kpis else None
    return total // rows if total and total % rows == 0 else None


def import_legacy(old: LegacySummary, *, sha256: str, fewbits_version: str) -> SweepSummary:
    """Convert a summary without `legacy_problems`; `sha256` is its file's."""
    notes = Notes()
    for sentence in (_LABELS, _ADHERENCE, _MEANS, _MEMORY, _NOTHING_ELSE, _FINISHED):
        notes.add(sentence)
    policy, controls, quality = _common_policy(old, notes), _controls(old, notes), _quality_policy(old, notes)
    sessions = tuple(_session(old, session, policy, notes) for session in old.sessions)
    rows = [row for session in sessions for row in session.per_quant]
    trials = sum(row.test_runs for row in rows)
    missing = _missing_rows(old, notes)
    canary = _canary(old.canary, notes)
    kpis = _kpis(old, sessions, policy, notes)
    _note_meanings(rows, notes)
    return SweepSummary(
        commit_sha=old.commit_sha or None,
        hardware_fingerprint=old.hardware_fingerprint,
        execution_lane=old.execution_lane,
        vram_profile=old.vram_profile,
        provenance=_provenance(old, sha256, fewbits_version, notes),
        matrix=_matrix(old),
        experimental_controls=controls,
        controls_effective={},
        quality_policy=quality,
        selection_policy=policy,
        canary=canary,
        complete=not missing,
        trials_expected=trials + missing * max(row.test_runs for row in rows),
        trials_counted=trials,
        sessions=sessions,
        stability_kpis=kpis,
        run_quality=_run_quality(rows, trials),
    )


def _note_meanings(rows: Sequence[QuantRow], notes: Notes) -> None:
    """Say what numbers meant there that only some files hold, and which codes have no place here."""
    if any(row.hardware_sidecar is not None for row in rows):
        notes.add(_SIDECAR)
    if any(row.determinism_rate is not None for row in rows):
        notes.add(_DETERMINISM)
    if notes.unknown_reasons:
        notes.add(f"Reason codes without a place here: {', '.join(sorted(notes.unknown_reasons))}.")


def _provenance(old: LegacySummary, sha256: str, fewbits_version: str, notes: Notes) -> Provenance:
    """Return where it comes from. There is no plan and no journal; their digests say so and still tell two files apart."""
    written = (f"It was written at {old.generated_at}.",) if old.generated_at else ()
    return Provenance(
        plan_digest=f"imported:{sha256}",
        journal_digest=f"imported:{sha256}",
        fewbits_version=fewbits_version,
        first_trial_at=None,
        last_trial_at=None,
        imported_from=ImportedFrom(schema_version=old.schema_version, sha256=sha256, notes=(*written, *notes.sentences)),
    )


def _run_quality(rows: Sequence[QuantRow], trials: int) -> RunQualityDiagnostics:
    clean = sum(row.clean_runs for row in rows)
    return RunQualityDiagnostics(
        trials=trials,
        clean=clean,
        polluted=trials - clean,
        reasons={},
        superseded_attempts=0,
        clean_share=rounded(clean / trials) if trials else None,
    )


def _matrix(old: LegacySummary) -> dict[str, Any]:
    """Return what was asked for, as far as the file says, controls in its own words included."""
    matrix = old.matrix
    controls = msgspec.to_builtins(matrix.experimental_controls) if matrix.experimental_controls else {}
    known = {
        "models": list(matrix.models),
        "quants": list(matrix.quants),
        "task_bank": matrix.task_bank,
        "runs_per_quant": matrix.runs_per_quant,
        "latency_ceiling": matrix.latency_ceiling,
        "runtime_target": matrix.runtime_target,
        "execution_mode": matrix.execution_mode,
        "experimental_controls": {key: value for key, value in controls.items() if value not in (None, "")},
    }
    return {key: value for key, value in known.items() if value not in (None, [], {}, "")}


def _missing_rows(old: LegacySummary, notes: Notes) -> int:
    """Return how many rows of the matrix have no result; 0 where the file does not say what was asked for."""
    have = {(session.model_id, row.quant_tag) for session in old.sessions for row in session.per_quant}
    wanted = [(model, quant) for model in dict.fromkeys(old.matrix.models) for quant in dict.fromkeys(old.matrix.quants)]
    absent = [f"{model} {quant}" for model, quant in wanted if (model, quant) not in have]
    if absent:
        notes.add(f"The matrix asked for rows that are not there: {', '.join(absent)}. The summary counts as not complete.")
    return len(absent)


# --- policies and controls ---------------------------------------------------------------------------------------------


def _common_policy(old: LegacySummary, notes: Notes) -> SelectionPolicy:
    """Return the first session's limits; a session with others carries its own."""
    policy = _policy_of(old.sessions[0])
    notes.add(_FLOOR.format(floor=policy.adherence_floor))
    return policy


def _policy_of(session: LegacySession) -> SelectionPolicy:
    frontier = session.efficiency_frontier
    return SelectionPolicy(
        name=PolicyName.THRESHOLD,
        adherence_threshold=frontier.adherence_threshold,
        latency_ceiling=frontier.latency_ceiling,
    )


def _quality_policy(old: LegacySummary, notes: Notes) -> QualityPolicy:
    asked, default = old.matrix.row_quality_policy, QualityPolicy()
    overhead = asked.max_orchestration_overhead_ratio if asked else None
    missing = asked.max_missing_telemetry_rate if asked else None
    notes.add(
        "Which runs were polluted was judged by the older tool's rules; of the limits in quality_policy only orchestration "
        "overhead and missing telemetry can be that tool's, the others are this schema's defaults and judged nothing here."
    )
    return QualityPolicy(
        name=f"imported-{old.schema_version}",
        max_orchestration_overhead_ratio=default.max_orchestration_overhead_ratio if overhead is None else overhead,
        row_max_missing_telemetry_rate=default.row_max_missing_telemetry_rate if missing is None else missing,
    )


def _controls(old: LegacySummary, notes: Notes) -> Controls:
    """Return the recorded controls; what was not recorded, or has no place here, is a default that a note names."""
    asked, default = old.matrix.experimental_controls, Controls(affinity_policy="none")
    known: dict[str, Any] = {}
    if asked is not None:
        candidates = {
            "seed": asked.seed if asked.seed is not None and 0 <= asked.seed < 2**31 else None,
            "threads": asked.threads or None,
            "warmup_steps": asked.warmup_steps if asked.warmup_steps is not None and asked.warmup_steps <= 100 else None,
        }
        known = {name: value for name, value in candidates.items() if value is not None}
        if asked.affinity_policy:
            notes.add(f"The affinity policy was the free text {asked.affinity_policy!r}; 'none' stands here.")
        if asked.seed is not None and "seed" not in known:
            notes.add(f"The seed {asked.seed} has no place here.")
    made_up = [name for name in default.__struct_fields__ if name not in known and getattr(default, name) is not None]
    notes.add(
        "Of the controls, only the seed ever reached the model there; threads, affinity and warm-up were recorded, not applied. "
        f"Not recorded, so defaults of this schema that say nothing about the old run: {', '.join(made_up)}."
    )
    return msgspec.structs.replace(default, **known)


def _canary(old: LegacyCanary | None, notes: Notes) -> CanaryBlock:
    if old is None:
        old, enabled = LegacyCanary(runs=0, passed=False), False
    else:
        enabled = True
        notes.add("The canary's adherence variance was a range, and its latency variation that of the population.")
    counted = old.latency_sample_count_raw is not None and old.latency_sample_count_used is not None
    if enabled and not counted:
        notes.add("How many latency samples the canary used is not in the older shape; all repeats are counted here.")
    return CanaryBlock(
        enabled=enabled,
        passed=old.passed if enabled else None,
        model_id=old.model_id or None,
        quant_tag=old.quant_tag or None,
        task_id=None,
        runs_requested=old.runs,
        runs_made=old.runs,
        latency_sample_count_raw=old.latency_sample_count_raw or 0 if counted else old.runs,
        latency_sample_count_used=old.latency_sample_count_used or 0 if counted else old.runs,
        drop_first_run=bool(old.drop_first_run),
        polluted_retries=0,
        adherence_variance=old.adherence_variance,
        latency_variation=old.internal_latency_variance,
        latency_variance_threshold=old.latency_variance_threshold or 0.0,
        missing_telemetry_rate=old.missing_telemetry_rate,
        max_missing_telemetry_rate=old.max_missing_telemetry_rate or 0.0,
        same_output_rate=None,
        failed_reasons=old.failed_reasons,
        remedies=(),
    )


# --- sessions ----------------------------------------------------------------------------------------------------------


def _session(old: LegacySummary, session: LegacySession, common: SelectionPolicy, notes: Notes) -> Session:
    policy = _policy_of(session)
    ranks = rank_quants({row.quant_tag: None for row in session.per_quant})
    rows = [_row(old, session, row, ranks[row.quant_tag], notes) for row in session.per_quant]
    selection = select(sorted(rows, key=lambda row: -row.quant_rank), policy)
    _note_ranks(session, notes)
    _note_picks(session, selection, notes)
    return Session(
        model_id=session.model_id,
        baseline_quant=session.baseline_quant,
        engine="",
        engine_version="",
        per_quant=selection.rows,
        efficiency_frontier=frontier_block(selection, policy),
        recommendation_detail=_detail(session, selection),
        recommendation=_headline(selection, old.schema_version),
        selection_policy=None if policy == common else policy,
    )


def _row(old: LegacySummary, session: LegacySession, row: LegacyRow, rank: int, notes: Notes) -> QuantRow:
    runs = row.test_runs
    if runs is None:
        runs = _runs_of_each(old) or 0
        notes.add(f"Rows do not say how many runs they stand for: {count(runs, 'run')} each, from their sum in stability_kpis.")
    sidecar = old.matrix.hardware_sidecar
    context = RowContext(
        model_id=session.model_id,
        rank=rank,
        is_reference=row.quant_tag == session.baseline_quant,
        runs=runs,
        repeats=old.matrix.runs_per_quant,
        sidecar_profile=(sidecar.profile if sidecar else None) or None,
    )
    return import_row(row, context, notes)


def _note_ranks(session: LegacySession, notes: Notes) -> None:
    """Say which tags have no known bits, and when the older tool's reference is not the one with the most."""
    bits = {row.quant_tag: nominal_bits(row.quant_tag) for row in session.per_quant}
    unknown = [tag for tag, value in bits.items() if value is None]
    if unknown:
        notes.add(f"{session.model_id}: nobody knows the bits of {listed(unknown)}, which rank highest here.")
    reference = bits.get(session.baseline_quant)
    higher = [tag for tag, value in bits.items() if value is not None and reference is not None and value > reference]
    if session.baseline_quant not in bits:
        notes.add(f"{session.model_id}: the reference {session.baseline_quant} has no row, so nothing can be judged against it.")
    if higher:
        notes.add(
            f"{session.model_id}: the older tool took {session.baseline_quant} as the reference, although {listed(higher)} "
            "stands for more bits."
        )


def _note_picks(session: LegacySession, selection: Selection, notes: Notes) -> None:
    frontier = session.efficiency_frontier
    valid = {row.quant_tag: row.valid for row in session.per_quant}
    for words, old, new in (
        ("minimum viable quant", frontier.minimum_viable_quant_tag, selection.minimum_viable),
        ("best value", frontier.best_value_quant_tag, selection.best_value),
    ):
        tag = new.quant_tag if new is not None else None
        if old != tag:
            why = "" if old is None or valid.get(old, False) else " (that row is not valid, so an override must have let it in)"
            notes.add(
                f"{session.model_id}: the {words} was {old or 'none'} there{why}, and is {tag or 'none'} by this schema's rule."
            )


def _headline(selection: Selection, version: str) -> str:
    smallest, best = selection.minimum_viable, selection.best_value
    if smallest is None or best is None:
        return f"Imported from schema {version}: no row met the limits. {_NO_PROOF}"
    if smallest.quant_tag == best.quant_tag:
        told = f"{smallest.quant_tag} is the smallest tag within the limits, and has the most score per second."
        return f"Imported from schema {version}: {told} {_NO_PROOF}"
    return (
        f"Imported from schema {version}: {smallest.quant_tag} is the smallest tag within the limits, {best.quant_tag} the one "
        "with the most score per second. {_NO_PROOF}"
    )


def _detail(session: LegacySession, selection: Selection) -> RecommendationDetail:
    frontier = session.efficiency_frontier
    picks = f"minimum viable {frontier.minimum_viable_quant_tag or 'none'}, best value {frontier.best_value_quant_tag or 'none'}"
    because = [f"The older tool's own picks: {picks}."]
    if session.recommendation:
        because.append(f"In its words: {session.recommendation}")
    return RecommendationDetail(
        minimum_viable_quant=selection.minimum_viable.quant_tag if selection.minimum_viable else None,
        best_value_quant=selection.best_value.quant_tag if selection.best_value else None,
        because=tuple(because),
        uncertain=_UNCERTAIN,
    )


# --- rates -------------------------------------------------------------------------------------------------------------


def _kpis(old: LegacySummary, sessions: Sequence[Session], common: SelectionPolicy, notes: Notes) -> StabilityKpis:
    """Compute the KPIs by this schema's rule, and say where the file's own differ."""
    rows = [row for session in sessions for row in session.per_quant]
    runs = sum(row.test_runs for row in rows)

    def weighted(name: str) -> float:
        return (rounded(math.fsum(getattr(row, name) * row.test_runs for row in rows) / runs) or 0.0) if runs else 0.0

    judged = [select(session.per_quant, session.selection_policy or common).rows for session in sessions]
    kpis = StabilityKpis(
        determinism_rate=rounded(determinism_kpi(rows)),
        missing_telemetry_rate=weighted("missing_telemetry_rate") if runs else 1.0,
        polluted_run_rate=weighted("polluted_run_rate"),
        frontier_success_rate=rounded(sum(any(row.eligible for row in rows) for rows in judged) / len(sessions)) or 0.0,
        quant_rows=len(rows),
        sessions=len(sessions),
        weighted_runs=runs,
    )
    if old.stability_kpis is not None:
        for name in ("determinism_rate", "missing_telemetry_rate", "polluted_run_rate", "frontier_success_rate", "weighted_runs"):
            before, now = getattr(old.stability_kpis, name), getattr(kpis, name)
            if before is not None and (now is None or abs(before - now) > 1e-6):
                notes.add(f"stability_kpis.{name} was {before:g} there and is {'null' if now is None else f'{now:g}'} here.")
    notes.add(
        "The older KPIs counted whole rows as polluted or without telemetry, weighted by their runs; here the runs' shares count."
    )
    return kpis
