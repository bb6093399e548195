"""The `openai` runtime: any server that speaks the OpenAI chat-completions protocol and already holds the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fewbits.core.errors import FewbitsError, IdentityError, PrerequisiteError, ProtocolError
from fewbits.records.base import Unavailable
from fewbits.records.plan import Controls, EffectiveControls
from fewbits.records.runtime import GenerateRequest, RuntimeCapabilities
from fewbits.records.trial import RawReply
from fewbits.records.variant import Artifact, ServedIdentity, Variant
from fewbits.runtimes import chat_completions
from fewbits.runtimes.capabilities import CAPABILITIES
from fewbits.runtimes.http_stream import Endpoint, ServerUnreachableError, StreamRules, ask_json, exchange, parse_base_url
from fewbits.runtimes.openai import completions

TOOL = "openai"
_CONTROL_TIMEOUT_SECONDS = 10.0
_ALIVE_TIMEOUT_SECONDS = 2.0
_RULES = StreamRules(carries_output=chat_completions.carries_output, end_marker=chat_completions.END_MARKER)
_SIZE_LETTERS = {"small": "S", "medium": "M", "large": "L"}
# llama.cpp calls the plain scheme Q2_K "Q2_K - Medium"
_PLAIN_SCHEMES = {"Q2_K_M": "Q2_K"}


class OpenAIRuntime:
    """Opens models that a server holds. The key travels only in the Authorization header, never into a message."""

    def __init__(self, base_url: str, *, api_key: str | None = None) -> None:
        self._endpoint = parse_base_url(base_url)
        self._headers = {"Authorization": f"Bearer {api_key.strip()}"} if api_key and api_key.strip() else {}

    @property
    def capabilities(self) -> RuntimeCapabilities:
        """What every server of this protocol reports; llama.cpp's `timings` are used where they come."""
        return CAPABILITIES["openai"]

    def open(self, variant: Variant, controls: Controls, load_timeout_seconds: float) -> OpenAISession:
        """Find the model on the server. Raises `PrerequisiteError` (no server, no such model), `IdentityError`."""
        del controls  # a foreign server keeps its own threads and context; each request carries the sampling controls
        row = self._find(variant.artifact.model_id, load_timeout_seconds)
        return OpenAISession(self._endpoint, self._headers, variant.artifact, row)

    def artifact_for(self, model_id: str, scheme: str) -> Artifact:
        """Describe the server's model; sizes are `None` (no file), what the server reports lies in `parameters`."""
        row = self._find(model_id, _CONTROL_TIMEOUT_SECONDS)
        quantization = reported_quantization(row)
        require_scheme(model_id, scheme, quantization)
        meta = row["meta"] if isinstance(row.get("meta"), dict) else {}
        names = {"n_params": "reported_weights", "size": "reported_bytes", "n_ctx_train": "n_ctx_train", "n_embd": "n_embd"}
        names |= {"n_vocab": "n_vocab"}
        return Artifact(
            model_id=model_id,
            scheme=scheme,
            sha256=None,
            bytes=None,
            weights=None,
            bits_per_weight=None,
            built=False,
            tool=TOOL,
            tool_version=str(row.get("owned_by") or ""),
            parameters={ours: meta[theirs] for theirs, ours in names.items() if isinstance(meta.get(theirs), int)},
            server_digest=row["digest"] if isinstance(row.get("digest"), str) else None,
        )

    def _find(self, model_id: str, timeout_seconds: float) -> dict[str, Any]:
        """The server's row for this model id or alias. Raises `PrerequisiteError`, `BackendError`, `ProtocolError`."""
        try:
            rows = list_models(self._endpoint, self._headers, timeout_seconds)
        except ServerUnreachableError as error:
            raise PrerequisiteError(
                f"no server at {self._endpoint.url}",
                "Start it with `llama-server -m MODEL.gguf --port PORT` (or your own server), or correct --base-url.",
            ) from error
        row = next((row for row in rows if model_id in names_of(row)), None)
        if row is None:
            offered = ", ".join(str(row.get("id")) for row in rows[:10]) or "none"
            raise PrerequisiteError(
                f"the server at {self._endpoint.url} has no model {model_id!r}", f"It offers: {offered}. Name one of these."
            )
        return row


