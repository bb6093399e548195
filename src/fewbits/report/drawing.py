"""Elements of SVG pictures: lines, texts, marks, a logarithmic axis, and colours that most people can tell apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

INK, QUIET, FAINT = "#1f2328", "#59636e", "#e4e7eb"
PALETTE = ("#0072b2", "#c04a00", "#00805e", "#b0509a", "#d98a00", "#3f9fd6")
"""After Okabe and Ito (2008), Color Universal Design, darkened for thin lines on white; marks differ in shape as well."""
GREY = "#8a8a8a"
SHAPES = ("circle", "square", "triangle", "diamond", "down", "cross")
CHARACTER_WIDTH = 0.56
"""Mean width of a character of a sans-serif font, in font sizes: wide enough for DejaVu Sans, the widest usual one."""

Point = tuple[float, float]


def line(start: Point, end: Point, colour: str, *, dashes: str = "", opacity: float = 1.0) -> str:
    """Return a straight line."""
    (x1, y1), (x2, y2) = start, end
    extra = (f' stroke-dasharray="{dashes}"' if dashes else "") + (f' stroke-opacity="{opacity}"' if opacity < 1 else "")
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{extra}/>'


def text(
    x: float,
    y: float,
    content: str,
    *,
    anchor: str = "start",
    size_px: int = 13,
    weight: str = "400",
    fill: str = INK,
    halo: bool = False,
) -> str:
    """Return a text element; `content` must already be safe for XML."""
    outline = ' paint-order="stroke" stroke="#ffffff" stroke-width="3"' if halo else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size_px}" font-weight="{weight}" '
        f'fill="{fill}"{outline}>{content}</text>'
    )


def text_width(characters: int, size_px: int) -> float:
    """Return about how wide a text is drawn, in user units."""
    return characters * size_px * CHARACTER_WIDTH


def polyline(points: Sequence[Point], colour: str, *, opacity: float = 1.0) -> str:
    """Return a line through `points`."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5" stroke-opacity="{opacity}"/>'


def mark(shape: str, x: float, y: float, colour: str, *, hollow: bool = False) -> str:
    """Return a mark of about 8 units, one of `SHAPES`, filled or hollow."""
    style = f'fill="{"#ffffff" if hollow else colour}" stroke="{colour}" stroke-width="1.5"'
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" {style}/>'
    if shape == "square":
        return f'<rect x="{x - 3.6:.1f}" y="{y - 3.6:.1f}" width="7.2" height="7.2" {style}/>'
    if shape == "cross":
        return (
            f'<path d="M{x - 3.6:.1f} {y - 3.6:.1f}l7.2 7.2m0 -7.2l-7.2 7.2" fill="none" stroke="{colour}" stroke-width="2.2"/>'
        )
    corners = {
        "triangle": ((0, -4.8), (4.5, 3.4), (-4.5, 3.4)),
        "down": ((0, 4.8), (4.5, -3.4), (-4.5, -3.4)),
        "diamond": ((0, -5.2), (5.2, 0), (0, 5.2), (-5.2, 0)),
    }[shape]
    path = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return f'<polygon points="{path}" {style}/>'


def svg_document(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    """Return a self-contained SVG document: no scripts, no outside fonts; `title` must be safe for XML."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" role="img" aria-labelledby="title" '
        "font-family=\"system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif\">"
    )
    opening = [head, f'<title id="title">{title}</title>', f'<rect width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>']
    return "\n".join([*opening, *parts, "</svg>", ""])


@dataclass(frozen=True, slots=True)
class LogAxis:
    """A logarithmic axis over whole powers of ten, from 10^`low` to 10^`high`."""

    low: int
    high: int

    def position(self, value: float) -> float:
        """Return where `value` lies, 0 at the low end, 1 at the high end; 0 and everything below the axis lie at its low end."""
        if value <= 0:
            return 0.0
        return min(1.0, max(0.0, (math.log10(value) - self.low) / (self.high - self.low)))

    def shows(self, value: float) -> bool:
        """Whether `value` has a place of its own: one below the axis has not."""
        return value > 0 and math.log10(value) >= self.low

    def ticks(self, most: int) -> tuple[tuple[float, str], ...]:
        """Return at most about `most` ticks (value, label): whole powers of ten, the low end among them."""
        step = max(1, math.ceil((self.high - self.low) / most))
        return tuple((10.0**exponent, _power(exponent)) for exponent in range(self.low, self.high + 1, step))


MOST_DECADES = 12
"""An axis shows no more: what is smaller by that much is nothing, and lies at its edge."""


def log_axis_over(values: Sequence[float]) -> LogAxis:
    """Return an axis that holds all positive `values` (finite); one decade around 1 where there is none."""
    exponents = [math.log10(value) for value in values if value > 0]
    if not exponents:
        return LogAxis(-1, 0)
    high = math.ceil(max(exponents) - 1e-9)
    low = max(math.floor(min(exponents) + 1e-9), high - MOST_DECADES)
    return LogAxis(low, high if high > low else low + 1)


def _power(exponent: int) -> str:
    return f"{10.0**exponent:g}" if -3 <= exponent <= 3 else f"1e{exponent}"
