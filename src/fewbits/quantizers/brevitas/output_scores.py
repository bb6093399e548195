"""What rounding one layer does to the detector's output: a second-order estimate from gradients, no layer quantized for real.

For outputs y and a layer's output a, the squared change of y is about the sum over channels of S x e, with S the sum over
positions of the squared gradients of y (the diagonal of the Gauss-Newton matrix, by random probes) and e the mean squared error
that rounding leaves in that channel.

Sources: the expansion behind optimal brain surgeon and GPTQ, with the Gauss-Newton matrix for the Hessian; Hutchinson's estimator
for its diagonal (Bekas, Kokiopoulou and Saad 2007, doi 10.1016/j.apnum.2007.01.003).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fewbits.quantizers.brevitas.rounding import clipped_scales, compensated, output_error

if TYPE_CHECKING:
    import torch
    from torch import nn

PROBES = 4
"""Random sign vectors per batch: errors of single channels average out over a layer."""
BOX_UNIT_PIXELS = 16.0
"""A box edge that moves by so much weighs as much as a probability that moves from 0 to 1."""
_BATCH = 2


@dataclass(frozen=True, slots=True)
class LayerCost:
    """A layer's number of weights, and the estimated squared change of the output when it alone is rounded."""

    weights: int
    cost: float


@dataclass(frozen=True, slots=True)
class LayerSensitivity:
    """S of one layer, summed two ways."""

    channels: torch.Tensor
    """float64[out_channels], per image."""
    places: torch.Tensor
    """float32[images, height x width of the output]: where an error reaches the output, and where nobody would notice it."""


def layer_sensitivities(
    model: nn.Module, convolutions: Mapping[str, nn.Module], images: torch.Tensor, seed: int
) -> dict[str, LayerSensitivity]:
    """Return S of the named layers over `images` (float32[images, 3, size, size]), by backward passes through the float model.

    `model` maps float32[images, 3, size, size] to float32[images, 4 + classes, points]; box changes weigh as much as the point's
    largest probability, so that background points count for nothing.
    """
    import torch

    channels = {name: torch.zeros(layer.out_channels, dtype=torch.float64) for name, layer in convolutions.items()}
    places: dict[str, list[torch.Tensor]] = {name: [] for name in convolutions}
    outputs: dict[str, torch.Tensor] = {}
    hooks = [layer.register_forward_hook(_keeper(name, outputs)) for name, layer in convolutions.items()]
    generator = torch.Generator().manual_seed(seed)
    try:
        with torch.enable_grad():  # whatever the caller switched off
            for batch in images.split(_BATCH):
                weighed = _weighed(model(batch.clone().requires_grad_(True)))
                layers = [outputs[name] for name in convolutions]
                maps = [torch.zeros(layer.shape[0], layer.shape[2] * layer.shape[3]) for layer in layers]
                for probe in range(PROBES):
                    signs = torch.randint(0, 2, weighed.shape, generator=generator).to(weighed.dtype) * 2 - 1
                    gradients = torch.autograd.grad((weighed * signs).sum(), layers, retain_graph=probe + 1 < PROBES)
                    for name, gradient, seen in zip(convolutions, gradients, maps, strict=True):
                        squares = gradient.square()
                        channels[name] += squares.double().sum(dim=(0, 2, 3)) / PROBES
                        seen.add_(squares.sum(dim=1).flatten(1) / PROBES)
                for name, seen in zip(convolutions, maps, strict=True):
                    places[name].append(seen)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: LayerSensitivity(total / len(images), torch.cat(places[name])) for name, total in channels.items()}


def _keeper(name: str, outputs: dict[str, torch.Tensor]) -> Any:
    def keep(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
        outputs[name] = output

    return keep


def _weighed(output: torch.Tensor) -> torch.Tensor:
    import torch

    boxes, scores = output[:, :4], output[:, 4:]
    importance = scores.detach().amax(dim=1, keepdim=True).sqrt()
    return torch.cat([boxes * importance / BOX_UNIT_PIXELS, scores], dim=1)


def rounding_costs(
    convolutions: Mapping[str, Any],
    sensitivities: Mapping[str, LayerSensitivity],
    columns: Mapping[str, torch.Tensor],
    bits: int,
) -> dict[str, LayerCost]:
    """Return what each layer costs when it alone is rounded (GPTQ) to `bits`.

    `columns` are the float model's inputs: name -> float32[groups, samples, columns]. Costs of independent layers add up.
    """
    costs = {}
    for name, layer in convolutions.items():
        weights = layer.weight.data.double().reshape(layer.groups, layer.out_channels // layer.groups, -1)
        centred = columns[name] - columns[name].mean(dim=1, keepdim=True)
        gram = (centred.transpose(1, 2) @ centred / centred.shape[1]).double()
        values = compensated(weights, gram, clipped_scales(weights, gram, bits), bits)
        errors = output_error(values - weights, gram).flatten()
        costs[name] = LayerCost(weights.numel(), float((errors * sensitivities[name].channels).sum()))
    return costs
