from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.images.letterbox import PAD_VALUE, letterbox, resized, to_original


def grey(rows: Any) -> Any:
    return np.repeat(np.array(rows, dtype=np.uint8)[:, :, None], 3, axis=2)


def test_doubling_by_hand() -> None:
    # centres of the four new pixels lie at -0.25, 0.25, 0.75, 1.25 of the old ones; beyond the edge the edge counts
    assert resized(grey([[0, 100]]), 1, 4)[0, :, 0].tolist() == [0, 25, 75, 100]
    assert resized(grey([[0], [100]]), 4, 1)[:, 0, 0].tolist() == [0, 25, 75, 100]
    assert resized(grey([[0, 100], [100, 200]]), 4, 4)[:, :, 0].tolist() == [
        [0, 25, 75, 100],
        [25, 50, 100, 125],
        [75, 100, 150, 175],
        [100, 125, 175, 200],
    ]


def test_shrinking_reads_the_nearest_pixels_only() -> None:
    # to a quarter: the new centre lies between old pixels 1 and 2, and the others are not looked at (no antialiasing)
    assert resized(grey([[0, 10, 20, 0]]), 1, 1)[0, 0, 0] == 15
    # to a third: exactly on the middle pixel
    assert resized(grey([[255, 7, 255, 255, 9, 255]]), 1, 2)[0, :, 0].tolist() == [7, 9]


def test_halves_are_rounded_up() -> None:
    assert resized(grey([[0, 1]]), 1, 1)[0, 0, 0] == 1
    assert resized(grey([[255, 254]]), 1, 1)[0, 0, 0] == 255


def test_what_opencv_makes_of_a_gradient() -> None:
    # cv2.resize(..., INTER_LINEAR) of version 5.0.0: equal up to one level of its fixed-point arithmetic
    image = grey([[(7 * x + 31 * y) % 256 for x in range(5)] for y in range(3)])
    noted = [
        [0, 4, 9, 14, 19, 24, 28],
        [19, 23, 28, 33, 38, 43, 47],
        [43, 46, 51, 57, 62, 67, 71],
        [62, 66, 71, 76, 81, 86, 90],
    ]
    assert np.abs(resized(image, 4, 7)[:, :, 0].astype(int) - np.array(noted)).max() <= 1


def test_a_picture_that_fits_is_not_touched() -> None:
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    boxed = letterbox(image)
    assert (boxed.scale, boxed.left, boxed.top, boxed.width, boxed.height) == (1.0, 0, 80, 640, 480)
    assert boxed.pixels.dtype == np.float32
    assert np.array_equal(np.rint(boxed.pixels[:, 80:560] * 255).astype(np.uint8), image.transpose(2, 0, 1))
    bars = np.concatenate([boxed.pixels[:, :80], boxed.pixels[:, 560:]])
    assert np.allclose(bars, PAD_VALUE / 255)


def test_odd_bars_are_thinner_in_front() -> None:
    boxed = letterbox(np.zeros((5, 8, 3), np.uint8), size=8)
    assert (boxed.top, boxed.left) == (1, 0)
    assert (boxed.pixels[0, :, 0] == 0).tolist() == [False, True, True, True, True, True, False, False]


def test_a_line_stays_visible() -> None:
    boxed = letterbox(np.zeros((1, 5000, 3), np.uint8), size=64)
    assert (boxed.pixels == 0).any(axis=(0, 2)).sum() == 1
    assert np.allclose(to_original(np.array([[0.0, boxed.top, 64, boxed.top + 1]]), boxed), [[0, 0, 5000, 1]])


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 90), width=st.integers(1, 90), size=st.integers(16, 64), seed=st.integers(0, 99))
def test_boxes_come_back_where_they_were(height: int, width: int, size: int, seed: int) -> None:
    boxed = letterbox(np.zeros((height, width, 3), np.uint8), size=size)
    inside = boxed.pixels[0] == 0
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    whole = np.array([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]], dtype=float)
    assert np.allclose(to_original(whole, boxed), [[0, 0, width, height]])
    corners = np.sort(np.random.default_rng(seed).random((5, 2, 2)), axis=1) * [width, height]
    fitted = np.array([whole[0, 2] - whole[0, 0], whole[0, 3] - whole[0, 1]])
    placed = (corners / [width, height] * fitted + whole[0, :2]).reshape(5, 4)
    assert np.allclose(to_original(placed, boxed), corners.reshape(5, 4))


def test_boxes_are_clipped_to_the_picture() -> None:
    boxed = letterbox(np.zeros((50, 100, 3), np.uint8), size=100)
    assert to_original(np.array([[-5.0, 0.0, 200.0, 90.0]]), boxed).tolist() == [[0, 0, 100, 50]]
    assert to_original(np.zeros((0, 4)), boxed).shape == (0, 4)


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), new=st.tuples(st.integers(1, 60), st.integers(1, 60)))
def test_resizing_stays_between_the_values_it_is_made_of(height: int, width: int, new: tuple[int, int]) -> None:
    image = np.random.default_rng(height * 97 + width).integers(40, 200, (height, width, 3), dtype=np.uint8)
    result = resized(image, *new)
    assert result.shape == (*new, 3)
    assert result.min() >= image.min()
    assert result.max() <= image.max()


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)],
)
def test_other_arrays_are_refused(pixels: Any) -> None:
    with pytest.raises(ValueError, match="letterbox needs"):
        letterbox(pixels)
