"""A summary of the older 1.1.x shape in this schema: what it holds is kept, what it lacks is null, nothing is made up."""

from __future__ import annotations

import copy
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.analysis.guards import check_guards
from fewbits.analysis.import_summary import import_legacy, legacy_problems
from fewbits.analysis.kpis import KpiLimits, check_kpis, kpi_report
from fewbits.core.codec import decode, encode_pretty
from fewbits.records.base import PollutionReason, RunQuality, TokenStatus, VramProfile
from fewbits.records.gates import GateStatus
from fewbits.records.legacy_summary import LegacySummary
from fewbits.records.plan import Controls, PolicyName
from fewbits.records.provenance import SourceFile
from fewbits.records.sidecar import SidecarStatus
from fewbits.records.summary import FrontierReason, QuantRow, SweepSummary

MIB = 1024**2
SHA = "5" * 64


def sidecar(**changes: Any) -> dict[str, Any]:
    block = {"enabled": True, "return_code": 0, "out_file": "s.json", "sidecar_parse_status": "OK", "sidecar_parse_errors": []}
    numbers = {"vram_total_mb": 1000.0, "vram_used_mb": 400.0, "ttft_ms": 0.0, "prefill_tps": 0.0, "decode_tps": 0.0}
    return {**block, **numbers, "thermal_start_c": 45.0, "thermal_end_c": 45.0, "kernel_launch_ms": 0.0, **changes}


def old_row(tag: str, **changes: Any) -> dict[str, Any]:
    """A clean row of six runs, as the later versions of the older shape have it."""
    row = {
        "quant_tag": tag,
        "quant_rank": 1,
        "report_path": f"out/{tag}.json",
        "adherence_score": 0.9,
        "total_latency": 2.0,
        "peak_memory_rss": 100.5,
        "init_latency": None,
        "prompt_tokens_per_second": 1500.0,
        "generation_tokens_per_second": 40.0,
        "orchestration_overhead_ratio": 0.12,
        "missing_telemetry_rate": 0.0,
        "polluted_run_rate": 0.0,
        "token_metrics_status": "OK",
        "run_quality_status": "CLEAN",
        "run_quality_reasons": [],
        "determinism_rate": 1.0,
        "test_runs": 6,
        "execution_lane": "lab",
        "valid": True,
        "vibe_delta": 0.021,
        "vibe_delta_status": "OK",
    }
    return {**row, **changes}


def old_session(*rows: dict[str, Any], model: str = "tiny", reference: str = "Q8_0", **frontier: Any) -> dict[str, Any]:
    limits = {"adherence_threshold": 0.9, "latency_ceiling": 5.0, "minimum_viable_quant_tag": rows[-1]["quant_tag"]}
    limits |= {"best_value_quant_tag": rows[-1]["quant_tag"], "reason": "words"}
    return {
        "model_id": model,
        "baseline_quant": reference,
        "per_quant": list(rows),
        "efficiency_frontier": {**limits, **frontier},
        "recommendation_detail": {},
        "recommendation": f"{model}: use {rows[-1]['quant_tag']}.",
    }


def old_summary(*sessions: dict[str, Any], **changes: Any) -> dict[str, Any]:
    sessions = sessions or (old_session(old_row("Q8_0"), old_row("Q4_K_M")),)
    matrix = {
        "models": [session["model_id"] for session in sessions],
        "quants": ["Q8_0", "Q4_K_M"],
        "task_bank": "bank.json",
        "runs_per_quant": 3,
        "experimental_controls": {"seed": 7, "threads": 8, "affinity_policy": "pcores", "warmup_steps": 2},
        "row_quality_policy": {"max_missing_telemetry_rate": 0.1, "max_orchestration_overhead_ratio": 0.6},
        "hardware_sidecar": {"enabled": True, "profile": "nvidia"},
        "runtime_target": "rig",
        "venue": "rig",
    }
    rates = {"determinism_rate": 1.0, "missing_telemetry_rate": 0.0, "polluted_run_rate": 0.0, "frontier_success_rate": 1.0}
    top = {
        "schema_version": "1.1.3",
        "generated_at": "2026-02-21T10:00:00Z",
        "commit_sha": "",
        "hardware_fingerprint": "linux|cpu|16c|64gb|gpu",
        "matrix": matrix,
        "execution_lane": "lab",
        "vram_profile": "safe",
        "canary": None,
        "sessions": list(sessions),
        "stability_kpis": {**rates, "quant_rows": 2, "sessions": 1, "weighted_runs": 12},
    }
    return {**top, **changes}


