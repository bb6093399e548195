"""What is said about a row, as plain words: the same in Markdown, on the terminal and in the pictures."""

from __future__ import annotations

from fewbits.records.plan import PolicyName
from fewbits.records.summary import DecisionLog, EfficiencyFrontier, QuantRow, RunQualityDiagnostics, Session
from fewbits.records.variant import WarningCode
from fewbits.report import formats

MINIMUM_VIABLE = "minimum viable"
BEST_VALUE = "best value"

_REASON_WORDS = {
    "FOREIGN_CPU_LOAD": "foreign CPU load",
    "CPU_PRESSURE": "CPU pressure",
    "CPU_STEAL": "CPU stolen by the host",
    "MEMORY_PRESSURE": "memory pressure",
    "IO_PRESSURE": "disk pressure",
    "THERMAL_THROTTLING": "thermal throttling",
    "MISSING_TOKEN_TIMINGS": "missing token timings",
    "CONTROLS_NOT_APPLIED": "controls not applied",
    "HIGH_ORCHESTRATION_OVERHEAD": "high orchestration overhead",
    "NOT_REPORTED": "the runtime did not report it",
    "NOT_STREAMED": "the reply came in one piece",
    "NO_OUTPUT": "nothing was generated",
    "ZERO_DENOMINATOR": "its denominator is zero",
    "TOKEN_STATUS_NOT_OK": "token counts or timings are incomplete",
    "NO_SENSOR": "this machine has no such sensor",
    "REMOTE_PROCESS": "the process that holds the weights is out of reach",
    "NOT_SUPPORTED": "the runtime cannot be told or asked",
    "NO_CHECKS": "no task has checks",
    "NO_REFERENCE": "there is no usable reference",
    "NOTHING_SAVED": "it saves no memory against the reference",
    "TOO_FEW_SAMPLES": "too few samples",
    "TRIAL_FAILED": "the trial failed",
    "NOT_CODE": "the answers are not code",
    "NO_CLEAN_TRIALS": "no clean trial is left",
    "CLOCKS_DISAGREE": "two clocks contradict each other",
    "COUNTS_DISAGREE": "two reported counts contradict each other",
    "NOMINAL_BITS": "there is no file to measure; ranked by its tag",
    "NO_TRIALS": "there are no trials",
    "NO_HISTORY": "nothing was measured before",
    "NOT_IMPORTED": "the older summary does not hold it",
    "INCOMPLETE": "trials are missing",
    "POLLUTED": "polluted",
    "MISSING_TELEMETRY": "missing telemetry",
    "NO_SCORES": "no scores",
    "ADHERENCE_VARIANCE_NON_ZERO": "the score changed between repeats",
    "FAILED_TRIALS": "some repeats failed",
    "FOREIGN_LOAD": "other programs disturbed too many repeats",
    "LATENCY_VARIANCE_THRESHOLD_EXCEEDED": "the latency varied too much",
    "LATENCY_VARIANCE_UNAVAILABLE": "the variation of the latency is unknown",
    "MISSING_TELEMETRY_RATE_EXCEEDED": "too much telemetry is missing",
    "NO_ADHERENCE_SCORES": "there are no scores",
    "TOO_FEW_CLEAN_RUNS": "too few clean repeats",
    "TOO_FEW_LATENCY_SAMPLES": "too few latency samples",
    "NO_DECODE_STEP": "nothing was decoded after the first token",
    "NO_TOKENS": "this kind of work has no tokens",
    "NOT_MEASURED": "it was switched off, or this kind of runtime cannot show it",
    "ALREADY_DECIDED": "there is a verdict already",
    "INSIDE_MARGIN": "the difference is proven to lie inside the margin",
    "PAIRED_LOSS": "a loss on the same items is proven",
    "PAIRED_GAIN": "a gain on the same items is proven",
    "DIVERGENCE_HARM": "its divergence is proven to lie above the harm line",
    "TOO_FEW_ITEMS": "too few items",
    "AT_THE_MARGIN": "the difference seems to lie at the margin itself, so more items like these would not decide",
    "NO_PAIRED_ITEMS": "no item was answered by both it and the reference",
    "SWITCHED_OFF": "switched off",
    "NO_LOG_PROBABILITIES": "the server reports no log-probabilities",
    "NO_ENGINE": "there is no engine here that shows logits",
    "ENGINE_FAILED": "the engine failed",
    "TEXT_TOO_SHORT": "the evaluation text is too short",
    "CALIBRATION_TEXT": "it was calibrated on this very text",
    "VOCABULARY_DIFFERS": "its vocabulary is not the reference's",
    "NOT_RUN": "it was not run",
    "NO_QUANT_MET_LIMITS": "no variant met the limits",
    "NOT_DECIDED": "no variant is proven yet, and at least one is still undecided",
    "REFERENCE_INVALID": "the reference is not valid",
    "REFERENCE_NOT_SCORED": "the reference has no score",
    "REFERENCE_BELOW_FLOOR": "the reference itself is below the floor",
}


def reason_words(code: str) -> str:
    """Return a reason code in words; text that is not a known code comes back as it is."""
    return _REASON_WORDS.get(code, code)


