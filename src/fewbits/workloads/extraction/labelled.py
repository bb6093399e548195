"""Labelled sets: a folder of pages and `labels.json`, which says what each page says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from fewbits.core.codec import decode, encode_pretty
from fewbits.core.errors import Problem, SpecError, StoreError
from fewbits.core.files import atomic_write, sha256_file
from fewbits.records.extraction import LabelledReports

LABELS_NAME = "labels.json"


def read_labelled(folder: Path, *, check_digests: bool = False) -> LabelledReports:
    """Return the labels of a folder whose pages are all there, each named once; with `check_digests` also unchanged.

    Raises `SpecError` with all problems: no labels, a page that is missing, named twice or (where asked) not the one that was
    labelled; `StoreError` where `labels.json` cannot be read or is not of the published shape.
    """
    path = folder / LABELS_NAME
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        hint = "name the folder that holds labels.json, or start one with `fewbits extract label`"
        raise SpecError.single(str(folder), f"there is no {LABELS_NAME}", hint) from None
    except OSError as error:
        msg = f"cannot read {path}: {error.strerror or error}. Check the path and its permissions."
        raise StoreError(msg) from error
    labels = decode(data, LabelledReports, str(path))
    problems = _twice(labels) or _missing(folder, labels) or (_changed(folder, labels) if check_digests else [])
    if problems:
        raise SpecError(problems)
    return labels


def write_labelled(folder: Path, labels: LabelledReports) -> Path:
    """Write `labels.json` beside its pages, whole or not at all, and return its path.

    Raises `SpecError` for a page that is named twice or not there, `StoreError` where it cannot be written.
    """
    problems = _twice(labels) or _missing(folder, labels)
    if problems:
        raise SpecError(problems)
    path = folder / LABELS_NAME
    atomic_write(path, encode_pretty(labels))
    return path


def _twice(labels: LabelledReports) -> list[Problem]:
    """Name the pages that are labelled more than once."""
    counts = Counter(page.file_name for page in labels.pages)
    hint = "keep one entry for each page"
    return [Problem(f"{LABELS_NAME}: {name}", f"is labelled {count} times", hint) for name, count in counts.items() if count > 1]


def _missing(folder: Path, labels: LabelledReports) -> list[Problem]:
    """Name the pages that are not in the folder."""
    hint = "put the page there, or remove its entry"
    return [
        Problem(f"{LABELS_NAME}: {page.file_name}", f"is not a file in {folder}", hint)
        for page in labels.pages
        if not (folder / page.file_name).is_file()
    ]


def _changed(folder: Path, labels: LabelledReports) -> list[Problem]:
    """Name the pages that are not the files that were labelled."""
    hint = "restore the page, or label it anew"
    return [
        Problem(f"{LABELS_NAME}: {page.file_name}", "is not the file that was labelled (its sha256 differs)", hint)
        for page in labels.pages
        if _digest(folder / page.file_name) != page.sha256
    ]


def _digest(path: Path) -> str:
    """Return a page's sha256. Raises `StoreError` where it cannot be read."""
    try:
        return sha256_file(path)
    except OSError as error:
        msg = f"cannot read {path}: {error.strerror or error}. Check its permissions."
        raise StoreError(msg) from error
