"""The frontier as a self-contained SVG file: no scripts, no outside fonts, readable in print and by screen readers."""

from __future__ import annotations

from collections.abc import Iterator

from fewbits.core.files import safe_name
from fewbits.records.summary import Session
from fewbits.report.drawing import line as _line
from fewbits.report.drawing import text as _text
from fewbits.report.escape import visible, xml_text
from fewbits.report.formats import seconds, size
from fewbits.report.layout import KIND_WORDS, MIN_SCORE, MIN_SECONDS, Axis, Box, PlotPoint, axis_over, cheapest, plot_points
from fewbits.report.verdicts import memory_axis

WIDTH, HEIGHT = 760, 480
"""Size of the drawing, in SVG user units."""
_FRAME = Box(70, 70, WIDTH - 30, HEIGHT - 96)

# Okabe and Ito's palette, distinguishable with the usual colour vision deficiencies; marks differ in shape as well
_BLUE, _ORANGE, _GREEN, _RED, _GREY, _INK, _FAINT = "#0072b2", "#d98a00", "#00805e", "#c04a00", "#8a8a8a", "#1f2328", "#e4e7eb"
_COLOURS = {"both": _GREEN, "minimum": _GREEN, "best": _ORANGE, "frontier": _BLUE, "other": _GREY, "invalid": _RED}
_PRIORITY = tuple(KIND_WORDS)
_CHARACTER_WIDTH, _SMALL_CHARACTER_WIDTH = 7.6, 6.2
_LABEL_LIMIT, _TITLE_LIMIT = 28, 40


def frontier_svg_name(model_id: str) -> str:
    """Return the file name that the Markdown report links for a model (a safe path component)."""
    return f"sweep_frontier_{safe_name(model_id)}.svg"


def render_frontier_svg(session: Session, include_invalid: bool = False) -> str:
    """Return the picture of one session as an SVG document: median latency to the right, adherence upwards.

    Bars through the marks are the intervals of both numbers. Rows without both numbers, and invalid rows unless
    `include_invalid`, are named under the picture instead.
    """
    points, left_out = plot_points(session, include_invalid)
    parts = _opening(session)
    if points:
        x_axis, y_axis = _axes(session, points)
        taken: list[Box] = []
        parts += _grid(x_axis, y_axis)
        lines: list[Box] = []
        parts += _limits(session, x_axis, y_axis, taken, lines)
        parts += [line for point in points for line in _whiskers(point, x_axis, y_axis)]
        parts += _labels(points, x_axis, y_axis, taken, lines)
        parts += [_mark(point.kind, *_spot(point, x_axis, y_axis)) for point in points]
        parts += _legend(points)
    else:
        parts.append(_text(WIDTH / 2, HEIGHT / 2, "Nothing to draw: no variant has both numbers.", anchor="middle"))
    if left_out:
        words = "Not drawn: " + ", ".join(f"{row.quant_tag} ({reason})" for row, reason in left_out)
        parts.append(_text(_FRAME.left, HEIGHT - 12, xml_text(words, 110), size_px=11, fill="#59636e"))
    return "\n".join([*parts, "</svg>", ""])


def _opening(session: Session) -> list[str]:
    memory = memory_axis(session)
    title = f"Adherence and latency of {xml_text(session.model_id, _TITLE_LIMIT)}"
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img"'
        " aria-labelledby=\"title\" font-family=\"system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif\">",
        f'<title id="title">{title}</title>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(_FRAME.left, 30, title, size_px=17, weight="600"),
        _text(
            _FRAME.left,
            50,
            "Up and to the left is better." + (f" The frontier also counts {memory} (under each name)." if memory else ""),
            size_px=12,
            fill="#59636e",
        ),
    ]


def _axes(session: Session, points: tuple[PlotPoint, ...]) -> tuple[Axis, Axis]:
    across, up = [], []
    for point in points:
        across += [point.x, *_bounds(point, "x")]
        up += [point.y, *_bounds(point, "y")]
    limit = session.efficiency_frontier.minimum_adherence
    if limit is not None:
        up.append(limit)
    return (
        axis_over(across, target_ticks=6, min_span=MIN_SECONDS),
        axis_over(up, target_ticks=6, min_span=MIN_SCORE, ceiling=1.0),
    )


def _bounds(point: PlotPoint, axis: str) -> tuple[float, ...]:
    estimate = point.row.latency_median if axis == "x" else point.row.adherence
    if estimate is None or estimate.low is None or estimate.high is None:
        return ()
    return (estimate.low, estimate.high)


def _across(axis: Axis, value: float) -> float:
    # A little air on both sides, so that marks never sit on the frame
    return _FRAME.left + 14 + axis.position(value) * (_FRAME.right - _FRAME.left - 28)


