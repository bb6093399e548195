"""The report that a person reads: recommendation first, then the evidence, then how it was made."""

from __future__ import annotations

from fewbits.records.estimate import Estimate
from fewbits.records.plan import PolicyName, SelectionPolicy
from fewbits.records.summary import QuantRow, Session, SweepSummary
from fewbits.report import formats
from fewbits.report.detection import detection_blocks
from fewbits.report.escape import markdown_name, markdown_text
from fewbits.report.evidence import measurement_blocks, verdict_blocks
from fewbits.report.extraction import extraction_blocks, extraction_estimates
from fewbits.report.lab import lab_blocks
from fewbits.report.method import legend_section, method_section, reproduce_section, stability_section
from fewbits.report.picture import render_frontier_text
from fewbits.report.sidecar import sidecar_blocks
from fewbits.report.svg import frontier_svg_name
from fewbits.report.tables import bullets, table
from fewbits.report.verdicts import (
    memory_axis,
    objective_words,
    pick_words,
    reason_words,
    row_by_tag,
    standing_words,
)

_WARNED = " †"


def render_markdown(summary: SweepSummary, include_invalid: bool = False) -> str:
    """Return the whole report as Markdown (GitHub flavour), ending in a newline. It links `frontier_svg_name(model)` per session.

    Rows that are not valid stay in the tables, in italics with the reason; they are drawn only with `include_invalid`.
    Every name and message is escaped: no HTML, no extra table cells, no hidden or direction-changing characters.
    """
    blocks = ["# Which quantization to use", *_notices(summary, include_invalid)]
    for session in summary.sessions:
        blocks += _session_blocks(session, summary, include_invalid)
    if not summary.sessions:
        blocks.append("No model was measured, so there is nothing to recommend.")
    blocks += method_section(summary)
    blocks += stability_section(summary)
    blocks += reproduce_section(summary)
    blocks += legend_section(summary)
    return "\n\n".join(block for block in blocks if block) + "\n"


def _notices(summary: SweepSummary, include_invalid: bool) -> list[str]:
    notices = []
    if summary.provenance.imported_from is not None:
        version = markdown_name(summary.provenance.imported_from.schema_version)
        notices.append(f"> **Imported** from schema {version}: words below mean less than usual. See *Where this comes from*.")
    if not summary.complete:
        notices.append(
            f"> **This sweep is not complete:** {summary.trials_counted} of {summary.trials_expected} planned trials are in. "
            "Everything below may still change. Run the same command again to continue."
        )
    if summary.canary.enabled and summary.canary.passed is False:
        notices.append(
            "> **The canary failed:** repeated runs of one cell did not agree, so differences below may be the machine's, "
            "not the variants'. See *How it was measured*."
        )
    if summary.selection_policy.include_invalid:
        notices.append("> **Override:** polluted and invalid rows were allowed to take part in the recommendation.")
    if include_invalid:
        notices.append("> Invalid rows are drawn in the pictures, because that was asked for.")
    return notices


def _session_blocks(session: Session, summary: SweepSummary, include_invalid: bool) -> list[str]:
    model, policy = markdown_name(session.model_id), session.selection_policy or summary.selection_policy
    return [
        f"## {model}",
        _recommendation(session),
        "### The variants",
        _main_table(session, policy.name),
        _gaps(session),
        *_source_warnings(session),
        *detection_blocks(session),
        *extraction_blocks(session),
        "### The frontier",
        "```text\n" + render_frontier_text(session, include_invalid) + "\n```",
        f"![Adherence against median latency]({frontier_svg_name(session.model_id)})",
        _frontier_note(session, policy),
        *verdict_blocks(session, policy),
        "### What is uncertain",
        _uncertainty(session, summary),
        *_bucket_blocks(session),
        *measurement_blocks(session, policy),
        "### The files and the trials",
        _files_table(session),
        _trials_table(session),
        *lab_blocks(session),
        *sidecar_blocks(session),
    ]