def converted(old: dict[str, Any]) -> SweepSummary:
    """Convert, and read back what would be written."""
    legacy = decode(json.dumps(old).encode(), LegacySummary, "old")
    assert list(legacy_problems(legacy)) == []
    summary = import_legacy(legacy, sha256=SHA, fewbits_version="9")
    return decode(encode_pretty(summary), SweepSummary, "new")


def rows_of(summary: SweepSummary) -> dict[str, QuantRow]:
    return {row.quant_tag: row for session in summary.sessions for row in session.per_quant}


def notes_of(summary: SweepSummary) -> str:
    assert summary.provenance.imported_from is not None
    return "\n".join(summary.provenance.imported_from.notes)


# --- what is kept ------------------------------------------------------------------------------------------------------


def test_numbers_are_taken_over_and_sizes_become_bytes() -> None:
    row = rows_of(converted(old_summary()))["Q4_K_M"]
    assert (row.adherence_score, row.total_latency, row.test_runs, row.expected_runs) == (0.9, 2.0, 6, 6)
    assert row.peak_memory_rss == round(100.5 * MIB)
    assert (row.prompt_tokens_per_second, row.generation_tokens_per_second) == (1500.0, 40.0)
    assert (row.orchestration_overhead_ratio, row.vibe_metrics.vibe_delta) == (0.12, 0.021)
    assert (row.run_quality_status, row.clean_runs, row.tasks) == (RunQuality.CLEAN, 6, 2)


def test_every_null_has_a_reason_and_nothing_has_an_interval() -> None:
    for row in rows_of(converted(old_summary())).values():
        for name in row.__struct_fields__:
            if getattr(row, name) is None:
                assert row.unavailable.get(name), name
        assert (row.adherence, row.latency_median, row.verdict, row.uncertainty, row.divergence) == (None,) * 5
        assert row.determinism is not None
        assert row.determinism.agreement_floor is None
        assert row.unavailable["status_counts"] == "NOT_IMPORTED"


def test_where_it_came_from_is_said() -> None:
    summary = converted(old_summary(commit_sha="4be1"))
    origin = summary.provenance.imported_from
    assert origin is not None
    assert (origin.schema_version, origin.sha256, summary.commit_sha) == ("1.1.3", SHA, "4be1")
    assert summary.provenance.plan_digest == f"imported:{SHA}"
    for words in (
        "only labels",
        "style rules",
        "means",
        "client's process tree",
        "no intervals",
        "2026-02-21T10:00:00Z",
        "pcores",
    ):
        assert words in notes_of(summary)
    assert summary.sessions[0].recommendation.startswith("Imported from schema 1.1.3: Q4_K_M is the smallest tag")
    assert "In its words: tiny: use Q4_K_M." in summary.sessions[0].recommendation_detail.because


def test_policies_have_the_files_limits_and_an_honest_name() -> None:
    summary = converted(old_summary())
    assert summary.quality_policy.name == "imported-1.1.3"
    assert summary.quality_policy.max_orchestration_overhead_ratio == 0.6
    assert summary.quality_policy.row_max_missing_telemetry_rate == 0.1
    policy = summary.selection_policy
    assert (policy.name, policy.adherence_threshold, policy.latency_ceiling) == (PolicyName.THRESHOLD, 0.9, 5.0)
    assert "no absolute floor" in notes_of(summary)


def test_a_session_with_other_limits_carries_its_own() -> None:
    other = old_session(old_row("Q8_0"), old_row("Q4_K_M"), model="large", latency_ceiling=1.0)
    summary = converted(old_summary(old_session(old_row("Q8_0"), old_row("Q4_K_M")), other))
    first, second = summary.sessions
    assert first.selection_policy is None
    assert second.selection_policy is not None
    assert second.selection_policy.latency_ceiling == 1.0
    assert second.efficiency_frontier.reason is FrontierReason.NO_QUANT_MET_LIMITS
    assert summary.stability_kpis.frontier_success_rate == 0.5
    assert "large: the minimum viable quant was Q4_K_M there, and is none" in notes_of(summary)


