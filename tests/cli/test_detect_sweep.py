"""Detector sweeps from a checkpoint to `summary.md`: real exports, real trials, failures that stay with their variant."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("brevitas")
pytest.importorskip("onnxoptimizer")
pytest.importorskip("onnxruntime")
pytest.importorskip("PIL")

from cli.detector_world import DetectorWorld, detector_world, fail_for
from fewbits.api.detect_eval import EvaluationRequest, evaluate_onnx
from fewbits.cli.main import main
from fewbits.core.codec import decode
from fewbits.core.errors import BackendError
from fewbits.quantizers.brevitas.quantizer import build_report
from fewbits.records.detector_run import (
    CocoMetrics,
    DetectorCensuses,
    ExportRecord,
    SanityChecks,
    SanityVerdict,
    SmokeRecord,
    Stage,
    StageLog,
    StageRecord,
    StageStatus,
)
from fewbits.records.summary import QuantRow, SweepSummary
from fewbits.sweep.progress import SilentObserver

TAGS = ("FP32", "W8A8", "W4A8-naive", "W4A16")
SCHEMES = "w8a8,W4A8-naive,W4A16"
NAMES = {
    "FP32": ("baseline", "tiny-baseline-fp32"),
    "W8A8": ("ptq_w8a8", "tiny-w8a8-qcdq-ptq"),
    "W4A8-naive": ("ptq_w4a8-naive", "tiny-w4a8-naive-qcdq-ptq"),
    "W4A16": ("ptq_w4a16", "tiny-w4a16-qcdq-ptq"),
}
BEFORE_TRIALS = (Stage.EXPORT, Stage.CLEANUP, Stage.SMOKE)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DetectorWorld]:
    with detector_world(tmp_path_factory.mktemp("world")) as made:
        yield made


@pytest.fixture(scope="module")
def run(world: DetectorWorld) -> Path:
    """The folder of a sweep that was run once, all warnings shown: what libraries say would be in `said.txt`."""
    out = world.root / "run"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert main(world.arguments(out, schemes=SCHEMES)) == 0
    (world.root / "said.txt").write_text("\n".join(str(one.message) for one in caught))
    return out


def stages(run: Path) -> dict[tuple[str, Stage], StageRecord]:
    log = decode((run / "stages.json").read_bytes(), StageLog, "stages.json")
    assert len({(one.variant, one.stage) for one in log.stages}) == len(log.stages)
    return {(one.variant, one.stage): one for one in log.stages}


def rows(run: Path) -> dict[str, QuantRow]:
    summary = decode((run / "sweep_summary.json").read_bytes(), SweepSummary, "summary")
    return {row.quant_tag: row for row in summary.sessions[0].per_quant}


def trial_tags(run: Path) -> list[str]:
    return [json.loads(line)["quant_tag"] for line in (run / "trials.jsonl").read_text().splitlines()]


# --- a whole sweep ----------------------------------------------------------------------------------------------------


def test_the_layout_is_the_runbooks(run: Path) -> None:
    found = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    shared = ("stages", "labels", "censuses", "sanity", "plan", "sweep_summary", "sweep_scatter")
    expected = {f"{name}.json" for name in shared}
    expected |= {"summary.md", "notes.md", "image_ids.txt", "calibration_images.txt", "trials.jsonl", "sweep_report.md"}
    for name, graph in NAMES.values():
        dashed = name.replace("_", "-", 1)
        expected |= {f"{name}_export.json", f"{dashed}-coco/metrics.json", f"smoke/{dashed}/infer-summary.json"}
        expected |= {f"onnx/{graph}.onnx", f"onnx/{graph}-opt.onnx"}
        expected |= {f"logs/{name}_{stage}.log" for stage in ("export", "cleanup", "smoke")}
    assert expected <= found
    assert not [name for name in found if ".part" in name]
    ids = [line for line in (run / "image_ids.txt").read_text().splitlines() if not line.startswith("#")]
    assert ids == ["3", "5", "9"]
    listed = [Path(line).name for line in (run / "calibration_images.txt").read_text().splitlines()[1:]]
    assert listed == ["2.png", "4.png", "6.png"]
    assert "only 3 images to calibrate on" in (run / "notes.md").read_text()


def test_every_stage_is_ok(run: Path) -> None:
    found = stages(run)
    assert set(found) == {(tag, stage) for tag in TAGS for stage in (*BEFORE_TRIALS, Stage.EVALUATE)}
    assert {record.status for record in found.values()} == {StageStatus.OK}
    assert not any(record.cached or record.reason for record in found.values())
    assert (run / "logs" / "ptq_w8a8_export.log").read_text().splitlines()[-1] == "export: ok"


@pytest.mark.parametrize("tag", TAGS)
def test_metrics_and_smoke_of_each(run: Path, tag: str) -> None:
    name, graph = NAMES[tag]
    folder = run / f"{name.replace('_', '-', 1)}-coco"
    metrics = decode((folder / "metrics.json").read_bytes(), CocoMetrics, "metrics")
    assert (metrics.model_name, metrics.onnx_path) == (tag, f"onnx/{graph}-opt.onnx")
    assert metrics.providers == ("CPUExecutionProvider",)
    # nothing was trained, so nothing is found; that is a zero, not a crash
    assert metrics.mAP_50_95 == pytest.approx(0.0, abs=0.02)
    assert (metrics.num_images, metrics.failed_images) == (3, 0)
    assert metrics.latency_ms is not None
    assert metrics.latency_ms.count == 3
    assert (metrics.settings["imgsz"], metrics.settings["image_ids_list"]) == (64, "image_ids.txt")
    smoke = decode((run / "smoke" / name.replace("_", "-", 1) / "infer-summary.json").read_bytes(), SmokeRecord, "smoke")
    assert smoke.is_finite


def test_census_of_each(run: Path) -> None:
    found = decode((run / "censuses.json").read_bytes(), DetectorCensuses, "censuses").censuses
    counts = {tag: (one.quantize_linear, one.dequantize_linear, one.clip) for tag, one in found.items()}
    assert counts["FP32"] == (0, 0, 0)
    # A16: only weights are quantized, and weights lie in the file as integers
    layers = counts["W4A16"][1]
    assert counts["W4A16"] == (0, layers, layers)
    assert counts["W8A8"] == (layers, 2 * layers, layers)
    assert found["FP32"].level_bits_per_weight == 32
    assert found["W8A8"].level_bits_per_weight == 8
    assert found["W4A8-naive"].level_bits_per_weight == 4
    assert found["W4A16"].quantized_inputs == 0
    assert found["W4A16"].inputs_quantized.startswith("none of ")
    assert found["FP32"].execution == "float, as exported"
    assert {tag: row.detection.census for tag, row in rows(run).items() if row.detection is not None} == found


@pytest.mark.parametrize("tag", TAGS)
def test_files_and_export_records_tell_how_they_were_made(run: Path, tag: str) -> None:
    name, graph = NAMES[tag]
    record = decode((run / f"{name}_export.json").read_bytes(), ExportRecord, "export")
    assert record.build == build_report(run / "onnx" / f"{graph}.onnx")
    # cleaning keeps what the file says about itself
    assert record.build == build_report(run / "onnx" / f"{graph}-opt.onnx")
    assert record.optimized is not None
    assert record.optimized.qdq_before == record.optimized.qdq_after == record.qdq_counts
    assert record.optimized.nodes_after <= record.optimized.nodes_before
    # rounding edges: in a random model one step may grow large, so there is no smaller bound for quantized graphs
    assert record.optimized.largest_output_difference < (1e-3 if tag == "FP32" else 64)
    assert record.io_contract == record.optimized_io_contract
    layers = record.build.layers
    if tag == "FP32":
        assert (layers, record.calibration, record.build.recipe) == ((), None, None)
        return
    assert record.calibration is not None
    assert record.calibration["calib_images"] == 3
    assert len(layers) == record.qdq_counts.Clip
    saturated = [layer.saturated_input_share for layer in layers]
    if tag == "W4A16":
        assert set(saturated) == {None}
    else:
        assert all(share is not None and 0 <= share < 0.5 for share in saturated)
    clipped = [layer.clipped_weight_share for layer in layers]
    assert all(share is not None and 0 <= share < 1 for share in clipped)
    if tag == "W4A16":
        assert any(share for share in clipped)


def test_the_summary_says_that_nothing_was_found_and_claims_no_collapse(run: Path) -> None:
    text = (run / "summary.md").read_text()
    assert re.search(r"\| `baseline` \| 0\.0", text)
    assert "No variant collapsed" in text
    assert decode((run / "sanity.json").read_bytes(), SanityChecks, "sanity").checks == ()
    for row in rows(run).values():
        assert row.detection is not None
        assert not row.detection.collapsed
    assert not (run / "sanity").exists()


def test_the_labs_commands_take_the_folder(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {name: (run / name).read_bytes() for name in ("sweep_summary.json", "sweep_report.md", "summary.md")}
    assert main(["verify", str(run)]) == 0
    assert main(["summarize", str(run)]) == 0
    assert main(["report", "--summary", str(run / "sweep_summary.json")]) == 0
    assert main(["detect", "summary", "--run-root", str(run)]) == 0
    assert main(["detect", "census", str(run / "onnx" / "tiny-w8a8-qcdq-ptq.onnx"), "--json"]) == 0
    capsys.readouterr()
    assert {name: (run / name).read_bytes() for name in before} == before


def test_libraries_say_nothing_that_nobody_can_act_on(run: Path, world: DetectorWorld) -> None:
    said = (world.root / "said.txt").read_text()
    for words in ("output accumulator", "fast_hadamard", "TF32", "TracerWarning"):
        assert words not in said


def test_a_second_run_makes_and_asks_nothing_again(run: Path, world: DetectorWorld, capsys: pytest.CaptureFixture[str]) -> None:
    kept = ("trials.jsonl", "plan.json", "censuses.json", "sweep_summary.json", "labels.json")
    before = {name: (run / name).read_bytes() for name in kept}
    assert main(world.arguments(run, schemes=SCHEMES.lower())) == 0
    assert {name: (run / name).read_bytes() for name in kept} == before
    found = stages(run)
    assert {record.status for record in found.values()} == {StageStatus.OK}
    assert all(found[tag, stage].cached for tag in TAGS for stage in (Stage.EXPORT, Stage.CLEANUP))
    # words about making would be on stderr
    assert "making" not in capsys.readouterr().err


# --- failures stay with their variant ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize(
    ("tag", "error", "reason"),
    [
        ("W8A8", BackendError("brevitas", "no such layer"), "brevitas: no such layer"),
        ("W8A8", RuntimeError("shapes differ"), "RuntimeError: shapes differ"),
        ("FP32", IndexError("list index"), "IndexError: list index"),
    ],
)
def test_a_failed_export_loses_no_other_and_is_made_up_for(
    world: DetectorWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tag: str, error: Exception, reason: str
) -> None:
    other = "W8A8" if tag == "FP32" else "FP32"
    with monkeypatch.context() as patch:
        fail_for(patch, "export", [tag], error)
        assert main(world.arguments(tmp_path, schemes="W8A8")) == 0
    found = stages(tmp_path)
    assert (found[tag, Stage.EXPORT].status, found[tag, Stage.EXPORT].reason) == (StageStatus.FAILED, reason)
    for stage in (Stage.CLEANUP, Stage.SMOKE, Stage.EVALUATE):
        assert (found[tag, stage].status, found[tag, stage].reason) == (StageStatus.SKIPPED, "export failed")
        assert found[other, stage].status is StageStatus.OK
    assert set(trial_tags(tmp_path)) == {other}
    lost = rows(tmp_path)[tag]
    assert lost.detection is not None
    assert (lost.detection.metrics, lost.detection.asked_images) == (None, 0)
    page = (tmp_path / "summary.md").read_text()
    assert "failed" in page
    assert reason.partition(": ")[2] in page
    assert main(["verify", str(tmp_path)]) == 0
    first = (tmp_path / "trials.jsonl").read_bytes()

    assert main(world.arguments(tmp_path, schemes="W8A8")) == 0
    assert {record.status for record in stages(tmp_path).values()} == {StageStatus.OK}
    assert (tmp_path / "trials.jsonl").read_bytes().startswith(first)
    assert set(trial_tags(tmp_path)) == {"FP32", "W8A8"}
    caught_up = rows(tmp_path)[tag].detection
    assert caught_up is not None
    assert caught_up.asked_images == 3
    assert main(["verify", str(tmp_path)]) == 0


@pytest.mark.usefixtures("run")
def test_where_everything_fails_each_reason_is_said_once(
    world: DetectorWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_for(monkeypatch, "export", TAGS, BackendError("brevitas", "the machine is on fire"))
    assert main(world.arguments(tmp_path, schemes="W8A8,W4A16")) == 1
    message = capsys.readouterr().err.rpartition("fewbits detect: ")[2]
    assert message.splitlines() == [
        "fewbits: no variant could be made",
        "  - FP32, W8A8, W4A16: export: brevitas: the machine is on fire",
    ]
    assert not (tmp_path / "trials.jsonl").exists()


@pytest.mark.usefixtures("run")
def test_a_graph_that_cannot_be_cleaned_is_measured_as_exported(
    world: DetectorWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_for(monkeypatch, "clean", ["W8A8"], BackendError("onnxoptimizer", "lost a node"))
    assert main(world.arguments(tmp_path, schemes="W8A8")) == 0
    found = stages(tmp_path)
    assert found["W8A8", Stage.CLEANUP].status is StageStatus.FAILED
    assert found["W8A8", Stage.EVALUATE].status is StageStatus.OK
    metrics = decode((tmp_path / "ptq-w8a8-coco" / "metrics.json").read_bytes(), CocoMetrics, "metrics")
    assert metrics.onnx_path == "onnx/tiny-w8a8-qcdq-ptq.onnx"
    record = decode((tmp_path / "ptq_w8a8_export.json").read_bytes(), ExportRecord, "export")
    assert (record.optimized, record.optimized_io_contract) == (None, None)


@pytest.mark.usefixtures("run")
def test_an_interrupted_stage_ends_the_sweep_and_is_caught_up_on(
    world: DetectorWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fail_for(patch, "export", ["W8A8"], KeyboardInterrupt())
        assert main(world.arguments(tmp_path, schemes="W8A8")) == 130
    assert {tag for tag, _stage in stages(tmp_path)} == {"FP32"}
    assert main(world.arguments(tmp_path, schemes="W8A8")) == 0
    assert {record.status for record in stages(tmp_path).values()} == {StageStatus.OK}


class Impatient(SilentObserver):
    """Presses Ctrl-C after two trials."""

    def __init__(self) -> None:
        self.seen = 0

    def trial_ended(self, trial: Any) -> None:
        self.seen += 1
        if self.seen == 2:
            raise KeyboardInterrupt

    def close(self) -> None:
        """Nothing is drawn."""


@pytest.mark.usefixtures("run")
def test_a_sweep_killed_in_its_trials_goes_on(world: DetectorWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("fewbits.cli.progress.create_observer", Impatient)
        assert main(world.arguments(tmp_path, schemes="W8A8")) == 130
    kept = (tmp_path / "trials.jsonl").read_bytes()
    assert len(kept.splitlines()) == 2
    assert set(stages(tmp_path)) == {(tag, stage) for tag in ("FP32", "W8A8") for stage in BEFORE_TRIALS}
    assert main(world.arguments(tmp_path, schemes="W8A8")) == 0
    assert (tmp_path / "trials.jsonl").read_bytes().startswith(kept)
    assert {record.status for record in stages(tmp_path).values()} == {StageStatus.OK}
    assert main(["verify", str(tmp_path)]) == 0


def test_another_plan_is_refused_and_fresh_starts_over(
    run: Path, world: DetectorWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(world.arguments(tmp_path, schemes="FP32")) == 0
    assert main(world.arguments(tmp_path, "--conf", "0.01", schemes="FP32")) == 2
    assert "holds a run of another plan" in capsys.readouterr().err
    assert main(world.arguments(tmp_path, "--conf", "0.01", "--fresh", schemes="FP32")) == 0
    assert (tmp_path / "superseded" / "1" / "stages.json").exists()


# --- collapse ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trusting_world(world: DetectorWorld, run: Path) -> Iterator[DetectorWorld]:
    """The same world with labels that say what the float model finds: then there is something to lose."""
    before = world.annotations().read_bytes()
    found = world.root / "found.json"
    graph = run / "onnx" / "tiny-baseline-fp32-opt.onnx"
    evaluate_onnx(EvaluationRequest(onnx_path=graph, data_root=world.coco, image_size=64, detections_out=found))
    best = sorted(json.loads(found.read_text()), key=lambda one: -one["score"])
    boxes = [one for one in best if min(one["bbox"][2:]) > 1]
    chosen = [one for image in (3, 5, 9) for one in [box for box in boxes if box["image_id"] == image][:4]]
    world.relabel([(one["image_id"], one["category_id"], one["bbox"]) for one in chosen])
    yield world
    world.annotations().write_bytes(before)


@pytest.fixture
def strict_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """Call every loss a collapse: a random model's boxes hardly depend on the picture, so 2 bits cost it about 2 percent."""
    monkeypatch.setattr("fewbits.api.detect.COLLAPSE_RATIO", 1.0)


