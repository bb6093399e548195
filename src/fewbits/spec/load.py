"""Merge what a file and the flags say into one `SweepSpec`: who wins, what the defaults are, and every problem at once.

The file's `models` and `quants` replace the flags' (which are placeholders then); any other flag given explicitly beats the
file, the file beats the control profile that it (or a flag) names, and what nobody says has its default.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache, reduce
from pathlib import Path, PurePath
from typing import Any

import msgspec

from fewbits.core.errors import Problem, SpecError
from fewbits.records.detection import DetectionSettings
from fewbits.records.divergence import NAMED_TEXTS, DivergencePolicy
from fewbits.records.extraction import ExtractionSettings
from fewbits.records.plan import (
    BaselineRequest,
    CanaryPolicy,
    Controls,
    DecidePolicy,
    GuardPolicy,
    QualityPolicy,
    SelectionPolicy,
    SidecarRequest,
    SweepSpec,
    TaskSelection,
)
from fewbits.spec.control_profiles import PROFILE_KEY, QUALITY_NAME, LoadedProfile, load_profile, overridden, quality_name_fits
from fewbits.spec.crosscheck import Draft, check_draft
from fewbits.spec.ladders import expand_ladders
from fewbits.spec.matrix import read_document
from fewbits.spec.parameters import PARAMETERS
from fewbits.spec.sources import Settings, settings_of_document, settings_of_flags
from fewbits.spec.tags import DETECTOR_RUNTIME, EXTRACTION_RUNTIME
from fewbits.spec.thresholds import own_limits

DEFAULT_OUT_DIR = "benchmarks/results/quant_sweep"
DEFAULT_TASK_BANK = "benchmarks/task_bank/v2_realworld/tasks.json"
SUMMARY_NAME = "sweep_summary.json"

_OLLAMA_NAME = re.compile(r"(?:[A-Za-z0-9._-]+/)?[A-Za-z0-9._-]+:[A-Za-z0-9._-]+")
"""`[namespace/]name:tag`. No GGUF path and no packaged model has a colon."""
_FILE_WINS = frozenset({"models", "quants"})
_SECTIONS = {
    "controls": Controls,
    "selection": TaskSelection,
    "canary": CanaryPolicy,
    "quality": QualityPolicy,
    "policy": SelectionPolicy,
    "decide": DecidePolicy,
    "divergence": DivergencePolicy,
    "guard": GuardPolicy,
    "sidecar": SidecarRequest,
    "baselines": BaselineRequest,
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
    detection: DetectionSettings | None = None,
    extraction: ExtractionSettings | None = None,
) -> SweepSpec:
    """Build the spec from explicit flags (see `explicit_flags`; keys as in matrix files) and an optional matrix file.

    `available_cores` are the ids of the logical cores that this process may use; `None` leaves threads and affinity unchecked.
    Relative input paths (the matrix file, `task_bank`, `script`, a control profile) and the folders of named profiles and ladders
    are looked for in `cwd` (default: the current folder), then in `root` (default: the checkout that this package runs from, if
    it is one). `detection` makes it a sweep over detectors, `extraction` one over pipelines from pages to reports, each with its
    own runtime and tags. Raises `SpecError` with every problem.
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
    draft = _merge(_Sources(from_file, from_flags, *_read_profile(from_file, from_flags, bases)))
    draft.own_runtime = DETECTOR_RUNTIME if detection is not None else EXTRACTION_RUNTIME if extraction is not None else None
    _prefer_ollama(draft, bases)
    expand_ladders(draft, bases)
    check_draft(draft, available_cores)
    _resolve_inputs(draft, bases)
    if draft.problems:
        raise SpecError(draft.problems)
    return msgspec.structs.replace(_assemble(draft.values), detection=detection, extraction=extraction)


def repository_root() -> Path | None:
    """Return the checkout that this package runs from, or `None` when it was installed without its benchmarks."""
    candidate = Path(__file__).resolve().parents[3]
    return candidate if (candidate / "benchmarks" / "configs").is_dir() else None


def _read_file(matrix_path: Path | None, bases: list[Path]) -> Settings:
    if matrix_path is None:
        return Settings()
    places = [base / matrix_path for base in bases]
    return settings_of_document(read_document(next((place for place in places if place.is_file()), places[0])))


