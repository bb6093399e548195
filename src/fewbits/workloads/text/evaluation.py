"""Evaluation texts: what divergence from the reference is measured on. Never the text that a variant was calibrated on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from fewbits.core.codec import text_digest
from fewbits.core.errors import PrerequisiteError, SpecError
from fewbits.core.units import format_bytes
from fewbits.records.divergence import NO_TEXT, PART_NAMES, PYTHON_TOPICS, EvaluationText

TEXT_BYTES_LIMIT = 16 * 1024 * 1024
"""About four million tokens, far more than any measurement reads; a larger file is more likely the wrong one."""
CALIBRATION_TEXT, PROBE_TEXT, HELD_OUT_TEXT = PART_NAMES
SHARED_CHARACTERS = 80
"""Documents that share a paragraph of this length belong together (some topics quote whole pages of others)."""
_PARAGRAPH_END = re.compile(r"\n\s*\n")
_WHERE = "evaluation_text"
_HINT = f"name a UTF-8 text file, {PYTHON_TOPICS}, {', '.join(PART_NAMES)}, or {NO_TEXT}"


def open_evaluation_text(name: str) -> tuple[EvaluationText, str] | None:
    """Open a text by name: `python-topics`, a part of it (`PART_NAMES`), `none` (returns `None`), else the path of a UTF-8 file.

    The record names a file without its folder, so that a plan is the same wherever the file lies; line ends stay as they are.
    Raises `SpecError` (missing, a folder, empty, too large, not UTF-8), `PrerequisiteError` (a Python without its topics).
    """
    if name == NO_TEXT:
        return None
    if name == PYTHON_TOPICS:
        text = _python_topics()
        return _described(name, text), text
    if name in PART_NAMES:
        topics = _topics()
        text = "\n".join(topics[key] for key in split_documents(topics, len(PART_NAMES))[PART_NAMES.index(name)])
        return _described(name, text), text
    path = Path(name).expanduser()
    text = _read(path)
    return _described(path.name, text), text


def _described(name: str, text: str) -> EvaluationText:
    return EvaluationText(name=name, digest=text_digest(text), bytes=len(text.encode("utf-8")))


def split_documents(documents: Mapping[str, str], parts: int) -> tuple[tuple[str, ...], ...]:
    """Split documents (name -> text) into parts of about equal length; returns each part's names, sorted.

    Documents that share a paragraph of `SHARED_CHARACTERS` or more, blanks aside, stay together. Bundles are dealt out longest
    first, each to the part that is shortest so far. Depends on the documents alone, not on their order.
    """
    bundles = _bundles(documents)
    length = {first: sum(len(documents[name]) for name in bundle) for first, bundle in bundles.items()}
    dealt: list[list[str]] = [[] for _ in range(parts)]
    totals = [0] * parts
    for first in sorted(bundles, key=lambda first: (-length[first], first)):
        place = totals.index(min(totals))
        dealt[place] += bundles[first]
        totals[place] += length[first]
    return tuple(tuple(sorted(names)) for names in dealt)


def _bundles(documents: Mapping[str, str]) -> dict[str, list[str]]:
    """Documents that share long paragraphs, directly or through others: first name -> names."""
    first_of = {name: name for name in documents}
    holder: dict[str, str] = {}
    for name in sorted(documents):
        for paragraph in _PARAGRAPH_END.split(documents[name]):
            words = " ".join(paragraph.split())
            if len(words) < SHARED_CHARACTERS:
                continue
            here, there = first_of[name], first_of[holder.setdefault(words, name)]
            if here != there:
                low, high = sorted((here, there))
                first_of = {one: low if first == high else first for one, first in first_of.items()}
    bundles: dict[str, list[str]] = {}
    for name in sorted(documents):
        bundles.setdefault(first_of[name], []).append(name)
    return bundles


def _python_topics() -> str:
    """The language reference that CPython's `help()` shows, in the order of its keys. Another Python has another digest."""
    topics = _topics()
    return "\n".join(topics[key] for key in sorted(topics))


def _topics() -> Mapping[str, str]:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise PrerequisiteError(
            f"this Python has no pydoc_data.topics, so there is no {PYTHON_TOPICS}",
            "Name a text file with --evaluation-text (Debian, Ubuntu: the full python3 package has the topics).",
        ) from error
    found: Mapping[str, str] = topics
    return found


def _read(path: Path) -> str:
    try:
        if path.is_dir():
            raise SpecError.single(_WHERE, f"{path} is a folder", "name the text file inside it")
        size = path.stat().st_size
        if size > TEXT_BYTES_LIMIT:
            message = f"{path} has {format_bytes(size)}, at most {format_bytes(TEXT_BYTES_LIMIT)} are read"
            raise SpecError.single(_WHERE, message, "cut out a part: divergence is measured on the beginning")
        data = path.read_bytes()
    except OSError as error:
        raise SpecError.single(_WHERE, f"cannot read {path}: {error.strerror or error}", _HINT) from error
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"{path} is not UTF-8: byte {error.start} is {data[error.start]:#04x}"
        raise SpecError.single(_WHERE, message, "convert it to UTF-8 first") from error
    if not text.strip():
        raise SpecError.single(_WHERE, f"{path} is empty", _HINT)
    return text
