"""Stability KPIs: extracting them, holding them against limits, following them over nights. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import msgspec

from fewbits.analysis.recommend import select
from fewbits.analysis.wording import count, percent
from fewbits.records.gates import GateCheck, GateStatus
from fewbits.records.kpis import KpiReport, KpiRow
from fewbits.records.provenance import SourceFile
from fewbits.records.summary import QuantRow, Session, StabilityKpis, SweepSummary

ROUNDING = 2e-6
"""Rates are stored with six decimals."""
TOLERANCE = 1e-9
"""Limits are inclusive; 0.55 - 0.5 must not exceed 0.05 by rounding."""
DETERMINISM_BY_CELL = (2, 2)
"""First summary schema whose determinism rate is that of the rows' repeated cells."""
MIN_NIGHTS = 3
"""Fewer earlier nights make no trend: one bad night among two would be its median."""


@dataclass(frozen=True, slots=True)
class KpiLimits:
    """Limits of the KPI gate, 0..1, all inclusive. Defaults: roadmap, phase 6."""

    max_missing_telemetry_rate: float = 0.01
    max_polluted_run_rate: float = 0.1
    min_frontier_success_rate: float = 0.8
    min_determinism_rate: float = 1.0


def kpi_report(summary: SweepSummary, source: SourceFile) -> KpiReport:
    """Return the KPIs of a summary with what each row contributes."""
    return KpiReport(
        source=source,
        plan_digest=summary.provenance.plan_digest,
        hardware_fingerprint=summary.hardware_fingerprint,
        execution_lane=summary.execution_lane,
        vram_profile=summary.vram_profile,
        models=tuple(session.model_id for session in summary.sessions),
        complete=summary.complete,
        first_trial_at=summary.provenance.first_trial_at,
        last_trial_at=summary.provenance.last_trial_at,
        stability_kpis=summary.stability_kpis,
        rows=tuple(_kpi_row(session.model_id, row) for session in summary.sessions for row in _strict_rows(session, summary)),
    )


def _strict_rows(session: Session, summary: SweepSummary) -> tuple[QuantRow, ...]:
    """Judge a session's rows again without any override of the operator."""
    policy = session.selection_policy or summary.selection_policy
    return select(session.per_quant, msgspec.structs.replace(policy, include_invalid=False)).rows


def _kpi_row(model_id: str, row: QuantRow) -> KpiRow:
    rate, cells = _determinism(row)
    return KpiRow(
        model_id=model_id,
        quant_tag=row.quant_tag,
        test_runs=row.test_runs,
        determinism_rate=rate,
        determinism_cells=cells,
        missing_telemetry_rate=row.missing_telemetry_rate,
        polluted_run_rate=row.polluted_run_rate,
        eligible=row.eligible,
    )


def _determinism(row: QuantRow) -> tuple[float | None, int]:
    if row.determinism is None or not row.determinism.cells:
        return None, 0
    return row.determinism.same_output_rate, row.determinism.cells


def determinism_kpi(rows: Sequence[QuantRow]) -> float | None:
    """Return the share of repeated cells that gave the same output, over all rows; `None` where nothing was repeated."""
    known = [(rate, cells) for row in rows for rate, cells in [_determinism(row)] if rate is not None]
    total = sum(cells for _, cells in known)
    return math.fsum(rate * cells for rate, cells in known) / total if total else None


def check_kpis(report: KpiReport, limits: KpiLimits) -> tuple[GateCheck, ...]:
    """Hold the KPIs against their limits. A KPI that could not be determined is SKIP; a sweep without trials is FAIL."""
    kpis = report.stability_kpis
    return (
        _completeness(report),
        _consistency(report),
        _at_most("missing_telemetry_rate", kpis.missing_telemetry_rate, limits.max_missing_telemetry_rate, _missing_rows(report)),
        _at_most("polluted_run_rate", kpis.polluted_run_rate, limits.max_polluted_run_rate, _polluted_rows(report)),
        _at_least(
            "frontier_success_rate", kpis.frontier_success_rate, limits.min_frontier_success_rate, _without_frontier(report)
        ),
        _determinism_check(kpis.determinism_rate, limits.min_determinism_rate, report),
    )


