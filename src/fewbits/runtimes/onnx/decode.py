"""From a detector's raw output to boxes, scores and classes. Pure numpy.

Three forms are known: decoded boxes with class scores (`float[4 + classes, points]`, either axis first), boxes whose edges are
distributions over 16 bins (`float[64 + classes, points]`), and finished detections (`float[detections, 6]`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

BINS = 16
"""Bins of a box edge's distribution. Source: Generalized Focal Loss (arXiv 2006.04388), with the detector family's usual 16."""
STRIDES = (8, 16, 32)
_CORNERS = 4
_FINISHED_COLUMNS = 6
_PROBABILITY_SLACK = 0.01
"""How far outside of 0..1 a probability may lie: half precision and 8-bit outputs round by less, logits lie far outside."""


class Scores(StrEnum):
    """What a graph's class scores are."""

    PROBABILITIES = "probabilities"
    LOGITS = "logits"


class Head(StrEnum):
    """Whether several points may report one object."""

    ONE_TO_ONE = "one-to-one"
    ONE_TO_MANY = "one-to-many"


class OutputFormError(ValueError):
    """The output is of no known form: another architecture, or another number of classes."""


@dataclass(frozen=True, slots=True)
class DecodeSettings:
    """How raw outputs are read. `scores` is settled once per graph, never per image."""

    classes: int
    image_size: int
    confidence: float
    iou: float
    max_detections: int
    pre_nms_limit: int
    head: Head


@dataclass(frozen=True, slots=True)
class Boxes:
    """Detections, best first: `corners` float64[n, 4] (x1, y1, x2, y2 in input pixels), `scores` float64[n], `classes` int[n]."""

    corners: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]
    classes: npt.NDArray[np.intp]


def looks_like_logits(raw: Floats, settings: DecodeSettings) -> bool:
    """Tell whether class scores lie outside of 0..1 by more than rounding, which no probability does."""
    scores = _class_scores(raw, settings)
    return bool(scores.size) and bool((scores.min() < -_PROBABILITY_SLACK) | (scores.max() > 1 + _PROBABILITY_SLACK))


def decode(raw: Floats, scores: Scores, settings: DecodeSettings) -> Boxes:
    """Read one image's raw output (`float[1, ...]`, computed on as float32). Raises `OutputFormError` for another form, and
    `ValueError` for values that are not finite or no probabilities.
    """
    output = _single(raw)
    if not np.isfinite(output).all():
        msg = "the output holds values that are not finite"
        raise ValueError(msg)
    if scores is Scores.PROBABILITIES and looks_like_logits(raw, settings):
        msg = "class scores lie outside of 0..1, so they are no probabilities"
        raise ValueError(msg)
    if _is_finished(raw, settings):
        found = _finished(output, scores, settings)
    else:
        by_point = _by_point(output, settings)
        corners, probabilities = _split(by_point, scores, settings)
        found = _best_points(corners, probabilities, settings)
    return found


def _single(raw: Floats) -> Floats:
    output = raw[0] if raw.ndim == 3 and raw.shape[0] == 1 else raw
    if output.ndim != 2:
        msg = f"an output of shape {tuple(raw.shape)} is none of a detector's"
        raise OutputFormError(msg)
    return output.astype(np.float32, copy=False)


def _is_finished(raw: Floats, settings: DecodeSettings) -> bool:
    """Tell whether rows of six values are finished detections. With two classes a point has six values too: then only rows
    behind a batch axis are, since decoded points come with the values first there.
    """
    rows, columns = raw.shape[-2:]
    widths = _widths(settings)
    return columns == _FINISHED_COLUMNS and rows not in widths and (raw.ndim == 3 or columns not in widths)


def _widths(settings: DecodeSettings) -> tuple[int, int]:
    return (_CORNERS + settings.classes, _CORNERS * BINS + settings.classes)


def _by_point(output: Floats, settings: DecodeSettings) -> Floats:
    """Return the output with one row per point."""
    widths = _widths(settings)
    if output.shape[0] in widths:
        return output.T
    if output.shape[1] in widths:
        return output
    wanted = " or ".join(str(width) for width in widths)
    msg = f"an output of shape {output.shape} has no axis of {wanted} values, as {settings.classes} classes need: another head?"
    raise OutputFormError(msg)


def _class_scores(raw: Floats, settings: DecodeSettings) -> Floats:
    output = _single(raw)
    if _is_finished(raw, settings):
        return output[:, 4]
    return _by_point(output, settings)[:, -settings.classes :]


