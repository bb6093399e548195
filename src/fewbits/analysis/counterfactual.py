"""What would change the picks, in one sentence: what happens when the items are drawn anew, and what lies close to the bar."""

from __future__ import annotations

from collections.abc import Sequence

from fewbits.analysis.recommend import is_undecided, minimum_adherence, utility
from fewbits.analysis.uncertainty import SelectionUncertainty
from fewbits.analysis.wording import percent, points
from fewbits.records.plan import PolicyName, SelectionPolicy
from fewbits.records.summary import QuantRow, VerdictCode

SAME_SHARE = 0.0005
"""Shares that differ by less print as the same, so no sentence speaks of the difference."""


def would_change(
    uncertainty: SelectionUncertainty | None,
    rows: Sequence[QuantRow],
    *,
    minimum_viable: str | None,
    best_value: str | None,
    policy: SelectionPolicy,
) -> str:
    """Return one plain sentence on what would change the picks; empty without resamples.

    It is about the pick that other items would change more often. `rows` are those of the summary, verdicts included.
    """
    if uncertainty is None:
        return ""
    races = (
        ("the fewest bits", minimum_viable, uncertainty.rival(uncertainty.minimum_viable, minimum_viable), _why_smaller),
        ("the best value", best_value, uncertainty.rival(uncertainty.best_value, best_value), _why_better),
    )
    purpose, pick, rival, why = max(races, key=lambda race: race[2].share if race[2] else 0.0)
    if rival is None:
        return _settled(uncertainty, minimum_viable, best_value, policy)
    instead = f"pick {rival.quant_tag} instead of {pick}" if pick is not None else f"would pick {rival.quant_tag}"
    by_tag = {row.quant_tag: row for row in rows}
    other = by_tag.get(rival.quant_tag)
    reason = why(by_tag.get(pick or ""), other, rows, policy) if other is not None else ""
    sentence = f"Drawn anew, {percent(rival.share)} of the samples of items {instead} for {purpose}"
    return f"{sentence}: {reason}." if reason else f"{sentence}."


def _settled(uncertainty: SelectionUncertainty, smallest: str | None, best: str | None, policy: SelectionPolicy) -> str:
    """Nobody else is ever picked."""
    samples = f"{uncertainty.resamples:,} samples of items"
    if not uncertainty.minimum_viable or smallest is None or best is None:
        return f"Drawn anew, none of {samples} gives a variant that qualifies: only other limits or other work would change that."
    picks = smallest if smallest == best else f"{smallest} and {best}"
    if uncertainty.minimum_viable[0].share < 1:
        return f"Drawn anew, some of {samples} leave no variant that qualifies, and all others pick {picks} again."
    bar = "threshold" if policy.name is PolicyName.THRESHOLD else "margin"
    return f"Drawn anew, all {samples} pick {picks} again: only another {bar}, another machine or other work would change it."


def _why_smaller(pick: QuantRow | None, rival: QuantRow, rows: Sequence[QuantRow], policy: SelectionPolicy) -> str:
    """A rival with more bits wins only where the pick falls; one with fewer bits only where it holds up itself."""
    if pick is not None and rival.quant_rank > pick.quant_rank:
        return _place(pick, rows, policy, narrowly="only ")
    return _place(rival, rows, policy)


def _why_better(pick: QuantRow | None, rival: QuantRow, rows: Sequence[QuantRow], policy: SelectionPolicy) -> str:
    """A rival that does not qualify now must first hold up; one that does must be faster, or give more for its time."""
    room = _room(rival, rows, policy)
    if pick is None or (room is not None and room < 0) or _is_undecided(rival, policy):
        return _place(rival, rows, policy)
    if policy.name is PolicyName.THRESHOLD:
        verb, noun, base, own = "it gives", "quality per second", utility(pick), utility(rival)
    else:
        verb, noun, base, own = "it takes", "time a task", pick.total_latency or 0.0, rival.total_latency or 0.0
    if base <= 0 or abs(own / base - 1) < SAME_SHARE:
        return ""
    return f"{verb} {percent(abs(own / base - 1))} {'less' if own < base else 'more'} {noun}"


def _is_undecided(row: QuantRow, policy: SelectionPolicy) -> bool:
    return is_undecided(row) and policy.name is PolicyName.THREE_ZONE


def _place(row: QuantRow, rows: Sequence[QuantRow], policy: SelectionPolicy, narrowly: str = "") -> str:
    """Say where a row lies: on which side of the bar and how far from it."""
    room = _room(row, rows, policy)
    if room is None:
        return ""
    bar, good, bad = ("bar", "above", "below") if policy.name is PolicyName.THRESHOLD else ("margin's edge", "inside", "outside")
    if abs(room) < SAME_SHARE:
        return f"{row.quant_tag} lies right at the {bar}"
    distance = points(abs(room)).lstrip("+")
    if room < 0:
        return f"{row.quant_tag} lies {distance} {bad} the {bar}"
    proof = _proof(row, policy)
    return f"{row.quant_tag} lies {'' if proof else narrowly}{distance} {good} the {bar}{proof}"


def _proof(row: QuantRow, policy: SelectionPolicy) -> str:
    """Say why a row on the good side of the margin is no pick: the point is not what decides."""
    if policy.name is PolicyName.THREE_ZONE and row.verdict is not None and row.verdict.verdict is VerdictCode.WORSE:
        return ", but it is proven worse"
    return ", which is not proven yet" if _is_undecided(row, policy) else ""


def _room(row: QuantRow, rows: Sequence[QuantRow], policy: SelectionPolicy) -> float | None:
    """Return how far a row lies on the good side of the bar (adherence, -1..1): negative on the bad side."""
    if policy.name is PolicyName.THRESHOLD:
        reference = next((other for other in rows if other.is_reference), None)
        if row.adherence_score is None or reference is None or reference.adherence_score is None:
            return None
        return row.adherence_score - minimum_adherence(reference.adherence_score, policy)
    difference = row.verdict.difference if row.verdict is not None else row.adherence_difference
    return None if difference is None else difference.value + policy.equivalence_margin
