"""Detectors: what the lab's child process adds to a bare call of ONNX Runtime, and what metrics with intervals cost.

Calls alternate on one exported model, so that noise hits both alike. Metrics are computed on seeded detections of 80 images,
beside pycocotools' one pass without intervals.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.result import Result, judged, notice, quartiles
from fewbits.analysis.detection_matching import match_detections
from fewbits.analysis.detection_metrics import RESAMPLES, detection_metrics
from fewbits.quantizers.brevitas.export import INPUT_NAME
from fewbits.quantizers.brevitas.quantizer import BrevitasQuantizer, DetectorBuild
from fewbits.quantizers.brevitas.yolov10 import Head
from fewbits.quantizers.onnx.agreement import open_session
from fewbits.records.detection import Category, Detection, Detections, LabelledImage, LabelledObject
from fewbits.records.plan import Controls
from fewbits.records.runtime import GenerateRequest
from fewbits.runtimes.onnx.runtime import DetectorOptions
from fewbits.runtimes.registry import create_runtime
from fewbits.sensitivity.detector_bits import choose_layer_bits
from fewbits.spec.detector_schemes import FLOAT_TAG
from fewbits.store.artifacts import ArtifactCache

PAIRS = 24
CLASSES = 80
IMAGES = 80
SIZE = 640
MAX_EXTRA_PERCENT = 5.0
MAX_METRIC_RATIO = 20.0
_TIMEOUT_SECONDS = 120.0
_OBJECTS, _REPORTED = 7, 100


def measure() -> list[Result]:
    """Both claims. Raises `PrerequisiteError` without the extra, or where the packaged weights' licence was not accepted."""
    return [_call_overhead(), _metric_cost()]


def _call_overhead() -> Result:
    """Compare the child's own time for one picture with a bare session's, alternating."""
    with tempfile.TemporaryDirectory(prefix="fewbits-bench-") as folder:
        grey = _grey_picture(Path(folder))
        build = DetectorBuild(Head.ONE_TO_ONE, SIZE, None, (), (grey,))
        quantizer = BrevitasQuantizer(ArtifactCache(), build, choose_layer_bits)
        variant = quantizer.ensure(quantizer.locate("yolov10n"), FLOAT_TAG, notice)
        options = DetectorOptions(image_folder=Path(folder), category_ids=tuple(range(CLASSES)), image_size=SIZE)
        threads = 2
        session = create_runtime("onnx", detector=options).open(variant, Controls(threads=threads), _TIMEOUT_SECONDS)
        try:
            bare = open_session(Path(str(variant.path)), threads)
            inside, outside = _alternate(session, bare)
        finally:
            session.close()
    extra = [(there / here - 1) * 100 for there, here in zip(inside, outside, strict=True)]
    low, high = quartiles(extra)
    note = f"decoding included; quartiles {low:.1f} to {high:.1f} %, one call takes {statistics.median(outside) * 1000:.0f} ms"
    name = "detection: the lab's call over a bare call of ONNX Runtime"
    return judged(name, statistics.median(extra), MAX_EXTRA_PERCENT, "%", note)


def _grey_picture(folder: Path) -> Path:
    from PIL import Image

    path = folder / "grey.png"
    Image.new("RGB", (SIZE, SIZE), (114, 114, 114)).save(path)
    return path


def _alternate(session: Any, bare: Any) -> tuple[list[float], list[float]]:
    """Return the seconds of both calls, pair by pair, each first as often as the other. The picture is plain grey."""
    request = GenerateRequest(prompt="", seed=0, temperature=0.0, max_tokens=1)
    picture = {INPUT_NAME: np.full((1, 3, SIZE, SIZE), 114 / 255, dtype=np.float32)}

    def through_the_lab() -> float:
        return float(session.generate(request, _TIMEOUT_SECONDS).wall_seconds)

    def directly() -> float:
        began = time.perf_counter()
        bare.run(None, picture)
        return time.perf_counter() - began

    inside, outside = [], []
    through_the_lab()
    directly()
    for pair in range(PAIRS):
        if pair % 2:
            outside.append(directly())
            inside.append(through_the_lab())
        else:
            inside.append(through_the_lab())
            outside.append(directly())
    return inside, outside


def _metric_cost() -> Result:
    """Compare metrics with 1,000 paired resamples with one evaluation of pycocotools."""
    categories = tuple(Category(category_id=number, name=str(number)) for number in range(1, 11))
    images, found = _labelled_images()
    began = time.perf_counter()
    matches = match_detections(images, categories, found)
    detection_metrics(matches, categories, reference=matches)
    ours = time.perf_counter() - began
    began = time.perf_counter()
    _official(images, categories, found)
    theirs = time.perf_counter() - began
    note = f"{ours:.2f} s against {theirs:.2f} s; {IMAGES} images, {_REPORTED} detections each, paired with a reference"
    name = f"detection: metrics with {RESAMPLES} resamples over one pass of pycocotools"
    return judged(name, ours / theirs, MAX_METRIC_RATIO, "x", note)


def _labelled_images() -> tuple[list[LabelledImage], dict[int, Detections]]:
    rng = np.random.default_rng(0)
    images, found = [], {}
    for image_id in range(1, IMAGES + 1):
        boxes = rng.random((_OBJECTS, 4)) * [400, 300, 200, 150] + [0, 0, 20, 20]
        classes = rng.integers(1, 11, _OBJECTS)
        objects = tuple(
            LabelledObject(
                category_id=int(kind), bbox=(float(b[0]), float(b[1]), float(b[2]), float(b[3])), area=float(b[2] * b[3])
            )
            for kind, b in zip(classes, boxes, strict=True)
        )
        near = boxes + rng.normal(0, 5, boxes.shape)
        far = rng.random((_REPORTED - _OBJECTS, 4)) * [400, 300, 200, 150] + [0, 0, 20, 20]
        kinds = [*classes, *rng.integers(1, 11, _REPORTED - _OBJECTS)]
        scores = sorted(rng.random(_REPORTED), reverse=True)
        detections = tuple(
            Detection(
                category_id=int(kind), score=float(score), x=float(b[0]), y=float(b[1]), width=float(b[2]), height=float(b[3])
            )
            for kind, score, b in zip(kinds, scores, np.concatenate([near, far]), strict=True)
        )
        images.append(LabelledImage(image_id=image_id, file_name=f"{image_id}.jpg", width=640, height=480, objects=objects))
        found[image_id] = Detections(width=640, height=480, detections=detections)
    return images, found


def _official(images: list[LabelledImage], categories: tuple[Category, ...], found: dict[int, Detections]) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO()
    truth.dataset = {
        "images": [{"id": image.image_id} for image in images],
        "categories": [{"id": category.category_id} for category in categories],
        "annotations": [
            {
                "id": number,
                "image_id": image_id,
                "category_id": one.category_id,
                "bbox": list(one.bbox),
                "area": one.area,
                "iscrowd": 0,
            }
            for number, (image_id, one) in enumerate(((image.image_id, o) for image in images for o in image.objects), 1)
        ],
    }
    rows = [
        {"image_id": image_id, "category_id": d.category_id, "bbox": [d.x, d.y, d.width, d.height], "score": d.score}
        for image_id, reported in found.items()
        for d in reported.detections
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(rows), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
