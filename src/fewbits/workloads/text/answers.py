"""Reading a model's answer: the final text, code fences, JSON values, numbers, code. Pure; the text is hostile.

Every reader is bounded (length, depth, attempts), never evaluates anything, and has one documented rule for what counts,
so that the same answer always scores the same.
"""

from __future__ import annotations

import ast
import json
import math
import re
import warnings
from dataclasses import dataclass
from typing import Any

TEXT_LIMIT_CHARACTERS = 64 * 1024
"""Longer answers are cut before they are checked: a regular expression's time grows with its text."""
JSON_DEPTH_LIMIT = 64
_JSON_SCAN_CHARACTERS = 8 * TEXT_LIMIT_CHARACTERS
_FENCE = re.compile(r"^[ \t]{0,3}(`{3,}|~{3,})[ \t]*([A-Za-z0-9_+.-]*)[^\n`]*$")
_THINK_OPEN, _THINK_CLOSE = "<think>", "</think>"
_WRAPPING = " \t\r\n\"'`*\u201c\u201d\u2018\u2019"
_PYTHON_LANGUAGES = frozenset({"", "python", "py", "python3"})


@dataclass(frozen=True, slots=True)
class Fence:
    """A fenced code block: its language word (lower case, may be empty) and its text without the fence lines."""

    language: str
    body: str


class AnswerError(ValueError):
    """The answer holds nothing of the kind that was looked for, or something that is refused; the message says what."""


def final_answer(text: str) -> str:
    """Return the part of a reply that answers: without a leading `<think>...</think>` block, trimmed.

    A reply that never closes its `<think>` block has no answer: the result is empty.
    """
    stripped = text.strip()
    if stripped.startswith(_THINK_OPEN):
        _, closed, rest = stripped.partition(_THINK_CLOSE)
        return rest.strip() if closed else ""
    return stripped


def fenced_blocks(text: str) -> list[Fence]:
    """Return the fenced code blocks in order; one that is never closed (a cut-off reply) runs to the end of the text."""
    blocks: list[Fence] = []
    marker, language = "", ""
    body: list[str] = []
    for line in text.split("\n"):
        match = _FENCE.match(line.rstrip("\r"))
        if not marker:
            if match:
                marker, language, body = match[1], match[2].lower(), []
        elif match and not match[2] and match[1].startswith(marker):
            blocks.append(Fence(language, "\n".join(body)))
            marker = ""
        else:
            body.append(line)
    if marker:
        blocks.append(Fence(language, "\n".join(body)))
    return blocks


def plain_text(text: str) -> str:
    """Return a short answer without its wrapping: surrounding whitespace, quotes, backticks, asterisks, trailing periods.

    An answer that is one fenced block and nothing else is its body. Inner characters are never touched.
    """
    stripped = text.strip()
    blocks = fenced_blocks(stripped)
    if len(blocks) == 1 and _FENCE.match(stripped.split("\n", 1)[0]) and stripped.endswith(("```", "~~~")):
        stripped = blocks[0].body
    previous = None
    while stripped != previous:
        previous = stripped
        stripped = stripped.strip().strip(_WRAPPING).rstrip(".")
    return stripped


def last_line(text: str) -> str:
    """Return the last line that is more than wrapping, unwrapped by `plain_text`; empty when there is none."""
    for line in reversed(text.splitlines()):
        if (plain := plain_text(line)) != "":
            return plain
    return ""


# --- numbers -----------------------------------------------------------------------------------------------------------

# a sign counts only where no operand stands before it ("5-3" holds 5 and 3); digits inside words ("H2O") are no numbers
_NUMBER = re.compile(
    r"(?<![\w.])(?:(?<![)\]}])[-+\u2212])?"
    r"(?:\d{1,3}(?:,\d{3})+(?![\d])|\d+)?(?:(?<=\d)\.\d+|(?<!\d)\.\d+)?(?:(?<=\d)[eE][-+]?\d{1,4}(?![\w]))?"
)
_BOXED = re.compile(r"\\boxed\s*\{([^{}]{0,200})\}")


