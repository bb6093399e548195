"""Take a quantized model's weights off the grid that it was quantized on, and find the types that share its grid.

A model that only exists quantized (Q4_1, say) gives a float reference whose weights all lie on the grid of Q4_1. Measured
against it, Q4_1 loses nothing and its finer relatives next to nothing: that says nothing about bits. `write_off_grid` adds
half a step of uniform noise to each quantized weight, so that a weight may have been anything that would have been rounded to
the stored value. What comes out is a stand-in for the weights before quantization: as rough as they were, but not they. It is
a worse model than the source, and its numbers say how types compare, not how good the original model is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fewbits.core.errors import SpecError
from fewbits.quantizers.base import Progress
from fewbits.quantizers.llamacpp.ggml_types import GGML_TYPES, GgmlType
from fewbits.quantizers.llamacpp.gguf_file import GgufFile
from fewbits.quantizers.llamacpp.gguf_scan import GgufTensor
from fewbits.quantizers.llamacpp.graft import Replacement, write_graft
from fewbits.quantizers.llamacpp.grains import Rows, read_rows, require_libgguf, round_trip, row_count, row_slices
from fewbits.quantizers.llamacpp.tensor_types import is_quantizable

OUTPUT_TYPE = "F16"
GRID_ERROR_RATIO = 0.75
"""A type whose error on the source's weights is below this share of its error off the grid has the grid's help.

Measured on SmolLM2 (Q4_1, embedding Q8_0): the source's own type 0.002 to 0.025, Q4_K 0.25 and Q5_K 0.52 on weights that were
Q4_1; types that share nothing with the grid 0.96 to 1.21.
"""
_BLOCK = 32
_SHORT_BLOCK = 16
# types whose scale is shared by 16 weights, so that 32 would mix two grids
# Source: llama.cpp, ggml/src/ggml-common.h (block_q2_K, block_q3_K, block_q6_K)
_SHORT_BLOCKS = frozenset({"Q2_K", "Q3_K", "Q6_K"})
_SAMPLED_TENSORS = 8
_SAMPLED_ROWS = 16


def half_step_noise(rows: Rows, block: int, random: np.random.Generator) -> Rows:
    """Return uniform noise of half a step either way, `float32` like `rows` (whose width `block` divides).

    The step of a block is the smallest non-zero gap between its distinct values; a block with one value has none.
    """
    blocks = rows.reshape(-1, block)
    gaps = np.diff(np.sort(blocks, axis=1), axis=1)
    gaps[gaps <= 0] = np.inf
    steps = gaps.min(axis=1, keepdims=True)
    steps[~np.isfinite(steps)] = 0.0
    noise: Rows = ((random.random(blocks.shape) - 0.5) * steps).astype(np.float32).reshape(rows.shape)
    return noise


def off_grid_rows(rows: Rows, tensor: GgufTensor, random: np.random.Generator) -> Rows:
    """Return a quantized tensor's rows with half a step of noise, `float32`."""
    block = _SHORT_BLOCK if tensor.kind.name in _SHORT_BLOCKS else _BLOCK
    return rows + half_step_noise(rows, block, random)


def tensor_random(name: str, seed: int) -> np.random.Generator:
    """Return a tensor's own generator: the same numbers in whatever order tensors are written."""
    words = np.frombuffer(hashlib.sha256(name.encode("utf-8", "replace")).digest(), dtype="<u4")
    return np.random.default_rng([seed, *words.tolist()])


def write_off_grid(source: GgufFile, output: Path, seed: int, progress: Progress) -> None:
    """Write the source with every quantized tensor as F16 plus half a step of seeded noise; all else is copied.

    The same source and seed give the same file, byte for byte. Raises `SpecError` (nothing in it is quantized), what
    `write_graft` raises, `PrerequisiteError` (no libgguf).
    """
    quantized = [tensor for tensor in source.tensors if tensor.kind.is_quantized]
    if not quantized:
        hint = "use it as the reference as it is"
        raise SpecError.single(str(source.path.name), "holds no quantized tensor, so it lies on no grid", hint)
    require_libgguf()
    progress(f"taking {len(quantized)} tensors of {source.path.name} off their grid (seed {seed})")
    write_graft(source, {tensor.name: _noisy(source, tensor, seed) for tensor in quantized}, output)


