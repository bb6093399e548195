"""Baselines: what a test is called, which stored record belongs to a run, and how a row differs from it. Pure.

Statistics are imported where they are used: looking a baseline up needs none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from fewbits.analysis.wording import listed
from fewbits.core.codec import digest, text_digest
from fewbits.core.files import safe_name
from fewbits.records.base import Unavailable
from fewbits.records.baseline import (
    BaselineComparison,
    BaselineHistory,
    BaselineMatch,
    BaselineRecord,
    BaselineStatus,
    GoldTelemetry,
)
from fewbits.records.estimate import Estimate
from fewbits.records.plan import Plan
from fewbits.records.summary import QuantRow

if TYPE_CHECKING:
    from fewbits.analysis.statistics import Floats

TEST_ID_LIMIT = 120
SWEEP_PREFIX = "sweep."
"""Task ids hold no dot, so a sweep's test can never be a task's."""
MEANS = "difference of means, not paired"
MEDIANS = "ratio of medians, not paired"
_NO_TASK_VALUES = "the baseline holds no values by task, so nothing can be paired and there is no interval"
_NO_SHARED_TASKS = "the row and the baseline share no task with values, so nothing can be paired and there is no interval"
_SHOWN = 3
_FIELDS = (
    "adherence_difference",
    "baseline_created_at",
    "baseline_ref",
    "latency_ratio",
    "memory_ratio",
    "same_engine",
    "same_weights",
)


@dataclass(frozen=True, slots=True)
class BaselineQuery:
    """What a baseline must be of. `ref` names one record; `None`: the newest that matches."""

    test_id: str
    hardware_fingerprint: str
    task_revision: str
    ref: str | None = None


def sweep_test_id(model_id: str, quant_tag: str) -> str:
    """Return the test id of a sweep row: `sweep.<model>.<quant>`, safe as a file name, different for different rows."""
    whole = f"{SWEEP_PREFIX}{safe_name(model_id)}.{_without_dots(quant_tag)}"
    if len(whole) <= TEST_ID_LIMIT:
        return whole
    mark = text_digest(f"{model_id}\n{quant_tag}")[:12]
    return f"{whole[: TEST_ID_LIMIT - len(mark) - 1]}-{mark}"


def _without_dots(quant_tag: str) -> str:
    """Return a safe name without dots: the last dot of a test id then always ends the model's name."""
    name = safe_name(quant_tag)
    return name if "." not in name else f"{name.replace('.', '_')}-{text_digest(quant_tag)[:8]}"


def tasks_revision(pairs: Iterable[tuple[str, str]]) -> str:
    """Return the revision of a set of tasks, from their (id, digest) pairs in any order: sha256 hex digits."""
    return digest(sorted(list(pair) for pair in pairs))


def plan_revision(plan: Plan) -> str:
    """Return the revision of a plan's tasks."""
    return tasks_revision((task.task_id, task.digest) for task in plan.tasks)


def moment(text: str) -> datetime:
    """Read an ISO 8601 time; without a zone it is UTC. Raises `ValueError`."""
    try:
        read = datetime.fromisoformat(text)
        return read.replace(tzinfo=UTC) if read.tzinfo is None else read.astimezone(UTC)
    except OverflowError as error:
        msg = f"{text!r} is beyond the calendar"
        raise ValueError(msg) from error


def newest_last(records: Sequence[BaselineRecord]) -> list[BaselineRecord]:
    """Order records by their date; of equal dates the one later in the file comes later. Raises `ValueError` on a bad date."""
    return sorted(records, key=lambda record: moment(record.baseline_metadata.created_at))


def find_baseline(
    history: BaselineHistory | None, query: BaselineQuery, *, model_id: str = "", quant_tag: str = "", variant_hash: str = ""
) -> BaselineMatch:
    """Find the record for a run: test first, then hardware, then task revision; the newest of what is left, or the one named.

    A record that is asked for by its reference must match hardware and revision like any other, and no other takes its place.
    """
    status, detail, record = _choose(history.history if history is not None else (), query)
    return BaselineMatch(
        model_id=model_id,
        quant_tag=quant_tag,
        test_id=query.test_id,
        status=status,
        detail=detail,
        record=record,
        variant_hash=variant_hash,
    )


