"""Which detections match which labelled objects, exactly as COCO's evaluation decides it. Pure.

Source: Lin et al. (2014), Microsoft COCO: Common Objects in Context, and the evaluation published with it (`COCOeval`, bbox);
the tests hold every number against pycocotools.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from fewbits.records.detection import IOU_THRESHOLDS, Category, Detection, Detections, LabelledImage, LabelledObject

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.intp]
_Item = TypeVar("_Item", Detection, LabelledObject)

THRESHOLDS: Floats = np.linspace(IOU_THRESHOLDS[0], IOU_THRESHOLDS[-1], len(IOU_THRESHOLDS))
"""`IOU_THRESHOLDS` to the last bit of what COCO's evaluation compares with: its 0.9 is a little less than the decimal one."""
MAX_DETECTIONS = 100
"""Best detections per image and class that count."""
AREA_NAMES = ("all", "small", "medium", "large")
AREA_LIMITS: Floats = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]], dtype=np.float64)
"""Square pixels, both ends included."""


@dataclass(frozen=True, slots=True)
class ClassMatches:
    """What became of the detections of one class, best score first over all images (ties: by image, then as reported).

    Axes: areas as in `AREA_NAMES`, overlaps as in `THRESHOLDS`.
    """

    images: Numbers
    """int[detections]: the index of each detection's image."""
    hits: Mask
    """bool[areas, overlaps, detections]: it matches an object that counts."""
    counted: Mask
    """bool[areas, overlaps, detections]: it is a hit or a false alarm, not one of those that count neither way."""
    objects: Numbers
    """int[areas, images]: labelled objects that count."""


@dataclass(frozen=True, slots=True)
class Matches:
    """All matches of one variant on one set of images."""

    image_ids: tuple[int, ...]
    """Ascending; the index of an image is its place here."""
    classes: Mapping[int, ClassMatches]
    """By category id: those with a labelled object or a detection."""
    detections: int
    """All that were reported, of unknown categories and beyond the first 100 too."""


@dataclass(frozen=True, slots=True)
class _Part:
    """Detections of one class in one image, best first."""

    image: int
    scores: Floats
    hits: Mask
    counted: Mask


def match_detections(
    images: Sequence[LabelledImage], categories: Sequence[Category], detections: Mapping[int, Detections]
) -> Matches:
    """Match what a variant reported (by image id) with the labels. An image without an entry counts as without detections.

    Detections of categories that are not listed are only counted. Raises `ValueError` when an image id repeats, or when there
    are detections for an image that is not in `images`.
    """
    ordered = sorted(images, key=lambda image: image.image_id)
    image_ids = tuple(image.image_id for image in ordered)
    if len(set(image_ids)) != len(image_ids) or not detections.keys() <= set(image_ids):
        msg = "image ids must be unique, and detections must be of these images"
        raise ValueError(msg)
    known = {category.category_id for category in categories}
    parts: dict[int, list[_Part]] = {}
    objects: dict[int, Numbers] = {}
    for index, image in enumerate(ordered):
        found = detections[image.image_id].detections if image.image_id in detections else ()
        labels = _by_category(image.objects)
        reported = _by_category(found)
        for category_id in sorted((labels.keys() | reported.keys()) & known):
            part, counting = _match_class(index, labels.get(category_id, []), reported.get(category_id, []))
            parts.setdefault(category_id, []).append(part)
            objects.setdefault(category_id, np.zeros((len(AREA_NAMES), len(ordered)), dtype=np.intp))[:, index] = counting
    classes = {category_id: _joined(parts[category_id], objects[category_id]) for category_id in sorted(parts)}
    return Matches(image_ids, classes, sum(len(found.detections) for found in detections.values()))


def _by_category(items: Sequence[_Item]) -> dict[int, list[_Item]]:
    grouped: dict[int, list[_Item]] = {}
    for item in items:
        grouped.setdefault(item.category_id, []).append(item)
    return grouped


