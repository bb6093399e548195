"""A labelled set started from predictions: right where the engine is right, to be corrected by a person where it is not."""

from __future__ import annotations

from pathlib import Path

import msgspec

from fewbits.api.extract import Progress, ReadRequest, read_files
from fewbits.core.errors import SpecError
from fewbits.core.files import sha256_file
from fewbits.records.extraction import LabelledReport, LabelledReports, LabReport, PageExtraction
from fewbits.workloads.extraction.labelled import LABELS_NAME, write_labelled


def label_folder(request: ReadRequest, folder: Path, name: str | None, progress: Progress) -> tuple[Path, LabelledReports]:
    """Read every picture of a folder and write `labels.json` beside it, each label unverified.

    Files of several pages are left out, since a label belongs to one file, and said. Raises `SpecError` where labels are there
    already, or where no file has one page; and what `read_files` raises.
    """
    path = folder / LABELS_NAME
    if path.exists():
        raise SpecError.single(str(path), "there are labels already", "move them away first: corrections are not overwritten")
    read = read_files(request, progress)
    pages = []
    for file in read.files:
        if len(file.pages) > 1:
            progress(f"{Path(file.file).name} has {len(file.pages)} pages and is left out: save them one by one")
            continue
        source = Path(file.file)
        pages.append(
            LabelledReport(file_name=source.name, sha256=sha256_file(source), truth=_prediction(file.pages[0]), verified=False)
        )
    if not pages:
        raise SpecError.single(str(folder), "no file there has one page", "save the pages as pictures")
    labels = LabelledReports(
        name=name or folder.resolve().name, description=f"Predictions of {read.engine}, to be corrected.", pages=tuple(pages)
    )
    write_labelled(folder, labels)
    return path, labels


def _prediction(page: PageExtraction) -> LabReport:
    """Return a report as a label: confidences belong to the engine, not to the page."""
    tests = tuple(msgspec.structs.replace(test, confidence=None) for test in page.report.tests)
    return msgspec.structs.replace(page.report, tests=tests)
