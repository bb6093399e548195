"""The seam between the sweep and whatever executes a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from fewbits.core.errors import FewbitsError
from fewbits.records.divergence import (
    DivergenceMethod,
    DivergencePolicy,
    DivergenceReason,
    EvaluationText,
    TruncationAudit,
    WindowDivergence,
)
from fewbits.records.plan import Controls, EffectiveControls
from fewbits.records.runtime import GenerateRequest, RuntimeCapabilities
from fewbits.records.trial import RawReply
from fewbits.records.variant import Artifact, ServedIdentity, Variant


class RuntimeSession(Protocol):
    """One loaded model, ready to answer. Closed by the sweep; safe to close twice."""

    @property
    def init_latency_seconds(self) -> float | None:
        """Seconds from starting to load until the model answered its first health check; `None` when a server had it already."""

    @property
    def engine(self) -> str:
        """Name of the engine (`llama-server`, `xllamacpp`, `ollama`, ...)."""

    @property
    def engine_version(self) -> str:
        """The engine's own version or build string; empty when it does not tell."""

    def identity(self) -> ServedIdentity:
        """Prove what is served. Called once after opening. Raises `IdentityError` when it is not the variant asked for."""

    def verify_reply(self, reply: RawReply) -> None:
        """Check the served name in one reply against the variant. Raises `IdentityError` on a mismatch."""

    def effective_controls(self) -> EffectiveControls:
        """Read the controls back from the engine and the OS (not from what was asked)."""

    def process_ids(self) -> tuple[int, ...]:
        """Processes of this machine that hold the weights; empty when they cannot be known."""

    def generate(self, request: GenerateRequest, timeout_seconds: float) -> RawReply:
        """Ask once and wait for the whole answer.

        Raises `TrialTimeoutError` at the deadline, `BackendError` when the engine died or refused, `ProtocolError` when
        its answer breaks the protocol. Between the two clock reads nothing but the request itself happens.
        """

    def is_alive(self) -> bool:
        """Whether a further request has a chance (the child process lives; the server answers)."""

    def close(self) -> None:
        """Release the model: our own child is ended and reaped, a foreign server is left as it was."""


class Runtime(Protocol):
    """Opens sessions. Cheap to create; looks for its engine on first use."""

    @property
    def capabilities(self) -> RuntimeCapabilities:
        """What this runtime can really do and report."""

    def open(self, variant: Variant, controls: Controls, load_timeout_seconds: float) -> RuntimeSession:
        """Load a variant. Raises `PrerequisiteError` (no engine, no server), `BackendError` (load failed), `IdentityError`."""


@runtime_checkable
class ServerCatalogue(Protocol):
    """What a runtime offers whose models already lie on a server (or in a script): there is nothing to build."""

    def artifact_for(self, model_id: str, scheme: str) -> Artifact:
        """Describe the server's model at this scheme; what the server does not tell is `None`.

        Raises `PrerequisiteError` when the server or the model is not there, `IdentityError` when the server reports
        another quantization for that very name, `BackendError` and `ProtocolError` as its answers go.
        """


@runtime_checkable
class ReportsLogProbabilities(Protocol):
    """What a session offers whose server tells the log-probabilities of the most likely next tokens."""

    def top_log_probabilities(self, prefix: str, count: int, timeout_seconds: float) -> Mapping[str, float] | None:
        """Ask for one token after `prefix` (no chat template) and return the `count` most likely ones, nats.

        Keys identify tokens, the same for every variant of a model. `None` when the server answers without them. Raises
        like `RuntimeSession.generate`, and `IdentityError` when another model answers.
        """


TEACHER_FILE = "teacher.npz"
"""Name of the file that holds a reference's distributions: one name, so that everybody finds what another made."""


class DivergenceUnavailableError(FewbitsError):
    """Divergence cannot be measured: a value for the sweep (a row with this reason), an exception only inside meters."""

    def __init__(self, reason: DivergenceReason, detail: str) -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(f"{reason}: {detail}")


@dataclass(frozen=True, slots=True)
class DivergenceJob:
    """What is read, and how long it may take: `timeout_seconds` bounds one pass of one model over all windows."""

    text: str
    evaluation: EvaluationText
    policy: DivergencePolicy
    controls: Controls
    load_timeout_seconds: float
    timeout_seconds: float


@dataclass(frozen=True, slots=True)
class Instrument:
    """What measures. `threads` are the teacher's (`None`: not ours to set); `engine_version` is empty where unknown."""

    method: DivergenceMethod
    engine: str
    engine_version: str
    threads: int | None
    top_k: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """One model against the teacher. `detail` is a sentence for people where the measurement was not as usual."""

    windows: tuple[WindowDivergence, ...]
    audit: TruncationAudit | None
    threads: int | None
    detail: str = ""


class DivergenceMeter(Protocol):
    """Reads next-token distributions over an evaluation text. The reference is read once, into a file; others against it.

    Every reading method raises `DivergenceUnavailableError` when it cannot be done, and what the runtime's own calls raise.
    """

    def instrument(self, job: DivergenceJob) -> Instrument:
        """Describe what measures, as far as it is known by now. Never raises."""

    def teacher_key(self, reference: Variant, job: DivergenceJob) -> str | None:
        """Content address (64 hex digits) of the reference's file; `None` when nothing proves which weights a server holds."""

    def read_teacher(self, reference: Variant, job: DivergenceJob, output: Path) -> None:
        """Write the reference's distributions in compact form to `output`, whole or not at all."""

    def compare(self, variant: Variant, teacher: Path, job: DivergenceJob) -> Comparison:
        """Compare a variant with the reference's file on the same positions."""

    def compare_with_itself(self, reference: Variant, teacher: Path, job: DivergenceJob) -> Comparison:
        """Read the reference again, computed another way, on a quarter of the windows (at least 2): the error floor."""


def floor_windows(windows: int) -> int:
    """How many windows the error floor is measured on: a quarter, at least 2. Floors are far below what they bound."""
    return max(2, windows // 4)