def frontier_role(frontier: EfficiencyFrontier, quant_tag: str) -> str:
    """Return `''`, `minimum_viable`, `best_value` or `minimum_viable+best_value`."""
    roles = []
    if quant_tag == frontier.minimum_viable_quant_tag:
        roles.append("minimum_viable")
    if quant_tag == frontier.best_value_quant_tag:
        roles.append("best_value")
    return "+".join(roles)


def pick_words(session: Session, row: QuantRow) -> tuple[str, ...]:
    """Return which of the two picks a row is, in words."""
    role = frontier_role(session.efficiency_frontier, row.quant_tag)
    return tuple(words for key, words in (("minimum_viable", MINIMUM_VIABLE), ("best_value", BEST_VALUE)) if key in role)


def standing_words(row: QuantRow, policy: PolicyName) -> tuple[str, ...]:
    """Return everything else that decides about a row, except whom it is dominated by: the verdict first, where there is one.

    The adherence limit is a matter of `threshold-v1`; under `three-zone-v1` the verdict stands in its place.
    """
    words = [row.verdict.verdict.value] if row.verdict is not None else []
    if not row.valid:
        words.append("invalid: " + _invalid_words(row))
    if row.is_reference:
        words.append("reference")
    if not row.meets_adherence and (row.verdict is None or policy is PolicyName.THRESHOLD):
        words.append("below the adherence limit")
    if not row.meets_latency:
        words.append("above the latency ceiling")
    if row.on_frontier:
        words.append("on frontier")
    if any(warning.code is WarningCode.LOSSLESS_BY_CONSTRUCTION for warning in row.warnings):
        words.append("lossless by construction")
    return tuple(words)


def _invalid_words(row: QuantRow) -> str:
    reasons = [reason_words(str(reason)) for reason in row.invalid_reasons] or ["no reason recorded"]
    causes = ", ".join(reason_words(str(reason)) for reason in row.run_quality_reasons)
    return ", ".join(reasons) + (f" ({causes})" if causes else "")


_OBJECTIVES = {
    "adherence_score:max": "adherence (more is better)",
    "total_latency:min": "median latency (less)",
    "peak_memory_rss:min": "peak memory (less)",
    "variant_bytes:min": "file size (less)",
}


def objective_words(frontier: EfficiencyFrontier) -> str:
    """Return the objectives of a frontier in words; an objective that is not known comes back as it is."""
    return ", ".join(_OBJECTIVES.get(objective, objective) for objective in frontier.objectives)


def memory_axis(session: Session) -> str | None:
    """Return the words for what the frontier compares as memory (`peak memory`, `file size`); `None` when it does not."""
    objectives = session.efficiency_frontier.objectives
    words = {"peak_memory_rss:min": "peak memory", "variant_bytes:min": "file size"}
    return next((words[objective] for objective in objectives if objective in words), None)


def row_by_tag(session: Session, quant_tag: str | None) -> QuantRow | None:
    """Return the row with that tag; `None` when there is none."""
    return next((row for row in session.per_quant if row.quant_tag == quant_tag), None)


def deciding_words(log: DecisionLog) -> str:
    """Return in one sentence how far deciding got and how much of the full matrix that took."""
    decided, undecided = len(log.decisions), len(log.undecided)
    who = f"{decided} of {decided + undecided} variants decided" if undecided else "Decided"
    opening = f"{who} after {log.items_asked} of {log.items_available} items"
    if not log.trials_full_matrix:
        return f"{opening}."
    return f"{opening}; {formats.percent(log.trials_run / log.trials_full_matrix)} of the full matrix's trials."


def clean_words(quality: RunQualityDiagnostics) -> str:
    """Return how clean the counted trials were, without a full stop."""
    share = f" ({formats.percent(quality.clean_share)})" if quality.clean_share is not None else ""
    return f"{quality.clean} of {quality.trials} trials were clean{share}"


def rerun_words(quality: RunQualityDiagnostics) -> str:
    """Return in one sentence how quiet the machine was before any re-run and what that cost; empty where nobody counted."""
    if quality.first_attempt_clean_share is None:
        return ""
    first = f"At the first attempt {formats.percent(quality.first_attempt_clean_share)} were clean"
    if not quality.rerun_budget:
        return f"{first}."
    return f"{first}; {quality.reruns} of at most {quality.rerun_budget} re-runs were made."


_CHANNELS = {
    "output_text": "output text",
    "finish_reason": "finish reason",
    "output_tokens": "number of output tokens",
    "adherence_score": "adherence score",
}


def channel_words(channel: str) -> str:
    """Return a channel of determinism in words; one that is not known comes back as it is."""
    return _CHANNELS.get(channel, channel)


_BLANKS = str.maketrans({"\n": "⏎", "\r": "⏎", "\t": "⇥"})


def snippet_words(text: str) -> str:
    """Return a piece of output in which blanks at its ends and line breaks can be seen; still foreign, so still to be escaped."""
    if not text:
        return "(the end)"
    shown = text.translate(_BLANKS)
    start, end = len(shown) - len(shown.lstrip(" ")), len(shown) - len(shown.rstrip(" "))
    return "␣" * start + shown.strip(" ") + "␣" * (end if start < len(shown) else 0)
