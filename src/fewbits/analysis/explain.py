"""The recommendation in sentences: why, what is uncertain, what would decide it. Every number is the summary's own."""

from __future__ import annotations

import math
from collections.abc import Iterable

from fewbits.analysis.explain_zones import zones_because, zones_headline, zones_missing
from fewbits.analysis.phrases import invalid_words, memory_words
from fewbits.analysis.recommend import Selection, utility
from fewbits.analysis.wording import apart, count, listed, percent, points
from fewbits.core.units import format_seconds
from fewbits.records.base import Unavailable
from fewbits.records.estimate import Estimate
from fewbits.records.plan import PolicyName, SelectionPolicy
from fewbits.records.summary import FrontierReason, QuantRow, RecommendationDetail
from fewbits.records.variant import WarningCode

Span = tuple[float | None, float | None]

MIN_TASKS_TO_EXTRAPOLATE = 10
"""The width of an interval from fewer tasks is itself too uncertain to plan the next run with."""


_NO_BAR = frozenset(
    {
        FrontierReason.NO_REFERENCE,
        FrontierReason.REFERENCE_INVALID,
        FrontierReason.REFERENCE_NOT_SCORED,
        FrontierReason.REFERENCE_BELOW_FLOOR,
    }
)


def explain(selection: Selection, policy: SelectionPolicy, would_change: str = "") -> tuple[str, RecommendationDetail]:
    """Return the headline (one or two sentences) and the detail behind it; `would_change` is passed through."""
    zones = policy.name is PolicyName.THREE_ZONE and selection.reason not in _NO_BAR
    detail = RecommendationDetail(
        minimum_viable_quant=selection.minimum_viable.quant_tag if selection.minimum_viable else None,
        best_value_quant=selection.best_value.quant_tag if selection.best_value else None,
        because=tuple(zones_because(selection, policy) if zones else _because(selection, policy)),
        uncertain=tuple(_zones_uncertain(selection, policy) if zones else _uncertain(selection, policy)),
        missing=tuple(zones_missing(selection, policy)) if zones else (),
        would_change=would_change,
    )
    return (zones_headline if zones else _headline)(selection, policy), detail


def _zones_uncertain(selection: Selection, policy: SelectionPolicy) -> Iterable[str]:
    """Yield what the verdicts do not cover."""
    for row in _picks(selection):
        if is_lossless(row) and not row.is_reference:
            yield _lossless_sentence(row)
    yield from _close_race(selection)
    yield from _caveats(selection, policy)


def is_lossless(row: QuantRow) -> bool:
    """Tell whether a row equals the reference by construction, so that its score says nothing about its bits."""
    return any(warning.code is WarningCode.LOSSLESS_BY_CONSTRUCTION for warning in row.warnings)


def _picks(selection: Selection) -> tuple[QuantRow, ...]:
    both = (selection.minimum_viable, selection.best_value)
    return tuple({row.quant_tag: row for row in both if row is not None}.values())


def _headline(selection: Selection, policy: SelectionPolicy) -> str:
    smallest, best = selection.minimum_viable, selection.best_value
    if smallest is None or best is None:
        return f"No recommendation. {_why_none(selection, policy)}"
    if smallest.quant_tag == best.quant_tag:
        text = f"Use {smallest.quant_tag}: the fewest bits that hold up ({_facts(smallest)}), and the best value too."
    else:
        text = (
            f"Use {smallest.quant_tag} for the fewest bits that hold up ({_facts(smallest)}), "
            f"or {best.quant_tag} for the most quality per second ({_facts(best)})."
        )
    if smallest.is_reference:
        text += f" Nothing smaller than the reference {smallest.quant_tag} met the limits."
    elif is_lossless(smallest):
        text += f" {_lossless_sentence(smallest)}"
    elif _may_miss(smallest, policy):
        text += f" {count(smallest.tasks, 'task')} cannot prove it yet."
    return text


