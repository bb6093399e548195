"""The evidence behind a recommendation: verdicts and their tests, how sure the choice is, divergence, speed ratios, repeats.

Every block is left out where its records are, so a summary without them renders without these sections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fewbits.records.estimate import Estimate
from fewbits.records.plan import SelectionPolicy
from fewbits.records.summary import (
    DeterminismDetail,
    DivergenceEstimate,
    FirstDivergence,
    QuantRow,
    Session,
    SweepSummary,
    VerdictCode,
    VerdictDetail,
)
from fewbits.report import formats
from fewbits.report.escape import markdown_name, markdown_text
from fewbits.report.tables import bullets, table
from fewbits.report.verdicts import channel_words, deciding_words, reason_words, snippet_words

_DIGEST_DIGITS = 16
_SNIPPET_LIMIT = 60
_METHOD_WORDS = {
    "full_logits": "all logits, at every scored position",
    "server_top_logprobs": "only the tokens that the server reports, so the true divergence is larger",
}


def verdict_blocks(session: Session, policy: SelectionPolicy) -> list[str]:
    """Return what was decided about each variant, when, by which tests, and how sure the choice is."""
    return [*_verdicts(session, policy), *_deciding(session), *_certainty(session)]


def measurement_blocks(session: Session, policy: SelectionPolicy) -> list[str]:
    """Return what was measured beside the answers: divergence, speed inside blocks, repeats."""
    return [*_divergence(session, policy), *_speed(session), *_determinism(session)]


def has_evidence(summary: SweepSummary) -> bool:
    """Tell whether any of these sections has something to show."""
    policies = [(session, session.selection_policy or summary.selection_policy) for session in summary.sessions]
    return any(verdict_blocks(session, policy) or measurement_blocks(session, policy) for session, policy in policies)


def _verdicts(session: Session, policy: SelectionPolicy) -> list[str]:
    judged = [(row, row.verdict) for row in session.per_quant if row.verdict is not None]
    if not judged:
        return []
    header = ("quant", "verdict", "difference", "margin", "items", "smallest loss it would show", "rests on, or lacks")
    rows = [
        [
            markdown_name(row.quant_tag),
            f"**{verdict.verdict.value}**",
            formats.signed_estimate(verdict.difference),
            f"±{formats.score(verdict.margin)}",
            str(verdict.items_used),
            formats.score(verdict.minimum_detectable_effect),
            _grounds(verdict),
        ]
        for row, verdict in judged
    ]
    rule = (
        f"Each variant against {markdown_name(session.baseline_quant)} on the same items. In the whole session, the chance of "
        f"any false WORSE is at most {formats.percent(policy.error_level)} (the divergence test spends "
        f"{formats.percent(policy.divergence_error_level)} of it); so is that of any false EQUIVALENT, and of any false BETTER."
    )
    return [
        "### Verdicts",
        rule,
        table(header, rows, numeric=(2, 3, 4, 5)),
        _verdict_note([verdict for _, verdict in judged]),
        _gaps(session, {"verdict": "verdict"}),
        *_tests(judged),
    ]


def _grounds(verdict: VerdictDetail) -> str:
    words = "; ".join(markdown_text(reason_words(reason.value)) for reason in verdict.reasons) or "no reason recorded"
    if verdict.verdict is VerdictCode.UNRESOLVED and verdict.further_items is not None:
        return f"{words}: about {verdict.further_items:,} more like these would decide"
    if verdict.stopped_after_items is not None:
        return f"{words}; stopped after {verdict.stopped_after_items} items"
    return words


def _verdict_note(verdicts: Sequence[VerdictDetail]) -> str:
    estimates = [verdict.difference for verdict in verdicts if verdict.difference is not None]
    note = "The smallest loss it would show: a true loss of that size is called WORSE with probability 0.8."
    return f"{_brackets(estimates)} {note}".strip()


def _brackets(estimates: Sequence[Estimate]) -> str:
    shown = [estimate for estimate in estimates if estimate.low is not None]
    if not shown:
        return ""
    levels = " and ".join(formats.level(level) for level in sorted({estimate.level for estimate in shown}))
    methods = "; ".join(markdown_text(method) for method in sorted({estimate.method for estimate in shown}))
    return f"Brackets: {levels} intervals ({methods})."


def _tests(judged: Sequence[tuple[QuantRow, VerdictDetail]]) -> list[str]:
    rows = [
        [
            markdown_name(row.quant_tag),
            markdown_text(test.null_hypothesis),
            formats.p_value(test.p_value),
            f"{test.level:.3g}",
            "**refuted**" if test.rejected else "stands",
            markdown_text(test.method),
        ]
        for row, verdict in judged
        for test in verdict.tests
    ]
    if not rows:
        return []
    header = ("quant", "to be refuted", "p", "compared with", "result", "test")
    return ["The tests behind the verdicts:", table(header, rows, numeric=(2, 3))]


def _deciding(session: Session) -> list[str]:
    log = session.decision_log
    if log is None:
        return []
    rows = [
        [
            markdown_name(decision.quant_tag),
            decision.verdict.value,
            str(decision.after_items),
            str(decision.after_block),
            formats.p_value(decision.p_value),
        ]
        for decision in log.decisions
    ]
    undecided = ", ".join(markdown_name(tag) for tag in log.undecided)
    stopped = " A variant gets no further items once its verdict stands." if log.trials_run < log.trials_full_matrix else ""
    return [
        "### When it was decided",
        deciding_words(log) + stopped,
        table(("quant", "verdict", "after items", "after block", "p"), rows, numeric=(2, 3, 4)) if rows else "",
        f"Not decided: {undecided}." if undecided else "",
    ]


def _certainty(session: Session) -> list[str]:
    known = [(row, row.uncertainty) for row in session.per_quant if row.uncertainty is not None]
    if not known:
        return []
    rows = [
        [
            markdown_name(row.quant_tag),
            formats.percent(found.frontier_probability),
            formats.percent(found.minimum_viable_probability),
            formats.percent(found.best_value_probability),
        ]
        for row, found in known
    ]
    resamples = " or ".join(f"{number:,}" for number in sorted({found.resamples for _, found in known}))
    return [
        "### How sure the choice is",
        f"How often each variant came out on top when the items were drawn anew ({resamples} times), judged by the point values "
        "alone:",
        table(("quant", "on the frontier", "minimum viable", "best value"), rows, numeric=(1, 2, 3)),
        _gaps(session, {"uncertainty": "such probability"}, with_reference=True),
    ]


def _divergence(session: Session, policy: SelectionPolicy) -> list[str]:
    measured = [(row, row.divergence) for row in session.per_quant if row.divergence is not None]
    missing = _gaps(session, {"divergence": "divergence"})
    if not measured:
        return ["### Divergence from the reference", missing] if missing else []
    header = (
        "quant",
        "mean KL, nats per token",
        "surely above",
        "99th percentile",
        "same most likely token",
        "perplexity ratio",
    )
    rows = [
        [
            markdown_name(row.quant_tag),
            formats.nats_estimate(found.mean_nats) + (" (below the floor)" if found.below_floor else ""),
            formats.nats(found.lower_bound),
            formats.nats_estimate(found.p99_nats),
            formats.percent_estimate(found.top_token_agreement),
            formats.score_estimate(found.perplexity_ratio),
        ]
        for row, found in measured
    ]
    return [
        "### Divergence from the reference",
        table(header, rows, numeric=range(1, len(header))),
        bullets(_divergence_notes([found for _, found in measured], policy)),
        "\n".join(part for part in (missing, _divergence_gaps(session)) if part),
    ]


def _divergence_notes(found: Sequence[DivergenceEstimate], policy: SelectionPolicy) -> list[str]:
    """Say once per distinct instrument what was measured how, then what the numbers mean."""
    notes = list(dict.fromkeys(_instrument(one) for one in found))
    floors = list(dict.fromkeys(formats.nats(one.floor_nats) for one in found if one.floor_nats is not None))
    if floors:
        notes.append(
            f"The floor: {' or '.join(floors)} nats separate the reference from itself, computed another way. "
            "A mean that is not above it cannot be told from none."
        )
    else:
        notes.append("The floor of the instrument was not measured.")
    hidden = [one.truncation_nats for one in found if one.truncation_nats is not None]
    if hidden:
        notes.append(f"Keeping only the most likely tokens hides at most {formats.nats(max(hidden))} nats, on audited positions.")
    notes.append(
        f"The harm line is {formats.nats(policy.divergence_harm_nats)} nats: a mean that is proven to lie above it counts as "
        "WORSE. A small divergence alone proves nothing about answers."
    )
    estimates = [one for item in found for one in (item.mean_nats, item.p99_nats, item.top_token_agreement) if one is not None]
    return [note for note in (*notes, _brackets(estimates)) if note]


def _instrument(found: DivergenceEstimate) -> str:
    perplexity = f", reference perplexity {found.reference_perplexity:.4g}" if found.reference_perplexity is not None else ""
    return (
        f"On the text {markdown_name(found.text_name)} (sha256 {markdown_name(found.text_digest[:_DIGEST_DIGITS])}…), "
        f"{found.windows} windows, {found.positions:,} positions, by {markdown_text(f'{found.engine} {found.engine_version}')}: "
        f"{markdown_text(_METHOD_WORDS.get(found.method, found.method))}; top {found.top_k} kept{perplexity}."
    )


def _divergence_gaps(session: Session) -> str:
    fields = {
        "mean_nats": "mean divergence",
        "p99_nats": "99th percentile",
        "top_token_agreement": "share of equal tokens",
        "perplexity_ratio": "perplexity ratio",
        "lower_bound": "lower limit",
    }
    rows = [(row.quant_tag, row.divergence.unavailable) for row in session.per_quant if row.divergence is not None]
    return _gap_sentences(rows, fields)


_RATIOS = {
    "latency_ratio": "latency ratio",
    "generation_rate_ratio": "tokens/s ratio",
    "prompt_rate_ratio": "prompt tokens/s ratio",
}


def _speed(session: Session) -> list[str]:
    estimates = [ratio for row in session.per_quant for ratio in _ratios(row) if ratio is not None]
    if not estimates:
        return []
    header = (
        "quant",
        "median latency",
        "to the reference",
        "tokens/s",
        "to the reference",
        "prompt tokens/s",
        "to the reference",
    )
    rows = [_speed_row(row) for row in session.per_quant]
    note = (
        "Ratios are medians over pairs of clean trials of the same item in the same block: a machine that grew slower or faster "
        "during the run changes the absolute numbers, but not these."
    )
    return [
        "### Speed",
        table(header, rows, numeric=range(1, len(header))),
        f"{note} {_brackets(estimates)}".strip(),
        _gaps(session, _RATIOS),
    ]


def _ratios(row: QuantRow) -> tuple[Estimate | None, ...]:
    return (row.latency_ratio, row.generation_rate_ratio, row.prompt_rate_ratio)


def _speed_row(row: QuantRow) -> list[str]:
    absolute = (
        formats.seconds(row.total_latency),
        formats.rate(row.generation_tokens_per_second),
        formats.rate(row.prompt_tokens_per_second),
    )
    ratios = ["reference"] * 3 if row.is_reference else [formats.score_estimate(ratio) for ratio in _ratios(row)]
    return [markdown_name(row.quant_tag), *(cell for pair in zip(absolute, ratios, strict=True) for cell in pair)]


def _determinism(session: Session) -> list[str]:
    sentences = [_repeat_sentence(row, row.determinism) for row in session.per_quant if row.determinism is not None]
    if not sentences:
        return []
    gaps = _gaps(session, {"determinism": "repeats"}, with_reference=True)
    return ["### Does it repeat itself?", "\n".join(part for part in (bullets(sentences), gaps) if part)]


def _repeat_sentence(row: QuantRow, found: DeterminismDetail) -> str:
    name = markdown_name(row.quant_tag)
    if not found.cells:
        return f"{name}: nothing was asked twice."
    cells = "1 task was" if found.cells == 1 else f"{found.cells} tasks were"
    verdict = "and every repeat was the same" if found.deterministic else "and repeats differed"
    floor = (
        f" (at least {formats.percent(found.agreement_floor)} with 95 % confidence)" if found.agreement_floor is not None else ""
    )
    sentence = (
        f"{name}: {cells} asked more than once with the same seed, {verdict}. Same output "
        f"{formats.percent(found.same_output_rate)}{floor}, same score {formats.percent(found.same_outcome_rate)}."
    )
    return f"{sentence} {_first_difference(found.first_divergence)}" if found.first_divergence is not None else sentence


def _first_difference(found: FirstDivergence) -> str:
    place = f" after {found.position:,} characters" if found.position is not None else ""
    first, second = (markdown_text(snippet_words(text), _SNIPPET_LIMIT) for text in (found.first, found.second))
    return (
        f"First difference: task {markdown_name(found.task_id)}, {markdown_text(channel_words(found.channel))}{place}, "
        f"“{first}” against “{second}”."
    )


def _gaps(session: Session, fields: Mapping[str, str], *, with_reference: bool = False) -> str:
    """Explain every missing number of these fields that has a recorded reason, once per reason.

    The reference has nothing to be compared with, which needs no explanation.
    """
    rows = [row for row in session.per_quant if with_reference or not row.is_reference]
    return _gap_sentences([(row.quant_tag, row.unavailable) for row in rows], fields)


def _gap_sentences(rows: Sequence[tuple[str, Mapping[str, str]]], fields: Mapping[str, str]) -> str:
    concerned: dict[tuple[str, str], list[str]] = {}
    for tag, unavailable in rows:
        for field, words in fields.items():
            if field in unavailable:
                concerned.setdefault((words, unavailable[field]), []).append(markdown_name(tag))
    return bullets(
        [
            f"{', '.join(tags)} {'has' if len(tags) == 1 else 'have'} no {words}: {markdown_text(reason_words(reason))}."
            for (words, reason), tags in concerned.items()
        ]
    )