def numbers_in(text: str) -> list[float]:
    r"""Return the finite numbers of a text in order: `1,234.5`, `-3`, `.5`, `6.02e23`, `\u2212 7` signs included.

    Commas group thousands only in groups of three. Where the text holds LaTeX `\boxed{...}`, only numbers inside boxes
    count, because that is where such an answer is.
    """
    cut = text[:TEXT_LIMIT_CHARACTERS].replace("{,}", ",").replace("\\,", "").replace("\\!", "")
    boxes = _BOXED.findall(cut)
    found: list[float] = []
    for part in boxes or [cut]:
        for match in _NUMBER.finditer(part):
            word = match[0].replace(",", "").replace("\u2212", "-")
            if any(character.isdigit() for character in word):
                value = float(word)
                if math.isfinite(value):
                    found.append(value)
    return found


# --- JSON --------------------------------------------------------------------------------------------------------------


def _unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            msg = f"the JSON object has the key {key[:60]!r} twice"
            raise AnswerError(msg)
        result[key] = value
    return result


def _refuse_constant(word: str) -> Any:
    msg = f"{word} is not JSON"
    raise AnswerError(msg)


def _finite_float(word: str) -> float:
    value = float(word)
    if not math.isfinite(value):
        msg = f"the number {word[:40]} is out of range"
        raise AnswerError(msg)
    return value


def parse_json(text: str) -> Any:
    """Parse one whole JSON text strictly: no duplicate keys, no NaN or infinities, depth at most `JSON_DEPTH_LIMIT`.

    Raises `AnswerError` for what is refused and `json.JSONDecodeError` for what is not JSON at all.
    """
    if _bracket_depth(text) > JSON_DEPTH_LIMIT:
        msg = f"the JSON is nested deeper than {JSON_DEPTH_LIMIT} levels"
        raise AnswerError(msg)
    try:
        return json.loads(text, object_pairs_hook=_unique_object, parse_constant=_refuse_constant, parse_float=_finite_float)
    except (json.JSONDecodeError, AnswerError):
        raise
    except ValueError as error:  # an integer with more digits than Python converts
        msg = f"the JSON holds a number that is too long: {error}"
        raise AnswerError(msg) from error


def _bracket_depth(text: str) -> int:
    depth = deepest = 0
    in_string = escaped = False
    for character in text:
        if in_string:
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == '"':
                in_string = False
        elif character == '"':
            in_string = True
        elif character in "{[":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "}]":
            depth -= 1
    return deepest


def _balanced_end(text: str, start: int) -> int | None:
    """Return the index after the bracket that closes the one at `start` (strings respected), or `None`."""
    depth = 0
    in_string = escaped = False
    for index in range(start, len(text)):
        character = text[index]
        if in_string:
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == '"':
                in_string = False
        elif character == '"':
            in_string = True
        elif character in "{[":
            depth += 1
        elif character in "}]":
            depth -= 1
            if depth == 0:
                return index + 1
    return None


_JSON_BEGIN = re.compile(r'\{\s*["}]|\[\s*(?:["{\[\]0-9-]|true|false|null)')


def extract_json(answer: str) -> Any:
    """Return the JSON value of an answer. Raises `AnswerError` saying why there is none.

    Looked for in this order: the whole answer; the first fenced block that holds JSON (blocks marked `json` first); the
    first balanced object or array in the text. A value that has duplicate keys, NaN, or is cut off is refused, never
    searched for smaller values inside it.
    """
    text = answer[:TEXT_LIMIT_CHARACTERS].strip()
    if not text:
        msg = "the answer is empty"
        raise AnswerError(msg)
    try:
        return parse_json(text)
    except json.JSONDecodeError:
        pass
    blocks = fenced_blocks(text)
    for block in sorted(blocks, key=lambda fence: fence.language not in {"json", "jsonc", "json5"}):
        try:
            return parse_json(block.body.strip())
        except json.JSONDecodeError:
            continue
    return _first_balanced_json(text)


