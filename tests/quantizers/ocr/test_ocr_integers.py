"""ONNX Runtime's INT8 quantization, on a tiny graph with a convolution, channel attention, and a classifier at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from fewbits.core.errors import BackendError, SpecError  # noqa: E402
from fewbits.quantizers.ocr.integers import prepare, quantizable_nodes, quantize_dynamic, quantize_static  # noqa: E402
from fewbits.quantizers.ocr.precision import network_precision  # noqa: E402
from fewbits.quantizers.onnx.agreement import open_session, run_all  # noqa: E402
from fewbits.quantizers.onnx.graph import metadata, read_graph, set_metadata  # noqa: E402

CHARACTERS = "\n".join(["blank", "0", "µ", " "])
RANDOM = np.random.default_rng(5)
INPUTS = [RANDOM.uniform(-1, 1, (2, 3, 8, width)).astype(np.float32) for width in (8, 12, 16)]
WEIGHTS = {
    "stem": RANDOM.normal(0, 0.3, (8, 3, 3, 3)),
    "squeeze": RANDOM.normal(0, 0.3, (4, 8, 1, 1)),
    "excite": RANDOM.normal(0, 0.3, (8, 4, 1, 1)),
    "point": RANDOM.normal(0, 0.3, (16, 8, 1, 1)),
    "head": RANDOM.normal(0, 0.3, (16, 5)),
    "bias": RANDOM.normal(0, 0.1, (8,)),
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Write the float graph, in the opset and with the metadata of the OCR networks."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "stem", "bias"], ["s"], pads=[1, 1, 1, 1], name="stem"),
        node("Relu", ["s"], ["r"]),
        node("GlobalAveragePool", ["r"], ["p"]),
        node("Conv", ["p", "squeeze"], ["q"], name="squeeze"),
        node("Relu", ["q"], ["q2"]),
        node("Conv", ["q2", "excite"], ["e"], name="excite"),
        node("HardSigmoid", ["e"], ["g"]),
        node("Mul", ["r", "g"], ["m"]),
        node("Conv", ["m", "point"], ["c"], name="point"),
        node("ReduceMean", ["c"], ["h"], axes=[2], keepdims=0),
        node("Transpose", ["h"], ["t"], perm=[0, 2, 1]),
        node("MatMul", ["t", "head"], ["y"], name="head"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, ["n", 3, 8, "w"])],
        [value("y", TensorProto.FLOAT, ["n", "w", 5])],
        [numpy_helper.from_array(weight.astype(np.float32), name) for name, weight in WEIGHTS.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=10)
    set_metadata(model, {"character": CHARACTERS})
    path = tmp_path / "float.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def prepared(source: Path, tmp_path: Path) -> Path:
    path = tmp_path / "prepared.onnx"
    prepare(source, path)
    return path


def outputs(path: Path) -> list[Any]:
    return run_all(open_session(path, 1), [{"x": array} for array in INPUTS])


def largest_gap(path: Path, source: Path) -> float:
    pairs = zip(outputs(path), outputs(source), strict=True)
    return max(float(np.abs(found - expected).max()) for found, expected in pairs)


def test_preparing_changes_no_answer_and_keeps_the_alphabet(source: Path, prepared: Path) -> None:
    assert largest_gap(prepared, source) < 1e-5
    assert metadata(read_graph(prepared))["character"] == CHARACTERS
    assert read_graph(prepared).opset_import[0].version >= 13


def test_channel_attention_stays_float(prepared: Path) -> None:
    assert quantizable_nodes(read_graph(prepared)) == ["stem", "point", "head"]


def test_stem_and_depthwise_convolutions_can_be_spared() -> None:
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "a"], ["1"], name="stem"),
        node("Conv", ["1", "b"], ["2"], name="deep", group=4),
        node("Conv", ["2", "c"], ["3"], name="wide"),
        node("ConvTranspose", ["3", "d"], ["4"], name="up"),
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", [], []))
    assert quantizable_nodes(model) == ["stem", "deep", "wide"]
    assert quantizable_nodes(model, depthwise=False) == ["stem", "wide"]
    assert quantizable_nodes(model, stem=False) == ["deep", "wide"]
    assert quantizable_nodes(model, stem=False, depthwise=False) == ["wide"]


@pytest.mark.parametrize("method", ["dynamic", "static"])
def test_both_ways_answer_nearly_as_the_float_graph(method: str, source: Path, prepared: Path, tmp_path: Path) -> None:
    path = tmp_path / "int8.onnx"
    if method == "static":
        quantize_static(prepared, path, INPUTS, spare=False)
    else:
        quantize_dynamic(prepared, path)
    scale = max(float(np.abs(array).max()) for array in outputs(source))
    # a few steps of 1/255 of the range, through three layers; exactly equal would mean that nothing was quantized
    assert 1e-5 * scale < largest_gap(path, source) < 0.06 * scale
    assert metadata(read_graph(path))["character"] == CHARACTERS
    precision = network_precision(path)
    integers = sum(WEIGHTS[name].size for name in ("stem", "point", "head"))
    floats = sum(WEIGHTS[name].size for name in ("squeeze", "excite"))
    assert precision.weights == integers + floats
    assert precision.integer_weights == integers
    assert precision.bits_per_weight == pytest.approx((8 * integers + 32 * floats) / (integers + floats))
    assert (precision.integer_products, precision.float_products) == (3, 2)


def test_static_ranges_depend_on_what_was_shown_not_on_its_order(prepared: Path, tmp_path: Path) -> None:
    for name, shown in (("a", INPUTS), ("b", INPUTS[::-1]), ("c", [0.1 * array for array in INPUTS])):
        quantize_static(prepared, tmp_path / f"{name}.onnx", shown, spare=False)
    same, other = ([outputs(tmp_path / f"{name}.onnx")[0] for name in pair] for pair in ("ab", "ac"))
    assert np.array_equal(*same)
    assert np.abs(other[0] - other[1]).max() > 0.1


def test_a_float_graph_has_no_integer_products(source: Path) -> None:
    precision = network_precision(source)
    assert (precision.bits_per_weight, precision.integer_weights) == (32, 0)
    assert (precision.integer_products, precision.float_products) == (0, 5)
    assert [row.ggml_type for row in precision.census] == ["FLOAT"]


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"no graph")
    with pytest.raises(SpecError, match="no valid ONNX file"):
        prepare(tmp_path / "no.onnx", tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_a_graph_without_weights_has_no_precision(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    ends = ([value("x", TensorProto.FLOAT, [1])], [value("y", TensorProto.FLOAT, [1])])
    model = helper.make_model(helper.make_graph(nodes, "g", *ends), opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    (tmp_path / "relu.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BackendError, match="no weights"):
        network_precision(tmp_path / "relu.onnx")
