"""From recognised words to a lab report, by rules and pure: columns where a page prints headings, else the shape of a row.

What the words say is only ever text: nothing in it is followed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from fewbits.extraction import layout_spelling as spelling
from fewbits.extraction.classification import classify
from fewbits.extraction.layout_columns import Label, Table, tables_in
from fewbits.extraction.layout_geometry import lines_of
from fewbits.extraction.layout_patient import found_on, is_head_line, is_labels_only, lab_name_of, patient_of, report_date_of
from fewbits.extraction.layout_rows import Part, Row, best_row, is_plausible, name_score, name_text
from fewbits.extraction.layout_tokens import Token, gap, joined, tokens_of
from fewbits.extraction.names import closest
from fewbits.extraction.words import Word
from fewbits.records.extraction import LabReport, LabTest, ReferenceRange, ReportType

_RANGE_BELOW = 2.6
"""Text heights from a row down to a range that is printed below it."""
_SIDE = 1.5
"""White space in text heights that may part two rows on one line."""
_BETWEEN_TABLES = 0.9
_LEAN = 2.5
"""How far, in text heights, a photographed column may stand off its place since the last row."""
_FIRST_LINES = 4
_FOLLOWS = 0.3
"""How quickly a column follows the rows: share of the new place."""


@dataclass(frozen=True, slots=True)
class LayoutResult:
    """A report, the confidence of each of its rows (that of its least certain word, 0..1), and how many lines of the tables were
    not understood as rows.
    """

    report: LabReport
    row_confidences: tuple[float, ...]
    unread_lines: int


@dataclass(slots=True)
class _Read:
    """A row that was read. `section` counts what is between headings; `below` is a range from the next line."""

    row: Row
    table: Table
    section: int
    middle: float
    below: Part | None = None


def read_report(words: Sequence[Word], width: int, height: int) -> LayoutResult:
    """Return the report on a page of `width` x `height` pixels (not needed so far: places are relative to the print)."""
    del width, height
    lines = [tokens_of(line) for line in lines_of(words)]
    lines = [line for line in lines if line]
    rows, head, unread = _rows(lines)
    reported = found_on(head)
    panels = _panels(rows)
    tests = tuple(_test(read, panels[id(read.table), read.section]) for read in rows)
    counts = Counter(panels[id(read.table), read.section] for read in rows)
    report = LabReport(
        report_type=max(counts, key=lambda panel: (panel is not ReportType.OTHER, counts[panel])) if counts else ReportType.OTHER,
        patient_info=patient_of(reported),
        lab_name=lab_name_of(_above_labels(head)),
        report_date=report_date_of(reported),
        tests=tests,
    )
    return LayoutResult(report, tuple(test.confidence or 0.0 for test in tests), unread)


def _panels(rows: Sequence[_Read]) -> dict[tuple[int, int], ReportType]:
    """Return the panel of each section, by the names in it."""
    names: dict[tuple[int, int], list[str]] = {}
    for read in rows:
        names.setdefault((id(read.table), read.section), []).append(name_text(_name(read)))
    return {section: classify(found).report_type for section, found in names.items()}


def _above_labels(head: Sequence[Sequence[Token]]) -> list[Sequence[Token]]:
    """Return the lines, of those that are no rows, above the patient block; the first ones where there is no such block."""
    labelled = next((number for number, line in enumerate(head) if is_head_line(line)), None)
    return list(head[: _FIRST_LINES if labelled is None else labelled])


def _rows(lines: Sequence[Sequence[Token]]) -> tuple[list[_Read], list[Sequence[Token]], int]:
    """Return the rows in the page's order (table by table where they stand side by side), the lines that carry none, and how
    many of those lie between rows of a table.
    """
    tables: list[Table] = [Table([], -1)]
    rows: list[_Read] = []
    others: list[Sequence[Token]] = []
    pending = unread = section = 0
    for number, line in enumerate(lines):
        headed = tables_in(line, number)
        if headed:
            section += 1
            tables = [each for each in tables if each.columns and not any(_overlap(each, new) for new in headed)] + headed
            continue
        before = len(rows)
        below_labels = number > 0 and is_labels_only(lines[number - 1])
        if not below_labels and not is_head_line(line):
            for table, tokens in _shared(line, tables):
                for row in _rows_in(tokens, table):
                    rows.append(_Read(row, table, section, tokens[0].middle))
                    _follow(table, row)
        if len(rows) > before:
            unread, pending = unread + pending, 0
        elif not _attach_range(line, rows, tables):
            others.append(line)
            section += 1
            pending += bool(rows)
    return _in_order(rows), others, unread


def _overlap(first: Table, second: Table) -> bool:
    return min(first.right, second.right) > max(first.left, second.left)


def _in_order(rows: list[_Read]) -> list[_Read]:
    """Return rows by the place of their table: of tables side by side the left one first."""
    blocks: dict[int, list[_Read]] = {}
    for read in rows:
        blocks.setdefault(id(read.table), []).append(read)
    return [read for block in blocks.values() for read in block]


def _shared(line: Sequence[Token], tables: Sequence[Table]) -> list[tuple[Table, Sequence[Token]]]:
    """Return the line's tokens by table. Each table but the first begins at the token that stands nearest to its left edge with
    white space before it; where none is near, at the edge itself.
    """
    ordered = sorted(tables, key=lambda table: table.left if table.columns else float("-inf"))
    if not ordered:
        return []
    starts = [0]
    for table in ordered[1:]:
        free = [
            place for place in range(starts[-1], len(line)) if place == 0 or gap(line[place - 1], line[place]) > _BETWEEN_TABLES
        ]
        near = min(free, key=lambda place: abs(line[place].left - table.left), default=None)
        if near is None or abs(line[near].left - table.left) > _LEAN:
            near = max(starts[-1], sum(token.left < table.left for token in line))
        starts.append(near)
    ends = [*starts[1:], len(line)]
    return [(table, line[start:end]) for table, start, end in zip(ordered, starts, ends, strict=True) if start < end]


def _rows_in(tokens: Sequence[Token], table: Table) -> list[Row]:
    """Return the plausible rows on a line of one table: one, or two side by side where it has no heading."""
    columns = table if table.columns else None
    row = best_row(tokens, columns)
    whole = [row] if row is not None and is_plausible(row, columns) else []
    if columns is not None:
        return whole
    best, score = whole, sum(each.score for each in whole)
    for place in range(2, len(tokens) - 1):
        if gap(tokens[place - 1], tokens[place]) < _SIDE or name_score(joined(tokens[place : place + 1])) < 0:
            continue
        halves = [best_row(tokens[:place]), best_row(tokens[place:])]
        pair = [each for each in halves if each is not None and is_plausible(each, None)]
        if len(pair) == 2 and sum(each.score for each in pair) > score + 1:
            best, score = pair, sum(each.score for each in pair)
    return best


def _follow(table: Table, row: Row) -> None:
    """Move the table's columns with the row: photographed columns lean."""
    for part in row.parts:
        for column in table.columns:
            if column.label is part.label and part.label is not Label.OTHER:
                shift_left, shift_right = part.tokens[0].left - column.left, part.tokens[-1].right - column.right
                smaller = min(shift_left, shift_right, key=abs)
                if abs(smaller) < 1.5:
                    column.left += _FOLLOWS * smaller
                    column.right += _FOLLOWS * smaller


