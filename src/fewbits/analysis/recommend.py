"""Which variants meet the limits, and the two that are recommended: a total order, so the same rows give the same picks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from fewbits.analysis.frontier import Frontier, FrontierPoint, memory_axis, pareto_frontier
from fewbits.records.plan import PolicyName, SelectionPolicy
from fewbits.records.summary import EfficiencyFrontier, FrontierReason, MinimumKind, QuantRow, VerdictCode

TOLERANCE = 1e-9
"""Limits are inclusive; 0.95 x 0.8 must not exclude 0.76 by rounding."""
ACCEPTED = frozenset({VerdictCode.EQUIVALENT, VerdictCode.BETTER})
"""Verdicts with which a variant may be recommended under `three-zone-v1`; the reference needs none."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Rows with eligibility and frontier filled in (order kept), and the picks among them (`None`: nothing qualifies)."""

    rows: tuple[QuantRow, ...]
    reference: QuantRow | None
    minimum_adherence: float | None
    minimum_viable: QuantRow | None
    best_value: QuantRow | None
    reason: FrontierReason
    objectives: tuple[str, ...]

    @property
    def pareto_quant_tags(self) -> tuple[str, ...]:
        """Tags on the frontier, most bits per weight first."""
        members = [row for row in self.rows if row.on_frontier]
        return tuple(row.quant_tag for row in sorted(members, key=lambda row: -row.quant_rank))


def select(rows: Sequence[QuantRow], policy: SelectionPolicy) -> Selection:
    """Judge the rows of one model and choose. Order of the rows never matters to the result.

    A row takes part when it is valid, or has the numbers and `include_invalid` is on. Under `threshold-v1` it is eligible when
    its adherence reaches both the floor and the threshold's share of the reference; under `three-zone-v1` when its verdict is
    `EQUIVALENT` or `BETTER` (or it is the reference) and its adherence reaches the floor. Both ask for the latency ceiling. The
    reference must itself be valid (or let in) and above the floor; otherwise nothing is recommended: the bar means nothing.
    Under `three-zone-v1` nothing is recommended either while only the reference qualifies and another variant is undecided.
    """
    reference = next((row for row in rows if row.is_reference), None)
    reason = _reference_problem(reference, policy)
    minimum = None
    if reference is not None and reference.adherence_score is not None:
        minimum = minimum_adherence(reference.adherence_score, policy)
    frontier = _frontier([row for row in rows if takes_part(row, policy)], reference)
    judged = tuple(_judge(row, policy, minimum, reason, frontier) for row in rows)
    eligible = [row for row in judged if row.eligible]
    axis = memory_axis([row for row in judged if takes_part(row, policy)])
    if reason is FrontierReason.OK and not eligible:
        reason = FrontierReason.NO_QUANT_MET_LIMITS
    if reason is FrontierReason.OK and _is_open(judged, eligible, policy):
        reason, eligible = FrontierReason.NOT_DECIDED, []
    return Selection(
        rows=judged,
        reference=next((row for row in judged if row.is_reference), None),
        minimum_adherence=minimum,
        # ranks are unique in a session: bits per weight, then file size, then tag
        minimum_viable=min(eligible, key=lambda row: (row.quant_rank, row.quant_tag), default=None),
        best_value=min(eligible, key=lambda row: _value_order(row, reference, policy, axis), default=None),
        reason=reason,
        objectives=frontier.objectives,
    )


def takes_part(row: QuantRow, policy: SelectionPolicy) -> bool:
    """Tell whether a row may be compared: it has a score and a latency, and is valid or let in by the override."""
    return row.adherence_score is not None and row.total_latency is not None and (row.valid or policy.include_invalid)


def utility(row: QuantRow) -> float:
    """Adherence per wall-clock second; 0 where either is missing or no time passed. Source: roadmap, phase 4, item 3."""
    if row.adherence_score is None or row.total_latency is None or row.total_latency <= 0:
        return 0.0
    return row.adherence_score / row.total_latency


def minimum_adherence(reference_score: float, policy: SelectionPolicy) -> float:
    """Return what a point estimate is held against: a share of the reference's or the margin's edge, never below the floor."""
    if policy.name is PolicyName.THRESHOLD:
        return max(policy.adherence_floor, policy.adherence_threshold * reference_score)
    return max(policy.adherence_floor, reference_score - policy.equivalence_margin)


def is_undecided(row: QuantRow) -> bool:
    """Tell whether a row was compared with the reference and nothing about it is proven yet."""
    return row.verdict is not None and row.verdict.verdict is VerdictCode.UNRESOLVED


def _is_open(rows: Sequence[QuantRow], eligible: Sequence[QuantRow], policy: SelectionPolicy) -> bool:
    """Tell whether nothing but the reference is proven while another variant may still turn out to be."""
    if policy.name is PolicyName.THRESHOLD or any(not row.is_reference for row in eligible):
        return False
    return any(is_undecided(row) and takes_part(row, policy) for row in rows)


