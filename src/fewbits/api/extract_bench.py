"""The extraction benchmark: the lab's own sweep over pages, and the runbook's two files made from its journal."""

from __future__ import annotations

import dataclasses
import datetime
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from fewbits.analysis.extraction_benchmark import interpret
from fewbits.api.extract_request import ExtractRequest, PreparedExtraction
from fewbits.api.extract_results import by_variant, per_run_row
from fewbits.api.sweeps import PreparedSweep, make_variants, run_sweep
from fewbits.core.codec import encode_canonical, encode_pretty
from fewbits.core.files import atomic_write
from fewbits.probes.accelerators import torch_view
from fewbits.records.extraction_metrics import Hint
from fewbits.records.extraction_run import BenchmarkResults, RowExtraction, VariantBenchmark
from fewbits.records.plan import Plan
from fewbits.records.summary import SweepSummary
from fewbits.records.trial import TrialView
from fewbits.records.variant import Variant
from fewbits.store.journal import read_journal
from fewbits.store.run_directory import RunDirectory
from fewbits.sweep.progress import SweepObserver


@dataclass(frozen=True, slots=True)
class ExtractionResult:
    """What a benchmark came to, and where it lies."""

    summary: SweepSummary
    results: BenchmarkResults
    root: Path


def new_run_id(now: datetime.datetime) -> str:
    """Return the runbook's name of a run: `YYYYMMDDTHHMMSSZ`, UTC."""
    return now.astimezone(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")


def run_extraction(
    request: ExtractRequest, prepared: PreparedExtraction, observer: SweepObserver, *, fresh: bool = False, evaluate: bool = True
) -> ExtractionResult:
    """Make the engines, run what the journal does not hold yet, write the lab's artifacts and the runbook's.

    Without `evaluate` neither labels nor repeats are compared in `benchmark_results.json` (the lab's summary holds them all
    the same). Raises what `run_sweep` raises; what was finished is kept, and the same call goes on.
    """
    directory = prepared.sweep.directory

    def make(sweep: PreparedSweep, watching: SweepObserver) -> dict[tuple[str, str], Variant]:
        variants = make_variants(sweep, watching)
        # only now the folder is known to be this plan's, and every engine to be there
        atomic_write(directory.page_labels_path, encode_pretty(prepared.labels))
        return variants

    summary = run_sweep(prepared.sweep, observer, fresh=fresh, make=make)
    results = write_benchmark(directory, summary, prepared, request, evaluate=evaluate)
    return ExtractionResult(summary, results, directory.root)


def write_benchmark(
    directory: RunDirectory, summary: SweepSummary, prepared: PreparedExtraction, request: ExtractRequest, *, evaluate: bool
) -> BenchmarkResults:
    """Write `per_run.jsonl` and `benchmark_results.json` of a run, from its journal and its summary. Raises `StoreError`."""
    plan = prepared.sweep.plan
    runs = by_variant(directory, plan, read_journal(directory.trials_path, TrialView))
    rows = {row.quant_tag: row.extraction for row in summary.sessions[0].per_quant if row.extraction is not None}
    in_order = sorted((run for found in runs.values() for run in found), key=lambda run: run.trial.index)
    atomic_write(directory.per_run_path, b"".join(encode_canonical(per_run_row(run)) + b"\n" for run in in_order))
    model_id = plan.models[0].model_id
    tags = [tag for tag in plan.spec.quants if (model_id, tag) in runs] or [plan.spec.quants[0]]
    variants = {tag: _variant(rows[tag], evaluate=evaluate) for tag in tags}
    first = variants[tags[0]]
    results = BenchmarkResults(
        run_id=directory.root.name,
        system=system_facts(request.device),
        config=_config(request, plan),
        inputs={
            "input_dir": str(request.input_dir),
            "file_count": len(prepared.files),
            "files": [path.name for path in prepared.files],
            "repeats": request.repeats,
            "warmup_runs": request.warmup_runs,
        },
        variant=tags[0],
        aggregate=first.aggregate,
        self_consistency_eval=first.self_consistency_eval,
        variants=variants,
        hints=_hints(variants),
    )
    atomic_write(directory.benchmark_path, encode_pretty(results))
    return results


def _variant(row: RowExtraction, *, evaluate: bool) -> VariantBenchmark:
    return VariantBenchmark(
        aggregate=row.aggregate,
        self_consistency_eval=row.self_consistency if evaluate else None,
        ground_truth=row.rates if evaluate else None,
    )


def _hints(variants: Mapping[str, VariantBenchmark]) -> tuple[Hint, ...]:
    """Return what the numbers of each variant suggest; the first one is what the others are held against."""
    names = list(variants)
    reference = variants[names[0]].aggregate
    found: list[Hint] = []
    for name in names:
        hints = interpret(
            variants[name].aggregate,
            reference=reference if name != names[0] else None,
            reference_name=names[0],
        )
        found += [msgspec.structs.replace(hint, text=f"{name}: {hint.text}") for hint in hints]
    return tuple(found)


def _config(request: ExtractRequest, plan: Plan) -> dict[str, Any]:
    """Return every setting of the pipeline, as it was applied."""
    settings = {key: value for key, value in dataclasses.asdict(request).items() if key not in ("settings", "out_dir")}
    settings["input_dir"] = str(request.input_dir)
    return settings | {"engines": list(plan.spec.quants), "threads": plan.controls.threads, "seed": plan.controls.seed}


def system_facts(device: str) -> dict[str, Any]:
    """Return what the benchmark ran on: Python, platform, torch, CUDA, GPU. What is not there is `null`."""
    torch = torch_view()
    gpu = torch.gpus[0] if torch.gpus else None
    return {
        "timestamp_utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python_version": platform.python_version(),
        "platform": platform.platform(),
        "torch_version": torch.version,
        "cuda_available": bool(torch.gpus),
        "torch_cuda_version": torch.cuda_version,
        "device_requested": device,
        "gpu_name": gpu.name if gpu is not None else None,
        "gpu_total_memory_gb": gpu.memory_bytes / 1e9 if gpu is not None and gpu.memory_bytes is not None else None,
        "cuda_device_count": len(torch.gpus),
        "bf16_supported": gpu.bf16 if gpu is not None else None,
    }
