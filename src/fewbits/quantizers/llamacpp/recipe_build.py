"""Build the file that a recipe describes: tensors quantized one by one by libgguf, grafted into the float file."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Protocol

from fewbits.core.errors import Problem, SpecError
from fewbits.quantizers.base import Progress
from fewbits.quantizers.llamacpp.ggml_types import GGML_TYPES
from fewbits.quantizers.llamacpp.gguf_file import GgufFile, read_gguf
from fewbits.quantizers.llamacpp.gguf_scan import GgufTensor
from fewbits.quantizers.llamacpp.graft import Replacement, copy_range, write_graft
from fewbits.quantizers.llamacpp.grains import GrainCache, Importance, require_libgguf
from fewbits.quantizers.llamacpp.importance import read_imatrix
from fewbits.quantizers.llamacpp.tensor_types import check_types
from fewbits.records.recipe import Recipe


class RecipeSource(Protocol):
    """Where recipes are looked up by tag. `store.recipes.RecipeShelf` is the real one."""

    def get(self, tag: str) -> Recipe:
        """Return a recipe. Raises `SpecError` for a tag that is not there, `StoreError` for a damaged one."""

    def imatrix_of(self, recipe: Recipe) -> Path | None:
        """Return the importance matrix that a recipe was quantized with; `None` when it needs none. Raises `StoreError`."""


def build_recipe(
    reference: Path,
    recipe_types: Mapping[str, str],
    output: Path,
    *,
    imatrix: Path | None,
    cache: GrainCache,
    progress: Progress,
) -> None:
    """Write `output`: the float file `reference` with these tensors quantized (tensor name -> ggml type), whole or not at all.

    The file is read back: types, shapes and size are as asked, or nothing is there. Raises `SpecError` (unusable file, every
    tensor that cannot have its type), `PrerequisiteError` (no libgguf), `BackendError`, `StoreError`.
    """
    file = read_gguf(reference)
    vectors = read_imatrix(imatrix, file) if imatrix is not None else {}
    tensors = {tensor.name: tensor for tensor in file.tensors}
    problems = [*check_types(file, recipe_types, frozenset(vectors)), *_already_quantized(file, recipe_types)]
    if problems:
        raise SpecError(problems)
    require_libgguf()
    progress(f"quantizing {len(recipe_types)} tensors of {reference.name}")
    replacements = {
        name: _replacement(file, tensors[name], kind, vectors.get(name), cache) for name, kind in recipe_types.items()
    }
    write_graft(file, replacements, output)


def _already_quantized(file: GgufFile, recipe_types: Mapping[str, str]) -> list[Problem]:
    """Quantizing twice hides the first loss: the reference must hold floats where the recipe quantizes."""
    message = "is quantized in the reference already ({kind})"
    return [
        Problem(f"recipe: {tensor.name}", message.format(kind=tensor.kind.name), "start from a float file (F16, BF16 or F32)")
        for tensor in file.tensors
        if tensor.name in recipe_types and tensor.kind.is_quantized
    ]


def _replacement(
    file: GgufFile, tensor: GgufTensor, ggml_type: str, importance: Importance | None, cache: GrainCache
) -> Replacement:
    kind = GGML_TYPES[ggml_type]

    def write(stream: BinaryIO) -> None:
        with cache.open(file, tensor, kind, importance if kind.is_quantized else None) as grain:
            if hasattr(stream, "fileno"):
                copy_range(grain, 0, tensor.weights // kind.weights * kind.bytes, stream)
            else:
                shutil.copyfileobj(grain, stream)

    return Replacement(kind, write)
