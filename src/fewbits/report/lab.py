"""The lab's section of the report: against what each row was compared, and what the machine went through."""

from __future__ import annotations

from fewbits.records.baseline import BaselineComparison, BaselineStatus
from fewbits.records.summary import DeviceConditions, QuantRow, Session
from fewbits.report import formats
from fewbits.report.escape import markdown_name, markdown_text
from fewbits.report.tables import bullets, table


def lab_blocks(session: Session) -> list[str]:
    """Return heading, tables and notes; nothing where no row tells anything about them."""
    return [*_baseline_blocks(session), *_condition_blocks(session)]


def _baseline_blocks(session: Session) -> list[str]:
    found = [(row, row.baseline) for row in session.per_quant if row.baseline is not None]
    if not found:
        return []
    compared = [(row, block) for row, block in found if block.status is BaselineStatus.OK]
    others = [(row, block) for row, block in found if block.status is not BaselineStatus.OK]
    blocks = ["### Against stored baselines"]
    if compared:
        header = ("quant", "baseline", "adherence difference", "time ratio", "memory ratio", "same weights", "same engine")
        blocks.append(table(header, [_baseline_row(row, block) for row, block in compared], numeric=(2, 3, 4)))
    notes = [f"{markdown_name(row.quant_tag)}: {block.status.value}: {markdown_text(block.detail)}" for row, block in others]
    if not compared and {block.status for _, block in others} == {BaselineStatus.NO_BASELINE}:
        notes = ["Nothing is stored for any row: `fewbits baseline append RUN` keeps a known-good run for later ones."]
    return [*blocks, bullets(notes)] if notes else blocks


def _baseline_row(row: QuantRow, block: BaselineComparison) -> list[str]:
    return [
        markdown_name(row.quant_tag),
        markdown_name(f"{block.baseline_ref} of {block.test_id}"),
        formats.signed_estimate(block.adherence_difference),
        formats.score_estimate(block.latency_ratio),
        formats.score(block.memory_ratio),
        _word(block.same_weights),
        _word(block.same_engine),
    ]


def _word(value: bool | None) -> str:
    return "not told" if value is None else "yes" if value else "**no**"


def _condition_blocks(session: Session) -> list[str]:
    rows = [
        [markdown_name(row.quant_tag), name, *_device(device)]
        for row in session.per_quant
        if row.conditions is not None
        for name, device in (("host", row.conditions.host), ("GPU", row.conditions.gpu))
        if device.memory_used_ratio is not None or device.temperature_max_c is not None
    ]
    if not rows:
        return []
    header = ("quant", "device", "at the start", "hottest", "hottest block start", "memory in use", "throttle events")
    return [
        "### What the machine went through",
        "Readings before and after trials, of everything that ran. An em dash: no such sensor here.",
        table(header, rows, numeric=(2, 3, 4, 5, 6)),
    ]


def _device(device: DeviceConditions) -> list[str]:
    total = f" of {formats.size(device.memory_total_bytes)}" if device.memory_total_bytes else ""
    return [
        _celsius(device.temperature_start_c),
        _celsius(device.temperature_max_c),
        _celsius(device.block_temperature_max_c),
        f"{formats.percent(device.memory_used_ratio)}{total}",
        formats.MISSING if device.throttle_events is None else str(device.throttle_events),
    ]


def _celsius(value: float | None) -> str:
    return formats.MISSING if value is None else f"{value:.1f} °C"
