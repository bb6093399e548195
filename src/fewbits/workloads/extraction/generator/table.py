"""Rows in columns: what the arrangements have in common."""

from __future__ import annotations

from dataclasses import dataclass

from fewbits.workloads.extraction.generator.content import Content
from fewbits.workloads.extraction.generator.heads import tail_height
from fewbits.workloads.extraction.generator.paper import Align, Colour, Paper
from fewbits.workloads.extraction.generator.results import Row

BODY, LEADING = 10.0, (13.0, 18.0)
"""Size of a row's text in points; smallest and widest distance between baselines."""
GAP = 6.0
"""Points that stay free between the parts of a row."""

Shares = tuple[tuple[str, float, Align], ...]
"""Parts of a row from left to right, with their shares of the width."""


@dataclass(frozen=True, slots=True)
class Column:
    """Where a part of a row stands: its left edge (right edge where aligned to the right) and width, points."""

    part: str
    x: float
    width: float
    align: Align = "left"


def part_text(row: Row, part: str) -> str:
    """Return the text of one part of a row; `value_unit` and `value_flag` are two in one."""
    unit, mark = row.unit or "", row.mark or ""
    reference = row.reference.text or "" if row.reference is not None else ""
    if part == "value_unit":
        return f"{row.value} {unit}".strip()
    if part == "value_flag":
        return f"{row.value} {mark}".strip()
    if part == "bracketed":
        return reference and f"({reference})"
    return {"test": row.name, "value": row.value, "unit": unit, "flag": mark, "range": reference}[part]


def draw_row_parts(
    paper: Paper, columns: tuple[Column, ...], row: Row, baseline: float, size: float, *, bold_marked: bool
) -> None:
    """Draw the parts of one row, values outside of their range in heavy type where the laboratory does so."""
    for place, column in enumerate(columns):
        heavy = bold_marked and bool(row.mark) and column.part in ("value", "flag", "value_unit", "value_flag")
        footnote = f"({row.footnote})" if column.part == "test" and row.footnote is not None else ""
        room = column.width - GAP - (paper.text_width(footnote, size * 0.7) + 3 if footnote else 0)
        if column.align == "left" and place + 1 < len(columns) and not part_text(row, columns[place + 1].part):
            room += columns[place + 1].width  # nothing stands there: words in the unit's place
        width = paper.text(column.x, baseline, part_text(row, column.part), size, heavy=heavy, align=column.align, room=room)
        paper.text(column.x + width + 3, baseline - size * 0.22, footnote, size * 0.7)


def columns_of(shares: Shares, left: float, width: float) -> tuple[Column, ...]:
    """Turn parts with their share of the width into columns from left to right."""
    columns, x = [], left
    for part, share, align in shares:
        columns.append(
            Column(part, x + share * width - 10 if align == "right" else x, share * width - (6 if align == "right" else 0), align)
        )
        x += share * width
    return tuple(columns)


def draw_heading(
    paper: Paper, columns: tuple[Column, ...], content: Content, baseline: float, *, size: float, colour: Colour
) -> None:
    """Draw the columns' headings, in heavy type."""
    words = {
        **content.headings,
        "value_unit": content.headings["value"],
        "value_flag": content.headings["value"],
        "bracketed": content.headings["range"],
    }
    for column in columns:
        paper.text(
            column.x, baseline, words[column.part], size, heavy=True, colour=colour, align=column.align, room=column.width - 2
        )


def leading_for(paper: Paper, content: Content, top: float, lines: float) -> float:
    """Return the distance between baselines with which all lines fit, as wide as is pleasant."""
    return min(LEADING[1], max(LEADING[0], (paper.height - top - tail_height(content)) / lines))