def _completeness(report: KpiReport) -> GateCheck:
    kpis = report.stability_kpis
    if not kpis.weighted_runs:
        return _check("trials", GateStatus.FAIL, "NO_TRIALS", "the summary counts no trial, so no rate means anything")
    runs = f"{count(kpis.weighted_runs, 'trial')} in {count(kpis.quant_rows, 'row')}"
    if not report.complete:
        return _check("trials", GateStatus.FAIL, "INCOMPLETE", f"{runs}, but trials of the plan are missing")
    return _check("trials", GateStatus.PASS, "", f"{runs}, all of the plan")


def _consistency(report: KpiReport) -> GateCheck:
    """Recompute what the rows can show: an edited summary disagrees with itself."""
    kpis, wrong = report.stability_kpis, []
    by_cell = _determinism_by_cell(report.source)
    for name, stored, computed in (
        ("weighted_runs", float(kpis.weighted_runs), float(sum(row.test_runs for row in report.rows))),
        ("polluted_run_rate", kpis.polluted_run_rate, _weighted_pollution(report.rows)),
        ("determinism_rate", kpis.determinism_rate, _weighted_determinism(report.rows) if by_cell else kpis.determinism_rate),
        ("frontier_success_rate", kpis.frontier_success_rate, _successes(report)),
    ):
        if (stored is None) != (computed is None) or abs((stored or 0.0) - (computed or 0.0)) > ROUNDING:
            wrong.append(f"{name} says {_shown(stored)}, the rows say {_shown(computed)}")
    wrong += _outside_of_rows("missing_telemetry_rate", kpis.missing_telemetry_rate, report.rows)
    if wrong:
        text = "; ".join(wrong)
        return _check("consistency", GateStatus.FAIL, "KPIS_DISAGREE_WITH_ROWS", f"{text}: was the summary edited?")
    told = "" if by_cell else f" (not compared: determinism_rate, which schema {report.source.schema_version} weighs otherwise)"
    return _check("consistency", GateStatus.PASS, "", f"the KPIs follow from the rows{told}")


def _determinism_by_cell(source: SourceFile) -> bool:
    """Tell whether a summary's determinism rate can be recomputed: older ones weighed tasks by trials."""
    numbers = (source.schema_version or "").split(".")[:2]
    return not all(map(str.isdecimal, numbers)) or tuple(map(int, numbers)) >= DETERMINISM_BY_CELL


def _outside_of_rows(name: str, stored: float, rows: Sequence[KpiRow]) -> list[str]:
    """A mean lies between the smallest and the largest of what it is made from; rows do not tell how many replies they had."""
    known = [getattr(row, name) for row in rows if row.test_runs]
    if not known or min(known) - ROUNDING <= stored <= max(known) + ROUNDING:
        return []
    return [f"{name} says {_shown(stored)}, the rows say {_shown(min(known))} to {_shown(max(known))}"]


def _weighted_pollution(rows: Sequence[KpiRow]) -> float:
    total = sum(row.test_runs for row in rows)
    return math.fsum(row.polluted_run_rate * row.test_runs for row in rows) / total if total else 0.0


def _weighted_determinism(rows: Sequence[KpiRow]) -> float | None:
    total = sum(row.determinism_cells for row in rows)
    return math.fsum((row.determinism_rate or 0.0) * row.determinism_cells for row in rows) / total if total else None


def _successes(report: KpiReport) -> float:
    winners = {row.model_id for row in report.rows if row.eligible}
    return len(winners) / len(report.models) if report.models else 0.0


def _at_most(name: str, measured: float, limit: float, culprits: str) -> GateCheck:
    told = partial(_check, name, measured=measured, limit=limit)
    if measured <= limit:
        return told(GateStatus.PASS, "", f"{percent(measured)}, at most {percent(limit)} allowed")
    return told(GateStatus.FAIL, "ABOVE_LIMIT", f"{percent(measured)} is above {percent(limit)}{culprits}")


def _at_least(name: str, measured: float, limit: float, culprits: str) -> GateCheck:
    told = partial(_check, name, measured=measured, limit=limit)
    if measured >= limit:
        return told(GateStatus.PASS, "", f"{percent(measured)}, at least {percent(limit)} required")
    return told(GateStatus.FAIL, "BELOW_LIMIT", f"{percent(measured)} is below {percent(limit)}{culprits}")


