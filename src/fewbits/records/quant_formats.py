"""The quantization formats that a sensitivity run can score: one weight precision and one activation precision each.

Pure data. What a quantizer library has to be told for a format is the backend's business (`quantizers.modelopt.formats`).
"""

from __future__ import annotations

import difflib
import math
from enum import StrEnum

from fewbits.core.errors import SpecError
from fewbits.records.base import Record

TENSOR_SCALE_BITS = 32.0
"""Size of the one scale that belongs to a whole tensor."""
ROW_SCALE_BITS = 16.0
"""Size of the scale that belongs to one row (output channel) or column."""


class ScaleShare(StrEnum):
    """How many weights share one scale."""

    TENSOR = "tensor"
    """All of the layer's weights."""
    CHANNEL = "channel"
    """One row: an output channel (or, by an overlay, an input channel)."""
    BLOCK = "block"
    """`QuantFormat.block` neighbours in a row."""


class QuantFormat(Record, frozen=True, kw_only=True):
    """One format: how weights and activations are stored, and what a weight costs."""

    name: str
    """The name that configurations use (`INT8_DEFAULT_CFG`)."""
    weight: str
    """`int8`, `int4`, `fp8` (E4M3), `fp4` (E2M1)."""
    activation: str
    """`int8`, `int4`, `fp8`, or `fp16`: not quantized, whatever float type the model computes in."""
    weight_bits: float
    """Stored bits per weight: its own and its share of the block's scale. A scale per row or tensor is not in it: see
    `stored_weight_bits`."""
    activation_bits: float
    """Bits of an activation value, 16 when it is not quantized."""
    scale_share: ScaleShare
    block: int | None = None
    """Weights that share one scale; `None` unless the scales belong to blocks."""
    scale_bits: float
    """Bits of one scale."""
    needs_cuda: bool = False
    """The library simulates it on an NVIDIA GPU only."""
    experimental: bool = False
    """No known engine runs this combination."""
    builtin: bool = False
    """The library ships it; the others are composed from what it ships."""
    about: str
    """One sentence for lists."""

    @property
    def block_scaled_float(self) -> bool:
        """Whether block scales are part of the number format itself (NVFP4, MXFP4): they cannot be exchanged for others."""
        return self.weight == "fp4"


def _format(name: str, weight: QuantFormat, activation: str, *, experimental: bool = False, builtin: bool = False) -> QuantFormat:
    words = "activations stay float" if activation == "fp16" else f"{activation} activations, one scale per tensor"
    return QuantFormat(
        name=name,
        weight=weight.weight,
        activation=activation,
        weight_bits=weight.weight_bits,
        activation_bits=_ACTIVATION_BITS[activation],
        scale_share=weight.scale_share,
        block=weight.block,
        scale_bits=weight.scale_bits,
        needs_cuda=weight.needs_cuda,
        experimental=experimental,
        builtin=builtin,
        about=f"{weight.about}; {words}",
    )


_ACTIVATION_BITS = {"int8": 8.0, "int4": 4.0, "fp8": 8.0, "fp16": 16.0}


def _weights(
    kind: str, bits: float, about: str, *, share: ScaleShare, scale_bits: float, block: int | None = None
) -> QuantFormat:
    return QuantFormat(
        name="",
        weight=kind,
        activation="fp16",
        weight_bits=bits + (scale_bits / block if block else 0.0),
        activation_bits=16.0,
        scale_share=share,
        block=block,
        scale_bits=scale_bits,
        needs_cuda=kind == "fp4",
        about=about,
    )


_INT8 = _weights("int8", 8, "int8 weights, one scale per output channel", share=ScaleShare.CHANNEL, scale_bits=ROW_SCALE_BITS)
_FP8 = _weights("fp8", 8, "FP8 (E4M3) weights, one scale per tensor", share=ScaleShare.TENSOR, scale_bits=TENSOR_SCALE_BITS)
_INT4 = _weights("int4", 4, "int4 weights in blocks of 128", share=ScaleShare.BLOCK, scale_bits=16.0, block=128)
_NVFP4 = _weights("fp4", 4, "NVFP4 (E2M1) weights in blocks of 16, E4M3 scales", share=ScaleShare.BLOCK, scale_bits=8.0, block=16)
_NVFP4_32 = _weights(
    "fp4", 4, "NVFP4 (E2M1) weights in blocks of 32, E4M3 scales", share=ScaleShare.BLOCK, scale_bits=8.0, block=32
)
_MXFP4 = _weights(
    "fp4", 4, "MXFP4 (E2M1) weights in blocks of 32, power-of-two scales", share=ScaleShare.BLOCK, scale_bits=8.0, block=32
)

