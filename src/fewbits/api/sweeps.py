"""Sweeps: plan, run, summarise, verify, report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbits import __version__
from fewbits.api.baseline_matches import read_baselines, remember_baselines
from fewbits.api.sidecar import check_sidecar, read_sidecars, run_sidecar
from fewbits.core.codec import decode, encode_pretty
from fewbits.core.errors import Problem, SpecError, StoreError
from fewbits.core.files import atomic_write
from fewbits.core.git import commit_sha
from fewbits.probes.machine import default_threads, hardware_fingerprint, total_memory_bytes, usable_cores
from fewbits.quantizers.base import Quantizer
from fewbits.records.plan import Plan, SweepSpec
from fewbits.records.summary import DivergenceEstimate, SweepSummary
from fewbits.records.task import Task
from fewbits.records.trial import TrialText, TrialView
from fewbits.records.variant import ModelKind, ModelSource, Variant
from fewbits.runtimes.base import Runtime, ServerCatalogue
from fewbits.runtimes.registry import capabilities_of, create_runtime
from fewbits.spec.load import load_spec
from fewbits.store.journal import JournalContent, read_journal, read_rows_at
from fewbits.store.run_directory import RunDirectory
from fewbits.sweep.plan import build_plan, resolve_block_tasks
from fewbits.sweep.progress import SweepObserver
from fewbits.workloads.text.evaluation import open_evaluation_text
from fewbits.workloads.text.named_banks import open_bank
from fewbits.workloads.text.sandbox import require_sandbox
from fewbits.workloads.text.selection import select_tasks

if TYPE_CHECKING:
    from fewbits.analysis.divergence import DivergenceRows
    from fewbits.sweep.pool import VariantKey

REPOSITORY_ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True, slots=True)
class PreparedSweep:
    """A sweep that was planned but has touched nothing yet."""

    plan: Plan
    tasks: Mapping[str, Task]
    sources: Mapping[str, ModelSource]
    quantizer: Quantizer | None
    runtime: Runtime

    @property
    def directory(self) -> RunDirectory:
        """The run's folder, which may not exist yet."""
        return RunDirectory(Path(self.plan.spec.out_dir))


def prepare_sweep(flags: Mapping[str, object], matrix_path: Path | None) -> PreparedSweep:
    """Load the spec, the tasks and the models' identities, and plan. Raises `SpecError` with every problem found."""
    spec = load_spec(flags, matrix_path, available_cores=usable_cores(), root=REPOSITORY_ROOT)
    check_sidecar(spec)
    bank = open_bank(spec.task_bank)
    tasks = select_tasks(bank.bank, spec.selection)
    require_sandbox(tasks)
    runtime = create_runtime(spec.runtime, base_url=spec.base_url, script=spec.script)
    quantizer = _quantizer(spec)
    sources = _resolve_models(spec, quantizer)
    text = open_evaluation_text(spec.divergence.text) if capabilities_of(spec.runtime).log_probabilities else None
    plan = build_plan(
        spec,
        models=[sources[model_id] for model_id in spec.models],
        tasks=tasks,
        bank_digest=bank.digest,
        cores=default_threads(),
        fingerprint=hardware_fingerprint(),
        commit_sha=commit_sha(REPOSITORY_ROOT),
        block_tasks=_block_tasks(spec, sources, quantizer),
        evaluation_text=text[0] if text is not None else None,
    )
    return PreparedSweep(plan, {task.id: task for task in tasks}, sources, quantizer, runtime)


def _block_tasks(spec: SweepSpec, sources: Mapping[str, ModelSource], quantizer: Quantizer | None) -> int:
    """Return the tasks per block for the model whose variants need the most memory."""
    sizes = [[quantizer.estimate_bytes(source, tag) if quantizer else None for tag in spec.quants] for source in sources.values()]
    return max(resolve_block_tasks(of_model, total_memory_bytes()) for of_model in sizes)


