from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detection_samples import classes, detect, detection, found, labelled, official, thing
from fewbits.analysis.detection import detection_metrics, match_detections
from fewbits.analysis.detection_matching import AREA_NAMES, Matches
from fewbits.analysis.detection_metrics import class_averages, mean_average
from fewbits.core.codec import decode, encode_canonical
from fewbits.records.detection import Category, DetectionMetrics, Detections, LabelledImage
from fewbits.workloads.detection.coco import open_coco

COCO = Path(__file__).resolve().parents[3] / "shared" / "data" / "coco-mini"
needs_coco = pytest.mark.skipif(not COCO.is_dir(), reason="the COCO-mini labels are not beside this checkout")
needs_pycocotools = pytest.mark.skipif(
    __import__("importlib.util").util.find_spec("pycocotools") is None, reason="pycocotools is not installed"
)


def averages(matches: Matches, categories: Sequence[Category], counts: Any = None) -> list[float]:
    """Return the six numbers of pycocotools in its order and with its -1, not rounded."""
    times = np.ones(len(matches.image_ids), dtype=int) if counts is None else np.asarray(counts)
    by_size = [class_averages(matches, categories, times[:, None], area)[:, :, 0] for area in range(len(AREA_NAMES))]
    everything = by_size[0]
    numbers = [everything, everything[:, :1], everything[:, 5:6], *by_size[1:]]
    return [-1.0 if np.isnan(value := mean_average(one)) else float(value) for one in numbers]


def assert_as_official(
    images: Sequence[LabelledImage], categories: Sequence[Category], detections: dict[int, Detections]
) -> None:
    matches = match_detections(images, categories, detections)
    stats, precision = official(images, categories, detections)
    assert np.abs(np.array(averages(matches, categories)) - stats).max() < 1e-12
    ours = class_averages(matches, categories, np.ones((len(images), 1), dtype=int))[:, :, 0]
    theirs = precision[:, :, :, 0, 2].mean(axis=1).T  # classes, overlaps
    assert np.abs(np.nan_to_num(ours, nan=-1.0) - theirs).max() < 1e-12


@needs_coco
@needs_pycocotools
@pytest.mark.parametrize(("seed", "noise"), [(1, 0.03), (2, 0.08), (3, 0.2)])
def test_real_labels_give_the_numbers_of_pycocotools(seed: int, noise: float) -> None:
    coco = open_coco(COCO, "val")
    detections = detect(coco.images, coco.categories, seed, noise=noise)
    assert_as_official(coco.images, coco.categories, detections)
    metrics = detection_metrics(match_detections(coco.images, coco.categories, detections), coco.categories, resamples=2)
    stats, _ = official(coco.images, coco.categories, detections)
    named = [metrics.map_50_95, metrics.map_50, metrics.map_75, metrics.map_small, metrics.map_medium, metrics.map_large]
    shown = [getattr(number, "value", number) for number in named]
    assert shown == [round(float(value), 6) for value in stats]
    assert metrics.images == 80
    assert metrics.detections == sum(len(one.detections) for one in detections.values())


# sides and places on a coarse grid make equal overlaps, and overlaps of exactly 0.5, 0.75 and 0.9
PLACES = st.sampled_from([0.0, 10.0, 20.0, 25.0])
SIDES = st.sampled_from([9.0, 10.0, 15.0, 20.0, 30.0, 40.0])
AREAS = st.sampled_from([0.0, 90.0, 1024.0, 1025.0, 9216.0, 9217.0])
SCORES = st.sampled_from([0.0, 0.2, 0.2000001, 0.5, 0.9, 1.0])
OBJECTS = st.builds(
    lambda category, box, area, crowd: thing(category, *box, area=area, crowd=crowd),
    st.integers(1, 3), st.tuples(PLACES, PLACES, SIDES, SIDES), AREAS, st.sampled_from([False, False, False, True]),
)  # fmt: skip
FOUND = st.builds(
    lambda category, score, box: detection(category, score, *box),
    st.integers(1, 4), SCORES, st.tuples(PLACES, PLACES, SIDES, st.sampled_from([9.0, 10.0, 40.0, 400.0])),
)  # fmt: skip
IMAGES = st.lists(st.tuples(st.lists(OBJECTS, max_size=5), st.lists(FOUND, max_size=8)), min_size=1, max_size=4)


@needs_pycocotools
@settings(max_examples=150, deadline=None)
@given(drawn=IMAGES)
def test_small_cases_give_the_numbers_of_pycocotools(drawn: Any) -> None:
    images = [labelled(10 * place + 7, objects) for place, (objects, _) in enumerate(drawn)]
    detections = {image.image_id: found(image, ones) for image, (_, ones) in zip(images, drawn, strict=True) if ones}
    assert_as_official(images, classes(1, 2, 3), detections)


