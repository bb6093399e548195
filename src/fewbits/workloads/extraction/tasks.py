"""Pages as tasks: one question per page, through the same bank, plan and journal as every other kind of work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fewbits.core.codec import digest
from fewbits.core.errors import FewbitsError, Problem, SpecError
from fewbits.core.files import sha256_file
from fewbits.images.pages import open_pages
from fewbits.records.base import Bucket
from fewbits.records.detection import ImageRequest
from fewbits.records.extraction import LabelledReports, LabReport
from fewbits.records.task import ExtractionCheck, Task, TaskBank

_VERSION_DIGITS = 12
_PROMPT = "Read the lab report on this page."


@dataclass(frozen=True, slots=True)
class InputPage:
    """One page that is asked about: which file, which page of it (`None`: a picture), and what it says where that is known."""

    file_name: str
    page: int | None
    truth: LabReport | None = None
    level: str | None = None


def pages_of(paths: Sequence[Path], labels: LabelledReports | None, *, page_limit: int) -> tuple[InputPage, ...]:
    """Return every page of the files, in order; a PDF or TIFF counts page by page.

    With labels, every file must have one; labels belong to files of one page. A file that cannot be opened counts as one page:
    its failure is a result. Raises `SpecError` for files without labels, `PrerequisiteError` where a reader is missing.
    """
    known = {page.file_name: page for page in labels.pages} if labels is not None else None
    if known is not None:
        _require_labels(paths, known)
        return tuple(InputPage(path.name, None, known[path.name].truth, known[path.name].level) for path in paths)
    found: list[InputPage] = []
    for path in paths:
        count = _page_count(path, page_limit)
        found.extend([InputPage(path.name, None)] if count is None else [InputPage(path.name, n + 1) for n in range(count)])
    return tuple(found)


def _require_labels(paths: Sequence[Path], known: Mapping[str, object]) -> None:
    missing = [path.name for path in paths if path.name not in known]
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        message = f"{len(missing)} of {len(paths)} files have no entry in labels.json ({shown})"
        raise SpecError.single("--input-dir", message, "label them with `fewbits extract label`, or move them elsewhere")


def _page_count(path: Path, page_limit: int) -> int | None:
    """Return how many pages are asked about; `None` for a picture and for a file that cannot be opened."""
    from fewbits.core.errors import PrerequisiteError

    try:
        with open_pages(path, page_limit=page_limit) as pages:
            return len(pages) if pages.count > 1 else None
    except PrerequisiteError:
        raise
    except FewbitsError:
        return None


def extraction_bank(folder: Path, pages: Sequence[InputPage], name: str, *, tolerance: float = 0.0) -> TaskBank:
    """Return one task per page. Reads every file once for its digest. Raises `SpecError` naming what cannot be read."""
    digests: dict[str, str] = {}
    problems: list[Problem] = []
    for file_name in dict.fromkeys(page.file_name for page in pages):
        try:
            digests[file_name] = sha256_file(folder / file_name)
        except OSError as error:
            problems.append(Problem(file_name, f"cannot be read: {error.strerror or error}"))
    if problems:
        raise SpecError(problems)
    tasks = tuple(_task(index, page, digests[page.file_name], tolerance) for index, page in enumerate(pages, 1))
    version = digest([[page.file_name, page.page, digests[page.file_name]] for page in pages])[:_VERSION_DIGITS]
    return TaskBank(name=name, version=version, description="Read lab reports into JSON.", tasks=tasks)


def task_id(index: int) -> str:
    """Return the task id of the page at a place, from 1: names of files may hold a patient's name, so they are not used."""
    return f"page-{index:06d}"


def _task(index: int, page: InputPage, sha256: str, tolerance: float) -> Task:
    return Task(
        id=task_id(index),
        bucket=Bucket.EXTRACTION,
        tier=1,
        prompt=_PROMPT,
        image=ImageRequest(file_name=page.file_name, sha256=sha256, page=page.page),
        checks=(ExtractionCheck(truth=page.truth, tolerance=tolerance),),
        tags=(page.level,) if page.level is not None else (),
    )
