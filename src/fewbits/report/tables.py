"""Markdown tables whose every row has the same number of cells, whatever the cells hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fewbits.report.escape import markdown_text

COUNTED_LIST = 8
"""Lists longer than this are shown with their length in front."""
VALUE_LIMIT = 160
"""Characters of a foreign value that are shown in a cell."""


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int] = ()) -> str:
    """Return a Markdown table; columns whose index is in `numeric` are aligned right.

    Cells must already be safe Markdown (see `fewbits.report.escape`). Raises `ValueError` when a row has another number of cells.
    """
    rules = ["---:" if index in numeric else "---" for index in range(len(header))]
    lines = [_line(header), _line(rules)]
    for row in rows:
        if len(row) != len(header):
            msg = f"a row of {len(row)} cells in a table of {len(header)} columns"
            raise ValueError(msg)
        lines.append(_line(row))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def bullets(sentences: Sequence[str]) -> str:
    """Return safe inline Markdown sentences as a list."""
    return "\n".join(f"- {sentence}" for sentence in sentences)


def value_cell(value: Any) -> str:
    """Return any JSON value as one safe cell: lists joined by commas, `null` and empty values as an em dash."""
    return markdown_text(plain_value(value), VALUE_LIMIT) or "—"


def plain_value(value: Any) -> str:
    """Return any JSON value as unescaped words for people."""
    if value is None or value == "":
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        words = ", ".join(_item(item) for item in value) or "—"
        # A long list is cut in a cell, so its length stands in front
        return f"{len(value)}: {words}" if len(value) > COUNTED_LIST else words
    if isinstance(value, dict):
        return "; ".join(f"{key}: {plain_value(item)}" for key, item in value.items()) or "—"
    return str(value)


def _item(value: Any) -> str:
    return f"[{plain_value(value)}]" if isinstance(value, list | tuple) else plain_value(value)