@needs_pycocotools
@settings(max_examples=60, deadline=None)
@given(drawn=IMAGES, times=st.lists(st.integers(0, 3), min_size=4, max_size=4))
def test_a_multiplicity_counts_as_that_many_copies_of_the_image(drawn: Any, times: list[int]) -> None:
    # all scores differ: among equal ones the copies would interleave
    rng = np.random.default_rng(len(drawn))
    images, detections, copies, copied = [], {}, [], {}
    for place, (objects, ones) in enumerate(drawn):
        image = labelled(place + 1, objects)
        distinct = [detection(one.category_id, float(rng.random()), one.x, one.y, one.width, one.height) for one in ones]
        images.append(image)
        detections[image.image_id] = found(image, distinct)
        for number in range(times[place]):
            copy = labelled(100 * (place + 1) + number, objects)
            copies.append(copy)
            copied[copy.image_id] = found(copy, distinct)
    ours = averages(match_detections(images, classes(1, 2, 3), detections), classes(1, 2, 3), times[: len(images)])
    if copies:
        assert np.abs(np.array(ours) - official(copies, classes(1, 2, 3), copied)[0]).max() < 1e-12
    else:
        assert ours == [-1.0] * 6


@needs_pycocotools
def test_only_the_best_hundred_of_a_class_count() -> None:
    image = labelled(1, [thing(1, 0, 0, 50, 50), thing(2, 100, 100, 50, 50)])
    alarms = [detection(1, 0.5 + number / 1000, 300, 300, 20, 20) for number in range(100)]
    late = [detection(1, 0.1, 0, 0, 50, 50), detection(2, 0.1, 100, 100, 50, 50)]
    detections = {1: found(image, [*alarms, *late])}
    assert_as_official([image], classes(1, 2), detections)
    metrics = detection_metrics(match_detections([image], classes(1, 2), detections), classes(1, 2))
    assert [row.map_50 for row in metrics.per_class] == [0.0, 1.0]
    assert metrics.detections == 102


def metrics_of(images: Sequence[LabelledImage], detections: dict[int, Detections], *category_ids: int) -> DetectionMetrics:
    return detection_metrics(match_detections(images, classes(*category_ids), detections), classes(*category_ids), resamples=50)


def test_zero_detections_are_zero_and_missing_labels_are_none() -> None:
    images = [labelled(number, [thing(1, 0, 0, 100, 100)]) for number in (1, 2, 3)]
    metrics = metrics_of(images, {1: found(images[0], [])}, 1, 2)
    assert metrics.map_50_95 is not None
    assert (metrics.map_50_95.value, metrics.map_75, metrics.map_large) == (0.0, 0.0, 0.0)
    assert metrics.map_50_95.low is None
    assert "no spread" in metrics.map_50_95.reason
    assert (metrics.map_small, metrics.map_medium, metrics.detections) == (None, None, 0)
    assert [(row.category_id, row.objects, row.map_50_95) for row in metrics.per_class] == [(1, 3, 0.0), (2, 0, None)]


@pytest.mark.parametrize("objects", [[], [thing(1, 0, 0, 10, 10, crowd=True)], [thing(9, 0, 0, 10, 10)]])
def test_nothing_labelled_is_no_number(objects: Any) -> None:
    image = labelled(1, objects)
    metrics = metrics_of([image], {1: found(image, [detection(1, 0.9, 0, 0, 10, 10)])}, 1)
    assert (metrics.map_50_95, metrics.map_50, metrics.map_75) == (None, None, None)
    assert metrics.per_class[0].objects == 0


def test_no_images_and_no_classes() -> None:
    assert metrics_of([], {}, 1).map_50_95 is None
    image = labelled(1, [thing(1, 0, 0, 10, 10)])
    assert metrics_of([image], {}).map_50_95 is None


def test_categories_that_are_not_listed_are_counted_only() -> None:
    images = [labelled(number, [thing(1, 0, 0, 10, 10)]) for number in (1, 2)]
    right = {image.image_id: found(image, [detection(1, 0.5, 0, 0, 10, 10)]) for image in images}
    extra = {
        image.image_id: found(image, [*right[image.image_id].detections, detection(7, 0.9, 0, 0, 10, 10)]) for image in images
    }
    assert metrics_of(images, extra, 1).detections == 4
    assert metrics_of(images, extra, 1).per_class == metrics_of(images, right, 1).per_class


def test_absurd_boxes_match_nothing() -> None:
    image = labelled(1, [thing(1, 0, 0, 10, 10)])
    absurd = [(-5, -5, -20, -20), (0, 0, 0, 0), (1e308, 1e308, 1e308, 1e308), (-1e308, 0, 1.7e308, 10), (0, 0, -10, 10)]
    metrics = metrics_of([image, labelled(2, [])], {1: found(image, [detection(1, 0.9, *box) for box in absurd])}, 1)
    assert metrics.per_class[0].map_50 == 0.0


