"""Files that hold pages (pictures, TIFFs of several pages, PDFs) as upright RGB pixels. What a file is, its content says."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType

from fewbits.core.errors import SpecError
from fewbits.core.units import format_bytes
from fewbits.images.opening import FILE_BYTES_LIMIT, PIXEL_LIMIT, Pixels, Turning, read_picture
from fewbits.images.pdf import Pdf
from fewbits.images.tiff import page_offsets, single_page

PAGE_LIMIT = 50
"""Pages that are taken at once: a few minutes of reading."""
SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pdf", ".png", ".tif", ".tiff", ".webp"})
_HEAD_BYTES = 1024
"""Readers look for a PDF's header in so many bytes. Source: PDF 1.7 reference, appendix H, implementation note 13."""
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_NOT_PAGES = frozenset({"labels.json"})
_PAGE_RANGE = re.compile(r"([1-9]\d{0,6})(?:-([1-9]\d{0,6}))?", re.ASCII)


class InputKind(StrEnum):
    """What a file is, by its first bytes."""

    BMP = "bmp"
    GIF = "gif"
    JPEG = "jpeg"
    PDF = "pdf"
    PNG = "png"
    TIFF = "tiff"
    WEBP = "webp"


@dataclass(frozen=True, slots=True)
class Page:
    """One page: `pixels` uint8[height, width, 3], RGB, upright; `number` counts from 1, `count` is how many the file has.

    `notes` say what was changed or left out on the way.
    """

    pixels: Pixels
    number: int
    count: int
    notes: tuple[str, ...] = ()


class Pages:
    """An opened file: `numbers` are the pages chosen, each decoded only when it is asked for.

    One damaged page raises for itself alone. Not for use by several threads at once (PDFium).
    """

    def __init__(
        self, kind: InputKind, count: int, numbers: range, read: Callable[[int], Page], close: Callable[[], None] | None = None
    ) -> None:
        self.kind, self.count, self.numbers = kind, count, numbers
        self._read, self._close = read, close

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[Page]:
        return map(self.read, self.numbers)

    def __enter__(self) -> Pages:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def read(self, number: int) -> Page:
        """Decode one page. Raises `SpecError` naming the file and the page when it is damaged or too large."""
        if number not in self.numbers:
            msg = f"page {number} is not among the chosen {self.numbers.start} to {self.numbers.stop - 1}"
            raise ValueError(msg)
        return self._read(number)

    def close(self) -> None:
        """Free what a PDF holds; its pages cannot be read afterwards."""
        if self._close is not None:
            self._close()


def open_pages(
    path: Path | str,
    *,
    pages: tuple[int, int] | None = None,
    page_limit: int = PAGE_LIMIT,
    pixel_limit: int = PIXEL_LIMIT,
) -> Pages:
    """Open a picture or PDF. `pages` are the first and the last page wanted, from 1; `None` means all of them.

    Of an animation only the first frame is a page. Raises `SpecError` naming the file when it is missing, a folder or no regular
    file, empty, larger than 256 MiB, of no known kind, damaged, encrypted, without pages, without the pages wanted, or when it
    has more than `page_limit` pages and they were not chosen; single pages are decoded, and refused, only when they are read.
    Raises `PrerequisiteError` where Pillow or pypdfium2 is missing.
    """
    where = str(path)
    data = _file_bytes(Path(path))
    kind = kind_of(data)
    if kind is None:
        hint = "give a PNG, JPEG, TIFF, BMP, WebP, GIF or PDF"
        raise SpecError.single(where, "neither a picture nor a PDF: its content is of no kind that can be read", hint)
    if kind is InputKind.PDF:
        pdf = Pdf(data, where)
        try:
            numbers = _chosen(where, pdf.count, pages, page_limit)
        except BaseException:
            pdf.close()
            raise
        return Pages(kind, pdf.count, numbers, lambda number: _pdf_page(pdf, number, pixel_limit), pdf.close)
    offsets, notes = page_offsets(data) if kind is InputKind.TIFF else ((), ())
    count = max(1, len(offsets))
    numbers = _chosen(where, count, pages, page_limit)

    def read(number: int) -> Page:
        one = single_page(data, offsets[number - 1]) if offsets else data
        place = f"{where}, page {number}" if count > 1 else where
        picture = read_picture(one, place, pixel_limit=pixel_limit, turning=Turning.UPRIGHT)
        return Page(picture.pixels, number, count, notes + picture.notes)

    return Pages(kind, count, numbers, read)


