"""Plan, manifests and journal to the sweep summary: pure, the same bytes for any row order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from typing import Any

import msgspec

from fewbits.analysis.attempts import rerun_budget
from fewbits.analysis.baselines import plan_revision
from fewbits.analysis.compare import Evidence, complete_row, judge_determinism, judge_session, with_uncertainty
from fewbits.analysis.conditions import judge_conditions
from fewbits.analysis.explain import explain
from fewbits.analysis.kpis import determinism_kpi
from fewbits.analysis.ranking import Artifacts, nominal_bits, reference_tag, session_ranks
from fewbits.analysis.recommend import frontier_block, select
from fewbits.analysis.rows import RowDraft, RowInput, build_row, compare_with_reference, missing_telemetry
from fewbits.analysis.statistics import rounded
from fewbits.analysis.trial_table import Group, TrialTable, build_table
from fewbits.core.errors import IdentityError
from fewbits.records.base import RunQuality
from fewbits.records.baseline import BaselineMatch
from fewbits.records.detector_run import RowDetection, SanityCheck
from fewbits.records.extraction_run import RowExtraction
from fewbits.records.plan import Plan, SweepSpec
from fewbits.records.sidecar import SidecarBlock
from fewbits.records.summary import (
    CanaryBlock,
    DivergenceEstimate,
    Provenance,
    RunQualityDiagnostics,
    Session,
    StabilityKpis,
    SweepSummary,
)
from fewbits.records.trial import TrialView

_CONTROL_FIELDS = ("affinity", "context_size", "max_tokens", "seed", "temperature", "threads")


def summarise(
    plan: Plan,
    artifacts: Artifacts,
    trials: Iterable[TrialView],
    *,
    canary: CanaryBlock,
    journal_digest: str,
    fewbits_version: str,
    divergence: Mapping[tuple[str, str], DivergenceEstimate] | None = None,
    harm_ps: Mapping[tuple[str, str], float | None] | None = None,
    read_texts: Callable[[frozenset[str]], Mapping[str, str]] | None = None,
    baselines: Mapping[tuple[str, str], BaselineMatch] | None = None,
    sidecars: Mapping[tuple[str, str], SidecarBlock] | None = None,
    detections: Mapping[tuple[str, str], RowDetection] | None = None,
    extractions: Mapping[tuple[str, str], RowExtraction] | None = None,
    sanity: Mapping[str, tuple[SanityCheck, ...]] | None = None,
) -> SweepSummary:
    """Return the summary of a run, finished or not.

    `divergence` and `harm_ps` (the harm test's p-values) map (model id, quant tag) to what `divergence.jsonl` shows; `read_texts`
    returns the outputs of a few trials by id: it is asked only where two runs of one cell differ, to show where.

    `baselines` and `sidecars` are what `baselines.json` and `sidecar.jsonl` hold, `detections` what a detector's answers
    are worth (`detection_rows.row_detections`), `extractions` what a pipeline read from pages, `sanity` a detector's checks by
    model id: they only add blocks, and nothing is decided by them.

    `artifacts` maps (model id, quant tag) to manifests; a variant without one keeps its row, with `null` sizes.
    Trials of other phases than `matrix` are skipped. Raises `StoreError` when the journal holds rows that are not the
    plan's, `IdentityError` when trials were run on other weights than the manifest's.
    """
    table = build_table(plan, trials)
    _check_weights(artifacts, table)
    evidence = Evidence(
        artifacts,
        divergence or {},
        harm_ps or {},
        judge_determinism(table, read_texts or _no_texts),
        judge_conditions(table),
        baselines or {},
        sidecars or {},
        detections or {},
        extractions or {},
    )
    sessions = tuple(
        msgspec.structs.replace(_session(plan, model.model_id, evidence, table), sanity=(sanity or {}).get(model.model_id, ()))
        for model in plan.models
    )
    expected = sum(row.expected_runs for session in sessions for row in session.per_quant)
    started = [moment for group in table.groups.values() for moment in group.values("started_at")]
    return SweepSummary(
        commit_sha=plan.commit_sha,
        hardware_fingerprint=plan.hardware_fingerprint,
        execution_lane=plan.spec.execution_lane,
        vram_profile=plan.spec.vram_profile,
        provenance=Provenance(
            plan_digest=plan.digest,
            journal_digest=journal_digest,
            fewbits_version=fewbits_version,
            first_trial_at=min(started, default=None),
            last_trial_at=max(started, default=None),
        ),
        matrix=_matrix(plan),
        experimental_controls=plan.controls,
        controls_effective=_controls_effective(table),
        quality_policy=plan.spec.quality,
        selection_policy=plan.spec.policy,
        guard_policy=plan.spec.guard if plan.spec.guard.enabled else None,
        canary=canary,
        complete=table.counted >= expected,
        trials_expected=expected,
        trials_counted=table.counted,
        sessions=sessions,
        stability_kpis=_kpis(sessions, table, plan.spec),
        run_quality=_diagnostics(table, plan),
    )


def _no_texts(_trial_ids: frozenset[str]) -> Mapping[str, str]:
    """Stand in for a journal that nobody may read: where texts differ is then not shown."""
    return {}


def _session(plan: Plan, model_id: str, evidence: Evidence, table: TrialTable) -> Session:
    tags = tuple(dict.fromkeys(plan.spec.quants))
    ranks = session_ranks(plan, model_id, evidence.artifacts)
    reference_name = reference_tag(plan, model_id, evidence.artifacts)
    groups = {tag: table.groups.get((model_id, tag), Group(())) for tag in tags}
    policy = plan.spec.policy_of(model_id)
    verdicts = judge_session(plan, model_id, reference_name, groups, evidence)
    drafts = {
        tag: build_row(
            RowInput(
                quant_tag=tag,
                rank=ranks[tag],
                artifact=evidence.artifacts.get((model_id, tag)),
                group=groups[tag],
                expected_runs=verdicts.expected_runs[tag],
                policy=plan.spec.quality,
                include_invalid=policy.include_invalid,
                ranked_by_tag=nominal_bits(tag) is not None,
            )
        )
        for tag in tags
    }
    reference: RowDraft | None = drafts.get(reference_name)
    ordered = sorted(drafts.values(), key=lambda draft: -draft.row.quant_rank)
    compared = [compare_with_reference(draft, reference) for draft in ordered]
    rows = [
        complete_row(row, drafts[row.quant_tag], model_id=model_id, verdicts=verdicts, table=table, evidence=evidence)
        for row in compared
    ]
    selection, change = with_uncertainty(select(rows, policy), drafts, groups, policy)
    headline, detail = explain(selection, policy, change)
    engine, version = _engine([table.groups[key] for key in sorted(table.groups) if key[0] == model_id])
    return Session(
        model_id=model_id,
        baseline_quant=reference_name,
        engine=engine,
        engine_version=version,
        per_quant=selection.rows,
        efficiency_frontier=frontier_block(selection, policy),
        recommendation_detail=detail,
        recommendation=headline,
        decision_log=verdicts.decision_log,
        selection_policy=policy if model_id in plan.spec.model_policies else None,
    )


def _check_weights(artifacts: Artifacts, table: TrialTable) -> None:
    for key, group in table.groups.items():
        artifact = artifacts.get(key)
        if artifact is None or artifact.sha256 is None:
            continue
        for digest in sorted({digest or "" for digest in group.values("variant_sha256")} - {artifact.sha256}):
            msg = (
                f"{key[0]} {key[1]}: trials ran on weights {digest[:12] or 'unknown'}, the manifest says "
                f"{artifact.sha256[:12]}. Start over with --fresh."
            )
            raise IdentityError(msg)


def _engine(groups: list[Group]) -> tuple[str, str]:
    """Return engine and version; several (a resumed run after an update) are joined, so that it shows."""
    seen = {pair for group in groups for pair in zip(group.values("engine"), group.values("engine_version"), strict=True)}
    return ", ".join(sorted({engine for engine, _ in seen})), ", ".join(sorted({version for _, version in seen}))


def _matrix(plan: Plan) -> dict[str, Any]:
    spec = plan.spec
    return {
        "models": [model.model_id for model in plan.models],
        "quants": list(spec.quants),
        "task_bank": spec.task_bank,
        "task_bank_digest": plan.task_bank_digest,
        "tasks": [task.task_id for task in plan.tasks],
        "task_revision": plan_revision(plan),
        "control_profile": spec.control_profile,
        "runs_per_quant": spec.runs_per_quant,
        "latency_ceiling": spec.policy.latency_ceiling,
        "runtime": spec.runtime,
        "runtime_target": spec.runtime_target,
        "execution_mode": spec.execution_mode,
    }


def _controls_effective(table: TrialTable) -> dict[str, Any]:
    """Return per control the distinct values read back over all trials, sorted; a control nobody could read is an empty list."""
    read = attrgetter(*(f"controls_effective.{name}" for name in _CONTROL_FIELDS))
    seen = set(map(read, table.trials()))
    columns = {name: {values[i] for values in seen} - {None} for i, name in enumerate(_CONTROL_FIELDS)}
    return {name: [list(v) if isinstance(v, tuple) else v for v in sorted(values)] for name, values in columns.items()}


def _kpis(sessions: tuple[Session, ...], table: TrialTable, spec: SweepSpec) -> StabilityKpis:
    """Rates over trials, and the share of sessions with a row that is eligible by its model's limits, without any override."""
    rows = [row for session in sessions for row in session.per_quant]
    replies = [missing_telemetry(group) for group in table.groups.values()]
    replied = sum(total for _, total in replies)
    polluted = sum(int((~group.clean).sum()) for group in table.groups.values())
    strict = [msgspec.structs.replace(spec.policy_of(session.model_id), include_invalid=False) for session in sessions]
    judged = [select(session.per_quant, policy).rows for session, policy in zip(sessions, strict, strict=True)]
    successes = sum(any(row.eligible for row in rows) for rows in judged)
    return StabilityKpis(
        determinism_rate=rounded(determinism_kpi(rows)),
        missing_telemetry_rate=rounded(sum(missing for missing, _ in replies) / replied) or 0.0 if replied else 1.0,
        polluted_run_rate=rounded(polluted / table.counted) or 0.0 if table.counted else 0.0,
        frontier_success_rate=rounded(successes / len(sessions)) or 0.0 if sessions else 0.0,
        quant_rows=len(rows),
        sessions=len(sessions),
        weighted_runs=table.counted,
    )


def _diagnostics(table: TrialTable, plan: Plan) -> RunQualityDiagnostics:
    polluted = [trial for trial in table.trials() if trial.run_quality_status is RunQuality.POLLUTED]
    reasons = Counter(reason.value for trial in polluted for reason in trial.run_quality_reasons)
    clean = table.counted - len(polluted)
    return RunQualityDiagnostics(
        trials=table.counted,
        clean=clean,
        polluted=len(polluted),
        reasons=dict(sorted(reasons.items())),
        superseded_attempts=table.superseded,
        clean_share=rounded(clean / table.counted) if table.counted else None,
        first_attempt_clean_share=rounded(table.first_clean / table.counted) if table.counted else None,
        reruns=table.superseded,
        rerun_budget=rerun_budget(plan),
    )
