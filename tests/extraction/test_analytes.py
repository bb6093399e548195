"""The table of analytes holds together: unique, sourced, in units that are known, with limits that do not cross."""

from __future__ import annotations

import pytest

from fewbits.extraction.analytes import ANALYTES, Analyte, analyte_table
from fewbits.extraction.units import convert, normalized_unit
from fewbits.extraction.values import span_of
from fewbits.records.extraction import ReportType, Sex

BY_KEY = pytest.mark.parametrize("analyte", ANALYTES, ids=lambda analyte: analyte.key)
WANTED = {
    ReportType.CBC: "wbc rbc hemoglobin hematocrit mcv mch mchc rdw mpv platelets "
    + " ".join(
        f"{kind}_{form}"
        for kind in ("neutrophils", "lymphocytes", "monocytes", "eosinophils", "basophils")
        for form in ("percent", "absolute")
    ),
    ReportType.METABOLIC: "glucose urea_nitrogen urea creatinine egfr sodium potassium chloride bicarbonate calcium "
    "anion_gap hba1c uric_acid magnesium phosphate",
    ReportType.LIPID: "total_cholesterol ldl_cholesterol hdl_cholesterol vldl_cholesterol "
    "non_hdl_cholesterol triglycerides cholesterol_hdl_ratio",
    ReportType.THYROID: "tsh free_t4 free_t3 total_t4 total_t3 anti_tpo",
    ReportType.LIVER: "alt ast alp ggt ldh total_bilirubin direct_bilirubin albumin total_protein globulin "
    "albumin_globulin_ratio",
    ReportType.URINALYSIS: "urine_specific_gravity urine_ph urine_protein urine_glucose urine_ketones urine_blood urine_nitrite "
    "urine_leukocyte_esterase urine_bilirubin urine_urobilinogen urine_color urine_appearance urine_wbc urine_rbc",
}


def test_every_panel_has_all_of_its_tests_and_nothing_else() -> None:
    found = {panel: {each.key for each in ANALYTES if each.panel is panel} for panel in WANTED}
    assert found == {panel: set(keys.split()) for panel, keys in WANTED.items()}
    assert len(analyte_table()) == len(ANALYTES)


@BY_KEY
def test_units_are_spelled_as_the_package_spells_them(analyte: Analyte) -> None:
    assert not analyte.unit or normalized_unit(analyte.unit) == analyte.unit
    assert all(normalized_unit(unit) == unit for unit in analyte.convertible)
    assert analyte.unit not in analyte.convertible
    assert set(analyte.offsets) <= set(analyte.convertible)
    assert all(factor > 0 for factor in analyte.convertible.values())


@BY_KEY
def test_numbers_are_sourced_and_nested(analyte: Analyte) -> None:
    """What is critical lies outside of what is normal, and inside of what is possible."""
    assert analyte.source or not (analyte.ranges or analyte.normal_words)
    assert analyte.critical.low is None or "critical" in analyte.source
    assert analyte.critical.high is None or "critical" in analyte.source
    assert set(analyte.ranges) in (set(), {None}, {Sex.FEMALE, Sex.MALE})
    for limits in analyte.ranges.values():
        ends = [
            analyte.plausible.low,
            analyte.critical.low,
            limits.low,
            limits.high,
            analyte.critical.high,
            analyte.plausible.high,
        ]
        known = [end for end in ends if end is not None]
        assert known == sorted(known)


@BY_KEY
def test_words_are_words(analyte: Analyte) -> None:
    assert set(analyte.normal_words) <= set(analyte.words)
    assert all(span_of(word) is None for word in analyte.words)


@pytest.mark.parametrize(
    ("key", "value", "unit", "own"),
    [
        ("hemoglobin", 140, "g/L", 14.0),
        ("hemoglobin", 8.7, "mmol/L", 14.02),
        ("glucose", 5.5, "mmol/L", 99.1),
        ("creatinine", 88.4, "umol/L", 1.0),
        ("urea_nitrogen", 7.14, "mmol/L", 20.0),
        ("calcium", 2.5, "mmol/L", 10.02),
        ("calcium", 5.0, "mEq/L", 10.02),
        ("magnesium", 0.8, "mmol/L", 1.944),
        ("phosphate", 1.0, "mmol/L", 3.097),
        ("uric_acid", 357, "umol/L", 6.0),
        ("total_cholesterol", 5.17, "mmol/L", 199.9),
        ("triglycerides", 1.69, "mmol/L", 149.7),
        ("total_bilirubin", 17.1, "umol/L", 1.0),
        ("free_t4", 12.87, "pmol/L", 1.0),
        ("free_t3", 4.6, "pmol/L", 2.994),
        ("total_t4", 100, "nmol/L", 7.77),
        ("total_t3", 2.0, "nmol/L", 130.2),
        ("hba1c", 42, "mmol/mol", 5.99),
        ("hba1c", 48, "mmol/mol", 6.54),
        ("alt", 0.6667, "ukat/L", 40.0),
        ("wbc", 7500, "cells/uL", 7.5),
        ("platelets", 2.5, "lakhs/cumm", 250.0),
        ("sodium", 140, "mEq/L", 140.0),
    ],
)
def test_factors_agree_with_published_pairs(key: str, value: float, unit: str, own: float) -> None:
    """Pairs of the AMA tables and of molar masses, to the digits that they are printed in."""
    assert convert(value, unit, analyte_table()[key]) == pytest.approx(own, rel=2e-3)


def test_urea_and_urea_nitrogen_say_the_same_in_molar_units() -> None:
    urea, nitrogen = analyte_table()["urea"], analyte_table()["urea_nitrogen"]
    for end in ("low", "high"):
        assert convert(getattr(urea.ranges[None], end), "mmol/L", nitrogen) == pytest.approx(
            getattr(nitrogen.ranges[None], end), rel=0.02
        )
