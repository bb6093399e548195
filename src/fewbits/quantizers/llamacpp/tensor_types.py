"""Which tensors of a GGUF can get which ggml type, in groups, and what the file then weighs. Reads headers, never weights."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fewbits.core.errors import Problem, SpecError
from fewbits.quantizers.llamacpp.ggml_types import GGML_TYPES
from fewbits.quantizers.llamacpp.gguf_file import GgufFile
from fewbits.quantizers.llamacpp.gguf_layout import bytes_as, grafted_bytes
from fewbits.quantizers.llamacpp.gguf_scan import GgufTensor
from fewbits.records.recipe import ExcludedOption

DEFAULT_TYPES = (
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "Q8_0",
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "IQ4_NL",
    "IQ4_XS",
)
"""Types that a group may have unless somebody asks for others."""

ON_REQUEST_TYPES = ("IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XXS")
"""Types that take minutes per billion weights to quantize; but for `IQ3_S` they need an importance matrix."""

FLOAT_TYPES = ("F16", "BF16", "F32")

RECIPE_TYPES = DEFAULT_TYPES + ON_REQUEST_TYPES + FLOAT_TYPES
"""Types that a recipe may name: libgguf makes the same bytes as llama-quantize for each of them (tested)."""

# Source: llama.cpp, src/llama-quant.cpp, tensor_requires_imatrix
_NEEDS_IMATRIX = frozenset({"IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S"})

# Source: llama.cpp, src/llama-quant.cpp, tensor_allows_quantization: norms, expert routers, small and positional tensors
_KEPT = (
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "time_mix_first.weight",
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
)
_KEPT_WHOLE = ("position_embd.weight", "token_types.weight")
_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"
_IN_LAYER = re.compile(r"^(?P<stack>(?:\w+\.)*?)blk\.(?P<layer>\d+)\.(?P<kind>.+)\.weight$")
_SUFFIX = ".weight"

Candidate = tuple[str, int, ExcludedOption | None, str]
"""ggml type, bytes of the group, why it is excluded (`None`: it is not), one sentence about that."""


@dataclass(frozen=True, slots=True)
class TensorGroup:
    """Tensors that get one type together. `first_layer` and `last_layer` bound the band; `None` outside the layers."""

    name: str
    kind: str
    first_layer: int | None
    last_layer: int | None
    tensors: tuple[GgufTensor, ...]

    @property
    def weights(self) -> int:
        """Number of weights in all tensors."""
        return sum(tensor.weights for tensor in self.tensors)

    @property
    def row_width(self) -> int:
        """Weights per row; where the tensors' rows differ, their greatest common divisor, which a block must divide."""
        return math.gcd(*(tensor.shape[0] for tensor in self.tensors))


def is_quantizable(tensor: GgufTensor) -> bool:
    """Whether llama.cpp would quantize a tensor: a matrix or a stack of them, and none of those that it leaves alone."""
    dimensions = len(tensor.shape) - next(
        (count for count, size in enumerate(reversed(tensor.shape)) if size > 1), len(tensor.shape)
    )
    name = tensor.name
    return (
        dimensions >= 2
        and name.endswith("weight")
        and name not in _KEPT_WHOLE
        and not any(part in name for part in _KEPT)
        and (tensor.kind.name in FLOAT_TYPES or tensor.kind.is_quantized)
    )


