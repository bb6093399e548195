"""The seam between the sweep and whatever makes variants."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from fewbits.records.variant import Artifact, ModelSource, Variant

Progress = Callable[[str], None]
"""Called with one short line for people whenever something slow begins or something unexpected was repaired."""


class ArtifactStore(Protocol):
    """Where quantizers keep what they make. Given to them by their caller; `store.artifacts.ArtifactCache` is the real one."""

    @property
    def root(self) -> Path:
        """The cache folder. Quantizers may keep their inputs in sub-folders of it (`models`, `engines`)."""

    def free_bytes(self) -> int:
        """Bytes that can still be written there. Raises `StoreError`."""

    def exclusive(self, name: str, progress: Progress) -> AbstractContextManager[None]:
        """Hold a named lock that other processes respect; waits for it. Raises `StoreError`."""

    def digest_of(self, path: Path) -> str:
        """Return a file's sha256, remembered for as long as size, times and inode stay the same. Raises `StoreError`."""

    def compute_digest(self, path: Path) -> str:
        """Return the same as `digest_of`, writing nothing: for dry runs. Raises `StoreError`."""

    def find(self, key: str, progress: Progress) -> Variant | None:
        """Return the artifact stored under a key, its bytes checked; `None` when absent or damaged (which is reported)."""

    def get_or_make(self, key: str, file_name: str, make: Callable[[Path], Artifact], progress: Progress) -> Variant:
        """Return the artifact under a key; make it when it is absent, once even when several processes ask.

        `make` writes the file at the (temporary) path it is given and returns the manifest; the store fills in `sha256` and
        `bytes`. What `make` raises passes through; then nothing is left behind.
        """


class Quantizer(Protocol):
    """Turns (model, scheme) into an artifact in the content-addressed cache."""

    def locate(self, model_id: str) -> ModelSource:
        """Find the model and read its identity, fetching nothing (`path` is `None` when it would have to be fetched).

        Raises `SpecError` (missing, truncated, not the format).
        """

    def check(self, source: ModelSource, scheme: str) -> None:
        """Raise `SpecError` when the scheme is unknown or cannot be built from this model."""

    def estimate_bytes(self, source: ModelSource, scheme: str) -> int:
        """Estimate the artifact's size without building it, for the disk check of a dry run."""

    def ensure(self, source: ModelSource, scheme: str, progress: Progress) -> Variant:
        """Return the variant from the cache, fetching the model and building the variant first where they are not there.

        Raises `SpecError`, `PrerequisiteError`, `BackendError`, `StoreError`.
        """
