"""The report's section on baselines and on the machine."""

# ruff: noqa: RUF001 - the minus signs are those of the report

from __future__ import annotations

from typing import Any

import msgspec

from fewbits.records.baseline import BaselineComparison, BaselineStatus
from fewbits.records.estimate import Estimate
from fewbits.records.summary import DeviceConditions, RowConditions, SweepSummary
from fewbits.report.lab import lab_blocks
from fewbits.report.markdown import render_markdown

COLD = DeviceConditions()
WARM = DeviceConditions(
    temperature_start_c=41.0,
    temperature_max_c=63.5,
    block_temperature_max_c=49.0,
    memory_total_bytes=8 * 1024**3,
    memory_used_ratio=0.25,
    throttle_events=0,
)


def changed(summary: SweepSummary, **fields: Any) -> SweepSummary:
    """Give every row of the first session the same blocks."""
    session = summary.sessions[0]
    rows = tuple(msgspec.structs.replace(row, **fields) for row in session.per_quant)
    return msgspec.structs.replace(summary, sessions=(msgspec.structs.replace(session, per_quant=rows), *summary.sessions[1:]))


def test_nothing_to_say(summary: SweepSummary) -> None:
    assert lab_blocks(changed(summary, baseline=None, conditions=None).sessions[0]) == []


def test_nothing_stored_is_said_once(summary: SweepSummary) -> None:
    block = BaselineComparison(status=BaselineStatus.NO_BASELINE, detail="Nothing is stored for x.", test_id="x")
    text = "\n".join(lab_blocks(changed(summary, baseline=block, conditions=None).sessions[0]))
    assert text.count("Nothing is stored") == 1
    assert "fewbits baseline append" in text


def test_a_mismatch_says_why_in_each_row_and_hostile_text_is_harmless(summary: SweepSummary) -> None:
    block = BaselineComparison(status=BaselineStatus.HW_MISMATCH, detail="from <script>|other|", test_id="x")
    text = "\n".join(lab_blocks(changed(summary, baseline=block, conditions=None).sessions[0]))
    assert text.count("HW_MISMATCH") == len(summary.sessions[0].per_quant)
    assert "<script>" not in text


def test_a_comparison_has_its_interval(summary: SweepSummary) -> None:
    difference = Estimate(value=-0.1, low=-0.2, high=0.05, level=0.95, method="m", n=9)
    block = BaselineComparison(
        status=BaselineStatus.OK,
        detail="found",
        test_id="sweep.m.Q8_0",
        baseline_ref="abc",
        adherence_difference=difference,
        same_weights=False,
    )
    text = "\n".join(lab_blocks(changed(summary, baseline=block, conditions=None).sessions[0]))
    assert "[−0.200, +0.050]" in text
    assert "**no**" in text
    assert "not told" in text


def test_sensors_that_are_there_and_those_that_are_not(summary: SweepSummary) -> None:
    whole = changed(summary, baseline=None, conditions=RowConditions(host=WARM, gpu=COLD))
    text = "\n".join(lab_blocks(whole.sessions[0]))
    assert "63.5 °C" in text
    assert "25 % of 8.0 GiB" in text
    assert "GPU" not in text
    assert "### What the machine went through" in render_markdown(whole)
