"""One HTTP exchange with a hard deadline, timed as close to the socket as Python allows.

Shared by the backends that talk to a server. Between the two clock reads nothing happens but sending, receiving and, until
the first output arrived, looking for it; the reply is parsed after the clock has stopped.
"""

from __future__ import annotations

import http.client
import io
import re
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from fewbits.core.errors import BackendError, ProtocolError, SpecError, TrialTimeoutError
from fewbits.core.process import tail_of

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAX_REPLY_BYTES = 64 * 1024 * 1024
_READ_BYTES = 64 * 1024
_ERROR_BODY_BYTES = 64 * 1024
_NANOSECONDS = 1e9
_HOST = re.compile(r"^[A-Za-z0-9._:-]+$")
_PATH = re.compile(r"^[A-Za-z0-9._~/%+-]*$")


class ConnectionBrokenError(BackendError):
    """The connection ended before the reply did: the server may be dying."""


class ServerUnreachableError(ConnectionBrokenError):
    """Nobody listens there (connection refused, unknown host): `open` turns it into a `PrerequisiteError`."""


class RefusedError(BackendError):
    """The server answered with a status other than 200."""

    def __init__(self, tool: str, status: int, reason: str, *, tail: str) -> None:
        self.status = status
        super().__init__(tool, f"answered HTTP {status} {reason}".rstrip(), tail=tail)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server listens: `http` or `https`, host, port and the path before every route (no trailing slash)."""

    scheme: str
    host: str
    port: int
    prefix: str = ""

    @property
    def url(self) -> str:
        """The base URL as people write it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.prefix}"

    def with_prefix(self, prefix: str) -> Endpoint:
        """The same server with another path before its routes."""
        return Endpoint(self.scheme, self.host, self.port, prefix)


def parse_base_url(text: str, where: str = "--base-url") -> Endpoint:
    """Read a base URL such as `http://127.0.0.1:8080/v1`. Raises `SpecError` naming `where`."""
    hint = "write it like http://127.0.0.1:8080/v1"
    try:
        parts = urlsplit(text.strip())
        port = parts.port
    except ValueError as error:
        raise SpecError.single(where, f"{text!r} is not a URL: {error}", hint) from error
    if parts.scheme not in {"http", "https"}:
        raise SpecError.single(where, f"{text!r} must start with http:// or https://", hint)
    if parts.username is not None or parts.password is not None:
        # the URL itself is not repeated: it holds a secret
        raise SpecError.single(where, "a base URL must not hold a user name or password", "put the key into FEWBITS_API_KEY")
    if parts.query or parts.fragment or not _PATH.match(parts.path):
        raise SpecError.single(where, f"{text!r} must end after its path", hint)
    if not parts.hostname or not _HOST.match(parts.hostname) or port == 0:
        raise SpecError.single(where, f"{text!r} names no usable host and port", hint)
    default_port = 443 if parts.scheme == "https" else 80
    return Endpoint(parts.scheme, parts.hostname, port if port is not None else default_port, parts.path.rstrip("/"))


@dataclass(frozen=True, slots=True)
class StreamedReply:
    """The body of a reply, unparsed, with the two wall-clock readings.

    `wall_seconds` runs from just before sending to the last byte; `first_output_seconds` to the first piece of the body
    that held output (`None` when there was none, or nobody was asked to look for it).
    """

    content_type: str
    body: bytes
    wall_seconds: float
    first_output_seconds: float | None


@dataclass(frozen=True, slots=True)
class StreamRules:
    """How a protocol's stream is watched while it arrives.

    `carries_output` is asked about each complete line until it first says yes: that moment is the first output.
    `end_marker` is the line that ends a stream, so that a server which keeps the connection open is not waited for.
    """

    carries_output: Callable[[bytes], bool] | None = None
    end_marker: bytes | None = None
    max_reply_bytes: int = MAX_REPLY_BYTES