def _noisy(source: GgufFile, tensor: GgufTensor, seed: int) -> Replacement:
    def write(stream: BinaryIO) -> None:
        random = tensor_random(tensor.name, seed)
        for first, count in row_slices(tensor):
            rows = off_grid_rows(read_rows(source, tensor, first, count), tensor, random)
            stream.write(rows.astype("<f2").data.cast("B"))

    return Replacement(GGML_TYPES[OUTPUT_TYPE], write)


def source_grids(file: GgufFile, wanted: Sequence[str], *, seed: int = 0) -> dict[str, frozenset[str]]:
    """Return, for each quantized tensor, those of the wanted ggml types that share its grid. Empty for a float file.

    Measured once per type of source tensor, on a sample of rows: the relative error of a wanted type on the dequantized
    weights (as F16, as a reference holds them) against its error on the same rows plus half-step noise. Types that need an
    importance matrix get the rows' own squares, which is libgguf's stand-in.
    """
    quantized = [tensor for tensor in file.tensors if tensor.kind.is_quantized and is_quantizable(tensor)]
    found: dict[str, frozenset[str]] = {}
    for kind in dict.fromkeys(tensor.kind.name for tensor in quantized):
        alike = [tensor for tensor in quantized if tensor.kind.name == kind]
        shared = frozenset(name for name in wanted if _shares_grid(file, _sample(alike), name, seed))
        found |= dict.fromkeys((tensor.name for tensor in alike), shared)
    return found


def grid_types(file: GgufFile, wanted: Sequence[str], *, tensors: Iterable[str] | None = None, seed: int = 0) -> frozenset[str]:
    """Return the wanted types that share the grid of any of the named tensors (default: of any at all); see `source_grids`."""
    grids = source_grids(file, wanted, seed=seed)
    names = grids.keys() if tensors is None else tensors
    return frozenset().union(*(grids.get(name, frozenset()) for name in names))


def _sample(tensors: Sequence[GgufTensor]) -> list[GgufTensor]:
    """Return up to `_SAMPLED_TENSORS`, evenly spread, every row width among them."""
    chosen = np.unique(np.linspace(0, len(tensors) - 1, min(_SAMPLED_TENSORS, len(tensors))).round().astype(int))
    widths = {tensor.shape[0]: tensor for tensor in reversed(tensors)}
    return list(dict.fromkeys([*(tensors[index] for index in chosen), *widths.values()]))


def _shares_grid(file: GgufFile, tensors: Sequence[GgufTensor], name: str, seed: int) -> bool:
    """Whether a type gains from the grid on those of the tensors that it fits; a float type cannot."""
    kind = GGML_TYPES[name]
    on_grid = off_grid = 0.0
    for tensor in tensors:
        if not kind.is_quantized or tensor.shape[0] % kind.weights:
            continue
        rows = read_rows(file, tensor, 0, min(_SAMPLED_ROWS, row_count(tensor)))
        noisy = off_grid_rows(rows, tensor, tensor_random(tensor.name, seed))
        on_grid += _relative_error(rows, kind)
        off_grid += _relative_error(noisy, kind)
    return on_grid < GRID_ERROR_RATIO * off_grid


def _relative_error(rows: Rows, kind: GgmlType) -> float:
    """Return |quantized - rows|^2 / |rows|^2, square root taken: 0 when the type holds the rows exactly."""
    stored = rows.astype(np.float16).astype(np.float32)
    scale = float(np.square(stored, dtype=np.float64).sum())
    error = round_trip(stored, kind) - stored
    return float(np.sqrt(np.square(error, dtype=np.float64).sum() / scale)) if scale > 0 else 0.0
