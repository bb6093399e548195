"""Context sweeps: from the rows and trials of each context to points, the safe ceiling and the rollup. Pure.

The safe ceiling is the largest context such that it and every smaller one of the sweep pass: a larger context that passes above a
failing one does not count, since work of any length up to the ceiling will meet the failing one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from fewbits.analysis.context_words import recommendation
from fewbits.analysis.memory_need import kv_cache_bytes
from fewbits.analysis.statistics import (
    ORDER_STATISTICS,
    Floats,
    estimate,
    mean_estimate,
    paired_by_task,
    quantile_estimate,
    ratio_estimate,
    rounded,
)
from fewbits.analysis.trial_table import Group
from fewbits.records.base import Unavailable
from fewbits.records.context import (
    ContextCeilingArtifact,
    ContextNote,
    ContextPoint,
    ContextReason,
    ContextRollupArtifact,
    ContextThresholds,
    GroupScore,
    LongTaskKind,
    VariantCeiling,
    VariantRollup,
    kind_and_depth,
)
from fewbits.records.estimate import Estimate
from fewbits.records.provenance import SourceFile
from fewbits.records.summary import QuantRow
from fewbits.records.variant import Artifact

RATIO_OF_MEANS = "ratio of means"
_KIND_ORDER = {kind: place for place, kind in enumerate(LongTaskKind)}
_OF_ROWS = ("adherence", "retention", "ttft_ms", "decode_tps", "prompt_tps", "peak_memory_bytes", "peak_memory_gpu_bytes")
_OF_PROMPTS = ("prompt_tokens", "prompt_tokens_min", "prompt_tokens_max", "fill_ratio", "headroom_tokens")
"""What only the trials show."""


@dataclass(frozen=True, slots=True)
class ContextEvidence:
    """What one context left behind for one variant."""

    context: int
    row: QuantRow | None = None
    group: Group | None = None
    """The counted trials; `None` where only the summary was read."""
    answer_tokens: Mapping[str, int] | None = None
    """Task id -> room that was kept for its answer."""
    effective_contexts: tuple[int, ...] = ()
    """Context sizes that the summary says were read back, of any variant; used where there are no trials."""
    artifact: Artifact | None = None
    source: SourceFile | None = None
    """The summary; its path is relative to where the artifact is written."""
    failure: ContextReason | None = None
    """Why there is nothing to judge, where there is not."""
    detail: str = ""


def build_ceiling(
    model_id: str, quant_tag: str, evidence: Sequence[ContextEvidence], thresholds: ContextThresholds
) -> VariantCeiling:
    """Judge every context of a variant (`evidence` ascending by context, not empty) and find its safe ceiling."""
    smallest = evidence[0]
    points = tuple(judge_point(measure(each, smallest), thresholds, smallest=each is smallest) for each in evidence)
    artifact = next((each.artifact for each in evidence if each.artifact is not None), None)
    row = next((each.row for each in evidence if each.row is not None), None)
    ceiling = safe_ceiling(points)
    return VariantCeiling(
        model_id=model_id,
        quant_tag=quant_tag,
        variant_sha256=row.variant_sha256 if row else (artifact.sha256 if artifact else None),
        trained_context=trained_context(artifact),
        safe_context_ceiling=ceiling,
        recommendation=recommendation(points, thresholds, ceiling),
        points=points,
    )


def safe_ceiling(points: Iterable[ContextPoint]) -> int | None:
    """Return the largest context such that it and every smaller one pass; `None` when the smallest fails."""
    ceiling = None
    for point in sorted(points, key=lambda point: point.context):
        if not point.passed:
            return ceiling
        ceiling = point.context
    return ceiling


def trained_context(artifact: Artifact | None) -> int | None:
    """Return how many tokens the model was trained for, where its file or server tells."""
    value = artifact.parameters.get("n_ctx_train") if artifact is not None else None
    return value if isinstance(value, int) and value > 0 else None


# --- measuring -------------------------------------------------------------------------------------------------------


def measure(evidence: ContextEvidence, smallest: ContextEvidence) -> ContextPoint:
    """Return the numbers of one context, not judged yet. `smallest` is what the retention is taken against."""
    row, group = evidence.row, evidence.group
    trained = trained_context(evidence.artifact)
    kv_bytes = kv_cache_bytes(evidence.artifact.parameters, evidence.context) if evidence.artifact is not None else None
    missing: dict[str, str] = {} if kv_bytes is not None else {"kv_cache_bytes": str(Unavailable.NOT_REPORTED)}
    effective = _effective_context(evidence)
    if effective is None:
        missing["context_effective"] = str(Unavailable.NOT_REPORTED if row is not None else Unavailable.NO_TRIALS)
    numbers: dict[str, object] = dict.fromkeys((*_OF_ROWS, *_OF_PROMPTS))
    if row is None:
        missing |= dict.fromkeys(numbers, str(Unavailable.NO_TRIALS))
    else:
        retention, why = _retention(evidence, smallest)
        numbers |= _of_row(row, missing) | {"retention": retention}
        if why:
            missing["retention"] = why
        numbers |= _of_trials(evidence, missing) if group is not None else {"ttft_ms": _ttft_of_row(row)}
        if group is None:
            missing |= dict.fromkeys(_OF_PROMPTS, str(Unavailable.NOT_MEASURED))
    return ContextPoint(
        context=evidence.context,
        context_effective=effective,
        adherence_by_depth=_by_depth(group) if group is not None else (),
        kv_cache_bytes=kv_bytes,
        trials=row.test_runs if row else 0,
        valid=row.valid if row else False,
        invalid_reasons=tuple(str(reason) for reason in row.invalid_reasons) if row else (),
        passed=False,
        reasons=(),
        notes=(ContextNote.BEYOND_TRAINED_CONTEXT,) if trained is not None and evidence.context > trained else (),
        failure=evidence.failure,
        detail=evidence.detail,
        summary_path=evidence.source.path if evidence.source else None,
        summary_sha256=evidence.source.sha256 if evidence.source else None,
        unavailable=dict(sorted(missing.items())),
        **numbers,  # type: ignore[arg-type]  # the names are the record's, checked by its tests
    )


def _of_row(row: QuantRow, missing: dict[str, str]) -> dict[str, object]:
    """Take over what the summary's row already says."""
    fields = {
        "adherence": ("adherence", row.adherence),
        "decode_tps": ("generation_tokens_per_second", row.generation_tokens_per_second),
        "prompt_tps": ("prompt_tokens_per_second", row.prompt_tokens_per_second),
        "peak_memory_bytes": ("peak_memory_rss", row.peak_memory_rss),
        "peak_memory_gpu_bytes": ("peak_memory_gpu_bytes", row.peak_memory_gpu_bytes),
        "ttft_ms": ("time_to_first_token_seconds", row.time_to_first_token_seconds),
    }
    for name, (field, value) in fields.items():
        if value is None:
            missing[name] = row.unavailable.get(field, str(Unavailable.NOT_REPORTED))
    return {name: value for name, (_, value) in fields.items() if name != "ttft_ms"}


