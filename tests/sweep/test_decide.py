"""Deciding and re-running on the scripted runtime: who is asked what, and that the journal gives the same decisions again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fewbits.api import PreparedSweep, build_summary, prepare_sweep, run_sweep, verify_run
from fewbits.core.codec import encode_pretty
from fewbits.core.errors import SpecError
from fewbits.records.base import PollutionReason, RunQuality
from fewbits.records.summary import Decision, SweepSummary, VerdictCode
from fewbits.records.trial import Trial
from fewbits.sweep import trial as sweep_trial
from fewbits.sweep.progress import SilentObserver

QUANTS = ("F16", "Q8_0", "Q2_K")
ITEMS = 150
REPLY: dict[str, Any] = {
    "prompt_tokens": 9,
    "output_tokens": 2,
    "prompt_ms": 8.0,
    "predicted_ms": 12.0,
    "wall_seconds": 0.0201,
    "first_output_seconds": 0.009,
}
Prepare = Callable[..., PreparedSweep]


def write_inputs(folder: Path) -> dict[str, object]:
    """F16 knows all items, Q8_0 as well, Q2_K fails every second one."""
    check = {"kind": "exact", "accepted": ["yes"]}
    tasks = [
        {"id": f"t{n:03d}", "bucket": "logic", "tier": 1, "prompt": f"Item {n:03d}.", "checks": [check]} for n in range(ITEMS)
    ]
    (folder / "bank.json").write_text(json.dumps({"name": "many", "version": "1", "tasks": tasks}))
    wrong = [
        {"prompt_contains": f"Item {n:03d}.", "schemes": ["Q2_K"], "replies": [{"text": "no"} | REPLY]}
        for n in range(0, ITEMS, 2)
    ]
    sizes = {tag: {"bytes": 1000 - 300 * n, "bits_per_weight": 16 - 5.0 * n} for n, tag in enumerate(QUANTS)}
    script = {"schema_version": "fewbits.script.v1", "variants": sizes, "rules": wrong, "default": {"text": "yes"} | REPLY}
    (folder / "script.json").write_text(json.dumps(script))
    return {
        "models": ["m"],
        "quants": list(QUANTS),
        "runtime": "scripted",
        "script": str(folder / "script.json"),
        "task_bank": str(folder / "bank.json"),
        "canary_runs": "0",
        "block_tasks": "1",
        "rerun_budget_ratio": "0",
        "out_dir": str(folder / "out"),
    }


@pytest.fixture
def prepare(tmp_path: Path) -> Prepare:
    def make(**flags: object) -> PreparedSweep:
        return prepare_sweep(write_inputs(tmp_path) | {"decide": True} | flags, None)

    return make


class Listener(SilentObserver):
    """Remembers the decisions, and interrupts after some trials."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.decisions: list[tuple[Decision, int]] = []
        self.trials: list[Trial] = []
        self._stop_after = stop_after

    def variant_decided(self, model_id: str, decision: Decision, trials_left: int) -> None:
        self.decisions.append((decision, trials_left))

    def trial_ended(self, trial: Trial) -> None:
        self.trials.append(trial)
        if len(self.trials) == self._stop_after:
            raise KeyboardInterrupt


def rows_of(prepared: PreparedSweep) -> list[dict[str, Any]]:
    return [json.loads(line) for line in prepared.directory.trials_path.read_bytes().splitlines()]


def asked(prepared: PreparedSweep, phase: str = "matrix") -> dict[str, int]:
    rows = [row for row in rows_of(prepared) if row["phase"] == phase]
    return {tag: sum(row["quant_tag"] == tag for row in rows) for tag in QUANTS}


def verdicts(summary: SweepSummary) -> dict[str, VerdictCode]:
    return {row.quant_tag: row.verdict.verdict for row in summary.sessions[0].per_quant if row.verdict is not None}


