"""What a context sweep found, in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fewbits.analysis.wording import listed, percent
from fewbits.records.context import ContextNote, ContextPoint, ContextReason, ContextThresholds
from fewbits.records.estimate import Estimate


def recommendation(points: Sequence[ContextPoint], limits: ContextThresholds, ceiling: int | None) -> str:
    """Say in one or a few sentences how much context is safe, what stopped it, and how sure that is."""
    failed = next((point for point in points if not point.passed), None)
    sentences = [_headline(points, failed, limits, ceiling)]
    if failed is not None:
        above = [point.context for point in points if point.passed and point.context > failed.context]
        if above:
            sentences.append(f"{_contexts(above)} passed above a failing one, which does not count.")
    deciding = [point for point in points if point.uncertain and (failed is None or point.context <= failed.context)]
    if deciding:
        places = [f"{point.context:,} ({listed([UNCERTAIN[reason] for reason in point.uncertain])})" for point in deciding]
        sentences.append(
            f"Not certain, for a limit lies inside the interval or there is none: {listed(places)}. More tasks per depth help."
        )
    beyond = [point.context for point in points if ContextNote.BEYOND_TRAINED_CONTEXT in point.notes]
    if beyond:
        sentences.append(f"The model was not trained for {_contexts(beyond)}.")
    return " ".join(sentences)


def _headline(points: Sequence[ContextPoint], failed: ContextPoint | None, limits: ContextThresholds, ceiling: int | None) -> str:
    if failed is None:
        return f"Up to {tokens(points[-1].context)} is safe: every context measured passed, and none larger was measured."
    if ceiling is None:
        return f"No context is safe: the smallest one, {tokens(failed.context)}, fails because {because(failed, limits)}."
    return f"Up to {tokens(ceiling)} is safe: {tokens(failed.context)} fails because {because(failed, limits)}."


def _contexts(contexts: Sequence[int]) -> str:
    return f"{listed([f'{context:,}' for context in contexts])} tokens"


UNCERTAIN: Mapping[ContextReason, str] = {
    ContextReason.ADHERENCE_BELOW_MIN: "adherence",
    ContextReason.RETENTION_BELOW_MIN: "adherence kept",
    ContextReason.TTFT_ABOVE_CEILING: "time to first token",
}


def tokens(context: int) -> str:
    """Format a context for a sentence (`8,192 tokens`)."""
    return f"{context:,} tokens"


def because(point: ContextPoint, limits: ContextThresholds) -> str:
    """Say why a point failed, with its numbers; no final stop."""
    return listed([_reason_words(reason, point, limits) for reason in point.reasons])


def _reason_words(reason: ContextReason, point: ContextPoint, limits: ContextThresholds) -> str:
    numbers = {
        ContextReason.CONTEXT_NOT_APPLIED: lambda: (
            "nobody could read back how much context the engine gave"
            if point.context_effective is None
            else f"the engine gave {point.context_effective:,} tokens only"
        ),
        ContextReason.PROMPT_OVERFLOW: lambda: (
            f"prompt and answer would need {-(point.headroom_tokens or 0):,} tokens more than there are"
        ),
        ContextReason.CONTEXT_NOT_FILLED: lambda: (
            f"the prompts filled {percent(point.fill_ratio or 0)} of it only (limit {percent(limits.fill_min or 0)})"
        ),
        ContextReason.INVALID_ROW: lambda: (
            f"its row is not valid ({listed([str(code) for code in point.invalid_reasons]) or 'no reason given'})"
        ),
        ContextReason.ADHERENCE_BELOW_MIN: lambda: (
            f"adherence is {percent(_value(point.adherence))} (limit {percent(limits.adherence_min or 0)})"
        ),
        ContextReason.RETENTION_BELOW_MIN: lambda: (
            f"adherence is {percent(_value(point.retention))} of the smallest context's "
            f"(limit {percent(limits.adherence_retention_min or 0)})"
        ),
        ContextReason.TTFT_ABOVE_CEILING: lambda: (
            f"the first token takes {_value(point.ttft_ms):,.0f} ms (limit {limits.ttft_ceiling_ms or 0:,.0f} ms)"
        ),
        ContextReason.DECODE_TPS_BELOW_FLOOR: lambda: (
            f"it writes {point.decode_tps or 0:.3g} tokens per second (limit {limits.decode_floor_tps or 0:g})"
        ),
    }
    return numbers[reason]() if reason in numbers else _PLAIN[reason]


def _value(measured: Estimate | None) -> float:
    return measured.value if measured is not None else math.nan


_PLAIN: Mapping[ContextReason, str] = {
    ContextReason.NOT_RUN: "it was not run, since a smaller context could not be",
    ContextReason.LOAD_FAILED: "the engine could not load the model",
    ContextReason.CONTEXT_TOO_LARGE: "the engine could not load the model with that much context, and could with less",
    ContextReason.ENGINE_FAILED: "the engine broke down",
    ContextReason.NO_SUMMARY: "there is no recorded summary of it",
    ContextReason.NO_ROW: "its summary has no row of this variant",
    ContextReason.FILL_MISSING: "the engine counted no prompt tokens, so nothing shows that the context was filled",
    ContextReason.ADHERENCE_MISSING: "there is no adherence to hold against the limit",
    ContextReason.RETENTION_MISSING: "there is no adherence at the smallest context to compare with",
    ContextReason.TTFT_MISSING: "there is no time to first token to hold against the limit",
    ContextReason.DECODE_TPS_MISSING: "there is no decode rate to hold against the limit",
}
