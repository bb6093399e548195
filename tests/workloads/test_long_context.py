"""Tasks that grow: the same questions in longer texts, facts where they belong, lengths that fit, checks that can fail."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.core.codec import encode_pretty
from fewbits.core.errors import SpecError
from fewbits.records.base import Bucket
from fewbits.records.context import LongTaskKind, TokenDensity, kind_and_depth, long_task_id
from fewbits.records.task import RegexCheck, Task, TaskBank
from fewbits.workloads.text.bank import bank_of, load_bank, parse_bank, validate_bank
from fewbits.workloads.text.long_context import (
    _NAMES,
    MAX_DEPTHS,
    Blueprint,
    LongTaskPlan,
    assumed_density,
    blueprints,
    calibration_prompts,
    extraction_sources,
    filler_characters,
    filler_sentences,
    long_bank,
    measured_density,
)

ROOT = Path(__file__).resolve().parents[2]
DENSITY = TokenDensity(
    model_id="m",
    measured=True,
    detail="",
    template_tokens=30,
    filler_tokens_per_character=0.2,
    task_tokens_per_character=0.3,
)


def shipped_bank() -> TaskBank:
    return load_bank(ROOT / "benchmarks/task_bank/v2_realworld/tasks.json").bank


def plan_of(*, depths: tuple[float, ...] = (0.1, 0.5, 0.9), per_depth: int = 2, seed: int = 1337) -> LongTaskPlan:
    sources = extraction_sources(shipped_bank(), len(depths) * per_depth)
    return LongTaskPlan(depths=depths, tasks_per_depth=per_depth, seed=seed, answer_tokens=128, sources=sources)


def task_of(prompt: str, *, task_id: str = "a", bucket: Bucket = Bucket.EXTRACTION, tier: int = 1) -> Task:
    return Task(id=task_id, bucket=bucket, tier=tier, prompt=prompt, checks=(RegexCheck(pattern="x"),))


def estimated_tokens(blueprint: Blueprint, prompt: str) -> float:
    """What the prompt takes if the density is true of every text."""
    fixed = len(blueprint.fixed_text)
    return 30 + 0.3 * fixed + 0.2 * (len(prompt) - fixed)


class TestBank:
    def test_it_is_an_ordinary_bank_whose_checks_were_shown_to_pass_and_to_fail(self) -> None:
        bank = long_bank(plan_of(), 2048, DENSITY)
        assert validate_bank(bank) == []
        assert parse_bank(encode_pretty(bank), "here").digest == bank_of(bank).digest

    def test_the_same_inputs_give_the_same_bytes(self) -> None:
        first, again, other = (encode_pretty(long_bank(plan_of(seed=seed), 1024, DENSITY)) for seed in (1, 1, 2))
        assert first == again
        assert first != other

    def test_every_kind_at_every_depth(self) -> None:
        ids = [task.id for task in long_bank(plan_of(), 1024, DENSITY).tasks]
        kinds = [kind_and_depth(task_id) for task_id in ids]
        for kind in (LongTaskKind.RECALL, LongTaskKind.EXTRACTION):
            for depth in (0.1, 0.5, 0.9):
                assert kinds.count((kind, depth)) == 2
        assert kinds.count((LongTaskKind.COLLECTION, None)) == 2
        assert len(set(ids)) == len(ids) == 14

    def test_only_the_filler_grows(self) -> None:
        """What is asked, and the answers, are the same at every context: results can be paired by task."""
        small, large = (long_bank(plan_of(), context, DENSITY) for context in (1024, 4096))
        for one, two in zip(small.tasks, large.tasks, strict=True):
            assert (one.id, one.checks, one.reference_answer, one.max_tokens) == (
                two.id,
                two.checks,
                two.reference_answer,
                two.max_tokens,
            )
            assert one.prompt.rpartition("\n\n")[2] == two.prompt.rpartition("\n\n")[2]
            assert len(two.prompt) > 3 * len(one.prompt)

    def test_an_answer_limit_applies_to_every_task(self) -> None:
        plan = LongTaskPlan(depths=(0.5,), tasks_per_depth=1, seed=1, answer_tokens=20, sources=plan_of().sources)
        assert {task.max_tokens for task in long_bank(plan, 1024, DENSITY).tasks} <= {16, 20}

    def test_too_small_a_context_says_what_would_do(self) -> None:
        with pytest.raises(
            SpecError, match=r"--contexts: 128 tokens are too few for recall-d0100-001, which needs about (\d+)"
        ) as caught:
            long_bank(plan_of(), 128, DENSITY)
        found = re.search(r"about (\d+)", str(caught.value))
        assert found is not None
        assert filler_characters(blueprints(plan_of())[0], int(found[1]) + 1, DENSITY) >= 200


class TestLength:
    @settings(max_examples=40, deadline=None)
    @given(context=st.integers(700, 20_000), seed=st.integers(0, 2**31 - 1))
    def test_prompts_fill_the_context_and_leave_room_for_the_answer(self, context: int, seed: int) -> None:
        plan = plan_of(seed=seed, per_depth=1)
        for blueprint, task in zip(blueprints(plan), long_bank(plan, context, DENSITY).tasks, strict=True):
            tokens = estimated_tokens(blueprint, task.prompt)
            assert tokens + (task.max_tokens or 0) <= context
            assert tokens >= 0.9 * (context - (task.max_tokens or 0)) - 0.15 * 0.3 * len(blueprint.fixed_text) - 60

    def test_more_filler_only_adds_sentences(self) -> None:
        few, many = (filler_sentences("key", characters) for characters in (500, 5000))
        assert many[: len(few)] == few
        assert 450 <= len(" ".join(few)) <= 500
        assert filler_sentences("other", 500) != few
        assert filler_sentences("key", 0) == ()

    def test_filler_holds_no_digit_and_no_name_that_a_fact_uses(self) -> None:
        text = " ".join(filler_sentences("key", 400_000))
        assert not re.search(r"\d", text)
        assert not set(re.findall(r"\w+", text.lower())) & {name.lower() for name in _NAMES}
        assert len(set(_NAMES)) == MAX_DEPTHS


class TestPlaces:
    @settings(max_examples=30, deadline=None)
    @given(
        depths=st.lists(st.integers(0, 1000), min_size=1, max_size=6, unique=True),
        seed=st.integers(0, 2**31 - 1),
    )
    def test_a_fact_stands_at_its_depth_once(self, depths: list[int], seed: int) -> None:
        places = tuple(sorted(depth / 1000 for depth in depths))
        plan = LongTaskPlan(depths=places, tasks_per_depth=1, seed=seed, answer_tokens=128, sources=())
        for blueprint, task in zip(blueprints(plan), long_bank(plan, 8192, DENSITY).tasks, strict=True):
            text = task.prompt.removeprefix("Read the following text. A question about it comes at the end.\n\n")
            text = text[: text.rindex("\n\nQuestion:")]
            facts = list(re.finditer(r"The access code of the (\w+) archive is (\d{5})\.", text))
            assert [fact.group(0) for fact in facts] == [words for _, words in blueprint.inserts]
            assert len({fact[1] for fact in facts}) == len({fact[2] for fact in facts}) == len(places)
            for fact, depth in zip(facts, places, strict=True):
                assert fact.start() / len(text) == pytest.approx(depth, abs=0.03)
                assert task.prompt.count(fact[2]) == 1

    def test_a_passage_stands_at_its_depth_and_the_instruction_last(self) -> None:
        plan = plan_of(per_depth=1)
        bank = long_bank(plan, 4096, DENSITY)
        tasks = [task for task in bank.tasks if kind_and_depth(task.id) in {(LongTaskKind.EXTRACTION, d) for d in plan.depths}]
        assert len(tasks) == 3
        for task, source, depth in zip(tasks, plan.sources, plan.depths, strict=True):
            passage, _, instruction = source.prompt.rpartition("\n\n")
            assert task.prompt.count(passage) == 1
            assert task.prompt.index(passage) / len(task.prompt) == pytest.approx(depth, abs=0.08)
            assert task.prompt.endswith(f"only.\n{instruction}")
            assert (task.checks, task.max_tokens, task.tags[-1]) == (source.checks, source.max_tokens, source.id)

    def test_recall_takes_the_asked_code_and_no_other(self) -> None:
        from fewbits.workloads.text.checks import run_checks

        task = long_bank(plan_of(), 1024, DENSITY).tasks[0]
        codes = re.findall(r"\b\d{5}\b", task.prompt)
        right = task.reference_answer
        other = next(code for code in codes if code != right)

        def passes(answer: str) -> bool:
            return all(result.passed == result.total for result in run_checks(task, answer))

        assert passes(f"The access code is {right}.")
        assert passes(f"It is {right}, I repeat: {right}")
        for wrong in (other, f"{right} or {other}", right[:4], f"{right}0", "There is none."):
            assert not passes(wrong), wrong

    def test_a_collection_counts_each_found_code(self) -> None:
        from fewbits.workloads.text.checks import run_checks

        task = next(task for task in long_bank(plan_of(), 1024, DENSITY).tasks if task.id.startswith("collection"))
        codes = task.reference_answer.split(", ")
        assert [result.passed for result in run_checks(task, " ".join(codes[:2]))] == [1, 1, 0]


class TestSources:
    def test_passage_blank_line_instruction(self) -> None:
        bank = TaskBank(
            name="b",
            version="1",
            tasks=(
                task_of("One line. What is it?", task_id="no-passage"),
                task_of("Reply with the name.\n\nHello, I am Ann.", task_id="instruction-first"),
                task_of("Hello, I am Bob.\n\nWho is it?", task_id="hard", tier=4),
                task_of("Hello, I am Cy.\n\nReply with the name only.", task_id="easy"),
                task_of("Hello, I am Di.\n\nWho is it?", task_id="logic", bucket=Bucket.LOGIC),
            ),
        )
        assert [task.id for task in extraction_sources(bank, 9)] == ["easy", "hard"]
        assert [task.id for task in extraction_sources(bank, 1)] == ["easy"]

    def test_the_shipped_bank_has_plenty(self) -> None:
        chosen = extraction_sources(shipped_bank(), 1000)
        assert len(chosen) >= 24
        assert "extraction-014" not in {task.id for task in chosen}  # its instruction comes first

    def test_fewer_sources_than_asked_give_fewer_tasks(self) -> None:
        plan = LongTaskPlan(depths=(0.5,), tasks_per_depth=3, seed=1, answer_tokens=64, sources=plan_of().sources[:1])
        kinds = [blueprint.kind for blueprint in blueprints(plan)]
        assert (kinds.count(LongTaskKind.EXTRACTION), kinds.count(LongTaskKind.RECALL)) == (1, 3)


class TestDensity:
    @settings(max_examples=60, deadline=None)
    @given(
        template=st.integers(0, 200),
        filler=st.floats(0.12, 0.5),
        task=st.floats(0.15, 0.9),
        context=st.integers(512, 32_768),
    )
    def test_measured_from_three_counts(self, template: int, filler: float, task: float, context: int) -> None:
        prompts = calibration_prompts(plan_of(), context)
        rates = (filler, filler, task)
        counts = [template + round(rate * len(prompt)) for rate, prompt in zip(rates, prompts, strict=True)]
        density = measured_density("m", prompts, counts)
        assert density.measured
        assert density.filler_tokens_per_character == pytest.approx(filler, abs=0.01)
        assert density.task_tokens_per_character == pytest.approx(task, abs=0.01)
        assert density.template_tokens == pytest.approx(template, abs=3)

    def test_calibration_prompts_fit_the_context(self) -> None:
        for context in (512, 4096, 131_072):
            few, many, fixed = calibration_prompts(plan_of(), context)
            assert len(few) < len(many) <= min(6000, 1.5 * context)
            assert len(fixed) <= context

    @pytest.mark.parametrize("counts", [(None, None, None), (100, 100, 100), (500, 100, 100), (10, 900, None), (0, 0, 0)])
    def test_counts_that_make_no_sense_are_not_believed(self, counts: tuple[int | None, ...]) -> None:
        density = measured_density("m", calibration_prompts(plan_of(), 2048), counts)
        assert not density.measured
        assert "makes no sense" in density.detail
        assumed = assumed_density("m", "")
        assert density.filler_tokens_per_character == assumed.filler_tokens_per_character == 0.3


class TestIds:
    @given(kind=st.sampled_from(LongTaskKind), depth=st.none() | st.integers(0, 1000), number=st.integers(1, 5000))
    def test_they_tell_kind_and_depth(self, kind: LongTaskKind, depth: int | None, number: int) -> None:
        where = None if depth is None else depth / 1000
        made = long_task_id(kind, where, number)
        assert kind_and_depth(made) == (kind, where)
        assert re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", made)

    @pytest.mark.parametrize("other", ["extraction-001", "recall-d50-001", "", "recall-d0500-001x"])
    def test_other_ids_tell_nothing(self, other: str) -> None:
        assert kind_and_depth(other) is None
