"""The sidecar's section of the report: what the machine can do with each file, beside what the trials saw."""

from __future__ import annotations

from fewbits.records.sidecar import SidecarBlock, SidecarStatus
from fewbits.records.summary import QuantRow, Session
from fewbits.report import formats
from fewbits.report.escape import markdown_name, markdown_text
from fewbits.report.tables import bullets, table

_DETAIL_LIMIT = 300


def sidecar_blocks(session: Session) -> list[str]:
    """Return heading, table and notes; nothing where no row has a sidecar block."""
    found = [(row, row.hardware_sidecar) for row in session.per_quant if row.hardware_sidecar is not None]
    if not found:
        return []
    measured = [(row, block) for row, block in found if block.status is SidecarStatus.OK]
    notes = [
        *dict.fromkeys(_conditions(block) for _, block in measured),
        *(_failure(row, block) for row, block in found if block.status is not SidecarStatus.OK),
    ]
    return [
        "### Raw throughput (hardware sidecar)",
        "llama-bench's own speed on each file, measured after the trials. Diagnostics: it is in no verdict, limit, validity rule "
        "or recommendation, and its numbers are not the trials': fixed lengths, random tokens, no chat template, no sampling, no "
        "HTTP. See *docs/sidecar.md* for what corresponds to what.",
        _table(measured),
        bullets(notes),
    ]


def _failure(row: QuantRow, block: SidecarBlock) -> str:
    detail = markdown_text(block.detail.rstrip(". \n"), _DETAIL_LIMIT)
    return f"{markdown_name(row.quant_tag)}: {block.status.value}: {detail}."


def _table(measured: list[tuple[QuantRow, SidecarBlock]]) -> str:
    if not measured:
        return ""
    header = (
        "quant",
        "prefill tokens/s",
        "in the trials",
        "decode tokens/s",
        "in the trials",
        "temperature",
        "took",
    )
    rows = [
        [
            markdown_name(row.quant_tag),
            _spread(block.prefill_tokens_per_second, block.prefill_stddev),
            formats.rate(row.prompt_tokens_per_second),
            _spread(block.decode_tokens_per_second, block.decode_stddev),
            formats.rate(row.generation_tokens_per_second),
            _temperature(block),
            formats.seconds(block.wall_seconds),
        ]
        for row, block in measured
    ]
    return table(header, rows, numeric=range(1, len(header)))


def _spread(value: float | None, stddev: float | None) -> str:
    return formats.rate(value) if stddev is None else f"{formats.rate(value)} ± {formats.rate(stddev)}"


def _temperature(block: SidecarBlock) -> str:
    if block.temperature_start_c is None or block.temperature_end_c is None:
        return formats.MISSING
    return f"{block.temperature_start_c:.0f} → {block.temperature_end_c:.0f} °C"


def _conditions(block: SidecarBlock) -> str:
    """Say how a block was measured; the same words for every variant that was measured alike."""
    if block.threads is None and block.prefill_tokens is None:
        return f"Profile {markdown_name(block.profile or 'unknown')}: {markdown_text(block.detail, _DETAIL_LIMIT)}."
    tool = f", {markdown_text(block.tool_version)}" if block.tool_version else ""
    device = f" on {markdown_text(block.device)}" if block.device else ""
    repeats = {None: "repetitions unknown", 1: "1 repetition"}.get(block.repetitions, f"{block.repetitions} repetitions")
    spread = "" if block.prefill_stddev is None else "; ± is the standard deviation of the repetitions, not an interval"
    return (
        f"Profile {markdown_name(block.profile or '')}{device}: {block.threads} threads, a prompt of {block.prefill_tokens} "
        f"tokens and {block.decode_tokens} generated tokens, {repeats}{tool}{spread}."
    )