class _DeadlineReader(io.RawIOBase):
    """A socket's bytes, every single receive bounded by what is left until one deadline.

    A plain socket timeout starts anew with each byte, so a server that drips would never hit it.
    """

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        super().__init__()
        self._sock = sock
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        self._sock.settimeout(remaining)
        return self._sock.recv_into(buffer)


class _ReaderSocket:
    """The part of a socket that `http.client.HTTPResponse` asks for."""

    def __init__(self, reader: _DeadlineReader) -> None:
        self._reader = reader

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self._reader, _READ_BYTES)


def _connect(endpoint: Endpoint, tool: str, deadline: float) -> socket.socket:
    """Open a connection without Nagle's delay. Proxies from the environment are ignored: they would be timed too."""
    remaining = max(deadline - time.monotonic(), 0.001)
    try:
        sock = socket.create_connection((endpoint.host, endpoint.port), timeout=remaining)
    except TimeoutError:
        raise
    except (OSError, UnicodeError) as error:  # UnicodeError: a host name that DNS cannot spell
        msg = f"no server at {endpoint.url}: {getattr(error, 'strerror', None) or error}"
        raise ServerUnreachableError(tool, msg) from error
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if endpoint.scheme == "https":
            sock = ssl.create_default_context().wrap_socket(sock, server_hostname=endpoint.host)
    except BaseException:
        sock.close()
        raise
    return sock


