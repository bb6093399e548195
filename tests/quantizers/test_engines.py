from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fewbits.core.engines import LLAMA_CPP, EngineTool, cache_root, find_tool, find_tools
from fewbits.core.errors import PrerequisiteError
from fewbits.core.files import sha256_file

MakeProgram = Callable[[str, str], Path]


SAYS_VERSION = "print('version: 4589 (abcdef12)\\nbuilt with GNU')"
SAYS_NOTHING = "raise SystemExit(1)"


def found_tool(name: str, variables: dict[str, str]) -> EngineTool:
    tool = find_tool(name, variables)
    assert tool is not None
    return tool


def test_cache_root_follows_the_variables(tmp_path: Path) -> None:
    assert cache_root({"FEWBITS_CACHE": str(tmp_path)}) == tmp_path
    assert cache_root({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "fewbits"
    assert cache_root({}) == Path.home() / ".cache" / "fewbits"


def test_order_is_named_folder_own_build_path_wheel(make_program: MakeProgram, tmp_path: Path) -> None:
    here = make_program("llama-server", SAYS_VERSION).parent
    cached = tmp_path / "cache" / "engines"
    for version, text in (("9.9", "old"), ("10.0", "new")):
        (cached / f"llama.cpp-{version}" / "bin").mkdir(parents=True)
        program = cached / f"llama.cpp-{version}" / "bin" / "llama-server"
        program.write_text(f"#!/bin/sh\necho version: {text}\n")
        program.chmod(0o755)
    cache = {"FEWBITS_CACHE": str(tmp_path / "cache")}
    named = found_tool("llama-server", {"FEWBITS_LLAMACPP_DIR": str(here), "PATH": "", **cache})
    built = found_tool("llama-server", {"PATH": str(here), **cache})
    on_path = found_tool("llama-server", {"PATH": str(here), "FEWBITS_CACHE": str(tmp_path / "none")})
    assert named == on_path
    assert (named.kind, named.path, named.version) == ("binary", here / "llama-server", "4589 (abcdef12)")
    assert named.sha256 == sha256_file(here / "llama-server")
    assert built.version == "new", "10.0 is newer than 9.9"


def test_a_program_that_does_not_tell_takes_its_neighbour_s_version(make_program: MakeProgram) -> None:
    folder = make_program("llama-quantize", SAYS_NOTHING).parent
    variables = {"FEWBITS_LLAMACPP_DIR": str(folder), "PATH": "", "FEWBITS_CACHE": str(folder / "none")}
    assert found_tool("llama-quantize", variables).version == ""
    make_program("llama-server", SAYS_VERSION)
    assert found_tool("llama-quantize", variables).version == "4589 (abcdef12)"


def test_a_build_tree_may_be_named_by_its_root(tmp_path: Path) -> None:
    program = tmp_path / "tree" / "build" / "bin" / "llama-bench"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert found_tool("llama-bench", {"FEWBITS_LLAMACPP_DIR": str(tmp_path / "tree"), "PATH": ""}).path == program


def test_a_named_folder_without_tools_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match="holds none of llama-server"):
        find_tools({"FEWBITS_LLAMACPP_DIR": str(tmp_path), "PATH": ""})


def test_without_programs_only_wheels_are_left(tmp_path: Path) -> None:
    pytest.importorskip("cyllama")
    found = find_tools({"PATH": "", "FEWBITS_CACHE": str(tmp_path)})
    assert tuple(found) == LLAMA_CPP.tools
    assert found["llama-bench"] is None
    tool = found["llama-quantize"]
    assert tool is not None
    assert tool.kind == "wheel"
    assert tool.version.startswith("cyllama ")
    assert tool.path.name.startswith("llama_cpp")
