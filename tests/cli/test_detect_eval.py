"""The stand-alone evaluator and the smoke tool, on tiny real graphs in the real runtime."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytest.importorskip("PIL")

from fewbits.api.detect_classes import check_declared, class_categories, declared_names
from fewbits.api.detect_eval import EvaluationRequest, evaluate_onnx
from fewbits.api.detect_measure import summarise_latency
from fewbits.api.detect_smoke import smoke_onnx
from fewbits.cli.detect_eval import provider_names
from fewbits.cli.main import main
from fewbits.core.codec import decode
from fewbits.core.errors import PrerequisiteError, SpecError
from fewbits.records.detection import Category
from fewbits.records.detector_run import CocoMetrics, SmokeRecord
from runtimes.onnx_samples import CLASSES, POINTS, SIZE, write_detector, write_image

CPU = "CPUExecutionProvider"
BOX = [24.0, 12.0, 16.0, 24.0]
"""What `write_detector` finds in an image of 64 x 48: around (16, 16) in its square, 8 wide, 12 high."""


def annotation(number: int, image_id: int, category_id: int, bbox: list[float]) -> dict[str, Any]:
    return {"id": number, "image_id": image_id, "category_id": category_id, "bbox": bbox, "area": bbox[2] * bbox[3], "iscrowd": 0}


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    """Three images of which each shows one thing of category 7 just where the tiny detector sees it."""
    root = tmp_path / "coco"
    for image_id in (3, 5, 9):
        write_image(root / "val2017", f"{image_id}.png", level=40 * image_id // 2)
    content = {
        "images": [{"id": image_id, "file_name": f"{image_id}.png", "width": 64, "height": 48} for image_id in (9, 3, 5)],
        "categories": [{"id": 9, "name": "dog"}, {"id": 7, "name": "cat"}],
        "annotations": [annotation(image_id, image_id, 7, BOX) for image_id in (3, 5, 9)],
    }
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def request_for(data_root: Path, tmp_path: Path) -> Callable[..., EvaluationRequest]:
    """Return an evaluation of a tiny detector; changes by keyword, `model` for the file."""

    def build(model: Path | None = None, **changes: Any) -> EvaluationRequest:
        path = model or tmp_path / "tiny.onnx"
        if model is None and not path.exists():
            write_detector(path)
        settings: dict[str, Any] = {"data_root": data_root, "image_size": SIZE, "providers": (CPU,), "resamples": 50} | changes
        return EvaluationRequest(onnx_path=path, **settings)

    return build


def silent_detector(path: Path) -> Path:
    """Write a detector that finds nothing anywhere."""
    bias = np.zeros((1, 4 + CLASSES, POINTS), dtype=np.float32)
    bias[0, 4, 0] = -0.5  # takes away what brightness adds
    write_detector(path, bias=bias)
    return path


def test_metrics_of_a_detector_that_finds_everything(request_for: Callable[..., EvaluationRequest], tmp_path: Path) -> None:
    out, detections_out, steps = tmp_path / "a" / "metrics.json", tmp_path / "a" / "detections.json", []
    request = request_for(out=out, detections_out=detections_out, confidence=0.2, warmup_runs=1, skip_latency=1)
    record = evaluate_onnx(request, progress=lambda done, images: steps.append((done, images)))
    # category 7 is found in every image; category 9 is reported too, but labelled nowhere, so it has no average
    assert (record.mAP_50_95, record.mAP_50, record.num_images, record.failed_images) == (1.0, 1.0, 3, 0)
    assert record.providers == (CPU,)
    assert record.latency_ms is not None
    assert record.latency_ms.count == 2
    assert record.latency_ms.throughput_fps == pytest.approx(1000 / record.latency_ms.mean)
    assert record.settings["image_ids_sha256"] == evaluate_onnx(request_for()).settings["image_ids_sha256"]
    assert record.metrics.retained is None
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert decode(out.read_bytes(), CocoMetrics, "metrics.json") == record
    results = json.loads(detections_out.read_text())
    assert len(results) == record.num_detections
    first = next(row for row in results if row["category_id"] == 7)
    assert (first["image_id"], first["bbox"]) == (3, BOX)
    assert {row["image_id"] for row in results} == {3, 5, 9}
    assert set(first) == {"image_id", "category_id", "bbox", "score"}


def test_pycocotools_agrees_on_the_written_detections(
    request_for: Callable[..., EvaluationRequest], data_root: Path, tmp_path: Path
) -> None:
    pytest.importorskip("pycocotools")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    path = data_root / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"] = [26.0, 14.0, 16.0, 24.0]
    content["annotations"][1]["category_id"] = 9
    path.write_text(json.dumps(content))
    record = evaluate_onnx(request_for(detections_out=tmp_path / "found.json"))
    truth = COCO(str(path))
    evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "found.json")), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert record.mAP_50_95 == pytest.approx(evaluation.stats[0], abs=1e-6)
    assert 0.1 < evaluation.stats[0] < 0.9
    assert record.mAP_50 == pytest.approx(evaluation.stats[1], abs=1e-6)
    assert record.mAP_75 == pytest.approx(evaluation.stats[2], abs=1e-6)


def test_no_detection_is_zero_and_no_crash(request_for: Callable[..., EvaluationRequest], tmp_path: Path) -> None:
    record = evaluate_onnx(request_for(silent_detector(tmp_path / "silent.onnx"), confidence=0.9, scores="probabilities"))
    assert (record.num_detections, record.failed_images) in {(0, 0), (0, 3)}
    assert (record.mAP_50_95, record.mAP_50, record.mAP_75) == (0.0, 0.0, 0.0)


def test_no_answer_is_zero_counted_and_said(request_for: Callable[..., EvaluationRequest], tmp_path: Path) -> None:
    bias = np.full((1, 4 + CLASSES, POINTS), np.nan, dtype=np.float32)
    write_detector(tmp_path / "nan.onnx", bias=bias)
    said: list[str] = []
    record = evaluate_onnx(request_for(tmp_path / "nan.onnx"), said.append)
    assert (record.mAP_50_95, record.failed_images, record.num_detections) == (0.0, 3, 0)
    assert record.latency_ms is None
    assert record.latency_unavailable == "no image was answered"
    assert "not finite" in record.settings["first_failure"]
    assert "3 of 3 images were not answered" in said[0]


def test_a_damaged_image_costs_itself_only(request_for: Callable[..., EvaluationRequest], data_root: Path) -> None:
    (data_root / "val2017" / "5.png").write_bytes(b"no picture")
    write_image(data_root / "val2017", "9.png")
    record = evaluate_onnx(request_for())
    assert (record.failed_images, record.num_images) == (1, 3)
    assert record.settings["first_failure"].startswith("image 5: ")
    assert record.latency_ms is not None
    assert record.latency_ms.count == 2


def test_an_image_of_another_size_than_labelled_is_no_answer(
    request_for: Callable[..., EvaluationRequest], data_root: Path
) -> None:
    from PIL import Image

    Image.new("RGB", (48, 64)).save(data_root / "val2017" / "3.png")
    record = evaluate_onnx(request_for())
    assert record.failed_images == 1
    assert record.settings["first_failure"] == "image 3: what came back is not about 64 x 48 pixels, as the labels are"


def test_latency_without_samples_is_none_with_the_reason(request_for: Callable[..., EvaluationRequest]) -> None:
    record = evaluate_onnx(request_for(skip_latency=10))
    assert record.latency_ms is None
    assert record.latency_unavailable == "3 images were answered, and the first 10 are not counted"


def test_latency_is_numpy_over_what_is_not_skipped() -> None:
    found = summarise_latency([100.0, 1.0, 2.0, 3.0, 4.0], 1)
    assert found is not None
    assert (found.count, found.mean, found.median, found.throughput_fps) == (4, 2.5, 2.5, 400.0)
    assert found.p90 == pytest.approx(3.7)
    assert summarise_latency([1.0], 1) is None
    assert summarise_latency([], 0) is None


@pytest.mark.parametrize(
    ("limit", "listed", "count"), [(2, None, 2), (0, None, 3), (-1, "9\n3 # the last\n", 2), (1, "9\n3\n", 1)]
)
def test_images_are_the_first_by_id_or_those_of_a_list(
    request_for: Callable[..., EvaluationRequest], tmp_path: Path, limit: int, listed: str | None, count: int
) -> None:
    ids = None
    if listed is not None:
        ids = tmp_path / "ids.txt"
        ids.write_text(listed)
    record = evaluate_onnx(request_for(max_images=limit, image_ids_list=ids, detections_out=tmp_path / "d.json"))
    assert record.num_images == count
    assert min(row["image_id"] for row in json.loads((tmp_path / "d.json").read_text())) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup_runs": -1, "skip_latency": -2}, "2 problems"),
        ({"data_root": None}, "there is no data set"),
        ({"instances": Path("x.json")}, "--images-dir is missing"),
        ({"max_detections": 10_001}, "more than are read"),
        ({"out": Path("same.json"), "detections_out": Path("same.json")}, "the file that --out names"),
        ({"iou": 1.0}, "does not lie between 0 and 1"),
        ({"scores": "guess"}, "none of auto, probabilities, logits"),
        ({"disable_cpu_fallback": True}, "which this flag bans"),
        ({"image_size": 64}, "not one picture of shape"),
        ({"data_root": Path("nowhere")}, "no annotation file"),
    ],
)
def test_settings_that_make_no_sense(
    request_for: Callable[..., EvaluationRequest], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        evaluate_onnx(request_for(**changes))


@pytest.mark.parametrize(
    ("listed", "message"),
    [("", "names no image"), ("# only words\n", "names no image"), ("3\n3\n", "stands twice"), ("4\n", "there is no image 4")],
)
def test_lists_that_cannot_be_used(
    request_for: Callable[..., EvaluationRequest], tmp_path: Path, listed: str, message: str
) -> None:
    (tmp_path / "ids.txt").write_text(listed)
    with pytest.raises(SpecError, match=message):
        evaluate_onnx(request_for(image_ids_list=tmp_path / "ids.txt"))


def test_missing_and_repeated_images_are_named(request_for: Callable[..., EvaluationRequest], data_root: Path) -> None:
    (data_root / "val2017" / "5.png").unlink()
    with pytest.raises(SpecError, match="the file of image 5 is missing"):
        evaluate_onnx(request_for())
    path = data_root / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    content["images"].append(content["images"][0])
    path.write_text(json.dumps(content))
    with pytest.raises(SpecError, match="the id 9 of this image is used twice"):
        evaluate_onnx(request_for())


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\x00" * 64, None])
def test_what_is_no_onnx_file(request_for: Callable[..., EvaluationRequest], tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "broken.onnx"
    if content is not None:
        path.write_bytes(content)
    for action in (lambda: evaluate_onnx(request_for(path)), lambda: smoke_onnx(path, (CPU,))):
        with pytest.raises(SpecError, match=r"is no ONNX file|cannot be read|no such file"):
            action()


@pytest.mark.parametrize("shape", [(1, 7, POINTS), (1, 3, 6, 4)])
def test_another_head_is_told_at_once(
    request_for: Callable[..., EvaluationRequest], tmp_path: Path, shape: tuple[int, ...]
) -> None:
    bias = np.full(shape, 0.5, dtype=np.float32)
    write_detector(tmp_path / "other.onnx", bias=bias) if len(shape) == 3 else _write_constant(tmp_path / "other.onnx", bias)
    with pytest.raises(SpecError, match="another head, or another number of classes"):
        evaluate_onnx(request_for(tmp_path / "other.onnx"))


def _write_constant(path: Path, values: Any, *, input_shape: Any = (1, 3, SIZE, SIZE), kind: int = 1) -> None:
    """Write a graph that answers anything with `values` plus nothing of its input."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Cast", ["images"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["numbers"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Add", ["values", "nothing"], ["output0"]),
    ]
    graph = helper.make_graph(
        nodes,
        "constant",
        [helper.make_tensor_value_info("images", kind, list(input_shape))],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, list(values.shape))],
        [numpy_helper.from_array(values, "values"), numpy_helper.from_array(np.float32(0), "zero")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path.write_bytes(model.SerializeToString())


# --- providers --------------------------------------------------------------------------------------------------------


def test_missing_providers_are_left_out_and_said(request_for: Callable[..., EvaluationRequest]) -> None:
    said: list[str] = []
    record = evaluate_onnx(request_for(providers=("NobodysExecutionProvider", CPU)), said.append)
    assert record.providers == (CPU,)
    assert said == [f"not on this machine: NobodysExecutionProvider; used: {CPU}"]
    with pytest.raises(PrerequisiteError, match="none of the providers Nobody"):
        evaluate_onnx(request_for(providers=("NobodysExecutionProvider",)))


def test_the_ban_of_the_cpu_is_real(request_for: Callable[..., EvaluationRequest]) -> None:
    import onnxruntime

    others = [name for name in onnxruntime.get_available_providers() if name == "AzureExecutionProvider"]
    if not others:
        pytest.skip("this ONNX Runtime has no provider that runs nothing")
    # without the flag ONNX Runtime silently computes on the CPU
    assert CPU in evaluate_onnx(request_for(providers=tuple(others))).providers
    with pytest.raises(PrerequisiteError, match="does not run on AzureExecutionProvider alone"):
        evaluate_onnx(request_for(providers=tuple(others), disable_cpu_fallback=True))


def test_providers_may_be_separated_by_blanks_or_commas() -> None:
    assert provider_names(["A,B", "C", "A"]) == ("A", "B", "C")
    assert provider_names(None) is None


# --- classes ----------------------------------------------------------------------------------------------------------

CATEGORIES = (Category(category_id=7, name="cat"), Category(category_id=9, name="dog"))


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("names: [dog, cat]", [9, 7]),
        ("path: x\nnames:\n  1: cat\n  0: dog\n", [9, 7]),
        ("names: ['dog']", [9]),
        # nothing is constructed, so that tags mean nothing
        ("names: !!python/object/apply:os.system [cat]", [7]),
        (None, [7, 9]),
    ],
)
def test_classes_are_found_by_name_or_by_place(tmp_path: Path, text: str | None, ids: list[int]) -> None:
    path = None
    if text is not None:
        path = tmp_path / "coco.yaml"
        path.write_text(text)
    assert [category.category_id for category in class_categories(CATEGORIES, path)] == ids


