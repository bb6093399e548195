"""ggml's tensor types: how many weights a block holds and how many bytes it takes.

Source: llama.cpp, `ggml/include/ggml.h` (enum ggml_type) and `ggml/src/ggml-common.h` (the block structs).
"""

from __future__ import annotations

from dataclasses import dataclass

SUPER_BLOCK_WEIGHTS = 256
"""Weights in a super-block (QK_K): a K-quant needs row widths divisible by this."""


@dataclass(frozen=True, slots=True)
class GgmlType:
    """One tensor type: its number in files, and its block (`weights` stored in `bytes`)."""

    name: str
    number: int
    weights: int
    bytes: int

    @property
    def bits_per_weight(self) -> float:
        """Exact storage bits per weight."""
        return 8 * self.bytes / self.weights

    @property
    def is_quantized(self) -> bool:
        """True for block types: weights share a scale and are not plain numbers."""
        return self.weights > 1


_ROWS = (
    ("F32", 0, 1, 4),
    ("F16", 1, 1, 2),
    ("Q4_0", 2, 32, 18),
    ("Q4_1", 3, 32, 20),
    ("Q5_0", 6, 32, 22),
    ("Q5_1", 7, 32, 24),
    ("Q8_0", 8, 32, 34),
    ("Q8_1", 9, 32, 36),
    ("Q2_K", 10, 256, 84),
    ("Q3_K", 11, 256, 110),
    ("Q4_K", 12, 256, 144),
    ("Q5_K", 13, 256, 176),
    ("Q6_K", 14, 256, 210),
    ("Q8_K", 15, 256, 292),
    ("IQ2_XXS", 16, 256, 66),
    ("IQ2_XS", 17, 256, 74),
    ("IQ3_XXS", 18, 256, 98),
    ("IQ1_S", 19, 256, 50),
    ("IQ4_NL", 20, 32, 18),
    ("IQ3_S", 21, 256, 110),
    ("IQ2_S", 22, 256, 82),
    ("IQ4_XS", 23, 256, 136),
    ("I8", 24, 1, 1),
    ("I16", 25, 1, 2),
    ("I32", 26, 1, 4),
    ("I64", 27, 1, 8),
    ("F64", 28, 1, 8),
    ("IQ1_M", 29, 256, 56),
    ("BF16", 30, 1, 2),
    ("TQ1_0", 34, 256, 54),
    ("TQ2_0", 35, 256, 66),
    ("MXFP4", 39, 32, 17),
    ("NVFP4", 40, 64, 36),
    ("Q1_0", 41, 128, 18),
    ("Q2_0", 42, 64, 18),
)

GGML_TYPES: dict[str, GgmlType] = {row[0]: GgmlType(*row) for row in _ROWS}
"""Every type by name."""

TYPE_BY_NUMBER: dict[int, GgmlType] = {kind.number: kind for kind in GGML_TYPES.values()}
"""Every type by its number in GGUF files."""

# Source: llama.cpp, src/llama-quant.cpp, tensor_type_fallback: what a tensor gets whose rows are too narrow.
NARROW_FALLBACK: dict[str, str] = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("Q2_K", "Q3_K", "TQ1_0", "TQ2_0", "Q2_0"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
"""Type meant -> type stored, for rows whose width its block does not divide."""
