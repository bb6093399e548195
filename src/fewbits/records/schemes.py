"""llama.cpp's quantization tags: pure data, so that a config can be checked on a machine without an engine.

Bits per weight here are *nominal*, for estimates before a file exists; a variant's true figure is read from its file.

Source: llama.cpp, `tools/quantize/quantize.cpp` (QUANT_OPTIONS: tags, sizes in GiB for Llama-3-8B), `tools/quantize/README.md`
(bits/weight measured on Llama-3.1-8B), `include/llama.h` (enum llama_ftype), `src/llama-quant.cpp`
(llama_ftype_get_default_type, tensor_requires_imatrix).
"""

from __future__ import annotations

import difflib
import re

from fewbits.core.codec import digest
from fewbits.core.errors import Problem, SpecError
from fewbits.records.base import Record
from fewbits.records.recipe import RECIPE_TAG_PREFIX, Recipe

_IMATRIX = (
    "llama.cpp makes it only with an importance matrix, and fewbits does not compute one; "
    "bring a file that already has this type, or choose {instead}"
)
_FILE_ONLY = "llama.cpp's quantize tool does not make it; bring a file that already has this type"
# Llama-3-8B, the model behind the sizes (GiB) in the tool's help
_LLAMA_3_8B_WEIGHTS = 8_030_261_248
_FLOAT_TYPES = frozenset({"F16", "BF16", "F32"})


class Scheme(Record, frozen=True, kw_only=True):
    """One quantization tag of llama.cpp."""

    tag: str
    """Canonical spelling, as in llama.cpp's help."""
    ftype: int
    """Number in `enum llama_ftype`, stored in a file as `general.file_type`."""
    ggml_type: str
    """The tensor type that most of the weights are meant to get."""
    nominal_bits_per_weight: float
    refusal: str = ""
    """Why fewbits cannot build it (empty: it can). A user's own file of this type is always welcome."""

    @property
    def is_float(self) -> bool:
        """True for F32, F16 and BF16: no quantization at all."""
        return self.ggml_type in _FLOAT_TYPES


def _from_help(gibibytes: float) -> float:
    """Turn a size of Llama-3-8B in GiB, as the quantize tool's help prints it, into bits per weight."""
    return round(gibibytes * 2**30 * 8 / _LLAMA_3_8B_WEIGHTS, 2)


def _imatrix(instead: str) -> str:
    return _IMATRIX.format(instead=instead)


def _row(tag: str, ftype: int, ggml_type: str, bits: float, refusal: str = "") -> Scheme:
    return Scheme(tag=tag, ftype=ftype, ggml_type=ggml_type, nominal_bits_per_weight=bits, refusal=refusal)


SCHEMES: tuple[Scheme, ...] = (
    _row("F32", 0, "F32", 32.0),
    _row("F16", 1, "F16", 16.0),
    _row("BF16", 32, "BF16", 16.0),
    _row("Q8_0", 7, "Q8_0", 8.5008),
    _row("Q6_K", 18, "Q6_K", 6.5633),
    _row("Q5_K_M", 17, "Q5_K", 5.7036),
    _row("Q5_K_S", 16, "Q5_K", 5.5704),
    _row("Q5_1", 9, "Q5_1", _from_help(5.65)),
    _row("Q5_0", 8, "Q5_0", _from_help(5.21)),
    _row("Q4_K_M", 15, "Q4_K", 4.8944),
    _row("Q4_K_S", 14, "Q4_K", 4.6672),
    _row("Q4_1", 3, "Q4_1", _from_help(4.78)),
    _row("Q4_0", 2, "Q4_0", _from_help(4.34)),
    _row("IQ4_NL", 25, "IQ4_NL", 4.6818),
    _row("IQ4_XS", 30, "IQ4_XS", 4.4597),
    _row("MXFP4_MOE", 38, "MXFP4", 4.25),
    _row("NVFP4", 39, "NVFP4", 4.5, _FILE_ONLY),
    _row("Q3_K_L", 13, "Q3_K", 4.2979),
    _row("Q3_K_M", 12, "Q3_K", 3.9960),
    _row("Q3_K_S", 11, "Q3_K", 3.6429),
    _row("IQ3_M", 27, "IQ3_S", 3.7628),
    _row("IQ3_S", 26, "IQ3_S", 3.6606),
    _row("IQ3_XS", 22, "IQ3_S", 3.4977, _imatrix("IQ3_S or Q3_K_S")),
    _row("IQ3_XXS", 23, "IQ3_XXS", 3.2548, _imatrix("IQ3_S or Q3_K_S")),
    _row("Q2_K", 10, "Q2_K", 3.1593),
    _row("Q2_K_S", 21, "Q2_K", 2.9697, _imatrix("Q2_K")),
    _row("IQ2_M", 29, "IQ2_S", 2.9294, _imatrix("Q2_K")),
    _row("IQ2_S", 28, "IQ2_XS", 2.7403, _imatrix("Q2_K")),
    _row("IQ2_XS", 20, "IQ2_XS", 2.5882, _imatrix("Q2_K")),
    _row("IQ2_XXS", 19, "IQ2_XXS", 2.3824, _imatrix("Q2_K")),
    _row("IQ1_M", 31, "IQ1_M", 2.1460, _imatrix("Q2_K")),
    _row("IQ1_S", 24, "IQ1_S", 2.0042, _imatrix("Q2_K")),
    _row("Q2_0", 41, "Q2_0", 2.25),
    _row("TQ2_0", 37, "TQ2_0", 2.06),
    _row("TQ1_0", 36, "TQ1_0", 1.69),
    _row("Q1_0", 40, "Q1_0", 1.125),
)

ALIASES: dict[str, str] = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "FP16": "F16", "FP32": "F32"}
"""Other spellings -> canonical tag. The K aliases are llama.cpp's own."""

_BY_TAG = {scheme.tag: scheme for scheme in SCHEMES}
_BY_FTYPE = {scheme.ftype: scheme for scheme in SCHEMES}


def find_scheme(text: str, where: str = "quant tag") -> Scheme:
    """Return the scheme for a tag in any case (`q4_k_m`, `Q4-K-M`). Raises `SpecError` at `where`, naming the nearest tags."""
    name = text.strip().upper().replace("-", "_")
    scheme = _BY_TAG.get(ALIASES.get(name, name))
    if scheme is None:
        raise SpecError([Problem(where, f"unknown quant tag {text!r}", _nearest(name))])
    return scheme


def scheme_for_ftype(ftype: int) -> Scheme | None:
    """Return the scheme that a file's `general.file_type` names; `None` for a number that llama.cpp's enum does not have."""
    return _BY_FTYPE.get(ftype)


def _nearest(name: str) -> str:
    close = difflib.get_close_matches(name, [*_BY_TAG, *ALIASES], n=3, cutoff=0.5)
    if close:
        return f"did you mean {', '.join(dict.fromkeys(ALIASES.get(tag, tag) for tag in close))}?"
    return f"known tags: {', '.join(_BY_TAG)}"


_RECIPE_TAG = re.compile(rf"^{RECIPE_TAG_PREFIX}[0-9a-f]{{12}}$")


def recipe_tag(recipe: Recipe) -> str:
    """Return a recipe's tag: `recipe-` and the first 12 hex digits of its digest."""
    return f"{RECIPE_TAG_PREFIX}{digest(recipe)[:12]}"


def find_recipe_tag(text: str) -> str | None:
    """Return a recipe's tag in its one spelling (lower case); `None` for text that is no such tag."""
    tag = text.strip().lower()
    return tag if _RECIPE_TAG.match(tag) else None
