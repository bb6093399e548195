"""The scatter document: one point per variant, for whatever draws its own picture."""

from __future__ import annotations

from typing import Any

from fewbits.records.summary import QuantRow, Session, SweepSummary
from fewbits.report.verdicts import frontier_role


def scatter_document(summary: SweepSummary, source_summary: str, include_invalid: bool = False) -> dict[str, Any]:
    """Return the points of all sessions as plain JSON values, in the summary's order.

    `source_summary` is the path of the summary as the caller wants it shown. Rows that are not valid are left out unless
    `include_invalid`; `valid` says which they are. Seconds, bytes, tokens per second; missing numbers are `None`.
    """
    points = [_point(session, row) for session in summary.sessions for row in session.per_quant if row.valid or include_invalid]
    return {
        "source_summary": source_summary,
        "execution_lane": summary.execution_lane,
        "vram_profile": summary.vram_profile,
        "include_invalid": include_invalid,
        "points": points,
    }


def _point(session: Session, row: QuantRow) -> dict[str, Any]:
    return {
        "model_id": session.model_id,
        "quant_tag": row.quant_tag,
        "quant_rank": row.quant_rank,
        "bits_per_weight": row.bits_per_weight,
        "generation_tps": row.generation_tokens_per_second,
        "adherence_score": row.adherence_score,
        "adherence_low": row.adherence.low if row.adherence else None,
        "adherence_high": row.adherence.high if row.adherence else None,
        "total_latency": row.total_latency,
        "peak_memory_rss": row.peak_memory_rss,
        "variant_bytes": row.variant_bytes,
        "valid": row.valid,
        "on_frontier": row.on_frontier,
        "frontier_role": frontier_role(session.efficiency_frontier, row.quant_tag),
        "verdict": row.verdict.verdict.value if row.verdict else None,
        "latency_ratio": row.latency_ratio.value if row.latency_ratio else None,
        "divergence_nats": row.divergence.mean_nats.value if row.divergence and row.divergence.mean_nats else None,
        "frontier_probability": row.uncertainty.frontier_probability if row.uncertainty else None,
    }
