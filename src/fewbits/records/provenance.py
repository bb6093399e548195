"""Where an artifact came from: the files that were read, each with its digest."""

from __future__ import annotations

from fewbits.records.base import Record
from fewbits.records.variant import Sha256


class SourceFile(Record, frozen=True, kw_only=True):
    """A file that was read: its path as it was given, the digest of its bytes, and the schema that it declares."""

    path: str
    sha256: Sha256
    schema_version: str | None = None
