"""What the explorer artifacts (frontier, context ceiling, thermal profile) share: five common fields, additive only.

Each artifact has a published JSON Schema (`fewbits schema list`). Inside a major version fields are only added, never removed,
renamed or made required; a change of meaning is a new major version.
"""

from __future__ import annotations

from fewbits.records.base import Record
from fewbits.records.provenance import SourceFile


class ArtifactProvenance(Record, frozen=True, kw_only=True):
    """Where an explorer artifact came from."""

    ref: str
    """Free text that names the run, as the operator gave it (`local-run:manual`, `<run id>:<commit>`); may be empty."""
    sources: tuple[SourceFile, ...]
    commit_sha: str | None = None
    """Of the sweep that was read, where all sources agree; `None` for a live watch."""
    fewbits_version: str


class ExplorerArtifact(Record, frozen=True, kw_only=True):
    """The common fields, beside `schema_version`, which each artifact declares with its own default."""

    generated_at: str
    """UTC, ISO 8601, when the artifact was made. Nothing is computed from it."""
    execution_lane: str
    vram_profile: str
    provenance: ArtifactProvenance
