"""The `ollama` runtime: models that a local or remote Ollama server holds, identified by its own digest.

Ollama reuses the longest common prompt prefix between requests, cannot be told not to, and does not say how much it reused:
its prompt times are therefore those of a warm cache wherever prompts share a beginning.

Source: Ollama's API documentation (docs/api.md: chat, generate, tags, ps, version; durations in nanoseconds) and api/types.go
(`logprobs`, `top_logprobs`: at most 20).
"""

from __future__ import annotations

import time
from typing import Any

from fewbits.core.errors import FewbitsError, IdentityError, PrerequisiteError
from fewbits.records.base import Unavailable
from fewbits.records.plan import Controls, EffectiveControls
from fewbits.records.runtime import GenerateRequest, RuntimeCapabilities
from fewbits.records.trial import RawReply
from fewbits.records.variant import Artifact, ServedIdentity, Variant
from fewbits.runtimes.capabilities import CAPABILITIES
from fewbits.runtimes.http_stream import Endpoint, ServerUnreachableError, StreamRules, ask_json, exchange, parse_base_url
from fewbits.runtimes.ollama import protocol
from fewbits.runtimes.ollama.catalogue import Model, find_model, list_models

TOOL = "ollama"
_CONTROL_TIMEOUT_SECONDS = 10.0
_ALIVE_TIMEOUT_SECONDS = 2.0
_RULES = StreamRules(carries_output=protocol.carries_output)


class OllamaRuntime:
    """Opens models that an Ollama server has pulled; each scheme is its own tag there."""

    def __init__(self, base_url: str) -> None:
        self._endpoint = parse_base_url(base_url)

    @property
    def capabilities(self) -> RuntimeCapabilities:
        """What Ollama really reports."""
        return CAPABILITIES["ollama"]

    def open(self, variant: Variant, controls: Controls, load_timeout_seconds: float) -> OllamaSession:
        """Load the model on the server. Raises `PrerequisiteError` (no server, not pulled), `BackendError`, `IdentityError`."""
        artifact = variant.artifact
        model = self._find(artifact.model_id, artifact.scheme)
        version = ask_json(self._endpoint, "GET", "/api/version", tool=TOOL, timeout_seconds=_CONTROL_TIMEOUT_SECONDS)
        session = OllamaSession(self._endpoint, artifact, model, controls, str(version.get("version") or ""))
        session.load(load_timeout_seconds)
        return session

    def artifact_for(self, model_id: str, scheme: str) -> Artifact:
        """Describe the pulled model: its digest is the identity, sizes are `None`, what is reported lies in `parameters`."""
        model = self._find(model_id, scheme)
        reported = {"reported_name": model.name, "reported_bytes": model.size, "reported_size": model.details.parameter_size}
        return Artifact(
            model_id=model_id,
            scheme=scheme,
            sha256=None,
            bytes=None,
            weights=None,
            bits_per_weight=None,
            built=False,
            tool=TOOL,
            architecture=model.details.family,
            parameters={name: value for name, value in reported.items() if value is not None},
            server_digest=model.digest,
        )

    def _find(self, model_id: str, scheme: str) -> Model:
        try:
            models = list_models(self._endpoint, TOOL, _CONTROL_TIMEOUT_SECONDS)
        except ServerUnreachableError as error:
            remedy = "Start it with `ollama serve`, or name its address with --base-url."
            raise PrerequisiteError(f"no Ollama server at {self._endpoint.url}", remedy) from error
        return find_model(models, model_id, scheme)


