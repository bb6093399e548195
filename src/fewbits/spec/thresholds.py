"""Limits of one model among several: `model_thresholds` in a matrix file, `--model-threshold MODEL:KEY=VALUE` on a flag.

Each limit is a setting of its own, under a key that names model and limit, so precedence and problems work as for all others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from fewbits.core.errors import Problem
from fewbits.spec.parameters import PARAMETERS, Parameter
from fewbits.spec.values import nearest, shown

KEY = "model_thresholds"
LIMITS = ("adherence_threshold", "adherence_floor", "latency_ceiling", "equivalence_margin")
"""What may differ between models. Error levels and the override stay the session's."""

_PARAMETERS = {parameter.key: parameter for parameter in PARAMETERS if parameter.key in LIMITS}
_FIELDS = {name: parameter.target.rpartition(".")[2] for name, parameter in _PARAMETERS.items()}
_FLAG_FORM = "write MODEL:KEY=VALUE, for example llama3.1:8b:latency_ceiling=20"


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One limit as it was written: its parameter (keyed by model and limit), the value, and where it stands."""

    parameter: Parameter
    value: object
    path: str


def threshold_key(model: str, limit: str) -> str:
    """Return the settings key of one model's limit, which is also its place in a matrix file."""
    return f'{KEY}["{model}"].{limit}'


def split_key(key: str) -> tuple[str, str] | None:
    """Return model and limit of such a key, `None` for any other key."""
    head, found, limit = key.rpartition('"].')
    return (head.removeprefix(f'{KEY}["'), limit) if found and head.startswith(f'{KEY}["') else None


def entries_of_mapping(value: object, where: str = KEY) -> Iterator[Entry | Problem]:
    """Yield the limits of a `model_thresholds` object, and its problems."""
    if not isinstance(value, Mapping):
        yield Problem(where, f"expected an object of models, got {shown(value)}")
        return
    for model, limits in value.items():
        place = f'{where}["{model}"]'
        if not model:
            yield Problem(place, "a model needs a name")
        elif not isinstance(limits, Mapping) or not limits:
            yield Problem(place, f"expected an object of limits, got {shown(limits)}", f"any of {', '.join(LIMITS)}")
        else:
            yield from (_entry(str(model), str(limit), item, f"{place}.{limit}") for limit, item in limits.items())


def entries_of_flags(value: object, flag: str) -> Iterator[Entry | Problem]:
    """Yield the limits of the flag's texts (one, or a list of them), and their problems."""
    if isinstance(value, Mapping):
        yield from entries_of_mapping(value, flag)
        return
    for text in value if isinstance(value, list | tuple) else [value]:
        left, equals, number = text.rpartition("=") if isinstance(text, str) else ("", "", "")
        model, _, limit = left.strip().rpartition(":")
        if not equals or not model:
            yield Problem(flag, f"cannot read {shown(text)}", _FLAG_FORM)
        else:
            yield _entry(model, limit, number.strip(), f"{flag} {model}:{limit}")


def _entry(model: str, limit: str, value: object, path: str) -> Entry | Problem:
    parameter = _PARAMETERS.get(limit)
    if parameter is None:
        return Problem(path, "unknown limit", nearest(limit, LIMITS) or f"one of {', '.join(LIMITS)}")
    return Entry(dataclasses.replace(parameter, key=threshold_key(model, limit)), value, path)


def own_limits(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return model -> field of `SelectionPolicy` -> value, from merged settings."""
    limits: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        if (found := split_key(key)) is not None:
            limits.setdefault(found[0], {})[_FIELDS[found[1]]] = value
    return limits
