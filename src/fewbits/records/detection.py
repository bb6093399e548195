"""Detection: labelled images, detections as a runtime reports them, and what is measured about a set of them.

Boxes are `(x, y, width, height)` in pixels of the original image, top left corner first, as in COCO files.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from fewbits.records.base import Rate, Record
from fewbits.records.estimate import Estimate

BoundingBox = tuple[float, float, float, float]

DETECTIONS_SCHEMA = "fewbits.detections.v1"
IOU_THRESHOLDS: tuple[float, ...] = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
"""Overlaps (intersection over union) that a match is asked at. Source: COCO evaluation, `Params.iouThrs`."""


class LabelledObject(Record, frozen=True, kw_only=True):
    """One object of the ground truth. `crowd` marks a group: detections on it count neither way."""

    category_id: int
    bbox: BoundingBox
    area: Annotated[float, Meta(ge=0)]
    """Pixels; of the segmentation where the file has one, so it may be smaller than the box. Decides the size class."""
    crowd: bool = False


class ImageRequest(Record, frozen=True, kw_only=True):
    """An image that a task shows: by its name below the task's image folder, with the digest of its bytes."""

    file_name: Annotated[str, Meta(min_length=1)]
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    page: Annotated[int, Meta(ge=1)] | None = None
    """Which page of a file that may have several; `None` for pictures."""


class Detection(Record, frozen=True, kw_only=True, array_like=True):
    """One detection, written as `[category_id, score, x, y, width, height]`; scores are probabilities, 0..1."""

    category_id: int
    score: Rate
    x: float
    y: float
    width: float
    height: float


class Detections(Record, frozen=True, kw_only=True):
    """What a detector found in one image, best first: the text of its reply, as canonical JSON."""

    schema_version: str = DETECTIONS_SCHEMA
    width: Annotated[int, Meta(ge=1)]
    """Of the image that was read, pixels."""
    height: Annotated[int, Meta(ge=1)]
    detections: tuple[Detection, ...]


class LabelledImage(Record, frozen=True, kw_only=True):
    """The ground truth of one image."""

    image_id: int
    file_name: str
    width: int
    height: int
    objects: tuple[LabelledObject, ...]


class Category(Record, frozen=True, kw_only=True):
    """A class of objects, by the data set's own number."""

    category_id: int
    name: str


class ClassMetrics(Record, frozen=True, kw_only=True):
    """One class: `None` where no labelled object of it is in the images."""

    category_id: int
    name: str
    objects: int
    map_50_95: float | None
    map_50: float | None


class DetectionMetrics(Record, frozen=True, kw_only=True):
    """COCO metrics of one variant on a set of images, 0..1; intervals by a paired bootstrap over images.

    `None` where nothing of the kind is labelled. No detection at all is 0, not `None`. Source: COCO evaluation (`COCOeval`, bbox,
    100 detections per image and class): means over classes and over overlaps 0.50 to 0.95.
    """

    images: int
    detections: int
    map_50_95: Estimate | None
    map_50: Estimate | None
    map_75: float | None
    map_small: float | None
    """Labelled areas below 32 x 32 pixels."""
    map_medium: float | None
    map_large: float | None
    """Labelled areas above 96 x 96 pixels."""
    difference: Estimate | None = None
    """map_50_95 minus the reference's, paired by image; `None` for the reference."""
    retained: Estimate | None = None
    """map_50_95 / the reference's, paired by image; `None` for the reference and where the reference finds nothing."""
    per_class: tuple[ClassMetrics, ...] = ()
    resamples: int = 0


class DetectionSettings(Record, frozen=True, kw_only=True):
    """What a sweep over detectors fixes beyond its tasks: how images are shown, how outputs are read, what was calibrated on."""

    annotations: str
    """COCO file with the labels. Where it lies is no part of the plan's digest: the tasks pin its content."""
    images: str
    """Folder of the images."""
    image_size: Annotated[int, Meta(ge=32, le=4096)] = 640
    confidence: Rate = 0.001
    """Detections below this score are dropped. Source: the usual setting for COCO evaluation."""
    max_detections: Annotated[int, Meta(ge=1, le=10_000)] = 300
    iou: Annotated[float, Meta(gt=0, lt=1)] = 0.7
    """Overlap above which non-maximum suppression drops the weaker box; heads without suppression do not use it."""
    calibration_digest: str | None = None
    """sha256 over the digests of the calibration images, in order; `None` where nothing was calibrated."""
    calibration_images: Annotated[int, Meta(ge=0)] = 0
    calibration_source: str = ""
    resamples: Annotated[int, Meta(ge=100, le=100_000)] = 1000
    """Of the bootstrap over images."""
    labels_digest: str | None = None
    """sha256 of the run's `labels.json` as canonical JSON: metrics are made from that file alone."""
