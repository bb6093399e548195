"""Which runtimes there are and what each can really report. Importing this imports no backend."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from fewbits.core.errors import Problem, SpecError
from fewbits.records.runtime import RuntimeCapabilities
from fewbits.runtimes.base import DivergenceMeter, Runtime
from fewbits.runtimes.capabilities import CAPABILITIES

if TYPE_CHECKING:
    from fewbits.runtimes.extraction.runtime import ExtractionOptions
    from fewbits.runtimes.onnx.runtime import DetectorOptions


def capabilities_of(name: str) -> RuntimeCapabilities:
    """Look a runtime's row up. Raises `SpecError` with the nearest known name."""
    row = CAPABILITIES.get(name)
    if row is None:
        near = difflib.get_close_matches(name.lower(), CAPABILITIES, n=1, cutoff=0.4)
        known = ", ".join(sorted(CAPABILITIES))
        hint = f"did you mean {near[0]}? known: {known}" if near else f"known: {known}"
        raise SpecError.single("--runtime", f"unknown runtime {name!r}", hint)
    return row


def create_runtime(
    name: str,
    *,
    base_url: str | None = None,
    script: str | Path | None = None,
    detector: DetectorOptions | None = None,
    extraction: ExtractionOptions | None = None,
) -> Runtime:
    """Create a runtime; its engine or server is looked for when it is first used.

    `base_url` belongs to `openai` (required) and `ollama` (default: its own), `script` to `scripted` (required), `detector` to
    `onnx` and `extraction` to `extraction` (both required).
    Raises `SpecError` for an unknown name, and for options that are missing or would do nothing.
    """
    capabilities_of(name)
    _check_options(name, base_url, script)
    if name == "onnx":
        from fewbits.runtimes.onnx.runtime import OnnxRuntime

        if detector is None:
            raise SpecError.single("--runtime", "the onnx runtime runs detectors on labelled images, not text tasks")
        return OnnxRuntime(detector)
    if name == "extraction":
        from fewbits.runtimes.extraction.runtime import ExtractionRuntime

        if extraction is None:
            raise SpecError.single("--runtime", "the extraction runtime reads pages, it answers no text tasks")
        return ExtractionRuntime(extraction)
    if name == "llamacpp":
        from fewbits.runtimes.llamacpp.runtime import LlamaCppRuntime

        return LlamaCppRuntime()
    if name == "openai":
        from fewbits.runtimes.openai.runtime import OpenAIRuntime

        return OpenAIRuntime(base_url or "", api_key=os.environ.get("FEWBITS_API_KEY"))
    if name == "ollama":
        from fewbits.runtimes.ollama.runtime import OllamaRuntime

        return OllamaRuntime(base_url or default_ollama_url(os.environ.get("OLLAMA_HOST")))
    from fewbits.runtimes.scripted.runtime import ScriptedRuntime

    return ScriptedRuntime(Path(script or ""))


def create_divergence_meter(name: str, *, base_url: str | None = None) -> DivergenceMeter | None:
    """Create what measures divergence for a runtime; `None` where the runtime shows no probabilities at all.

    Its engine or server is looked for when it is first used. Raises `SpecError` like `create_runtime`.
    """
    if not capabilities_of(name).log_probabilities:
        return None
    if name == "llamacpp":
        from fewbits.runtimes.llamacpp.divergence import LlamaCppMeter

        return LlamaCppMeter()
    from fewbits.runtimes.server_divergence import ServerMeter

    return ServerMeter(create_runtime(name, base_url=base_url))


def default_ollama_url(host: str | None) -> str:
    """Where Ollama's own client would look: `OLLAMA_HOST` (with or without scheme and port), else port 11434 on loopback.

    An address that only makes sense for listening (0.0.0.0) becomes loopback.
    """
    text = (host or "").strip() or "127.0.0.1"
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "http", text
    name, colon, port = rest.rstrip("/").rpartition(":")
    if not colon or not port.isdecimal():
        name, port = rest.rstrip("/"), "11434"
    return f"{scheme}://{'127.0.0.1' if name in {'0.0.0.0', '', '[::]'} else name}:{port}"  # noqa: S104 - not listening


def _check_options(name: str, base_url: str | None, script: str | Path | None) -> None:
    problems = []
    if base_url is not None and name not in {"openai", "ollama"}:
        problems.append(Problem("--base-url", f"the {name} runtime talks to no server of yours", "leave it out"))
    if base_url is None and name == "openai":
        problems.append(Problem("--base-url", "the openai runtime needs a server", "for example http://127.0.0.1:8080/v1"))
    if script is not None and name != "scripted":
        problems.append(Problem("--script", f"the {name} runtime replays nothing", "use --runtime scripted"))
    if script is None and name == "scripted":
        problems.append(Problem("--script", "the scripted runtime needs the file that holds its replies"))
    if problems:
        raise SpecError(problems)
