"""`fewbits import`: old results gated and rendered, and every way to hand in the wrong file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fewbits.cli.main import main
from fewbits.store import summaries

MIB = 1024**2


def row(tag: str, **changes: Any) -> dict[str, Any]:
    quality = {"token_metrics_status": "OK", "run_quality_status": "CLEAN", "run_quality_reasons": [], "determinism_rate": 1.0}
    numbers = {"adherence_score": 0.96, "total_latency": 3.4, "peak_memory_rss": 2050.0, "generation_tokens_per_second": 44.1}
    return {"quant_tag": tag, "test_runs": 6, "valid": True, **numbers, **quality, **changes}


@pytest.fixture
def old() -> dict[str, Any]:
    """Two rows of one model with a name that tries to break out of a page."""
    return {
        "schema_version": "1.1.3",
        "generated_at": "2026-02-21T10:00:00Z",
        "hardware_fingerprint": "linux|cpu|16c|64gb|gpu",
        "execution_lane": "lab",
        "vram_profile": "safe",
        "matrix": {"models": ["tiny<script>"], "quants": ["Q8_0", "Q5_K_M"], "runs_per_quant": 3},
        "sessions": [
            {
                "model_id": "tiny<script>",
                "baseline_quant": "Q8_0",
                "per_quant": [row("Q8_0"), row("Q5_K_M", total_latency=2.6, adherence_score=0.93)],
                "efficiency_frontier": {
                    "adherence_threshold": 0.95,
                    "latency_ceiling": 10.0,
                    "minimum_viable_quant_tag": "Q5_K_M",
                    "best_value_quant_tag": "Q5_K_M",
                },
                "recommendation": "use | Q5_K_M",
            }
        ],
        "stability_kpis": {"determinism_rate": 1.0, "polluted_run_rate": 0.0, "frontier_success_rate": 1.0, "weighted_runs": 12},
    }


@pytest.fixture
def paths(old: dict[str, Any], tmp_path: Path) -> tuple[Path, Path]:
    source = tmp_path / "old.json"
    source.write_text(json.dumps(old))
    return source, tmp_path / "new.json"


def imported(paths: tuple[Path, Path]) -> Path:
    assert main(["import", str(paths[0]), "--out", str(paths[1])]) == 0
    return paths[1]


def test_it_says_what_was_written_and_what_to_know(paths: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    imported(paths)
    said = capsys.readouterr().out
    assert said.startswith(f"{paths[1]}  (schema 2.4.0, from schema 1.1.3)\n")
    assert "- Quant tags were only labels" in said


def test_json_is_the_summary_and_the_same_bytes_twice(paths: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", str(paths[0]), "--out", str(paths[1]), "--json"]) == 0
    first = paths[1].read_text()
    assert capsys.readouterr().out == first
    imported(paths)
    assert paths[1].read_text() == first
    assert json.loads(first)["schema_version"] == "2.4.0"


def test_an_old_result_can_be_gated(paths: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = str(imported(paths))
    assert main(["kpis", "check", "--summary", new]) == 0
    assert main(["guards", "--summary", new]) == 3
    assert main(["guards", "--summary", new, "--allow-skip"]) == 0
    assert main(["frontier", "--summary", new, "--out", str(tmp_path / "f.json"), "--storage-root", str(tmp_path / "s")]) == 0
    artifact = json.loads((tmp_path / "f.json").read_text())
    assert artifact["imported_from"]["schema_version"] == "1.1.3"
    capsys.readouterr()


def test_a_worse_old_result_fails_the_gate(old: dict[str, Any], paths: tuple[Path, Path]) -> None:
    changes = {"run_quality_status": "POLLUTED", "valid": False, "run_quality_reasons": ["HIGH_SYSTEM_LOAD"]}
    old["sessions"][0]["per_quant"][1] |= changes
    paths[0].write_text(json.dumps(old))
    assert main(["kpis", "check", "--summary", str(imported(paths))]) == 2


def test_the_report_reads_right(paths: tuple[Path, Path], tmp_path: Path) -> None:
    assert main(["report", "--summary", str(imported(paths))]) == 0
    text = (tmp_path / "sweep_report.md").read_text()
    assert "> **Imported** from schema `1.1.3`" in text
    assert (
        "| `Q5_K_M` | — | — | 0.930 | — | 2.60 s | — | 44.1 | 2.0 GiB | **minimum viable**; **best value**; on frontier |" in text
    )
    assert "No interval could be computed" in text
    assert "### Verdicts" not in text
    assert "with 95 % confidence" not in text
    assert "### Controls" not in text
    assert "fewbits sweep" not in text
    assert "## Where this comes from" in text
    assert "<script>" not in text
    # how runs ended is not known, so neither is a count of failures
    assert "| `Q8_0` | 2 | 6 of 6 | — | — | 6 | 100 % |" in text
    assert json.loads((tmp_path / "sweep_scatter.json").read_text())["points"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "It is not a JSON object of ours"),
        ("[]", "It is not a JSON object of ours"),
        ('{"schema_version": "1.1.3", "sessions": [', "truncated"),
        ("{}", "is no sweep summary: its schema_version is None"),
        ('{"schema_version": 113}', "not a JSON object of ours"),
        ('{"schema_version": "explorer.frontier.v1"}', "is no sweep summary"),
        ('{"schema_version": "2.4.0"}', "needs no import"),
        ('{"schema_version": "2.0.0"}', "needs no import"),
        ('{"schema_version": "2.9.0"}', "newer than 2.4.0"),
        ('{"schema_version": "9.0.0"}', "newer than 2.4.0"),
        ('{"schema_version": "1.0.0"}', "only 1.1.x can be imported"),
        ('{"schema_version": "1.2.0"}', "only 1.1.x can be imported"),
        ('{"schema_version": "1.1.3"}', "missing required field `sessions`"),
        ('{"schema_version": "1.1.3", "runs_per_task": 2, "details": {}}', "is a determinism report of the older tool"),
        ('{"schema_version": "1.1.3", "sessions": NaN}', "malformed"),
        ("\x00\x01", "not a JSON object of ours"),
        ("[" * 100_000, "not a JSON object of ours"),
    ],
)
def test_other_files_are_refused_and_nothing_is_written(
    content: str, expected: str, paths: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    paths[0].write_text(content)
    assert main(["import", str(paths[0]), "--out", str(paths[1])]) == 2
    said = capsys.readouterr()
    assert expected in said.err
    assert said.out == ""
    assert not paths[1].exists()


def test_a_value_of_the_wrong_type_is_named(
    old: dict[str, Any], paths: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    old["sessions"][0]["per_quant"][1]["total_latency"] = "fast"
    paths[0].write_text(json.dumps(old))
    assert main(["import", str(paths[0]), "--out", str(paths[1])]) == 2
    assert "$.sessions[0].per_quant[1].total_latency" in capsys.readouterr().err
    old["sessions"][0]["per_quant"][1]["total_latency"] = 1.0
    old["sessions"].append(old["sessions"][0])
    paths[0].write_text(json.dumps(old))
    assert main(["import", str(paths[0]), "--out", str(paths[1])]) == 2
    assert "contradicts itself" in capsys.readouterr().err


def test_files_that_cannot_be_used(paths: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", str(tmp_path / "no.json"), "--out", str(paths[1])]) == 2
    assert "OLD: cannot read" in capsys.readouterr().err
    assert main(["import", str(tmp_path), "--out", str(paths[1])]) == 2
    assert "OLD: cannot read" in capsys.readouterr().err
    before = paths[0].read_bytes()
    assert main(["import", str(paths[0]), "--out", str(paths[0])]) == 2
    assert "the original is worth keeping" in capsys.readouterr().err
    assert paths[0].read_bytes() == before
    huge = tmp_path / "huge.json"
    with huge.open("wb") as stream:
        stream.truncate(summaries.MAX_BYTES + 1)
    assert main(["import", str(huge), "--out", str(paths[1])]) == 2
    assert "is larger than" in capsys.readouterr().err
    assert main(["import", str(paths[0]), "--out", str(paths[0] / "below.json")]) == 2
    assert not paths[1].exists()


def test_gates_point_the_way(paths: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kpis", "check", "--summary", str(paths[0])]) == 2
    assert f"fewbits import {paths[0]}" in capsys.readouterr().err