def _recommendation(session: Session) -> str:
    """Return the card: the pick as a heading, its numbers, the other pick, the reasons."""
    frontier = session.efficiency_frontier
    picks = list(dict.fromkeys((frontier.minimum_viable_quant_tag, frontier.best_value_quant_tag)))
    rows = [row for row in (row_by_tag(session, tag) for tag in picks) if row is not None]
    lines: list[str] = []
    if rows:
        lines += [f"## Use {markdown_name(rows[0].quant_tag)}", "", markdown_text(session.recommendation), ""]
        lines += [_pick_line(session, row) for row in rows]
        reference = row_by_tag(session, session.baseline_quant)
        if reference is not None and reference not in rows:
            lines.append(f"- *reference:* {markdown_name(reference.quant_tag)}: {_numbers(reference)}")
    else:
        lines += ["## No variant is recommended", "", markdown_text(session.recommendation)]
    detail = session.recommendation_detail
    for heading, sentences in (("Because", detail.because), ("Not decided", detail.missing)):
        if sentences:
            lines += ["", f"**{heading}**", "", *(f"- {markdown_text(sentence)}" for sentence in sentences)]
    if detail.would_change:
        lines += ["", f"**What would change it:** {markdown_text(detail.would_change)}"]
    return "\n".join(f"> {line}".rstrip() for line in lines)


def _pick_line(session: Session, row: QuantRow) -> str:
    roles = " and ".join(pick_words(session, row))
    return f"- **{roles}:** {markdown_name(row.quant_tag)}: {_numbers(row)}"


def _numbers(row: QuantRow) -> str:
    return ", ".join(
        [
            f"{formats.bits(row.bits_per_weight)} bits per weight",
            f"adherence {_adherence(row)}",
            f"{_latency(row)} median",
            f"{formats.rate(row.generation_tokens_per_second)} tokens/s",
            f"{formats.size(row.peak_memory_rss)} peak memory",
            f"{formats.size(row.variant_bytes)} file",
        ]
    )


def _adherence(row: QuantRow) -> str:
    return formats.score_estimate(row.adherence) if row.adherence else formats.score(row.adherence_score)


def _latency(row: QuantRow) -> str:
    return formats.seconds_estimate(row.latency_median) if row.latency_median else formats.seconds(row.total_latency)


def _main_table(session: Session, policy: PolicyName) -> str:
    header = (
        "quant",
        "bits per weight",
        "size",
        "adherence",
        "difference to the reference",
        "median latency",
        "p95 latency",
        "tokens/s",
        "peak memory",
        "verdict",
    )
    rows = [_main_row(session, row, policy) for row in session.per_quant]
    return "\n\n".join([table(header, rows, numeric=range(1, 9)), _interval_note(session)])


def _main_row(session: Session, row: QuantRow, policy: PolicyName) -> list[str]:
    cells = [
        formats.bits(row.bits_per_weight),
        formats.size(row.variant_bytes),
        _adherence(row),
        formats.signed_estimate(row.adherence_difference),
        _latency(row),
        formats.seconds_estimate(row.latency_p95),
        formats.rate(row.generation_tokens_per_second),
        formats.size(row.peak_memory_rss),
    ]
    if not row.valid:
        cells = [cell if cell == formats.MISSING else f"*{cell}*" for cell in cells]
    name = markdown_name(row.quant_tag) + (_WARNED if row.warnings else "")
    return [name, *cells, _verdict(session, row, policy)]


def _verdict(session: Session, row: QuantRow, policy: PolicyName) -> str:
    words = [f"**{pick}**" for pick in pick_words(session, row)]
    words += [markdown_text(standing) for standing in standing_words(row, policy)]
    if row.dominated_by:
        words.append("dominated by " + ", ".join(markdown_name(tag) for tag in row.dominated_by))
    return "; ".join(words) or "outside the frontier"


