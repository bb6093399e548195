"""From single checks to a gate's answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fewbits.records.gates import GateCheck, GateReport, GateStatus
from fewbits.records.provenance import SourceFile


def build_report(
    gate: str,
    checks: Sequence[GateCheck],
    *,
    sources: Sequence[SourceFile],
    thresholds: Mapping[str, float | str | None],
    allow_skip: bool = False,
) -> GateReport:
    """Sum checks up: FAIL when any failed, else SKIP when any could not be judged (or there is none), else PASS."""
    statuses = {check.status for check in checks}
    if GateStatus.FAIL in statuses:
        status = GateStatus.FAIL
    elif GateStatus.SKIP in statuses or not checks:
        status = GateStatus.SKIP
    else:
        status = GateStatus.PASS
    return GateReport(
        gate=gate,
        status=status,
        allow_skip=allow_skip,
        sources=tuple(sources),
        thresholds=dict(sorted(thresholds.items())),
        checks=tuple(checks),
        failures=tuple(_line(check) for check in checks if check.status is GateStatus.FAIL),
        skip_reasons=tuple(_line(check) for check in checks if check.status is GateStatus.SKIP),
    )


def _line(check: GateCheck) -> str:
    return f"{check.subject}: {check.name}: {check.code}: {check.evidence}"