def test_controls_are_the_recorded_ones_and_the_rest_is_named() -> None:
    summary = converted(old_summary())
    controls = summary.experimental_controls
    assert (controls.seed, controls.threads, controls.warmup_steps, controls.affinity_policy) == (7, 8, 2, "none")
    assert summary.controls_effective == {}
    assert summary.matrix["experimental_controls"] == {
        "affinity_policy": "pcores",
        "seed": 7,
        "threads": 8,
        "warmup_steps": 2,
    }
    assert "say nothing about the old run: affinity_policy, temperature, max_tokens, context_size, batch_size." in notes_of(
        summary
    )
    bare = old_summary()
    bare["matrix"]["experimental_controls"] = {"seed": None, "threads": None, "affinity_policy": "", "warmup_steps": None}
    assert converted(bare).experimental_controls == Controls(affinity_policy="none")
    assert "seed, affinity_policy, warmup_steps" in notes_of(converted(bare))
    assert "experimental_controls" not in converted(bare).matrix
    huge = old_summary()
    huge["matrix"]["experimental_controls"] = {"seed": 2**40, "warmup_steps": 1000}
    assert converted(huge).experimental_controls.seed == Controls().seed
    assert "The seed 1099511627776 has no place here." in notes_of(converted(huge))


def test_known_reasons_are_kept_and_others_listed() -> None:
    reasons = ["HIGH_ORCHESTRATION_OVERHEAD", "HIGH_SYSTEM_LOAD", "MISSING_EXPERIMENTAL_CONTROLS", "MISSING_TOKEN_TIMINGS"]
    bad = old_row("Q4_K_M", run_quality_status="POLLUTED", run_quality_reasons=reasons, valid=False, polluted_run_rate=0.5)
    summary = converted(old_summary(old_session(old_row("Q8_0"), bad)))
    row = rows_of(summary)["Q4_K_M"]
    assert row.run_quality_reasons == (PollutionReason.HIGH_ORCHESTRATION_OVERHEAD, PollutionReason.MISSING_TOKEN_TIMINGS)
    assert "Reason codes without a place here: HIGH_SYSTEM_LOAD, MISSING_EXPERIMENTAL_CONTROLS." in notes_of(summary)
    assert (row.valid, row.invalid_reasons, row.clean_runs) == (False, ("POLLUTED",), 3)


# --- what the older shape's earlier version lacks ----------------------------------------------------------------------


def test_a_row_without_shares_is_told_by_its_status() -> None:
    bad = old_row("Q4_K_M", run_quality_status="POLLUTED", token_metrics_status="TIMING_UNAVAILABLE", valid=False)
    rows = [old_row("Q8_0"), bad]
    for row in rows:
        del row["polluted_run_rate"], row["missing_telemetry_rate"]
    summary = converted(old_summary(old_session(*rows)))
    good, polluted = (rows_of(summary)[tag] for tag in ("Q8_0", "Q4_K_M"))
    assert (good.polluted_run_rate, good.missing_telemetry_rate, good.clean_runs) == (0.0, 0.0, 6)
    assert (polluted.polluted_run_rate, polluted.missing_telemetry_rate, polluted.clean_runs) == (1.0, 1.0, 0)
    assert polluted.token_metrics_status is TokenStatus.TIMING_UNAVAILABLE
    assert "counts with all its runs" in notes_of(summary)


def test_the_smallest_old_file_is_enough() -> None:
    rows = [
        {"quant_tag": "Q8_0", "adherence_score": 0.96, "total_latency": 3.4, "valid": True},
        {"quant_tag": "Q5_K_M", "adherence_score": 0.93, "total_latency": 2.6, "valid": True},
    ]
    old = {
        "schema_version": "1.1.3",
        "sessions": [{"model_id": "m", "baseline_quant": "Q8_0", "per_quant": rows, "efficiency_frontier": {}}],
        "stability_kpis": {"weighted_runs": 6},
    }
    summary = converted(old)
    row = rows_of(summary)["Q5_K_M"]
    assert (row.test_runs, row.tasks, row.unavailable["tasks"]) == (3, 0, "NOT_IMPORTED")
    assert "3 runs each, from their sum" in notes_of(summary)
    # no status is no good status
    assert (row.run_quality_status, row.token_metrics_status) == (
        RunQuality.POLLUTED,
        TokenStatus.TOKEN_AND_TIMING_UNAVAILABLE,
    )
    assert row.determinism_rate is None


