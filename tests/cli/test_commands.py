"""The commands as a user types them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fewbits.cli.main import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("numpy", "scipy", "rich", "yaml", "jsonschema", "xllamacpp", "cyllama", "gguf", "reasoning_gym", "psutil", "msgspec")
RUNBOOK = (
    "scripts/run_quant_sweep.py --model-id placeholder --quant-tags Q8_0 "
    "--matrix-config benchmarks/configs/quant_sweep_common_sessions.json --dry-run"
)


def python(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_its_exit_codes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert "exit codes:" in capsys.readouterr().out


def test_fewbits_alone_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)


def test_an_unknown_command_is_a_usage_error() -> None:
    with pytest.raises(SystemExit) as ended:
        main(["swep"])
    assert ended.value.code == 2


@pytest.mark.parametrize("code", ["import fewbits", "from fewbits.cli.main import main; main([])"])
def test_importing_and_helping_load_nothing_heavy(code: str) -> None:
    done = python("-c", f"import sys; {code}; print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)")
    assert done.stderr.strip() == "[]"


def test_a_dry_run_loads_no_engine() -> None:
    code = (
        "import sys; from fewbits.cli.main import main; main(['demo','--dry-run','--json']);"
        "print([n for n in ('xllamacpp','cyllama','gguf','scipy','torch') if n in sys.modules], file=sys.stderr)"
    )
    assert python("-c", code).stderr.strip() == "[]"


def test_the_runbooks_dry_run_prints_the_plan_and_touches_nothing(tmp_path: Path) -> None:
    before = sorted(path.name for path in (ROOT / "benchmarks").iterdir())
    done = python(*RUNBOOK.split(), "--json", "--out-dir", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)["dry_run"]
    assert [model["model_id"] for model in document["matrix"]["models"]] == ["smollm2-135m"]
    assert len(document["plan_digest"]) == 64
    assert not (tmp_path / "out").exists()
    assert sorted(path.name for path in (ROOT / "benchmarks").iterdir()) == before
    assert python(*RUNBOOK.split()).returncode == 0


def test_the_bank_command_validates_and_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bank", "schema"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((ROOT / "benchmarks/task_bank/task_bank.schema.json").read_text())


@pytest.mark.real
def test_the_main_job_on_the_real_model(tmp_path: Path) -> None:
    """Two real variants, three real tasks, through the command line; then verify, report and resume."""
    words = [
        *("-m", "fewbits", "sweep", "--model-id", "smollm2-135m", "--quant-tags", "Q8_0,Q4_K_M"),
        *("--task-ids", "logic-001,extraction-001,refactor-001", "--no-canary", "--out-dir", str(tmp_path / "run")),
    ]
    done = python(*words, "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["complete"]
    rows = summary["sessions"][0]["per_quant"]
    assert [row["quant_tag"] for row in rows] == ["Q8_0", "Q4_K_M"]
    assert rows[0]["bits_per_weight"] > rows[1]["bits_per_weight"] > 4
    journal = (tmp_path / "run" / "trials.jsonl").read_text().splitlines()
    assert {json.loads(line)["served"]["proof"] for line in journal} == {"weights_inode"}
    assert {json.loads(line)["telemetry"]["token_metrics"]["status"] for line in journal} == {"OK"}
    assert python("-m", "fewbits", "verify", str(tmp_path / "run")).returncode == 0
    report = python("scripts/render_quant_sweep_report.py", "--summary", str(tmp_path / "run" / "sweep_summary.json"))
    assert report.returncode == 0, report.stderr
    assert "Q4_K_M" in (tmp_path / "run" / "sweep_report.md").read_text()
    assert python(*words).returncode == 0
    assert (tmp_path / "run" / "trials.jsonl").read_text().splitlines() == journal
