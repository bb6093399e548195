"""Calibration images: from files to one tensor, shown as the runtime shows them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fewbits.core.errors import SpecError
from fewbits.images.letterbox import letterbox
from fewbits.images.opening import open_picture

if TYPE_CHECKING:
    import torch


def load_images(paths: Sequence[Path], image_size: int) -> torch.Tensor:
    """Return float32[images, 3, size, size], RGB 0..1, letterboxed. Raises `SpecError` for no image, or one that is none."""
    import torch

    if not paths:
        raise SpecError.single("calibration", "there is no image to calibrate on", "name at least one, 16 or more are better")
    shown = [letterbox(open_picture(path).pixels, image_size).pixels for path in paths]
    return torch.stack([torch.from_numpy(pixels) for pixels in shown])