class OllamaSession:
    """One loaded model on an Ollama server. Closing leaves it to the server's own keep-alive."""

    def __init__(self, endpoint: Endpoint, artifact: Artifact, model: Model, controls: Controls, version: str) -> None:
        self._endpoint = endpoint
        self._artifact = artifact
        self._model = model
        self._controls = controls
        self._version = version
        self._init_latency: float | None = None

    @property
    def init_latency_seconds(self) -> float | None:
        """Seconds that the load request took; `None` when the server had the model loaded already."""
        return self._init_latency

    @property
    def engine(self) -> str:
        """Always `ollama`."""
        return TOOL

    @property
    def engine_version(self) -> str:
        """What `/api/version` reports; empty when it does not."""
        return self._version

    def load(self, timeout_seconds: float) -> None:
        """Load the model by an empty chat under the same options as later requests, so that it is not loaded again."""
        resident = protocol.find_running(self._running(), self._model) is not None
        body = protocol.load_body(self._model.name, self._controls)
        started = time.perf_counter()
        ask_json(self._endpoint, "POST", "/api/chat", tool=TOOL, timeout_seconds=timeout_seconds, body=body)
        elapsed = time.perf_counter() - started
        self._init_latency = None if resident else elapsed

    def identity(self) -> ServedIdentity:
        """Compare digest and quantization of what the server lists and has loaded. Raises `IdentityError`."""
        listed = list_models(self._endpoint, TOOL, _CONTROL_TIMEOUT_SECONDS)
        model = next((entry for entry in listed if entry.name == self._model.name), None)
        expected = self._artifact.server_digest or self._model.digest
        if model is None or model.digest != expected:
            found = "nothing" if model is None else f"digest {model.digest}"
            msg = f"Ollama now has {found} under {self._model.name!r}, not digest {expected}"
            raise IdentityError(msg)
        level = model.details.quantization_level
        if level is None or level.upper() != self._artifact.scheme.upper():
            msg = f"Ollama reports {model.name!r} as {level or 'of unknown quantization'}, not {self._artifact.scheme}"
            raise IdentityError(msg)
        running = protocol.find_running(self._running(), self._model)
        if running is not None and running.digest is not None and running.digest != expected:
            msg = f"Ollama has digest {running.digest} loaded as {self._model.name!r}, not {expected}"
            raise IdentityError(msg)
        loaded = "loaded under that name" if running is not None else "not in the list of running models"
        return ServedIdentity(
            served_name=model.name,
            proof="server_digest" if model.digest is not None else "reported_name",
            quantization=level,
            server_digest=model.digest,
            detail=loaded,
        )

    def verify_reply(self, reply: RawReply) -> None:
        """Check the name in a reply. Raises `IdentityError`."""
        self._require_name(reply.served_name)

    def effective_controls(self) -> EffectiveControls:
        """Only the context size can be read back, from `/api/ps` of servers new enough to report it."""
        running = protocol.find_running(self._running(), self._model)
        context = running.context_length if running is not None else None
        reasons = dict.fromkeys(("seed", "temperature", "max_tokens", "threads"), str(Unavailable.NOT_REPORTED))
        reasons["affinity"] = str(Unavailable.REMOTE_PROCESS)
        if context is None:
            reasons["context_size"] = str(Unavailable.NOT_REPORTED)
        return EffectiveControls(context_size=context, unavailable=reasons)

    def process_ids(self) -> tuple[int, ...]:
        """Empty: Ollama's runner process is not ours to read."""
        return ()

    def generate(self, request: GenerateRequest, timeout_seconds: float) -> RawReply:
        """Ask once. Raises `TrialTimeoutError`, `BackendError`, `ProtocolError`."""
        reply = exchange(
            self._endpoint,
            "POST",
            "/api/chat",
            tool=TOOL,
            timeout_seconds=timeout_seconds,
            body=protocol.chat_body(self._model.name, self._controls, request),
            rules=_RULES,
        )
        return protocol.read_reply(reply, TOOL)

    def top_log_probabilities(self, prefix: str, count: int, timeout_seconds: float) -> dict[str, float] | None:
        """Ask for one token through `/api/generate`. Raises `BackendError`, `ProtocolError`, `IdentityError`."""
        body = protocol.position_body(self._model.name, self._controls, prefix, count)
        answer = ask_json(self._endpoint, "POST", "/api/generate", tool=TOOL, timeout_seconds=timeout_seconds, body=body)
        generated = protocol.parse_generated(answer, TOOL)
        self._require_name(generated.model)
        return generated.logprobs[0].by_token() if generated.logprobs else None

    def is_alive(self) -> bool:
        """Whether the server answers within two seconds."""
        try:
            ask_json(self._endpoint, "GET", "/api/version", tool=TOOL, timeout_seconds=_ALIVE_TIMEOUT_SECONDS)
        except FewbitsError:
            return False
        return True

    def close(self) -> None:
        """Nothing to release: the server unloads the model by itself."""

    def _require_name(self, name: str | None) -> None:
        if name != self._model.name:
            msg = f"Ollama answered as {name!r}, but {self._model.name!r} was asked"
            raise IdentityError(msg)

    def _running(self) -> dict[str, Any]:
        return ask_json(self._endpoint, "GET", "/api/ps", tool=TOOL, timeout_seconds=_CONTROL_TIMEOUT_SECONDS)
