"""Headings of tables, and where their columns are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from itertools import pairwise

from fewbits.extraction.layout_tokens import Token, gap, joined
from fewbits.extraction.names import distance


class Label(StrEnum):
    """What a part of a row is."""

    NAME = "name"
    VALUE = "value"
    UNIT = "unit"
    RANGE = "range"
    FLAG = "flag"
    OTHER = "other"
    """A column that belongs to no field: method, previous result, remark."""


HEADINGS: dict[Label, tuple[str, ...]] = {
    Label.NAME: (
        *(
            "test",
            "tests",
            "test name",
            "test names",
            "test description",
            "analyte",
            "analytes",
            "investigation",
            "investigations",
        ),
        *(
            "component",
            "components",
            "parameter",
            "parameters",
            "examination",
            "determination",
            "assay",
            "procedure",
            "your test",
        ),
        *("test performed", "tests performed", "measurement", "description", "analysis", "item", "study", "test parameter"),
    ),
    Label.VALUE: (
        *("result", "results", "value", "values", "your result", "your value", "observed value", "measured value", "finding"),
        *("test result", "result value", "patient result", "current result", "in range", "out of range", "current", "findings"),
        *("observed", "measured", "reading", "your results", "patient value", "observation"),
    ),
    Label.UNIT: ("unit", "units", "uom", "unit of measure", "units of measure", "unit of measurement", "measure"),
    Label.RANGE: (
        *(
            "reference range",
            "reference ranges",
            "reference interval",
            "reference intervals",
            "ref range",
            "ref interval",
            "range",
        ),
        *(
            "normal range",
            "normal values",
            "normal value",
            "reference",
            "reference value",
            "reference values",
            "normal",
            "interval",
        ),
        *("biological reference interval", "biological ref interval", "bio ref interval", "bio ref range", "expected range"),
        *("expected values", "limits", "reference limits", "ref", "ref value", "ref values", "ranges", "normal limits"),
        *("biological reference range", "standard range", "healthy range", "target range", "target", "normal ranges"),
    ),
    Label.FLAG: (
        "flag",
        "flags",
        "abn",
        "abnormal",
        "abnormal flag",
        "h l",
        "indicator",
        "status",
        "mark",
        "alert",
        "note",
        "hi lo",
    ),
    Label.OTHER: (
        *("method", "methods", "previous", "prior", "previous result", "prior result", "last result", "previous value", "date"),
        *(
            "comment",
            "comments",
            "remark",
            "remarks",
            "lab",
            "specimen",
            "methodology",
            "technology",
            "previous results",
            "history",
        ),
        *("code", "loinc", "sample", "performed by", "trend", "chart", "notes", "site", "no", "sl no", "s no", "sr no"),
    ),
}
_LONGEST = 4
"""Words of the longest heading."""
_COLUMN_GAP = 0.8
"""White space, in text heights, that parts two columns for certain."""
_MARGIN = 0.6


@dataclass(slots=True)
class Column:
    """One column: `left` and `right` follow the rows that were read, since a photographed column leans."""

    label: Label
    left: float
    right: float

    def distance(self, left: float, right: float) -> float:
        """Return how far something is from standing in this column by one of its edges or its middle, in text heights."""
        inside = 0.0 if left >= self.left - _MARGIN and right <= self.right + _MARGIN else 9e9
        middle = abs(left + right - self.left - self.right) / 2
        return min(abs(left - self.left), abs(right - self.right), middle, inside)


@dataclass(slots=True)
class Table:
    """Columns from left to right, of the table whose heading stands at line `line`; empty where a page prints no heading."""

    columns: list[Column]
    line: int

    @property
    def labels(self) -> frozenset[Label]:
        """What its columns hold."""
        return frozenset(column.label for column in self.columns)

    @property
    def left(self) -> float:
        """Where its first column begins."""
        return self.columns[0].left

    @property
    def right(self) -> float:
        """Where its last column ends."""
        return max(column.right for column in self.columns)

    def nearest(self, left: float, right: float) -> tuple[Label, float] | None:
        """Return the label of the nearest column and how much nearer it is than one of any other label, in text heights."""
        if not self.columns:
            return None
        ranked = sorted((column.distance(left, right), index) for index, column in enumerate(self.columns))
        label = self.columns[ranked[0][1]].label
        others = [far for far, index in ranked if self.columns[index].label is not label]
        return label, (others[0] if others else 9.0) - ranked[0][0]


@cache
def _headings() -> dict[str, Label]:
    return {heading: label for label, headings in HEADINGS.items() for heading in headings}


@cache
def heading_of(text: str) -> Label | None:
    """Return what a heading announces; one letter may be misread in those of six letters and more."""
    plain = " ".join(re.findall(r"[a-z]+", text.casefold()))
    found = _headings().get(plain)
    if found is not None or len(plain) < 6:
        return found
    close = {
        label for heading, label in _headings().items() if abs(len(heading) - len(plain)) < 2 and distance(plain, heading) < 2
    }
    return close.pop() if len(close) == 1 else None


def tables_in(tokens: Sequence[Token], line: int) -> list[Table]:
    """Return the tables whose headings are on a line: none, one, or several side by side.

    A heading line has columns of two kinds at least, one of them the result or the test, and little else.
    """
    columns, strange, index = [], 0, 0
    while index < len(tokens):
        for size in range(min(_LONGEST, len(tokens) - index), 0, -1):
            part = tokens[index : index + size]
            label = heading_of(joined(part))
            if label is not None and all(gap(a, b) < _COLUMN_GAP for a, b in pairwise(part)):
                columns.append(Column(label, part[0].left, part[-1].right))
                index += size
                break
        else:
            strange += 1
            index += 1
    if strange > len(columns) / 2:
        return []
    tables: list[list[Column]] = []
    for column in columns:
        seen = {each.label for each in tables[-1]} if tables else set()
        begins = column.label is Label.NAME and Label.NAME in seen
        begins |= column.label is Label.FLAG and {Label.FLAG, Label.NAME, Label.VALUE} <= seen
        if not tables or begins:
            tables.append([])
        tables[-1].append(column)
    return [Table(table, line) for table in tables if _is_table({column.label for column in table})]


def _is_table(labels: set[Label]) -> bool:
    if Label.VALUE in labels:
        return len(labels) > 1
    return Label.NAME in labels and bool(labels & {Label.RANGE, Label.UNIT})
