"""The recommendation of `three-zone-v1` in sentences: what is proven, what is not, and what that would take."""

from __future__ import annotations

from collections.abc import Iterable

from fewbits.analysis.phrases import invalid_words, memory_words
from fewbits.analysis.recommend import ACCEPTED, Selection, comparable_latency, is_undecided, takes_part
from fewbits.analysis.wording import count, listed, percent, points
from fewbits.core.units import format_seconds
from fewbits.records.plan import SelectionPolicy
from fewbits.records.summary import FrontierReason, QuantRow, VerdictCode, VerdictDetail, VerdictReason


def zones_headline(selection: Selection, policy: SelectionPolicy) -> str:
    """Return one or two sentences: what to use, or why nothing can be named yet. The reference is known to be usable."""
    smallest, best = selection.minimum_viable, selection.best_value
    name = selection.reference.quant_tag if selection.reference else "the reference"
    if selection.reason is FrontierReason.NOT_DECIDED:
        return f"Not decided yet: {_nearest(selection, policy)} Until then {name} is the safe choice."
    if smallest is None or best is None:
        return (
            f"No variant met the limits: none is proven to keep up with {name} within {format_seconds(policy.latency_ceiling)}."
        )
    if len(selection.rows) == 1:
        return f"{name} is the only variant, so there is nothing to compare it with."
    if smallest.is_reference and best.is_reference:
        return f"Keep {name}: no smaller variant is proven to keep up with it{_worse_words(selection)}."
    if smallest.quant_tag == best.quant_tag:
        proof = _proof(smallest, name)
        return f"Use {smallest.quant_tag}: {proof}. Of all that are proven it has the fewest bits and is the fastest."
    return (
        f"Use {smallest.quant_tag} for the fewest bits ({_proof(smallest, name)}), or {best.quant_tag} for speed "
        f"({'the reference itself' if best.is_reference else _proof(best, name)})."
    )


def zones_because(selection: Selection, policy: SelectionPolicy) -> Iterable[str]:
    """Yield the bar and one sentence per variant that has a verdict."""
    reference = selection.reference
    if reference is None:
        return
    margin, level = points(policy.equivalence_margin).removeprefix("+"), percent(policy.error_level)
    yield (
        f"The bar: proven to be within {margin} of {reference.quant_tag}'s {percent(reference.adherence_score or 0.0)} of the "
        f"checks met, or better, with at most {level} risk of one false claim in the whole session; "
        f"at most {format_seconds(policy.latency_ceiling)} a task."
    )
    for row in selection.rows:
        if row.verdict is not None and not is_undecided(row):
            yield _verdict_sentence(row, row.verdict, reference, policy)
        elif not row.is_reference and not takes_part(row, policy):
            yield f"{row.quant_tag} is out: {_out_words(row)}."
    best = selection.best_value
    if best is not None and not best.is_reference:
        yield f"{best.quant_tag} is the fastest of the proven: {_speed(best, reference)}, {memory_words(best)}."


def zones_missing(selection: Selection, policy: SelectionPolicy) -> Iterable[str]:
    """Yield per undecided variant what is missing before it can be judged."""
    for row, verdict in _open_verdicts(selection, policy):
        yield _open_sentence(row, verdict)


def _nearest(selection: Selection, policy: SelectionPolicy) -> str:
    """Say how many items were not enough, and which undecided variant the fewest further items would decide."""
    verdicts = _open_verdicts(selection, policy)
    tried = max((verdict.items_used for _, verdict in verdicts), default=0)
    opening = f"{count(tried, 'task')} prove for no smaller variant that it keeps up."
    hopeful = [(verdict.further_items, row.quant_tag) for row, verdict in verdicts if verdict.further_items is not None]
    if not hopeful:
        return opening
    further, tag = min(hopeful)
    return f"{opening} {tag} is nearest: about {count(further, 'further task')} like these would decide it."


def _open_verdicts(selection: Selection, policy: SelectionPolicy) -> list[tuple[QuantRow, VerdictDetail]]:
    """Return the undecided variants that take part, with their verdicts."""
    return [
        (row, row.verdict) for row in selection.rows if row.verdict is not None and is_undecided(row) and takes_part(row, policy)
    ]


