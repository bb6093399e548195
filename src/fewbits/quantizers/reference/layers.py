"""Run a model with some of its layers fake-quantized, without ever touching a weight."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fewbits.core.errors import BackendError
from fewbits.quantizers.reference.fake_quant import ActivationScale, FakeQuantization, quantize_activation, quantize_weight
from fewbits.quantizers.torch.batches import forward_inputs

TOOL = "reference quantizer"


@dataclass(frozen=True, slots=True)
class Rounding:
    """How layers are rounded, with what calibration found."""

    how: FakeQuantization
    ranges: Mapping[str, Any] = field(default_factory=dict)
    """Module name -> largest magnitudes at its input: float `[features]`, `[1]` for convolutions. Empty where none are needed."""

    @classmethod
    def calibrated(cls, how: FakeQuantization, model: Any, batches: Iterable[dict[str, Any]], members: Sequence[str]) -> Rounding:
        """Run the float model over `batches` if the activations' scales are static, else take no time."""
        return cls(how, activation_ranges(model, batches, members) if how.needs_ranges else {})


def rounded_weight(module: Any, how: FakeQuantization) -> Any:
    """Return a rounded copy of a layer's weight, `[out, in, ...]`. GPT-2's linear layer keeps its weight as `[in, out]`."""
    return quantize_weight(module.weight.t() if _is_transposed(module) else module.weight, how)


def _is_transposed(module: Any) -> bool:
    return type(module).__name__ == "Conv1D" and not hasattr(module, "kernel_size")


def layer_output(module: Any, inputs: Any, weight: Any, rounding: Rounding, name: str) -> Any:
    """Return what the layer called `name` computes from `inputs` with `weight` (of `rounded_weight`), inputs rounded too.

    Raises `BackendError` for what is no linear or convolution layer, and for a convolution that pads with anything but zeros or
    whose activations have a scale per channel.
    """
    import torch
    from torch.nn import functional

    how = rounding.how
    inputs = quantize_activation(inputs, how, rounding.ranges.get(name))
    if isinstance(module, torch.nn.Linear) or _is_transposed(module):
        return functional.linear(inputs, weight, module.bias)
    kinds = ((torch.nn.Conv1d, functional.conv1d), (torch.nn.Conv2d, functional.conv2d), (torch.nn.Conv3d, functional.conv3d))
    convolve = next((function for kind, function in kinds if isinstance(module, kind)), None)
    channels = how.activation is not None and how.activation_scale is not ActivationScale.TENSOR
    if convolve is None or module.padding_mode != "zeros" or channels:
        what = f"a {type(module).__name__}" + (" with a scale per channel or token" if channels else "")
        raise BackendError(TOOL, f"cannot quantize {what}: linear layers, and zero-padded convolutions with one scale, only")
    return convolve(inputs, weight, module.bias, module.stride, module.padding, module.dilation, module.groups)


@contextlib.contextmanager
def forwards_replaced(replacements: Iterable[tuple[Any, Callable[..., Any]]]) -> Iterator[None]:
    """Let modules compute something else inside the block; afterwards they are exactly as before, also after an error."""
    with contextlib.ExitStack() as stack:
        for module, forward in replacements:
            previous = vars(module).get("forward")
            module.forward = forward
            if previous is None:
                stack.callback(delattr, module, "forward")
            else:
                stack.callback(setattr, module, "forward", previous)
        yield


@contextlib.contextmanager
def quantized(model: Any, members: Sequence[str], rounding: Rounding) -> Iterator[None]:
    """Let the named modules compute with rounded weights and activations inside the block.

    The rounded weights are copies, so the model's own (which may be shared, as tied embeddings are) stay byte for byte.
    """
    replacements = []
    for name in members:
        module = model.get_submodule(name)
        weight = rounded_weight(module, rounding.how)
        forward = functools.partial(layer_output, module, weight=weight, rounding=rounding, name=name)
        replacements.append((module, forward))
    with forwards_replaced(replacements):
        yield


def activation_ranges(model: Any, batches: Iterable[dict[str, Any]], members: Sequence[str]) -> dict[str, Any]:
    """Return the largest magnitudes at each module's input over the float model's run on `batches`, padding left out.

    Raises `BackendError` when a module is never reached by this text.
    """
    import torch

    found: dict[str, Any] = {}
    mask: Any = None

    def look(name: str, module: Any, arguments: tuple[Any, ...]) -> None:
        values = arguments[0].detach().abs()
        if values.shape[:2] == mask.shape:
            values = values[mask]
        by_feature = not hasattr(module, "kernel_size")
        largest = values.flatten(0, -2).amax(dim=0) if by_feature else values.amax().reshape(1)
        found[name] = torch.maximum(found[name], largest) if name in found else largest

    with contextlib.ExitStack() as stack, torch.inference_mode():
        for name in members:
            handle = model.get_submodule(name).register_forward_pre_hook(functools.partial(look, name))
            stack.callback(handle.remove)
        for batch in batches:
            mask = batch["attention_mask"].bool()
            model(**forward_inputs(batch))
    require_reached(members, found)
    return found


def require_reached(members: Iterable[str], reached: Iterable[str]) -> None:
    """Raise `BackendError` when some of `members` never ran: a score of 0 would say "insensitive" where nothing was measured."""
    missing = sorted(set(members) - set(reached))
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise BackendError(TOOL, f"the text never reaches {shown}, so nothing can be measured there. Leave those layers out.")
