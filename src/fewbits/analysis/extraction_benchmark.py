"""What the timed runs of an extraction benchmark add up to, and the hints that follow. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from fewbits.analysis.statistics import rounded
from fewbits.records.extraction import StageName
from fewbits.records.extraction_metrics import ExtractionAggregate, Hint, HintCode, MeasuredRun

OTHER = "other"
"""Wall time that no stage accounts for: reading the file, Python, writing."""
SLOW_TAIL_RATIO = 1.5
"""p95 / p50 from which the tail is called slow. Our own choice."""
RUNS_FOR_P95 = 20
"""Below this many runs the 95th percentile lies between the two slowest, so one run decides it."""
HALF = 0.5
"""Share of the time from which one side is called the bottleneck, and of the GPU's memory below which its peak is called low:
our own choice."""
_UNKNOWN_ERROR = "UNKNOWN"


def percentile(values: Sequence[float], q: float) -> float | None:
    """Return the `q`-th percentile (0..100), linear between order statistics; `None` without values.

    It never leaves the range of the values: rank 1 + (n - 1) q / 100 lies from 1 to n. Raises `ValueError` on another `q` and on
    values that are not finite. Source: Hyndman and Fan (1996), Sample Quantiles in Statistical Packages, The American
    Statistician 50(4), definition 7.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    if not 0 <= q <= 100 or not np.isfinite(ordered).all():
        msg = f"the percentile {q} of these values does not exist: it takes a number from 0 to 100, and finite values"
        raise ValueError(msg)
    if not len(ordered):
        return None
    return float(np.clip(np.quantile(ordered, q / 100, method="linear"), ordered[0], ordered[-1]))


def aggregate(runs: Sequence[MeasuredRun], *, benchmark_wall_time_seconds: float) -> ExtractionAggregate:
    """Add up the measured runs (warm-ups left out before). Throughput divides by the wall time of the whole measured loop.

    A failed run takes part with its time and whatever tests it found. Numbers without runs, and throughput over no time, are
    `None`.
    """
    pipeline, wall = [run.pipeline_seconds for run in runs], [run.wall_seconds for run in runs]
    tests = sum(run.tests for run in runs)
    return ExtractionAggregate(
        total_runs=len(runs),
        benchmark_wall_time_seconds=benchmark_wall_time_seconds,
        success_rate=_per(sum(run.success for run in runs), len(runs)),
        avg_pipeline_time_seconds=_per(math.fsum(pipeline), len(runs)),
        p50_pipeline_time_seconds=rounded(percentile(pipeline, 50)),
        p95_pipeline_time_seconds=rounded(percentile(pipeline, 95)),
        avg_wall_time_seconds=_per(math.fsum(wall), len(runs)),
        p50_wall_time_seconds=rounded(percentile(wall, 50)),
        p95_wall_time_seconds=rounded(percentile(wall, 95)),
        avg_tests_extracted=_per(tests, len(runs)),
        images_per_second=_per(len(runs), benchmark_wall_time_seconds) if runs else None,
        tests_per_second=_per(tests, benchmark_wall_time_seconds) if runs else None,
        stage_time_share=_stage_shares(runs),
        errors_by_kind=dict(sorted(Counter(run.error_kind or _UNKNOWN_ERROR for run in runs if not run.success).items())),
        gpu_peak_mb=max((run.gpu_peak_mb for run in runs if run.gpu_peak_mb is not None), default=None),
        memory_peak_mb=max((run.memory_peak_mb for run in runs if run.memory_peak_mb is not None), default=None),
    )


def _per(part: float, whole: float) -> float | None:
    return rounded(part / whole) if whole > 0 else None


def _stage_shares(runs: Sequence[MeasuredRun]) -> dict[str, float]:
    """Return each stage's share of all wall time, `other` last; empty where nothing was timed. The shares sum to 1."""
    seconds: dict[str, float] = {}
    for run in runs:
        for stage, spent in run.stage_seconds.items():
            seconds[stage] = seconds.get(stage, 0.0) + spent
    staged = math.fsum(seconds.values())
    whole = max(math.fsum(run.wall_seconds for run in runs), staged)
    if whole <= 0:
        return {}
    shares = {stage: spent / whole for stage, spent in seconds.items()} | {OTHER: max(0.0, (whole - staged) / whole)}
    return {stage: round(share, 6) + 0.0 for stage, share in shares.items()}


def interpret(
    measured: ExtractionAggregate,
    *,
    gpu_total_mb: float | None = None,
    reference: ExtractionAggregate | None = None,
    variant_name: str = "this variant",
    reference_name: str = "the reference",
) -> tuple[Hint, ...]:
    """Return the hints that the numbers support. Source: the runbook, "Interpreting results quickly".

    `gpu_total_mb` (MiB) is the GPU's memory, where one was used; `reference` is the same benchmark in another variant (bf16 for
    4-bit).
    """
    if not measured.total_runs:
        return (Hint(code=HintCode.NO_RUNS, text="No run was measured, so there is nothing to interpret."),)
    found = [*_failures(measured), *_tail(measured), *_bottleneck(measured, gpu_total_mb)]
    if reference is not None and reference.total_runs:
        found += _against(measured, reference, variant_name, reference_name)
    return tuple(found)


