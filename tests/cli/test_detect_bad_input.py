"""Detector sweeps that cannot work: one message, the right exit code, and nothing written where the run would lie."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("brevitas")
pytest.importorskip("onnxruntime")
pytest.importorskip("PIL")

from cli.detector_world import DetectorWorld, detector_world, write_labels  # noqa: E402
from fewbits.api.detect_request import DetectRequest, prepare_detection  # noqa: E402
from fewbits.cli.main import main  # noqa: E402
from fewbits.core.errors import SpecError  # noqa: E402
from fewbits.store.artifacts import ArtifactCache  # noqa: E402
from quantizers.yolov10_samples import Sample, make, save, write_checkpoint  # noqa: E402


@pytest.fixture
def world(tmp_path: Path) -> Iterator[DetectorWorld]:
    with detector_world(tmp_path / "world") as made:
        yield made


@pytest.fixture
def refused(world: DetectorWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a sweep that must be refused before anything is written; return the message."""

    def run(*more: str, code: int = 2, schemes: str = "W8A8") -> str:
        out = tmp_path / "out"
        assert main(world.arguments(out, *more, schemes=schemes)) == code
        assert not out.exists()
        assert not list((world.root / "cache").rglob("*.onnx"))
        told = capsys.readouterr()
        assert told.out == ""
        assert told.err.count("fewbits detect: ") == 1
        return told.err

    return run


# --- weights ----------------------------------------------------------------------------------------------------------


def text_file(path: Path) -> None:
    path.write_text("no checkpoint")


def truncated(path: Path) -> None:
    write_checkpoint(path, Sample())
    path.write_bytes(path.read_bytes()[:20_000])


def classifier(path: Path) -> None:
    conv = torch.nn.Conv2d(3, 8, 3)
    save(path, {"model": make("ClassificationModel", {"nc": 3}, model=torch.nn.Sequential(conv))})


class Hostile:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.trace}'",)


def hostile(path: Path) -> None:
    save(path, {"model": Hostile(path.with_suffix(".ran"))})


@pytest.mark.parametrize("write", [text_file, truncated, classifier, hostile])
def test_weights_that_are_none_of_ours(refused: Callable[..., str], tmp_path: Path, write: Callable[[Path], None]) -> None:
    path = tmp_path / "other.pt"
    write(path)
    assert "other.pt" in refused("--weights", str(path))
    assert not path.with_suffix(".ran").exists()