def _facts(row: QuantRow) -> str:
    score = percent(row.adherence_score or 0.0)
    parts = [f"{score} of the checks met", f"{format_seconds(row.total_latency)} a task"]
    if row.bits_per_weight is not None:
        parts.insert(0, f"{row.bits_per_weight:.1f} bits per weight")
    return ", ".join(parts)


def _why_none(selection: Selection, policy: SelectionPolicy) -> str:
    reference = selection.reference
    name = reference.quant_tag if reference else "the reference"
    why = invalid_words(reference) if reference else ""
    score = percent(reference.adherence_score) if reference and reference.adherence_score is not None else "nothing"
    sentences = {
        FrontierReason.NO_REFERENCE: "There is no reference variant to compare with.",
        FrontierReason.REFERENCE_NOT_SCORED: f"The reference {name} has no score, so there is no bar to set.",
        FrontierReason.REFERENCE_INVALID: f"The reference {name} is not valid ({why}), so the bar would mean nothing.",
        FrontierReason.REFERENCE_BELOW_FLOOR: (
            f"The reference {name} itself scores {score}, under the floor of {percent(policy.adherence_floor)}: "
            "this model cannot do this work at any precision."
        ),
        FrontierReason.NO_QUANT_MET_LIMITS: "No variant met the limits.",
        FrontierReason.NOT_DECIDED: "",
        FrontierReason.OK: "",
    }
    return sentences[selection.reason]


def _because(selection: Selection, policy: SelectionPolicy) -> Iterable[str]:
    reference, minimum = selection.reference, selection.minimum_adherence
    if selection.reason in _NO_BAR:
        yield _why_none(selection, policy)
        return
    if reference is not None and reference.adherence_score is not None and minimum is not None:
        yield _bar(reference, minimum, policy)
    smallest, best = selection.minimum_viable, selection.best_value
    if smallest is not None:
        yield f"{smallest.quant_tag} is the smallest that clears it: {_facts(smallest)}, {memory_words(smallest)}."
        if is_lossless(smallest) and not smallest.is_reference:
            yield from _beyond_lossless(selection)
    if best is not None:
        yield from _best_value(selection, best)
    for row in selection.rows:
        if not row.eligible:
            yield _rejection(row, policy, minimum)


def _bar(reference: QuantRow, minimum: float, policy: SelectionPolicy) -> str:
    relative = policy.adherence_threshold * (reference.adherence_score or 0.0) >= policy.adherence_floor
    score = percent(reference.adherence_score or 0.0)
    origin = (
        f"{percent(policy.adherence_threshold)} of the {score} that {reference.quant_tag} scores"
        if relative
        else "the floor of the policy"
    )
    return f"The bar: {percent(minimum)} of the checks met ({origin}), at most {format_seconds(policy.latency_ceiling)} a task."


def _beyond_lossless(selection: Selection) -> Iterable[str]:
    others = [row for row in selection.rows if row.eligible and not is_lossless(row) and not row.is_reference]
    if others:
        row = min(others, key=lambda row: row.quant_rank)
        yield (
            f"The smallest that really gave up bits and still clears the bar is {row.quant_tag}: "
            f"{_facts(row)}, {memory_words(row)}."
        )
    else:
        yield "No variant that really gave up bits clears the bar."


def _best_value(selection: Selection, best: QuantRow) -> Iterable[str]:
    rivals = [row for row in selection.rows if row.eligible and row.quant_tag != best.quant_tag]
    if not rivals:
        yield f"{best.quant_tag} is the only one that qualifies, so it is the best value too."
        return
    second = max(rivals, key=lambda row: (utility(row), row.quant_rank, row.quant_tag))
    yield (
        f"{best.quant_tag} gives the most quality per second: {utility(best):.2f} against {utility(second):.2f} "
        f"for {second.quant_tag} (share of checks met per second)."
    )


