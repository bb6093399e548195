"""YOLOv10 of every size, rebuilt in plain torch from a checkpoint's description. Loads torch on first use."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

from fewbits.core.errors import SpecError
from fewbits.quantizers.brevitas.checkpoint import DetectorCheckpoint
from fewbits.records.detector_quant import LayerRole

if TYPE_CHECKING:
    from fewbits.quantizers.brevitas.yolov10_blocks import YoloV10
    from fewbits.quantizers.brevitas.yolov10_parts import Part


class Head(StrEnum):
    """The two heads that YOLOv10 is trained with. Source: consistent dual assignments, arXiv 2405.14458, section 3.1."""

    ONE_TO_ONE = "one-to-one"
    """One point per object: the best-scored points are the detections."""
    ONE_TO_MANY = "one-to-many"
    """Several points per object: detections need non-maximum suppression."""


_BRANCHES = {Head.ONE_TO_ONE: ("one2one_cv2", "one2one_cv3"), Head.ONE_TO_MANY: ("cv2", "cv3")}


def build_yolov10(checkpoint: DetectorCheckpoint, head: Head = Head.ONE_TO_ONE, image_size: int = 640) -> YoloV10:
    """Rebuild the detector with one of its heads, in evaluation mode; the other head is not built.

    Images are square, `image_size` pixels wide. The model maps float32 `[batch, 3, image_size, image_size]` (RGB, 0..1) to
    `[batch, 4 + classes, points]`: centre x, centre y, width and height in pixels of that image, then one probability per class.
    Weights are copies, so two models of one checkpoint are independent. Raises `SpecError`: a size that the strides do not
    divide, a description that is no YOLOv10, a head that the file does not have.
    """
    from fewbits.quantizers.brevitas.yolov10_blocks import YoloV10
    from fewbits.quantizers.brevitas.yolov10_parts import Part, make_block, make_detect, require_fit

    coarsest = max(checkpoint.strides)
    if image_size < coarsest or image_size % coarsest:
        raise SpecError.single(
            "image_size", f"{image_size} pixels cannot be divided into cells of {coarsest}", "the usual size is 640"
        )
    *body, last = Part(checkpoint.model, str(checkpoint.path)).child("model").children()
    layers = [make_block(part) for part in body]
    layers.append(make_detect(last, _BRANCHES[head], checkpoint.strides, image_size))
    sources = [_sources(part, index) for index, part in enumerate((*body, last))]
    model = YoloV10(layers, sources, image_size)
    model.eval()
    require_fit(model, checkpoint.strides, str(checkpoint.path))
    return model


def _sources(part: Part, index: int) -> tuple[int, ...]:
    """Return the layers that feed layer `index`, -1 for the image. In the file, negative numbers count back from the layer."""
    found = part.attribute("f")
    numbers = found if isinstance(found, tuple) else (found,)
    sources = [number if number >= 0 else index + number for number in numbers if type(number) is int]
    several = part.description.class_name in ("Concat", "v10Detect")
    if len(sources) != len(numbers) or not all(-1 <= source < index for source in sources) or (len(sources) != 1 and not several):
        raise part.bad(f"takes its input from {found!r}, which is no earlier layer")
    return tuple(sources)


def fold_batch_norms(model: Any) -> None:
    """Fold every batch normalisation into its convolution and merge the branches of every large-kernel block, in place.

    Exact up to rounding: in evaluation mode a normalisation is a scale and a shift per channel, and a smaller kernel is a larger
    one with zeros around it. Computed in float64. Folding twice changes nothing.
    Source: B. Jacob et al., arXiv 1712.05877, section 3.2; X. Ding et al., RepVGG, arXiv 2101.03697, section 3.3.
    """
    import torch

    from fewbits.quantizers.brevitas.yolov10_blocks import Conv, RepVGGDW

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Conv) and isinstance(module.bn, torch.nn.BatchNorm2d):
                _fold(module)
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, RepVGGDW):
                    setattr(parent, name, _merged(child))


def _fold(block: Any) -> None:
    import torch

    conv, norm = block.conv, block.bn
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    shift = -norm.running_mean.double() if conv.bias is None else conv.bias.double() - norm.running_mean.double()
    conv.weight = torch.nn.Parameter((conv.weight.double() * scale[:, None, None, None]).float())
    conv.bias = torch.nn.Parameter((norm.bias.double() + shift * scale).float())
    block.bn = torch.nn.Identity()


def _merged(block: Any) -> Any:
    """Return one `Conv` that computes what a folded `RepVGGDW` does: the small kernel sits in the middle of the large one."""
    import torch

    from fewbits.quantizers.brevitas.yolov10_blocks import Conv

    large, small = block.conv.conv, block.conv1.conv
    rows, columns = ((wide - narrow) // 2 for wide, narrow in zip(large.kernel_size, small.kernel_size, strict=True))
    padded = torch.nn.functional.pad(small.weight.double(), [columns, columns, rows, rows])
    large.weight = torch.nn.Parameter((large.weight.double() + padded).float())
    large.bias = torch.nn.Parameter((large.bias.double() + small.bias.double()).float())
    return Conv(large, torch.nn.Identity(), block.act)


def convolutions(model: Any) -> dict[str, Any]:
    """Return every convolution by its module name, in the order in which they run."""
    import torch

    return {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Conv2d)}


def layer_roles(model: YoloV10) -> dict[str, LayerRole]:
    """Return the role of every convolution by its module name, in the order in which they run.

    The place counts before the shape: in an attention block (queries, keys and values, position encoding, projection,
    feed-forward network) the depthwise position encoding is `ATTENTION`; elsewhere in body and head, one kernel per channel is
    `DEPTHWISE`. `LAST` are the final convolutions of the head's box and class branches.
    """
    from fewbits.quantizers.brevitas.yolov10_blocks import PSA, Detect

    found = convolutions(model)
    first = next(iter(found))
    named = dict(model.named_modules())
    attention = tuple(f"{name}.{part}." for name, module in named.items() if isinstance(module, PSA) for part in ("attn", "ffn"))
    heads = [name for name, module in named.items() if isinstance(module, Detect)]
    last = {id(branch[-1]) for name in heads for branch in (*named[name].box, *named[name].cls)}
    inside = tuple(f"{name}." for name in heads)
    projections = {f"{name}.dfl" for name in heads}

    def role(name: str, conv: Any) -> LayerRole:
        facts = (
            (name == first, LayerRole.FIRST),
            (id(conv) in last, LayerRole.LAST),
            (name in projections, LayerRole.DISTRIBUTION),
            (name.startswith(attention), LayerRole.ATTENTION),
            (conv.groups == conv.in_channels > 1, LayerRole.DEPTHWISE),
            (name.startswith(inside), LayerRole.HEAD),
        )
        return next((kind for fits, kind in facts if fits), LayerRole.BODY)

    return {name: role(name, conv) for name, conv in found.items()}
