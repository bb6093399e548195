"""YOLOv10 rebuilt from a description: every size, both heads, decoding, folding, roles, and what does not fit."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from fewbits.core.errors import SpecError  # noqa: E402
from fewbits.quantizers.brevitas.checkpoint import DetectorCheckpoint, ModuleDescription, read_checkpoint  # noqa: E402
from fewbits.quantizers.brevitas.yolov10 import (  # noqa: E402
    Head,
    build_yolov10,
    convolutions,
    fold_batch_norms,
    layer_roles,
)
from fewbits.records.detector_quant import LayerRole  # noqa: E402
from quantizers.yolov10_samples import SIZES, Sample, make_model, save, write_checkpoint  # noqa: E402

SIDE = 64
POINTS = 8 * 8 + 4 * 4 + 2 * 2
# Parameters of a deployed detector, millions. Source: arXiv 2405.14458, table 1.
MILLIONS = {"n": 2.3, "s": 7.2, "m": 15.4, "b": 19.1, "l": 24.4, "x": 29.5}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads cost more than they bring on models this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> DetectorCheckpoint:
    return read_checkpoint(write_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny.pt"))


def of_size(size: str, folder: Path) -> DetectorCheckpoint:
    return read_checkpoint(write_checkpoint(folder / f"{size}.pt", Sample(size=size)))


def run(model: Any, images: Any) -> Any:
    with torch.no_grad():
        return model(images)


def images(count: int = 1, side: int = SIDE) -> Any:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("head", list(Head))
def test_the_output_contract(tiny: DetectorCheckpoint, head: Head) -> None:
    model = build_yolov10(tiny, head, image_size=SIDE)
    assert not model.training
    found = run(model, images(2))
    assert found.shape == (2, 4 + 3, POINTS)
    assert found.dtype == torch.float32
    assert bool(((found[:, 4:] > 0) & (found[:, 4:] < 1)).all())
    assert bool((found[:, 2:4] >= 0).all())
    assert torch.allclose(found[1:], run(model, images(2)[1:]), atol=1e-4)


def test_the_two_heads_are_two(tiny: DetectorCheckpoint) -> None:
    one, many = (build_yolov10(tiny, head, image_size=SIDE) for head in Head)
    assert list(convolutions(one)) == list(convolutions(many))
    differing = {
        name for name, conv in convolutions(one).items() if not torch.equal(conv.weight, many.get_submodule(name).weight)
    }
    assert all(name.startswith("model.23.") for name in differing)
    assert len(differing) == len([name for name in convolutions(one) if name.startswith("model.23.")]) - 1, (
        "all but the projection"
    )


@pytest.mark.parametrize("side", [64, 96, 160])
def test_points_and_strides_follow_the_image_size(tiny: DetectorCheckpoint, side: int) -> None:
    """Let every side of every box be a known number of cells, so that the decoded boxes can be worked out on paper."""
    model = build_yolov10(tiny, image_size=side)
    distances, scores = (1.0, 0.0, 2.0, 5.0), (-1.0, 0.0, 3.0)
    with torch.no_grad():
        for box, cls in zip(model.model[-1].box, model.model[-1].cls, strict=True):
            box[-1].weight.zero_()
            box[-1].bias.copy_(100 * functional.one_hot(torch.tensor(distances).long(), 8).flatten())
            cls[-1].weight.zero_()
            cls[-1].bias.copy_(torch.tensor(scores))
    found = run(model, images(side=side))[0].T
    left, top, right, bottom = distances
    expected = [
        [(x + 0.5 + (right - left) / 2) * stride, (y + 0.5 + (bottom - top) / 2) * stride, 3 * stride, 5 * stride]
        for stride in (8, 16, 32)
        for y in range(side // stride)
        for x in range(side // stride)
    ]
    assert torch.allclose(found[:, :4], torch.tensor(expected), atol=1e-3)
    assert torch.allclose(found[:, 4:], torch.tensor(scores).sigmoid().expand(len(expected), 3))


def test_attention_is_attention(tiny: DetectorCheckpoint) -> None:
    attention = build_yolov10(tiny, image_size=SIDE).model[10].attn
    x = torch.randn(2, 8, 3, 5)
    with torch.no_grad():
        key, _, value = attention.widths
        heads = attention.qkv(x).reshape(2, attention.heads, 2 * key + value, 15)
        q, k, v = (part.transpose(2, 3) for part in heads.split([key, key, value], 2))
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(2, 8, 3, 5)
        place = attention.pe(v.transpose(2, 3).reshape(2, 8, 3, 5))
        assert torch.allclose(attention(x), attention.proj(mixed + place), atol=1e-5)


def test_pooling_pools_over_growing_windows(tiny: DetectorCheckpoint) -> None:
    pooling = build_yolov10(tiny, image_size=SIDE).model[9]
    x = torch.randn(1, 16, 9, 9)
    with torch.no_grad():
        narrow = pooling.cv1(x)
        windows = [narrow, *(functional.max_pool2d(narrow, side, 1, side // 2) for side in (5, 9, 13))]
        assert torch.equal(pooling(x), pooling.cv2(torch.cat(windows, 1)))


@pytest.mark.parametrize("size", SIZES)
def test_folding_changes_nothing(size: str, tmp_path: Path) -> None:
    checkpoint = of_size(size, tmp_path)
    model = build_yolov10(checkpoint, image_size=SIDE)
    before, layers = run(model, images(2)), len(convolutions(model))
    large_kernels = sum(type(module).__name__ == "RepVGGDW" for module in model.modules())
    fold_batch_norms(model)
    after = run(model, images(2))
    assert torch.allclose(before, after, atol=1e-4, rtol=1e-4)
    assert not torch.equal(before, after)
    assert len(convolutions(model)) == layers - large_kernels
    assert large_kernels == {"n": 1, "s": 2}.get(size, 0)
    kinds = {type(module).__name__ for module in model.modules()}
    assert not kinds & {"BatchNorm2d", "RepVGGDW"}
    weights = {name: conv.weight.clone() for name, conv in convolutions(model).items()}
    fold_batch_norms(model)
    assert all(torch.equal(conv.weight, weights[name]) for name, conv in convolutions(model).items())


def test_the_large_kernel_is_merged_in_the_middle(tiny: DetectorCheckpoint) -> None:
    model = build_yolov10(tiny, image_size=SIDE)
    block = model.get_submodule("model.22.m.0.cv1.2")
    x = torch.randn(1, 16, 11, 11)
    with torch.no_grad():
        expected = block(x)
        fold_batch_norms(model)
        merged = model.get_submodule("model.22.m.0.cv1.2")
        assert merged.conv.kernel_size == (7, 7)
        assert merged.conv.groups == merged.conv.in_channels == 16
        assert torch.allclose(merged(x), expected, atol=1e-5)


@pytest.mark.parametrize("size", ["n", "m", *(pytest.param(size, marks=pytest.mark.slow) for size in "sblx")])
def test_every_size_has_the_published_number_of_parameters(size: str, tmp_path: Path) -> None:
    model = make_model(Sample(size=size, width=None, classes=80, bins=16)).half()
    checkpoint = read_checkpoint(save(tmp_path / "full.pt", {"model": model}))
    built = build_yolov10(checkpoint)
    fold_batch_norms(built)
    assert round(sum(parameter.numel() for parameter in built.parameters()) / 1e6, 1) == MILLIONS[size]


@pytest.mark.parametrize("size", SIZES)
def test_convolutions_come_in_the_order_in_which_they_run(size: str, tmp_path: Path) -> None:
    model = build_yolov10(of_size(size, tmp_path), image_size=SIDE)
    for _ in ("as built", "folded"):
        ran: list[str] = []
        hooks = [
            conv.register_forward_hook(lambda *_, name=name, ran=ran: ran.append(name))
            for name, conv in convolutions(model).items()
        ]
        run(model, images())
        assert ran == list(convolutions(model))
        for hook in hooks:
            hook.remove()
        fold_batch_norms(model)


def test_roles(tiny: DetectorCheckpoint) -> None:
    model = build_yolov10(tiny, image_size=SIDE)
    fold_batch_norms(model)
    roles = layer_roles(model)
    assert list(roles) == list(convolutions(model))
    assert Counter(roles.values()) == {
        LayerRole.FIRST: 1,
        LayerRole.LAST: 6,
        LayerRole.DISTRIBUTION: 1,
        LayerRole.ATTENTION: 5,
        LayerRole.DEPTHWISE: 12,
        LayerRole.HEAD: 12,
        LayerRole.BODY: 46,
    }
    expected = {
        "model.0.conv": LayerRole.FIRST,
        "model.5.cv2.conv": LayerRole.DEPTHWISE,
        "model.10.cv1.conv": LayerRole.BODY,
        "model.10.attn.pe.conv": LayerRole.ATTENTION,
        "model.10.ffn.1.conv": LayerRole.ATTENTION,
        "model.22.m.0.cv1.2.conv": LayerRole.DEPTHWISE,
        "model.23.box.2.1.conv": LayerRole.HEAD,
        "model.23.cls.1.0.0.conv": LayerRole.DEPTHWISE,
        "model.23.cls.1.2": LayerRole.LAST,
        "model.23.box.0.2": LayerRole.LAST,
        "model.23.dfl": LayerRole.DISTRIBUTION,
    }
    assert {name: roles[name] for name in expected} == expected


def test_two_models_share_nothing_and_can_be_trained(tiny: DetectorCheckpoint) -> None:
    one, two = build_yolov10(tiny, image_size=SIDE), build_yolov10(tiny, image_size=SIDE)
    before = run(two, images())
    one.train()
    one(images(2)).sum().backward()
    untrained = [name for name, parameter in one.named_parameters() if parameter.grad is None]
    assert untrained == ["model.23.dfl.weight"], "the projection is fixed"
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.zero_()
    assert torch.equal(run(two, images()), before)


def test_the_export_needs_no_shape_arithmetic(tiny: DetectorCheckpoint, tmp_path: Path) -> None:
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    model = build_yolov10(tiny, image_size=SIDE)
    fold_batch_norms(model)
    path = tmp_path / "tiny.onnx"
    with pytest.warns(DeprecationWarning, match="legacy TorchScript"):
        torch.onnx.export(
            model, images(), str(path), dynamo=False, opset_version=17, input_names=["images"], output_names=["found"]
        )
    kinds = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert kinds["Conv"] == len(convolutions(model))
    assert not set(kinds) & {"Shape", "Slice", "Gather", "Range", "If", "Loop", "Where", "NonZero"}
    session = runtime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": images().numpy()})
    assert torch.allclose(torch.from_numpy(found), run(model, images()), atol=1e-3)


@pytest.mark.parametrize("side", [0, -64, 31, 33, 100, 639])
def test_image_sizes_that_do_not_fit(tiny: DetectorCheckpoint, side: int) -> None:
    with pytest.raises(SpecError, match=rf"image_size: {side} pixels cannot be divided into cells of 32"):
        build_yolov10(tiny, image_size=side)


def test_other_images_than_built_for_are_no_silent_nonsense(tiny: DetectorCheckpoint) -> None:
    with pytest.raises(RuntimeError):
        run(build_yolov10(tiny, image_size=SIDE), images(side=2 * SIDE))


def test_a_file_with_one_head_only(tmp_path: Path) -> None:
    model = make_model(Sample())
    model.model[23].cv2 = model.model[23].cv3 = None
    checkpoint = read_checkpoint(save(tmp_path / "one.pt", {"model": model}))
    build_yolov10(checkpoint, Head.ONE_TO_ONE, image_size=SIDE)
    with pytest.raises(SpecError, match=r"no such head.*no cv2 and no cv3"):
        build_yolov10(checkpoint, Head.ONE_TO_MANY, image_size=SIDE)


def test_a_file_whose_norms_are_folded_already(tmp_path: Path) -> None:
    model = make_model(Sample())
    first = model.model[0]
    first.conv.bias = nn.Parameter(torch.randn(8))
    del first.bn
    built = build_yolov10(read_checkpoint(save(tmp_path / "folded.pt", {"model": model})), image_size=SIDE)
    before = run(built, images())
    fold_batch_norms(built)
    assert torch.equal(built.model[0].conv.bias, first.conv.bias)
    assert torch.allclose(run(built, images()), before, atol=1e-4, rtol=1e-4)


def test_a_convolution_with_bias_before_its_norm(tmp_path: Path) -> None:
    model = make_model(Sample())
    model.model[3].conv.bias = nn.Parameter(torch.randn(8))
    built = build_yolov10(read_checkpoint(save(tmp_path / "bias.pt", {"model": model})), image_size=SIDE)
    before = run(built, images())
    fold_batch_norms(built)
    assert torch.allclose(run(built, images()), before, atol=1e-4, rtol=1e-4)


def changed(module: ModuleDescription, path: str, change: Callable[[ModuleDescription], ModuleDescription]) -> ModuleDescription:
    """Return the description with one of its modules changed."""
    if not path:
        return change(module)
    name, _, rest = path.partition(".")
    return dataclasses.replace(module, children={**module.children, name: changed(module.children[name], rest, change)})


def attribute(name: str, value: Any) -> Callable[[ModuleDescription], ModuleDescription]:
    return lambda module: dataclasses.replace(module, attributes={**module.attributes, name: value})


def without(name: str) -> Callable[[ModuleDescription], ModuleDescription]:
    def change(module: ModuleDescription) -> ModuleDescription:
        kept: dict[str, Any] = {
            part: {key: value for key, value in getattr(module, part).items() if key != name} for part in PARTS
        }
        return dataclasses.replace(module, **kept)

    return change


def tensor(part: str, name: str, value: Any) -> Callable[[ModuleDescription], ModuleDescription]:
    def change(module: ModuleDescription) -> ModuleDescription:
        added: dict[str, Any] = {part: {**getattr(module, part), name: value}}
        return dataclasses.replace(module, **added)

    return change


def called(name: str) -> Callable[[ModuleDescription], ModuleDescription]:
    return lambda module: dataclasses.replace(module, class_name=name)


PARTS = ("attributes", "parameters", "buffers", "children")
FIRST, LARGE, HEAD = "model.0.conv", "model.22.m.0.cv1.2", "model.23"


@pytest.mark.parametrize(
    ("path", "change", "match"),
    [
        (FIRST, attribute("groups", 0), "groups is 0, not a whole number of at least 1"),
        (FIRST, attribute("groups", 2), "cannot be divided into 2 groups"),
        (FIRST, attribute("groups", True), "groups is True"),
        (FIRST, attribute("kernel_size", (3, 3, 3)), "not one number for height and one for width"),
        (FIRST, attribute("kernel_size", (5, 5)), r"weight is \[8, 3, 3, 3\].*should be \[8, 3, 5, 5\]"),
        (FIRST, attribute("out_channels", 10**15), "weight is"),
        (FIRST, attribute("padding", "same"), "padding is 'same'"),
        (FIRST, attribute("padding", -1), "padding is -1"),
        (FIRST, attribute("stride", None), "stride is None"),
        (FIRST, attribute("padding_mode", "reflect"), "pads with zeros"),
        (FIRST, without("dilation"), "has no dilation"),
        (FIRST, without("weight"), "weight is missing"),
        (FIRST, tensor("parameters", "bias", torch.ones(3)), r"bias is \[3\]"),
        (FIRST, tensor("parameters", "weight", torch.ones(8, 3, 3, 3).int()), "floating point"),
        ("model.0.bn", tensor("buffers", "running_var", -torch.ones(8)), "negative variances"),
        ("model.0.bn", attribute("eps", 0.0), "eps is 0.0"),
        ("model.0.bn", attribute("eps", float("nan")), "eps is nan"),
        ("model.0.bn", without("running_mean"), "running_mean is missing"),
        ("model.0.act", called("GELU"), "no activation of YOLOv10"),
        ("model.0", without("conv"), "has no part 'conv'"),
        ("model.2", called("C3k2"), r"model\.2 \(C3k2\): is no block of YOLOv10"),
        ("model.2.cv1", called("Conv2d"), "where a Conv should be"),
        ("model.2", attribute("c", 3), "do not fit each other"),
        ("model.2.m.0", attribute("add", 1), "add is 1, neither true nor false"),
        ("model.9.m", attribute("kernel_size", 4), "keeps no size"),
        ("model.9.m", attribute("kernel_size", (5, 3)), "keeps no size"),
        ("model.10.attn", attribute("num_heads", 3), "do not fit each other"),
        ("model.10.attn", attribute("scale", float("inf")), "scale is inf"),
        ("model.11", attribute("mode", "bilinear"), "nearest"),
        ("model.11", attribute("scale_factor", 10**9), "nearest"),
        ("model.11", attribute("scale_factor", 4.0), "do not fit each other"),
        ("model.12", attribute("d", 0), "along the channels"),
        ("model.12", attribute("f", (-1, 12)), r"takes its input from \(-1, 12\)"),
        ("model.12", attribute("f", (-1, "6")), "takes its input from"),
        ("model.13", attribute("f", (-1, 6)), "takes its input from"),
        ("model.3", attribute("f", -5), "takes its input from -5"),
        ("model.3", attribute("f", 0), "do not fit each other|gives"),
        (f"{LARGE}.conv1.conv", attribute("padding", (0, 0)), "around the same centre"),
        (f"{LARGE}.conv1.act", called("SiLU"), "around the same centre"),
        (HEAD, attribute("nc", 4), "do not fit each other"),
        (HEAD, attribute("nc", 0), "nc is 0"),
        (HEAD, attribute("f", (16, 22, 19)), "do not fit each other"),
        (HEAD, attribute("f", (16, 19)), "do not fit each other"),
        (f"{HEAD}.one2one_cv2", without("2"), "2 box branches, 3 class branches and 3 strides"),
        (f"{HEAD}.dfl.conv", attribute("kernel_size", (1, 1, 1)), "height and one for width"),
    ],
)
def test_descriptions_that_are_no_detector(tiny: DetectorCheckpoint, path: str, change: Any, match: str) -> None:
    broken = dataclasses.replace(tiny, model=changed(tiny.model, f"model.{path.removeprefix('model.')}", change))
    with pytest.raises(SpecError, match=match):
        build_yolov10(broken, image_size=SIDE)


@pytest.mark.parametrize("strides", [(16, 8, 32), (8, 16, 64), (8, 8, 8), (8, 16)])
def test_strides_that_are_not_the_model_s(tiny: DetectorCheckpoint, strides: tuple[int, ...]) -> None:
    with pytest.raises(SpecError, match=r"fit each other|gives"):
        build_yolov10(dataclasses.replace(tiny, strides=strides), image_size=SIDE)


def paths(module: ModuleDescription, where: str = "") -> Iterator[str]:
    yield where
    for name, child in module.children.items():
        yield from paths(child, f"{where}.{name}".removeprefix("."))


NUMBERS = st.sampled_from([-1, 0, 1, 2, 3, 7, 2**40, 0.5, math.nan, math.inf, True, None, "same"])
VALUES = st.one_of(NUMBERS, st.tuples(NUMBERS), st.tuples(NUMBERS, NUMBERS), st.just((1, 2, 3)))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_a_description_says_it_is_a_detector_or_an_error(tiny: DetectorCheckpoint, data: st.DataObject) -> None:
    relevant = {
        "c",
        "f",
        "d",
        "nc",
        "eps",
        "groups",
        "kernel_size",
        "padding",
        "stride",
        "dilation",
        "in_channels",
        "out_channels",
    }
    places = [
        (path, name) for path in paths(tiny.model) for name in relevant & set(find(tiny.model, path).attributes) if path != ""
    ]
    path, name = data.draw(st.sampled_from(sorted(places)))
    broken = dataclasses.replace(tiny, model=changed(tiny.model, path, attribute(name, data.draw(VALUES))))
    try:
        model = build_yolov10(broken, image_size=SIDE)
    except SpecError:
        return
    assert run(model, images()).shape == (1, 4 + 3, POINTS)


def find(module: ModuleDescription, path: str) -> ModuleDescription:
    for name in path.split(".") if path else ():
        module = module.children[name]
    return module


def test_nothing_heavy_is_loaded_before_a_model_is_read() -> None:
    names = ("checkpoint", "weights", "yolov10")
    code = f"import sys; from fewbits.quantizers.brevitas import {', '.join(names)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
