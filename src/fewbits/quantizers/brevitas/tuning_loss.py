"""How far a quantized detector is from the float one on the same images: the loss that tuning lowers. No labels are involved.

Three terms, each a share or in cells, so that they need no units: class probabilities (relative entropy), box edges (distance in
cells of the point's level), and the maps that feed the head (squared error over their variance). A point counts by how sure
either model is of it, so that the thousands of background points do not drown the few that become detections.

Source: knowledge distillation, arXiv 1503.02531, with the float network as teacher of its quantized copy as in
arXiv 1711.05852; the weighing of points is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fewbits.quantizers.brevitas.yolov10 import convolutions

if TYPE_CHECKING:
    import torch
    from torch import nn

CLASS_WEIGHT = 1.0
BOX_WEIGHT = 1.0
FEATURE_WEIGHT = 1.0
LEAST_CONFIDENCE = 1e-3
"""Background points still count for so much, so that no false object can grow there unseen."""
_CERTAIN = 1e-6
"""Probabilities keep this distance from 0 and 1: the logarithm ends there."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What a detector said about a batch of images."""

    output: torch.Tensor
    """float32[images, 4 + classes, points]: boxes in pixels, probabilities."""
    maps: tuple[torch.Tensor, ...]
    """What feeds the head, level by level: float32[images, channels, height, width]."""


def head_inputs(detector: Any) -> tuple[str, ...]:
    """Return the names of the convolutions that read the head's input maps, one per level. `detector` is a float `YoloV10`."""
    head = next(name for name, module in detector.named_modules() if module is detector.model[-1])
    names = list(convolutions(detector))
    levels = range(len(detector.model[-1].box))
    return tuple(next(name for name in names if name.startswith(f"{head}.box.{level}.")) for level in levels)


def observe(model: nn.Module, readers: Sequence[str], images: torch.Tensor) -> Observation:
    """Run a model once over `images` (float32[images, 3, size, size]) and keep its output and what the named layers read."""
    maps: dict[str, torch.Tensor] = {}

    def keeper(name: str) -> Any:
        def keep(_module: Any, inputs: tuple[Any, ...]) -> None:
            maps[name] = inputs[0]

        return keep

    hooks = [model.get_submodule(name).register_forward_pre_hook(keeper(name)) for name in readers]
    try:
        output = model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return Observation(output, tuple(maps[name] for name in readers))


def distillation_loss(student: Observation, teacher: Observation, point_strides: torch.Tensor) -> torch.Tensor:
    """Return the loss of one batch, a scalar >= 0, 0 where both agree. `point_strides` float32[1, points] are pixels per cell."""
    wanted, given = (seen.output[:, 4:].clamp(_CERTAIN, 1 - _CERTAIN) for seen in (teacher, student))
    sure = wanted.amax(dim=1)
    weights = sure.maximum(given.detach().amax(dim=1)) + LEAST_CONFIDENCE
    classes = (_relative_entropy(wanted, given).sum(dim=1) * weights).sum() / weights.sum()
    edges = ((student.output[:, :4] - teacher.output[:, :4]) / point_strides).abs().mean(dim=1)
    boxes = (edges * sure).sum() / sure.sum()
    pairs = zip(student.maps, teacher.maps, strict=True)
    maps = sum((given - wanted).square().mean() / wanted.var().clamp_min(_CERTAIN) for given, wanted in pairs) / len(teacher.maps)
    loss: torch.Tensor = CLASS_WEIGHT * classes + BOX_WEIGHT * boxes + FEATURE_WEIGHT * maps
    return loss


def _relative_entropy(wanted: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    return wanted * (wanted / given).log() + (1 - wanted) * ((1 - wanted) / (1 - given)).log()
