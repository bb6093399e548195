"""Control profiles: the settings that hold a machine still, in a file of their own, below matrix file and flags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from fewbits.core.errors import Problem, SpecError
from fewbits.core.files import sha256_file
from fewbits.records.control_profile import ControlProfile
from fewbits.spec.named_files import SUFFIXES, Folder, find_named, is_name, read_named
from fewbits.spec.parameters import PARAMETERS
from fewbits.spec.sources import Settings, settings_of_document
from fewbits.spec.values import shown

PROFILE_KEY = "control_profile"
FOLDER = Folder("benchmarks/control_profiles", "control profile", "or give the path of a file")
_WORK = frozenset({"max_tokens", "context_size", "canary_task_id", "canary_quant_tag"})
"""They say what is asked, not how the machine is held still, so they stay with the matrix."""
SETTINGS = frozenset(
    parameter.key
    for parameter in PARAMETERS
    if parameter.target.startswith(("controls.", "canary.", "quality.")) and parameter.key not in _WORK
)
"""Keys that a profile may give."""
QUALITY_NAME = "quality_policy.name"
_QUALITY_LIMITS = tuple(
    parameter.key
    for parameter in PARAMETERS
    if parameter.target.startswith("quality.") and not parameter.target.startswith(("quality.name", "quality.rerun_"))
)


@dataclass(frozen=True, slots=True)
class LoadedProfile:
    """A profile with its settings as a source of its own, below file and flags."""

    profile: ControlProfile
    settings: Settings


def load_profile(text: str, bases: Sequence[Path], where: str) -> LoadedProfile:
    """Read the profile that a name or a path gives. Raises `SpecError` at `where`, or with every problem of the file."""
    path = _find(text, bases, where)
    document = read_named(path, "control profile")
    about = {key: document.pop(key) for key in ("name", "description") if key in document}
    name = about.get("name", path.stem)
    problems = [
        Problem(f"{path}: {key}", f"expected text, got {shown(value)}") for key, value in about.items() if _no_text(value)
    ]
    if not problems and not is_name(str(name)):
        problems.append(Problem(f"{path}: name", f"{shown(name)} is no usable name", "letters, digits, '.', '_' and '-'"))
    if not problems and not _is_path(text) and name != text:
        problems.append(Problem(f"{path}: name", f"says {shown(name)}, but it was asked for as {text!r}"))
    settings = settings_of_document(document, allowed=SETTINGS, where=f"{path}: ")
    if not document:
        problems.append(Problem(str(path), "sets nothing", "give seed, threads, affinity_policy, a canary setting, ..."))
    problems += [problem for of_key in settings.problems.values() for problem in of_key]
    if problems:
        raise SpecError(problems)
    described = str(about.get("description", ""))
    return LoadedProfile(
        ControlProfile(name=str(name), sha256=sha256_file(path), settings=dict(settings.values), description=described), settings
    )


def _no_text(value: object) -> bool:
    return not isinstance(value, str)


def _is_path(text: str) -> bool:
    return "/" in text or "\\" in text or PurePath(text).suffix.lower() in SUFFIXES


def _find(text: str, bases: Sequence[Path], where: str) -> Path:
    if not _is_path(text):
        return find_named(text, FOLDER, bases, where)
    places = [base / text for base in bases]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        looked = " and in ".join(dict.fromkeys(str(base.resolve()) for base in bases))
        raise SpecError.single(where, f"no such control profile file: {text}", f"looked in {looked}")
    return found


def overridden(profile: ControlProfile, *sources: Settings) -> tuple[str, ...]:
    """Return the profile's settings that a source above it gives another value, sorted."""
    above = {key: value for source in sources for key, value in source.values.items()}
    return tuple(sorted(key for key, value in profile.settings.items() if key in above and above[key] != value))


def quality_name_fits(profile: ControlProfile, defaults: Mapping[str, Any], *sources: Settings) -> bool:
    """Whether the profile's name for its quality policy is still true: no source above it gives a limit another value."""
    above = {key: value for source in sources for key, value in source.values.items()}
    meant = {**defaults, **profile.settings}
    return all(above.get(key, meant[key]) == meant[key] for key in _QUALITY_LIMITS)
