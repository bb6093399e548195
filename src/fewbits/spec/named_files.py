"""Files that settings give by name: control profiles and ladders, each in a folder of its own beside the presets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fewbits.core.errors import Problem, SpecError
from fewbits.spec.matrix import read_document
from fewbits.spec.values import nearest, shown

SUFFIXES = (".json", ".yaml", ".yml")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Folder:
    """A kind of named file: where it lies below a base, and what it is called in messages."""

    path: str
    what: str
    hint: str
    """How else it can be given, or where to put one's own."""


def find_named(name: str, folder: Folder, bases: Sequence[Path], where: str) -> Path:
    """Return the file of a name, from the first base that has it. Raises `SpecError` at `where` naming what there is."""
    if not is_name(name):
        message = f"{shown(name)} is no name of a {folder.what}"
        raise SpecError.single(where, message, "letters, digits, '.', '_' and '-', at most 64")
    known = {path.stem: path for base in reversed(bases) for path in _files(base / folder.path)}
    if name in known:
        return known[name]
    there = f"there are: {', '.join(sorted(known)[:12])}" if known else f"there is no {folder.path} here"
    advice = "; ".join(part for part in (nearest(name, known), there, folder.hint) if part)
    raise SpecError.single(where, f"unknown {folder.what} {name!r}", advice)


def read_named(path: Path, what: str) -> dict[str, object]:
    """Read such a file as `read_document` does; every problem names the file."""
    try:
        return read_document(path, what)
    except SpecError as error:
        where = str(path)
        found = [
            item if item.path.startswith(where) else Problem(f"{where}: {item.path}", item.message, item.hint)
            for item in error.problems
        ]
        raise SpecError(found) from error


def is_name(text: str) -> bool:
    """Whether a text may name such a file: nothing that a path could be made of."""
    return _NAME.fullmatch(text) is not None


def _files(folder: Path) -> list[Path]:
    # JSON last, so that it wins where a name has two files
    return sorted((path for path in folder.glob("*") if path.suffix in SUFFIXES), key=lambda path: path.suffix, reverse=True)