def _failures(measured: ExtractionAggregate) -> list[Hint]:
    failed = sum(measured.errors_by_kind.values())
    if not failed:
        return []
    kinds = ", ".join(
        f"{kind} {count}" for kind, count in sorted(measured.errors_by_kind.items(), key=lambda item: (-item[1], item[0]))
    )
    text = f"{failed} of {measured.total_runs} runs failed ({kinds}): read their `error` in per_run.jsonl before anything else."
    return [Hint(code=HintCode.FAILED_RUNS, text=text, numbers={"failed_runs": failed, "total_runs": measured.total_runs})]


def _tail(measured: ExtractionAggregate) -> list[Hint]:
    p50, p95 = measured.p50_pipeline_time_seconds, measured.p95_pipeline_time_seconds
    if p50 is None or p95 is None:
        return []
    numbers = {"p50_pipeline_time_seconds": p50, "p95_pipeline_time_seconds": p95}
    if p50 > 0 and p95 / p50 >= SLOW_TAIL_RATIO:
        ratio = p95 / p50
        text = f"The slowest runs take {ratio:.1f} times the median (p95 {p95:.3f} s, p50 {p50:.3f} s): plan with p95."
        hints = [Hint(code=HintCode.SLOW_TAIL, text=text, numbers={**numbers, "p95_per_p50": round(ratio, 6)})]
    else:
        text = f"Judge reliability by p95 ({p95:.3f} s), not by the average; it lies near the median ({p50:.3f} s)."
        hints = [Hint(code=HintCode.PREFER_P95, text=text, numbers=numbers)]
    if measured.total_runs < RUNS_FOR_P95:
        text = f"{measured.total_runs} runs are few for a p95: below {RUNS_FOR_P95} it lies between the two slowest runs."
        hints.append(Hint(code=HintCode.FEW_RUNS, text=text, numbers={"total_runs": measured.total_runs}))
    return hints


def _bottleneck(measured: ExtractionAggregate, gpu_total_mb: float | None) -> list[Hint]:
    """Say which side the time goes to. Low throughput has no limit of its own: what is measured is who spends the time."""
    shares = measured.stage_time_share
    engine = shares.get(StageName.EXTRACT.value)
    if engine is None:
        return []
    host = 1.0 - engine
    numbers = {"extract_share": engine, "host_share": round(host, 6)}
    memory = ""
    if gpu_total_mb and measured.gpu_peak_mb is not None:
        used = measured.gpu_peak_mb / gpu_total_mb
        numbers["gpu_peak_share"] = round(used, 6)
        memory = f" The GPU's memory peaks at {used:.0%}" + (", so memory is not what limits it." if used < HALF else ".")
    if host > HALF:
        most = max((stage for stage in shares if stage != StageName.EXTRACT.value), key=lambda stage: shares[stage])
        text = f"{host:.0%} of the time is spent outside of the engine, most in {most} ({shares[most]:.0%}): "
        text += "preprocessing or Python is the bottleneck, and a faster engine would gain little." + memory
        return [Hint(code=HintCode.HOST_BOUND, text=text, numbers=numbers)]
    text = f"{engine:.0%} of the time is spent in the extract stage: the engine is the bottleneck, not preprocessing." + memory
    return [Hint(code=HintCode.ENGINE_BOUND, text=text, numbers=numbers)]


def _against(measured: ExtractionAggregate, reference: ExtractionAggregate, variant_name: str, reference_name: str) -> list[Hint]:
    """Compare speed and peak memory; the GPU's where both used one."""
    numbers, parts = {}, []
    if measured.images_per_second and reference.images_per_second:
        numbers["speed_ratio"] = round(measured.images_per_second / reference.images_per_second, 6)
        parts.append(f"reads {numbers['speed_ratio']:.2f} times as many images per second as {reference_name}")
    on_gpu = measured.gpu_peak_mb is not None and reference.gpu_peak_mb is not None
    mine, theirs = (each.gpu_peak_mb if on_gpu else each.memory_peak_mb for each in (measured, reference))
    if mine is not None and theirs:
        numbers["memory_ratio"] = round(mine / theirs, 6)
        parts.append(f"needs {numbers['memory_ratio']:.2f} times its peak {'GPU memory' if on_gpu else 'memory'}")
    if not parts:
        return []
    text = (
        f"{variant_name[:1].upper()}{variant_name[1:]} {' and '.join(parts)}; whether it reads as well is the accuracy's to say."
    )
    return [Hint(code=HintCode.AGAINST_REFERENCE, text=text, numbers=numbers)]
