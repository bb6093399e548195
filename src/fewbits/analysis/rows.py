"""One row per variant: every number of it, with a reason for each `null`. What compares with the reference comes after."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import compress
from typing import Any

import msgspec
import numpy as np

from fewbits.analysis.run_quality import judge_row
from fewbits.analysis.statistics import (
    difference_estimate,
    mean_estimate,
    paired_by_task,
    quantile_estimate,
    ratio_estimate,
    rounded,
)
from fewbits.analysis.trial_table import Floats, Group, Mask
from fewbits.core.units import GIB
from fewbits.records.base import RunQuality, TokenStatus, TrialStatus, Unavailable
from fewbits.records.estimate import Estimate
from fewbits.records.plan import QualityPolicy
from fewbits.records.summary import BucketScore, InvalidReason, QuantRow, RowVibe, StatusCounts
from fewbits.records.variant import Artifact

_WORST_FIRST = (
    TokenStatus.TOKEN_AND_TIMING_UNAVAILABLE,
    TokenStatus.TOKEN_COUNT_UNAVAILABLE,
    TokenStatus.TIMING_UNAVAILABLE,
)


@dataclass(frozen=True, slots=True)
class RowInput:
    """What a row is made from. `rank` places the variant among the others of its session (0 = fewest bits)."""

    quant_tag: str
    rank: int
    artifact: Artifact | None
    group: Group
    expected_runs: int
    policy: QualityPolicy
    include_invalid: bool
    ranked_by_tag: bool = False
    """The rank comes from the tag's nominal bits, because there is no file to measure."""


@dataclass(frozen=True, slots=True)
class RowDraft:
    """A row before it is compared with the reference, and the scores by task that the comparison pairs."""

    row: QuantRow
    task_scores: dict[str, float]
    timed: Mask
    """`bool[trials]`: whose times count."""


def build_row(source: RowInput) -> RowDraft:
    """Compute everything that a variant's own trials show. Never raises on missing data: it becomes `null` with a reason."""
    group = source.group
    timed = _timed(source)
    task_scores = group.task_means(group.scores, np.ones(len(group.trials), dtype=np.bool_))
    adherence = mean_estimate(np.array([task_scores[task] for task in sorted(task_scores)], dtype=np.float64))
    quality = _quality(source)
    invalid = _invalid_reasons(source, quality["run_quality_status"], adherence)
    fields: dict[str, Any] = {
        **_identity(source),
        "test_runs": len(group.trials),
        "tasks": len(group.tasks),
        "expected_runs": source.expected_runs,
        "status_counts": _status_counts(group),
        "adherence_score": adherence.value if adherence else None,
        "adherence": adherence,
        "by_bucket": _by_bucket(group, task_scores),
        **_latency(group, timed),
        **_measurements(group, timed),
        "determinism_rate": rounded(_determinism(group)),
        **quality,
        "vibe_metrics": _vibe(group, timed),
        "valid": not invalid,
        "invalid_reasons": invalid,
    }
    missing = {name: _why_missing(name, group, timed) for name, value in fields.items() if value is None}
    if fields["bits_per_weight"] is None and source.ranked_by_tag:
        missing["bits_per_weight"] = str(Unavailable.NOMINAL_BITS)
    row = QuantRow(
        **fields,
        is_reference=False,
        adherence_difference=None,
        adherence_ratio=None,
        meets_adherence=False,
        meets_latency=False,
        eligible=False,
        on_frontier=False,
        dominated_by=(),
        unavailable=missing,
    )
    return RowDraft(row, task_scores, timed)


def _identity(source: RowInput) -> dict[str, Any]:
    artifact = source.artifact
    return {
        "quant_tag": source.quant_tag,
        "quant_rank": source.rank,
        "variant_sha256": artifact.sha256 if artifact else _shared_sha(source.group),
        "variant_bytes": artifact.bytes if artifact else None,
        "bits_per_weight": rounded(artifact.bits_per_weight) if artifact else None,
        "warnings": artifact.warnings if artifact else (),
    }


