"""The proof of a recipe: files on held-out text against the same reference, and the recipe against the stock file on tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fewbits.analysis.divergence import estimate_divergence
from fewbits.analysis.recipe_verdict import reduction_estimate
from fewbits.api.recipe_request import NO_TASKS, RecipeRequest
from fewbits.api.sweeps import prepare_sweep, run_sweep
from fewbits.core.codec import digest, encode_canonical
from fewbits.core.errors import BackendError, PrerequisiteError, ProtocolError, StoreError
from fewbits.core.files import atomic_write
from fewbits.quantizers.llamacpp.gguf_file import GgufFile, describe_file
from fewbits.records.divergence import (
    DivergenceKind,
    DivergencePolicy,
    DivergenceReason,
    DivergenceRow,
    EvaluationText,
    WindowDivergence,
)
from fewbits.records.plan import Controls
from fewbits.records.recipe import HeldOut, TaskComparison
from fewbits.records.summary import VerdictDetail
from fewbits.records.variant import Variant
from fewbits.runtimes.base import TEACHER_FILE, DivergenceJob, DivergenceMeter, DivergenceUnavailableError
from fewbits.store.blobs import BlobCache
from fewbits.sweep.progress import SweepObserver

_RESULT_FILE = "held_out.json"
_RESULT_SCHEMA = "fewbits.held-out.v1"
_SECONDS_PER_WINDOW = 300.0
_LOAD_SECONDS = 600.0
_HARM_LEVEL = 0.01
"""Only for the test against a harm line, which a recipe does not use."""


class _Windows(msgspec.Struct):
    windows: tuple[WindowDivergence, ...]


@dataclass(frozen=True, slots=True)
class ProofFile:
    """A file to be judged: its label, where it lies, and its identity."""

    label: str
    path: Path
    sha256: str
    file: GgufFile

    @property
    def variant(self) -> Variant:
        """The file as meters take it."""
        return variant_of(self.file, self.sha256)


def variant_of(file: GgufFile, sha256: str) -> Variant:
    """Describe a GGUF file as a variant."""
    return describe_file(file, sha256, file.path.name, file.dominant_type)


def divergence_job(text: tuple[EvaluationText, str], *, windows: int, window_tokens: int, controls: Controls) -> DivergenceJob:
    """Return the job of reading `windows` windows of a text."""
    policy = DivergencePolicy(text=text[0].name, windows=windows, window_tokens=window_tokens)
    return DivergenceJob(
        text=text[1],
        evaluation=text[0],
        policy=policy,
        controls=controls,
        load_timeout_seconds=_LOAD_SECONDS,
        timeout_seconds=_LOAD_SECONDS + windows * _SECONDS_PER_WINDOW,
    )


@contextmanager
def _explained() -> Iterator[None]:
    """Turn the meter's refusals into errors that end the command."""
    try:
        yield
    except DivergenceUnavailableError as refusal:
        raise BackendError("divergence", refusal.detail or str(refusal)) from refusal


