"""The trial journal: JSON lines, appended whole and flushed one by one. The truth that everything else is rebuilt from."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from fewbits.core.codec import encode_canonical
from fewbits.core.errors import StoreError
from fewbits.core.files import storage_error

R = TypeVar("R")

_BUFFER_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class JournalContent(Generic[R]):
    """What a journal holds: decoded rows in file order, a digest that does not depend on order, and the bytes of a torn tail."""

    rows: tuple[R, ...]
    offsets: tuple[int, ...]
    """Where each row begins in the file, bytes: to look at a few rows again (`read_rows_at`)."""
    digest: str
    torn_bytes: int


def read_journal(path: Path, row_type: type[R]) -> JournalContent[R]:
    """Read a journal; a missing file is an empty journal.

    A last line without its newline is a write that was cut off: it is left out and counted in `torn_bytes`. A bad line
    anywhere else raises `StoreError` with its number: that is damage, not a crash, and nothing is guessed about it.
    """
    decoder = msgspec.json.Decoder(row_type)
    rows: list[R] = []
    offsets: list[int] = []
    digests: list[bytes] = []
    torn = position = 0
    try:
        with path.open("rb", buffering=_BUFFER_BYTES) as stream, _no_collection():
            for number, line in enumerate(stream, start=1):
                if not line.endswith(b"\n"):
                    torn = len(line)
                    break
                digests.append(hashlib.sha256(line[:-1]).digest())
                rows.append(_decode(decoder, line, path, number))
                offsets.append(position)
                position += len(line)
    except FileNotFoundError:
        pass  # a run that has not begun has an empty journal
    except OSError as error:
        msg = f"cannot read {path}: {error.strerror}"
        raise StoreError(msg) from error
    digest = hashlib.sha256(b"".join(sorted(digests))).hexdigest()
    return JournalContent(tuple(rows), tuple(offsets), digest, torn)


def read_rows_at(path: Path, offsets: Iterable[int], row_type: type[R]) -> list[R]:
    """Read a few rows again, as another type, from where they begin. Raises `StoreError` like `read_journal`."""
    decoder = msgspec.json.Decoder(row_type)
    rows = []
    try:
        with path.open("rb") as stream:
            for offset in offsets:
                stream.seek(offset)
                rows.append(_decode(decoder, stream.readline(), path, f"byte {offset}"))
    except OSError as error:
        msg = f"cannot read {path}: {error.strerror}"
        raise StoreError(msg) from error
    return rows


def _decode(decoder: msgspec.json.Decoder[R], line: bytes, path: Path, place: int | str) -> R:
    try:
        return decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        msg = f"{path}:{place}: {error}. The journal was damaged or edited: restore it, or start over with --fresh."
        raise StoreError(msg) from error


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Switch the cycle collector off: a hundred thousand live records make it walk them again and again, finding nothing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class JournalWriter:
    """Appends rows to a journal. One row is one `write(2)`, flushed to the device before `append` returns."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            self._drop_torn_tail()
        except OSError as error:
            raise storage_error(path, error) from error

    def _drop_torn_tail(self) -> None:
        """Cut off a last line that never got its newline, so that the next row starts on a line of its own."""
        size = os.fstat(self._descriptor).st_size
        position = size
        while position > 0:
            start = max(0, position - 65536)
            chunk = os.pread(self._descriptor, position - start, start)
            newline = chunk.rfind(b"\n")
            if newline >= 0:
                position = start + newline + 1
                break
            position = start
        if position < size:
            os.ftruncate(self._descriptor, position)

    def append(self, row: object) -> None:
        """Write one row. Raises `StoreError`; a row that could only be written in part is cut off again."""
        line = encode_canonical(row) + b"\n"
        before = os.fstat(self._descriptor).st_size
        try:
            written = os.write(self._descriptor, line)
            if written != len(line):
                os.ftruncate(self._descriptor, before)
                raise OSError(28, os.strerror(28))
            os.fdatasync(self._descriptor)
        except OSError as error:
            raise storage_error(self._path, error) from error

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)