def _finished(output: Floats, scores: Scores, settings: DecodeSettings) -> Boxes:
    found = _probabilities(output[:, 4], scores)
    places = np.flatnonzero(found >= settings.confidence)
    kept = places[np.argsort(-found[places], kind="stable")][: settings.max_detections]
    classes = np.rint(output[kept, 5]).astype(np.intp)
    if (unknown := classes[(classes < 0) | (classes >= settings.classes)]).size:
        msg = f"a detection is of class {unknown[0]}, but there are {settings.classes}"
        raise ValueError(msg)
    return Boxes(output[kept, :4].astype(np.float64), found[kept].astype(np.float64), classes)


def _split(by_point: Floats, scores: Scores, settings: DecodeSettings) -> tuple[Floats, Floats]:
    """Return corners float[points, 4] and probabilities float[points, classes]."""
    probabilities = _probabilities(by_point[:, -settings.classes :], scores)
    boxes = by_point[:, : -settings.classes]
    if boxes.shape[1] == _CORNERS:
        centre, size = boxes[:, :2], boxes[:, 2:]
        return np.concatenate([centre - size / 2, centre + size / 2], axis=1), probabilities
    return _from_distributions(boxes, settings.image_size), probabilities


def _probabilities(values: Floats, scores: Scores) -> Floats:
    if scores is Scores.PROBABILITIES:
        return np.minimum(values, np.float32(1))
    # clipped where the exponential would overflow: the probability is 0 or 1 there to the last bit
    found: Floats = (1 / (1 + np.exp(-np.clip(values, -80, 80)))).astype(np.float32)
    return found


def _from_distributions(boxes: Floats, image_size: int) -> Floats:
    """Turn four distributions over bins per point into corners: the expected distances from the point's centre, in cells."""
    centres, strides = cell_centres(image_size)
    if len(centres) != len(boxes):
        msg = f"{len(boxes)} points do not belong to images of {image_size} pixels, which have {len(centres)}"
        raise OutputFormError(msg)
    logits = boxes.reshape(-1, _CORNERS, BINS)
    weights = np.exp(logits - logits.max(axis=2, keepdims=True))
    distances = (weights * np.arange(BINS)).sum(axis=2) / weights.sum(axis=2)
    corners: Floats = np.concatenate([centres - distances[:, :2], centres + distances[:, 2:]], axis=1) * strides[:, None]
    return corners


def cell_centres(image_size: int) -> tuple[Floats, Floats]:
    """Return each cell's centre in units of its stride (float[points, 2]) and the strides (float[points]), finest level first."""
    centres, strides = [], []
    for stride in STRIDES:
        steps = np.arange(image_size // stride, dtype=np.float32) + np.float32(0.5)
        y, x = np.meshgrid(steps, steps, indexing="ij")
        centres.append(np.stack([x.ravel(), y.ravel()], axis=1))
        strides.append(np.full(steps.size**2, stride, dtype=np.float32))
    return np.concatenate(centres), np.concatenate(strides)


def _best_points(corners: Floats, probabilities: Floats, settings: DecodeSettings) -> Boxes:
    limit = settings.pre_nms_limit if settings.head is Head.ONE_TO_MANY else settings.max_detections
    flat = probabilities.ravel()
    candidates = np.flatnonzero(flat >= settings.confidence)
    order = candidates[np.argsort(-flat[candidates], kind="stable")][:limit]
    points, classes = np.divmod(order, settings.classes)
    boxes = corners[points].astype(np.float64)
    found = Boxes(boxes, flat[order].astype(np.float64), classes)
    if settings.head is Head.ONE_TO_ONE:
        return found
    kept = suppressed(found, settings.iou, settings.max_detections)
    return Boxes(boxes[kept], found.scores[kept], classes[kept])


def suppressed(boxes: Boxes, iou: float, limit: int) -> npt.NDArray[np.intp]:
    """Return the places of the boxes that greedy non-maximum suppression keeps, within each class, at most `limit`."""
    corners, classes = boxes.corners, boxes.classes
    areas = np.prod(np.maximum(corners[:, 2:] - corners[:, :2], 0), axis=1)
    left = np.arange(len(corners))
    kept: list[int] = []
    while left.size and len(kept) < limit:
        best, rest = int(left[0]), left[1:]
        kept.append(best)
        sides = np.minimum(corners[best, 2:], corners[rest, 2:]) - np.maximum(corners[best, :2], corners[rest, :2])
        shared = np.prod(np.maximum(sides, 0), axis=1)
        union = areas[best] + areas[rest] - shared
        left = rest[(shared <= iou * np.maximum(union, 1e-12)) | (classes[rest] != classes[best])]
    return np.array(kept, dtype=np.intp)
