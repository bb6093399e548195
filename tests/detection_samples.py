"""Detections made from labels (seeded), and the numbers that pycocotools gives them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fewbits.records.detection import Category, Detection, Detections, LabelledImage, LabelledObject


def detection(category_id: int, score: float, x: float, y: float, width: float, height: float) -> Detection:
    return Detection(category_id=category_id, score=score, x=x, y=y, width=width, height=height)


def found(image: LabelledImage, detections: Sequence[Detection]) -> Detections:
    best_first = tuple(sorted(detections, key=lambda one: -one.score))
    return Detections(width=image.width, height=image.height, detections=best_first)


def labelled(image_id: int, objects: Sequence[LabelledObject], width: int = 640, height: int = 480) -> LabelledImage:
    name = f"{image_id:012d}.jpg"
    return LabelledImage(image_id=image_id, file_name=name, width=width, height=height, objects=tuple(objects))


def thing(category_id: int, x: float, y: float, width: float, height: float, **changes: Any) -> LabelledObject:
    fields = {"area": width * height, "crowd": False} | changes
    return LabelledObject(category_id=category_id, bbox=(x, y, width, height), **fields)


def classes(*category_ids: int) -> tuple[Category, ...]:
    return tuple(Category(category_id=number, name=f"class {number}") for number in category_ids)


def detect(
    images: Sequence[LabelledImage], categories: Sequence[Category], seed: int, *, noise: float = 0.08, per_image: int = 40
) -> dict[int, Detections]:
    """Find most objects, shifted by `noise` of their size and sometimes twice, and fill up with false alarms."""
    rng = np.random.default_rng(seed)
    ids = [category.category_id for category in categories]
    reported = {}
    for image in images:
        made = []
        for one in image.objects:
            for _ in range(rng.choice([0, 1, 1, 1, 2])):
                x, y, width, height = one.bbox
                shift = rng.normal(0, noise, 4)
                box = (x + shift[0] * width, y + shift[1] * height, width * np.exp(shift[2]), height * np.exp(shift[3]))
                category_id = one.category_id if rng.random() < 0.9 else int(rng.choice(ids))
                made.append(detection(category_id, float(rng.beta(4, 2)), *(float(side) for side in box)))
        while len(made) < per_image:
            corner, size = rng.random(2) * [image.width, image.height], rng.random(2) * 200
            made.append(detection(int(rng.choice(ids)), float(rng.beta(1, 6)), *map(float, (*corner, *size))))
        reported[image.image_id] = found(image, made)
    return reported


def official(
    images: Sequence[LabelledImage], categories: Sequence[Category], detections: Mapping[int, Detections]
) -> tuple[Any, Any]:
    """Return pycocotools' six average precisions (-1 where none exists) and its precision array, of at least one detection."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, results = COCO(), COCO()
    objects = [(image.image_id, one) for image in images for one in image.objects]
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
                "iscrowd": int(one.crowd),
            }
            for number, (image_id, one) in enumerate(objects, start=1)
        ],
    }
    results.dataset = truth.dataset | {"annotations": _result_rows(detections)}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        results.createIndex()
        evaluation = COCOeval(truth, results, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[:6], evaluation.eval["precision"]


def _result_rows(detections: Mapping[int, Detections]) -> list[dict[str, Any]]:
    rows = [(image_id, one) for image_id in detections for one in detections[image_id].detections]
    return [
        {
            "id": number,
            "image_id": image_id,
            "category_id": one.category_id,
            "bbox": [one.x, one.y, one.width, one.height],
            "area": one.width * one.height,
            "score": one.score,
            "iscrowd": 0,
        }
        for number, (image_id, one) in enumerate(rows, start=1)
    ]
