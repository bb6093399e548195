"""What an extraction sweep is asked for, and its plan: pages, labels, engines. Makes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fewbits.api.extract_chat import ExtractionDispatch
from fewbits.api.extract_results import labels_digest
from fewbits.api.extract_variants import PIPELINE, ExtractionVariants, engine_tags
from fewbits.api.sweeps import REPOSITORY_ROOT, PreparedSweep
from fewbits.core.codec import digest
from fewbits.core.errors import Problem, SpecError
from fewbits.core.git import commit_sha
from fewbits.images.pages import PAGE_LIMIT, find_inputs
from fewbits.probes.machine import default_threads, hardware_fingerprint, total_memory_bytes, usable_cores
from fewbits.records.extraction import ExtractionSettings, LabelledReports
from fewbits.records.extraction_run import PageLabel, PageLabels
from fewbits.runtimes.extraction.pipeline import without_patient
from fewbits.runtimes.extraction.runtime import ExtractionOptions
from fewbits.spec.load import load_spec
from fewbits.store.artifacts import ArtifactCache
from fewbits.sweep.plan import build_plan, resolve_block_tasks
from fewbits.workloads.extraction.labelled import LABELS_NAME, read_labelled
from fewbits.workloads.extraction.tasks import InputPage, extraction_bank, pages_of, task_id

CANARY_LIMIT = 0.1
"""How far a page's time may vary in the canary, as a share, unless told otherwise. The lab's own limit is 3 %: on a quiet machine
one page varied by 3.2 % with 1 % of foreign load. Engines are compared by ratios within a block, which bear more.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractRequest:
    """An extraction benchmark as people ask for it. `settings` are flags of an ordinary sweep, by key."""

    input_dir: Path
    out_dir: Path
    engines: tuple[str, ...] = ("ocr",)
    repeats: int = 3
    warmup_runs: int = 1
    sample_size: int = 0
    """The first so many files; 0: all."""
    page_limit: int = PAGE_LIMIT
    """Pages of one file."""
    model: str | None = None
    """The vision-language model: a folder, or a name on the hub."""
    chat_model: str | None = None
    """The chat model of `ocr+chat`: a GGUF file, or a packaged name."""
    device: str = "cpu"
    max_retries: int = 2
    max_new_tokens: int = 2048
    tolerance: float = 0.0
    redact: bool = False
    settings: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PreparedExtraction:
    """An extraction sweep that was planned but has touched nothing yet."""

    sweep: PreparedSweep
    labels: PageLabels
    files: tuple[Path, ...]


def prepare_extraction(request: ExtractRequest, cache: ArtifactCache | None = None) -> PreparedExtraction:
    """Look for pages and labels, check engines, and plan. Raises `SpecError`, `PrerequisiteError`, `StoreError`."""
    _check_settings(request)
    tags = engine_tags(request.engines)
    files = find_inputs(request.input_dir)
    files = files[: request.sample_size] if request.sample_size else files
    folder = request.input_dir if request.input_dir.is_dir() else request.input_dir.parent
    pages = pages_of(files, _labels(folder), page_limit=request.page_limit)
    if request.redact:
        pages = tuple(_redacted(page) for page in pages)
    bank = extraction_bank(folder, pages, f"pages:{folder.name or 'input'}", tolerance=request.tolerance)
    labels = PageLabels(pages=tuple(_label(index, page) for index, page in enumerate(pages, 1)))
    cache = cache or ArtifactCache()
    variants = ExtractionVariants(cache, default_threads(), request.model, request.chat_model)
    source = variants.locate(PIPELINE)
    for tag in tags:
        variants.check(source, tag)
    spec = load_spec(
        _flags(request, tags, folder),
        available_cores=usable_cores(),
        root=REPOSITORY_ROOT,
        extraction=_settings(request, folder, labels),
    )
    plan = build_plan(
        spec,
        models=[source],
        tasks=bank.tasks,
        bank_digest=digest(bank),
        cores=default_threads(),
        fingerprint=hardware_fingerprint(),
        commit_sha=commit_sha(REPOSITORY_ROOT),
        block_tasks=resolve_block_tasks([variants.estimate_bytes(source, tag) for tag in tags], total_memory_bytes()),
    )
    options = ExtractionOptions(
        page_folder=folder,
        max_retries=request.max_retries,
        redact=request.redact,
        device=request.device,
        max_new_tokens=request.max_new_tokens,
    )
    runtime = ExtractionDispatch(options, cache)
    sweep = PreparedSweep(plan, {task.id: task for task in bank.tasks}, {PIPELINE: source}, variants, runtime)
    return PreparedExtraction(sweep, labels, tuple(files))


def _check_settings(request: ExtractRequest) -> None:
    checks = (
        (request.repeats < 1, "--repeats", f"{request.repeats} is not a number of repeats", "at least 1"),
        (request.warmup_runs < 0, "--warmup-runs", f"{request.warmup_runs} is not a number of runs", "0 or more"),
        (request.sample_size < 0, "--sample-size", f"{request.sample_size} is not a number of files", "0 for all"),
        (not 0 <= request.tolerance < 1, "--tolerance", f"{request.tolerance:g} does not lie in 0..1", "0: as printed"),
        (not 0 <= request.max_retries <= 10, "--max-retries", f"{request.max_retries} does not lie in 0..10", ""),
        (not 1 <= request.max_new_tokens <= 100_000, "--max-new-tokens", f"{request.max_new_tokens} is out of range", ""),
    )
    if problems := [Problem(where, message, hint) for wrong, where, message, hint in checks if wrong]:
        raise SpecError(problems)


def _labels(folder: Path) -> LabelledReports | None:
    return read_labelled(folder) if (folder / LABELS_NAME).exists() else None


def _redacted(page: InputPage) -> InputPage:
    """Leave the patient out of the truth too: a run's folder holds it."""
    return page if page.truth is None else replace(page, truth=without_patient(page.truth))


def _label(index: int, page: InputPage) -> PageLabel:
    return PageLabel(task_id=task_id(index), image=page.file_name, page=page.page, level=page.level, truth=page.truth)


def _settings(request: ExtractRequest, folder: Path, labels: PageLabels) -> ExtractionSettings:
    return ExtractionSettings(
        pages=str(folder),
        labels_digest=labels_digest(labels),
        max_retries=request.max_retries,
        redact=request.redact,
        tolerance=request.tolerance,
        device=request.device,
        max_new_tokens=request.max_new_tokens,
        models={name: model for name, model in (("chat", request.chat_model), ("vision", request.model)) if model is not None},
    )


def _flags(request: ExtractRequest, tags: Sequence[str], folder: Path) -> dict[str, object]:
    return {
        "reference_quant": tags[0],
        "canary_latency_variance_threshold": CANARY_LIMIT,
        "warmup_steps": str(request.warmup_runs),
        "runs_per_quant": str(request.repeats),
        **request.settings,
        "models": [PIPELINE],
        "quants": list(tags),
        "task_bank": f"pages:{folder.name or 'input'}",
        "out_dir": str(request.out_dir),
    }
