"""What an ONNX file quantizes, for a terminal."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from fewbits.core.units import format_bytes
from fewbits.records.onnx_graph import QuantCensus
from fewbits.report import formats

if TYPE_CHECKING:
    from rich.console import RenderableType


def render_census(census: QuantCensus) -> RenderableType:
    """Return two tables, weights and inputs by kind, and the counts, for a `rich` console."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    weights = Table(box=SIMPLE_HEAD, pad_edge=False, title="weights", title_justify="left")
    for name in ("stored as", "levels", "scales", "tensors", "weights"):
        weights.add_column(name, justify="left" if name == "stored as" else "right")
    unique = {tensor.name: tensor for tensor in census.weight_tensors}.values()
    tensors: Counter[tuple[str, int, str]] = Counter()
    counts: Counter[tuple[str, int, str]] = Counter()
    for tensor in unique:
        kind = (tensor.storage, tensor.level_bits, _scales(tensor.scales))
        tensors[kind] += 1
        counts[kind] += tensor.weights
    for kind in sorted(tensors):
        storage, bits, scales = kind
        weights.add_row(storage, f"{bits} bits", scales, str(tensors[kind]), str(counts[kind]))
    inputs = Table(box=SIMPLE_HEAD, pad_edge=False, title="inputs of convolutions and matrix products", title_justify="left")
    for name in ("quantized to", "levels", "scales", "inputs"):
        inputs.add_column(name, justify="left" if name == "quantized to" else "right")
    for found in census.input_kinds:
        inputs.add_row(found.storage, f"{found.level_bits} bits", _scales(found.scales), str(found.inputs))
    inputs.add_row("not quantized", formats.MISSING, formats.MISSING, str(census.consumers - census.quantized_inputs))
    lines = [
        f"QuantizeLinear {census.quantize_linear}, DequantizeLinear {census.dequantize_linear}, Clip {census.clip}",
        f"{_bits(census.level_bits_per_weight)} bits per weight by levels, {_bits(census.storage_bits_per_weight)} as stored; "
        f"{census.weights} weights, {census.biases} numbers in biases, {format_bytes(census.file_bytes)}",
    ]
    return Group(weights, inputs, *(Text(line) for line in lines))


def _scales(count: int) -> str:
    if not count:
        return formats.MISSING
    return "one" if count == 1 else "per channel"


def _bits(value: float | None) -> str:
    return formats.MISSING if value is None else f"{value:.2f}"
