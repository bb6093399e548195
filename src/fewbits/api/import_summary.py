"""Convert a summary of the older 1.1.x shape, so that gates and reports accept it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from fewbits import __version__
from fewbits.analysis.import_summary import import_legacy, legacy_problems
from fewbits.core.codec import decode, encode_pretty
from fewbits.core.errors import SpecError, StoreError
from fewbits.core.files import atomic_write
from fewbits.records.base import OpenRecord
from fewbits.records.legacy_summary import LegacySummary
from fewbits.records.summary import SUMMARY_SCHEMA, SweepSummary
from fewbits.store.summaries import declared_version, read_bounded

_SUPPORTED = (1, 1)
"""Major and minor version of the shape that is understood."""


class _Shape(OpenRecord, frozen=True, kw_only=True):
    sessions: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    runs_per_task: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


def import_summary(source: Path, out: Path) -> SweepSummary:
    """Convert `source`, write the result to `out`, and return it.

    Raises `SpecError` (no such file, or `out` is `source`), `StoreError` (not a summary of the older shape, with what it is).
    """
    data = read_bounded(source, "OLD", "give the path of the older sweep_summary.json")
    if out.exists() and out.samefile(source):
        raise SpecError.single(
            "--out", f"{out} is the file to be converted", "choose another name: the original is worth keeping"
        )
    old = read_legacy(data, source)
    summary = import_legacy(old, sha256=hashlib.sha256(data).hexdigest(), fewbits_version=__version__)
    encoded = encode_pretty(summary)
    decode(encoded, SweepSummary, str(out))  # what is written is what every reader accepts
    atomic_write(out, encoded)
    return summary


def read_legacy(data: bytes, source: Path) -> LegacySummary:
    """Decode and check the older shape. Raises `StoreError`."""
    _refuse_other_shapes(declared_version(data, source), data, source)
    try:
        old = decode(data, LegacySummary, str(source))
    except StoreError as error:
        msg = f"{error}. This is no whole summary of the older shape; nothing was written."
        raise StoreError(msg) from error
    problems = list(legacy_problems(old))
    if problems:
        told = "".join(f"\n  - {problem}" for problem in problems)
        msg = f"{source} contradicts itself, and nothing was written:{told}"
        raise StoreError(msg)
    return old


def _refuse_other_shapes(version: str | None, data: bytes, source: Path) -> None:
    numbers = _numbers(version or "")
    if not numbers:
        msg = f"{source} is no sweep summary: its schema_version is {version!r}, one like '1.1.3' is expected."
        raise StoreError(msg)
    ours = _numbers(SUMMARY_SCHEMA)
    if numbers > ours:
        msg = f"{source} has schema {version}, newer than {SUMMARY_SCHEMA} that this fewbits knows: update fewbits."
        raise StoreError(msg)
    if numbers[0] == ours[0]:
        msg = f"{source} has schema {version} and needs no import: gates and reports read it as it is."
        raise StoreError(msg)
    if numbers[:2] != _SUPPORTED:
        msg = f"{source} has schema {version}; only 1.1.x can be imported."
        raise StoreError(msg)
    shape = decode(data, _Shape, str(source))
    if shape.sessions is msgspec.UNSET and shape.runs_per_task is not msgspec.UNSET:
        msg = f"{source} is a determinism report of the older tool, which has the same schema version: give the sweep summary."
        raise StoreError(msg)


def _numbers(version: str) -> tuple[int, ...]:
    """Return the three numbers of a version, nothing for any other text."""
    parts = version.split(".")
    usable = len(parts) == 3 and all(part.isascii() and part.isdecimal() and len(part) < 6 for part in parts)
    return tuple(map(int, parts)) if usable else ()
