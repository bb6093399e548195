"""Merge what a file and the flags say into one `SweepSpec`: who wins, what the defaults are, and every problem at once.

The file's `models` and `quants` replace the flags' (which are placeholders then); any other flag given explicitly beats the
file; what neither says has its default.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache, reduce
from pathlib import Path, PurePath
from typing import Any

from fewbits.core.errors import Problem, SpecError
from fewbits.records.divergence import NAMED_TEXTS, DivergencePolicy
from fewbits.records.plan import (
    CanaryPolicy,
    Controls,
    DecidePolicy,
    QualityPolicy,
    SelectionPolicy,
    SweepSpec,
    TaskSelection,
)
from fewbits.spec.crosscheck import Draft, check_draft
from fewbits.spec.matrix import read_document
from fewbits.spec.parameters import PARAMETERS
from fewbits.spec.sources import Settings, settings_of_document, settings_of_flags

DEFAULT_OUT_DIR = "benchmarks/results/quant_sweep"
DEFAULT_TASK_BANK = "benchmarks/task_bank/v2_realworld/tasks.json"
SUMMARY_NAME = "sweep_summary.json"

_FILE_WINS = frozenset({"models", "quants"})
_SECTIONS = {
    "controls": Controls,
    "selection": TaskSelection,
    "canary": CanaryPolicy,
    "quality": QualityPolicy,
    "policy": SelectionPolicy,
    "decide": DecidePolicy,
    "divergence": DivergencePolicy,
}
_REQUIRED = {
    "models": ("no model is given", "give --model-id (smollm2-135m, a GGUF path), or --matrix-config with models"),
    "quants": ("no quantization is given", "give --quant-tags Q8_0,Q4_K_M, or --matrix-config with quants"),
}


def load_spec(
    flags: Mapping[str, object],
    matrix_path: Path | None = None,
    *,
    available_cores: Collection[int] | None = None,
    cwd: Path | None = None,
    root: Path | None = None,
) -> SweepSpec:
    """Build the spec from explicit flags (see `explicit_flags`; keys as in matrix files) and an optional matrix file.

    `available_cores` are the ids of the logical cores that this process may use; `None` leaves threads and affinity unchecked.
    Relative input paths (the matrix file, `task_bank`, `script`) are looked for in `cwd` (default: the current folder), then in
    `root` (default: the checkout that this package runs from, if it is one). Raises `SpecError` with every problem.
    """
    root = root if root is not None else repository_root()
    bases = [cwd if cwd is not None else Path(), *([root] if root is not None else [])]
    from_flags = settings_of_flags(flags)
    try:
        from_file = _read_file(matrix_path, bases)
    except SpecError as error:
        # the unreadable file might have replaced the flags' placeholders, so only the other flags can be judged
        others = [item for key, items in from_flags.problems.items() if key not in _FILE_WINS for item in items]
        raise SpecError([*error.problems, *others]) from error
    draft = _merge(from_file, from_flags)
    check_draft(draft, available_cores)
    _resolve_inputs(draft, bases)
    if draft.problems:
        raise SpecError(draft.problems)
    return _assemble(draft.values)


def repository_root() -> Path | None:
    """Return the checkout that this package runs from, or `None` when it was installed without its benchmarks."""
    candidate = Path(__file__).resolve().parents[3]
    return candidate if (candidate / "benchmarks" / "configs").is_dir() else None


def _read_file(matrix_path: Path | None, bases: list[Path]) -> Settings:
    if matrix_path is None:
        return Settings()
    places = [base / matrix_path for base in bases]
    return settings_of_document(read_document(next((place for place in places if place.is_file()), places[0])))


def _merge(from_file: Settings, from_flags: Settings) -> Draft:
    """Lay flags over the file over the defaults."""
    ignored = _FILE_WINS & from_file.mentioned
    values, paths = dict(from_file.values), dict(from_file.paths)
    for key, value in from_flags.values.items():
        if key not in ignored:
            values[key], paths[key] = value, from_flags.paths[key]
    problems = [item for items in from_file.problems.values() for item in items]
    problems += [item for key, items in from_flags.problems.items() if key not in ignored for item in items]
    broken = {key for key in from_file.problems if key not in from_flags.values or key in ignored}
    broken |= set(from_flags.problems) - ignored
    draft = Draft({**_default_values(), **values}, paths, broken, problems)
    for key, (message, hint) in _REQUIRED.items():
        if key not in from_file.mentioned | from_flags.mentioned:
            draft.problems.append(Problem(key, message, hint))
            draft.broken.add(key)
    if draft.values["summary_out"] is None:
        draft.values["summary_out"] = (PurePath(draft.values["out_dir"]) / SUMMARY_NAME).as_posix()
    return draft


@cache
def _spec_of_defaults() -> SweepSpec:
    return SweepSpec(models=(), quants=(), task_bank=DEFAULT_TASK_BANK, out_dir=DEFAULT_OUT_DIR, summary_out="")


def _default_values() -> dict[str, Any]:
    values = {item.key: reduce(getattr, item.target.split("."), _spec_of_defaults()) for item in PARAMETERS}
    return {**values, "summary_out": None}


def find_input(path: str, bases: list[Path]) -> str | None:
    """Return `path` as written when it exists in the first base, its place in a later one, or `None` when it is in none."""
    for index, base in enumerate(bases):
        if (base / path).exists():
            return path if index == 0 else str(base / path)
    return None


def _resolve_inputs(draft: Draft, bases: list[Path]) -> None:
    for key, what in (("task_bank", "task bank"), ("script", "script"), ("evaluation_text", "evaluation text")):
        written = draft.values[key]
        if not draft.usable(key) or written is None or (key == "task_bank" and _is_bank_name(written)):
            continue
        if key == "evaluation_text" and written in NAMED_TEXTS:
            continue
        found = find_input(written, bases)
        if found is None:
            looked = " and in ".join(dict.fromkeys(str(base.resolve()) for base in bases))
            draft.refuse(key, f"no such {what} file: {written}", f"looked in {looked}")
        else:
            draft.values[key] = found


def _is_bank_name(text: str) -> bool:
    """Whether a task bank is named (an opt-in bank that a package brings), not a file."""
    return "/" not in text and not PurePath(text).suffix


def _assemble(values: dict[str, Any]) -> SweepSpec:
    parts: dict[str, dict[str, Any]] = {name: {} for name in _SECTIONS}
    top: dict[str, Any] = {}
    for parameter in PARAMETERS:
        section, _, name = parameter.target.rpartition(".")
        (parts[section] if section else top)[name] = values[parameter.key]
    return SweepSpec(**top, **{name: record(**parts[name]) for name, record in _SECTIONS.items()})
