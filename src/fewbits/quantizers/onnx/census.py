"""How every weight and activation of an ONNX graph is stored, read from the file alone."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewbits.core.errors import SpecError
from fewbits.quantizers.onnx.graph import constants, read_graph
from fewbits.records.onnx_graph import InputKind, QuantCensus, WeightTensor

CONSUMERS = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})
"""Operators whose second input may be a weight."""
_PASSING = frozenset({"DequantizeLinear", "QuantizeLinear", "Clip", "Transpose", "Reshape", "Cast", "Identity"})
"""Operators that a weight may pass on its way to its consumer."""

_WIDTH = re.compile(r"[A-Z]+(\d+)")
_UNNUMBERED = {"FLOAT": 32, "DOUBLE": 64, "BOOL": 8}
_BIAS_INPUT = 2


def take_census(path: Path) -> QuantCensus:
    """Count a file's quantization. Raises `SpecError` when it is no ONNX file."""
    return census_of(read_graph(path), path.stat().st_size)


def census_of(model: Any, file_bytes: int) -> QuantCensus:
    """Count a parsed model's quantization. Raises `SpecError` for weights that are no numbers."""
    reading = _Reading(model.graph)
    operators = Counter(node.op_type for node in model.graph.node)
    consumers = [node for node in model.graph.node if node.op_type in CONSUMERS]
    found = [(node, tensor) for node in consumers if (tensor := reading.weight_of(node)) is not None]
    # a tensor that two nodes share is in the file once
    unique = {tensor.name: tensor for _, tensor in found}.values()
    kinds = Counter(kind for node, _ in found if (kind := reading.input_kind(node.input[0])) is not None)
    weights = sum(tensor.weights for tensor in unique)
    return QuantCensus(
        operators=dict(sorted(operators.items())),
        quantize_linear=operators["QuantizeLinear"],
        dequantize_linear=operators["DequantizeLinear"],
        clip=operators["Clip"],
        weight_tensors=tuple(tensor for _, tensor in found),
        weights=weights,
        level_bits_per_weight=_average(unique, "level_bits", weights),
        storage_bits_per_weight=_average(unique, "storage_bits", weights),
        consumers=len(found),
        quantized_inputs=sum(kinds.values()),
        input_kinds=tuple(
            InputKind(storage=kind.storage, signed=kind.signed, level_bits=kind.level_bits, scales=kind.scales, inputs=count)
            for kind, count in sorted(kinds.items())
        ),
        biases=reading.biases(consumers),
        file_bytes=file_bytes,
    )


def _average(tensors: Iterable[WeightTensor], field: str, weights: int) -> float | None:
    if weights == 0:
        return None
    total: int = sum(getattr(tensor, field) * tensor.weights for tensor in tensors)
    return total / weights


@dataclass(slots=True)
class _Way:
    """What a value met on its way to its consumer, last first. `scale_shape` is `None` where it was not dequantized."""

    scale_shape: tuple[int, ...] | None = None
    levels: int | None = None
    """Of a Clip among integers."""
    integer_type: int | None = None
    """ONNX element type that it was quantized to inside the graph; `None` where it is stored as integers, or is a float."""

    @property
    def scales(self) -> int:
        return 0 if self.scale_shape is None else math.prod(self.scale_shape)

    def level_bits(self, data_type: int) -> int:
        """Return the bits of its range of integers; `data_type` is the type that it is stored as."""
        if self.scale_shape is not None and self.levels is not None:
            return max(1, math.ceil(math.log2(self.levels)))
        return element_bits(data_type if self.integer_type is None else self.integer_type)


@dataclass(frozen=True, slots=True, order=True)
class _Kind:
    storage: str
    signed: bool
    level_bits: int
    scales: int


