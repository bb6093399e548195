"""The packaged YOLOv10-n: what its file holds, and what it finds in real images."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from fewbits.core.errors import FewbitsError  # noqa: E402
from fewbits.quantizers.brevitas.checkpoint import DetectorCheckpoint, read_checkpoint  # noqa: E402
from fewbits.quantizers.brevitas.weights import resolve_weights  # noqa: E402
from fewbits.quantizers.brevitas.yolov10 import Head, build_yolov10, convolutions, fold_batch_norms  # noqa: E402
from fewbits.store.artifacts import ArtifactCache  # noqa: E402

COCO = Path(__file__).resolve().parents[3] / "shared" / "data" / "coco-mini"
SIDE = 640


@pytest.fixture(scope="module")
def real() -> DetectorCheckpoint:
    try:
        path = resolve_weights("yolov10n", ArtifactCache(), lambda _: None)
    except FewbitsError as error:
        pytest.skip(f"the packaged YOLOv10-n cannot be had here: {error}")
    return read_checkpoint(path)


def test_what_the_file_holds(real: DetectorCheckpoint) -> None:
    assert real.sha256 == "55e1563d55db0a2bf89446d30131f0462c23a56c87b9c73a64c2f73cb5959365"
    assert real.names == tuple(str(number) for number in range(80))
    assert real.strides == (8, 16, 32)


@pytest.mark.parametrize("head", list(Head))
def test_folding_the_real_detector(real: DetectorCheckpoint, head: Head) -> None:
    model = build_yolov10(real, head)
    images = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = model(images)
        fold_batch_norms(model)
        after = model(images)
    assert before.shape == (1, 84, 8400)
    # boxes are pixels of 640, where float32 itself is no finer than 6e-5
    assert torch.allclose(before[:, :4], after[:, :4], rtol=1e-4, atol=1e-2)
    assert torch.allclose(before[:, 4:], after[:, 4:], atol=1e-4)
    found = convolutions(model)
    assert len(found) == 83
    assert sum(conv.weight.numel() for conv in found.values()) == 2_290_288


def letterboxed(path: Path) -> tuple[Any, tuple[float, int, int]]:
    """Return the image as the model takes it, and how it was scaled (factor, left, top)."""
    import numpy as np
    from PIL import Image

    image = Image.open(path).convert("RGB")
    factor = min(SIDE / image.height, SIDE / image.width)
    size = (round(image.width * factor), round(image.height * factor))
    image = image if size == image.size else image.resize(size, Image.Resampling.BILINEAR)
    left, top = (SIDE - size[0]) // 2, (SIDE - size[1]) // 2
    canvas = np.full((SIDE, SIDE, 3), 114, np.uint8)
    canvas[top : top + size[1], left : left + size[0]] = np.asarray(image)
    return torch.from_numpy(canvas).permute(2, 0, 1)[None].float() / 255, (factor, left, top)


def detections(model: Any, path: Path, categories: list[int]) -> list[dict[str, Any]]:
    images, (factor, left, top) = letterboxed(path)
    with torch.no_grad():
        found = model(images)[0]
    scores, places = found[4:].flatten().topk(300)
    x, y, width, height = (found[:4, places % found.shape[1]] / factor).tolist()
    return [
        {
            "image_id": int(path.stem),
            "category_id": categories[place],
            "bbox": [x[i] - width[i] / 2 - left / factor, y[i] - height[i] / 2 - top / factor, width[i], height[i]],
            "score": score,
        }
        for i, (place, score) in enumerate(zip((places // found.shape[1]).tolist(), scores.tolist(), strict=True))
    ]


@pytest.mark.slow
@pytest.mark.skipif(not COCO.is_dir(), reason="no COCO images on this machine: shared/data/coco-mini is not there")
def test_it_finds_what_is_in_real_images(real: DetectorCheckpoint) -> None:
    pytest.importorskip("PIL")
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    model = build_yolov10(real)
    fold_batch_norms(model)
    annotations = COCO / "annotations" / "instances_val2017.json"
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO(str(annotations))
        categories = sorted(truth.getCatIds())
        names = {image["file_name"] for image in json.loads(annotations.read_text())["images"]}
        paths = sorted(path for path in (COCO / "val2017").iterdir() if path.name in names)
        found = [item for path in paths for item in detections(model, path, categories)]
        judged = evaluation.COCOeval(truth, truth.loadRes(found), "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    assert len(paths) == 80
    assert judged.stats[0] == pytest.approx(0.408, abs=0.005)