def compare_with_reference(draft: RowDraft, reference: RowDraft | None) -> QuantRow:
    """Fill in the paired difference and ratio and `vibe_delta`. The reference itself gets the mark and no comparison."""
    row, reasons = draft.row, dict(draft.row.unavailable)
    difference = ratio = None
    if reference is None or reference is draft:
        why = str(Unavailable.NO_REFERENCE)
    else:
        variant, base = paired_by_task(draft.task_scores, reference.task_scores)
        difference, ratio = difference_estimate(variant, base), ratio_estimate(variant, base)
        why = str(Unavailable.ZERO_DENOMINATOR if difference is not None else Unavailable.NO_CHECKS)
    for name, value in (("adherence_difference", difference), ("adherence_ratio", ratio)):
        if value is None:
            reasons[name] = why
    return msgspec.structs.replace(
        row,
        is_reference=reference is draft,
        adherence_difference=difference,
        adherence_ratio=ratio,
        vibe_metrics=_with_vibe_delta(row, reference.row if reference else None),
        unavailable=dict(sorted(reasons.items())),
    )


def _with_vibe_delta(row: QuantRow, reference: QuantRow | None) -> RowVibe:
    """Quality lost per GiB of peak memory saved: (reference adherence - adherence) / (reference rss - rss)."""
    value: float | None = None
    why = Unavailable.NO_REFERENCE
    if reference is not None:
        saved = _saved_gib(row, reference)
        if row.adherence_score is None or reference.adherence_score is None:
            why = Unavailable.NO_CHECKS
        elif saved is None:
            why = Unavailable.NO_SENSOR
        elif saved <= 0:
            why = Unavailable.NOTHING_SAVED
        else:
            value = (reference.adherence_score - row.adherence_score) / saved
    status = dict(row.vibe_metrics.status)
    if value is None:
        status["vibe_delta"] = str(why)
    return msgspec.structs.replace(row.vibe_metrics, vibe_delta=rounded(value), status=dict(sorted(status.items())))


def _saved_gib(row: QuantRow, reference: QuantRow) -> float | None:
    if row.peak_memory_rss is None or reference.peak_memory_rss is None:
        return None
    return (reference.peak_memory_rss - row.peak_memory_rss) / GIB


def _timed(source: RowInput) -> Mask:
    """Trials whose times count: successful and CLEAN; all successful ones when the override is on and none is CLEAN."""
    group = source.group
    timed = group.ok & group.clean
    return group.ok if source.include_invalid and not timed.any() else timed


def _latency(group: Group, timed: Mask) -> dict[str, Any]:
    use = timed & np.isfinite(group.wall)
    units = len(np.unique(group.task_codes[use]))
    median = quantile_estimate(group.wall[use], 0.5, units=units)
    return {
        "total_latency": median.value if median else None,
        "latency_median": median,
        "latency_p95": quantile_estimate(group.wall[use], 0.95, units=units),
    }


def _measurements(group: Group, timed: Mask) -> dict[str, Any]:
    medians = {
        "time_to_first_token_seconds": "telemetry.time_to_first_token_seconds",
        "prefill_seconds": "telemetry.prefill_seconds",
        "decode_seconds": "telemetry.decode_seconds",
        "internal_model_seconds": "telemetry.internal_model_seconds",
        "orchestration_overhead_ratio": "telemetry.orchestration_overhead_ratio",
    }
    columns = {name: group.column(read) for name, read in medians.items()}
    numbers: dict[str, Any] = {name: _middle(column[timed]) for name, column in columns.items()}
    # one load serves many trials: each load counts once
    loads = group.column("telemetry.init_latency")
    numbers["init_latency"] = _middle(np.unique(loads[np.isfinite(loads)]))
    prompt = group.column("telemetry.token_metrics.prompt_tokens")
    cached = group.column("telemetry.token_metrics.cached_prompt_tokens")
    steps = group.column("telemetry.token_metrics.decode_steps")
    counted = timed & group.token_ok
    processed = prompt - np.nan_to_num(cached)
    numbers["prompt_tokens_per_second"] = _total_rate(processed[counted], columns["prefill_seconds"][counted])
    numbers["generation_tokens_per_second"] = _total_rate(steps[counted], columns["decode_seconds"][counted])
    for name, read in (
        ("peak_memory_rss", "telemetry.peak_memory_rss"),
        ("peak_memory_gpu_bytes", "telemetry.peak_memory_gpu_bytes"),
    ):
        column = group.column(read)[timed]
        numbers[name] = int(np.nanmax(column)) if np.isfinite(column).any() else None
    return numbers