def test_words_that_yaml_reads_as_values_stay_names(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("names: {0: no, 1: 12}")
    categories = (Category(category_id=1, name="12"), Category(category_id=2, name="no"))
    assert [category.category_id for category in class_categories(categories, tmp_path / "c.yaml")] == [2, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [cat, unicorn]", "no category 'unicorn'"),
        ("names: [cat, cat]", "two classes are called 'cat'"),
        ("names: {0: cat, 2: dog}", "no class names"),
        ("names: {0: cat, 0: dog}", "no class names"),
        ("names: 3", "no class names"),
        ("names: []", "no class names"),
        ("names: [[cat]]", "no class names"),
        ("- cat", "no class names"),
        ("", "no class names"),
        ("names: [", "not YAML"),
        ("\x00", "not YAML"),
    ],
)
def test_class_files_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(SpecError, match=message):
        class_categories(CATEGORIES, tmp_path / "c.yaml")


def test_a_class_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read"):
        class_categories(CATEGORIES, tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("metadata", "names"),
    [
        ({"fewbits.names": '["cat","dog"]', "names": "{0: 'x'}"}, ("cat", "dog")),
        ({"names": "{0: 'cat', 1: 'dog'}"}, ("cat", "dog")),
        ({"names": "{1: 'dog', 0: 'cat'}"}, ("cat", "dog")),
        ({"names": "['cat', 'dog']"}, ("cat", "dog")),
        ({"names": "{1: 'dog'}"}, None),
        ({"names": "__import__('os')"}, None),
        ({"names": "(" * 5000}, None),
        ({"fewbits.names": "{"}, None),
        ({}, None),
    ],
)
def test_names_that_a_file_declares(metadata: dict[str, str], names: tuple[str, ...] | None) -> None:
    assert declared_names(metadata) == names


