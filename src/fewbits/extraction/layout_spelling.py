"""What a part of a row can be, by its text alone. Slips of OCR are mended only where the grammar leaves one reading."""

from __future__ import annotations

import re
from functools import cache, lru_cache

from fewbits.extraction.analytes import ANALYTES
from fewbits.extraction.units import SPELLINGS, normalized_unit, plain
from fewbits.extraction.values import is_range_word, parse_number, parse_range, span_of
from fewbits.records.extraction import ReferenceRange

FLAGS = frozenset({"h", "l", "hh", "ll", "a", "aa", "n", "c", "hi", "lo", "high", "low", "critical", "abnormal", "abn", "normal"})
FLAGS_IN_SIGNS = re.compile(r"\(?(?:[*!↑↓▲▼†‡#+]{1,3}|(?:[HLANC]{1,2}|HIGH|LOW|High|Low)[*!↑↓]?)\)?")
_DIGIT_SLIPS = str.maketrans({"O": "0", "o": "0", "l": "1", "I": "1", "|": "1"})
_MISREAD_NUMBER = re.compile(r"[<>≤≥=]{0,2}[\dOolI|.,]*\d[\dOolI|.,]*")
_STRAY = re.compile(r"[^\x00-\x7fµμ²³⁶⁹]$|[.,:;'`]$")
"""A last character that no unit ends with: dirt on the page."""
_NUMBERS = re.compile(r"\d")
_POWER = re.compile(
    r"^[x×*·X]?\s?1[0oO][\^°º*eE'\"`”“’?%‰]?(?P<power>\d{0,2})[°º'\"*]?\s?/\s?(?P<volume>[μµu]?L|l|[a-zμµ]{2}|mm3|mm³|cumm)$"  # noqa: RUF001 - what pages print
)
_OPEN_WORDS = frozenset(
    {"pending", "see note", "see comment", "not done", "not performed", "tnp", "qns", "cancelled", "indeterminate"}
)


@cache
def result_words() -> frozenset[str]:
    """Return the results in words that the table of analytes knows, in small letters."""
    words = {word.casefold() for analyte in ANALYTES for word in (*analyte.words, *analyte.normal_words)}
    return frozenset(
        words | _OPEN_WORDS | {"reactive", "non-reactive", "nonreactive", "not seen", "none detected", "detected", "equivocal"}
    )


@lru_cache(maxsize=4096)
def number_text(text: str) -> str | None:
    """Return a printed number without inner spaces, letters that can only be digits made digits (`1O.5`); else `None`."""
    tight = re.sub(r"\s*([.,])\s*(?=\d)", r"\1", text.strip())
    if re.match(r"0\d", tight) is not None:
        return None  # the number of a patient or a telephone
    if parse_number(tight) is not None and " " not in tight.lstrip("<>≤≥= "):
        return tight if _NUMBERS.search(tight) and not re.search(r"[A-Za-z*!↑↓▲▼()]", tight) else None
    if not _MISREAD_NUMBER.fullmatch(tight):
        return None
    mended = tight.translate(_DIGIT_SLIPS)
    return mended if parse_number(mended) is not None else None


@lru_cache(maxsize=4096)
def is_word_result(text: str) -> bool:
    """Say whether a text is a result in words (`Negative`, `1+`, `None seen`)."""
    return text.casefold() in result_words() or is_range_word(text)


@lru_cache(maxsize=4096)
def is_span_result(text: str) -> bool:
    """Say whether a text is a counted interval (`0-2`), as results of microscopy are."""
    return re.fullmatch(r"\d{1,3}\s?[-–]\s?\d{1,3}", text) is not None and span_of(text) is not None  # noqa: RUF001 - what pages print


@lru_cache(maxsize=4096)
def unit_text(text: str, own: tuple[str, ...] = ()) -> str | None:
    """Return a known unit as it was read, or in its usual spelling where it was misread (`mlU/L`); `None` where it is neither.

    Where the power itself is lost (`10°/L`), the units of the analyte (`own`) must leave one reading.
    """
    known = normalized_unit(text)
    if known is not None:
        exact = plain(text) == plain(known) or plain(text) in SPELLINGS[known]
        return text if exact else known
    if _STRAY.search(text) is not None and normalized_unit(text[:-1]) is not None:
        return text[:-1]
    match = _POWER.match(text)
    if match is None:
        return None
    volume = "L" if match["volume"] in ("L", "l") else "uL"
    unit = f"10^{match['power']}/{volume}"
    if normalized_unit(unit) is not None:
        return unit
    fitting = {each for each in own if re.fullmatch(rf"10\^\d+/{volume}", each)}
    return fitting.pop() if len(fitting) == 1 else None


def is_power(text: str) -> bool:
    """Say whether a text is a count per volume, however its raised power was read (`10°/L`)."""
    return _POWER.match(text) is not None


def looks_like_unit(text: str) -> bool:
    """Say whether a text has the shape of a unit that the table does not know (`ng/L/h`, `mOsm/kg`)."""
    return (
        re.fullmatch(r"[A-Za-zμµ%][A-Za-zμµ%0-9^.²³]{0,7}/[A-Za-zμµ%0-9^.²³/]{1,12}", text) is not None
        and re.search(r"[A-Za-zμµ]", text) is not None
    )


@lru_cache(maxsize=4096)
def range_of(text: str) -> ReferenceRange | None:
    """Return a printed range; `None` where the text is none. Letters that can only be digits are mended."""
    text = text.replace("\uff0d", "-")  # the wide hyphen, which the recogniser knows
    if text.endswith(")") and "(" not in text:
        text = re.sub(r"^[|Il{\[]\s*(?=[<>≤≥])|^[|{\[]\s*(?=\d)", "(", text)
    found = parse_range(text) or parse_range(re.sub(r"^\W*[oO]\s*to\s*(?=\d)", "0 to ", text))
    if found is None and re.search(r"\d", text) and re.fullmatch(r"[(\[]?[\s\dOolI|.,<>≤≥=–-]+[)\]]?", text):  # noqa: RUF001 - what pages print
        mended = re.sub(r"(?<=\d)[.,](?=\s*[-–])", "", text.translate(_DIGIT_SLIPS))  # noqa: RUF001 - what pages print
        return parse_range(mended)
    return found


@lru_cache(maxsize=4096)
def trailing_unit(text: str) -> str | None:
    """Return the unit that a numeric range ends with (`150-400 10^3/uL`), else `None`."""
    match = re.fullmatch(r".*\d\s*[-–<>≤≥]?\s*\d[\d.,]*\s*\)?\s+(?P<unit>\S+?)\)?", text)  # noqa: RUF001 - what pages print
    return match["unit"] if match is not None and unit_text(match["unit"]) is not None else None


@lru_cache(maxsize=4096)
def is_flag(text: str) -> bool:
    """Say whether a text is a page's mark."""
    return FLAGS_IN_SIGNS.fullmatch(text) is not None or text.casefold().strip("()[]") in FLAGS
