"""Lab reports: what a page says, what a pipeline made of it, and pages whose content is known.

A field that a page does not show is `None`. Texts are as printed, apart from white space.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from msgspec import Meta

from fewbits.records.base import Rate, Record

LAB_REPORT_SCHEMA = "fewbits.lab_report.v1"
EXTRACTION_SCHEMA = "fewbits.extraction.v1"
LABELLED_REPORTS_SCHEMA = "fewbits.labelled_reports.v1"

FileName = Annotated[str, Meta(pattern=r"^[^/\\\x00]{1,255}$")]


class ReportType(StrEnum):
    """Which panel a report is about: the one that most of its tests belong to."""

    CBC = "cbc"
    METABOLIC = "metabolic"
    LIPID = "lipid"
    THYROID = "thyroid"
    LIVER = "liver"
    URINALYSIS = "urinalysis"
    OTHER = "other"


class Sex(StrEnum):
    """As laboratories use it to choose reference ranges."""

    FEMALE = "female"
    MALE = "male"


class Flag(StrEnum):
    """How a result lies to its range. Source: HL7 v2.5.1 table 0078 (N, L, H, LL, HH, A)."""

    NORMAL = "normal"
    LOW = "low"
    HIGH = "high"
    CRITICAL_LOW = "critical_low"
    CRITICAL_HIGH = "critical_high"
    ABNORMAL = "abnormal"
    """Not what the range names, where neither is a number (nitrite: positive)."""


class FlagSource(StrEnum):
    """What a flag was decided by, or why there is none."""

    CRITICAL_LIMIT = "CRITICAL_LIMIT"
    """An absolute limit of the analyte, in its own unit."""
    PRINTED_RANGE = "PRINTED_RANGE"
    TABLE_RANGE = "TABLE_RANGE"
    """The cited table, in the same or a convertible unit."""
    NO_RANGE = "NO_RANGE"
    """Nothing is printed and the table does not know the test."""
    SEX_UNKNOWN = "SEX_UNKNOWN"
    """The table's ranges differ by sex, the page does not tell it, and the value lies between them."""
    UNIT_UNKNOWN = "UNIT_UNKNOWN"
    """The unit is missing or cannot be converted, so the table says nothing about this number."""
    NOT_A_NUMBER = "NOT_A_NUMBER"
    """The range is numeric, the value is not."""
    WITHIN_DETECTION_LIMIT = "WITHIN_DETECTION_LIMIT"
    """A value such as `<5`, whose side of the range cannot be known."""


class ReferenceRange(Record, frozen=True, kw_only=True):
    """A printed range: both ends belong to it; `text` where it is in words (`Negative`), or as printed."""

    low: float | None = None
    high: float | None = None
    text: str | None = None


class LabTest(Record, frozen=True, kw_only=True):
    """One row of a report. `value` is as printed (`13.5`, `<0.1`, `Negative`)."""

    test_name: Annotated[str, Meta(min_length=1)]
    value: str
    unit: str | None = None
    reference_range: ReferenceRange | None = None
    flag: Flag | None = None
    flag_source: FlagSource | None = None
    printed_flag: str | None = None
    """The page's own mark (`H`, `L*`, `!`), as printed."""
    analyte: str | None = None
    """Key of the analyte in `extraction.analytes`; `None` where no name or synonym matches exactly."""
    confidence: Rate | None = None
    """The least certain part of the row, as its engine measured it; `None` from engines that measure none."""


class PatientInfo(Record, frozen=True, kw_only=True):
    """Who the report is about: never written to logs."""

    name: str | None = None
    age: Annotated[int, Meta(ge=0, le=150)] | None = None
    """Years."""
    gender: Sex | None = None
    patient_id: str | None = None
    date_of_birth: str | None = None
    """ISO 8601 where the printed date can be read in one way only, else as printed."""


