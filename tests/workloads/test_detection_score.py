from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detection_samples import detection, thing
from fewbits.core.codec import encode_canonical
from fewbits.records.detection import Detection, Detections, LabelledObject
from fewbits.records.task import DetectionCheck
from fewbits.workloads.detection.score import detection_result
from fewbits.workloads.text.checks import check_count


def asked(*objects: LabelledObject, **changes: Any) -> DetectionCheck:
    return DetectionCheck(image_id=1, width=640, height=480, objects=objects, **changes)


def answer(*detections: Detection, width: int = 640, height: int = 480) -> str:
    return encode_canonical(Detections(width=width, height=height, detections=detections)).decode()


def passed(check: DetectionCheck, *detections: Detection) -> int:
    result = detection_result(check, answer(*detections))
    assert result.kind == "detection"
    assert result.total == check_count(check)
    assert (result.detail == "") == (result.passed == result.total)
    return result.passed


BOX = (100.0, 100.0, 40.0, 40.0)
FAR = (400.0, 300.0, 40.0, 40.0)


def test_found_exactly_and_not_at_all() -> None:
    check = asked(thing(1, *BOX), thing(2, *FAR))
    assert passed(check, detection(1, 0.9, *BOX), detection(2, 0.1, *FAR)) == 20
    assert passed(check) == 0
    assert passed(check, detection(2, 0.9, *BOX), detection(1, 0.9, *FAR)) == 0
    assert "match 0 at overlap 0.5" in detection_result(check, answer()).detail


def test_the_overlap_decides_at_how_many_thresholds_it_is_found() -> None:
    # 100 x 40 of 100 x 50: an overlap of 0.8 passes 0.50, 0.55, ... 0.80
    check = asked(thing(1, 0, 0, 100, 50))
    assert passed(check, detection(1, 0.9, 0, 0, 100, 40)) == 7


def test_only_the_r_best_detections_count() -> None:
    check = asked(thing(1, *BOX))
    alarm, right = detection(1, 0.9, *FAR), detection(1, 0.8, *BOX)
    assert passed(check, right) == 10
    assert passed(check, alarm, right) == 0
    # equal scores: the first as reported
    assert passed(check, detection(1, 0.8, *BOX), detection(1, 0.8, *FAR)) == 10
    assert passed(check, detection(1, 0.8, *FAR), detection(1, 0.8, *BOX)) == 0


def test_an_object_is_found_once() -> None:
    check = asked(thing(1, *BOX), thing(1, *FAR))
    assert passed(check, detection(1, 0.9, *BOX), detection(1, 0.8, *BOX), detection(1, 0.7, *FAR)) == 10


def test_detections_on_a_crowd_take_no_rank() -> None:
    crowd = thing(1, 300, 200, 300, 250, crowd=True)
    check = asked(thing(1, *BOX), crowd)
    inside = [detection(1, 0.9 - number / 100, 320 + 30 * number, 220, 20, 20) for number in range(5)]
    assert passed(check, *inside, detection(1, 0.3, *BOX)) == 10
    # another class on the crowd is a false alarm
    assert passed(check, detection(2, 0.9, 320, 220, 20, 20), detection(1, 0.3, *BOX)) == 0
    # half of it lies on the crowd: skipped at 0.5, a false alarm above
    assert passed(check, detection(1, 0.9, 290, 220, 20, 20), detection(1, 0.3, *BOX)) == 1


