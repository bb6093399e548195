"""What a detector's graph holds, in the short form that summaries and reports carry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewbits.records.detector_run import OperatorCensus, QdqCounts
from fewbits.records.onnx_graph import QuantCensus

if TYPE_CHECKING:
    from fewbits.runtimes.onnx.session import OnnxSession


def operator_census(census: QuantCensus, session: OnnxSession) -> OperatorCensus:
    """Say in short what a graph holds and what the open session really executes."""
    products = session.executed_products
    return OperatorCensus(
        quantize_linear=census.quantize_linear,
        dequantize_linear=census.dequantize_linear,
        clip=census.clip,
        level_bits_per_weight=census.level_bits_per_weight,
        storage_bits_per_weight=census.storage_bits_per_weight,
        consumers=census.consumers,
        quantized_inputs=census.quantized_inputs,
        weights_quantized=_weights_in_words(census),
        inputs_quantized=_inputs_in_words(census),
        integer_operators=products[0] if products is not None else None,
        float_operators=products[1] if products is not None else None,
        execution=_execution_in_words(census, products),
    )


def _weights_in_words(census: QuantCensus) -> str:
    unique = {tensor.name: tensor for tensor in census.weight_tensors}.values()
    kinds: dict[tuple[int, str, str], int] = {}
    for tensor in unique:
        kind = (tensor.level_bits, tensor.storage, _scales_in_words(tensor.scales) if tensor.scales else "")
        kinds[kind] = kinds.get(kind, 0) + 1
    parts = []
    for (bits, storage, scales), count in sorted(kinds.items(), reverse=True):
        what = f"{count} as {storage}" if not scales else f"{count} at {bits} bits in {storage}, {scales}"
        parts.append(what)
    return "; ".join(parts)


def _inputs_in_words(census: QuantCensus) -> str:
    if not census.quantized_inputs:
        return f"none of {census.consumers}: activations stay float"
    kinds = [
        f"{kind.inputs} as {kind.storage} ({kind.level_bits} bits, {_scales_in_words(kind.scales)})"
        for kind in census.input_kinds
    ]
    return f"{census.quantized_inputs} of {census.consumers}: " + "; ".join(kinds)


def _scales_in_words(scales: int) -> str:
    return "one scale each" if scales == 1 else "a scale per channel"


def _execution_in_words(census: QuantCensus, products: tuple[int, int] | None) -> str:
    """Say whether fewer bits also mean integer arithmetic in this runtime."""
    if not census.dequantize_linear:
        return "float, as exported"
    if products is None:
        return "this runtime does not show what it executes"
    integers, floats = products
    if not integers:
        return f"fake quantization: all {floats} convolutions and matrix products compute with floats, so do not expect speed"
    if not floats:
        return f"integers: all {integers} convolutions and matrix products"
    return f"mixed: {integers} of {integers + floats} convolutions and matrix products on integers, the rest on floats"


def qdq_counts(census: QuantCensus) -> QdqCounts:
    """Return the counts that the runbook asks for."""
    return QdqCounts(QuantizeLinear=census.quantize_linear, DequantizeLinear=census.dequantize_linear, Clip=census.clip)
