"""Labelled images in the format of COCO: one JSON file of annotations and a folder of images. The file is hostile."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fewbits.core.errors import Problem, SpecError
from fewbits.core.files import safe_name
from fewbits.core.units import GIB, format_bytes
from fewbits.records.detection import Category, LabelledImage, LabelledObject
from fewbits.workloads.detection.entries import (
    AnnotationEntry,
    CategoryEntry,
    ImageEntry,
    annotation_problems,
    category_problems,
    image_problems,
    read_entries,
)

ANNOTATION_BYTES_LIMIT = 2 * GIB
"""The largest file of COCO 2017 has 448 MiB."""
SHOWN_PROBLEMS = 20
_KEYS = ("images", "annotations", "categories")
_FORMAT_HINT = "the format is that of COCO's instances_*.json"


@dataclass(frozen=True, slots=True)
class CocoSet:
    """Labelled images and where they lie. `images` and `categories` are sorted by id."""

    images: tuple[LabelledImage, ...]
    categories: tuple[Category, ...]
    folder: Path
    annotations: Path
    digest: str
    """sha256 of the annotation file's bytes, 64 hex digits."""
    notes: tuple[str, ...] = ()
    """What was left out while reading, in words."""


def open_coco(root: Path | str, split: str) -> CocoSet:
    """Open one split (`val`, `train`, or in full `val2017`) of a folder in one of COCO's usual layouts.

    Annotations: `annotations/instances_<split>2017.json` or `annotations/instances_<split>.json`. Images: `<split>2017/`,
    `images/<split>2017/`, `<split>/` or `images/<split>/`. Raises `SpecError`: nothing of the kind is there, or as `load_coco`.
    """
    root = Path(root)
    if not split or safe_name(split) != split:
        raise SpecError.single("split", f"{split!r:.60} is not the name of a split", "for example val or train")
    files = [root / "annotations" / f"instances_{name}.json" for name in (f"{split}2017", split)]
    folders = [root / part for part in (f"{split}2017", f"images/{split}2017", split, f"images/{split}")]
    annotations = next((path for path in files if path.is_file()), None)
    folder = next((path for path in folders if path.is_dir()), None)
    problems = []
    if annotations is None:
        problems.append(_not_there(root, "annotation file", files))
    if folder is None:
        problems.append(_not_there(root, "image folder", folders))
    if annotations is None or folder is None:
        raise SpecError(problems)
    return load_coco(annotations, folder)


def _not_there(root: Path, what: str, tried: Sequence[Path]) -> Problem:
    names = ", ".join(str(path.relative_to(root)) for path in tried)
    return Problem(str(root), f"no {what} of that split is there", f"looked for {names}")


def load_coco(annotations: Path | str, images: Path | str) -> CocoSet:
    """Read an annotation file whose images lie in the folder `images`; the images themselves are not touched.

    Objects keep the order of the file. A box of zero width or height is left out, counted in `notes` (COCO has a few; no
    detection can match one). Raises `SpecError` with all problems, the first 20 in words: not readable, not JSON, missing
    keys, wrong types, repeated ids or names, unknown images or categories, boxes of negative size, file names that leave the
    folder. Of an entry with several problems in its own fields the first is named.
    """
    path, folder = Path(annotations), Path(images)
    data = _read(path)
    problems: list[Problem] = []
    lists = _lists(data, path, problems)
    image_entries = read_entries(lists.get("images", []), ImageEntry, "images", problems)
    category_entries = read_entries(lists.get("categories", []), CategoryEntry, "categories", problems)
    annotation_entries = read_entries(lists.get("annotations", []), AnnotationEntry, "annotations", problems)
    problems += [*image_problems(image_entries), *category_problems(category_entries)]
    image_ids, category_ids = _ids(image_entries, lists.get("images")), _ids(category_entries, lists.get("categories"))
    problems += annotation_problems(annotation_entries, image_ids, category_ids)
    if not problems and not image_entries:
        problems.append(Problem("images", "the file lists no image", _FORMAT_HINT))
    refuse_problems(problems, str(path))
    objects, notes = _objects(annotation_entries)
    return CocoSet(
        images=tuple(sorted((_labelled(entry, objects) for entry in image_entries), key=lambda image: image.image_id)),
        categories=tuple(Category(category_id=e.id, name=e.name) for e in sorted(category_entries, key=lambda e: e.id)),
        folder=folder,
        annotations=path,
        digest=hashlib.sha256(data).hexdigest(),
        notes=notes,
    )


