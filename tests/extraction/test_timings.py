"""Measurements apart from what was read, and together again."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.core.codec import encode_canonical
from fewbits.extraction.timings import join_timings, split_timings
from fewbits.records.extraction import GpuMemorySnapshot, LabReport, PageExtraction, StageName, StageResult

SECONDS = st.floats(min_value=0, max_value=1e6)
STAGES = st.lists(
    st.builds(
        StageResult,
        stage_name=st.sampled_from(StageName),
        timing_seconds=SECONDS,
        parts_seconds=st.dictionaries(st.sampled_from(["detection", "recognition"]), SECONDS),
    ),
    unique_by=lambda stage: stage.stage_name,
).map(tuple)
MEMORY = st.builds(
    GpuMemorySnapshot,
    memory_allocated_mb=SECONDS,
    memory_reserved_mb=SECONDS,
    max_memory_allocated_mb=SECONDS,
    max_memory_reserved_mb=SECONDS,
)
PAGES = st.builds(
    PageExtraction,
    engine=st.just("ocr"),
    success=st.booleans(),
    report=st.just(LabReport()),
    stages=STAGES,
    gpu=st.none() | MEMORY,
    total_time_seconds=SECONDS,
)


@given(page=PAGES)
def test_joining_undoes_splitting(page: PageExtraction) -> None:
    assert join_timings(*split_timings(page)) == page


@given(one=PAGES, other=PAGES)
def test_equal_readings_are_equal_texts_however_long_they_took(one: PageExtraction, other: PageExtraction) -> None:
    same = PageExtraction(
        engine=one.engine,
        success=one.success,
        report=one.report,
        stages=tuple(StageResult(stage_name=stage.stage_name, timing_seconds=1.0) for stage in one.stages),
        total_time_seconds=other.total_time_seconds,
    )
    assert encode_canonical(split_timings(one)[0]) == encode_canonical(split_timings(same)[0])


@pytest.mark.parametrize(
    "timings",
    [
        None,
        {},
        {"stages": None},
        {"stages": {"extract": -1}},
        {"stages": {"extract": True}},
        {"parts": {"extract": "x"}},
        {"gpu": 3},
    ],
)
def test_what_is_no_measurement_stays_unknown(timings: dict[str, Any] | None) -> None:
    page = PageExtraction(
        engine="ocr",
        success=True,
        report=LabReport(),
        stages=(StageResult(stage_name=StageName.EXTRACT),),
        total_time_seconds=None,
    )
    assert join_timings(page, timings) == page
