"""Whole sweeps on the scripted runtime: what is written, and that nothing is lost, doubled or mixed."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fewbits.api import PreparedSweep, build_summary, prepare_sweep, run_sweep, summary_path_of, verify_run, write_results
from fewbits.core.codec import encode_pretty
from fewbits.core.errors import BackendError, CanaryBlockedError, IdentityError, SpecError, StoreError
from fewbits.records.base import TrialStatus
from fewbits.records.summary import CanaryBlock, SweepSummary
from fewbits.records.trial import Trial
from fewbits.store.run_directory import RunDirectory
from fewbits.sweep.plan import planned_trials
from fewbits.sweep.progress import SilentObserver

QUANTS = ("Q8_0", "Q4_K_M", "Q2_K")
ANSWERS = {"alpha": "11", "beta": "22", "gamma": "33"}
TIMES: dict[str, Any] = {
    "prompt_tokens": 9,
    "output_tokens": 2,
    "prompt_ms": 8.0,
    "predicted_ms": 12.0,
    "wall_seconds": 0.0201,
    "first_output_seconds": 0.009,
}
"""Declared, so no trial waits: its telemetry is complete and steady."""

QUIET = ("--canary-runs", "0", "--selection-policy", "threshold-v1", "--rerun-budget-ratio", "0")

Prepare = Callable[..., PreparedSweep]


def answer(text: str, **changes: Any) -> dict[str, Any]:
    return {"text": text} | TIMES | changes


def failing(kind: str) -> dict[str, Any]:
    return {"failure": kind}


def rule(name: str, *replies: dict[str, Any], schemes: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"prompt_contains": f"Say {name}.", "replies": list(replies), "schemes": list(schemes)}


def good_rules() -> list[dict[str, Any]]:
    """The largest variant knows all, the smallest one misses one task."""
    return [rule("gamma", answer("0"), schemes=("Q2_K",)), *(rule(name, answer(text)) for name, text in ANSWERS.items())]


def write_inputs(folder: Path, rules: list[dict[str, Any]], **script: Any) -> dict[str, object]:
    """Write a bank and a script; return the flags that use them."""
    tasks = [
        {"id": name, "bucket": "logic", "tier": 1, "prompt": f"Say {name}.", "checks": [{"kind": "exact", "accepted": [text]}]}
        for name, text in ANSWERS.items()
    ]
    (folder / "bank.json").write_text(json.dumps({"name": "tiny", "version": "1", "tasks": tasks}))
    sizes = {tag: {"bytes": 1000 - 300 * n, "bits_per_weight": 8.5 - 2.5 * n} for n, tag in enumerate(QUANTS)}
    whole = {"schema_version": "fewbits.script.v1", "variants": sizes, "rules": rules, "default": answer("hello")} | script
    (folder / "script.json").write_text(json.dumps(whole))
    return {
        "models": ["tiny"],
        "quants": list(QUANTS),
        "runtime": "scripted",
        "script": str(folder / "script.json"),
        "task_bank": str(folder / "bank.json"),
        "runs_per_quant": "2",
        "canary_runs": "4",
        "selection_policy": "threshold-v1",
        "rerun_budget_ratio": "0",  # these tests share the machine with others
        "out_dir": str(folder / "out"),
    }


@pytest.fixture
def prepare(tmp_path: Path) -> Prepare:
    def make(rules: list[dict[str, Any]] | None = None, script: dict[str, Any] | None = None, **flags: object) -> PreparedSweep:
        return prepare_sweep(write_inputs(tmp_path, good_rules() if rules is None else rules, **(script or {})) | flags, None)

    return make


class Recorder(SilentObserver):
    """Remembers what it heard, and interrupts after `stop_after` trials of the matrix."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.notices: list[str] = []
        self.canaries: list[CanaryBlock] = []
        self.matrix: tuple[int, int] | None = None
        self.trials: list[Trial] = []
        self._stop_after = stop_after

    def notice(self, message: str) -> None:
        self.notices.append(message)

    def canary_ended(self, verdict: CanaryBlock) -> None:
        self.canaries.append(verdict)

    def matrix_started(self, total: int, done: int) -> None:
        self.matrix = (total, done)

    def trial_ended(self, trial: Trial) -> None:
        if trial.phase != "matrix":
            return
        self.trials.append(trial)
        if len(self.trials) == self._stop_after:
            raise KeyboardInterrupt


def rows_of(directory: RunDirectory) -> list[dict[str, Any]]:
    return [json.loads(line) for line in directory.trials_path.read_bytes().splitlines()]