def _up(axis: Axis, value: float) -> float:
    return _FRAME.bottom - 8 - axis.position(value) * (_FRAME.bottom - _FRAME.top - 16)


def _spot(point: PlotPoint, x_axis: Axis, y_axis: Axis) -> tuple[float, float]:
    return _across(x_axis, point.x), _up(y_axis, point.y)


def _grid(x_axis: Axis, y_axis: Axis) -> list[str]:
    parts = []
    for tick in y_axis.ticks:
        y = _up(y_axis, tick)
        parts.append(_line((_FRAME.left, y), (_FRAME.right, y), _FAINT))
        parts.append(_text(_FRAME.left - 8, y + 4, y_axis.label(tick), anchor="end", size_px=12))
    for tick in x_axis.ticks:
        x = _across(x_axis, tick)
        parts.append(_line((x, _FRAME.top), (x, _FRAME.bottom), _FAINT))
        parts.append(_text(x, _FRAME.bottom + 18, x_axis.label(tick), anchor="middle", size_px=12))
    parts.append(_line((_FRAME.left, _FRAME.bottom), (_FRAME.right, _FRAME.bottom), _INK))
    parts.append(_line((_FRAME.left, _FRAME.top), (_FRAME.left, _FRAME.bottom), _INK))
    middle = (_FRAME.left + _FRAME.right) / 2
    parts.append(_text(middle, _FRAME.bottom + 38, "median latency per trial, seconds", anchor="middle", size_px=13))
    y = (_FRAME.top + _FRAME.bottom) / 2
    parts.append(
        f'<text transform="translate(22 {y:.1f}) rotate(-90)" text-anchor="middle" font-size="13" fill="{_INK}">'
        "adherence score</text>"
    )
    return parts


def _limits(session: Session, x_axis: Axis, y_axis: Axis, taken: list[Box], lines: list[Box]) -> list[str]:
    """Draw the limits that lie in the picture; add the room of their labels to `taken`, their own to `lines`."""
    parts = []
    frontier = session.efficiency_frontier
    if frontier.minimum_adherence is not None and y_axis.holds(frontier.minimum_adherence):
        y = _up(y_axis, frontier.minimum_adherence)
        words = f"{frontier.minimum_kind.value} {frontier.minimum_adherence:.3f}"
        parts.append(_line((_FRAME.left, y), (_FRAME.right, y), _RED, dashes="6 4"))
        baseline = y + 14 if y + 17 < _FRAME.bottom else y - 5
        parts.append(_text(_FRAME.right - 4, baseline, words, anchor="end", size_px=11, fill=_RED, halo=True))
        width = len(words) * _SMALL_CHARACTER_WIDTH
        taken.append(Box(_FRAME.right - 4 - width, baseline - 12, _FRAME.right, baseline + 3))
        lines.append(Box(_FRAME.left, y - 1, _FRAME.right, y + 1))
    if x_axis.holds(frontier.latency_ceiling):
        x = _across(x_axis, frontier.latency_ceiling)
        words = f"latency ceiling {seconds(frontier.latency_ceiling)}"
        width = len(words) * _SMALL_CHARACTER_WIDTH
        parts.append(_line((x, _FRAME.top), (x, _FRAME.bottom), _RED, dashes="6 4"))
        parts.append(_text(x - 4, _FRAME.top + 12, words, anchor="end", size_px=11, fill=_RED, halo=True))
        taken.append(Box(x - 4 - width, _FRAME.top, x + 1, _FRAME.top + 16))
        lines.append(Box(x - 1, _FRAME.top, x + 1, _FRAME.bottom))
    return parts


def _whiskers(point: PlotPoint, x_axis: Axis, y_axis: Axis) -> list[str]:
    x, y = _spot(point, x_axis, y_axis)
    colour = _COLOURS[point.kind]
    parts = []
    if bounds := _bounds(point, "y"):
        low, high = (_up(y_axis, bound) for bound in bounds)
        parts += [_line((x, low), (x, high), colour, opacity=0.45)]
        parts += [_line((x - 4, end), (x + 4, end), colour, opacity=0.45) for end in (low, high)]
    if bounds := _bounds(point, "x"):
        low, high = (_across(x_axis, bound) for bound in bounds)
        parts += [_line((low, y), (high, y), colour, opacity=0.45)]
        parts += [_line((end, y - 4), (end, y + 4), colour, opacity=0.45) for end in (low, high)]
    return parts


