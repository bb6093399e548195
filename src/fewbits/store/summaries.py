"""Reading a sweep summary that somebody hands in: foreign, older, newer, truncated and edited files get one clear message."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fewbits.core.codec import decode, storable
from fewbits.core.errors import SpecError, StoreError
from fewbits.records.base import OpenRecord
from fewbits.records.provenance import SourceFile
from fewbits.records.summary import SUMMARY_SCHEMA, SweepSummary

MAX_BYTES = 256 * 1024 * 1024
IMPORTABLE_MAJOR = 1


class _Version(OpenRecord, frozen=True, kw_only=True):
    schema_version: str | None = None


@dataclass(frozen=True, slots=True)
class LoadedSummary:
    """A summary and the file that it was read from."""

    summary: SweepSummary
    source: SourceFile


def read_summary(path: Path, flag: str = "--summary") -> LoadedSummary:
    """Read `sweep_summary.json`. Raises `SpecError` at `flag` (no such file), else `StoreError` (what to do)."""
    data = read_bounded(path, flag, "give the path of a sweep_summary.json")
    version = declared_version(data, path)
    _refuse_version(version, path)
    try:
        summary = decode(data, SweepSummary, str(path))
    except StoreError as error:
        msg = f"{error}. This is no whole sweep summary of schema {SUMMARY_SCHEMA}: `fewbits summarize RUN` writes it again."
        raise StoreError(msg) from error
    return LoadedSummary(summary, source_of(path, data, version))


def source_of(path: Path, data: bytes, version: str | None) -> SourceFile:
    """Name the file that `data` was read from, for the artifacts made of it."""
    return SourceFile(path=storable(str(path)), sha256=hashlib.sha256(data).hexdigest(), schema_version=version)


def read_bounded(path: Path, flag: str, hint: str) -> bytes:
    """Read a small file that was named on the command line. Raises `SpecError` at `flag`."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise SpecError.single(flag, f"cannot read {path}: {error.strerror or error}", hint) from error
    if len(data) > MAX_BYTES:
        raise SpecError.single(flag, f"{path} is larger than {MAX_BYTES} bytes", hint)
    return data


def declared_version(data: bytes, path: Path) -> str | None:
    """Return the `schema_version` of a JSON object. Raises `StoreError` when the bytes are no JSON object."""
    try:
        return msgspec.json.decode(data, type=_Version).schema_version
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        msg = f"{path}: {error}. It is not a JSON object of ours: truncated, edited, or another file."
        raise StoreError(msg) from error


def _refuse_version(version: str | None, path: Path) -> None:
    numbers = _numbers(version or "")
    ours = _numbers(SUMMARY_SCHEMA)
    if numbers is None or ours is None:
        msg = f"{path} is no sweep summary: its schema_version is {version!r}, one like {SUMMARY_SCHEMA!r} is expected."
        raise StoreError(msg)
    if numbers[0] == IMPORTABLE_MAJOR:
        msg = f"{path} has the older shape {version}: convert it first with `fewbits import {path} --out FILE`."
        raise StoreError(msg)
    if numbers > ours:
        msg = f"{path} has schema {version}, newer than {SUMMARY_SCHEMA} that this fewbits reads: update fewbits."
        raise StoreError(msg)
    if numbers[0] != ours[0]:
        msg = f"{path} has schema {version}; this fewbits reads {ours[0]}.x up to {SUMMARY_SCHEMA}."
        raise StoreError(msg)


def _numbers(version: str) -> tuple[int, ...] | None:
    parts = version.split(".")
    if len(parts) != 3 or not all(part.isascii() and part.isdecimal() and len(part) < 6 for part in parts):
        return None
    return tuple(map(int, parts))
