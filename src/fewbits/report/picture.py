"""The frontier as text: a scatter plot of adherence against latency that stays aligned in any monospaced font."""

from __future__ import annotations

from collections.abc import Iterator

from fewbits.records.summary import Session
from fewbits.report.escape import code_block_text
from fewbits.report.layout import KIND_WORDS, MIN_SCORE, MIN_SECONDS, Axis, Box, PlotPoint, axis_over, first_free, plot_points

COLUMNS = 64
"""Plotting area, in characters."""
ROWS = 15
_LABEL_LIMIT = 24
_GUTTER = 8

# All of these are in the WGL4 character set, which the usual monospaced fonts cover at one column each
MARKS = {"both": "■", "minimum": "■", "best": "▲", "frontier": "●", "other": "○", "invalid": "x"}
_PRIORITY = tuple(KIND_WORDS)


def render_frontier_text(session: Session, include_invalid: bool = False) -> str:
    """Return the picture as lines of text without a trailing newline, or one sentence when no row can be drawn.

    x: median wall-clock seconds per trial; y: adherence score. Points that fall on the same character share a mark.
    """
    points, left_out = plot_points(session, include_invalid)
    notes = [f"Not drawn: {code_block_text(row.quant_tag, _LABEL_LIMIT)} ({reason})." for row, reason in left_out]
    if not points:
        return "\n".join(["No variant has both an adherence score and a median latency to draw.", *notes])
    limit = session.efficiency_frontier.minimum_adherence
    x_axis = axis_over([point.x for point in points], target_ticks=5, min_span=MIN_SECONDS)
    heights = [point.y for point in points]
    y_axis = axis_over([*heights, limit] if limit is not None else heights, target_ticks=5, min_span=MIN_SCORE, ceiling=1.0)
    canvas = _Canvas(x_axis, y_axis)
    if limit is not None and y_axis.holds(limit):
        canvas.draw_limit(limit, f" {session.efficiency_frontier.minimum_kind.value.removeprefix('adherence ')} {limit:.3f}")
    unlabelled = canvas.draw_points(points)
    notes += [f"Too close to others for a label: {label}." for label in unlabelled]
    used = {point.kind for point in points}
    legend = "   ".join(f"{MARKS[kind]} {KIND_WORDS[kind]}" for kind in _PRIORITY if kind in used)
    return "\n".join([*canvas.lines(), "", " " * _GUTTER + legend, *notes])


class _Canvas:
    """A grid of characters with two axes."""

    def __init__(self, x_axis: Axis, y_axis: Axis) -> None:
        self.x_axis, self.y_axis = x_axis, y_axis
        self.grid = [[" "] * COLUMNS for _ in range(ROWS)]
        self.taken: list[Box] = []
        self.bounds = Box(0, 0, COLUMNS, ROWS)

    def column(self, value: float) -> int:
        return round(self.x_axis.position(value) * (COLUMNS - 1))

    def line(self, value: float) -> int:
        return round((1 - self.y_axis.position(value)) * (ROWS - 1))

    def write(self, line: int, column: int, text: str) -> None:
        self.grid[line][column : column + len(text)] = text

    def draw_limit(self, value: float, label: str) -> None:
        """Draw the adherence limit as a dotted line, labelled at its right end."""
        line = self.line(value)
        self.write(line, 0, "· " * (COLUMNS // 2))
        start = COLUMNS - len(label)
        self.write(line, start, label)
        self.taken.append(Box(start, line, COLUMNS, line + 1))

    def draw_points(self, points: tuple[PlotPoint, ...]) -> list[str]:
        """Draw marks and labels; return the labels for which no free place was found."""
        cells: dict[tuple[int, int], list[PlotPoint]] = {}
        for point in points:
            cells.setdefault((self.line(point.y), self.column(point.x)), []).append(point)
        # Where a limit label stands in a mark's cell, the mark wins: all marks are written before any label of points
        for (line, column), group in cells.items():
            self.write(line, column, MARKS[min((point.kind for point in group), key=_PRIORITY.index)])
            self.taken.append(Box(column, line, column + 1, line + 1))
        unlabelled = []
        # The picks choose their places first
        for (line, column), group in sorted(cells.items(), key=lambda cell: min(_PRIORITY.index(p.kind) for p in cell[1])):
            label = ", ".join(_label(point) for point in group)
            place = first_free(_label_places(line, column, len(label)), self.taken, self.bounds)
            if place is None:
                unlabelled.append(label)
                continue
            # One blank on either side, so that neighbours do not run together; it is part of what is taken
            self.write(int(place.top), int(place.left) + 1, label)
            self._blank_around(place)
            self.taken.append(place)
        return unlabelled

    def _blank_around(self, place: Box) -> None:
        for column in (int(place.left), int(place.right) - 1):
            if self.grid[int(place.top)][column] == "·":
                self.grid[int(place.top)][column] = " "

    def lines(self) -> list[str]:
        """Return the grid with its axes."""
        y_labels = {self.line(tick): self.y_axis.label(tick) for tick in self.y_axis.ticks}
        body = [
            f"{y_labels.get(index, ''):>{_GUTTER - 2}} {'┤' if index in y_labels else '│'}{''.join(cells)}".rstrip()
            for index, cells in enumerate(self.grid)
        ]
        columns = {self.column(tick): self.x_axis.label(tick) for tick in self.x_axis.ticks}
        rule = "".join("┬" if column in columns else "─" for column in range(COLUMNS))
        numbers = [" "] * (COLUMNS + 2 * _GUTTER)
        for column, label in columns.items():
            start = _GUTTER + column - len(label) // 2
            numbers[start : start + len(label)] = label
        title = "median latency per trial, seconds"
        return [
            " adherence",
            *body,
            " " * (_GUTTER - 1) + "└" + rule,
            "".join(numbers).rstrip(),
            " " * (_GUTTER + COLUMNS - len(title)) + title,
        ]


def _label(point: PlotPoint) -> str:
    return code_block_text(point.row.quant_tag, _LABEL_LIMIT) + (" (reference)" if point.row.is_reference else "")


def _label_places(line: int, column: int, length: int) -> Iterator[Box]:
    """Yield places for a label with a blank on either side: beside the mark first, then above and below it."""
    wide = length + 2
    yield Box(column + 1, line, column + 1 + wide, line + 1)
    yield Box(column - wide, line, column, line + 1)
    for offset in (1, -1, 2, -2):
        for left in (column - wide // 2, column, column - wide + 1):
            yield Box(left, line + offset, left + wide, line + offset + 1)
