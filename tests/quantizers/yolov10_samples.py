"""Checkpoint files of random YOLOv10 detectors, pickled under the trainer's class names without the trainer.

Layer lists and widths: the architecture's figures in arXiv 2405.14458 and the shapes in a YOLOv10-n file.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

_HOMES = {
    "Conv": "ultralytics.nn.modules.conv",
    "Concat": "ultralytics.nn.modules.conv",
    "v10Detect": "ultralytics.nn.modules.head",
    "Detect": "ultralytics.nn.modules.head",
    "YOLOv10DetectionModel": "ultralytics.nn.tasks",
    "DetectionModel": "ultralytics.nn.tasks",
    "ClassificationModel": "ultralytics.nn.tasks",
    "IterableSimpleNamespace": "ultralytics.utils",
}
_CLASSES: dict[str, type] = {}


@dataclass(frozen=True)
class Size:
    """One member of the family: scale factors, and for each layer with a choice, what stands there."""

    depth: float
    width: float
    most_channels: int
    inverted: dict[int, bool]
    """Layers that are C2fCIB instead of C2f; true: with the large kernel."""


SIZES = {
    "n": Size(1 / 3, 0.25, 1024, {22: True}),
    "s": Size(1 / 3, 0.50, 1024, {8: True, 22: True}),
    "m": Size(2 / 3, 0.75, 768, {8: False, 19: False, 22: False}),
    "b": Size(2 / 3, 1.00, 512, {8: False, 13: False, 19: False, 22: False}),
    "l": Size(1.0, 1.00, 512, {8: False, 13: False, 19: False, 22: False}),
    "x": Size(1.0, 1.25, 512, {6: False, 8: False, 13: False, 19: False, 22: False}),
}


@dataclass(frozen=True)
class Sample:
    """What a sample file should be. The defaults make the smallest detector of size n."""

    size: str = "n"
    width: float | None = 1 / 64
    """Factor on the channels; `None` is the size's own."""
    classes: int = 3
    bins: int = 8
    seed: int = 0
    names: Any = field(default_factory=lambda: {0: "cat", 1: "dog", 2: "bird"})


def foreign(name: str) -> type[nn.Module]:
    """Return the class that stands for one of the trainer's, by its name."""
    if name not in _CLASSES:
        home = _HOMES.get(name, "ultralytics.nn.modules.block")
        base = object if name == "IterableSimpleNamespace" else nn.Module
        _CLASSES[name] = type(name, (base,), {"__module__": home})
    return _CLASSES[name]


def make(name: str, attributes: dict[str, Any] | None = None, **parts: nn.Module) -> Any:
    """Return an instance of one of the trainer's classes with these attributes and parts."""
    module: Any = foreign(name)()
    for key, value in {**(attributes or {}), **parts}.items():
        setattr(module, key, value)
    return module


@contextlib.contextmanager
def trainer_modules() -> Iterator[None]:
    """Let pickle find the trainer's classes by name inside the block."""
    homes: dict[str, ModuleType] = {}
    for known in _CLASSES.values():
        home = homes.setdefault(known.__module__, ModuleType(known.__module__))
        setattr(home, known.__name__, known)
    for home_name in list(homes):
        while "." in home_name:
            home_name = home_name.rpartition(".")[0]  # noqa: PLW2901 every parent package too
            homes.setdefault(home_name, ModuleType(home_name))
    assert not set(homes) & set(sys.modules)
    sys.modules.update(homes)
    try:
        yield
    finally:
        for name in homes:
            del sys.modules[name]


def save(path: Path, content: Any, **options: Any) -> Path:
    """Write anything as the trainer would."""
    with trainer_modules():
        torch.save(content, path, **options)
    return path


def write_checkpoint(path: Path, sample: Sample | None = None, **entries: Any) -> Path:
    """Write a checkpoint of a random detector; `entries` are added to the file's table or replace what stands there."""
    return save(path, {"model": make_model(sample or Sample()), **entries})


def conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, *, act: bool = True) -> Any:
    """Return the trainer's `Conv`: convolution, normalisation with random statistics, activation."""
    norm = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.03)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias, std=0.3)
    nn.init.normal_(norm.running_mean, std=0.3)
    nn.init.uniform_(norm.running_var, 0.2, 1.0)
    return make(
        "Conv",
        conv=nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        bn=norm,
        act=nn.SiLU() if act else nn.Identity(),
    )


def _inverted(channels: int, *, shortcut: bool, large: bool) -> Any:
    wide = 2 * channels
    middle = conv(wide, wide, 3, groups=wide)
    if large:
        branches = {"conv": conv(wide, wide, 7, groups=wide, act=False), "conv1": conv(wide, wide, 3, groups=wide, act=False)}
        middle = make("RepVGGDW", {"dim": wide}, **branches, act=nn.SiLU())
    chain = nn.Sequential(
        conv(channels, channels, 3, groups=channels),
        conv(channels, wide),
        middle,
        conv(wide, channels),
        conv(channels, channels, 3, groups=channels),
    )
    return make("CIB", {"add": shortcut}, cv1=chain)


def _c2f(inputs: int, outputs: int, repeats: int, *, shortcut: bool, large: bool | None) -> Any:
    """`large` is `None` for bottlenecks, else whether the inverted blocks have the large kernel."""
    half = outputs // 2
    blocks = [
        make("Bottleneck", {"add": shortcut}, cv1=conv(half, half, 3), cv2=conv(half, half, 3))
        if large is None
        else _inverted(half, shortcut=shortcut, large=large)
        for _ in range(repeats)
    ]
    name = "C2f" if large is None else "C2fCIB"
    cv1, cv2 = conv(inputs, 2 * half), conv((2 + repeats) * half, outputs)
    return make(name, {"c": half}, cv1=cv1, cv2=cv2, m=nn.ModuleList(blocks))


