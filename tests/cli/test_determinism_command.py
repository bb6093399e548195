"""The determinism harness as people call it: on the scripted runtime, in this process and killed in its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from fewbits.cli.main import main
from fewbits.core.codec import decode, encode_pretty
from fewbits.records.determinism import DeterminismReport

ROOT = Path(__file__).resolve().parents[2]
TIMES = {"prompt_tokens": 3, "output_tokens": 1, "prompt_ms": 5, "predicted_ms": 10}


def answer(text: str, **changes: Any) -> dict[str, Any]:
    return {"text": text, "wall_seconds": 0.016, **TIMES} | changes


class Harness:
    """A folder with a bank of two tasks and a script; every call goes through the command line."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        self.output = folder / "results" / "report.json"
        self.run_folder = folder / "results" / "report_run"
        self.out = self.err = ""
        checks = [{"kind": "exact", "accepted": ["1"]}]
        tasks = [{"id": name, "bucket": "logic", "tier": 1, "prompt": f"Say {name}.", "checks": checks} for name in ("a", "b")]
        (folder / "bank.json").write_text(json.dumps({"name": "tiny", "version": "1", "tasks": tasks}))
        self.script()

    def script(self, **replies: list[dict[str, Any]]) -> None:
        """Write a script; by task, the replies in turn."""
        rules = [{"prompt_contains": f"Say {task}.", "replies": given} for task, given in replies.items()]
        document = {"schema_version": "fewbits.script.v1", "rules": rules, "default": answer("1")}
        (self.folder / "script.json").write_text(json.dumps(document))

    def words(self, *words: str) -> list[str]:
        return [
            *("--model-id", "tiny", "--quant-tag", "Q8_0", "--runtime", "scripted", "--script", str(self.folder / "script.json")),
            *("--task-bank", str(self.folder / "bank.json"), "--output", str(self.output), *words),
        ]

    def run(self, *words: str) -> int:
        code = main(["determinism", *self.words(*words)])
        captured = self._capsys.readouterr()
        self.out, self.err = captured.out, captured.err
        return code

    def report(self) -> DeterminismReport:
        return decode(self.output.read_bytes(), DeterminismReport, str(self.output))

    def journal(self) -> bytes:
        return (self.run_folder / "trials.jsonl").read_bytes()

    def shelved(self) -> list[int]:
        """Trials in each run that was set aside, oldest first."""
        shelves = sorted((self.run_folder / "superseded").glob("*"))
        return [(shelf / "trials.jsonl").read_bytes().count(b"\n") for shelf in shelves]


