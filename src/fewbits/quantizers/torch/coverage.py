"""Which modules of a model may be quantized, which may not and why, and which share one precision: from names alone."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from fewbits.core.errors import Problem, SpecError
from fewbits.records.sensitivity import AutoQuantSettings, CoverageMode, ExcludedModule, ExclusionReason, PairSettings

VISION_PATTERNS = (
    "*visual*",
    "*vision_tower*",
    "*vision_model*",
    "*vision_encoder*",
    "*image_encoder*",
    "*embed_vision*",
    "*multi_modal_projector*",
    "*multimodal_projector*",
)
"""Names of vision towers and of what joins them to the language model."""
HEAD_NAMES = frozenset({"lm_head", "embed_out", "output_layer"})
"""Last names of output heads."""

_KINDS = {
    "q_proj": "attn_qkv",
    "k_proj": "attn_qkv",
    "v_proj": "attn_qkv",
    "qkv_proj": "attn_qkv",
    "query_key_value": "attn_qkv",
    "c_attn": "attn_qkv",
    "o_proj": "attn_o",
    "gate_proj": "mlp_gate_up",
    "up_proj": "mlp_gate_up",
    "gate_up_proj": "mlp_gate_up",
    "down_proj": "mlp_down",
}
_FUSED = frozenset({"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"})
"""Modules that engines join into one: they read the same activation and share one precision, as in ModelOpt's grouping rules."""
_EXPERT = re.compile(r"^(?P<experts>.*?\.mlp\.experts)\.\d+\.(?:gate_proj|up_proj|down_proj)$")
"""Experts of a mixture, all of one layer together (ModelOpt's rule)."""
_EXPERT_STACKS = ("gate_up_proj", "down_proj")
"""Parameters of shape (experts, outputs, inputs) of a module that holds all experts of a layer."""
_LAYER = re.compile(r"(?:^|\.)(?:layers|blocks|h|block)\.(\d+)(?:\.|$)")


@dataclass(frozen=True, slots=True)
class Coverage:
    """What a run may quantize. Every quantizable module is in exactly one of the two."""

    covered: tuple[str, ...]
    """Module names in the model's order."""
    excluded: tuple[ExcludedModule, ...]
    """In the model's order."""


def place_of(module_name: str) -> tuple[str, int | None]:
    """Return a module's kind and layer number: `("attn_qkv", 3)`, `("mlp_down", 0)`, `("lm_head", None)`.

    Kinds are those of `GroupSensitivity.kind`; the number is `None` outside the stack of layers.
    """
    last = module_name.rsplit(".", 1)[-1]
    found = _LAYER.search(module_name)
    depth = int(found[1]) if found else None
    if last in HEAD_NAMES:
        return "lm_head", None
    if _EXPERT.match(module_name) or last == "experts":
        return "mlp_experts", depth
    return ("" if is_vision(module_name) else _KINDS.get(last, "")) or last, depth


def is_vision(module_name: str) -> bool:
    """Tell whether a module belongs to a vision tower, by its name."""
    return any(fnmatchcase(module_name, pattern) for pattern in VISION_PATTERNS)


def _group_key(module_name: str) -> str:
    if found := _EXPERT.match(module_name):
        return found["experts"]
    parent, _, last = module_name.rpartition(".")
    return f"{parent}/{_KINDS[last]}" if last in _FUSED else module_name


