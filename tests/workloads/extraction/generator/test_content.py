"""Generated content against what the rest of the package reads: the truth must be what is printed."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.extraction.analytes import analyte_table
from fewbits.extraction.dates import iso_date
from fewbits.extraction.flags import flag_report
from fewbits.extraction.names import analyte_of
from fewbits.extraction.units import is_unit_of
from fewbits.extraction.values import parse_range
from fewbits.records.extraction import Flag
from fewbits.workloads.extraction.generator.content import PANELS, Room, draw_content, truth
from fewbits.workloads.extraction.generator.seeds import page_seed

ROOMS = (Room(28, (1, 1, 2), 36), Room(44, (2,), 26), Room(16, (1,), 40))
SEEDS = st.integers(0, 2**53 - 1)


@settings(max_examples=60)
@given(seed=SEEDS, room=st.sampled_from(ROOMS))
def test_the_truth_is_what_is_drawn(seed: int, room: Room) -> None:
    content = draw_content(seed, room)
    report = truth(content)
    rows = [(panel.kind, row) for panel in content.panels for row in panel.rows]
    assert len(report.tests) == len(rows) <= room.rows
    for test, (kind, row) in zip(report.tests, rows, strict=True):
        assert (test.test_name, test.value, test.unit, test.printed_flag) == (row.name, row.value, row.unit, row.mark)
        assert (
            analyte_of(row.name, panel=kind, unit=row.unit or analyte_table()[row.analyte].unit) is analyte_table()[row.analyte]
        )
        assert row.unit is None or is_unit_of(row.unit, analyte_table()[row.analyte])
        if row.reference is not None:
            printed = parse_range(row.reference.text or "")
            assert printed is not None
            assert (printed.low, printed.high) == (row.reference.low, row.reference.high)
    patient, printed_fields = report.patient_info, dict(content.fields)
    assert patient is not None
    assert patient.name in printed_fields.values()
    assert report.report_date in {iso_date(text) for text in printed_fields.values()}
    assert patient.date_of_birth is None or patient.date_of_birth in {iso_date(text) for text in printed_fields.values()}


@settings(max_examples=60)
@given(seed=SEEDS)
def test_marks_say_what_the_printed_range_says(seed: int) -> None:
    """Where range and unit are printed, the page's own marks are the flags."""
    content = draw_content(seed, ROOMS[0])
    names = {
        "L": Flag.LOW,
        "Low": Flag.LOW,
        "H": Flag.HIGH,
        "High": Flag.HIGH,
        "LL": Flag.CRITICAL_LOW,
        "HH": Flag.CRITICAL_HIGH,
        "A": Flag.ABNORMAL,
    }
    if content.printing.marks not in ("letters", "words"):
        return
    for test in flag_report(truth(content)).tests:
        unit_known = test.unit is not None or not analyte_table()[test.analyte or ""].unit
        if test.reference_range is not None and unit_known and test.flag is not None:
            assert names.get(test.printed_flag or "", Flag.NORMAL) is test.flag


def test_every_kind_of_row_occurs() -> None:
    contents = [draw_content(page_seed("samples", 5, "clean", index), ROOMS[index % 3]) for index in range(150)]
    tests = [test for content in contents for test in flag_report(truth(content)).tests]
    flags = Counter(test.flag for test in tests)
    assert min(flags[flag] for flag in Flag) >= 3
    assert 0.6 < flags[Flag.NORMAL] / len(tests) < 0.9
    assert any(test.unit is None for test in tests)
    assert any(test.reference_range is None for test in tests)
    assert any(test.value.startswith("<") for test in tests)
    assert {content.panels[0].kind for content in contents} == set(PANELS)
    assert any(content.footnotes for content in contents)
    assert any(len({row.name for row in panel.rows}) < len(panel.rows) for content in contents for panel in content.panels)


def test_no_two_pages_share_a_report() -> None:
    seeds = [
        page_seed(split, 0, level, index) for split in ("tuning", "test") for level in ("clean", "fax") for index in range(50)
    ]
    assert len(set(seeds)) == 200
    reports = {repr(truth(draw_content(seed, ROOMS[0]))) for seed in seeds}
    assert len(reports) == 200


@pytest.mark.parametrize(
    "changed", [("test", 1, "clean", 0), ("samples", 2, "clean", 0), ("samples", 1, "scan", 0), ("samples", 1, "clean", 1)]
)
def test_a_seed_depends_on_all_of_its_parts(changed: tuple[str, int, str, int]) -> None:
    assert page_seed(*changed) != page_seed("samples", 1, "clean", 0)
    assert page_seed("samples", 1, "clean", 0) == page_seed("samples", 1, "clean", 0) < 2**53


def test_seeds_are_pinned() -> None:
    """A change here is a change of every published set: raise `seeds.VERSION` with it."""
    assert page_seed("samples", 0, "clean", 0) == 1272388073190304
