"""Keyed folders of the cache: each made once, whole or not at all, even when several processes ask at the same time.

<root>/<kind>/<key[:2]>/<key>/     one folder per content address
<root>/locks/<name>.lock           one per key, held with flock(2)
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from fewbits.core.engines import CACHE_VARIABLE
from fewbits.core.errors import StoreError
from fewbits.core.files import atomic_write, safe_name

_KEY = re.compile(r"^[0-9a-f]{64}$")
PART_SUFFIX = ".part"

Progress = Callable[[str], None]
T = TypeVar("T")


class Shelf:
    """The folders of one kind below a cache's root. Nothing is created before the first write."""

    def __init__(self, root: Path, kind: str) -> None:
        self.root = root
        self._kind = kind

    def folder(self, key: str) -> Path:
        """Return the folder of a key (64 hex digits). Raises `ValueError` for anything else."""
        if not _KEY.match(key):
            msg = f"a cache key is 64 hex digits, not {key!r}"
            raise ValueError(msg)
        return self.root / self._kind / key[:2] / key

    @contextlib.contextmanager
    def exclusive(self, name: str, progress: Progress) -> Iterator[None]:
        """Hold a named lock that other processes respect, waiting for it. Raises `StoreError`.

        The lock dies with its holder, so a killed process blocks nobody.
        """
        path = self.root / "locks" / f"{safe_name(name)}.lock"
        with contextlib.ExitStack() as stack:
            with explained(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                handle = stack.enter_context(path.open("a"))
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    progress("another process is making the same thing; waiting for it")
                    fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def made_once(self, key: str, find: Callable[[], T | None], make: Callable[[Path], T], progress: Progress) -> T:
        """Return what `find` finds under a key; else what `make` makes in the key's (new, empty) folder, under a lock.

        What `make` raises passes through and leaves nothing behind; leftovers of a killed process are removed by the next
        one that asks. Raises `StoreError`.
        """
        with self.exclusive(key, progress):
            # another process may have made it while we waited; if it is there but damaged, `find` says so
            found = find()
            if found is not None:
                return found
            folder = self.folder(key)
            with explained(folder):
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True, exist_ok=True)
            try:
                return make(folder)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise


def put_in_place(temporary: Path, final: Path) -> int:
    """Flush a finished file and give it its name; returns its size in bytes. Raises `StoreError`."""
    with explained(final):
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(final)
        return final.stat().st_size


def write_note(path: Path, data: bytes) -> None:
    """Write a small file whole or not at all. Raises `StoreError` that names the cache's variable."""
    try:
        atomic_write(path, data)
    except StoreError as error:
        if isinstance(error.__cause__, OSError):
            raise cache_error(path, error.__cause__) from error
        raise


@contextlib.contextmanager
def explained(path: Path, doing: str = "write") -> Iterator[None]:
    """Turn an `OSError` of the block into a `StoreError` about `path`."""
    try:
        yield
    except OSError as error:
        raise cache_error(path, error, doing) from error


def cache_error(path: Path, error: OSError, doing: str = "write") -> StoreError:
    """Explain an `OSError` inside the cache in two sentences, with what to do."""
    remedy = f"Check its permissions and free space, or set {CACHE_VARIABLE} to another folder."
    return StoreError(f"cannot {doing} {path}: {error.strerror or error}. {remedy}")
