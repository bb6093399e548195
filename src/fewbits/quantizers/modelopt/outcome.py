"""From ModelOpt's search state to our records; what ModelOpt must have delivered is checked on the way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fewbits.core.errors import BackendError
from fewbits.quantizers.torch.coverage import Coverage, group_modules, place_of
from fewbits.records.quant_formats import QuantFormat
from fewbits.records.sensitivity import FLOAT_BITS, AutoQuantSettings, CandidateScore, GroupSensitivity, SensitivityMethod

TOOL = "modelopt"
NO_FORMAT = "NONE"
"""The candidate that leaves a group in 16 bits."""

_SHOWN_NAMES = 3
_BITS_PER_BYTE = 8
_SLACK_BITS = 1e-9
"""Rounding of sums of costs, bits per weight."""


@dataclass(frozen=True, slots=True)
class GroupScore:
    """What ModelOpt found for a group: the sum over scored samples for the one format, and whether its search chose it."""

    members: tuple[str, ...]
    total: float
    chosen: bool


@dataclass(frozen=True, slots=True)
class Selection:
    """Groups with their scores, and what the choice costs."""

    groups: dict[str, GroupSensitivity]
    effective_bits: float
    """Over the covered weights."""
    score: float
    satisfied: bool
    solved_here: bool
    """ModelOpt's own search missed a budget that can be met, so its rule was solved exactly here."""


def check_state(state: Mapping[str, Any], coverage: Coverage) -> dict[str, GroupScore]:
    """Return the score of every covered group, first member's name -> score, after checking ModelOpt's side of the contract.

    Raises `BackendError`: groups differ from the expected ones, a covered group has no candidate or an excluded module has one,
    a score is missing, negative or not finite.
    """
    expected = group_modules(coverage.covered)
    found = {tuple(stats["module_names"]): (name, stats) for name, stats in state["candidate_stats"].items()}
    excluded = {module.name for module in coverage.excluded}
    touched = [name for members, (_, stats) in found.items() if set(members) & excluded and _real(stats) for name in members]
    _require(not touched, f"modules that were to stay as they are have candidates: {_some(touched)}")
    known = set(coverage.covered) | excluded
    strange = [name for members in found for name in members if name not in known]
    _require(not strange, f"it quantizes modules that fewbits does not know how to cover: {_some(strange)}")
    by_members = {frozenset(members): value for members, value in found.items()}
    missing = [group for group, members in expected.items() if frozenset(members) not in by_members]
    _require(not missing, f"{len(missing)} of {len(expected)} groups are grouped otherwise or missing: {_some(missing)}")
    best = state["best"]["recipe"]
    return {group: _read(group, members, *by_members[frozenset(members)], best=best) for group, members in expected.items()}


def _real(stats: Mapping[str, Any]) -> list[int]:
    return [index for index, recipe in enumerate(stats["formats"]) if not str(recipe).startswith(f"{NO_FORMAT}(")]


def _read(group: str, members: tuple[str, ...], name: str, stats: Mapping[str, Any], *, best: Mapping[str, Any]) -> GroupScore:
    real = _real(stats)
    _require(len(real) == 1, f"{group} has {len(real)} candidates instead of one besides leaving it in 16 bits")
    total = float(stats["scores"][real[0]])
    _require(math.isfinite(total) and total >= 0, f"{group} has the score {total}, which is no finite number of 0 or more")
    chosen = best.get(name)
    _require(chosen is not None, f"its search chose nothing for {group}")
    return GroupScore(members=members, total=total, chosen=not str(chosen).startswith(f"{NO_FORMAT}("))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise BackendError(TOOL, f"broke its contract: {message}. This version of ModelOpt may not be supported.")


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN_NAMES]) + (f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else "")


def select(
    scores: Mapping[str, GroupScore],
    weights: Mapping[str, int],
    fmt: QuantFormat,
    settings: AutoQuantSettings,
    *,
    scored_samples: int,
) -> Selection:
    """Turn checked scores into groups, means per sample, ranked; cost the choice by our own rule.

    `fmt` is the format as the overlay leaves it. The budget must be one that the format can meet (`check_budget`).
    """
    sizes = {group: sum(weights[name] for name in score.members) for group, score in scores.items()}
    chosen = {group for group, score in scores.items() if score.chosen}
    solved_here = not _fits(chosen, sizes, fmt, settings)
    if solved_here:
        chosen = _least_threshold(scores, sizes, fmt, settings)
    ranks = {group: rank for rank, group in enumerate(sorted(scores, key=lambda name: scores[name].total), 1)}
    groups = {
        group: _group(score, sizes[group], fmt, mean=score.total / scored_samples, quantized=group in chosen, rank=ranks[group])
        for group, score in scores.items()
    }
    return Selection(
        groups=groups,
        effective_bits=_bits(chosen, sizes, fmt),
        score=sum(scores[group].total for group in scores if group in chosen) / scored_samples,
        satisfied=_fits(chosen, sizes, fmt, settings),
        solved_here=solved_here,
    )


def _bits(chosen: set[str], sizes: Mapping[str, int], fmt: QuantFormat) -> float:
    cost = sum(size * (fmt.weight_bits if group in chosen else FLOAT_BITS) for group, size in sizes.items())
    return cost / sum(sizes.values())


def _fits(chosen: set[str], sizes: Mapping[str, int], fmt: QuantFormat, settings: AutoQuantSettings) -> bool:
    return _bits(chosen, sizes, fmt) <= settings.effective_bits + _SLACK_BITS


def _least_threshold(
    scores: Mapping[str, GroupScore], sizes: Mapping[str, int], fmt: QuantFormat, settings: AutoQuantSettings
) -> set[str]:
    """Quantize the least sensitive groups, as many as the budget needs: the exact answer to the search by threshold.

    ModelOpt's `kl_div` halves an interval of thresholds and may end a rounding error below the one that meets the budget.
    """
    chosen: set[str] = set()
    for group in sorted(scores, key=lambda name: scores[name].total):
        chosen.add(group)
        if _fits(chosen, sizes, fmt, settings):
            break
    return chosen


def _group(score: GroupScore, size: int, fmt: QuantFormat, *, mean: float, quantized: bool, rank: int) -> GroupSensitivity:
    kind, depth = place_of(score.members[0])
    candidates = (
        CandidateScore(
            format=fmt.name,
            weight_bits=fmt.weight_bits,
            activation_bits=fmt.activation_bits,
            score=mean,
            cost_bytes=size * fmt.weight_bits / _BITS_PER_BYTE,
        ),
        CandidateScore(
            format=NO_FORMAT,
            weight_bits=FLOAT_BITS,
            activation_bits=FLOAT_BITS,
            score=0.0,
            cost_bytes=size * FLOAT_BITS / _BITS_PER_BYTE,
        ),
    )
    return GroupSensitivity(
        members=score.members,
        kind=kind,
        depth=depth,
        weights=size,
        candidates=candidates,
        selected=fmt.name if quantized else NO_FORMAT,
        importance=mean,
        rank=rank,
    )


def search_note(selection: Selection, method: SensitivityMethod) -> tuple[str, ...]:
    """Return the warning that the choice was solved here, if it was."""
    if not selection.solved_here:
        return ()
    return (f"ModelOpt's {method.value} search missed a budget that can be met; the least sensitive groups were chosen instead",)
