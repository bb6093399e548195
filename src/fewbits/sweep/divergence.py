"""Divergence from the reference, before the matrix: the reference is read once, then every variant is compared with it."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fewbits.analysis.divergence import DivergenceRows, select_rows
from fewbits.core.errors import FewbitsError, IdentityError, SpecError, StoreError
from fewbits.core.units import format_seconds
from fewbits.records.divergence import (
    DivergenceKind,
    DivergenceMethod,
    DivergenceReason,
    DivergenceRow,
    EvaluationText,
)
from fewbits.records.plan import Plan
from fewbits.records.variant import IMATRIX_DATASET, Variant
from fewbits.runtimes.base import TEACHER_FILE, Comparison, DivergenceJob, DivergenceMeter, DivergenceUnavailableError, Instrument
from fewbits.runtimes.registry import create_divergence_meter
from fewbits.store.blobs import BlobCache
from fewbits.store.journal import JournalWriter, read_journal
from fewbits.store.run_directory import RunDirectory
from fewbits.sweep.pool import VariantKey
from fewbits.sweep.progress import SweepObserver
from fewbits.workloads.text.evaluation import open_evaluation_text

_DETAIL_LIMIT = 2000
_WORTH_ANOTHER_TRY = frozenset({DivergenceReason.NO_ENGINE, DivergenceReason.ENGINE_FAILED})
"""What the user may have mended since; every other reason would come out the same."""


@dataclass(frozen=True, slots=True)
class _Cell:
    """One row to make: a variant, or (`FLOOR`) the reference against itself."""

    kind: DivergenceKind
    key: VariantKey
    reference_tag: str

    @property
    def label(self) -> str:
        return f"the error floor ({self.key[1]})" if self.kind is DivergenceKind.FLOOR else self.key[1]


@dataclass(frozen=True, slots=True)
class _Bench:
    """Everything that the measuring of all rows shares."""

    plan: Plan
    text: EvaluationText
    job: DivergenceJob
    meter: DivergenceMeter | None
    variants: Mapping[VariantKey, Variant]
    blobs: BlobCache
    observer: SweepObserver

    @property
    def instrument(self) -> Instrument:
        """What measures; a runtime that shows no probabilities at all is named all the same."""
        if self.meter is None:
            return Instrument(DivergenceMethod.SERVER_TOP_LOGPROBS, self.plan.spec.runtime, "", None, self.job.policy.top_k)
        return self.meter.instrument(self.job)


def read_divergence(plan: Plan, directory: RunDirectory) -> DivergenceRows:
    """The rows of this plan that count, from the journal. Raises `StoreError` when it is damaged."""
    return select_rows(read_journal(directory.divergence_path, DivergenceRow).rows, plan.digest)


def measure_divergence(
    plan: Plan,
    variants: Mapping[VariantKey, Variant],
    reference_tags: Mapping[str, str],
    directory: RunDirectory,
    observer: SweepObserver,
    *,
    meter: DivergenceMeter | None = None,
    blobs: BlobCache | None = None,
) -> None:
    """Append what `divergence.jsonl` lacks: per model the error floor, then every variant but the reference.

    `reference_tags` gives each model's reference. The caller holds the directory's lock. Nothing is done where the plan has
    no evaluation text. What cannot be measured becomes a row with its reason, and a notice; raised are only `SpecError` (the
    text is not the one that was planned), `StoreError` (disk) and `IdentityError` (a server holds another model).
    """
    if plan.evaluation_text is None:
        return
    known = read_divergence(plan, directory)
    cells = {model: _missing(plan, known, model, tag) for model, tag in reference_tags.items()}
    if not any(cells.values()):
        return
    bench = _Bench(
        plan=plan,
        text=plan.evaluation_text,
        job=_job(plan, plan.evaluation_text),
        meter=meter or create_divergence_meter(plan.spec.runtime, base_url=plan.spec.base_url),
        variants=variants,
        blobs=blobs or BlobCache(),
        observer=observer,
    )
    writer = JournalWriter(directory.divergence_path)
    try:
        for model_cells in cells.values():
            for row in _rows(bench, model_cells):
                if not _says_nothing_new(known, row):
                    writer.append(row)
    finally:
        writer.close()


def _job(plan: Plan, planned: EvaluationText) -> DivergenceJob:
    """Open the text again, checked against the plan; a pass may take as long as loading and one trial per window."""
    policy = plan.spec.divergence
    opened = open_evaluation_text(policy.text)
    if opened is None or opened[0].digest != planned.digest:
        raise SpecError.single("evaluation_text", f"{policy.text} is not the text that was planned", "restore it, or use --fresh")
    return DivergenceJob(
        text=opened[1],
        evaluation=planned,
        policy=policy,
        controls=plan.controls,
        load_timeout_seconds=plan.spec.load_timeout_seconds,
        timeout_seconds=plan.spec.load_timeout_seconds + policy.windows * plan.spec.trial_timeout_seconds,
    )


def _missing(plan: Plan, known: DivergenceRows, model_id: str, reference_tag: str) -> list[_Cell]:
    """The rows of one model that the journal lacks, the floor first: a reader of an unfinished run can judge what is there."""
    tags = [tag for tag in plan.spec.quants if tag != reference_tag]
    cells = [_Cell(DivergenceKind.FLOOR, (model_id, reference_tag), reference_tag)] if tags else []
    cells += [_Cell(DivergenceKind.VARIANT, (model_id, tag), reference_tag) for tag in tags]
    return [cell for cell in cells if _is_open(_present(known, cell.kind, cell.key))]


def _present(known: DivergenceRows, kind: DivergenceKind, key: VariantKey) -> DivergenceRow | None:
    return known.floors.get(key[0]) if kind is DivergenceKind.FLOOR else known.variants.get(key)


def _is_open(row: DivergenceRow | None) -> bool:
    return row is None or row.unavailable in _WORTH_ANOTHER_TRY


def _says_nothing_new(known: DivergenceRows, row: DivergenceRow) -> bool:
    """Whether another try failed as the one before: the journal must not grow with every resume."""
    before = _present(known, row.kind, (row.model_id, row.quant_tag))
    return before is not None and before.unavailable is row.unavailable


def _rows(bench: _Bench, cells: list[_Cell]) -> Iterator[DivergenceRow]:
    """Make the rows of one model, one by one, so that a kill loses at most the one in work."""
    measurable = []
    for cell in cells:
        if failure := _refusal(bench, cell):
            yield _unavailable(bench, cell, failure)
        else:
            measurable.append(cell)
    if bench.meter is None or not measurable:
        return
    try:
        with _teacher(bench, bench.meter, measurable[0]) as teacher:
            for cell in measurable:
                yield _measured(bench, bench.meter, cell, teacher)
    except DivergenceUnavailableError as failure:
        for cell in measurable:
            yield _unavailable(bench, cell, failure)


def _refusal(bench: _Bench, cell: _Cell) -> DivergenceUnavailableError | None:
    """What is known against a row before anything is run."""
    if bench.meter is None:
        detail = f"the {bench.plan.spec.runtime} runtime shows no probabilities"
        return DivergenceUnavailableError(DivergenceReason.NO_LOG_PROBABILITIES, detail)
    dataset = bench.variants[cell.key].artifact.parameters.get(IMATRIX_DATASET)
    if isinstance(dataset, str) and _file_name(dataset) == _file_name(bench.text.name):
        detail = f"the file says that it was calibrated on {dataset}; choose another evaluation text"
        return DivergenceUnavailableError(DivergenceReason.CALIBRATION_TEXT, detail)
    return None


def _file_name(path: str) -> str:
    """The last part of a path of any operating system, as names are compared: without case."""
    return re.split(r"[\\/]", path)[-1].casefold()


@contextmanager
def _teacher(bench: _Bench, meter: DivergenceMeter, cell: _Cell) -> Iterator[Path]:
    """Yield the reference's file: from the cache, or read now and for now only where nothing proves which weights were read.

    Raises `DivergenceUnavailableError` when it cannot be made.
    """
    reference = bench.variants[cell.key[0], cell.reference_tag]

    def read(output: Path) -> None:
        bench.observer.notice(f"divergence: reading {cell.reference_tag} of {cell.key[0]}, the reference, on {bench.text.name}")
        started = time.perf_counter()
        with _failures_as_reasons():
            meter.read_teacher(reference, bench.job, output)
        bench.observer.notice(f"divergence: the reference was read in {format_seconds(time.perf_counter() - started)}")

    key = meter.teacher_key(reference, bench.job)
    if key is not None:
        yield bench.blobs.get_or_make(key, TEACHER_FILE, read, bench.observer.notice)
        return
    with tempfile.TemporaryDirectory(prefix="fewbits-teacher-") as folder:
        path = Path(folder) / TEACHER_FILE
        read(path)
        yield path


@contextmanager
def _failures_as_reasons() -> Iterator[None]:
    """Turn what an engine or a server fails with into the reason of a row. The disk and a wrong identity are no such thing."""
    try:
        yield
    except (DivergenceUnavailableError, StoreError, IdentityError):
        raise
    except FewbitsError as error:
        raise DivergenceUnavailableError(DivergenceReason.ENGINE_FAILED, str(error)[-_DETAIL_LIMIT:]) from error


def _measured(bench: _Bench, meter: DivergenceMeter, cell: _Cell, teacher: Path) -> DivergenceRow:
    """Compare one variant with the reference, or the reference with itself."""
    compare = meter.compare_with_itself if cell.kind is DivergenceKind.FLOOR else meter.compare
    started = time.perf_counter()
    try:
        with _failures_as_reasons():
            comparison = compare(bench.variants[cell.key], teacher, bench.job)
    except DivergenceUnavailableError as failure:
        return _unavailable(bench, cell, failure, time.perf_counter() - started)
    seconds = time.perf_counter() - started
    bench.observer.notice(f"divergence: {cell.label} of {cell.key[0]} was measured in {format_seconds(seconds)}")
    return _row(bench, cell, comparison, seconds)


def _unavailable(bench: _Bench, cell: _Cell, failure: DivergenceUnavailableError, wall_seconds: float = 0.0) -> DivergenceRow:
    first_line = failure.detail.partition("\n")[0]
    bench.observer.notice(f"divergence: none for {cell.label} of {cell.key[0]} ({failure.reason}): {first_line}")
    row = _row(bench, cell, Comparison((), None, bench.instrument.threads, failure.detail), wall_seconds)
    return msgspec.structs.replace(row, unavailable=failure.reason)


def _row(bench: _Bench, cell: _Cell, comparison: Comparison, wall_seconds: float) -> DivergenceRow:
    instrument = bench.instrument
    model_id, tag = cell.key
    return DivergenceRow(
        plan_digest=bench.plan.digest,
        kind=cell.kind,
        model_id=model_id,
        quant_tag=tag,
        variant_sha256=bench.variants[cell.key].artifact.sha256,
        reference_tag=cell.reference_tag,
        reference_sha256=bench.variants[model_id, cell.reference_tag].artifact.sha256,
        text_name=bench.text.name,
        text_digest=bench.text.digest,
        method=instrument.method,
        engine=instrument.engine,
        engine_version=instrument.engine_version,
        threads=comparison.threads,
        teacher_threads=instrument.threads,
        top_k=instrument.top_k,
        windows=comparison.windows,
        audit=comparison.audit,
        unavailable=None,
        detail=comparison.detail,
        wall_seconds=wall_seconds,
    )
