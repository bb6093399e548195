"""Fit a picture into a square without changing its shape, as detectors are trained, and bring boxes back. Numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fewbits.images.opening import Pixels

Floats = npt.NDArray[np.float64]

PAD_VALUE = 114
"""Grey of the bars around the picture, 0..255. Source: what YOLOv10 is trained with."""


@dataclass(frozen=True, slots=True)
class Letterboxed:
    """A picture in its square: `pixels` float32[3, size, size], RGB, 0..1; `left` and `top` bars in pixels of the square."""

    pixels: npt.NDArray[np.float32]
    scale: float
    """Pixels of the square for each pixel of the original."""
    left: int
    top: int
    width: int
    """Of the original, in its own pixels; `height` likewise."""
    height: int


def letterbox(pixels: Pixels, size: int = 640) -> Letterboxed:
    """Scale `pixels` (uint8[height, width, 3]) up or down until they just fit a square of `size`, in the middle of grey bars.

    An odd bar is thinner by one pixel on the left or on top. Raises `ValueError` for another shape or type, or without pixels.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or pixels.size == 0 or size < 1:
        msg = (
            f"letterbox needs uint8[height, width, 3] and a size of at least 1, not {pixels.dtype}{list(pixels.shape)} and {size}"
        )
        raise ValueError(msg)
    height, width = pixels.shape[:2]
    scale = min(size / height, size / width)
    fitted = resized(pixels, _scaled(height, scale), _scaled(width, scale))
    top, left = (size - fitted.shape[0]) // 2, (size - fitted.shape[1]) // 2
    square = np.full((size, size, 3), PAD_VALUE, dtype=np.uint8)
    square[top : top + fitted.shape[0], left : left + fitted.shape[1]] = fitted
    planes = np.ascontiguousarray(square.transpose(2, 0, 1)).astype(np.float32) / np.float32(255)
    return Letterboxed(planes, scale, left, top, width, height)


def resized(pixels: Pixels, height: int, width: int) -> Pixels:
    """Resize to uint8[height, width, 3]: bilinear between pixel centres, each result made from at most 4 pixels, however small.

    That is OpenCV's INTER_LINEAR, up to one level of its rounding. The same array comes back where the size already fits.
    """
    if pixels.shape[:2] == (height, width):
        return pixels
    upper, lower, down = _neighbours(pixels.shape[0], height)
    first, second, right = _neighbours(pixels.shape[1], width)
    # rows first: the smaller of the two intermediate arrays when shrinking tall pictures, and contiguous reads
    rows = pixels[upper] * (1 - down)[:, None, None] + pixels[lower] * down[:, None, None]
    values = rows[:, first] * (1 - right)[None, :, None] + rows[:, second] * right[None, :, None]
    return np.floor(values + np.float32(0.5)).astype(np.uint8)


def _scaled(side: int, scale: float) -> int:
    """Return a side after scaling, whole pixels; a line stays visible."""
    return max(1, round(side * scale))


def _neighbours(old: int, new: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """Return for each new position the two old ones that it lies between, and how far (0..1) towards the second."""
    places = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
    before = np.floor(places).astype(np.intp)
    return before, np.minimum(before + 1, old - 1), (places - before).astype(np.float32)


def to_original(boxes_xyxy: Floats, letterboxed: Letterboxed) -> Floats:
    """Bring boxes back: float64[boxes, 4] as left, top, right, bottom, from pixels of the square to pixels of the original.

    They are clipped to it. Each side is scaled by what its rounding to whole pixels really made of it. NaN stays NaN.
    """
    across = letterboxed.width / _scaled(letterboxed.width, letterboxed.scale)
    down = letterboxed.height / _scaled(letterboxed.height, letterboxed.scale)
    offsets = np.array([letterboxed.left, letterboxed.top] * 2, dtype=np.float64)
    factors = np.array([across, down] * 2)
    limits = np.array([letterboxed.width, letterboxed.height] * 2, dtype=np.float64)
    moved: Floats = (np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4) - offsets) * factors
    return np.clip(moved, 0.0, limits)
