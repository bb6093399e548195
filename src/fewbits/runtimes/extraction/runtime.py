"""The `extraction` runtime: pipelines from a page to a report, each variant in a child process of its own."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from fewbits.core.errors import SpecError
from fewbits.records.plan import Controls
from fewbits.records.runtime import RuntimeCapabilities
from fewbits.records.variant import Variant
from fewbits.runtimes.capabilities import CAPABILITIES
from fewbits.runtimes.extraction.session import ExtractionSession
from fewbits.runtimes.placement import resolve_cores, resolve_threads


@dataclass(frozen=True, slots=True)
class ExtractionOptions:
    """How pages are read."""

    page_folder: Path
    max_retries: int = 2
    """How often a model is asked again about one page."""
    redact: bool = False
    """Leave the patient's data out of every answer."""
    device: str = "cpu"
    """`cpu` or `cuda`; OCR runs on the CPU."""
    max_new_tokens: int = 2048


class ExtractionRuntime:
    """Opens pipelines, each in a child of its own."""

    def __init__(self, options: ExtractionOptions) -> None:
        self._options = options

    @property
    def capabilities(self) -> RuntimeCapabilities:
        """What this runtime reports: times and threads."""
        return CAPABILITIES["extraction"]

    def open(self, variant: Variant, controls: Controls, load_timeout_seconds: float) -> ExtractionSession:
        """Start a child with this variant. Raises `SpecError` (no file, bad affinity), `PrerequisiteError`, `BackendError`."""
        if variant.path is None or not variant.path.exists():
            where = f"{variant.artifact.model_id} {variant.artifact.scheme}"
            raise SpecError.single(where, f"there is no engine at {variant.path}", "make the variant again")
        threads = resolve_threads(controls.threads)
        options = {
            **asdict(self._options),
            "engine": variant.artifact.scheme,
            "artifact": str(variant.path.absolute()),
            "page_folder": str(self._options.page_folder.absolute()),
            "threads": threads,
            "seed": controls.seed,
            "temperature": controls.temperature,
        }
        cores = resolve_cores(controls.affinity_policy, threads)
        return ExtractionSession(variant.artifact, options, cores, load_timeout_seconds)