def _rejection(row: QuantRow, policy: SelectionPolicy, minimum: float | None) -> str:
    if not row.valid and not policy.include_invalid:
        return f"{row.quant_tag} is out: {invalid_words(row)}."
    problems = []
    if row.adherence_score is None or row.total_latency is None:
        problems.append("it has no score or no time")
    else:
        if not row.meets_adherence and minimum is not None:
            score, bar = apart(row.adherence_score, minimum)
            problems.append(f"{score} of the checks met is under the bar of {bar}")
        if not row.meets_latency:
            problems.append(f"{format_seconds(row.total_latency)} a task is over the limit")
    return f"{row.quant_tag} is out: {listed(problems)}."


def _uncertain(selection: Selection, policy: SelectionPolicy) -> Iterable[str]:
    for row in _picks(selection):
        if is_lossless(row) and not row.is_reference:
            yield _lossless_sentence(row)
        elif not row.is_reference and row.adherence_difference is not None:
            yield from _against_reference(row, row.adherence_difference, policy, selection.reference)
    yield from _near_misses(selection, policy)
    yield from _close_race(selection)
    yield from _caveats(selection, policy)


def _lossless_sentence(row: QuantRow) -> str:
    return (
        f"{row.quant_tag} is the type the source file already had: it equals the reference by construction, "
        "so its score says nothing about what so few bits cost."
    )


def _against_reference(row: QuantRow, difference: Estimate, policy: SelectionPolicy, reference: QuantRow | None) -> Iterable[str]:
    name = reference.quant_tag if reference else "the reference"
    if difference.low is None or difference.high is None:
        yield f"{row.quant_tag} against {name}: no interval, {difference.reason}."
        return
    span = f"{points(difference.low)} to {points(difference.high)}"
    if difference.low <= 0 <= difference.high:
        yield (
            f"{count(difference.n, 'task')} cannot tell {row.quant_tag} from {name}: "
            f"the difference is {points(difference.value)}, but anything from {span} fits."
        )
    else:
        verb = "loses to" if difference.high < 0 else "beats"
        evidence = f"{points(difference.value)} ({span}, {count(difference.n, 'task')})"
        yield f"{row.quant_tag} {verb} {name} by more than chance: {evidence}."
    if _may_miss(row, policy) and row.adherence_ratio is not None and row.adherence_ratio.low is not None:
        yield (
            f"{row.quant_tag} may miss the bar: it keeps {percent(row.adherence_ratio.value)} of {name}'s score, "
            f"yet {percent(row.adherence_ratio.low)} is not excluded and {percent(policy.adherence_threshold)} is asked."
            f"{_tasks_to_decide(row.adherence_ratio, policy.adherence_threshold)}"
        )


def _may_miss(row: QuantRow, policy: SelectionPolicy) -> bool:
    ratio = row.adherence_ratio
    return ratio is not None and (ratio.low is None or ratio.low < policy.adherence_threshold)


def _tasks_to_decide(ratio: Estimate, threshold: float) -> str:
    """Say how many tasks would bring the limit to the threshold: an interval shrinks with the square root of n."""
    gap = abs(ratio.value - threshold)
    limit = ratio.low if ratio.value >= threshold else ratio.high
    if ratio.n < MIN_TASKS_TO_EXTRAPOLATE:
        return ""
    if limit is None or gap < 0.005:
        return " It is too close to the bar for more tasks to settle."
    needed = ratio.n * ((ratio.value - limit) / gap) ** 2
    magnitude = 10 ** max(0, math.floor(math.log10(max(needed, 1))) - 1)
    return f" About {math.ceil(needed / magnitude) * magnitude:,} tasks would settle it, if it stays as measured."


def _near_misses(selection: Selection, policy: SelectionPolicy) -> Iterable[str]:
    for row in selection.rows:
        ratio = row.adherence_ratio
        if row.meets_adherence or row.is_reference or not (row.valid or policy.include_invalid) or ratio is None:
            continue
        if (
            ratio.high is not None
            and ratio.high >= policy.adherence_threshold
            and (row.adherence_score or 0) >= policy.adherence_floor
        ):
            yield (
                f"{row.quant_tag} was turned down at {percent(ratio.value)} of the reference's score, but "
                f"{count(ratio.n, 'task')} do not exclude that it reaches {percent(policy.adherence_threshold)}."
                f"{_tasks_to_decide(ratio, policy.adherence_threshold)}"
            )


