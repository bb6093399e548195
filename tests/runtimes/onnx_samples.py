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


def write_detector(path: Path, *, bias: Any = None, metadata: dict[str, str] | None = None, classes: int = CLASSES) -> Variant:
    """Write a graph whose answer is a constant plus the image's mean brightness in the first class of the first point."""
    from onnx import TensorProto, helper, numpy_helper

    if bias is None:
        bias = np.zeros((1, 4 + classes, POINTS), dtype=np.float32)
        bias[0, :4, :] = np.array([16, 16, 8, 12], dtype=np.float32)[:, None]
        bias[0, 4, 0], bias[0, 5, 1] = 0.25, 0.5
    gain = np.zeros_like(bias)
    gain[0, 4, 0] = 0.5
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["brightness"], keepdims=0, axes=[1, 2, 3]),
        helper.make_node("Mul", ["brightness", "gain"], ["scaled"]),
        helper.make_node("Add", ["scaled", "bias"], ["output0"]),
    ]
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, list(bias.shape))],
        [numpy_helper.from_array(gain, "gain"), numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    for key, value in (metadata or {}).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
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
