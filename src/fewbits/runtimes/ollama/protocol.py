"""Ollama's `/api/chat` and `/api/generate`: building requests, and normalising the answers. Durations arrive in nanoseconds."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from fewbits.core.errors import BackendError, ProtocolError
from fewbits.records.plan import Controls
from fewbits.records.runtime import GenerateRequest
from fewbits.records.trial import RawReply
from fewbits.runtimes.http_stream import StreamedReply
from fewbits.runtimes.log_probabilities import ReportedPosition
from fewbits.runtimes.ollama.catalogue import Model, parse_listing

_NANOSECONDS_PER_MS = 1e6
# longer than a pause between trials, so that a model is not unloaded inside a block; the server's own clock ends it
_KEEP_ALIVE = "10m"
_USAGE_FIELDS = ("prompt_eval_count", "eval_count")
_TIMING_FIELDS = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")
# Ollama's default penalties and cut-offs, switched off: plain sampling from the model
_PLAIN_SAMPLING = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0}

Count = Annotated[int, Meta(ge=0)]


class _Message(msgspec.Struct):
    content: str | None = None
    thinking: str | None = None


class _Line(msgspec.Struct):
    model: str | None = None
    message: _Message | None = None
    done: bool = False
    done_reason: str | None = None
    error: Any = None
    prompt_eval_count: Count | None = None
    eval_count: Count | None = None
    prompt_eval_duration: Count | None = None
    eval_duration: Count | None = None
    total_duration: Count | None = None
    load_duration: Count | None = None


_LINE = msgspec.json.Decoder(_Line)


def options_of(controls: Controls) -> dict[str, Any]:
    """The options that decide how the runner is loaded; the same in every request, or it would be loaded again."""
    options: dict[str, Any] = {"num_ctx": controls.context_size, "num_batch": controls.batch_size}
    if controls.threads is not None:
        options["num_thread"] = controls.threads
    return options


def load_body(name: str, controls: Controls) -> dict[str, Any]:
    """The empty chat that makes the server load a model and nothing else."""
    return {"model": name, "messages": [], "stream": False, "keep_alive": _KEEP_ALIVE, "options": options_of(controls)}


def chat_body(name: str, controls: Controls, request: GenerateRequest) -> bytes:
    """Encode a streamed chat, sampled plainly."""
    messages = [{"role": "user", "content": request.prompt}]
    if request.system:
        messages.insert(0, {"role": "system", "content": request.system})
    sampling = {"seed": request.seed, "temperature": request.temperature, "num_predict": request.max_tokens}
    body: dict[str, Any] = {
        "model": name,
        "messages": messages,
        "stream": True,
        "keep_alive": _KEEP_ALIVE,
        "options": options_of(controls) | sampling | _PLAIN_SAMPLING,
    }
    if request.json_schema is not None:
        body["format"] = request.json_schema
    return msgspec.json.encode(body)


class Generated(msgspec.Struct):
    """The part of a `/api/generate` answer that is read. Servers older than 0.12.11 send no `logprobs`."""

    model: str | None = None
    logprobs: tuple[ReportedPosition, ...] | None = None


def position_body(name: str, controls: Controls, prefix: str, count: int) -> dict[str, Any]:
    """The request for one greedy token after `prefix`, without a template, with its `count` most likely alternatives."""
    sampling = {"seed": controls.seed, "temperature": 0, "num_predict": 1}
    return {
        "model": name,
        "prompt": prefix,
        "raw": True,
        "stream": False,
        "logprobs": True,
        "top_logprobs": count,
        "keep_alive": _KEEP_ALIVE,
        "options": options_of(controls) | sampling | _PLAIN_SAMPLING,
    }


def parse_generated(answer: dict[str, Any], tool: str) -> Generated:
    """Read an answer of `/api/generate`. Raises `ProtocolError` when it is not what the protocol says."""
    try:
        return msgspec.convert(answer, Generated)
    except msgspec.ValidationError as error:
        msg = f"{tool}: the answer to POST /api/generate is not what the protocol says: {error}"
        raise ProtocolError(msg) from error


def carries_output(line: bytes) -> bool:
    """Whether a line holds generated text (thinking included) and is not the closing line of a reply in one piece."""
    if not line.strip():
        return False
    try:
        value = _LINE.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return not value.done and value.message is not None and bool(value.message.content or value.message.thinking)


def read_reply(reply: StreamedReply, tool: str) -> RawReply:
    """Normalise a chat reply. Raises `BackendError` (reported error, stream cut off), `ProtocolError` (not this protocol)."""
    lines = [_decode(raw, tool) for raw in reply.body.splitlines() if raw.strip()]
    for line in lines:
        if line.error is not None:
            raise BackendError(tool, "failed while answering", tail=str(line.error)[-2000:])
    if not lines or (len(lines) == 1 and lines[0].message is None):
        msg = f"{tool}: the reply holds no message: {reply.body[:120]!r}"
        raise ProtocolError(msg)
    final = lines[-1]
    if not final.done:
        raise BackendError(tool, "the stream ended before the answer did")
    names = {line.model for line in lines if line.model}
    if len(names) > 1:
        msg = f"{tool}: one reply names several models: {', '.join(sorted(names))}"
        raise ProtocolError(msg)
    streamed = len(lines) > 1
    return RawReply(
        text="".join(line.message.content or "" for line in lines if line.message is not None),
        finish_reason=final.done_reason,
        served_name=next(iter(names), None),
        streamed=streamed,
        wall_seconds=reply.wall_seconds,
        first_output_seconds=reply.first_output_seconds if streamed else None,
        prompt_tokens=final.prompt_eval_count,
        output_tokens=final.eval_count,
        prompt_ms=_milliseconds(final.prompt_eval_duration),
        predicted_ms=_milliseconds(final.eval_duration),
        raw_usage=_present(final, _USAGE_FIELDS),
        raw_timings=_present(final, _TIMING_FIELDS),
    )


def find_running(answer: dict[str, Any], model: Model) -> Model | None:
    """The entry of `/api/ps` for this model; `None` when it is not loaded."""
    return next((entry for entry in parse_listing(answer, "ollama", "/api/ps") if entry.name == model.name), None)


def _decode(raw: bytes, tool: str) -> _Line:
    try:
        return _LINE.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        msg = f"{tool}: not a chat reply ({error}): {raw[:120]!r}"
        raise ProtocolError(msg) from error


def _milliseconds(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / _NANOSECONDS_PER_MS


def _present(line: _Line, fields: tuple[str, ...]) -> dict[str, Any] | None:
    """The fields that the server sent, under its own names; `None` when it sent none of them."""
    values = {name: getattr(line, name) for name in fields}
    return {name: value for name, value in values.items() if value is not None} or None