def comparable_latency(row: QuantRow, reference: QuantRow | None) -> float | None:
    """Return median seconds on the reference's items: the reference's median x the ratio within blocks, where there is one.

    Deciding asks some variants fewer items than others, so their own medians are not of the same work.
    """
    if row.is_reference or reference is None or reference.total_latency is None or row.latency_ratio is None:
        return row.total_latency
    return reference.total_latency * row.latency_ratio.value


def comparable_adherence(row: QuantRow, reference: QuantRow | None) -> float | None:
    """Return adherence on the reference's items: the reference's mean + the paired difference, where there is one."""
    if row.is_reference or reference is None or reference.adherence_score is None or row.adherence_difference is None:
        return row.adherence_score
    return reference.adherence_score + row.adherence_difference.value


def _value_order(
    row: QuantRow, reference: QuantRow | None, policy: SelectionPolicy, axis: str | None
) -> tuple[float, float, float, int, str]:
    """Best first. `axis` names the size that memory is compared by.

    `threshold-v1`: utility, then adherence, then lower latency, then more bits per weight, then tag (roadmap, phase 4). Under
    `three-zone-v1` the accepted are as good as the reference, so: lower latency, then less memory, then fewer bits, then tag.
    """
    if policy.name is PolicyName.THRESHOLD:
        return (-round(utility(row), 9), -(row.adherence_score or 0.0), row.total_latency or 0.0, -row.quant_rank, row.quant_tag)
    latency = comparable_latency(row, reference) or 0.0
    memory = float(getattr(row, axis)) if axis else 0.0
    return (round(latency, 6), memory, 0.0, row.quant_rank, row.quant_tag)


def _reference_problem(reference: QuantRow | None, policy: SelectionPolicy) -> FrontierReason:
    if reference is None:
        return FrontierReason.NO_REFERENCE
    if reference.adherence_score is None:
        return FrontierReason.REFERENCE_NOT_SCORED
    if not takes_part(reference, policy):
        return FrontierReason.REFERENCE_INVALID
    if reference.adherence_score < policy.adherence_floor - TOLERANCE or reference.adherence_score <= 0:
        return FrontierReason.REFERENCE_BELOW_FLOOR
    return FrontierReason.OK


def _frontier(rows: Sequence[QuantRow], reference: QuantRow | None) -> Frontier:
    points = []
    for row in rows:
        adherence, latency = comparable_adherence(row, reference), comparable_latency(row, reference)
        if adherence is not None and latency is not None:
            # six decimals, as stored: a difference and a mean that were rounded apart must not break a tie
            point = FrontierPoint(row.quant_tag, round(adherence, 6), round(latency, 6), row.peak_memory_rss, row.variant_bytes)
            points.append(point)
    return pareto_frontier(points)


def _judge(row: QuantRow, policy: SelectionPolicy, minimum: float | None, reason: FrontierReason, frontier: Frontier) -> QuantRow:
    meets_adherence = row.adherence_score is not None and minimum is not None and row.adherence_score >= minimum - TOLERANCE
    meets_latency = row.total_latency is not None and row.total_latency <= policy.latency_ceiling + TOLERANCE
    dominators = frontier.dominated_by.get(row.quant_tag)
    return msgspec.structs.replace(
        row,
        meets_adherence=meets_adherence,
        meets_latency=meets_latency,
        eligible=reason is FrontierReason.OK
        and takes_part(row, policy)
        and (meets_adherence if policy.name is PolicyName.THRESHOLD else _is_accepted(row, policy))
        and meets_latency,
        on_frontier=dominators == (),
        dominated_by=dominators or (),
    )


def _is_accepted(row: QuantRow, policy: SelectionPolicy) -> bool:
    proven = row.is_reference or (row.verdict is not None and row.verdict.verdict in ACCEPTED)
    return proven and row.adherence_score is not None and row.adherence_score >= policy.adherence_floor - TOLERANCE


def frontier_block(selection: Selection, policy: SelectionPolicy) -> EfficiencyFrontier:
    """Return the selection in the summary's shape."""
    minimum = selection.minimum_viable.quant_tag if selection.minimum_viable else None
    return EfficiencyFrontier(
        adherence_threshold=policy.adherence_threshold,
        adherence_floor=policy.adherence_floor,
        minimum_adherence=None if selection.minimum_adherence is None else round(selection.minimum_adherence, 6),
        minimum_kind=MinimumKind.LIMIT if policy.name is PolicyName.THRESHOLD else MinimumKind.MARGIN_EDGE,
        latency_ceiling=policy.latency_ceiling,
        objectives=selection.objectives,
        pareto_quant_tags=selection.pareto_quant_tags,
        minimum_viable_quant_tag=minimum,
        best_value_quant_tag=selection.best_value.quant_tag if selection.best_value else None,
        optimal_quant_tag=minimum,
        reason=selection.reason,
    )
