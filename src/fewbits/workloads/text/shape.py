"""Every problem in the shape of a task bank at once, each with its path; msgspec alone stops at the first."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from typing import Any

import msgspec

from fewbits.core.errors import Problem, SpecError
from fewbits.records.base import Record
from fewbits.records.task import (
    ExactCheck,
    JsonEqualsCheck,
    JsonSchemaCheck,
    NumberCheck,
    PythonExample,
    PythonExamplesCheck,
    PythonTestCheck,
    ReasoningGymCheck,
    RegexCheck,
    Task,
    TaskBank,
)

CHECK_KINDS: dict[str, type[Record]] = {
    str(kind.__struct_config__.tag): kind
    for kind in (
        ExactCheck,
        RegexCheck,
        NumberCheck,
        JsonSchemaCheck,
        JsonEqualsCheck,
        PythonExamplesCheck,
        PythonTestCheck,
        ReasoningGymCheck,
    )
}


def parse_bank_json(data: bytes, where: str) -> Any:
    """Parse strict JSON. Raises `SpecError` with line and column, or naming a duplicate key or a NaN."""
    problems: list[Problem] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                problems.append(Problem(where, f"the key {key!r} stands twice in one object", "keep one of them"))
            result[key] = value
        return result

    def refuse(word: str) -> float:
        problems.append(Problem(where, f"{word} is not JSON", "write a finite number or null"))
        return 0.0

    try:
        tree = json.loads(data.decode("utf-8-sig"), object_pairs_hook=unique, parse_constant=refuse)
    except UnicodeDecodeError as error:
        raise SpecError.single(where, f"not UTF-8: byte {error.start}", "save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise SpecError.single(f"{where}:{error.lineno}:{error.colno}", f"not valid JSON: {error.msg}") from error
    except (RecursionError, ValueError) as error:
        raise SpecError.single(where, f"not usable JSON: {error}") from error
    if problems:
        raise SpecError(problems)
    return tree


def bank_shape_problems(tree: Any) -> list[Problem]:
    """Return every problem in the shape of a decoded bank; empty when `msgspec.convert` to `TaskBank` will succeed."""
    if isinstance(tree, list):
        return [Problem("$", "a bank is an object, not an array", 'write {"name": ..., "version": ..., "tasks": [...]}')]
    if not isinstance(tree, dict):
        return [Problem("$", f"a bank is an object, not {_json_name(tree)}")]
    problems = _record_problems(tree, TaskBank, "", skip=("tasks",))
    tasks = tree.get("tasks")
    if isinstance(tasks, list):
        if not tasks:
            problems.append(Problem("tasks", "the bank has no tasks", "add at least one"))
        for index, task in enumerate(tasks):
            problems += _task_problems(task, f"tasks[{index}]")
    elif "tasks" in tree:
        problems.append(Problem("tasks", f"expected an array, got {_json_name(tasks)}"))
    return problems


def _task_problems(task: Any, path: str) -> list[Problem]:
    if not isinstance(task, dict):
        return [Problem(path, f"a task is an object, not {_json_name(task)}")]
    problems = _record_problems(task, Task, path, skip=("checks",))
    checks = task.get("checks")
    if isinstance(checks, list):
        if not checks:
            problems.append(Problem(f"{path}.checks", "the task has no checks", "a task that cannot fail measures nothing"))
        for index, check in enumerate(checks):
            problems += _check_problems(check, f"{path}.checks[{index}]")
    elif "checks" in task:
        problems.append(Problem(f"{path}.checks", f"expected an array, got {_json_name(checks)}"))
    return problems


def _check_problems(check: Any, path: str) -> list[Problem]:
    if not isinstance(check, dict):
        return [Problem(path, f"a check is an object, not {_json_name(check)}")]
    kind = check.get("kind")
    if not isinstance(kind, str) or kind not in CHECK_KINDS:
        message = "the check has no kind" if kind is None else f"unknown kind of check {kind!r}"
        return [Problem(f"{path}.kind", message, _nearest(str(kind), tuple(CHECK_KINDS)))]
    body = {key: value for key, value in check.items() if key != "kind"}
    record = CHECK_KINDS[kind]
    if record is not PythonExamplesCheck:
        return _record_problems(body, record, path)
    problems = _record_problems(body, record, path, skip=("examples",))
    examples = check.get("examples")
    if not isinstance(examples, list) or not examples:
        if "examples" in check:
            problems.append(Problem(f"{path}.examples", "expected an array of at least one example"))
        return problems
    for index, example in enumerate(examples):
        where = f"{path}.examples[{index}]"
        if isinstance(example, dict):
            problems += _record_problems(example, PythonExample, where)
        else:
            problems.append(Problem(where, f"an example is an object, not {_json_name(example)}"))
    return problems


def _record_problems(raw: dict[str, Any], record: type[Record], path: str, skip: Sequence[str] = ()) -> list[Problem]:
    """Check one object against one record: unknown keys, missing keys, and each field's own type."""
    fields = {field.encode_name: field for field in msgspec.structs.fields(record)}
    prefix = f"{path}." if path else ""
    problems = [Problem(f"{prefix}{key}", "unknown key", _nearest(key, tuple(fields))) for key in raw if key not in fields]
    for name, field in fields.items():
        if name not in raw:
            if field.required:
                problems.append(Problem(f"{prefix}{name}", "missing"))
        elif name not in skip:
            try:
                msgspec.convert(raw[name], type=field.type, strict=True)
            except msgspec.ValidationError as error:
                problems.append(_located(f"{prefix}{name}", str(error)))
    return problems


def _located(path: str, message: str) -> Problem:
    """Join a field's path with the path inside it that msgspec appends (`... - at `$[2]``)."""
    text, separator, inner = message.rpartition(" - at `$")
    return Problem(path + inner.rstrip("`"), text) if separator else Problem(path, message)


def _nearest(word: str, known: Sequence[str]) -> str:
    matches = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {matches[0]!r}?" if matches else f"known are {', '.join(sorted(known))}"


def _json_name(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