def _choose(records: Sequence[BaselineRecord], query: BaselineQuery) -> tuple[BaselineStatus, str, BaselineRecord | None]:
    if not records:
        return BaselineStatus.NO_BASELINE, f"Nothing is stored for {query.test_id}.", None
    candidates = newest_last(records)
    if query.ref is not None:
        named = [record for record in candidates if record.baseline_metadata.test_run_id == query.ref]
        if not named:
            there = _some([record.baseline_metadata.test_run_id for record in reversed(candidates)])
            return BaselineStatus.REF_NOT_FOUND, f"{query.test_id} has no baseline {query.ref}; there is {there}.", None
        candidates = named
    here = [record for record in candidates if record.baseline_metadata.hardware_fingerprint == query.hardware_fingerprint]
    if not here:
        there = _some([record.baseline_metadata.hardware_fingerprint for record in reversed(candidates)])
        words = f"{_subject(query, len(candidates))} is from {there}, not from {query.hardware_fingerprint}."
        return BaselineStatus.HW_MISMATCH, words, None
    same = [record for record in here if record.baseline_metadata.task_revision == query.task_revision]
    if not same:
        there = _some([record.baseline_metadata.task_revision for record in reversed(here)])
        words = f"{_subject(query, len(here))} from this hardware is of task revision {there}, not of {query.task_revision}."
        return BaselineStatus.REV_MISMATCH, words, None
    return BaselineStatus.OK, _found_words(query, same), same[-1]


def _subject(query: BaselineQuery, records: int) -> str:
    if query.ref is not None:
        return f"The baseline {query.ref} of {query.test_id}"
    return f"Every baseline of {query.test_id} ({records})" if records > 1 else f"The only baseline of {query.test_id}"


def _found_words(query: BaselineQuery, same: Sequence[BaselineRecord]) -> str:
    found = same[-1].baseline_metadata
    which = (
        "as asked for"
        if query.ref is not None
        else f"the newest of {len(same)} that match"
        if len(same) > 1
        else "the only match"
    )
    forced = f" It was stored by force, in spite of {listed(found.forced_because)}." if found.forced else ""
    return f"{found.test_run_id} of {query.test_id}, stored {found.created_at}: {which}.{forced}"


def _some(names: Sequence[str]) -> str:
    """Return the first few distinct names, and how many follow."""
    distinct = list(dict.fromkeys(names))
    hidden = len(distinct) - _SHOWN
    return listed(distinct if hidden <= 0 else [*distinct[:_SHOWN], f"{hidden} more"])


def compare_with_baseline(
    match: BaselineMatch,
    row: QuantRow,
    task_scores: Mapping[str, float],
    task_seconds: Mapping[str, float],
    *,
    engines: Iterable[tuple[str, str]] = (),
) -> BaselineComparison:
    """Compare a row with the record that was found for it; without one, say why there is no comparison.

    `task_scores` and `task_seconds` map task id to mean adherence and mean seconds of clean trials; `engines` are the (name,
    version) pairs that ran the row's trials.
    """
    ours = GoldTelemetry(
        adherence_score=row.adherence_score,
        peak_memory_rss=row.peak_memory_rss,
        total_latency=row.total_latency,
        task_scores=dict(task_scores),
        task_seconds=dict(task_seconds),
    )
    return compare_measured(match, ours, variant_hash=row.variant_sha256 or match.variant_hash, engines=engines)


