"""A gate's answer as plain text: the status first, then every check with its evidence, failures on top."""

from __future__ import annotations

from fewbits.analysis.wording import count, percent
from fewbits.records.gates import GateReport, GateStatus
from fewbits.records.kpis import KpiReport
from fewbits.report.escape import NAME_LIMIT, visible

_ORDER = (GateStatus.FAIL, GateStatus.SKIP, GateStatus.PASS)


def render_gate(report: GateReport) -> str:
    """Return the report's lines, ending in a newline."""
    tail = " (allowed)" if report.status is GateStatus.SKIP and report.allow_skip else ""
    lines = [f"{visible(report.gate)}: {report.status.value}{tail}"]
    for status in _ORDER:
        for (name, code, evidence), subjects in _grouped(report, status).items():
            rule = visible(f"{name} {code}")
            lines.append(f"  {status.value:<4} {rule} · {visible(', '.join(subjects))}: {visible(evidence)}")
    if not report.checks:
        lines.append("  nothing could be checked")
    return "\n".join(lines) + "\n"


def _grouped(report: GateReport, status: GateStatus) -> dict[tuple[str, str, str], list[str]]:
    """Gather the subjects of which one rule says the very same."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for check in report.checks:
        if check.status is status:
            groups.setdefault((check.name, check.code, check.evidence), []).append(check.subject)
    return groups


def render_kpis(report: KpiReport) -> str:
    """Return the KPIs, and each row's part in them, ending in a newline."""
    kpis = report.stability_kpis
    lines = [
        f"determinism rate        {_rate(kpis.determinism_rate)}",
        f"missing telemetry rate  {_rate(kpis.missing_telemetry_rate)}",
        f"polluted run rate       {_rate(kpis.polluted_run_rate)}",
        f"frontier success rate   {_rate(kpis.frontier_success_rate)}",
        f"over {count(kpis.weighted_runs, 'trial')}, {count(kpis.quant_rows, 'row')}, {count(kpis.sessions, 'session')}"
        f"{'' if report.complete else '; trials of the plan are missing'}",
    ]
    for row in report.rows:
        name = visible(f"{row.model_id} {row.quant_tag}", NAME_LIMIT)
        words = "eligible" if row.eligible else "not eligible"
        repeats = f"{_rate(row.determinism_rate)} of {count(row.determinism_cells, 'repeated cell')}"
        lines.append(f"  {name}: polluted {_rate(row.polluted_run_rate)}, same output {repeats}, {words}")
    return "\n".join(lines) + "\n"


def _rate(value: float | None) -> str:
    return "not determinable" if value is None else percent(value)