def test_weights_that_are_not_there(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "there is no file" in refused("--weights", str(tmp_path / "none.pt"))
    assert "folder" in refused("--weights", str(tmp_path))


def test_packaged_weights_without_their_licence_accepted(refused: Callable[..., str]) -> None:
    message = refused("--weights", "yolov10n", code=3)
    assert "AGPL-3.0" in message
    assert "FEWBITS_ACCEPT_AGPL_WEIGHTS=1" in message


@pytest.mark.parametrize("names", [{0: "cat", 1: "dog"}, None])
def test_another_number_of_classes_than_labelled(refused: Callable[..., str], tmp_path: Path, names: Any) -> None:
    path = write_checkpoint(tmp_path / "two.pt", Sample(classes=2, names=names))
    assert "the model has 2 classes, but there are 3 categories" in refused("--weights", str(path))


def test_the_same_classes_in_another_order(refused: Callable[..., str], tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "mixed.pt", Sample(names={0: "dog", 1: "cat", 2: "bird"}))
    message = refused("--weights", str(path))
    assert "in another order" in message
    assert "--coco-yaml" not in message  # a flag of another command


def test_classes_of_other_names_are_noted_not_refused(world: DetectorWorld, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "named.pt", Sample(names={0: "cat", 1: "wolf", 2: "bird"}))
    assert main(world.arguments(tmp_path / "out", "--weights", str(path), schemes="FP32")) == 0
    assert "'wolf' as 'dog'" in (tmp_path / "out" / "notes.md").read_text()


# --- pictures and labels ----------------------------------------------------------------------------------------------


def test_a_data_set_that_is_not_there(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "no annotation file" in refused("--coco", str(tmp_path / "nowhere"))
    assert "instances_test2017.json" in refused("--split", "test")


@pytest.mark.parametrize(("split", "image"), [("val", 5), ("train", 4)])
def test_an_image_that_is_missing(refused: Callable[..., str], world: DetectorWorld, split: str, image: int) -> None:
    (world.coco / f"{split}2017" / f"{image}.png").unlink()
    assert f"the file of image {image} is missing" in refused()


def test_ids_that_repeat(refused: Callable[..., str], world: DetectorWorld) -> None:
    write_labels(world.annotations(), (3, 5, 3), [])
    assert "the id 3 of this image is used twice" in refused()


def test_annotations_that_are_none(refused: Callable[..., str], world: DetectorWorld) -> None:
    world.annotations().write_text("{")
    assert "instances_val2017.json" in refused()


@pytest.mark.parametrize(("listed", "said"), [("", "names no image"), ("4\n", "there is no image 4"), ("x\n", "no")])
def test_image_ids_that_cannot_be_used(refused: Callable[..., str], tmp_path: Path, listed: str, said: str) -> None:
    path = tmp_path / "ids.txt"
    path.write_text(listed)
    assert said in refused("--image-ids-list", str(path))


def test_no_limit_reaches_every_image(world: DetectorWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for limit, trials in (("0", 3), ("-1", 3), ("2", 2)):
        assert main(world.arguments(tmp_path / "o", "--max-images", limit, "--dry-run", "--json", schemes="FP32")) == 0
        assert json.loads(capsys.readouterr().out)["dry_run"]["matrix"]["trials_total"] == trials
    assert not (tmp_path / "o").exists()


# --- calibration ------------------------------------------------------------------------------------------------------


def test_calibration_lists_that_cannot_be_used(refused: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("# nothing\n")
    assert "names no image" in refused("--calib-list", str(path))
    path.write_text("none.png\n")
    assert "'none.png' is missing" in refused("--calib-list", str(path))
    assert "cannot read the list" in refused("--calib-list", str(tmp_path / "no.txt"))


def test_calibration_images_that_are_no_pictures(refused: Callable[..., str], world: DetectorWorld) -> None:
    for image in (2, 6):
        (world.coco / "train2017" / f"{image}.png").write_bytes(b"no picture %d" % image)
    message = refused()
    assert "2.png" in message
    assert "6.png" in message


def test_calibrating_on_what_is_evaluated(refused: Callable[..., str], world: DetectorWorld, tmp_path: Path) -> None:
    message = refused("--calib-split", "val")
    assert "3 calibration images are evaluated too (3.png, 5.png, 9.png)" in message
    assert "--allow-overlap" in message
    # a copy under another name is the same picture
    copy = tmp_path / "innocent.png"
    copy.write_bytes((world.coco / "val2017" / "5.png").read_bytes())
    (tmp_path / "list.txt").write_text("innocent.png\n")
    assert "1 calibration images are evaluated too (innocent.png)" in refused("--calib-list", str(tmp_path / "list.txt"))


def test_overlap_is_measured_where_it_is_asked_for_and_noted(world: DetectorWorld, tmp_path: Path) -> None:
    prepared = prepare_detection(_request(world, tmp_path, calibration_split="val", allow_overlap=True))
    assert prepared.calibration is not None
    assert any("calibration images are evaluated too" in note for note in prepared.notes)


def test_the_float_model_alone_needs_no_calibration(world: DetectorWorld, tmp_path: Path) -> None:
    world.annotations("train").unlink()
    assert prepare_detection(_request(world, tmp_path, schemes=("FP32",))).calibration is None


# --- settings ---------------------------------------------------------------------------------------------------------


def test_all_problems_of_all_schemes_at_once(refused: Callable[..., str]) -> None:
    message = refused("--qat", "--qat-mode", "W5A9", schemes="W9A8,W4A8-naive+gptq+learned,W8A8")
    assert message.startswith("fewbits detect: 5 problems:")
    assert "'W9A8' is no detector scheme" in message
    assert "gptq and learned both round the weights" in message
    assert "--qat-mode: 'W5A9-qat' is no detector scheme" in message


def test_all_settings_that_make_no_sense_at_once(refused: Callable[..., str]) -> None:
    message = refused("--imgsz", "5000", "--conf", "1.5", "--iou", "0", "--max-det", "10001")
    assert message.startswith("fewbits detect: 4 problems:")


def test_a_size_that_cells_do_not_divide(refused: Callable[..., str]) -> None:
    assert "65 pixels cannot be divided into cells of 32" in refused("--imgsz", "65")


def test_providers_that_are_not_here(refused: Callable[..., str]) -> None:
    assert "none of the providers Nobodys" in refused("--providers", "NobodysExecutionProvider", code=3)


def test_a_disk_that_is_full(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ArtifactCache, "free_bytes", lambda _self: 1000)
    message = refused()
    assert "not enough disk space to make FP32, W8A8 of " in message
    assert "FEWBITS_CACHE" in message


def test_a_full_disk_does_not_matter_to_what_is_made(
    world: DetectorWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(world.arguments(tmp_path / "one", schemes="FP32")) == 0
    monkeypatch.setattr(ArtifactCache, "free_bytes", lambda _self: 0)
    assert main(world.arguments(tmp_path / "two", schemes="FP32")) == 0


def test_modes_without_a_ladder(world: DetectorWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for mode in ("W4A8-naive", "W4A8-qat", "FP32", "W9A8"):
        assert main(world.arguments(tmp_path / "out", "--mode", mode, action="ablation")) == 2
        assert "--mode" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_single_files_that_are_none(world: DetectorWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detect", "census", str(world.weights)]) == 2
    assert "tiny.pt" in capsys.readouterr().err
    assert main(["detect", "summary", "--run-root", str(tmp_path / "none")]) == 2
    assert "there is no folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("mode", "tag"), [("w4a8", "W4A8-qat"), ("W4A8-QAT", "W4A8-qat"), ("w3A8-mixed4.5", "W3A8-mixed4.5-qat")]
)
def test_what_is_trained_may_be_written_in_any_case(mode: str, tag: str) -> None:
    request = DetectRequest(weights="x", coco=Path(), out_dir=Path(), schemes=("w8a8", "fp32", "W8A8"), qat=True, qat_mode=mode)
    assert request.tags == ("FP32", "W8A8", tag)


def test_problems_of_tags_say_which_flag(tmp_path: Path) -> None:
    request = DetectRequest(weights="x", coco=Path(), out_dir=Path(), schemes=("w1a8",), qat=True, qat_mode="w4a9")
    with pytest.raises(SpecError) as caught:
        _ = request.tags
    assert [problem.path for problem in caught.value.problems] == ["--schemes", "--qat-mode"]


def _request(world: DetectorWorld, out: Path, **changes: Any) -> DetectRequest:
    settings: dict[str, Any] = {"schemes": ("W8A8",), "image_size": 64, "settings": {"canary_runs": "0"}} | changes
    return DetectRequest(weights=str(world.weights), coco=world.coco, out_dir=out / "out", **settings)