def _determinism_check(measured: float | None, limit: float, report: KpiReport) -> GateCheck:
    name = "determinism_rate"
    if measured is None:
        why = "no cell was run twice, and a single run cannot show whether a model repeats itself"
        return _check(name, GateStatus.SKIP, "NOT_DETERMINABLE", why, limit=limit)
    differing = [
        f"{row.model_id} {row.quant_tag}" for row in report.rows if row.determinism_rate is not None and row.determinism_rate < 1
    ]
    return _at_least(name, measured, limit, f": outputs differed in {', '.join(differing)}" if differing else "")


def _polluted_rows(report: KpiReport) -> str:
    rows = sorted((row for row in report.rows if row.polluted_run_rate), key=lambda row: -row.polluted_run_rate)
    return _named([f"{row.model_id} {row.quant_tag} {percent(row.polluted_run_rate)}" for row in rows])


def _missing_rows(report: KpiReport) -> str:
    rows = sorted((row for row in report.rows if row.missing_telemetry_rate), key=lambda row: -row.missing_telemetry_rate)
    return _named([f"{row.model_id} {row.quant_tag} {percent(row.missing_telemetry_rate)}" for row in rows])


def _without_frontier(report: KpiReport) -> str:
    winners = {row.model_id for row in report.rows if row.eligible}
    return _named([f"no strictly eligible row for {model}" for model in report.models if model not in winners])


def _named(parts: Sequence[str], most: int = 5) -> str:
    if not parts:
        return ""
    rest = f" and {len(parts) - most} more" if len(parts) > most else ""
    return f": {', '.join(parts[:most])}{rest}"


def _check(
    name: str,
    status: GateStatus,
    code: str,
    evidence: str,
    *,
    measured: float | None = None,
    limit: float | None = None,
    subject: str = "summary",
) -> GateCheck:
    return GateCheck(name=name, subject=subject, status=status, code=code, measured=measured, limit=limit, evidence=evidence)


def _shown(value: float | None) -> str:
    return "null" if value is None else f"{value:g}"


_SAME_IN_A_TREND = ("hardware_fingerprint", "execution_lane", "vram_profile", "models")
_WORSE_WHEN_HIGHER = ("missing_telemetry_rate", "polluted_run_rate")
_WORSE_WHEN_LOWER = ("frontier_success_rate", "determinism_rate")


def check_trend(latest: KpiReport, earlier: Sequence[KpiReport], *, window: int, max_worsening: float) -> tuple[GateCheck, ...]:
    """Compare each KPI with the median of the last `window` comparable nights.

    Comparable: same hardware, lane, profile and models. Fewer than three such nights, or a KPI that is `null`, is SKIP.
    """
    nights = [report for report in earlier if _comparable(report, latest)][-window:]
    return tuple(
        _trend_of(name, latest.stability_kpis, [night.stability_kpis for night in nights], max_worsening)
        for name in (*_WORSE_WHEN_HIGHER, *_WORSE_WHEN_LOWER)
    )


def _comparable(one: KpiReport, other: KpiReport) -> bool:
    return all(getattr(one, name) == getattr(other, name) for name in _SAME_IN_A_TREND)


def _trend_of(name: str, latest: StabilityKpis, nights: Sequence[StabilityKpis], allowed: float) -> GateCheck:
    value = getattr(latest, name)
    known = [number for night in nights if (number := getattr(night, name)) is not None]
    told = partial(_check, f"{name}_trend", subject="nights", measured=value)
    if value is None:
        return told(GateStatus.SKIP, "NOT_DETERMINABLE", f"{name} was not determined this time")
    if len(known) < MIN_NIGHTS:
        why = f"{count(len(known), 'comparable earlier night')}, a trend needs {MIN_NIGHTS}"
        return told(GateStatus.SKIP, "TOO_FEW_NIGHTS", why)
    usual = statistics.median(known)
    worse = value - usual if name in _WORSE_WHEN_HIGHER else usual - value
    words = f"{percent(value)}, usually {percent(usual)} (median of {count(len(known), 'night')})"
    if worse > allowed + TOLERANCE:
        return told(GateStatus.FAIL, "WORSE_THAN_TREND", f"{words}: worse by {percent(worse)}", limit=usual)
    return told(GateStatus.PASS, "", words, limit=usual)
