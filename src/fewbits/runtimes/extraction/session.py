"""One extraction engine, loaded in a child process of our own."""

from __future__ import annotations

from typing import Any

from fewbits.core.errors import IdentityError, ProtocolError
from fewbits.core.files import require_name_below
from fewbits.records.base import Unavailable
from fewbits.records.plan import EffectiveControls
from fewbits.records.runtime import GenerateRequest
from fewbits.records.trial import RawReply
from fewbits.records.variant import Artifact, ServedIdentity
from fewbits.runtimes.placement import process_cores
from fewbits.runtimes.worker_process import WorkerProcess

PROOF = "loaded_bytes"
"""The child hashed the very files that it loaded."""


class ExtractionSession:
    """A loaded engine. The child dies with us; closing ends and reaps it."""

    def __init__(
        self, artifact: Artifact, options: dict[str, Any], cores: tuple[int, ...] | None, load_timeout_seconds: float
    ) -> None:
        self._artifact = artifact
        self._seed: int | None = None
        self._worker = WorkerProcess(
            options["engine"],
            "fewbits.runtimes.extraction.worker",
            options,
            cores=cores,
            load_timeout_seconds=load_timeout_seconds,
        )
        self.description = self._worker.description

    @property
    def init_latency_seconds(self) -> float | None:
        """Seconds from spawning the child until its engine was loaded."""
        return self._worker.load_seconds

    @property
    def engine(self) -> str:
        """Name of what runs the networks (`rapidocr`, `transformers`)."""
        return str(self.description["engine"])

    @property
    def engine_version(self) -> str:
        """Its version, and that of what it stands on."""
        return str(self.description["version"])

    def identity(self) -> ServedIdentity:
        """Prove that the child loaded the artifact's bytes. Raises `IdentityError`."""
        loaded = self.description["sha256"]
        if loaded != self._artifact.sha256:
            msg = f"the child loaded files with sha256 {loaded}, not {self._artifact.sha256}"
            raise IdentityError(msg)
        return ServedIdentity(
            served_name=self._served_name, proof=PROOF, artifact_sha256=loaded, quantization=self._artifact.scheme
        )

    @property
    def _served_name(self) -> str:
        return f"fewbits-{self.description['sha256'][:12]}"

    def verify_reply(self, reply: RawReply) -> None:
        """Check that the reply comes from this child's engine. Raises `IdentityError`."""
        if reply.served_name != self._served_name:
            msg = f"{self.engine} answered as {reply.served_name!r}"
            raise IdentityError(msg)

    def effective_controls(self) -> EffectiveControls:
        """Read back: threads from the engine, cores from the OS, the seed of the last request where the engine samples."""
        process_id = self._worker.process_id
        cores = process_cores(process_id) if process_id is not None else None
        names = ("context_size", "temperature", "max_tokens") + (("seed",) if self._seed is None else ())
        reasons = dict.fromkeys(names, Unavailable.NOT_SUPPORTED.value)
        if cores is None:
            reasons["affinity"] = Unavailable.NOT_SUPPORTED.value
        return EffectiveControls(threads=self.description["threads"], affinity=cores, seed=self._seed, unavailable=reasons)

    def process_ids(self) -> tuple[int, ...]:
        """The child that holds the weights; empty once it has ended."""
        process_id = self._worker.process_id
        return (process_id,) if process_id is not None and self.is_alive() else ()

    def generate(self, request: GenerateRequest, timeout_seconds: float) -> RawReply:
        """Read one page; a request without a page reads a blank one, which is what a warm-up needs.

        The text of the reply is a `PageExtraction`; a page that cannot be read is an answer too. Raises `TrialTimeoutError`,
        `BackendError`, `ProtocolError` (a file that is missing or not the one that was planned), `SpecError` for a name that
        leaves the page folder.
        """
        page = request.image
        message: dict[str, Any] = {"seed": request.seed}
        self._seed = request.seed if self.description["sampled"] else None
        if page is not None:
            require_name_below(page.file_name, "page")
            message |= {"file": page.file_name, "sha256": page.sha256, "page": page.page}
        answer = self._worker.ask(message, timeout_seconds)
        try:
            return RawReply(
                text=answer["text"],
                finish_reason="stop",
                served_name=self._served_name,
                wall_seconds=float(answer["wall_seconds"]),
                predicted_ms=float(answer["timings"]["pipeline_seconds"]) * 1000,
                has_tokens=False,
                raw_timings=answer["timings"],
            )
        except (KeyError, TypeError, ValueError) as error:
            msg = f"{self.engine}'s worker left out {error}"
            raise ProtocolError(msg) from error

    def is_alive(self) -> bool:
        """Whether the child still runs."""
        return self._worker.is_alive()

    def close(self) -> None:
        """End and reap the child. Safe to call twice."""
        self._worker.close()
