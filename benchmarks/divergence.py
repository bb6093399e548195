"""Our divergence against `llama-perplexity --kl-divergence`: same two files, same text, same windows.

Both read the reference once and a variant against it. llama-perplexity keeps all log-probabilities in 16 bits and leaves out
tokens below e^-16; ours keeps the top K in 32 bits and the exact rest. Its "±" is one standard error over positions, as if
they were independent. The engines are not one build (the wheel's llama.cpp and the tool's), and their flash attention rounds
differently, which at Q8_0 moves the mean by more than that; so both sides take the plain attention kernel.
Source: llama.cpp, tools/perplexity/perplexity.cpp.
"""

from __future__ import annotations

import math
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.result import MODEL, Outcome, Result, judged, notice, skipped, timed_command
from fewbits.analysis.divergence import estimate_divergence
from fewbits.core.engines import EngineTool, find_tool
from fewbits.core.process import run_command
from fewbits.core.units import format_bytes
from fewbits.probes.machine import default_threads
from fewbits.quantizers.registry import create_quantizer
from fewbits.records.divergence import DivergenceKind, DivergenceMethod, DivergencePolicy, DivergenceRow
from fewbits.records.estimate import Estimate
from fewbits.records.plan import Controls
from fewbits.records.summary import DivergenceEstimate
from fewbits.records.variant import Variant
from fewbits.runtimes.base import Comparison, DivergenceJob
from fewbits.runtimes.llamacpp.divergence import LlamaCppMeter
from fewbits.store.artifacts import ArtifactCache
from fewbits.workloads.text.evaluation import open_evaluation_text

REFERENCE, SCHEMES = "F16", ("Q8_0", "Q4_K_M", "Q2_K")
POLICY = DivergencePolicy()
MAX_STANDARD_ERRORS = 1.0
MAX_FLOOR_SHARE = 0.1
_REMEDY = "needs llama-perplexity: `fewbits engine build`, or name its folder in FEWBITS_LLAMACPP_DIR"
_HELP_TIMEOUT_SECONDS = 20.0
# the values that llama-perplexity prints at its end; the percentile has no error bar
_PRINTED = {
    "mean": r"Mean\s+KLD:\s+(\S+)\s+±\s+(\S+)",
    "p99": r"99\.0%\s+KLD:\s+(\S+)()",
    "same_top": r"Same top p:\s+(\S+)\s+±\s+(\S+)",
    "ratio": r"Mean PPL\(Q\)/PPL\(base\)\s+:\s+(\S+)\s+±\s+(\S+)",
}


@dataclass(frozen=True, slots=True)
class Theirs:
    """What llama-perplexity printed of one variant: values and their "±" (nats; a share; a ratio), and the seconds it took."""

    mean: float
    mean_error: float
    p99: float
    same_top: float
    same_top_error: float
    ratio: float
    ratio_error: float
    seconds: float


def measure() -> list[Result]:
    """Measure every rung of the packaged model both ways; the agreement is skipped where the tool is missing."""
    threads = default_threads()
    quantizer = create_quantizer("llamacpp", ArtifactCache(), threads=threads)
    source = quantizer.resolve(MODEL, notice)
    variants = {tag: quantizer.ensure(source, tag, notice) for tag in (REFERENCE, *SCHEMES)}
    opened = open_evaluation_text(POLICY.text)
    if opened is None:
        msg = f"{POLICY.text} is no text"
        raise RuntimeError(msg)
    controls = Controls(threads=threads)
    job = DivergenceJob(opened[1], opened[0], POLICY, controls, load_timeout_seconds=300.0, timeout_seconds=1200.0)
    with tempfile.TemporaryDirectory(prefix="fewbits-bench-") as folder:
        results, ours = _ours(variants, job, Path(folder))
        return results + _agreement(variants, ours, job, Path(folder))


def _ours(
    variants: dict[str, Variant], job: DivergenceJob, folder: Path
) -> tuple[list[Result], dict[str, tuple[DivergenceEstimate, float]]]:
    """Read the teacher, its floor and every variant; the estimates come with the seconds of their pass."""
    meter, teacher = LlamaCppMeter(flash=False), folder / "teacher.npz"
    notice(f"reading {REFERENCE}")
    started = time.perf_counter()
    meter.read_teacher(variants[REFERENCE], job, teacher)
    taught = time.perf_counter() - started
    size = teacher.stat().st_size
    floor = _row(meter, job, meter.compare_with_itself(variants[REFERENCE], teacher, job), DivergenceKind.FLOOR)
    found: dict[str, tuple[DivergenceEstimate, float]] = {}
    for tag in SCHEMES:
        notice(f"comparing {tag}")
        started = time.perf_counter()
        row = _row(meter, job, meter.compare(variants[tag], teacher, job), DivergenceKind.VARIANT)
        found[tag] = estimate_divergence(row, floor, divergence_level=0.01), time.perf_counter() - started
    seconds = " ".join(f"{tag} {spent:.1f} s" for tag, (_, spent) in found.items())
    first = found[SCHEMES[0]][0]
    floor_nats, mean = first.floor_nats or 0.0, _value(first.mean_nats)
    note = f"{floor_nats:.2g} nats ({floor.detail}); {SCHEMES[0]}: {mean:.2g} nats"
    positions = f"{first.windows} windows of {POLICY.window_tokens} tokens, {first.positions} positions, top {POLICY.top_k}"
    return [
        judged("divergence: error floor, of the smallest rung", floor_nats / mean, MAX_FLOOR_SHARE, "x", note),
        _plain("divergence: reading the reference", taught, "s", f"{positions}; file {format_bytes(size)}; passes: {seconds}"),
    ], found