def test_rows_whose_runs_nobody_can_count_are_refused() -> None:
    old = old_summary()
    del old["sessions"][0]["per_quant"][0]["test_runs"]
    old["stability_kpis"]["weighted_runs"] = 11
    legacy = decode(json.dumps(old).encode(), LegacySummary, "old")
    assert "nothing says how many runs" in str(next(legacy_problems(legacy)))


def test_one_run_of_each_task_proves_no_determinism() -> None:
    old = old_summary()
    old["matrix"]["runs_per_quant"] = 1
    summary = converted(old)
    assert all(row.determinism is None and row.determinism_rate is None for row in rows_of(summary).values())
    assert summary.stability_kpis.determinism_rate is None
    assert rows_of(summary)["Q8_0"].unavailable["determinism_rate"] == "TOO_FEW_SAMPLES"
    assert "stability_kpis.determinism_rate was 1 there and is null here." in notes_of(summary)


def test_zero_latency_and_memory_are_unknown() -> None:
    rows = (old_row("Q8_0"), old_row("Q4_K_M", total_latency=0.0, peak_memory_rss=0))
    row = rows_of(converted(old_summary(old_session(*rows))))["Q4_K_M"]
    assert (row.total_latency, row.peak_memory_rss) == (None, None)
    assert row.unavailable["total_latency"] == row.unavailable["peak_memory_rss"] == "NOT_IMPORTED"
    # a measured zero stays
    silent = old_session(old_row("Q8_0"), old_row("Q4_K_M", generation_tokens_per_second=0.0, adherence_score=0.0))
    assert rows_of(converted(old_summary(silent)))["Q4_K_M"].generation_tokens_per_second == 0.0


# --- sidecar -----------------------------------------------------------------------------------------------------------


def test_the_probes_zeros_are_null_and_its_temperatures_can_be_judged() -> None:
    probed = old_row("Q8_0", hardware_sidecar=sidecar())
    hot = old_row("Q4_K_M", hardware_sidecar=sidecar(thermal_start_c=70.0, vram_used_mb=900.0, prefill_tps=10.0, decode_tps=2.0))
    summary = converted(old_summary(old_session(probed, hot)))
    block, conditions = rows_of(summary)["Q8_0"].hardware_sidecar, rows_of(summary)["Q8_0"].conditions
    assert block is not None
    assert conditions is not None
    assert (block.status, block.prefill_tokens_per_second, block.profile) == (
        SidecarStatus.REQUIRED_FIELD_MISSING,
        None,
        "nvidia",
    )
    assert (conditions.gpu.temperature_start_c, conditions.gpu.memory_used_ratio) == (45.0, 0.4)
    assert conditions.gpu.memory_total_bytes == 1000 * MIB
    assert conditions.host.unavailable["memory_used_ratio"] == "NOT_IMPORTED"
    good = rows_of(summary)["Q4_K_M"].hardware_sidecar
    assert good is not None
    assert (good.status, good.decode_tokens_per_second) == (SidecarStatus.OK, 2.0)
    found = {
        (check.subject, check.name): check.status
        for check in check_guards(summary, cooldown_target_c=50, profile=VramProfile.SAFE)
    }
    assert found["tiny Q8_0", "cooldown"] is found["tiny Q8_0", "memory"] is GateStatus.PASS
    assert found["tiny Q4_K_M", "cooldown"] is found["tiny Q4_K_M", "memory"] is GateStatus.FAIL
    assert found["tiny Q8_0", "throttling"] is GateStatus.SKIP