def _quantizer(spec: SweepSpec) -> Quantizer | None:
    if not capabilities_of(spec.runtime).builds_variants:
        return None
    from fewbits.quantizers.registry import create_quantizer
    from fewbits.store.artifacts import ArtifactCache
    from fewbits.store.recipes import RecipeShelf

    threads = spec.controls.threads or default_threads()
    return create_quantizer(spec.runtime, ArtifactCache(), threads=threads, recipes=RecipeShelf())


def _resolve_models(spec: SweepSpec, quantizer: Quantizer | None) -> dict[str, ModelSource]:
    if quantizer is None:
        return {model_id: ModelSource(model_id=model_id, kind=ModelKind.SERVER) for model_id in spec.models}
    sources: dict[str, ModelSource] = {}
    problems: list[Problem] = []
    for model_id in spec.models:
        try:
            sources[model_id] = quantizer.locate(model_id)
            for tag in spec.quants:
                quantizer.check(sources[model_id], tag)
        except SpecError as error:
            problems.extend(error.problems)
    if problems:
        raise SpecError(problems)
    return sources


def dry_run(prepared: PreparedSweep) -> dict[str, Any]:
    """The resolved plan as a document: matrix, controls, policies, counts, estimates, expected paths. Touches nothing."""
    from fewbits.sweep.plan import dry_run_document, estimate_seconds

    disk: dict[tuple[str, str], int | None] = {}
    for model_id, tag in prepared.plan.spec.variant_keys:
        quantizer = prepared.quantizer
        disk[model_id, tag] = quantizer.estimate_bytes(prepared.sources[model_id], tag) if quantizer else None
    estimated = estimate_seconds(prepared.plan, _seconds_per_trial(prepared))
    return dry_run_document(prepared.plan, disk_bytes_by_variant=disk, estimated_seconds=estimated)


def _seconds_per_trial(prepared: PreparedSweep) -> float | None:
    """Median wall seconds of a trial in the folder's own journal, when an earlier run left one; else unknown."""
    import statistics

    rows = read_journal(prepared.directory.trials_path, TrialView).rows
    latencies = [row.telemetry.total_latency for row in rows if row.telemetry.total_latency is not None]
    return statistics.median(latencies) if latencies else None


MakeVariants = Callable[[PreparedSweep, SweepObserver], "dict[VariantKey, Variant]"]


def run_sweep(
    prepared: PreparedSweep, observer: SweepObserver, *, fresh: bool = False, make: MakeVariants | None = None
) -> SweepSummary:
    """Build the variants, run what the journal does not hold yet, and write summary and reports.

    `make` stands in for `make_variants` and may leave out variants that cannot be measured: these keep rows without trials.
    Raises `StoreError` when the folder holds a run of another plan and `fresh` is not set, and what `sweep.run` raises.
    """
    from fewbits.sweep.run import Sweep, run

    directory = prepared.directory
    with directory.locked():
        if fresh and (shelf := directory.set_aside()):
            observer.notice(f"the earlier run was moved to {shelf}")
        _refuse_another_plan(directory, prepared.plan)
        variants = (make or make_variants)(prepared, observer)
        _refuse_other_weights(directory, variants)
        directory.write_plan(prepared.plan)
        for variant in variants.values():
            directory.write_manifest(variant.artifact)
        remember_baselines(prepared.plan, variants, directory)
        measure = partial(_measure_divergence, prepared.plan, variants, directory, observer)
        run(Sweep(prepared.plan, prepared.tasks, variants, prepared.runtime, directory, observer, measure))
        run_sidecar(prepared.plan, variants, directory, observer)
        return write_results(directory)


