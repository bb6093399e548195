"""`fewbits extract bench`: the extraction benchmark; `scripts/run_benchmark.py` is a door to it."""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from fewbits.core.errors import ExitCode, Problem, SpecError

if TYPE_CHECKING:
    from fewbits.api.extract_request import ExtractRequest

SAMPLES = "data/samples"
OUTPUT_DIR = "benchmark_runs"
VISION_MODEL = "google/medgemma-1.5-4b-it"
"""The runbook's model; gated, so it needs a token."""
_PRECISION = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
_SETTINGS = (
    "execution_lane",
    "seed",
    "threads",
    "temperature",
    "affinity_policy",
    "canary_runs",
    "canary_latency_variance_threshold",
    "trial_timeout_seconds",
    "latency_ceiling",
    "adherence_floor",
    "equivalence_margin",
    "error_level",
    "decide",
    "control_profile",
)
"""Settings of an ordinary sweep that this one takes too."""


def add_arguments(action: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    from fewbits.cli.extract import add_model_arguments
    from fewbits.spec.flags import add_chosen_arguments

    pages = action.add_argument_group("pages")
    pages.add_argument("--input-dir", type=Path, default=Path(SAMPLES), metavar="DIR", help=f"pictures and PDFs ({SAMPLES})")
    pages.add_argument("--sample-size", type=int, default=0, metavar="N", help="the first N files; 0: all (0)")
    pages.add_argument("--skip-eval", action="store_true", help="compare neither with labels nor repeats with each other")
    pages.add_argument("--tolerance", type=float, default=0.0, metavar="X", help="relative, of numbers; 0: as printed (0)")
    pages.add_argument("--redact", action="store_true", help="keep nothing about the patient but the sex")
    engines = action.add_argument_group("engines")
    engines.add_argument(
        "--engines", metavar="LIST", help="the first is the reference (ocr on the CPU, a vision-language model on CUDA)"
    )
    engines.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where a vision-language model runs (cpu)")
    engines.add_argument("--torch-dtype", choices=tuple(_PRECISION), help="of a vision-language model (bfloat16)")
    engines.add_argument("--quantize-4bit", action="store_true", help="nf4 weights for the vision-language model (bitsandbytes)")
    add_model_arguments(engines)
    run = action.add_argument_group("running")
    run.add_argument("--output-dir", type=Path, default=Path(OUTPUT_DIR), metavar="DIR", help=f"of all runs ({OUTPUT_DIR})")
    run.add_argument("--run-id", metavar="NAME", help="folder of this run (the UTC time); a killed run's name goes on with it")
    run.add_argument("--repeats", type=int, default=3, metavar="N", help="measured runs of each page (3)")
    run.add_argument("--warmup-runs", type=int, default=1, metavar="N", help="runs before anything is measured (1)")
    run.add_argument("--fresh", action="store_true", help="start over; an earlier run is kept in superseded/")
    run.add_argument("--dry-run", action="store_true", help="print the resolved plan and touch nothing")
    run.add_argument("--json", action="store_true", help="print benchmark_results.json on stdout")
    add_chosen_arguments(action.add_argument_group("settings of the sweep", "as for fewbits sweep"), _SETTINGS)


def run(arguments: argparse.Namespace) -> ExitCode:
    """Run the benchmark; print where things lie and what is recommended."""
    import sys

    from fewbits.api.extract_bench import run_extraction
    from fewbits.api.extract_request import prepare_extraction
    from fewbits.cli.progress import create_observer
    from fewbits.cli.sweep import print_dry_run, print_paths, print_summary
    from fewbits.core.codec import encode_pretty

    request = _request(arguments)
    prepared = prepare_extraction(request)
    if arguments.dry_run:
        from fewbits.api.sweeps import dry_run

        print_dry_run(dry_run(prepared.sweep), as_json=arguments.json)
        return ExitCode.OK
    observer = create_observer()
    try:
        result = run_extraction(request, prepared, observer, fresh=arguments.fresh, evaluate=not arguments.skip_eval)
    finally:
        observer.close()
    if arguments.json:
        sys.stdout.write(encode_pretty(result.results).decode())
        return ExitCode.OK
    print_summary(result.summary, as_json=False)
    for hint in result.results.hints:
        print(f"- {hint.text}")
    print_paths(result.root, result.root / "sweep_summary.json")
    for name in ("benchmark_results.json", "per_run.jsonl"):
        print(f"{'':<8} {result.root / name}")
    return ExitCode.OK


def _request(arguments: argparse.Namespace) -> ExtractRequest:
    from fewbits.api.extract_bench import new_run_id
    from fewbits.api.extract_request import ExtractRequest
    from fewbits.spec.flags import explicit_flags

    run_id = arguments.run_id or new_run_id(datetime.datetime.now(datetime.UTC))
    if Path(run_id).name != run_id or run_id in (".", ".."):
        raise SpecError.single("--run-id", f"{run_id!r} is no name of a folder", "for example 20261129T120000Z")
    engines = _engines(arguments)
    sees = any(engine.startswith("vision") for engine in engines)
    return ExtractRequest(
        input_dir=arguments.input_dir,
        out_dir=arguments.output_dir / run_id,
        engines=engines,
        repeats=arguments.repeats,
        warmup_runs=arguments.warmup_runs,
        sample_size=arguments.sample_size,
        model=arguments.model or (VISION_MODEL if sees else None),
        chat_model=arguments.chat_model,
        device=arguments.device,
        max_retries=arguments.max_retries,
        max_new_tokens=arguments.max_new_tokens,
        tolerance=arguments.tolerance,
        redact=arguments.redact,
        settings={key: value for key, value in explicit_flags(arguments).items() if key in _SETTINGS},
    )


def _engines(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Return the engines asked for: by name, else by the runbook's flags of precision. Raises `SpecError` on contradictions."""
    precise = arguments.torch_dtype is not None or arguments.quantize_4bit
    if arguments.engines is None:
        if arguments.device == "cpu" and not precise:
            return ("ocr",)
        precision = _PRECISION[arguments.torch_dtype or "bfloat16"]
        if arguments.quantize_4bit:
            precision = "nf4-fp16" if precision == "fp16" else "nf4"
        return (f"vision-{precision}",)
    engines = tuple(word.strip() for word in arguments.engines.split(",") if word.strip())
    problems = []
    if not engines:
        problems.append(Problem("--engines", "names no engine", "for example ocr,ocr-int8"))
    if precise:
        problems.append(Problem("--engines", "names say the precision", "leave out --torch-dtype and --quantize-4bit"))
    if arguments.device == "cuda" and engines and not any(engine.lower().startswith("vision") for engine in engines):
        problems.append(Problem("--device", "only a vision-language model runs on CUDA", "add vision-bf16, or take --device cpu"))
    if problems:
        raise SpecError(problems)
    return engines
