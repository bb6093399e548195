"""Rows of a model's answer held against the page's own text: what stands nowhere on the page was made up."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import msgspec

from fewbits.records.extraction import LabReport, LabTest


def grounded(report: LabReport, lines: Sequence[str]) -> tuple[LabReport, tuple[str, ...]]:
    """Return a report with the rows alone whose name and value stand on the page, and a sentence about each other row.

    Compared without case, accents and white space: what a recogniser reads as two words, a model may write as one. The patient,
    laboratory and date that the page does not show become `None`.
    """
    page = _plain("".join(lines))
    kept: list[LabTest] = []
    problems: list[str] = []
    for number, test in enumerate(report.tests, 1):
        if _plain(test.test_name) in page and _plain(test.value) in page:
            kept.append(test)
        else:
            problems.append(f"row {number} does not stand on the page with this name and this value")
    return msgspec.structs.replace(_head(report, page), tests=tuple(kept)), tuple(problems)


def _head(report: LabReport, page: str) -> LabReport:
    patient = report.patient_info
    if patient is not None:
        patient = msgspec.structs.replace(
            patient, name=_shown(patient.name, page), patient_id=_shown(patient.patient_id, page), age=_age(patient.age, page)
        )
    return msgspec.structs.replace(report, patient_info=patient, lab_name=_shown(report.lab_name, page))


def _shown(text: str | None, page: str) -> str | None:
    return text if text is not None and _plain(text) in page else None


def _age(age: int | None, page: str) -> int | None:
    return age if age is not None and str(age) in page else None


def _plain(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", text).casefold()
    return "".join(char for char in decomposed if not char.isspace() and not unicodedata.combining(char) and char != "|")
