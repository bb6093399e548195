"""`fewbits extract`: lab reports to JSON, page by page; the benchmark of its engines; labelled sets; samples; preflight."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fewbits.core.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fewbits.api.extract import ReadRequest

_READ = "read"
_MODULES = {
    "bench": ("fewbits.cli.extract_bench", "measure engines on pages: accuracy, time, memory; recommend one"),
    "label": ("fewbits.cli.extract_label", "start a labelled set from what an engine reads"),
    "samples": ("fewbits.cli.extract_samples", "draw lab reports with known content"),
    "preflight": ("fewbits.cli.extract_preflight", "check what can run here, and what is missing"),
}


def completed(words: Sequence[str]) -> list[str]:
    """Put the action before files that stand alone: `fewbits extract report.png` reads it."""
    known = (*_MODULES, _READ)
    if not words or words[0] in known or words[0] in ("-h", "--help"):
        return list(words)
    return [_READ, *words]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-commands."""
    actions = parser.add_subparsers(dest="action", required=True)
    words = "read pages into JSON (also without the word: fewbits extract report.png)"
    _declare_read(actions.add_parser(_READ, help=words, description=words[0].upper() + words[1:] + ".", allow_abbrev=False))
    for name, (module, words) in _MODULES.items():
        action = actions.add_parser(name, help=words, description=words[0].upper() + words[1:] + ".", allow_abbrev=False)
        importlib.import_module(module).add_arguments(action)


def run(arguments: argparse.Namespace) -> ExitCode:
    """Do what was asked; print the result on stdout."""
    if arguments.action in _MODULES:
        code: ExitCode = importlib.import_module(_MODULES[arguments.action][0]).run(arguments)
        return code
    return _read(arguments)


def add_engine_arguments(group: argparse._ArgumentGroup) -> None:
    """Declare the flags of one engine."""
    group.add_argument("--engine", default="ocr", metavar="NAME", help="ocr, ocr-int8, ocr+chat-q4_k_m, vision-bf16, ... (ocr)")
    add_model_arguments(group)
    group.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where a vision-language model runs (cpu)")
    group.add_argument("--threads", type=int, metavar="N", help="threads of the engine (the physical cores)")


def read_request(
    arguments: argparse.Namespace, inputs: tuple[Path, ...], *, pages: tuple[int, int] | None = None, redact: bool = False
) -> ReadRequest:
    """Return what is read, with the engine that the flags name."""
    from fewbits.api.extract import ReadRequest

    return ReadRequest(
        inputs=inputs,
        pages=pages,
        engine=arguments.engine,
        model=arguments.model,
        chat_model=arguments.chat_model,
        device=arguments.device,
        threads=arguments.threads,
        max_retries=arguments.max_retries,
        max_new_tokens=arguments.max_new_tokens,
        redact=redact,
    )


def add_model_arguments(group: argparse._ArgumentGroup) -> None:
    """Declare the flags that models take."""
    group.add_argument("--model", metavar="NAME", help="vision-language model: a folder, or a name on the hub")
    group.add_argument("--chat-model", metavar="NAME", help="chat model of ocr+chat: a GGUF file, or a packaged name")
    group.add_argument("--max-retries", type=int, default=2, metavar="N", help="how often it is asked again about a page (2)")
    group.add_argument("--max-new-tokens", type=int, default=2048, metavar="N", help="limit of a model's answer (2048)")


def _declare_read(action: argparse.ArgumentParser) -> None:
    action.add_argument("inputs", nargs="+", type=Path, metavar="FILE", help="pictures, PDFs, or folders of them")
    action.add_argument("--pages", metavar="FIRST-LAST", help="pages of each file (all, at most 50)")
    action.add_argument("--output", type=Path, metavar="FILE", help="write the JSON there instead of stdout")
    action.add_argument("--format", choices=("json", "summary"), default="json", help="the whole document, or a table (json)")
    action.add_argument("--redact", action="store_true", help="leave out everything about the patient but the sex")
    add_engine_arguments(action.add_argument_group("engine"))


def _read(arguments: argparse.Namespace) -> ExitCode:
    from fewbits.api.extract import read_files
    from fewbits.core.codec import encode_pretty
    from fewbits.core.files import atomic_write
    from fewbits.images.pages import parse_page_range

    pages = parse_page_range(arguments.pages) if arguments.pages is not None else None
    request = read_request(arguments, tuple(arguments.inputs), pages=pages, redact=arguments.redact)
    document = read_files(request, lambda message: print(message, file=sys.stderr, flush=True))
    data = encode_pretty(document)
    if arguments.output is not None:
        atomic_write(arguments.output, data)
    if arguments.format == "summary":
        from rich.console import Console

        from fewbits.report.terminal_extraction import render_documents

        Console().print(render_documents(document))
    elif arguments.output is None:
        sys.stdout.write(data.decode())
    failed = any(not page.success for read in document.files for page in read.pages)
    return ExitCode.FAILED_CHECK if failed else ExitCode.OK
