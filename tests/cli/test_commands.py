"""The commands as people call them: in this process for speed, as processes where imports, signals or the scripts matter."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fewbits import __version__
from fewbits.cli.main import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]
RUNBOOK = re.findall(r"^python (scripts/\w+\.py .*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
PRESETS = sorted((ROOT / "benchmarks" / "configs").glob("quant_sweep_*.json"))
HEAVY = ("numpy", "scipy", "rich", "xllamacpp", "cyllama", "gguf", "jsonschema", "reasoning_gym", "psutil", "pynvml", "yaml")
WORDS = ("alpha", "beta", "gamma")


def run_process(*words: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def loaded_by(code: str, modules: Sequence[str]) -> list[str]:
    """Which of the modules are loaded after running the code in a new Python."""
    tail = f"\nimport sys; print('LOADED', [name for name in {list(modules)!r} if name in sys.modules])"
    done = run_process("-c", code + tail)
    assert done.returncode == 0, done.stderr
    found: list[str] = re.findall(r"'(\w+)'", done.stdout.rsplit("LOADED", 1)[1])
    return found


@pytest.fixture
def sweep_words(tmp_path: Path) -> list[str]:
    """A small scripted sweep; 20 ms a trial, 18 trials."""
    checks = [{"kind": "exact", "accepted": ["1"]}]
    tasks = [{"id": word, "bucket": "logic", "tier": 1, "prompt": f"Say {word}.", "checks": checks} for word in WORDS]
    (tmp_path / "bank.json").write_text(json.dumps({"name": "tiny", "version": "1", "tasks": tasks}))
    reply = {"text": "1", "prompt_tokens": 3, "output_tokens": 1, "prompt_ms": 5, "predicted_ms": 10, "delay_seconds": 0.02}
    (tmp_path / "script.json").write_text(json.dumps({"schema_version": "fewbits.script.v1", "default": reply}))
    inputs = ["--script", str(tmp_path / "script.json"), "--task-bank", str(tmp_path / "bank.json")]
    words = ["--model-id", "tiny", "--quant-tags", "Q8_0,Q4_0,Q2_K", "--runtime", "scripted", "--runs", "2", "--no-canary"]
    words += ["--rerun-budget-ratio", "0"]  # these tests share the machine with others
    return [*words, *inputs, "--out-dir", str(tmp_path / "out")]


class TestTop:
    def test_alone_it_shows_the_way(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([]) == 0
        text = capsys.readouterr().out
        assert all(re.search(rf"^  {name}\b", text, re.MULTILINE) for name in COMMANDS)
        assert "130" in text

    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            main(["--version"])
        assert ended.value.code == 0
        assert capsys.readouterr().out == f"fewbits {__version__}\n"

    @pytest.mark.parametrize("words", [["swep"], ["--nonsense"], ["sweep", "--nonsense"], ["verify"], ["bank"], ["report"]])
    def test_usage_errors(self, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 2
        assert "error:" in capsys.readouterr().err

    @pytest.mark.parametrize("name", COMMANDS)
    def test_help(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            main([name, "--help"])
        assert ended.value.code == 0
        text = capsys.readouterr().out
        assert f"usage: fewbits {name}" in text
        assert "exit codes:" in text


class TestImports:
    def test_import_and_help_load_nothing_heavy(self) -> None:
        calm = (*HEAVY, "msgspec", "asyncio", "multiprocessing")
        assert loaded_by("import fewbits", calm) == []
        assert loaded_by("from fewbits.cli.main import main\nmain([])", calm) == []

    def test_a_dry_run_loads_no_engine(self) -> None:
        words = ["demo", "--dry-run", "--json"]
        assert loaded_by(f"from fewbits.cli.main import main\nmain({words!r})", ("xllamacpp", "cyllama", "scipy")) == []


class TestDryRun:
    def test_the_readme_has_the_runbook(self) -> None:
        assert [command.split()[0] for command in RUNBOOK] == ["scripts/run_quant_sweep.py"] * 2 + [
            "scripts/render_quant_sweep_report.py"
        ]

    def test_the_runbooks_command_touches_nothing(self, tmp_path: Path) -> None:
        command = next(line for line in RUNBOOK if line.endswith("--dry-run"))
        results = ROOT / "benchmarks" / "results"
        before = sorted(results.rglob("*"))
        cache = tmp_path / "cache"
        done = run_process(*shlex.split(command), "--json", FEWBITS_CACHE=str(cache))
        assert (done.returncode, done.stderr) == (0, "")
        document = json.loads(done.stdout)["dry_run"]
        assert "smollm2-135m" in done.stdout
        assert "placeholder" not in done.stdout
        assert document["artifacts"]["summary"] == "benchmarks/results/quant_sweep/sweep_summary.json"
        assert (sorted(results.rglob("*")), cache.exists()) == (before, False)

    def test_it_is_the_same_plan_twice_and_from_elsewhere(self, tmp_path: Path) -> None:
        words = [str(ROOT / "scripts" / "run_quant_sweep.py"), "--matrix-config", str(PRESETS[0]), "--dry-run", "--json"]
        first, second = (run_process(*words, cwd=cwd, FEWBITS_CACHE=str(tmp_path / "c")) for cwd in (ROOT, tmp_path))
        assert first.returncode == second.returncode == 0
        one, two = (json.loads(done.stdout)["dry_run"]["plan_digest"] for done in (first, second))
        assert one == two
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
    def test_every_preset_plans(
        self, preset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("FEWBITS_CACHE", str(tmp_path / "cache"))
        assert main(["sweep", "--matrix-config", str(preset), "--dry-run", "--out-dir", str(tmp_path / "out")]) == 0
        assert "Dry run: nothing was written." in capsys.readouterr().out
        assert list(tmp_path.iterdir()) == []


class TestSweepAndItsReaders:
    @pytest.fixture
    def finished(self, sweep_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
        assert main(["sweep", *sweep_words]) == 0
        said = capsys.readouterr()
        assert "sweep_summary.json" in said.out
        assert "18/18 trials" in said.err
        return tmp_path / "out"

    def test_json_is_the_summary_and_nothing_else(
        self, finished: Path, sweep_words: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        summary = (finished / "sweep_summary.json").read_text()
        for words in (["sweep", *sweep_words], ["summarize", str(finished)]):
            assert main([*words, "--json"]) == 0
            assert capsys.readouterr().out == summary

    def test_verify(self, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["verify", str(finished)]) == 0
        assert capsys.readouterr().out.startswith("PASS: ")
        path = finished / "sweep_summary.json"
        path.write_text(path.read_text().replace('"Q2_K"', '"Q3_K"', 1))
        assert main(["verify", str(finished), "--json"]) == 2
        assert json.loads(capsys.readouterr().out)["status"] == "FAIL"

    def test_summarize_mends_a_lost_summary(self, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = finished / "sweep_summary.json"
        before = path.read_bytes()
        path.unlink()
        assert main(["summarize", str(finished)]) == 0
        assert path.read_bytes() == before

    def test_report_from_a_summary(self, finished: Path, tmp_path: Path) -> None:
        target = tmp_path / "report"
        words = ["--summary", str(finished / "sweep_summary.json"), "--out-md", str(target / "r.md")]
        done = run_process(
            str(ROOT / "scripts" / "render_quant_sweep_report.py"), *words, "--out-scatter", str(target / "s.json")
        )
        assert (done.returncode, done.stderr) == (0, "")
        written = [Path(line) for line in done.stdout.splitlines()]
        assert sorted(target.iterdir()) == sorted(written)
        assert len(written) == 3
        scatter: dict[str, Any] = json.loads((target / "s.json").read_text())
        assert scatter
        assert (target / "r.md").read_text() == (finished / "sweep_report.md").read_text()
        svg = next(path for path in written if path.suffix == ".svg")
        assert svg.name in (target / "r.md").read_text()

    @pytest.mark.parametrize("command", ["verify", "summarize"])
    def test_a_folder_that_is_no_run(self, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([command, str(tmp_path)]) == 2
        assert "is not a run folder" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []


class TestBank:
    def test_schema_is_the_published_one(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["bank", "schema"]) == 0
        published = json.loads((ROOT / "benchmarks" / "task_bank" / "task_bank.schema.json").read_text())
        assert json.loads(capsys.readouterr().out) == published

    def test_validate(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        task = {"id": "a", "bucket": "logic", "tier": 2, "prompt": "1+1?", "checks": [{"kind": "number", "value": 2}]}
        proof = {"reference_answer": "2", "wrong_answers": ["3"]}
        path = tmp_path / "bank.json"
        path.write_text(json.dumps({"name": "n", "version": "1", "tasks": [task | proof]}))
        assert main(["bank", "validate", str(path)]) == 0
        assert "PASS: 1 tasks" in capsys.readouterr().out
        path.write_text(json.dumps({"name": "n", "version": "1", "tasks": [task | proof | {"reference_answer": "3"}]}))
        assert main(["bank", "validate", str(path)]) == 2
        assert "reference_answer" in capsys.readouterr().err


class TestEngineAndModels:
    def test_engine_show(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["engine", "--json"]) == 0
        assert "llama-server" in json.loads(capsys.readouterr().out)

    def test_models_list(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setenv("FEWBITS_CACHE", str(tmp_path / "cache"))
        assert main(["models", "--json"]) == 0
        rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
        assert rows["smollm2-135m"]["path"] is None
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_polite_end_keeps_the_journal_whole(number: signal.Signals, sweep_words: list[str], tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "fewbits", "sweep", *sweep_words],
        stderr=subprocess.PIPE,
        text=True,
        # a shell starts its background jobs with SIGINT ignored, and this suite may be one
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - only a system call
    )
    assert child.stderr is not None
    lines = []
    for line in child.stderr:
        lines.append(line)
        if line.lstrip().startswith("5/18 trials"):
            child.send_signal(number)
    assert child.wait(timeout=20) == 130
    assert "interrupted. What was measured is kept" in lines[-1]
    assert "Traceback" not in "".join(lines)
    data = (tmp_path / "out" / "trials.jsonl").read_bytes()
    assert data.endswith(b"\n")
    assert 5 <= len([json.loads(line) for line in data.splitlines()]) < 18
    done = run_process("-m", "fewbits", "sweep", *sweep_words)
    assert done.returncode == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "trials.jsonl").read_bytes().splitlines()]
    assert len({row["trial_id"] for row in rows}) == len(rows) == 18


def test_a_reader_that_went_away_is_no_error() -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "fewbits", "bank", "schema"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    child.stdout.close()
    assert child.stderr is not None
    said = child.stderr.read()
    child.stderr.close()
    assert (child.wait(timeout=20), said) == (0, "")
