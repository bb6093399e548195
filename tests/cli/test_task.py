"""One task, once: outcome, baseline, and what may become one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fewbits.cli.main import main

TASK = {"id": "one", "bucket": "logic", "tier": 1, "prompt": "Say one.", "checks": [{"kind": "exact", "accepted": ["1"]}]}
REPLY = {
    "text": "1",
    "prompt_tokens": 3,
    "output_tokens": 1,
    "prompt_ms": 5,
    "predicted_ms": 10,
    "wall_seconds": 0.016,
    "first_output_seconds": 0.006,
}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written(name: str, tree: object) -> str:
    Path(name).write_text(json.dumps(tree))
    return name


def words(*extra: str, reply: dict[str, Any] | None = None, task: object = TASK) -> list[str]:
    rules = [{"prompt_contains": "Say one", "replies": [reply or REPLY]}]
    script = {"schema_version": "fewbits.script.v1", "rules": rules, "default": REPLY}
    inputs = ["--task", written("task.json", task), "--script", written("script.json", script)]
    return ["task", *inputs, "--runtime", "scripted", "--model-id", "tiny", "--quant-tag", "Q8_0", *extra]


def run_json(capsys: pytest.CaptureFixture[str], *extra: str, **inputs: Any) -> tuple[int, dict[str, Any]]:
    code = main(words("--json", *extra, **inputs))
    return code, json.loads(capsys.readouterr().out)


class TestOutcome:
    def test_a_pass(self, capsys: pytest.CaptureFixture[str]) -> None:
        code, run = run_json(capsys)
        assert (code, run["outcome"], run["adherence_score"], run["test_id"]) == (0, "pass", 1.0, "one")
        assert run["determinism"] == "NOT_DETERMINABLE"
        assert (run["baseline"]["status"], run["vibe_delta"], run["vibe_delta_status"]) == ("NO_BASELINE", None, "NO_BASELINE")
        assert run["saved_baseline"] is None

    def test_a_wrong_answer_fails(self, capsys: pytest.CaptureFixture[str]) -> None:
        code, run = run_json(capsys, reply={**REPLY, "text": "2"})
        assert (code, run["outcome"], run["adherence_score"]) == (2, "fail", 0.0)

    def test_a_crash_is_an_error_and_no_pass(self, capsys: pytest.CaptureFixture[str]) -> None:
        code, run = run_json(capsys, reply={"failure": "crash"})
        assert (code, run["outcome"], run["status"]) == (2, "error", "CRASHED")
        assert run["failure"]

    def test_each_run_has_a_folder_of_its_own(self) -> None:
        assert [main(words()) for _ in range(2)] == [0, 0]
        folders = list(Path("runs/tasks/task").iterdir())
        assert len(folders) == 2
        assert all((folder / "task_run.json").is_file() for folder in folders)

    def test_one_task_of_a_bank(self, capsys: pytest.CaptureFixture[str]) -> None:
        bank = {"name": "b", "version": "1", "tasks": [TASK, {**TASK, "id": "two"}]}
        assert main(words(task=bank)) == 2
        assert "holds 2 tasks (choose one with --task-id: one, two)" in capsys.readouterr().err
        code, run = run_json(capsys, "--task-id", "two", task=bank)
        assert (code, run["test_id"]) == (0, "two")


class TestBaselines:
    def test_saved_and_compared(self, capsys: pytest.CaptureFixture[str]) -> None:
        code, first = run_json(capsys, "--save-baseline")
        assert code == 0
        assert first["saved_baseline"]["saved"] is True
        assert (first["saved_baseline"]["forced"], first["baseline"]["status"]) == (False, "NO_BASELINE")
        code, second = run_json(capsys, reply={**REPLY, "text": "2"})
        assert second["baseline"]["status"] == "OK"
        assert second["baseline"]["baseline_ref"] == first["saved_baseline"]["test_run_id"]
        assert second["baseline"]["adherence_difference"]["value"] == -1.0
        assert second["baseline"]["adherence_difference"]["low"] is None
        assert Path("orket_storage/baselines/one.json").is_file()

    def test_only_a_clean_passing_run_unless_forced(self, capsys: pytest.CaptureFixture[str]) -> None:
        wrong = {**REPLY, "text": "2"}
        code, run = run_json(capsys, "--save-baseline", reply=wrong)
        assert (code, run["saved_baseline"]["saved"], run["saved_baseline"]["refused_because"]) == (2, False, ["CHECKS_NOT_MET"])
        assert not Path("orket_storage").exists()
        _, forced = run_json(capsys, "--save-baseline", "--force", reply=wrong)
        assert (forced["saved_baseline"]["saved"], forced["saved_baseline"]["forced"]) == (True, True)
        stored = json.loads(Path("orket_storage/baselines/one.json").read_text())["history"][0]["baseline_metadata"]
        assert (stored["forced"], stored["forced_because"]) == (True, ["CHECKS_NOT_MET"])

    def test_a_changed_task_is_another_revision(self, capsys: pytest.CaptureFixture[str]) -> None:
        run_json(capsys, "--save-baseline")
        _, run = run_json(capsys, task={**TASK, "prompt": "Say 1, please."})
        assert run["baseline"]["status"] == "REV_MISMATCH"

    def test_an_unknown_reference_is_never_replaced(self, capsys: pytest.CaptureFixture[str]) -> None:
        run_json(capsys, "--save-baseline")
        _, run = run_json(capsys, "--baseline-ref", "nobody")
        assert run["baseline"]["status"] == "REF_NOT_FOUND"

    def test_a_damaged_store_stops_no_run_and_is_kept(self, capsys: pytest.CaptureFixture[str]) -> None:
        run_json(capsys, "--save-baseline")
        path = Path("orket_storage/baselines/one.json")
        half = path.read_bytes()[:100]
        path.write_bytes(half)
        code, run = run_json(capsys)
        assert (code, run["baseline"]["status"]) == (0, "STORE_UNREADABLE")
        assert main(words("--save-baseline")) == 2
        assert "left as it" in capsys.readouterr().err
        assert path.read_bytes() == half


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["--test-id", "../x"], "cannot name a test"),
        (["--test-id", ".hidden"], "cannot name a test"),
        (["--force"], "does nothing without --save-baseline"),
        (["--seed", "nan"], "--seed"),
        (["--quant-tag", "Q8_0,Q4_0"], "one model at one quantization"),
    ],
)
def test_bad_input(extra: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(*extra)) == 2
    assert said in capsys.readouterr().err
    assert not Path("orket_storage").exists()


def test_what_people_read(capsys: pytest.CaptureFixture[str]) -> None:
    main(words("--save-baseline"))
    capsys.readouterr()
    assert main(words()) == 0
    text = capsys.readouterr().out
    assert text.startswith("one · tiny Q8_0: PASS\n  answer: 1\n")
    assert "baseline OK" in text
    assert "not determinable from a single run" in text
