"""What is read out of ONNX files, and what a clean-up may not touch: small graphs by hand, and Brevitas' own exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxoptimizer")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from fewbits.core.errors import BackendError, SpecError  # noqa: E402
from fewbits.quantizers.onnx import cleanup  # noqa: E402
from fewbits.quantizers.onnx.agreement import compare_arrays, compare_parts, open_session, run_all  # noqa: E402
from fewbits.quantizers.onnx.census import element_bits, take_census  # noqa: E402
from fewbits.quantizers.onnx.cleanup import clean_up, slim_effect  # noqa: E402
from fewbits.quantizers.onnx.graph import io_contract, metadata, read_graph, set_metadata, write_graph  # noqa: E402

INPUTS = [{"x": np.random.default_rng(1).standard_normal((1, 3, 6, 6)).astype(np.float32)}]


def constant(name: str, values: Any) -> Any:
    return numpy_helper.from_array(np.asarray(values), name)


def low_bit(name: str, codes: Any) -> Any:
    return helper.make_tensor(name, TensorProto.INT4, np.shape(codes), np.ravel(codes).tolist())


def save(path: Path, nodes: list[Any], constants: list[Any], opset: int = 21, extra_inputs: tuple[Any, ...] = ()) -> Path:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, [1, 3, 6, 6]), *extra_inputs],
        [value("y", TensorProto.FLOAT, ["a", "b", "c", "d"])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


def quantized(path: Path, *, identity: bool = False, high: Any = None) -> Path:
    """Quantized input, INT8 weights clipped to 3 bits, per channel, and a bias; then a float convolution."""
    codes = np.random.default_rng(2).integers(-3, 4, (4, 3, 3, 3)).astype(np.int8)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("Clip", ["codes", "low", "high"], ["clipped"]),
        helper.make_node("DequantizeLinear", ["clipped", "scales"], ["w"], axis=0),
        helper.make_node("Conv", ["d", "w", "bias"], ["h"], pads=[1, 1, 1, 1], name="first"),
        *([helper.make_node("Identity", ["h"], ["h2"])] if identity else []),
        helper.make_node("Conv", ["h2" if identity else "h", "float"], ["y"]),
    ]
    constants = [
        constant("s", np.float32(0.05)),
        constant("z", np.uint8(128)),
        constant("codes", codes),
        constant("low", np.int8(-3)),
        constant("high", np.int8(3) if high is None else high),
        constant("bias", np.zeros(4, np.float32)),
        constant("scales", np.full(4, 0.1, np.float32)),
        constant("float", np.random.default_rng(3).standard_normal((2, 4, 1, 1)).astype(np.float32)),
    ]
    return save(path, nodes, constants)


def test_a_census_tells_levels_from_storage(tmp_path: Path) -> None:
    census = take_census(quantized(tmp_path / "m.onnx"))
    assert (census.quantize_linear, census.dequantize_linear, census.clip) == (1, 2, 1)
    low, plain = census.weight_tensors
    assert (low.storage, low.storage_bits, low.level_bits, low.scales, low.weights) == ("INT8", 8, 3, 4, 108)
    assert (plain.storage, plain.level_bits, plain.scales, plain.weights) == ("FLOAT", 32, 0, 8)
    assert census.weights == 116
    assert census.level_bits_per_weight == pytest.approx((3 * 108 + 32 * 8) / 116)
    assert census.storage_bits_per_weight == pytest.approx((8 * 108 + 32 * 8) / 116)
    assert (census.consumers, census.quantized_inputs) == (2, 1)
    assert (low.node, low.scale_shape, plain.scale_shape) == ("first", (4,), ())
    (kind,) = census.input_kinds
    assert (kind.storage, kind.signed, kind.level_bits, kind.scales, kind.inputs) == ("UINT8", False, 8, 1, 1)
    assert census.biases == 4
    assert census.file_bytes == (tmp_path / "m.onnx").stat().st_size


def test_four_bit_storage_is_seen(tmp_path: Path) -> None:
    codes = np.random.default_rng(2).integers(-7, 8, (2, 3, 1, 1))
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "scale"], ["w"]),
        helper.make_node("Conv", ["x", "w"], ["y"]),
    ]
    path = save(tmp_path / "m.onnx", nodes, [low_bit("codes", codes), constant("scale", np.float32(0.1))])
    (tensor,) = take_census(path).weight_tensors
    assert (tensor.storage, tensor.storage_bits, tensor.level_bits, tensor.scales) == ("INT4", 4, 4, 1)


def weights_quantized_inside(path: Path, *, float_clip: bool) -> Path:
    """Float weights that pass QuantizeLinear and DequantizeLinear, with a Clip of floats before or of integers between."""
    before = [helper.make_node("Clip", ["codes", "low", "high"], ["clipped"])]
    nodes = [
        *(before if float_clip else []),
        helper.make_node("QuantizeLinear", ["clipped" if float_clip else "codes", "scale", "zero"], ["q"]),
        *([] if float_clip else [helper.make_node("Clip", ["q", "low", "high"], ["qc"])]),
        helper.make_node("DequantizeLinear", ["q" if float_clip else "qc", "scale", "zero"], ["w"]),
        helper.make_node("Conv", ["x", "w"], ["y"]),
    ]
    bound = np.float32(0.7) if float_clip else np.int8(7)
    constants = [
        constant("codes", np.full((2, 3, 1, 1), 0.5, np.float32)),
        constant("scale", np.float32(0.1)),
        constant("zero", np.int8(0)),
        constant("low", -bound),
        constant("high", bound),
    ]
    return save(path, nodes, constants)


def test_weights_that_are_quantized_inside_the_graph(tmp_path: Path) -> None:
    (clipped,) = take_census(weights_quantized_inside(tmp_path / "a.onnx", float_clip=False)).weight_tensors
    assert (clipped.storage, clipped.storage_bits, clipped.level_bits, clipped.scales) == ("FLOAT", 32, 4, 1)
    # a Clip of floats says nothing about levels: those of INT8 count
    (plain,) = take_census(weights_quantized_inside(tmp_path / "b.onnx", float_clip=True)).weight_tensors
    assert (plain.storage, plain.level_bits) == ("FLOAT", 8)


def test_a_tensor_that_two_nodes_share_counts_once(tmp_path: Path) -> None:
    weight = constant("w", np.ones((3, 3, 1, 1), np.float32))
    nodes = [helper.make_node("Conv", ["x", "w"], ["h"]), helper.make_node("Conv", ["h", "w"], ["y"])]
    census = take_census(save(tmp_path / "m.onnx", nodes, [weight]))
    assert (census.weights, census.consumers, len(census.weight_tensors)) == (9, 2, 2)


@pytest.mark.parametrize("high", [np.full(4, 3, np.int8), np.float32("nan"), np.float32("inf")])
def test_bounds_that_are_no_number_leave_the_type_to_say(tmp_path: Path, high: Any) -> None:
    assert take_census(quantized(tmp_path / "m.onnx", high=high)).weight_tensors[0].level_bits == 8


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    texts = helper.make_tensor("w", TensorProto.STRING, [1, 2], [b"a", b"b"])
    path = save(tmp_path / "m.onnx", [helper.make_node("Conv", ["x", "w"], ["y"])], [texts])
    with pytest.raises(SpecError, match="element type is STRING"):
        take_census(path)


def test_a_graph_without_weights_has_no_average(tmp_path: Path) -> None:
    census = take_census(save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], []))
    assert (census.weights, census.level_bits_per_weight, census.consumers) == (0, None, 0)


def test_computed_operands_are_no_weights(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("MatMul", ["x", "r"], ["y"])]
    assert take_census(save(tmp_path / "m.onnx", nodes, [])).consumers == 0


@pytest.mark.parametrize(
    ("name", "bits"),
    [("FLOAT", 32), ("FLOAT16", 16), ("BFLOAT16", 16), ("INT4", 4), ("UINT8", 8), ("FLOAT8E4M3FN", 8), ("FLOAT4E2M1", 4)],
)
def test_element_types_have_their_width(name: str, bits: int) -> None:
    assert element_bits(TensorProto.DataType.Value(name)) == bits


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\x08\x07" * 40])
def test_what_is_no_graph_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(SpecError, match="no valid ONNX file"):
        take_census(tmp_path / "m.onnx")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read"):
        take_census(tmp_path / "m.onnx")


def test_contract_and_metadata(tmp_path: Path) -> None:
    path = quantized(tmp_path / "m.onnx")
    model = read_graph(path)
    assert io_contract(model)["inputs"] == [{"name": "x", "dtype": 1, "shape": [1, 3, 6, 6]}]
    set_metadata(model, {"b": "2", "a": "1"})
    set_metadata(model, {"b": "3"})
    write_graph(model, path)
    assert metadata(read_graph(path)) == {"a": "1", "b": "3"}


def test_a_clean_up_drops_what_does_nothing_and_keeps_the_rest(tmp_path: Path) -> None:
    source = quantized(tmp_path / "m.onnx", identity=True)
    model = read_graph(source)
    set_metadata(model, {"fewbits.head": "one-to-one"})
    write_graph(model, source)
    report = clean_up(source, tmp_path / "clean.onnx", INPUTS)
    assert (report.nodes_before, report.nodes_after) == (7, 6)
    assert report.agreement.inputs == 1
    assert report.agreement.largest == pytest.approx(0, abs=1e-5)
    assert take_census(tmp_path / "clean.onnx") == report.census
    assert metadata(read_graph(tmp_path / "clean.onnx")) == {"fewbits.head": "one-to-one"}


def test_constants_leave_the_list_of_inputs(tmp_path: Path) -> None:
    weight = constant("w", np.ones((2, 3, 1, 1), np.float32))
    extra = helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 3, 1, 1])
    source = save(tmp_path / "m.onnx", [helper.make_node("Conv", ["x", "w"], ["y"])], [weight], extra_inputs=(extra,))
    clean_up(source, tmp_path / "clean.onnx", INPUTS)
    assert [value.name for value in read_graph(tmp_path / "clean.onnx").graph.input] == ["x"]


def test_a_pass_that_would_lose_quantization_fails_the_clean_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = quantized(tmp_path / "m.onnx")
    floats = read_graph(source)
    for node in floats.graph.node:
        if node.op_type == "Conv" and node.input[0] == "d":
            node.input[0] = "x"
    kept = [node for node in floats.graph.node if node.output[0] not in {"q", "d"}]
    del floats.graph.node[:]
    floats.graph.node.extend(kept)
    monkeypatch.setattr(cleanup, "_optimised", lambda _model: floats)
    with pytest.raises(BackendError, match="quantize_linear 1 before, 0 after"):
        clean_up(source, tmp_path / "clean.onnx", INPUTS)
    assert not (tmp_path / "clean.onnx").exists()


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("bias", np.ones(4, np.float32), "answers differently"),
        ("bias", np.full(4, np.nan, np.float32), "not finite"),
        ("scales", np.full(4, 0.2, np.float32), "change quantized weights"),
        ("codes", np.ones((4, 3, 3, 3), np.int8), "change quantized weights"),
    ],
)
def test_a_pass_that_changes_anything_fails_the_clean_up_and_leaves_the_output_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, values: Any, message: str
) -> None:
    source = quantized(tmp_path / "m.onnx")
    other = read_graph(source)
    for tensor in other.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(constant(name, values))
    monkeypatch.setattr(cleanup, "_optimised", lambda _model: other)
    output = tmp_path / "clean.onnx"
    for earlier in (False, True):
        if earlier:
            output.write_bytes(b"an earlier result")
        with pytest.raises(BackendError, match=message):
            clean_up(source, output, INPUTS)
        assert output.exists() == earlier
    assert output.read_bytes() == b"an earlier result"


def test_a_clean_up_needs_an_input_to_compare_on(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="no output to compare"):
        clean_up(quantized(tmp_path / "m.onnx"), tmp_path / "clean.onnx", [])
    assert not (tmp_path / "clean.onnx").exists()


def test_four_bit_storage_survives_a_clean_up(tmp_path: Path) -> None:
    codes = np.random.default_rng(2).integers(-7, 8, (2, 3, 1, 1))
    nodes = [
        helper.make_node("Identity", ["codes"], ["same"]),
        helper.make_node("DequantizeLinear", ["same", "scale"], ["w"]),
        helper.make_node("Conv", ["x", "w"], ["y"]),
    ]
    source = save(tmp_path / "m.onnx", nodes, [low_bit("codes", codes), constant("scale", np.float32(0.1))])
    report = clean_up(source, tmp_path / "clean.onnx", INPUTS)
    assert report.nodes_after == 2
    assert [tensor.storage for tensor in report.census.weight_tensors] == ["INT4"]


def test_onnxslim_is_told_about_and_leaves_no_file(tmp_path: Path) -> None:
    pytest.importorskip("onnxslim")
    source = quantized(tmp_path / "m.onnx", identity=True)
    report = slim_effect(source, INPUTS)
    assert report.nodes_before == 7
    assert report.nodes_after < 7
    assert report.quantize_linear[0] == 1
    assert report.clip == (1, 0)  # it folds the Clip into the codes: why its result is never kept
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_agreement_measures_differences_and_refuses_other_shapes() -> None:
    one = [np.zeros((2, 2), np.float32)]
    found = compare_arrays(one, [np.array([[0, 3], [0, -4]], np.float32)])
    assert (found.inputs, found.largest, found.mean) == (1, 4.0, 1.75)
    assert found.root_mean_square == pytest.approx(2.5)
    with pytest.raises(BackendError, match="expected to have shape"):
        compare_arrays(one, [np.zeros((2, 3), np.float32)])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_never_agree(value: float) -> None:
    odd = [np.array([1, value], np.float32)]
    for expected, found in (([np.ones(2, np.float32)], odd), (odd, odd)):
        with pytest.raises(BackendError, match="not finite"):
            compare_arrays(expected, found)


def test_half_precision_differences_do_not_overflow() -> None:
    found = compare_arrays([np.full(2, 60000, np.float16)], [np.full(2, -60000, np.float16)])
    assert found.largest == pytest.approx(120000, rel=1e-3)


def test_boxes_and_scores_are_compared_apart() -> None:
    expected, found = np.zeros((1, 6, 5), np.float32), np.zeros((1, 6, 5), np.float32)
    found[0, 3, 2], found[0, 5, 1] = 8, 0.25
    boxes, scores = compare_parts([expected], [found])
    assert (boxes.largest, scores.largest) == (8.0, 0.25)


def test_a_graph_that_cannot_run_says_so(tmp_path: Path) -> None:
    session = open_session(quantized(tmp_path / "m.onnx"), 1)
    with pytest.raises(BackendError, match="does not run"):
        run_all(session, [{"x": np.zeros((1, 4, 6, 6), np.float32)}])
    (tmp_path / "bad.onnx").write_bytes(b"nonsense")
    with pytest.raises(BackendError, match="cannot be loaded"):
        open_session(tmp_path / "bad.onnx", 1)
