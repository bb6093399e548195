"""What a model file may weigh, as people write it: `5.0bpw`, `700MB`, `1.2GiB`. Pure."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from fewbits.core.errors import SpecError

BITS_PER_WEIGHT = "bpw"
UNITS: dict[str, int] = {
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}
"""Bytes in a unit of size, by its upper-case name."""
_FORM = re.compile(r"(\d{1,12}(?:\.\d{1,12})?)\s*([A-Za-z]+)", re.ASCII)
_SPELLING = {"KIB": "KiB", "MIB": "MiB", "GIB": "GiB"}
_HINT = "write bits per weight such as 5.0bpw, or a file size such as 700MB or 1.2GiB"


@dataclass(frozen=True, slots=True)
class FileBudget:
    """A budget. `unit` is `bpw`, or a unit of file size in upper case."""

    asked: str
    amount: float
    unit: str

    def file_bytes(self, *, weights: int, overhead_bytes: int) -> int:
        """Largest file size, bytes, for a file of `weights` weights whose header takes `overhead_bytes`.

        Bits per weight are counted over all weights and without the header, as a file's own `bits_per_weight` is.
        """
        if self.unit == BITS_PER_WEIGHT:
            return overhead_bytes + math.floor(weights * self.amount / 8)
        return math.floor(self.amount * UNITS[self.unit])

    def words_for(self, file_bytes: int, *, weights: int, overhead_bytes: int) -> str:
        """Return a file size in this budget's unit, rounded up so that it can be asked for."""
        if self.unit == BITS_PER_WEIGHT:
            return f"{_rounded_up(8 * (file_bytes - overhead_bytes), weights)}{BITS_PER_WEIGHT}"
        return f"{_rounded_up(file_bytes, UNITS[self.unit])}{_SPELLING.get(self.unit, self.unit)}"


def _rounded_up(numerator: int, denominator: int) -> str:
    """Return a quotient with at most three decimals, never below its true value."""
    whole, thousandths = divmod(-(-numerator * 1000 // denominator), 1000)
    return f"{whole}.{thousandths:03d}".rstrip("0").rstrip(".")


def read_budget(text: str, where: str = "--budget") -> FileBudget:
    """Read a budget. Raises `SpecError` at `where`: no number, no unit or an unknown one, nothing at all, more than 32 bits."""
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise SpecError.single(where, f"{text!r} is no budget", _HINT)
    amount, unit = float(match.group(1)), match.group(2)
    if unit.lower() == BITS_PER_WEIGHT:
        if not 0 < amount <= 32:
            raise SpecError.single(where, f"{text!r}: bits per weight are above 0 and at most 32", _HINT)
        return FileBudget(text.strip(), amount, BITS_PER_WEIGHT)
    if unit.upper() not in UNITS:
        raise SpecError.single(where, f"{text!r}: {unit!r} is no unit", _HINT)
    if amount == 0:
        raise SpecError.single(where, f"{text!r} leaves no room at all", _HINT)
    return FileBudget(text.strip(), amount, unit.upper())
