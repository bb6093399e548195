"""`fewbits detect smoke`: one call of an ONNX file on random numbers. Also `scripts/cv-models/smoke_yolov10m_onnx.py`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fewbits.cli.detect_eval import add_provider_arguments, provider_names, show_notice
from fewbits.cli.numbers import at_least_one
from fewbits.core.errors import ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument("--onnx-path", type=Path, required=True, metavar="FILE", help="the model")
    add_provider_arguments(parser)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random numbers (0)")
    parser.add_argument(
        "--imgsz", type=at_least_one, default=640, metavar="PIXELS", help="what free sides of a picture become (640)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the record as JSON")
    parser.add_argument("--json", action="store_true", help="print the record as JSON on stdout")


def run(arguments: argparse.Namespace) -> ExitCode:
    """Run once, write, print. Exit code 2 where an output is not finite."""
    from fewbits.api.detect_smoke import smoke_onnx
    from fewbits.core.codec import encode_pretty
    from fewbits.core.files import atomic_write

    providers = provider_names(arguments.providers)
    record = smoke_onnx(arguments.onnx_path, providers, arguments.seed, arguments.imgsz, show_notice)
    if arguments.out is not None:
        atomic_write(arguments.out, encode_pretty(record))
    if arguments.json:
        sys.stdout.write(encode_pretty(record).decode())
    else:
        from fewbits.report.detector_terminal import render_smoke_text

        print(render_smoke_text(record))
        if arguments.out is not None:
            print(arguments.out)
    return ExitCode.OK if record.is_finite else ExitCode.FAILED_CHECK
