"""What the summary says about each variant of a detector: COCO metrics of its answers, against the reference's. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from fewbits.analysis.detection_matching import Matches, match_detections
from fewbits.analysis.detection_metrics import RESAMPLES, detection_metrics
from fewbits.records.base import Unavailable
from fewbits.records.detection import DetectionMetrics, Detections
from fewbits.records.detector_run import DetectionLabels, OperatorCensus, RowDetection
from fewbits.records.plan import Plan

Answers = Mapping[int, Detections | None]
"""Image id -> what a variant reported; `None` where it did not answer, or nothing that can be read."""

COLLAPSE_RATIO = 0.5
"""Collapsed is what scores below this share of what it should. Source: the runbook's rule."""


def is_collapsed(best: float, final: float, ratio: float = COLLAPSE_RATIO) -> bool:
    """Tell whether what there was is lost: best > 0 and final < ratio x best. Scores are larger for better, such as mAP."""
    return best > 0 and not final >= ratio * best


def row_detections(
    plan: Plan,
    model_id: str,
    reference_tag: str,
    *,
    labels: DetectionLabels,
    answers: Mapping[tuple[str, str], Answers],
    censuses: Mapping[tuple[str, str], OperatorCensus],
) -> dict[tuple[str, str], RowDetection]:
    """Return the detection block of every variant of one model, by (model id, quant tag).

    `labels` holds the images of the sweep. Metrics are for variants that were asked about every one of them; an image without
    a readable answer counts as without detections. Differences and shares are paired with the reference by image. Raises
    `ValueError` for answers about images that are not in `labels`, and where an image is labelled twice.
    """
    tags = tuple(dict.fromkeys(plan.spec.quants))
    asked = {tag: answers.get((model_id, tag), {}) for tag in tags}
    matched = {tag: found for tag in tags if (found := match_answers(labels, asked[tag])) is not None}
    resamples = plan.spec.detection.resamples if plan.spec.detection is not None else RESAMPLES
    reference = matched.get(reference_tag)
    measured = {
        tag: detection_metrics(
            matches, labels.categories, reference=None if tag == reference_tag else reference, resamples=resamples
        )
        for tag, matches in matched.items()
    }
    base = measured.get(reference_tag)
    return {
        (model_id, tag): _row(
            asked[tag], measured.get(tag), None if tag == reference_tag else base, censuses.get((model_id, tag))
        )
        for tag in tags
    }


def match_answers(labels: DetectionLabels, answers: Answers) -> Matches | None:
    """Match one variant's answers with the labels; `None` where it was not asked about every image. Raises `ValueError`."""
    images = {image.image_id for image in labels.images}
    if not answers.keys() <= images:
        msg = "answers must be about images that are labelled"
        raise ValueError(msg)
    if not answers or len(answers) < len(images):
        return None
    found = {image_id: detections for image_id, detections in answers.items() if detections is not None}
    return match_detections(labels.images, labels.categories, found)


def _row(
    answers: Answers, metrics: DetectionMetrics | None, reference: DetectionMetrics | None, census: OperatorCensus | None
) -> RowDetection:
    """Put a row together; `reference` is `None` for the reference itself and where it was not measured."""
    collapsed = _collapsed(metrics, reference)
    unavailable = {}
    if metrics is None:
        unavailable["metrics"] = Unavailable.TOO_FEW_SAMPLES if answers else Unavailable.NO_TRIALS
    elif metrics.map_50_95 is None:
        unavailable["map_50_95"] = Unavailable.NO_CHECKS
    if collapsed is None:
        unavailable["collapsed"] = unavailable.get("metrics") or unavailable.get("map_50_95") or Unavailable.NO_REFERENCE
    if metrics is not None and metrics.difference is None:
        unavailable["difference"] = unavailable.get("map_50_95", Unavailable.NO_REFERENCE)
    if metrics is not None and metrics.retained is None:
        unavailable["retained"] = unavailable.get("difference", Unavailable.ZERO_DENOMINATOR)
    if census is None:
        unavailable["census"] = Unavailable.NOT_MEASURED
    return RowDetection(
        metrics=metrics,
        census=census,
        collapsed=collapsed,
        unavailable={name: str(reason) for name, reason in sorted(unavailable.items())},
        asked_images=len(answers),
        failed_images=sum(found is None for found in answers.values()),
    )


def _collapsed(metrics: DetectionMetrics | None, reference: DetectionMetrics | None) -> bool | None:
    if metrics is None or reference is None or metrics.map_50_95 is None or reference.map_50_95 is None:
        return None
    return is_collapsed(reference.map_50_95.value, metrics.map_50_95.value)