def cells(rows: list[dict[str, Any]]) -> list[tuple[str, str, str, int]]:
    return [(row["model_id"], row["quant_tag"], row["task_id"], row["repetition"]) for row in rows]


def assert_each_planned_cell_once(prepared: PreparedSweep) -> None:
    assert sorted(cells(rows_of(prepared.directory))) == sorted(cell.key for cell in planned_trials(prepared.plan))


class TestComplete:
    def test_everything_is_written_and_recommends(self, prepare: Prepare) -> None:
        prepared, heard = prepare(), Recorder()
        summary = run_sweep(prepared, heard)
        root = prepared.directory.root
        names = {"plan.json", "canary.jsonl", "trials.jsonl", "sweep_summary.json", "sweep_report.md", "sweep_scatter.json"}
        assert names <= {path.name for path in root.iterdir()}
        assert len(list((root / "manifests").glob("*/*.json"))) == len(QUANTS)
        assert list(root.glob("sweep_frontier_*.svg"))
        assert not list(root.glob("**/*.part"))
        assert_each_planned_cell_once(prepared)
        assert heard.matrix == (18, 0)
        assert [verdict.passed for verdict in heard.canaries] == [True]
        (session,) = summary.sessions
        means = {row.quant_tag: row.adherence_score for row in session.per_quant}
        assert means == {"Q8_0": 1.0, "Q4_K_M": 1.0, "Q2_K": pytest.approx(2 / 3, abs=1e-6)}
        assert session.recommendation_detail.minimum_viable_quant == "Q4_K_M"

    def test_without_a_canary_the_summary_says_so(self, prepare: Prepare) -> None:
        prepared = prepare(canary_runs="0")
        assert run_sweep(prepared, SilentObserver()).canary.enabled is False
        assert not prepared.directory.canary_path.exists()

    def test_verify_passes_and_sees_one_changed_digit(self, prepare: Prepare) -> None:
        prepared = prepare()
        run_sweep(prepared, SilentObserver())
        assert verify_run(prepared.directory)[0]
        path = prepared.directory.summary_path
        text = path.read_text()
        digit = re.search(r"0\.\d*[1-8]", text)
        assert digit is not None
        end = digit.end()
        path.write_text(text[: end - 1] + str(int(text[end - 1]) + 1) + text[end:])
        same, evidence = verify_run(prepared.directory)
        assert not same
        assert f"line {text[:end].count(chr(10)) + 1}" in evidence

    def test_a_moved_run_carries_its_summary_along(self, prepare: Prepare, tmp_path: Path) -> None:
        prepared = prepare()
        before = encode_pretty(run_sweep(prepared, SilentObserver()))
        moved = RunDirectory(tmp_path / "elsewhere" / "run")
        moved.root.parent.mkdir()
        shutil.move(prepared.directory.root, moved.root)
        assert verify_run(moved)[0]
        assert encode_pretty(write_results(moved)) == before
        assert summary_path_of(moved) == moved.summary_path
        assert not prepared.directory.root.exists()

    def test_the_order_of_journal_lines_does_not_matter(self, prepare: Prepare) -> None:
        prepared = prepare()
        before = encode_pretty(run_sweep(prepared, SilentObserver()))
        for path in (prepared.directory.trials_path, prepared.directory.canary_path):
            lines = path.read_bytes().splitlines(keepends=True)
            shuffled = random.Random(7).sample(lines, len(lines))
            assert shuffled != lines
            path.write_bytes(b"".join(shuffled))
        assert encode_pretty(build_summary(prepared.directory)) == before


