"""`summary.md` of a detector run: a golden page from records written by hand, hostile text, and what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from fewbits.api.detect_summary import read_detector_run, write_detector_summary
from fewbits.core.codec import encode_pretty
from fewbits.core.errors import SpecError
from fewbits.records.detection import DetectionMetrics
from fewbits.records.detector_quant import Recipe
from fewbits.records.detector_run import (
    BuildReport,
    CocoMetrics,
    ExportRecord,
    GraphCheck,
    LatencyMs,
    OutputGap,
    QdqCounts,
    SanityCheck,
    SanityChecks,
    SanityVerdict,
    Stage,
    StageLog,
    StageRecord,
    StageStatus,
)
from fewbits.records.estimate import Estimate
from fewbits.report.detector_summary import DetectorRun, render_detector_summary, variant_order

GOLDEN = Path(__file__).parent / "golden_detector_summary_page.md"
HOSTILE = "a|b\n<script>alert(1)</script> [x](http://y) \u202e`"


def estimate(value: float, low: float | None = None, high: float | None = None) -> Estimate:
    return Estimate(value=value, low=low, high=high, level=0.95, method="bootstrap", n=100)


def metrics(value: float, retained: Estimate | None = None, **changes: Any) -> CocoMetrics:
    measured = DetectionMetrics(
        images=100,
        detections=30_000,
        map_50_95=estimate(value, value - 0.05, value + 0.05),
        map_50=estimate(value + 0.1),
        map_75=None,
        map_small=None,
        map_medium=None,
        map_large=None,
        retained=retained,
    )
    fields: dict[str, Any] = {
        "model_name": "m",
        "onnx_path": "onnx/m-opt.onnx",
        "onnx_sha256": "0" * 64,
        "providers": ("CPUExecutionProvider",),
        "mAP_50_95": value,
        "mAP_50": value + 0.1,
        "mAP_75": None,
        "mAP_small": None,
        "mAP_medium": None,
        "mAP_large": None,
        "num_images": 100,
        "num_detections": 30_000,
        "latency_ms": LatencyMs(count=90, mean=4.0382, median=4.0, p90=4.0914, throughput_fps=247.6),
        "settings": {"imgsz": 640, "conf": 0.001, "image_ids_list": "image_ids.txt", "image_ids_sha256": "ab" * 32},
        "metrics": measured,
    }
    return CocoMetrics(**(fields | changes))


def counts(quantize: int, dequantize: int) -> QdqCounts:
    return QdqCounts(QuantizeLinear=quantize, DequantizeLinear=dequantize, Clip=118 if dequantize else 0)


def export(recipe: Recipe | None, found: QdqCounts, **changes: Any) -> ExportRecord:
    build = BuildReport(
        recipe=recipe,
        head="one-to-one",
        image_size=640,
        source_sha256="1" * 64,
        calibration=None,
        layers=(),
        runtime_gap=OutputGap(
            images=1,
            box_largest_pixels=0.1,
            box_mean_pixels=0.01,
            score_largest=0.0,
            score_root_mean_square=0.0,
            box_floor_pixels=0.0,
            score_floor=0.0,
        ),
        tools={},
    )
    contract = {
        "inputs": [{"name": "images", "dtype": 1, "shape": [1, 3, 640, 640]}],
        "outputs": [{"name": "output0", "dtype": 1, "shape": [1, 84, 8400]}],
    }
    fields: dict[str, Any] = {"out_path": "onnx/m.onnx", "imgsz": 640, "opset": 13, "head": "one-to-one", "qdq_counts": found}
    return ExportRecord(**(fields | {"io_contract": contract, "build": build} | changes))


def cleaned(before: QdqCounts, after: QdqCounts) -> GraphCheck:
    return GraphCheck(
        in_path="onnx/m.onnx",
        out_path="onnx/m-opt.onnx",
        qdq_before=before,
        qdq_after=after,
        nodes_before=900,
        nodes_after=800,
        largest_output_difference=0.0,
    )


def stage(variant: str, kind: Stage, status: StageStatus, **changes: Any) -> StageRecord:
    return StageRecord(variant=variant, stage=kind, status=status, **changes)


def write(path: Path, record: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_pretty(record))


@pytest.fixture
def run_root(tmp_path: Path) -> Path:
    """A run of the float model, W8A16, W4A8 (collapsed) and trained W4A8."""
    root = tmp_path / "2026-01-02_03-04-05"
    write(root / "baseline-coco" / "metrics.json", metrics(0.6022))
    write(root / "ptq-w8a16-coco" / "metrics.json", metrics(0.5983, estimate(0.9935, 0.98, 1.004)))
    unmeasured: dict[str, Any] = {
        "latency_ms": None,
        "latency_unavailable": "90 images were answered, and the first 100 are not counted",
    }
    write(root / "ptq-w4a8-coco" / "metrics.json", metrics(0.115, failed_images=10, **unmeasured))
    write(root / "qat-w4a8-coco" / "metrics.json", metrics(0.4))
    w4a8 = Recipe(weight_bits=4, activation_bits=8, steps=())
    a8 = counts(118, 236)
    calibration = {
        "image_list_path": "calibration_images.txt",
        "list_images": 32,
        "calib_images": 32,
        "imgsz": 640,
        "device": "cpu",
    }
    training = {
        "settings": {"epochs": 2, "learning_rate": 0.002},
        "history": {
            "starting_loss": 0.5,
            "epochs": [{"train_loss": 0.4, "held_out_loss": 0.45}, {"train_loss": 0.3, "held_out_loss": None}],
            "collapsed": False,
        },
    }
    write(root / "baseline_export.json", export(None, counts(0, 0)))
    a16 = Recipe(weight_bits=8, activation_bits=16, steps=())
    weights_only = counts(0, 118)
    write(root / "ptq_w8a16_export.json", export(a16, weights_only, optimized=cleaned(weights_only, weights_only)))
    changed = cleaned(a8, counts(118, 235))
    write(root / "ptq_w4a8_export.json", export(w4a8, a8, calibration=calibration, optimized=changed))
    write(root / "qat_w4a8_export.json", export(w4a8, a8, calibration=calibration, qat_training=training))
    stages = (
        stage("FP32", Stage.EXPORT, StageStatus.OK, seconds=12.5, cached=True),
        stage("W4A8", Stage.CLEANUP, StageStatus.FAILED, seconds=0.5, reason="the clean-up lost 1 node"),
        stage("W4A8", Stage.SMOKE, StageStatus.SKIPPED, reason="there is no graph"),
    )
    write(root / "stages.json", StageLog(stages=stages))
    check = SanityCheck(
        variant="W4A8",
        retained=0.19,
        sanity_variant="W8A8",
        sanity_retained=0.985,
        verdict=SanityVerdict.SCHEME,
        explanation="W8A8 keeps 98.5 %",
    )
    write(root / "sanity.json", SanityChecks(checks=(check,)))
    (root / "logs").mkdir()
    (root / "logs" / "runner.log").touch()
    return root


def test_the_page_of_a_whole_run(run_root: Path) -> None:
    path = write_detector_summary(run_root)
    assert path == run_root / "summary.md"
    assert path.read_text() == GOLDEN.read_text()
    before = path.read_bytes()
    assert write_detector_summary(run_root).read_bytes() == before


def test_missing_data_is_said_and_no_number_is_made_up(tmp_path: Path) -> None:
    text = write_detector_summary(tmp_path).read_text()
    assert text.count("(none found)") == 8
    assert "0.0000" not in text
    with pytest.raises(SpecError, match="no folder"):
        write_detector_summary(tmp_path / "nowhere")


def test_unknown_metrics_are_dashes_not_zeros() -> None:
    nothing = msgspec.structs.replace(metrics(0.5).metrics, map_50_95=None, map_50=None)
    found = metrics(0.5, mAP_50_95=None, mAP_50=None, latency_ms=None, metrics=nothing)
    text = render_detector_summary(DetectorRun(name="r", metrics={"baseline": found}))
    assert "| `baseline` | — | — | — | — | CPUExecutionProvider | `onnx/m-opt.onnx` | — |" in text
    assert "has no latency: no reason recorded" in text


def test_other_images_are_no_comparison() -> None:
    other = metrics(0.1, settings={"image_ids_sha256": "cd" * 32})
    text = render_detector_summary(DetectorRun(name="r", metrics={"baseline": metrics(0.6), "ptq-w4a8": other}))
    assert "evaluated on other images" in text
    assert "collapsed**" not in text


def test_hostile_text_stays_text() -> None:
    hostile = metrics(0.5, model_name=HOSTILE, onnx_path=HOSTILE, providers=(HOSTILE,), settings={"images_dir": HOSTILE})
    training = {HOSTILE: HOSTILE, "epochs": [{HOSTILE: HOSTILE}]}
    contract = {"inputs": [{"name": HOSTILE, "shape": [HOSTILE]}], "outputs": HOSTILE}
    run = DetectorRun(
        name=HOSTILE,
        metrics={HOSTILE: hostile},
        exports={
            HOSTILE: export(None, counts(0, 0), qat_training=training, io_contract=contract, calibration={"imgsz": HOSTILE})
        },
        stages=StageLog(stages=(stage(HOSTILE, Stage.SMOKE, StageStatus.FAILED, reason=HOSTILE),)),
        logs=(HOSTILE,),
        unread={HOSTILE: HOSTILE},
    )
    text = render_detector_summary(run)
    assert "<script" not in text
    assert "\u202e" not in text
    assert "[x](" not in text
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 6
    assert all(len({line.count(" | ") for line in lines}) == 1 for lines in tables)


def test_damaged_files_are_named_and_left_out(run_root: Path) -> None:
    (run_root / "ptq-w4a8-coco" / "metrics.json").write_text('{"model_name": 3}')
    (run_root / "stages.json").write_text("[" * 100_000)
    (run_root / "baseline_export.json").write_bytes(b"\xff")
    run = read_detector_run(run_root)
    assert set(run.unread) == {"ptq-w4a8-coco/metrics.json", "stages.json", "baseline_export.json"}
    assert set(run.metrics) == {"baseline", "ptq-w8a16", "qat-w4a8"}
    assert "## Not read" in render_detector_summary(run)


def test_variants_keep_the_runbooks_order() -> None:
    names = ["qat-w4a8", "ptq-w4a8-mixed4.5", "ptq-w4a8", "ptq-w8a8", "baseline", "ptq-w4a16", "ptq-w8a16", "other"]
    wanted = ["baseline", "ptq-w8a16", "ptq-w8a8", "ptq-w4a16", "ptq-w4a8", "ptq-w4a8-mixed4.5", "other", "qat-w4a8"]
    assert sorted(names, key=variant_order) == wanted
