"""`ablation.md`: which step of a detector's recipe brought what."""

from __future__ import annotations

from fewbits.records.detector_run import AblationRow, AblationTable
from fewbits.records.estimate import Estimate
from fewbits.report import formats
from fewbits.report.escape import markdown_text
from fewbits.report.tables import table


def render_ablation(ablation: AblationTable) -> str:
    """Return the page: the main ladder, then what was tried in place of one of its steps. Ends with a line break."""
    main = [row for row in ablation.rows if row.rival_of is None]
    side = [row for row in ablation.rows if row.rival_of is not None]
    parts = [
        f"# Ablation of {markdown_text(ablation.mode)}",
        f"{ablation.images} images; the float model has mAP50-95 {_estimate(ablation.float_map_50_95)}. Each row changes one "
        "thing against the row that it stands on. In brackets: 95 % intervals by a bootstrap over images, for changes and shares "
        "paired by image.",
        table(_HEADER, [_cells(row, first="naive: the quantizers of the runbook") for row in main], numeric=_NUMERIC),
    ]
    if side:
        replaced = ", ".join(dict.fromkeys(markdown_text(row.rival_of or "") for row in side))
        parts += [
            f"In place of **{replaced}**, on the same row before it:",
            table(_HEADER, [_cells(row, first="") for row in side], numeric=_NUMERIC),
        ]
    return "\n\n".join(parts) + "\n"


_HEADER = ("step", "mAP50-95", "change", "of FP32", "weight bits")
_NUMERIC = (1, 2, 3, 4)


def _cells(row: AblationRow, first: str) -> tuple[str, ...]:
    if row.unavailable:
        return (_name(row, first), markdown_text(row.unavailable), formats.MISSING, formats.MISSING, formats.MISSING)
    bits = row.level_bits_per_weight
    return (
        _name(row, first),
        _estimate(row.map_50_95),
        _estimate(row.change, signed=True),
        _percent(row.retained),
        formats.MISSING if bits is None else f"{bits:.2f}",
    )


def _name(row: AblationRow, first: str) -> str:
    return markdown_text(f"+ {row.adds}" if row.adds is not None else first)


def _estimate(value: Estimate | None, *, signed: bool = False) -> str:
    if value is None:
        return formats.MISSING
    form = "+.3f" if signed else ".3f"
    bounds = "" if value.low is None or value.high is None else f" [{value.low:{form}}, {value.high:{form}}]"
    return f"{value.value:{form}}{bounds}"


def _percent(value: Estimate | None) -> str:
    if value is None:
        return formats.MISSING
    bounds = "" if value.low is None or value.high is None else f" [{value.low * 100:.1f}, {value.high * 100:.1f}]"
    return f"{value.value * 100:.1f} %{bounds}"