def _sc_down(inputs: int, outputs: int) -> Any:
    return make("SCDown", cv1=conv(inputs, outputs), cv2=conv(outputs, outputs, 3, 2, groups=outputs, act=False))


def _sppf(channels: int) -> Any:
    half = channels // 2
    return make("SPPF", cv1=conv(channels, half), cv2=conv(4 * half, channels), m=nn.MaxPool2d(5, 1, 2))


def _psa(channels: int) -> Any:
    half = channels // 2
    heads = max(half // 64, 1)
    value = half // heads
    key = value // 2
    attention = make(
        "Attention",
        {"num_heads": heads, "head_dim": value, "key_dim": key, "scale": key**-0.5},
        qkv=conv(half, half + 2 * key * heads, act=False),
        proj=conv(half, half, act=False),
        pe=conv(half, half, 3, groups=half, act=False),
    )
    ffn = nn.Sequential(conv(half, 2 * half), conv(2 * half, half, act=False))
    return make("PSA", {"c": half}, cv1=conv(channels, channels), cv2=conv(channels, channels), attn=attention, ffn=ffn)


def _detect(widths: list[int], classes: int, bins: int) -> Any:
    box_width = max(16, widths[0] // 4, 4 * bins)
    class_width = max(widths[0], min(classes, 100))

    def box(inputs: int) -> Any:
        return nn.Sequential(conv(inputs, box_width, 3), conv(box_width, box_width, 3), nn.Conv2d(box_width, 4 * bins, 1))

    def cls(inputs: int) -> Any:
        return nn.Sequential(
            nn.Sequential(conv(inputs, inputs, 3, groups=inputs), conv(inputs, class_width)),
            nn.Sequential(conv(class_width, class_width, 3, groups=class_width), conv(class_width, class_width)),
            nn.Conv2d(class_width, classes, 1),
        )

    projection = nn.Conv2d(bins, 1, 1, bias=False).requires_grad_(requires_grad=False)
    projection.weight.data = torch.arange(bins, dtype=torch.float32).reshape(1, bins, 1, 1)
    branches = {
        f"{head}{name}": nn.ModuleList(make(width) for width in widths)
        for head in ("", "one2one_")
        for name, make in (("cv2", box), ("cv3", cls))
    }
    attributes = {"nc": classes, "nl": 3, "reg_max": bins, "no": classes + 4 * bins, "stride": torch.tensor([8.0, 16.0, 32.0])}
    return make("v10Detect", attributes, dfl=make("DFL", {"c1": bins}, conv=projection), **branches)


def make_model(sample: Sample) -> Any:
    """Return a whole detector of the trainer's classes, random and in float32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sample.seed)
        layers = nn.Sequential(*_layers(sample))
    attributes = {
        "names": sample.names,
        "stride": torch.tensor([8.0, 16.0, 32.0]),
        "task": "detect",
        "yaml": {"nc": sample.classes},
    }
    return make("YOLOv10DetectionModel", attributes, model=layers)


def _layers(sample: Sample) -> list[Any]:
    size = SIZES[sample.size]
    factor = size.width if sample.width is None else sample.width

    def channels(nominal: int) -> int:
        return max(8, -(-int(min(nominal, size.most_channels) * factor) // 8) * 8)

    def c2f(index: int, inputs: int, nominal: int, repeats: int, *, shortcut: bool) -> Any:
        large = size.inverted.get(index)
        # inverted blocks in the neck have a shortcut, bottlenecks there have none
        add = shortcut or large is not None
        return _c2f(inputs, channels(nominal), max(round(repeats * size.depth), 1), shortcut=add, large=large)

    w64, w128, w256, w512, w1024 = (channels(nominal) for nominal in (64, 128, 256, 512, 1024))
    layers = [
        (-1, conv(3, w64, 3, 2)),
        (-1, conv(w64, w128, 3, 2)),
        (-1, c2f(2, w128, 128, 3, shortcut=True)),
        (-1, conv(w128, w256, 3, 2)),
        (-1, c2f(4, w256, 256, 6, shortcut=True)),
        (-1, _sc_down(w256, w512)),
        (-1, c2f(6, w512, 512, 6, shortcut=True)),
        (-1, _sc_down(w512, w1024)),
        (-1, c2f(8, w1024, 1024, 3, shortcut=True)),
        (-1, _sppf(w1024)),
        (-1, _psa(w1024)),
        (-1, nn.Upsample(scale_factor=2, mode="nearest")),
        ([-1, 6], make("Concat", {"d": 1})),
        (-1, c2f(13, w1024 + w512, 512, 3, shortcut=False)),
        (-1, nn.Upsample(scale_factor=2, mode="nearest")),
        ([-1, 4], make("Concat", {"d": 1})),
        (-1, c2f(16, w512 + w256, 256, 3, shortcut=False)),
        (-1, conv(w256, w256, 3, 2)),
        ([-1, 13], make("Concat", {"d": 1})),
        (-1, c2f(19, w256 + w512, 512, 3, shortcut=False)),
        (-1, _sc_down(w512, w512)),
        ([-1, 10], make("Concat", {"d": 1})),
        (-1, c2f(22, w512 + w1024, 1024, 3, shortcut=False)),
        ([16, 19, 22], _detect([w256, w512, w1024], sample.classes, sample.bins)),
    ]
    for index, (source, layer) in enumerate(layers):
        layer.i, layer.f = index, source
    return [layer for _, layer in layers]