def test_a_probe_that_read_nothing_is_no_reading() -> None:
    nothing = sidecar(vram_total_mb=0.0, vram_used_mb=0.0, thermal_start_c=0.0, thermal_end_c=0.0)
    off = {"enabled": False, "sidecar_parse_status": "NOT_APPLICABLE", "sidecar_parse_errors": []}
    rows = (old_row("Q8_0", hardware_sidecar=nothing), old_row("Q4_K_M", hardware_sidecar=off))
    summary = converted(old_summary(old_session(*rows)))
    statuses = {check.status for check in check_guards(summary, cooldown_target_c=50, profile=VramProfile.SAFE)[1:]}
    assert statuses == {GateStatus.SKIP}
    assert rows_of(summary)["Q4_K_M"].hardware_sidecar is None


def test_more_memory_in_use_than_there_is_is_no_share() -> None:
    row = old_row("Q8_0", hardware_sidecar=sidecar(vram_used_mb=5000.0))
    summary = converted(old_summary(old_session(row, old_row("Q4_K_M"))))
    conditions = rows_of(summary)["Q8_0"].conditions
    assert conditions is not None
    assert conditions.gpu.memory_used_ratio is None
    assert conditions.gpu.unavailable["memory_used_ratio"] == "COUNTS_DISAGREE"
    assert "tiny Q8_0: the sidecar reported more GPU memory in use than there is" in notes_of(summary)


def test_a_row_that_only_the_sidecar_made_invalid_stays_so_and_says_why() -> None:
    row = old_row("Q4_K_M", valid=False, hardware_sidecar=sidecar(sidecar_parse_status="PARSE_ERROR"))
    summary = converted(
        old_summary(old_session(old_row("Q8_0"), row, minimum_viable_quant_tag="Q8_0", best_value_quant_tag="Q8_0"))
    )
    assert rows_of(summary)["Q4_K_M"].invalid_reasons == ("SIDECAR_PARSE_ERROR",)
    assert summary.sessions[0].efficiency_frontier.minimum_viable_quant_tag == "Q8_0"


# --- ranks, picks, rates -----------------------------------------------------------------------------------------------


def test_ranks_follow_bits_and_the_older_mistake_is_named() -> None:
    session = old_session(old_row("Q8_0"), old_row("F16"), old_row("Q4_0"), old_row("Q4_K_M"), old_row("AWQ"))
    summary = converted(old_summary(session))
    tags = [row.quant_tag for row in summary.sessions[0].per_quant]
    assert tags == ["AWQ", "F16", "Q8_0", "Q4_K_M", "Q4_0"]
    assert "tiny: nobody knows the bits of AWQ" in notes_of(summary)
    assert "tiny: the older tool took Q8_0 as the reference, although F16 stands for more bits." in notes_of(summary)
    assert [row.quant_tag for row in summary.sessions[0].per_quant if row.is_reference] == ["Q8_0"]


def test_an_override_shows() -> None:
    polluted = old_row("Q4_K_M", valid=False, run_quality_status="POLLUTED", polluted_run_rate=1.0)
    summary = converted(old_summary(old_session(old_row("Q8_0"), polluted)))
    assert "the minimum viable quant was Q4_K_M there (that row is not valid, so an override must have let it in)" in notes_of(
        summary
    )
    assert summary.sessions[0].recommendation_detail.minimum_viable_quant == "Q8_0"


def test_a_reference_that_is_invalid_or_absent_ends_the_picks() -> None:
    invalid = old_session(old_row("Q8_0", valid=False, run_quality_status="POLLUTED", polluted_run_rate=1.0), old_row("Q4_K_M"))
    assert converted(old_summary(invalid)).sessions[0].efficiency_frontier.reason is FrontierReason.REFERENCE_INVALID
    absent = converted(old_summary(old_session(old_row("Q6_K"), old_row("Q4_K_M"))))
    assert absent.sessions[0].efficiency_frontier.reason is FrontierReason.NO_REFERENCE
    assert "the reference Q8_0 has no row" in notes_of(absent)
    assert absent.sessions[0].recommendation.startswith("Imported from schema 1.1.3: no row met the limits.")


def test_rows_that_the_matrix_asked_for_and_that_are_not_there_make_it_incomplete() -> None:
    summary = converted(old_summary(old_session(old_row("Q8_0"))))
    assert (summary.complete, summary.trials_counted, summary.trials_expected) == (False, 6, 12)
    assert "tiny Q4_K_M" in notes_of(summary)
    assert converted(old_summary()).complete


