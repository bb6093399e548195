"""`fewbits baseline` as people call it, on whole runs of the scripted runtime, and the join into a sweep."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fewbits.api import build_summary, prepare_sweep, run_sweep, verify_run, write_results
from fewbits.cli.main import main
from fewbits.core.errors import StoreError
from fewbits.store.run_directory import RunDirectory
from fewbits.sweep.progress import SilentObserver

QUANTS = ("Q8_0", "Q4_0", "Q2_K")
WORDS = ("alpha", "beta", "gamma")
REPLY: dict[str, Any] = {
    "text": "1",
    "prompt_tokens": 9,
    "output_tokens": 2,
    "prompt_ms": 8.0,
    "predicted_ms": 12.0,
    "wall_seconds": 0.0201,
    "first_output_seconds": 0.009,
}
BEST, WORST = "sweep.tiny.Q8_0", "sweep.tiny.Q2_K"
Sweep = Callable[..., RunDirectory]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def sweep(tmp_path: Path, root: Path) -> Sweep:
    """Run three variants on three tasks; the smallest one misses a task. Quiet, whatever runs beside the tests."""
    checks = [{"kind": "exact", "accepted": ["1"]}]

    def run(name: str = "run", words: tuple[str, ...] = WORDS, seconds: float = 0.0201, **flags: object) -> RunDirectory:
        tasks = [{"id": word, "bucket": "logic", "tier": 1, "prompt": f"Say {word}.", "checks": checks} for word in words]
        (tmp_path / "bank.json").write_text(json.dumps({"name": "tiny", "version": "1", "tasks": tasks}))
        sizes = {tag: {"bytes": 1000 - 300 * n, "bits_per_weight": 8.5 - 2.5 * n} for n, tag in enumerate(QUANTS)}
        wrong = {"prompt_contains": "gamma", "replies": [REPLY | {"text": "0"}], "schemes": ["Q2_K"]}
        script = {"variants": sizes, "rules": [wrong], "default": REPLY | {"wall_seconds": seconds}}
        (tmp_path / "script.json").write_text(json.dumps({"schema_version": "fewbits.script.v1"} | script))
        given: dict[str, object] = {
            "models": ["tiny"],
            "quants": list(QUANTS),
            "runtime": "scripted",
            "script": str(tmp_path / "script.json"),
            "task_bank": str(tmp_path / "bank.json"),
            "canary_runs": "0",
            "selection_policy": "threshold-v1",
            "rerun_budget_ratio": "0",
            "baseline_root": str(root),
            "out_dir": str(tmp_path / name),
        }
        prepared = prepare_sweep({flag: value for flag, value in (given | flags).items() if value is not None}, None)
        run_sweep(prepared, SilentObserver())
        quiet(prepared.directory)
        write_results(prepared.directory)
        return prepared.directory

    return run


def quiet(directory: RunDirectory) -> None:
    """Take out what other processes of this machine did to the trials."""
    rows = [json.loads(line) for line in directory.trials_path.read_bytes().splitlines()]
    calm = [row | {"run_quality_status": "CLEAN", "run_quality_reasons": []} for row in rows]
    directory.trials_path.write_text("".join(json.dumps(row) + "\n" for row in calm))


class Answer:
    """What a command did."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def document(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def baseline(root: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    def call(action: str, *words: str | Path) -> Answer:
        capsys.readouterr()
        try:
            code = main(["baseline", action, "--storage-root", str(root), *map(str, words)])
        except SystemExit as ended:
            code = int(ended.code or 0)
        said = capsys.readouterr()
        return Answer(code, said.out, said.err)

    return call


Call = Callable[..., Answer]


def bytes_of(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(root.glob("*.json"))} if root.exists() else {}


