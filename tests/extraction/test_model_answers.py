"""Answers: what is well said is read, what is not is named by its place, and nothing that a model writes can raise."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.core.codec import to_builtins
from fewbits.extraction.answer_json import MAX_CHARACTERS, MAX_DEPTH
from fewbits.extraction.answers import MAX_TESTS, read_answer, read_report_type
from fewbits.extraction.dates import iso_date
from fewbits.records.extraction import LabReport, LabTest, PatientInfo, ReferenceRange, ReportType, Sex

ROW: dict[str, Any] = {"test_name": "WBC", "value": "7.2", "unit": "K/uL", "reference_range": None, "flag": None}
GOOD = json.dumps({"report_type": "cbc", "tests": [ROW]})


def row_of(**fields: Any) -> tuple[LabTest, tuple[str, ...]]:
    parsed = read_answer(json.dumps({"tests": [ROW | fields]}))
    assert parsed.report is not None
    assert len(parsed.report.tests) == 1
    return parsed.report.tests[0], parsed.problems


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"```json\n{GOOD}\n```",
        f"Here's the 5\" page [as read]:\n{GOOD}\nI hope {{this}} helps.",
        f"see [1 below\n{GOOD}",
        f'<think>{{"tests": []}} or not?</think>\n{GOOD}',
        f"{GOOD}\n{GOOD}",
        f"```json\n{GOOD}\n```\n```json\n" + GOOD[:30],
        GOOD.replace('"cbc"', '"CBC"'),
    ],
)
def test_one_report_is_found_whatever_stands_around_it(text: str) -> None:
    parsed = read_answer(text)
    assert parsed.report == LabReport(report_type=ReportType.CBC, tests=(LabTest(test_name="WBC", value="7.2", unit="K/uL"),))
    assert parsed.problems == ()


def test_a_bare_list_of_tests_is_a_report_without_a_head() -> None:
    parsed = read_answer(f"[{json.dumps(ROW)}, {json.dumps(ROW)}]")
    assert parsed.report is not None
    assert [test.test_name for test in parsed.report.tests] == ["WBC", "WBC"]
    assert parsed.report.patient_info is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no JSON"),
        ("I cannot read this image.", "no JSON"),
        ('{"report_type": "cbc"}', "not the wanted shape"),
        ('{"tests": {"a": 1}}', "not the wanted shape"),
        ('{"report": {"tests": []}}', "not the wanted shape"),
        ('{"tests": [],}', "no valid JSON"),
        ('{"tests": [{"test_name": "x", "value": NaN}]}', "NaN is no number"),
        ('{"tests": [{"test_name": "x", "value": -Infinity}]}', "-Infinity is no number"),
        ('{"tests": [{"test_name": "x", "value": 1e999}]}', "too large"),
        ('{"tests": [], "tests": [{"test_name": "x", "value": 1}]}', "not the wanted shape"),
        ('{"tests": []} {"tests": [{"test_name": "x", "value": 1}]}', "several different"),
        ('{"tests": ' + "[" * 60 + "]" * 60 + "}", f"deeper than {MAX_DEPTH}"),
        ("[" * 100_000, "not closed"),
        ('{"tests": [' + ",".join(["{}"] * (MAX_TESTS + 1)) + "]}", f"more than {MAX_TESTS}"),
        (" " * (MAX_CHARACTERS + 1), "longer than"),
        ('<think>{"tests": []} hm', "thinking"),
    ],
)
def test_what_is_no_report_is_a_failure_with_its_reason(text: str, reason: str) -> None:
    parsed = read_answer(text)
    assert parsed.report is None
    assert reason in " ".join(parsed.problems)


def test_a_cut_off_answer_is_no_report_wherever_it_was_cut() -> None:
    whole = json.dumps({"lab_name": "L", "tests": [ROW, ROW, ROW]})
    for end in range(1, len(whole)):
        parsed = read_answer(whole[:end], truncated=True)
        assert (parsed.report, parsed.truncated) == (None, True)
        assert any("limit of new tokens" in problem for problem in parsed.problems)
        assert read_answer(whole[:end]).report is None
    assert not read_answer(whole + " and then", truncated=True).truncated


def test_wrong_types_are_dropped_and_named_but_not_repeated() -> None:
    test, problems = row_of(unit=["secret"], reference_range=5, flag={"secret": 1})
    assert test == LabTest(test_name="WBC", value="7.2", reference_range=ReferenceRange(text="5"))
    assert problems == ("tests[0].flag: an object, not text", "tests[0].unit: a list, not text")
    parsed = read_answer('{"patient_info": ["Jane Roe"], "report_type": "Jane", "tests": ["Jane Roe", null, 3]}')
    assert parsed.report == LabReport()
    assert len(parsed.problems) == 5
    assert "Jane" not in " ".join(parsed.problems)


@pytest.mark.parametrize("broken", [{"test_name": 5}, {"test_name": " "}, {"value": True}, {"value": [1]}, {"value": "9" * 201}])
def test_a_row_without_usable_name_or_value_is_dropped(broken: dict[str, Any]) -> None:
    parsed = read_answer(json.dumps({"tests": [ROW | broken, ROW]}))
    assert parsed.report is not None
    assert len(parsed.report.tests) == 1
    assert any("tests[0]" in problem for problem in parsed.problems)


def test_a_row_without_a_value_is_kept_empty() -> None:
    assert row_of(value=None) == (LabTest(test_name="WBC", value="", unit="K/uL"), ())


def test_numbers_keep_their_digits() -> None:
    parsed = read_answer('{"tests": [{"test_name": "Na", "value": 140.0, "reference_range": {"low": 1.360e2, "high": "145"}}]}')
    assert parsed.report is not None
    assert parsed.report.tests[0].value == "140.0"
    assert parsed.report.tests[0].reference_range == ReferenceRange(low=136.0, high=145.0)


@pytest.mark.parametrize("end", ["1,5", "about 3", "<4", True, [1]])
def test_an_end_of_a_range_that_is_no_plain_number_is_dropped(end: Any) -> None:
    test, problems = row_of(reference_range={"low": end, "high": 9, "text": "as printed"})
    assert test.reference_range == ReferenceRange(high=9.0, text="as printed")
    assert len(problems) == 1
    assert problems[0].startswith("tests[0].reference_range.low: ")


def test_a_claimed_flag_is_only_what_was_printed() -> None:
    parsed = read_answer(
        '{"tests": [{"test_name": "K", "value": "9", "flag": "critical_high", "flag_source": "CRITICAL_LIMIT", "confidence": 1}]}'
    )
    assert parsed.report is not None
    assert parsed.report.tests[0] == LabTest(test_name="K", value="9", printed_flag="critical_high")


def test_the_patient_is_read_or_left_out() -> None:
    def patient(**fields: Any) -> tuple[PatientInfo | None, int]:
        parsed = read_answer(json.dumps({"patient_info": fields, "tests": []}))
        assert parsed.report is not None
        return parsed.report.patient_info, len(parsed.problems)

    assert patient(name=" Jane\n Roe ", age="45 years", gender="F", patient_id=123) == (
        PatientInfo(name="Jane Roe", age=45, gender=Sex.FEMALE, patient_id="123"),
        0,
    )
    assert patient(name="N/A", age=None, gender="null") == (None, 0)
    assert patient(age=151, gender="unknown") == (None, 2)
    assert patient(age=-1) == (None, 1)
    assert patient(age=4.5) == (None, 1)


def test_dates_are_iso_where_only_one_reading_is_possible() -> None:
    parsed = read_answer('{"report_date": "March 5, 2024", "patient_info": {"date_of_birth": "03/05/1960"}, "tests": []}')
    assert parsed.report is not None
    assert parsed.report.report_date == "2024-03-05"
    assert parsed.report.patient_info == PatientInfo(date_of_birth="03/05/1960")


def test_unknown_keys_are_counted_and_repeated_ones_are_said() -> None:
    parsed = read_answer(
        '{"x": 1, "tests": [{"test_name": "a", "value": "1", "value": "1", "note": 1}], "lab_name": "A", "lab_name": "B"}'
    )
    assert parsed.report == LabReport(tests=(LabTest(test_name="a", value="1"),))
    assert parsed.unknown_keys == 2
    assert sum("occurs twice" in problem for problem in parsed.problems) == 2


def test_text_that_no_file_could_hold_is_dropped() -> None:
    test, problems = row_of(unit="\ud800", flag="a\u0000b")
    assert (test.unit, test.printed_flag) == (None, "a b")
    assert len(problems) == 1


def test_problems_are_bounded() -> None:
    parsed = read_answer(json.dumps({"tests": [5] * 200}))
    assert len(parsed.problems) == 51
    assert parsed.problems[-1] == "and 150 more"


@pytest.mark.parametrize("piece", ["[", "{", "[a ", '"', "[]", '{"tests":[1]} ', '{"', "\\", '[{"test_name":1},', "<think>"])
def test_hostile_repetition_costs_little_time(piece: str) -> None:
    start = time.process_time()
    assert read_answer((piece * MAX_CHARACTERS)[:MAX_CHARACTERS]).report in (None, LabReport())
    assert time.process_time() - start < 5


def test_the_panel_is_read_or_unknown() -> None:
    assert read_report_type('Sure: {"report_type": "Lipid"}') is ReportType.LIPID
    assert read_report_type('{"report_type": "poem"}') is None
    assert read_report_type("lipid") is None
    assert read_report_type('{"report_type": "lipid"} {"report_type": "cbc"}') is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*ROW, "tests", "low", "x"]), inner, max_size=4),
    max_leaves=12,
)


@given(st.text(max_size=80) | st.text(alphabet='{}[]",:\\tesn1 ', max_size=60))
def test_no_text_raises(text: str) -> None:
    parsed = read_answer(text)
    assert parsed.report is not None or parsed.problems
    read_report_type(text)


@settings(max_examples=60)
@given(st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(ROW, json_values)), max_size=3), json_values)
def test_no_value_of_any_type_raises(rows: list[dict[str, Any]], patient: Any) -> None:
    parsed = read_answer(json.dumps({"tests": rows, "patient_info": patient}))
    assert parsed.report is None or len(parsed.report.tests) <= len(rows)
    assert parsed.report is not None or parsed.problems


words = (
    st.text(alphabet=st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=20)
    .map(lambda text: " ".join(text.split()))
    .filter(lambda text: text and text.lower() not in ("null", "none", "n/a"))
)
maybe = st.none() | words
dates = st.none() | (words | st.dates().map(str)).map(iso_date)
ends = st.none() | st.floats(allow_nan=False, allow_infinity=False)
ranges = st.builds(ReferenceRange, low=ends, high=ends, text=maybe).filter(lambda value: value != ReferenceRange())
rows_of_reports = st.builds(
    LabTest, test_name=words, value=words, unit=maybe, reference_range=st.none() | ranges, printed_flag=maybe
)
patients = st.builds(
    PatientInfo,
    name=maybe,
    age=st.none() | st.integers(0, 150),
    gender=st.none() | st.sampled_from(Sex),
    patient_id=maybe,
    date_of_birth=dates,
).filter(lambda value: value != PatientInfo())


@settings(max_examples=40)
@given(
    st.builds(
        LabReport,
        report_type=st.sampled_from(ReportType),
        patient_info=st.none() | patients,
        lab_name=maybe,
        report_date=dates,
        tests=st.lists(rows_of_reports, max_size=4).map(tuple),
    ),
    st.booleans(),
)
def test_a_report_written_in_the_asked_shape_comes_back(report: LabReport, plain: bool) -> None:
    text = json.dumps(to_builtins(report), ensure_ascii=plain)
    parsed = read_answer(f"Answer:\n```\n{text}\n```")
    assert (parsed.report, parsed.problems, parsed.unknown_keys) == (report, (), 0)
