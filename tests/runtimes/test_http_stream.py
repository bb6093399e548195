from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.core.errors import BackendError, ProtocolError, SpecError, TrialTimeoutError
from fewbits.runtimes.http_stream import (
    ConnectionBrokenError,
    Endpoint,
    ServerUnreachableError,
    StreamRules,
    _FirstOutput,
    ask_json,
    exchange,
    parse_base_url,
)

Serve = Callable[[Callable[[str, str, dict[str, Any]], Any]], Any]


def post(server: Any, timeout_seconds: float = 5, **rules: Any) -> Any:
    endpoint = parse_base_url(server.url)
    return exchange(endpoint, "POST", "/x", tool="t", timeout_seconds=timeout_seconds, body=b"{}", rules=StreamRules(**rules))


class TestBaseUrl:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("http://127.0.0.1:8080/v1", Endpoint("http", "127.0.0.1", 8080, "/v1")),
            ("http://127.0.0.1:8080/v1/", Endpoint("http", "127.0.0.1", 8080, "/v1")),
            (" https://models.example/a/b ", Endpoint("https", "models.example", 443, "/a/b")),
            ("http://[::1]:9", Endpoint("http", "::1", 9, "")),
        ],
    )
    def test_good(self, text: str, expected: Endpoint) -> None:
        assert parse_base_url(text) == expected
        assert parse_base_url(expected.url) == expected

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "127.0.0.1:8080",
            "ftp://h/",
            "file:///etc/passwd",
            "http://",
            "http://h:99999",
            "http://h:0",
            "http://h/?x=1",
            "http://h/#f",
            "http://h/a b",
            "http://h\r\nX: y/",
            "http://h/\u00e9",
        ],
    )
    def test_bad(self, text: str) -> None:
        with pytest.raises(SpecError, match="--base-url"):
            parse_base_url(text)

    def test_a_password_is_refused_and_not_repeated(self) -> None:
        with pytest.raises(SpecError) as caught:
            parse_base_url("http://me:hunter2@h/v1")
        assert "hunter2" not in str(caught.value)

    @given(st.text(max_size=40))
    def test_never_anything_but_an_endpoint_or_a_spec_error(self, text: str) -> None:
        try:
            endpoint = parse_base_url(text)
        except SpecError:
            return
        assert endpoint.scheme in {"http", "https"}
        assert not set(endpoint.host + endpoint.prefix) & set("\r\n @?#")


@given(st.lists(st.sampled_from([b"", b"no", b"yes", b"yes!", b"data: yes"]), max_size=6), st.data())
def test_first_output_does_not_depend_on_where_the_pieces_end(lines: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(line + b"\n" for line in lines)
    watch = _FirstOutput(lambda line: b"yes" in line)
    seen_after: int | None = None
    position = 0
    while position < len(stream) and seen_after is None:
        step = data.draw(st.integers(1, len(stream) - position))
        position += step
        if watch.sees(stream[position - step : position]):
            seen_after = position
    first = next((i for i, line in enumerate(lines) if b"yes" in line), None)
    assert (seen_after is None) == (first is None)
    if first is not None and seen_after is not None:
        assert seen_after >= len(b"".join(line + b"\n" for line in lines[: first + 1]))


def test_clock_readings_bracket_the_stream(serve: Serve, wire: Any) -> None:
    pieces = [b": comment\n", b"out\n", b"more\n", b"end\n"]
    server = serve(lambda *_: wire.chunked("text/event-stream", pieces))
    reply = post(server, carries_output=lambda line: line == b"out")
    assert reply.body == b"".join(pieces)
    assert reply.first_output_seconds >= 2 * wire.piece_seconds * 0.9
    # two more pieces follow the first output
    assert reply.wall_seconds - reply.first_output_seconds >= 2 * wire.piece_seconds * 0.9


def test_a_stream_that_stays_open_ends_at_its_marker(serve: Serve, wire: Any) -> None:
    def route(*_: Any) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\ndata: [DO"
        yield b"NE]\n\n"
        time.sleep(2)
        yield b"late"

    started = time.monotonic()
    reply = post(serve(route), end_marker=b"data: [DONE]")
    assert time.monotonic() - started < 1.5
    assert reply.body.endswith(b"data: [DONE]\n\n")


def test_a_drip_inside_the_chunk_header_hits_the_deadline(serve: Serve) -> None:
    def route(*_: Any) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        while True:
            time.sleep(0.02)
            yield b"0"

    started = time.monotonic()
    with pytest.raises((TrialTimeoutError, ProtocolError)):
        post(serve(route), timeout_seconds=0.3)
    assert time.monotonic() - started < 1.5


def test_a_drip_inside_the_status_line_hits_the_deadline(serve: Serve) -> None:
    def route(*_: Any) -> Iterator[bytes]:
        while True:
            time.sleep(0.02)
            yield b"H"

    with pytest.raises(TrialTimeoutError):
        post(serve(route), timeout_seconds=0.3)


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (b"", ConnectionBrokenError),
        (b"SSH-2.0-OpenSSH\r\n", ProtocolError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", ConnectionBrokenError),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc", ConnectionBrokenError),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", (ProtocolError, ConnectionBrokenError)),
        (b"HTTP/1.1 302 Found\r\nLocation: http://elsewhere/\r\nContent-Length: 0\r\n\r\n", BackendError),
    ],
)
def test_broken_replies(serve: Serve, sent: bytes, error: Any) -> None:
    with pytest.raises(error):
        post(serve(lambda *_: [sent]))


def test_nobody_there(serve: Serve) -> None:
    server = serve(lambda *_: [])
    server.close()
    with pytest.raises(ServerUnreachableError, match="no server at"):
        post(server)


def test_the_limit_counts_bytes(serve: Serve, wire: Any) -> None:
    server = serve(lambda *_: [wire.whole("text/plain", b"x" * 1000)])
    assert len(post(server, max_reply_bytes=1000).body) == 1000
    with pytest.raises(ProtocolError, match="longer than 999 bytes"):
        post(server, max_reply_bytes=999)


def test_a_refusal_never_repeats_the_key(serve: Serve, wire: Any) -> None:
    server = serve(lambda *_: wire.as_json({"error": "wrong key sk-very-secret"}, "401 Unauthorized"))
    headers = {"Authorization": "Bearer sk-very-secret"}
    with pytest.raises(BackendError, match=r"HTTP 401[\s\S]*wrong key \*\*\*") as caught:
        ask_json(parse_base_url(server.url), "GET", "/m", tool="t", timeout_seconds=5, headers=headers)
    assert "sk-very-secret" not in str(caught.value)
    assert "Authorization: Bearer sk-very-secret\r\n" in server.heads[0]


def test_a_key_cannot_smuggle_a_header(serve: Serve) -> None:
    headers = {"Authorization": "Bearer a\r\nX-Evil: 1"}
    with pytest.raises(SpecError, match="FEWBITS_API_KEY"):
        ask_json(Endpoint("http", "127.0.0.1", 1), "GET", "/m", tool="t", timeout_seconds=1, headers=headers)


def test_ask_json_wants_an_object(serve: Serve, wire: Any) -> None:
    endpoint = parse_base_url(serve(lambda *_: wire.as_json([1])).url)
    with pytest.raises(ProtocolError, match="not a JSON object"):
        ask_json(endpoint, "GET", "/m", tool="t", timeout_seconds=5)