def _head(endpoint: Endpoint, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> bytes:
    host = endpoint.url.split("://", 1)[1].split("/", 1)[0]
    lines = [f"{method} {endpoint.prefix}{path} HTTP/1.1", f"Host: {host}", "Accept-Encoding: identity", "Connection: close"]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    if not all(value.isascii() and value.isprintable() for value in headers.values()):
        # a line break would smuggle in a header of its own; the value may be a secret, so it is not shown
        raise SpecError.single("FEWBITS_API_KEY", "holds characters that an HTTP header cannot carry")
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("ascii")


def exchange(
    endpoint: Endpoint,
    method: str,
    path: str,
    *,
    tool: str,
    timeout_seconds: float,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    rules: StreamRules = StreamRules(),
) -> StreamedReply:
    """Send one request over a fresh connection and read the whole reply.

    Raises `TrialTimeoutError` when `timeout_seconds` (connecting included) are over, `ServerUnreachableError` when nobody
    listens, `ConnectionBrokenError` when the reply was cut off, `RefusedError` on a status other than 200, `ProtocolError`
    on a reply that is not HTTP or is longer than the rules allow.
    """
    deadline = time.monotonic() + timeout_seconds
    # servers like to repeat a wrong key in their refusal
    hidden = (headers or {}).get("Authorization", "").removeprefix("Bearer ")
    request = _head(endpoint, method, path, body, headers or {}) + (body or b"")
    try:
        sock = _connect(endpoint, tool, deadline)
        try:
            return _timed(sock, request, deadline, tool=tool, rules=rules, hidden=hidden)
        finally:
            sock.close()
    except TimeoutError as error:
        msg = f"{tool}: no complete reply from {endpoint.url}{path} within {timeout_seconds:g} s"
        raise TrialTimeoutError(msg) from error
    except http.client.IncompleteRead as error:
        raise ConnectionBrokenError(tool, f"the reply from {endpoint.url}{path} was cut off") from error
    except http.client.RemoteDisconnected as error:
        raise ConnectionBrokenError(tool, f"{endpoint.url} closed the connection without a reply") from error
    except (http.client.HTTPException, ValueError) as error:
        msg = f"{tool}: what {endpoint.url}{path} sent is not HTTP ({type(error).__name__}: {error})"
        raise ProtocolError(msg) from error
    except OSError as error:
        raise ConnectionBrokenError(tool, f"the connection to {endpoint.url} broke: {error.strerror or error}") from error


def _timed(
    sock: socket.socket,
    request: bytes,
    deadline: float,
    *,
    tool: str,
    rules: StreamRules,
    hidden: str,
) -> StreamedReply:
    """Do the exchange on an open socket; everything between `started` and `ended` is on the clock."""
    clock = time.perf_counter_ns
    reader = _DeadlineReader(sock, deadline)
    response = http.client.HTTPResponse(_ReaderSocket(reader))  # type: ignore[arg-type]
    sock.settimeout(max(deadline - time.monotonic(), 0.001))
    watch = _FirstOutput(rules.carries_output) if rules.carries_output is not None else None
    marker = rules.end_marker
    pieces: list[bytes] = []
    size = 0
    tail = b""
    first: int | None = None
    ended: int
    started = clock()
    sock.sendall(request)
    response.begin()
    if response.status != http.client.OK:
        raise _refusal(response, tool, hidden)
    ended = clock()
    while piece := response.read1(_READ_BYTES):
        ended = clock()
        pieces.append(piece)
        size += len(piece)
        if size > rules.max_reply_bytes:
            msg = f"{tool}: the reply is longer than {rules.max_reply_bytes} bytes"
            raise ProtocolError(msg)
        if watch is not None and watch.sees(piece):
            first, watch = ended, None
        if marker is not None:
            tail = (tail + piece)[-len(marker) - 8 :]
            if tail.rstrip().endswith(marker):
                break
    else:
        if response.length:
            raise http.client.IncompleteRead(b"", response.length)
    content_type = response.headers.get_content_type()
    return StreamedReply(
        content_type=content_type,
        body=b"".join(pieces),
        wall_seconds=(ended - started) / _NANOSECONDS,
        first_output_seconds=None if first is None else (first - started) / _NANOSECONDS,
    )


class _FirstOutput:
    """Finds the first complete line that carries output, feeding on pieces that end anywhere."""

    def __init__(self, carries_output: Callable[[bytes], bool]) -> None:
        self._carries_output = carries_output
        self._pending: list[bytes] = []

    def sees(self, piece: bytes) -> bool:
        """Whether one of the lines that this piece completes carries output."""
        if b"\n" not in piece:
            self._pending.append(piece)
            return False
        *lines, rest = (b"".join(self._pending) + piece).split(b"\n")
        self._pending = [rest]
        return any(self._carries_output(line) for line in lines)


def _refusal(response: http.client.HTTPResponse, tool: str, hidden: str) -> RefusedError:
    """Describe a status other than 200 with the end of what the server said about it, the key blotted out."""
    try:
        text = response.read(_ERROR_BODY_BYTES).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        text = ""
    if hidden:
        text = text.replace(hidden, "***")
    return RefusedError(tool, response.status, response.reason, tail=tail_of(text[-4000:]))


def parse_json(data: bytes, tool: str, what: str) -> Any:
    """Decode JSON. Raises `ProtocolError` naming the tool and what was being read."""
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        msg = f"{tool}: {what} is not JSON ({error}): {data[:120]!r}"
        raise ProtocolError(msg) from error


def ask_json(
    endpoint: Endpoint,
    method: str,
    path: str,
    *,
    tool: str,
    timeout_seconds: float,
    body: object = None,
    headers: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Ask for one JSON object, off the clock. Raises like `exchange`, except that a deadline is a `BackendError` here."""
    payload = None if body is None else msgspec.json.encode(body)
    try:
        reply = exchange(endpoint, method, path, tool=tool, timeout_seconds=timeout_seconds, body=payload, headers=headers)
    except TrialTimeoutError as error:
        raise BackendError(tool, f"no answer to {method} {path} within {timeout_seconds:g} s") from error
    value = parse_json(reply.body, tool, f"the answer to {method} {path}")
    if not isinstance(value, dict):
        msg = f"{tool}: the answer to {method} {path} is not a JSON object"
        raise ProtocolError(msg)
    return value
