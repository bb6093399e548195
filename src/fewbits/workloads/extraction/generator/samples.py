"""Folders of generated pages with their labels, and pages bound to a PDF."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from fewbits.core.codec import text_digest
from fewbits.core.errors import SpecError
from fewbits.core.files import atomic_write, storage_error, sync_directory
from fewbits.extraction.analytes import ANALYTES
from fewbits.extraction.flags import flag_report
from fewbits.records.extraction import LabelledReport, LabelledReports, LabReport, Level
from fewbits.workloads.extraction.generator.content import truth
from fewbits.workloads.extraction.generator.degrade import Encoded, degraded
from fewbits.workloads.extraction.generator.layouts import LAYOUTS, Layout, drawn_page, layout_for
from fewbits.workloads.extraction.generator.seeds import VERSION, page_seed
from fewbits.workloads.extraction.labelled import LABELS_NAME, read_labelled, write_labelled

SPLITS = ("samples", "tuning", "calibration", "test")
"""What pages may be made for; no page of one is a page of another."""
PAGES_LIMIT = 9999
_STAGING = ".fewbits-pages-"


@dataclass(frozen=True, slots=True)
class GeneratedPage:
    """One page: its file, and exactly what it says."""

    encoded: Encoded
    truth: LabReport
    level: Level
    layout: str
    seed: int


def generated_page(seed: int, level: Level, layout: str) -> GeneratedPage:
    """Return the page of a seed (from `page_seed`) at a level in a layout; equal arguments give equal bytes."""
    paper, content = drawn_page(layout_for(layout), seed)
    return GeneratedPage(
        encoded=degraded(paper.image, level, seed, paper.dots_per_inch),
        truth=flag_report(truth(content)),
        level=level,
        layout=layout,
        seed=seed,
    )


def layout_of(level: Level, index: int) -> Layout:
    """Return the layout of page `index` of a level: all in turn, each level beginning with another."""
    return LAYOUTS[(5 * index + tuple(Level).index(level)) % len(LAYOUTS)]


def generate_pages(
    folder: Path, *, seed: int, count: int, levels: Sequence[Level], name: str, split: str = "samples"
) -> LabelledReports:
    """Write `count` pages in all, the levels in turn, and `labels.json` into a folder that is new or empty; return the labels.

    Page `i` (`page-0001` is 0) is page `i // len(levels)` of level `levels[i % len(levels)]`: it does not depend on `count`.
    The pages appear together when all are made, the labels last. A folder that already holds exactly this set is left as it is.
    Raises `SpecError` for unusable settings and a folder with other files, `StoreError` where nothing can be written.
    """
    _check(count, levels, split)
    settings = f"{VERSION} {_drawn_with()} split={split} seed={seed} levels={','.join(levels)} count={count}"
    if (known := _already_there(folder, settings, name)) is not None:
        return known
    made_folder = None if folder.exists() else folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=folder))
    except OSError as error:
        raise storage_error(folder, error) from error
    moved: list[Path] = []
    try:
        pages = tuple(_written(staging, seed, place, levels, split) for place in range(count))
        labels = LabelledReports(
            name=name, description="Invented reports, drawn from a seed; no person is meant.", generator=settings, pages=pages
        )
        write_labelled(staging, labels)
        for file_name in (*(page.file_name for page in pages), LABELS_NAME):
            (staging / file_name).rename(folder / file_name)
            moved.append(folder / file_name)
        staging.rmdir()
        sync_directory(folder)
    except BaseException as error:
        _undo(moved, staging, made_folder)
        if isinstance(error, OSError):
            raise storage_error(folder, error) from error
        raise
    return labels


def _undo(moved: Sequence[Path], staging: Path, made_folder: Path | None) -> None:
    """Remove what a failed run wrote, and the folder where the run made it."""
    for path in moved:
        path.unlink(missing_ok=True)
    shutil.rmtree(staging, ignore_errors=True)
    if made_folder is not None:
        with suppress(OSError):
            made_folder.rmdir()


def write_pdf(pages: Sequence[Path], path: Path, *, dots_per_inch: int = 170) -> Path:
    """Bind pictures to one PDF, in their order, and return its path; equal pages give equal bytes.

    Raises `SpecError` without pages, `StoreError` where it cannot be written.
    """
    from PIL import Image

    if not pages:
        raise SpecError.single("pages", "a PDF needs at least one page", "generate some first")
    pictures = []
    for page in pages:
        with Image.open(page) as picture:
            pictures.append(picture.convert("RGB"))
    # Pillow would write the time of day into the file
    epoch = time.gmtime(0)
    buffer = BytesIO()
    pictures[0].save(
        buffer, "PDF", save_all=True, append_images=pictures[1:], resolution=dots_per_inch, creationDate=epoch, modDate=epoch
    )
    atomic_write(path, buffer.getvalue())
    return path


def _check(count: int, levels: Sequence[Level], split: str) -> None:
    """Refuse settings that make no set."""
    if not 1 <= count <= PAGES_LIMIT:
        raise SpecError.single("count", f"{count} is not a number of pages", f"between 1 and {PAGES_LIMIT}")
    if not levels or len(set(levels)) != len(levels):
        raise SpecError.single("levels", "name each wanted level once", f"of {', '.join(Level)}")
    if split not in SPLITS:
        raise SpecError.single("split", f"{split!r} is nothing that pages are made for", f"one of {', '.join(SPLITS)}")


def _already_there(folder: Path, settings: str, name: str) -> LabelledReports | None:
    """Return the labels of a folder that holds exactly this set; `None` where it is new or empty. Raises `SpecError` else."""
    if not folder.exists():
        return None
    try:
        for stopped in folder.glob(f"{_STAGING}*"):
            shutil.rmtree(stopped)
        names = {path.name for path in folder.iterdir()}
    except OSError as error:
        raise storage_error(folder, error) from error
    if not names:
        return None
    if LABELS_NAME in names:
        labels = read_labelled(folder, check_digests=True)
        expected = {LABELS_NAME, *(page.file_name for page in labels.pages)}
        if labels.generator == settings and labels.name == name and names == expected:
            return labels
    raise SpecError.single(
        str(folder), "holds other files, which would be mixed up with the pages", "choose a new or empty folder"
    )


def _written(staging: Path, seed: int, place: int, levels: Sequence[Level], split: str) -> LabelledReport:
    """Make and write one page; return its label."""
    level, index = levels[place % len(levels)], place // len(levels)
    page = generated_page(page_seed(split, seed, level, index), level, layout_of(level, index).name)
    file_name = f"page-{place + 1:04}.{page.encoded.suffix}"
    atomic_write(staging / file_name, page.encoded.data)
    digest = hashlib.sha256(page.encoded.data).hexdigest()
    return LabelledReport(
        file_name=file_name, sha256=digest, truth=page.truth, level=level, layout=page.layout, seed=page.seed, verified=True
    )


def _drawn_with() -> str:
    """Return what else a page depends on: Pillow's version, and the table of analytes by the start of its digest."""
    import PIL

    return f"pillow={PIL.__version__} analytes={text_digest(repr(ANALYTES))[:12]}"