def _worse_words(selection: Selection) -> str:
    worse = [row.quant_tag for row in selection.rows if row.verdict is not None and row.verdict.verdict is VerdictCode.WORSE]
    return f" ({listed(worse)} {'is' if len(worse) == 1 else 'are'} proven worse)" if worse else ""


def _proof(row: QuantRow, reference: str) -> str:
    verdict = row.verdict
    if verdict is None:
        return "the reference itself"
    word = "better than" if verdict.verdict is VerdictCode.BETTER else "equivalent to"
    bits = f"{row.bits_per_weight:.1f} bits per weight, " if row.bits_per_weight is not None else ""
    return f"{bits}proven {word} {reference} on {count(verdict.items_used, 'task')}"


def _span(verdict: VerdictDetail) -> str:
    difference = verdict.difference
    if difference is None or difference.low is None or difference.high is None:
        return "no paired task"
    span = f"{points(difference.low)} to {points(difference.high)}"
    return f"{points(difference.value)} ({span}, {count(verdict.items_used, 'task')})"


def _verdict_sentence(row: QuantRow, verdict: VerdictDetail, reference: QuantRow, policy: SelectionPolicy) -> str:
    margin = points(policy.equivalence_margin).removeprefix("+")
    if verdict.verdict is VerdictCode.EQUIVALENT:
        aside = ""
        if VerdictReason.PAIRED_LOSS in verdict.reasons:
            aside = "; a loss is proven, but smaller than the margin"
        sentence = f"{row.quant_tag} is EQUIVALENT to {reference.quant_tag}: {_span(verdict)}, inside {margin} either way{aside}"
    elif verdict.verdict is VerdictCode.BETTER:
        sentence = f"{row.quant_tag} is BETTER than {reference.quant_tag}: {_span(verdict)}"
    elif VerdictReason.DIVERGENCE_HARM in verdict.reasons:
        sentence = f"{row.quant_tag} is WORSE: {_divergence_words(row, policy)}; on the tasks {_span(verdict)}"
    else:
        sentence = f"{row.quant_tag} is WORSE than {reference.quant_tag}: {_span(verdict)}"
    return sentence + _but(row, verdict, policy) + "."


def _but(row: QuantRow, verdict: VerdictDetail, policy: SelectionPolicy) -> str:
    """Say why an accepted variant is still not eligible; empty when it is, or was never accepted."""
    if row.eligible or verdict.verdict not in ACCEPTED:
        return ""
    if not takes_part(row, policy):
        return f"; but it is out: {_out_words(row)}"
    if not row.meets_latency:
        return f"; but {format_seconds(row.total_latency)} a task is over the limit"
    return (
        f"; but {percent(row.adherence_score or 0.0)} of the checks met is under the floor of {percent(policy.adherence_floor)}"
    )


def _divergence_words(row: QuantRow, policy: SelectionPolicy) -> str:
    mean = row.divergence.mean_nats.value if row.divergence and row.divergence.mean_nats else None
    measured = f"{mean:.2f} nats a token" if mean is not None else "its divergence"
    return f"{measured} away from the reference, beyond the harm line of {policy.divergence_harm_nats:g}"


def _open_sentence(row: QuantRow, verdict: VerdictDetail) -> str:
    if verdict.further_items is not None:
        outlook = f"about {count(verdict.further_items, 'further task')} like these would decide"
    elif verdict.items_used:
        outlook = "it seems to lie at the margin itself, so more tasks like these would not decide"
    else:
        outlook = "it has no task in common with the reference"
    seen = ""
    if verdict.minimum_detectable_effect is not None:
        loss = points(verdict.minimum_detectable_effect).removeprefix("+")
        seen = f" So far only a loss of {loss} or more would have been seen (with 80 % probability)."
    return f"{row.quant_tag}: {_span(verdict)}; {outlook}.{seen}"


def _out_words(row: QuantRow) -> str:
    return invalid_words(row) or "it has no score or no time"


def _speed(row: QuantRow, reference: QuantRow) -> str:
    ratio = row.latency_ratio
    if ratio is None or ratio.low is None or ratio.high is None:
        return f"{format_seconds(comparable_latency(row, reference))} a task"
    return f"{ratio.value:.2f} of {reference.quant_tag}'s time within a block ({ratio.low:.2f} to {ratio.high:.2f})"
