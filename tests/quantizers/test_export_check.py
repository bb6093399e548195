"""A graph whose numbers are not torch's is refused with the layer's name; the cache key holds all that shapes a file."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("brevitas")
pytest.importorskip("onnxoptimizer")
pytest.importorskip("onnxruntime")

from fewbits.core.codec import decode  # noqa: E402
from fewbits.core.errors import BackendError, SpecError, StoreError  # noqa: E402
from fewbits.quantizers.brevitas.build import BuiltVariant, DetectorLab, DetectorSource  # noqa: E402
from fewbits.quantizers.brevitas.checkpoint import read_checkpoint  # noqa: E402
from fewbits.quantizers.brevitas.export import INPUT_NAME, export_detector  # noqa: E402
from fewbits.quantizers.brevitas.export_check import check_constants, output_gap  # noqa: E402
from fewbits.quantizers.brevitas.layer_reports import layer_reports  # noqa: E402
from fewbits.quantizers.brevitas.quantizer import BrevitasQuantizer, DetectorBuild, build_report  # noqa: E402
from fewbits.quantizers.brevitas.yolov10 import Head  # noqa: E402
from fewbits.quantizers.onnx.agreement import open_session, run_all  # noqa: E402
from fewbits.quantizers.onnx.graph import metadata, read_graph, set_metadata, write_graph  # noqa: E402
from fewbits.records.detection import ImageRequest  # noqa: E402
from fewbits.records.detector_quant import Calibration  # noqa: E402
from fewbits.records.detector_run import BuildReport  # noqa: E402
from fewbits.records.onnx_graph import BUILD_KEY  # noqa: E402
from fewbits.sensitivity.detector_bits import choose_layer_bits  # noqa: E402
from fewbits.spec.detector_schemes import parse_scheme  # noqa: E402
from fewbits.store.artifacts import ArtifactCache  # noqa: E402
from fewbits.workloads.detection.lists import digest_images  # noqa: E402
from quantizers.yolov10_samples import Sample, write_checkpoint  # noqa: E402

SIZE = 64


def pictures() -> Any:
    noise = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    return torch.nn.functional.interpolate(noise, size=(SIZE, SIZE), mode="bilinear")


@dataclass(frozen=True)
class Exported:
    """One variant in torch and as a file."""

    built: BuiltVariant
    path: Path

    @property
    def names(self) -> list[str]:
        return list(self.built.plans)

    @property
    def inputs(self) -> list[dict[str, Any]]:
        return [{INPUT_NAME: picture[None].numpy()} for picture in pictures()]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("exported")
    source = DetectorSource(read_checkpoint(write_checkpoint(folder / "tiny.pt", Sample())), Head.ONE_TO_ONE, SIZE)
    recipe = parse_scheme("W4A8")
    assert recipe is not None
    built = DetectorLab(source, pictures(), choose_layer_bits).build(recipe, lambda _line: None)
    export_detector(built.model, folder / "m.onnx", SIZE, quantized=True)
    return Exported(built, folder / "m.onnx")


# --- constants --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where the numbers of one convolution stand in a graph: names of its initializers or constants."""

    codes: str
    weight_scale: str
    input_scale: str
    input_zero: str


def places(graph: Any) -> list[Place]:
    makers = {output: node for node in graph.graph.node for output in node.output}

    def above(name: str, kind: str) -> Any:
        while makers[name].op_type != kind:
            name = makers[name].input[0]
        return makers[name]

    found = []
    for node in graph.graph.node:
        if node.op_type == "Conv":
            weights, inputs = makers[node.input[1]], above(node.input[0], "QuantizeLinear")
            codes = weights.input[0]
            while codes in makers and makers[codes].op_type in ("Clip", "Identity"):
                codes = makers[codes].input[0]
            found.append(Place(codes, weights.input[1], inputs.input[1], inputs.input[2]))
    return found


def change(graph: Any, name: str, how: Any) -> None:
    """Replace a constant, wherever it stands, by `how` of its values."""
    from onnx import numpy_helper

    makers = {output: node for node in graph.graph.node for output in node.output}
    while name in makers and makers[name].op_type == "Identity":
        name = makers[name].input[0]
    tensor = next((one for one in graph.graph.initializer if one.name == name), None)
    if tensor is None:
        tensor = next(attribute.t for attribute in makers[name].attribute if attribute.name == "value")
    values = numpy_helper.to_array(tensor).copy()
    tensor.CopyFrom(numpy_helper.from_array(how(values).astype(values.dtype), tensor.name))


