"""How many bits the weights of an OCR network have, and which of its products ONNX Runtime computes with integers."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fewbits.core.errors import BackendError
from fewbits.quantizers.onnx.census import census_of
from fewbits.quantizers.onnx.graph import read_graph
from fewbits.records.base import Record
from fewbits.records.onnx_graph import WeightTensor
from fewbits.records.variant import TensorTypeCount

_FLOAT_NAMES = {"ConvInteger": "Conv", "MatMulInteger": "MatMul"}
"""Integer operators, by what they are called on floats; activation and weight are their first two inputs there too."""
_PRODUCTS = ("Conv", "MatMul", "Gemm")
"""What operator types of convolutions and products have in their names, fused ones included (`FusedConv`)."""
_INTEGER = frozenset(
    {"QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QGemm"}
)


class NetworkPrecision(Record, frozen=True, kw_only=True):
    """One network as it is stored and as it runs. Averages are over the weights of convolutions and matrix products."""

    weights: int
    bits_per_weight: float
    integer_weights: int
    """How many are stored as integers of at most 8 bits."""
    census: tuple[TensorTypeCount, ...]
    integer_products: int
    """Convolutions and matrix products that ONNX Runtime computes with integers, in the graph that it executes."""
    float_products: int


def network_precision(path: Path) -> NetworkPrecision:
    """Read a network's precision.

    Raises `SpecError` for no ONNX file, `BackendError` for one without weights or that does not load.
    """
    model = read_graph(path)
    for node in model.graph.node:
        node.op_type = _FLOAT_NAMES.get(node.op_type, node.op_type)
    census = census_of(model, path.stat().st_size)
    tensors = list({tensor.name: tensor for tensor in census.weight_tensors}.values())
    if census.level_bits_per_weight is None:
        raise BackendError("onnxruntime", f"{path.name} has no weights that could be counted")
    products = executed_products(path)
    return NetworkPrecision(
        weights=census.weights,
        bits_per_weight=census.level_bits_per_weight,
        integer_weights=sum(tensor.weights for tensor in tensors if tensor.storage_bits <= 8),
        census=_type_counts(tensors),
        integer_products=sum(count for name, count in products.items() if name in _INTEGER),
        float_products=sum(count for name, count in products.items() if name not in _INTEGER),
    )


def executed_products(path: Path) -> dict[str, int]:
    """Count the convolutions and matrix products of the graph that ONNX Runtime executes here on the CPU, by operator type.

    Raises `BackendError` where it does not load.
    """
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory(prefix="fewbits-ocr-") as folder:
        written = Path(folder) / "executed.onnx"
        options.optimized_model_filepath = str(written)
        try:
            onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's exceptions have no base of their own
            raise BackendError("onnxruntime", f"{path.name} cannot be loaded: {error}") from error
        graph = onnx.load(str(written), load_external_data=False).graph
    names = (node.op_type for node in graph.node)
    return dict(Counter(name for name in names if name in _INTEGER or any(product in name for product in _PRODUCTS)))


def _type_counts(tensors: Iterable[WeightTensor]) -> tuple[TensorTypeCount, ...]:
    groups: dict[str, list[Any]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.storage, []).append(tensor)
    return tuple(
        TensorTypeCount(
            ggml_type=storage,
            tensors=len(found),
            weights=sum(tensor.weights for tensor in found),
            bytes=sum(tensor.weights * tensor.storage_bits for tensor in found) // 8,
        )
        for storage, found in sorted(groups.items())
    )
