"""From a composed configuration (a plain mapping, already resolved) to one checked `SensitivitySpec`; every problem at once.

Nothing heavy is imported and nothing is loaded: what is wrong is said before the first second of work.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from fewbits.core.errors import Problem, SpecError
from fewbits.core.files import safe_name
from fewbits.records.base import Record
from fewbits.records.quant_formats import QUANT_FORMATS, QuantFormat, find_quant_format
from fewbits.records.sensitivity import (
    AutoQuantSettings,
    DatasetSettings,
    GranularitySettings,
    ModelSettings,
    OutputSettings,
    PairSettings,
    SensitivitySpec,
)
from fewbits.spec import captions
from fewbits.spec.model_source import check_dtype, find_model_format
from fewbits.spec.parameters import Parameter
from fewbits.spec.quant_overlay import check_budget, check_overlay
from fewbits.spec.values import convert_value, nearest, shown

_MODES = ("tmp", "publish")
_DEVICE = re.compile(r"cpu|cuda(:\d{1,3})?")
_MISSING = "???"
"""How OmegaConf writes a value that must be given."""

_RUNNER = "runner"
_LAYOUT = "output_layout"


@dataclass(frozen=True, slots=True)
class _Section:
    """A group of the configuration: the record it becomes, and which of the record's fields it may give."""

    record: type[Record]
    fields: tuple[str, ...] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Fields that are in no record, with their types."""


_SECTIONS: dict[str, _Section] = {
    "model": _Section(ModelSettings),
    "dataset": _Section(DatasetSettings),
    "quant_pair": _Section(PairSettings),
    "quant_granularity": _Section(GranularitySettings),
    "autoquant": _Section(AutoQuantSettings),
    _LAYOUT: _Section(OutputSettings, ("mode", "root_dir")),
    _RUNNER: _Section(OutputSettings, ("output_dir", "overwrite"), {"report_only": bool}),
}
_HINTS = {
    "model.path": "a Hugging Face folder or a GGUF file on this machine",
    "dataset.captions_path": "a text file with one caption per line",
    "dataset.size_to_max_samples": "a table of sizes and numbers of captions, such as {small: 16}",
    "dataset.max_calib_samples": "a whole number of at least 1, or null for the size's own",
    "dataset.calib_seq_len": "2 to 131072 tokens",
    "quant_pair.coverage_fraction": "more than 0, at most 1",
    "autoquant.batch_size": "1 or more samples at once",
    "autoquant.score_size": "1 or more samples",
    "autoquant.seed": "a whole number, 0 to 4294967295",
    "autoquant.effective_bits": "bits per weight, more than 0, at most 16",
    "autoquant.disabled_layers": "a list of name patterns, such as ['*mlp.down_proj*']",
    "autoquant.threads": "1 or more, or null for PyTorch's own choice",
}
_NAMES = (
    "experiment",
    "model.name",
    "dataset.name",
    "dataset.size",
    "quant_pair.name",
    "quant_pair.weight",
    "quant_pair.activation",
    "quant_pair.scheme_name",
    "quant_pair.publish_pair_dir",
    "quant_pair.publish_run_dir",
    "quant_granularity.name",
)
"""Settings that become parts of file and folder names."""
_PATHS = ("model.path", "dataset.captions_path", f"{_LAYOUT}.root_dir", f"{_RUNNER}.output_dir")


def known_keys() -> tuple[str, ...]:
    """Return every dotted key that a configuration may hold."""
    return ("experiment", *(f"{name}.{key}" for name in _SECTIONS for key in _types(name)))


def load_sensitivity_spec(config: Mapping[str, Any], *, root: Path) -> SensitivitySpec:
    """Check a configuration and return the run it describes; relative paths are below `root`.

    With `runner.report_only` neither model nor captions are looked for. Raises `SpecError` with every problem: unknown keys and
    values (with near names), wrong types and ranges, a pair that contradicts its format, an overlay that does not fit it, a
    budget below its minimum, missing models and captions, names that are unsafe as paths, settings that would have no effect.
    """
    reading = _Reading(root)
    reading.read(config)
    reading.check()
    if reading.problems:
        raise SpecError(reading.problems)
    return reading.spec()


def wants_report_only(config: Mapping[str, Any]) -> bool:
    """Whether a checked configuration asks for reports from an existing manifest."""
    return config.get(_RUNNER, {}).get("report_only") is True


@functools.cache
def _types(section: str) -> dict[str, Any]:
    part = _SECTIONS[section]
    hints = get_type_hints(part.record, include_extras=True)
    return {name: hints[name] for name in part.fields or hints} | dict(part.extra)


@functools.cache
def _required(record: type[Record]) -> frozenset[str]:
    return frozenset(item.name for item in msgspec.structs.fields(record) if item.required)


class _Reading:
    """One pass over a configuration: converted values by dotted key, and what is wrong."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.values: dict[str, Any] = {}
        self.problems: list[Problem] = []
        self.refused: set[str] = set()
        """Keys whose value is unusable, and sections that are missing."""

    def refuse(self, path: str, message: str, hint: str = "") -> None:
        self.problems.append(Problem(path, message, hint))
        self.refused.add(path)

    # -- one value at a time

    def read(self, config: Mapping[str, Any]) -> None:
        for key in config:
            if key not in _SECTIONS and key != "experiment":
                self.refuse(str(key), "unknown key", _near_key(str(key), (*_SECTIONS, "experiment")))
        if "experiment" in config:
            self._convert("experiment", str, config["experiment"])
        for name, section in _SECTIONS.items():
            content = config.get(name)
            if isinstance(content, Mapping):
                self._read_section(name, section, content)
            elif content is not None or name not in (_RUNNER, "quant_granularity"):
                message = "missing" if content is None else f"expected a table, got {shown(content)}"
                self.refuse(name, message, f"choose an option: {name}=NAME, one of the files in conf/{name}/")

    def _read_section(self, name: str, section: _Section, content: Mapping[str, Any]) -> None:
        types = _types(name)
        for key, value in content.items():
            if key in types:
                self._convert(f"{name}.{key}", types[key], value)
            else:
                self.refuse(f"{name}.{key}", "unknown key", _near_key(str(key), types))
        for key in types:
            if key not in content and key in _required(section.record):
                self.refuse(f"{name}.{key}", "missing", _HINTS.get(f"{name}.{key}", ""))

    def _convert(self, path: str, kind: Any, value: object) -> None:
        hint = _HINTS.get(path, "")
        if value == _MISSING:
            self.refuse(path, "must be given", f"{path}=..." + (f": {hint}" if hint else ""))
            return
        if path.endswith(".quant_cfg_overrides"):
            value = _text_keys(value)
        converted, problem = convert_value(Parameter(path, path, help=hint, type=kind, hint=hint), value, path)
        if problem is not None:
            self.problems.append(problem)
            self.refused.add(path)
            return
        if path in _PATHS and converted:
            converted = str(Path(converted).expanduser()) if converted.startswith("~") else converted
        self.values[path] = converted

    # -- what the values mean together

    def check(self) -> None:
        self._check_names()
        self._check_pair()
        self._check_autoquant()
        self._check_output()
        for problem in check_dtype(self._get("model.dtype", "auto")):
            self.refuse(problem.path, problem.message, problem.hint)
        if not self.values.get(f"{_RUNNER}.report_only", False):
            self._check_model()
            self._check_dataset()

    def _get(self, path: str, default: Any) -> Any:
        return self.values.get(path, default)

    def _check_names(self) -> None:
        for path in _NAMES:
            name = self._get(path, None)
            if name is not None and safe_name(name) != name:
                message = f"{shown(name)} cannot be part of a file name"
                self.refuse(path, message, "letters, digits, '_', '-' and '.', not '.' first, at most 80")

    def _format(self) -> QuantFormat | None:
        name = self._get("quant_pair.format_name", None)
        if name is None:
            return None
        try:
            return find_quant_format(name, "quant_pair.format_name")
        except SpecError as error:
            self.problems += error.problems
            return None

    def _check_pair(self) -> None:
        fmt = self._format()
        if fmt is None:
            return
        for part in ("weight", "activation"):
            said, true = self._get(f"quant_pair.{part}", None), getattr(fmt, part)
            if said is not None and said != true:
                others = [other for other in QUANT_FORMATS.values() if getattr(other, part) == said]
                hint = f"write {true}" + (f", or choose a format such as {others[0].name}" if others else "")
                self.refuse(f"quant_pair.{part}", f"says {said!r}, but {fmt.name} has {part} {true!r}", hint)
        said_experimental = self._get("quant_pair.experimental", False)
        if "quant_pair.experimental" not in self.refused and said_experimental != fmt.experimental:
            true_word = "experimental: no known engine runs it" if fmt.experimental else "not experimental"
            self.refuse("quant_pair.experimental", f"{fmt.name} is {true_word}", f"set it to {str(fmt.experimental).lower()}")
        self._check_overlay(fmt)

    def _check_overlay(self, fmt: QuantFormat) -> None:
        where = "quant_granularity.quant_cfg_overrides"
        if where in self.refused or "quant_granularity" in self.refused:
            return
        overrides = self._get(where, {})
        found = check_overlay(fmt, overrides, where)
        bits = self._get("autoquant.effective_bits", AutoQuantSettings().effective_bits)
        if not found and "autoquant.effective_bits" not in self.refused:
            found = check_budget(fmt, overrides, bits, "autoquant.effective_bits")
        self.problems += found

    def _check_autoquant(self) -> None:
        device = self._get("autoquant.device", "cpu")
        if _DEVICE.fullmatch(device) is None:
            self.refuse("autoquant.device", f"unknown device {device!r}", "cpu, cuda, or cuda:N such as cuda:0")
        empty = [pattern for pattern in self._get("autoquant.disabled_layers", ()) if not pattern.strip()]
        if empty:
            self.refuse("autoquant.disabled_layers", "holds an empty pattern", "leave it out")

    def _check_output(self) -> None:
        mode, target = self._get(f"{_LAYOUT}.mode", "tmp"), self._get(f"{_RUNNER}.output_dir", None)
        report_only = self._get(f"{_RUNNER}.report_only", False)
        if mode not in _MODES:
            self.refuse(f"{_LAYOUT}.mode", f"unknown mode {mode!r}", nearest(mode, _MODES) or "tmp or publish")
            return
        if target == "":
            self.refuse(f"{_RUNNER}.output_dir", "is empty", "name a folder, or leave it out")
        self._check_layout(mode, target)
        fresh = mode == "tmp" and not target
        if report_only and fresh:
            hint = "name the run's folder with runner.output_dir=..., or find it with output_layout=publish"
            self.refuse(f"{_RUNNER}.report_only", "the tmp layout makes a new folder each time, so no manifest is in it", hint)
        if self._get(f"{_RUNNER}.overwrite", False) and (report_only or fresh):
            why = "reports are always written again" if report_only else "the tmp layout makes a new folder each time"
            self.refuse(f"{_RUNNER}.overwrite", f"has no effect: {why}", "leave it out")

    def _check_layout(self, mode: str, target: str | None) -> None:
        base = self._get(f"{_LAYOUT}.root_dir", "")
        if mode == "publish" and target:
            hint = "output_layout=tmp with runner.output_dir, or output_layout=publish without it"
            self.refuse(f"{_RUNNER}.output_dir", "contradicts output_layout=publish: there can be one target", hint)
        if mode == "publish" and not base:
            self.refuse(f"{_LAYOUT}.root_dir", "missing", "name the folder that published runs go below")
        if mode == "tmp" and base:
            self.refuse(f"{_LAYOUT}.root_dir", "has no effect in the tmp layout", "use output_layout=publish, or hydra.run.dir")

    def _check_model(self) -> None:
        if "model.path" not in self.values:
            return
        settings = ModelSettings(name="model", path=self.values["model.path"], format=self._get("model.format", "auto"))
        try:
            find_model_format(settings, self.root)
        except SpecError as error:
            self.problems += error.problems

    def _check_dataset(self) -> None:
        sizes, size = self._get("dataset.size_to_max_samples", None), self._get("dataset.size", None)
        cap = self._get("dataset.max_calib_samples", None)
        if sizes is not None and size is not None and cap is None:
            if size not in sizes:
                hint = "; ".join(part for part in (nearest(size, sizes), f"there are: {', '.join(sizes)}") if part)
                self.refuse("dataset.size", f"{size!r} is not in dataset.size_to_max_samples", hint)
                return
            cap = sizes[size]
        if (path := self._get(captions.PLACE, None)) is not None and cap is not None:
            try:
                captions.read_captions(self.root / path, cap)
            except SpecError as error:
                self.problems += error.problems

    # -- the result

    def _record(self, section: str) -> Any:
        record = _SECTIONS[section].record
        return record(**{key: self.values[f"{section}.{key}"] for key in _types(section) if f"{section}.{key}" in self.values})

    def spec(self) -> SensitivitySpec:
        output = {
            key: self.values[f"{section}.{key}"]
            for section in (_LAYOUT, _RUNNER)
            for key in _SECTIONS[section].fields or ()
            if f"{section}.{key}" in self.values
        }
        named = {"experiment": self.values["experiment"]} if "experiment" in self.values else {}
        return SensitivitySpec(
            model=self._record("model"),
            dataset=self._record("dataset"),
            quant_pair=self._record("quant_pair"),
            quant_granularity=self._record("quant_granularity"),
            autoquant=self._record("autoquant"),
            output_layout=OutputSettings(**output),
            **named,
        )


def _near_key(key: str, known: Iterable[str]) -> str:
    names = list(known)
    return nearest(key, names) or f"known: {', '.join(names)}"


def _text_keys(tree: object) -> object:
    """Return the tree with every key as text: YAML has integer keys (`{-1: 64}`), JSON has not, and both must mean the same."""
    if isinstance(tree, Mapping):
        return {str(key): _text_keys(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_text_keys(value) for value in tree]
    return tree
