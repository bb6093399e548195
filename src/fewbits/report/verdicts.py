"""What is said about a row, as plain words: the same in Markdown, on the terminal and in the pictures."""

from __future__ import annotations

from fewbits.records.summary import EfficiencyFrontier, QuantRow, Session
from fewbits.records.variant import WarningCode

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


def standing_words(row: QuantRow) -> tuple[str, ...]:
    """Return everything else that decides about a row, except whom it is dominated by."""
    words = []
    if not row.valid:
        words.append("invalid: " + _invalid_words(row))
    if row.is_reference:
        words.append("reference")
    if not row.meets_adherence:
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
