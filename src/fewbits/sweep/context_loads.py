"""Before the trials of a context: can the engine load a variant with that much context, and how does it count tokens?

Each variant is opened alone, so that a context which one variant is too large for does not end the sweep of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fewbits.core.errors import BackendError, ProtocolError, TrialTimeoutError
from fewbits.records.context import LoadOutcome
from fewbits.records.plan import Plan
from fewbits.records.runtime import GenerateRequest
from fewbits.records.variant import Variant
from fewbits.runtimes.base import Runtime, RuntimeSession

_WARMUP = "Say hello."


@dataclass(frozen=True, slots=True)
class LoadTry:
    """How a load ended, and the prompt tokens of the texts that were counted (`None`: not asked for, or no count)."""

    outcome: LoadOutcome
    tokens: tuple[int | None, ...] | None = None
    count_problem: str = ""


def try_load(runtime: Runtime, variant: Variant, plan: Plan, texts: Sequence[str] = ()) -> LoadTry:
    """Open a variant under a plan's controls, generate once, read the context back, count `texts`, and close it again.

    A load or a first answer that fails is an outcome, not an error. Raises what else a runtime raises: `PrerequisiteError`,
    `SpecError`, `IdentityError`.
    """
    try:
        session = runtime.open(variant, plan.controls, plan.spec.load_timeout_seconds)
    except (BackendError, ProtocolError, TrialTimeoutError) as error:
        return LoadTry(_outcome(variant, plan, failure=str(error)))
    try:
        session.identity()
        _ask(session, _WARMUP, plan)  # engines tell their effective controls after a generation
        effective = session.effective_controls().context_size
        tokens, problem = _count(session, texts, plan) if texts else (None, "")
    except (BackendError, ProtocolError, TrialTimeoutError) as error:
        return LoadTry(_outcome(variant, plan, failure=str(error)))
    finally:
        session.close()
    return LoadTry(_outcome(variant, plan, effective=effective), tokens, problem)


def _outcome(variant: Variant, plan: Plan, *, failure: str = "", effective: int | None = None) -> LoadOutcome:
    artifact = variant.artifact
    return LoadOutcome(
        context=plan.controls.context_size,
        model_id=artifact.model_id,
        quant_tag=artifact.scheme,
        failure=failure,
        context_effective=effective,
    )


def _ask(session: RuntimeSession, prompt: str, plan: Plan) -> int | None:
    """Ask for one token and return the prompt tokens that the engine counted."""
    request = GenerateRequest(prompt=prompt, seed=plan.controls.seed, temperature=plan.controls.temperature, max_tokens=1)
    return session.generate(request, plan.spec.trial_timeout_seconds).prompt_tokens


def _count(session: RuntimeSession, texts: Sequence[str], plan: Plan) -> tuple[tuple[int | None, ...] | None, str]:
    """Count the prompt tokens of each text. An engine that refuses one tells nothing about the tokens, but it is loaded."""
    try:
        return tuple(_ask(session, text, plan) for text in texts), ""
    except (BackendError, ProtocolError, TrialTimeoutError) as error:
        return None, str(error)
