"""From a summary to the frontier explorer artifact: a selection of what is already known, nothing computed anew. Pure."""

from __future__ import annotations

from typing import Any

from fewbits.records.base import Unavailable
from fewbits.records.explorer import ArtifactProvenance
from fewbits.records.frontier_artifact import FrontierArtifact, FrontierQuantRow, FrontierSession
from fewbits.records.summary import QuantRow, Session, SweepSummary

_TAKEN_OVER = (
    "quant_tag",
    "quant_rank",
    "is_reference",
    "variant_sha256",
    "variant_bytes",
    "bits_per_weight",
    "adherence_score",
    "adherence",
    "adherence_difference",
    "total_latency",
    "latency_median",
    "latency_ratio",
    "prompt_tokens_per_second",
    "generation_tokens_per_second",
    "peak_memory_rss",
    "peak_memory_gpu_bytes",
    "test_runs",
    "run_quality_status",
    "valid",
    "invalid_reasons",
    "eligible",
    "on_frontier",
    "dominated_by",
)
_COMPARED = frozenset({"adherence_difference", "latency_ratio", "verdict"})
"""What the reference itself cannot have."""
_EXPLAINED_AS = {
    "adherence": "adherence_score",
    "latency_median": "total_latency",
    "frontier_probability": "uncertainty",
    "minimum_viable_probability": "uncertainty",
    "best_value_probability": "uncertainty",
}
"""Fields whose reason the summary gives under another name."""


def frontier_artifact(
    summary: SweepSummary, *, provenance: ArtifactProvenance, source_summary: str, generated_at: str
) -> FrontierArtifact:
    """Return the artifact of a summary. `generated_at` (UTC, ISO 8601) is the only thing that is not of the summary."""
    return FrontierArtifact(
        generated_at=generated_at,
        execution_lane=summary.execution_lane,
        vram_profile=summary.vram_profile,
        provenance=provenance,
        hardware_fingerprint=summary.hardware_fingerprint,
        source_summary=source_summary,
        summary_complete=summary.complete,
        plan_digest=summary.provenance.plan_digest,
        first_trial_at=summary.provenance.first_trial_at,
        last_trial_at=summary.provenance.last_trial_at,
        imported_from=summary.provenance.imported_from,
        sessions=tuple(_session(session, summary) for session in summary.sessions),
    )


def _session(session: Session, summary: SweepSummary) -> FrontierSession:
    policy, frontier = session.selection_policy or summary.selection_policy, session.efficiency_frontier
    return FrontierSession(
        model_id=session.model_id,
        engine=session.engine,
        engine_version=session.engine_version,
        baseline_quant=session.baseline_quant,
        selection_policy=policy.name,
        adherence_threshold=frontier.adherence_threshold,
        adherence_floor=frontier.adherence_floor,
        minimum_adherence=frontier.minimum_adherence,
        latency_ceiling=frontier.latency_ceiling,
        minimum_viable_quant=frontier.minimum_viable_quant_tag,
        best_value_quant=frontier.best_value_quant_tag,
        frontier_reason=frontier.reason,
        recommendation=session.recommendation,
        objectives=frontier.objectives,
        pareto_quant_tags=frontier.pareto_quant_tags,
        quant_rows=tuple(_row(row, session) for row in session.per_quant),
    )


def _row(row: QuantRow, session: Session) -> FrontierQuantRow:
    chance, frontier = row.uncertainty, session.efficiency_frontier
    fields: dict[str, Any] = {
        **{name: getattr(row, name) for name in _TAKEN_OVER},
        "verdict": row.verdict.verdict if row.verdict else None,
        "frontier_probability": chance.frontier_probability if chance else None,
        "minimum_viable_probability": chance.minimum_viable_probability if chance else None,
        "best_value_probability": chance.best_value_probability if chance else None,
    }
    return FrontierQuantRow(
        **fields,
        verdict_reasons=row.verdict.reasons if row.verdict else (),
        is_minimum_viable=row.quant_tag == frontier.minimum_viable_quant_tag,
        is_best_value=row.quant_tag == frontier.best_value_quant_tag,
        unavailable={name: _why(name, row) for name, value in sorted(fields.items()) if value is None},
    )


def _why(name: str, row: QuantRow) -> str:
    """Return the summary's own reason; where it has none for this field, what its absence means there."""
    if name in row.unavailable:
        return row.unavailable[name]
    if name in _COMPARED:
        return str(Unavailable.NO_REFERENCE if row.is_reference else Unavailable.NOT_MEASURED)
    return row.unavailable.get(_EXPLAINED_AS.get(name, name), str(Unavailable.NOT_MEASURED))