def compare_measured(
    match: BaselineMatch, ours: GoldTelemetry, *, variant_hash: str, engines: Iterable[tuple[str, str]] = ()
) -> BaselineComparison:
    """Compare what was measured with the record that was found (differences: ours minus the baseline's)."""
    if match.status is not BaselineStatus.OK or match.record is None:
        why = dict.fromkeys(_FIELDS, str(match.status))
        return BaselineComparison(status=match.status, detail=match.detail, test_id=match.test_id, unavailable=why)
    known, gold = match.record.baseline_metadata, match.record.gold_telemetry
    engine = engine_words(engines)
    found: dict[str, Estimate | float | bool | Unavailable] = {
        "adherence_difference": _adherence_difference(ours, gold),
        "latency_ratio": _latency_ratio(ours, gold),
        "memory_ratio": _memory_ratio(ours, gold),
        "same_weights": variant_hash == known.model_hash if variant_hash and known.model_hash else Unavailable.NOT_REPORTED,
        "same_engine": engine == (known.engine, known.engine_version)
        if engine[1] and known.engine_version
        else Unavailable.NOT_REPORTED,
    }
    return BaselineComparison(
        status=match.status,
        detail=match.detail,
        test_id=match.test_id,
        baseline_ref=known.test_run_id,
        baseline_created_at=known.created_at,
        **{name: value for name, value in found.items() if not isinstance(value, Unavailable)},  # type: ignore[arg-type]
        unavailable={name: str(value) for name, value in sorted(found.items()) if isinstance(value, Unavailable)},
    )


def engine_words(engines: Iterable[tuple[str, str]]) -> tuple[str, str]:
    """Return one engine name and version; several (a run resumed after an update) are joined, so that it shows."""
    seen = set(engines)
    return ", ".join(sorted({name for name, _ in seen})), ", ".join(sorted({version for _, version in seen}))


def _adherence_difference(ours: GoldTelemetry, gold: GoldTelemetry) -> Estimate | Unavailable:
    from fewbits.analysis.statistics import difference_estimate, estimate, paired_by_task

    paired = difference_estimate(*paired_by_task(ours.task_scores, gold.task_scores))
    if paired is not None:
        return paired
    if ours.adherence_score is None or gold.adherence_score is None:
        return Unavailable.NO_CHECKS
    value = ours.adherence_score - gold.adherence_score
    return estimate(value, None, None, method=MEANS, n=0, reason=_why_unpaired(gold.task_scores))


def _latency_ratio(ours: GoldTelemetry, gold: GoldTelemetry) -> Estimate | Unavailable:
    from fewbits.analysis.statistics import estimate, paired_by_task, ratio_estimate

    mine, theirs = paired_by_task(ours.task_seconds, gold.task_seconds)
    paired = ratio_estimate(*_in_units_of_the_longest(mine, theirs))
    if paired is not None:
        return paired
    if ours.total_latency is None or gold.total_latency is None:
        return Unavailable.NO_CLEAN_TRIALS
    if gold.total_latency <= 0:
        return Unavailable.ZERO_DENOMINATOR
    value = ours.total_latency / gold.total_latency
    return estimate(value, None, None, method=MEDIANS, n=0, reason=_why_unpaired(gold.task_seconds))


def _in_units_of_the_longest(mine: Floats, theirs: Floats) -> tuple[Floats, Floats]:
    """Scale seconds into 0..1: the ratio stays, and the bound on unseen tasks then means none that takes longer than any here."""
    longest = max([*mine.tolist(), *theirs.tolist()], default=0.0)
    return (mine / longest, theirs / longest) if longest > 0 else (mine, theirs)


def _memory_ratio(ours: GoldTelemetry, gold: GoldTelemetry) -> float | Unavailable:
    if ours.peak_memory_rss is None or gold.peak_memory_rss is None:
        return Unavailable.NO_SENSOR
    if gold.peak_memory_rss <= 0:
        return Unavailable.ZERO_DENOMINATOR
    return round(ours.peak_memory_rss / gold.peak_memory_rss, 6)


def _why_unpaired(values_by_task: Mapping[str, float]) -> str:
    return _NO_SHARED_TASKS if values_by_task else _NO_TASK_VALUES
