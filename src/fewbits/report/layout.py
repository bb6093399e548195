"""Where things go in a picture: axes with round ticks, and labels that do not cover each other. Pure geometry."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fewbits.records.summary import QuantRow, Session
from fewbits.report.verdicts import BEST_VALUE, MINIMUM_VIABLE, memory_axis, pick_words

MIN_SECONDS, MIN_SCORE = 0.005, 0.02
"""Smallest spans that pictures show on the latency and the adherence axis."""
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Axis:
    """A linear axis from `low` to `high` (both are ticks) with labels that show just enough decimals."""

    low: float
    high: float
    ticks: tuple[float, ...]
    decimals: int

    def position(self, value: float) -> float:
        """Return where `value` lies along the axis, 0 at `low`, 1 at `high`."""
        return (value - self.low) / (self.high - self.low)

    def holds(self, value: float) -> bool:
        """Whether `value` lies on the axis, ends included."""
        return self.low <= value <= self.high

    def label(self, tick: float) -> str:
        """Return a tick's label."""
        return f"{tick:.{self.decimals}f}"


def axis_over(values: Sequence[float], *, target_ticks: int, min_span: float, ceiling: float | None = None) -> Axis:
    """Return an axis that holds all `values` (at least one; finite, not negative) with about `target_ticks` round ticks.

    Values closer together than `min_span`, or than a hundredth of the largest, get room around them: never below 0, nor
    above `ceiling` unless a value is. So tick labels stay short, and noise is not blown up to fill a picture.
    """
    low, high = min(values), max(values)
    missing = max(min_span, 0.01 * high) - (high - low)
    if missing > 0:
        top = high if ceiling is not None and high + missing / 2 > ceiling else high + missing / 2
        low, high = max(low - missing / 2, 0.0), max(top, min_span)
    step = _round_step((high - low) / target_ticks)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    exponent = math.floor(math.log10(step) + 1e-9)
    decimals = max(0, -exponent + (1 if _is_quarter(step, exponent) else 0))
    ticks = tuple(round(index * step, decimals + 2) for index in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], ticks, decimals)


def _round_step(raw: float) -> float:
    magnitude = 10.0 ** math.floor(math.log10(raw))
    return next(factor * magnitude for factor in _STEPS if factor * magnitude >= raw * (1 - 1e-9))


def _is_quarter(step: float, exponent: int) -> bool:
    return abs(step / 10.0**exponent - 2.5) < 1e-6


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle; the edges belong to it only on the left and at the top."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        """Whether two boxes share any area."""
        return self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom

    def inside(self, other: Box) -> bool:
        """Whether this box lies wholly in `other`."""
        return self.left >= other.left and self.right <= other.right and self.top >= other.top and self.bottom <= other.bottom


def first_free(candidates: Iterable[Box], taken: Sequence[Box], bounds: Box) -> Box | None:
    """Return the first candidate inside `bounds` that covers nothing taken; `None` when there is none."""
    return next((box for box in candidates if box.inside(bounds) and not any(box.overlaps(other) for other in taken)), None)


_CROSSING_COST = 14.0
_COLLISION_COST = 1000.0


def cheapest(candidates: Iterable[tuple[float, Box]], *, hard: Sequence[Box], soft: Sequence[Box], bounds: Box) -> Box:
    """Return the candidate (at least one; each with its own cost) that costs least altogether; ties go to the first.

    Crossing a `soft` box (a line, a bar) costs a little; covering a `hard` one, or leaving `bounds`, is the last resort.
    """

    def total(candidate: tuple[float, Box]) -> float:
        own, box = candidate
        collisions = sum(box.overlaps(other) for other in hard) + (not box.inside(bounds))
        return own + _CROSSING_COST * sum(box.overlaps(other) for other in soft) + _COLLISION_COST * collisions

    return min(candidates, key=total)[1]


KIND_WORDS = {
    "both": "minimum viable and best value",
    "minimum": "minimum viable",
    "best": "best value",
    "frontier": "on the frontier",
    "other": "not on the frontier",
    "invalid": "invalid",
}
"""What the marks of a picture mean, most important first."""


@dataclass(frozen=True, slots=True)
class PlotPoint:
    """A row that has both coordinates: `x` median latency in seconds, `y` adherence 0..1, and what it is.

    `memory_bytes` is what the frontier compares as memory: peak memory, or the file's size where that is unknown.
    """

    row: QuantRow
    x: float
    y: float
    memory_bytes: int | None
    picks: tuple[str, ...]

    @property
    def kind(self) -> str:
        """The key of `KIND_WORDS` that decides the mark."""
        if MINIMUM_VIABLE in self.picks:
            return "both" if BEST_VALUE in self.picks else "minimum"
        if BEST_VALUE in self.picks:
            return "best"
        if not self.row.valid:
            return "invalid"
        return "frontier" if self.row.on_frontier else "other"


def plot_points(session: Session, include_invalid: bool) -> tuple[tuple[PlotPoint, ...], tuple[tuple[QuantRow, str], ...]]:
    """Split a session's rows into points for the picture and rows left out, each with the reason.

    Invalid rows are left out, unless they take part: asked for, or let into the frontier by the sweep's override.
    """
    points, left_out = [], []
    by_file = memory_axis(session) == "file size"
    for row in session.per_quant:
        missing = [
            words
            for words, value in (("adherence", row.adherence_score), ("median latency", row.total_latency))
            if value is None or not math.isfinite(value)
        ]
        picks = pick_words(session, row)
        takes_part = row.valid or include_invalid or row.on_frontier or bool(picks)
        if not takes_part:
            left_out.append((row, "invalid"))
        elif missing or row.adherence_score is None or row.total_latency is None:
            left_out.append((row, "no " + " and no ".join(missing)))
        else:
            memory = row.variant_bytes if by_file else row.peak_memory_rss
            points.append(PlotPoint(row, row.total_latency, row.adherence_score, memory, picks))
    return tuple(points), tuple(left_out)
