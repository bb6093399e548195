"""Typed checks on an answer: each says how many of its machine checks passed, and why not the others.

Pure for every kind but the Python ones, which run the model's code in the sandbox, and `reasoning_gym`, which runs that
package's scorer. The answer is hostile text: it is bounded, and regular expressions and schemas run against a clock.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from fewbits.records.detection import IOU_THRESHOLDS
from fewbits.records.task import (
    Check,
    CheckResult,
    DetectionCheck,
    ExactCheck,
    JsonEqualsCheck,
    JsonSchemaCheck,
    NumberCheck,
    PythonExamplesCheck,
    PythonTestCheck,
    ReasoningGymCheck,
    RegexCheck,
    Task,
)
from fewbits.workloads.text import answers
from fewbits.workloads.text.deadline import DeadlineError, search_within, within

PATTERN_SECONDS = 2.0
"""Wall time that one regular expression or one schema may take on one answer before the check fails."""
_DETAIL_CHARACTERS = 300
SCHEMA_FORMATS = ("date", "email", "ipv4", "ipv6", "uuid")
"""JSON Schema `format` words that are asserted: those that need no optional package, so scores agree across machines."""


def check_kind(check: Check) -> str:
    """Return the `kind` word of a check, as it stands in the bank."""
    return str(type(check).__struct_config__.tag)


def check_count(check: Check) -> int:
    """Return how many machine checks a check counts as: one, one per Python example, ten per labelled object."""
    if isinstance(check, PythonExamplesCheck):
        return len(check.examples)
    if isinstance(check, DetectionCheck):
        return max(1, len(IOU_THRESHOLDS) * sum(not labelled.crowd for labelled in check.objects))
    return 1


def failed_results(task: Task, reason: str) -> tuple[CheckResult, ...]:
    """Return results in which every check of the task failed for one reason (a crashed, timed-out or empty trial)."""
    return tuple(_failed(check, reason) for check in task.checks)


def run_checks(task: Task, answer: str) -> tuple[CheckResult, ...]:
    """Run every check of a task on an answer, in the task's order.

    An answer with no text beyond a `<think>` block fails every check, forbidden patterns included: not answering is not
    adherence. Raises `PrerequisiteError` where a check needs something that this machine lacks (`require_sandbox` and
    `require_scorers` find that out before a sweep).
    """
    text = answers.final_answer(answer)
    if not text:
        return failed_results(task, "the answer is empty")
    return tuple(_run_check(check, text) for check in task.checks)


def _run_check(check: Check, text: str) -> CheckResult:
    try:
        if isinstance(check, PythonExamplesCheck | PythonTestCheck):
            from fewbits.workloads.text.code_checks import run_examples, run_test

            return run_examples(check, text) if isinstance(check, PythonExamplesCheck) else run_test(check, text)
        if isinstance(check, ReasoningGymCheck):
            from fewbits.workloads.text.gym import score_gym_answer

            detail = score_gym_answer(check, text)
        else:
            detail = _PLAIN[type(check)](check, text)
    except (answers.AnswerError, DeadlineError) as error:
        return _failed(check, str(error))
    if detail:
        return _failed(check, detail + _cut_note(text))
    return CheckResult(kind=check_kind(check), passed=1, total=1)


def _failed(check: Check, reason: str) -> CheckResult:
    return CheckResult(kind=check_kind(check), passed=0, total=check_count(check), detail=shorten(reason))


def shorten(text: str) -> str:
    """Return a one-line detail of at most 300 characters, safe to store and print (control characters escaped)."""
    flat = " ".join(text.split())
    printable = "".join(character if character.isprintable() else repr(character)[1:-1] for character in flat)
    return printable if len(printable) <= _DETAIL_CHARACTERS else printable[: _DETAIL_CHARACTERS - 1] + "…"


def _cut_note(text: str) -> str:
    if len(text) <= answers.TEXT_LIMIT_CHARACTERS:
        return ""
    return f" (only the first {answers.TEXT_LIMIT_CHARACTERS} of {len(text)} characters were read)"


def _exact(check: ExactCheck, text: str) -> str:
    """Compare after `plain_text` on both sides; case is folded unless `case_sensitive`."""
    given = answers.last_line(text) if check.last_line else answers.plain_text(text)
    fold: Callable[[str], str] = str if check.case_sensitive else str.casefold
    if fold(given) in {fold(answers.plain_text(accepted)) for accepted in check.accepted}:
        return ""
    return f"got {given[:80]!r}, accepted are {', '.join(repr(word[:60]) for word in check.accepted[:4])}"


def _regex(check: RegexCheck, text: str) -> str:
    flags = re.MULTILINE | (re.IGNORECASE if check.ignore_case else 0)
    found = search_within(check.pattern, flags, text[: answers.TEXT_LIMIT_CHARACTERS], PATTERN_SECONDS)
    if found is check.forbidden:
        return f"{'found the forbidden' if found else 'did not find the'} pattern {check.pattern!r}"
    return ""


def _number(check: NumberCheck, text: str) -> str:
    numbers = answers.numbers_in(text)
    if not numbers:
        return "the answer holds no number"
    given = numbers[-1 if check.which == "last" else 0]
    # tolerances are decimal: |0.3 - 0.2| must count as within 0.1
    slack = 1e-12 * max(1.0, abs(check.value)) if check.tolerance else 0.0
    if abs(given - check.value) <= check.tolerance + slack:
        return ""
    return f"the {check.which} number is {given:g}, expected {check.value:g} within {check.tolerance:g}"


def _json_equals(check: JsonEqualsCheck, text: str) -> str:
    value = answers.resolve_pointer(answers.extract_json(text), check.pointer)
    if answers.same_json(value, check.value):
        return ""
    where = f" at {check.pointer}" if check.pointer else ""
    return f"the JSON value{where} is {value!r:.100}, expected {check.value!r:.100}"


def _json_schema(check: JsonSchemaCheck, text: str) -> str:
    value = answers.extract_json(text)
    validator = schema_validator(msgspec_key(check.schema))
    with within(PATTERN_SECONDS, "the JSON Schema"):
        error = next(iter(sorted(validator.iter_errors(value), key=lambda found: found.json_path)), None)
    return f"at {error.json_path}: {error.message}" if error is not None else ""


def msgspec_key(schema: dict[str, Any]) -> bytes:
    """Return a hashable form of a schema (canonical JSON)."""
    from fewbits.core.codec import encode_canonical

    return encode_canonical(schema)


@lru_cache(maxsize=512)
def schema_validator(schema_json: bytes) -> Any:
    """Return a draft 2020-12 validator that never fetches a remote schema. Raises `jsonschema.SchemaError`."""
    import msgspec
    from jsonschema import Draft202012Validator, FormatChecker
    from referencing import Registry

    schema = msgspec.json.decode(schema_json)
    Draft202012Validator.check_schema(schema)
    # an explicit empty registry: without it jsonschema falls back to fetching unknown references
    return Draft202012Validator(schema, registry=Registry(), format_checker=FormatChecker(SCHEMA_FORMATS))


_PLAIN: dict[type, Callable[[Any, str], str]] = {
    ExactCheck: _exact,
    RegexCheck: _regex,
    NumberCheck: _number,
    JsonEqualsCheck: _json_equals,
    JsonSchemaCheck: _json_schema,
}
