"""The seam between the sweep and whatever executes a model."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

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
