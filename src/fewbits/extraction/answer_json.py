"""The JSON inside of a model's answer, found by one bounded pass over whatever the model wrote."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

MAX_CHARACTERS = 200_000
"""Of an answer: 500 tests of an ordinary report take half of it."""
MAX_DEPTH = 16
_MAX_PIECES = 64
"""Pieces of JSON that are looked at: an answer is one, prose adds some brackets."""
_MAX_UNCLOSED = 8
"""Brackets of prose that never close and are passed over. Each costs one pass over the rest, so this bounds the time."""
_OPENING = re.compile(r"[{\[]")
_STRUCTURE = re.compile(r'["{}\[\]]')
_STRING_END = re.compile(r'["\\]')
_THOUGHT_START, _THOUGHT_END = "<think>", "</think>"


class NumberText(str):
    """A JSON number, with its digits as the model wrote them (`4.50`)."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class FoundJson:
    """The one value that was wanted (objects as `dict`, lists, texts, `NumberText`, bools, `None`), or `None` with reasons."""

    value: dict[str, object] | list[object] | None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Piece:
    start: int
    end: int | None
    """Just after the closing bracket; `None` where it never closes."""
    depth: int


def find_json(text: str, wanted: Callable[[object], bool]) -> FoundJson:
    """Return the JSON object of `text` that is `wanted`, else the list that is; never raises.

    Equal candidates count once; two different ones are refused. Refused as well: more than `MAX_CHARACTERS` or `MAX_DEPTH`,
    numbers that are not finite. A key that occurs twice in one object with different values is dropped, and said.
    """
    if len(text) > MAX_CHARACTERS:
        return FoundJson(None, (f"answer: longer than {MAX_CHARACTERS} characters",))
    if text.lstrip().startswith(_THOUGHT_START) and _THOUGHT_END not in text:
        return FoundJson(None, ("answer: ends before its thinking does",))
    answer = text[text.rfind(_THOUGHT_END) + len(_THOUGHT_END) :] if _THOUGHT_END in text else text
    values: list[tuple[object, tuple[str, ...]]] = []
    reasons: list[str] = []
    for piece in _pieces(answer):
        if piece.end is None:
            reasons.append("answer: the JSON is not closed")
        elif piece.depth > MAX_DEPTH:
            reasons.append(f"answer: nested deeper than {MAX_DEPTH}")
        else:
            _read(answer[piece.start : piece.end], values, reasons)
    return _choose([(value, said) for value, said in values if wanted(value)], reasons, found_any=bool(values))


def _choose(candidates: list[tuple[object, tuple[str, ...]]], reasons: list[str], *, found_any: bool) -> FoundJson:
    for kind in (dict, list):
        different: list[tuple[dict[str, object] | list[object], tuple[str, ...]]] = []
        for value, said in candidates:
            if isinstance(value, kind) and (not different or value != different[0][0]):
                different.append((value, said))
            if len(different) > 1:
                return FoundJson(None, ("answer: several different JSON values fit, and which is meant is not said",))
        if different:
            return FoundJson(*different[0])
    if not reasons:
        reasons.append("answer: the JSON has not the wanted shape" if found_any else "answer: no JSON in it")
    return FoundJson(None, tuple(dict.fromkeys(reasons)))


def _pieces(text: str) -> list[_Piece]:
    """Return the outermost bracketed pieces, in order. Quotes count inside of brackets only: prose has apostrophes and inches."""
    pieces: list[_Piece] = []
    position = unclosed = 0
    while (opening := _OPENING.search(text, position)) and unclosed < _MAX_UNCLOSED and len(pieces) < _MAX_PIECES:
        piece = _piece_at(text, opening.start())
        position = opening.end() if piece.end is None else piece.end
        if piece.end is not None:
            pieces.append(piece)
        elif _begins_like_json(text, piece.start):  # it was cut off, and its inner parts are no report
            return [*pieces, piece]
        else:
            unclosed += 1
    return pieces


def _begins_like_json(text: str, start: int) -> bool:
    head = text[start + 1 : start + 200].lstrip()
    return text[start] == "{" or not head or head[0] in '[{"'


def _piece_at(text: str, start: int) -> _Piece:
    depth = deepest = 0
    position = start
    while match := _STRUCTURE.search(text, position):
        position = match.end()
        if match[0] == '"':
            end = _string_end(text, position)
            if end is None:
                break
            position = end
        elif match[0] in "{[":
            depth += 1
            deepest = max(deepest, depth)
        else:
            depth -= 1
            if depth == 0:
                return _Piece(start, position, deepest)
    return _Piece(start, None, deepest)


def _string_end(text: str, position: int) -> int | None:
    while match := _STRING_END.search(text, position):
        if match[0] == '"':
            return match.end()
        position = match.end() + 1  # what a backslash protects
    return None


def _read(piece: str, values: list[tuple[object, tuple[str, ...]]], reasons: list[str]) -> None:
    said: list[str] = []

    def table(pairs: list[tuple[str, object]]) -> dict[str, object]:
        result: dict[str, object] = {}
        disputed: set[str] = set()
        for key, value in pairs:
            if key in result and result[key] != value:
                disputed.add(key)
            result[key] = value
        if len(result) < len(pairs):
            said.append(f"answer: a key occurs twice in one object{', with different values: dropped' if disputed else ''}")
        return {key: value for key, value in result.items() if key not in disputed}

    try:
        value = json.loads(
            piece,
            strict=False,  # a line break inside of a text is no reason to ask again
            object_pairs_hook=table,
            parse_int=NumberText,
            parse_float=_finite,
            parse_constant=_refuse_constant,
        )
    except ValueError as error:
        # a decoder's own words name a place; what it quotes of the answer is left out
        place = f" at character {error.pos}" if isinstance(error, json.JSONDecodeError) else f": {error}"
        reasons.append(f"answer: no valid JSON{place}")
        return
    values.append((value, tuple(dict.fromkeys(said))))


def _finite(digits: str) -> NumberText:
    if not math.isfinite(float(digits)):
        msg = "a number that is too large"
        raise ValueError(msg)
    return NumberText(digits)


def _refuse_constant(word: str) -> NumberText:
    msg = f"{word} is no number of JSON"
    raise ValueError(msg)
