"""Reading a model's answer: one report found in the text and checked field by field, or no report and the reasons.

A model's output is hostile input: sizes and depth are bounded, and nothing is guessed. Problems name places (`tests[3].unit`),
never contents, which may be a patient's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fewbits.extraction.answer_json import NumberText, find_json
from fewbits.extraction.answer_text import FieldReader
from fewbits.extraction.dates import iso_date
from fewbits.records.extraction import LabReport, LabTest, PatientInfo, ReferenceRange, ReportType, Sex

MAX_TESTS = 500
_AGE_LIMIT = 150  # of `records.extraction.PatientInfo`
_AGE = re.compile(r"(\d{1,3})(?:\s*(?:y|yrs?|years?)(?:\s*old)?)?", re.IGNORECASE)
_DECIMAL = re.compile(r"[+-]?\d{1,15}(?:\.\d{1,15})?")
_SEXES = {"female": Sex.FEMALE, "f": Sex.FEMALE, "male": Sex.MALE, "m": Sex.MALE}

# `schema_version`, `metadata` and what rules decide (`flag_source`, `analyte`, `confidence`) are ours: a model's are not read
_REPORT_KEYS = frozenset({"schema_version", "report_type", "patient_info", "lab_name", "report_date", "tests", "metadata"})
_PATIENT_KEYS = frozenset({"name", "age", "gender", "patient_id", "date_of_birth"})
_TEST_KEYS = frozenset(
    {"test_name", "value", "unit", "reference_range", "flag", "printed_flag", "flag_source", "analyte", "confidence"}
)
_RANGE_KEYS = frozenset({"low", "high", "text"})


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    """What was read. `report` is `None` where the answer holds none; `problems` are what was dropped or wrong, with the place.

    `unknown_keys` counts keys that were ignored. `truncated`: the answer was cut off before its report was complete.
    """

    report: LabReport | None
    problems: tuple[str, ...] = ()
    unknown_keys: int = 0
    truncated: bool = False


def read_answer(text: str, *, truncated: bool = False) -> ParsedAnswer:
    """Read the one report of a model's answer; never raises.

    Code fences, a `<think>` part and prose around the JSON are passed over; a list of tests is a report without a head.
    `truncated`: the engine stopped at its limit of tokens (finish reason `length`). A cut-off report is no report, and neither
    is one of two that differ. A flag that the model claims is kept as `printed_flag` only: flags are decided by rules.
    """
    found = find_json(text, _looks_like_report)
    reader = FieldReader(found.problems)
    if found.value is None:
        if truncated:
            reader.problem("answer: cut off at the limit of new tokens")
        return ParsedAnswer(None, reader.problems, truncated=truncated)
    tree: dict[str, object] = found.value if isinstance(found.value, dict) else {"tests": found.value}
    report = _report(reader, tree)
    return ParsedAnswer(report, reader.problems, reader.unknown_keys)


def read_report_type(text: str) -> ReportType | None:
    """Return the panel that an answer to the classify prompt names; `None` where it names none or several. Never raises."""
    found = find_json(text, lambda value: isinstance(value, dict) and "report_type" in value)
    if not isinstance(found.value, dict):
        return None
    reader = FieldReader(())
    return _report_type(reader, found.value)


def _looks_like_report(value: object) -> bool:
    if isinstance(value, dict):
        return isinstance(value.get("tests"), list)
    return isinstance(value, list) and all(isinstance(item, dict) and "test_name" in item for item in value)


def _report(reader: FieldReader, tree: dict[str, object]) -> LabReport | None:
    rows = tree["tests"]
    if not isinstance(rows, list):  # `_looks_like_report` made sure of it
        return None
    if len(rows) > MAX_TESTS:
        reader.problem(f"tests: more than {MAX_TESTS} entries")
        return None
    reader.count_unknown(tree, _REPORT_KEYS)
    tests = [_test(reader, row, f"tests[{index}]") for index, row in enumerate(rows)]
    return LabReport(
        report_type=_report_type(reader, tree) or ReportType.OTHER,
        patient_info=_patient(reader, tree.get("patient_info")),
        lab_name=reader.text(tree, "lab_name", ""),
        report_date=_date(reader, tree, "report_date", ""),
        tests=tuple(test for test in tests if test is not None),
    )


def _report_type(reader: FieldReader, tree: dict[str, object]) -> ReportType | None:
    named = reader.text(tree, "report_type", "")
    if named is None:
        return None
    try:
        return ReportType(named.lower())
    except ValueError:
        reader.problem("report_type: not one of the known panels")
        return None


def _patient(reader: FieldReader, tree: object) -> PatientInfo | None:
    """Return the patient, `None` where nothing about one could be read."""
    if tree is None:
        return None
    if not isinstance(tree, dict):
        reader.wrong("patient_info", tree, "an object")
        return None
    reader.count_unknown(tree, _PATIENT_KEYS)
    where = "patient_info."
    patient = PatientInfo(
        name=reader.text(tree, "name", where),
        age=_age(reader, tree),
        gender=_gender(reader, tree),
        patient_id=reader.text(tree, "patient_id", where),
        date_of_birth=_date(reader, tree, "date_of_birth", where),
    )
    return None if patient == PatientInfo() else patient


def _date(reader: FieldReader, tree: dict[str, object], key: str, where: str) -> str | None:
    text = reader.text(tree, key, where)
    return None if text is None else iso_date(text)


def _age(reader: FieldReader, tree: dict[str, object]) -> int | None:
    text = reader.text(tree, "age", "patient_info.")
    if text is None:
        return None
    match = _AGE.fullmatch(text)
    if match is None or int(match[1]) > _AGE_LIMIT:
        reader.problem(f"patient_info.age: not whole years from 0 to {_AGE_LIMIT}")
        return None
    return int(match[1])


def _gender(reader: FieldReader, tree: dict[str, object]) -> Sex | None:
    text = reader.text(tree, "gender", "patient_info.")
    if text is None:
        return None
    sex = _SEXES.get(text.lower())
    if sex is None:
        reader.problem("patient_info.gender: neither female nor male")
    return sex


def _test(reader: FieldReader, row: object, where: str) -> LabTest | None:
    """Return one row; `None`, with the reason noted, where its name or value cannot be used. A missing value is kept as empty."""
    if not isinstance(row, dict):
        reader.wrong(where, row, "an object")
        return None
    reader.count_unknown(row, _TEST_KEYS)
    name = row.get("test_name")
    if isinstance(name, NumberText):
        reader.wrong(f"{where}.test_name", name, "text")
        return None
    words = reader.text(row, "test_name", f"{where}.", words_for_nothing=False)
    before = reader.count
    value = reader.text(row, "value", f"{where}.", words_for_nothing=False)
    if words is None or reader.count > before:
        reader.problem(f"{where}: dropped, since its {'name' if words is None else 'value'} cannot be used")
        return None
    mark = reader.text(row, "printed_flag", f"{where}.") or reader.text(row, "flag", f"{where}.")
    return LabTest(
        test_name=words,
        value=value or "",
        unit=reader.text(row, "unit", f"{where}."),
        reference_range=_range(reader, row.get("reference_range"), f"{where}.reference_range"),
        printed_flag=mark,
    )


def _range(reader: FieldReader, tree: object, where: str) -> ReferenceRange | None:
    """Return a printed range: an object, or text, which is not taken apart here. `None` where nothing of it could be read."""
    if not isinstance(tree, dict):
        text = reader.text({"reference_range": tree}, "reference_range", where.removesuffix("reference_range"))
        return None if text is None else ReferenceRange(text=text)
    reader.count_unknown(tree, _RANGE_KEYS)
    printed = ReferenceRange(
        low=_number(reader, tree, "low", where),
        high=_number(reader, tree, "high", where),
        text=reader.text(tree, "text", f"{where}."),
    )
    return None if printed == ReferenceRange() else printed


def _number(reader: FieldReader, tree: dict[str, object], key: str, where: str) -> float | None:
    """Return a number that is one in JSON, or text of plain decimal digits: `1,5` could be either of two numbers."""
    text = reader.text(tree, key, f"{where}.")
    if text is None:
        return None
    if isinstance(tree[key], NumberText) or _DECIMAL.fullmatch(text):
        return float(text)
    reader.problem(f"{where}.{key}: not a plain number")
    return None