class TestResume:
    def test_a_finished_run_is_left_alone(self, prepare: Prepare) -> None:
        prepared = prepare()
        first = encode_pretty(run_sweep(prepared, SilentObserver()))
        journals = (prepared.directory.trials_path, prepared.directory.canary_path)
        before = [path.read_bytes() for path in journals]
        heard = Recorder()
        assert encode_pretty(run_sweep(prepare(), heard)) == first
        assert [path.read_bytes() for path in journals] == before
        assert (heard.matrix, heard.trials, heard.canaries) == ((18, 18), [], [])

    @pytest.mark.parametrize("finished", [1, 7, 17])
    def test_interrupted_anywhere_and_resumed(self, prepare: Prepare, finished: int) -> None:
        prepared = prepare()
        with pytest.raises(KeyboardInterrupt):
            run_sweep(prepared, Recorder(stop_after=finished))
        kept = prepared.directory.trials_path.read_bytes()
        assert kept.count(b"\n") == finished
        canary = prepared.directory.canary_path.read_bytes()
        heard = Recorder()
        run_sweep(prepare(), heard)
        assert heard.matrix == (18, finished)
        assert heard.canaries == []
        assert prepared.directory.canary_path.read_bytes() == canary
        assert prepared.directory.trials_path.read_bytes().startswith(kept)
        assert_each_planned_cell_once(prepared)

    def test_interrupted_runs_are_summarised_as_far_as_they_went(self, prepare: Prepare) -> None:
        prepared = prepare()
        with pytest.raises(KeyboardInterrupt):
            run_sweep(prepared, Recorder(stop_after=5))
        write_results(prepared.directory)
        assert verify_run(prepared.directory)[0]

    def test_a_torn_last_line_is_run_again(self, prepare: Prepare) -> None:
        prepared = prepare()
        run_sweep(prepared, SilentObserver())
        data = prepared.directory.trials_path.read_bytes()
        prepared.directory.trials_path.write_bytes(data[:-40])
        heard = Recorder()
        run_sweep(prepare(), heard)
        assert heard.matrix == (18, 17)
        assert_each_planned_cell_once(prepared)

    def test_damage_in_the_middle_is_refused_with_its_line(self, prepare: Prepare) -> None:
        prepared = prepare()
        run_sweep(prepared, SilentObserver())
        lines = prepared.directory.trials_path.read_bytes().splitlines(keepends=True)
        lines[3] = lines[3][:50] + b"\n"
        prepared.directory.trials_path.write_bytes(b"".join(lines))
        with pytest.raises(StoreError, match=r"trials\.jsonl:4"):
            run_sweep(prepare(), SilentObserver())

    @pytest.mark.parametrize("attempt", range(3))
    def test_killed_at_a_random_moment(self, tmp_path: Path, attempt: int) -> None:
        slow = {"wall_seconds": None, "first_output_seconds": None, "delay_seconds": 0.02}
        flags = write_inputs(tmp_path, [rule(name, answer(text, **slow)) for name, text in ANSWERS.items()])
        flags["canary_runs"] = "0"
        words = ["--model-id", "tiny", "--quant-tags", ",".join(QUANTS), "--runtime", "scripted", "--runs", "2"]
        words += [
            "--script",
            str(flags["script"]),
            "--task-bank",
            str(flags["task_bank"]),
            "--out-dir",
            str(flags["out_dir"]),
        ]
        child = subprocess.Popen([sys.executable, "-m", "fewbits", "sweep", *words, *QUIET], stderr=subprocess.PIPE, text=True)
        assert child.stderr is not None
        said, moment = 0, random.Random(attempt).randrange(1, 12)
        for line in child.stderr:
            if found := re.match(r"\s+(\d+)/18 trials", line):
                said = int(found[1])
            if said == moment:
                child.send_signal(signal.SIGKILL)
        assert child.wait(timeout=20) == -signal.SIGKILL
        prepared = prepare_sweep(flags, None)
        kept = prepared.directory.trials_path.read_bytes()
        whole = kept[: kept.rfind(b"\n") + 1]
        assert said <= whole.count(b"\n") < 18
        run_sweep(prepared, SilentObserver())
        assert prepared.directory.trials_path.read_bytes().startswith(whole)
        assert_each_planned_cell_once(prepared)
        assert verify_run(prepared.directory)[0]

    def test_another_plan_is_refused_and_fresh_keeps_the_old_run(self, prepare: Prepare) -> None:
        prepared = prepare()
        run_sweep(prepared, SilentObserver())
        root = prepared.directory.root
        old = {name: (root / name).read_bytes() for name in ("plan.json", "trials.jsonl", "canary.jsonl", "sweep_summary.json")}
        with pytest.raises(StoreError, match=r"controls\.seed: 1337 -> 7") as caught:
            run_sweep(prepare(seed="7"), SilentObserver())
        assert "--fresh" in str(caught.value)
        assert {name: (root / name).read_bytes() for name in old} == old
        heard = Recorder()
        run_sweep(prepare(seed="7"), heard, fresh=True)
        assert heard.matrix == (18, 0)
        assert any("superseded" in notice for notice in heard.notices)
        assert {name: (root / "superseded" / "1" / name).read_bytes() for name in old} == old
        assert verify_run(prepared.directory)[0]

    def test_another_script_is_another_engine_and_refused(self, prepare: Prepare) -> None:
        run_sweep(prepare(), SilentObserver())
        with pytest.raises(StoreError, match="is not what the run in"):
            run_sweep(prepare([rule(name, answer("5")) for name in ANSWERS]), SilentObserver())

    def test_a_journal_without_a_plan_is_refused(self, prepare: Prepare) -> None:
        prepared = prepare()
        run_sweep(prepared, SilentObserver())
        prepared.directory.plan_path.unlink()
        before = prepared.directory.trials_path.read_bytes()
        with pytest.raises(StoreError, match=r"no plan\.json"):
            run_sweep(prepare(), SilentObserver())
        assert prepared.directory.trials_path.read_bytes() == before

    def test_two_sweeps_in_one_folder(self, prepare: Prepare) -> None:
        prepared = prepare()

        class Intruder(SilentObserver):
            refusals = 0

            def matrix_started(self, total: int, done: int) -> None:
                with pytest.raises(StoreError, match="in use by another sweep"):
                    run_sweep(prepare(), SilentObserver())
                self.refusals += 1

        intruder = Intruder()
        run_sweep(prepared, intruder)
        assert intruder.refusals == 1
        assert_each_planned_cell_once(prepared)