def refuse_problems(problems: Sequence[Problem], where: str) -> None:
    """Raise `SpecError` unless `problems` is empty: the first 20, each behind the name of its file, and the count of the rest."""
    if not problems:
        return
    shown = [Problem(f"{where}: {problem.path}", problem.message, problem.hint) for problem in problems[:SHOWN_PROBLEMS]]
    if (hidden := len(problems) - len(shown)) > 0:
        shown.append(Problem(where, f"and {hidden} more problems of this kind"))
    raise SpecError(shown)


def require_files(coco: CocoSet, images: Sequence[LabelledImage]) -> None:
    """Raise `SpecError` naming the images whose files are not in the folder, or are empty; the first 20 and a count."""
    problems = []
    for image in images:
        path = coco.folder / image.file_name
        try:
            if not path.is_file():
                problems.append(Problem(image.file_name, f"the file of image {image.image_id} is missing"))
            elif path.stat().st_size == 0:
                problems.append(Problem(image.file_name, f"the file of image {image.image_id} is empty (0 bytes)"))
        except OSError as error:
            problems.append(Problem(image.file_name, f"cannot look at this file: {error.strerror or error}"))
    refuse_problems(problems, str(coco.folder))


def _read(path: Path) -> bytes:
    try:
        size_bytes = path.stat().st_size
        if size_bytes > ANNOTATION_BYTES_LIMIT:
            message = f"{format_bytes(size_bytes)} is too large for an annotation file"
            raise SpecError.single(str(path), message, f"at most {format_bytes(ANNOTATION_BYTES_LIMIT)}")
        return path.read_bytes()
    except OSError as error:
        message = f"cannot read the annotation file: {error.strerror or error}"
        raise SpecError.single(str(path), message, _FORMAT_HINT) from error


def _lists(data: bytes, path: Path, problems: list[Problem]) -> dict[str, list[msgspec.Raw]]:
    """Split the file into the undecoded items of its three lists; one that is missing or no list is a problem and left out."""
    try:
        tree = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        hint = "NaN and Infinity are not JSON" if b"NaN" in data or b"Infinity" in data else _FORMAT_HINT
        raise SpecError.single(str(path), f"not a JSON object: {error}", hint) from error
    lists = {}
    for key in _KEYS:
        if key not in tree:
            problems.append(Problem(key, "this key is missing", _FORMAT_HINT))
            continue
        try:
            lists[key] = msgspec.json.decode(tree[key], type=list[msgspec.Raw])
        except (msgspec.DecodeError, RecursionError):
            problems.append(Problem(key, "this must be a list", _FORMAT_HINT))
    return lists


def _ids(entries: Sequence[ImageEntry] | Sequence[CategoryEntry], raw: Sequence[msgspec.Raw] | None) -> frozenset[int] | None:
    """Return the ids of a list, `None` unless every one of its entries could be read."""
    return frozenset(entry.id for entry in entries) if raw is not None and len(entries) == len(raw) else None


def _objects(entries: Sequence[AnnotationEntry]) -> tuple[dict[int, list[LabelledObject]], tuple[str, ...]]:
    """Return the objects of each image, in the order of the file, and what was left out."""
    objects: dict[int, list[LabelledObject]] = {}
    empty = 0
    for entry in entries:
        _x, _y, width, height = entry.bbox
        if width == 0 or height == 0:
            empty += 1
            continue
        area = width * height if entry.area is None else entry.area
        labelled = LabelledObject(category_id=entry.category_id, bbox=entry.bbox, area=area, crowd=bool(entry.iscrowd))
        objects.setdefault(entry.image_id, []).append(labelled)
    if not empty:
        return objects, ()
    return objects, (f"{empty} {'box' if empty == 1 else 'boxes'} of zero width or height left out",)


def _labelled(entry: ImageEntry, objects: dict[int, list[LabelledObject]]) -> LabelledImage:
    return LabelledImage(
        image_id=entry.id,
        file_name=entry.file_name,
        width=entry.width,
        height=entry.height,
        objects=tuple(objects.get(entry.id, ())),
    )
