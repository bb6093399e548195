"""What an ONNX file really holds: how each weight is stored, which inputs are quantized, which nodes do it."""

from __future__ import annotations

from fewbits.records.base import Record


class WeightTensor(Record, frozen=True, kw_only=True):
    """One weight of a convolution or matrix product."""

    name: str
    consumer: str
    """Operator type of the node that uses it (`Conv`, `MatMul`, `Gemm`, `ConvTranspose`)."""
    shape: tuple[int, ...]
    weights: int
    storage: str
    """Element type in the file (`FLOAT`, `INT8`, `INT4`, ...)."""
    storage_bits: int
    level_bits: int
    """Bits that its range of integers needs: that of a Clip on its way, else of the element type; floats: their width."""
    scales: int
    """Scales it is dequantized with: 1, one per channel, or one per block; 0 for floats."""


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
    file_bytes: int