@pytest.fixture
def harness(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Harness:
    return Harness(tmp_path, capsys)


class TestAnswers:
    def test_what_repeats_passes(self, harness: Harness) -> None:
        assert harness.run() == 0
        assert harness.out == "determinism: PASS\n  PASS determinism · a, b: 5 runs gave the same answer\n"
        assert f"2 of 2 determinable tasks repeat (100.0%); {harness.output}" in harness.err
        report = harness.report()
        assert (report.runs_per_task, report.determinism_rate, len(report.test_runs)) == (5, 1.0, 10)
        assert (report.model_id, report.quant_tag, report.engine) == ("tiny", "Q8_0", "scripted")
        assert harness.output.read_bytes() == encode_pretty(report)

    def test_differing_answers_fail_and_show_where(self, harness: Harness) -> None:
        harness.script(b=[answer("the sum is 4"), answer("the sum is 4"), answer("the sum is 5")])
        assert harness.run("--runs", "3") == 2
        assert "FAIL determinism OUTPUT_DIFFERS · b: 2 different answers in 3 runs" in harness.out
        assert "after 11 characters: '4' and '5'" in harness.out
        assert "PASS determinism · a" in harness.out
        place = harness.report().tasks[1].first_divergence
        assert place is not None
        assert (place.channel, place.position, place.first, place.second) == ("output_text", 11, "4", "5")

    def test_a_single_run_is_skipped(self, harness: Harness) -> None:
        assert harness.run("--runs", "1") == 3
        assert "SKIP determinism NOT_DETERMINABLE · a, b" in harness.out
        assert "0 of 0 determinable tasks repeat (not determinable)" in harness.err
        assert harness.report().determinism_rate is None
        assert harness.run("--runs", "1", "--allow-skip") == 0

    def test_identical_crashes_fail(self, harness: Harness) -> None:
        harness.script(a=[{"failure": "crash"}])
        assert harness.run("--runs", "2") == 2
        assert "FAIL determinism FAILED_RUNS · a: 2 of 2 runs gave no answer" in harness.out
        report = harness.report()
        assert [(task.deterministic, task.unique_outputs) for task in report.tasks] == [(None, 0), (True, 1)]
        assert (report.determinable_tasks, report.failed_runs) == (1, 2)

    def test_an_engine_that_keeps_dying_ends_the_run_and_its_crashes_are_kept(self, harness: Harness) -> None:
        harness.script(a=[{"failure": "crash"}])
        assert harness.run("--task-limit", "1", "--runs", "9") == 1
        assert "crashed 5 times in a row" in harness.err
        assert not harness.output.exists()
        assert harness.journal().count(b"\n") == 5

    def test_selected_tasks_only(self, harness: Harness) -> None:
        assert harness.run("--task-limit", "1", "--runs", "2") == 0
        assert [task.test_id for task in harness.report().tasks] == ["a"]
        assert harness.run("--task-id-min", "b", "--runs", "2") == 0
        assert [task.test_id for task in harness.report().tasks] == ["b"]

    def test_the_canary_pattern(self, harness: Harness) -> None:
        assert harness.run("--task-limit", "1", "--runs", "10", "--canary") == 0
        canary = harness.report().canary
        assert canary is not None
        assert (canary.passed, canary.runs_requested, canary.task_id) == (True, 10, "a")
        assert "PASS canary · a: latency varies by 0 %, limit 3 %" in harness.out

    def test_an_unsteady_canary_fails(self, harness: Harness) -> None:
        harness.script(a=[answer("1"), answer("1", predicted_ms=20, wall_seconds=0.026)])
        words = ("--task-limit", "1", "--runs", "10")
        assert harness.run(*words) == 0
        assert harness.run(*words, "--canary") == 2
        assert "LATENCY_VARIANCE_THRESHOLD_EXCEEDED" in harness.out
        assert harness.run(*words, "--canary", "--canary-latency-variance-threshold", "0.9") == 0

    def test_a_canary_over_several_tasks_is_skipped_with_what_to_do(self, harness: Harness) -> None:
        assert harness.run("--canary") == 3
        assert "--task-limit 1 --runs 10" in harness.out

    def test_the_gates_own_report(self, harness: Harness) -> None:
        out, junit = harness.folder / "gate.json", harness.folder / "gate.xml"
        assert harness.run("--json", "--out", str(out), "--junit", str(junit)) == 0
        assert harness.out == out.read_text()
        gate = json.loads(harness.out)
        assert (gate["gate"], gate["status"], gate["thresholds"]) == ("determinism", "PASS", {"runs_per_task": 5.0})
        assert ET.parse(junit).getroot().get("tests") == "2"


class TestAgain:
    def test_a_finished_run_is_set_aside_and_measured_anew(self, harness: Harness) -> None:
        assert harness.run() == 0
        first = harness.journal()
        assert harness.run() == 0
        assert harness.shelved() == [10]
        assert (harness.run_folder / "superseded" / "1" / "trials.jsonl").read_bytes() == first
        second = harness.journal()
        assert second.count(b"\n") == 10
        assert second != first
        assert "superseded" in harness.err
        harness.script(a=[answer("1"), answer("2")])
        assert harness.run() == 2
        assert harness.shelved() == [10, 10]

    def start(self, harness: Harness, *words: str) -> subprocess.Popen[str]:
        """Start a slow run as a process of its own."""
        slow = [answer("1", wall_seconds=None, delay_seconds=0.03)]
        harness.script(a=slow, b=slow)
        command = [sys.executable, "-m", "fewbits", "determinism", *harness.words(*words)]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    def kill_half_way(self, harness: Harness, *words: str) -> bytes:
        """Kill it after a few trials; returns the whole rows of its journal."""
        child = self.start(harness, *words)
        assert child.stderr is not None
        for line in child.stderr:
            if (found := re.match(r"\s+(\d+)/\d+ trials", line)) and int(found[1]) >= 2:
                child.send_signal(signal.SIGKILL)
                break
        child.communicate(timeout=20)
        assert child.returncode == -signal.SIGKILL
        kept = harness.journal()
        whole = kept[: kept.rfind(b"\n") + 1]
        assert 2 <= whole.count(b"\n") < 20
        assert not harness.output.exists()
        return whole

    def test_a_killed_run_is_gone_on_with(self, harness: Harness) -> None:
        whole = self.kill_half_way(harness, "--runs", "10")
        assert harness.run("--runs", "10") == 0
        assert harness.journal().startswith(whole)
        assert harness.journal().count(b"\n") == 20
        assert harness.shelved() == []
        report = harness.report()
        assert sorted((run.test_id, run.run_index) for run in report.test_runs) == [(t, n) for t in "ab" for n in range(10)]

    def test_unless_it_is_asked_to_start_over(self, harness: Harness) -> None:
        whole = self.kill_half_way(harness, "--runs", "10")
        assert harness.run("--runs", "10", "--fresh") == 0
        assert not harness.journal().startswith(whole)
        assert harness.shelved() == [whole.count(b"\n")]

    def test_an_unfinished_run_of_another_plan_is_set_aside_not_mixed_in(self, harness: Harness) -> None:
        whole = self.kill_half_way(harness, "--runs", "10")
        assert harness.run("--runs", "3") == 0
        assert harness.shelved() == [whole.count(b"\n")]
        assert harness.journal().count(b"\n") == 6
        assert harness.report().runs_per_task == 3

    def test_more_runs_than_before_are_measured_anew(self, harness: Harness) -> None:
        assert harness.run("--runs", "2") == 0
        assert harness.run("--runs", "4") == 0
        assert harness.shelved() == [4]
        assert len(harness.report().test_runs) == 8

    def test_a_damaged_journal_is_refused(self, harness: Harness) -> None:
        assert harness.run() == 0
        report = harness.output.read_bytes()
        lines = harness.journal().splitlines(keepends=True)
        lines[3] = lines[3][:50] + b"\n"
        (harness.run_folder / "trials.jsonl").write_bytes(b"".join(lines))
        assert harness.run() == 2
        assert "trials.jsonl:4" in harness.err
        assert harness.journal() == b"".join(lines)
        assert harness.output.read_bytes() == report


class TestBadInput:
    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (("--model-id", "tiny,other"), "--quant-tag"),
            (("--quant-tag", "Q8_0,Q4_0"), "--quant-tag"),
            (("--runs", "0"), "--runs"),
            (("--runs", "nan"), "--runs"),
            (("--runs", "-5"), "--runs"),
            (("--task-limit", "-1"), "--task-limit"),
            (("--task-id-min", "z"), "task"),
            (("--bucket", "poetry"), "poetry"),
            (("--canary-latency-variance-threshold", "nan"), "--canary-latency-variance-threshold"),
            (("--task-bank", "none.json"), "none.json"),
            (("--runtime", "abacus"), "abacus"),
            (("--temperature", "inf"), "--temperature"),
        ],
    )
    def test_one_message_and_nothing_written(self, harness: Harness, words: tuple[str, ...], says: str) -> None:
        assert harness.run(*words) == 2
        assert says in harness.err
        assert harness.out == ""
        assert not harness.run_folder.exists()

    @pytest.mark.parametrize("output", [".", "..", "/"])
    def test_a_folder_as_the_report(self, harness: Harness, output: str) -> None:
        assert harness.run("--output", output) == 2
        assert "--output" in harness.err
        assert not harness.run_folder.exists()

    def test_a_file_where_the_runs_folder_belongs(self, harness: Harness) -> None:
        harness.run_folder.parent.mkdir()
        harness.run_folder.write_text("mine")
        assert harness.run() == 2
        assert harness.run_folder.read_text() == "mine"


