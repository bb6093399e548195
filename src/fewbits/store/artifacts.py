"""The content-addressed artifact cache: files under keys, made once, whole or not at all, checked when found.

<root>/artifacts/<key[:2]>/<key>/<file>      the artifact
<root>/artifacts/<key[:2]>/<key>/manifest.json   written last: an entry without it does not exist
<root>/digests/<digest of a path>.json       sha256 of a file, for as long as its stat stays the same
<root>/locks/<name>.lock                     one per key, held with flock(2)
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from fewbits.core.codec import decode, encode_pretty, text_digest
from fewbits.core.engines import cache_root
from fewbits.core.errors import StoreError
from fewbits.core.files import atomic_write, safe_name, sha256_file
from fewbits.records.base import Record
from fewbits.records.variant import Artifact, Sha256, Variant
from fewbits.store.shelf import PART_SUFFIX, Progress, Shelf, cache_error, explained, put_in_place, write_note

MANIFEST = "manifest.json"


class StoredArtifact(Record, frozen=True, kw_only=True):
    """The manifest file: which file of the folder is the artifact, and what it is."""

    file: str
    artifact: Artifact


class RememberedDigest(Record, frozen=True, kw_only=True):
    """A file's sha256 together with everything that changes when its bytes do. Times in nanoseconds, `bytes` its size."""

    path: str
    bytes: int
    mtime_ns: int
    ctime_ns: int
    device: int
    inode: int
    sha256: Sha256


class ArtifactCache:
    """The cache below one folder. Safe to share between processes; the folder is created on first write."""

    def __init__(self, root: Path | None = None) -> None:
        self._root = root if root is not None else cache_root()
        self._shelf = Shelf(self._root, "artifacts")

    @property
    def root(self) -> Path:
        """The cache folder."""
        return self._root

    def folder(self, key: str) -> Path:
        """Return the folder of a key (64 hex digits). Raises `ValueError` for anything else."""
        return self._shelf.folder(key)

    def free_bytes(self) -> int:
        """Bytes that can still be written to the cache's file system. Raises `StoreError`."""
        with explained(self._root):
            self._root.mkdir(parents=True, exist_ok=True)
            return shutil.disk_usage(self._root).free

    def exclusive(self, name: str, progress: Progress) -> AbstractContextManager[None]:
        """Hold a named lock that other processes respect, waiting for it. Raises `StoreError`.

        The lock dies with its holder, so a killed process blocks nobody.
        """
        return self._shelf.exclusive(name, progress)

    def digest_of(self, path: Path) -> str:
        """Return a file's sha256 (64 hex digits), read again only when its size, times or inode changed. Raises `StoreError`."""
        found, note = self._digested(path.absolute())
        # remembering saves time, nothing more: a cache that cannot be written must not stop a reader
        if _read_note(note) != found:
            with contextlib.suppress(StoreError):
                atomic_write(note, encode_pretty(found))
        return found.sha256

    def compute_digest(self, path: Path) -> str:
        """Return the same as `digest_of`, writing nothing: for dry runs. Raises `StoreError`."""
        return self._digested(path.absolute())[0].sha256

    def _digested(self, path: Path) -> tuple[RememberedDigest, Path]:
        note = self._root / "digests" / f"{text_digest(str(path))}.json"
        with explained(path, doing="read"):
            before = _identity(path)
            remembered = _read_note(note)
            if remembered is not None and _same_file(remembered, before):
                return remembered, note
            found = msgspec.structs.replace(before, sha256=sha256_file(path))
            if not _same_file(found, _identity(path)):
                msg = f"{path} changed while it was being read. Wait until it is complete and try again."
                raise StoreError(msg)
        return found, note

    def find(self, key: str, progress: Progress) -> Variant | None:
        """Return the artifact under a key with its size and sha256 checked; `None` when absent or damaged (which is told)."""
        folder = self.folder(key)
        try:
            data = (folder / MANIFEST).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise cache_error(folder / MANIFEST, error, "read") from error
        try:
            stored = decode(data, StoredArtifact, str(folder / MANIFEST))
        except StoreError as error:
            progress(f"cached artifact unreadable, making it again: {error}")
            return None
        path = folder / stored.file
        if damage := self._damage(path, stored.artifact):
            progress(f"cached {stored.artifact.scheme} of {stored.artifact.model_id} {damage}, making it again")
            return None
        return Variant(artifact=stored.artifact, path=path)

    def get_or_make(self, key: str, file_name: str, make: Callable[[Path], Artifact], progress: Progress) -> Variant:
        """Return the artifact under a key; make it when it is absent, once even when several processes ask.

        `make` writes the file at the temporary path it is given and returns the manifest; `sha256` and `bytes` are filled in
        here, from the file in its final place. What `make` raises passes through and leaves nothing behind; leftovers of a
        killed process are removed by the next one that asks. Raises `StoreError`.
        """
        if variant := self.find(key, lambda _: None):
            return variant

        def make_in(folder: Path) -> Variant:
            temporary = folder / f"{safe_name(file_name)}{PART_SUFFIX}"
            return self._publish(folder, file_name, temporary, make(temporary))

        return self._shelf.made_once(key, lambda: self.find(key, progress), make_in, progress)

    def _publish(self, folder: Path, file_name: str, temporary: Path, artifact: Artifact) -> Variant:
        final = folder / safe_name(file_name)
        size = put_in_place(temporary, final)
        sealed = msgspec.structs.replace(artifact, sha256=self.digest_of(final), bytes=size)
        write_note(folder / MANIFEST, encode_pretty(StoredArtifact(file=final.name, artifact=sealed)))
        return Variant(artifact=sealed, path=final)

    def _damage(self, path: Path, artifact: Artifact) -> str:
        """Say in a few words how a cached file differs from its manifest; empty when it does not."""
        try:
            size = path.stat().st_size
        except OSError:
            return "has lost its file"
        if size != artifact.bytes:
            return f"has {size} bytes instead of {artifact.bytes}"
        return "has other bytes than it was made with" if self.digest_of(path) != artifact.sha256 else ""


def _identity(path: Path) -> RememberedDigest:
    """Everything of a file but its digest (which is all zeros here)."""
    status = path.stat()
    return RememberedDigest(
        path=str(path),
        bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
        ctime_ns=status.st_ctime_ns,
        device=status.st_dev,
        inode=status.st_ino,
        sha256="0" * 64,
    )


def _same_file(one: RememberedDigest, other: RememberedDigest) -> bool:
    return msgspec.structs.replace(one, sha256=other.sha256) == other


def _read_note(note: Path) -> RememberedDigest | None:
    try:
        return decode(note.read_bytes(), RememberedDigest, str(note))
    except (OSError, StoreError):
        return None
