"""Tasks and their typed checks: the shape of a task bank file (published as JSON Schema beside it)."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from fewbits.records.base import Bucket, Record
from fewbits.records.detection import ImageRequest, LabelledObject
from fewbits.records.extraction import LabReport

TaskId = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$", description="Unique in its bank; safe as a file name.")]
Tier = Annotated[int, Meta(ge=1, le=6, description="1 = a 135M model may pass, 6 = hard for a 7B model.")]


class ExactCheck(Record, frozen=True, kw_only=True, tag="exact", tag_field="kind"):
    """The trimmed answer (or its last non-empty line) equals one of `accepted`; case is ignored unless told otherwise."""

    accepted: Annotated[tuple[str, ...], Meta(min_length=1)]
    case_sensitive: bool = False
    last_line: bool = False


class RegexCheck(Record, frozen=True, kw_only=True, tag="regex", tag_field="kind"):
    """`pattern` (Python `re`, MULTILINE) is found in the answer, or, with `forbidden`, is not found."""

    pattern: Annotated[str, Meta(min_length=1)]
    forbidden: bool = False
    ignore_case: bool = False


class NumberCheck(Record, frozen=True, kw_only=True, tag="number", tag_field="kind"):
    """A number in the answer is within `tolerance` (absolute) of `value`; `which` picks the last or the first number."""

    value: float
    tolerance: Annotated[float, Meta(ge=0)] = 0.0
    which: Annotated[str, Meta(pattern="^(first|last)$")] = "last"


class JsonSchemaCheck(Record, frozen=True, kw_only=True, tag="json_schema", tag_field="kind"):
    """The JSON value in the answer (bare, or in a code fence) validates against `schema` (draft 2020-12)."""

    schema: dict[str, Any]


class JsonEqualsCheck(Record, frozen=True, kw_only=True, tag="json_equals", tag_field="kind"):
    """The JSON value in the answer equals `value`, or, with `pointer` (RFC 6901), the part of it does. Key order is ignored."""

    value: Any
    pointer: str = ""


class PythonExample(Record, frozen=True, kw_only=True):
    """One call: positional and keyword arguments as JSON, and the JSON value expected back."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}  # noqa: RUF012 - msgspec copies mutable defaults
    expected: Any


class PythonExamplesCheck(Record, frozen=True, kw_only=True, tag="python_examples", tag_field="kind"):
    """The Python code in the answer defines `function`, and calls of it in the sandbox return what is expected.

    Counts as one check per example, so that partial credit is visible.
    """

    function: Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    examples: Annotated[tuple[PythonExample, ...], Meta(min_length=1)]
    float_tolerance: Annotated[float, Meta(ge=0)] = 0.0


class PythonTestCheck(Record, frozen=True, kw_only=True, tag="python_test", tag_field="kind"):
    """The Python code in the answer, followed by `test` (plain asserts), runs to its end in the sandbox. For HumanEval."""

    prompt_prefix: str = ""
    test: Annotated[str, Meta(min_length=1)]


class ReasoningGymCheck(Record, frozen=True, kw_only=True, tag="reasoning_gym", tag_field="kind"):
    """The `reasoning-gym` scorer of `dataset` gives the answer at least `minimum_score` for entry `index` of `seed`."""

    dataset: Annotated[str, Meta(pattern=r"^[a-z0-9_]+$")]
    seed: int
    index: Annotated[int, Meta(ge=0)]
    size: Annotated[int, Meta(ge=1)]
    minimum_score: Annotated[float, Meta(gt=0, le=1)] = 1.0


class DetectionCheck(Record, frozen=True, kw_only=True, tag="detection", tag_field="kind"):
    """The objects of one image are found: R-precision at each of the ten COCO overlaps.

    Counts as ten checks per labelled object: of the R best detections (R: labelled objects, crowds left out), those that match
    one. An image without objects is one check: no detection scores above `quiet_score`.
    """

    image_id: int
    width: Annotated[int, Meta(ge=1)]
    height: Annotated[int, Meta(ge=1)]
    objects: tuple[LabelledObject, ...]
    quiet_score: Annotated[float, Meta(gt=0, lt=1)] = 0.25


class ExtractionCheck(Record, frozen=True, kw_only=True, tag="extraction", tag_field="kind"):
    """The report of one page is read: its fields against the truth.

    Counts twice every field that is right, and once every field that is wrong or missing on either side, so that passed / total
    is the page's field F1 (`extraction.metrics`). Without a truth it is one check: a report with at least one test was found.
    """

    truth: LabReport | None = None
    tolerance: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Relative, of numbers."""


Check = (
    ExactCheck
    | RegexCheck
    | NumberCheck
    | JsonSchemaCheck
    | JsonEqualsCheck
    | PythonExamplesCheck
    | PythonTestCheck
    | ReasoningGymCheck
    | DetectionCheck
    | ExtractionCheck
)


class Task(Record, frozen=True, kw_only=True):
    """One thing to ask. `reference_answer` passes every check; each of `wrong_answers` fails at least one (tests prove both)."""

    id: TaskId
    revision: Annotated[int, Meta(ge=1)] = 1
    bucket: Bucket
    tier: Tier
    prompt: Annotated[str, Meta(min_length=1)]
    system: str = ""
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    """Overrides the sweep's limit when smaller."""
    checks: Annotated[tuple[Check, ...], Meta(min_length=1)]
    reference_answer: str = ""
    wrong_answers: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    image: ImageRequest | None = None
    """What the task shows beside its words; `None` for text tasks."""


class TaskBank(Record, frozen=True, kw_only=True):
    """A bank: its name, version and tasks."""

    schema_version: Annotated[str, Meta(pattern=r"^fewbits\.task_bank\.v1$")] = "fewbits.task_bank.v1"
    name: Annotated[str, Meta(min_length=1)]
    version: Annotated[str, Meta(min_length=1)]
    description: str = ""
    license: str = ""
    tasks: Annotated[tuple[Task, ...], Meta(min_length=1)]


class CheckResult(Record, frozen=True, kw_only=True):
    """What one check said: `passed` of `total` machine checks, and a short reason when not all passed."""

    kind: str
    passed: Annotated[int, Meta(ge=0)]
    total: Annotated[int, Meta(ge=1)]
    detail: str = ""


def task_digest(task: Task) -> str:
    """Return the identity of what a task asks and how it is scored (not of its id): sha256 hex digits."""
    from fewbits.core.codec import digest

    parts: list[Any] = [task.prompt, task.system, task.max_tokens, [msgspec.to_builtins(check) for check in task.checks]]
    if task.image is not None:
        parts.append(task.image.sha256)
        if task.image.page is not None:
            parts.append(task.image.page)
    return digest(parts)