def test_the_order_of_images_changes_nothing() -> None:
    images = [labelled(number, [thing(1, 10 * number, 0, 30, 30)]) for number in range(1, 9)]
    detections = detect(images, classes(1, 2), 5, per_image=6)
    forward = metrics_of(images, detections, 1, 2)
    assert metrics_of(images[::-1], dict(reversed(detections.items())), 1, 2) == forward
    assert decode(encode_canonical(forward), DetectionMetrics, "metrics") == forward


def test_what_does_not_belong_together_is_refused() -> None:
    image, other = labelled(1, []), labelled(2, [])
    with pytest.raises(ValueError, match="image ids"):
        match_detections([image, image], classes(1), {})
    with pytest.raises(ValueError, match="image ids"):
        match_detections([image], classes(1), {2: found(other, [])})
    one, two = match_detections([image], classes(1), {}), match_detections([other], classes(1), {})
    with pytest.raises(ValueError, match="same images"):
        detection_metrics(one, classes(1), reference=two)
    with pytest.raises(ValueError, match="resample"):
        detection_metrics(one, classes(1), resamples=0)


# --- intervals ---------------------------------------------------------------------------------------------------------


def sixty_images() -> list[LabelledImage]:
    rng = np.random.default_rng(11)
    return [
        labelled(number, [thing(int(rng.integers(1, 4)), *rng.random(2) * 300, *(40 + rng.random(2) * 100)) for _ in range(4)])
        for number in range(1, 61)
    ]


def test_a_variant_against_itself() -> None:
    images = sixty_images()
    matches = match_detections(images, classes(1, 2, 3), detect(images, classes(1, 2, 3), 1))
    metrics = detection_metrics(matches, classes(1, 2, 3), reference=matches, resamples=50)
    assert metrics.difference is not None
    assert metrics.retained is not None
    assert (metrics.difference.value, metrics.difference.low) == (0.0, None)
    assert (metrics.retained.value, metrics.retained.low) == (1.0, None)
    assert "no spread" in metrics.retained.reason


def test_a_clearly_worse_variant() -> None:
    images = sixty_images()
    good, bad = (
        match_detections(images, classes(1, 2, 3), detect(images, classes(1, 2, 3), 1, noise=noise)) for noise in (0.05, 0.2)
    )
    metrics = detection_metrics(bad, classes(1, 2, 3), reference=good, resamples=300)
    base = detection_metrics(good, classes(1, 2, 3), resamples=300)
    assert base.difference is None
    assert base.retained is None
    for number in (metrics.map_50_95, metrics.map_50, metrics.difference, metrics.retained):
        assert number is not None
        assert number.low is not None
        assert number.high is not None
        assert number.low < number.high
        assert number.n == 60
    assert metrics.difference is not None
    assert metrics.difference.high is not None
    assert metrics.difference.high < 0
    assert metrics.retained is not None
    assert metrics.map_50_95 is not None
    assert base.map_50_95 is not None
    assert metrics.retained.value == pytest.approx(metrics.map_50_95.value / base.map_50_95.value, abs=1e-5)
    # pairing takes out what makes images hard for both
    spread = [number.high - number.low for number in (metrics.difference, metrics.map_50_95, base.map_50_95)]  # type: ignore[operator]
    assert spread[0] < (spread[1] ** 2 + spread[2] ** 2) ** 0.5


def test_a_reference_that_finds_nothing_has_no_share() -> None:
    images = sixty_images()
    some = match_detections(images, classes(1, 2, 3), detect(images, classes(1, 2, 3), 1))
    metrics = detection_metrics(some, classes(1, 2, 3), reference=match_detections(images, classes(1, 2, 3), {}), resamples=20)
    assert metrics.retained is None
    assert metrics.difference is not None
    assert metrics.difference.value == metrics.map_50_95.value  # type: ignore[union-attr]


def test_too_few_images_for_an_interval_say_so() -> None:
    image = labelled(1, [thing(1, 0, 0, 10, 10)])
    alone = metrics_of([image], {1: found(image, [detection(1, 0.9, 0, 0, 10, 10)])}, 1).map_50_95
    assert alone is not None
    assert (alone.value, alone.low, alone.n) == (1.0, None, 1)
    assert "one image alone" in alone.reason
    # the only object lies in one image of three: many resamples have none at all
    images = [image, labelled(2, []), labelled(3, [])]
    rare = metrics_of(images, {1: found(image, [detection(1, 0.9, 0, 0, 10, 10)])}, 1).map_50_95
    assert rare is not None
    assert rare.low is None
    assert "too few images" in rare.reason