def _ttft_of_row(row: QuantRow) -> Estimate | None:
    seconds = row.time_to_first_token_seconds
    if seconds is None:
        return None
    return estimate(
        seconds * 1000, None, None, method=ORDER_STATISTICS, n=row.tasks, reason="the summary holds no interval for it"
    )


def _of_trials(evidence: ContextEvidence, missing: dict[str, str]) -> dict[str, object]:
    """What only the journal shows: time to first token with its interval, and how full the context was."""
    group = evidence.group or Group(())
    timed = group.ok & group.clean
    if not timed.any() and evidence.row is not None and evidence.row.time_to_first_token_seconds is not None:
        timed = group.ok  # the row counted disturbed trials too: the override is on
    first = group.column("telemetry.time_to_first_token_seconds")
    use = timed & np.isfinite(first)
    ttft = quantile_estimate(first[use] * 1000, 0.5, units=len(np.unique(group.task_codes[use])))
    prompt = group.column("telemetry.token_metrics.prompt_tokens")
    counted = prompt[group.replied & np.isfinite(prompt)]
    if not counted.size:
        why = str(Unavailable.NOT_REPORTED if group.replied.any() else Unavailable.TRIAL_FAILED)
        missing |= dict.fromkeys(_OF_PROMPTS, why)
        return {"ttft_ms": ttft}
    median = int(np.median(counted))
    headroom = _headroom(evidence, group, prompt)
    if headroom is None:
        missing["headroom_tokens"] = str(Unavailable.NOT_REPORTED)
    return {
        "ttft_ms": ttft,
        "prompt_tokens": median,
        "prompt_tokens_min": int(counted.min()),
        "prompt_tokens_max": int(counted.max()),
        "fill_ratio": rounded(median / evidence.context),
        "headroom_tokens": headroom,
    }