class TestDecide:
    def test_decided_variants_stop_and_the_pick_is_the_equivalent_one(self, prepare: Prepare) -> None:
        prepared, heard = prepare(), Listener()
        summary = run_sweep(prepared, heard)
        (session,) = summary.sessions
        assert verdicts(summary) == {"Q8_0": VerdictCode.EQUIVALENT, "Q2_K": VerdictCode.WORSE}
        assert session.recommendation_detail.minimum_viable_quant == "Q8_0"
        assert "proven equivalent to F16" in session.recommendation
        counts = asked(prepared)
        assert 10 <= counts["Q2_K"] < counts["Q8_0"] == counts["F16"] < ITEMS
        assert summary.complete
        assert summary.trials_counted == sum(counts.values()) < prepared.plan.trials_total
        log = session.decision_log
        assert log is not None
        assert [decision for decision, _ in heard.decisions] == list(log.decisions)
        assert [decision.quant_tag for decision in log.decisions] == ["Q2_K", "Q8_0"]
        assert heard.decisions[0][1] == 2 * (ITEMS - counts["Q2_K"]) + 9  # the two others' items, and three repeats each
        assert (log.undecided, log.items_available, log.items_asked) == ((), ITEMS, counts["F16"])
        assert log.trials_run / log.trials_full_matrix < 0.8

    def test_the_journal_alone_gives_the_decisions_again(self, prepare: Prepare) -> None:
        prepared = prepare()
        before = encode_pretty(run_sweep(prepared, SilentObserver()))
        lines = prepared.directory.trials_path.read_bytes().splitlines(keepends=True)
        prepared.directory.trials_path.write_bytes(b"".join(reversed(lines)))
        assert encode_pretty(build_summary(prepared.directory)) == before
        assert verify_run(prepared.directory)[0]

    @pytest.mark.parametrize("finished", [1, 2, 44, 200])
    def test_interrupted_anywhere_it_goes_on_to_the_same_decisions(self, prepare: Prepare, finished: int) -> None:
        prepared = prepare()
        with pytest.raises(KeyboardInterrupt):
            run_sweep(prepared, Listener(stop_after=finished))
        kept = prepared.directory.trials_path.read_bytes()
        summary = run_sweep(prepare(), SilentObserver())
        assert prepared.directory.trials_path.read_bytes().startswith(kept)
        keys = [(row["phase"], row["quant_tag"], row["task_id"]) for row in rows_of(prepared)]
        assert len(keys) == len(set(keys))
        whole = prepare(out_dir=str(prepared.directory.root.parent / "whole"))
        again = run_sweep(whole, SilentObserver())
        assert summary.sessions[0].decision_log == again.sessions[0].decision_log
        assert verdicts(summary) == verdicts(again)

    def test_a_finished_run_is_left_alone(self, prepare: Prepare) -> None:
        prepared = prepare()
        first = encode_pretty(run_sweep(prepared, SilentObserver()))
        before = prepared.directory.trials_path.read_bytes()
        heard = Listener()
        assert encode_pretty(run_sweep(prepare(), heard)) == first
        assert prepared.directory.trials_path.read_bytes() == before
        assert heard.trials == []

    def test_the_full_matrix_stays_available(self, prepare: Prepare) -> None:
        full = prepare(decide=False)
        summary = run_sweep(full, SilentObserver())
        assert set(asked(full).values()) == {ITEMS}
        assert summary.sessions[0].decision_log is None
        assert verdicts(summary) == {"Q8_0": VerdictCode.EQUIVALENT, "Q2_K": VerdictCode.WORSE}

    def test_without_early_stopping_everyone_answers_everything(self, prepare: Prepare) -> None:
        prepared = prepare(early_stop=False)
        summary = run_sweep(prepared, SilentObserver())
        assert set(asked(prepared).values()) == {ITEMS}
        log = summary.sessions[0].decision_log
        assert log is not None
        assert [decision.quant_tag for decision in log.decisions] == ["Q2_K", "Q8_0"]

    def test_items_come_in_an_order_drawn_from_the_seed(self, prepare: Prepare) -> None:
        def order(prepared: PreparedSweep) -> list[str]:
            run_sweep(prepared, SilentObserver())
            return [row["task_id"] for row in rows_of(prepared) if row["quant_tag"] == "F16" and row["phase"] == "matrix"]

        root = prepare().directory.root.parent
        first, other = order(prepare()), order(prepare(seed="7", out_dir=str(root / "other")))
        assert first != sorted(first)
        assert first[:10] != other[:10]
        assert first == order(prepare(out_dir=str(root / "again")))

    def test_larger_blocks_decide_at_their_end(self, prepare: Prepare) -> None:
        """Where variants swap, a block holds several items: nobody stops in the middle of one."""
        prepared = prepare(block_tasks="7")
        summary = run_sweep(prepared, SilentObserver())
        counts = asked(prepared)
        assert [count % 7 for count in counts.values()] == [0, 0, 0]
        assert counts["Q2_K"] < counts["Q8_0"] == counts["F16"] < ITEMS
        assert verdicts(summary) == {"Q8_0": VerdictCode.EQUIVALENT, "Q2_K": VerdictCode.WORSE}
        assert summary.complete
        assert verify_run(prepared.directory)[0]

    def test_each_model_has_a_race_of_its_own(self, prepare: Prepare) -> None:
        prepared, heard = prepare(models=["m", "n"]), Listener()
        summary = run_sweep(prepared, heard)
        assert [session.model_id for session in summary.sessions] == ["m", "n"]
        for session in summary.sessions:
            log = session.decision_log
            assert log is not None
            assert [decision.quant_tag for decision in log.decisions] == ["Q2_K", "Q8_0"]
            assert log.decisions[0].after_items == heard.decisions[0][0].after_items
        first, second = (session.decision_log for session in summary.sessions)
        assert first is not None
        assert second is not None
        assert second.decisions[0].after_block == first.decisions[0].after_block + ITEMS
        assert summary.complete
        assert verify_run(prepared.directory)[0]

    def test_too_few_items_leave_it_open_and_say_what_is_missing(self, prepare: Prepare) -> None:
        summary = run_sweep(prepare(task_limit="12"), SilentObserver())
        (session,) = summary.sessions
        assert verdicts(summary)["Q8_0"] is VerdictCode.UNRESOLVED
        assert session.efficiency_frontier.reason == "NOT_DECIDED"
        assert session.recommendation_detail.minimum_viable_quant is None
        assert "Not decided yet" in session.recommendation
        assert "F16 is the safe choice" in session.recommendation
        assert any(sentence.startswith("Q8_0: 0 points") for sentence in session.recommendation_detail.missing)

    def test_a_budget_of_items_is_a_draw_from_all(self, prepare: Prepare) -> None:
        prepared = prepare(decide_maximum_items="12")
        summary = run_sweep(prepared, SilentObserver())
        asked_ids = {row["task_id"] for row in rows_of(prepared)}
        assert len(asked_ids) == 12 == prepared.plan.trials_total / 3
        assert asked_ids != {f"t{n:03d}" for n in range(12)}
        log = summary.sessions[0].decision_log
        assert log is not None
        assert (log.items_available, log.items_asked, summary.complete) == (12, 12, True)
        assert "Q8_0" in log.undecided

    def test_repetitions_of_an_item_stay_together(self, prepare: Prepare) -> None:
        prepared = prepare(runs_per_quant="2", task_limit="40")
        summary = run_sweep(prepared, SilentObserver())
        blocks: dict[int, set[str]] = {}
        for row in rows_of(prepared):
            blocks.setdefault(row["block"], set()).add(row["task_id"])
        assert all(len(tasks) == 1 for tasks in blocks.values())
        assert verdicts(summary)["Q2_K"] is VerdictCode.WORSE

    @pytest.mark.parametrize(
        ("flags", "says"),
        [
            ({"selection_policy": "threshold-v1"}, "statistical verdicts"),
            ({"divergence_error_level": "0.05"}, "leaving nothing for the paired test"),
            ({"adherence_threshold": "0.9"}, "decides nothing under three-zone-v1"),
            ({"decide_maximum_items": "5"}, "every variant answers at least 10"),
            ({"equivalence_margin": "0"}, "equivalence-margin"),
            ({"block_tasks": "0"}, "block-tasks"),
        ],
    )
    def test_settings_that_contradict_each_other(self, prepare: Prepare, flags: dict[str, object], says: str) -> None:
        with pytest.raises(SpecError, match=says):
            prepare(**flags)