def one_code(values: Any) -> Any:
    values.flat[0] += 1 if values.flat[0] <= 0 else -1
    return values


def one_scale(values: Any) -> Any:
    values.flat[-1] *= 1.001
    return values


def test_a_graph_as_it_was_exported_passes(exported: Exported) -> None:
    check_constants(exported.built.model, exported.names, read_graph(exported.path))


@pytest.mark.parametrize("layer", [0, 40, -1])
@pytest.mark.parametrize(
    ("number", "how"),
    [("codes", one_code), ("weight_scale", one_scale), ("input_scale", one_scale), ("input_zero", lambda values: values + 1)],
)
def test_one_changed_number_is_found(exported: Exported, layer: int, number: str, how: Any) -> None:
    graph = read_graph(exported.path)
    place = places(graph)[layer]
    name = getattr(place, number)
    shared = [one for one in places(graph) if getattr(one, number) == name]
    change(graph, name, how)
    with pytest.raises(BackendError, match="other weights, scales or zero points than torch in ") as caught:
        check_constants(exported.built.model, exported.names, graph)
    named = str(caught.value).rpartition(" in ")[2].split(", ")
    # several convolutions may read one input, and so one scale
    assert len(named) == min(len(shared), 6)
    assert set(named) <= {*exported.names, "..."}


def test_the_layer_that_was_changed_is_the_one_that_is_named(exported: Exported) -> None:
    # in torch, so that the name is known
    graph = read_graph(exported.path)
    name = exported.names[7]
    layer: Any = exported.built.model.get_submodule(name)
    before = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.copy_(-before)
    try:
        with pytest.raises(BackendError, match=rf"than torch in {name}$"):
            check_constants(exported.built.model, exported.names, graph)
    finally:
        with torch.no_grad():
            layer.weight.copy_(before)


def test_a_graph_without_one_layer_is_refused(exported: Exported) -> None:
    graph = read_graph(exported.path)
    node = next(node for node in graph.graph.node if node.op_type == "Conv")
    graph.graph.node.remove(node)
    with pytest.raises(BackendError, match=rf"than torch in {exported.names[0]}$"):
        check_constants(exported.built.model, exported.names, graph)


# --- outputs ----------------------------------------------------------------------------------------------------------


def test_outputs_are_torchs_and_others_are_refused(exported: Exported) -> None:
    found = run_all(open_session(exported.path, 1), exported.inputs)
    gap = output_gap(exported.built.model, exported.inputs, found)
    assert gap.images == 2
    assert gap.score_root_mean_square <= max(1e-4, 4 * gap.score_floor)
    moved = [array.copy() for array in found]
    for array in moved:
        array[:, :4] += 5.0
    with pytest.raises(BackendError, match="does not compute what torch does: boxes differ by 5"):
        output_gap(exported.built.model, exported.inputs, moved)
    louder = [array.copy() for array in found]
    for array in louder:
        array[:, 4:] += 0.5
    with pytest.raises(BackendError, match=r"scores by 0\.5"):
        output_gap(exported.built.model, exported.inputs, louder)


def test_checks_and_reports_are_quiet(exported: Exported) -> None:
    found = run_all(open_session(exported.path, 1), exported.inputs)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        output_gap(exported.built.model, exported.inputs, found)
        layer_reports(exported.built, pictures())
        check_constants(exported.built.model, exported.names, read_graph(exported.path))
    assert [str(one.message) for one in caught] == []


# --- the quantizer ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shop:
    """A quantizer and what it was told."""

    quantizer: BrevitasQuantizer
    build: DetectorBuild
    weights: Path
    cache: ArtifactCache

    def key(self, scheme: str, **changes: Any) -> str:
        quantizer = BrevitasQuantizer(self.cache, replace(self.build, **changes), choose_layer_bits)
        return quantizer._export_key(quantizer.locate(str(self.weights)), parse_scheme(scheme))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    from PIL import Image

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("shop")
    paths = []
    for number, picture in enumerate(pictures()):
        paths.append(folder / f"{number}.png")
        Image.fromarray((picture.permute(1, 2, 0).numpy() * 255).astype(np.uint8)).save(paths[-1])
    calibration = Calibration(images=digest_images(paths), image_size=SIZE, source="two pictures")
    build = DetectorBuild(
        head=Head.ONE_TO_ONE,
        image_size=SIZE,
        calibration=calibration,
        calibration_paths=tuple(paths),
        checked_paths=tuple(paths),
    )
    cache = ArtifactCache(folder / "cache")
    weights = write_checkpoint(folder / "tiny.pt", Sample())
    return Shop(BrevitasQuantizer(cache, build, choose_layer_bits), build, weights, cache)


