"""Rows of the older 1.1.x summary in this schema's shape. What they lack stays `None` with a reason; nothing is made up. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fewbits.records.base import PollutionReason, RunQuality, TokenStatus, Unavailable
from fewbits.records.legacy_summary import LegacyRow, LegacySidecar
from fewbits.records.sidecar import SidecarBlock, SidecarStatus
from fewbits.records.summary import (
    DeterminismDetail,
    DeviceConditions,
    InvalidReason,
    QuantRow,
    RowConditions,
    RowVibe,
    StatusCounts,
)

MIB = 1024**2
_MEMORY_LIMIT = 2**60
_NOT_HELD = str(Unavailable.NOT_IMPORTED)
_CHANNELS = ("exit_code", "stdout", "artifacts")
"""What the older determinism hash was made of."""
_SIDECAR_ACCEPTED = frozenset({"", "OK", "OPTIONAL_FIELD_MISSING", "NOT_APPLICABLE"})
"""States that left a row valid there."""
_SIDECAR_STATES = {
    "OK": SidecarStatus.OK,
    "OPTIONAL_FIELD_MISSING": SidecarStatus.OK,
    "REQUIRED_FIELD_MISSING": SidecarStatus.REQUIRED_FIELD_MISSING,
    "PARSE_ERROR": SidecarStatus.PARSE_ERROR,
    "NOT_APPLICABLE": SidecarStatus.NOT_APPLICABLE,
}
_REQUIRED_FIELDS = (
    "adherence",
    "adherence_difference",
    "adherence_ratio",
    "decode_seconds",
    "internal_model_seconds",
    "latency_median",
    "latency_p95",
    "peak_memory_gpu_bytes",
    "prefill_seconds",
    "time_to_first_token_seconds",
    "variant_bytes",
    "variant_sha256",
)
"""Fields without a default that the older shape never holds."""
_NEVER_HELD = (
    *_REQUIRED_FIELDS,
    "baseline",
    "detection",
    "by_bucket",
    "divergence",
    "extraction",
    "generation_rate_ratio",
    "latency_ratio",
    "prompt_rate_ratio",
    "status_counts",
    "uncertainty",
    "verdict",
)


@dataclass(slots=True)
class Notes:
    """Sentences about the conversion, each once, in order; and reason codes that have no place here."""

    sentences: list[str] = field(default_factory=list)
    unknown_reasons: set[str] = field(default_factory=set)

    def add(self, sentence: str) -> None:
        """Keep a sentence once."""
        if sentence not in self.sentences:
            self.sentences.append(sentence)


@dataclass(frozen=True, slots=True)
class RowContext:
    """What a row's conversion needs to know beside the row. `runs` is its number of runs, `repeats` those of each task."""

    model_id: str
    rank: int
    is_reference: bool
    runs: int
    repeats: int | None
    sidecar_profile: str | None

    @property
    def tasks(self) -> int | None:
        """Tasks of the row: its runs / repeats of each task; `None` where that is not known or does not come out even."""
        return self.runs // self.repeats if self.repeats and self.runs % self.repeats == 0 else None


def import_row(old: LegacyRow, context: RowContext, notes: Notes) -> QuantRow:
    """Convert one row. The limits that it meets are not judged yet (see `recommend.select`)."""
    values = {**_measurements(old, notes), **_quality(old, context.runs, notes), **_beside(old, context, notes)}
    reasons = {name: _NOT_HELD for name, value in values.items() if value is None} | dict.fromkeys(_NEVER_HELD, _NOT_HELD)
    reasons["bits_per_weight"] = str(Unavailable.NOMINAL_BITS)
    if context.repeats == 1:
        reasons["determinism_rate"] = str(Unavailable.TOO_FEW_SAMPLES)
    if context.tasks is None:
        reasons["tasks"] = _NOT_HELD
    nothing: dict[str, Any] = dict.fromkeys(_REQUIRED_FIELDS)
    return QuantRow(
        quant_tag=old.quant_tag,
        quant_rank=context.rank,
        is_reference=context.is_reference,
        bits_per_weight=None,
        warnings=(),
        test_runs=context.runs,
        expected_runs=context.runs,
        tasks=context.tasks or 0,
        status_counts=StatusCounts(),
        by_bucket=(),
        valid=old.valid,
        invalid_reasons=() if old.valid else _invalid_reasons(old, values),
        meets_adherence=False,
        meets_latency=False,
        eligible=False,
        on_frontier=False,
        dominated_by=(),
        unavailable=dict(sorted(reasons.items())),
        **nothing,
        **values,
    )


