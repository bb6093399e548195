"""`fewbits sensitivity`: report, rollup, agree. Runs are started by `scripts/qwen/qwen3_lm_sensitivity.py`, in Hydra's syntax."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

from fewbits.cli.numbers import at_least_one
from fewbits.core.codec import storable
from fewbits.core.errors import ExitCode, SpecError
from fewbits.records.sensitivity import SensitivityMethod

AGREEMENT_NAME = "sensitivity-agreement.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-commands."""
    actions = parser.add_subparsers(dest="action", required=True)
    for name, (declare, words) in _DECLARED.items():
        action = actions.add_parser(name, help=words, description=words[0].upper() + words[1:] + ".", allow_abbrev=False)
        declare(action)
        action.add_argument("--json", action="store_true", help="print the answer as JSON on stdout")


def _declare_report(action: argparse.ArgumentParser) -> None:
    action.add_argument("directory", type=Path, metavar="DIR", help="folder of a run, or its manifest")
    action.add_argument("--scheme", metavar="NAME", help="the run's scheme, where the folder holds several manifests")


def _declare_rollup(action: argparse.ArgumentParser) -> None:
    action.add_argument("roots", type=Path, nargs="+", metavar="DIR", help="every *_quant_manifest.json at or below is taken")
    action.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the table as JSON, and beside it as .md (default: sensitivity-rollup.json in the first DIR)",
    )


def _declare_agree(action: argparse.ArgumentParser) -> None:
    from fewbits.api.agreement_request import DEFAULT_SAMPLE_TOKENS, DEFAULT_SAMPLES, AgreementRequest

    default = {field.name: field.default for field in dataclasses.fields(AgreementRequest)}
    action.add_argument(
        "--manifest", type=Path, metavar="FILE", help="a run's manifest or folder: scores, model, format and calibration text"
    )
    action.add_argument(
        "--reference",
        action="store_true",
        help="score with the plain PyTorch scorer instead of taking the manifest's scores",
    )
    action.add_argument("--model", metavar="PATH", help="Hugging Face folder or GGUF file (default: the manifest's)")
    action.add_argument("--format", metavar="NAME", help="quantization format, like INT8_DEFAULT_CFG (default: the manifest's)")
    methods = [method.value for method in SensitivityMethod]
    action.add_argument("--method", choices=methods, help="for --reference (default: the manifest's, else gradient)")
    action.add_argument("--captions", type=Path, metavar="FILE", help="calibration text, one per line (default: the manifest's)")
    action.add_argument("--text", default=default["text"], metavar="NAME|FILE", help=f"held-out text ({default['text']})")
    words = "held-out samples, spread over the text"
    action.add_argument("--samples", type=at_least_one, default=DEFAULT_SAMPLES, metavar="N", help=f"{words} ({DEFAULT_SAMPLES})")
    words = f"length of a sample, tokens ({DEFAULT_SAMPLE_TOKENS})"
    action.add_argument("--sample-tokens", type=at_least_one, default=DEFAULT_SAMPLE_TOKENS, metavar="N", help=words)
    action.add_argument("--top-k", type=at_least_one, metavar="K", help="groups that count as the most sensitive (a fifth)")
    action.add_argument("--device", default=default["device"], metavar="NAME", help=f"cpu, cuda or cuda:N ({default['device']})")
    words = "auto, float32, bfloat16 or float16 (default: the manifest's, else auto)"
    action.add_argument("--dtype", metavar="NAME", help=words)
    action.add_argument("--threads", type=at_least_one, metavar="N", help="threads of PyTorch (default: its own choice)")
    action.add_argument(
        "--out", type=Path, metavar="FILE", help=f"the answer as JSON (default: {AGREEMENT_NAME} beside the manifest, else here)"
    )


def run(arguments: argparse.Namespace) -> ExitCode:
    """Do what was asked; print the result on stdout."""
    return _ACTIONS[arguments.action](arguments)


def _report(arguments: argparse.Namespace) -> ExitCode:
    from fewbits.api.sensitivity import regenerate_reports

    written = [storable(str(path)) for path in regenerate_reports(arguments.directory, arguments.scheme)]
    print(json.dumps({"written": written}, indent=2) if arguments.json else "\n".join(written))
    return ExitCode.OK


def _rollup(arguments: argparse.Namespace) -> ExitCode:
    from fewbits.api.sensitivity import ROLLUP_NAME, rollup_runs
    from fewbits.core.codec import encode_pretty
    from fewbits.report.sensitivity_rollup import render_rollup_terminal

    first: Path = arguments.roots[0]
    default = (first if first.is_dir() else first.parent) / ROLLUP_NAME
    rollup, written = rollup_runs(arguments.roots, arguments.out or default)
    if arguments.json:
        sys.stdout.write(encode_pretty(rollup).decode())
        return ExitCode.OK
    from rich.console import Console

    Console().print(render_rollup_terminal(rollup))
    for path in written:
        print(storable(str(path)))
    return ExitCode.OK


def _agree(arguments: argparse.Namespace) -> ExitCode:
    from fewbits.api.agreement import measure_agreement
    from fewbits.api.agreement_request import AgreementRequest, ScoreSource
    from fewbits.core.codec import encode_pretty
    from fewbits.report.sensitivity_rollup import render_agreement_text

    manifest: Path | None = arguments.manifest
    if manifest is None and not arguments.reference:
        raise SpecError.single("--manifest", "is missing", "give a run's manifest, or --reference to score here")
    folder = Path() if manifest is None else manifest if manifest.is_dir() else manifest.parent
    out: Path = arguments.out or folder / AGREEMENT_NAME
    request = AgreementRequest(
        out=out,
        manifest=manifest,
        score_source=ScoreSource.REFERENCE if arguments.reference else ScoreSource.MODELOPT,
        model=arguments.model,
        format_name=arguments.format,
        method=SensitivityMethod(arguments.method) if arguments.method else None,
        captions=arguments.captions,
        text=arguments.text,
        samples=arguments.samples,
        sample_tokens=arguments.sample_tokens,
        top_k=arguments.top_k,
        device=arguments.device,
        dtype=arguments.dtype,
        threads=arguments.threads,
    )
    agreement = measure_agreement(request, lambda line: print(line, file=sys.stderr, flush=True))
    if arguments.json:
        sys.stdout.write(encode_pretty(agreement).decode())
        return ExitCode.OK
    print(render_agreement_text(agreement), end="")
    print(storable(str(out)))
    return ExitCode.OK


_DECLARED: dict[str, tuple[Callable[[argparse.ArgumentParser], None], str]] = {
    "report": (_declare_report, "write a run's reports again, from its manifest alone"),
    "rollup": (_declare_rollup, "put several runs into one table and compare their rankings"),
    "agree": (_declare_agree, "measure how far a ranking can be trusted: quantize one group at a time on held-out text"),
}
_ACTIONS: dict[str, Callable[[argparse.Namespace], ExitCode]] = {"report": _report, "rollup": _rollup, "agree": _agree}