@dataclass(frozen=True, slots=True)
class _Sources:
    """Where settings come from. `profile` is `None` where none was asked for, or where it cannot be used (see `problems`)."""

    file: Settings
    flags: Settings
    profile: LoadedProfile | None
    problems: list[Problem]

    @property
    def in_order(self) -> tuple[Settings, ...]:
        """The sources, the weakest first; what the file replaces is taken from the flags."""
        ignored = _FILE_WINS & self.file.mentioned
        flags = Settings(
            values={key: value for key, value in self.flags.values.items() if key not in ignored},
            paths=self.flags.paths,
            mentioned=self.flags.mentioned - ignored,
            problems={key: found for key, found in self.flags.problems.items() if key not in ignored},
        )
        return (self.profile.settings if self.profile else Settings(), self.file, flags)


def _read_profile(from_file: Settings, from_flags: Settings, bases: list[Path]) -> tuple[LoadedProfile | None, list[Problem]]:
    source = from_flags if PROFILE_KEY in from_flags.values else from_file
    text = source.values.get(PROFILE_KEY)
    if text is None:
        return None, []
    try:
        return load_profile(text, bases, source.paths[PROFILE_KEY]), []
    except SpecError as error:
        return None, list(error.problems)


def _prefer_ollama(draft: Draft, bases: list[Path]) -> None:
    """Models named as Ollama names them (`qwen2.5-coder:7b`) are looked for there, unless somebody chose a runtime."""
    chosen = draft.own_runtime is not None or draft.given("runtime") or draft.given("base_url")
    if chosen or not draft.usable("models", "runtime"):
        return
    models = draft.values["models"]
    if models and all(_OLLAMA_NAME.fullmatch(name) and find_input(name, bases) is None for name in models):
        draft.values["runtime"] = "ollama"


def _merge(sources: _Sources) -> Draft:
    """Lay flags over the file over the control profile over the defaults."""
    values, paths = _default_values(), dict[str, str]()
    broken: set[str] = set()
    for source in sources.in_order:
        values |= source.values
        paths |= {key: source.paths[key] for key in source.values}
        broken = (broken - source.values.keys()) | set(source.problems)
    problems = [*sources.problems, *(item for source in sources.in_order for found in source.problems.values() for item in found)]
    draft = Draft(values, paths, broken, problems)
    for key, (message, hint) in _REQUIRED.items():
        if key not in sources.file.mentioned | sources.flags.mentioned:
            draft.problems.append(Problem(key, message, hint))
            draft.broken.add(key)
    if sources.profile is not None:
        _name_profile(draft, sources.profile, sources.in_order[1:])
    if draft.values["summary_out"] is None:
        draft.values["summary_out"] = (PurePath(draft.values["out_dir"]) / SUMMARY_NAME).as_posix()
    return draft


def _name_profile(draft: Draft, loaded: LoadedProfile, above: tuple[Settings, ...]) -> None:
    """Say in the plan which profile applied, and what of it did not; one that applies nowhere is refused."""
    profile, defaults = loaded.profile, _default_values()
    changed = overridden(profile, *above)
    if len(changed) == len(profile.settings):
        message = f"the profile {profile.name!r} does nothing: all its settings are given otherwise"
        draft.refuse(PROFILE_KEY, message, "leave them out, or the profile (--control-profile auto)")
    draft.values[PROFILE_KEY] = profile.reference(changed)
    named_above = any(QUALITY_NAME in source.mentioned for source in above)
    if not named_above and not quality_name_fits(profile, defaults, *above):
        draft.values[QUALITY_NAME] = defaults[QUALITY_NAME]
        draft.paths.pop(QUALITY_NAME, None)


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
    spec = SweepSpec(**top, **{name: record(**parts[name]) for name, record in _SECTIONS.items()})
    return msgspec.structs.replace(spec, model_policies=_model_policies(spec, own_limits(values)))


def _model_policies(spec: SweepSpec, limits: Mapping[str, Mapping[str, Any]]) -> dict[str, SelectionPolicy]:
    """Return the models whose limits are not the sweep's, in the order of the models."""
    own = {model: msgspec.structs.replace(spec.policy, **limits[model]) for model in spec.models if model in limits}
    return {model: policy for model, policy in own.items() if policy != spec.policy}
