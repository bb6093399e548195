"""How every weight and activation of an ONNX graph is stored, read from the file alone."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewbits.quantizers.onnx.graph import constants, read_graph
from fewbits.records.onnx_graph import QuantCensus, WeightTensor

CONSUMERS = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})
"""Operators whose second input may be a weight."""
_PASSING = frozenset({"DequantizeLinear", "QuantizeLinear", "Clip", "Transpose", "Reshape", "Cast", "Identity"})
"""Operators that a weight may pass on its way to its consumer."""

_WIDTH = re.compile(r"[A-Z]+(\d+)")
_UNNUMBERED = {"FLOAT": 32, "DOUBLE": 64, "BOOL": 8}


def take_census(path: Path) -> QuantCensus:
    """Count a file's quantization. Raises `SpecError` when it is no ONNX file."""
    return census_of(read_graph(path), path.stat().st_size)


def census_of(model: Any, file_bytes: int) -> QuantCensus:
    """Count a parsed model's quantization."""
    reading = _Reading(model.graph)
    operators = Counter(node.op_type for node in model.graph.node)
    consumers = [node for node in model.graph.node if node.op_type in CONSUMERS]
    found = [(node, reading.weight_of(node)) for node in consumers]
    tensors = tuple(tensor for _, tensor in found if tensor is not None)
    weights = sum(tensor.weights for tensor in tensors)
    return QuantCensus(
        operators=dict(sorted(operators.items())),
        quantize_linear=operators["QuantizeLinear"],
        dequantize_linear=operators["DequantizeLinear"],
        clip=operators["Clip"],
        weight_tensors=tensors,
        weights=weights,
        level_bits_per_weight=_average(tensors, "level_bits", weights),
        storage_bits_per_weight=_average(tensors, "storage_bits", weights),
        consumers=len(tensors),
        quantized_inputs=sum(tensor is not None and reading.is_quantized(node.input[0]) for node, tensor in found),
        file_bytes=file_bytes,
    )


def _average(tensors: tuple[WeightTensor, ...], field: str, weights: int) -> float | None:
    if weights == 0:
        return None
    total: int = sum(getattr(tensor, field) * tensor.weights for tensor in tensors)
    return total / weights


@dataclass(slots=True)
class _Way:
    """What a weight met between the file and its consumer."""

    clip_levels: int | None = None
    scales: int = 0


class _Reading:
    """Looks up who makes what in one graph."""

    def __init__(self, graph: Any) -> None:
        self._constants = constants(graph)
        self._makers = {name: node for node in graph.node for name in node.output}

    def weight_of(self, node: Any) -> WeightTensor | None:
        """Return the constant weight of a consumer, `None` where its second input is computed from the graph's inputs."""
        from onnx import TensorProto

        way = _Way()
        name = self._source(node.input[1], way)
        if name is None:
            return None
        tensor = self._constants[name]
        storage_bits = element_bits(tensor.data_type)
        is_quantized = way.scales > 0
        levels = way.clip_levels if is_quantized else None
        shape = tuple(int(size) for size in tensor.dims)
        return WeightTensor(
            name=name,
            consumer=node.op_type,
            shape=shape,
            weights=math.prod(shape),
            storage=TensorProto.DataType.Name(tensor.data_type),
            storage_bits=storage_bits,
            level_bits=storage_bits if levels is None else max(1, math.ceil(math.log2(levels))),
            scales=way.scales,
        )

    def is_quantized(self, name: str) -> bool:
        """Whether a value was quantized and dequantized just before."""
        last = self._makers.get(name)
        if last is None or last.op_type != "DequantizeLinear":
            return False
        before = self._makers.get(last.input[0])
        while before is not None and before.op_type == "Clip":
            before = self._makers.get(before.input[0])
        return before is not None and before.op_type == "QuantizeLinear"

    def _source(self, name: str, way: _Way) -> str | None:
        while name not in self._constants:
            node = self._makers.get(name)
            if node is None or node.op_type not in _PASSING:
                return None
            if node.op_type == "DequantizeLinear":
                way.scales = max(1, math.prod(self._constants[node.input[1]].dims)) if node.input[1] in self._constants else 1
            elif node.op_type == "Clip":
                way.clip_levels = self._levels(node)
            name = node.input[0]
        return name

    def _levels(self, node: Any) -> int | None:
        """Return how many integers lie between the bounds of a Clip; `None` where a bound is missing."""
        from onnx import numpy_helper

        bounds = [self._constants.get(name) for name in list(node.input)[1:3]]
        if len(bounds) != 2 or any(bound is None for bound in bounds):
            return None
        low, high = (int(numpy_helper.to_array(bound).item()) for bound in bounds)
        return max(1, high - low + 1)


def element_bits(data_type: int) -> int:
    """Return the width of an ONNX element type."""
    import onnx

    name = onnx.TensorProto.DataType.Name(data_type)
    digits = _WIDTH.match(name)
    return int(digits.group(1)) if digits else _UNNUMBERED[name]