def _interval_note(session: Session) -> str:
    estimates = [
        estimate
        for row in session.per_quant
        for estimate in (row.adherence, row.adherence_difference, row.latency_median, row.latency_p95)
        if estimate is not None and estimate.low is not None
    ]
    if not estimates:
        return "No interval could be computed; see *What is uncertain*."
    levels = sorted({estimate.level for estimate in estimates})
    methods = sorted({estimate.method for estimate in estimates})
    return (
        f"Brackets: {' and '.join(formats.level(level) for level in levels)} intervals "
        f"({'; '.join(markdown_text(method) for method in methods)}). "
        "Differences are paired by task. Italics: the row is invalid."
    )


def _gaps(session: Session) -> str:
    """Explain every em dash of the main table that has a recorded reason."""
    shown = {
        "adherence_score": "adherence",
        "total_latency": "median latency",
        "generation_tokens_per_second": "tokens/s",
        "peak_memory_rss": "peak memory",
        "bits_per_weight": "bits per weight",
        "variant_bytes": "size",
    }
    sentences = [
        f"{markdown_name(row.quant_tag)} has no {words}: {markdown_text(reason_words(row.unavailable[field]))}."
        for row in session.per_quant
        for field, words in shown.items()
        if field in row.unavailable
    ]
    return bullets(sentences)


def _source_warnings(session: Session) -> list[str]:
    """Say once per distinct message which variants it concerns."""
    concerned: dict[str, list[str]] = {}
    for row in session.per_quant:
        for warning in row.warnings:
            concerned.setdefault(warning.message, []).append(row.quant_tag)
    if not concerned:
        return []
    sentences = [
        f"{', '.join(markdown_name(tag) for tag in tags)}: {markdown_text(message)}" for message, tags in concerned.items()
    ]
    return [f"**†\u00a0Read this about the source before using the numbers:**\n\n{bullets(sentences)}"]


def _frontier_note(session: Session, policy: SelectionPolicy) -> str:
    frontier = session.efficiency_frontier
    members = ", ".join(markdown_name(tag) for tag in frontier.pareto_quant_tags) or "none"
    memory = memory_axis(session)
    hidden = f" A member may look beaten in the picture and still earn its place by {memory}." if memory else ""
    return "\n".join(
        [
            f"- Frontier over {markdown_text(objective_words(frontier))}: {members}.{hidden}",
            f"- Limits: {_limits(session, policy)}, median latency at most {formats.seconds(frontier.latency_ceiling)}.",
        ]
    )


def _limits(session: Session, policy: SelectionPolicy) -> str:
    frontier = session.efficiency_frontier
    floor = formats.score(frontier.adherence_floor)
    share = f"{formats.score(frontier.adherence_threshold)} of the reference's"
    if policy.name is PolicyName.THRESHOLD or all(row.verdict is None for row in session.per_quant):
        return f"adherence at least {formats.score(frontier.minimum_adherence)} (the larger of {share} and the floor of {floor})"
    edge = formats.score(frontier.minimum_adherence)
    return f"a verdict of EQUIVALENT or BETTER, adherence at least {floor}; the line in the picture, {edge}, is the margin's edge"


def _uncertainty(session: Session, summary: SweepSummary) -> str:
    sentences = [markdown_text(sentence) for sentence in session.recommendation_detail.uncertain]
    for row in session.per_quant:
        for words, estimate in _estimates(row):
            if estimate is not None and estimate.low is None:
                reason = markdown_text(reason_words(estimate.reason)) or "no reason recorded"
                sentences.append(f"{markdown_name(row.quant_tag)} has no interval for its {words}: {reason}.")
    if summary.canary.passed is None:
        sentences.append("No canary was run, so the repeatability of this machine was not checked.")
    return bullets(sentences) or "Nothing beyond the intervals in the table."


