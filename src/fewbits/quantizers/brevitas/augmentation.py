"""Seeded changes to letterboxed images for training: mirrored, zoomed, shifted, brighter or darker. No labels move."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

GREY = 114 / 255
"""What lies outside of the image: the letterbox's own grey."""
ZOOM = (0.7, 1.4)
"""Factor on the size of what is shown, drawn evenly on a logarithmic scale."""
SHIFT = 0.15
"""Largest shift in either direction, as a share of the image's width."""
BRIGHTNESS = (0.7, 1.3)
"""Factor on every pixel value."""


def augmented(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return changed copies of images: float32[n, 3, size, size] in 0..1, the same shape; each image is changed in its own way.

    Draws from `generator` alone, four numbers and one coin per image, so that the same seed gives the same images.
    """
    import torch
    from torch.nn import functional

    count = len(images)
    mirrored = torch.randint(0, 2, (count,), generator=generator).float() * 2 - 1
    zoom = _between(torch.rand(count, generator=generator), *ZOOM)
    shift = (torch.rand(count, 2, generator=generator) * 2 - 1) * 2 * SHIFT  # an image spans -1..1 on the grid
    brightness = BRIGHTNESS[0] + torch.rand(count, generator=generator) * (BRIGHTNESS[1] - BRIGHTNESS[0])
    matrices = torch.zeros(count, 2, 3)
    matrices[:, 0, 0], matrices[:, 1, 1], matrices[:, :, 2] = mirrored / zoom, 1 / zoom, shift
    grid = functional.affine_grid(matrices.to(images.device), list(images.shape), align_corners=False)
    # the sampler pads with zeros, so grey is made zero for it
    moved = functional.grid_sample(images - GREY, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + GREY
    return (moved * brightness.to(images.device)[:, None, None, None]).clamp(0, 1)


def _between(share: torch.Tensor, low: float, high: float) -> torch.Tensor:
    return low * (high / low) ** share
