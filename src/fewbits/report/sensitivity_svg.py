"""Pictures of a sensitivity run: scores over depth by kind of module, and the most sensitive groups in order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import takewhile

from fewbits.analysis.sensitivity import totals_by_kind
from fewbits.analysis.wording import count
from fewbits.records.sensitivity import ReportRow, SensitivityReport
from fewbits.report.drawing import (
    FAINT,
    GREY,
    INK,
    PALETTE,
    QUIET,
    SHAPES,
    LogAxis,
    line,
    log_axis_over,
    mark,
    polyline,
    svg_document,
    text,
    text_width,
)
from fewbits.report.escape import visible, xml_text
from fewbits.report.layout import Box

DEPTH_PICTURE = "layer-sensitivity-depth.svg"
RANKING_PICTURE = "layer-sensitivity-ranking.svg"
SHOWN_GROUPS = 30
"""Groups in the ranking picture: all of them would be a wall."""
_OTHER = "other kinds"
_WIDTH = 860
_FRAME = Box(78, 64, _WIDTH - 24, 400)
_ROW_HEIGHT = 18
_LABEL_LIMIT, _KIND_LIMIT, _TITLE_LIMIT = 46, 24, 60
_SMALL, _NORMAL = 11, 12

Style = tuple[str, str]


def render_depth_svg(report: SensitivityReport) -> str:
    """Return the scores over depth as an SVG document: layers to the right, one series per kind, logarithmic scale.

    Where a layer has several groups of a kind, the largest score counts. Groups outside the stack of layers are listed below.
    """
    rows = [row for row in report.layer_sensitivity if row.depth is not None]
    outside = [row for row in report.layer_sensitivity if row.depth is None]
    styles = _styles(report.layer_sensitivity)
    used = {kind: style for kind, style in styles.items() if kind == _OTHER or any(row.kind == kind for row in rows)}
    legend, height = _legend(used, _FRAME.left, _FRAME.bottom + 62)
    parts = _heading(report, "Higher is more sensitive. Logarithmic scale.")
    if rows:
        axis = log_axis_over([row.sensitivity for row in rows])
        last = max(row.depth or 0 for row in rows)
        parts += _depth_grid(axis, last)
        parts += _depth_series(rows, styles, axis, last)
        parts += legend
    else:
        parts.append(text(_WIDTH / 2, 220, "Nothing to draw: no group lies in a numbered layer.", anchor="middle"))
    bottom = height + 22
    for words in _depth_notes(rows, outside):
        parts.append(text(_FRAME.left, bottom, xml_text(words, 120), size_px=_SMALL, fill=QUIET))
        bottom += 16
    return svg_document(_WIDTH, bottom, xml_text(f"Sensitivity over depth, {report.scheme}", _TITLE_LIMIT), parts)


def _depth_grid(axis: LogAxis, last: int) -> list[str]:
    parts = []
    for value, label in axis.ticks(7):
        y = _up(axis, value)
        parts += [line((_FRAME.left, y), (_FRAME.right, y), FAINT)]
        parts += [text(_FRAME.left - 8, y + 4, label, anchor="end", size_px=_NORMAL)]
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10**9) if last / step <= 20)
    for depth in range(0, last + 1, step):
        x = _across(depth, last)
        parts += [line((x, _FRAME.bottom), (x, _FRAME.bottom + 4), INK)]
        parts += [text(x, _FRAME.bottom + 18, str(depth), anchor="middle", size_px=_NORMAL)]
    parts += [line((_FRAME.left, _FRAME.bottom), (_FRAME.right, _FRAME.bottom), INK)]
    parts += [line((_FRAME.left, _FRAME.top), (_FRAME.left, _FRAME.bottom), INK)]
    middle = (_FRAME.left + _FRAME.right) / 2
    parts.append(text(middle, _FRAME.bottom + 38, "layer", anchor="middle"))
    y = (_FRAME.top + _FRAME.bottom) / 2
    parts.append(
        f'<text transform="translate(22 {y:.1f}) rotate(-90)" text-anchor="middle" font-size="13" fill="{INK}">sensitivity</text>'
    )
    return parts


def _depth_series(rows: Sequence[ReportRow], styles: dict[str, Style], axis: LogAxis, last: int) -> list[str]:
    """Draw the least sensitive kind first, so that the most sensitive lies on top."""
    largest: dict[str, dict[int, float]] = defaultdict(dict)
    for row in rows:
        kind = row.kind if row.kind in styles else _OTHER
        depth = row.depth or 0
        largest[kind][depth] = max(row.sensitivity, largest[kind].get(depth, 0.0))
    parts = []
    for kind in reversed([kind for kind in styles if kind in largest]):
        colour, shape = styles[kind]
        spots = [(_across(depth, last), _up(axis, score), score) for depth, score in sorted(largest[kind].items())]
        parts.append(polyline([(x, y) for x, y, _ in spots], colour, opacity=0.55))
        parts += [mark(shape, x, y, colour, hollow=not axis.shows(score)) for x, y, score in spots]
    return parts


def _depth_notes(rows: Sequence[ReportRow], outside: Sequence[ReportRow]) -> list[str]:
    notes = []
    if outside:
        shown = ", ".join(f"{visible(row.layer, _LABEL_LIMIT)} {row.sensitivity:.2e}" for row in outside[:3])
        more = f" and {len(outside) - 3} more" if len(outside) > 3 else ""
        notes.append(f"Outside the layers: {shown}{more}.")
    if any(row.sensitivity == 0 for row in rows):
        notes.append("Hollow marks at the lower edge: 0, or too small for the scale.")
    return notes


def render_ranking_svg(report: SensitivityReport) -> str:
    """Return the most sensitive groups in order as an SVG document: one line per group, logarithmic scale."""
    rows = report.layer_sensitivity[:SHOWN_GROUPS]
    rest = len(report.layer_sensitivity) - len(rows)
    styles = _styles(report.layer_sensitivity)
    words = f"The {count(len(rows), 'most sensitive group')}" if rest else "All groups"
    parts = _heading(report, f"{words}, most sensitive first. Logarithmic scale.")
    if not rows:
        parts.append(text(_WIDTH / 2, 120, "Nothing to draw: no group was scored.", anchor="middle"))
        return svg_document(_WIDTH, 160, xml_text(f"Most sensitive groups, {report.scheme}", _TITLE_LIMIT), parts)
    labels = short_names([row.layer for row in rows])
    left = 32 + text_width(max(map(len, labels)), _NORMAL)
    frame = Box(left, 66, _WIDTH - 90, 66 + _ROW_HEIGHT * len(rows) + 6)
    axis = log_axis_over([row.sensitivity for row in rows])
    for value, tick in axis.ticks(7):
        x = frame.left + axis.position(value) * (frame.right - frame.left)
        parts += [line((x, frame.top), (x, frame.bottom), FAINT)]
        parts += [text(x, frame.bottom + 16, tick, anchor="middle", size_px=_NORMAL)]
    for index, (row, label) in enumerate(zip(rows, labels, strict=True)):
        parts += _ranking_row(row, xml_text(label), frame, axis, (frame.top + _ROW_HEIGHT * (index + 0.5) + 3, styles))
    parts.append(line((frame.left, frame.top), (frame.left, frame.bottom), INK))
    parts.append(text((frame.left + frame.right) / 2, frame.bottom + 36, "sensitivity", anchor="middle"))
    legend, height = _legend(styles, 24, frame.bottom + 62)
    parts += legend
    if rest:
        note = f"{count(rest, 'further group')}: see the table of the report."
        parts.append(text(24, height + 22, note, size_px=_SMALL, fill=QUIET))
        height += 16
    return svg_document(_WIDTH, height + 22, xml_text(f"Most sensitive groups, {report.scheme}", _TITLE_LIMIT), parts)


def _ranking_row(row: ReportRow, label: str, frame: Box, axis: LogAxis, place: tuple[float, dict[str, Style]]) -> list[str]:
    y, styles = place
    colour, shape = styles.get(row.kind, styles.get(_OTHER, (GREY, "circle")))
    x = frame.left + axis.position(row.sensitivity) * (frame.right - frame.left)
    return [
        text(frame.left - 8, y + 4, label, anchor="end", size_px=_NORMAL),
        line((frame.left, y), (x, y), colour, opacity=0.35),
        mark(shape, x, y, colour, hollow=not axis.shows(row.sensitivity)),
        text(x + 10, y + 4, f"{row.sensitivity:.2e}", size_px=_SMALL, fill=QUIET, halo=True),
    ]


def short_names(names: Sequence[str]) -> list[str]:
    """Return names without the dotted beginning that all share, but for its last word (`layers.3.mlp.down_proj`).

    One line each; the middle of a long one is cut out.
    """
    parts = [name.split(".") for name in names]
    shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*(words[:-1] for words in parts), strict=False)))
    return [_shortened(visible(".".join(words[max(0, shared - 1) :]))) for words in parts]


def _shortened(name: str) -> str:
    if len(name) <= _LABEL_LIMIT:
        return name or "(empty)"
    half = (_LABEL_LIMIT - 1) // 2
    return f"{name[:half]}…{name[-half:]}"


def _styles(rows: Sequence[ReportRow]) -> dict[str, Style]:
    """Give every kind a colour and a shape, most sensitive kind first; what is beyond the palette shares one grey."""
    kinds = [total.name for total in totals_by_kind(rows)]
    if len(kinds) <= len(PALETTE):
        return {kind: (PALETTE[index], SHAPES[index]) for index, kind in enumerate(kinds)}
    own = kinds[: len(PALETTE) - 1]
    return {kind: (PALETTE[index], SHAPES[index]) for index, kind in enumerate(own)} | {_OTHER: (GREY, SHAPES[-1])}


def _legend(styles: dict[str, Style], left: float, y: float) -> tuple[list[str], float]:
    """Return the legend's elements, wrapped, and the baseline of its last line."""
    parts, x = [], left
    for kind, (colour, shape) in styles.items():
        words = visible(kind, _KIND_LIMIT) or "(empty)"
        width = 14 + text_width(len(words), _NORMAL) + 22
        if x + width > _WIDTH - 12 and x > left:
            x, y = left, y + 18
        parts += [mark(shape, x + 4, y - 4, colour), text(x + 14, y, xml_text(words), size_px=_NORMAL)]
        x += width
    return parts, y


def _heading(report: SensitivityReport, words: str) -> list[str]:
    title = f"Layer sensitivity, {report.scheme}"
    model = visible(str(report.model.get("name", "")), _LABEL_LIMIT)
    line_two = f"{model}, {visible(str(report.autoquant_state.get('method', '')), _KIND_LIMIT)}. {words}"
    return [
        text(24, 30, xml_text(title, _TITLE_LIMIT), size_px=17, weight="600"),
        text(24, 50, xml_text(line_two), size_px=_NORMAL, fill=QUIET),
    ]


def _across(depth: int, last: int) -> float:
    room = _FRAME.right - _FRAME.left - 28
    return _FRAME.left + 14 + (depth / last if last else 0.5) * room


def _up(axis: LogAxis, value: float) -> float:
    return _FRAME.bottom - 6 - axis.position(value) * (_FRAME.bottom - _FRAME.top - 14)