def _estimates(row: QuantRow) -> tuple[tuple[str, Estimate | None], ...]:
    return (
        ("adherence", row.adherence),
        ("difference to the reference", row.adherence_difference),
        ("median latency", row.latency_median),
        ("p95 latency", row.latency_p95),
        ("latency ratio", row.latency_ratio),
        ("tokens/s ratio", row.generation_rate_ratio),
        ("prompt tokens/s ratio", row.prompt_rate_ratio),
        ("mean divergence", row.divergence.mean_nats if row.divergence else None),
        *_detection_estimates(row),
        *extraction_estimates(row),
    )


def _detection_estimates(row: QuantRow) -> tuple[tuple[str, Estimate | None], ...]:
    metrics = row.detection.metrics if row.detection else None
    if metrics is None:
        return ()
    return (
        ("mAP50-95", metrics.map_50_95),
        ("share of the reference's mAP50-95", metrics.retained),
        ("difference of mAP50-95", metrics.difference),
    )


def _bucket_blocks(session: Session) -> list[str]:
    buckets = list(dict.fromkeys(score.bucket for row in session.per_quant for score in row.by_bucket))
    if len(buckets) < 2:
        return []
    rows = []
    for row in session.per_quant:
        scores = {score.bucket: score for score in row.by_bucket}
        cells = [
            f"{formats.score(scores[bucket].adherence_score)} ({scores[bucket].tasks})" if bucket in scores else formats.MISSING
            for bucket in buckets
        ]
        rows.append([markdown_name(row.quant_tag), *cells])
    header = ["quant", *(markdown_text(bucket.replace("_", " ")) for bucket in buckets)]
    return [
        "### Adherence by kind of task",
        table(header, rows, numeric=range(1, len(header))),
        "In parentheses: the number of tasks. Small groups vary a lot; do not choose by one of them.",
    ]


def _files_table(session: Session) -> str:
    rows = [
        [
            markdown_name(row.quant_tag),
            f"`{row.variant_sha256[:16]}`" if row.variant_sha256 else formats.MISSING,
            formats.MISSING if row.variant_bytes is None else f"{row.variant_bytes:,}".replace(",", " "),
            formats.bits(row.bits_per_weight),
            ", ".join(warning.code.value.lower().replace("_", " ") for warning in row.warnings) or "none",
        ]
        for row in session.per_quant
    ]
    return table(("quant", "sha256 begins", "bytes", "bits per weight", "warnings"), rows, numeric=(2, 3))


def _trials_table(session: Session) -> str:
    header = (
        "quant",
        "tasks",
        "trials",
        "ended well",
        "failed",
        "clean",
        "same text on repeat",
        "first token",
        "prefill",
        "decode",
        "prompt tokens/s",
        "load",
    )
    rows = [
        [
            markdown_name(row.quant_tag),
            str(row.tasks) if "tasks" not in row.unavailable else formats.MISSING,
            f"{row.test_runs} of {row.expected_runs}",
            str(row.status_counts.ok) if "status_counts" not in row.unavailable else formats.MISSING,
            _failures(row),
            str(row.clean_runs),
            formats.percent(row.determinism_rate),
            formats.seconds(row.time_to_first_token_seconds),
            formats.seconds(row.prefill_seconds),
            formats.seconds(row.decode_seconds),
            formats.rate(row.prompt_tokens_per_second),
            formats.seconds(row.init_latency),
        ]
        for row in session.per_quant
    ]
    return table(header, rows, numeric=(1, 2, 3, 5, 6, 7, 8, 9, 10, 11))


def _failures(row: QuantRow) -> str:
    if "status_counts" in row.unavailable:
        return formats.MISSING
    counts = row.status_counts
    kinds = (
        ("empty", counts.empty),
        ("timed out", counts.timeout),
        ("crashed", counts.crashed),
        ("broke the protocol", counts.protocol_error),
    )
    return ", ".join(f"{count} {words}" for words, count in kinds if count) or "none"