def test_settings_of_deciding_without_deciding(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="does nothing without --decide"):
        prepare_sweep(write_inputs(tmp_path) | {"early_stop": False}, None)


class TestReruns:
    @pytest.fixture
    def disturb(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Trial], bool]], None]:
        """Mark some trials as disturbed by foreign load, as a busy machine would."""

        def install(chosen: Callable[[Trial], bool]) -> None:
            real = sweep_trial.record

            def marked(*arguments: Any) -> Trial:
                trial = real(*arguments)
                reasons = (PollutionReason.FOREIGN_CPU_LOAD,) if chosen(trial) else ()
                quality = RunQuality.POLLUTED if reasons else RunQuality.CLEAN
                return msgspec.structs.replace(trial, run_quality_reasons=reasons, run_quality_status=quality)

            monkeypatch.setattr("fewbits.sweep.run.record", marked)

        return install

    def test_polluted_trials_are_run_again_and_both_stay(self, prepare: Prepare, disturb: Callable[..., None]) -> None:
        disturb(lambda trial: trial.attempt == 1 and trial.task_id in {"t003", "t007"})
        prepared = prepare(decide=False, task_limit="20", rerun_budget_ratio="0.2")
        summary = run_sweep(prepared, SilentObserver())
        attempts = [row["attempt"] for row in rows_of(prepared) if row["task_id"] == "t003" and row["phase"] == "matrix"]
        assert sorted(attempts) == [1, 1, 1, 2, 2, 2]
        quality = summary.run_quality
        assert (quality.trials, quality.clean, quality.reruns, quality.rerun_budget) == (60, 60, 6, 12)
        assert (quality.clean_share, quality.first_attempt_clean_share) == (1.0, 0.9)
        blocks = {row["block"] for row in rows_of(prepared) if row["task_id"] == "t003" and row["phase"] == "matrix"}
        assert len(blocks) == 1  # run again inside the block, so that ratios stay within it

    def test_the_budget_is_kept_and_survives_a_kill(self, prepare: Prepare, disturb: Callable[..., None]) -> None:
        disturb(lambda _trial: True)
        flags = {"decide": False, "task_limit": "20", "rerun_budget_ratio": "0.1", "rerun_max_attempts": "3"}
        prepared = prepare(**flags)
        with pytest.raises(KeyboardInterrupt):
            run_sweep(prepared, Listener(stop_after=8))
        summary = run_sweep(prepare(**flags), SilentObserver())
        matrix = [row for row in rows_of(prepared) if row["phase"] == "matrix"]
        assert sum(row["attempt"] > 1 for row in matrix) == summary.run_quality.rerun_budget == 6
        assert max(row["attempt"] for row in matrix) == 3
        assert summary.run_quality.clean_share == 0.0
        assert len({row["trial_id"] for row in matrix}) == len(matrix)

    def test_no_budget_no_rerun(self, prepare: Prepare, disturb: Callable[..., None]) -> None:
        disturb(lambda _trial: True)
        prepared = prepare(decide=False, task_limit="5", rerun_budget_ratio="0")
        assert run_sweep(prepared, SilentObserver()).run_quality.reruns == 0


