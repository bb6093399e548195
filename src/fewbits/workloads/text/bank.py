"""Loading and validating task banks. Every problem of a file is reported at once, each with its path."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from fewbits.core.codec import digest, to_builtins
from fewbits.core.errors import Problem, SpecError
from fewbits.core.files import atomic_write
from fewbits.records.task import (
    Check,
    DetectionCheck,
    ExtractionCheck,
    JsonEqualsCheck,
    JsonSchemaCheck,
    PythonExamplesCheck,
    PythonTestCheck,
    RegexCheck,
    Task,
    TaskBank,
)
from fewbits.workloads.text import answers
from fewbits.workloads.text.checks import msgspec_key, run_checks, schema_validator
from fewbits.workloads.text.score import adherence_score
from fewbits.workloads.text.shape import bank_shape_problems, parse_bank_json

BANK_BYTES_LIMIT = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class LoadedBank:
    """A bank and its digest: sha256 hex of the bank's canonical JSON, so layout and key order of the file do not matter."""

    bank: TaskBank
    digest: str


def bank_of(bank: TaskBank) -> LoadedBank:
    """Pair a bank with its digest. Raises `SpecError` naming every task whose content cannot work."""
    problems = list(content_problems(bank))
    if problems:
        raise SpecError(problems)
    return LoadedBank(bank, digest(bank))


def load_bank(path: Path | str) -> LoadedBank:
    """Read a task bank file (one strict shape: `TaskBank` as JSON), or a file with one bare task: a bank of one.

    Raises `SpecError` with every problem found: the file is missing or not JSON (with line and column), unknown, missing
    or ill-typed keys, no tasks, a task without checks, duplicate ids, and checks that cannot work. Nothing is run.
    """
    return parse_bank(_read(Path(path)), str(path))


def parse_bank(data: bytes, where: str) -> LoadedBank:
    """Decode a bank from JSON bytes; as `load_bank`, with `where` in place of the file's name."""
    tree = _as_bank(parse_bank_json(data, where))
    shape = bank_shape_problems(tree)
    if shape:
        raise SpecError([*shape, *_duplicate_ids(_raw_ids(tree))])
    return bank_of(msgspec.convert(tree, type=TaskBank, strict=True))


def _as_bank(tree: Any) -> Any:
    """Wrap a file that holds one bare task into a bank of one."""
    if isinstance(tree, dict) and "tasks" not in tree and "checks" in tree and "prompt" in tree:
        return {"name": str(tree.get("id", "task")), "version": "1", "tasks": [tree]}
    return tree


def _read(path: Path) -> bytes:
    try:
        size_bytes = path.stat().st_size
        if size_bytes > BANK_BYTES_LIMIT:
            raise SpecError.single(str(path), f"{size_bytes} bytes is too large for a task bank", "at most 64 MiB")
        return path.read_bytes()
    except OSError as error:
        hint = "give the path of a task bank, or a named bank such as humaneval"
        raise SpecError.single(str(path), f"cannot read the task bank: {error.strerror or error}", hint) from error


def _raw_ids(tree: Any) -> list[str]:
    tasks = tree.get("tasks") if isinstance(tree, dict) else None
    if not isinstance(tasks, list):
        return []
    return [str(task.get("id", "")) if isinstance(task, dict) else "" for task in tasks]


def _duplicate_ids(ids: list[str]) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for index, task_id in enumerate(ids):
        if task_id and first.setdefault(task_id, index) != index:
            hint = f"first used by tasks[{first[task_id]}]"
            yield Problem(f"tasks[{index}].id", f"the id {task_id!r} is used twice", hint)


def content_problems(bank: TaskBank) -> Iterator[Problem]:
    """Yield what the shape alone cannot show: duplicate ids, patterns, schemas, pointers and test code that cannot work."""
    yield from _duplicate_ids([task.id for task in bank.tasks])
    for index, task in enumerate(bank.tasks):
        if not task.prompt.strip():
            yield Problem(f"tasks[{index}].prompt", "the prompt is blank")
        if task.image is not None:
            yield Problem(f"tasks[{index}].image", "text tasks show no image", "detection tasks are made by `fewbits detect`")
        for number, check in enumerate(task.checks):
            yield from _check_problems(check, f"tasks[{index}].checks[{number}]")


