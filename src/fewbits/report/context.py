"""The context ceiling as Markdown and as plain text: one table for each variant, and one answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fewbits.analysis.context_words import UNCERTAIN
from fewbits.analysis.wording import count, listed
from fewbits.core.units import format_seconds
from fewbits.records.context import (
    ContextCeilingArtifact,
    ContextNote,
    ContextPoint,
    ContextRollupArtifact,
    ContextThresholds,
    VariantCeiling,
)
from fewbits.records.estimate import Estimate
from fewbits.report import formats
from fewbits.report.escape import markdown_name, markdown_text, visible
from fewbits.report.tables import bullets, table

_DETAIL_LIMIT = 300
_HEADER = (
    "context",
    "read back",
    "prompt tokens",
    "full",
    "adherence",
    "kept",
    "first token",
    "prompt tokens/s",
    "decode tokens/s",
    "peak memory",
    "verdict",
)


def render_context_markdown(artifact: ContextCeilingArtifact) -> str:
    """Return the report as Markdown, ending in a newline. Every name and message is escaped."""
    blocks = ["# How much context is safe"]
    for ceiling in artifact.ceilings:
        blocks += _variant_blocks(ceiling)
    blocks += ["## Limits", bullets([markdown_text(line) for line in _limit_lines(artifact.thresholds)])]
    blocks += ["## How to read it", _legend(), _provenance(artifact)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _variant_blocks(ceiling: VariantCeiling) -> list[str]:
    words = "none" if ceiling.safe_context_ceiling is None else f"{ceiling.safe_context_ceiling:,} tokens"
    blocks = [
        f"## {markdown_name(ceiling.quant_tag)} of {markdown_name(ceiling.model_id)}: {words}",
        f"> {markdown_text(ceiling.recommendation)}",
        table(_HEADER, [_row(point) for point in ceiling.points], numeric=range(10)),
    ]
    depths = _depth_table(ceiling)
    if depths:
        blocks += ["Adherence by kind and depth (in parentheses: the number of tasks):", depths]
    memory = _memory_lines(ceiling)
    details = [f"{point.context:,}: {markdown_text(point.detail, _DETAIL_LIMIT)}" for point in ceiling.points if point.detail]
    return [*blocks, bullets([*memory, *details])]


def _row(point: ContextPoint) -> list[str]:
    return [
        f"{point.context:,}",
        _number(point.context_effective),
        _number(point.prompt_tokens),
        formats.percent(point.fill_ratio),
        formats.score_estimate(point.adherence),
        formats.percent_estimate(point.retention),
        _milliseconds(point.ttft_ms),
        formats.rate(point.prompt_tps),
        formats.rate(point.decode_tps),
        formats.size(point.peak_memory_bytes),
        _verdict(point),
    ]


def _number(value: int | None) -> str:
    return formats.MISSING if value is None else f"{value:,}"


def _milliseconds(measured: Estimate | None) -> str:
    """Format an estimate in milliseconds as seconds, the bounds too."""
    if measured is None:
        return formats.MISSING
    bounds = ""
    if measured.low is not None and measured.high is not None:
        bounds = f" [{format_seconds(measured.low / 1000)}, {format_seconds(measured.high / 1000)}]"
    return format_seconds(measured.value / 1000) + bounds


def _verdict(point: ContextPoint) -> str:
    words = "**passed**" if point.passed else "failed: " + ", ".join(f"`{reason.value}`" for reason in point.reasons)
    if point.uncertain:
        words += f"; not certain: {listed([UNCERTAIN[reason] for reason in point.uncertain])}"
    if ContextNote.BEYOND_TRAINED_CONTEXT in point.notes:
        words += "; beyond the trained context"
    return words


def _depth_table(ceiling: VariantCeiling) -> str:
    places = list(dict.fromkeys((score.kind, score.depth) for point in ceiling.points for score in point.adherence_by_depth))
    if not places:
        return ""
    header = ["context", *(kind.value if depth is None else f"{kind.value} at {depth:g}" for kind, depth in places)]
    rows = []
    for point in ceiling.points:
        scores = {(score.kind, score.depth): score for score in point.adherence_by_depth}
        cells = [
            f"{formats.score_estimate(scores[place].adherence)} ({scores[place].tasks})" if place in scores else formats.MISSING
            for place in places
        ]
        rows.append([f"{point.context:,}", *cells])
    return table(header, rows, numeric=range(len(header)))


def _memory_lines(ceiling: VariantCeiling) -> list[str]:
    """What the context costs in memory: measured between the smallest and the largest one, and derived for the cache."""
    lines = []
    known = [point for point in ceiling.points if point.peak_memory_bytes is not None]
    if len(known) > 1:
        first, last = known[0], known[-1]
        growth = (last.peak_memory_bytes or 0) - (first.peak_memory_bytes or 0)
        each = formats.size(round(growth / (last.context - first.context)))
        lines.append(
            f"Measured: {each} of peak memory for each further token of context ({first.context:,} to {last.context:,})."
        )
    caches = [point for point in ceiling.points if point.kv_cache_bytes is not None]
    if caches:
        words = listed([f"{formats.size(point.kv_cache_bytes)} at {point.context:,}" for point in caches])
        lines.append(f"Derived from the file: a 16-bit KV cache takes {words}.")
    if ceiling.trained_context is not None:
        lines.append(f"The model was trained for {ceiling.trained_context:,} tokens.")
    return lines


def _limit_lines(limits: ContextThresholds) -> list[str]:
    named = f"Limits of the profile {limits.profile}, unless flags replaced them." if limits.profile else ""
    lines = [
        _limit("mean adherence at least", formats.percent(limits.adherence_min), limits.adherence_min),
        _limit(
            "adherence kept, against the smallest context, at least",
            formats.percent(limits.adherence_retention_min),
            limits.adherence_retention_min,
        ),
        _limit(
            "median time to first token at most",
            format_seconds((limits.ttft_ceiling_ms or 0) / 1000),
            limits.ttft_ceiling_ms,
        ),
        _limit("decode rate at least", f"{formats.rate(limits.decode_floor_tps)} tokens/s", limits.decode_floor_tps),
        _limit("prompts fill at least", f"{formats.percent(limits.fill_min)} of the context (median)", limits.fill_min),
    ]
    if limits.include_invalid:
        lines.append("Override: points pass although their row is not valid.")
    return [line for line in (named, *lines) if line]


def _limit(words: str, shown: str, value: float | None) -> str:
    return f"{words} {shown}" if value is not None else f"not checked: {words.removesuffix(' at least').removesuffix(' at most')}"


def _legend() -> str:
    return (
        "A context passes when the engine really had it, the prompts filled it, the row is valid, and every limit is met. The "
        "safe ceiling is the largest context such that it and every smaller one pass. *kept* is adherence divided by adherence "
        "at the smallest context, on the same questions. Brackets: 95 % intervals; the estimate decides, and *not certain* says "
        "that a limit lies inside the interval, or that there is none."
    )


def _provenance(artifact: ContextCeilingArtifact) -> str:
    ref = markdown_text(artifact.provenance.ref) or "no ref given"
    sources = ", ".join(markdown_name(source.path) for source in artifact.provenance.sources) or "none"
    return (
        f"Made {markdown_text(artifact.generated_at)} by fewbits {markdown_text(artifact.provenance.fewbits_version)} "
        f"({ref}), lane {markdown_text(artifact.execution_lane)}, profile {markdown_text(artifact.vram_profile)}, on "
        f"{markdown_text(artifact.hardware_fingerprint)}. Read: {sources}."
    )


# --- plain text ------------------------------------------------------------------------------------------------------


def render_context_text(artifact: ContextCeilingArtifact) -> str:
    """Return the answer for a terminal: one sentence and one line per context, for each variant."""
    lines = []
    for ceiling in artifact.ceilings:
        lines.append(f"{visible(ceiling.model_id)} {visible(ceiling.quant_tag)}: {visible(ceiling.recommendation)}")
        lines += [f"  {_text_row(point)}" for point in ceiling.points]
    return "\n".join(lines) + "\n"


def _text_row(point: ContextPoint) -> str:
    numbers = (
        ("adherence", formats.score_estimate(point.adherence)),
        ("kept", formats.percent_estimate(point.retention)),
        ("first token", _milliseconds(point.ttft_ms)),
        ("tokens/s", formats.rate(point.decode_tps)),
        ("memory", formats.size(point.peak_memory_bytes)),
        ("full", formats.percent(point.fill_ratio)),
    )
    shown = ", ".join(f"{name} {value}" for name, value in numbers if value != formats.MISSING)
    verdict = "pass" if point.passed else f"FAIL {' '.join(point.reasons)}"
    return f"{point.context:>10,}  {verdict}" + (f"  {shown}" if shown else "")


def render_rollup_text(rollup: ContextRollupArtifact) -> str:
    """Return the rollup for a terminal."""
    lines = [_rollup_line("all variants", rollup.safe_context_ceiling, rollup.contexts_passed, rollup.contexts_total)]
    lines += [
        _rollup_line(
            f"{visible(variant.model_id)} {visible(variant.quant_tag)}",
            variant.safe_context_ceiling,
            variant.contexts_passed,
            variant.contexts_total,
        )
        for variant in rollup.variants
    ]
    return "\n".join(lines) + "\n"


def _rollup_line(name: str, ceiling: int | None, passed: int, total: int) -> str:
    words = "none" if ceiling is None else f"{ceiling:,} tokens"
    return f"{name}: safe ceiling {words}, {passed} of {count(total, 'context')} passed"


def render_dry_run_text(document: Mapping[str, Any]) -> str:
    """Return what a dry run found."""
    tags: Sequence[str] = document["quant_tags"]
    lines = [
        f"model      {visible(document['model_id'])}: {visible(', '.join(tags))} on {visible(document['runtime'])}",
        f"tasks      {len(document['tasks'])} per context and variant, {document['trials_total']} trials in all",
    ]
    for row in document["contexts"]:
        low, high = row["prompt_tokens"]
        timeout = format_seconds(row["trial_timeout_seconds"])
        lines.append(
            f"context    {row['context']:>10,}  prompts of about {low:,} to {high:,} tokens, at most {timeout} each, "
            f"into {visible(row['run_folder'])}"
        )
    lines += [f"writes     {visible(path)}" for path in document["artifacts"]]
    return "\n".join([*lines, "Dry run: nothing was written."]) + "\n"
