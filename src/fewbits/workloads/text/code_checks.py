"""Checks that run the model's code: examples of a function, and a test after the code. Values are compared on this side."""

from __future__ import annotations

from fewbits.records.task import CheckResult, PythonExamplesCheck, PythonTestCheck
from fewbits.workloads.text import answers
from fewbits.workloads.text.checks import shorten
from fewbits.workloads.text.sandbox import CallJob, JobOutcome, JobStatus, Limits, TestJob, run_jobs

TEST_LIMITS = Limits(example_seconds=10.0, total_seconds=10.0, cpu_seconds=10)


def run_examples(check: PythonExamplesCheck, text: str) -> CheckResult:
    """Run every example in the sandbox and count those that return what is expected; the detail names the first that fails."""
    total = len(check.examples)
    try:
        code = answers.extract_code(text, check.function)
    except answers.AnswerError as error:
        return CheckResult(kind="python_examples", passed=0, total=total, detail=shorten(str(error)))
    outcomes = run_jobs([CallJob(code, check.function, example.args, example.kwargs) for example in check.examples])
    passed, detail = 0, ""
    for number, (example, outcome) in enumerate(zip(check.examples, outcomes, strict=True)):
        problem = _example_problem(outcome, example.expected, check.float_tolerance)
        passed += not problem
        if problem and not detail:
            detail = shorten(f"example {number}: {problem}")
    return CheckResult(kind="python_examples", passed=passed, total=total, detail=detail)


def _example_problem(outcome: JobOutcome, expected: object, tolerance: float) -> str:
    if outcome.status is not JobStatus.RETURNED:
        return f"{outcome.status.value}: {outcome.detail}"
    if answers.same_json(outcome.value, expected, tolerance):
        return ""
    return f"returned {outcome.value!r:.100}, expected {expected!r:.100}"


def run_test(check: PythonTestCheck, text: str) -> CheckResult:
    """Run the answer's code followed by the check's test in the sandbox; passes when the test runs to its end.

    An answer that only continues `prompt_prefix` (a function body) is joined to it. The verdict is sent with a token that
    the code first sees after its module has been executed, so exiting early or writing to descriptors proves nothing.
    """
    (outcome,) = run_jobs([TestJob(_test_program(check, text), check.test)], TEST_LIMITS)
    passed = outcome.status is JobStatus.RETURNED
    detail = "" if passed else shorten(f"{outcome.status.value}: {outcome.detail}")
    return CheckResult(kind="python_test", passed=int(passed), total=1, detail=detail)


def _test_program(check: PythonTestCheck, text: str) -> str:
    """Join prefix and answer: a self-standing answer after the prefix's own imports and helpers, or a continuation of it."""
    prefix = check.prompt_prefix
    if not prefix:
        return answers.extract_code(text, "")
    blocks = answers.fenced_blocks(text)
    body = max((block.body for block in blocks), key=len) if blocks else text
    # a prompt that ends in a docstring parses by itself, so the answer's own definition can simply follow and replace it
    if answers.parses_as_python(body) and answers.parses_as_python(f"{prefix}\n{body}"):
        return f"{prefix}\n{body}"
    for joined in (f"{prefix.rstrip()}\n{body}", f"{prefix.rstrip()}\n    {body.lstrip()}"):
        if answers.parses_as_python(joined):
            return joined
    return f"{prefix}\n{body}"