def _check_problems(check: Check, path: str) -> Iterator[Problem]:
    if isinstance(check, RegexCheck):
        try:
            re.compile(check.pattern, re.MULTILINE)
        except (re.error, RecursionError, OverflowError) as error:
            yield Problem(f"{path}.pattern", f"not a regular expression: {error}")
    elif isinstance(check, JsonSchemaCheck):
        yield from _schema_problems(check.schema, f"{path}.schema")
    elif isinstance(check, JsonEqualsCheck):
        if problem := answers.pointer_problem(check.pointer):
            yield Problem(f"{path}.pointer", problem)
    elif isinstance(check, PythonTestCheck):
        if not answers.parses_as_python(check.test):
            yield Problem(f"{path}.test", "not Python")
    elif isinstance(check, PythonExamplesCheck):
        import keyword

        if keyword.iskeyword(check.function):
            yield Problem(f"{path}.function", f"{check.function!r} is a keyword of Python")
    elif isinstance(check, DetectionCheck):
        yield Problem(
            path, "no check of an answer in words", "detection tasks are made by `fewbits detect`, from labelled images"
        )
    elif isinstance(check, ExtractionCheck):
        yield Problem(path, "no check of an answer in words", "extraction tasks are made by `fewbits extract`, from pages")


def _schema_problems(schema: dict[str, Any], path: str) -> Iterator[Problem]:
    from jsonschema import SchemaError

    try:
        schema_validator(msgspec_key(schema))
    except SchemaError as error:
        inner = error.json_path.removeprefix("$")
        yield Problem(f"{path}{inner}", f"not a JSON Schema: {error.message}")
        return
    for where, reference in _references(schema, path):
        if not reference.startswith("#"):
            yield Problem(where, f"the reference {reference!r} leaves the schema", "only '#/...' references are followed")
        elif not _resolves(schema, reference):
            yield Problem(where, f"the reference {reference!r} names nothing in the schema")


def _references(node: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key in {"$ref", "$dynamicRef"} and isinstance(value, str):
                yield f"{path}.{key}", value
            elif key not in {"const", "enum", "default", "examples"}:
                yield from _references(value, f"{path}.{key}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _references(value, f"{path}[{index}]")


def _resolves(schema: dict[str, Any], reference: str) -> bool:
    from urllib.parse import unquote

    pointer = unquote(reference[1:])
    if pointer and not pointer.startswith("/"):
        return any(node == pointer for node in _anchors(schema))
    try:
        answers.resolve_pointer(schema, pointer)
    except answers.AnswerError:
        return False
    return True


def _anchors(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from (value for key, value in node.items() if key in {"$anchor", "$dynamicAnchor"} and isinstance(value, str))
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _anchors(child)


# --- proof that the checks can pass and can fail -----------------------------------------------------------------------


def validate_bank(bank: TaskBank) -> list[Problem]:
    """Run every reference answer (must pass all checks) and wrong answer (must fail one) and return what is not so.

    Empty means that each task's checks were shown to accept and to reject. Tasks whose checks carry their own oracle
    (`reasoning_gym`) need a reference answer like all others. Runs Python checks in the sandbox. Raises
    `PrerequisiteError` where the sandbox or a scorer is not available.
    """
    problems = list(content_problems(bank))
    if problems:
        return problems
    for index, task in enumerate(bank.tasks):
        problems += task_problems(task, f"tasks[{index}]")
    return problems


def task_problems(task: Task, path: str) -> list[Problem]:
    """Return what is wrong with the proof of one task: its reference answer, its wrong answers, or that they are missing."""
    problems: list[Problem] = []
    name = f"{path} ({task.id})"
    if not task.reference_answer:
        problems.append(Problem(f"{name}.reference_answer", "missing: nothing proves that the checks can pass"))
    else:
        for number, result in enumerate(run_checks(task, task.reference_answer)):
            if result.passed != result.total:
                message = f"fails checks[{number}] ({result.kind}, {result.passed} of {result.total}): {result.detail}"
                problems.append(Problem(f"{name}.reference_answer", message))
    if not task.wrong_answers:
        problems.append(Problem(f"{name}.wrong_answers", "missing: nothing proves that the checks can fail"))
    for number, wrong in enumerate(task.wrong_answers):
        if adherence_score(run_checks(task, wrong)) == 1.0:
            problems.append(Problem(f"{name}.wrong_answers[{number}]", "passes every check", "make the checks stricter"))
    return problems


# --- the published schema ----------------------------------------------------------------------------------------------


def export_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a task bank file."""
    schema = msgspec.json.schema(TaskBank)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "fewbits task bank"}
    return {**head, **to_builtins(schema)}


def write_schema(path: Path) -> None:
    """Write `export_schema()` to a file, in canonical key order. Raises `StoreError`."""
    from fewbits.core.codec import encode_pretty

    atomic_write(path, encode_pretty(export_schema()))