def _row(meter: LlamaCppMeter, job: DivergenceJob, found: Comparison, kind: DivergenceKind) -> DivergenceRow:
    instrument = meter.instrument(job)
    return DivergenceRow(
        plan_digest="",
        kind=kind,
        model_id=MODEL,
        quant_tag="",
        variant_sha256=None,
        reference_tag=REFERENCE,
        reference_sha256=None,
        text_name=job.evaluation.name,
        text_digest=job.evaluation.digest,
        method=DivergenceMethod.FULL_LOGITS,
        engine=instrument.engine,
        engine_version=instrument.engine_version,
        threads=found.threads,
        teacher_threads=instrument.threads,
        top_k=instrument.top_k,
        windows=found.windows,
        audit=found.audit,
        unavailable=None,
        detail=found.detail,
        wall_seconds=0.0,
    )


def _agreement(
    variants: dict[str, Variant], ours: dict[str, tuple[DivergenceEstimate, float]], job: DivergenceJob, folder: Path
) -> list[Result]:
    names = {tag: f"divergence of {tag}: |ours - llama-perplexity| / its error" for tag in SCHEMES}
    tool = find_tool("llama-perplexity")
    if tool is None:
        return [skipped(name, _REMEDY) for name in names.values()]
    text, base = folder / "text.txt", folder / "base.kld"
    text.write_bytes(job.text.encode())
    notice(f"llama-perplexity: {REFERENCE}")
    shape = (POLICY.window_tokens, "--chunks", POLICY.windows, "-t", default_threads())
    words: list[str | Path] = ["-c", *map(str, shape), "-fa", "off", *_plain_kernels(tool)]
    timed_command([tool.path, "-m", _path(variants[REFERENCE]), "-f", text, *words, "--kl-divergence-base", base])
    size = base.stat().st_size
    results = []
    for tag, name in names.items():
        notice(f"llama-perplexity: {tag}")
        argv: list[str | Path] = [tool.path, "-m", _path(variants[tag]), *words, "--kl-divergence-base", base, "--kl-divergence"]
        results.append(_compared(name, ours[tag][0], _read(*timed_command(argv)), size))
    return results


def _plain_kernels(tool: EngineTool) -> list[str]:
    """Weights as they lie in the file, as the wheel computes: repacked ones take kernels that round differently."""
    known = run_command([tool.path, "--help"], timeout_seconds=_HELP_TIMEOUT_SECONDS).stdout
    return ["--no-repack"] if "--no-repack" in known else []


def _read(seconds: float, stdout: str) -> Theirs:
    found = {name: re.search(pattern, stdout) for name, pattern in _PRINTED.items()}
    missing = [name for name, match in found.items() if match is None]
    if missing:
        msg = f"llama-perplexity printed no {', '.join(missing)}: {stdout[-300:]!r}"
        raise RuntimeError(msg)
    value = {name: float(match.group(1)) for name, match in found.items() if match}
    error = {name: float(match.group(2)) for name, match in found.items() if match and match.group(2)}
    return Theirs(
        mean=value["mean"],
        mean_error=error["mean"],
        p99=value["p99"],
        same_top=value["same_top"] / 100,
        same_top_error=error["same_top"] / 100,
        ratio=value["ratio"],
        ratio_error=error["ratio"],
        seconds=seconds,
    )


def _compared(name: str, ours: DivergenceEstimate, theirs: Theirs, base_bytes: int) -> Result:
    mean, p99, top, ratio = ours.mean_nats, ours.p99_nats, ours.top_token_agreement, ours.perplexity_ratio
    truncation = ours.truncation_nats or 0.0
    note = (
        f"mean {_shown(mean)}, theirs {theirs.mean:.4g} ± {theirs.mean_error:.2g}; kept top {ours.top_k} hides {truncation:.2g}; "
        f"p99 {_shown(p99)}, theirs {theirs.p99:.4g}; same top {_shown(top)}, theirs {theirs.same_top:.4g} ± "
        f"{theirs.same_top_error:.2g}; perplexity ratio {_shown(ratio)}, theirs {theirs.ratio:.4g} ± {theirs.ratio_error:.2g}; "
        f"their file {format_bytes(base_bytes)}, their pass {theirs.seconds:.1f} s"
    )
    off = abs(_value(mean) - theirs.mean) / theirs.mean_error
    return judged(name, off, MAX_STANDARD_ERRORS, "standard errors", note)


def _path(variant: Variant) -> Path:
    if variant.path is None:
        msg = f"{variant.artifact.scheme} has no file"
        raise RuntimeError(msg)
    return variant.path


def _value(found: Estimate | None) -> float:
    return math.nan if found is None else found.value


def _shown(found: Estimate | None) -> str:
    if found is None:
        return "none"
    low, high = (math.nan if limit is None else limit for limit in (found.low, found.high))
    return f"{found.value:.4g} [{low:.4g}, {high:.4g}]"


def _plain(name: str, measured: float, unit: str, note: str) -> Result:
    """A number without a limit of its own."""
    return Result(name=name, measured=measured, limit=None, unit=unit, outcome=Outcome.PASS, note=note)
