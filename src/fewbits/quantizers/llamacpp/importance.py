"""Importance matrices: how much each input of a weight matrix matters on a text. Read with checks, or made by llama.cpp."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fewbits.core.engines import EngineTool, find_tool
from fewbits.core.errors import BackendError, PrerequisiteError, Problem, SpecError
from fewbits.core.process import run_command
from fewbits.quantizers.base import Progress
from fewbits.quantizers.llamacpp.gguf_file import GgufFile
from fewbits.quantizers.llamacpp.gguf_scan import MAGIC, GgufTensor, MalformedGgufError, scan_header
from fewbits.quantizers.llamacpp.grains import Importance, require_libgguf

IMATRIX_TOOL = "llama-imatrix"
CHUNKS, CHUNK_TOKENS = 20, 512
"""How much text is read unless the caller says otherwise (21 s for SmolLM2-135M on two cores)."""
_TIMEOUT_SECONDS = 6 * 3600.0
_SHOWN = 5


def read_imatrix(path: Path, file: GgufFile) -> dict[str, Importance]:
    """Read an importance matrix (llama.cpp's GGUF or older binary form) for a model: tensor name -> one value per input.

    Raises `SpecError` with every problem: missing, unreadable, not an importance matrix, made for another model (unknown
    tensors, other widths), values that are negative or not finite. `PrerequisiteError` where libgguf is missing.
    """
    where = f"importance matrix {path.name}"
    vectors = _load(path, where)
    tensors = {tensor.name: tensor for tensor in file.tensors}
    problems = [problem for name, vector in sorted(vectors.items()) if (problem := _problem(tensors.get(name), name, vector))]
    if problems:
        more = f"; and {len(problems) - _SHOWN} more such entries" if len(problems) > _SHOWN else ""
        hint = f"make it from this very model{more}"
        raise SpecError([Problem(where, problem, hint) for problem in problems[:_SHOWN]])
    return vectors


def _load(path: Path, where: str) -> dict[str, Importance]:
    require_libgguf()
    import libgguf

    try:
        with path.open("rb") as handle:
            is_gguf = handle.read(4) == MAGIC
        if is_gguf:
            # libgguf trusts the lengths inside
            scan_header(path)
        vectors: dict[str, Importance] = libgguf.load_imatrix(path)
    except OSError as error:
        raise SpecError.single(where, f"cannot be read: {error.strerror or error}", "check the path") from error
    except (ValueError, struct.error, MemoryError, OverflowError, MalformedGgufError) as error:
        raise SpecError.single(where, f"is no importance matrix: {error}", "make one with llama-imatrix") from error
    return vectors


def _problem(tensor: GgufTensor | None, name: str, vector: Importance) -> str:
    if tensor is None:
        return f"has values for {name!r}, a tensor that the model does not have"
    matrices = tensor.shape[2] if len(tensor.shape) > 2 else 1
    if len(vector) != tensor.shape[0] * matrices:
        return f"has {len(vector)} values for {name!r}, whose rows need {tensor.shape[0] * matrices}"
    if not np.isfinite(vector).all() or (vector < 0).any():
        return f"has values for {name!r} that are negative or not finite"
    return ""


def make_imatrix(
    model: Path,
    text: str,
    output: Path,
    progress: Progress,
    *,
    chunks: int = CHUNKS,
    chunk_tokens: int = CHUNK_TOKENS,
    threads: int = 1,
    environ: Mapping[str, str] | None = None,
) -> EngineTool:
    """Run the model over the beginning of a text and write its importance matrix to `output`; returns the tool that did it.

    `output` is the caller's to make content-addressed. Raises `PrerequisiteError` where llama-imatrix is missing,
    `BackendError` with its last lines; then `output` is not written.
    """
    tool = find_tool(IMATRIX_TOOL, environ)
    if tool is None:
        raise PrerequisiteError(
            f"{IMATRIX_TOOL}, which makes importance matrices, was not found",
            "Put it on PATH, set FEWBITS_LLAMACPP_DIR to your llama.cpp folder, or build it with `fewbits engine build`.",
        )
    progress(f"reading {chunks} chunks of {chunk_tokens} tokens with {tool.name} ({tool.version})")
    with tempfile.TemporaryDirectory(prefix=".imatrix-", dir=output.parent) as folder:
        prompt, made = Path(folder) / "text", Path(folder) / "imatrix.gguf"
        prompt.write_bytes(text.encode("utf-8"))
        words = (tool.path, "-m", model, "-f", prompt, "-o", made, "--chunks", str(chunks), "-c", str(chunk_tokens))
        result = run_command((*words, "-t", str(threads)), timeout_seconds=_TIMEOUT_SECONDS)
        if result.timed_out or not result.ok or not made.is_file():
            message = "did not end in time" if result.timed_out else "made no importance matrix"
            raise BackendError(tool.name, message, returncode=result.returncode, tail=result.tail)
        made.replace(output)
    return tool