def _labels(points: tuple[PlotPoint, ...], x_axis: Axis, y_axis: Axis, taken: list[Box], lines: list[Box]) -> list[str]:
    """Place a two-line label beside every mark: tag above, picks and memory below; a thin line leads to far ones."""
    spots = [_spot(point, x_axis, y_axis) for point in points]
    marks = [Box(x - 9, y - 9, x + 9, y + 9) for x, y in spots]
    bars = [box for point, spot in zip(points, spots, strict=True) for box in _whisker_boxes(point, spot, x_axis, y_axis)]
    parts = []
    # The picks choose their places first
    for point, spot in sorted(zip(points, spots, strict=True), key=lambda pair: _PRIORITY.index(pair[0].kind)):
        name = point.row.quant_tag if not point.row.is_reference else f"{point.row.quant_tag} (reference)"
        first, second = visible(name, _LABEL_LIMIT), " · ".join([*point.picks, size(point.memory_bytes)])
        width = max(len(first) * _CHARACTER_WIDTH, len(second) * _SMALL_CHARACTER_WIDTH)
        place = cheapest(_label_places(*spot, width), hard=[*taken, *marks], soft=[*bars, *lines], bounds=_FRAME)
        taken.append(place)
        parts += _leader(place, *spot)
        parts += _label(point, place, spot[0], (xml_text(name, _LABEL_LIMIT), second))
    return parts


def _label(point: PlotPoint, place: Box, mark_x: float, texts: tuple[str, str]) -> list[str]:
    """Return both lines of a label, flush with the side that faces the mark."""
    to_the_left = place.right <= mark_x
    x, anchor = (place.right - 2, "end") if to_the_left else (place.left + 2, "start")
    weight = "600" if point.picks else "400"
    colour = _INK if point.row.valid else _RED
    return [
        _text(x, place.top + 12, texts[0], anchor=anchor, size_px=13, weight=weight, fill=colour, halo=True),
        _text(x, place.top + 25, texts[1], anchor=anchor, size_px=11, fill="#59636e", halo=True),
    ]


def _whisker_boxes(point: PlotPoint, spot: tuple[float, float], x_axis: Axis, y_axis: Axis) -> Iterator[Box]:
    x, y = spot
    if bounds := _bounds(point, "y"):
        yield Box(x - 4, _up(y_axis, bounds[1]), x + 4, _up(y_axis, bounds[0]))
    if bounds := _bounds(point, "x"):
        yield Box(_across(x_axis, bounds[0]), y - 4, _across(x_axis, bounds[1]), y + 4)


def _label_places(x: float, y: float, width: float) -> Iterator[tuple[float, Box]]:
    """Yield (cost, place): near places first; beside the mark at the four corners, then level with it, above and below."""
    height, wide = 30.0, width + 4
    for across, up in ((11.0, 6.0), (20.0, 22.0), (34.0, 44.0), (56.0, 70.0), (90.0, 100.0)):
        cost = across + up
        for left in (x + across, x - across - wide):
            yield cost, Box(left, y - up - height, left + wide, y - up)
            yield cost, Box(left, y + up, left + wide, y + up + height)
            yield cost + 1, Box(left, y - height / 2, left + wide, y + height / 2)
        yield cost + 8, Box(x - wide / 2, y - up - height - 6, x + wide / 2, y - up - 6)
        yield cost + 8, Box(x - wide / 2, y + up + 6, x + wide / 2, y + up + 6 + height)


def _leader(place: Box, x: float, y: float) -> list[str]:
    near_x = min(max(x, place.left), place.right)
    near_y = min(max(y, place.top), place.bottom)
    if abs(near_x - x) + abs(near_y - y) < 24:
        return []
    return [_line((x, y), (near_x, near_y), _GREY, opacity=0.8)]


def _mark(kind: str, x: float, y: float) -> str:
    colour = _COLOURS[kind]
    if kind in {"both", "minimum"}:
        return f'<rect x="{x - 7:.1f}" y="{y - 7:.1f}" width="14" height="14" fill="{colour}" stroke="#ffffff"/>'
    if kind == "best":
        corners = f"{x:.1f},{y - 9:.1f} {x + 8.5:.1f},{y + 7:.1f} {x - 8.5:.1f},{y + 7:.1f}"
        return f'<polygon points="{corners}" fill="{colour}" stroke="#ffffff"/>'
    if kind == "invalid":
        return (
            f'<path d="M{x - 5:.1f} {y - 5:.1f}l10 10m0 -10l-10 10" stroke="{colour}" stroke-width="2.5" stroke-linecap="round"/>'
        )
    fill = colour if kind == "frontier" else "#ffffff"
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{fill}" stroke="{colour}" stroke-width="2"/>'


def _legend(points: tuple[PlotPoint, ...]) -> list[str]:
    used = {point.kind for point in points}
    parts = []
    x, y = _FRAME.left + 8, HEIGHT - 36.0
    for kind, words in KIND_WORDS.items():
        if kind in used:
            parts += [_mark(kind, x, y - 4), _text(x + 14, y, words, size_px=12)]
            x += 14 + len(words) * 6.6 + 24
    return parts