def _first_balanced_json(text: str) -> Any:
    position, scanned = 0, 0
    while scanned < _JSON_SCAN_CHARACTERS:  # brackets that never close would make the search quadratic
        starts = [found for found in (text.find("{", position), text.find("[", position)) if found >= 0]
        if not starts:
            break
        start = min(starts)
        end = _balanced_end(text, start)
        scanned += (end or len(text)) - start
        looks_like_json = _JSON_BEGIN.match(text, start) is not None
        if end is None:
            if looks_like_json:
                msg = "the JSON value is cut off: a bracket or quote is never closed"
                raise AnswerError(msg)
            position = start + 1
            continue
        try:
            return parse_json(text[start:end])
        except json.JSONDecodeError as error:
            if looks_like_json and text[start] == "{":
                msg = f"not valid JSON: {error.msg} at line {error.lineno} column {error.colno} of the value"
                raise AnswerError(msg) from error
            position = end
    msg = "the answer holds no JSON value"
    raise AnswerError(msg)


def same_json(left: Any, right: Any, tolerance: float = 0.0) -> bool:
    """Whether two JSON values are equal: key order ignored, `true` is not 1, 1 equals 1.0, numbers within `tolerance`."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, int | float) and isinstance(right, int | float):
        return left == right or (tolerance > 0 and _close(left, right, tolerance))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same_json(left[key], right[key], tolerance) for key in left)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(same_json(a, b, tolerance) for a, b in zip(left, right, strict=True))
    return type(left) is type(right) and bool(left == right)


def _close(left: float, right: float, tolerance: float) -> bool:
    try:
        return math.isfinite(left) and math.isfinite(right) and abs(left - right) <= tolerance
    except OverflowError:  # an integer beyond the range of floats
        return False


def pointer_problem(pointer: str) -> str:
    """Say what is wrong with an RFC 6901 JSON pointer; empty when it is well formed."""
    if pointer and not pointer.startswith("/"):
        return "a JSON pointer is empty or starts with '/'"
    if re.search(r"~(?![01])", pointer):
        return "'~' in a JSON pointer is written '~0', '/' inside a key '~1'"
    return ""


def resolve_pointer(value: Any, pointer: str) -> Any:
    """Return the part of `value` that an RFC 6901 pointer names. Raises `AnswerError` when it is not there."""
    current = value
    for raw in pointer.split("/")[1:]:
        token = raw.replace("~1", "/").replace("~0", "~")
        if isinstance(current, dict) and token in current:
            current = current[token]
        elif isinstance(current, list) and re.fullmatch(r"0|[1-9][0-9]{0,8}", token) and int(token) < len(current):
            current = current[int(token)]
        else:
            msg = f"the JSON value has nothing at {pointer}"
            raise AnswerError(msg)
    return current


# --- code --------------------------------------------------------------------------------------------------------------


def _parse_python(source: str) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd escapes in the model's strings are not our user's business
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def parses_as_python(source: str) -> bool:
    """Whether a text compiles as a Python module (nothing is run): a bare `return`, say, parses but does not compile."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compile(source, "<answer>", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True


def defines(source: str, name: str) -> bool:
    """Whether Python source parses and binds `name` at module level with `def`, `class` or `=`."""
    tree = _parse_python(source)
    if tree is None:
        return False
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return True
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == name for to in node.targets):
            return True
    return False


def extract_code(answer: str, function: str) -> str:
    """Return the Python source of an answer. Raises `AnswerError` when there is none.

    The first fenced Python block that defines `function`; else the longest fenced block; else the whole answer when it
    parses as Python.
    """
    text = answer[:TEXT_LIMIT_CHARACTERS]
    blocks = fenced_blocks(text)
    for block in blocks:
        if block.language in _PYTHON_LANGUAGES and defines(block.body, function):
            return block.body
    if blocks:
        return max(blocks, key=lambda block: len(block.body)).body
    if parses_as_python(text):
        return text
    msg = "the answer holds no code block and is not Python itself"
    raise AnswerError(msg)
