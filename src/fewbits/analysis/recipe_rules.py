"""Recipes without measurements, to compare a measured one with: one type for everything, and a rule of thumb. Pure.

Both take the options that the search may choose from, so that neither gets a type that would be no evidence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

EMBEDDING_KINDS = ("token_embd", "output")
"""Kinds that hold a row for every word of the vocabulary."""
_SPARE_ORDER = ("attn_v", *EMBEDDING_KINDS, "ffn_down", "attn_output", "attn_k", "attn_q", "ffn_up", "ffn_gate")
"""Who gets what is left over. Values feed every later sum, and the embedding is read and written by every word."""


@dataclass(frozen=True, slots=True)
class RuleGroup:
    """A group as rules see it: `options` maps a ggml type to bytes; `depth` is the place of its band, 0..1 (`None`: no layer)."""

    name: str
    kind: str
    depth: float | None
    weights: int
    options: Mapping[str, int]

    @property
    def ladder(self) -> tuple[str, ...]:
        """Types, fewest bytes first."""
        return tuple(sorted(self.options, key=lambda name: (self.options[name], name)))

    def nearest_below(self, bits: float) -> str:
        """The largest type of at most `bits` per weight; the smallest one where there is none."""
        fitting = [name for name in self.ladder if 8 * self.options[name] <= bits * self.weights + 1e-9]
        return fitting[-1] if fitting else self.ladder[0]

    def above(self, name: str, steps: int) -> str:
        """The type that many steps up the ladder, or its top. A step leads to a type of more bytes."""
        sizes = sorted(set(self.options.values()))
        wanted = sizes[min(len(sizes) - 1, sizes.index(self.options[name]) + steps)]
        return next(one for one in self.ladder if self.options[one] == wanted)


def pure_recipe(groups: Sequence[RuleGroup], budget_bytes: int) -> tuple[str, dict[str, str]] | None:
    """Return the largest single type that fits `budget_bytes` and each group's type; `None` when nothing fits.

    A group whose rows that type does not suit gets the largest of its types that is no larger per weight.
    """
    for name, bits in sorted(_densities(groups).items(), key=lambda item: (-item[1], item[0])):
        chosen = {group.name: name if name in group.options else group.nearest_below(bits) for group in groups}
        if _bytes_of(groups, chosen) <= budget_bytes:
            return name, chosen
    return None


def simple_recipe(groups: Sequence[RuleGroup], budget_bytes: int) -> dict[str, str] | None:
    """Return each group's type by a rule of thumb that looks at no measurement; `None` when nothing fits `budget_bytes`.

    One base type for everything; two steps more for `attn_v`; one step more for the embedding, for `attn_k`, and for `ffn_down`
    in the first and the last eighth of the layers. The largest base that fits is taken; what is left over buys single steps in
    the order of `_SPARE_ORDER`, early layers first.
    Source: the shape of llama.cpp's own mixes (src/llama-quant.cpp, llama_tensor_get_type: attn_v and ffn_down get more, the
    latter in the first and last eighth of the layers), with the embedding treated as a tensor like others.
    """
    for _, bits in sorted(_densities(groups).items(), key=lambda item: (-item[1], item[0])):
        chosen = {group.name: group.above(group.nearest_below(bits), _extra_steps(group)) for group in groups}
        if _bytes_of(groups, chosen) <= budget_bytes:
            return _spent(groups, chosen, budget_bytes)
    smallest = {group.name: group.ladder[0] for group in groups}
    return _spent(groups, smallest, budget_bytes) if _bytes_of(groups, smallest) <= budget_bytes else None


def _densities(groups: Sequence[RuleGroup]) -> dict[str, float]:
    """Bits per weight of every type that any group may have."""
    return {name: 8 * size / group.weights for group in groups for name, size in group.options.items()}


def _extra_steps(group: RuleGroup) -> int:
    if group.kind == "attn_v":
        return 2
    at_an_end = group.depth is not None and (group.depth < 1 / 8 or group.depth >= 7 / 8)
    return 1 if group.kind in (*EMBEDDING_KINDS, "attn_k") or (group.kind == "ffn_down" and at_an_end) else 0


def _spent(groups: Sequence[RuleGroup], chosen: Mapping[str, str], budget_bytes: int) -> dict[str, str]:
    """Spend the rest of the budget in single steps: the first in order that fits, again and again, until none does."""
    result, left = dict(chosen), budget_bytes - _bytes_of(groups, chosen)
    while True:
        step = next(((group, more, cost) for group, more, cost in _steps(groups, result) if cost <= left), None)
        if step is None:
            return result
        group, more, cost = step
        result[group.name], left = more, left - cost


def _steps(groups: Sequence[RuleGroup], chosen: Mapping[str, str]) -> Iterator[tuple[RuleGroup, str, int]]:
    """Every single step up, in the order that they are bought: (group, next type, bytes)."""
    for group in sorted(groups, key=_spare_place):
        now = chosen[group.name]
        more = group.above(now, 1)
        if group.options[more] > group.options[now]:
            yield group, more, group.options[more] - group.options[now]


def _spare_place(group: RuleGroup) -> tuple[int, float, str]:
    place = _SPARE_ORDER.index(group.kind) if group.kind in _SPARE_ORDER else len(_SPARE_ORDER)
    return place, group.depth if group.depth is not None else -1.0, group.name


def _bytes_of(groups: Sequence[RuleGroup], chosen: Mapping[str, str]) -> int:
    return sum(group.options[chosen[group.name]] for group in groups)