def group_modules(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the groups that share one precision: the first member's name -> all members, in the order given.

    q, k and v of a layer are one group, gate and up are one, the experts of a layer are one; every other module is its own.
    """
    members: dict[str, list[str]] = {}
    for name in names:
        members.setdefault(_group_key(name), []).append(name)
    return {group[0]: tuple(group) for group in members.values()}


def quantizable_weights(model: Any) -> dict[str, int]:
    """Return module name -> number of weights of every linear and convolution layer of a PyTorch model, in the model's order.

    The experts of a mixture, where a model keeps them in one module, count as one layer.
    """
    return {
        name: sum(rows * length for rows, length in shapes)
        for name, module in model.named_modules()
        if (shapes := weight_shapes(module))
    }


def weight_shapes(module: Any) -> list[tuple[int, int]]:
    """Return (rows, row length) of each weight matrix of a quantizable module; empty for any other module."""
    from torch import nn

    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    # GPT-2's linear layer is a class of its own, named like a convolution
    if isinstance(module, kinds) or type(module).__name__ == "Conv1D":
        rows = int(module.weight.shape[0])
        return [(rows, int(module.weight.numel()) // rows)]
    stacks = [getattr(module, name, None) for name in _EXPERT_STACKS]
    if all(isinstance(stack, nn.Parameter) and stack.dim() == 3 for stack in stacks):
        return [(int(stack.shape[0] * stack.shape[1]), int(stack.shape[2])) for stack in stacks if stack is not None]
    return []


def plan_coverage(weights: Mapping[str, int], pair: PairSettings, autoquant: AutoQuantSettings) -> Coverage:
    """Decide for every module (name -> number of weights) whether it is covered; what is not gets its reason.

    Raises `SpecError`: a pattern of `disabled_layers` matches nothing, or nothing would be left to quantize.
    """
    if not weights:
        raise SpecError.single("model.path", "the model has no linear or convolution layer", "give a language model")
    names = tuple(weights)
    if problems := _idle_patterns(names, autoquant.disabled_layers):
        raise SpecError(problems)
    reasons: dict[str, tuple[ExclusionReason, str]] = {}
    if pair.coverage_mode is not CoverageMode.FULL:
        reasons |= _outside_language_model(names, pair.coverage_mode, keep_head=autoquant.include_output_head)
    reasons |= {name: reason for name, reason in _by_pattern(names, autoquant.disabled_layers).items() if name not in reasons}
    reasons |= _by_fraction({name: weights[name] for name in names if name not in reasons}, pair.coverage_fraction)
    covered = tuple(name for name in names if name not in reasons)
    if not covered:
        raise SpecError.single("autoquant.disabled_layers", "nothing is left to quantize", "disable fewer layers")
    excluded = tuple(
        ExcludedModule(name=name, reason=reasons[name][0], detail=reasons[name][1], weights=weights[name])
        for name in names
        if name in reasons
    )
    return Coverage(covered=covered, excluded=excluded)


def _idle_patterns(names: Sequence[str], patterns: Sequence[str]) -> list[Problem]:
    problems = []
    for index, pattern in enumerate(patterns):
        if not any(fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern.strip("*"), names, n=3, cutoff=0.3) or list(names[:3])
            message = f"{pattern!r} matches no linear or convolution layer"
            problems.append(Problem(f"autoquant.disabled_layers[{index}]", message, f"near names: {', '.join(near)}"))
    return problems


def _outside_language_model(
    names: Sequence[str], mode: CoverageMode, *, keep_head: bool
) -> dict[str, tuple[ExclusionReason, str]]:
    reasons: dict[str, tuple[ExclusionReason, str]] = {}
    for name in names:
        if is_vision(name):
            pattern = next(pattern for pattern in VISION_PATTERNS if fnmatchcase(name, pattern))
            reasons[name] = (ExclusionReason.VISION_TOWER, f"coverage_mode={mode.value} leaves {pattern} as it is")
        elif not keep_head and place_of(name)[0] == "lm_head":
            detail = f"coverage_mode={mode.value} without include_output_head"
            reasons[name] = (ExclusionReason.OUTPUT_HEAD, detail)
    return reasons


def _by_pattern(names: Sequence[str], patterns: Sequence[str]) -> dict[str, tuple[ExclusionReason, str]]:
    """Exclude what a pattern names, and the rest of its group: members of a group can only be left out together."""
    reasons: dict[str, tuple[ExclusionReason, str]] = {}
    for members in group_modules(names).values():
        hits = {name: next((p for p in patterns if fnmatchcase(name, p)), None) for name in members}
        named = next((name for name, pattern in hits.items() if pattern is not None), None)
        if named is None:
            continue
        for name, pattern in hits.items():
            detail = (
                f"matches {pattern!r}"
                if pattern is not None
                else f"shares its precision with {named}, which {hits[named]!r} names"
            )
            reasons[name] = (ExclusionReason.PATTERN, detail)
    return reasons


def _by_fraction(weights: Mapping[str, int], fraction: float) -> dict[str, tuple[ExclusionReason, str]]:
    """Exclude all but the fewest layers, spread evenly over the depth, that hold `fraction` of the weights."""
    if fraction >= 1 or not weights:
        return {}
    layers = _layers_of(weights)
    sizes = [sum(weights[name] for name in members) for members in layers]
    needed = fraction * sum(weights.values())
    kept: set[str] = set()
    for count in range(1, len(layers) + 1):
        chosen = spread_evenly(count, len(layers))
        kept = {name for index in chosen for name in layers[index]}
        if sum(sizes[index] for index in chosen) >= needed:
            break
    detail = f"coverage_fraction={fraction:g} is reached by {_count(layers, kept)} of {len(layers)} layers"
    return {name: (ExclusionReason.COVERAGE_FRACTION, detail) for name in weights if name not in kept}


def _count(layers: Sequence[Sequence[str]], kept: set[str]) -> int:
    return sum(1 for members in layers if members[0] in kept)


def _layers_of(names: Iterable[str]) -> list[list[str]]:
    """Return the modules layer by layer, in the model's order; a group outside the stacks counts as a layer of its own."""
    layers: dict[str, list[str]] = {}
    for group, members in group_modules(names).items():
        found = _LAYER.search(group)
        layers.setdefault(group[: found.end(1)] if found else group, []).extend(members)
    return list(layers.values())


def spread_evenly(count: int, total: int) -> tuple[int, ...]:
    """Return `count` of the numbers 0..total-1, at the middles of `count` equal stretches: 1 of 3 is (1,), 2 of 4 is (1, 3)."""
    return tuple((2 * index + 1) * total // (2 * count) for index in range(count))
