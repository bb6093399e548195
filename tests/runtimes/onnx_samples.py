"""Tiny detectors as ONNX graphs: real graphs for a real runtime, small enough to write by hand."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from fewbits.records.detection import ImageRequest
from fewbits.records.variant import Artifact, Variant

SIZE = 32
CLASSES = 2
POINTS = 4


def write_detector(
    path: Path,
    *,
    bias: Any = None,
    metadata: dict[str, str] | None = None,
    classes: int = CLASSES,
    size: int = SIZE,
    half: bool = False,
) -> Variant:
    """Write a graph whose answer is a constant plus the image's mean brightness in the first class of the first point."""
    from onnx import TensorProto, helper, numpy_helper

    if bias is None:
        bias = np.zeros((1, 4 + classes, POINTS), dtype=np.float32)
        bias[0, :4, :] = np.array([16, 16, 8, 12], dtype=np.float32)[:, None]
        bias[0, 4, 0], bias[0, 5, 1] = 0.25, 0.5
    bias = bias.astype(np.float16 if half else np.float32)
    gain = np.zeros_like(bias)
    gain[0, 4, 0] = 0.5
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["brightness"], keepdims=0, axes=[1, 2, 3]),
        helper.make_node("Mul", ["brightness", "gain"], ["scaled"]),
        helper.make_node("Add", ["scaled", "bias"], ["output0"]),
    ]
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("images", kind, [1, 3, size, size])],
        [helper.make_tensor_value_info("output0", kind, list(bias.shape))],
        [numpy_helper.from_array(gain, "gain"), numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    for key, value in (metadata or {}).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    path.write_bytes(model.SerializeToString())
    return variant_of(path)


def write_integer_detector(path: Path) -> Variant:
    """Write a graph with two convolutions, one of which ONNX Runtime computes with integers: quantized on both sides."""
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["images", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        node("DequantizeLinear", ["codes", "s", "z8"], ["w"]),
        node("Conv", ["d", "w"], ["c"], strides=[16, 16]),
        node("QuantizeLinear", ["c", "s", "z"], ["cq"]),
        node("DequantizeLinear", ["cq", "s", "z"], ["cd"]),
        node("Conv", ["cd", "float"], ["f"]),
        node("Reshape", ["f", "shape"], ["output0"]),
    ]
    constants = {
        "s": np.float32(0.05),
        "z": np.uint8(0),
        "z8": np.int8(0),
        "codes": np.ones((2, 3, 1, 1), np.int8),
        "float": np.full((4 + CLASSES, 2, 1, 1), 0.1, np.float32),
        "shape": np.array([1, 4 + CLASSES, POINTS]),
    }
    graph = helper.make_graph(
        nodes,
        "integers",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 4 + CLASSES, POINTS])],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return variant_of(path)


def variant_of(path: Path) -> Variant:
    artifact = Artifact(
        model_id="tiny",
        scheme="FP32",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        bytes=path.stat().st_size,
        weights=None,
        bits_per_weight=None,
    )
    return Variant(artifact, path)


def write_image(folder: Path, name: str = "a.png", level: int = 255) -> ImageRequest:
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 48), (level, level, level)).save(folder / name)
    return ImageRequest(file_name=name, sha256=hashlib.sha256((folder / name).read_bytes()).hexdigest())