def test_a_key_holds_all_that_shapes_a_file_and_nothing_else(shop: Shop, tmp_path: Path) -> None:
    calibration = shop.build.calibration
    assert calibration is not None
    renamed = replace_calibration(calibration, source="the same pictures, told otherwise")
    first = calibration.images[0]
    others = replace_calibration(
        calibration, images=(ImageRequest(file_name=first.file_name, sha256="0" * 64), *calibration.images[1:])
    )
    turned = replace_calibration(calibration, images=calibration.images[::-1])
    key = shop.key("W4A8")
    assert key == shop.key("w4a8") == shop.key("W4A8", calibration=renamed)
    # images seen in another order give other sums
    different = {
        key,
        shop.key("W4A8", calibration=others),
        shop.key("W4A8", calibration=turned),
        shop.key("W8A8"),
        shop.key("FP32"),
        shop.key("W4A8", head=Head.ONE_TO_MANY),
        shop.key("W4A8", image_size=96),
    }
    assert len(different) == 7
    # the float model sees no calibration
    assert shop.key("FP32") == shop.key("FP32", calibration=others) == shop.key("FP32", calibration=None)
    moved = tmp_path / "moved.pt"
    moved.write_bytes(shop.weights.read_bytes())
    assert replace(shop, weights=moved).key("W4A8") == key
    assert replace(shop, weights=write_checkpoint(tmp_path / "o.pt", Sample(seed=1))).key("W4A8") != key


def replace_calibration(calibration: Calibration, **changes: Any) -> Calibration:
    import msgspec

    return msgspec.structs.replace(calibration, **changes)


def test_a_file_says_how_it_was_made_and_is_made_once(shop: Shop) -> None:
    source = shop.quantizer.locate(str(shop.weights))
    said: list[str] = []
    variant = shop.quantizer.ensure(source, "W4A16", said.append)
    assert variant.path is not None
    assert any(line.startswith("making W4A16") for line in said)
    report = build_report(variant.path)
    assert report.recipe == parse_scheme("W4A16")
    assert report.calibration == shop.build.calibration
    assert (report.source_sha256, report.image_size, report.head) == (source.digest, SIZE, "one-to-one")
    assert decode(metadata(read_graph(variant.path))[BUILD_KEY].encode(), BuildReport, "metadata") == report
    assert variant.artifact.bits_per_weight is not None
    assert 4 < variant.artifact.bits_per_weight < 5
    again: list[str] = []
    assert BrevitasQuantizer(shop.cache, shop.build, choose_layer_bits).ensure(source, "w4a16", again.append) == variant
    assert again == []


def test_files_that_do_not_say_how_they_were_made(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="does not say how it was made"):
        build_report(exported.path)
    graph = read_graph(exported.path)
    set_metadata(graph, {BUILD_KEY: "{"})
    write_graph(graph, tmp_path / "damaged.onnx")
    with pytest.raises(StoreError, match=BUILD_KEY):
        build_report(tmp_path / "damaged.onnx")


def test_room_is_asked_for_what_is_missing_only(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    source = shop.quantizer.locate(str(shop.weights))
    shop.quantizer.ensure(source, "FP32", lambda _line: None)
    monkeypatch.setattr(ArtifactCache, "free_bytes", lambda _self: 0)
    shop.quantizer.require_room(source, ["FP32"])
    with pytest.raises(StoreError, match=r"to make W8A8, W3A8 of .*0 B free"):
        shop.quantizer.require_room(source, ["FP32", "W8A8", "W3A8"])
    with pytest.raises(StoreError, match="to make W3A8 of "):
        shop.quantizer.ensure(source, "W3A8", lambda _line: None)


def test_what_cannot_be_built_is_refused_before_anything_is_made(shop: Shop) -> None:
    source = shop.quantizer.locate(str(shop.weights))
    odd = BrevitasQuantizer(shop.cache, replace(shop.build, image_size=65), choose_layer_bits)
    with pytest.raises(SpecError, match="65 pixels cannot be divided"):
        odd.known(source)
    alone = BrevitasQuantizer(shop.cache, replace(shop.build, calibration=None), choose_layer_bits)
    with pytest.raises(SpecError, match="cannot be made without calibration images"):
        alone.check(source, "W8A8")
    alone.check(source, "FP32")
    checkpoint = shop.quantizer.known(source)
    assert checkpoint is not None
    assert checkpoint.names == ("cat", "dog", "bird")