class TestDryRun:
    def test_it_shows_the_plan_and_touches_nothing(self, harness: Harness) -> None:
        before = sorted(harness.folder.rglob("*"))
        assert harness.run("--dry-run", "--json", "--runs", "7") == 0
        document = json.loads(harness.out)["dry_run"]
        assert "7" in json.dumps(document)
        assert str(harness.run_folder) in json.dumps(document)
        assert sorted(harness.folder.rglob("*")) == before


class TestScript:
    @pytest.fixture
    def elsewhere(self, tmp_path: Path) -> Path:
        folder = tmp_path / "elsewhere"
        folder.mkdir()
        return folder

    def call(self, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "scripts" / "run_determinism_harness.py"), *words]
        return subprocess.run(command, cwd=folder, env=os.environ, capture_output=True, text=True, timeout=60, check=False)

    def test_it_works_from_another_folder(self, harness: Harness, elsewhere: Path) -> None:
        for name in ("bank.json", "script.json"):
            (harness.folder / name).rename(elsewhere / name)
        words = ["--runtime", "scripted", "--script", "script.json", "--task-bank", "bank.json", "--model-id", "tiny"]
        done = self.call(elsewhere, *words, "--runs", "2", "--output", "mine/report.json")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("determinism: PASS\n")
        assert decode((elsewhere / "mine" / "report.json").read_bytes(), DeterminismReport, "report").deterministic_tasks == 2
        assert sorted(path.name for path in elsewhere.iterdir()) == ["bank.json", "mine", "script.json"]

    def test_its_default_bank_is_found_from_anywhere(self, harness: Harness, elsewhere: Path) -> None:
        words = ["--runtime", "scripted", "--script", str(harness.folder / "script.json"), "--model-id", "tiny"]
        done = self.call(elsewhere, *words, "--task-limit", "3", "--dry-run", "--json")
        assert done.returncode == 0, done.stderr
        assert "v2_realworld" in done.stdout
        assert "benchmarks/results/determinism_report_run" in done.stdout
        assert list(elsewhere.iterdir()) == []
