"""From recognised words to straightened lines of pieces, pure geometry.

Coordinates inside are straightened ones in units of the page's usual text height, so nothing further down depends on scale,
place or a skew of the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fewbits.extraction.words import Word

_WIDE = 2.5
"""Ratio of width to height from which the slope of a box is that of its text."""
_FIELD_BOXES = 12
"""Wide boxes from which a slope that changes over the page is fitted; below, one slope for all."""
_ROUNDS = 4
_SAME_LINE = 0.42
"""Largest vertical distance of two neighbours of one line, as a share of the smaller height. Boxes are about 1.4 times as high as
capital letters, lines at least as far apart as a box is high."""
_REACH = 3
"""Pieces at the end of a line that a further one may join on to (a raised footnote mark is not where the line goes on)."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A recognised text with its straightened place: `left`, `right` and `middle` (downwards), and its own `height`, all in
    usual text heights. `edges` are left and right of each character. `confidence` is 0..1.
    """

    text: str
    left: float
    right: float
    middle: float
    height: float
    confidence: float
    edges: tuple[tuple[float, float], ...]


def lines_of(words: Sequence[Word]) -> list[list[Piece]]:
    """Return the page's lines from top to bottom, each from left to right."""
    pieces = _straightened([word for word in words if word.text.strip()])
    lines: list[list[Piece]] = []
    for piece in sorted(pieces, key=lambda each: (each.left, each.middle)):
        line = _line_for(piece, lines)
        if line is None:
            lines.append([piece])
        else:
            line.append(piece)
    return sorted(lines, key=lambda line: sum(each.middle for each in line) / len(line))


def _line_for(piece: Piece, lines: list[list[Piece]]) -> list[Piece] | None:
    """Return the line whose last pieces lie at the height of this one; the nearest of several."""
    nearest, found = _SAME_LINE, None
    for line in lines:
        for last in line[-_REACH:]:
            far = abs(piece.middle - last.middle) / min(piece.height, last.height)
            overlap = min(piece.right, last.right) - max(piece.left, last.left)
            if far < nearest and overlap < 0.5 * min(piece.right - piece.left, last.right - last.left):
                nearest, found = far, line
    return found


def _straightened(words: Sequence[Word]) -> list[Piece]:
    if not words:
        return []
    corners = np.array([word.corners for word in words], dtype=np.float64)
    left, right = (corners[:, 0] + corners[:, 3]) / 2, (corners[:, 1] + corners[:, 2]) / 2
    heights = (np.linalg.norm(corners[:, 3] - corners[:, 0], axis=1) + np.linalg.norm(corners[:, 2] - corners[:, 1], axis=1)) / 2
    heights = np.maximum(heights, 1e-6)
    unit = float(np.median(heights))
    middle = (left + right) / 2
    origin = middle.mean(axis=0)
    slopes = _slope_field((left - origin) / unit, (right - origin) / unit, heights / unit)
    pieces = []
    for index, word in enumerate(words):
        edges = np.array(word.characters or _even_edges(word.text, left[index, 0], right[index, 0]), dtype=np.float64)
        start, centre, end = ((point[index] - origin) / unit for point in (left, middle, right))
        tilt = slopes[0] * centre[1]  # columns lean as lines do
        pieces.append(
            Piece(
                text=word.text,
                left=float(start[0] + tilt),
                right=float(end[0] + tilt),
                middle=_straight(centre[0], centre[1], slopes),
                height=float(heights[index] / unit),
                confidence=word.confidence,
                edges=tuple((float(a), float(b)) for a, b in (edges - origin[0]) / unit + tilt),
            )
        )
    return pieces


def _even_edges(text: str, left: float, right: float) -> list[tuple[float, float]]:
    step = (right - left) / len(text)
    return [(left + index * step, left + (index + 1) * step) for index in range(len(text))]


def _straight(x: float, y: float, slopes: NDArray[np.float64]) -> float:
    """Return where the text line through a point crosses x = 0: the slope at (x, y) is s0 + s1 x + s2 y."""
    return float((y - slopes[0] * x - slopes[1] * x * x / 2) / max(0.2, 1 + slopes[2] * x))


def _slope_field(left: NDArray[np.float64], right: NDArray[np.float64], heights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fit float[3]: the slope of the text lines as a linear function of the place, by least squares with Huber weights."""
    run = right - left
    wide = run[:, 0] > _WIDE * heights
    if not wide.any():
        return np.zeros(3)
    slope, weight = run[wide, 1] / run[wide, 0], run[wide, 0] ** 2
    order = np.argsort(slope)
    share = np.cumsum(weight[order]) / weight.sum()
    field = np.array([slope[order][np.searchsorted(share, 0.5)], 0.0, 0.0])
    if wide.sum() < _FIELD_BOXES:
        return field
    centre = (left[wide] + right[wide]) / 2
    design = np.column_stack([np.ones(len(centre)), centre])
    for _ in range(_ROUNDS):
        off = np.abs(slope - design @ field)
        limit = max(1e-3, 1.5 * float(np.median(off)))
        scale = np.sqrt(weight * np.minimum(1.0, limit / np.maximum(off, 1e-12)))
        field = np.linalg.lstsq(design * scale[:, None], slope * scale, rcond=None)[0]
    return field