def _headroom(evidence: ContextEvidence, group: Group, prompt: Floats) -> int | None:
    if evidence.answer_tokens is None:
        return None
    rooms = [
        evidence.context - int(tokens) - evidence.answer_tokens[task]
        for task, tokens in zip(group.values("task_id"), prompt.tolist(), strict=True)
        if math.isfinite(tokens) and task in evidence.answer_tokens
    ]
    return min(rooms, default=None)


def _effective_context(evidence: ContextEvidence) -> int | None:
    """The fewest tokens that the engine said it had, over all trials (or, without trials, in the summary)."""
    read = evidence.effective_contexts
    if evidence.group is not None:
        read = tuple(value for value in evidence.group.values("controls_effective.context_size") if value is not None)
    return min(read, default=None)


def _scores(group: Group) -> dict[str, float]:
    return group.task_means(group.scores, np.ones(len(group.trials), dtype=np.bool_))


def _retention(evidence: ContextEvidence, smallest: ContextEvidence) -> tuple[Estimate | None, str]:
    """Adherence / adherence at the smallest context, paired by question where the trials are known; else why there is none."""
    row, base = evidence.row, smallest.row
    if evidence is smallest or base is None or base.adherence_score is None or row is None:
        return None, str(Unavailable.NO_REFERENCE)
    if row.adherence_score is None:
        return None, str(Unavailable.NO_CHECKS)
    if base.adherence_score <= 0:
        return None, str(Unavailable.ZERO_DENOMINATOR)
    if evidence.group is not None and smallest.group is not None:
        paired = ratio_estimate(*paired_by_task(_scores(evidence.group), _scores(smallest.group)))
        return paired, "" if paired is not None else str(Unavailable.ZERO_DENOMINATOR)
    reason = "the summaries hold no scores by question"
    value = row.adherence_score / base.adherence_score
    return estimate(value, None, None, method=RATIO_OF_MEANS, n=row.tasks, reason=reason), ""


def _by_depth(group: Group) -> tuple[GroupScore, ...]:
    members: dict[tuple[LongTaskKind, float | None], list[float]] = {}
    for task, score in sorted(_scores(group).items()):
        if (place := kind_and_depth(task)) is not None:
            members.setdefault(place, []).append(score)
    ordered = sorted(members, key=lambda place: (_KIND_ORDER[place[0]], -1.0 if place[1] is None else place[1]))
    return tuple(
        GroupScore(
            kind=place[0],
            depth=place[1],
            tasks=len(members[place]),
            adherence=mean_estimate(np.array(members[place], dtype=np.float64)),
        )
        for place in ordered
    )


# --- judging ---------------------------------------------------------------------------------------------------------


def judge_point(point: ContextPoint, thresholds: ContextThresholds, *, smallest: bool) -> ContextPoint:
    """Return the point with its verdict: a function of its own numbers and the limits, so that anybody can repeat it."""
    reasons = tuple(_reasons(point, thresholds, smallest=smallest))
    uncertain = tuple(_uncertain(point, thresholds)) if point.failure is None else ()
    return msgspec.structs.replace(point, passed=not reasons, reasons=reasons, uncertain=uncertain)


def _reasons(point: ContextPoint, limits: ContextThresholds, *, smallest: bool) -> Iterable[ContextReason]:
    if point.failure is not None:
        yield point.failure
        return
    yield from _not_what_was_asked(point, limits)
    yield from _below(point.adherence, limits.adherence_min, _ADHERENCE)
    if not smallest:  # it is what the others are compared with
        yield from _below(point.retention, limits.adherence_retention_min, _RETENTION)
    if limits.ttft_ceiling_ms is not None:
        if point.ttft_ms is None:
            yield ContextReason.TTFT_MISSING
        elif point.ttft_ms.value > limits.ttft_ceiling_ms:
            yield ContextReason.TTFT_ABOVE_CEILING
    if limits.decode_floor_tps is not None:
        if point.decode_tps is None:
            yield ContextReason.DECODE_TPS_MISSING
        elif point.decode_tps < limits.decode_floor_tps:
            yield ContextReason.DECODE_TPS_BELOW_FLOOR