@pytest.mark.usefixtures("strict_rule")
def test_a_collapse_brings_its_sanity_variant_along(trusting_world: DetectorWorld, tmp_path: Path) -> None:
    assert main(trusting_world.arguments(tmp_path, schemes="W2A8-naive")) == 0
    floats = rows(tmp_path)["FP32"].detection
    assert floats is not None
    assert floats.metrics is not None
    assert floats.metrics.map_50_95 is not None
    assert floats.metrics.map_50_95.value == pytest.approx(1.0)
    (check,) = decode((tmp_path / "sanity.json").read_bytes(), SanityChecks, "sanity").checks
    assert (check.variant, check.sanity_variant) == ("W2A8-naive", "W8A8-naive")
    assert 0 < check.retained < 1
    assert check.sanity_retained is not None
    assert check.sanity_retained >= 0.9
    assert check.verdict is SanityVerdict.SCHEME
    own = rows(tmp_path / "sanity" / "w8a8-naive")
    assert set(own) == {"FP32", "W8A8-naive"}
    assert "W8A8-naive" in (tmp_path / "summary.md").read_text()
    assert main(["verify", str(tmp_path)]) == 0


@pytest.mark.usefixtures("strict_rule")
@pytest.mark.parametrize("tags", [("W8A8-naive",), ("W8A8-naive", "again")])
def test_a_sanity_variant_that_fails_leaves_the_question_open(
    trusting_world: DetectorWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tags: tuple[str, ...]
) -> None:
    if "again" in tags:
        # nothing at all can be made in the sanity run
        monkeypatch.setattr("fewbits.api.detect._sanity_row", _refuse)
    else:
        fail_for(monkeypatch, "export", tags, RuntimeError("broken"))
    assert main(trusting_world.arguments(tmp_path, schemes="W2A8-naive")) == 0
    (check,) = decode((tmp_path / "sanity.json").read_bytes(), SanityChecks, "sanity").checks
    assert (check.verdict, check.sanity_retained) == (SanityVerdict.UNDECIDED, None)
    assert check.explanation.startswith("W8A8-naive could not be measured: ")
    assert ("on fire" in check.explanation) == ("again" in tags)
    assert (tmp_path / "summary.md").exists()


def _refuse(*_arguments: Any, **_settings: Any) -> Any:
    raise BackendError("fewbits", "the machine is on fire")


# --- ablation ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("run")
def test_a_ladder_cut_short_keeps_its_table(
    world: DetectorWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fewbits.api.detect_ablation import ladder_tags

    made = ("W4A16-naive", "W4A16")
    fail_for(monkeypatch, "export", [tag for tag in ladder_tags("W4A16") if tag not in made], RuntimeError("left out"))
    assert main(world.arguments(tmp_path, "--mode", "w4a16", action="ablation")) == 0
    assert "ablation.md" in capsys.readouterr().out
    page = (tmp_path / "ablation.md").read_text()
    table = json.loads((tmp_path / "ablation.json").read_text())
    assert page.startswith("# Ablation of W4A16\n")
    assert [row["variant"] for row in table["rows"]] == list(ladder_tags("W4A16"))
    reasons = {row["variant"]: row["unavailable"] for row in table["rows"]}
    assert {tag for tag, reason in reasons.items() if not reason} == set(made)
    assert {reason for reason in reasons.values() if reason} == {"export failed"}
