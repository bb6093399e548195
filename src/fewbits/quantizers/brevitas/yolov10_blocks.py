"""YOLOv10's blocks as plain torch modules. Importing this module loads torch; `yolov10` imports it on first use.

Inside every block the parts stand in the order in which they run, so that the order of a model's modules is the order of its
layers. The modules take and give float tensors `[batch, channels, height, width]` unless said otherwise.

Source: A. Wang et al., YOLOv10: Real-Time End-to-End Object Detection (arXiv 2405.14458), and the shapes in its checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


class Block(nn.Module):  # type: ignore[misc]
    """Base of the blocks."""


class Conv(Block):
    """Convolution, normalisation (`Identity` where there is none, or once it is folded), activation."""

    def __init__(self, conv: nn.Conv2d, bn: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.conv, self.bn, self.act = conv, bn, act

    def forward(self, x: Any) -> Any:
        """Return activation(normalisation(convolution(x)))."""
        return self.act(self.bn(self.conv(x)))


class RepVGGDW(Block):
    """Two depthwise convolutions of different size side by side, summed: one large-kernel convolution once they are merged."""

    def __init__(self, conv: Conv, conv1: Conv, act: nn.Module) -> None:
        super().__init__()
        self.conv, self.conv1, self.act = conv, conv1, act

    def forward(self, x: Any) -> Any:
        """Return activation(large(x) + small(x))."""
        return self.act(self.conv(x) + self.conv1(x))


class Bottleneck(Block):
    """Two convolutions, with a shortcut around them where `add` is set."""

    def __init__(self, cv1: Conv, cv2: Conv, *, add: bool) -> None:
        super().__init__()
        self.cv1, self.cv2, self.add = cv1, cv2, add

    def forward(self, x: Any) -> Any:
        """Return the block's output, same shape where `add` is set."""
        y = self.cv2(self.cv1(x))
        return x + y if self.add else y


class CIB(Block):
    """Compact inverted block: depthwise and pointwise convolutions in turn, with a shortcut where `add` is set."""

    def __init__(self, cv1: nn.Module, *, add: bool) -> None:
        super().__init__()
        self.cv1, self.add = cv1, add

    def forward(self, x: Any) -> Any:
        """Return the block's output, same shape where `add` is set."""
        y = self.cv1(x)
        return x + y if self.add else y


class C2f(Block):
    """Split, send one half through a chain of blocks, and join every step of it. With `CIB` blocks it is called C2fCIB."""

    def __init__(self, cv1: Conv, m: nn.ModuleList, cv2: Conv, hidden: int) -> None:
        super().__init__()
        self.cv1, self.m, self.cv2, self.hidden = cv1, m, cv2, hidden

    def forward(self, x: Any) -> Any:
        """Return the joined steps, mixed by a pointwise convolution."""
        steps = list(self.cv1(x).split(self.hidden, 1))
        for block in self.m:
            steps.append(block(steps[-1]))
        return self.cv2(torch.cat(steps, 1))


class SCDown(Block):
    """Spatial-channel decoupled downsampling: pointwise first, then a strided depthwise convolution."""

    def __init__(self, cv1: Conv, cv2: Conv) -> None:
        super().__init__()
        self.cv1, self.cv2 = cv1, cv2

    def forward(self, x: Any) -> Any:
        """Return the smaller map."""
        return self.cv2(self.cv1(x))


class SPPF(Block):
    """Spatial pyramid pooling: the map and three poolings of it, each over the one before, joined."""

    def __init__(self, cv1: Conv, cv2: Conv, kernel_size: int) -> None:
        super().__init__()
        self.cv1, self.m, self.cv2 = cv1, nn.MaxPool2d(kernel_size, stride=1, padding=kernel_size // 2), cv2

    def forward(self, x: Any) -> Any:
        """Return the joined maps, mixed by a pointwise convolution."""
        maps = [self.cv1(x)]
        for _ in range(3):
            maps.append(self.m(maps[-1]))
        return self.cv2(torch.cat(maps, 1))


class Attention(Block):
    """Multi-head self-attention over all cells of the map, with a depthwise convolution as its position encoding."""

    def __init__(self, qkv: Conv, pe: Conv, proj: Conv, *, heads: int, key_width: int, value_width: int, scale: float) -> None:
        super().__init__()
        self.qkv, self.pe, self.proj = qkv, pe, proj
        self.heads, self.widths, self.scale = heads, (key_width, key_width, value_width), scale

    def forward(self, x: Any) -> Any:
        """Return a map of the same shape."""
        batch, _, height, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, self.heads, sum(self.widths), height * width).split(self.widths, 2)
        weights = ((q.transpose(-2, -1) @ k) * self.scale).softmax(-1)
        shape = (batch, self.heads * self.widths[2], height, width)
        return self.proj((v @ weights.transpose(-2, -1)).reshape(shape) + self.pe(v.reshape(shape)))


