"""Units: one spelling for each, and explicit conversion through an analyte.

Conversion is a matter of the analyte (a milliequivalent of sodium is a millimole, one of calcium is half of it), so every
factor is in `analytes`.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

from fewbits.extraction.analyte import Analyte

SPELLINGS: dict[str, tuple[str, ...]] = {
    "%": ("percent", "pct"),
    "g/dL": ("gm/dl", "gms/dl", "g%", "gm%", "gr/dl", "grams/dl", "g/100ml"),
    "g/L": ("gm/l",),
    "mg/dL": ("mgs/dl", "mg%", "mg/100ml", "mgdl"),
    "mg/L": (),
    "ug/dL": (),
    "ug/L": (),
    "ng/dL": (),
    "ng/mL": (),
    "ng/L": (),
    "pg/mL": (),
    "pg/dL": (),
    "mmol/L": ("mmols/l", "mm/l"),
    "umol/L": ("umols/l",),
    "nmol/L": (),
    "pmol/L": (),
    "mmol/mol": (),
    "mEq/L": ("meqs/l",),
    "U/L": ("iu/l", "units/l", "unit/l"),
    "U/mL": (),
    "IU/mL": (),
    "kIU/L": ("ku/l",),
    "mIU/L": ("mu/l",),
    "mIU/mL": ("mu/ml",),
    "uIU/mL": ("uu/ml",),
    "ukat/L": (),
    "EU/dL": ("ehrlichu/dl", "ehrlichunits/dl"),
    "fL": ("femtol",),
    "um3": ("um^3",),
    "pg": ("picogram",),
    "L/L": (),
    "ratio": (),
    "10^3/uL": (
        *("k/ul", "k/mm3", "k/cumm", "thou/ul", "thou/mm3", "thousand/ul", "thousands/ul", "thous/ul", "th/ul", "1000/ul"),
        *(
            "10e3/ul",
            "10*3/ul",
            "103/ul",
            "10^3/mm3",
            "103/mm3",
            "10^3/cumm",
            "103/cumm",
            "10(3)/ul",
            "10**3/ul",
            "thousand/cumm",
        ),
    ),
    "10^5/uL": (
        *(
            "10e5/ul",
            "10*5/ul",
            "105/ul",
            "10(5)/ul",
            "10^5/cumm",
            "10^5/mm3",
            "lakh/cumm",
            "lakhs/cumm",
            "lakh/mm3",
            "lakhs/mm3",
        ),
        *("lakhs/ul", "lac/cumm"),
    ),
    "10^6/uL": (
        *("m/ul", "mil/ul", "mill/ul", "million/ul", "millions/ul", "m/mm3", "mill/mm3", "mill/cumm", "mil/cumm", "million/cumm"),
        *("million/mm3", "10e6/ul", "10*6/ul", "106/ul", "10^6/mm3", "106/mm3", "10^6/cumm", "106/cumm", "10(6)/ul", "10**6/ul"),
    ),
    "10^9/L": ("10e9/l", "10*9/l", "109/l", "giga/l", "10(9)/l", "10**9/l", "bil/l"),
    "10^12/L": ("10e12/l", "10*12/l", "1012/l", "tera/l", "10(12)/l", "10**12/l", "t/l"),
    "/uL": ("cells/ul", "cell/ul", "/mm3", "cells/mm3", "/cumm", "cells/cumm", "ery/ul", "leu/ul", "wbc/ul", "rbc/ul"),
    "/hpf": ("hpf", "perhpf", "cells/hpf", "wbc/hpf", "rbc/hpf", "#/hpf"),
    "/lpf": ("lpf", "perlpf"),
    "mL/min": (),
    "mL/min/1.73m2": (
        "ml/min/1.73",
        "ml/min/1.73m^2",
        "ml/min/1.73sqm",
        "ml/min/1.73sq.m",
        "ml/min/1,73m2",
        "ml/min/173m2",
        "ml/min/1.73m",
    ),
    "mm/h": ("mm/hr", "mm/hour"),
    "s": ("sec", "secs", "seconds"),
}
"""Each unit as this package writes it, and other spellings in small letters without spaces, `u` for micro."""

_MICRO = re.compile(r"mc(?=(g|l|mol|kat|iu|u)\b)|[µμ]")
_SLIPS = str.maketrans({"i": "l", "1": "l", "|": "l", "!": "l", "o": "0"})
_LITRES = re.compile(r"litres?|liters?")


def plain(text: str) -> str:
    """Return a unit in small letters without spaces, raised digits and multiplication signs; `u` for micro."""
    small = unicodedata.normalize("NFKC", text).casefold()
    small = _MICRO.sub("u", _LITRES.sub("l", small)).replace("\u00d7", "x").replace("·", "x").replace("\\", "/")
    small = re.sub(r"\s+", "", small).strip("[]")
    if small.startswith("(") and small.endswith(")"):
        small = small[1:-1]
    return re.sub(r"^[x*](?=10)", "", small).replace("per", "/") if small != "percent" else small


@cache
def _exact() -> dict[str, str]:
    table = {}
    for unit, spellings in SPELLINGS.items():
        for spelling in (plain(unit), *spellings):
            table[spelling] = unit
    return table


@cache
def _slips() -> dict[str, str]:
    """Spellings as OCR reads them: l, I and 1 alike, O and 0 alike; `p` for the micro of counts in a microlitre."""
    table: dict[str, str | None] = {}
    for spelling, unit in _exact().items():
        readings = {spelling.translate(_SLIPS)}
        if unit.endswith("/uL"):
            readings |= {spelling.replace("/ul", "/pl").translate(_SLIPS), spelling.replace("/ul", "/yl").translate(_SLIPS)}
        for reading in readings:
            table[reading] = unit if table.get(reading, unit) == unit else None
    return {reading: unit for reading, unit in table.items() if unit is not None}


def normalized_unit(text: str | None) -> str | None:
    """Return the unit in this package's spelling (`MG/DL` -> `mg/dL`), also for usual slips of OCR; `None` if unknown."""
    if text is None or not text.strip():
        return None
    small = plain(text)
    return _exact().get(small) or _slips().get(small.translate(_SLIPS))


def is_known_unit(text: str | None) -> bool:
    """Say whether the text is a unit that this package can name."""
    return normalized_unit(text) is not None


def convert(value: float, from_unit: str | None, analyte: Analyte) -> float | None:
    """Return the value in the analyte's own unit; `None` where the unit is missing, unknown or of another quantity.

    A pure number (`analyte.unit == ""`) needs no unit.
    """
    if from_unit is None or not from_unit.strip():
        return value if analyte.unit == "" else None
    unit = normalized_unit(from_unit)
    if unit is None:
        return None
    if unit == analyte.unit:
        return value
    factor = analyte.convertible.get(unit)
    return None if factor is None else value * factor + analyte.offsets.get(unit, 0.0)


def is_unit_of(unit: str | None, analyte: Analyte) -> bool:
    """Say whether the analyte can be given in this unit."""
    return convert(1.0, unit, analyte) is not None
