"""Which images are used: the first, those of a list, a seeded draw; and lists of calibration images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from fewbits.analysis.items import keyed_shuffle
from fewbits.core.errors import Problem, SpecError
from fewbits.core.files import sha256_file
from fewbits.core.units import MIB, format_bytes
from fewbits.records.detection import ImageRequest, LabelledImage
from fewbits.workloads.detection.coco import CocoSet, refuse_problems

LIST_BYTES_LIMIT = 64 * MIB


def first_images(coco: CocoSet, count: int | None = None) -> tuple[LabelledImage, ...]:
    """Return the first `count` images by id, fewer where the set is smaller; `None` means all. Raises `SpecError` below 1."""
    if count is not None and count < 1:
        raise SpecError.single("images", f"{count} is not a number of images", "at least 1")
    return coco.images[:count]


def draw_images(coco: CocoSet, count: int, seed: int) -> tuple[LabelledImage, ...]:
    """Draw `count` different images, returned sorted by id: each set of that size is as likely as any other.

    The draw depends on the ids and the seed alone, never on a library's version, and a larger draw contains the smaller one of
    the same seed. Raises `SpecError` below 1 and above the number of images.
    """
    if not 1 <= count <= len(coco.images):
        hint = f"between 1 and {len(coco.images)}, the images of {coco.annotations}"
        raise SpecError.single("images", f"{count} images cannot be drawn", hint)
    by_word = {str(image.image_id): image for image in coco.images}
    words = keyed_shuffle(tuple(by_word), f"{seed}\nimages")[:count]
    return tuple(sorted((by_word[word] for word in words), key=lambda image: image.image_id))


def read_id_list(path: Path | str, coco: CocoSet) -> tuple[LabelledImage, ...]:
    """Return the images that a file lists: one id per line, `#` starts a comment; sorted by id.

    Raises `SpecError` with all problems: not readable, lines that are no id, ids that the set lacks or that stand twice, no id.
    """
    path = Path(path)
    by_id = {image.image_id: image for image in coco.images}
    chosen: dict[int, int] = {}
    problems: list[Problem] = []
    for number, line in _lines(path):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        image_id = int(text) if text.isascii() and text.isdigit() and len(text) <= 19 else None
        if image_id is None:
            problems.append(Problem(f"line {number}", f"{text!r:.60} is not an image id", "one whole number per line"))
        elif image_id not in by_id:
            problems.append(Problem(f"line {number}", f"there is no image {image_id} in {coco.annotations}"))
        elif chosen.setdefault(image_id, number) != number:
            problems.append(Problem(f"line {number}", f"image {image_id} stands twice", f"first on line {chosen[image_id]}"))
    if not problems and not chosen:
        problems.append(Problem("line 1", "the list names no image", "one image id per line"))
    refuse_problems(problems, str(path))
    return tuple(by_id[image_id] for image_id in sorted(chosen))


def read_image_list(path: Path | str) -> tuple[Path, ...]:
    """Return the image files that a file lists, in its order: one path per line, lines that start with `#` are comments.

    A relative path is looked for in the list's own folder, then in the current one. Raises `SpecError` with all problems: not
    readable, files that are missing or empty or stand twice, no path at all.
    """
    path = Path(path)
    chosen: dict[Path, int] = {}
    problems: list[Problem] = []
    for number, line in _lines(path):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        found = _existing(path.parent, text)
        if found is None:
            hint = f"looked in {path.parent} and in the current folder"
            problems.append(Problem(f"line {number}", f"{text!r:.200} is missing, empty or not a file", hint))
        elif chosen.setdefault(found, number) != number:
            problems.append(Problem(f"line {number}", f"{text!r:.200} stands twice", f"first on line {chosen[found]}"))
    if not problems and not chosen:
        problems.append(Problem("line 1", "the list names no image", "one image path per line"))
    refuse_problems(problems, str(path))
    return tuple(chosen)


def _existing(folder: Path, text: str) -> Path | None:
    """Return the path of a file with content, as first found (not resolved); `None` when it is nowhere."""
    for candidate in (folder / text, Path(text)):
        try:
            if candidate.is_file() and candidate.stat().st_size > 0:
                return candidate
        except (OSError, ValueError):
            continue
    return None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a small text file with their numbers, from 1."""
    try:
        size_bytes = path.stat().st_size
        if size_bytes > LIST_BYTES_LIMIT:
            message = f"{format_bytes(size_bytes)} is too large for a list of images"
            raise SpecError.single(str(path), message, f"at most {format_bytes(LIST_BYTES_LIMIT)}")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise SpecError.single(str(path), f"cannot read the list: {error.strerror or error}", "check the path") from error
    except UnicodeDecodeError as error:
        raise SpecError.single(str(path), f"the list is not UTF-8: byte {error.start}", "save it as UTF-8 text") from error
    yield from enumerate(text.splitlines(), start=1)


def digest_images(paths: Sequence[Path]) -> tuple[ImageRequest, ...]:
    """Return the name (without folder) and sha256 of each file, in order. Raises `SpecError` naming those that cannot be read."""
    requests, problems = [], []
    for path in paths:
        try:
            requests.append(ImageRequest(file_name=path.name, sha256=sha256_file(path)))
        except OSError as error:
            problems.append(Problem(str(path), error.strerror or str(error)))
    refuse_problems(problems, "images")
    return tuple(requests)


def overlapping(calibration: Sequence[ImageRequest], evaluation: Sequence[ImageRequest]) -> tuple[ImageRequest, ...]:
    """Return the calibration images whose content is also evaluated, whatever the files are called; empty when kept apart."""
    evaluated = {image.sha256 for image in evaluation}
    return tuple(image for image in calibration if image.sha256 in evaluated)