def _measurements(old: LegacyRow, notes: Notes) -> dict[str, Any]:
    if old.total_latency == 0 or old.peak_memory_rss == 0:
        notes.add("A latency or memory of exactly 0 was the mean of nothing there, and is null here.")
    memory = round(old.peak_memory_rss * MIB) if old.peak_memory_rss else None
    return {
        "adherence_score": old.adherence_score,
        "total_latency": old.total_latency or None,
        "init_latency": old.init_latency,
        "orchestration_overhead_ratio": old.orchestration_overhead_ratio,
        "prompt_tokens_per_second": old.prompt_tokens_per_second,
        "generation_tokens_per_second": old.generation_tokens_per_second,
        "peak_memory_rss": memory if memory is None or memory < _MEMORY_LIMIT else None,
    }


def _quality(old: LegacyRow, runs: int, notes: Notes) -> dict[str, Any]:
    """Take the row's own status over; shares that only later versions hold are told by that status otherwise."""
    status = _token_status(old, notes)
    quality = RunQuality.CLEAN if old.run_quality_status == RunQuality.CLEAN else RunQuality.POLLUTED
    if old.run_quality_status not in {word.value for word in RunQuality}:
        notes.add(f"A row whose quality status was {old.run_quality_status!r} counts as POLLUTED.")
    polluted, missing = old.polluted_run_rate, old.missing_telemetry_rate
    if polluted is None or missing is None:
        notes.add(
            "Shares of polluted runs and of missing telemetry are not in this version of the older shape: a POLLUTED row counts "
            "with all its runs, and so does a row whose token status is not OK (one good run made it OK there)."
        )
    polluted = float(quality is RunQuality.POLLUTED) if polluted is None else polluted
    known = {word.value for word in PollutionReason}
    notes.unknown_reasons |= set(old.run_quality_reasons) - known
    return {
        "token_metrics_status": status,
        "missing_telemetry_rate": float(status is not TokenStatus.OK) if missing is None else missing,
        "polluted_run_rate": polluted,
        "clean_runs": round(runs * (1 - polluted)),
        "run_quality_status": quality,
        "run_quality_reasons": tuple(PollutionReason(word) for word in sorted(set(old.run_quality_reasons) & known)),
    }


def _token_status(old: LegacyRow, notes: Notes) -> TokenStatus:
    if old.token_metrics_status in {word.value for word in TokenStatus}:
        return TokenStatus(old.token_metrics_status)
    notes.add(f"A token status of {old.token_metrics_status!r} counts as {TokenStatus.TOKEN_AND_TIMING_UNAVAILABLE.value}.")
    return TokenStatus.TOKEN_AND_TIMING_UNAVAILABLE


def _invalid_reasons(old: LegacyRow, values: dict[str, Any]) -> tuple[str, ...]:
    sidecar = old.hardware_sidecar.sidecar_parse_status if old.hardware_sidecar else ""
    found = {
        InvalidReason.POLLUTED.value: values["run_quality_status"] is RunQuality.POLLUTED,
        InvalidReason.MISSING_TELEMETRY.value: values["token_metrics_status"] is not TokenStatus.OK,
        f"SIDECAR_{sidecar}": sidecar not in _SIDECAR_ACCEPTED,
    }
    return tuple(reason for reason, holds in found.items() if holds)