def test_every_variant_answers_its_first_items_once_more(prepare: Prepare) -> None:
    prepared = prepare(decide=False, task_limit="20", determinism_tasks="4")
    summary = run_sweep(prepared, SilentObserver())
    assert asked(prepared, "determinism") == dict.fromkeys(QUANTS, 4)
    for row in summary.sessions[0].per_quant:
        assert row.determinism is not None
        assert (row.determinism.cells, row.determinism.deterministic, row.determinism.same_output_rate) == (4, True, 1.0)


def test_where_two_runs_part_is_shown(prepare: Prepare, tmp_path: Path) -> None:
    write_inputs(tmp_path)
    script = json.loads((tmp_path / "script.json").read_text())
    replies = [{"text": "yes, so it is"} | REPLY, {"text": "yes, or not"} | REPLY]
    script["rules"].insert(0, {"prompt_contains": "Item 000.", "schemes": ["Q8_0"], "replies": replies})
    flags = write_inputs(tmp_path)
    (tmp_path / "script.json").write_text(json.dumps(script))
    prepared = prepare_sweep(flags | {"task_limit": "5", "determinism_tasks": "2"}, None)
    rows = {row.quant_tag: row for row in run_sweep(prepared, SilentObserver()).sessions[0].per_quant}
    found = rows["Q8_0"].determinism
    assert found is not None
    assert (found.deterministic, found.same_output_rate, found.same_outcome_rate) == (False, 0.5, 1.0)
    assert found.first_divergence is not None
    assert (found.first_divergence.task_id, found.first_divergence.position) == ("t000", 5)
    assert (found.first_divergence.first, found.first_divergence.second) == ("so it is", "or not")
    assert rows["F16"].determinism is not None
    assert rows["F16"].determinism.deterministic
