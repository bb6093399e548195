"""Names: exact or nothing; misread ones only with their distance; ambiguous ones by panel and unit."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fewbits.extraction.analyte import Analyte
from fewbits.extraction.analytes import ANALYTES
from fewbits.extraction.names import analyte_of, candidates, closest, distance, normalized
from fewbits.records.extraction import ReportType


@pytest.mark.parametrize(
    ("printed", "name"),
    [
        ("  HEMOGLOBIN * ", "hemoglobin"),
        ("T. Bilirubin", "t bilirubin"),
        ("ALT (SGPT)", "alt sgpt"),
        ("Hématocrite", "hematocrite"),
        ("Neutrophils (%)", "neutrophils %"),
        ("NEUT#", "neut #"),
        ("A/G Ratio", "a g ratio"),
        ("Non-HDL  Cholesterol:", "non hdl cholesterol"),
        ("***", ""),
    ],
)
def test_normalized(printed: str, name: str) -> None:
    assert normalized(printed) == name


@given(st.text(max_size=40))
@example("\u0391")
@example("℡")
@example("\u0393GT")
def test_normalization_is_idempotent(text: str) -> None:
    assert normalized(normalized(text)) == normalized(text)


@pytest.mark.parametrize(
    ("printed", "key"),
    [
        ("Hemoglobin", "hemoglobin"),
        ("HGB", "hemoglobin"),
        ("Haemoglobin", "hemoglobin"),
        ("Hemoglobin A1c", "hba1c"),
        ("HemoglobinA1c", "hba1c"),
        ("HBA1C", "hba1c"),
        ("Potassium, Serum", "potassium"),
        ("Serum Creatinine", "creatinine"),
        ("K+", "potassium"),
        ("BUN", "urea_nitrogen"),
        ("Urea", "urea"),
        ("SGPT (ALT)", "alt"),
        ("Cholesterol, Total", "total_cholesterol"),
        ("LDL-C", "ldl_cholesterol"),
        ("VLDL Cholesterol", "vldl_cholesterol"),
        ("Non-HDL Cholesterol", "non_hdl_cholesterol"),
        ("T4, Free", "free_t4"),
        ("T4", "total_t4"),
        ("\u03b3-GT", "ggt"),
        ("Gamma GT", "ggt"),
        ("Urine Glucose", "urine_glucose"),
        ("Leukocyte Esterase", "urine_leukocyte_esterase"),
        ("NEUT%", "neutrophils_percent"),
        ("% Neutrophils", "neutrophils_percent"),
        ("Neutrophils, Absolute", "neutrophils_absolute"),
        ("Absolute Neutrophil Count", "neutrophils_absolute"),
        ("ALT", "alt"),
        ("AST", "ast"),
        ("ALP", "alp"),
    ],
)
def test_names_and_synonyms(printed: str, key: str | None) -> None:
    found = analyte_of(printed)
    assert (found.key if found is not None else None) == key


@pytest.mark.parametrize(
    "printed",
    [
        "",
        "   ",
        "Hemoglobin Electrophoresis",
        "Hemoglobin A2",
        "Mean Hemoglobin",
        "Free",
        "Total",
        "Glucose Tolerance",
        "Sodium, Urine",
        "Bilirubin, Indirect",
    ],
)
def test_a_part_of_a_name_is_no_match(printed: str) -> None:
    assert analyte_of(printed) is None
    assert closest(printed) is None


@given(
    st.sampled_from(ANALYTES),
    st.sampled_from(["", " ratio of", " electrophoresis", " antibody screen"]),
    st.sampled_from(["", "reverse ", "pre"]),
)
def test_more_words_are_another_name(analyte: Analyte, after: str, before: str) -> None:
    """A name with words around it is never the analyte itself: no substring matching."""
    if after or before:
        assert all(each.key != analyte.key for each in candidates(f"{before}{analyte.name}{after}"))


@pytest.mark.parametrize(
    ("printed", "panel", "unit", "key"),
    [
        ("Glucose", None, None, "glucose"),
        ("Glucose", ReportType.METABOLIC, None, "glucose"),
        ("Glucose", ReportType.URINALYSIS, "mg/dL", "urine_glucose"),
        ("Glucose, Serum", ReportType.URINALYSIS, "mg/dL", "glucose"),
        ("WBC", None, None, "wbc"),
        ("WBC", ReportType.CBC, "K/uL", "wbc"),
        ("WBC", None, "/hpf", "urine_wbc"),
        ("WBC", ReportType.CBC, "/hpf", "urine_wbc"),
        ("WBC", ReportType.URINALYSIS, None, "urine_wbc"),
        ("Leukocytes", ReportType.URINALYSIS, "/uL", "urine_wbc"),
        ("Protein", ReportType.URINALYSIS, None, "urine_protein"),
        ("Protein", ReportType.LIVER, "g/dL", "total_protein"),
        ("Protein", None, "g/dL", "total_protein"),
        ("Bilirubin", ReportType.URINALYSIS, None, "urine_bilirubin"),
        ("Bilirubin", ReportType.LIVER, None, "total_bilirubin"),
        ("Neutrophils", ReportType.CBC, "%", "neutrophils_percent"),
        ("Neutrophils", ReportType.CBC, "10^3/uL", "neutrophils_absolute"),
        ("Neutrophils", ReportType.CBC, None, None),
        ("Creatinine", ReportType.METABOLIC, None, "creatinine"),
        ("Creatinine", ReportType.URINALYSIS, "mg/dL", None),
        ("Creatinine, Serum", ReportType.URINALYSIS, "mg/dL", "creatinine"),
        ("Hemoglobin", ReportType.URINALYSIS, "g/dL", "hemoglobin"),
    ],
)
def test_ambiguous_names(printed: str, panel: ReportType | None, unit: str | None, key: str | None) -> None:
    found = analyte_of(printed, panel=panel, unit=unit)
    assert (found.key if found is not None else None) == key


def test_every_name_leads_to_its_own_analyte() -> None:
    """With its panel and unit, each printing of an analyte finds it."""
    for analyte in ANALYTES:
        for name in (analyte.name, *analyte.synonyms):
            assert analyte in candidates(name)
            found = analyte_of(name, panel=analyte.panel, unit=analyte.unit or None)
            assert found is analyte, name


@pytest.mark.parametrize(
    ("printed", "key", "far"),
    [
        ("Hemoglobin A1c", "hba1c", 0),
        ("HemoglobinAlc", "hba1c", 1),
        ("Hemoglobln", "hemoglobin", 1),
        ("A1T", "alt", 1),
        ("Total Ch0lesterol", "total_cholesterol", 1),
        ("Potasium", "potassium", 1),
        ("Trig1ycerides", "triglycerides", 1),
        ("Creatinne", "creatinine", 1),
        ("Mean Corpuscular Hemoglobir Concertration", "mchc", 2),
        ("Fre T4", "free_t4", 1),
    ],
)
def test_misread_names_are_found_with_their_distance(printed: str, key: str, far: int) -> None:
    found = closest(printed)
    assert found is not None
    assert (found[0].key, found[1]) == (key, far)


@pytest.mark.parametrize(
    "printed",
    [
        "Free T8",
        "Total T2",
        "Protein C",
        "ProteinS",
        "IDL Cholesterol",
        "Bilirubin I",
        "Hemoglobin A",
        "AXT",
        "AGT",
        "MCX",
        "Serum",
        "Plasma",
        "Ferritin",
    ],
)
def test_other_tests_are_not_taken_for_misread_ones(printed: str) -> None:
    assert closest(printed) is None


@given(st.text("abcdef", max_size=8), st.text("abcdef", max_size=8))
def test_distance_is_a_metric(first: str, second: str) -> None:
    assert distance(first, second) == distance(second, first)
    assert (distance(first, second) == 0) == (first == second)
    assert abs(len(first) - len(second)) <= distance(first, second) <= max(len(first), len(second))
