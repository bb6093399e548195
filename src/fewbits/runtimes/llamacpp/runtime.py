"""The `llamacpp` runtime: every variant in a child process of its own, on loopback, one slot, no prompt cache."""

from __future__ import annotations

from collections.abc import Mapping

from fewbits.core.engines import EngineTool, find_tool
from fewbits.core.errors import PrerequisiteError, SpecError
from fewbits.records.plan import Controls
from fewbits.records.runtime import RuntimeCapabilities
from fewbits.records.variant import Variant
from fewbits.runtimes.capabilities import CAPABILITIES
from fewbits.runtimes.llamacpp.child import LaunchOptions, LlamaChild
from fewbits.runtimes.llamacpp.session import LlamaCppSession
from fewbits.runtimes.placement import resolve_cores, resolve_threads

_SHORT_DIGEST = 12


class LlamaCppRuntime:
    """Opens variants with the user's `llama-server`, else with the one inside the `xllamacpp` wheel."""

    def __init__(self, *, environ: Mapping[str, str] | None = None, tool: EngineTool | None = None) -> None:
        self._environ = environ
        self._tool = tool

    @property
    def capabilities(self) -> RuntimeCapabilities:
        """What llama.cpp's server really reports."""
        return CAPABILITIES["llamacpp"]

    def engine_tool(self) -> EngineTool:
        """The engine that will be used. Raises `PrerequisiteError` when this machine has none."""
        if self._tool is None:
            self._tool = find_tool("llama-server", self._environ)
        if self._tool is None:
            raise PrerequisiteError(
                "no llama.cpp server on this machine",
                "Install the prebuilt one with `pip install 'fewbits[llamacpp]'`, or name your own build's folder in "
                "FEWBITS_LLAMACPP_DIR.",
            )
        return self._tool

    def open(self, variant: Variant, controls: Controls, load_timeout_seconds: float) -> LlamaCppSession:
        """Start a child with this variant. Raises `SpecError` (no file, bad affinity), `PrerequisiteError`, `BackendError`."""
        artifact = variant.artifact
        if variant.path is None or not variant.path.is_file():
            where = f"{artifact.model_id} {artifact.scheme}"
            raise SpecError.single(where, f"there is no GGUF file at {variant.path}", "the llamacpp runtime runs files")
        threads = resolve_threads(controls.threads)
        options = LaunchOptions(
            model=variant.path.absolute(),
            alias=f"fewbits-{(artifact.sha256 or 'unhashed')[:_SHORT_DIGEST]}",
            threads=threads,
            context_size=controls.context_size,
            batch_size=controls.batch_size,
            cores=resolve_cores(controls.affinity_policy, threads),
        )
        tool = self.engine_tool()
        child = LlamaChild(tool, options, load_timeout_seconds)
        version = f"{tool.version} (sha256 {tool.sha256[:_SHORT_DIGEST]})".lstrip()
        return LlamaCppSession(child, artifact, options, version)
