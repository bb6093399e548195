"""How well one answer reads one page: its field F1 against the truth. The answer is hostile."""

from __future__ import annotations

import msgspec

from fewbits.extraction.comparison import TOLERANCE
from fewbits.extraction.metrics import field_level_metrics
from fewbits.records.extraction import EXTRACTION_SCHEMA, PageExtraction
from fewbits.records.task import CheckResult, ExtractionCheck
from fewbits.workloads.text.checks import check_count, check_kind, shorten

ANSWER_BYTES_LIMIT = 2_000_000
MAX_TESTS = 1000


def extraction_result(check: ExtractionCheck, answer: str) -> CheckResult:
    """Score an answer that is a `PageExtraction` as JSON.

    With a truth, passed of total are 2 tp and 2 tp + fp + fn of `field_level_metrics`, so their ratio is the page's field F1;
    without one there is a single check, the success of the extraction. An answer without success passes nothing: what it holds
    is not a report. Details are counts, never what the page says.
    """
    found = read_extraction(answer)
    if isinstance(found, str):
        return CheckResult(kind=check_kind(check), passed=0, total=check_count(check), detail=shorten(found))
    if not found.success:
        detail = shorten(f"{found.error_kind}: {found.error or 'no reason given'}")
        return CheckResult(kind=check_kind(check), passed=0, total=check_count(check), detail=detail)
    if check.truth is None:
        return CheckResult(kind=check_kind(check), passed=1, total=1)
    counts = field_level_metrics(found.report, check.truth, tolerance=check.tolerance or TOLERANCE).fields
    total = 2 * counts.true_positive + counts.false_positive + counts.false_negative
    if total == 0:  # neither says anything
        return CheckResult(kind=check_kind(check), passed=1, total=1)
    detail = ""
    if counts.false_positive or counts.false_negative:
        detail = f"{counts.false_positive} fields wrong or invented, {counts.false_negative} wrong or missing"
    return CheckResult(kind=check_kind(check), passed=2 * counts.true_positive, total=total, detail=detail)


def read_extraction(answer: str) -> PageExtraction | str:
    """Return what an answer reports about a page, or why it reports nothing that can be scored."""
    data = answer.encode("utf-8", "surrogatepass") if len(answer) <= ANSWER_BYTES_LIMIT else None
    if data is None or len(data) > ANSWER_BYTES_LIMIT:
        return f"the answer is longer than {ANSWER_BYTES_LIMIT} bytes"
    try:
        found = msgspec.json.decode(data, type=PageExtraction)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return "the answer is not the extraction of a page"
    if found.schema_version != EXTRACTION_SCHEMA:
        return f"the answer has schema version {found.schema_version!r:.60}, expected {EXTRACTION_SCHEMA!r}"
    if len(found.report.tests) > MAX_TESTS:
        return f"the answer has {len(found.report.tests)} tests, at most {MAX_TESTS} are read"
    return found
