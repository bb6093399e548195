"""The OpenAI chat-completions route: building a request, and normalising a streamed or single reply.

llama-server, vLLM, LM Studio and others speak it; llama.cpp's `timings` object is read where present. Nothing is derived:
a count or a time that the server did not send stays `None`.

Source: the OpenAI API reference ("Create chat completion", streaming) and llama.cpp's tools/server/README.md (`timings`).
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from fewbits.core.errors import BackendError, ProtocolError
from fewbits.records.runtime import GenerateRequest
from fewbits.records.trial import RawReply
from fewbits.runtimes.http_stream import StreamedReply

T = TypeVar("T")

END_MARKER = b"data: [DONE]"
_PREFIX = b"data:"

Count = Annotated[int, Meta(ge=0)]
Milliseconds = Annotated[float, Meta(ge=0)]


class _Message(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    delta: _Message | None = None
    message: _Message | None = None
    finish_reason: str | None = None
    index: int = 0


class _PromptDetails(msgspec.Struct):
    cached_tokens: Count | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    prompt_tokens_details: _PromptDetails | None = None


class _Timings(msgspec.Struct):
    prompt_n: Count | None = None
    prompt_ms: Milliseconds | None = None
    predicted_n: Count | None = None
    predicted_ms: Milliseconds | None = None
    cache_n: Count | None = None


class _Chunk(msgspec.Struct):
    model: str | None = None
    choices: tuple[_Choice, ...] = ()
    usage: dict[str, Any] | None = None
    timings: dict[str, Any] | None = None
    error: Any = None


_CHUNK = msgspec.json.Decoder(_Chunk)


def request_body(request: GenerateRequest, extra: dict[str, Any]) -> bytes:
    """Encode a streamed chat request; `extra` holds the fields that only some servers know."""
    messages = [{"role": "user", "content": request.prompt}]
    if request.system:
        messages.insert(0, {"role": "system", "content": request.system})
    body: dict[str, Any] = {
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": request.temperature,
        "seed": request.seed,
        "max_tokens": request.max_tokens,
    }
    if request.json_schema is not None:
        schema = {"name": "answer", "schema": request.json_schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return msgspec.json.encode(body | extra)


def carries_output(line: bytes) -> bool:
    """Whether a line of the event stream holds generated text (thinking included, role announcements not)."""
    if not line.startswith(_PREFIX):
        return False
    try:
        chunk = _CHUNK.decode(line[len(_PREFIX) :])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return any(_generated(choice.delta) for choice in chunk.choices)


def _generated(message: _Message | None) -> bool:
    return message is not None and bool(message.content or message.reasoning_content or message.reasoning)


def read_reply(reply: StreamedReply, tool: str) -> RawReply:
    """Normalise a reply, streamed or in one piece.

    Raises `BackendError` when the server reports an error or the stream stops before its end, `ProtocolError` when what it
    sent is not this protocol.
    """
    if reply.content_type == "application/json":
        chunks, complete, streamed = [_decode(reply.body, tool)], True, False
    else:
        chunks, complete = _events(reply.body, tool)
        streamed = True
    _refuse_errors(chunks, tool)
    choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == 0]
    finish = next((choice.finish_reason for choice in reversed(choices) if choice.finish_reason is not None), None)
    if not choices:
        msg = f"{tool}: the reply holds no choice: {reply.body[:120]!r}"
        raise ProtocolError(msg)
    if not complete and finish is None:
        raise BackendError(tool, "the stream ended before the answer did")
    messages = [choice.delta or choice.message for choice in choices]
    text = "".join(message.content or "" for message in messages if message is not None)
    return _assemble(chunks, reply, tool, text=text, finish=finish, streamed=streamed)


def _events(body: bytes, tool: str) -> tuple[list[_Chunk], bool]:
    """Return the decoded events, and whether the stream said that it was done."""
    chunks: list[_Chunk] = []
    for raw in body.splitlines():
        line = raw.strip()
        if not line or line.startswith((b":", b"event:", b"id:", b"retry:")):
            continue
        # older llama-server builds announce a failure as `error: {...}`
        field, separator, payload = line.partition(b":")
        if not separator or field not in {b"data", b"error"}:
            msg = f"{tool}: not an event stream: {line[:120]!r}"
            raise ProtocolError(msg)
        if payload.strip() == b"[DONE]":
            return chunks, True
        if field == b"error":
            raise BackendError(tool, "failed while answering", tail=payload.decode("utf-8", "replace")[-2000:])
        chunks.append(_decode(payload, tool))
    return chunks, False


def _decode(data: bytes, tool: str) -> _Chunk:
    try:
        return _CHUNK.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        msg = f"{tool}: not a chat completion ({error}): {data[:120]!r}"
        raise ProtocolError(msg) from error


def _refuse_errors(chunks: list[_Chunk], tool: str) -> None:
    for chunk in chunks:
        if chunk.error is not None:
            raise BackendError(tool, "failed while answering", tail=msgspec.json.encode(chunk.error).decode()[-2000:])


def _assemble(
    chunks: list[_Chunk], reply: StreamedReply, tool: str, *, text: str, finish: str | None, streamed: bool
) -> RawReply:
    names = {chunk.model for chunk in chunks if chunk.model}
    if len(names) > 1:
        msg = f"{tool}: one reply names several models: {', '.join(sorted(names))}"
        raise ProtocolError(msg)
    raw_usage = next((chunk.usage for chunk in reversed(chunks) if chunk.usage is not None), None)
    raw_timings = next((chunk.timings for chunk in reversed(chunks) if chunk.timings is not None), None)
    usage = _convert(raw_usage, _Usage, tool, "usage")
    timings = _convert(raw_timings, _Timings, tool, "timings")
    details = usage.prompt_tokens_details
    return RawReply(
        text=text,
        finish_reason=finish,
        served_name=next(iter(names), None),
        streamed=streamed,
        wall_seconds=reply.wall_seconds,
        first_output_seconds=reply.first_output_seconds if streamed else None,
        prompt_tokens=_first(usage.prompt_tokens, _evaluated_and_cached(timings)),
        output_tokens=_first(usage.completion_tokens, timings.predicted_n),
        cached_prompt_tokens=_first(timings.cache_n, details.cached_tokens if details is not None else None),
        prompt_ms=timings.prompt_ms,
        predicted_ms=timings.predicted_ms,
        decode_steps=None if timings.predicted_n is None else max(0, timings.predicted_n - 1),
        raw_usage=raw_usage,
        raw_timings=raw_timings,
    )


def _convert(value: dict[str, Any] | None, kind: type[T], tool: str, what: str) -> T:
    try:
        return msgspec.convert(value or {}, kind)
    except msgspec.ValidationError as error:
        msg = f"{tool}: `{what}` in the reply is not what the protocol says: {error}"
        raise ProtocolError(msg) from error


def _evaluated_and_cached(timings: _Timings) -> int | None:
    """The prompt's length by llama.cpp's own count: tokens evaluated plus tokens taken from the cache."""
    if timings.prompt_n is None or timings.cache_n is None:
        return None
    return timings.prompt_n + timings.cache_n


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)
