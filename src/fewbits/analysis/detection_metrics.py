"""COCO's average precision of one variant, with intervals by a paired bootstrap over images. Pure: fixed seed.

Matching is done once. A resample gives each image a multiplicity, and a detection of an image drawn three times counts three
times: the same numbers as if the images lay in the set three times, at the price of a sum.

What the intervals are about: the average over sets of as many images from the same source. That is not the number on all of
the source: mean average precision is no mean over images, and small sets flatter, the more so the more classes have only an
object or two (in simulation with 80 classes and 80 images by a tenth). Variants are flattered alike, so that differences
between them keep their meaning, while `retained` comes out a little too high where it is low.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fewbits.analysis.detection_matching import AREA_NAMES, THRESHOLDS, ClassMatches, Floats, Matches, Numbers
from fewbits.analysis.statistics import LEVEL, estimate, percentile_limits, resample_counts, rounded
from fewbits.records.detection import IOU_THRESHOLDS, Category, ClassMetrics, DetectionMetrics
from fewbits.records.estimate import Estimate

RESAMPLES = 1000
RECALLS: Floats = np.linspace(0.0, 1.0, 101)
"""Where precision is read off. Source: COCO evaluation, `Params.recThrs`."""
BOOTSTRAP = "bootstrap by image, expanded percentile"
PAIRED_BOOTSTRAP = "paired bootstrap by image, expanded percentile"
_ALL = AREA_NAMES.index("all")
_AT_75 = IOU_THRESHOLDS.index(0.75)
_NO_SPREAD = 1e-12
_CHUNK_CELLS = 4_000_000
"""Detections x resamples that are held at a time: 32 MB an array."""
_LOST_SHARE = 0.01
"""Resamples in which a number does not exist may be left out up to this share, well below what lies beyond either limit."""


def detection_metrics(
    matches: Matches, categories: Sequence[Category], *, reference: Matches | None = None, resamples: int = RESAMPLES
) -> DetectionMetrics:
    """Measure one variant, and with `reference` (matched on the same images) its difference from it and share of it.

    Every variant of a set of images is resampled with the same draws. Raises `ValueError` when `reference` is of other images
    or `resamples` is below 1.
    """
    if resamples < 1 or (reference is not None and reference.image_ids != matches.image_ids):
        msg = "a reference must be matched on the same images, and at least 1 resample is needed"
        raise ValueError(msg)
    units = len(matches.image_ids)
    whole = np.ones((units, 1), dtype=np.intp)
    sizes = {name: class_averages(matches, categories, whole, area)[:, :, 0] for area, name in enumerate(AREA_NAMES)}
    averages = sizes["all"]
    drawn = class_averages(matches, categories, _draws(units, resamples))
    whole_map, drawn_map = mean_average(averages), mean_average(drawn)
    difference = retained = None
    if reference is not None:
        base_map = mean_average(class_averages(reference, categories, whole)[:, :, 0])
        base_drawn = mean_average(class_averages(reference, categories, _draws(units, resamples)))
        difference = _interval(whole_map - base_map, drawn_map - base_drawn, units, PAIRED_BOOTSTRAP)
        retained = _interval(_share(whole_map, base_map), _share(drawn_map, base_drawn), units, PAIRED_BOOTSTRAP)
    return DetectionMetrics(
        images=units,
        detections=matches.detections,
        map_50_95=_interval(whole_map, drawn_map, units, BOOTSTRAP),
        map_50=_interval(mean_average(averages[:, :1]), mean_average(drawn[:, :1]), units, BOOTSTRAP),
        map_75=_number(mean_average(averages[:, _AT_75 : _AT_75 + 1])),
        map_small=_number(mean_average(sizes["small"])),
        map_medium=_number(mean_average(sizes["medium"])),
        map_large=_number(mean_average(sizes["large"])),
        difference=difference,
        retained=retained,
        per_class=_per_class(matches, categories, averages),
        resamples=resamples,
    )


def _draws(units: int, resamples: int) -> Numbers:
    """Return int[images, resamples]: the same for every variant of as many images."""
    return resample_counts(units, resamples).T if units else np.zeros((0, resamples), dtype=np.intp)


def class_averages(matches: Matches, categories: Sequence[Category], counts: Numbers, area: int = _ALL) -> Floats:
    """Return the average precision float64[classes, overlaps, resamples], 0..1, in the order of `categories`.

    `counts` int[images, resamples] says how often each image lies in the set; `area` is an index into `AREA_NAMES`. NaN where no
    object of a class is labelled in the set.
    """
    averages = np.full((len(categories), len(THRESHOLDS), counts.shape[1]), np.nan)
    for place, category in enumerate(categories):
        found = matches.classes.get(category.category_id)
        if found is None:
            continue
        step = max(1, _CHUNK_CELLS // max(1, len(found.images)))
        for start in range(0, counts.shape[1], step):
            averages[place, :, start : start + step] = _average_precisions(found, counts[:, start : start + step], area)
    return averages


def _average_precisions(found: ClassMatches, counts: Numbers, area: int) -> Floats:
    """Return float64[overlaps, resamples] of one class; NaN where its objects are in none of a resample's images."""
    objects = (found.objects[area] @ counts).astype(np.float64)
    hits, counted = found.hits[area], found.counted[area]
    last = int(np.flatnonzero(hits.any(axis=0))[-1]) + 1 if hits.any() else 0
    # no precision after the last hit matters: it is read off at hits only
    weights = counts[found.images[:last]].astype(np.float64)
    reached = np.cumsum(weights, axis=0)
    averages = np.zeros((len(THRESHOLDS), counts.shape[1]))
    for level in range(len(THRESHOLDS)):
        places = np.flatnonzero(hits[level, :last])
        if places.size:
            skipped = np.flatnonzero(~counted[level, :last])
            total = reached[places] - _summed_before(weights, skipped, places)
            averages[level] = _interpolated(np.cumsum(weights[places], axis=0), total, objects)
    averages[:, objects == 0] = np.nan
    return averages


