"""What a file offers to a recipe: groups of tensors, what each could be, and what everything else weighs. Reads headers only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fewbits.analysis.recipe_rules import EMBEDDING_KINDS, RuleGroup
from fewbits.analysis.wording import count
from fewbits.core.errors import SpecError
from fewbits.core.units import format_bytes
from fewbits.quantizers.llamacpp.ggml_types import GGML_TYPES
from fewbits.quantizers.llamacpp.gguf_file import GgufFile
from fewbits.quantizers.llamacpp.gguf_layout import alignment_of, bytes_as, padded
from fewbits.quantizers.llamacpp.tensor_types import (
    DEFAULT_TYPES,
    Candidate,
    TensorGroup,
    candidate_types,
    group_tensors,
    planned_file_bytes,
)


@dataclass(frozen=True, slots=True)
class Layout:
    """A model laid out for a recipe. `fixed_bytes` is what header and ungrouped tensors take, padding included."""

    file: GgufFile
    groups: tuple[TensorGroup, ...]
    candidates: Mapping[str, tuple[Candidate, ...]]
    """Group -> everything that it was looked at for, excluded types included."""
    sizes: Mapping[str, Mapping[str, int]]
    """Group -> ggml type -> bytes in the file, padding included; only what may be chosen."""
    fixed_bytes: int

    @property
    def smallest_bytes(self) -> int:
        """Size of the smallest file that may be chosen."""
        return self.fixed_bytes + sum(min(sizes.values()) for sizes in self.sizes.values())

    @property
    def embeddings(self) -> tuple[TensorGroup, ...]:
        """The groups that hold a row for every word."""
        return tuple(group for group in self.groups if group.kind in EMBEDDING_KINDS)

    def group_bytes(self, name: str, ggml_type: str) -> int:
        """Bytes of a group at a type, padding included, whether it may be chosen or not."""
        return _group_bytes(self.file, next(group for group in self.groups if group.name == name), ggml_type)

    def tensor_types(self, picks: Mapping[str, str]) -> dict[str, str]:
        """Turn a choice (group -> ggml type) into tensor name -> ggml type."""
        return {tensor.name: picks[group.name] for group in self.groups if group.name in picks for tensor in group.tensors}

    def rule_groups(self) -> tuple[RuleGroup, ...]:
        """The groups as rules without measurements see them."""
        layers = 1 + max((group.last_layer for group in self.groups if group.last_layer is not None), default=0)
        return tuple(
            RuleGroup(
                name=group.name,
                kind=group.kind,
                depth=None if group.first_layer is None or group.last_layer is None else _depth(group, layers),
                weights=group.weights,
                options=self.sizes[group.name],
            )
            for group in self.groups
        )

    def chosen_type(self, group: TensorGroup, types: Mapping[str, str]) -> str | None:
        """The type that all tensors of a group have under `types`; `None` where they differ."""
        found = {types.get(tensor.name, tensor.kind.name) for tensor in group.tensors}
        return found.pop() if len(found) == 1 else None

    def refuse_too_small(self, budget_bytes: int, asked: str, minimum: str) -> None:
        """Raise `SpecError` when even the smallest types do not fit; `minimum` is the smallest budget in the asker's unit."""
        if self.smallest_bytes <= budget_bytes:
            return
        missing = format_bytes(self.smallest_bytes - budget_bytes)
        message = f"{asked} is too small: the smallest types make a file of {self.smallest_bytes:,} bytes, {missing} more"
        raise SpecError.single("--budget", message, f"ask for {minimum} or more, or allow smaller types with --types")


def _depth(group: TensorGroup, layers: int) -> float:
    middle = ((group.first_layer or 0) + (group.last_layer or 0)) / 2
    return middle / layers


def lay_out(
    file: GgufFile, *, bands: int, types: Sequence[str], source_types: Mapping[str, frozenset[str]], has_imatrix: bool
) -> Layout:
    """Lay a model out; `source_types` maps a tensor to the types on its source's grid.

    Raises `SpecError`: an unknown type, nothing to quantize, or a group with no type left.
    """
    groups = group_tensors(file, bands)
    wanted = tuple(types) or DEFAULT_TYPES
    candidates = {
        group.name: candidate_types(group, has_imatrix=has_imatrix, source_types=grid_of(group, source_types), wanted=wanted)
        for group in groups
    }
    sizes = {
        group.name: {name: _group_bytes(file, group, name) for name, _, excluded, _ in candidates[group.name] if excluded is None}
        for group in groups
    }
    if empty := [name for name, options in sizes.items() if not options]:
        reason = _reason(candidates[empty[0]])
        message = f"no type is left for {count(len(empty), 'group')} of tensors, {empty[0]} first: {reason}"
        raise SpecError.single("--types", message, "allow more types, such as Q8_0, Q5_0 and Q4_0")
    grouped = {tensor.name for group in groups for tensor in group.tensors}
    now = sum(padded(tensor.bytes, alignment_of(file)) for tensor in file.tensors if tensor.name in grouped)
    return Layout(file, groups, candidates, sizes, planned_file_bytes(file, {}) - now)


def grid_of(group: TensorGroup, source_types: Mapping[str, frozenset[str]]) -> frozenset[str]:
    """Return the types that any tensor of a group shares its source's grid with."""
    return frozenset[str]().union(*(source_types.get(tensor.name, frozenset()) for tensor in group.tensors))


def _reason(candidates: Iterable[Candidate]) -> str:
    reasons = dict.fromkeys(detail for _, _, excluded, detail in candidates if excluded is not None)
    return next(iter(reasons), "none was asked for")


def _group_bytes(file: GgufFile, group: TensorGroup, ggml_type: str) -> int:
    kind, alignment = GGML_TYPES[ggml_type], alignment_of(file)
    return sum(padded(bytes_as(tensor, kind), alignment) for tensor in group.tensors)


def layout_document(layout: Layout) -> list[dict[str, object]]:
    """Return the groups for a dry run: name, weights, candidates, and what is left out and why."""
    return [
        {
            "group": group.name,
            "tensors": len(group.tensors),
            "weights": group.weights,
            "types": list(layout.sizes[group.name]),
            "excluded": {name: excluded.value for name, _, excluded, _ in layout.candidates[group.name] if excluded is not None},
        }
        for group in layout.groups
    ]