def test_a_canary_is_kept_as_it_was() -> None:
    canary = {"model_id": "tiny", "quant_tag": "Q8_0", "runs": 4, "adherence_variance": 0.1, "internal_latency_variance": 0.05}
    canary |= {"missing_telemetry_rate": 0.25, "passed": False, "failed_reasons": ["ADHERENCE_VARIANCE_NON_ZERO", "OTHER"]}
    block = converted(old_summary(canary={**canary, "latency_variance_threshold": 0.03})).canary
    assert (block.enabled, block.passed, block.runs_made, block.latency_variation) == (True, False, 4, 0.05)
    assert block.failed_reasons == ("ADHERENCE_VARIANCE_NON_ZERO", "OTHER")
    assert block.latency_sample_count_used == 4
    off = converted(old_summary()).canary
    assert (off.enabled, off.passed, off.runs_made) == (False, None, 0)


def test_kpis_follow_from_the_rows_and_differences_are_said() -> None:
    half = old_row("Q4_K_M", polluted_run_rate=0.5, determinism_rate=0.5)
    old = old_summary(old_session(old_row("Q8_0"), half))
    old["stability_kpis"]["polluted_run_rate"] = 1.0
    summary = converted(old)
    assert (summary.stability_kpis.polluted_run_rate, summary.stability_kpis.determinism_rate) == (0.25, 0.75)
    assert "stability_kpis.polluted_run_rate was 1 there and is 0.25 here." in notes_of(summary)
    assert "stability_kpis.missing_telemetry_rate was" not in notes_of(summary)


RATE = st.floats(0, 1).map(lambda value: round(value, 6))
MAYBE_RATE = RATE | st.none()
SIDECARS = st.none() | st.fixed_dictionaries(
    {
        "enabled": st.booleans(),
        "sidecar_parse_status": st.sampled_from(["OK", "PARSE_ERROR", "NOT_APPLICABLE", "weird", ""]),
    },
    optional={
        "vram_total_mb": st.floats(0, 1e6) | st.none(),
        "vram_used_mb": st.floats(0, 1e6) | st.none(),
        "prefill_tps": st.floats(0, 1e9) | st.none(),
        "decode_tps": st.floats(0, 1e9) | st.none(),
        "thermal_start_c": st.floats(-50, 200) | st.none(),
    },
)
ROWS = st.fixed_dictionaries(
    {
        "adherence_score": MAYBE_RATE,
        "total_latency": st.floats(0, 1e9) | st.none(),
        "valid": st.booleans(),
        "test_runs": st.integers(0, 999),
    },
    optional={
        "peak_memory_rss": st.floats(0, 1e30) | st.none(),
        "missing_telemetry_rate": MAYBE_RATE,
        "polluted_run_rate": MAYBE_RATE,
        "determinism_rate": MAYBE_RATE,
        "orchestration_overhead_ratio": MAYBE_RATE,
        "token_metrics_status": st.sampled_from(["OK", "TIMING_UNAVAILABLE", "odd"]) | st.none(),
        "run_quality_status": st.sampled_from(["CLEAN", "POLLUTED", "odd"]) | st.none(),
        "run_quality_reasons": st.lists(st.sampled_from(["MISSING_TOKEN_TIMINGS", "HIGH_SYSTEM_LOAD"]), max_size=3),
        "vibe_delta": st.floats(allow_nan=False, allow_infinity=False) | st.none(),
        "hardware_sidecar": SIDECARS,
    },
)
TAGS = st.sampled_from(["F16", "Q8_0", "Q4_K_M", "fp16", "AWQ", "q8_0"])


@settings(max_examples=60)
@given(
    rows=st.dictionaries(TAGS, ROWS, min_size=1, max_size=4),
    reference=TAGS,
    runs=st.none() | st.integers(0, 5),
)
def test_whatever_an_old_file_holds_the_result_can_be_read_and_agrees_with_itself(
    rows: dict[str, dict[str, Any]], reference: str, runs: int | None
) -> None:
    old = old_summary(old_session(*({"quant_tag": tag, **row} for tag, row in rows.items()), reference=reference))
    old["matrix"]["runs_per_quant"] = runs
    summary = converted(old)
    report = kpi_report(summary, SourceFile(path="new", sha256=SHA))
    checks = {check.name: check for check in check_kpis(report, KpiLimits())}
    assert checks["consistency"].status is GateStatus.PASS, checks["consistency"].evidence
    assert check_guards(summary, cooldown_target_c=50, profile=VramProfile.SAFE)
    for row in rows_of(summary).values():
        assert 0 <= row.clean_runs <= row.test_runs