def _middle(values: Floats) -> float | None:
    finite = values[np.isfinite(values)]
    return rounded(float(np.median(finite))) if finite.size else None


def _total_rate(tokens: Floats, seconds: Floats) -> float | None:
    """Sum of tokens / sum of seconds: long answers weigh more than short ones, as they do in use."""
    use = np.isfinite(tokens) & np.isfinite(seconds)
    total = math.fsum(seconds[use].tolist())
    return rounded(math.fsum(tokens[use].tolist()) / total) if total > 0 else None


_ALWAYS = {
    "variant_sha256": Unavailable.NOT_REPORTED,
    "variant_bytes": Unavailable.NOT_REPORTED,
    "bits_per_weight": Unavailable.NOT_REPORTED,
}
_OF_SCORES = {
    "adherence_score": Unavailable.NO_CHECKS,
    "adherence": Unavailable.NO_CHECKS,
    "determinism_rate": Unavailable.TOO_FEW_SAMPLES,
}
_OF_TIMED_TRIALS = {
    "time_to_first_token_seconds": Unavailable.NOT_STREAMED,
    "peak_memory_rss": Unavailable.NO_SENSOR,
    "peak_memory_gpu_bytes": Unavailable.NO_SENSOR,
}

_OF_TOKENS = frozenset({"prefill_seconds", "decode_seconds", "prompt_tokens_per_second", "generation_tokens_per_second"})


def _why_missing(name: str, group: Group, timed: Mask) -> str:
    """Say why a field of the row is `null`."""
    if name in _ALWAYS:
        return str(_ALWAYS[name])
    if not group.trials:
        return str(Unavailable.NO_TRIALS)
    if name in _OF_SCORES:
        return str(_OF_SCORES[name])
    if not timed.any():
        return str(Unavailable.NO_CLEAN_TRIALS if group.ok.any() else Unavailable.TRIAL_FAILED)
    if name in _OF_TOKENS:
        return str(_why_no_tokens(name, group, timed))
    return str(_OF_TIMED_TRIALS.get(name, Unavailable.NOT_REPORTED))


def _why_no_tokens(name: str, group: Group, timed: Mask) -> Unavailable:
    if set(compress(group.values("telemetry.token_metrics.status"), group.replied)) == {TokenStatus.NO_TOKENS}:
        return Unavailable.NO_TOKENS
    if not name.endswith("_per_second"):
        return Unavailable.NOT_REPORTED
    return Unavailable.ZERO_DENOMINATOR if (timed & group.token_ok).any() else Unavailable.TOKEN_STATUS_NOT_OK


def _shared_sha(group: Group) -> str | None:
    digests = set(group.values("variant_sha256"))
    return digests.pop() if len(digests) == 1 else None


def _determinism(group: Group) -> float | None:
    """Share of tasks whose successful repetitions gave the same text; two identical crashes are no determinism."""
    outputs: dict[str, list[str]] = {}
    for trial in group.trials:
        if trial.status is TrialStatus.OK:
            outputs.setdefault(trial.task_id, []).append(trial.output_sha256)
    repeated = [texts for texts in outputs.values() if len(texts) > 1]
    return sum(len(set(texts)) == 1 for texts in repeated) / len(repeated) if repeated else None


def _status_counts(group: Group) -> StatusCounts:
    seen = Counter(group.values("status"))
    return StatusCounts(**{status.value.lower(): seen[status] for status in TrialStatus})


def _by_bucket(group: Group, task_scores: Mapping[str, float]) -> tuple[BucketScore, ...]:
    members: dict[str, set[str]] = {}
    for bucket, task in set(zip(group.values("bucket"), group.values("task_id"), strict=True)):
        members.setdefault(bucket, set()).add(task)
    scored = {bucket: sorted(tasks & task_scores.keys()) for bucket, tasks in sorted(members.items())}
    return tuple(
        BucketScore(
            bucket=bucket,
            tasks=len(members[bucket]),
            adherence_score=rounded(math.fsum(task_scores[task] for task in tasks) / len(tasks)) if tasks else None,
        )
        for bucket, tasks in scored.items()
    )


