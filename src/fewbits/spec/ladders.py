"""Ladders of quantizations: `ladder:common` among the quants stands for the tags that its file lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fewbits.core.errors import Problem, SpecError
from fewbits.spec.crosscheck import Draft
from fewbits.spec.named_files import Folder, find_named, read_named
from fewbits.spec.values import nearest, shown

PREFIX = "ladder:"
FOLDER = Folder("benchmarks/ladders", "ladder", "or put your own there, as NAME.json")
_KEYS = ("name", "quants", "description")


def expand_ladders(draft: Draft, bases: Sequence[Path]) -> None:
    """Put each ladder's tags in the place where it was named. Problems go into the draft."""
    if not draft.usable("quants"):
        return
    tags: list[str] = []
    places: list[str] = []
    for index, word in enumerate(draft.values["quants"]):
        if not word.lower().startswith(PREFIX):
            tags.append(word)
            places.append(str(index))
            continue
        path = f"{draft.paths.get('quants', 'quants')}[{index}]"
        try:
            steps = read_ladder(word[len(PREFIX) :].strip(), bases, path)
        except SpecError as error:
            draft.problems += error.problems
            draft.broken.add("quants")
            continue
        tags += steps
        places += [f"{index}, from {word}"] * len(steps)
    draft.values["quants"] = tuple(tags)
    draft.places["quants"] = tuple(places)


def read_ladder(name: str, bases: Sequence[Path], where: str) -> tuple[str, ...]:
    """Return the tags of a ladder, as its file spells them. Raises `SpecError` with every problem of name or file."""
    path = find_named(name, FOLDER, bases, where)
    document = read_named(path, "ladder file")
    problems = list(_problems(document, name, str(path)))
    if problems:
        raise SpecError(problems)
    quants = document["quants"]
    return tuple(str(tag) for tag in quants) if isinstance(quants, list) else ()


def _problems(document: Mapping[str, object], name: str, where: str) -> list[Problem]:
    problems = [Problem(f"{where}: {key}", "unknown key", nearest(key, _KEYS)) for key in document if key not in _KEYS]
    if document.get("name", name) != name:
        problems.append(Problem(f"{where}: name", f"says {shown(document['name'])}, but the file is called {name!r}"))
    if not isinstance(document.get("description", ""), str):
        problems.append(Problem(f"{where}: description", f"expected text, got {shown(document['description'])}"))
    return problems + _tag_problems(document.get("quants"), where)


def _tag_problems(quants: object, where: str) -> list[Problem]:
    if not isinstance(quants, list) or not quants:
        return [Problem(f"{where}: quants", f"expected a list of quantization tags, got {shown(quants)}")]
    problems = []
    for index, tag in enumerate(quants):
        place = f"{where}: quants[{index}]"
        if not isinstance(tag, str) or not tag.strip():
            problems.append(Problem(place, f"expected a quantization tag, got {shown(tag)}"))
        elif tag.lower().startswith(PREFIX):
            problems.append(Problem(place, "a ladder lists tags, not other ladders", "write its tags out"))
    return problems
