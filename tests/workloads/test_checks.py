"""Typed checks and the adherence score."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from fewbits.records.base import Bucket, TrialStatus
from fewbits.records.task import (
    Check,
    CheckResult,
    ExactCheck,
    JsonEqualsCheck,
    JsonSchemaCheck,
    NumberCheck,
    PythonExample,
    PythonExamplesCheck,
    PythonTestCheck,
    RegexCheck,
    Task,
)
from fewbits.workloads.score import score_trial
from fewbits.workloads.text import checks, deadline
from fewbits.workloads.text.checks import run_checks
from fewbits.workloads.text.score import adherence_score, code_density


def task_with(*wanted: Check) -> Task:
    return Task(id="t", bucket=Bucket.LOGIC, tier=1, prompt="?", checks=wanted)


def passes(check: Check, answer: str) -> bool:
    (result,) = run_checks(task_with(check), answer)
    assert bool(result.detail) is (result.passed != result.total)
    return result.passed == result.total


ADD = PythonExamplesCheck(
    function="add",
    examples=(
        PythonExample(args=(1, 2), expected=3),
        PythonExample(args=(0.1,), kwargs={"b": 0.2}, expected=0.3),
        PythonExample(args=([1], [2]), expected=[1, 2]),
    ),
    float_tolerance=1e-9,
)


class TestKinds:
    def test_exact(self) -> None:
        check = ExactCheck(accepted=("yes", "Yes, it is"))
        assert passes(check, "**Yes.**")
        assert passes(check, "yes, it is")
        assert not passes(check, "yes indeed")
        assert not passes(ExactCheck(accepted=("yes",), case_sensitive=True), "Yes")
        assert passes(ExactCheck(accepted=("B",), last_line=True), "A is wrong.\nSo:\n\n**B**")
        assert not passes(ExactCheck(accepted=("B",)), "So:\nB")

    def test_regex(self) -> None:
        assert passes(RegexCheck(pattern=r"^\d+ apples$"), "I have\n12 apples\nleft")
        assert not passes(RegexCheck(pattern="Apples"), "apples")
        assert passes(RegexCheck(pattern="Apples", ignore_case=True), "apples")
        assert passes(RegexCheck(pattern="sorry", forbidden=True), "fine")
        assert not passes(RegexCheck(pattern="sorry", forbidden=True), "sorry!")

    def test_number(self) -> None:
        assert passes(NumberCheck(value=1234.5), "First 3, then 1,234.5.")
        assert not passes(NumberCheck(value=1234.5, which="first"), "First 3, then 1,234.5.")
        assert passes(NumberCheck(value=0.3, tolerance=0.1), "0.2")
        assert not passes(NumberCheck(value=0.3, tolerance=0.1), "0.19")
        assert not passes(NumberCheck(value=0.0), "zero")

    def test_json_equals(self) -> None:
        check = JsonEqualsCheck(value={"b": [1, 2], "a": None})
        assert passes(check, 'Sure:\n```json\n{"a": null, "b": [1, 2.0]}\n```')
        assert not passes(check, '{"a": null, "b": [2, 1]}')
        assert passes(JsonEqualsCheck(value=2, pointer="/b/1"), '{"a": null, "b": [1, 2]}')
        assert not passes(JsonEqualsCheck(value=2, pointer="/b/9"), '{"a": null, "b": [1, 2]}')
        assert not passes(JsonEqualsCheck(value=True), "1")

    def test_json_schema(self) -> None:
        schema: dict[str, Any] = {
            "type": "object",
            "required": ["day"],
            "properties": {"day": {"type": "string", "format": "date"}, "n": {"$ref": "#/$defs/n"}},
            "additionalProperties": False,
            "$defs": {"n": {"type": "integer", "minimum": 1}},
        }
        check = JsonSchemaCheck(schema=schema)
        assert passes(check, '{"day": "2024-02-29", "n": 3}')
        assert not passes(check, '{"day": "2023-02-29"}')
        assert not passes(check, '{"day": "2024-02-29", "n": 0}')
        assert not passes(check, '{"day": "2024-02-29", "x": 0}')
        assert not passes(check, "day: 2024-02-29")

    def test_python_examples_give_partial_credit(self) -> None:
        (full,) = run_checks(task_with(ADD), "```python\ndef add(a, b):\n    return a + b\n```")
        assert (full.passed, full.total, full.detail) == (3, 3, "")
        (part,) = run_checks(task_with(ADD), "```python\ndef add(a, b):\n    return round(a + b)\n```")
        assert (part.passed, part.total) == (1, 3)
        assert part.detail.startswith("example 1: returned 0, expected 0.3")
        (none,) = run_checks(task_with(ADD), "I cannot.")
        assert (none.passed, none.total) == (0, 3)

    def test_python_test(self) -> None:
        prefix = 'import math\n\ndef area(r):\n    """Area of a circle."""\n'
        check = PythonTestCheck(prompt_prefix=prefix, test="assert abs(area(1) - 3.14159) < 1e-3\nassert area(0) == 0\n")
        assert passes(check, "```python\ndef area(r):\n    return math.pi * r * r\n```")
        assert passes(check, "    return math.pi * r ** 2\n")
        assert passes(check, "return math.pi * r ** 2")
        assert not passes(check, "```python\ndef area(r):\n    return 3 * r * r\n```")
        assert not passes(check, "```python\nimport os\nos._exit(0)\n```")
        assert not passes(check, "```python\nraise SystemExit(0)\n```")

    def test_empty_answer_fails_even_forbidden_patterns(self) -> None:
        assert not passes(RegexCheck(pattern="sorry", forbidden=True), "  ")
        assert not passes(RegexCheck(pattern="sorry", forbidden=True), "<think>never closed")


class TestHostileAnswers:
    def test_catastrophic_pattern_ends(self) -> None:
        start = time.monotonic()
        assert not passes(RegexCheck(pattern=r"^(a+)+$"), "a" * 40 + "b")
        assert time.monotonic() - start < checks.PATTERN_SECONDS + 3

    def test_catastrophic_pattern_ends_in_a_thread_too(self) -> None:
        found: list[object] = []

        def search() -> None:
            found.append(deadline.search_within("b+", 0, "aabb", 5))
            try:
                deadline.search_within(r"^(a+)+$", 0, "a" * 40 + "b", 0.3)
            except deadline.DeadlineError as error:
                found.append(str(error))

        thread = threading.Thread(target=search)
        thread.start()
        thread.join(20)
        assert found[0] is True
        assert "took longer than 0.3 s" in str(found[1])

    def test_long_answer_is_cut_and_says_so(self) -> None:
        (result,) = run_checks(task_with(RegexCheck(pattern="needle")), "x" * 100_000 + "needle")
        assert result.passed == 0
        assert "only the first 65536 of 100006 characters" in result.detail

    def test_details_are_one_short_printable_line(self) -> None:
        (result,) = run_checks(task_with(ExactCheck(accepted=("a",))), "\x1b[31m\n\r\u202e" * 500)
        assert len(result.detail) <= 300
        assert result.detail.isprintable()

    @pytest.mark.parametrize("answer", ["\ud800", "\0", "\x1b" * 10, "\\" * 1000, "{" * 1000])
    def test_odd_answers_fail_quietly(self, answer: str) -> None:
        every = task_with(
            ExactCheck(accepted=("a",)), RegexCheck(pattern="a"), NumberCheck(value=1), JsonEqualsCheck(value=1),
            JsonSchemaCheck(schema={"type": "null"}), ADD,
        )  # fmt: skip
        assert adherence_score(run_checks(every, answer)) == 0.0


class TestScore:
    def test_share_of_machine_checks(self) -> None:
        results = [CheckResult(kind="a", passed=1, total=1), CheckResult(kind="b", passed=1, total=3)]
        assert adherence_score(results) == 0.5

    def test_no_checks_no_score(self) -> None:
        assert adherence_score([]) is None

    @pytest.mark.parametrize("status", [status for status in TrialStatus if status is not TrialStatus.OK])
    def test_failed_trials_score_zero_whatever_they_said(self, status: TrialStatus) -> None:
        results, score = score_trial(task_with(ExactCheck(accepted=("a",)), ADD), status, "a")
        assert score == 0.0
        assert [result.total for result in results] == [1, 3]
        assert all(result.passed == 0 and status.value in result.detail for result in results)

    def test_ok_trial(self) -> None:
        results, score = score_trial(task_with(ExactCheck(accepted=("a",)), NumberCheck(value=1)), TrialStatus.OK, "A")
        assert score == 0.5
        assert [result.kind for result in results] == ["exact", "number"]

    def test_code_density(self) -> None:
        answer = "ab\n```\n1234\n```"
        assert code_density(answer, task_with(ADD)) == 4 / len(answer)
        assert code_density("no code", task_with(ADD)) == 0.0
        assert code_density("", task_with(ADD)) is None
        assert code_density(answer, task_with(NumberCheck(value=1))) is None


def test_deadline_puts_the_alarm_back() -> None:
    import signal

    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(deadline.DeadlineError), deadline.within(0.05, "waiting"):
        time.sleep(5)
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
