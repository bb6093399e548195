"""What convolutions see: input columns at sampled output positions, the same positions in every model and every run."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn


UNIFORM_SHARE = 0.5
"""Share of the positions that are drawn whatever they matter: background must stay quiet, too."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How many output positions a layer's statistics are made from, and how they are drawn."""

    samples: int = 32_768
    """Over all images, so that more images cost no more memory: fourteen for each column of YOLOv10-n's widest layers."""
    most_per_image: int = 4096
    seed: int = 0
    importance: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Layer -> float32[images, output positions], not negative: half of the draws go where it is large. A layer that is not
    named, or an image without any, is drawn from uniformly."""


@dataclass(slots=True)
class FloatInputs:
    """Input columns of every convolution in the float model: name -> float32[groups, samples, columns]. Taken once each."""

    columns: dict[str, torch.Tensor] = field(default_factory=dict)


def sampled_columns(values: torch.Tensor, layer: Any, places: torch.Tensor) -> torch.Tensor:
    """Return the columns that a convolution multiplies with its weights, at the output positions `places` (int64[images, n]).

    `values` float32[images, channels, height, width] -> float32[groups, images x n, channels of a group x kernel height x width],
    in the order of the weights. Padding is zeros, as in the convolution.
    """
    import torch
    from torch.nn import functional

    images, channels, _height, width = values.shape
    kernel_height, kernel_width = layer.kernel_size
    (stride_y, stride_x), (pad_y, pad_x) = layer.stride, layer.padding
    padded = functional.pad(values, [pad_x, pad_x, pad_y, pad_y])
    columns_out = (width + 2 * pad_x - kernel_width) // stride_x + 1
    top, left = (places // columns_out) * stride_y, (places % columns_out) * stride_x
    each = torch.arange(images)[:, None]
    taken = [
        padded[each, :, top + y, left + x]  # [images, n, channels]
        for y in range(kernel_height)
        for x in range(kernel_width)
    ]
    stacked = torch.stack(taken, dim=-1).flatten(0, 1)  # [samples, channels, kernel]
    grouped = stacked.reshape(stacked.shape[0], layer.groups, channels // layer.groups * kernel_height * kernel_width)
    return grouped.transpose(0, 1).contiguous()


def sampled_places(values: torch.Tensor, layer: Any, sampling: Sampling, name: str) -> torch.Tensor:
    """Draw output positions for a layer and its input: int64[images, n], with repeats."""
    import torch

    generator = torch.Generator().manual_seed(zlib.crc32(f"{sampling.seed}\n{name}".encode()))
    chances = _chances(values, layer, sampling, name)
    count = min(sampling.most_per_image, max(1, sampling.samples // len(values)))
    return torch.multinomial(chances, count, replacement=True, generator=generator)


def uniform_weights(values: torch.Tensor, layer: Any, places: torch.Tensor, sampling: Sampling, name: str) -> torch.Tensor:
    """Return what each sampled position counts in a mean over all positions: float32[images x n], summing to 1.

    Places that were drawn more often for what they matter count less each (importance sampling, self-normalised).
    """
    chances = _chances(values, layer, sampling, name)
    weights = 1 / chances.gather(1, places).flatten()
    return weights / weights.sum()


def _chances(values: torch.Tensor, layer: Any, sampling: Sampling, name: str) -> torch.Tensor:
    """Return how likely each output position is drawn: float32[images, positions], rows summing to 1."""
    import torch

    images, _channels, height, width = values.shape
    rows = (height + 2 * layer.padding[0] - layer.kernel_size[0]) // layer.stride[0] + 1
    columns = (width + 2 * layer.padding[1] - layer.kernel_size[1]) // layer.stride[1] + 1
    chances = torch.full((images, rows * columns), 1 / (rows * columns))
    if name in sampling.importance:
        importance = sampling.importance[name]
        whole = importance.sum(dim=1, keepdim=True)
        chances = torch.where(whole > 0, UNIFORM_SHARE * chances + (1 - UNIFORM_SHARE) * importance / whole, chances)
    return chances


def record_float_inputs(
    model: nn.Module, convolutions: Mapping[str, nn.Module], images: torch.Tensor, sampling: Sampling
) -> FloatInputs:
    """Run the float model once over `images` (float32[images, 3, size, size]) and keep what its convolutions saw."""
    import torch

    found = FloatInputs()
    hooks = []
    for name, layer in convolutions.items():

        def keep(module: Any, inputs: tuple[Any, ...], name: str = name) -> None:
            places = sampled_places(inputs[0], module, sampling, name)
            found.columns[name] = sampled_columns(inputs[0], module, places)

        hooks.append(layer.register_forward_pre_hook(keep))
    try:
        with torch.no_grad():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found
