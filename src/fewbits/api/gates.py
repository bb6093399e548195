"""Gates over recorded summaries: nothing here needs a model, an engine or the machine that measured."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from fewbits.analysis.gate_report import build_report
from fewbits.analysis.guards import MEMORY_LIMITS, check_guards
from fewbits.analysis.kpis import KpiLimits, check_kpis, check_trend, kpi_report
from fewbits.core.codec import convert, decode, to_builtins
from fewbits.core.errors import StoreError
from fewbits.records.base import VramProfile
from fewbits.records.gates import GateReport
from fewbits.records.kpis import KpiReport
from fewbits.store.history import append_history, history_path, read_history
from fewbits.store.summaries import read_bounded, read_summary, source_of

_HOW_TO_GET_ONE = "write one with `fewbits kpis report --summary FILE --out FILE`"


def report_kpis(summary_path: Path) -> KpiReport:
    """Extract the KPIs of a summary. Raises `SpecError`, `StoreError`."""
    loaded = read_summary(summary_path)
    report = kpi_report(loaded.summary, loaded.source)
    return convert(to_builtins(report), KpiReport, str(summary_path))  # refuses rates of rows that are no shares


def gate_kpis(summary_path: Path, limits: KpiLimits, *, allow_skip: bool) -> GateReport:
    """Hold a summary's KPIs against limits. Raises `SpecError`, `StoreError`."""
    report = report_kpis(summary_path)
    checks = check_kpis(report, limits)
    return build_report("kpis", checks, sources=[report.source], thresholds=asdict(limits), allow_skip=allow_skip)


def gate_guards(summary_path: Path, *, cooldown_target_c: float, profile: VramProfile, allow_skip: bool) -> GateReport:
    """Judge the conditions that a summary was measured under. Raises `SpecError`, `StoreError`."""
    loaded = read_summary(summary_path)
    checks = check_guards(loaded.summary, cooldown_target_c=cooldown_target_c, profile=profile)
    thresholds = {
        "cooldown_target_c": cooldown_target_c,
        "memory_used_ratio": MEMORY_LIMITS[profile],
        "vram_profile": profile.value,
    }
    return build_report("lab_guards", checks, sources=[loaded.source], thresholds=thresholds, allow_skip=allow_skip)


def follow_kpis(
    kpis_path: Path, storage_root: Path, *, window: int, max_worsening: float, keep_last: int, allow_skip: bool
) -> GateReport:
    """Compare a night's KPI report with the nights before it, then add it to them; the same report is added only once.

    Raises `SpecError` (no such file), `StoreError` (not a KPI report, or a damaged history, which is left as it is).
    """
    data = read_bounded(kpis_path, "--kpis", _HOW_TO_GET_ONE)
    try:
        latest = decode(data, KpiReport, str(kpis_path))
    except StoreError as error:
        msg = f"{error}. It is no KPI report: {_HOW_TO_GET_ONE}."
        raise StoreError(msg) from error
    key = (latest.hardware_fingerprint, latest.execution_lane, latest.vram_profile, *latest.models)
    path = history_path(storage_root, key)
    earlier = [convert(entry, KpiReport, str(path)) for entry in read_history(path)]
    known = [night.source.sha256 for night in earlier]
    if latest.source.sha256 in known:
        earlier = earlier[: known.index(latest.source.sha256)]  # asked again, a night is compared with the same nights
    else:
        append_history(storage_root, key, latest, keep_last=keep_last)
    source = source_of(kpis_path, data, latest.schema_version)
    checks = check_trend(latest, earlier, window=window, max_worsening=max_worsening)
    thresholds = {"window": float(window), "max_worsening": max_worsening}
    return build_report("kpi_trend", checks, sources=[source], thresholds=thresholds, allow_skip=allow_skip)
