"""The two places settings come from: a matrix document and explicit flags. Each becomes converted values and problems."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fewbits.core.errors import Problem
from fewbits.spec import thresholds
from fewbits.spec.flags import flag_names
from fewbits.spec.parameters import ELSEWHERE, PARAMETERS, Parameter
from fewbits.spec.values import convert_flag, convert_value, nearest, shown

_NESTED = "quality_policy"


@dataclass(slots=True)
class Settings:
    """What one source gave: converted `values` and the `paths` they stand at, both by parameter key, and the problems.

    `mentioned` also has the keys whose value was unusable, so that nobody calls them missing.
    """

    values: dict[str, Any] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)
    mentioned: set[str] = field(default_factory=set)
    problems: dict[str, list[Problem]] = field(default_factory=dict)
    """By parameter key; the empty key holds problems of no known setting."""

    def add(self, parameter: Parameter, converted: tuple[Any, Problem | None], path: str) -> None:
        """Keep a value, or its problem; two spellings of one setting must agree."""
        key = parameter.key
        value, problem = converted
        self.mentioned.add(key)
        if problem is not None:
            self.refuse(problem, key)
        elif key in self.values and self.values[key] != value:
            message = f"{self.paths[key]} says {shown(self.values[key])}, {path} says {shown(value)}"
            self.refuse(Problem(path, message, "they are one setting: give one of them"), key)
        else:
            self.values.setdefault(key, value)
            self.paths.setdefault(key, path)

    def refuse(self, problem: Problem, key: str = "") -> None:
        """Note a problem of a setting, or (without `key`) of the source as a whole."""
        self.problems.setdefault(key, []).append(problem)


def _file_names() -> dict[str, Parameter]:
    names = {parameter.key: parameter for parameter in PARAMETERS}
    for parameter in PARAMETERS:
        names.update({alias.key: parameter for alias in parameter.aliases if alias.in_files})
    return names


def _flag_parameters() -> dict[str, Parameter]:
    names = {parameter.key: parameter for parameter in PARAMETERS if parameter.flags}
    for parameter in PARAMETERS:
        names.update({alias.key: parameter for alias in parameter.aliases if alias.flag is not None})
    return names


_IN_FILES = _file_names()
_ON_FLAGS = _flag_parameters()


def settings_of_document(document: Mapping[str, object], *, allowed: Collection[str] | None = None, where: str = "") -> Settings:
    """Convert the settings of a matrix document; unknown keys are problems that name the nearest known key.

    `allowed` are the keys of the settings that this kind of file may give (`None`: all); `where` goes before each place.
    """
    settings = Settings()
    known = {key: found for key, found in _IN_FILES.items() if allowed is None or found.key in allowed}
    for key, value in _flattened(document, settings, where):
        parameter = known.get(key)
        path = where + key
        if parameter is None:
            settings.refuse(Problem(path, "unknown key", _advice(key, known)))
        elif parameter.key == thresholds.KEY:
            _add_thresholds(settings, thresholds.entries_of_mapping(value, path), strict=True)
        else:
            settings.add(parameter, convert_value(parameter, value, path), path)
    return settings


def _flattened(document: Mapping[str, object], settings: Settings, where: str) -> list[tuple[str, object]]:
    items: list[tuple[str, object]] = []
    for key, value in document.items():
        if key != _NESTED:
            # a dotted key is how the nested settings are named inside; in a file it would be a second spelling
            items.append((key if not key.startswith(f"{_NESTED}.") else f"{key} (dotted)", value))
        elif isinstance(value, Mapping):
            items += [(f"{_NESTED}.{name}", item) for name, item in value.items()]
        else:
            settings.refuse(Problem(where + key, f"expected an object of limits, got {shown(value)}"))
    return items


def _add_thresholds(settings: Settings, found: Iterable[thresholds.Entry | Problem], *, strict: bool) -> None:
    """Keep limits of single models; `strict` for values of files, where a text is no number."""
    convert = convert_value if strict else convert_flag
    for entry in found:
        if isinstance(entry, Problem):
            settings.refuse(entry, thresholds.KEY)
        else:
            settings.add(entry.parameter, convert(entry.parameter, entry.value, entry.path), entry.path)


def _advice(key: str, known: Collection[str]) -> str:
    if key in ELSEWHERE:
        return ELSEWHERE[key]
    if key in _IN_FILES:
        return "it belongs into the matrix file, or on a flag"
    return nearest(key, [*known, _NESTED])


def settings_of_flags(flags: Mapping[str, object]) -> Settings:
    """Convert explicit flags, given by destination (`runs_per_quant`, `venue`, ...); see `add_sweep_arguments`."""
    settings = Settings()
    spellings = flag_names()
    for name, value in flags.items():
        parameter = _ON_FLAGS.get(name)
        if parameter is None:
            settings.refuse(Problem(name, "unknown setting", nearest(name, _ON_FLAGS)))
        elif parameter.key == thresholds.KEY:
            _add_thresholds(settings, thresholds.entries_of_flags(value, spellings[name]), strict=False)
        else:
            path = spellings[name]
            settings.add(parameter, convert_flag(parameter, value, path), path)
    return settings