def group_tensors(file: GgufFile, bands: int) -> tuple[TensorGroup, ...]:
    """Group the quantizable tensors: kind of tensor x band of depth; embedding, output and others outside layers alone.

    `bands` splits the layers into that many equal parts; 0 makes every layer its own. Tensors outside layers come first, then
    the kinds in the order of the file, shallow bands first. Raises `SpecError` (negative, or nothing can be quantized).
    """
    if bands < 0:
        raise SpecError.single("bands", f"{bands} is negative", "give 0 (every layer alone) or a number of bands")
    tensors = [tensor for tensor in file.tensors if is_quantizable(tensor)]
    if not tensors:
        raise SpecError.single(str(file.path.name), "holds no tensor that can be quantized", "bring a model with weight matrices")
    layers = _layers_per_stack(tensors)
    outside: list[TensorGroup] = []
    inside: dict[tuple[str, int], list[GgufTensor]] = {}
    bounds: dict[tuple[str, int], tuple[int, int]] = {}
    for tensor in tensors:
        match = _IN_LAYER.match(tensor.name)
        if match is None:
            kind = tensor.name.removesuffix(_SUFFIX)
            outside.append(TensorGroup(kind, kind, None, None, (tensor,)))
            continue
        stack, layer = match["stack"], int(match["layer"])
        band, first, last = _band(layer, layers[stack], bands)
        key = (stack + match["kind"], band)
        inside.setdefault(key, []).append(tensor)
        bounds[key] = (first, last)
    order = {kind: number for number, kind in enumerate(dict.fromkeys(kind for kind, _ in inside))}
    keys = sorted(inside, key=lambda key: (order[key[0]], key[1]))
    return (*outside, *(_layer_group(key[0], *bounds[key], inside[key]) for key in keys))


def _layers_per_stack(tensors: Iterable[GgufTensor]) -> dict[str, int]:
    layers: dict[str, int] = {}
    for tensor in tensors:
        if match := _IN_LAYER.match(tensor.name):
            layers[match["stack"]] = max(layers.get(match["stack"], 0), int(match["layer"]) + 1)
    return layers


