"""Who may write into a folder, and where earlier results go."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from fewbits.core.errors import StoreError
from fewbits.core.files import ensure_writable_directory, storage_error

SUPERSEDED = "superseded"
"""Folder of earlier results, inside the folder of the present ones."""
_LOCK_NAME = ".lock"


@contextlib.contextmanager
def hold_folder(root: Path, busy: str) -> Iterator[None]:
    """Hold a folder for writing. Raises `StoreError` when it is not writable, or with the message `busy` when another has it.

    The lock (flock(2)) dies with its process, so whatever a killed one left behind is free for the next.
    """
    ensure_writable_directory(root)
    lock_path = root / _LOCK_NAME
    try:
        descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise storage_error(lock_path, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise StoreError(busy) from error
    try:
        yield
    finally:
        os.close(descriptor)


def set_aside(root: Path, paths: Iterable[Path]) -> Path | None:
    """Move those of `paths` that exist into `superseded/<n>/` of `root`; returns that folder, `None` when there was nothing.

    Raises `StoreError`.
    """
    present = [path for path in paths if path.exists()]
    if not present:
        return None
    shelf = root / SUPERSEDED
    number = 1
    while (shelf / str(number)).exists():
        number += 1
    target = shelf / str(number)
    try:
        target.mkdir(parents=True)
        for path in present:
            path.rename(target / path.name)
    except OSError as error:
        raise storage_error(target, error) from error
    return target
