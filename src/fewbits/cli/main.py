"""The `fewbits` command: argv to one command module, errors to one message and one exit code."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Protocol

from fewbits import __version__
from fewbits.core.errors import ExitCode, FewbitsError

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("fewbits.cli.demo", "measure a real packaged model's quantizations on this machine and recommend one"),
    "sweep": ("fewbits.cli.sweep", "build variants, run them under locked controls, summarise and recommend"),
    "summarize": ("fewbits.cli.summarize", "rebuild a run's summary from its journal"),
    "verify": ("fewbits.cli.verify", "rebuild a run's summary and compare it byte for byte"),
    "report": ("fewbits.cli.report", "render a summary as Markdown, frontier picture and scatter JSON"),
    "kpis": ("fewbits.cli.kpis", "report a summary's stability KPIs, check them against limits, follow them over nights"),
    "guards": ("fewbits.cli.guards", "check what the lab's conditions were: cooldown, memory, throttling"),
    "determinism": ("fewbits.cli.determinism", "run tasks several times and report whether the answers repeat"),
    "task": ("fewbits.cli.task", "run one task once, compare it with its baseline, save it as one"),
    "baseline": ("fewbits.cli.baseline", "list, show, resolve, append, pin, unpin, check and prune stored baselines"),
    "context": ("fewbits.cli.context", "find the largest safe context: sweep contexts, ceiling, rollup, checks"),
    "thermal": ("fewbits.cli.thermal", "profile heat over recorded runs, or from this machine's sensors"),
    "frontier": ("fewbits.cli.frontier", "write the frontier explorer artifact and append it to its history"),
    "sensitivity": ("fewbits.cli.sensitivity", "score a model's layers, put several runs into one table, check a ranking"),
    "recipe": ("fewbits.cli.recipe", "choose a type for every tensor of a GGUF under a size budget, build it, prove it"),
    "detect": ("fewbits.cli.detect", "quantize a detector to ONNX, measure variants on labelled images, recommend one"),
    "extract": (
        "fewbits.cli.extract",
        "read lab reports into JSON; measure engines and precisions, recommend one",
    ),
    "import": ("fewbits.cli.import_summary", "convert a summary of the older 1.1.3 shape"),
    "schema": ("fewbits.cli.schema", "list and print the published JSON Schemas, or check files against them"),
    "engine": ("fewbits.cli.engine", "show which llama.cpp is used, or build its tools from source"),
    "models": ("fewbits.cli.models", "list packaged models, or fetch one into the cache"),
    "bank": ("fewbits.cli.bank", "validate a task bank, or print its JSON Schema"),
}
"""Name -> (module, one line of help). A module is imported only when its command is called."""

EXIT_CODES = """\
exit codes:
  0    ok
  1    unexpected error, or an engine failed
  2    a check said FAIL (the canary gate, verify), or the input is unusable
  3    a prerequisite is missing (an engine, a server, an extra)
  130  interrupted; the journal is whole, the same command continues"""


class Command(Protocol):
    """What a command module offers."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's flags."""

    def run(self, arguments: argparse.Namespace) -> ExitCode:
        """Do it; print the result on stdout."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Raises `SystemExit` only for `--help`, `--version` and usage errors."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    if not words or words[0].startswith("-"):
        parser.parse_args(words)
        parser.print_help()
        return ExitCode.OK
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        parser.parse_args([name])  # argparse names the choices and exits with 2
    module_name, help_line = COMMANDS[name]
    try:
        signal.signal(signal.SIGTERM, _interrupt)
        command: Command = importlib.import_module(module_name)
        command_parser = argparse.ArgumentParser(
            prog=f"fewbits {name}",
            description=help_line[0].upper() + help_line[1:] + ".",
            epilog=EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add_arguments(command_parser)
        complete: Callable[[list[str]], list[str]] = getattr(command, "completed", list)
        code = command.run(command_parser.parse_args(complete(rest)))
        sys.stdout.flush()
    except FewbitsError as error:
        print(f"fewbits {name}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"fewbits {name}: interrupted. What was measured is kept; run the same command again to go on.", file=sys.stderr)
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # the reader of our stdout went away (`fewbits ... | head`): not an error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    return code


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    """Let a polite kill end a sweep the way Ctrl-C does."""
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    table = "\n".join(f"  {name:<{width}}  {line}" for name, (_module, line) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="fewbits",
        usage="fewbits COMMAND [flags]   (fewbits COMMAND --help for its flags)",
        description=f"How few bits can this model live with, on this machine, for this work?\n\ncommands:\n{table}",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fewbits {__version__}")
    parser.add_argument("command", nargs="?", choices=sorted(COMMANDS), help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
