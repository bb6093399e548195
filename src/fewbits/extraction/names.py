"""Printed names of tests and the analytes they stand for: by equality, never by substring.

`Hemoglobin A1c` therefore never gets what holds for hemoglobin. Names that stand for several analytes (`Glucose`, `WBC`,
`Neutrophils`) are settled by the panel and the unit; see `analyte_of`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import cache, lru_cache

from fewbits.extraction.analyte import Analyte
from fewbits.extraction.analytes import ANALYTES
from fewbits.extraction.units import is_unit_of, normalized_unit
from fewbits.records.extraction import ReportType

_SERUM_WORDS = ("serum", "plasma")
_SLIPS = str.maketrans({"i": "l", "1": "l", "|": "l", "!": "l", "o": "0"})
_LETTERS = {"µ": "u", "μ": "u", "\u03b3": "gamma ", "\u03b1": "alpha ", "\u03b2": "beta "}
_SHORTEST = 5
"""Letters below which one changed letter names another test (ALT, ALP, AST)."""
OTHER_TESTS = frozenset({"idlcholesterol", "idl", "proteinc", "proteins", "bilirubini"})
"""Names, without spaces, of tests that the table does not hold but that a misread name of it would look like."""
IN_URINE_TOO = frozenset(
    {
        *(
            "creatinine",
            "urea",
            "urea_nitrogen",
            "uric_acid",
            "sodium",
            "potassium",
            "chloride",
            "calcium",
            "magnesium",
            "phosphate",
        ),
        *("albumin", "total_protein", "glucose", "bicarbonate", "ldh"),
    }
)
"""What is measured in blood, and under the same bare name in urine with other ranges, which the table does not hold."""


def normalized(name: str) -> str:
    """Return the name in small letters without accents, punctuation, marks and double spaces; `%` and `#` are kept as words.

    Doing it twice changes nothing.
    """
    # decomposed first: some signs hold capitals (U+2121 is TEL); and again, since folding can compose
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", name).casefold())
    bare = "".join(each for each in decomposed if not unicodedata.combining(each))
    for letter, spelled in _LETTERS.items():
        bare = bare.replace(letter, spelled)
    return " ".join(re.findall(r"[^\W_]+|[%#]", bare))


def _joined(name: str) -> str:
    """The name without spaces: what is compared (OCR and columns drop spaces)."""
    return normalized(name).replace(" ", "")


def _printings(analyte: Analyte) -> Iterable[str]:
    names = (analyte.name, *analyte.synonyms)
    yield from names
    if analyte.panel is not ReportType.URINALYSIS:
        for name in names:
            for word in _SERUM_WORDS:
                yield f"{name} {word}"
                yield f"{word} {name}"


@cache
def _index() -> dict[str, tuple[Analyte, ...]]:
    """Every printing without spaces, with the analytes that are printed so."""
    table: dict[str, dict[str, Analyte]] = {}
    for analyte in ANALYTES:
        for printing in _printings(analyte):
            table.setdefault(_joined(printing), {})[analyte.key] = analyte
    return {printing: tuple(found.values()) for printing, found in table.items()}


@cache
def _slip_index() -> dict[str, tuple[str, ...]]:
    """Printings by how they look when l, I and 1, or O and 0, are taken for each other."""
    table: dict[str, list[str]] = {}
    for printing in _index():
        table.setdefault(printing.translate(_SLIPS), []).append(printing)
    return {look: tuple(printings) for look, printings in table.items()}


def _letters(joined: str) -> int:
    """Return one bit for each kind of character: texts with many different bits are far from each other."""
    bits = 0
    for character in joined:
        bits |= 1 << (ord(character) % 64)
    return bits


@cache
def _long_printings() -> tuple[tuple[str, int, frozenset[str]], ...]:
    """Names and synonyms (without `serum` and `plasma`) that are long enough to be misread, with their letters and words."""
    printings: dict[str, frozenset[str]] = {}
    for analyte in ANALYTES:
        for name in (analyte.name, *analyte.synonyms):
            printings[_joined(name)] = printings.get(_joined(name), frozenset()) | frozenset(normalized(name).split())
    return tuple((each, _letters(each), words) for each, words in sorted(printings.items()) if len(each) >= _SHORTEST)


def _near(name: str, joined: str) -> dict[str, int]:
    """Return the printings that differ in at most one character, or a tenth of the length, and by how many.

    Digits and single letters tell tests apart (T3 and T4, protein C), so they must be the same.
    """
    limit, letters, digits = max(1, len(joined) // 10), _letters(joined), re.findall(r"\d", joined)
    single = {word for word in normalized(name).split() if len(word) == 1}
    found = {}
    for printing, others, words in _long_printings():
        if abs(len(printing) - len(joined)) > limit or (letters ^ others).bit_count() > 2 * limit:
            continue
        if single <= words and digits == re.findall(r"\d", printing) and (far := distance(joined, printing)) <= limit:
            found[printing] = far
    return found


def candidates(name: str) -> tuple[Analyte, ...]:
    """Return all analytes that are printed exactly so, in the table's order."""
    return _index().get(_joined(name), ())


