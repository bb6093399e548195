"""Numbers inside sentences: plain, short, no false precision."""

from __future__ import annotations

from collections.abc import Sequence


def percent(share: float) -> str:
    """Format a share as a percentage: whole above 10 % (`71 %`), one decimal below (`3.2 %`), never a false 0 or 100."""
    value = share * 100
    if value == round(value) or 10 <= abs(value) < 99.5:
        return f"{value:.0f} %"
    if 99.5 <= abs(value) < 100:
        return f"{min(abs(value), 99.9) * (1 if value > 0 else -1):.1f} %"
    text = f"{value:.1f}"
    return f"{text} %" if float(text) != 0 else "under 0.1 %"


def apart(share: float, limit: float) -> tuple[str, str]:
    """Format a share and the limit it misses with as many decimals as it takes to tell them apart (`57.6 %`, `57.9 %`)."""
    for decimals in range(5):
        words = (f"{share * 100:.{decimals}f} %", f"{limit * 100:.{decimals}f} %")
        if words[0] != words[1]:
            return words
    return percent(share), percent(limit)


def points(difference: float) -> str:
    """Format a signed difference of shares in percentage points (`-3.2 points`, `+1 point`, `0 points`)."""
    value = round(difference * 100, 1) + 0.0
    number = f"{value:+.0f}" if value == round(value) else f"{value:+.1f}"
    number = "0" if value == 0 else number
    return f"{number} point" if abs(value) == 1 else f"{number} points"


def count(number: int, noun: str) -> str:
    """Format a count with its noun (`1 task`, `12 tasks`)."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def listed(items: Sequence[str], conjunction: str = "and") -> str:
    """Join words as people do (`a`, `a and b`, `a, b and c`)."""
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} {conjunction} {items[-1]}"