class _Reading:
    """Looks up who makes what in one graph."""

    def __init__(self, graph: Any) -> None:
        self._constants = constants(graph)
        self._makers = {name: node for node in graph.node for name in node.output}

    def weight_of(self, node: Any) -> WeightTensor | None:
        """Return the constant weight of a consumer, `None` where its second input is computed from the graph's inputs."""
        way = _Way()
        name = self._source(node.input[1], way)
        if name is None:
            return None
        tensor = self._constants[name]
        shape = tuple(int(size) for size in tensor.dims)
        return WeightTensor(
            name=name,
            consumer=node.op_type,
            node=node.name,
            shape=shape,
            weights=math.prod(shape),
            storage=_type_name(tensor.data_type),
            storage_bits=element_bits(tensor.data_type),
            level_bits=way.level_bits(tensor.data_type),
            scales=way.scales,
            scale_shape=way.scale_shape or (),
        )

    def input_kind(self, name: str) -> _Kind | None:
        """Return how a value was quantized and dequantized just before; `None` where it was not."""
        way = _Way()
        node = self._makers.get(name)
        if node is None or node.op_type != "DequantizeLinear":
            return None
        while node is not None and node.op_type in ("DequantizeLinear", "Clip"):
            self._note(node, way)
            node = self._makers.get(node.input[0])
        if node is None or node.op_type != "QuantizeLinear":
            return None
        data_type = self._quantized_type(node)
        storage = _type_name(data_type)
        return _Kind(storage, not storage.startswith("UINT"), way.level_bits(data_type), way.scales)

    def biases(self, consumers: Iterable[Any]) -> int:
        """Return how many numbers the biases of some nodes hold, however they are stored."""
        names = {self._source(node.input[_BIAS_INPUT], _Way()) for node in consumers if len(node.input) > _BIAS_INPUT}
        return sum(math.prod(self._constants[name].dims) for name in names if name is not None)

    def _source(self, name: str, way: _Way) -> str | None:
        while name not in self._constants:
            node = self._makers.get(name)
            if node is None or node.op_type not in _PASSING:
                return None
            self._note(node, way)
            name = node.input[0]
        return name

    def _note(self, node: Any, way: _Way) -> None:
        """Note what one node does to the value. A Clip limits levels only between quantizing and dequantizing."""
        if node.op_type == "DequantizeLinear" and way.scale_shape is None:
            scale = self._constants.get(node.input[1])
            way.scale_shape = tuple(int(size) for size in scale.dims) if scale is not None else ()
        elif node.op_type == "QuantizeLinear" and way.scale_shape is not None and way.integer_type is None:
            way.integer_type = self._quantized_type(node)
        elif node.op_type == "Clip" and way.scale_shape is not None and way.integer_type is None and way.levels is None:
            way.levels = self._levels(node)

    def _quantized_type(self, node: Any) -> int:
        """Return the element type that a QuantizeLinear makes: its zero point's, else the one it names, else UINT8.

        Source: ONNX operators, QuantizeLinear: `y_zero_point`, `output_dtype`.
        """
        from onnx import TensorProto

        zero = self._constants.get(node.input[2]) if len(node.input) > 2 else None
        named = next((int(entry.i) for entry in node.attribute if entry.name == "output_dtype"), 0)
        return int(zero.data_type) if zero is not None else named or int(TensorProto.UINT8)

    def _levels(self, node: Any) -> int | None:
        """Return how many integers lie between the bounds of a Clip; `None` where a bound is missing or no finite number."""
        bounds = [_number(self._constants.get(name)) for name in list(node.input)[1:3]]
        if len(bounds) != 2 or bounds[0] is None or bounds[1] is None:
            return None
        return max(1, math.floor(bounds[1]) - math.ceil(bounds[0]) + 1)


def _number(tensor: Any) -> float | None:
    """Return a constant's only value; `None` where there is none, more than one, or no finite one."""
    from onnx import numpy_helper

    if tensor is None or math.prod(tensor.dims) != 1:
        return None
    try:
        value = float(numpy_helper.to_array(tensor).item())
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _type_name(data_type: int) -> str:
    from onnx import TensorProto

    name: str = TensorProto.DataType.Name(data_type)
    return name


def element_bits(data_type: int) -> int:
    """Return the width of an ONNX element type. Raises `SpecError` for types that are no numbers."""
    name = _type_name(data_type)
    digits = _WIDTH.match(name)
    if digits is None and name not in _UNNUMBERED:
        raise SpecError.single("weights", f"a weight's element type is {name}", "weights are numbers")
    return int(digits.group(1)) if digits else _UNNUMBERED[name]