def settled(found: tuple[Analyte, ...], panel: ReportType | None, unit: str | None) -> Analyte | None:
    """Return the one analyte of several that fits the panel and the unit; see `analyte_of`."""
    if panel is ReportType.URINALYSIS:
        found = tuple(each for each in found if each.key not in IN_URINE_TOO)
        found = tuple(each for each in found if each.panel is panel) or found
    if len(found) > 1 and normalized_unit(unit) is not None:
        found = tuple(each for each in found if is_unit_of(unit, each)) or found
    if len(found) > 1:
        found = tuple(each for each in found if each.panel is panel) or found
    if len(found) > 1:
        found = tuple(each for each in found if each.panel is not ReportType.URINALYSIS)
    return found[0] if len(found) == 1 else None


def analyte_of(name: str, *, panel: ReportType | None = None, unit: str | None = None) -> Analyte | None:
    """Return the analyte whose name or synonym equals the printed name (normalized, spaces aside); `None` if there is none.

    Of several, those that the unit fits go first (`WBC` in `/hpf`), then those of the panel, then the one of blood; if more than
    one is left (`Neutrophils` without a unit: percent or count), `None`. In a urinalysis its own analytes go before the unit
    (`Leukocytes` in `/uL`), and a bare `Creatinine` or `Sodium` is one of urine, which the table does not hold: `None`, unless
    the name says serum or plasma.
    """
    found = candidates(name)
    if panel is ReportType.URINALYSIS and set(normalized(name).split()) & set(_SERUM_WORDS):
        panel = None
    return settled(found, panel, unit)


def distance(first: str, second: str) -> int:
    """Return the number of inserted, deleted or changed characters between two texts (Levenshtein 1966)."""
    row = list(range(len(second) + 1))
    for place, character in enumerate(first, start=1):
        previous, row[0] = row[0], place
        for column, other in enumerate(second, start=1):
            previous, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, previous + (character != other))
    return row[-1]


@lru_cache(maxsize=4096)
def closest(name: str, *, panel: ReportType | None = None, unit: str | None = None) -> tuple[Analyte, int] | None:
    """Return the analyte of a misread name and how many characters differ; 0 where it is exact; `None` if none is near.

    First l, I, 1 and O, 0 are taken for each other; then one character, or a tenth of the length, may differ in names of five
    characters and more, digits aside. The nearest printings must all stand for one analyte (after panel and unit).
    """
    exact = analyte_of(name, panel=panel, unit=unit)
    if exact is not None or candidates(name):
        return None if exact is None else (exact, 0)
    joined = _joined(name)
    if joined in OTHER_TESTS:
        return None
    alike = _slip_index().get(joined.translate(_SLIPS), ())
    nearest = {printing: distance(joined, printing) for printing in alike}
    if not nearest and len(joined) >= _SHORTEST:
        nearest = _near(name, joined)
    if not nearest:
        return None
    smallest = min(nearest.values())
    found = {analyte.key: analyte for each, far in nearest.items() if far == smallest for analyte in _index()[each]}
    analyte = settled(tuple(found.values()), panel, unit)
    return None if analyte is None else (analyte, smallest)
