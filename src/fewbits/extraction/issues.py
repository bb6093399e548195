"""What validation found, in words for the model that wrote the report."""

from __future__ import annotations

from fewbits.extraction.validation import find_issues
from fewbits.records.extraction import LabReport


def issues_in_words(report: LabReport) -> tuple[str, ...]:
    """Say what is implausible in a report, one sentence each. Holds names of tests and units: for the model, not for logs."""
    words = []
    for issue in find_issues(report):
        detail = f" ({issue.detail})" if issue.detail else ""
        words.append(f"{issue.test_name or 'the report'}: {issue.kind.value.lower().replace('_', ' ')}{detail}")
    return tuple(words)
