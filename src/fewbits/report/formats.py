"""Numbers as words: every figure in a report is formatted here, so that the same number looks the same everywhere."""

from __future__ import annotations

import math
from collections.abc import Callable

from fewbits.core.units import format_bytes, format_seconds
from fewbits.records.estimate import Estimate

MISSING = "—"
_MINUS = "\u2212"
_MINUTE_SECONDS = 60


def score(value: float | None) -> str:
    """Format a score or a ratio with three decimals; `None` becomes an em dash."""
    return MISSING if value is None else _rounded(value, 3)


def signed(value: float | None) -> str:
    """Format a difference with its sign (`+0.021`, `0.000`), three decimals and a true minus sign."""
    if value is None:
        return MISSING
    text = _rounded(value, 3)
    return text if text.startswith(_MINUS) or not text.strip("0.") else f"+{text}"


def percent(value: float | None) -> str:
    """Format a rate 0..1 as a percentage with one decimal, without a decimal when it is whole; `None` becomes an em dash."""
    if value is None:
        return MISSING
    text = _rounded(value * 100, 1)
    return f"{text.removesuffix('.0')} %"


def level(value: float) -> str:
    """Format the nominal coverage of an interval (`95 %`)."""
    return percent(value)


def bits(value: float | None) -> str:
    """Format bits per weight, two decimals."""
    return MISSING if value is None else _rounded(value, 2)


def rate(value: float | None) -> str:
    """Format tokens per second: three significant digits at the least, never an exponent."""
    if value is None:
        return MISSING
    return _rounded(value, 0 if value >= 100 else 1 if value >= 10 else 2)


def seconds(value: float | None) -> str:
    """Format seconds as people read them; `None` becomes an em dash."""
    return MISSING if value is None else format_seconds(value)


def size(size_bytes: int | None) -> str:
    """Format bytes in binary units; `None` becomes an em dash."""
    return format_bytes(size_bytes)


def megabytes(value: float | None) -> str:
    """Format the extraction benchmark's mebibytes (`_mb` fields) as `size` does; `None` becomes an em dash."""
    return size(None if value is None else round(value * 1024**2))


def score_estimate(estimate: Estimate | None) -> str:
    """Format a score or a ratio to the reference with its interval: `0.612 [0.540, 0.683]`."""
    if estimate is None:
        return MISSING
    return score(estimate.value) + _interval(estimate, score)


def signed_estimate(estimate: Estimate | None) -> str:
    """Format a difference with its interval: `+0.021 [+0.010, +0.055]`."""
    if estimate is None:
        return MISSING
    return signed(estimate.value) + _interval(estimate, signed)


def seconds_estimate(estimate: Estimate | None) -> str:
    """Format a duration with its interval, the bounds in the unit of the value: `0.423 s [0.410, 0.441]`."""
    if estimate is None:
        return MISSING
    return seconds(estimate.value) + _interval(estimate, lambda bound: _bound_seconds(bound, estimate.value))


def nats(value: float | None) -> str:
    """Format a divergence with three significant digits, but at most six decimals, and never an exponent."""
    if value is None:
        return MISSING
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return _rounded(value, min(6, max(2, 2 - math.floor(math.log10(abs(value))))))


def nats_estimate(estimate: Estimate | None) -> str:
    """Format a divergence with its interval: `0.0123 [0.0110, 0.0141]`."""
    if estimate is None:
        return MISSING
    return nats(estimate.value) + _interval(estimate, nats)


def percent_estimate(estimate: Estimate | None) -> str:
    """Format a rate 0..1 with its interval: `93.1 % [91.8 %, 94.2 %]`."""
    if estimate is None:
        return MISSING
    return percent(estimate.value) + _interval(estimate, percent)


def p_value(value: float) -> str:
    """Format a p-value: three decimals, `under 0.001` below."""
    return "under 0.001" if value < 0.001 else _rounded(value, 3)


def _bound_seconds(bound: float, beside: float) -> str:
    if beside >= _MINUTE_SECONDS or bound >= _MINUTE_SECONDS:
        return format_seconds(bound)
    return _rounded(bound, 3 if beside < 1 else 2 if beside < 10 else 1)


def _interval(estimate: Estimate, form: Callable[[float], str]) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f" [{form(estimate.low)}, {form(estimate.high)}]"


def _rounded(value: float, decimals: int) -> str:
    text = f"{value:.{decimals}f}"
    if not text.strip("-0."):
        return text.lstrip("-")  # never a negative zero
    return text.replace("-", _MINUS)
