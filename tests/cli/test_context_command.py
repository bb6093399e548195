"""`fewbits context`: whole sweeps on the scripted runtime, the artifacts that they leave, the gate over them, and a real one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fewbits.cli.main import main
from fewbits.core.codec import text_digest
from fewbits.core.errors import BackendError
from fewbits.records.context import LongTaskKind, kind_and_depth
from fewbits.records.plan import Controls
from fewbits.records.task import Task
from fewbits.records.variant import Variant
from fewbits.runtimes.scripted.runtime import ScriptedRuntime, ScriptedSession
from fewbits.store.history import read_history
from fewbits.sweep.progress import SilentObserver
from fewbits.workloads.text.bank import load_bank
from fewbits.workloads.text.long_context import (
    LongTaskPlan,
    calibration_prompts,
    extraction_sources,
    long_bank,
    measured_density,
)

EFFECTIVE = 767
"""What the scripted engine says it has, whatever was asked for: enough for 600 to 700, and within an engine's padding of them."""
DEPTHS = (0.2, 0.8)
Answer = Callable[[int, Task], dict[str, Any]]


def tokens_of(prompt: str) -> int:
    return 30 + round(len(prompt) / 5)


def reply(text: str, prompt: str, **changes: Any) -> dict[str, Any]:
    """A declared reply: nothing is waited for."""
    times = {"prompt_ms": 900.0, "predicted_ms": 90.0, "wall_seconds": 1.0, "first_output_seconds": 0.905}
    return {"text": text, "prompt_tokens": tokens_of(prompt), "output_tokens": 4, **times, **changes}


def right(context: int, task: Task) -> dict[str, Any]:
    return reply(task.reference_answer, task.prompt)


