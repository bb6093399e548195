"""A detector's rows: metrics of complete sets of answers only, paired with the reference, and the collapse rule."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detection_rows_samples import EIGHT, FLOAT, MODEL, TWO, answers_of, make_census, make_labels, make_plan
from fewbits.analysis.detection import detection_metrics, match_detections
from fewbits.analysis.detection_rows import Answers, is_collapsed, row_detections
from fewbits.records.detector_run import RowDetection

LABELS = make_labels()
PLAN = make_plan(LABELS)
RIGHT, SHIFTED, POOR = answers_of(LABELS), answers_of(LABELS, shift=0.1), answers_of(LABELS, shift=0.3, skip=2)


def rows(answers: dict[str, Answers], **changes: Any) -> dict[str, RowDetection]:
    fields: dict[str, Any] = {"labels": LABELS, "censuses": {}} | changes
    keyed = {(MODEL, tag): found for tag, found in answers.items()}
    found = row_detections(PLAN, MODEL, FLOAT, answers=keyed, **fields)
    assert list(found) == [(MODEL, tag) for tag in PLAN.spec.quants]
    return {tag: row for (_, tag), row in found.items()}


def test_metrics_are_those_of_the_answers_paired_with_the_reference() -> None:
    found = rows({FLOAT: RIGHT, EIGHT: SHIFTED, TWO: POOR})
    reference = match_detections(LABELS.images, LABELS.categories, {k: v for k, v in RIGHT.items() if v is not None})
    shifted = match_detections(LABELS.images, LABELS.categories, {k: v for k, v in SHIFTED.items() if v is not None})
    assert found[EIGHT].metrics == detection_metrics(shifted, LABELS.categories, reference=reference, resamples=200)
    assert found[FLOAT].metrics == detection_metrics(reference, LABELS.categories, resamples=200)
    assert (found[FLOAT].collapsed, found[EIGHT].collapsed, found[TWO].collapsed) == (None, False, True)
    assert found[FLOAT].unavailable == {
        "census": "NOT_MEASURED", "collapsed": "NO_REFERENCE", "difference": "NO_REFERENCE", "retained": "NO_REFERENCE"
    }  # fmt: skip
    assert found[EIGHT].unavailable == {"census": "NOT_MEASURED"}
    assert (found[EIGHT].asked_images, found[EIGHT].failed_images) == (4, 0)


@settings(max_examples=15, deadline=None)
@given(shift=st.floats(0, 0.5), skip=st.integers(0, 2))
def test_a_variant_that_answers_as_the_reference_loses_nothing(shift: float, skip: int) -> None:
    same = answers_of(LABELS, shift=shift, skip=skip)
    found = rows({FLOAT: same, EIGHT: dict(reversed(same.items()))})[EIGHT]
    assert found.metrics is not None
    assert found.metrics.map_50_95 is not None
    assert found.metrics.difference is not None
    assert found.metrics.difference.value == 0
    if found.metrics.map_50_95.value > 0:
        assert found.metrics.retained is not None
        assert found.metrics.retained.value == 1
    assert found.collapsed is False


def test_an_image_without_an_answer_counts_as_one_without_detections() -> None:
    first = min(RIGHT)
    lost = rows({FLOAT: RIGHT, EIGHT: RIGHT | {first: None}})[EIGHT]
    assert (lost.asked_images, lost.failed_images) == (4, 1)
    assert lost.metrics is not None
    assert lost.metrics.images == 4
    assert lost.metrics.difference is not None
    assert lost.metrics.difference.value < 0
    nothing = rows({FLOAT: RIGHT, EIGHT: dict.fromkeys(RIGHT)})[EIGHT]
    assert nothing.metrics is not None
    assert nothing.metrics.map_50_95 is not None
    assert (nothing.metrics.map_50_95.value, nothing.metrics.detections, nothing.collapsed) == (0, 0, True)


def test_a_part_of_the_images_is_no_measurement() -> None:
    part = dict(list(SHIFTED.items())[:3])
    found = rows({FLOAT: RIGHT, EIGHT: part}, censuses={(MODEL, TWO): make_census()})
    assert found[EIGHT].metrics is None
    assert found[EIGHT].collapsed is None
    assert found[EIGHT].asked_images == 3
    assert found[EIGHT].unavailable["metrics"] == found[EIGHT].unavailable["collapsed"] == "TOO_FEW_SAMPLES"
    assert found[TWO].unavailable == {"collapsed": "NO_TRIALS", "metrics": "NO_TRIALS"}
    assert found[TWO].census == make_census()


def test_without_the_reference_nothing_is_compared() -> None:
    found = rows({FLOAT: dict(list(RIGHT.items())[:2]), EIGHT: SHIFTED})[EIGHT]
    assert found.metrics is not None
    assert (found.metrics.difference, found.metrics.retained, found.collapsed) == (None, None, None)
    assert {found.unavailable[name] for name in ("difference", "retained", "collapsed")} == {"NO_REFERENCE"}


def test_a_reference_that_finds_nothing_has_no_share_to_keep() -> None:
    found = rows({FLOAT: dict.fromkeys(RIGHT), EIGHT: SHIFTED})[EIGHT]
    assert found.metrics is not None
    assert found.metrics.retained is None
    assert found.unavailable["retained"] == "ZERO_DENOMINATOR"
    assert found.collapsed is False


def test_images_without_any_object_have_no_map() -> None:
    empty = make_labels(images=2)
    bare = msgspec.structs.replace(empty, images=tuple(msgspec.structs.replace(image, objects=()) for image in empty.images))
    answers = {number: RIGHT[number] for number in (1, 2)}
    found = rows({FLOAT: answers, EIGHT: answers}, labels=bare)[EIGHT]
    assert found.metrics is not None
    assert found.metrics.map_50_95 is None
    assert found.collapsed is None
    assert set(found.unavailable.values()) == {"NO_CHECKS", "NOT_MEASURED"}


def test_answers_about_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match="labelled"):
        rows({FLOAT: RIGHT | {99: None}})


@settings(max_examples=50, deadline=None)
@given(best=st.floats(0, 1), final=st.floats(0, 1), ratio=st.floats(0.1, 1))
def test_collapse_means_below_a_share_of_the_best(best: float, final: float, ratio: float) -> None:
    assert is_collapsed(best, final, ratio) == (best > 0 and final < ratio * best)


@pytest.mark.parametrize(
    ("best", "final", "expected"),
    [(0.4, 0.19, True), (0.4, 0.2, False), (0.4, 0.0, True), (0.0, 0.0, False), (0.3, 0.3, False), (0.4, math.nan, True)],
)
def test_the_runbooks_collapse_rule(best: float, final: float, expected: bool) -> None:
    assert is_collapsed(best, final) is expected