def missing_telemetry(group: Group) -> tuple[int, int]:
    """Return (replies without counts or timings, replies). A trial that failed before its reply is a failure, not a gap."""
    return int((group.replied & ~group.telemetry_complete).sum()), int(group.replied.sum())


def _quality(source: RowInput) -> dict[str, Any]:
    group = source.group
    runs = len(group.trials)
    missing, replies = missing_telemetry(group)
    # nothing replied: nothing was shown, which is as bad as it gets
    missing_rate = missing / replies if replies else 1.0
    polluted_rate = float((~group.clean).mean()) if runs else 0.0
    reasons = {reason for reasons in set(group.values("run_quality_reasons")) for reason in reasons}
    quality, row_reasons = judge_row(
        polluted_run_rate=polluted_rate, missing_telemetry_rate=missing_rate, trial_reasons=reasons, policy=source.policy
    )
    statuses = set(compress(group.values("telemetry.token_metrics.status"), group.replied))
    complete = TokenStatus.NO_TOKENS if statuses == {TokenStatus.NO_TOKENS} else TokenStatus.OK
    worst = next((status for status in _WORST_FIRST if status in statuses), complete)
    return {
        "token_metrics_status": worst if replies else TokenStatus.TOKEN_AND_TIMING_UNAVAILABLE,
        "missing_telemetry_rate": rounded(missing_rate),
        "polluted_run_rate": rounded(polluted_rate),
        "clean_runs": int(group.clean.sum()),
        "run_quality_status": quality,
        "run_quality_reasons": row_reasons,
    }


def _invalid_reasons(source: RowInput, quality: RunQuality, adherence: Estimate | None) -> tuple[InvalidReason, ...]:
    group = source.group
    missing, replies = missing_telemetry(group)
    rules = {
        InvalidReason.NO_TRIALS: not group.trials,
        InvalidReason.NO_CLEAN_TRIALS: not (group.ok & group.clean).any(),
        InvalidReason.INCOMPLETE: len(group.trials) < source.expected_runs,
        InvalidReason.POLLUTED: quality is RunQuality.POLLUTED,
        InvalidReason.MISSING_TELEMETRY: not replies or missing / replies > source.policy.row_max_missing_telemetry_rate,
        InvalidReason.NO_SCORES: adherence is None,
    }
    return tuple(sorted(reason for reason, applies in rules.items() if applies))


def _vibe(group: Group, timed: Mask) -> RowVibe:
    variation = _latency_variation(group, timed)
    density = group.column("vibe_metrics.code_density")
    retries = group.column("vibe_metrics.gen_retries")
    values = {
        "latency_variance": rounded(variation),
        "code_density": rounded(math.fsum(density[np.isfinite(density)].tolist()) / np.isfinite(density).sum())
        if np.isfinite(density).any()
        else None,
    }
    total_retries = int(np.nansum(retries)) if np.isfinite(retries).any() else None
    why = {
        "latency_variance": Unavailable.TOO_FEW_SAMPLES,
        "code_density": Unavailable.NOT_CODE,
        "gen_retries": Unavailable.NOT_REPORTED,
    }
    status = {name: str(why[name]) for name, value in {**values, "gen_retries": total_retries}.items() if value is None}
    return RowVibe(**values, gen_retries=total_retries, vibe_delta=None, status=status)


def _latency_variation(group: Group, timed: Mask) -> float | None:
    """Mean over tasks of sample standard deviation / mean of wall seconds; tasks timed at least twice only."""
    use = timed & np.isfinite(group.wall)
    codes, seconds = group.task_codes[use], group.wall[use]
    counts = np.bincount(codes, minlength=len(group.tasks))
    means = np.bincount(codes, weights=seconds, minlength=len(group.tasks)) / np.maximum(counts, 1)
    squares = np.bincount(codes, weights=(seconds - means[codes]) ** 2, minlength=len(group.tasks))
    repeated = (counts > 1) & (means > 0)
    if not repeated.any():
        return None
    return float(np.mean(np.sqrt(squares[repeated] / (counts[repeated] - 1)) / means[repeated]))
