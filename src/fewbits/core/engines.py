"""Find an external tool set: which programs of it this machine has, from where, in which version, with which digest.

A tool is either a program file (`binary`) or a compiled Python package that does the same work in process (`wheel`).
The order is fixed and never silently skipped: a folder named by the user, tool sets that fewbits built itself, `PATH`,
and last a prebuilt wheel.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fewbits.core.errors import PrerequisiteError
from fewbits.core.files import sha256_file
from fewbits.core.process import run_command

CACHE_VARIABLE = "FEWBITS_CACHE"
_VERSION_TIMEOUT_SECONDS = 20.0
_VERSION_LINE = re.compile(r"^version:\s*(\S.*?)\s*$", re.MULTILINE)
# where a build tree or an unpacked release keeps its programs, below the folder that a user would name
_PROGRAM_FOLDERS = ("", "bin", "build/bin")


@dataclass(frozen=True, slots=True)
class EngineTool:
    """One tool as found: `path` is the program (kind `binary`) or the compiled module (kind `wheel`).

    `version` is what the tool says of itself, empty when it does not tell; `sha256` (64 hex digits) identifies it anyway.
    """

    name: str
    kind: str
    path: Path
    version: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Wheel:
    """An installed package that can stand in for a program: its import name, and its compiled module (a glob inside it)."""

    package: str
    module: str


@dataclass(frozen=True, slots=True)
class ToolSet:
    """What to look for: program names, the variable that names a folder, and wheels that can stand in for a program."""

    name: str
    folder_variable: str
    tools: tuple[str, ...]
    wheels: Mapping[str, Wheel] = field(default_factory=dict)
    """Program name -> the package that does the same work in process."""


CYLLAMA = Wheel("cyllama", "llama/llama_cpp*.so")
"""llama.cpp's library for Python: quantizes in process, and shows all logits."""

LLAMA_CPP = ToolSet(
    name="llama.cpp",
    folder_variable="FEWBITS_LLAMACPP_DIR",
    tools=("llama-server", "llama-quantize", "llama-perplexity", "llama-imatrix", "llama-bench"),
    wheels={
        "llama-server": Wheel("xllamacpp", "xllamacpp*.so"),
        "llama-quantize": CYLLAMA,
    },
)


def cache_root(environ: Mapping[str, str] | None = None) -> Path:
    """Return fewbits' cache folder: `FEWBITS_CACHE`, else `$XDG_CACHE_HOME/fewbits`, else `~/.cache/fewbits` (not created)."""
    variables = os.environ if environ is None else environ
    if named := variables.get(CACHE_VARIABLE):
        return Path(named).expanduser().absolute()
    base = variables.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache").absolute() / "fewbits"


def engines_folder(environ: Mapping[str, str] | None = None) -> Path:
    """Return the folder that holds tool sets built by fewbits, one sub-folder `<name>-<version>` each (not created)."""
    return cache_root(environ) / "engines"


def find_tools(environ: Mapping[str, str] | None = None, toolset: ToolSet = LLAMA_CPP) -> dict[str, EngineTool | None]:
    """Find every tool of a set; `None` where this machine has none.

    Raises `PrerequisiteError` when the user named a folder that holds not one of the tools.
    """
    return {name: find_tool(name, environ, toolset) for name in toolset.tools}


def find_tool(name: str, environ: Mapping[str, str] | None = None, toolset: ToolSet = LLAMA_CPP) -> EngineTool | None:
    """Find one tool of a set: named folder, own builds (newest first), `PATH`, wheel. `None` when there is none.

    Raises `PrerequisiteError` when the user named a folder that holds not one of the set's tools.
    """
    variables = os.environ if environ is None else environ
    for folder in (*_named_folders(variables, toolset), *_built_folders(variables, toolset)):
        if program := _program(folder, name):
            return _binary_tool(name, program)
    if found := shutil.which(name, path=variables.get("PATH", "")):
        return _binary_tool(name, Path(found).absolute())
    wheel = toolset.wheels.get(name)
    return find_wheel(name, wheel) if wheel else None


def _named_folders(variables: Mapping[str, str], toolset: ToolSet) -> tuple[Path, ...]:
    named = variables.get(toolset.folder_variable)
    if not named:
        return ()
    folders = tuple(Path(named).expanduser().absolute() / sub for sub in _PROGRAM_FOLDERS)
    if not any(_program(folder, name) for folder in folders for name in toolset.tools):
        raise PrerequisiteError(
            f"{toolset.folder_variable}={named} holds none of {', '.join(toolset.tools)}",
            f"Point it at the folder with {toolset.name}'s programs (for a source tree: its build folder), or unset it.",
        )
    return folders


def _built_folders(variables: Mapping[str, str], toolset: ToolSet) -> Iterator[Path]:
    def numbers(path: Path) -> tuple[int, ...]:
        return tuple(int(part) for part in re.findall(r"\d+", path.name))

    for folder in sorted(engines_folder(variables).glob(f"{toolset.name}-*"), key=numbers, reverse=True):
        yield folder / "bin"


def _program(folder: Path, name: str) -> Path | None:
    candidate = folder / name
    return candidate if candidate.is_file() and os.access(candidate, os.X_OK) else None


def _binary_tool(name: str, path: Path) -> EngineTool:
    return EngineTool(name=name, kind="binary", path=path, version=_binary_version(path), sha256=sha256_file(path))


def _binary_version(path: Path) -> str:
    """Ask a program for its version; one that does not tell gets the version of a program beside it."""
    for candidate in (path, *(path.parent / tool for tool in ("llama-server", "llama-perplexity", "llama-bench"))):
        if not os.access(candidate, os.X_OK):
            continue
        try:
            result = run_command([candidate, "--version"], timeout_seconds=_VERSION_TIMEOUT_SECONDS)
        except OSError:
            continue
        if match := _VERSION_LINE.search(f"{result.stderr}\n{result.stdout}"):
            return match.group(1)
    return ""


def find_wheel(name: str, wheel: Wheel) -> EngineTool | None:
    """Look at an installed package without importing it: its version, and the digest of its compiled module.

    `name` is what the tool will be called. `None` where the package is not installed, or holds no such module.
    """
    spec = importlib.util.find_spec(wheel.package)
    if spec is None or not spec.submodule_search_locations:
        return None
    modules = sorted(path for root in spec.submodule_search_locations for path in Path(root).glob(wheel.module))
    if not modules:
        return None
    version = f"{wheel.package} {importlib.metadata.version(wheel.package)}"
    return EngineTool(name=name, kind="wheel", path=modules[0], version=version, sha256=sha256_file(modules[0]))
