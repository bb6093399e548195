"""Pure rules of a recipe as a variant: whether it fits a model, its size before it exists, what readers must know."""

from __future__ import annotations

from collections import Counter

from fewbits.core.errors import Problem, SpecError
from fewbits.quantizers.llamacpp.ggml_types import GGML_TYPES
from fewbits.quantizers.llamacpp.gguf_file import GgufFile
from fewbits.quantizers.llamacpp.ladder import warnings_for
from fewbits.quantizers.llamacpp.tensor_types import check_types, planned_file_bytes
from fewbits.records.recipe import Recipe
from fewbits.records.schemes import Scheme
from fewbits.records.variant import VariantWarning, WarningCode

_REFERENCE_TYPE = "F16"
_NO_FILE_TYPE = -1
_SHOWN_PROBLEMS = 5
_SHORT_DIGEST = 12


def refuse_unfit(file: GgufFile, recipe: Recipe, tag: str) -> None:
    """Raise `SpecError` when a model's tensors cannot have the recipe's types, whatever precision the file is in now."""
    names = frozenset(recipe.tensor_types)
    problems = check_types(file, recipe.tensor_types, names if recipe.imatrix_sha256 is not None else frozenset())
    if not problems:
        return
    rest = len(problems) - _SHOWN_PROBLEMS
    shown = [Problem(f"quant tag {tag}, {problem.path}", problem.message, problem.hint) for problem in problems[:_SHOWN_PROBLEMS]]
    if rest > 0:
        shown.append(Problem(f"quant tag {tag}", f"{rest} more tensors do not fit", "the recipe was made for another model"))
    raise SpecError(shown)


def refuse_another_source(recipe: Recipe, tag: str, sha256: str) -> None:
    """Raise `SpecError` when the recipe was searched on other weights than those of the float file with this sha256."""
    if recipe.source_sha256 == sha256:
        return
    raise SpecError.single(
        f"quant tag {tag}",
        f"was made for the weights of another file (sha256 {recipe.source_sha256[:_SHORT_DIGEST]}, here "
        f"{sha256[:_SHORT_DIGEST]})",
        "name the float file that it was made from as the model, or search a recipe for this one",
    )


def recipe_bytes(file: GgufFile, recipe: Recipe) -> int:
    """Return the size of the recipe's file, bytes: exact for a float file; of a quantized one its F16 reference is grafted."""
    floats = {tensor.name: _REFERENCE_TYPE for tensor in file.tensors if tensor.kind.is_quantized}
    return planned_file_bytes(file, floats | recipe.tensor_types)


def most_bytes(weights: int, recipe: Recipe) -> int:
    """Return a bound for a recipe that names every matrix, bytes, from the number of weights alone: all at its largest type."""
    bits = max((GGML_TYPES[name].bits_per_weight for name in recipe.tensor_types.values() if name in GGML_TYPES), default=16.0)
    return round(weights * bits / 8)


def recipe_scheme(recipe: Recipe, tag: str) -> Scheme:
    """Return the recipe as a scheme, named after the type that most of its tensors have. It has no file type of its own."""
    counts = Counter(recipe.tensor_types.values())
    main = max(counts, key=lambda name: (counts[name], name)) if counts else _REFERENCE_TYPE
    bits = GGML_TYPES[main].bits_per_weight if main in GGML_TYPES else 0.0
    return Scheme(tag=tag, ftype=_NO_FILE_TYPE, ggml_type=main, nominal_bits_per_weight=bits)


def recipe_step_line(recipe: Recipe, tag: str, input_name: str) -> str:
    """Return one line that says how the file was made from `{input_name}`."""
    counts = Counter(recipe.tensor_types.values())
    parts = ", ".join(f"{count} x {name}" for name, count in sorted(counts.items()))
    matrix = f" with imatrix {recipe.imatrix_sha256[:_SHORT_DIGEST]}" if recipe.imatrix_sha256 is not None else ""
    return f"libgguf: tensors of {{{input_name}}} as {tag} says ({parts}){matrix}, grafted into {{output}}"


def recipe_warnings(source: GgufFile, made: GgufFile, scheme: Scheme) -> tuple[VariantWarning, ...]:
    """Say what a reader must know. No fallback types: every tensor has the type that the recipe names, or none is written."""
    found = warnings_for(source, made, scheme)
    return tuple(warning for warning in found if warning.code is not WarningCode.FALLBACK_TYPES)
