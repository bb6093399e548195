"""How well one answer finds the objects of one image: R-precision at each of COCO's overlaps. The answer is hostile."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from fewbits.analysis.detection_matching import Mask, box_overlaps, detection_boxes, match_boxes, object_boxes
from fewbits.records.detection import DETECTIONS_SCHEMA, IOU_THRESHOLDS, Detection, Detections
from fewbits.records.task import CheckResult, DetectionCheck
from fewbits.workloads.text.checks import check_count, check_kind, shorten

ANSWER_BYTES_LIMIT = 2_000_000
MAX_DETECTIONS = 10_000
_SHOWN_OVERLAPS = (0.5, 0.75)


def detection_result(check: DetectionCheck, answer: str) -> CheckResult:
    """Score an answer that is `Detections` as JSON: matches among the R best detections, summed over the ten overlaps.

    R is the number of labelled objects without crowds; equal scores keep their order. A detection on a crowd of its class
    counts neither way and takes no rank. Without objects there is one check: no detection, those on crowds aside (overlap 0.5),
    scores above `quiet_score`. Anything but such JSON about an image of the right size fails every check, with the reason.
    Source: Manning, Raghavan and Schuetze (2008), Introduction to Information Retrieval, section 8.4; matching as in COCO.
    """
    found = read_detections(answer, check.width, check.height)
    if isinstance(found, str):
        return CheckResult(kind=check_kind(check), passed=0, total=check_count(check), detail=shorten(found))
    ranked = sorted(found.detections, key=lambda detection: -detection.score)
    hits, skipped = _matched(check, ranked)
    objects = sum(not labelled.crowd for labelled in check.objects)
    if not objects:
        return _quiet_result(check, ranked, skipped[0])
    ranks = np.cumsum(~skipped, axis=1)
    matches = (hits & (ranks <= objects)).sum(axis=1)
    detail = "" if matches.min() == objects else _missed(matches.tolist(), objects)
    return CheckResult(kind=check_kind(check), passed=int(matches.sum()), total=check_count(check), detail=detail)


def read_detections(answer: str, width: int, height: int) -> Detections | str:
    """Return what an answer about an image of that size (pixels) reports, or why it reports nothing that can be scored."""
    data = answer.encode("utf-8", "surrogatepass") if len(answer) <= ANSWER_BYTES_LIMIT else None
    if data is None or len(data) > ANSWER_BYTES_LIMIT:
        return f"the answer is longer than {ANSWER_BYTES_LIMIT} bytes"
    try:
        found = msgspec.json.decode(data, type=Detections)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return f"the answer is not a list of detections: {error}"
    if found.schema_version != DETECTIONS_SCHEMA:
        return f"the answer has schema version {found.schema_version!r:.60}, expected {DETECTIONS_SCHEMA!r}"
    if len(found.detections) > MAX_DETECTIONS:
        return f"the answer has {len(found.detections)} detections, at most {MAX_DETECTIONS} are read"
    if (found.width, found.height) != (width, height):
        read, labelled = f"{found.width} x {found.height}", f"{width} x {height}"
        return f"the image that was read has {read} pixels, the labels are for {labelled}"
    return found


def _matched(check: DetectionCheck, ranked: Sequence[Detection]) -> tuple[Mask, Mask]:
    """Return bool[overlaps, detections] twice: which match an object, and which lie on a crowd only."""
    shape = (len(IOU_THRESHOLDS), len(ranked))
    hits, skipped = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    categories = np.array([detection.category_id for detection in ranked])
    boxes = detection_boxes(ranked)
    for category_id in {labelled.category_id for labelled in check.objects}:
        labels = [labelled for labelled in check.objects if labelled.category_id == category_id]
        crowd = np.array([labelled.crowd for labelled in labels])
        places = np.flatnonzero(categories == category_id)
        on_object, on_crowd = match_boxes(box_overlaps(boxes[places], object_boxes(labels), crowd), crowd, crowd[None])
        hits[:, places], skipped[:, places] = on_object[0], on_crowd[0]
    return hits, skipped


def _quiet_result(check: DetectionCheck, ranked: Sequence[Detection], skipped: Mask) -> CheckResult:
    loud = [one for one, skip in zip(ranked, skipped.tolist(), strict=True) if one.score > check.quiet_score and not skip]
    detail = ""
    if loud:
        detail = f"{len(loud)} detections score above {check.quiet_score:g} where no object is, the best {loud[0].score:.3g}"
    return CheckResult(kind=check_kind(check), passed=int(not loud), total=1, detail=detail)


def _missed(matches: Sequence[int], objects: int) -> str:
    at = [f"{matches[IOU_THRESHOLDS.index(overlap)]} at overlap {overlap:g}" for overlap in _SHOWN_OVERLAPS]
    return f"of {objects} objects the {objects} best detections match {' and '.join(at)}"