class TestAppend:
    def test_good_rows_are_stored_with_their_values(self, sweep: Sweep, baseline: Call) -> None:
        run = sweep()
        answer = baseline("append", run.root, "--json")
        assert answer.code == 0
        outcomes = {one["quant_tag"]: one for one in answer.document["outcomes"]}
        assert {tag: one["appended"] for tag, one in outcomes.items()} == {"Q8_0": True, "Q4_0": True, "Q2_K": False}
        assert outcomes["Q2_K"]["reasons"] == ["adherence 0.667, the limit is 0.950"]
        plan = run.read_plan()
        assert plan is not None
        known, gold = (outcomes["Q8_0"]["record"][part] for part in ("baseline_metadata", "gold_telemetry"))
        assert gold["task_scores"] == dict.fromkeys(WORDS, 1.0)
        assert gold["task_seconds"] == dict.fromkeys(WORDS, 0.0201)
        assert (gold["total_latency"], known["source"]) == (0.0201, plan.digest)
        assert known["test_run_id"].startswith(plan.digest[:12] + "-2")
        assert known["model_hash"] == known["engine_version"]  # a script is both
        assert (known["forced"], known["pinned"], known["forced_because"]) == (False, False, [])

    def test_a_run_is_stored_once(self, sweep: Sweep, baseline: Call, root: Path) -> None:
        run = sweep()
        assert baseline("append", run.root).code == 0
        before = bytes_of(root)
        again = baseline("append", run.root)
        assert (again.code, bytes_of(root)) == (2, before)
        assert "already has a baseline" in again.out
        assert baseline("append", run.root, "--run-id", "second").code == 0
        assert [one["history_count"] for one in baseline("list", "--json").document["items"]] == [2, 2]

    def test_a_named_row_must_be_stored(self, sweep: Sweep, baseline: Call, root: Path) -> None:
        run = sweep()
        answer = baseline("append", run.root, "--model-id", "tiny", "--quant-tag", "Q2_K")
        assert (answer.code, bytes_of(root)) == (2, {})
        assert "adherence 0.667, the limit is 0.950" in answer.out
        forced = baseline("append", run.root, "--quant-tag", "Q2_K", "--force", "--json")
        assert forced.code == 0
        (outcome,) = forced.document["outcomes"]
        known = outcome["record"]["baseline_metadata"]
        assert (known["forced"], known["forced_because"]) == (True, ["BELOW_ADHERENCE_LIMIT"])
        assert "BELOW_ADHERENCE_LIMIT" in baseline("show", "--test-id", WORST).out

    def test_of_two_models_rows_that_share_a_tag_both_are_named(self, sweep: Sweep, baseline: Call) -> None:
        run = sweep(models=["tiny", "small"])
        assert baseline("append", run.root, "--model-id", "tiny", "--run-id", "r").code == 0
        named = baseline("append", run.root, "--quant-tag", "Q8_0", "--run-id", "r")
        assert named.code == 2
        assert "tiny Q8_0: refused" in named.out
        assert "small Q8_0: stored as r of sweep.small.Q8_0" in named.out
        assert baseline("append", run.root, "--run-id", "r").code == 0  # small Q4_0 is still to be stored

    def test_polluted_trials_lend_no_seconds(self, sweep: Sweep, baseline: Call) -> None:
        run = sweep(runs_per_quant="4", row_max_polluted_rate="0.5")
        rows = [json.loads(line) for line in run.trials_path.read_bytes().splitlines()]
        for row in rows:
            if row["repetition"] == 0:
                row["run_quality_status"], row["run_quality_reasons"] = "POLLUTED", ["FOREIGN_CPU_LOAD"]
                row["telemetry"]["total_latency"] = 60.0
        run.trials_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        outcome = baseline("append", run.root, "--quant-tag", "Q8_0", "--json").document["outcomes"][0]
        assert outcome["record"]["gold_telemetry"]["task_seconds"] == pytest.approx(dict.fromkeys(WORDS, 0.0201))

    def test_force_marks_only_what_needed_it(self, sweep: Sweep, baseline: Call) -> None:
        assert baseline("append", sweep().root, "--force").code == 0
        items = {one["test_id"]: one["forced_count"] for one in baseline("list", "--json").document["items"]}
        assert items == {BEST: 0, "sweep.tiny.Q4_0": 0, WORST: 1}

    @pytest.mark.parametrize(("flag", "name"), [("--model-id", "other"), ("--quant-tag", "Q3_K_M")])
    def test_a_row_that_is_not_there(self, sweep: Sweep, baseline: Call, root: Path, flag: str, name: str) -> None:
        answer = baseline("append", sweep().root, flag, name)
        assert (answer.code, bytes_of(root)) == (2, {})
        assert f"{flag}: there is no row '{name}'" in answer.err
        assert "tiny Q8_0, tiny Q4_0, tiny Q2_K" in answer.err

    def test_an_unfinished_run_is_refused(self, sweep: Sweep, baseline: Call, root: Path) -> None:
        run = sweep()
        lines = run.trials_path.read_bytes().splitlines(keepends=True)
        run.trials_path.write_bytes(b"".join(lines[:8]))
        answer = baseline("append", run.root)
        assert (answer.code, bytes_of(root)) == (2, {})
        assert "the run is not complete: 8 of 9 trials are in" in answer.out
        forced = baseline("append", run.root, "--quant-tag", "Q8_0", "--force", "--json").document["outcomes"][0]
        assert "RUN_INCOMPLETE" in forced["record"]["baseline_metadata"]["forced_because"]

    def test_nothing_measured_is_not_stored_even_by_force(self, sweep: Sweep, baseline: Call, root: Path) -> None:
        run = sweep()
        run.trials_path.write_bytes(b"")
        answer = baseline("append", run.root, "--force")
        assert (answer.code, bytes_of(root)) == (2, {})
        assert "nothing was measured" in answer.out

    def test_a_summary_alone_stores_no_values_by_task(self, sweep: Sweep, baseline: Call, tmp_path: Path) -> None:
        run = sweep()
        beside = baseline("append", run.summary_path, "--run-id", "beside", "--json")
        alone = tmp_path / "elsewhere.json"
        shutil.copy(run.summary_path, alone)
        revision = beside.document["task_revision"]
        named = baseline("append", alone, "--run-id", "alone", "--json")
        assert named.document["task_revision"] == revision
        folder = baseline("append", run.root, "--json")
        assert [one.code for one in (beside, named, folder)] == [0, 0, 0]
        assert beside.document["task_revision"] == folder.document["task_revision"]
        for answer, tasks in ((beside, {}), (named, {}), (folder, dict.fromkeys(WORDS, 1.0))):
            assert answer.document["outcomes"][0]["record"]["gold_telemetry"]["task_scores"] == tasks
        for source in (run.root, run.summary_path):
            wrong = baseline("append", source, "--task-revision", "other", "--run-id", "wrong")
            assert (wrong.code, "not of that task revision" in wrong.err) == (2, True)

    def test_a_summary_that_tells_no_revision_needs_one(self, sweep: Sweep, baseline: Call, tmp_path: Path) -> None:
        """Summaries of schema 2.1.0 have none, and the plan of another run is no help."""
        document = json.loads(sweep("run").summary_path.read_text())
        revision = document["matrix"].pop("task_revision")
        summary = tmp_path / "mine.json"
        summary.write_text(json.dumps(document))
        shutil.copy(sweep("other", words=("alpha",)).plan_path, tmp_path / "plan.json")
        answer = baseline("append", summary)
        assert (answer.code, "no plan.json of its run" in answer.err) == (2, True)
        assert baseline("append", summary, "--task-revision", revision).code == 0

    @pytest.mark.parametrize("kind", ["missing", "folder", "half", "binary"])
    def test_a_source_that_is_none(self, sweep: Sweep, baseline: Call, tmp_path: Path, root: Path, kind: str) -> None:
        source = tmp_path / "source"
        if kind == "folder":
            source.mkdir()
        elif kind == "half":
            data = sweep().summary_path.read_bytes()
            source.write_bytes(data[: len(data) // 2])
        elif kind == "binary":
            source.write_bytes(bytes(range(256)))
        answer = baseline("append", source)
        assert (answer.code, answer.out, bytes_of(root)) == (2, "", {})
        assert str(source) in answer.err

    def test_one_damaged_file_stops_neither_the_others_nor_the_alarm(self, sweep: Sweep, baseline: Call, root: Path) -> None:
        run = sweep()
        root.mkdir()
        (root / f"{BEST}.json").write_text("{ half")
        answer = baseline("append", run.root)
        assert answer.code == 2
        assert "tiny Q8_0: refused" in answer.out
        assert "tiny Q4_0: stored" in answer.out
        assert (root / f"{BEST}.json").read_text() == "{ half"


class TestLookingUp:
    def test_resolve_says_why_not(self, sweep: Sweep, baseline: Call) -> None:
        revision = baseline("append", sweep().root, "--run-id", "one", "--json").document["task_revision"]
        asked = ("resolve", "--test-id", BEST, "--task-revision")
        for words, status in (
            ((*asked, revision), "OK"),  # this machine's fingerprint
            ((*asked, revision, "--baseline-ref", "one"), "OK"),
            ((*asked, revision, "--baseline-ref", "two"), "REF_NOT_FOUND"),
            ((*asked, "other"), "REV_MISMATCH"),
            ((*asked, revision, "--hardware-fingerprint", "other"), "HW_MISMATCH"),
            (("resolve", "--test-id", "unknown", "--task-revision", revision), "NO_BASELINE"),
        ):
            answer = baseline(*words, "--json")
            assert (answer.document["status"], answer.code) == (status, 0 if status == "OK" else 2)
            assert (answer.document["record"] is None) is (status != "OK")
            assert baseline(*words).out.startswith(f"{status}: ")

    def test_damage_is_named_and_the_others_are_shown(self, sweep: Sweep, baseline: Call, root: Path) -> None:
        baseline("append", sweep().root)
        path = root / f"{BEST}.json"
        path.write_bytes(path.read_bytes()[:100])
        damaged = path.read_bytes()
        listing = baseline("list")
        assert listing.code == 0
        assert f"UNREADABLE {path}" in listing.out
        assert "sweep.tiny.Q4_0: 1 baseline" in listing.out
        health = baseline("health")
        assert health.code == 2
        assert "UNREADABLE" in health.out
        assert "PASS usable_baseline · sweep.tiny.Q4_0" in health.out
        resolved = baseline("resolve", "--test-id", BEST, "--task-revision", "r", "--json")
        assert (resolved.code, resolved.document["status"]) == (2, "STORE_UNREADABLE")
        for words in (
            ("show", "--test-id", BEST),
            ("pin", "--test-id", BEST, "--baseline-ref", "x"),
            ("prune", "--keep-last", "1"),
            ("prune", "--keep-last", "1", "--dry-run"),
        ):
            answer = baseline(*words)
            assert (answer.code, answer.out) == (2, "")
            assert str(path) in answer.err
        assert path.read_bytes() == damaged

    def test_an_empty_store_is_fine(self, baseline: Call, root: Path) -> None:
        listing = baseline("list", "--json")
        assert (listing.code, listing.document["items"], listing.document["unreadable"]) == (0, [], [])
        assert "no baseline found" in baseline("list").out
        assert baseline("show", "--test-id", "a").code == 2
        assert baseline("health").code == 3
        assert baseline("health", "--allow-skip").code == 0
        assert baseline("health", "--test-id", "a").code == 2
        pruned = baseline("prune", "--keep-last", "1", "--json")
        assert (pruned.code, pruned.document["tests"]) == (0, [])
        assert not root.exists()

    def test_names_from_files_cannot_move_the_cursor(self, sweep: Sweep, baseline: Call, root: Path) -> None:
        baseline("append", sweep().root)
        path = root / f"{BEST}.json"
        document = json.loads(path.read_bytes())
        document["history"][0]["baseline_metadata"] |= {"test_run_id": "\x1b[2J\u202eevil", "engine": "a\nb"}
        path.write_text(json.dumps(document))
        for words in (("show", "--test-id", BEST), ("list",), ("health",), ("prune", "--keep-last", "1")):
            out = baseline(*words).out
            assert out
            assert all(char.isprintable() or char == "\n" for char in out)


class TestPinAndPrune:
    @pytest.fixture
    def filled(self, sweep: Sweep, baseline: Call) -> Call:
        run = sweep()
        for name in "abcd":
            assert baseline("append", run.root, "--quant-tag", "Q8_0", "--run-id", name).code == 0
        return baseline

    def refs(self, call: Call) -> list[str]:
        history = call("show", "--test-id", BEST, "--json").document["history"]
        return [one["baseline_metadata"]["test_run_id"] for one in history]

    def test_pins_survive(self, filled: Call) -> None:
        assert filled("pin", "--test-id", BEST, "--baseline-ref", "b").out == f"b of {BEST} is pinned\n"
        report = filled("prune", "--keep-last", "1", "--json").document
        assert report["tests"] == [{"test_id": BEST, "dropped": ["a", "c"], "kept": ["b", "d"], "kept_pinned": ["b"]}]
        assert self.refs(filled) == ["b", "d"]
        assert filled("unpin", "--test-id", BEST, "--baseline-ref", "b").code == 0
        assert filled("prune", "--keep-last", "1").code == 0
        assert self.refs(filled) == ["d"]

    def test_a_dry_run_says_the_same_and_touches_nothing(self, filled: Call, root: Path) -> None:
        before, inode = bytes_of(root), (root / f"{BEST}.json").stat().st_ino
        words = filled("prune", "--keep-last", "2", "--dry-run")
        assert words.code == 0
        assert "  - a\n  - b\n" in words.out
        assert "nothing was touched" in words.out
        planned = filled("prune", "--keep-last", "2", "--dry-run", "--json").document
        assert (bytes_of(root), (root / f"{BEST}.json").stat().st_ino) == (before, inode)
        done = filled("prune", "--keep-last", "2", "--json").document
        assert planned == done | {"dry_run": True}
        assert self.refs(filled) == ["c", "d"]

    def test_an_age_spares_young_records(self, filled: Call) -> None:
        assert filled("prune", "--keep-last", "1", "--max-age-days", "1").code == 0
        assert self.refs(filled) == list("abcd")

    @pytest.mark.parametrize(
        "words",
        [
            ("prune",),
            ("prune", "--keep-last", "0"),
            ("prune", "--keep-last", "-1"),
            ("prune", "--keep-last", "1.5"),
            ("prune", "--keep-last", "1", "--max-age-days", "0"),
            ("prune", "--keep-last", "1", "--max-age-days", "nan"),
            ("prune", "--keep-last", "1", "--test-id", "unknown"),
            ("prune", "--keep-last", "1", "--test-id", "../x"),
            ("pin", "--test-id", BEST, "--baseline-ref", "unknown"),
            ("pin", "--test-id", "unknown", "--baseline-ref", "a"),
            ("pin", "--test-id", "../x", "--baseline-ref", "a"),
            ("pin", "--test-id", BEST, "--baseline-ref", "\udcff"),
            ("pin", "--test-id", BEST),
            ("unpin", "--test-id", BEST, "--baseline-ref", ""),
            ("show",),
            ("show", "--test-id", "/etc/passwd"),
            ("list", "--test-id", ".."),
            ("resolve", "--test-id", BEST),
            ("resolve", "--test-id", "a/b", "--task-revision", "r"),
            ("health", "--max-age-days", "-1"),
            ("health", "--test-id", "a\nb"),
        ],
    )
    def test_unusable_words(self, filled: Call, root: Path, words: tuple[str, ...]) -> None:
        before = bytes_of(root)
        answer = filled(*words)
        assert (answer.code, answer.out, bytes_of(root)) == (2, "", before)
        assert any(
            word in answer.err for word in ("--test-id", "--baseline-ref", "--keep-last", "--max-age-days", "--task-revision")
        )


class TestHealth:
    def test_counts_stand_beside_the_gate(self, sweep: Sweep, baseline: Call, tmp_path: Path) -> None:
        run = sweep()
        baseline("append", run.root, "--run-id", "one")
        baseline("append", run.root, "--run-id", "two")
        out, junit = tmp_path / "health.json", tmp_path / "junit.xml"
        answer = baseline("health", "--json", "--out", out, "--junit", junit)
        assert answer.code == 0
        assert json.loads(out.read_bytes()) == answer.document
        assert "baseline_health" in junit.read_text()
        assert answer.document["gate_report"]["status"] == "PASS"
        assert answer.document["summary"] == {
            "tests_total": 2,
            "records_total": 4,
            "stale_records_total": 0,
            "hardware_mismatch_records_total": None,
            "revision_mismatch_records_total": 0,
            "forced_records_total": 0,
            "pinned_records_total": 0,
            "unreadable_files_total": 0,
        }
        assert len(answer.document["gate_report"]["sources"]) == 2

    @pytest.mark.parametrize(
        ("flag", "value", "code"),
        [
            ("--hardware-fingerprint", "other", "HW_MISMATCH"),
            ("--task-revision", "other", "REV_MISMATCH"),
            ("--engine-version", "other", "ENGINE_SUPERSEDED"),
            ("--max-age-days", "0.00000001", "TOO_OLD"),
        ],
    )
    def test_what_fails(self, sweep: Sweep, baseline: Call, flag: str, value: str, code: str) -> None:
        baseline("append", sweep().root)
        answer = baseline("health", "--test-id", BEST, flag, value, "--json")
        assert answer.code == 2
        assert [check["code"] for check in answer.document["gate_report"]["checks"] if check["status"] == "FAIL"] == [code]
        assert (
            f"FAIL {'usable_baseline' if 'MISMATCH' in code else 'age_days' if code == 'TOO_OLD' else 'engine_version'} {code}"
            in (baseline("health", "--test-id", BEST, flag, value).out)
        )


class TestSweepJoin:
    def rows(self, directory: RunDirectory) -> dict[str, Any]:
        (session,) = json.loads(directory.summary_path.read_bytes())["sessions"]
        return {row["quant_tag"]: row["baseline"] for row in session["per_quant"]}

    def test_the_second_run_is_compared_with_the_first(self, sweep: Sweep, baseline: Call) -> None:
        first = sweep("first")
        assert {row["status"] for row in self.rows(first).values()} == {"NO_BASELINE"}
        baseline("append", first.root, "--force", "--run-id", "gold")
        rows = self.rows(sweep("second", seconds=0.0402))
        assert {tag: (row["status"], row["baseline_ref"]) for tag, row in rows.items()} == dict.fromkeys(QUANTS, ("OK", "gold"))
        assert rows["Q8_0"]["latency_ratio"]["value"] == 2.0
        assert rows["Q8_0"]["latency_ratio"]["low"] < 2.0 < rows["Q8_0"]["latency_ratio"]["high"]
        assert rows["Q8_0"]["adherence_difference"]["value"] == 0.0
        assert rows["Q8_0"]["same_weights"] is False  # another script
        assert "BELOW_ADHERENCE_LIMIT" in rows["Q2_K"]["detail"]

    def test_the_summary_does_not_follow_the_store(self, sweep: Sweep, baseline: Call, root: Path) -> None:
        first = sweep("first")
        baseline("append", first.root, "--run-id", "gold")
        second = sweep("second")
        kept = second.baselines_path.read_bytes()
        shutil.rmtree(root)
        baseline("append", second.root, "--run-id", "newer")
        assert verify_run(second)[0]
        again = sweep("second")  # nothing left to run
        assert (again.baselines_path.read_bytes(), verify_run(again)[0]) == (kept, True)
        assert self.rows(again)["Q8_0"]["baseline_ref"] == "gold"

    def test_other_tasks_are_another_revision(self, sweep: Sweep, baseline: Call) -> None:
        baseline("append", sweep("first").root)
        rows = self.rows(sweep("second", words=("alpha", "beta")))
        assert rows["Q8_0"]["status"] == "REV_MISMATCH"
        assert rows["Q2_K"]["status"] == "NO_BASELINE"
        assert set(rows["Q8_0"]["unavailable"].values()) == {"REV_MISMATCH"}

    def test_a_reference_that_is_not_there(self, sweep: Sweep, baseline: Call) -> None:
        baseline("append", sweep("first").root)
        assert self.rows(sweep("second", baseline_ref="nobody"))["Q8_0"]["status"] == "REF_NOT_FOUND"

    def test_a_damaged_store_stops_nothing(self, sweep: Sweep, root: Path) -> None:
        root.mkdir()
        (root / f"{BEST}.json").write_text("{")
        rows = self.rows(sweep())
        assert {tag: row["status"] for tag, row in rows.items()} == {
            "Q8_0": "STORE_UNREADABLE",
            "Q4_0": "NO_BASELINE",
            "Q2_K": "NO_BASELINE",
        }
        assert f"{BEST}.json" in rows["Q8_0"]["detail"]
        assert (root / f"{BEST}.json").read_text() == "{"

    def test_a_root_that_is_no_folder_stops_nothing(self, sweep: Sweep, root: Path) -> None:
        root.write_text("mine")
        assert {row["status"] for row in self.rows(sweep()).values()} == {"STORE_UNREADABLE"}
        assert root.read_text() == "mine"

    def test_switched_off_there_is_no_file(self, sweep: Sweep) -> None:
        run = sweep(baselines="false", baseline_root=None)
        assert not run.baselines_path.exists()
        assert self.rows(run) == dict.fromkeys(QUANTS)
        assert verify_run(run)[0]

    @pytest.mark.parametrize(
        ("old", "new", "words"),
        [
            ('"task_revision"', '"task_rev"', "damaged or was edited"),
            ("resolved_baselines.v1", "resolved_baselines.v2", "update fewbits"),
            ('"matches"', "", "damaged or was edited"),
        ],
    )
    def test_a_damaged_file_of_the_run_is_named(self, sweep: Sweep, old: str, new: str, words: str) -> None:
        run = sweep()
        run.baselines_path.write_text(run.baselines_path.read_text().replace(old, new))
        before = run.baselines_path.read_bytes()
        for attempt in (lambda: build_summary(run), sweep):
            with pytest.raises(StoreError, match=words):
                attempt()
        assert run.baselines_path.read_bytes() == before

    def test_a_file_of_other_tasks_is_looked_up_again(self, sweep: Sweep) -> None:
        run = sweep("run")
        other = sweep("other", words=("alpha",))
        shutil.copy(other.baselines_path, run.baselines_path)
        with pytest.raises(StoreError, match="for other tasks"):
            build_summary(run)
        again = sweep("run")
        assert again.baselines_path.read_bytes() != other.baselines_path.read_bytes()
        assert verify_run(again)[0]


def _append(root: str, source: str, name: str, codes: Any) -> None:
    codes.put(main(["baseline", "append", source, "--storage-root", root, "--run-id", name]))


def test_commands_at_the_same_time_all_count(sweep: Sweep, baseline: Call, root: Path) -> None:
    run = sweep()
    context = multiprocessing.get_context("spawn")
    codes = context.Queue()
    names = [f"run{n}" for n in range(4)]
    writers = [context.Process(target=_append, args=(str(root), str(run.root), name, codes)) for name in names]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [codes.get(timeout=5) for _ in writers] == [0] * 4
    history = baseline("show", "--test-id", BEST, "--json").document["history"]
    assert sorted(one["baseline_metadata"]["test_run_id"] for one in history) == names