class PSA(Block):
    """Partial self-attention: only one half of the channels goes through attention and a small feed-forward network."""

    def __init__(self, cv1: Conv, attn: Attention, ffn: nn.Module, cv2: Conv, hidden: int) -> None:
        super().__init__()
        self.cv1, self.attn, self.ffn, self.cv2, self.hidden = cv1, attn, ffn, cv2, hidden

    def forward(self, x: Any) -> Any:
        """Return a map of the same shape."""
        kept, attended = self.cv1(x).split(self.hidden, 1)
        attended = attended + self.attn(attended)
        attended = attended + self.ffn(attended)
        return self.cv2(torch.cat([kept, attended], 1))


class Concat(Block):
    """Join maps along the channels."""

    def forward(self, maps: Sequence[Any]) -> Any:
        """Return one map with the channels of all of them."""
        return torch.cat(list(maps), 1)


class Detect(Block):
    """The detection head: a box and a class branch per level, decoded inside the graph.

    A box branch gives, per point and side (left, top, right, bottom), logits over `bins` distances in cells; `dfl` is the fixed
    pointwise convolution whose weights are the bin numbers, so that it turns the distribution into its mean.
    Source: generalized focal loss (arXiv 2006.04388), as YOLOv10 uses it.
    """

    def __init__(self, box: nn.ModuleList, cls: nn.ModuleList, dfl: nn.Conv2d, grid: tuple[Any, Any], classes: int) -> None:
        """Take the branches by level, the projection, and the cells of all levels as `point_grid` gives them."""
        super().__init__()
        self.box, self.cls, self.dfl, self.bins, self.classes = box, cls, dfl, dfl.in_channels, classes
        points, point_strides = grid
        self.register_buffer("points", points, persistent=False)
        self.register_buffer("point_strides", point_strides, persistent=False)

    def forward(self, maps: Sequence[Any]) -> Any:
        """Return `[batch, 4 + classes, points]` from one map per level: centre x, y, width, height in pixels, probabilities."""
        batch = maps[0].shape[0]
        # the sizes are written out, so that an export for a fixed size needs no Shape nodes
        box = [branch(x).reshape(batch, 4, self.bins, -1) for branch, x in zip(self.box, maps, strict=True)]
        cls = [branch(x).reshape(batch, self.classes, -1) for branch, x in zip(self.cls, maps, strict=True)]
        distances = self.dfl(torch.cat(box, 3).transpose(1, 2).softmax(1)).squeeze(1)
        left_top, right_bottom = distances.split(2, 1)
        centre = self.points + (right_bottom - left_top) / 2
        boxes = torch.cat([centre, left_top + right_bottom], 1) * self.point_strides
        return torch.cat([boxes, torch.cat(cls, 2).sigmoid()], 1)


class YoloV10(Block):
    """A YOLOv10 detector for square images of one size."""

    def __init__(self, layers: Sequence[nn.Module], sources: Sequence[tuple[int, ...]], image_size: int) -> None:
        """Take the layers in order, the head last, and of each the earlier layers that feed it (-1 is the image)."""
        super().__init__()
        self.model = nn.ModuleList(layers)
        self.sources, self.image_size, self.classes = tuple(sources), image_size, layers[-1].classes

    def forward(self, images: Any) -> Any:
        """Take images `[batch, 3, image_size, image_size]`, RGB, 0..1; return boxes and probabilities as `Detect` does."""
        maps = [images]
        for layer, sources in zip(self.model, self.sources, strict=True):
            inputs = [maps[source + 1] for source in sources]
            maps.append(layer(inputs if isinstance(layer, (Concat, Detect)) else inputs[0]))
        return maps[-1]


def point_grid(strides: Sequence[int], image_size: int) -> tuple[Any, Any]:
    """Return the centre of every cell, level by level and row by row, in cells `[2, points]`, and its stride `[1, points]`."""
    centres, scales = [], []
    for stride in strides:
        along = torch.arange(image_size // stride, dtype=torch.float32) + 0.5
        y, x = torch.meshgrid(along, along, indexing="ij")
        centres.append(torch.stack([x.flatten(), y.flatten()]))
        scales.append(torch.full((1, x.numel()), float(stride)))
    return torch.cat(centres, 1), torch.cat(scales, 1)