def _not_what_was_asked(point: ContextPoint, limits: ContextThresholds) -> Iterable[ContextReason]:
    """Reasons why the numbers are not those of this context, or not to be trusted."""
    if point.context_effective is None or point.context_effective < point.context:
        yield ContextReason.CONTEXT_NOT_APPLIED
    if point.headroom_tokens is not None and point.headroom_tokens < 0:
        yield ContextReason.PROMPT_OVERFLOW
    if limits.fill_min is not None:
        if point.fill_ratio is None:
            yield ContextReason.FILL_MISSING
        elif point.fill_ratio < limits.fill_min:
            yield ContextReason.CONTEXT_NOT_FILLED
    if not point.valid and not limits.include_invalid:
        yield ContextReason.INVALID_ROW


_ADHERENCE = (ContextReason.ADHERENCE_MISSING, ContextReason.ADHERENCE_BELOW_MIN)
_RETENTION = (ContextReason.RETENTION_MISSING, ContextReason.RETENTION_BELOW_MIN)


def _below(measured: Estimate | None, limit: float | None, codes: tuple[ContextReason, ContextReason]) -> Iterable[ContextReason]:
    if limit is None:
        return
    if measured is None:
        yield codes[0]
    elif measured.value < limit:
        yield codes[1]


def _uncertain(point: ContextPoint, limits: ContextThresholds) -> Iterable[ContextReason]:
    """The limits that lie inside an interval: the estimate decides, and the other answer may be true.

    A score without an interval is uncertain too. A time without one is not called so: it is there for too few tasks only, and
    times of one context lie close together.
    """
    held = (
        (point.adherence, limits.adherence_min, ContextReason.ADHERENCE_BELOW_MIN),
        (point.retention, limits.adherence_retention_min, ContextReason.RETENTION_BELOW_MIN),
        (point.ttft_ms, limits.ttft_ceiling_ms, ContextReason.TTFT_ABOVE_CEILING),
    )
    for measured, limit, reason in held:
        if measured is None or limit is None:
            continue
        if measured.low is None or measured.high is None:
            if reason is not ContextReason.TTFT_ABOVE_CEILING:
                yield reason
        elif measured.low < limit < measured.high:
            yield reason


# --- the rollup ------------------------------------------------------------------------------------------------------


def roll_up(artifact: ContextCeilingArtifact, source: SourceFile, *, generated_at: str) -> ContextRollupArtifact:
    """Count what passed, per variant and for all together. `source` is the ceiling artifact's file."""
    variants = tuple(_variant_rollup(ceiling) for ceiling in artifact.ceilings)
    failed = tuple(context for context in artifact.contexts if any(context in variant.failed_contexts for variant in variants))
    ceilings = [variant.safe_context_ceiling for variant in variants]
    known = [ceiling for ceiling in ceilings if ceiling is not None]
    return ContextRollupArtifact(
        generated_at=generated_at,
        execution_lane=artifact.execution_lane,
        vram_profile=artifact.vram_profile,
        provenance=msgspec.structs.replace(artifact.provenance, sources=(source,)),
        source_context_ceiling=source,
        hardware_fingerprint=artifact.hardware_fingerprint,
        safe_context_ceiling=min(known) if known and len(known) == len(ceilings) else None,
        contexts_total=len(artifact.contexts),
        contexts_passed=len(artifact.contexts) - len(failed),
        contexts_failed=len(failed),
        failed_contexts=failed,
        variants=variants,
    )


def _variant_rollup(ceiling: VariantCeiling) -> VariantRollup:
    failed = tuple(point.context for point in ceiling.points if not point.passed)
    return VariantRollup(
        model_id=ceiling.model_id,
        quant_tag=ceiling.quant_tag,
        safe_context_ceiling=ceiling.safe_context_ceiling,
        contexts_total=len(ceiling.points),
        contexts_passed=len(ceiling.points) - len(failed),
        contexts_failed=len(failed),
        failed_contexts=failed,
    )
