"""A number with its uncertainty."""

from __future__ import annotations

from fewbits.records.base import Record


class Estimate(Record, frozen=True, kw_only=True):
    """A number with its uncertainty. `low`/`high` are `None` only where `reason` says why no interval exists."""

    value: float
    low: float | None
    high: float | None
    level: float
    """Nominal coverage, 0..1 (0.95)."""
    method: str
    n: int
    """Independent units the interval is made from (tasks, or trials)."""
    reason: str = ""
