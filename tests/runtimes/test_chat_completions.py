from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.core.errors import BackendError, FewbitsError, ProtocolError
from fewbits.records.runtime import GenerateRequest
from fewbits.runtimes.chat_completions import carries_output, read_reply, request_body
from fewbits.runtimes.http_stream import StreamedReply


def streamed(*events: object, done: bool = True) -> StreamedReply:
    rows = [b"data: " + json.dumps(value).encode() for value in events] + ([b"data: [DONE]"] if done else [])
    return StreamedReply("text/event-stream", b"\n\n".join(rows) + b"\n\n", 1.0, 0.5)


def delta(content: Any = None, finish: Any = None, **more: Any) -> dict[str, Any]:
    return {"model": "m", "choices": [{"index": 0, "delta": {"content": content, **more}, "finish_reason": finish}]}


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=5))
def test_the_text_is_the_pieces_joined(words: list[str]) -> None:
    reply = read_reply(streamed(delta(), *map(delta, words), delta(finish="stop")), "t")
    assert reply.text == "".join(words)
    assert reply.served_name == "m"


@given(st.binary(max_size=200))
def test_any_bytes_give_a_reply_or_a_drawn_error(body: bytes) -> None:
    carries_output(body)
    for kind in ("text/event-stream", "application/json"):
        try:
            read_reply(StreamedReply(kind, body, 1.0, None), "t")
        except FewbitsError:
            continue
        pytest.fail("random bytes were taken for an answer")


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (delta("x"), True),
        (delta(""), False),
        (delta(None, role="assistant"), False),
        (delta(None, reasoning_content="hm"), True),
        ({"choices": [], "usage": {}}, False),
        ({"content": "x"}, False),
        (delta(None, tool_calls=[{"function": {"arguments": '"content": "x"'}}]), False),
    ],
)
def test_only_generated_text_is_output(event: object, expected: bool) -> None:
    assert carries_output(b"data: " + json.dumps(event).encode()) is expected


def test_one_piece_is_not_streamed_and_has_no_first_output() -> None:
    body = {"model": "m", "choices": [{"message": {"content": "5"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 3}}
    reply = read_reply(StreamedReply("application/json", json.dumps(body).encode(), 1.0, 0.9), "t")
    assert (reply.text, reply.streamed, reply.first_output_seconds) == ("5", False, None)
    # one count came, the other did not
    assert (reply.prompt_tokens, reply.output_tokens) == (3, None)


@pytest.mark.parametrize(
    ("usage", "timings", "expected"),
    [
        (None, None, (None, None, None, None, None)),
        ({"prompt_tokens": 5, "completion_tokens": 2}, None, (5, 2, None, None, None)),
        ({"prompt_tokens": None, "completion_tokens": 0}, None, (None, 0, None, None, None)),
        (None, {"prompt_n": 4, "cache_n": 6, "predicted_n": 2, "prompt_ms": 1, "predicted_ms": 2.5}, (10, 2, 6, 1.0, 2.5)),
        (None, {"prompt_n": 4, "predicted_ms": 2.5}, (None, None, None, None, 2.5)),
        ({"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 0}}, {}, (9, None, 0, None, None)),
    ],
)
def test_partial_metadata_stays_partial(usage: Any, timings: Any, expected: tuple[Any, ...]) -> None:
    reply = read_reply(streamed(delta("5"), delta(finish="stop") | {"usage": usage, "timings": timings}), "t")
    got = (reply.prompt_tokens, reply.output_tokens, reply.cached_prompt_tokens, reply.prompt_ms, reply.predicted_ms)
    assert got == expected


@pytest.mark.parametrize(
    "usage", [{"prompt_tokens": "12"}, {"completion_tokens": -1}, {"completion_tokens": 1.5}, {"prompt_tokens": True}, [1]]
)
def test_counts_of_the_wrong_type_are_protocol_errors(usage: Any) -> None:
    with pytest.raises(ProtocolError):
        read_reply(streamed(delta("5", finish="stop") | {"usage": usage}), "t")


def test_an_error_inside_the_stream_is_told() -> None:
    with pytest.raises(BackendError, match="context overflow"):
        read_reply(streamed(delta("5"), {"error": {"message": "context overflow"}}), "t")
    with pytest.raises(BackendError, match="old style"):
        read_reply(StreamedReply("text/event-stream", b'error: {"message": "old style"}\n\n', 1.0, None), "t")


def test_a_stream_without_an_end_is_not_an_answer() -> None:
    with pytest.raises(BackendError, match="ended before"):
        read_reply(streamed(delta("half an ans"), done=False), "t")


def test_two_models_in_one_reply() -> None:
    with pytest.raises(ProtocolError, match="several models"):
        read_reply(streamed(delta("5"), delta(finish="stop") | {"model": "n"}), "t")


def test_comments_and_other_fields_of_the_event_stream_are_skipped() -> None:
    row = json.dumps(delta("5", finish="stop")).encode()
    body = b": ping\r\nevent: message\r\nid: 1\r\ndata:" + row + b"\r\n\r\ndata: [DONE]\r\n\r\n"
    assert read_reply(StreamedReply("text/event-stream", body, 1.0, 0.5), "t").text == "5"


def test_the_request_asks_for_what_was_planned() -> None:
    schema = {"type": "object"}
    request = GenerateRequest(prompt="p", system="s", seed=3, temperature=0.5, max_tokens=9, json_schema=schema)
    body = json.loads(request_body(request, {"model": "m"}))
    assert body["messages"] == [{"role": "system", "content": "s"}, {"role": "user", "content": "p"}]
    assert (body["seed"], body["temperature"], body["max_tokens"], body["model"]) == (3, 0.5, 9, "m")
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert body["response_format"]["json_schema"]["schema"] == schema