def _attach_range(line: Sequence[Token], rows: list[_Read], tables: Sequence[Table]) -> bool:
    """Give a line that is nothing but a range to the row above it; return whether it was one."""
    done = False
    for table, tokens in _shared(line, tables):
        text = joined(tokens)
        found = spelling.range_of(text)
        above = next((read for read in reversed(rows) if read.table is table), None)
        if found is None or above is None or above.row.of(Label.RANGE) is not None or above.below is not None:
            continue
        words = found.low is None and found.high is None and not text.startswith(("(", "["))
        if words or tokens[0].middle - above.middle > _RANGE_BELOW:
            continue
        above.below = Part(Label.RANGE, tuple(tokens))
        done = True
    return done


def _name(read: _Read) -> str:
    part = read.row.of(Label.NAME)
    return "" if part is None else part.text


def _test(read: _Read, panel: ReportType) -> LabTest:
    """Return a row as a test."""
    row = read.row
    name, value, unit, flag = (row.of(label) for label in (Label.NAME, Label.VALUE, Label.UNIT, Label.FLAG))
    if name is None or value is None:
        msg = "a row without a name or a value is none"
        raise ValueError(msg)
    limits = row.of(Label.RANGE) or read.below
    printed = name_text(name.text)
    raw_unit = spelling.trailing_unit(limits.text) if unit is None and limits is not None else None if unit is None else unit.text
    near = closest(printed, panel=panel, unit=raw_unit)
    analyte = None if near is None else near[0]
    own = () if analyte is None else (analyte.unit, *analyte.convertible)
    used = [part for part in (name, value, unit, flag, limits) if part is not None]
    return LabTest(
        test_name=printed,
        value=spelling.number_text(value.text) or value.text,
        unit=None if raw_unit is None else (spelling.unit_text(raw_unit, own) or raw_unit).strip("()[]"),
        reference_range=None if limits is None else _range(limits.text),
        printed_flag=None if flag is None else flag.text.strip("()[]"),
        analyte=None if analyte is None else analyte.key,
        confidence=min(1.0, *(token.confidence for part in used for token in part.tokens)),
    )


def _range(text: str) -> ReferenceRange | None:
    """Return the range of a text; one that cannot be parsed is kept as text."""
    return spelling.range_of(text) or ReferenceRange(text=text)
