"""Is an exported graph the model that torch computes? Its constants exactly, its outputs as far as rounding edges allow.

Rounding makes outputs jumpy: a value that lies on an edge falls to either side with the order of a sum, and later layers carry
that on. So outputs of equal graphs differ, in torch itself, from one number of threads to another. Constants do not: they decide.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fewbits.core.errors import BackendError
from fewbits.quantizers.brevitas import layers as brevitas_layers
from fewbits.quantizers.brevitas.export import INPUT_NAME
from fewbits.quantizers.brevitas.library_methods import quiet_brevitas
from fewbits.quantizers.onnx.agreement import compare_parts
from fewbits.quantizers.onnx.graph import constants
from fewbits.records.detector_run import OutputGap

if TYPE_CHECKING:
    from torch import nn

TOOL = "brevitas"
_SCALE_TOLERANCE = 1e-5
"""Relative: scales pass through one division in float32 on their way into the file."""
_ALLOWED_FLOORS = 4.0
"""How many times torch's own jumpiness a graph's outputs may differ by."""
_EXACT_BOX_PIXELS = 0.05
_EXACT_SCORE = 1e-4
"""What float sums in another order explain without any rounding: root mean squares."""


def check_constants(model: nn.Module, names: Sequence[str], graph: Any) -> None:
    """Compare codes and scales of weights, and scales and zero points of inputs, of every quantized layer with an ONNX model's.

    Raises `BackendError` naming the layers whose numbers are not in the file, or not those that torch computes with.
    """
    written = _written(graph)
    wrong = []
    for name in names:
        layer: Any = model.get_submodule(name)
        codes, scales = _weight_numbers(layer)
        found = written.get(_key(codes), [])
        expected = (scales, *_input_numbers(layer))
        place = next((index for index, numbers in enumerate(found) if _same(numbers, expected)), None)
        if place is None:
            wrong.append(name)
        else:
            found.pop(place)
    if wrong:
        shown = ", ".join(wrong[:5]) + (", ..." if len(wrong) > 5 else "")
        raise BackendError(TOOL, f"the exported graph has other weights, scales or zero points than torch in {shown}")


@quiet_brevitas()
def output_gap(model: nn.Module, inputs: Sequence[Mapping[str, npt.NDArray[np.float32]]], found: Sequence[Any]) -> OutputGap:
    """Compare a runtime's outputs `found` with torch's, and torch's with torch's own in another order of summation.

    Raises `BackendError` where the runtime differs by several times as much as torch from itself.
    """
    import torch

    shown = [torch.from_numpy(one[INPUT_NAME]) for one in inputs]
    with torch.no_grad():
        expected = [model(one).numpy() for one in shown]
        with torch.backends.mkldnn.flags(enabled=False):
            otherwise = [model(one).numpy() for one in shown]
    boxes, scores = compare_parts(expected, found)
    box_floor, score_floor = compare_parts(expected, otherwise)
    gap = OutputGap(
        images=len(found),
        box_largest_pixels=boxes.largest,
        box_mean_pixels=boxes.mean,
        score_largest=scores.largest,
        score_root_mean_square=scores.root_mean_square,
        box_floor_pixels=box_floor.mean,
        score_floor=score_floor.root_mean_square,
    )
    allowed_box = max(_EXACT_BOX_PIXELS, _ALLOWED_FLOORS * gap.box_floor_pixels)
    allowed_score = max(_EXACT_SCORE, _ALLOWED_FLOORS * gap.score_floor)
    if gap.box_mean_pixels > allowed_box or gap.score_root_mean_square > allowed_score:
        what = (
            f"the exported graph does not compute what torch does: boxes differ by {gap.box_mean_pixels:.3g} pixels on average "
            f"(rounding edges explain {allowed_box:.3g}), scores by {gap.score_root_mean_square:.3g} "
            f"(explained: {allowed_score:.3g})"
        )
        raise BackendError("onnxruntime", what)
    return gap


_Numbers = tuple[npt.NDArray[np.float64], float | None, int | None]
"""Weight scales, the input's scale, the input's zero point; the latter two `None` where inputs stay float."""


def _weight_numbers(layer: Any) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    quantized = layer.quant_weight()
    scale = quantized.scale.detach()
    codes = (quantized.value.detach() / scale).round()
    return codes.numpy().astype(np.int64), scale.flatten().numpy().astype(np.float64)


def _input_numbers(layer: Any) -> tuple[float | None, int | None]:
    if not layer.input_quant.is_quant_enabled:
        return None, None
    return brevitas_layers.input_scale(layer), round(float(layer.input_quant.zero_point().detach()))


def _same(found: _Numbers, expected: _Numbers) -> bool:
    scales, scale, zero = found
    if scales.shape != expected[0].shape or not np.allclose(scales, expected[0], rtol=_SCALE_TOLERANCE, atol=0):
        return False
    if scale is None or expected[1] is None:
        return scale is None and expected[1] is None
    return bool(np.isclose(scale, expected[1], rtol=_SCALE_TOLERANCE, atol=0)) and zero == expected[2]


def _written(graph: Any) -> dict[str, list[_Numbers]]:
    """Return the numbers of every convolution with quantized weights, by a digest of its weight codes."""
    from onnx import numpy_helper

    held = {name: numpy_helper.to_array(tensor) for name, tensor in constants(graph.graph).items()}
    makers = {output: node for node in graph.graph.node for output in node.output}

    def value(name: str) -> Any:
        while name not in held and name in makers and makers[name].op_type == "Identity":
            name = makers[name].input[0]
        return held.get(name)

    def source(name: str, kinds: tuple[str, ...]) -> Any:
        """Walk up through the given operators; return the last node passed, or `None`."""
        last = None
        while name in makers and makers[name].op_type in kinds:
            last = makers[name]
            name = last.input[0]
        return last

    written: dict[str, list[_Numbers]] = {}
    for node in graph.graph.node:
        if node.op_type != "Conv":
            continue
        dequantize = makers.get(node.input[1])
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            continue
        inner = source(dequantize.input[0], ("Clip", "Identity", "Cast"))
        codes = value(inner.input[0] if inner is not None else dequantize.input[0])
        quantize = source(node.input[0], ("DequantizeLinear", "Clip", "QuantizeLinear"))
        scale = zero = None
        if quantize is not None and quantize.op_type == "QuantizeLinear":
            scale, zero = float(value(quantize.input[1])), int(value(quantize.input[2]))
        if codes is not None:
            numbers = (value(dequantize.input[1]).astype(np.float64).flatten(), scale, zero)
            written.setdefault(_key(codes.astype(np.int64)), []).append(numbers)
    return written


def _key(codes: npt.NDArray[np.int64]) -> str:
    return hashlib.sha256(f"{codes.shape}".encode() + codes.tobytes()).hexdigest()