def _pdf_page(pdf: Pdf, number: int, pixel_limit: int) -> Page:
    pixels, notes = pdf.render(number, pixel_limit)
    return Page(pixels, number, pdf.count, notes)


def kind_of(head: bytes) -> InputKind | None:
    """Say what a file is by its first 1024 bytes; `None` where it is nothing that is read here."""
    starts = ((b"\x89PNG\r\n\x1a\n", InputKind.PNG), (b"\xff\xd8\xff", InputKind.JPEG), (b"GIF8", InputKind.GIF))
    for start, kind in (*starts, *((start, InputKind.TIFF) for start in _TIFF_STARTS)):
        if head.startswith(start):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return InputKind.WEBP
    if b"%PDF-" in head[:_HEAD_BYTES]:
        return InputKind.PDF
    return InputKind.BMP if head.startswith(b"BM") else None


def parse_page_range(text: str, where: str = "--pages") -> tuple[int, int]:
    """Read `7` or `1-50` as the first and the last page. Raises `SpecError`."""
    match = _PAGE_RANGE.fullmatch(text.strip())
    if match is None or (match[2] is not None and int(match[2]) < int(match[1])):
        raise SpecError.single(where, f"{text[:40]!r} names no pages", "give one page (7) or the first and the last (1-50)")
    return int(match[1]), int(match[2] or match[1])


def _chosen(where: str, count: int, pages: tuple[int, int] | None, page_limit: int) -> range:
    if pages is None:
        first, last = 1, count
    else:
        first, last = pages[0], min(pages[1], count)
        if not 1 <= first <= last:
            raise SpecError.single(where, f"there is no page {first}: it has {count}", "choose others with --pages FIRST-LAST")
    if last - first + 1 > page_limit:
        message = f"these are {last - first + 1} pages, and at most {page_limit} are read at once"
        raise SpecError.single(where, message, f"choose some with --pages {first}-{first + page_limit - 1}")
    return range(first, last + 1)


def _file_bytes(path: Path) -> bytes:
    """Read a whole regular file, bounded: pipes and devices might never end."""
    try:
        # not to block on a pipe that nobody writes to
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            mode = os.fstat(descriptor).st_mode
            if stat.S_ISDIR(mode):
                raise SpecError.single(str(path), "this is a folder, not a picture or PDF", "name one file in it")
            if not stat.S_ISREG(mode):
                raise SpecError.single(str(path), "this is a device or a pipe, not a file", "save it to a file first")
            with os.fdopen(descriptor, "rb", closefd=False) as handle:
                data = handle.read(FILE_BYTES_LIMIT + 1)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise SpecError.single(str(path), f"cannot be read: {reason}", "check the path") from error
    if len(data) > FILE_BYTES_LIMIT:
        limit = format_bytes(FILE_BYTES_LIMIT)
        raise SpecError.single(str(path), f"the file has more than {limit}", "split it, or save it with stronger compression")
    if not data:
        raise SpecError.single(str(path), "the file is empty (0 bytes)", "is the download or copy complete?")
    return data


def find_inputs(folder: Path | str) -> tuple[Path, ...]:
    """Return the files of a folder that are pictures or PDFs, or are named like one, in order of their names.

    What is only named like one is kept, so that its failure is seen. Folders inside, hidden files and `labels.json` are left
    out; links are followed. Of a file, return itself. Raises `SpecError` when there is nothing.
    """
    root = Path(folder)
    try:
        if not root.is_dir():
            root.stat()
            return (root,)
        entries = sorted(root.iterdir(), key=lambda path: path.name)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise SpecError.single(
            str(root), f"cannot be read: {reason}", "give a folder with pictures or PDFs, or one file"
        ) from error
    found = tuple(path for path in entries if _is_input(path))
    if not found:
        hint = f"put files there ({', '.join(sorted(SUFFIXES))}), or name another folder"
        raise SpecError.single(str(root), "the folder holds no picture and no PDF", hint)
    return found


def _is_input(path: Path) -> bool:
    if path.name.startswith(".") or path.name in _NOT_PAGES or path.is_dir():
        return False
    return path.suffix.lower() in SUFFIXES or content_kind(path) is not None


def content_kind(path: Path) -> InputKind | None:
    """Return what a file is by its first bytes; `None` for other files, and for what cannot be read."""
    try:
        if not path.is_file():
            return None
        with path.open("rb") as handle:
            return kind_of(handle.read(_HEAD_BYTES))
    except OSError:
        return None