class TestFailures:
    @pytest.mark.parametrize(
        ("kind", "status"),
        [
            ("hang", TrialStatus.TIMEOUT),
            ("crash", TrialStatus.CRASHED),
            ("garbage", TrialStatus.PROTOCOL_ERROR),
            ("empty", TrialStatus.EMPTY),
        ],
    )
    def test_one_failure_scores_zero_stays_in_the_mean_and_goes_on(
        self, prepare: Prepare, monkeypatch: pytest.MonkeyPatch, kind: str, status: TrialStatus
    ) -> None:
        from fewbits.runtimes.scripted.runtime import ScriptedRuntime

        opened: list[str] = []
        open_session = ScriptedRuntime.open

        def counting(self: ScriptedRuntime, variant: Any, *rest: Any) -> Any:
            opened.append(variant.artifact.scheme)
            return open_session(self, variant, *rest)

        monkeypatch.setattr(ScriptedRuntime, "open", counting)
        broken = rule("beta", failing(kind), answer("22"), schemes=("Q4_K_M",))
        prepared, heard = prepare([broken, *good_rules()], canary_runs="0", trial_timeout_seconds="0.05"), Recorder()
        summary = run_sweep(prepared, heard)
        assert_each_planned_cell_once(prepared)
        failed = [row for row in rows_of(prepared.directory) if row["status"] != "OK"]
        assert [(row["status"], row["adherence_score"], row["quant_tag"], row["task_id"]) for row in failed] == [
            (status.value, 0.0, "Q4_K_M", "beta")
        ]
        assert failed[0]["failure"]
        means = {row.quant_tag: row.adherence_score for row in summary.sessions[0].per_quant}
        assert means["Q4_K_M"] == pytest.approx(5 / 6, abs=1e-6)
        assert means["Q8_0"] == 1.0
        restarted = kind != "empty"
        assert sorted(opened) == sorted([*QUANTS, *(["Q4_K_M"] if restarted else [])])
        assert any("restarted" in notice for notice in heard.notices) is restarted

    def test_five_crashes_in_a_row_stop_and_the_next_run_goes_on(self, prepare: Prepare) -> None:
        def crashing(task: str) -> dict[str, Any]:
            return rule(task, failing("crash"), schemes=("Q4_K_M",))

        prepared = prepare([*map(crashing, ANSWERS), *good_rules()], canary_runs="0")
        with pytest.raises(BackendError, match="Q4_K_M of tiny crashed 5 times in a row"):
            run_sweep(prepared, SilentObserver())
        statuses = [row["status"] for row in rows_of(prepared.directory)]
        assert statuses.count("CRASHED") == 5
        assert statuses[-1] == "CRASHED"
        run_sweep(prepare([*map(crashing, ANSWERS), *good_rules()], canary_runs="0"), SilentObserver())
        assert_each_planned_cell_once(prepared)

    def test_crashes_that_others_separate_do_not_add_up(self, prepare: Prepare) -> None:
        rules = [rule(name, failing("crash"), answer(text), schemes=("Q4_K_M",)) for name, text in ANSWERS.items()]
        prepared = prepare([*rules, *good_rules()], canary_runs="0", runs_per_quant="4")
        run_sweep(prepared, SilentObserver())
        statuses = [row["status"] for row in rows_of(prepared.directory)]
        assert statuses.count("CRASHED") == 6

    def test_an_answer_under_another_name_stops_the_sweep(self, prepare: Prepare) -> None:
        rules = [rule("alpha", answer("11"), failing("wrong_model"), schemes=("Q8_0",)), *good_rules()]
        prepared = prepare(rules, canary_runs="0")
        heard = Recorder()
        with pytest.raises(IdentityError, match="not-tiny"):
            run_sweep(prepared, heard)
        rows = rows_of(prepared.directory)
        assert len(rows) == len(heard.trials) > 0
        assert all(row["served"]["served_name"] == "tiny" for row in rows)
        assert not prepared.directory.summary_path.exists()

    def test_an_engine_that_serves_something_else_runs_nothing(self, prepare: Prepare) -> None:
        prepared = prepare(script={"served_name": "impostor"})
        with pytest.raises(IdentityError, match="impostor"):
            run_sweep(prepared, SilentObserver())
        assert not prepared.directory.trials_path.exists()

    def test_a_model_that_never_loads(self, prepare: Prepare) -> None:
        with pytest.raises(BackendError, match="no memory left"):
            run_sweep(prepare(script={"load_failure": "no memory left"}), SilentObserver())

    @pytest.mark.parametrize(
        ("kind", "says"), [("crash", "3 attempts failed"), ("hang", "no answer within"), ("garbage", "not a chat completion")]
    )
    def test_a_model_that_fails_in_its_warm_up_is_named(self, prepare: Prepare, kind: str, says: str) -> None:
        prepared = prepare(script={"default": failing(kind)}, trial_timeout_seconds="0.05")
        with pytest.raises(BackendError, match=says) as caught:
            run_sweep(prepared, SilentObserver())
        assert "of tiny could not be made ready" in str(caught.value)
        assert not prepared.directory.trials_path.exists()

    def test_a_warm_up_that_dies_once_is_tried_again(self, prepare: Prepare) -> None:
        rules = [{"prompt_contains": "Say hello", "replies": [failing("crash"), answer("hi"), answer("hi")]}, *good_rules()]
        prepared = prepare(rules)
        run_sweep(prepared, SilentObserver())
        assert {row["status"] for row in rows_of(prepared.directory)} == {"OK"}


