"""Atomic files, content digests and names that are safe as paths."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from fewbits.core.errors import SpecError, StoreError

_CHUNK_BYTES = 4 * 1024 * 1024
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")
_NAME_LIMIT = 80


def sha256_file(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """Return the sha256 (64 hex digits) of a file; `progress` is called with the bytes of each chunk read."""
    hasher = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(_CHUNK_BYTES):
            hasher.update(chunk)
            if progress is not None:
                progress(len(chunk))
    return hasher.hexdigest()


def safe_name(text: str) -> str:
    """Turn any text into one path component: `A-Za-z0-9_.-` only, no leading dot, at most 80 characters.

    Distinct inputs that would collide, or that had to be changed, get a short digest appended.
    """
    cleaned = _UNSAFE.sub("_", text).lstrip(".")[:_NAME_LIMIT]
    if cleaned == text:
        return cleaned or "_"
    return f"{cleaned or '_'}-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def require_name_below(name: str, where: str) -> None:
    """Raise `SpecError` at `where` for a name that would leave the folder that it is looked for in."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise SpecError.single(where, f"{name!r} is not a name below the {where} folder")


def sync_directory(path: Path) -> None:
    """Flush a directory entry to disk, so that a rename inside it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: temporary name beside it, flush, rename. Raises `StoreError` with the reason."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            # mkstemp makes private files; results are meant to be read by the same people as any other file
            Path(temporary).chmod(0o666 & ~current_umask())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        sync_directory(path.parent)
    except OSError as error:
        raise storage_error(path, error) from error


def current_umask() -> int:
    """Return the process's umask (reading it means setting it twice; not safe beside threads that create files)."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def storage_error(path: Path, error: OSError) -> StoreError:
    """Explain an `OSError` on `path` in one sentence, with what to do."""
    remedy = {
        "ENOSPC": "The disk is full: free some space or choose another path (for a sweep: --out-dir).",
        "EACCES": "You may not write there: choose another path (for a sweep: --out-dir).",
        "EROFS": "That file system is read-only: choose another path (for a sweep: --out-dir).",
        "ENOTDIR": "Part of that path is a file, not a folder: choose another path (for a sweep: --out-dir).",
        "EEXIST": "Part of that path is a file, not a folder: choose another path (for a sweep: --out-dir).",
    }.get(_errno_name(error), "Check the path and its permissions.")
    return StoreError(f"cannot write {path}: {error.strerror or error}. {remedy}")


def _errno_name(error: OSError) -> str:
    import errno

    return errno.errorcode.get(error.errno or 0, "")


def ensure_writable_directory(path: Path) -> None:
    """Create a folder and prove that a file can be written there. Raises `StoreError` with what to do instead."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=".fewbits-probe-", dir=path) as probe:
            probe.write(b"0" * 4096)
            probe.flush()
    except OSError as error:
        raise storage_error(path, error) from error
