"""The `scripted` runtime: replays a script instead of running a model. For tests, examples and dry rehearsals.

It never passes for an engine: its name is `scripted`, its version is the digest of its script, and the numbers are those that the
script declares. It takes time only where the script asks for it.
"""

from __future__ import annotations

import time
from pathlib import Path

from fewbits.core.codec import text_digest
from fewbits.core.errors import BackendError, IdentityError, PrerequisiteError, ProtocolError, SpecError, TrialTimeoutError
from fewbits.records.base import Unavailable
from fewbits.records.plan import Controls, EffectiveControls
from fewbits.records.runtime import GenerateRequest, RuntimeCapabilities
from fewbits.records.trial import RawReply
from fewbits.records.variant import Artifact, ServedIdentity, Variant
from fewbits.runtimes.capabilities import CAPABILITIES
from fewbits.runtimes.scripted.script import Failure, Script, ScriptedReply, ScriptedVariant, load_script

TOOL = "scripted"
_CONTROL_FIELDS = ("seed", "threads", "affinity", "context_size", "temperature", "max_tokens")


class ScriptedRuntime:
    """Opens variants that a script declares. Reads and checks the script at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._script, self._digest = load_script(path)
        self._used: dict[tuple[str, str, int], int] = {}

    @property
    def capabilities(self) -> RuntimeCapabilities:
        """What a script can declare."""
        return CAPABILITIES["scripted"]

    def open(self, variant: Variant, controls: Controls, load_timeout_seconds: float) -> ScriptedSession:
        """Open a variant. Raises `BackendError` where the script says that loading fails, or takes longer than allowed."""
        del controls  # nothing is run, so nothing can be held fixed
        if self._script.load_failure is not None:
            raise BackendError(TOOL, "the model could not be loaded", tail=self._script.load_failure)
        if (self._script.init_latency_seconds or 0.0) > load_timeout_seconds:
            raise BackendError(TOOL, f"the model was not loaded within {load_timeout_seconds:g} s")
        return ScriptedSession(self._script, self._digest, variant.artifact, self._path, self._used)

    def artifact_for(self, model_id: str, scheme: str) -> Artifact:
        """Describe a variant by the sizes that the script declares. Raises `PrerequisiteError` when it declares others only."""
        declared = self._script.variants.get(scheme)
        if declared is None and self._script.variants:
            known = ", ".join(sorted(self._script.variants))
            raise PrerequisiteError(f"{self._path.name} declares no variant {scheme}", f"It declares {known}.")
        sizes = declared or ScriptedVariant()
        return Artifact(
            model_id=model_id,
            scheme=scheme,
            sha256=None,
            bytes=sizes.bytes,
            weights=sizes.weights,
            bits_per_weight=sizes.bits_per_weight,
            built=False,
            tool=TOOL,
            tool_version=f"script:{self._digest}",
            server_digest=f"script:{self._digest}",
        )


class ScriptedSession:
    """One opened variant.

    Which of a rule's replies comes depends only on how often the rule fitted this variant before, in this or an earlier session
    of the same runtime: a crash can be followed by an answer after the restart.
    """

    def __init__(
        self, script: Script, digest: str, artifact: Artifact, path: Path, used: dict[tuple[str, str, int], int]
    ) -> None:
        self._script = script
        self._digest = digest
        self._artifact = artifact
        self._path = path
        self._used = used
        self._alive = True

    @property
    def init_latency_seconds(self) -> float | None:
        """As the script declares it."""
        return self._script.init_latency_seconds

    @property
    def engine(self) -> str:
        """Always `scripted`."""
        return TOOL

    @property
    def engine_version(self) -> str:
        """`script:` and the first 12 hex digits of the script's sha256."""
        return f"script:{self._digest}"

    def identity(self) -> ServedIdentity:
        """Compare the name that the script serves. Raises `IdentityError`."""
        served = self._script.served_name or self._artifact.model_id
        if served != self._artifact.model_id:
            msg = f"the script serves {served!r}, not {self._artifact.model_id!r}"
            raise IdentityError(msg)
        return ServedIdentity(
            served_name=served,
            proof="reported_name",
            quantization=self._artifact.scheme,
            server_digest=f"script:{self._digest}",
            detail="a script, no weights",
        )

    def verify_reply(self, reply: RawReply) -> None:
        """Check the name in a reply. Raises `IdentityError`."""
        if reply.served_name != self._artifact.model_id:
            msg = f"the script answered as {reply.served_name!r}, but {self._artifact.model_id!r} was asked"
            raise IdentityError(msg)

    def effective_controls(self) -> EffectiveControls:
        """As the script declares; without a declaration every control is unavailable."""
        if self._script.effective_controls is not None:
            return self._script.effective_controls
        return EffectiveControls(unavailable=dict.fromkeys(_CONTROL_FIELDS, str(Unavailable.NOT_SUPPORTED)))

    def process_ids(self) -> tuple[int, ...]:
        """Empty: nothing holds weights."""
        return ()

    def generate(self, request: GenerateRequest, timeout_seconds: float) -> RawReply:
        """Replay the reply of the first rule that fits, or fail as it says. Raises `SpecError` when nothing fits."""
        if not self._alive:
            raise BackendError(TOOL, "the engine is not running")
        reply = self._choose(request.prompt)
        waited = reply.wall_seconds if reply.wall_seconds is not None else reply.delay_seconds
        if reply.failure is Failure.HANG or waited > timeout_seconds:
            if reply.wall_seconds is None:
                time.sleep(timeout_seconds)
            msg = f"{TOOL}: no answer within {timeout_seconds:g} s"
            raise TrialTimeoutError(msg)
        started = time.perf_counter()
        if reply.delay_seconds:
            time.sleep(reply.delay_seconds)
        measured = time.perf_counter() - started
        if reply.failure is Failure.CRASH:
            self._alive = False
            raise BackendError(TOOL, "the engine died while answering", tail="scripted crash")
        if reply.failure is Failure.GARBAGE:
            msg = f"{TOOL}: not a chat completion: b'scripted garbage'"
            raise ProtocolError(msg)
        return self._raw(reply, reply.wall_seconds if reply.wall_seconds is not None else measured)

    def is_alive(self) -> bool:
        """False after a scripted crash, and after closing."""
        return self._alive

    def close(self) -> None:
        """End the session."""
        self._alive = False

    def _choose(self, prompt: str) -> ScriptedReply:
        digest = text_digest(prompt)
        for number, rule in enumerate(self._script.rules):
            fits_prompt = rule.prompt_sha256 == digest if rule.prompt_contains is None else rule.prompt_contains in prompt
            if fits_prompt and (not rule.schemes or self._artifact.scheme in rule.schemes):
                key = (self._artifact.model_id, self._artifact.scheme, number)
                turn = self._used.get(key, 0)
                self._used[key] = turn + 1
                return rule.replies[turn % len(rule.replies)]
        if self._script.default is None:
            hint = "add a rule or a default reply"
            raise SpecError.single(str(self._path), f"no rule fits the prompt {prompt[:80]!r} (sha256 {digest})", hint)
        return self._script.default

    def _raw(self, reply: ScriptedReply, wall_seconds: float) -> RawReply:
        name = reply.served_name or self._artifact.model_id
        if reply.failure is Failure.WRONG_MODEL and reply.served_name is None:
            name = f"not-{self._artifact.model_id}"
        empty = reply.failure is Failure.EMPTY
        usage = {"prompt_tokens": reply.prompt_tokens, "output_tokens": 0 if empty else reply.output_tokens}
        timings = {"prompt_ms": reply.prompt_ms, "predicted_ms": reply.predicted_ms}
        return RawReply(
            text=reply.text,
            finish_reason=reply.finish_reason,
            served_name=name,
            streamed=reply.first_output_seconds is not None,
            wall_seconds=wall_seconds,
            first_output_seconds=reply.first_output_seconds,
            prompt_tokens=reply.prompt_tokens,
            output_tokens=usage["output_tokens"],
            cached_prompt_tokens=reply.cached_prompt_tokens,
            prompt_ms=reply.prompt_ms,
            predicted_ms=reply.predicted_ms,
            raw_usage={key: value for key, value in usage.items() if value is not None} or None,
            raw_timings={key: value for key, value in timings.items() if value is not None} or None,
        )