def test_declared_names_are_held_against_the_categories() -> None:
    assert check_declared(("cat", "dog"), CATEGORIES, "m") == ""
    assert check_declared(("0", "1"), CATEGORIES, "m") == ""
    assert check_declared(("cat", "wolf"), CATEGORIES, "m").endswith("'wolf' as 'dog'")
    with pytest.raises(SpecError, match="in another order"):
        check_declared(("dog", "cat"), CATEGORIES, "m")
    with pytest.raises(SpecError, match="declares 3 classes"):
        check_declared(("a", "b", "c"), CATEGORIES, "m")


def test_the_order_of_a_class_file_reaches_the_result(request_for: Callable[..., EvaluationRequest], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("names: [dog, cat]")
    record = evaluate_onnx(request_for(coco_names=tmp_path / "c.yaml", detections_out=tmp_path / "d.json"))
    # the model's first class, drawn on by brightness, is now the dog; what it calls the second lies where the cat is
    assert record.settings["class_order"].startswith("class i is the category")
    assert {row["category_id"] for row in json.loads((tmp_path / "d.json").read_text())} == {7, 9}


def test_declared_names_of_another_count_are_refused(request_for: Callable[..., EvaluationRequest], tmp_path: Path) -> None:
    write_detector(tmp_path / "named.onnx", metadata={"names": "{0: 'a', 1: 'b', 2: 'c'}"})
    with pytest.raises(SpecError, match="declares 3 classes"):
        evaluate_onnx(request_for(tmp_path / "named.onnx"))


# --- smoke ------------------------------------------------------------------------------------------------------------


def test_smoke_runs_once_on_the_same_random_numbers(tmp_path: Path) -> None:
    write_detector(tmp_path / "m.onnx")
    record = smoke_onnx(tmp_path / "m.onnx", (CPU,), image_size=64)
    assert record.is_finite
    assert record.inputs == ({"name": "images", "type": "tensor(float)", "shape": [1, 3, SIZE, SIZE]},)
    assert record.outputs == ({"name": "output0", "type": "tensor(float)", "shape": [1, 4 + CLASSES, POINTS]},)
    assert record.runtime_ms > 0
    assert (record.model_name, record.seed, record.default_image_size) == ("m", 0, 64)


def test_smoke_fills_free_sides_and_takes_whole_numbers(tmp_path: Path) -> None:
    from onnx import TensorProto

    values = np.zeros((1, 2), dtype=np.float32)
    _write_constant(tmp_path / "free.onnx", values, input_shape=("batch", "channels", "h", "w"))
    assert smoke_onnx(tmp_path / "free.onnx", (CPU,), image_size=8).inputs[0]["shape"] == [1, 3, 8, 8]
    _write_constant(tmp_path / "ids.onnx", values, input_shape=("batch", 5), kind=TensorProto.INT64)
    found = smoke_onnx(tmp_path / "ids.onnx", (CPU,)).inputs[0]
    assert (found["type"], found["shape"]) == ("tensor(int64)", [1, 5])


def test_smoke_tells_values_that_are_not_finite_and_inputs_that_are_too_large(tmp_path: Path) -> None:
    _write_constant(tmp_path / "nan.onnx", np.array([[np.nan]], dtype=np.float32))
    assert not smoke_onnx(tmp_path / "nan.onnx", (CPU,)).is_finite
    assert main(["detect", "smoke", "--onnx-path", str(tmp_path / "nan.onnx"), "--providers", CPU]) == 2
    _write_constant(tmp_path / "huge.onnx", np.zeros((1, 1), np.float32), input_shape=(1, 3, 100_000, 100_000))
    with pytest.raises(SpecError, match="too large to try out"):
        smoke_onnx(tmp_path / "huge.onnx", (CPU,))


# --- the commands -----------------------------------------------------------------------------------------------------


def test_the_command_prints_a_table_or_the_record(
    request_for: Callable[..., EvaluationRequest], data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = request_for().onnx_path
    words = ["detect", "eval", "--onnx-path", str(model), "--data-root", str(data_root), "--imgsz", str(SIZE)]
    assert main([*words, "--providers", CPU, "--out", str(tmp_path / "m.json")]) == 0
    shown = capsys.readouterr().out
    assert "mAP_50_95" in shown
    assert "class i is the i-th category" in shown
    assert str(tmp_path / "m.json") in shown
    annotations, images = data_root / "annotations" / "instances_val2017.json", data_root / "val2017"
    files = ["--instances", str(annotations), "--images-dir", str(images)]
    assert main([*words[:4], *files, "--imgsz", str(SIZE), "--providers", CPU, "--json"]) == 0
    printed = msgspec.json.decode(capsys.readouterr().out, type=CocoMetrics)
    assert printed.mAP_50_95 == decode((tmp_path / "m.json").read_bytes(), CocoMetrics, "m").mAP_50_95


def test_bad_input_is_exit_code_2_with_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detect", "eval", "--onnx-path", "x.onnx", "--data-root", str(tmp_path / "none"), "--providers", CPU]) == 2
    assert "no annotation file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["detect", "eval", "--onnx-path", "x.onnx", "--warmup-runs", "-1"])


def test_the_doors_open_the_commands(tmp_path: Path) -> None:
    write_detector(tmp_path / "m.onnx")
    scripts = Path(__file__).resolve().parents[2] / "scripts" / "cv-models"
    argv = [sys.executable, str(scripts / "smoke_yolov10m_onnx.py"), "--onnx-path", str(tmp_path / "m.onnx"), "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert msgspec.json.decode(done.stdout, type=SmokeRecord).is_finite