class Lab:
    """A bank, and scripts for the very prompts that a context sweep over it will ask."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder / "out"
        self.history = folder / "history"
        checks = [{"kind": "regex", "pattern": "Bob"}]
        tasks = [
            {"id": f"ask-{n}", "bucket": "extraction", "tier": 1, "checks": checks, "max_tokens": 20, "reference_answer": "Bob"}
            | {"prompt": f"Note {n} is by Bob.\n\nWho wrote note {n}?", "wrong_answers": ["Ann"]}
            for n in range(4)
        ]
        self.bank = folder / "bank.json"
        self.bank.write_text(json.dumps({"name": "tiny", "version": "1", "tasks": tasks}))

    def plan(self, per_depth: int = 1) -> LongTaskPlan:
        sources = extraction_sources(load_bank(self.bank).bank, len(DEPTHS) * per_depth)
        return LongTaskPlan(depths=DEPTHS, tasks_per_depth=per_depth, seed=1337, answer_tokens=128, sources=sources)

    def script(self, contexts: tuple[int, ...], answer: Answer = right, *, per_depth: int = 1, **changes: Any) -> Path:
        """Write a script that answers every task of every context as `answer` says."""
        plan = self.plan(per_depth)
        prompts = calibration_prompts(plan, min(contexts))
        density = measured_density("tiny", prompts, [tokens_of(prompt) for prompt in prompts])
        rules = [(prompt, reply("x", prompt, output_tokens=1)) for prompt in prompts]
        for context in contexts:
            rules += [(task.prompt, answer(context, task)) for task in long_bank(plan, context, density).tasks]
        whole = {
            "schema_version": "fewbits.script.v1",
            "rules": [{"prompt_sha256": text_digest(prompt), "replies": [made]} for prompt, made in rules],
            "default": reply("hello", "hello"),
            "effective_controls": {"context_size": EFFECTIVE},
        }
        path = self.folder / "script.json"
        path.write_text(json.dumps(whole | changes))
        return path

    def words(self, script: Path, contexts: str, *more: str) -> list[str]:
        words = [
            "context",
            "sweep",
            "--contexts",
            contexts,
            "--model-id",
            "tiny",
            "--quant-tags",
            "Q8_0",
            "--runtime",
            "scripted",
        ]
        words += ["--script", str(script), "--task-bank", str(self.bank), "--depths", "0.2,0.8", "--tasks-per-depth", "1"]
        words += ["--out-dir", str(self.out), "--storage-root", str(self.history), "--provenance-ref", "test:1"]
        # these tests share the machine with others, which must not decide what passes
        return [*words, "--row-max-polluted-rate", "1", "--rerun-budget-ratio", "0", *more]

    def ceiling(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.out / "context_ceiling.json").read_text())
        return document

    def points(self) -> list[dict[str, Any]]:
        points: list[dict[str, Any]] = self.ceiling()["ceilings"][0]["points"]
        return points

    def check(self, *more: str) -> int:
        ceiling, rollup = self.out / "context_ceiling.json", self.out / "context_sweep_rollup.json"
        return main(["context", "check", "--context-ceiling", str(ceiling), "--rollup", str(rollup), *more])


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    return Lab(tmp_path)


class TestSweep:
    def test_all_contexts_pass(self, lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
        script = lab.script((600, 700))
        assert main(lab.words(script, "700,600,700")) == 0
        assert "Up to 700 tokens is safe" in capsys.readouterr().out
        artifact = lab.ceiling()
        assert artifact["schema_version"] == "explorer.context_ceiling.v1"
        assert (artifact["contexts"], artifact["provenance"]["ref"]) == ([600, 700], "test:1")
        assert artifact["ceilings"][0]["safe_context_ceiling"] == 700
        for point, context in zip(lab.points(), (600, 700), strict=True):
            assert (point["context"], point["context_effective"], point["passed"], point["reasons"]) == (context, 767, True, [])
            assert point["adherence"]["value"] == 1.0
            assert point["fill_ratio"] >= 0.7
            assert point["headroom_tokens"] >= 0
            assert point["prompt_tokens_min"] <= point["prompt_tokens"] <= point["prompt_tokens_max"]
            assert point["ttft_ms"]["value"] == 905.0
            assert point["trials"] == 5
            assert {score["kind"] for score in point["adherence_by_depth"]} == set(LongTaskKind)
            assert (lab.out / point["summary_path"]).name == f"context_{context}_summary.json"
        assert [point["retention"] and point["retention"]["value"] for point in lab.points()] == [None, 1.0]
        assert lab.points()[0]["unavailable"]["retention"] == "NO_REFERENCE"

    def test_each_context_is_an_ordinary_sweep_of_that_context(self, lab: Lab) -> None:
        main(lab.words(lab.script((600, 700)), "600,700", "--runs", "2", "--seed", "1337"))
        for context in (600, 700):
            summary = json.loads((lab.out / f"context_{context}_summary.json").read_text())
            assert summary["experimental_controls"]["context_size"] == context
            assert summary["controls_effective"]["context_size"] == [767]
            assert (summary["complete"], summary["trials_counted"], summary["canary"]["enabled"]) == (True, 10, False)
            assert main(["verify", str(lab.out / f"context_{context}")]) == 0

    def test_the_report_answers_first_and_hides_nothing(self, lab: Lab) -> None:
        def half(context: int, task: Task) -> dict[str, Any]:
            return right(context, task) if context == 600 else reply("no idea", task.prompt)

        main(lab.words(lab.script((600, 700), half), "600,700"))
        report = (lab.out / "context_report.md").read_text()
        assert report.startswith(
            "# How much context is safe\n\n## `Q8_0` of `tiny`: 600 tokens\n\n> Up to 600 tokens is safe: 700"
        )
        assert "`ADHERENCE_BELOW_MIN`, `RETENTION_BELOW_MIN`" in report
        assert "recall at 0.8" in report

    def test_a_context_above_a_failing_one_does_not_count(self, lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
        """The older tool took the largest that passes; work of any length up to it would meet the failing one."""

        def middle_fails(context: int, task: Task) -> dict[str, Any]:
            return reply("no idea", task.prompt) if context == 650 else right(context, task)

        assert main(lab.words(lab.script((600, 650, 700), middle_fails), "600,650,700")) == 0
        assert [point["passed"] for point in lab.points()] == [True, False, True]
        assert lab.ceiling()["ceilings"][0]["safe_context_ceiling"] == 600
        assert "700 tokens passed above a failing one, which does not count" in capsys.readouterr().out
        rollup = json.loads((lab.out / "context_sweep_rollup.json").read_text())
        assert (rollup["safe_context_ceiling"], rollup["contexts_passed"], rollup["failed_contexts"]) == (600, 2, [650])

    def test_no_context_is_safe_when_the_smallest_fails(self, lab: Lab) -> None:
        script = lab.script((600, 700), lambda context, task: reply("no idea", task.prompt))
        assert main(lab.words(script, "600,700")) == 0
        assert lab.ceiling()["ceilings"][0]["safe_context_ceiling"] is None
        # nothing to compare with is a failure of the limit, never a pass
        assert lab.points()[1]["reasons"] == ["ADHERENCE_BELOW_MIN", "RETENTION_MISSING"]
        assert lab.points()[1]["unavailable"]["retention"] == "ZERO_DENOMINATOR"

    def test_limits_of_the_clock(self, lab: Lab) -> None:
        def slower(context: int, task: Task) -> dict[str, Any]:
            slow = {"first_output_seconds": 1.95, "wall_seconds": 9.0, "prompt_ms": 1900.0, "predicted_ms": 7000.0}
            return reply(task.reference_answer, task.prompt, **(slow if context == 700 else {}))

        words = lab.words(lab.script((600, 700), slower), "600,700", "--ttft-ceiling-ms", "1000", "--decode-floor-tps", "10")
        assert main(words) == 0
        assert lab.points()[0]["passed"]
        assert lab.points()[1]["reasons"] == ["TTFT_ABOVE_CEILING", "DECODE_TPS_BELOW_FLOOR"]
        assert main([*words, "--ttft-ceiling-ms", "none", "--decode-floor-tps", "none"]) == 0
        assert lab.ceiling()["ceilings"][0]["safe_context_ceiling"] == 700
        assert lab.ceiling()["thresholds"]["ttft_ceiling_ms"] is None

    def test_a_limit_without_its_number_fails(self, lab: Lab) -> None:
        def in_one_piece(context: int, task: Task) -> dict[str, Any]:
            return reply(task.reference_answer, task.prompt, first_output_seconds=None)

        assert main(lab.words(lab.script((600,), in_one_piece), "600")) == 0
        assert lab.points()[0]["reasons"] == ["TTFT_MISSING"]
        assert lab.points()[0]["unavailable"]["ttft_ms"] == "NOT_STREAMED"

    def test_a_context_that_was_not_filled_fails(self, lab: Lab) -> None:
        script = lab.script((600,), lambda context, task: reply(task.reference_answer, task.prompt, prompt_tokens=300))
        assert main(lab.words(script, "600")) == 0
        assert lab.points()[0]["reasons"] == ["CONTEXT_NOT_FILLED"]
        assert lab.points()[0]["fill_ratio"] == 0.5

    def test_a_prompt_that_cannot_have_fitted_fails(self, lab: Lab) -> None:
        """A server that cuts prompts silently reports as many tokens as it has."""
        script = lab.script((600,), lambda context, task: reply(task.reference_answer, task.prompt, prompt_tokens=599))
        assert main(lab.words(script, "600")) == 0
        assert lab.points()[0]["reasons"] == ["PROMPT_OVERFLOW"]
        assert lab.points()[0]["headroom_tokens"] < 0

    def test_an_engine_that_gives_less_runs_no_trial(self, lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(lab.words(lab.script((700,)), "700,1000")) == 0
        point = lab.points()[1]
        assert (point["reasons"], point["context_effective"], point["trials"]) == (["CONTEXT_NOT_APPLIED"], 767, 0)
        assert point["summary_path"] is None
        assert "the engine gave 767 of 1,000 tokens" in capsys.readouterr().err
        assert lab.check() == 0

    def test_a_context_that_nobody_can_read_back_fails(self, lab: Lab) -> None:
        assert main(lab.words(lab.script((600,), effective_controls=None), "600")) == 0
        point = lab.points()[0]
        assert (point["reasons"], point["context_effective"]) == (["CONTEXT_NOT_APPLIED"], None)
        assert point["adherence"]["value"] == 1.0  # measured all the same
        assert lab.ceiling()["ceilings"][0]["safe_context_ceiling"] is None

    def test_an_engine_without_token_counts(self, lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
        no_counts = reply("Bob", "", prompt_tokens=None, output_tokens=None)
        assert main(lab.words(lab.script((700,), rules=[], default=no_counts), "700")) == 0
        assert "assuming 3.3 characters per token" in capsys.readouterr().err
        assert {"FILL_MISSING", "INVALID_ROW", "DECODE_TPS_MISSING"} <= set(lab.points()[0]["reasons"])
        assert json.loads((lab.out / "context_plan.json").read_text())["densities"][0]["measured"] is False


class TestEngineTroubles:
    def test_a_model_that_cannot_be_loaded(self, lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
        script = lab.script((600, 700), load_failure="out of memory")
        assert main(lab.words(script, "600,700")) == 1
        assert [point["reasons"] for point in lab.points()] == [["LOAD_FAILED"], ["NOT_RUN"]]
        assert "out of memory" in lab.points()[0]["detail"]
        assert lab.points()[1]["detail"] == "600 tokens could not be run"
        assert "no context could be run" in capsys.readouterr().err
        assert lab.check() == 0  # the artifacts are consistent: they say that nothing could be run

    def test_a_context_too_large_for_one_variant_only(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        """The variants are tried alone, so the one that fits is measured at every context."""
        load = ScriptedRuntime.open

        def limited(self: ScriptedRuntime, variant: Variant, controls: Controls, timeout: float) -> ScriptedSession:
            if variant.artifact.scheme == "F16" and controls.context_size > 600:
                raise BackendError("scripted", "cannot allocate the KV cache")
            return load(self, variant, controls, timeout)

        monkeypatch.setattr(ScriptedRuntime, "open", limited)
        words = lab.words(lab.script((600, 650, 700)), "600,650,700", "--quant-tags", "F16")
        assert main(words) == 0
        by_tag = {ceiling["quant_tag"]: ceiling for ceiling in lab.ceiling()["ceilings"]}
        assert [point["reasons"] for point in by_tag["F16"]["points"]] == [[], ["CONTEXT_TOO_LARGE"], ["NOT_RUN"]]
        assert "KV cache" in by_tag["F16"]["points"][1]["detail"]
        assert (by_tag["F16"]["safe_context_ceiling"], by_tag["Q8_0"]["safe_context_ceiling"]) == (600, 700)
        rollup = json.loads((lab.out / "context_sweep_rollup.json").read_text())
        assert (rollup["safe_context_ceiling"], rollup["failed_contexts"]) == (600, [650, 700])
        assert lab.check() == 0
        before = lab.ceiling()
        monkeypatch.setattr(ScriptedRuntime, "open", load)
        assert main(words) == 0  # what is settled is not tried again: the plan of 650 was made without F16
        points = lab.ceiling()["ceilings"][1]["points"], before["ceilings"][1]["points"]
        assert points[0] == points[1]
        f16 = next(ceiling for ceiling in lab.ceiling()["ceilings"] if ceiling["quant_tag"] == "F16")
        assert f16["points"][1]["reasons"] == ["CONTEXT_TOO_LARGE"]

    def test_an_engine_that_breaks_down_keeps_what_was_measured(self, lab: Lab) -> None:
        def crash(context: int, task: Task) -> dict[str, Any]:
            return {"failure": "crash"} if context == 650 else right(context, task)

        words = lab.words(lab.script((600, 650, 700), crash, per_depth=2), "600,650,700", "--tasks-per-depth", "2")
        assert main(words) == 0
        assert [point["reasons"] for point in lab.points()] == [[], ["ENGINE_FAILED"], ["NOT_RUN"]]
        assert "crashed 5 times in a row" in lab.points()[1]["detail"]
        assert lab.points()[1]["trials"] == 5
        assert lab.points()[1]["summary_path"] == "context_650_summary.json"
        assert lab.check() == 0

    def test_a_failed_load_is_tried_again_where_nothing_was_measured(self, lab: Lab) -> None:
        assert main(lab.words(lab.script((600, 700), load_failure="busy"), "600,700")) == 1
        assert main(lab.words(lab.script((600, 700)), "600,700")) == 0
        assert lab.ceiling()["ceilings"][0]["safe_context_ceiling"] == 700


class TestResume:
    @pytest.fixture(autouse=True)
    def same_moment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")

    def test_an_interrupted_sweep_goes_on_with_the_same_tasks(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        class Stopper(SilentObserver):
            seen = 0

            def trial_ended(self, trial: object) -> None:
                self.seen += 1
                if self.seen == 7:  # the second trial of the second context
                    raise KeyboardInterrupt

            def close(self) -> None:
                pass

        words = lab.words(lab.script((600, 700)), "600,700")
        with monkeypatch.context() as patch:
            patch.setattr("fewbits.cli.progress.create_observer", Stopper)
            assert main(words) == 130
        assert not (lab.out / "context_ceiling.json").exists()
        tasks = {path: path.read_bytes() for path in lab.out.glob("context_*/tasks.json")}
        journal = (lab.out / "context_600" / "trials.jsonl").read_bytes()
        assert main(words) == 0
        assert (lab.out / "context_600" / "trials.jsonl").read_bytes() == journal
        assert {path: path.read_bytes() for path in lab.out.glob("context_*/tasks.json")} == tasks
        assert lab.points()[1]["trials"] == 5

    def test_running_it_again_changes_nothing(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        words = lab.words(lab.script((600, 700)), "600,700")
        assert main(words) == 0
        before = {path: path.read_bytes() for path in lab.out.rglob("*") if path.is_file()}
        monkeypatch.setenv("SOURCE_DATE_EPOCH", "1800000000")
        assert main(words) == 0
        assert {path: path.read_bytes() for path in lab.out.rglob("*") if path.is_file()} == before
        (history,) = lab.history.glob("*.json")
        assert len(read_history(history)) == 1

    def test_a_larger_context_can_be_added(self, lab: Lab) -> None:
        script = lab.script((600, 700))
        assert main(lab.words(script, "600")) == 0
        journal = (lab.out / "context_600" / "trials.jsonl").read_bytes()
        assert main(lab.words(script, "600,700")) == 0
        assert (lab.out / "context_600" / "trials.jsonl").read_bytes() == journal
        assert [point["passed"] for point in lab.points()] == [True, True]
        (history,) = lab.history.glob("*.json")
        assert [len(entry["ceilings"][0]["points"]) for entry in read_history(history)] == [1, 2]

    def test_other_tasks_need_another_folder(self, lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
        words = lab.words(lab.script((600,)), "600")
        assert main(words) == 0
        assert main([*words, "--seed", "5", "--dry-run"]) == 0  # a dry run looks at no folder
        capsys.readouterr()
        assert main([*words, "--seed", "5"]) == 2
        said = capsys.readouterr().err
        assert "seed: 5 now, 1337 then" in said
        assert "--fresh" in said
        assert main([*words, "--fresh"]) == 0
        shelf = lab.out / "context_600" / "superseded" / "1"
        assert {"trials.jsonl", "plan.json", "tasks.json", "context_600_summary.json"} <= {path.name for path in shelf.iterdir()}

    def test_histories_are_one_per_variant_and_can_be_left_out(self, lab: Lab) -> None:
        script = lab.script((600,))
        assert main(lab.words(script, "600", "--no-history")) == 0
        assert not lab.history.exists()
        shutil.rmtree(lab.out)
        assert main(lab.words(script, "600", "--quant-tags", "F16")) == 0
        entries = [read_history(path) for path in sorted(lab.history.glob("*.json"))]
        tags = [ceiling["quant_tag"] for (entry,) in entries for ceiling in entry["ceilings"]]
        assert sorted(tags) == ["F16", "Q8_0"]


class TestDryRun:
    def test_it_touches_nothing(self, lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
        script = lab.script((600, 700))
        before = sorted(lab.folder.rglob("*"))
        assert main(lab.words(script, "600,700", "--dry-run", "--json")) == 0
        document = json.loads(capsys.readouterr().out)["dry_run"]
        assert sorted(lab.folder.rglob("*")) == before
        assert [row["context"] for row in document["contexts"]] == [600, 700]
        assert document["trials_total"] == 10
        assert {kind_and_depth(task) is not None for task in document["tasks"]} == {True}
        assert document["contexts"][1]["trial_timeout_seconds"] == 190.0

    def test_the_runbooks_command_is_understood(self, lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
        words = "--contexts 4096,8192,16384 --model-id smollm2-135m --quant-tags Q8_0 --execution-lane lab --vram-profile safe"
        words += " --task-bank benchmarks/task_bank/v2_realworld/tasks.json --out-dir benchmarks/results/context_sweep --dry-run"
        assert main(["context", "sweep", *words.split()]) == 0
        said = capsys.readouterr().out
        assert "16,384" in said
        assert "28 per context" in said

    def test_contexts_and_limits_come_from_the_profile(self, lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["context", "sweep", "--model-id", "smollm2-135m", "--quant-tags", "Q8_0", "--dry-run", "--json"]
        found = {}
        for more in (["--vram-profile", "stress"], ["--context-profile", "balanced", "--adherence-min", "0.5"], []):
            assert main([*words, *more]) == 0
            document = json.loads(capsys.readouterr().out)["dry_run"]
            limits = document["thresholds"]
            found[limits["profile"]] = (document["contexts"][0]["context"], limits["adherence_min"], limits["ttft_ceiling_ms"])
        assert found == {"stress": (8192, 0.1, None), "balanced": (4096, 0.5, 180000.0), "safe": (2048, 0.1, 60000.0)}


class TestBadInput:
    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--contexts", "12"], "no context size"),
            (["--contexts", "many"], "no context size"),
            (["--contexts", ","], "give 1 to 32 context sizes"),
            (["--contexts", "100", "--max-tokens", "60"], "--contexts: 100 tokens are too few for"),
            (["--depths", "0.5,1.5"], "--depths"),
            (["--depths", "x"], "--depths"),
            (["--depths", "nan"], "--depths"),
            (["--depths", "0.12345"], "3 decimals"),
            (["--adherence-min", "1.5"], "adherence_min"),
            (["--adherence-min", "much"], "--adherence-min"),
            (["--ttft-ceiling-ms", "0"], "ttft_ceiling_ms"),
            (["--decode-floor-tps", "-1"], "decode_floor_tps"),
            (["--context-profile", "saef"], "--context-profile: there is no context profile 'saef' (did you mean 'safe'?)"),
            (["--vram-profile", "huge"], "--vram-profile: there is no context profile 'huge'"),
            (["--context-profiles-config", "absent.json"], "--context-profiles-config: cannot read absent.json"),
            (["--model-id", "other"], "--model-id: 2 models"),
            (["--task-bank", "absent.json"], "no such task bank"),
            (["--seed", "x"], "--seed"),
            (["--max-tokens", "900"], "--max-tokens: max_tokens 900 leaves no room"),
            (["--tasks-per-depth", "0"], "--tasks-per-depth"),
        ],
    )
    def test_one_message_and_nothing_written(
        self, lab: Lab, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        try:
            code = main(lab.words(lab.script((600,)), "600", *more))
        except SystemExit as ended:  # usage errors
            code = int(str(ended.code))
        said = capsys.readouterr().err
        assert code == 2
        assert message in said
        assert "Traceback" not in said
        assert not list(lab.out.glob("*.json"))

    def test_a_bank_without_passages(self, lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
        bank = json.loads(lab.bank.read_text())
        for task in bank["tasks"]:
            task["prompt"] = task["prompt"].replace("\n", " ")
        lab.bank.write_text(json.dumps(bank))
        path = lab.folder / "script.json"
        path.write_text(json.dumps({"schema_version": "fewbits.script.v1", "default": {"text": "1"}}))
        assert main(lab.words(path, "600")) == 2
        assert "no extraction task of this bank" in capsys.readouterr().err

    def test_a_damaged_plan_is_told_and_kept(self, lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
        words = lab.words(lab.script((600,)), "600")
        assert main(words) == 0
        plan = lab.out / "context_plan.json"
        plan.write_text(plan.read_text()[:100])
        assert main(words) == 2
        assert "context_plan.json" in capsys.readouterr().err
        assert len(plan.read_text()) == 100

    def test_a_damaged_artifact_is_written_again(self, lab: Lab) -> None:
        words = lab.words(lab.script((600,)), "600")
        assert main(words) == 0
        path = lab.out / "context_ceiling.json"
        before = json.loads(path.read_text())
        path.write_text("{")
        assert main(words) == 0
        assert lab.ceiling() | {"generated_at": ""} == before | {"generated_at": ""}


class TestCeilingFromSummaries:
    @pytest.fixture
    def finished(self, lab: Lab) -> Lab:
        def loses(context: int, task: Task) -> dict[str, Any]:
            good = context == 600 or kind_and_depth(task.id) != (LongTaskKind.RECALL, 0.2)
            return right(context, task) if good else reply("no idea", task.prompt)

        assert main(lab.words(lab.script((600, 700), loses), "600,700", "--adherence-retention-min", "none")) == 0
        return lab

    def words(self, lab: Lab, *more: str) -> list[str]:
        template = str(lab.out / "context_{context}_summary.json")
        return ["context", "ceiling", "--summary-template", template, "--contexts", "600,700", "--json", *more]

    def judge(self, lab: Lab, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
        capsys.readouterr()
        assert main(self.words(lab, "--out", str(lab.out / "again.json"), *more)) == 0
        said = capsys.readouterr().out
        assert said == (lab.out / "again.json").read_text()
        document: dict[str, Any] = json.loads(said)
        return document

    def test_other_limits_without_an_engine(self, finished: Lab, capsys: pytest.CaptureFixture[str]) -> None:
        assert finished.ceiling()["ceilings"][0]["safe_context_ceiling"] == 700
        again = self.judge(finished, capsys, "--adherence-retention-min", "0.9")["ceilings"][0]
        assert again["safe_context_ceiling"] == 600
        point = again["points"][1]
        assert point["reasons"] == ["RETENTION_BELOW_MIN"]
        assert point["retention"]["value"] == 0.8
        assert point["retention"]["low"] is None
        assert point["uncertain"] == ["RETENTION_BELOW_MIN"]

    def test_what_summaries_do_not_tell_is_null_and_not_checked(self, finished: Lab, capsys: pytest.CaptureFixture[str]) -> None:
        again = self.judge(finished, capsys, "--adherence-retention-min", "none")
        point = again["ceilings"][0]["points"][0]
        assert again["thresholds"]["fill_min"] is None
        assert (point["fill_ratio"], point["prompt_tokens"], point["adherence_by_depth"]) == (None, None, [])
        assert point["unavailable"]["fill_ratio"] == "NOT_MEASURED"
        assert point["passed"]

    def test_with_the_run_folders_it_is_the_same_as_the_sweep(self, finished: Lab, capsys: pytest.CaptureFixture[str]) -> None:
        runs = str(finished.out / "context_{context}")
        more = ["--run-template", runs, "--adherence-retention-min", "none", "--provenance-ref", "test:1"]
        again = self.judge(finished, capsys, *more)
        assert again | {"generated_at": ""} == finished.ceiling() | {"generated_at": ""}

    def test_a_missing_summary_fails_its_context(self, finished: Lab, capsys: pytest.CaptureFixture[str]) -> None:
        (finished.out / "context_600_summary.json").unlink()
        again = self.judge(finished, capsys)["ceilings"][0]
        assert again["safe_context_ceiling"] is None
        assert [point["reasons"] for point in again["points"]] == [["NO_SUMMARY"], ["RETENTION_MISSING"]]

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--summary-template", "nothing/context_{context}.json"], "no summary of any context"),
            (["--summary-template", "context.json"], "has no {context}"),
            (["--model-id", "tinny"], "--model-id: no summary has 'tinny'"),
            (["--quant-tags", "Q9"], "--quant-tags: no summary has 'Q9'"),
            (["--run-template", "nowhere_{context}"], "not a run folder"),
        ],
    )
    def test_unusable_input(self, finished: Lab, more: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
        out = finished.folder / "never.json"
        assert main([*self.words(finished, "--out", str(out)), *more]) == 2
        assert message in capsys.readouterr().err
        assert not out.exists()

    def test_the_summary_of_another_context_is_refused(self, finished: Lab, capsys: pytest.CaptureFixture[str]) -> None:
        shutil.copy(finished.out / "context_600_summary.json", finished.out / "context_700_summary.json")
        assert main(self.words(finished, "--out", str(finished.out / "again.json"))) == 2
        assert "was measured with a context of 600 tokens, not 700" in capsys.readouterr().err

    def test_summaries_of_two_machines_are_refused(self, finished: Lab, capsys: pytest.CaptureFixture[str]) -> None:
        path = finished.out / "context_700_summary.json"
        document = json.loads(path.read_text())
        path.write_text(json.dumps(document | {"hardware_fingerprint": "another"}))
        assert main(self.words(finished, "--out", str(finished.out / "again.json"))) == 2
        assert "differ in hardware_fingerprint" in capsys.readouterr().err

    def test_a_summary_that_is_not_its_folders_is_refused(self, finished: Lab, capsys: pytest.CaptureFixture[str]) -> None:
        path = finished.out / "context_700_summary.json"
        document = json.loads(path.read_text())
        document["provenance"]["journal_digest"] = "0" * 64
        path.write_text(json.dumps(document))
        words = self.words(finished, "--out", str(finished.out / "again.json"))
        assert main([*words, "--run-template", str(finished.out / "context_{context}")]) == 2
        assert "is not the summary of the journal" in capsys.readouterr().err

    def test_an_input_is_not_written_over(self, finished: Lab, capsys: pytest.CaptureFixture[str]) -> None:
        path = finished.out / "context_600_summary.json"
        before = path.read_bytes()
        assert main(self.words(finished, "--out", str(path))) == 2
        assert "--out" in capsys.readouterr().err
        assert path.read_bytes() == before


class TestCheck:
    @pytest.fixture
    def finished(self, lab: Lab) -> Lab:
        def middle_fails(context: int, task: Task) -> dict[str, Any]:
            return reply("no idea", task.prompt) if context == 650 else right(context, task)

        assert main(lab.words(lab.script((600, 650, 700), middle_fails), "600,650,700")) == 0
        return lab

    def edit(self, path: Path, change: Callable[[dict[str, Any]], None]) -> None:
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))

    def codes(self, lab: Lab, capsys: pytest.CaptureFixture[str], *more: str) -> set[str]:
        capsys.readouterr()
        assert lab.check("--json", *more) == 2
        report = json.loads(capsys.readouterr().out)
        assert report["status"] == "FAIL"
        return {check["code"] for check in report["checks"] if check["code"]}

    def test_good_artifacts_pass(self, finished: Lab, capsys: pytest.CaptureFixture[str]) -> None:
        assert finished.check("--contexts", "600,650,700", "--junit", str(finished.folder / "junit.xml")) == 0
        assert "context: PASS" in capsys.readouterr().out
        assert b"testsuite" in (finished.folder / "junit.xml").read_bytes()

    def test_a_ceiling_above_a_failing_context_is_found(self, finished: Lab, capsys: pytest.CaptureFixture[str]) -> None:
        """What the older tool wrote."""
        self.edit(finished.out / "context_ceiling.json", lambda tree: tree["ceilings"][0].update(safe_context_ceiling=700))
        assert self.codes(finished, capsys) >= {"SAFE_CEILING_MISMATCH", "SOURCE_DIGEST_MISMATCH"}

    def test_a_verdict_that_the_numbers_do_not_give_is_found(self, finished: Lab, capsys: pytest.CaptureFixture[str]) -> None:
        def forgive(tree: dict[str, Any]) -> None:
            tree["ceilings"][0]["points"][1].update(passed=True, reasons=[])

        self.edit(finished.out / "context_ceiling.json", forgive)
        assert "POINT_VERDICT_MISMATCH" in self.codes(finished, capsys)

    @pytest.mark.parametrize(
        ("changes", "code"),
        [
            ({"contexts_total": 4}, "TOTAL_COUNT_MISMATCH"),
            ({"contexts_passed": 3}, "PASSED_COUNT_MISMATCH"),
            ({"contexts_failed": 0}, "FAILED_COUNT_MISMATCH"),
            ({"failed_contexts": []}, "FAILED_CONTEXTS_MISMATCH"),
            ({"safe_context_ceiling": 700}, "SAFE_CEILING_MISMATCH"),
            ({"variants": []}, "VARIANTS_MISMATCH"),
        ],
    )
    def test_a_rollup_that_counts_wrong(
        self, finished: Lab, changes: dict[str, Any], code: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.edit(finished.out / "context_sweep_rollup.json", lambda tree: tree.update(changes))
        assert self.codes(finished, capsys) == {code}

    def test_refs(self, finished: Lab, capsys: pytest.CaptureFixture[str]) -> None:
        self.edit(finished.out / "context_sweep_rollup.json", lambda tree: tree["provenance"].update(ref="other"))
        assert self.codes(finished, capsys) == {"PROVENANCE_REF_MISMATCH"}
        self.edit(finished.out / "context_sweep_rollup.json", lambda tree: tree["provenance"].update(ref="  "))
        assert self.codes(finished, capsys) == {"PROVENANCE_REF_MISMATCH", "MISSING_PROVENANCE_REF"}

    def test_a_sweep_without_a_ref_does_not_pass_the_gate(self, lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(lab.words(lab.script((600,)), "600", "--provenance-ref", "")) == 0
        assert self.codes(lab, capsys) == {"MISSING_PROVENANCE_REF"}

    def test_contexts_that_were_asked_for(self, finished: Lab, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.codes(finished, capsys, "--contexts", "600,650,700,4096") == {"MISSING_CONTEXT_POINTS"}

    def test_summaries(self, finished: Lab, capsys: pytest.CaptureFixture[str]) -> None:
        path = finished.out / "context_650_summary.json"
        path.write_text(path.read_text() + "\n")
        assert self.codes(finished, capsys) == {"SUMMARY_DIGEST_MISMATCH"}
        path.write_text("{")
        assert self.codes(finished, capsys) == {"UNREADABLE_CONTEXT_SUMMARY"}
        path.unlink()
        assert self.codes(finished, capsys) == {"MISSING_CONTEXT_SUMMARY_FILE"}

    def test_a_point_that_says_other_than_its_summary(self, finished: Lab, capsys: pytest.CaptureFixture[str]) -> None:
        def flatter(tree: dict[str, Any]) -> None:
            tree["ceilings"][0]["points"][2]["decode_tps"] = 99.0

        self.edit(finished.out / "context_ceiling.json", flatter)
        assert self.codes(finished, capsys) == {"POINT_DIFFERS_FROM_SUMMARY", "SOURCE_DIGEST_MISMATCH"}

    def test_a_recorded_path_may_not_lead_out_of_the_folder(self, finished: Lab, capsys: pytest.CaptureFixture[str]) -> None:
        for path in ("../context_600_summary.json", "/etc/passwd"):
            self.edit(
                finished.out / "context_ceiling.json",
                lambda tree: tree["ceilings"][0]["points"][0].update(summary_path=path),  # noqa: B023
            )
            assert "UNSAFE_SUMMARY_PATH" in self.codes(finished, capsys)

    def test_a_moved_folder_still_passes(self, finished: Lab) -> None:
        moved = finished.folder / "elsewhere"
        finished.out.rename(moved)
        finished.out = moved
        assert finished.check() == 0

    def test_profiles_must_loosen(self, finished: Lab, capsys: pytest.CaptureFixture[str]) -> None:
        source = Path(__file__).resolve().parents[2] / "benchmarks/configs/context_profiles.json"
        path = finished.folder / "profiles.json"
        changes: tuple[tuple[str, dict[str, Any], str], ...] = (
            ("stress", {"adherence_retention_min": 0.99}, "LIMIT_TIGHTENS"),
            ("balanced", {"ttft_ceiling_ms": 5}, "LIMIT_TIGHTENS"),
            ("safe", {"decode_floor_tps": None}, "LIMIT_TIGHTENS"),
            ("safe", {"contexts": [4096, 2048]}, "CONTEXTS_NOT_ASCENDING"),
            ("stress", {}, "MISSING_CONTEXT_PROFILE"),
        )
        for name, change, code in changes:
            document = json.loads(source.read_text())
            profile = document["profiles"].pop(name) | change
            if change:
                document["profiles"][name] = profile
            path.write_text(json.dumps(document))
            assert self.codes(finished, capsys, "--context-profiles-config", str(path)) == {code}

    @pytest.mark.parametrize("content", ["", "[]", "{", '{"schema_version": "explorer.context_ceiling.v2"}', '{"a": 1}'])
    def test_files_that_are_no_artifacts(self, finished: Lab, content: str, capsys: pytest.CaptureFixture[str]) -> None:
        (finished.out / "context_ceiling.json").write_text(content)
        assert finished.check() == 2
        said = capsys.readouterr().err
        assert "context_ceiling.json" in said
        assert "Traceback" not in said

    def test_rollup_command(self, finished: Lab, capsys: pytest.CaptureFixture[str]) -> None:
        ceiling, out = finished.out / "context_ceiling.json", finished.out / "second.json"
        assert main(["context", "rollup", "--context-ceiling", str(ceiling), "--out", str(out)]) == 0
        assert "safe ceiling 600 tokens, 2 of 3 contexts passed" in capsys.readouterr().out
        assert out.read_bytes() == (finished.out / "context_sweep_rollup.json").read_bytes()
        assert main(["context", "rollup", "--context-ceiling", str(ceiling), "--out", str(ceiling)]) == 2


@pytest.mark.real
@pytest.mark.xdist_group("engine")
def test_a_real_model_at_two_contexts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The packaged model on the packaged engine: the context is read back, the prompts fill it, the artifacts agree."""
    out = tmp_path / "out"
    words = [
        "context",
        "sweep",
        "--contexts",
        "512,1024",
        "--model-id",
        "smollm2-135m",
        "--quant-tags",
        "Q8_0",
        "--depths",
        "0.9",
    ]
    words += ["--tasks-per-depth", "1", "--max-tokens", "32", "--out-dir", str(out), "--no-history", "--provenance-ref", "real:1"]
    words += ["--warmup-steps", "0", "--rerun-budget-ratio", "0", "--include-invalid"]  # this test shares the machine
    assert main(words) == 0
    artifact = json.loads((out / "context_ceiling.json").read_text())
    (ceiling,) = artifact["ceilings"]
    assert ceiling["trained_context"] == 8192
    assert len(ceiling["variant_sha256"]) == 64
    for point, context in zip(ceiling["points"], (512, 1024), strict=True):
        assert point["context_effective"] == point["context"] == context
        assert point["fill_ratio"] >= 0.7
        assert point["headroom_tokens"] >= 0
        assert point["trials"] == 3
        assert set(point["invalid_reasons"]) <= {"POLLUTED", "NO_CLEAN_TRIALS"}
        assert point["ttft_ms"]["value"] > 0
        assert point["decode_tps"] > 0
        assert point["peak_memory_bytes"] > 50_000_000
    first, second = ceiling["points"]
    assert second["prompt_tokens"] > 1.8 * first["prompt_tokens"]
    assert second["kv_cache_bytes"] == 2 * first["kv_cache_bytes"]
    rollup = out / "context_sweep_rollup.json"
    assert main(["context", "check", "--context-ceiling", str(out / "context_ceiling.json"), "--rollup", str(rollup)]) == 0
    assert "context: PASS" in capsys.readouterr().out