def _refuse_another_plan(directory: RunDirectory, plan: Plan) -> None:
    """Check that the folder is new, or holds a run of the same plan."""
    present = directory.read_plan()
    if present is None and directory.trials_path.exists():
        msg = f"{directory.root} holds a journal but no plan.json: choose another --out-dir, or use --fresh to start over."
        raise StoreError(msg)
    if present is None or present.digest == plan.digest:
        return
    from fewbits.sweep.differences import plan_differences

    differences = "".join(f"\n  - {line}" for line in plan_differences(present, plan))
    msg = (
        f"{directory.root} holds a run of another plan, and results of two plans must not mix. What differs:{differences}\n"
        "Use --fresh to start over (the old run is kept in superseded/), or another --out-dir."
    )
    raise StoreError(msg)


def _refuse_other_weights(directory: RunDirectory, variants: Mapping[VariantKey, Variant]) -> None:
    """Check that the folder's earlier trials, if any, were run on these very weights (a rebuilt engine or a new pull differs)."""
    for key, manifest in directory.read_manifests().items():
        variant = variants.get(key)
        if variant is None:
            continue
        now = variant.artifact
        if (now.sha256, now.server_digest) != (manifest.sha256, manifest.server_digest):
            new, old = (made.sha256 or made.server_digest or "unknown" for made in (now, manifest))
            msg = (
                f"{key[1]} of {key[0]} is not what the run in {directory.root} measured: sha256 {new} now, {old} then. "
                "Use --fresh to start over (the old run is kept in superseded/), or another --out-dir."
            )
            raise StoreError(msg)


def make_variants(prepared: PreparedSweep, observer: SweepObserver) -> dict[VariantKey, Variant]:
    """Build or find every variant of the plan, before anything is measured."""
    variants: dict[VariantKey, Variant] = {}
    for model_id, tag in prepared.plan.spec.variant_keys:
        if prepared.quantizer is not None:
            variants[model_id, tag] = prepared.quantizer.ensure(prepared.sources[model_id], tag, observer.notice)
        elif isinstance(prepared.runtime, ServerCatalogue):
            variants[model_id, tag] = Variant(prepared.runtime.artifact_for(model_id, tag), None)
    return variants


def _measure_divergence(
    plan: Plan, variants: Mapping[VariantKey, Variant], directory: RunDirectory, observer: SweepObserver
) -> dict[VariantKey, float | None]:
    """Measure what the divergence journal lacks, and return the harm test's p-value of every variant that it holds."""
    from fewbits.analysis.ranking import reference_tag
    from fewbits.sweep.divergence import measure_divergence, read_divergence

    artifacts = {key: variant.artifact for key, variant in variants.items()}
    references = {source.model_id: reference_tag(plan, source.model_id, artifacts) for source in plan.models}
    measure_divergence(plan, variants, references, directory, observer)
    return _harm_p_values(plan, read_divergence(plan, directory))


def _harm_p_values(plan: Plan, rows: DivergenceRows) -> dict[VariantKey, float | None]:
    from fewbits.analysis.divergence import divergence_harm_p_value

    lines = {key: plan.spec.policy_of(key[0]).divergence_harm_nats for key in rows.variants}
    return {key: divergence_harm_p_value(row, lines[key]) for key, row in rows.variants.items()}


def _divergence_estimates(plan: Plan, rows: DivergenceRows) -> dict[VariantKey, DivergenceEstimate]:
    from fewbits.analysis.divergence import estimate_divergence

    return {
        key: estimate_divergence(
            row, rows.floors.get(key[0]), divergence_level=plan.spec.policy_of(key[0]).divergence_error_level
        )
        for key, row in rows.variants.items()
    }


