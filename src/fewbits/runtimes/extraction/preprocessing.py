"""Pictures made ready for reading: brought to a size at which print can be read and memory stays bounded.

Skew, perspective and uneven light are left as they are: the detector's boxes follow the text, each box is straightened by
itself before it is recognised, and the layout rules straighten the lines from the boxes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LONGEST_SIDE = 4000
"""Pixels. A4 at 300 dots per inch has 3508: more adds time and memory, not legibility."""
SMALLEST_LONG_SIDE = 1200
"""Pixels. A4 at 100 dots per inch has 1169: below, small print has fewer pixels than the recogniser was trained with."""
LARGEST_ENLARGEMENT = 2.5
"""More than this only enlarges the blur (and a picture of 10 pixels stays a small one)."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A page to read, uint8[h, w, 3] RGB. `scale` is its size as a multiple of the original's; `steps` say what was done, in
    words. No step measures how certain it is, so `confidence` is `None`.
    """

    pixels: NDArray[np.uint8]
    scale: float
    steps: tuple[str, ...]
    confidence: float | None = None


def prepared(pixels: NDArray[np.uint8]) -> Prepared:
    """Return a page, uint8[h, w, 3] RGB, with its longer side brought within bounds. Raises `ValueError` on another shape."""
    import numpy as np

    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
        msg = f"a page is uint8[h, w, 3] with at least one pixel, this is {pixels.dtype}{list(pixels.shape)}"
        raise ValueError(msg)
    height, width = pixels.shape[:2]
    scale = _scale(max(height, width))
    if scale == 1.0:
        return Prepared(pixels, 1.0, ())
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    word = "enlarged" if scale > 1 else "reduced"
    return Prepared(_resized(pixels, size), scale, (f"{word} from {width} x {height} to {size[0]} x {size[1]}",))


def _scale(longer: int) -> float:
    if longer > LONGEST_SIDE:
        return LONGEST_SIDE / longer
    if longer < SMALLEST_LONG_SIDE:
        return min(LARGEST_ENLARGEMENT, SMALLEST_LONG_SIDE / longer)
    return 1.0


def _resized(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize to (width, height): Lanczos, first by whole steps where the picture is much larger (Pillow's reducing gap)."""
    import numpy as np
    from PIL import Image

    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0), dtype=np.uint8)
