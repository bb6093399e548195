"""Gates: rules over artifacts with PASS, FAIL or SKIP, and the evidence for each answer."""

from __future__ import annotations

from enum import StrEnum

from fewbits.records.base import Record
from fewbits.records.provenance import SourceFile


class GateStatus(StrEnum):
    """What a check says. `SKIP` is its own answer: what could not be judged did not pass."""

    PASS = "PASS"  # noqa: S105 - a status, not a password
    FAIL = "FAIL"
    SKIP = "SKIP"


class GateCheck(Record, frozen=True, kw_only=True):
    """One rule applied to one subject."""

    name: str
    """The rule, in `snake_case` (`polluted_run_rate`)."""
    subject: str
    """What was judged: `summary`, `MODEL QUANT`, a file."""
    status: GateStatus
    code: str = ""
    """Machine-readable reason of a FAIL or SKIP (`ABOVE_LIMIT`, `NO_SENSOR`); empty for PASS."""
    measured: float | None = None
    limit: float | None = None
    evidence: str
    """One sentence with the numbers and where they stand, for every status."""


class GateReport(Record, frozen=True, kw_only=True):
    """What a gate says of its sources. A pure function of them and the thresholds: no clock, the same bytes twice."""

    schema_version: str = "fewbits.gate_report.v1"
    gate: str
    status: GateStatus
    """FAIL when any check failed, else SKIP when any could not be judged or there was none, else PASS."""
    allow_skip: bool = False
    """Whether SKIP counts as good enough for the exit code; the status stays SKIP."""
    sources: tuple[SourceFile, ...]
    thresholds: dict[str, float | str | None]
    checks: tuple[GateCheck, ...]
    failures: tuple[str, ...]
    """Evidence of every failed check."""
    skip_reasons: tuple[str, ...]
