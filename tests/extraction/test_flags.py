"""Flags: absolute limits first, then the page's range, then the table; never by a name or unit that is not the analyte's."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fewbits.extraction.analyte import Analyte
from fewbits.extraction.analytes import ANALYTES
from fewbits.extraction.flags import compare, flag_report, flag_test
from fewbits.extraction.values import Span, parse_range
from fewbits.records.extraction import Flag, FlagSource, LabReport, LabTest, PatientInfo, ReferenceRange, ReportType, Sex

NUMERIC = [analyte for analyte in ANALYTES if analyte.ranges]
ORDER = [Flag.CRITICAL_LOW, Flag.LOW, Flag.NORMAL, Flag.HIGH, Flag.CRITICAL_HIGH]


def row(name: str, value: str, unit: str | None = None, printed: str | None = None) -> LabTest:
    """A row as a page prints it."""
    return LabTest(test_name=name, value=value, unit=unit, reference_range=parse_range(printed) if printed is not None else None)


def decide(test: LabTest, sex: Sex | None = None, panel: ReportType | None = None) -> tuple[str | None, str]:
    """The flag and its source, as words."""
    flag, source = flag_test(test, sex=sex, panel=panel)
    return (flag.value if flag is not None else None), source.value


@pytest.mark.parametrize(
    ("test", "flag", "source"),
    [
        # a part of the name: the older tool called this critical, by the range of hemoglobin
        (row("Hemoglobin A1c", "5.6", "%"), "normal", "TABLE_RANGE"),
        (row("Hemoglobin A1c", "9.1", "%"), "high", "TABLE_RANGE"),
        (row("Hemoglobin A1c", "39", "mmol/mol"), "high", "TABLE_RANGE"),
        (row("Hemoglobin A1c", "37", "mmol/mol"), "normal", "TABLE_RANGE"),
        (row("Hemoglobin Electrophoresis", "5.6", "%"), None, "NO_RANGE"),
        # absolute limits, not multiples of the range
        (row("Hemoglobin", "6.9", "g/dL"), "critical_low", "CRITICAL_LIMIT"),
        (row("Hemoglobin", "69", "g/L"), "critical_low", "CRITICAL_LIMIT"),
        (row("Hemoglobin", "7.5", "g/dL"), "low", "TABLE_RANGE"),
        (row("Potassium", "6.8", "mmol/L"), "critical_high", "CRITICAL_LIMIT"),
        (row("Potassium", "6.8", "mEq/L", "3.5-5.0"), "critical_high", "CRITICAL_LIMIT"),
        (row("Potassium", "2.0", "mmol/L", "3.5-5.0"), "critical_low", "CRITICAL_LIMIT"),
        (row("Potassium", "5.6", "mmol/L", "3.5-5.0"), "high", "PRINTED_RANGE"),
        (row("ALT", "95", "U/L"), "high", "TABLE_RANGE"),
        # the printed range goes before the table
        (row("Glucose", "104", "mg/dL", "70-110"), "normal", "PRINTED_RANGE"),
        (row("Glucose", "104", "mg/dL"), "high", "TABLE_RANGE"),
        (row("Vitamin B12", "150", "pg/mL", "200-900"), "low", "PRINTED_RANGE"),
        # units
        (row("Glucose", "5.2", "mmol/L"), "normal", "TABLE_RANGE"),
        (row("Glucose", "5.2", None), None, "UNIT_UNKNOWN"),
        (row("Glucose", "5.2", "U/L"), None, "UNIT_UNKNOWN"),
        (row("Glucose", "5.2", "furlong"), None, "UNIT_UNKNOWN"),
        (row("Potassium", "6.8", None, "3.5-5.0"), "high", "PRINTED_RANGE"),
        (row("WBC", "7500", "/uL"), "normal", "TABLE_RANGE"),
        (row("Platelets", "2.1", "lakhs/cumm"), "normal", "TABLE_RANGE"),
        # a unit that is misread: nobody has 135 g/dL, and the page's range holds it
        (row("Hemoglobin", "135", "g/dL", "120-160"), "normal", "PRINTED_RANGE"),
        # ends belong to a range, unless the page excludes them
        (row("Sodium", "145", "mmol/L", "136-145"), "normal", "PRINTED_RANGE"),
        (row("Cholesterol", "200", "mg/dL", "<200"), "high", "PRINTED_RANGE"),
        (row("Cholesterol", "200", "mg/dL", "<=200"), "normal", "PRINTED_RANGE"),
        (row("HDL", "40", "mg/dL", ">40"), "low", "PRINTED_RANGE"),
        (row("Total Cholesterol", "5.15", "mmol/L"), "normal", "TABLE_RANGE"),
        (row("Total Cholesterol", "199.5", "mg/dL"), "normal", "TABLE_RANGE"),
        (row("Total Cholesterol", "200", "mg/dL"), "high", "TABLE_RANGE"),
        (row("Direct Bilirubin", "3", "mg/L"), "normal", "TABLE_RANGE"),
        (row("AST", "0.16", "ukat/L"), "low", "TABLE_RANGE"),
        # detection limits
        (row("TSH", "<0.01", "mIU/L", "0.4-4.0"), "low", "PRINTED_RANGE"),
        (row("TSH", "<1", "mIU/L", "0.4-4.0"), None, "WITHIN_DETECTION_LIMIT"),
        (row("TSH", "<0.4", "mIU/L", "0.4-4.0"), "low", "PRINTED_RANGE"),
        (row("Anti-TPO", "<9", "IU/mL", "0-34"), "normal", "PRINTED_RANGE"),
        (row("Anti-TPO", "<9", "IU/mL", "<34"), "normal", "PRINTED_RANGE"),
        (row("Anti-TPO", "<34", "IU/mL", "<34"), "normal", "PRINTED_RANGE"),
        (row("eGFR", ">90", "mL/min/1.73m2", ">=60"), "normal", "PRINTED_RANGE"),
        (row("eGFR", ">60", "mL/min/1.73m2", ">59"), "normal", "PRINTED_RANGE"),
        (row("Hemoglobin", "<7.0", "g/dL"), "critical_low", "CRITICAL_LIMIT"),
        (row("Potassium", ">6.0", "mmol/L", "3.5-5.0"), "high", "PRINTED_RANGE"),
        (row("Foo", "0-2", None, "0-5"), "normal", "PRINTED_RANGE"),
        (row("Foo", "0-8", None, "0-5"), None, "WITHIN_DETECTION_LIMIT"),
        # words
        (row("Nitrite", "Positive", None, "Negative"), "abnormal", "PRINTED_RANGE"),
        (row("Nitrite", "Negative", None, "Negative"), "normal", "PRINTED_RANGE"),
        (row("Nitrite", "NEG", None, "Negative"), "normal", "PRINTED_RANGE"),
        (row("Nitrite", "Positive", None), "abnormal", "TABLE_RANGE"),
        (row("Ketones", "1+", None), "abnormal", "TABLE_RANGE"),
        (row("Ketones", "++", None, "Negative"), "abnormal", "PRINTED_RANGE"),
        (row("Ketones", "15", "mg/dL", "Negative"), "abnormal", "PRINTED_RANGE"),
        (row("Color", "Straw", None, "Yellow"), "normal", "PRINTED_RANGE"),
        (row("Color", "Red", None, "Yellow"), "abnormal", "PRINTED_RANGE"),
        (row("Color", "Xelow", None, "Yellow"), None, "NOT_A_NUMBER"),
        (row("Glucose", "Negative", None, "70-100"), None, "NOT_A_NUMBER"),
        (row("Sodium", "Hemolyzed", "mmol/L"), None, "NOT_A_NUMBER"),
        (row("Foo", "Bar"), None, "NO_RANGE"),
        (row("Foo", "12"), None, "NO_RANGE"),
        # a reversed range says nothing
        (LabTest(test_name="Foo", value="5", reference_range=ReferenceRange(low=9, high=1)), None, "NO_RANGE"),
        # ranges that an engine left as text
        (LabTest(test_name="Foo", value="5", reference_range=ReferenceRange(text="1 - 4")), "high", "PRINTED_RANGE"),
        # marks around the value
        (row("Sodium", "150 H", "mmol/L", "136-145"), "high", "PRINTED_RANGE"),
    ],
)
def test_one_row(test: LabTest, flag: str | None, source: str) -> None:
    assert decide(test) == (flag, source)


@pytest.mark.parametrize(
    ("value", "sex", "flag", "source"),
    [
        ("13.0", Sex.FEMALE, "normal", "TABLE_RANGE"),
        ("13.0", Sex.MALE, "low", "TABLE_RANGE"),
        ("13.0", None, None, "SEX_UNKNOWN"),
        ("15.0", None, "normal", "TABLE_RANGE"),
        ("11.0", None, "low", "TABLE_RANGE"),
        ("18.5", None, "high", "TABLE_RANGE"),
    ],
)
def test_ranges_by_sex(value: str, sex: Sex | None, flag: str | None, source: str) -> None:
    """Without a sex there is a flag only where both ranges say the same."""
    assert decide(row("Hemoglobin", value, "g/dL"), sex) == (flag, source)


@pytest.mark.parametrize(
    ("sex", "expected"),
    [(Sex.FEMALE, ("normal", "PRINTED_RANGE")), (Sex.MALE, ("low", "PRINTED_RANGE")), (None, (None, "SEX_UNKNOWN"))],
)
def test_printed_ranges_by_sex(sex: Sex | None, expected: tuple[str | None, str]) -> None:
    assert decide(row("Hemoglobin", "12.8", "g/dL", "M: 13-17 F: 12-15"), sex) == expected


@pytest.mark.parametrize(
    ("panel", "name", "value", "unit", "expected"),
    [
        (ReportType.URINALYSIS, "Glucose", "Negative", None, ("normal", "TABLE_RANGE")),
        (ReportType.URINALYSIS, "Glucose", "500", "mg/dL", ("abnormal", "TABLE_RANGE")),
        (ReportType.METABOLIC, "Glucose", "500", "mg/dL", ("critical_high", "CRITICAL_LIMIT")),
        (ReportType.URINALYSIS, "WBC", "0-2", "/hpf", ("normal", "TABLE_RANGE")),
        (ReportType.URINALYSIS, "WBC", "25", "/hpf", ("high", "TABLE_RANGE")),
        (ReportType.URINALYSIS, "Leukocytes", "25", "/uL", (None, "UNIT_UNKNOWN")),
        (ReportType.URINALYSIS, "Creatinine", "110", "mg/dL", (None, "NO_RANGE")),
        (ReportType.URINALYSIS, "Specific Gravity", "1.020", None, ("normal", "TABLE_RANGE")),
        (ReportType.URINALYSIS, "pH", "9.0", None, ("high", "TABLE_RANGE")),
    ],
)
def test_the_panel_tells_urine_from_blood(
    panel: ReportType, name: str, value: str, unit: str | None, expected: tuple[str | None, str]
) -> None:
    assert decide(row(name, value, unit), panel=panel) == expected


def test_a_report_gets_flags_and_keys_and_keeps_all_else() -> None:
    tests = (
        row("Hemoglobin", "13.0", "g/dL"),
        row("Hemoglobin", "13.0", "g/dL"),
        row("Foo", "1"),
        row("Potassium", "6.8", "mmol/L"),
    )
    report = LabReport(
        report_type=ReportType.CBC, patient_info=PatientInfo(gender=Sex.MALE), tests=tests, lab_name="X", metadata={"a": "b"}
    )
    flagged = flag_report(report)
    assert [test.flag for test in flagged.tests] == [Flag.LOW, Flag.LOW, None, Flag.CRITICAL_HIGH]
    assert [test.flag_source for test in flagged.tests][2:] == [FlagSource.NO_RANGE, FlagSource.CRITICAL_LIMIT]
    assert [test.analyte for test in flagged.tests] == ["hemoglobin", "hemoglobin", None, "potassium"]
    assert [test.value for test in flagged.tests] == [test.value for test in tests]
    assert (flagged.lab_name, flagged.metadata, flagged.patient_info) == (report.lab_name, report.metadata, report.patient_info)
    assert flag_report(flagged) == flagged


def test_a_key_decides_before_the_name() -> None:
    test = LabTest(test_name="Hb (ven.)", value="6.0", unit="g/dL", analyte="hemoglobin")
    assert decide(test) == ("critical_low", "CRITICAL_LIMIT")


@given(st.sampled_from(NUMERIC), st.floats(0, 1000), st.floats(0, 1000), st.sampled_from([Sex.FEMALE, Sex.MALE]))
def test_flags_rise_with_the_value(analyte: Analyte, first: float, second: float, sex: Sex) -> None:
    """Of two values of one analyte the larger never has the lower flag."""
    smaller, larger = sorted((first, second))
    flags = [
        flag_test(
            LabTest(test_name="x", value=f"{value:.4f}", unit=analyte.unit or None, analyte=analyte.key), sex=sex, panel=None
        )[0]
        for value in (smaller, larger)
    ]
    assert flags[0] is not None
    assert flags[1] is not None
    assert ORDER.index(flags[0]) <= ORDER.index(flags[1])


@given(st.sampled_from([each for each in NUMERIC if each.convertible]), st.data(), st.floats(0.01, 500))
def test_the_unit_changes_no_flag(analyte: Analyte, data: st.DataObject, value: float) -> None:
    """A value gets the same flag in every unit that it can be printed in (away from the ends)."""
    unit = data.draw(st.sampled_from(sorted(analyte.convertible)))
    ends = [
        end for limits in (*analyte.ranges.values(), analyte.critical) for end in (limits.low, limits.high) if end is not None
    ]
    assume(all(abs(value - end) > max(10.0**-analyte.decimals, 1e-3) for end in ends))
    other = (value - analyte.offsets.get(unit, 0.0)) / analyte.convertible[unit]
    assume(other > 0)
    rows = [
        LabTest(test_name="x", value=f"{number:.9f}", unit=each, analyte=analyte.key)
        for number, each in ((value, analyte.unit or None), (other, unit))
    ]
    assert flag_test(rows[0], sex=Sex.MALE, panel=None) == flag_test(rows[1], sex=Sex.MALE, panel=None)


@given(st.floats(0.1, 100), st.floats(0, 50), st.floats(0, 50))
def test_a_one_sided_value_is_decided_only_by_all_of_it(limit: float, low: float, width: float) -> None:
    """`<limit` gets a flag only if every number below it would get the same one."""
    below = Span(float("-inf"), limit, low_closed=False, high_closed=False)
    decided = compare(below, low, low + width)
    inside = [compare(Span(value, value), low, low + width) for value in (limit - 1e-6, limit - 1, limit / 2, -1e9)]
    assert decided is None or set(inside) == {decided}


@given(st.text(max_size=12), st.text(max_size=12), st.text(max_size=8), st.text(max_size=12))
def test_nothing_on_a_page_raises(name: str, value: str, unit: str, printed: str) -> None:
    test = LabTest(test_name=name or "x", value=value, unit=unit, reference_range=ReferenceRange(text=printed))
    flag, source = flag_test(test, sex=None, panel=None)
    assert isinstance(source, FlagSource)
    assert flag is None or isinstance(flag, Flag)
