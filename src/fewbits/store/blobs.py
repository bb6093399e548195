"""The content-addressed cache for files that are no artifacts (a teacher's log-probabilities): made once, checked when found.

<root>/blobs/<key[:2]>/<key>/<file>          the blob
<root>/blobs/<key[:2]>/<key>/<file>.sha256   its digest, written last: a blob without it does not exist
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fewbits.core.engines import cache_root
from fewbits.core.files import safe_name, sha256_file
from fewbits.store.shelf import PART_SUFFIX, Progress, Shelf, cache_error, explained, put_in_place, write_note

_DIGEST_SUFFIX = ".sha256"


class BlobCache:
    """The blobs below one cache folder. Safe to share between processes; the folder is created on first write."""

    def __init__(self, root: Path | None = None) -> None:
        self._shelf = Shelf(root if root is not None else cache_root(), "blobs")

    def find(self, key: str, file_name: str, progress: Progress) -> Path | None:
        """Return the blob under a key (64 hex digits), its bytes checked; `None` when absent or damaged (which is told).

        Raises `StoreError` when it cannot be read, `ValueError` for a bad key.
        """
        path = self._shelf.folder(key) / safe_name(file_name)
        note = path.with_name(path.name + _DIGEST_SUFFIX)
        try:
            promised = note.read_text(encoding="ascii", errors="replace").strip()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise cache_error(note, error, "read") from error
        if not path.exists():
            progress(f"cached {file_name} has lost its file, making it again")
            return None
        with explained(path, "read"):
            found = sha256_file(path)
        if found != promised:
            progress(f"cached {file_name} has other bytes than it was made with, making it again")
            return None
        return path

    def get_or_make(self, key: str, file_name: str, make: Callable[[Path], None], progress: Progress) -> Path:
        """Return the blob under a key; make it when it is absent, once even when several processes ask.

        `make` writes the file at the temporary path it is given. What it raises passes through and leaves nothing behind.
        Raises `StoreError`.
        """
        if path := self.find(key, file_name, _silent):
            return path

        def make_in(folder: Path) -> Path:
            final = folder / safe_name(file_name)
            temporary = folder / f"{final.name}{PART_SUFFIX}"
            make(temporary)
            put_in_place(temporary, final)
            write_note(final.with_name(final.name + _DIGEST_SUFFIX), f"{sha256_file(final)}\n".encode())
            return final

        return self._shelf.made_once(key, lambda: self.find(key, file_name, progress), make_in, progress)


def _silent(_: str) -> None:
    """The first look is repeated under the lock, where damage is told."""
