"""Docs that cannot rot: links resolve, commands and flags exist, no registry host or path of a machine is written down.

Part of `make check`. Exit code 0 when clean, 2 with every problem listed.
"""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from fewbits.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")
FENCE = re.compile(r"^```(?:bash|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FORBIDDEN = re.compile(r"https?://[^ ]*(?:/simple/|registry[.])|(?<![\w.])/(?:root|work|home)/\w")
DOORS = re.compile(r'open_door\("([\w-]+)"')


def main() -> int:
    """Check every Markdown file of the checkout."""
    problems = [problem for path in documents() for problem in problems_of(path)]
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"docs: {len(documents())} files, {len(problems)} problems")
    return 2 if problems else 0


def documents() -> list[Path]:
    """Markdown files that git knows, or would know."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / name for name in listed.stdout.split() if "golden" not in name and (ROOT / name).exists()]


def problems_of(path: Path) -> Iterator[str]:
    """Everything wrong in one file."""
    text, name = path.read_text(), path.relative_to(ROOT)
    for target in LINK.findall(text):
        if "://" not in target and not (path.parent / target).exists():
            yield f"{name}: link to {target} leads nowhere"
    for match in FORBIDDEN.finditer(text):
        yield f"{name}: {match.group(0)!r} names a registry host or a path of one machine"
    for block in FENCE.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            yield from (f"{name}: {problem}" for problem in command_problems(line))


def command_problems(line: str) -> Iterator[str]:
    """Unknown commands, scripts or flags in one line of a shell block."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError as error:
        yield f"{line!r} is not shell: {error}"
        return
    if words[:1] == ["python"] and len(words) > 1 and words[1].startswith("scripts/"):
        script = ROOT / words[1]
        if not script.exists():
            yield f"{words[1]} does not exist"
            return
        door = DOORS.search(script.read_text())
        words = ["fewbits", door.group(1), *words[2:]] if door else []
    if words[:1] != ["fewbits"] or len(words) < 2 or words[1].startswith("-"):
        return
    if words[1] not in COMMANDS:
        yield f"`fewbits {words[1]}` is not a command"
        return
    known = flags_of(words[1])
    yield from (
        f"`fewbits {words[1]}` has no flag {word}"
        for word in words[2:]
        if word.startswith("--") and word.split("=")[0] not in known
    )


def flags_of(command: str) -> set[str]:
    """Every option string of a command and its sub-commands."""
    parser = argparse.ArgumentParser(prog=command)
    importlib.import_module(COMMANDS[command][0]).add_arguments(parser)
    return set(options(parser))


def options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Option strings, sub-parsers included."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from options(sub)


if __name__ == "__main__":
    raise SystemExit(main())