def test_an_image_without_objects_is_one_check() -> None:
    check = asked()
    assert passed(check) == 1
    assert passed(check, detection(1, 0.25, *BOX)) == 1
    assert passed(check, detection(1, 0.26, *BOX)) == 0
    assert passed(asked(quiet_score=0.5), detection(1, 0.26, *BOX)) == 1
    only_crowd = asked(thing(1, 300, 200, 300, 250, crowd=True))
    assert passed(only_crowd, detection(1, 0.9, 320, 220, 20, 20)) == 1
    assert passed(only_crowd, detection(1, 0.9, *BOX)) == 0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not a list of detections"),
        ("a cat, a dog", "not a list of detections"),
        ("[]", "not a list of detections"),
        ("[" * 100_000, "not a list of detections"),
        ("\ud800", "not a list of detections"),
        (answer() + "x", "not a list of detections"),
        (answer().replace("}", ',"more":1}'), "unknown field"),
        (answer().replace(".v1", ".v2"), "schema version"),
        (answer(width=480, height=640), "has 480 x 640 pixels, the labels are for 640 x 480"),
        (answer().replace("[]", "[[1,1.5,0,0,1,1]]"), "<= 1.0"),
        (answer().replace("[]", "[[1,0.5,0,0,NaN,1]]"), "not a list of detections"),
        (answer().replace("[]", "[[1,0.5,0,0,1e999,1]]"), "not a list of detections"),
        (answer().replace("[]", "[[1,0.5,0,0,1]]"), "not a list of detections"),
        (answer().replace("[]", f"[{','.join(['[1,0.5,0,0,1,1]'] * 10_001)}]"), "10001 detections, at most 10000"),
        (" " * 2_000_001, "longer than 2000000 bytes"),
        ("é" * 1_500_000, "longer than 2000000 bytes"),
    ],
)
def test_answers_that_are_no_detections_fail_every_check(text: str, reason: str) -> None:
    result = detection_result(asked(thing(1, *BOX)), text)
    assert (result.passed, result.total) == (0, 10)
    assert reason in result.detail
    assert len(result.detail) <= 300
    assert detection_result(asked(), text).passed == 0


def test_ten_thousand_detections_are_scored() -> None:
    check = asked(*(thing(1, 10 * number, 0, 10, 10) for number in range(30)))
    rows = [detection(1, 0.5, 10 * (number % 30), 0, 10, 10) for number in range(10_000)]
    assert passed(check, *rows) == 300


def overlap(one: Detection, other: LabelledObject) -> float:
    x, y, width, height = other.bbox
    across = min(one.x + one.width, x + width) - max(one.x, x)
    down = min(one.y + one.height, y + height) - max(one.y, y)
    if across <= 0 or down <= 0:
        return 0.0
    shared, own = across * down, one.width * one.height
    return shared / (own if other.crowd else own + width * height - shared)


def counted_one_by_one(objects: Sequence[LabelledObject], detections: Sequence[Detection]) -> int:
    """Score as the definition reads: walk down the ranking at each overlap, until R ranks are used."""
    total, wanted = 0, sum(not one.crowd for one in objects)
    for threshold in np.linspace(0.5, 0.95, 10):
        free, used = [one for one in objects if not one.crowd], 0
        for one in sorted(detections, key=lambda detection: -detection.score):
            if used == wanted:
                break
            same = [other for other in free if other.category_id == one.category_id and overlap(one, other) >= threshold]
            crowds = [other for other in objects if other.crowd and other.category_id == one.category_id]
            if same:
                free.remove(max(reversed(same), key=lambda other: overlap(one, other)))
                total, used = total + 1, used + 1
            elif not any(overlap(one, crowd) >= threshold for crowd in crowds):
                used += 1
    return total


PLACES, SIDES = st.sampled_from([0.0, 10.0, 20.0, 25.0]), st.sampled_from([9.0, 10.0, 15.0, 20.0, 40.0])
BOXES = st.tuples(PLACES, PLACES, SIDES, SIDES)


@settings(max_examples=200, deadline=None)
@given(
    objects=st.lists(st.tuples(st.integers(1, 2), BOXES, st.sampled_from([False, False, True])), min_size=1, max_size=6),
    detections=st.lists(st.tuples(st.integers(1, 3), st.sampled_from([0.1, 0.5, 0.9]), BOXES), max_size=12),
)
def test_the_definition_read_literally_gives_the_same(objects: Any, detections: Any) -> None:
    labels = [thing(category, *box, crowd=crowd) for category, box, crowd in objects]
    if all(one.crowd for one in labels):
        labels.append(thing(1, *BOX))
    rows = [detection(category, score, *box) for category, score, box in detections]
    assert passed(asked(*labels), *rows) == counted_one_by_one(labels, rows)


def test_the_score_reads_json_as_runtimes_write_it() -> None:
    text = json.dumps(
        {"schema_version": "fewbits.detections.v1", "width": 640, "height": 480, "detections": [[1, 1, 100, 100, 40, 40]]}
    )
    assert detection_result(asked(thing(1, *BOX)), text).passed == 10