def _close_race(selection: Selection) -> Iterable[str]:
    best = selection.best_value
    if best is None:
        return
    by_ratio = all(row.is_reference or row.latency_ratio is not None for row in selection.rows if row.eligible)
    spans = {row.quant_tag: _speed_span(row, by_ratio=by_ratio) for row in selection.rows if row.eligible}
    own = spans.get(best.quant_tag)
    rivals = [row for row in selection.rows if row.eligible and row.quant_tag != best.quant_tag]
    close = [row for row in rivals if own is not None and (span := spans[row.quant_tag]) is not None and _overlap(own, span)]
    if close:
        others = listed([f"{row.quant_tag} ({format_seconds(row.total_latency)})" for row in close])
        yield (
            f"In speed, {best.quant_tag} ({format_seconds(best.total_latency)}) cannot be told from {others}: "
            "the best value may be luck."
        )


def _speed_span(row: QuantRow, *, by_ratio: bool) -> Span | None:
    """Return the interval of a row's speed: as a ratio to the reference within blocks, which no drift of the machine blurs."""
    if by_ratio and row.is_reference:
        return (1.0, 1.0)
    estimate = row.latency_ratio if by_ratio else row.latency_median
    return None if estimate is None else (estimate.low, estimate.high)


def _overlap(one: Span, other: Span) -> bool:
    """Tell whether two intervals share a point; an open side (`None`) reaches everywhere."""
    lows = [-math.inf if low is None else low for low, _ in (one, other)]
    highs = [math.inf if high is None else high for _, high in (one, other)]
    return max(lows) <= min(highs)


def _caveats(selection: Selection, policy: SelectionPolicy) -> Iterable[str]:
    rows = selection.rows
    reference = selection.reference
    if reference and any(warning.code is WarningCode.DEQUANTIZED_REFERENCE for warning in reference.warnings):
        yield (
            f"The reference {reference.quant_tag} was made from weights that were already quantized: "
            "what that first step cost is not measured here."
        )
    for row in _picks(selection):
        yield from (warning.message for warning in row.warnings if warning.code is WarningCode.FALLBACK_TYPES)
    expected, made = sum(row.expected_runs for row in rows), sum(row.test_runs for row in rows)
    if made < expected:
        yield f"{expected - made:,} of the {expected:,} planned trials {'is' if expected - made == 1 else 'are'} missing."
    polluted = sum(row.test_runs - row.clean_runs for row in rows)
    if polluted:
        verb = "was" if polluted == 1 else "were"
        yield f"{polluted:,} of {made:,} trials ({percent(polluted / made)}) {verb} not CLEAN and left out of the timings."
    failed = [(row, row.test_runs - row.status_counts.ok) for row in rows if row.test_runs > row.status_counts.ok]
    if failed:
        yield f"Failed trials count as 0: {listed([f'{row.quant_tag} {number} of {row.test_runs}' for row, number in failed])}."
    let_in = [row.quant_tag for row in rows if not row.valid]
    if policy.include_invalid and let_in:
        yield f"Invalid rows were let in on request: {listed(let_in)}."
    nominal = [row.quant_tag for row in rows if row.unavailable.get("bits_per_weight") == Unavailable.NOMINAL_BITS]
    if nominal:
        yield f"No file to measure for {listed(nominal)}: ranked by the bits that the tag stands for."
    unknown = [row.quant_tag for row in rows if row.unavailable.get("bits_per_weight") == Unavailable.NOT_REPORTED]
    if unknown:
        yield f"Bits per weight unknown: {listed(unknown)}. Ranked above all others, so never taken for the smallest."
    if any(row.test_runs for row in rows) and not any(row.determinism is not None and row.determinism.cells for row in rows):
        yield "Each task was answered once per variant, so whether the same seed gives the same text is not shown."