class LabReport(Record, frozen=True, kw_only=True):
    """The content of one report. Tests are in the page's order, duplicates kept."""

    schema_version: str = LAB_REPORT_SCHEMA
    report_type: ReportType = ReportType.OTHER
    patient_info: PatientInfo | None = None
    lab_name: str | None = None
    report_date: str | None = None
    """ISO 8601 where the printed date can be read in one way only, else as printed."""
    tests: tuple[LabTest, ...] = ()
    metadata: dict[str, str] = {}  # noqa: RUF012 - msgspec copies mutable defaults


class StageName(StrEnum):
    """The stages of the pipeline, in order."""

    CLASSIFY = "classify"
    PREPROCESS = "preprocess"
    EXTRACT = "extract"
    VALIDATE = "validate"
    FLAG = "flag"


class StageResult(Record, frozen=True, kw_only=True):
    """One stage of one page. `confidence` is measured (`None` where the stage measures none); `error` where it failed."""

    stage_name: StageName
    timing_seconds: Annotated[float, Meta(ge=0)] | None = None
    """`None` in a journal's texts: what was measured stands beside them, so that equal readings are equal texts."""
    parts_seconds: dict[str, float] = {}  # noqa: RUF012 - msgspec copies mutable defaults
    """What the stage's time went to, where its engine tells (`detection`, `recognition`)."""
    confidence: Rate | None = None
    confidence_meaning: str = ""
    """What the number is, in words (`smallest mean character probability of a row`)."""
    input_summary: str = ""
    output: str = ""
    """Counts and kinds, never what the page says about a patient."""
    reasoning: str = ""
    retries: Annotated[int, Meta(ge=0)] = 0
    error: str | None = None


class IssueKind(StrEnum):
    """What validation found implausible in a report."""

    DUPLICATE_TEST = "DUPLICATE_TEST"
    """The same name in the same unit twice: kept, and said."""
    NEGATIVE_VALUE = "NEGATIVE_VALUE"
    IMPLAUSIBLE_VALUE = "IMPLAUSIBLE_VALUE"
    """Outside of what the analyte can be in a living person (`extraction.analytes`)."""
    UNKNOWN_UNIT = "UNKNOWN_UNIT"
    UNIT_OF_ANOTHER_QUANTITY = "UNIT_OF_ANOTHER_QUANTITY"
    RANGE_REVERSED = "RANGE_REVERSED"
    EMPTY_VALUE = "EMPTY_VALUE"
    NO_TESTS = "NO_TESTS"
    FLAG_DISAGREES = "FLAG_DISAGREES"
    """The page marks the value otherwise than its own range says."""


class Issue(Record, frozen=True, kw_only=True):
    """One implausible thing: `row` is the place in `tests`, 0-based; `None` for the report as a whole."""

    kind: IssueKind
    row: int | None = None
    test_name: str | None = None
    detail: str = ""


class ErrorKind(StrEnum):
    """Why a page has no usable report."""

    UNREADABLE_INPUT = "UNREADABLE_INPUT"
    """No picture or PDF, damaged, encrypted, too large."""
    NO_TEXT = "NO_TEXT"
    """Nothing that could be read was found (a photo of a cat)."""
    NO_TESTS = "NO_TESTS"
    """Text, but no row of a lab report."""
    PARSE_FAILED = "PARSE_FAILED"
    """The model's answer is no JSON of the wanted shape, also after the retries."""
    TRUNCATED = "TRUNCATED"
    """The answer was cut off at the limit of new tokens."""
    ENGINE_FAILED = "ENGINE_FAILED"
    TIMEOUT = "TIMEOUT"


class GpuMemorySnapshot(Record, frozen=True, kw_only=True):
    """PyTorch's CUDA memory after one page, in MiB (1,048,576 bytes); the peaks are of this page alone."""

    memory_allocated_mb: float
    memory_reserved_mb: float
    max_memory_allocated_mb: float
    max_memory_reserved_mb: float


