"""`ablation.md`: a golden page from rows written by hand, and hostile text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from fewbits.records.detector_run import AblationRow, AblationTable
from fewbits.records.estimate import Estimate
from fewbits.report.detector_ablation import render_ablation

GOLDEN = Path(__file__).parent / "golden_ablation_page.md"
HOSTILE = "a|b\n<script>alert(1)</script> [x](http://y) \u202e`"


def estimate(value: float, low: float | None = None, high: float | None = None) -> Estimate:
    return Estimate(value=value, low=low, high=high, level=0.95, method="bootstrap", n=80)


def row(variant: str, **changes: Any) -> AblationRow:
    fields: dict[str, Any] = {
        "variant": variant,
        "adds": None,
        "stands_on": None,
        "rival_of": None,
        "level_bits_per_weight": 4.0,
        "map_50_95": None,
        "retained": None,
        "change": None,
    }
    return AblationRow(**fields | changes)


TABLE = AblationTable(
    mode="W4A8",
    images=80,
    float_map_50_95=estimate(0.4012, 0.35, 0.45),
    rows=(
        row("W4A8-naive", map_50_95=estimate(0.01, 0.0, 0.02), retained=estimate(0.025, 0.0, 0.05)),
        row(
            "W4A8-naive+fold",
            adds="fold",
            stands_on="W4A8-naive",
            map_50_95=estimate(0.005),
            retained=estimate(0.0125),
            change=estimate(-0.005, -0.01, 0.0),
            level_bits_per_weight=None,
        ),
        row("W4A8-naive+fold+per-channel", adds="per-channel", stands_on="W4A8-naive+fold", unavailable="export failed"),
        row(
            "W4A8",
            adds="gptq",
            stands_on="W4A8-naive+fold+per-channel",
            map_50_95=estimate(0.38, 0.33, 0.43),
            retained=estimate(0.947, 0.91, 1.002),
            level_bits_per_weight=4.3867,
        ),
        row(
            "W4A8-naive+fold+per-channel+learned",
            adds="learned",
            stands_on="W4A8-naive+fold+per-channel",
            rival_of="gptq",
            map_50_95=estimate(0.3, 0.2, 0.4),
            retained=estimate(0.75, 0.6, 0.9),
            change=estimate(0.25, 0.2, 0.3),
        ),
    ),
)


def test_the_page_is_the_golden_one() -> None:
    assert render_ablation(TABLE) == GOLDEN.read_text()


def test_a_ladder_without_side_rows_and_without_a_float_model() -> None:
    page = render_ablation(msgspec.structs.replace(TABLE, rows=TABLE.rows[:1], float_map_50_95=None))
    assert "In place of" not in page
    assert "the float model has mAP50-95 —." in page


def test_hostile_text_stays_text() -> None:
    bad = row(HOSTILE, adds=HOSTILE, rival_of=HOSTILE, unavailable=HOSTILE)
    page = render_ablation(msgspec.structs.replace(TABLE, mode=HOSTILE, rows=(TABLE.rows[0], bad)))
    assert "<script>" not in page
    assert "\u202e" not in page
    assert "[x](http" not in page
    lines = [line for line in page.splitlines() if line.startswith("|")]
    # two tables of a header, a rule and a row each, all of five cells
    assert len(lines) == 6
    assert {len(line.replace("\\|", "").split("|")) for line in lines} == {7}
