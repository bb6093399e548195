"""Histories of explorer artifacts: one file per machine, lane, profile (and model, variant), appended to, with a retention.

<root>/<key part>__<key part>....json     {"schema_version": "fewbits.history.v1", "history": [artifact, ...]}
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from fewbits.core.codec import digest, text_digest, to_builtins
from fewbits.core.errors import SpecError
from fewbits.core.files import safe_name
from fewbits.records.base import Record
from fewbits.store.ledger import JsonLedger

DEFAULT_KEEP_LAST = 200
"""Artifacts kept per file unless told otherwise: more than half a year of nights, and a file that still opens at once."""
_SEPARATOR = "__"
_RUNS = re.compile(r"[^A-Za-z0-9.-]+")
_DIGESTED = re.compile(r"-[0-9a-f]{8}$")
_NAME_LIMIT = 180
"""Characters of a file's name before `.json`: file systems take 255, and a temporary name is longer."""


class HistoryFile(Record, frozen=True, kw_only=True):
    """What is in a history's file, oldest artifact first."""

    schema_version: Literal["fewbits.history.v1"] = "fewbits.history.v1"
    history: tuple[dict[str, Any], ...] = ()
    """Artifacts as they were written, whatever their schema: those of a newer fewbits keep every field."""


def append_history(root: Path, key_parts: Sequence[str], artifact: Record, *, keep_last: int | None) -> Path:
    """Append an artifact to the history of its key, drop all but the newest `keep_last` (`None`: keep all); returns the file.

    Several processes may append at once: each reads, changes and replaces under a lock. Raises `SpecError` for a `keep_last`
    below 1, and `StoreError` where the file is damaged or cannot be written; it is then left as it was.
    """
    if keep_last is not None and keep_last < 1:
        raise SpecError.single("--keep-last", f"{keep_last} would keep nothing", "give at least 1")
    entry: dict[str, Any] = to_builtins(artifact)
    path = history_path(root, key_parts)

    def with_entry(present: HistoryFile | None) -> HistoryFile:
        kept = (*(present.history if present is not None else ()), entry)
        return HistoryFile(history=kept if keep_last is None else kept[-keep_last:])

    JsonLedger(path, HistoryFile).change(with_entry)
    return path


def read_history(path: Path) -> tuple[dict[str, Any], ...]:
    """Return a history's artifacts, oldest first; empty where there is no file yet. Raises `StoreError` for a damaged one."""
    present = JsonLedger(path, HistoryFile).read()
    return present.history if present is not None else ()


def history_path(root: Path, key_parts: Sequence[str]) -> Path:
    """Return where the history of a key lies. Distinct keys have distinct files, whatever their parts hold."""
    name = _SEPARATOR.join(map(_part, key_parts))
    if len(name) > _NAME_LIMIT:
        name = f"{name[:_NAME_LIMIT].rstrip('_')}-{digest([text_digest(part) for part in key_parts])[:16]}"
    return root / f"{name}.json"


def _part(text: str) -> str:
    """Make one part safe as a piece of a file name, free of the separator; what was changed, or looks like it, gets a digest."""
    squeezed = _RUNS.sub("_", text).strip("_")
    if squeezed == text and text and not _DIGESTED.search(text):
        return safe_name(text)
    return f"{safe_name(squeezed) if squeezed else 'x'}-{text_digest(text)[:8]}"
