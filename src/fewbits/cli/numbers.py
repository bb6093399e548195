"""Numbers on command lines: finite and in range, or one clear usage error."""

from __future__ import annotations

import argparse
import math

_MOST_DIGITS = 9
_SHOWN = 40


def finite(text: str) -> float:
    """Read a finite number. Raises `ArgumentTypeError`."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        msg = f"{text[:_SHOWN]!r} is not a finite number"
        raise argparse.ArgumentTypeError(msg)
    return value


def share(text: str) -> float:
    """Read a share, 0..1. Raises `ArgumentTypeError`."""
    value = finite(text)
    if not 0 <= value <= 1:
        msg = f"{text} is not a share between 0 and 1"
        raise argparse.ArgumentTypeError(msg)
    return value


def celsius(text: str) -> float:
    """Read a temperature, above 0 and below 150 degrees Celsius. Raises `ArgumentTypeError`."""
    value = finite(text)
    if not 0 < value < 150:
        msg = f"{text} is no temperature between 0 and 150 degrees Celsius"
        raise argparse.ArgumentTypeError(msg)
    return value


def at_least_one(text: str) -> int:
    """Read a whole number from 1 to 999,999,999. Raises `ArgumentTypeError`."""
    digits = text.strip()
    if not digits.isdecimal() or len(digits) > _MOST_DIGITS or int(digits) < 1:
        msg = f"{text[:_SHOWN]!r} is not a whole number from 1 to {10**_MOST_DIGITS - 1:,}"
        raise argparse.ArgumentTypeError(msg)
    return int(digits)
