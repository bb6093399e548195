"""Brevitas' own methods after training, called as its documentation calls them. Ours stand beside them in the ablation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fewbits.records.detector_quant import Step

if TYPE_CHECKING:
    import torch
    from torch import nn

_BATCH = 4
_POINTLESS = (
    "Computing zero point of output accumulator not supported yet",
    "fast_hadamard_transform package not found",
    "TF32 acceleration on top of oneDNN",
    "`treespec.children_specs` is deprecated",
)
"""How these warnings begin."""


@contextmanager
def quiet_brevitas() -> Iterator[None]:
    """Hide what libraries say on stderr that nobody can act on; all other warnings pass.

    Brevitas speaks of accumulators for every convolution whose input has a zero point, and of a package that would rotate weights
    faster, which no step does; its tracer uses a name that torch gave up; torch speaks of TF32 on Intel's GPUs whenever the
    switch that turns oneDNN off is used.
    """
    with warnings.catch_warnings():
        for message in _POINTLESS:
            warnings.filterwarnings("ignore", message=message)
        yield


def collect_activation_statistics(model: nn.Module, images: torch.Tensor) -> None:
    """Let the layers' own activation quantizers see `images` (float32[images, 3, size, size]) and settle on their scales."""
    import torch
    from brevitas.graph.calibrate import calibration_mode

    with torch.no_grad(), calibration_mode(model):
        for batch in images.split(_BATCH):
            model(batch)


@quiet_brevitas()
def equalize(model: nn.Module, images: torch.Tensor) -> nn.Module:
    """Return the model with the ranges of neighbouring layers equalised: as a traced graph, with the same module names.

    Source: cross-layer range equalisation, arXiv 1906.04721, section 4.1.
    """
    import torch
    from brevitas.fx import value_trace
    from brevitas.graph.equalize import EqualizeGraph

    traced = value_trace(model, value_args={"images": images[:1]})
    with torch.no_grad():
        equalized: nn.Module = EqualizeGraph().apply(traced)
    return equalized.eval()


def correct_biases(model: nn.Module, images: torch.Tensor) -> None:
    """Shift each bias by the mean error of its channel. Source: arXiv 1906.04721, section 4.2 (empirical form)."""
    import torch
    from brevitas.graph.calibrate import bias_correction_mode

    with torch.no_grad(), bias_correction_mode(model, skip_if_no_bias=True):
        for batch in images.split(_BATCH):
            model(batch)


def round_by_gptq(model: nn.Module, images: torch.Tensor) -> None:
    """Round the weights by Brevitas' GPTQ, activations quantized, columns in the order of their energy."""
    import torch
    from brevitas.graph.gptq import gptq_mode

    with torch.no_grad(), gptq_mode(model, use_quant_activations=True, act_order=True) as method:
        _layer_by_layer(method, images)


def round_by_gpfq(model: nn.Module, images: torch.Tensor) -> None:
    """Round the weights by Brevitas' GPFQ (greedy path following, arXiv 2201.11113), activations quantized."""
    import torch
    from brevitas.graph.gpfq import gpfq_mode

    with torch.no_grad(), gpfq_mode(model, use_quant_activations=True, act_order=True) as method:
        _layer_by_layer(method, images)


def _layer_by_layer(method: Any, images: torch.Tensor) -> None:
    for _ in range(method.num_layers):
        for batch in images.split(_BATCH):
            method.model(batch)
        method.update()


METHODS: Mapping[Step, Callable[[Any, Any], None]] = {
    Step.BREVITAS_GPTQ: round_by_gptq,
    Step.BREVITAS_GPFQ: round_by_gpfq,
    Step.BREVITAS_BIAS: correct_biases,
}
"""Steps that change a quantized model in place."""
