"""From a checkpoint's description to modules, block by block. Importing this module loads torch; `yolov10` does on first use.

The description comes from a file that nobody vouches for, so every number is checked before a module is made with it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fewbits.core.errors import SpecError
from fewbits.quantizers.brevitas import yolov10_blocks as blocks
from fewbits.quantizers.brevitas.checkpoint import ModuleDescription, Plain


@dataclass(frozen=True, slots=True)
class Part:
    """One module of the description and where it stands, so that a complaint can name it."""

    description: ModuleDescription
    where: str

    def bad(self, message: str) -> SpecError:
        """Build the error for this module."""
        hint = "the file is damaged, or of a YOLOv10 variant that is not known here"
        return SpecError.single(f"{self.where} ({self.description.class_name})", message, hint)

    def has(self, name: str) -> bool:
        """Tell whether there is a child of that name."""
        return name in self.description.children

    def child(self, name: str) -> Part:
        """Return one child. Raises `SpecError`."""
        if not self.has(name):
            raise self.bad(f"has no part {name!r}")
        return Part(self.description.children[name], f"{self.where}.{name}")

    def children(self) -> list[Part]:
        """Return all children, in the file's order."""
        return [self.child(name) for name in self.description.children]

    def attribute(self, name: str) -> Plain:
        """Return an attribute. Raises `SpecError` when it is missing."""
        if name not in self.description.attributes:
            raise self.bad(f"has no {name}")
        return self.description.attributes[name]

    def integer(self, name: str, least: int = 1) -> int:
        """Return a whole number of at least `least`. Raises `SpecError`."""
        return self._whole(name, self.attribute(name), least)

    def pair(self, name: str, least: int = 1) -> tuple[int, int]:
        """Return two whole numbers (height, width); one number stands for both. Raises `SpecError`."""
        value = self.attribute(name)
        values = value if isinstance(value, tuple) else (value, value)
        if len(values) != 2:
            raise self.bad(f"{name} is {value!r}, not one number for height and one for width")
        return self._whole(name, values[0], least), self._whole(name, values[1], least)

    def positive(self, name: str) -> float:
        """Return a finite number above 0. Raises `SpecError`."""
        value = self.attribute(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
            raise self.bad(f"{name} is {value!r}, not a number above 0")
        return float(value)

    def flag(self, name: str) -> bool:
        """Return true or false. Raises `SpecError`."""
        value = self.attribute(name)
        if not isinstance(value, bool):
            raise self.bad(f"{name} is {value!r}, neither true nor false")
        return value

    def tensor(self, kind: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> Any:
        """Return a copy of a floating point tensor of that shape. Raises `SpecError` when there is none."""
        found = kind.get(name)
        if found is None or not found.is_floating_point() or tuple(found.shape) != shape:
            what = "missing" if found is None else f"{list(found.shape)} of {found.dtype}"
            raise self.bad(f"{name} is {what}, should be {list(shape)} of floating point numbers")
        return found.clone()

    def _whole(self, name: str, value: Plain, least: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.bad(f"{name} is {value!r}, not a whole number of at least {least}")
        return value


def make_block(part: Part) -> Any:
    """Build one block with its weights. Raises `SpecError` for a class that YOLOv10 does not have, or numbers that do not fit."""
    maker = _MAKERS.get(part.description.class_name)
    if maker is None:
        raise part.bad(f"is no block of YOLOv10 as it is known here ({', '.join(sorted(_MAKERS))})")
    return maker(part)


def make_detect(part: Part, branches: tuple[str, str], strides: Sequence[int], image_size: int) -> blocks.Detect:
    """Build the detection head with the box and class branches of the given names. Raises `SpecError`."""
    missing = [name for name in branches if not part.has(name)]
    if missing:
        raise part.bad(f"the file has no such head (no {' and no '.join(missing)})")
    box, cls = ([make_block(level) for level in part.child(name).children()] for name in branches)
    dfl = _convolution(part.child("dfl").child("conv"))
    dfl.weight.requires_grad_(requires_grad=False)
    if not len(box) == len(cls) == len(strides):
        raise part.bad(f"{len(box)} box branches, {len(cls)} class branches and {len(strides)} strides do not fit each other")
    if (dfl.out_channels, dfl.kernel_size, dfl.groups, dfl.bias) != (1, (1, 1), 1, None):
        raise part.bad("the distribution projection is no pointwise convolution to one channel without bias")
    grid = blocks.point_grid(strides, image_size)
    return blocks.Detect(nn.ModuleList(box), nn.ModuleList(cls), dfl, grid, part.integer("nc"))


def require_fit(model: blocks.YoloV10, strides: Sequence[int], where: str) -> None:
    """Raise `SpecError` when the parts do not fit each other, found by running the model's shapes (no numbers are computed)."""
    seen: list[tuple[int, ...]] = []
    shapes = copy.deepcopy(model).to("meta")
    for module in shapes.modules():
        if isinstance(module, blocks.Conv):
            # it keeps every shape, and working that out takes torch longer than all the rest
            module.bn = nn.Identity()
    shapes.model[-1].register_forward_pre_hook(lambda _, inputs: seen.extend(tuple(x.shape[-2:]) for x in inputs[0]))
    size = model.image_size
    try:
        with torch.no_grad():
            found = tuple(shapes(torch.empty(1, 3, size, size, device="meta")).shape)
    except (RuntimeError, ValueError, IndexError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SpecError.single(where, f"the model's parts do not fit each other: {reason}", "the file is damaged") from error
    wanted = (1, 4 + model.classes, sum((size // stride) ** 2 for stride in strides))
    if found != wanted or seen != [(size // stride, size // stride) for stride in strides]:
        msg = f"the model gives {list(found)} from levels {seen}, should give {list(wanted)} at strides {list(strides)}"
        raise SpecError.single(where, msg, "the file is damaged")


def _convolution(part: Part) -> Any:
    inputs, outputs, groups = part.integer("in_channels"), part.integer("out_channels"), part.integer("groups")
    kernel = part.pair("kernel_size")
    if inputs % groups or outputs % groups:
        raise part.bad(f"{inputs} and {outputs} channels cannot be divided into {groups} groups")
    if part.attribute("padding_mode") != "zeros" or part.description.attributes.get("transposed"):
        raise part.bad("no plain convolution that pads with zeros")
    parameters = part.description.parameters
    weight = part.tensor(parameters, "weight", (outputs, inputs // groups, *kernel))
    bias = part.tensor(parameters, "bias", (outputs,)) if "bias" in parameters else None
    # on the meta device nothing is drawn at random: the weights come from the file
    conv = nn.Conv2d(
        inputs,
        outputs,
        kernel,
        stride=part.pair("stride"),
        padding=part.pair("padding", least=0),
        dilation=part.pair("dilation"),
        groups=groups,
        bias=bias is not None,
        device="meta",
    )
    conv.weight = nn.Parameter(weight)
    if bias is not None:
        conv.bias = nn.Parameter(bias)
    return conv


def _batch_norm(part: Part, channels: int) -> Any:
    norm = nn.BatchNorm2d(channels, eps=part.positive("eps"), momentum=part.positive("momentum"))
    shape = (channels,)
    norm.weight = nn.Parameter(part.tensor(part.description.parameters, "weight", shape))
    norm.bias = nn.Parameter(part.tensor(part.description.parameters, "bias", shape))
    norm.running_mean = part.tensor(part.description.buffers, "running_mean", shape)
    norm.running_var = part.tensor(part.description.buffers, "running_var", shape)
    if bool((norm.running_var < 0).any()):
        raise part.bad("has negative variances")
    return norm


def _activation(part: Part) -> Any:
    known: dict[str, type[nn.Module]] = {"SiLU": nn.SiLU, "Identity": nn.Identity}
    if part.description.class_name not in known:
        raise part.bad(f"is no activation of YOLOv10 ({' or '.join(known)})")
    return known[part.description.class_name]()


def _conv(part: Part) -> blocks.Conv:
    if part.description.class_name != "Conv":
        raise part.bad("stands where a Conv should be")
    conv = _convolution(part.child("conv"))
    norm = _batch_norm(part.child("bn"), conv.out_channels) if part.has("bn") else nn.Identity()
    return blocks.Conv(conv, norm, _activation(part.child("act")))


def _large_kernel(part: Part) -> blocks.RepVGGDW:
    large, small = _conv(part.child("conv")), _conv(part.child("conv1"))
    if not all(isinstance(branch.act, nn.Identity) for branch in (large, small)) or not _concentric(large.conv, small.conv):
        raise part.bad("the two branches are no two convolutions around the same centre that are summed before the activation")
    return blocks.RepVGGDW(large, small, _activation(part.child("act")))


def _concentric(large: Any, small: Any) -> bool:
    """Tell whether the small kernel, padded with zeros to the large one's size, gives the same convolution."""
    sides = zip(large.kernel_size, small.kernel_size, large.padding, small.padding, strict=True)
    same = ("in_channels", "out_channels", "groups", "stride")
    return (
        all(getattr(large, name) == getattr(small, name) for name in same)
        and large.dilation == small.dilation == (1, 1)
        and all(wide >= narrow and wide - narrow == 2 * (outer - inner) for wide, narrow, outer, inner in sides)
    )


def _bottleneck(part: Part) -> blocks.Bottleneck:
    return blocks.Bottleneck(_conv(part.child("cv1")), _conv(part.child("cv2")), add=part.flag("add"))


def _cib(part: Part) -> blocks.CIB:
    return blocks.CIB(make_block(part.child("cv1")), add=part.flag("add"))


def _c2f(part: Part) -> blocks.C2f:
    chain = nn.ModuleList([make_block(block) for block in part.child("m").children()])
    return blocks.C2f(_conv(part.child("cv1")), chain, _conv(part.child("cv2")), part.integer("c"))


def _sc_down(part: Part) -> blocks.SCDown:
    return blocks.SCDown(_conv(part.child("cv1")), _conv(part.child("cv2")))


def _sppf(part: Part) -> blocks.SPPF:
    kernel = part.child("m").pair("kernel_size")
    if kernel[0] != kernel[1] or kernel[0] % 2 == 0:
        raise part.bad(f"pools over {kernel[0]} x {kernel[1]} cells, which keeps no size")
    return blocks.SPPF(_conv(part.child("cv1")), _conv(part.child("cv2")), kernel[0])


def _attention(part: Part) -> blocks.Attention:
    return blocks.Attention(
        _conv(part.child("qkv")),
        _conv(part.child("pe")),
        _conv(part.child("proj")),
        heads=part.integer("num_heads"),
        key_width=part.integer("key_dim"),
        value_width=part.integer("head_dim"),
        scale=part.positive("scale"),
    )


def _psa(part: Part) -> blocks.PSA:
    return blocks.PSA(
        _conv(part.child("cv1")),
        _attention(part.child("attn")),
        make_block(part.child("ffn")),
        _conv(part.child("cv2")),
        part.integer("c"),
    )


def _sequential(part: Part) -> Any:
    return nn.Sequential(*(make_block(block) for block in part.children()))


def _upsample(part: Part) -> Any:
    factor = part.attribute("scale_factor")
    factors = factor if isinstance(factor, tuple) else (factor,)
    if part.attribute("mode") != "nearest" or any(
        not isinstance(value, (int, float)) or not 1 <= value <= 8 for value in factors
    ):
        raise part.bad("does not repeat the nearest cell")
    return nn.Upsample(scale_factor=factor, mode="nearest")


def _concat(part: Part) -> blocks.Concat:
    if part.attribute("d") != 1:
        raise part.bad("does not join along the channels")
    return blocks.Concat()


_MAKERS: dict[str, Callable[[Part], Any]] = {
    "Attention": _attention,
    "Bottleneck": _bottleneck,
    "C2f": _c2f,
    "C2fCIB": _c2f,
    "CIB": _cib,
    "Concat": _concat,
    "Conv": _conv,
    "Conv2d": _convolution,
    "Identity": lambda _: nn.Identity(),
    "PSA": _psa,
    "RepVGGDW": _large_kernel,
    "SCDown": _sc_down,
    "SPPF": _sppf,
    "Sequential": _sequential,
    "Upsample": _upsample,
}
