"""What is made of a detector's answers besides COCO's metrics: times, and COCO's list of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fewbits.core.codec import digest
from fewbits.records.detection import Detections, LabelledImage
from fewbits.records.detector_run import LatencyMs

P90 = 90


def image_ids_digest(images: Sequence[LabelledImage]) -> str:
    """Return the sha256 of a set of images: of its ids, ascending, as canonical JSON."""
    return digest(sorted(image.image_id for image in images))


def summarise_latency(run_ms: Sequence[float], skipped: int) -> LatencyMs | None:
    """Summarise a model's own milliseconds without the first `skipped`; `None` where none is left. p90 as NumPy interpolates."""
    samples = np.array(run_ms[skipped:], dtype=np.float64)
    if not samples.size:
        return None
    mean = float(samples.mean())
    return LatencyMs(
        count=samples.size,
        mean=mean,
        median=float(np.median(samples)),
        p90=float(np.percentile(samples, P90)),
        throughput_fps=1000 / mean if mean > 0 else 0.0,
    )


def why_no_latency(answered: int, skipped: int) -> str:
    """Say why no time is left."""
    if not answered:
        return "no image was answered"
    return f"{answered} images were answered, and the first {skipped} are not counted"


def coco_results(detections: Mapping[int, Detections]) -> list[dict[str, Any]]:
    """Return detections as COCO's list of results: `image_id`, `category_id`, `bbox` (x, y, width, height), `score`."""
    return [
        {"image_id": image_id, "category_id": one.category_id, "bbox": [one.x, one.y, one.width, one.height], "score": one.score}
        for image_id in sorted(detections)
        for one in detections[image_id].detections
    ]
