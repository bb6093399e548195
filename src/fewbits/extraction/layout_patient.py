"""The head of a report: laboratory, patient, dates, by the labels that stand before or above them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from fewbits.extraction.dates import iso_date
from fewbits.extraction.layout_tokens import Token, gap, joined
from fewbits.records.extraction import PatientInfo, Sex

LABELS: dict[str, tuple[str, ...]] = {
    "name": ("name", "patient", "patient name", "pt name", "name of patient", "patients name", "full name", "patient s name"),
    "age": ("age", "age years", "patient age"),
    "sex": ("sex", "gender"),
    "age_sex": ("age sex", "age gender", "sex age", "gender age"),
    "patient_id": (
        *("patient id", "patient no", "mrn", "patient number", "medical record number", "medical record no", "id", "uhid", "pid"),
        *("patient id no", "hospital no", "hospital number", "nhs number", "nhs no", "record no", "chart no", "pt id", "reg no"),
        *("id no", "id number", "chart number", "patient identifier", "registration no", "medical record"),
    ),
    "date_of_birth": ("dob", "date of birth", "birth date", "d o b", "born", "birthdate"),
    "reported": (
        *("reported", "report date", "date of report", "date reported", "reported on", "report issued", "issued", "date issued"),
        *(
            "report date time",
            "reported date",
            "final report date",
            "result date",
            "report printed",
            "reporting date",
            "released",
        ),
        *("date of issue", "printed", "reported at", "released on", "issue date"),
    ),
    "date": ("date",),
    "collected": (
        *("collected", "collection date", "date collected", "sample collected", "collected on", "drawn", "specimen collected"),
        *("date of collection", "received", "date received", "registered", "sample date", "specimen date", "sampled", "taken"),
        *("collection", "collected at", "received on", "date of sample", "sample received", "date taken", "specimen received"),
    ),
    "other": (
        *("referring doctor", "ordered by", "ordering provider", "physician", "doctor", "specimen id", "specimen", "sample id"),
        *(
            "accession",
            "accession no",
            "lab no",
            "lab id",
            "client",
            "ref by",
            "referred by",
            "requested by",
            "sample type",
            "room",
        ),
        *("ward", "phone", "tel", "telephone", "fax", "address", "provider", "ordering physician", "status", "fasting", "page"),
        *("sample no", "order no", "accession number", "lab number", "report no", "requesting doctor", "consultant", "clinician"),
        *(
            "email",
            "director",
            "helpline",
            "laboratory no",
            "order number",
            "request no",
            "account",
            "sample",
            "location",
            "visit",
        ),
    ),
}
_LONGEST = 4
_LARGE = 1.15
"""Text heights from which print is taken for a letterhead."""
_APART = 0.7
"""White space in text heights that parts two labels, or a label from its value."""
_TITLE = re.compile(
    r"(?:(?:final|interim|preliminary|laboratory|clinical|test|pathology|medical|lab|patient|diagnostic|blood|the|of|your|"
    r"biochemistry|hematology|haematology|report|reports|result|results|investigation|cumulative|summary|confidential|copy|"
    r"duplicate|and|examination|analysis|urine)\W*)+",
    re.IGNORECASE,
)
_HOUSE = re.compile(
    r"\b(?:labs?|labor|laborat\w*|diagnostics?|patholog\w*|hospital|clinic\w*|medical|health\w*|"
    r"biomedical|centre|center|institute|partners?|group|services?)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Found:
    """A label with the text that belongs to it; `text` is empty where the value stands below."""

    kind: str
    text: str
    left: float
    confidence: float


@cache
def _labels() -> dict[str, str]:
    """Labels in small letters without spaces, which OCR drops."""
    return {label.replace(" ", ""): kind for kind, labels in LABELS.items() for label in labels}


def _kind_of(tokens: Sequence[Token]) -> str | None:
    return _labels().get("".join(re.findall(r"[a-z]+", joined(tokens).casefold())))


def _spans(line: Sequence[Token]) -> list[tuple[int, int, str]]:
    """Return (start, end, kind) of the labels on a line. A label without a colon must begin what is printed together."""
    spans, index = [], 0
    while index < len(line):
        for size in range(min(_LONGEST, len(line) - index), 0, -1):
            part = line[index : index + size]
            apart = any(gap(before, after) > _APART for before, after in pairwise(part))
            if apart or re.search(r"\d", joined(part)) or any(":" in token.text for token in part[:-1]):
                continue
            kind = _kind_of(part)
            after = [token.text for token in line[index + size : index + size + 1]]
            colon = part[-1].text.endswith((":", ".")) or after == [":"]
            ends = index + size == len(line) or gap(part[-1], line[index + size]) > _APART
            begins = index == 0 or gap(line[index - 1], part[0]) > _APART
            if kind is not None and (colon or (begins and ends)):
                spans.append((index, index + size, kind))
                index += size
                break
        else:
            index += 1
    return spans


def is_head_line(line: Sequence[Token]) -> bool:
    """Say whether a line carries labels of the patient block."""
    spans = _spans(line)
    if not spans or spans[0][0] != 0:
        return False
    return any(kind not in ("other", "date") or len(spans) > 1 or end < len(line) for _, end, kind in spans)


def is_labels_only(line: Sequence[Token]) -> bool:
    """Say whether a line is nothing but labels, so that their values stand below."""
    spans = _spans(line)
    return sum(end - start for start, end, _ in spans) == len(line) and any(kind not in ("other", "date") for _, _, kind in spans)


def found_on(lines: Sequence[Sequence[Token]]) -> list[Found]:
    """Return every label of the lines with its value: beside it, else on the next line below it."""
    found = []
    for number, line in enumerate(lines):
        spans = _spans(line)
        for place, (start, end, kind) in enumerate(spans):
            stop = spans[place + 1][0] if place + 1 < len(spans) else len(line)
            right = line[stop].left if stop < len(line) else float("inf")
            value = [token for token in line[end:stop] if token.text != ":"]
            if not value and number + 1 < len(lines):
                below = lines[number + 1]
                value = (
                    [each for each in below if line[start].left - _APART <= each.left < right - 0.3] if not _spans(below) else []
                )
                value = _together(value)
            if value:
                text = joined(value).strip(" :")
                found.append(Found(kind, text, line[start].left, min(token.confidence for token in value)))
    return found


def _together(tokens: Sequence[Token]) -> list[Token]:
    """Return the tokens up to the first wide space."""
    kept: list[Token] = []
    for token in tokens:
        if kept and gap(kept[-1], token) > 2.0:
            break
        kept.append(token)
    return kept


def patient_of(found: Sequence[Found]) -> PatientInfo | None:
    """Return what the labels tell about the patient; `None` where they tell nothing."""
    texts: dict[str, str] = {}
    for each in found:
        texts.setdefault(each.kind, each.text)
    both = texts.get("age_sex", "")
    born = texts.get("date_of_birth")
    info = PatientInfo(
        name=texts.get("name") or None,
        age=_age(texts.get("age", both)),
        gender=_sex(texts.get("sex", both)) or _sex(texts.get("age", "")),
        patient_id=texts.get("patient_id") or None,
        date_of_birth=iso_date(_date_text(born)) if born else None,
    )
    return info if info != PatientInfo() else None


def report_date_of(found: Sequence[Found]) -> str | None:
    """Return the date of the report; a bare `Date` where none is called so. A date of collection is none."""
    for kind in ("reported", "date"):
        for each in found:
            if each.kind == kind and re.search(r"\d", each.text):
                return iso_date(_date_text(each.text))
    return None


def _date_text(text: str) -> str:
    """Return the text without a time of day, and with the space that OCR drops between a month and a number."""
    text = re.sub(r"(?<=[-/.]\d{4})(?=\d{1,2}:\d{2})", " ", text)
    bare = re.sub(r"[,\s]*\b\d{1,2}[:.]\d{2}(?:[:.]\d{2})?\s*(?:[AaPp]\.?[Mm]\.?)?\s*$", "", text).strip(" ,")
    bare = re.sub(r"(?<=[A-Za-z])(?=\d)|(?<=,)(?=\d)", " ", bare)
    return re.sub(r"(?<=\d)(?=[A-Za-z]{3,})", " ", bare)


def _age(text: str) -> int | None:
    match = re.search(r"\b(\d{1,3})\s*(?:y|yrs?|years?)?\b|\b(\d{1,3})[yY]", text)
    age = int(match[1] or match[2]) if match else None
    return age if age is not None and age <= 150 else None


def _sex(text: str) -> Sex | None:
    match = re.search(r"(?<![A-Za-z])(female|male|f|m|woman|man)(?![A-Za-z])", text, re.IGNORECASE)
    if match is None:
        return None
    return Sex.FEMALE if match[1][0] in "fFwW" else Sex.MALE


def lab_name_of(lines: Sequence[Sequence[Token]]) -> str | None:
    """Return the laboratory's name: the largest print above the patient block that is no title, else `None`."""
    best: tuple[float, str] | None = None
    for order, line in enumerate(lines):
        for group in _groups(line):
            text = joined(group)
            if _TITLE.fullmatch(text) or not re.search(r"[A-Za-z]{3}", text) or re.search(r"https?:|www\.|@|\d{4}", text):
                continue
            house = _HOUSE.search(text) is not None
            size = max(token.height for token in group)
            if not house and size < _LARGE:
                continue
            weight = size * (1.25 if house else 1.0) - 0.02 * order
            if best is None or weight > best[0]:
                best = (weight, text)
    return None if best is None else best[1]


def _groups(line: Sequence[Token]) -> list[list[Token]]:
    """Return the line's tokens, parted at wide spaces and at another size of print."""
    groups: list[list[Token]] = []
    for token in line:
        if not groups or gap(groups[-1][-1], token) > 1.2 or token.height < 0.6 * groups[-1][-1].height:
            groups.append([])
        groups[-1].append(token)
    return groups
