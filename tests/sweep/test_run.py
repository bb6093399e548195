"""The run loop, end to end on the scripted runtime: every way a trial can go, every way a sweep can stop."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest_sweep import GOOD, WORDS, Prepare, answers

from fewbits.api import build_summary, run_sweep, verify_run
from fewbits.core.codec import encode_pretty
from fewbits.core.errors import BackendError, CanaryBlockedError, IdentityError, StoreError
from fewbits.records.trial import Trial
from fewbits.store.journal import read_journal
from fewbits.store.run_directory import RunDirectory
from fewbits.sweep.progress import SilentObserver


def rows_of(directory: RunDirectory) -> list[Trial]:
    return list(read_journal(directory.trials_path, Trial).rows)


def cells_of(directory: RunDirectory) -> list[tuple[str, str, int]]:
    return [(row.quant_tag, row.task_id, row.repetition) for row in rows_of(directory)]


class StopAfter(SilentObserver):
    """Presses Ctrl-C after so many trials."""

    def __init__(self, trials: int) -> None:
        self.left = trials

    def trial_ended(self, trial: Trial) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def test_a_whole_run_writes_everything_and_a_second_one_changes_nothing(prepare: Prepare) -> None:
    prepared = prepare(runs_per_quant=2)
    summary = run_sweep(prepared, SilentObserver())
    directory = prepared.directory
    for path in (
        directory.plan_path,
        directory.trials_path,
        directory.summary_path,
        directory.report_path,
        directory.scatter_path,
    ):
        assert path.stat().st_size > 0
    assert len(set(cells_of(directory))) == len(cells_of(directory)) == 2 * len(WORDS) * 2
    assert summary.complete
    assert summary.sessions[0].per_quant[0].adherence_score == 1.0
    before = directory.trials_path.read_bytes(), directory.summary_path.read_bytes()
    run_sweep(prepare(runs_per_quant=2), SilentObserver())
    assert (directory.trials_path.read_bytes(), directory.summary_path.read_bytes()) == before


def test_an_interrupted_run_goes_on_where_it_stopped(prepare: Prepare) -> None:
    prepared = prepare()
    with pytest.raises(KeyboardInterrupt):
        run_sweep(prepared, StopAfter(3))
    assert len(rows_of(prepared.directory)) == 3
    assert not build_summary(prepared.directory).complete
    run_sweep(prepare(), SilentObserver())
    assert sorted(cells_of(prepared.directory)) == sorted(
        (quant, f"say-{word}", 0) for quant in ("F16", "Q8_0") for word in WORDS
    )


def test_another_plan_refuses_to_mix_and_fresh_keeps_the_old_run(prepare: Prepare) -> None:
    first = prepare()
    run_sweep(first, SilentObserver())
    old = first.directory.trials_path.read_bytes()
    with pytest.raises(StoreError, match=r"controls\.seed: 1337 -> 7"):
        run_sweep(prepare(seed=7), SilentObserver())
    assert first.directory.trials_path.read_bytes() == old
    run_sweep(prepare(seed=7), SilentObserver(), fresh=True)
    assert (first.directory.root / "superseded" / "1" / "trials.jsonl").read_bytes() == old
    assert {row.controls_requested.seed for row in rows_of(first.directory)} == {7}


@pytest.mark.parametrize(
    ("failure", "status"), [("hang", "TIMEOUT"), ("crash", "CRASHED"), ("garbage", "PROTOCOL_ERROR"), ("empty", "EMPTY")]
)
def test_a_failed_trial_scores_zero_stays_in_the_mean_and_the_sweep_goes_on(prepare: Prepare, failure: str, status: str) -> None:
    prepared = prepare(answers(red=[{"failure": failure}]))
    summary = run_sweep(prepared, SilentObserver())
    rows = rows_of(prepared.directory)
    assert len(rows) == 2 * len(WORDS)
    failed = [row for row in rows if row.task_id == "say-red"]
    assert {(row.status.value, row.adherence_score) for row in failed} == {(status, 0.0)}
    assert all(row.failure for row in failed)
    assert {row.status.value for row in rows if row.task_id != "say-red"} == {"OK"}
    assert summary.sessions[0].per_quant[0].adherence_score == 0.75


def test_an_engine_that_dies_again_and_again_ends_the_sweep(prepare: Prepare) -> None:
    crash: list[dict[str, Any]] = [{"failure": "crash"}]
    prepared = prepare(answers(red=crash, green=crash, blue=crash, black=crash), runs_per_quant=2)
    with pytest.raises(BackendError, match="crashed 5 times in a row"):
        run_sweep(prepared, SilentObserver())
    assert len(rows_of(prepared.directory)) >= 5


def test_an_answer_under_another_name_stops_the_sweep_and_is_not_recorded(prepare: Prepare) -> None:
    prepared = prepare(answers(black=[{"failure": "wrong_model"}]))
    with pytest.raises(IdentityError):
        run_sweep(prepared, SilentObserver())
    assert "say-black" not in {row.task_id for row in rows_of(prepared.directory)}


def test_a_failed_canary_blocks_the_matrix_and_says_what_to_do(prepare: Prepare) -> None:
    unsteady = [{**GOOD, "predicted_ms": ms, "text": "red", "wall_seconds": ms / 1000 + 0.02} for ms in (6.0, 60.0, 6.0, 90.0)]
    prepared = prepare(answers(red=unsteady), canary_runs=6, canary_task_id="say-red")
    with pytest.raises(CanaryBlockedError, match="LATENCY_VARIANCE_THRESHOLD_EXCEEDED"):
        run_sweep(prepared, SilentObserver())
    assert not prepared.directory.trials_path.exists()
    assert build_summary(prepared.directory).canary.passed is False


def test_a_passed_canary_is_not_run_again(prepare: Prepare) -> None:
    prepared = prepare(canary_runs=5)
    run_sweep(prepared, SilentObserver())
    before = prepared.directory.canary_path.read_bytes()
    assert before.count(b"\n") == 5
    run_sweep(prepare(canary_runs=5), SilentObserver())
    assert prepared.directory.canary_path.read_bytes() == before


def test_an_unsteady_answer_fails_the_canary(prepare: Prepare) -> None:
    moody = [{**GOOD, "text": text, "wall_seconds": 0.02} for text in ("red", "rot")]
    prepared = prepare(answers(red=moody), canary_runs=4, canary_task_id="say-red")
    with pytest.raises(CanaryBlockedError, match="ADHERENCE_VARIANCE_NON_ZERO"):
        run_sweep(prepared, SilentObserver())


def test_verify_sees_one_changed_digit(prepare: Prepare) -> None:
    prepared = prepare()
    run_sweep(prepared, SilentObserver())
    assert verify_run(prepared.directory)[0]
    path = prepared.directory.summary_path
    path.write_text(path.read_text().replace('"quant_rows": 2', '"quant_rows": 3'))
    same, evidence = verify_run(prepared.directory)
    assert not same
    assert "first at line" in evidence


def test_a_moved_run_still_verifies(prepare: Prepare, tmp_path: Path) -> None:
    prepared = prepare()
    run_sweep(prepared, SilentObserver())
    moved = prepared.directory.root.rename(tmp_path / "elsewhere")
    assert verify_run(RunDirectory(moved))[0]


def test_the_summary_does_not_depend_on_the_order_of_rows(prepare: Prepare) -> None:
    prepared = prepare(runs_per_quant=2)
    summary = run_sweep(prepared, SilentObserver())
    lines = prepared.directory.trials_path.read_bytes().splitlines(keepends=True)
    random.Random(3).shuffle(lines)
    prepared.directory.trials_path.write_bytes(b"".join(lines))
    assert encode_pretty(build_summary(prepared.directory)) == encode_pretty(summary)


def test_two_sweeps_cannot_share_a_folder(prepare: Prepare) -> None:
    prepared = prepare()
    with prepared.directory.locked(), pytest.raises(StoreError, match="in use by another sweep"):
        run_sweep(prepared, SilentObserver())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 130)])
def test_a_killed_sweep_loses_at_most_the_trial_in_flight(prepare: Prepare, tmp_path: Path, number: int, code: int) -> None:
    slow = {word: [{**GOOD, "text": word, "delay_seconds": 0.15}] for word in WORDS}
    prepared = prepare(answers(**slow), runs_per_quant=4)
    words = [sys.executable, "-m", "fewbits", "sweep", "--matrix-config", str(tmp_path / "matrix.json")]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal = prepared.directory.trials_path
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not (journal.exists() and journal.read_bytes().count(b"\n") >= 5):
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(20) == code
    survivors = cells_of(prepared.directory)
    assert len(survivors) >= 5
    finished = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert finished.returncode == 0, finished.stderr
    assert cells_of(prepared.directory)[: len(survivors)] == survivors
    assert len(set(cells_of(prepared.directory))) == len(cells_of(prepared.directory)) == 2 * len(WORDS) * 4


def test_rows_explain_themselves(prepare: Prepare) -> None:
    prepared = prepare()
    run_sweep(prepared, SilentObserver())
    row = json.loads(prepared.directory.trials_path.read_bytes().splitlines()[0])
    for name in ("schema_version", "plan_digest", "model_id", "quant_tag", "task_digest", "controls_requested", "engine_version"):
        assert row[name], name
    assert row["telemetry"]["unavailable"]["peak_memory_rss"] == "REMOTE_PROCESS"
    assert row["telemetry"]["peak_memory_rss"] is None
