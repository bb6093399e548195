"""The Pareto set: variants that nothing else beats on every axis at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    """One variant: adherence 0..1 (higher is better), seconds and bytes (lower is better). `None` memory: not known."""

    quant_tag: str
    adherence_score: float
    latency_seconds: float
    peak_memory_rss: int | None = None
    variant_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Frontier:
    """`dominated_by` maps every point to the *frontier members* that beat it, sorted; empty means it is one itself."""

    objectives: tuple[str, ...]
    dominated_by: dict[str, tuple[str, ...]]

    @property
    def members(self) -> tuple[str, ...]:
        """Tags on the frontier, sorted."""
        return tuple(sorted(tag for tag, dominators in self.dominated_by.items() if not dominators))


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Tell whether `one` is nowhere worse than `other` and somewhere better (higher is better on every axis)."""
    return all(a >= b for a, b in zip(one, other, strict=True)) and any(a > b for a, b in zip(one, other, strict=True))


def pareto_frontier(points: Sequence[FrontierPoint]) -> Frontier:
    """Return the Pareto set over quality, latency and memory. Order of the points never matters; equal points tie.

    The memory axis is the same for all: measured peak memory when every point has it, else file size when every point
    has that, else there is no memory axis. Raises `ValueError` on a repeated tag.
    """
    if len({point.quant_tag for point in points}) != len(points):
        msg = "a quant tag appears twice"
        raise ValueError(msg)
    memory = memory_axis(points)
    axes = {point.quant_tag: _axes(point, memory) for point in points}
    beaten_by = {tag: [other for other, theirs in axes.items() if dominates(theirs, own)] for tag, own in axes.items()}
    members = {tag for tag, others in beaten_by.items() if not others}
    dominated_by = {tag: tuple(sorted(members.intersection(others))) for tag, others in sorted(beaten_by.items())}
    objectives = ("adherence_score:max", "total_latency:min", *((f"{memory}:min",) if memory else ()))
    return Frontier(objectives, dominated_by)


class HasMemory(Protocol):
    """Anything with the two sizes that can be the memory axis, in bytes."""

    @property
    def peak_memory_rss(self) -> int | None:
        """Measured peak; `None`: not known."""

    @property
    def variant_bytes(self) -> int | None:
        """Size of the file; `None`: not known."""


def memory_axis(points: Sequence[HasMemory]) -> str | None:
    """Return which size is compared: the first of peak memory and file size that every point has, else `None`."""
    for name in ("peak_memory_rss", "variant_bytes"):
        if points and all(getattr(point, name) is not None for point in points):
            return name
    return None


def _axes(point: FrontierPoint, memory: str | None) -> tuple[float, ...]:
    axes: tuple[float, ...] = (point.adherence_score, -point.latency_seconds)
    return (*axes, -float(getattr(point, memory))) if memory else axes
