"""Several files as one: a zip archive that has the same bytes wherever it is made.

Stored, not compressed: what lies in it hardly shrinks. Fixed order, times and permissions, so that one sha256 is the identity of
all.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from fewbits.core.errors import SpecError
from fewbits.core.files import atomic_write

MEMBER_LIMIT_BYTES = 512 * 1024**2
"""What a hostile archive can make us read."""
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time that a zip archive can name."""
_PERMISSIONS = 0o644 << 16
_UNIX = 3
_ENCRYPTED = 0x1
_OVERHEAD_BYTES = 4096
"""More than the headers of a few stored members take."""


def write_archive(path: Path, files: Mapping[str, bytes], names: Sequence[str]) -> None:
    """Write the members `names`, in that order, whole or not at all.

    Raises `ValueError` for other members or too large ones, `StoreError`.
    """
    if set(files) != set(names):
        msg = f"the archive has {', '.join(names)}, not {', '.join(sorted(files))}"
        raise ValueError(msg)
    if any(len(data) > MEMBER_LIMIT_BYTES for data in files.values()):
        msg = f"a member of an archive has at most {MEMBER_LIMIT_BYTES} bytes"
        raise ValueError(msg)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in names:
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr, entry.create_system = _PERMISSIONS, _UNIX
            archive.writestr(entry, files[name])
    atomic_write(path, buffer.getvalue())


def open_archive(path: Path, names: Sequence[str], what: str) -> dict[str, bytes]:
    """Return the members of an archive: name -> bytes. `what` it should be stands in messages (`OCR engine`).

    Raises `SpecError` for anything but exactly these members, each stored as it is, within the limit and undamaged.
    """
    try:
        # the archive is as long as what it stores: no need to believe what its headers say about sizes
        if path.stat().st_size > len(names) * MEMBER_LIMIT_BYTES + _OVERHEAD_BYTES:
            raise _unusable(path, what, "it is too large")
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _require_plain(path, what, entries, names)
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise _unusable(path, what, "its members overlap")
            return {entry.filename: archive.read(entry) for entry in entries}
    except (OSError, EOFError, ValueError, NotImplementedError, RuntimeError, zipfile.BadZipFile) as error:
        raise _unusable(path, what, str(error) or type(error).__name__) from error


def _require_plain(path: Path, what: str, entries: Sequence[zipfile.ZipInfo], names: Sequence[str]) -> None:
    found = [entry.filename for entry in entries]
    if sorted(found) != sorted(names):
        # what else it holds is not repeated: the names are whatever someone wrote there
        raise _unusable(path, what, f"it holds {len(found)} members that are not exactly {', '.join(names)}")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size or entry.flag_bits & _ENCRYPTED:
            raise _unusable(path, what, f"{entry.filename} is compressed or encrypted")
        if entry.file_size > MEMBER_LIMIT_BYTES:
            raise _unusable(path, what, f"{entry.filename} has more than {MEMBER_LIMIT_BYTES} bytes")


def _unusable(path: Path, what: str, why: str) -> SpecError:
    return SpecError.single(path.name, f"is no archive of an {what}: {why}", "give a file that fewbits made")
