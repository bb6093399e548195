"""What the commands print: fits the width, holds no escape of its own in a pipe, and shows foreign text harmlessly."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable

import msgspec
import pytest
from rich.console import Console, RenderableType

from fewbits.records.summary import FrontierReason, Session, SweepSummary
from fewbits.report.formats import percent, rate, score, seconds_estimate, signed
from fewbits.report.terminal import render_dry_run, render_terminal


def printed(renderable: RenderableType, width: int, *, colour: bool = False) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, force_terminal=colour, color_system="standard" if colour else None).print(renderable)
    return stream.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_summary_fits_and_names_every_variant(summary: SweepSummary, width: int) -> None:
    text = printed(render_terminal(summary, width), width)
    assert max(len(line) for line in text.split("\n")) <= width
    for word in ("F16 †", "Q8_0", "Q4_K_M", "Q4_1 †", "Q2_K", "minimum viable", "best value", "0.542 [0.437, 0.646]"):
        assert word in text
    assert "\x1b" not in text


def test_wide_consoles_get_the_difference(summary: SweepSummary) -> None:
    assert "vs reference" in printed(render_terminal(summary, 120), 120)
    assert "vs reference" not in printed(render_terminal(summary, 80), 80)


def test_terminals_get_colour(summary: SweepSummary) -> None:
    assert "\x1b[" in printed(render_terminal(summary, 80), 80, colour=True)


def test_no_pick_incomplete_and_failed_canary(
    new_summary: Callable[..., SweepSummary], new_session: Callable[..., Session]
) -> None:
    session = new_session(minimum_viable_quant_tag=None, best_value_quant_tag=None, reason=FrontierReason.REFERENCE_BELOW_FLOOR)
    session = msgspec.structs.replace(session, recommendation="No recommendation. The reference is under the floor.")
    failed = msgspec.structs.replace(new_summary().canary, passed=False)
    text = printed(render_terminal(new_summary((session,), complete=False, trials_counted=5, canary=failed), 100), 100)
    assert "No recommendation. The reference is under the floor." in text
    assert "5 of 720 planned trials" in text
    assert "canary failed" in text


def test_foreign_text_is_neither_markup_nor_escape(
    new_summary: Callable[..., SweepSummary], new_session: Callable[..., Session]
) -> None:
    text = printed(render_terminal(new_summary((new_session("[red]m[/red]\x1b[2J\u202e"),)), 100), 100, colour=True)
    assert "[red]m[/red]" in text
    assert "\x1b[2J" not in text
    assert "\u202e" not in text


def dry_run_document(seconds: float | None) -> dict[str, object]:
    return {
        "schema_version": "fewbits.dry_run.v1",
        "dry_run": True,
        "description": "The packaged model, five variants.",
        "plan_digest": "0f" * 32,
        "commit_sha": None,
        "hardware_fingerprint": "linux|2c",
        "runtime": {"name": "llamacpp", "base_url": None, "script": None},
        "labels": {"execution_lane": "lab", "vram_profile": "safe"},
        "matrix": {
            "models": [{"model_id": "smollm2-135m", "kind": "packaged", "path": None, "digest": "b1" * 32, "bytes": 1}],
            "quants": ["Q8_0", "Q4_K_M"],
            "reference_quant": None,
            "selection": {"buckets": [], "limit": 0, "tiers": [1]},
            "tasks": ["logic-001", "logic-002"],
            "tasks_total": 2,
            "trials_total": 4,
            "canary_trials": 10,
        },
        "controls": {"seed": 1337, "threads": 2, "temperature": 0.0},
        "timeouts": {"trial_timeout_seconds": 120.0},
        "policies": {"canary": {"runs": 10}, "quality": {"name": "standard-v1"}},
        "estimates": {
            "disk": {
                "variants": [
                    {"model_id": "smollm2-135m", "quant_tag": "Q8_0", "bytes": 144_000_000, "unavailable": None},
                    {"model_id": "smollm2-135m", "quant_tag": "Q4_K_M", "bytes": None, "unavailable": "NOT_REPORTED"},
                ],
                "total_bytes": None,
                "total_unavailable": "NOT_REPORTED",
            },
            "seconds": seconds,
            "seconds_unavailable": None if seconds is not None else "NO_HISTORY",
        },
        "artifacts": {"journal": "runs/demo/trials.jsonl", "summary": "runs/demo/sweep_summary.json"},
    }


@pytest.mark.parametrize("width", [80, 120])
def test_dry_run_shows_plan_work_disk_and_files(width: int) -> None:
    text = printed(render_dry_run(dry_run_document(95.0)), width)
    assert max(len(line) for line in text.split("\n")) <= width
    for word in (
        "0f0f0f0f0f0f0f0f",
        "137.3 MiB",
        "1 min 35 s",
        "logic-002",
        "runs/demo/trials.jsonl",
        "standard-v1",
        "trials total",
    ):
        assert word in text
    assert "unknown (nothing was measured before)" in printed(render_dry_run(dry_run_document(None)), width)


def test_importing_the_room_does_not_import_rich() -> None:
    code = "import sys, fewbits.report.terminal, fewbits.report.markdown; sys.exit('rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_figures(new_session: Callable[..., Session]) -> None:
    assert (signed(0.0214), signed(-0.0214), signed(-0.0001), signed(None)) == ("+0.021", "\u22120.021", "0.000", "—")
    assert (percent(1.0), percent(0.083), percent(0.0), percent(None)) == ("100 %", "8.3 %", "0 %", "—")
    assert (rate(143.2), rate(14.32), rate(1.432), rate(None)) == ("143", "14.3", "1.43", "—")
    assert score(0.5) == "0.500"
    assert seconds_estimate(new_session().per_quant[0].latency_median) == "0.913 s [0.874, 0.958]"
