"""ONNX Runtime's own INT8 quantization, dynamic and static, of one network of an OCR engine.

Both start from the same prepared graph (operators fused, opset raised for scales per channel) and keep the file's metadata: the
recogniser's alphabet lies there. Meant for a child process: the library leaks, and may abort.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbits.quantizers.onnx.graph import constants, metadata, read_graph, set_metadata, write_graph

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Inputs = Iterable[NDArray[np.float32]]

OPSET = 17
"""The first that DequantizeLinear takes one scale per channel in is 13; 17 is the last without changes to these operators."""
_POOLING = frozenset({"GlobalAveragePool", "ReduceMean"})
_POINTWISE = frozenset({"Relu", "Add"})


def prepare(source: Path, output: Path) -> None:
    """Write a graph that is ready to be quantized: same results, newer opset, convolutions fused with what follows them.

    Raises `SpecError` when `source` is no ONNX file.
    """
    import onnx
    from onnxruntime.quantization import quant_pre_process

    model = read_graph(source)
    kept = metadata(model)
    # a file, because a model in memory loses its constants on this way (onnxruntime 1.31.1)
    write_graph(onnx.version_converter.convert_version(model, OPSET), output)
    # symbolic shapes need sympy, and change nothing here: convolutions and products are found by their weights
    quant_pre_process(output, output, skip_symbolic_shape=True)
    _restore(output, kept)


def quantize_dynamic(prepared: Path, output: Path) -> None:
    """Write INT8 weights; inputs become integers as they come, each with the range that it has.

    Small files, not speed: ONNX Runtime (1.31.1) takes about twice as long over ConvInteger as over float convolutions. Depthwise
    convolutions, which gain nothing in size, stay float.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization import quantize_dynamic as dynamic

    model = read_graph(prepared)
    nodes = quantizable_nodes(model, depthwise=False)
    dynamic(prepared, output, per_channel=True, weight_type=QuantType.QInt8, nodes_to_quantize=nodes)
    _restore(output, metadata(model))


def quantize_static(prepared: Path, output: Path, inputs: Inputs, *, spare: bool) -> None:
    """Write INT8 weights, one scale per output channel, and UINT8 activations with the ranges that `inputs` show.

    `inputs` are float32[N, 3, H, W] as the network takes them. `spare` leaves the stem and depthwise convolutions float: in the
    recogniser they hold 1.5 % of the weights.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as static

    model = read_graph(prepared)
    static(
        prepared,
        output,
        _reader(model.graph.input[0].name, inputs),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        op_types_to_quantize=["Conv", "MatMul"],
        nodes_to_quantize=quantizable_nodes(model, stem=not spare, depthwise=not spare),
        extra_options={"MatMulConstBOnly": True, "QDQOpTypePerChannelSupportToAxis": {"MatMul": 1}},
    )
    _restore(output, metadata(model))


def quantizable_nodes(model: Any, *, stem: bool = True, depthwise: bool = True) -> list[str]:
    """Return the names of convolutions and matrix products with a constant weight, apart from those of channel attention.

    Those see one number per channel: there is nothing to gain, and their few inputs scale whole channels. Transposed convolutions
    stay float too: ONNX Runtime (1.31.1) has no integers for them, so that they would only be rounded.
    `stem`: with the convolutions before the first depthwise one; `depthwise`: with those of one input channel per group.
    """
    known = constants(model.graph)
    makers = {name: node for node in model.graph.node for name in node.output}

    def pooled(name: str) -> bool:
        node = makers.get(name)
        while node is not None and node.op_type in (*_POINTWISE, "Conv"):
            node = makers.get(node.input[0])
        return node is not None and node.op_type in _POOLING

    chosen = []
    in_stem = True
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in known:
            chosen.append(node.name)
        elif node.op_type == "Conv" and not pooled(node.input[0]):
            is_depthwise = _groups(node) > 1
            in_stem = in_stem and not is_depthwise
            if (depthwise or not is_depthwise) and (stem or not in_stem):
                chosen.append(node.name)
    return chosen


def _groups(node: Any) -> int:
    return next((int(entry.i) for entry in node.attribute if entry.name == "group"), 1)


def _restore(path: Path, entries: dict[str, str]) -> None:
    model = read_graph(path)
    set_metadata(model, entries)
    write_graph(model, path)


def _reader(name: str, inputs: Inputs) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._rest: Iterator[Any] = iter(inputs)

        def get_next(self) -> dict[str, Any] | None:
            array = next(self._rest, None)
            return None if array is None else {name: array}

    return Reader()
