"""The entries of a COCO annotation file as they are written there, and what can be wrong with each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath, PureWindowsPath
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from fewbits.core.errors import Problem
from fewbits.records.base import OpenRecord

_Id = Annotated[int, Meta(ge=0)]
_Side = Annotated[int, Meta(ge=1, le=1_000_000)]
_Length = Annotated[float, Meta(ge=-1e9, le=1e9)]
_ARTICLES = {"images": "image", "annotations": "annotation", "categories": "category"}


class ImageEntry(OpenRecord, frozen=True, kw_only=True):
    """One item of `images`."""

    id: _Id
    file_name: str
    width: _Side
    height: _Side


class AnnotationEntry(OpenRecord, frozen=True, kw_only=True):
    """One item of `annotations`; detection sets without segmentations may lack `area`, and `iscrowd`."""

    id: _Id
    image_id: int
    category_id: int
    bbox: tuple[_Length, _Length, _Length, _Length]
    area: Annotated[float, Meta(ge=0, le=1e18)] | None = None
    iscrowd: Literal[0, 1] | bool = 0


class CategoryEntry(OpenRecord, frozen=True, kw_only=True):
    """One item of `categories`."""

    id: _Id
    name: Annotated[str, Meta(min_length=1)]


_Entry = TypeVar("_Entry", ImageEntry, AnnotationEntry, CategoryEntry)


def read_entries(raw: Sequence[msgspec.Raw], kind: type[_Entry], key: str, problems: list[Problem]) -> list[_Entry]:
    """Decode the items of one list. Each that does not fit adds the first thing wrong with it to `problems` and is left out."""
    decoder = msgspec.json.Decoder(kind)
    found: list[_Entry] = []
    first: dict[int, int] = {}
    for index, item in enumerate(raw):
        try:
            entry = decoder.decode(item)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            problems.append(Problem(f"{key}[{index}]", " ".join(str(error).split())))
            continue
        if first.setdefault(entry.id, index) != index:
            message = f"the id {entry.id} of this {_ARTICLES[key]} is used twice"
            problems.append(Problem(f"{key}[{index}].id", message, f"first used by {key}[{first[entry.id]}]"))
        found.append(entry)
    return found


def file_name_problem(name: str) -> str | None:
    """Say why a name is not that of a file below the image folder (`None` when it is)."""
    if not name.strip() or not name.isprintable():
        return "the file name is empty or holds characters that cannot be printed"
    parts = PurePosixPath(name).parts
    if "\\" in name or PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive or ".." in parts:
        return f"the file name {name!r:.100} leaves the image folder"
    return None


def image_problems(entries: Sequence[ImageEntry]) -> Iterator[Problem]:
    """Yield names that leave the folder and files that two images share."""
    first: dict[str, int] = {}
    for entry in entries:
        where = f"image {entry.id}"
        if problem := file_name_problem(entry.file_name):
            yield Problem(where, problem, "give a path relative to the image folder")
        elif first.setdefault(entry.file_name, entry.id) != entry.id:
            yield Problem(where, f"its file {entry.file_name!r:.100} is also that of image {first[entry.file_name]}")


def category_problems(entries: Sequence[CategoryEntry]) -> Iterator[Problem]:
    """Yield names that two categories share: a detector's classes are found by name."""
    first: dict[str, int] = {}
    for entry in entries:
        if first.setdefault(entry.name, entry.id) != entry.id:
            yield Problem(f"category {entry.id}", f"its name {entry.name!r:.60} is also that of category {first[entry.name]}")


def annotation_problems(
    entries: Sequence[AnnotationEntry], image_ids: frozenset[int] | None, category_ids: frozenset[int] | None
) -> Iterator[Problem]:
    """Yield boxes of negative size, and annotations of images or categories that the file does not list.

    `None` where the ids are not all known, because an entry could not be read: then nobody can say.
    """
    for entry in entries:
        where = f"annotation {entry.id}"
        if image_ids is not None and entry.image_id not in image_ids:
            yield Problem(where, f"it belongs to image {entry.image_id}, which is not in the file")
        if category_ids is not None and entry.category_id not in category_ids:
            yield Problem(where, f"it has category {entry.category_id}, which is not in the file")
        if min(entry.bbox[2:]) < 0:
            yield Problem(where, f"its box {list(entry.bbox)} has a negative size", "boxes are [x, y, width, height] in pixels")
