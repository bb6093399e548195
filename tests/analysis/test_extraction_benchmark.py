from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.analysis import extraction_benchmark as sut
from fewbits.records.extraction_metrics import Hint, HintCode, MeasuredRun


def run(seconds: float = 1.0, **fields: object) -> MeasuredRun:
    base: dict[str, object] = {"success": True, "pipeline_seconds": seconds, "wall_seconds": seconds * 1.25, "tests": 10}
    stages = {"preprocess": seconds * 0.25, "extract": seconds * 0.75}
    return MeasuredRun(**{**base, "stage_seconds": stages, **fields})  # type: ignore[arg-type]


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=40), st.floats(0, 100))
def test_a_percentile_never_leaves_the_values(values: list[float], q: float) -> None:
    found = sut.percentile(values, q)
    assert found is not None
    assert min(values) <= found <= max(values)
    assert found == pytest.approx(float(np.percentile(values, q)), rel=1e-9, abs=1e-6)


def test_percentiles_by_hand() -> None:
    assert sut.percentile([5, 1, 3, 2, 4], 95) == pytest.approx(4.8)  # the older tool said 5.7
    assert sut.percentile([5, 1, 3, 2, 4], 100) == 5
    assert sut.percentile([7], 95) == 7
    assert sut.percentile([], 95) is None
    for values, q in (([1.0], 101.0), ([1.0], -1.0), ([float("nan")], 50.0), ([float("inf")], 50.0)):
        with pytest.raises(ValueError, match="percentile"):
            sut.percentile(values, q)


def test_the_aggregate_by_hand() -> None:
    runs = [
        run(1),
        run(2),
        run(3, success=False, error_kind="NO_TEXT", tests=0),
        run(2, success=False, tests=0, gpu_peak_mb=100.0),
    ]
    found = sut.aggregate(runs, benchmark_wall_time_seconds=16)
    assert (found.total_runs, found.success_rate, found.avg_tests_extracted) == (4, 0.5, 5)
    assert (found.avg_pipeline_time_seconds, found.p50_pipeline_time_seconds, found.p95_pipeline_time_seconds) == (2, 2, 2.85)
    # over the whole loop, not over the 10 seconds inside of the runs
    assert (found.images_per_second, found.tests_per_second) == (0.25, 1.25)
    assert found.errors_by_kind == {"NO_TEXT": 1, "UNKNOWN": 1}
    assert found.stage_time_share == {"preprocess": 0.2, "extract": 0.6, "other": 0.2}
    assert (found.gpu_peak_mb, found.memory_peak_mb) == (100, None)


def test_no_runs_are_no_numbers() -> None:
    found = sut.aggregate([], benchmark_wall_time_seconds=0)
    assert (found.success_rate, found.p95_wall_time_seconds, found.images_per_second, found.stage_time_share) == (
        None,
        None,
        None,
        {},
    )
    assert [hint.code for hint in sut.interpret(found)] == [HintCode.NO_RUNS]


def hints(runs: list[MeasuredRun], **options: object) -> dict[HintCode, Hint]:
    measured = sut.aggregate(runs, benchmark_wall_time_seconds=10)
    return {hint.code: hint for hint in sut.interpret(measured, **options)}  # type: ignore[arg-type]


def test_failures_come_first_with_their_kinds() -> None:
    failed = [run(success=False, error_kind=kind) for kind in ("PARSE_FAILED", "TIMEOUT", "PARSE_FAILED")]
    found = hints([run(), *failed])
    assert next(iter(found)) is HintCode.FAILED_RUNS
    assert "3 of 4 runs failed (PARSE_FAILED 2, TIMEOUT 1)" in found[HintCode.FAILED_RUNS].text
    assert HintCode.FAILED_RUNS not in hints([run()])


def test_a_slow_tail_and_few_runs_are_said() -> None:
    even = hints([run()] * 20)
    assert HintCode.PREFER_P95 in even
    assert not {HintCode.SLOW_TAIL, HintCode.FEW_RUNS} & set(even)
    slow = hints([run()] * 8 + [run(5)] * 2)
    assert slow[HintCode.SLOW_TAIL].numbers["p95_per_p50"] == 5
    assert HintCode.FEW_RUNS in slow


def test_the_bottleneck_follows_the_measured_shares() -> None:
    engine = hints([run()])[HintCode.ENGINE_BOUND]
    assert engine.numbers["extract_share"] == 0.6
    assert "GPU" not in engine.text
    slow = run(stage_seconds={"preprocess": 0.75, "extract": 0.25}, gpu_peak_mb=1000.0)
    host = hints([slow], gpu_total_mb=8000.0)[HintCode.HOST_BOUND]
    assert "80% of the time" in host.text
    assert "preprocess (60%)" in host.text
    assert "peaks at 12%" in host.text
    assert not {HintCode.HOST_BOUND, HintCode.ENGINE_BOUND} & set(hints([run(stage_seconds={})]))


def test_a_variant_is_held_against_the_reference() -> None:
    reference = sut.aggregate([run(gpu_peak_mb=8000.0)], benchmark_wall_time_seconds=5)
    found = hints([run(gpu_peak_mb=2000.0)], reference=reference, variant_name="4-bit", reference_name="bf16")
    assert found[HintCode.AGAINST_REFERENCE].numbers == {"speed_ratio": 0.5, "memory_ratio": 0.25}
    assert "0.50 times as many images per second as bf16" in found[HintCode.AGAINST_REFERENCE].text
    # memory of a GPU is never compared with memory of the process
    assert "memory_ratio" not in hints([run(memory_peak_mb=10.0)], reference=reference)[HintCode.AGAINST_REFERENCE].numbers
