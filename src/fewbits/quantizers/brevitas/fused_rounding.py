"""Quantized convolution in as few passes as torch's own kernels allow. Importing this module loads torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from fewbits.quantizers.brevitas.layers import UNSIGNED_LEVELS

if TYPE_CHECKING:
    from fewbits.quantizers.brevitas.tuned_layers import InputRange


class UnsignedRounding(torch.autograd.Function):  # type: ignore[misc]
    """Round to the codes of an unsigned range, straight through for the input, with a gradient for the scale.

    Source: learned step size quantization, arXiv 1902.08153, equation 3; its factor on the scale's gradient is left out, because
    Adam does not see it.
    """

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, scale: torch.Tensor, zero_point: int) -> torch.Tensor:
        """Return scale x (code - zero_point), codes 0..255. `scale` is a scalar tensor."""
        step = float(scale)
        rounded, inside = torch.ops.aten.fake_quantize_per_tensor_affine_cachemask(values, step, zero_point, 0, UNSIGNED_LEVELS)
        ctx.save_for_backward(values, rounded, inside)
        ctx.step = step
        return rounded

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        """Return the gradients of input and scale; the scale's is code - zero_point, inside of the range less value / scale."""
        values, rounded, inside = ctx.saved_tensors
        passed = gradient * inside
        of_scale = (_dot(gradient, rounded) - _dot(passed, values)) / ctx.step
        return passed, of_scale, None


def _dot(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return torch.dot(left.reshape(-1), right.reshape(-1))


def fused_convolution(layer: Any, found: InputRange) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what a Brevitas convolution with `UNSIGNED` activations computes, from its own weights, scales and bias."""

    def forward(values: torch.Tensor) -> torch.Tensor:
        seen = UnsignedRounding.apply(values, found.scale / UNSIGNED_LEVELS, found.zero_point)
        weights = layer.quant_weight().value
        return functional.conv2d(seen, weights, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)

    return forward
