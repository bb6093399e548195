"""From raw detector outputs to boxes."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.runtimes.onnx.decode import (
    Boxes,
    DecodeSettings,
    Head,
    OutputFormError,
    Scores,
    cell_centres,
    decode,
    looks_like_logits,
    suppressed,
)

SETTINGS = DecodeSettings(
    classes=3, image_size=64, confidence=0.1, iou=0.5, max_detections=5, pre_nms_limit=100, head=Head.ONE_TO_ONE
)


def settings(**changes: Any) -> DecodeSettings:
    from dataclasses import replace

    return replace(SETTINGS, **changes)


def points(*rows: tuple[float, ...]) -> Any:
    """One column per point: cx, cy, w, h and three scores; background points fill up."""
    filled = [*rows, *[(1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0)] * (20 - len(rows))]
    return np.array(filled, dtype=np.float32).T[None]


NEAR = ((10.0, 10.0, 8.0, 8.0, 0.9, 0.0, 0.0), (11.0, 10.0, 8.0, 8.0, 0.8, 0.0, 0.0), (11.0, 10.0, 8.0, 8.0, 0.0, 0.7, 0.0))


def test_decoded_boxes_come_best_first_above_the_confidence() -> None:
    found = decode(points((10, 20, 4, 6, 0.3, 0.05, 0.6), (1, 1, 2, 2, 0.09, 0.0, 0.0)), Scores.PROBABILITIES, SETTINGS)
    assert found.scores.tolist() == pytest.approx([0.6, 0.3])
    assert found.classes.tolist() == [2, 0]
    assert found.corners[0].tolist() == [8, 17, 12, 23]


def test_either_axis_may_come_first_and_the_batch_axis_may_be_missing() -> None:
    raw = points(*NEAR)
    expected = decode(raw, Scores.PROBABILITIES, SETTINGS)
    for other in (raw[0], raw.transpose(0, 2, 1), raw[0].T):
        assert np.array_equal(decode(other, Scores.PROBABILITIES, SETTINGS).corners, expected.corners)


def test_one_to_many_heads_are_suppressed_within_a_class_only() -> None:
    raw = points(*NEAR)
    assert len(decode(raw, Scores.PROBABILITIES, SETTINGS).scores) == 3
    many = decode(raw, Scores.PROBABILITIES, settings(head=Head.ONE_TO_MANY))
    assert many.scores.tolist() == pytest.approx([0.9, 0.7])
    assert len(decode(raw, Scores.PROBABILITIES, settings(head=Head.ONE_TO_MANY, iou=0.95)).scores) == 3


def test_logits_become_probabilities_once() -> None:
    raw = points((10, 10, 4, 4, 2.0, -3.0, -3.0))
    raw[0, 4:, 1:] = -9
    assert looks_like_logits(raw, SETTINGS)
    found = decode(raw, Scores.LOGITS, SETTINGS)
    assert found.scores.tolist() == pytest.approx([1 / (1 + np.exp(-2))], rel=1e-5)
    with pytest.raises(ValueError, match="no probabilities"):
        decode(raw, Scores.PROBABILITIES, SETTINGS)
    assert not looks_like_logits(points(*NEAR), SETTINGS)


def test_distributions_give_expected_distances() -> None:
    centres, strides = cell_centres(64)
    assert len(centres) == 64 + 16 + 4
    raw = np.zeros((1, 64 + 3, len(centres)), dtype=np.float32)
    place = 64 + 5  # second level, row 1, column 1
    for edge, distance in enumerate((1, 2, 3, 4)):
        raw[0, edge * 16 + distance, place] = 50.0
    raw[0, 64 + 1, place] = 0.8
    found = decode(raw, Scores.PROBABILITIES, SETTINGS)
    assert strides[place] == 16
    assert found.classes.tolist() == [1]
    assert found.corners[0].tolist() == pytest.approx([(1.5 - 1) * 16, (1.5 - 2) * 16, (1.5 + 3) * 16, (1.5 + 4) * 16], abs=1e-3)


def test_a_flat_distribution_is_the_middle_of_its_bins() -> None:
    raw = np.zeros((1, 67, 84), dtype=np.float32)
    raw[0, 64, 0] = 1.0
    assert decode(raw, Scores.PROBABILITIES, SETTINGS).corners[0].tolist() == pytest.approx(
        [(0.5 - 7.5) * 8] * 2 + [(0.5 + 7.5) * 8] * 2
    )


def test_finished_detections_are_sorted_and_cut() -> None:
    rows = np.zeros((1, 8, 6), dtype=np.float32)
    rows[0, :3] = [(0, 0, 4, 4, 0.3, 2), (1, 1, 5, 5, 0.9, 0), (1, 1, 5, 5, 0.05, 0)]
    found = decode(rows, Scores.PROBABILITIES, SETTINGS)
    assert found.scores.tolist() == pytest.approx([0.9, 0.3])
    assert found.classes.tolist() == [0, 2]
    rows[0, 0, 5] = 7
    with pytest.raises(ValueError, match="of class 7"):
        decode(rows, Scores.PROBABILITIES, SETTINGS)


def test_finished_detections_may_come_as_logits() -> None:
    rows = np.zeros((1, 2, 6), dtype=np.float32)
    rows[0] = [(0, 0, 4, 4, -3, 1), (0, 0, 4, 4, 2, 0)]
    assert looks_like_logits(rows, SETTINGS)
    found = decode(rows, Scores.LOGITS, settings(confidence=0.01))
    assert found.scores.tolist() == pytest.approx([1 / (1 + np.exp(-2)), 1 / (1 + np.exp(3))], rel=1e-5)
    assert found.classes.tolist() == [0, 1]


def test_with_two_classes_rows_behind_a_batch_axis_are_finished_detections() -> None:
    two = settings(classes=2)
    rows = np.array([[[10, 20, 30, 40, 0.9, 1]] * 3], dtype=np.float32)
    assert decode(rows, Scores.PROBABILITIES, two).corners[0].tolist() == [10, 20, 30, 40]
    assert decode(rows[0], Scores.PROBABILITIES, settings(classes=2, confidence=0.95)).corners[0].tolist() == [-5, 0, 25, 40]


def test_rounding_around_one_is_no_logit() -> None:
    raw = points((10, 10, 4, 4, 1.004, 0.2, -0.004))
    assert not looks_like_logits(raw, SETTINGS)
    assert decode(raw, Scores.PROBABILITIES, SETTINGS).scores.tolist() == pytest.approx([1.0, 0.2])


def test_half_precision_outputs_are_computed_on_in_single() -> None:
    # above 1024, half precision knows whole numbers only
    raw = points((1025.0, 1025.0, 1.0, 1.0, 0.9, 0.0, 0.0)).astype(np.float16)
    assert decode(raw, Scores.PROBABILITIES, SETTINGS).corners[0].tolist() == [1024.5, 1024.5, 1025.5, 1025.5]


def test_large_boxes_of_two_classes_do_not_meet() -> None:
    corners = np.array([(0, 0, 9000, 9000), (0, 0, 9000, 9000), (4096, 4096, 13096, 13096)], dtype=np.float64)
    boxes = Boxes(corners, np.array([0.9, 0.8, 0.7]), np.array([1, 0, 0], dtype=np.intp))
    assert suppressed(boxes, 0.9, 10).tolist() == [0, 1, 2]


@pytest.mark.parametrize("shape", [(1, 9, 20), (1, 2, 3, 4), (7,), (1, 84, 20)])
def test_other_forms_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(OutputFormError):
        decode(np.zeros(shape, dtype=np.float32), Scores.PROBABILITIES, SETTINGS)


def test_points_of_another_image_size_are_refused() -> None:
    with pytest.raises(OutputFormError, match="do not belong to images of 64 pixels"):
        decode(np.zeros((1, 67, 50), dtype=np.float32), Scores.PROBABILITIES, SETTINGS)


def test_values_that_are_not_finite_are_refused() -> None:
    raw = points(*NEAR)
    raw[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        decode(raw, Scores.PROBABILITIES, SETTINGS)


def test_no_detection_is_an_answer() -> None:
    found = decode(points(), Scores.PROBABILITIES, SETTINGS)
    assert found.scores.shape == (0,)
    assert found.corners.shape == (0, 4)
    assert decode(points(), Scores.PROBABILITIES, settings(head=Head.ONE_TO_MANY)).scores.shape == (0,)


@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(1, 20), st.integers(1, 20), st.integers(0, 2)),
        max_size=25,
    ),
    st.floats(0.1, 0.9),
)
def test_suppression_keeps_no_overlapping_pair_of_a_class_and_drops_nothing_else(rows: list[tuple[int, ...]], iou: float) -> None:
    corners = np.array([(x, y, x + w, y + h) for x, y, w, h, _ in rows], dtype=np.float64).reshape(-1, 4)
    classes = np.array([row[4] for row in rows], dtype=np.intp)
    boxes = Boxes(corners, np.linspace(1, 0.5, len(rows)), classes)
    kept = suppressed(boxes, iou, 100).tolist()
    assert kept == sorted(kept)

    def overlap(one: int, other: int) -> float:
        sides = np.minimum(corners[one, 2:], corners[other, 2:]) - np.maximum(corners[one, :2], corners[other, :2])
        shared = float(np.prod(np.maximum(sides, 0)))
        areas = [float(np.prod(corners[n, 2:] - corners[n, :2])) for n in (one, other)]
        return shared / (sum(areas) - shared) if classes[one] == classes[other] else 0.0

    for place in range(len(rows)):
        rivals = [other for other in kept if other < place and overlap(place, other) > iou + 1e-9]
        assert (place in kept) or rivals
        if place in kept:
            assert not [other for other in kept if other < place and overlap(place, other) > iou + 1e-9]


def test_settings_travel_as_plain_values() -> None:
    assert msgspec.json.encode(SETTINGS.head) == b'"one-to-one"'
