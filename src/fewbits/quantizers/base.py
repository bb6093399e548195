"""The seam between the sweep and whatever makes variants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from fewbits.records.variant import ModelSource, Variant


class Quantizer(Protocol):
    """Turns (model, scheme) into an artifact in the content-addressed cache."""

    def resolve(self, model_id: str) -> ModelSource:
        """Find the model and read its identity. Raises `SpecError` (missing, truncated, not the format), `PrerequisiteError`."""

    def estimate_bytes(self, source: ModelSource, scheme: str) -> int:
        """Estimate the artifact's size without building it, for the disk check of a dry run."""

    def ensure(self, source: ModelSource, scheme: str, progress: Callable[[str], None]) -> Variant:
        """Return the variant from the cache, building it first when it is not there. Raises `BackendError`, `StoreError`."""
