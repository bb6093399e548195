"""The `ocr` engine: text recognition in ONNX Runtime, layout rules, no language model."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

from fewbits.core.archive import open_archive
from fewbits.core.files import sha256_file
from fewbits.extraction.classification import classify
from fewbits.extraction.layout import read_report
from fewbits.records.extraction import ErrorKind, LabReport, StageName
from fewbits.runtimes.extraction.ocr_reader import ENGINE, OcrReader, OcrReading
from fewbits.runtimes.extraction.pipeline import EngineReport, Pixels, StageTimer
from fewbits.runtimes.extraction.preprocessing import prepared
from fewbits.spec.ocr_schemes import DETECTION_FILE, OCR_ARCHIVE, RECOGNITION_FILE

CONFIDENCE = "mean over the rows of their least certain word's mean character probability"


class OcrEngine:
    """Reads a page's words and puts its rows together by rules. Classifies what it has read, so that stage comes third."""

    def __init__(self, reader: OcrReader, name: str = "ocr") -> None:
        self._reader = reader
        self.name = name

    def reseed(self, seed: int) -> None:
        """Nothing is drawn."""

    def extract(self, pixels: Pixels, timer: StageTimer) -> EngineReport:
        """Read one page; no text and no rows are values."""
        page, notes = self.prepare(pixels, timer)
        timer.begin()
        reading = self._reader.read(page)
        notes += turned_note(reading)
        if not reading.words:
            timer.end(StageName.EXTRACT, output="0 words", error=ErrorKind.NO_TEXT.value)
            return EngineReport(LabReport(), ErrorKind.NO_TEXT, "there is no text on the page that could be read", notes)
        found = read_report(reading.words, reading.width, reading.height)
        confidences = [test.confidence for test in found.report.tests if test.confidence is not None]
        timer.end(
            StageName.EXTRACT,
            confidence=sum(confidences) / len(confidences) if confidences else None,
            confidence_meaning=CONFIDENCE,
            input_summary=f"{reading.width} x {reading.height} pixels",
            output=f"{len(reading.words)} words, {len(found.report.tests)} tests",
            parts_seconds={"detection": reading.detection_seconds, "recognition": reading.recognition_seconds},
        )
        timer.begin()
        kind = classify([test.test_name for test in found.report.tests])
        timer.end(
            StageName.CLASSIFY,
            confidence=kind.confidence,
            confidence_meaning="share of the known tests that belong to the panel",
            output=kind.report_type.value,
        )
        return EngineReport(found.report, notes=notes)

    def prepare(self, pixels: Pixels, timer: StageTimer) -> tuple[Pixels, tuple[str, ...]]:
        """Bring a page into the form that is read, as a stage of its own. Returns the page and what was done."""
        timer.begin()
        ready = prepared(pixels)
        height, width = pixels.shape[:2]
        timer.end(
            StageName.PREPROCESS,
            confidence=ready.confidence,
            input_summary=f"{width} x {height} pixels",
            output=f"{ready.pixels.shape[1]} x {ready.pixels.shape[0]} pixels",
            reasoning="; ".join(ready.steps),
        )
        return ready.pixels, ready.steps


def load_reader(options: dict[str, Any]) -> tuple[OcrReader, dict[str, Any]]:
    """Load the networks of the archive `options["artifact"]`, whose files lie in `options["folder"]` while they are used.

    The description holds engine, version, sha256 of the archive and threads. Raises `SpecError`, `PrerequisiteError`,
    `BackendError`.
    """
    archive, folder = Path(options["artifact"]), Path(options["folder"])
    members = open_archive(archive, OCR_ARCHIVE, "OCR engine")
    for name in (DETECTION_FILE, RECOGNITION_FILE):
        (folder / name).write_bytes(members[name])
    reader = OcrReader(folder / DETECTION_FILE, folder / RECOGNITION_FILE, threads=options["threads"])
    versions = f"{importlib.metadata.version('rapidocr')} (onnxruntime {importlib.metadata.version('onnxruntime')})"
    return reader, {"engine": ENGINE, "version": versions, "sha256": sha256_file(archive), "threads": reader.threads}


def turned_note(reading: OcrReading) -> tuple[str, ...]:
    """Say that a page was turned, where it was."""
    return (f"turned by {reading.turned_degrees} degrees",) if reading.turned_degrees else ()
