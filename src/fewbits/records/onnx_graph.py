"""What an ONNX file really holds: how each weight is stored, which inputs are quantized, which nodes do it."""

from __future__ import annotations

from fewbits.records.base import Record


class WeightTensor(Record, frozen=True, kw_only=True):
    """One weight of a convolution or matrix product."""

    name: str
    consumer: str
    """Operator type of the node that uses it (`Conv`, `MatMul`, `Gemm`, `ConvTranspose`)."""
    node: str
    """Name of that node; empty where the file gives none."""
    shape: tuple[int, ...]
    weights: int
    storage: str
    """Element type in the file (`FLOAT`, `INT8`, `INT4`, ...)."""
    storage_bits: int
    level_bits: int
    """Bits that its range of integers needs: that of a Clip on its way, else of the integer type; floats: their width."""
    scales: int
    """Scales it is dequantized with: 1, one per channel, or one per block; 0 for floats."""
    scale_shape: tuple[int, ...]
    """Empty for one scale for the whole tensor, and for floats."""


class InputKind(Record, frozen=True, kw_only=True):
    """One way in which inputs of convolutions and matrix products are quantized, and how many are."""

    storage: str
    """Integer type (`UINT8`, `INT8`, ...)."""
    signed: bool
    level_bits: int
    """As for weights."""
    scales: int
    """1: one for the whole tensor; more: one per channel."""
    inputs: int


class QuantCensus(Record, frozen=True, kw_only=True):
    """Counts over a whole graph. Averages are over all weights of convolutions and matrix products, biases apart."""

    operators: dict[str, int]
    """Operator type -> nodes."""
    quantize_linear: int
    dequantize_linear: int
    clip: int
    weight_tensors: tuple[WeightTensor, ...]
    weights: int
    level_bits_per_weight: float | None
    storage_bits_per_weight: float | None
    consumers: int
    """Convolutions and matrix products with a constant weight."""
    quantized_inputs: int
    """Of these, how many read an input that was quantized and dequantized just before."""
    input_kinds: tuple[InputKind, ...]
    """Those inputs by kind; empty where all are floats."""
    biases: int
    """Numbers in biases, which no average counts."""
    file_bytes: int


HEAD_KEY = "fewbits.head"
"""Metadata of an ONNX file: `one-to-one` or `one-to-many`."""
SCORES_KEY = "fewbits.scores"
"""Metadata: whether class scores are `probabilities` or `logits`."""
NAMES_KEY = "fewbits.names"
"""Metadata: class names in the model's order, as a JSON list; absent where the checkpoint has none."""
BUILD_KEY = "fewbits.build"
"""Metadata: how the file was made, a `BuildReport` as canonical JSON."""
