"""A single run as plain text."""

from __future__ import annotations

from fewbits.analysis.wording import percent, points
from fewbits.core.units import format_bytes, format_seconds
from fewbits.records.task_run import TaskRun
from fewbits.report.escape import NAME_LIMIT, visible

_SHOWN_CHARACTERS = 120


def render_task_run(result: TaskRun) -> str:
    """Return outcome, numbers, baseline and what was saved, ending in a newline."""
    name = visible(f"{result.test_id} · {result.model_id} {result.quant_tag}", NAME_LIMIT)
    lines = [f"{name}: {result.outcome.upper()}", *_numbers(result), *_baseline(result), *_saved(result)]
    lines.append("  determinism: not determinable from a single run (`fewbits determinism --runs 3`)")
    return "\n".join(lines) + "\n"


def _numbers(result: TaskRun) -> list[str]:
    score = "no score" if result.adherence_score is None else f"{percent(result.adherence_score)} of the checks met"
    seconds, memory = result.telemetry.total_latency, result.telemetry.peak_memory_rss
    reasons = f" ({', '.join(result.run_quality_reasons)})" if result.run_quality_reasons else ""
    quality = f"{result.run_quality_status.value}{reasons}"
    answer = f"  answer: {visible(result.output_text, _SHOWN_CHARACTERS)}" if result.output_text.strip() else ""
    failure = f"  failed: {visible(result.failure)}" if result.failure else ""
    numbers = f"  {score} · {format_seconds(seconds)} · {format_bytes(memory)} peak · {quality}"
    return [line for line in (answer, failure, numbers) if line]


def _baseline(result: TaskRun) -> list[str]:
    found = result.baseline
    if found.baseline_ref is None:
        return [f"  baseline {found.status.value}: {visible(found.detail)}"]
    parts = [visible(found.detail)]
    if found.adherence_difference is not None:
        parts.append(f"adherence {points(found.adherence_difference.value)}")
    if found.latency_ratio is not None:
        parts.append(f"{found.latency_ratio.value:.2f} of its time")
    if found.memory_ratio is not None:
        parts.append(f"{found.memory_ratio:.2f} of its memory")
    if found.same_weights is False:
        parts.append("other weights than the baseline's")
    return [f"  baseline OK: {' · '.join(parts)} (one run each: no interval)"]


def _saved(result: TaskRun) -> list[str]:
    saved = result.saved_baseline
    if saved is None:
        return []
    because = ", ".join(saved.refused_because)
    if not saved.saved:
        return [f"  not saved as a baseline: {because} (--force stores it all the same, marked)"]
    mark = f", forced in spite of {because}" if saved.forced else ""
    return [f"  saved as baseline {visible(str(saved.test_run_id))} in {visible(saved.storage_root)}{mark}"]