def _match_class(index: int, labels: Sequence[LabelledObject], reported: Sequence[Detection]) -> tuple[_Part, Numbers]:
    """Match one class in one image; also return int[areas], the objects that count."""
    scores = np.array([detection.score for detection in reported], dtype=np.float64)
    order = np.argsort(-scores, kind="stable")[:MAX_DETECTIONS]
    boxes = detection_boxes(reported)[order]
    hits = on_ignored = np.zeros((len(AREA_NAMES), len(THRESHOLDS), len(order)), dtype=bool)
    objects = np.zeros(len(AREA_NAMES), dtype=np.intp)
    if labels:
        crowd = np.array([label.crowd for label in labels], dtype=bool)
        ignored = crowd | _outside(np.array([label.area for label in labels], dtype=np.float64))
        hits, on_ignored = match_boxes(box_overlaps(boxes, object_boxes(labels), crowd), crowd, ignored)
        objects = (~ignored).sum(axis=1)
    with np.errstate(over="ignore"):
        outside = _outside(boxes[:, 2] * boxes[:, 3])
    counted = hits | ~(on_ignored | outside[:, None, :])
    return _Part(index, scores[order], hits, counted), objects


def object_boxes(labels: Sequence[LabelledObject]) -> Floats:
    """Return float64[objects, 4]: x, y, width, height."""
    return np.array([label.bbox for label in labels], dtype=np.float64).reshape(-1, 4)


def detection_boxes(detections: Sequence[Detection]) -> Floats:
    """Return float64[detections, 4]: x, y, width, height."""
    rows = [(detection.x, detection.y, detection.width, detection.height) for detection in detections]
    return np.array(rows, dtype=np.float64).reshape(-1, 4)


def _outside(areas: Floats) -> Mask:
    """Return bool[areas, n]: which of `areas` (float64[n], square pixels) lie outside each size class."""
    return (areas < AREA_LIMITS[:, :1]) | (areas > AREA_LIMITS[:, 1:])


def box_overlaps(detected: Floats, labelled: Floats, crowd: Mask) -> Floats:
    """Return float64[detections, objects], 0..1: intersection over union, for crowds over the detection's own area.

    Boxes are float64[n, 4]: x, y, width, height.
    """
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        start = np.maximum(detected[:, None, :2], labelled[None, :, :2])
        end = np.minimum((detected[:, :2] + detected[:, 2:])[:, None], (labelled[:, :2] + labelled[:, 2:])[None])
        sides = end - start
        shared = sides[:, :, 0] * sides[:, :, 1]
        own = (detected[:, 2] * detected[:, 3])[:, None]
        union = np.where(crowd, own, own + labelled[:, 2] * labelled[:, 3] - shared)
        return np.where((sides > 0).all(axis=2), shared / union, 0.0)


def match_boxes(overlaps: Floats, crowd: Mask, ignored: Mask) -> tuple[Mask, Mask]:
    """Match detections (rows of `overlaps`, best score first) greedily with objects: bool[areas, overlaps, detections] twice.

    First: matches an object that counts. Second: matches only an ignored one. Each detection takes the free object that it
    overlaps most (the last one of equals), counted objects before ignored ones. An object is taken once, a crowd any number of
    times. `crowd` bool[objects]; `ignored` bool[areas, objects] says which do not count, crowds among them.
    """
    shape = (len(ignored), len(THRESHOLDS), len(overlaps))
    hits, on_ignored = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    # reversed, so that the first of equal overlaps is the last object
    overlaps, crowd, counting = overlaps[:, ::-1], crowd[::-1], ~ignored[:, None, ::-1]
    taken = np.zeros((*shape[:2], overlaps.shape[1]), dtype=bool)
    area, level = np.ix_(np.arange(shape[0]), np.arange(shape[1]))
    # most detections of a long list touch nothing, and need no look
    for row in np.flatnonzero((overlaps >= THRESHOLDS[0]).any(axis=1)):
        fits = (overlaps[row] >= THRESHOLDS[:, None]) & ~taken
        fits_counting = fits & counting
        is_hit = fits_counting.any(axis=2)
        candidates = np.where(is_hit[:, :, None], fits_counting, fits)
        best = np.where(candidates, overlaps[row], -1.0).argmax(axis=2)
        is_match = candidates.any(axis=2)
        hits[:, :, row] = is_hit
        on_ignored[:, :, row] = is_match & ~is_hit
        taken[area, level, best] |= is_match & ~crowd[best]
    return hits, on_ignored


def _joined(parts: Sequence[_Part], objects: Numbers) -> ClassMatches:
    """Put the detections of all images into one order by score."""
    order = np.argsort(-np.concatenate([part.scores for part in parts]), kind="stable")
    images = np.concatenate([np.full(len(part.scores), part.image, dtype=np.intp) for part in parts])
    hits = np.concatenate([part.hits for part in parts], axis=2)
    counted = np.concatenate([part.counted for part in parts], axis=2)
    return ClassMatches(images[order], hits[:, :, order], counted[:, :, order], objects)