def build_summary(directory: RunDirectory) -> SweepSummary:
    """The summary of a run, from its plan, manifests and journals alone; of detectors and pipelines also from labels."""
    from fewbits.analysis.summary import summarise
    from fewbits.api.detect_results import read_row_detections, read_sanity
    from fewbits.api.extract_results import read_row_extractions
    from fewbits.sweep.divergence import read_divergence
    from fewbits.sweep.run import read_canary

    plan = directory.read_plan()
    if plan is None:
        msg = f"{directory.root} is not a run folder: it has no plan.json."
        raise StoreError(msg)
    journal = read_journal(directory.trials_path, TrialView)
    rows = read_divergence(plan, directory)
    manifests = directory.read_manifests()
    return summarise(
        plan,
        manifests,
        journal.rows,
        canary=read_canary(plan, directory),
        journal_digest=journal.digest,
        fewbits_version=__version__,
        divergence=_divergence_estimates(plan, rows),
        harm_ps=_harm_p_values(plan, rows),
        read_texts=lambda trial_ids: read_texts(directory, journal, trial_ids),
        baselines=read_baselines(directory),
        sidecars=read_sidecars(plan, directory),
        detections=read_row_detections(directory, plan, manifests, journal),
        extractions=read_row_extractions(directory, plan, manifests, journal),
        sanity=read_sanity(directory, plan),
    )


def read_texts(directory: RunDirectory, journal: JournalContent[TrialView], trial_ids: frozenset[str]) -> dict[str, str]:
    """Read the outputs of a few trials: summaries leave texts out, since they are most of a journal."""
    places = [offset for row, offset in zip(journal.rows, journal.offsets, strict=True) if row.trial_id in trial_ids]
    return {row.trial_id: row.output_text for row in read_rows_at(directory.trials_path, places, TrialText)}


def write_results(directory: RunDirectory) -> SweepSummary:
    """Write the summary where the plan says, and the reports beside the journal."""
    summary_path = summary_path_of(directory)
    data = encode_pretty(build_summary(directory))
    atomic_write(summary_path, data)
    summary = decode(data, SweepSummary, str(summary_path))  # keys in the file's order: `fewbits report` must say the same
    render_report(summary, str(summary_path), directory.report_path, directory.scatter_path)
    return summary


def summary_path_of(directory: RunDirectory) -> Path:
    """Where the run's summary lies: as the plan says, except that a moved run folder carries its default along."""
    plan = directory.read_plan()
    if plan is None:
        return directory.summary_path
    named = Path(plan.spec.summary_out)
    return (
        directory.summary_path if named.parent == Path(plan.spec.out_dir) and named.name == directory.summary_path.name else named
    )


def verify_run(directory: RunDirectory) -> tuple[bool, str]:
    """Rebuild the summary and compare it with the file, byte for byte. Returns the verdict and one line of evidence."""
    path = summary_path_of(directory)
    rebuilt = encode_pretty(build_summary(directory))
    try:
        present = path.read_bytes()
    except OSError as error:
        return False, f"{path} cannot be read: {error.strerror}"
    if present == rebuilt:
        return True, f"{path} is exactly what the journal says ({len(rebuilt)} bytes)"
    line = next(
        (n for n, (a, b) in enumerate(zip(present.splitlines(), rebuilt.splitlines(), strict=False), 1) if a != b),
        min(present.count(b"\n"), rebuilt.count(b"\n")) + 1,
    )
    return False, f"{path} differs from what the journal says, first at line {line}"


def render_report(
    summary: SweepSummary, source_summary: str, markdown_path: Path, scatter_path: Path, *, include_invalid: bool = False
) -> list[Path]:
    """Write the Markdown report, its frontier pictures and the scatter JSON; returns every path written."""
    from fewbits.report.markdown import render_markdown
    from fewbits.report.scatter import scatter_document
    from fewbits.report.svg import frontier_svg_name, render_frontier_svg

    written = [markdown_path, scatter_path]
    atomic_write(markdown_path, render_markdown(summary, include_invalid=include_invalid).encode())
    atomic_write(scatter_path, encode_pretty(scatter_document(summary, source_summary, include_invalid)))
    for session in summary.sessions:
        picture = markdown_path.parent / frontier_svg_name(session.model_id)
        atomic_write(picture, render_frontier_svg(session, include_invalid).encode())
        written.append(picture)
    return written
