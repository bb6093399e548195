"""The stability KPIs of one summary, as a document of their own."""

from __future__ import annotations

from fewbits.records.base import Rate, Record
from fewbits.records.provenance import SourceFile
from fewbits.records.summary import StabilityKpis


class KpiRow(Record, frozen=True, kw_only=True):
    """What one variant contributes to the KPIs."""

    model_id: str
    quant_tag: str
    test_runs: int
    determinism_rate: Rate | None
    """Share of repeated cells with the same output; `None` where nothing was repeated."""
    determinism_cells: int
    missing_telemetry_rate: Rate
    polluted_run_rate: Rate
    eligible: bool
    """Strictly: no override counts."""


class KpiReport(Record, frozen=True, kw_only=True):
    """`sweep_kpis.json`. A pure function of the summary: no clock."""

    schema_version: str = "fewbits.kpi_report.v1"
    source: SourceFile
    plan_digest: str
    hardware_fingerprint: str
    execution_lane: str
    vram_profile: str
    models: tuple[str, ...]
    complete: bool
    first_trial_at: str | None
    last_trial_at: str | None
    stability_kpis: StabilityKpis
    rows: tuple[KpiRow, ...]
