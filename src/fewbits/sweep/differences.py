"""What differs between two plans, in words: for the refusal to mix their results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fewbits.core.codec import to_builtins
from fewbits.records.plan import Plan

_LIMIT = 12
_IGNORED = {
    "digest",
    "commit_sha",
    "artifacts",
    "task_bank_digest",
    "spec.out_dir",
    "spec.summary_out",
    "spec.description",
    "spec.task_bank",
    "spec.script",
    "spec.selection",
    "spec.control_profile",
    "spec.sidecar",
    "spec.baselines",
}
"""Not part of a plan's digest, so never the reason for a refusal."""


def plan_differences(old: Plan, new: Plan) -> list[str]:
    """One line per differing field (`controls.seed: 1 -> 2`), at most 12, then a count of the rest."""
    lines = list(_walk("", to_builtins(old), to_builtins(new)))
    if len(lines) > _LIMIT:
        return [*lines[:_LIMIT], f"and {len(lines) - _LIMIT} more"]
    return lines or ["the plan format"]


def _walk(path: str, old: Any, new: Any) -> Iterator[str]:
    if path in _IGNORED or path.endswith(".path"):
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _walk(f"{path}.{key}" if path else key, old.get(key), new.get(key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (left, right) in enumerate(zip(old, new, strict=True)):
            yield from _walk(f"{path}[{index}]", left, right)
    elif old != new:
        yield f"{path}: {_short(old)} -> {_short(new)}"


def _short(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)} items" if len(value) > 6 else str(value)
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