class OpenAISession:
    """One model on a foreign server. Closing leaves the server as it was."""

    def __init__(self, endpoint: Endpoint, headers: Mapping[str, str], artifact: Artifact, row: dict[str, Any]) -> None:
        self._endpoint = endpoint
        self._headers = headers
        self._artifact = artifact
        self._names = names_of(row)
        self._owner = str(row.get("owned_by") or "")

    @property
    def init_latency_seconds(self) -> float | None:
        """`None`: the server had the model before we came."""
        return None

    @property
    def engine(self) -> str:
        """`openai`, with what the server calls itself (`openai:llamacpp`) where it tells."""
        return f"{TOOL}:{self._owner}" if self._owner else TOOL

    @property
    def engine_version(self) -> str:
        """Empty: the protocol has no way to ask."""
        return ""

    def identity(self) -> ServedIdentity:
        """Check that the server lists the model, and its quantization where it reports one. Raises `IdentityError`."""
        row = self._row()
        quantization = reported_quantization(row)
        require_scheme(self._artifact.model_id, self._artifact.scheme, quantization)
        digest = row["digest"] if isinstance(row.get("digest"), str) else None
        if self._artifact.server_digest is not None and digest != self._artifact.server_digest:
            msg = f"{self._artifact.model_id} now has digest {digest}, not {self._artifact.server_digest}"
            raise IdentityError(msg)
        return ServedIdentity(
            served_name=str(row.get("id")),
            proof="server_digest" if digest is not None else "reported_name",
            quantization=quantization,
            server_digest=digest,
            detail="" if digest is not None else "the server shows nothing but the model's name",
        )

    def verify_reply(self, reply: RawReply) -> None:
        """Check the name in a reply. Raises `IdentityError` for another name, and for none: it would prove nothing."""
        self._require_name(reply.served_name)

    def effective_controls(self) -> EffectiveControls:
        """Only the context size can be read back, and only from servers that list it (`meta.n_ctx`, `max_model_len`)."""
        row = self._row()
        meta = row["meta"] if isinstance(row.get("meta"), dict) else {}
        context = next((v for v in (meta.get("n_ctx"), row.get("max_model_len")) if isinstance(v, int) and v > 0), None)
        reasons = dict.fromkeys(("seed", "temperature", "max_tokens"), str(Unavailable.NOT_REPORTED))
        reasons |= dict.fromkeys(("threads", "affinity"), str(Unavailable.REMOTE_PROCESS))
        if context is None:
            reasons["context_size"] = str(Unavailable.NOT_REPORTED)
        return EffectiveControls(context_size=context, unavailable=reasons)

    def process_ids(self) -> tuple[int, ...]:
        """Empty: the server's process is not ours to read."""
        return ()

    def generate(self, request: GenerateRequest, timeout_seconds: float) -> RawReply:
        """Ask once. Raises `TrialTimeoutError`, `BackendError`, `ProtocolError`."""
        extra: dict[str, Any] = {"model": self._artifact.model_id} | self._llama_fields()
        reply = exchange(
            self._endpoint,
            "POST",
            "/chat/completions",
            tool=TOOL,
            timeout_seconds=timeout_seconds,
            body=chat_completions.request_body(request, extra),
            headers=self._headers,
            rules=_RULES,
        )
        return chat_completions.read_reply(reply, TOOL)

    def top_log_probabilities(self, prefix: str, count: int, timeout_seconds: float) -> dict[str, float] | None:
        """Ask for one token on the completions route. Raises `BackendError`, `ProtocolError`, `IdentityError`."""
        answer = ask_json(
            self._endpoint,
            "POST",
            "/completions",
            tool=TOOL,
            timeout_seconds=timeout_seconds,
            body=completions.request_body(self._artifact.model_id, prefix, count, self._llama_fields()),
            headers=self._headers,
        )
        completion = completions.parse_completion(answer, TOOL)
        self._require_name(completion.model)
        return completion.first_position()

    def is_alive(self) -> bool:
        """Whether the server still lists models, within two seconds."""
        try:
            list_models(self._endpoint, self._headers, _ALIVE_TIMEOUT_SECONDS)
        except FewbitsError:
            return False
        return True

    def close(self) -> None:
        """Nothing to release: the server is not ours."""

    def _require_name(self, name: str | None) -> None:
        if name not in self._names:
            said = "names no model" if name is None else f"comes from {name!r}"
            msg = f"the reply of {self._endpoint.url} {said}, but {self._artifact.model_id!r} was asked"
            raise IdentityError(msg)

    def _llama_fields(self) -> dict[str, Any]:
        """Fields that only llama.cpp's server knows."""
        return {"cache_prompt": False} if self._owner == "llamacpp" else {}

    def _row(self) -> dict[str, Any]:
        rows = list_models(self._endpoint, self._headers, _CONTROL_TIMEOUT_SECONDS)
        row = next((row for row in rows if self._artifact.model_id in names_of(row)), None)
        if row is None:
            msg = f"{self._endpoint.url} no longer lists {self._artifact.model_id!r}"
            raise IdentityError(msg)
        return row


def list_models(endpoint: Endpoint, headers: Mapping[str, str], timeout_seconds: float) -> list[dict[str, Any]]:
    """Ask `GET /models`. Raises like `ask_json`, and `ProtocolError` when there is no list in the answer."""
    answer = ask_json(endpoint, "GET", "/models", tool=TOOL, timeout_seconds=timeout_seconds, headers=headers)
    rows = answer.get("data")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        msg = f"{TOOL}: {endpoint.url}/models sent no `data` list of models"
        raise ProtocolError(msg)
    return rows


def names_of(row: Mapping[str, Any]) -> frozenset[str]:
    """The id and the aliases that a server lists for one model."""
    aliases = row.get("aliases")
    names = [row.get("id"), *(aliases if isinstance(aliases, list) else [])]
    return frozenset(name for name in names if isinstance(name, str))


def reported_quantization(row: Mapping[str, Any]) -> str | None:
    """The quantization in llama.cpp's `meta.ftype`, as a scheme (`Q4_K - Medium` is `Q4_K_M`); `None` when not reported."""
    meta = row.get("meta")
    text = meta.get("ftype") if isinstance(meta, dict) else None
    if not isinstance(text, str) or not text or "unknown" in text or "guessed" in text:
        return None
    name, _, size = text.removeprefix("all ").partition(" - ")
    letter = _SIZE_LETTERS.get(size.strip().lower())
    scheme = f"{name}_{letter}" if letter else name
    return _PLAIN_SCHEMES.get(scheme, scheme).strip().upper()


def require_scheme(model_id: str, scheme: str, quantization: str | None) -> None:
    """Raise `IdentityError` when the server reports another quantization than the variant's."""
    if quantization is not None and quantization.upper() != scheme.upper():
        msg = f"the server holds {model_id} as {quantization}, not {scheme}"
        raise IdentityError(msg)
