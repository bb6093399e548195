"""A JSON document that several processes change: read, change, replace, under a lock. Never torn, never overwritten when damaged.

<folder>/<name>.json          the document, replaced as a whole
<folder>/.locks/<name>.lock   held with flock(2) from reading to replacing; it dies with its holder
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

from fewbits.core.codec import decode, encode_pretty
from fewbits.core.errors import StoreError
from fewbits.core.files import atomic_write, storage_error

D = TypeVar("D")
MAX_BYTES = 256 * 1024 * 1024
"""A larger file is no history of ours, and reading it would only eat the machine."""


class JsonLedger(Generic[D]):
    """One document of type `document_type` at `path`. Creating the object touches nothing."""

    def __init__(self, path: Path, document_type: type[D]) -> None:
        self.path = path
        self._type = document_type

    def read(self) -> D | None:
        """Return the document; `None` when there is none. Raises `StoreError` when it is damaged or of another shape."""
        try:
            if self.path.stat().st_size > MAX_BYTES:
                msg = f"{self.path} is larger than {MAX_BYTES} bytes: it is no history that fewbits wrote, and was left as it is."
                raise StoreError(msg)
            data = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            msg = f"cannot read {self.path}: {error.strerror or error}"
            raise StoreError(msg) from error
        try:
            return decode(data, self._type, str(self.path))
        except (StoreError, RecursionError) as error:
            what = error if isinstance(error, StoreError) else f"{self.path}: nested too deeply"
            msg = f"{what}. The file is damaged or was edited; it was left as it is. Mend it, or move it away to start a new one."
            raise StoreError(msg) from error

    def change(self, update: Callable[[D | None], D]) -> D:
        """Replace the document by `update(present)`, under the lock; returns what was written.

        What `update` raises passes through and nothing is written. Raises `StoreError`, also for a damaged document.
        """
        with self._locked():
            changed = update(self.read())
            atomic_write(self.path, encode_pretty(changed))
            return changed

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        lock = self.path.parent / ".locks" / f"{self.path.stem}.lock"
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise storage_error(lock, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
