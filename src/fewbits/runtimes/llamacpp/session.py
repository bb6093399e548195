"""One variant, loaded in a llama.cpp child process of our own."""

from __future__ import annotations

import re
from typing import Any

from fewbits.core.errors import BackendError, IdentityError, ProtocolError
from fewbits.records.base import Unavailable
from fewbits.records.plan import EffectiveControls
from fewbits.records.runtime import GenerateRequest
from fewbits.records.trial import RawReply
from fewbits.records.variant import Artifact, ServedIdentity
from fewbits.runtimes import chat_completions
from fewbits.runtimes.http_stream import ConnectionBrokenError, Endpoint, StreamRules, ask_json, exchange, parse_json
from fewbits.runtimes.llamacpp.child import LaunchOptions, LlamaChild
from fewbits.runtimes.llamacpp.identity import prove
from fewbits.runtimes.placement import process_cores

_CONTROL_TIMEOUT_SECONDS = 10.0
_RULES = StreamRules(carries_output=chat_completions.carries_output, end_marker=chat_completions.END_MARKER)
_THREADS = re.compile(r"\bn_threads\s*[=:]\s*(\d+)")


class LlamaCppSession:
    """A loaded variant. The child dies with us; closing ends and reaps it."""

    def __init__(self, child: LlamaChild, artifact: Artifact, options: LaunchOptions, engine_version: str) -> None:
        self._child = child
        self._artifact = artifact
        self._options = options
        self._engine_version = engine_version
        # read once: the log grows with every request
        self._threads = threads_from_log(child.log_text())

    @property
    def init_latency_seconds(self) -> float | None:
        """Seconds from spawning the child to its first healthy answer."""
        return self._child.load_seconds

    @property
    def engine(self) -> str:
        """`llama-server` (a program of the user's or built by fewbits) or `xllamacpp` (the prebuilt wheel)."""
        return self._child.name

    @property
    def engine_version(self) -> str:
        """What the engine says of itself, with the start of the sha256 of its program or library."""
        return self._engine_version

    @property
    def endpoint(self) -> Endpoint:
        """Where the child listens (loopback): any OpenAI client can talk to it while the session lives."""
        return self._child.endpoint

    def identity(self) -> ServedIdentity:
        """Prove that the child maps the artifact's file. Raises `IdentityError`."""
        report = dict(self._ask("/props"))
        models = self._ask("/v1/models").get("data")
        first = models[0] if isinstance(models, list) and models and isinstance(models[0], dict) else {}
        if first.get("id") != self._options.alias:
            # another program may have taken the port in the moment before our child bound it
            msg = f"port {self._child.endpoint.port} is answered by {first.get('id')!r}, not by our {self._options.alias!r}"
            raise IdentityError(msg)
        meta = first.get("meta")
        if isinstance(meta, dict):
            report["n_params"] = meta.get("n_params")
        return prove(self._child.pid, self._options.model, self._artifact, self._options.alias, report)

    def verify_reply(self, reply: RawReply) -> None:
        """Check that the reply came from our own, living child under its alias. Raises `IdentityError`."""
        if reply.served_name != self._options.alias:
            msg = f"{self.engine} answered as {reply.served_name!r}, but was started as {self._options.alias!r}"
            raise IdentityError(msg)

    def effective_controls(self) -> EffectiveControls:
        """Read back: cores from the OS, threads from the engine's log, the rest from `/props` and `/slots`.

        Seed, temperature and token limit are those of the latest request, so they are `None` before the first one.
        """
        context = self._ask("/props").get("default_generation_settings", {}).get("n_ctx")
        params = self._latest_parameters()
        values: dict[str, Any] = {
            "seed": _whole(params.get("seed")),
            "threads": self._threads,
            "affinity": process_cores(self._child.pid),
            "context_size": _whole(context),
            "temperature": _number(params.get("temperature")),
            "max_tokens": _whole(params.get("max_tokens", params.get("n_predict"))),
        }
        reasons = {name: str(Unavailable.NOT_REPORTED) for name, value in values.items() if value is None}
        if values["affinity"] is None:
            reasons["affinity"] = str(Unavailable.NOT_SUPPORTED)
        return EffectiveControls(**values, unavailable=reasons)

    def process_ids(self) -> tuple[int, ...]:
        """The child that holds the weights; empty once it has ended."""
        return (self._child.pid,) if self._child.is_alive() else ()

    def generate(self, request: GenerateRequest, timeout_seconds: float) -> RawReply:
        """Ask once. Raises `TrialTimeoutError`, `BackendError` (with the engine's last log lines), `ProtocolError`."""
        body = chat_completions.request_body(request, _llama_fields(request, self._options.alias))
        try:
            reply = exchange(
                self._child.endpoint,
                "POST",
                "/v1/chat/completions",
                tool=self.engine,
                timeout_seconds=timeout_seconds,
                body=body,
                rules=_RULES,
            )
        except ConnectionBrokenError as error:
            if not self._child.ends_soon():
                raise
            raise self._child.died(f"the engine died while answering ({error})") from error
        return chat_completions.read_reply(reply, self.engine)

    def is_alive(self) -> bool:
        """Whether the child still runs."""
        return self._child.is_alive()

    def close(self) -> None:
        """End and reap the child."""
        self._child.close()

    def _ask(self, path: str) -> dict[str, Any]:
        if not self._child.is_alive():
            raise self._child.died("the engine is not running")
        return ask_json(self._child.endpoint, "GET", path, tool=self.engine, timeout_seconds=_CONTROL_TIMEOUT_SECONDS)

    def _latest_parameters(self) -> dict[str, Any]:
        """The sampling parameters of the only slot's latest request; empty before the first, or where builds hide them."""
        try:
            reply = exchange(self._child.endpoint, "GET", "/slots", tool=self.engine, timeout_seconds=_CONTROL_TIMEOUT_SECONDS)
            slots = parse_json(reply.body, self.engine, "the answer to GET /slots")
        except (BackendError, ProtocolError):
            return {}
        first = slots[0] if isinstance(slots, list) and slots and isinstance(slots[0], dict) else {}
        params = first.get("params")
        return params if isinstance(params, dict) else {}


def threads_from_log(text: str) -> int | None:
    """The compute threads that the engine says it uses (`n_threads = 2`); `None` when its log does not tell."""
    found = _THREADS.search(text)
    return int(found.group(1)) if found else None


def _llama_fields(request: GenerateRequest, alias: str) -> dict[str, Any]:
    """llama.cpp's own request fields: no prompt cache, and the shortest sampler chain that does what was asked.

    Greedy keeps one candidate (`top_k` 1) instead of normalising the whole vocabulary for every token.
    """
    greedy = request.temperature == 0
    chain: dict[str, Any] = {"samplers": ["top_k"], "top_k": 1} if greedy else {"samplers": ["temperature"]}
    return {"model": alias, "cache_prompt": False, **chain}


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _number(value: object) -> float | None:
    # the engine keeps 32-bit floats: 0.7 comes back as 0.699999988
    return round(float(value), 6) if isinstance(value, int | float) and not isinstance(value, bool) else None