UNSTEADY = {
    "adherence": ([answer("11"), answer("12")], "ADHERENCE_VARIANCE_NON_ZERO"),
    "latency": ([answer("11"), answer("11", predicted_ms=90.0, wall_seconds=0.1)], "LATENCY_VARIANCE_THRESHOLD_EXCEEDED"),
    "telemetry": ([answer("11", output_tokens=None)], "MISSING_TELEMETRY_RATE_EXCEEDED"),
    "failure": ([answer("11"), failing("crash")], "FAILED_TRIALS"),
}


class TestCanary:
    @pytest.mark.parametrize("case", UNSTEADY)
    def test_it_blocks_and_says_what_to_do(self, prepare: Prepare, case: str) -> None:
        replies, reason = UNSTEADY[case]
        prepared, heard = prepare([rule("alpha", *replies), *good_rules()], canary_task_id="alpha"), Recorder()
        with pytest.raises(CanaryBlockedError, match=reason) as caught:
            run_sweep(prepared, heard)
        assert "\n  - " in str(caught.value)
        assert [verdict.passed for verdict in heard.canaries] == [False]
        assert heard.trials == []
        assert not prepared.directory.trials_path.exists()
        assert prepared.directory.canary_path.read_bytes().count(b"\n") == 4

    def test_a_failed_gate_is_run_anew(self, prepare: Prepare) -> None:
        turns = [answer("11"), answer("12"), answer("11"), answer("11")]
        rules = [rule("alpha", *turns, *[answer("11")] * 40), *good_rules()]
        prepared, heard = prepare(rules, canary_task_id="alpha"), Recorder()
        with pytest.raises(CanaryBlockedError):
            run_sweep(prepared, heard)
        # the same runtime goes on in its script, as a machine that has calmed down
        run_sweep(prepared, heard)
        assert [verdict.passed for verdict in heard.canaries] == [False, True]
        assert prepared.directory.canary_path.read_bytes().count(b"\n") == 4

    def test_too_few_repeats_cannot_pass(self, prepare: Prepare) -> None:
        with pytest.raises(SpecError, match="--canary-runs: 3 repeats leave 2"):
            prepare(canary_runs="3")


def test_a_full_disk_leaves_whole_rows(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare(canary_runs="0")
    real_write, calls = os.write, [0]

    def filling(descriptor: int, data: bytes) -> int:
        calls[0] += data.startswith(b"{")
        return real_write(descriptor, data[:100] if calls[0] == 4 else data)

    monkeypatch.setattr(os, "write", filling)
    with pytest.raises(StoreError, match="disk is full"):
        run_sweep(prepared, SilentObserver())
    monkeypatch.undo()
    data = prepared.directory.trials_path.read_bytes()
    assert data.endswith(b"\n")
    assert len(rows_of(prepared.directory)) == 3
    summary: SweepSummary = run_sweep(prepare(canary_runs="0"), SilentObserver())
    assert summary.sessions
    assert_each_planned_cell_once(prepared)