class PageExtraction(Record, frozen=True, kw_only=True):
    """What a pipeline made of one page: the answer of an extraction engine, as canonical JSON.

    `success` is true only where a report with at least one test was found and every stage ended.
    """

    schema_version: str = EXTRACTION_SCHEMA
    engine: str
    page: Annotated[int, Meta(ge=1)] = 1
    pages: Annotated[int, Meta(ge=1)] = 1
    success: bool
    error_kind: ErrorKind | None = None
    error: str | None = None
    stages: tuple[StageResult, ...] = ()
    report: LabReport
    issues: tuple[Issue, ...] = ()
    notes: tuple[str, ...] = ()
    """What was changed on the way in (`converted from CMYK`, `page 1 of 3`)."""
    gpu: GpuMemorySnapshot | None = None
    """`None` where no GPU is used."""
    sampled: bool = False
    """Whether the engine drew at random, so that another seed may give another report."""
    total_time_seconds: Annotated[float, Meta(ge=0)] | None = None
    """All stages; `None` in a journal's texts, as in `StageResult.timing_seconds`."""

    @property
    def flagged_count(self) -> int:
        """How many tests have a flag other than normal."""
        return sum(test.flag not in (None, Flag.NORMAL) for test in self.report.tests)

    @property
    def critical_count(self) -> int:
        """How many tests are critical."""
        return sum(test.flag in (Flag.CRITICAL_LOW, Flag.CRITICAL_HIGH) for test in self.report.tests)


class Level(StrEnum):
    """How hard a generated page is to read."""

    CLEAN = "clean"
    SCAN = "scan"
    """Skew of a degree, grey, light noise, JPEG."""
    FAX = "fax"
    """Low resolution, low contrast, strong noise."""
    PHOTO = "photo"
    """A phone's picture of the paper: perspective, uneven light, blur, JPEG."""


class LabelledReport(Record, frozen=True, kw_only=True):
    """One page and what it says. `sha256` is the file's; `verified` says whether a person checked predicted labels."""

    file_name: FileName
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    truth: LabReport
    level: str | None = None
    layout: str | None = None
    seed: int | None = None
    verified: bool = True


class LabelledReports(Record, frozen=True, kw_only=True):
    """A labelled set: `labels.json` beside its pages."""

    schema_version: Annotated[str, Meta(pattern=r"^fewbits\.labelled_reports\.v1$")] = LABELLED_REPORTS_SCHEMA
    name: Annotated[str, Meta(min_length=1)]
    description: str = ""
    generator: str | None = None
    """Version of the generator and its settings, where the pages are made by it."""
    pages: tuple[LabelledReport, ...]


class ExtractionSettings(Record, frozen=True, kw_only=True):
    """What a sweep over extraction pipelines fixes beyond its tasks."""

    pages: str
    """Folder of the pages. Where it lies is no part of the plan's digest: the tasks pin its content."""
    labels_digest: str | None = None
    """sha256 of the run's `page_labels.json` as canonical JSON: metrics are made from that file alone. `None`: no page is
    labelled."""
    max_retries: Annotated[int, Meta(ge=0, le=10)] = 2
    """How often a model is asked again about one page."""
    redact: bool = False
    """Leave the patient's data out of every answer."""
    tolerance: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Relative, of numbers compared with the truth; 0: as printed."""
    device: Annotated[str, Meta(pattern="^(cpu|cuda)$")] = "cpu"
    max_new_tokens: Annotated[int, Meta(ge=1, le=100_000)] = 2048
    models: dict[str, str] = {}  # noqa: RUF012 - msgspec copies mutable defaults
    """Models that engines were asked with, by what they are for (`chat`, `vision`)."""


class ExtractedFile(Record, frozen=True, kw_only=True):
    """One file and what was read from each of its pages."""

    file: str
    pages: tuple[PageExtraction, ...]


class ExtractionDocument(Record, frozen=True, kw_only=True):
    """What `fewbits extract` prints."""

    schema_version: str = "fewbits.extraction_document.v1"
    engine: str
    files: tuple[ExtractedFile, ...]