class HeldOutBench:
    """Measures files on one text against one reference. What was measured once is found in the cache again."""

    def __init__(
        self, meter: DivergenceMeter, reference: Variant, job: DivergenceJob, blobs: BlobCache, progress: Callable[[str], None]
    ) -> None:
        self._meter = meter
        self._reference = reference
        self._job = job
        self._blobs = blobs
        self._progress = progress
        self._teacher: Path | None = None

    @property
    def engine(self) -> tuple[str, str]:
        """Name and version of what measures."""
        instrument = self._meter.instrument(self._job)
        return instrument.engine, instrument.engine_version

    def teacher(self) -> Path:
        """The reference's file, read when it is first needed.

        Raises `PrerequisiteError` (no engine that shows logits), `BackendError` (it failed; a short text), `StoreError`.
        """
        if self._teacher is None:
            with _explained():
                self._teacher = self._blobs.get_or_make(self._key(), TEACHER_FILE, self._read, self._progress)
        return self._teacher

    def windows(self, file: ProofFile) -> tuple[WindowDivergence, ...]:
        """Measure a file. Raises as `teacher`."""
        key = digest({"schema": _RESULT_SCHEMA, "teacher": self._key(), "sha256": file.sha256})
        path = self._blobs.get_or_make(key, _RESULT_FILE, lambda output: self._compare(file, output), self._progress)
        try:
            return msgspec.json.decode(path.read_bytes(), type=_Windows).windows
        except (OSError, msgspec.DecodeError) as error:
            msg = f"{path} cannot be read: {error}. Remove it to measure again."
            raise StoreError(msg) from error

    def summed_up(
        self, file: ProofFile, windows: tuple[WindowDivergence, ...], stock: tuple[WindowDivergence, ...] | None
    ) -> HeldOut:
        """Sum up what was measured of a file; `stock` are the stock file's windows, `None` for the stock file itself."""
        estimates = estimate_divergence(self._row(file, windows), None, divergence_level=_HARM_LEVEL)
        return HeldOut(
            label=file.label,
            bytes=file.file.bytes,
            bits_per_weight=file.file.bits_per_weight,
            sha256=file.sha256,
            kl_nats=estimates.mean_nats,
            top_token_agreement=estimates.top_token_agreement,
            against_stock=None if stock is None else reduction_estimate(windows, stock),
            types={row.ggml_type: row.tensors for row in file.file.census},
            unavailable="" if windows else "the text gave no windows",
        )

    def _row(self, file: ProofFile, windows: tuple[WindowDivergence, ...]) -> DivergenceRow:
        instrument = self._meter.instrument(self._job)
        return DivergenceRow(
            plan_digest=self._key(),
            kind=DivergenceKind.VARIANT,
            model_id=file.file.path.name,
            quant_tag=file.label,
            variant_sha256=file.sha256,
            reference_tag=self._reference.artifact.scheme,
            reference_sha256=self._reference.artifact.sha256,
            text_name=self._job.evaluation.name,
            text_digest=self._job.evaluation.digest,
            method=instrument.method,
            engine=instrument.engine,
            engine_version=instrument.engine_version,
            threads=instrument.threads,
            teacher_threads=instrument.threads,
            top_k=instrument.top_k,
            windows=windows,
            audit=None,
            unavailable=None if windows else DivergenceReason.TEXT_TOO_SHORT,
            wall_seconds=0.0,
        )

    def _key(self) -> str:
        key = self._meter.teacher_key(self._reference, self._job)
        if key is None:
            raise PrerequisiteError("no engine that shows logits", "Install it with `pip install 'fewbits[llamacpp]'`.")
        return key

    def _read(self, output: Path) -> None:
        self._progress(f"reading the reference on {self._job.evaluation.name}")
        self._meter.read_teacher(self._reference, self._job, output)

    def _compare(self, file: ProofFile, output: Path) -> None:
        teacher = self.teacher()
        self._progress(f"measuring {file.label} on {self._job.evaluation.name}")
        with _explained():
            found = self._meter.compare(file.variant, teacher, self._job)
        atomic_write(output, encode_canonical(_Windows(found.windows)))


def unmeasured(label: str, reason: str) -> HeldOut:
    """A file that could not be made: its row says why."""
    return HeldOut(
        label=label,
        bytes=0,
        bits_per_weight=0.0,
        sha256=None,
        kl_nats=None,
        top_token_agreement=None,
        against_stock=None,
        types={},
        unavailable=reason,
    )


def compare_on_tasks(
    request: RecipeRequest, model: str, tags: tuple[str, str], folder: Path, observer: SweepObserver
) -> TaskComparison | None:
    """Run a sweep of the stock file (the reference) and the recipe on tasks; `tags` are stock and recipe.

    `None` where the request wants no tasks. An engine that is missing or fails is a reason in the result; everything else is
    raised as `prepare_sweep` and `run_sweep` do.
    """
    if request.tasks == NO_TASKS:
        return None
    stock, recipe = tags
    flags = {
        "models": [model],
        "quants": [stock, recipe],
        "reference_quant": stock,
        "task_bank": request.tasks,
        "task_limit": str(request.task_limit),
        "runtime": "llamacpp",
        "evaluation_text": "none",
        "canary_runs": "0",
        "determinism_tasks": "0",
        "baselines": False,
        "seed": str(request.seed),
        "out_dir": str(folder),
    }
    if request.threads is not None:
        flags["threads"] = str(request.threads)
    prepared = prepare_sweep(flags, None)
    asked = len(prepared.plan.tasks)
    try:
        summary = run_sweep(prepared, observer)
    except (PrerequisiteError, BackendError, ProtocolError) as error:
        return _comparison(request, asked, folder, None, str(error).partition("\n")[0])
    rows = [row for session in summary.sessions for row in session.per_quant if row.quant_tag == recipe]
    verdict = rows[0].verdict if rows else None
    if verdict is None:
        return _comparison(request, asked, folder, None, "the sweep gave no verdict")
    return _comparison(request, verdict.items_used, folder, verdict, "")


def _comparison(
    request: RecipeRequest, items: int, folder: Path, verdict: VerdictDetail | None, unavailable: str
) -> TaskComparison:
    return TaskComparison(
        bank=request.tasks,
        items=items,
        difference=verdict.difference if verdict else None,
        verdict=verdict.verdict if verdict else None,
        run=folder.name,
        unavailable=unavailable,
    )
