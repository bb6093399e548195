"""One trial, from the planned cell to the journal row."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

import msgspec

from fewbits.analysis.run_quality import environment_delta, judge_trial
from fewbits.analysis.telemetry import derive_telemetry
from fewbits.core.codec import digest, text_digest
from fewbits.core.errors import BackendError, ProtocolError, TrialTimeoutError
from fewbits.probes.environment import EnvironmentProbe
from fewbits.probes.memory import GpuMemory, peak_rss_bytes, reset_peak_rss
from fewbits.records.base import TrialStatus, Unavailable
from fewbits.records.plan import EffectiveControls, Plan, PlannedTrial
from fewbits.records.runtime import GenerateRequest
from fewbits.records.task import Task, task_digest
from fewbits.records.trial import Environment, EnvironmentSample, RawReply, Trial, TrialView, VibeMetrics
from fewbits.records.variant import Artifact
from fewbits.sweep.pool import OpenModel
from fewbits.workloads.score import score_trial
from fewbits.workloads.text.score import code_density


@dataclass(frozen=True, slots=True)
class Instruments:
    """What reads the machine around a trial."""

    environment: EnvironmentProbe
    gpu: GpuMemory
    cores: int


@dataclass(frozen=True, slots=True)
class Cell:
    """A planned trial with what it asks of which variant."""

    planned: PlannedTrial
    task: Task
    artifact: Artifact
    phase: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came back from the engine, before it is scored."""

    status: TrialStatus
    failure: str
    reply: RawReply | None
    before: EnvironmentSample
    after: EnvironmentSample
    peak_rss_bytes: int | None
    peak_gpu_bytes: int | None
    started_at: str
    effective: EffectiveControls


def ask(model: OpenModel, task: Task, plan: Plan, instruments: Instruments, *, repetition: int = 0) -> Outcome:
    """Put one task to an open model and read the machine before and after. Raises `IdentityError` and nothing else expected."""
    controls = plan.controls
    request = GenerateRequest(
        prompt=task.prompt,
        system=task.system,
        seed=_seed(plan, repetition),
        temperature=controls.temperature,
        max_tokens=min(task.max_tokens or controls.max_tokens, controls.max_tokens),
        image=task.image,
    )
    status, failure, reply = TrialStatus.OK, "", None
    started_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    reset_peak_rss(model.process_ids)
    before = instruments.environment.sample()
    try:
        reply = model.session.generate(request, plan.spec.trial_timeout_seconds)
    except TrialTimeoutError as error:
        status, failure = TrialStatus.TIMEOUT, str(error)
    except BackendError as error:
        status, failure = TrialStatus.CRASHED, str(error)
    except ProtocolError as error:
        status, failure = TrialStatus.PROTOCOL_ERROR, str(error)
    after = instruments.environment.sample()
    if reply is not None:
        model.session.verify_reply(reply)
        if not reply.text.strip():
            status, failure = TrialStatus.EMPTY, "the model produced no text"
    return Outcome(
        status=status,
        failure=failure,
        reply=reply,
        before=before,
        after=after,
        peak_rss_bytes=peak_rss_bytes(model.process_ids),
        peak_gpu_bytes=instruments.gpu.used_bytes(model.process_ids),
        started_at=started_at,
        effective=read_back(model, answered=reply is not None),
    )


def _seed(plan: Plan, repetition: int) -> int:
    """Return the seed of a repetition: all the same, except that pipelines which sample draw anew each time.

    Their self-consistency is the agreement of different draws; everybody else's repetitions show whether the same request
    gets the same answer.
    """
    draws = plan.spec.extraction is not None and plan.controls.temperature > 0
    return plan.controls.seed + repetition if draws else plan.controls.seed


def read_back(model: OpenModel, *, answered: bool) -> EffectiveControls:
    """The controls that this very request ran under; what belongs to a request is `null` when it failed."""
    if answered:
        return model.session.effective_controls()
    gone = dict.fromkeys(("seed", "temperature", "max_tokens"), Unavailable.TRIAL_FAILED.value)
    return msgspec.structs.replace(
        model.effective, seed=None, temperature=None, max_tokens=None, unavailable={**model.effective.unavailable, **gone}
    )


def record(cell: Cell, plan: Plan, model: OpenModel, outcome: Outcome, cores: int) -> Trial:
    """Score an outcome and build its journal row."""
    planned, task, artifact = cell.planned, cell.task, cell.artifact
    text = outcome.reply.text if outcome.reply else ""
    results, score = score_trial(task, outcome.status, text)
    telemetry = derive_telemetry(
        outcome.reply,
        init_latency_seconds=model.session.init_latency_seconds,
        peak_memory_rss=outcome.peak_rss_bytes,
        peak_memory_gpu_bytes=outcome.peak_gpu_bytes,
        unavailable={
            "peak_memory_rss": Unavailable.NO_SENSOR if model.process_ids else Unavailable.REMOTE_PROCESS,
            "peak_memory_gpu_bytes": Unavailable.NO_SENSOR if model.process_ids else Unavailable.REMOTE_PROCESS,
        },
    )
    delta = environment_delta(outcome.before, outcome.after, cores)
    quality, reasons = judge_trial(delta, telemetry, plan.controls, outcome.effective, plan.spec.quality)
    trial_id = digest([plan.digest, cell.phase, *planned.key, cell.attempt])
    return Trial(
        plan_digest=plan.digest,
        phase=cell.phase,
        trial_id=trial_id,
        index=planned.index,
        block=planned.block,
        attempt=cell.attempt,
        started_at=outcome.started_at,
        model_id=planned.model_id,
        quant_tag=planned.quant_tag,
        variant_sha256=artifact.sha256,
        variant_bytes=artifact.bytes,
        bits_per_weight=artifact.bits_per_weight,
        task_id=task.id,
        task_revision=task.revision,
        task_digest=task_digest(task),
        bucket=task.bucket.value,
        tier=task.tier,
        repetition=planned.repetition,
        status=outcome.status,
        failure=outcome.failure,
        served=model.identity,
        controls_requested=plan.controls,
        controls_effective=outcome.effective,
        output_text=text,
        output_sha256=text_digest(text),
        finish_reason=outcome.reply.finish_reason if outcome.reply else None,
        checks=results,
        adherence_score=score,
        telemetry=telemetry,
        environment=Environment(before=outcome.before, during=delta, after=outcome.after, cores=cores),
        run_quality_status=quality,
        run_quality_reasons=reasons,
        vibe_metrics=vibe_metrics(task, text, outcome),
        engine=model.session.engine,
        engine_version=model.session.engine_version,
    )


def view_of(trial: Trial) -> TrialView:
    """Return the part of a row that everything after it reads, as it would be decoded from the journal."""
    return msgspec.convert(trial, TrialView, from_attributes=True)


def vibe_metrics(task: Task, text: str, outcome: Outcome) -> VibeMetrics:
    """The optimisation signals that one trial alone can show; the rest is `null` until the summary."""
    density = code_density(text, task) if outcome.status is TrialStatus.OK else None
    status = {"latency_variance": Unavailable.TOO_FEW_SAMPLES.value, "vibe_delta": Unavailable.NO_REFERENCE.value}
    if density is None:
        status["code_density"] = (Unavailable.NOT_CODE if outcome.status is TrialStatus.OK else Unavailable.TRIAL_FAILED).value
    if outcome.reply is None:
        status["gen_retries"] = Unavailable.TRIAL_FAILED.value
    return VibeMetrics(
        latency_variance=None,
        code_density=density,
        gen_retries=outcome.reply.retries if outcome.reply else None,
        vibe_delta=None,
        status=status,
    )