def _beside(old: LegacyRow, context: RowContext, notes: Notes) -> dict[str, Any]:
    """Return what stands beside the measurements: repeats, the sidecar's block, the GPU's state, the old exchange rate."""
    rate = None if context.repeats == 1 else old.determinism_rate
    if context.repeats == 1 and old.determinism_rate is not None:
        notes.add("With one run of each task nothing was repeated, so the determinism rates of the older summary are null here.")
    sidecar = old.hardware_sidecar if old.hardware_sidecar is not None and old.hardware_sidecar.enabled else None
    return {
        "determinism_rate": rate,
        "determinism": _determinism(rate, context.tasks),
        "hardware_sidecar": _sidecar_block(sidecar, context.sidecar_profile) if sidecar else None,
        "conditions": _conditions(sidecar, f"{context.model_id} {old.quant_tag}", notes) if sidecar else None,
        "vibe_metrics": RowVibe(
            latency_variance=None,
            code_density=None,
            gen_retries=None,
            vibe_delta=old.vibe_delta,
            status=dict.fromkeys(("latency_variance", "code_density", "gen_retries"), _NOT_HELD)
            | ({"vibe_delta": _NOT_HELD} if old.vibe_delta is None else {}),
        ),
    }


def _determinism(rate: float | None, tasks: int | None) -> DeterminismDetail | None:
    if rate is None or not tasks:
        return None
    return DeterminismDetail(
        cells=tasks,
        same_output_rate=rate,
        same_outcome_rate=None,
        agreement_floor=None,
        deterministic=rate == 1.0,
        channels=_CHANNELS,
        first_divergence=None,
    )


def _sidecar_block(old: LegacySidecar, profile: str | None) -> SidecarBlock:
    values: dict[str, Any] = {
        "prefill_tokens_per_second": old.prefill_tps or None,
        "decode_tokens_per_second": old.decode_tps or None,
        "temperature_start_c": old.thermal_start_c or None,
        "temperature_end_c": old.thermal_end_c or None,
    }
    reported = old.sidecar_parse_status or "no status"
    status = _SIDECAR_STATES.get(reported, SidecarStatus.PARSE_ERROR)
    if status is SidecarStatus.OK and not (old.prefill_tps and old.decode_tps):
        status = SidecarStatus.REQUIRED_FIELD_MISSING
    errors = f" ({', '.join(old.sidecar_parse_errors)})" if old.sidecar_parse_errors else ""
    never = ("wall_seconds", "prefill_stddev", "decode_stddev", "repetitions", "prefill_tokens", "decode_tokens", "threads")
    reasons = {name: _NOT_HELD for name, value in values.items() if value is None} | dict.fromkeys(never, _NOT_HELD)
    return SidecarBlock(
        status=status,
        detail=f"the older tool's probe said {reported}{errors}; it ran no llama-bench, and its zeros are unknown values",
        profile=profile,
        unavailable=dict(sorted(reasons.items())),
        **values,
    )


def _conditions(old: LegacySidecar, row: str, notes: Notes) -> RowConditions:
    """Turn the probe's snapshot into the GPU's state, so that guards can judge it; the host's was never read."""
    total, used = old.vram_total_mb or None, old.vram_used_mb or None
    ratio = used / total if total and used else None
    reasons = {"memory_used_ratio": _NOT_HELD} if ratio is None else {}
    if ratio is not None and ratio > 1:
        notes.add(f"{row}: the sidecar reported more GPU memory in use than there is, so the share is null.")
        ratio, reasons = None, {"memory_used_ratio": str(Unavailable.COUNTS_DISAGREE)}
    values = {
        "temperature_start_c": old.thermal_start_c or None,
        "temperature_end_c": old.thermal_end_c or None,
        "memory_total_bytes": round(total * MIB) if total else None,
    }
    never = ("temperature_max_c", "block_temperature_max_c", "throttle_events")
    reasons |= {name: _NOT_HELD for name, value in values.items() if value is None} | dict.fromkeys(never, _NOT_HELD)
    gpu = DeviceConditions(
        **values,  # type: ignore[arg-type]
        memory_used_ratio=None if ratio is None else round(ratio, 6),
        unavailable=dict(sorted(reasons.items())),
    )
    nothing = dict.fromkeys(
        ("temperature_start_c", "temperature_end_c", *never, "memory_total_bytes", "memory_used_ratio"), _NOT_HELD
    )
    return RowConditions(host=DeviceConditions(unavailable=dict(sorted(nothing.items()))), gpu=gpu)