QUANT_FORMATS: dict[str, QuantFormat] = {
    fmt.name: fmt
    for fmt in (
        _format("NVFP4_WEIGHT_ONLY_CFG", _NVFP4, "fp16"),
        _format("W4A8_NVFP4_FP8_CFG", _NVFP4_32, "fp8", builtin=True),
        _format("NVFP4_WEIGHT_INT8_ACT_CFG", _NVFP4, "int8", experimental=True),
        _format("NVFP4_WEIGHT_INT4_ACT_CFG", _NVFP4, "int4", experimental=True),
        _format("MXFP4_WEIGHT_ONLY_CFG", _MXFP4, "fp16"),
        _format("FP8_WEIGHT_ONLY_CFG", _FP8, "fp16"),
        _format("FP8_DEFAULT_CFG", _FP8, "fp8", builtin=True),
        _format("FP8_ALL_LAYERS_CFG", _FP8, "fp8"),
        _format("FP8_WEIGHT_INT8_ACT_CFG", _FP8, "int8", experimental=True),
        _format("FP8_WEIGHT_INT4_ACT_CFG", _FP8, "int4", experimental=True),
        _format("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", _INT4, "fp16", experimental=True, builtin=True),
        _format("INT4_WEIGHT_FP8_ACT_CFG", _INT4, "fp8", experimental=True),
        _format("INT4_WEIGHT_INT8_ACT_CFG", _INT4, "int8", experimental=True),
        _format("INT4_WEIGHT_INT4_ACT_CFG", _INT4, "int4", experimental=True),
        _format("INT8_WEIGHT_ONLY_CFG", _INT8, "fp16", builtin=True),
        _format("INT8_WEIGHT_FP8_ACT_CFG", _INT8, "fp8", experimental=True),
        _format("INT8_WEIGHT_INT4_ACT_CFG", _INT8, "int4", experimental=True),
        _format("INT8_DEFAULT_CFG", _INT8, "int8", builtin=True),
        _format("INT8_LM_DEFAULT_CFG", _INT8, "int8"),
        _format("INT8_ALL_LAYERS_CFG", _INT8, "int8"),
    )
}
"""Every format by name. `*_ALL_LAYERS_CFG` and `INT8_LM_DEFAULT_CFG` are names that earlier configurations used: they hold the
numbers of the `*_DEFAULT_CFG`; which layers are covered is the coverage mode's business, never the format's."""


def find_quant_format(name: str, where: str) -> QuantFormat:
    """Return the format called `name`; `where` names the place it was written at. Raises `SpecError` with near names."""
    if found := QUANT_FORMATS.get(name):
        return found
    close = difflib.get_close_matches(name.upper(), QUANT_FORMATS, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(close)}?" if close else f"known: {', '.join(sorted(QUANT_FORMATS))}"
    raise SpecError.single(where, f"unknown quantization format {name!r}", hint)


def own_weight_bits(fmt: QuantFormat) -> float:
    """Return the bits of a weight alone, without any scale."""
    return fmt.weight_bits - (fmt.scale_bits / fmt.block if fmt.block else 0.0)


def stored_weight_bits(fmt: QuantFormat, row_length: int, rows: int | None = None) -> float:
    """Return the exact stored bits per weight of a layer with rows of `row_length` weights, every scale included.

    Rows that a block does not divide end with a shorter block, which needs a whole scale. A scale per row adds
    `scale_bits / row_length` (0.008 bits for rows of 2048); one per tensor adds less still, and only when `rows` is given.
    Budgets leave these two out, so that "8 bits" means a layer of int8 weights and not slightly less than that.
    """
    if fmt.block:
        overhead = math.ceil(row_length / fmt.block) * fmt.scale_bits / row_length
    elif fmt.scale_share is ScaleShare.CHANNEL:
        overhead = fmt.scale_bits / row_length
    else:
        overhead = fmt.scale_bits / (rows * row_length) if rows else 0.0
    return own_weight_bits(fmt) + overhead