# --- bad input ---------------------------------------------------------------------------------------------------------


def at(old: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """The same document with one value replaced, or removed (`...`)."""
    changed: Any = copy.deepcopy(old)
    *parents, last = [int(part) if part.isdecimal() else part for part in path.split(".")]
    place = changed
    for part in parents:
        place = place[part]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return dict(changed)


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("sessions", ..., "missing required field `sessions`"),
        ("sessions", [], "Expected `array` of length >= 1 - at `$.sessions`"),
        ("sessions", {}, "Expected `array`, got `object` - at `$.sessions`"),
        ("sessions.0.per_quant", [], "at `$.sessions[0].per_quant`"),
        ("sessions.0.model_id", "", "at `$.sessions[0].model_id`"),
        ("sessions.0.model_id", ..., "missing required field `model_id`"),
        ("sessions.0.efficiency_frontier", ..., "missing required field `efficiency_frontier`"),
        ("sessions.0.efficiency_frontier.latency_ceiling", 0, "Expected `float` > 0.0"),
        ("sessions.0.efficiency_frontier.adherence_threshold", 95, "Expected `float` <= 1.0"),
        ("sessions.0.per_quant.1.total_latency", "2.0", "got `str` - at `$.sessions[0].per_quant[1].total_latency`"),
        ("sessions.0.per_quant.1.total_latency", -1, "at `$.sessions[0].per_quant[1].total_latency`"),
        ("sessions.0.per_quant.1.total_latency", True, "got `bool`"),
        ("sessions.0.per_quant.1.total_latency", ..., "missing required field `total_latency`"),
        ("sessions.0.per_quant.1.adherence_score", 1.5, "at `$.sessions[0].per_quant[1].adherence_score`"),
        ("sessions.0.per_quant.1.valid", 1, "Expected `bool`, got `int`"),
        ("sessions.0.per_quant.1.test_runs", -3, "at `$.sessions[0].per_quant[1].test_runs`"),
        ("sessions.0.per_quant.1.test_runs", 2.5, "at `$.sessions[0].per_quant[1].test_runs`"),
        ("sessions.0.per_quant.1.polluted_run_rate", 2, "at `$.sessions[0].per_quant[1].polluted_run_rate`"),
        ("sessions.0.per_quant.1.run_quality_reasons", "X", "Expected `array"),
        ("sessions.0.per_quant.1.hardware_sidecar", {"vram_total_mb": "24564"}, "hardware_sidecar.vram_total_mb"),
        ("stability_kpis.weighted_runs", "12", "at `$.stability_kpis.weighted_runs`"),
        ("matrix.experimental_controls.threads", -1, "at `$.matrix.experimental_controls.threads`"),
        ("canary", {"runs": 3}, "missing required field `passed`"),
    ],
)
def test_wrong_types_and_ranges_are_refused_at_their_place(path: str, value: object, expected: str) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.json.decode(json.dumps(at(old_summary(), path, value)), type=LegacySummary)
    assert expected in str(caught.value)


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_no_number_is_no_json(word: str) -> None:
    text = json.dumps(at(old_summary(), "sessions.0.per_quant.1.total_latency", 123456)).replace("123456", word)
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(text, type=LegacySummary)


def test_names_that_are_there_twice_are_problems() -> None:
    session = old_session(old_row("Q8_0"), old_row("Q8_0"))
    legacy = decode(json.dumps(old_summary(session, session)).encode(), LegacySummary, "old")
    told = [str(problem) for problem in legacy_problems(legacy)]
    assert told[0] == "sessions: 'tiny' is there 2 times (one session per model)"
    assert "sessions[0].per_quant: 'Q8_0' is there 2 times (one row per quant tag)" in told
    assert len(told) == 3
