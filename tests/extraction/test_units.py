"""Units: every usual spelling, no guess, and conversion that can be undone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.extraction.analyte import Analyte
from fewbits.extraction.analytes import ANALYTES, analyte_table
from fewbits.extraction.units import SPELLINGS, convert, is_known_unit, is_unit_of, normalized_unit


@pytest.mark.parametrize(
    ("printed", "unit"),
    [
        ("mg/dl", "mg/dL"),
        ("MG/DL", "mg/dL"),
        (" mg / dL ", "mg/dL"),
        ("(mg/dL)", "mg/dL"),
        ("[mmol/L]", "mmol/L"),
        ("x10^3/uL", "10^3/uL"),
        ("\u00d710³/µL", "10^3/uL"),
        ("x 10³/μL", "10^3/uL"),
        ("K/uL", "10^3/uL"),
        ("K/mcL", "10^3/uL"),
        ("10*3/uL", "10^3/uL"),
        ("x10E3/uL", "10^3/uL"),
        ("Thousand/uL", "10^3/uL"),
        ("x103/uL", "10^3/uL"),
        ("10^3/pL", "10^3/uL"),
        ("10^3/mm3", "10^3/uL"),
        ("Million/uL", "10^6/uL"),
        ("M/µL", "10^6/uL"),
        ("x10^9/L", "10^9/L"),
        ("\u00d710⁹/L", "10^9/L"),
        ("10^12/L", "10^12/L"),
        ("IU/L", "U/L"),
        ("iu/l", "U/L"),
        ("1U/L", "U/L"),
        ("mEq/L", "mEq/L"),
        ("µIU/mL", "uIU/mL"),
        ("uU/mL", "uIU/mL"),
        ("mcg/dL", "ug/dL"),
        ("µmol/L", "umol/L"),
        ("mg/dI", "mg/dL"),
        ("mg/d1", "mg/dL"),
        ("g/dl", "g/dL"),
        ("g%", "g/dL"),
        ("mL/min/1.73 m²", "mL/min/1.73m2"),
        ("mL/min/1.73m^2", "mL/min/1.73m2"),
        ("mL/min/1.73", "mL/min/1.73m2"),
        ("/HPF", "/hpf"),
        ("cells/hpf", "/hpf"),
        ("%", "%"),
        ("FL", "fL"),
        ("PG", "pg"),
        ("cells/cumm", "/uL"),
    ],
)
def test_spellings(printed: str, unit: str) -> None:
    assert normalized_unit(printed) == unit
    assert is_known_unit(printed)


@pytest.mark.parametrize(
    "printed", [None, "", "  ", "foo", "mg", "dL", "mg/dL/min", "70-100", "H", "Negative", "mmol", "furlong/fortnight"]
)
def test_what_is_no_unit_is_not_guessed(printed: str | None) -> None:
    assert normalized_unit(printed) is None
    assert not is_known_unit(printed)


@pytest.mark.parametrize(
    ("first", "second"), [("pmol/L", "umol/L"), ("pg/mL", "ug/L"), ("mmol/L", "umol/L"), ("g/dL", "g/L"), ("mIU/L", "mIU/mL")]
)
def test_units_that_differ_by_a_letter_stay_apart(first: str, second: str) -> None:
    assert normalized_unit(first) == first
    assert normalized_unit(second) == second


def test_every_spelling_leads_to_its_unit() -> None:
    """No spelling is listed for two units."""
    for unit, spellings in SPELLINGS.items():
        assert {normalized_unit(each) for each in (unit, *spellings)} == {unit}


@given(st.sampled_from([spelling for unit, others in SPELLINGS.items() for spelling in (unit, *others)]))
def test_normalization_is_idempotent(printed: str) -> None:
    once = normalized_unit(printed)
    assert once is not None
    assert normalized_unit(once) == once


@given(st.text(max_size=20))
def test_any_text_is_a_known_unit_or_none(text: str) -> None:
    assert normalized_unit(text) in {None, *SPELLINGS}


@given(st.sampled_from([(analyte, unit) for analyte in ANALYTES for unit in analyte.convertible]), st.floats(0.001, 1e5))
def test_conversion_can_be_undone(case: tuple[Analyte, str], value: float) -> None:
    analyte, unit = case
    own = convert(value, unit, analyte)
    assert own is not None
    assert (own - analyte.offsets.get(unit, 0.0)) / analyte.convertible[unit] == pytest.approx(value, rel=1e-9)


def test_milliequivalents_are_millimoles_for_one_charge_only() -> None:
    table = analyte_table()
    assert convert(4.0, "mEq/L", table["potassium"]) == 4.0
    assert convert(5.0, "mEq/L", table["calcium"]) == pytest.approx(10.02, abs=0.01)
    assert convert(4.0, "mEq/L", table["glucose"]) is None


@pytest.mark.parametrize("unit", [None, "", "foo", "g/dL", "U/L"])
def test_conversion_is_never_silent(unit: str | None) -> None:
    assert convert(5.0, unit, analyte_table()["glucose"]) is None
    assert not is_unit_of(unit, analyte_table()["glucose"])


def test_pure_numbers_need_no_unit() -> None:
    assert convert(1.02, None, analyte_table()["urine_specific_gravity"]) == 1.02
    assert convert(4.0, "ratio", analyte_table()["cholesterol_hdl_ratio"]) == 4.0
    assert convert(4.0, "mg/dL", analyte_table()["cholesterol_hdl_ratio"]) is None
