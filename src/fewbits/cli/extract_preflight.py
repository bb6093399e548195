"""`fewbits extract preflight`: is this machine ready? Also `scripts/preflight_gpu.py`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fewbits.core.errors import ExitCode, FewbitsError

RTX_4060 = "4060"
EPILOG = "exit codes: 0 every check says PASS or WARN, 2 one says FAIL, or the answer cannot be written"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument("--input-dir", type=Path, default=Path("data/samples"), metavar="DIR", help="pages to read (%(default)s)")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("benchmark_runs/preflight.json"),
        metavar="FILE",
        help="where the answer goes as JSON (%(default)s)",
    )
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="what is to be used (%(default)s)")
    parser.add_argument(
        "--require-gpu",
        action="append",
        default=[],
        metavar="NAME",
        help="FAIL unless a GPU's name holds this, in any case; may be repeated",
    )
    parser.add_argument(
        "--require-4060",
        dest="require_gpu",
        action="append_const",
        const=RTX_4060,
        help=f"the same as --require-gpu {RTX_4060}",
    )
    parser.add_argument("--json", action="store_true", help="print the answer as JSON on stdout")


def run(arguments: argparse.Namespace) -> ExitCode:
    """Look, print, write. Exit code 2 where a check says FAIL."""
    from fewbits.api.preflight import PreflightRequest, run_preflight
    from fewbits.core.codec import encode_pretty
    from fewbits.core.files import atomic_write
    from fewbits.records.preflight import CheckStatus, WantedDevice
    from fewbits.report.terminal_preflight import render_preflight

    request = PreflightRequest(
        arguments.input_dir, arguments.output, WantedDevice(arguments.device), tuple(dict.fromkeys(arguments.require_gpu))
    )
    preflight = run_preflight(request)
    document = encode_pretty(preflight)
    # printed before it is written: where nothing can be written, what was found is still seen
    sys.stdout.write(document.decode() if arguments.json else render_preflight(preflight))
    sys.stdout.flush()
    atomic_write(arguments.output, document)
    return ExitCode.FAILED_CHECK if preflight.status is CheckStatus.FAIL else ExitCode.OK


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script's door and return the exit code."""
    parser = argparse.ArgumentParser(prog="preflight_gpu.py", description=__doc__, epilog=EPILOG, allow_abbrev=False)
    add_arguments(parser)
    try:
        return run(parser.parse_args(argv))
    except FewbitsError as error:
        print(f"preflight_gpu.py: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