def _band(layer: int, layers: int, bands: int) -> tuple[int, int, int]:
    """Return number, first and last layer of the band that a layer lies in; bands differ by at most one layer."""
    count = min(bands, layers) or layers
    band = (layer * count) // layers
    return band, -(-band * layers // count), -(-(band + 1) * layers // count) - 1


def _layer_group(kind: str, first: int, last: int, tensors: Sequence[GgufTensor]) -> TensorGroup:
    place = str(first) if first == last else f"{first}-{last}"
    return TensorGroup(f"{kind}/{place}", kind, first, last, tuple(tensors))


def check_type_names(wanted: Sequence[str], where: str = "types") -> None:
    """Raise `SpecError` naming every type that a recipe cannot have, with the nearest ones that it can."""
    problems = [
        Problem(where, f"unknown or unsupported ggml type {name!r}", _nearest(name))
        for name in wanted
        if name not in RECIPE_TYPES
    ]
    if problems:
        raise SpecError(problems)


def _nearest(name: str) -> str:
    close = difflib.get_close_matches(name.upper(), RECIPE_TYPES, n=3, cutoff=0.5)
    return f"did you mean {', '.join(close)}?" if close else f"types: {', '.join(RECIPE_TYPES)}"


def candidate_types(
    group: TensorGroup, *, has_imatrix: bool, source_types: frozenset[str], wanted: Sequence[str] = DEFAULT_TYPES
) -> tuple[Candidate, ...]:
    """Return what a group could be, fewest bytes first (then by name): type, bytes, exclusion, and a sentence about it.

    `source_types` are the types whose grid the source already lies on (`off_grid.grid_types`). The bytes of a type whose
    block does not divide the rows are what its blocks would need if it did. Raises `SpecError` for unknown types.
    """
    check_type_names(wanted)
    found: list[Candidate] = []
    for name in dict.fromkeys(wanted):
        kind = GGML_TYPES[name]
        size = sum(-(-tensor.weights // kind.weights) * kind.bytes for tensor in group.tensors)
        excluded, detail = _exclusion(group, name, has_imatrix=has_imatrix, source_types=source_types)
        found.append((name, size, excluded, detail))
    return tuple(sorted(found, key=lambda row: (row[1], row[0])))


def _exclusion(
    group: TensorGroup, name: str, *, has_imatrix: bool, source_types: frozenset[str]
) -> tuple[ExcludedOption | None, str]:
    block = GGML_TYPES[name].weights
    if group.row_width % block:
        return ExcludedOption.ROW_WIDTH, f"rows of {group.row_width} weights cannot be cut into blocks of {block}"
    if name in _NEEDS_IMATRIX and not (has_imatrix and group.first_layer is not None):
        reason = "and none was given" if not has_imatrix else "which does not cover tensors outside the layers"
        return ExcludedOption.NEEDS_IMATRIX, f"llama.cpp makes {name} only with an importance matrix, {reason}"
    if name in source_types:
        detail = f"the source's weights lie on the grid of {name} already, so it would be lossless by construction"
        return ExcludedOption.SOURCE_GRID, detail
    return None, ""


def check_types(file: GgufFile, types: Mapping[str, str], covered: frozenset[str]) -> list[Problem]:
    """Return everything that forbids these types (tensor name -> ggml type) for a file.

    `covered` are the tensors that an importance matrix has rows for. The file may be quantized: only its shapes count.
    """
    tensors = {tensor.name: tensor for tensor in file.tensors}
    problems = []
    for name, kind in types.items():
        message, hint = _type_problem(tensors.get(name), kind, covers=name in covered)
        if message:
            problems.append(Problem(f"recipe: {name}", message, hint))
    return problems


def _type_problem(tensor: GgufTensor | None, kind: str, *, covers: bool) -> tuple[str, str]:
    if kind not in RECIPE_TYPES:
        return f"unknown or unsupported ggml type {kind!r}", _nearest(kind)
    if tensor is None:
        return "the model has no such tensor", "the recipe was made for another model"
    if not is_quantizable(tensor):
        return f"cannot be {kind}", "llama.cpp leaves norms, biases and small tensors as they are: take it out of the recipe"
    if tensor.shape[0] % GGML_TYPES[kind].weights:
        block = GGML_TYPES[kind].weights
        return f"rows of {tensor.shape[0]} weights cannot be cut into {kind} blocks of {block}", "choose a type with blocks of 32"
    if kind in _NEEDS_IMATRIX and not covers:
        return f"{kind} needs an importance matrix that covers this tensor", "give one with --imatrix, or choose another type"
    return "", ""


def group_bytes(group: TensorGroup, ggml_type: str) -> int:
    """Return the bytes of a group's tensors in a type whose block divides their rows."""
    return sum(bytes_as(tensor, GGML_TYPES[ggml_type]) for tensor in group.tensors)


def planned_file_bytes(file: GgufFile, types: Mapping[str, str]) -> int:
    """Return the exact size, bytes, of the file that `types` (tensor name -> ggml type) makes of this one."""
    return grafted_bytes(file, types)


def complete_types(file: GgufFile, types: Mapping[str, str]) -> dict[str, str]:
    """Add the tensors that a recipe leaves as they are, at their own type: llama-quantize would quantize them otherwise."""
    kept = {tensor.name: tensor.kind.name for tensor in file.tensors if is_quantizable(tensor)}
    return kept | dict(types)


def tensor_type_lines(types: Mapping[str, str]) -> str:
    """Return the text for llama-quantize's `--tensor-type-file`: one `pattern=type` a line, in order of the names.

    Patterns are regular expressions that llama-quantize searches in tensor names: dots are escaped and both ends anchored.
    Embedding and output have flags of their own (`tensor_type_flags`). Tensors that are not named get the base type, so give
    `complete_types` of a recipe. The base type must be quantized (Q8_0): with F16 llama-quantize ignores the file.
    """
    lines = [f"^{re.escape(name)}$={kind.lower()}\n" for name, kind in sorted(types.items()) if name not in (_EMBEDDING, _OUTPUT)]
    return "".join(lines)


def tensor_type_flags(types: Mapping[str, str]) -> tuple[str, ...]:
    """Return llama-quantize's flags for the embedding and the output; tied ones are both, so the embedding sets both flags."""
    embedding = types.get(_EMBEDDING)
    output = types.get(_OUTPUT, embedding)
    flags: tuple[str, ...] = ()
    if embedding is not None:
        flags += ("--token-embedding-type", embedding.lower())
    if output is not None:
        flags += ("--output-tensor-type", output.lower())
    return flags
