"""How a detector is quantized: bits, and the named steps that a variant takes on the way from float to integers."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from msgspec import Meta

from fewbits.records.base import Record
from fewbits.records.detection import ImageRequest


class LayerRole(StrEnum):
    """What a convolution does in a detector: some roles are worth more bits."""

    FIRST = "first"
    LAST = "last"
    """The 1x1 convolutions that write box distributions and class scores."""
    DISTRIBUTION = "distribution"
    """The fixed projection from a box distribution to a distance: 16 weights, the numbers 0 to 15."""
    DEPTHWISE = "depthwise"
    ATTENTION = "attention"
    HEAD = "head"
    BODY = "body"


class Step(StrEnum):
    """One named step of the ladder, in the order in which they are taken."""

    FOLD = "fold"
    """Batch norms are folded into the convolutions before anything is rounded."""
    EQUALIZE = "equalize"
    """Cross-layer equalisation by Brevitas: neighbouring layers share their ranges (arXiv 1906.04721)."""
    PER_CHANNEL = "per-channel"
    """One weight scale per output channel, by its largest magnitude; without it, the runbook's quantizer of that width."""
    CLIP = "clip"
    """Weight scales are shrunk where that lowers the error of the layer's output."""
    UNSIGNED = "unsigned"
    """Activations get an unsigned range with a zero point, clipped to the least squared error; without it, signed percentiles."""
    WEIGHTED = "weighted"
    """Half of the statistics are gathered where an error would reach the output, not evenly over the background."""
    SPARE_DISTRIBUTION = "spare-distribution"
    """The box distribution's projection keeps 8 bits."""
    SPARE_ENDS = "spare-ends"
    """The first convolution and those that write the outputs keep 8 bits."""
    SPARE_DEPTHWISE = "spare-depthwise"
    """Depthwise convolutions keep 8 bits."""
    GPTQ = "gptq"
    """Error-compensating rounding, column by column (arXiv 2210.17323), each layer on the inputs that it will really see."""
    TARGET = "target"
    """Each layer is fitted to the float model's output at that place, so that it repairs what earlier layers lost."""
    BIAS = "bias"
    """Biases are refitted so that each channel keeps the float model's mean."""
    BREVITAS_GPTQ = "brevitas-gptq"
    BREVITAS_GPFQ = "brevitas-gpfq"
    BREVITAS_BIAS = "brevitas-bias"
    LEARNED = "learned"
    """Roundings are learned, layer by layer, against the float model's output (AdaRound, arXiv 2004.10568)."""


class Recipe(Record, frozen=True, kw_only=True):
    """How one variant is made. `activation_bits = 16` means that activations stay float, as in the runbook."""

    weight_bits: Annotated[int, Meta(ge=2, le=8)]
    activation_bits: int
    steps: tuple[Step, ...]
    budget_bits: Annotated[float, Meta(ge=2, le=8)] | None = None
    """Average weight bits that a mixed recipe may use; `None`: all layers at `weight_bits`, spared ones at 8."""
    tuned: bool = False
    """Short quantization-aware training from that point."""


class Calibration(Record, frozen=True, kw_only=True):
    """The images that ranges and roundings are fitted on."""

    images: tuple[ImageRequest, ...]
    image_size: int
    source: str
    """How they were chosen, for people: a list's name, or the draw with its seed."""


class LadderRow(Record, frozen=True, kw_only=True):
    """One row of an ablation: a recipe, the step that it adds to the row before it, and the step that it stands beside."""

    recipe: Recipe
    adds: Step | None
    beside: Step | None
    """`None` on the main ladder; on a side row, the step of the main ladder that `adds` replaces."""