def _summed_before(weights: Floats, skipped: Numbers, places: Numbers) -> Floats | float:
    """Return what the detections that count neither way weigh, up to each place: float64[places, resamples]."""
    if not skipped.size:
        return 0.0
    sums = np.concatenate([np.zeros((1, weights.shape[1])), np.cumsum(weights[skipped], axis=0)])
    before: Floats = sums[np.searchsorted(skipped, places)]
    return before


def _interpolated(hits: Floats, total: Floats, objects: Floats) -> Floats:
    """Return the mean over 101 recalls of the best precision at that recall or beyond: float64[resamples].

    `hits` and `total` float64[places, resamples] are the hits and the counted detections up to and with each hit, in order.
    Source: Everingham et al. (2010), The Pascal Visual Object Classes Challenge, IJCV 88, section 4.2; COCO takes 101 recalls.
    """
    # the same roundings as in COCO's evaluation: its denominators carry one machine epsilon
    precision = hits / (total + np.spacing(1))
    best = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    recall = hits / np.maximum(objects, 1.0)
    passed = np.searchsorted(RECALLS, recall.ravel(), side="right").reshape(recall.shape)
    averages: Floats = (best * np.diff(passed, axis=0, prepend=0)).sum(axis=0) / len(RECALLS)
    return averages


def mean_average(averages: Floats) -> Floats:
    """Return the mean over classes that have objects and over overlaps (axes 0 and 1); NaN where no class has any."""
    known = np.isfinite(averages)
    counts = known.sum(axis=(0, 1))
    means: Floats = np.where(known, averages, 0.0).sum(axis=(0, 1)) / np.where(counts > 0, counts, np.nan)
    return means


def _share(values: Floats, base: Floats) -> Floats:
    """Return values / base; NaN where the base is 0."""
    shares: Floats = values / np.where(base > 0, base, np.nan)
    return shares


def _number(value: Floats) -> float | None:
    return rounded(float(value)) if np.isfinite(value) else None


def _interval(value: Floats, resampled: Floats, units: int, method: str) -> Estimate | None:
    """Estimate a number from its resamples (float64[resamples], NaN where it does not exist there); `None` where it is NaN."""
    if not np.isfinite(value):
        return None
    known = resampled[np.isfinite(resampled)]
    reason = ""
    if units == 1:
        reason = "one image alone has no spread: at least 2 are needed"
    elif len(known) < (1 - _LOST_SHARE) * len(resampled):
        reason = "the number does not exist in too many resamples: too few images hold what it is made of"
    elif np.ptp(known) < _NO_SPREAD:
        reason = "every resample gives the same number, so these images show no spread"
    if reason:
        return estimate(float(value), None, None, method=method, n=units, reason=reason)
    low, high = percentile_limits(known, units, LEVEL)
    return estimate(float(value), low, high, method=method, n=units)


def _per_class(matches: Matches, categories: Sequence[Category], averages: Floats) -> tuple[ClassMetrics, ...]:
    """Return one row per category; `averages` float64[classes, overlaps]."""
    rows = []
    for category, by_overlap in zip(categories, averages, strict=True):
        found = matches.classes.get(category.category_id)
        row = ClassMetrics(
            category_id=category.category_id,
            name=category.name,
            objects=0 if found is None else int(found.objects[_ALL].sum()),
            map_50_95=_number(by_overlap.mean()),
            map_50=_number(by_overlap[0]),
        )
        rows.append(row)
    return tuple(rows)
