"""One value at a time: from what was written to the type that its field in `SweepSpec` has, or a problem that says why not."""

from __future__ import annotations

import difflib
import functools
import math
import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Any, get_args, get_type_hints

import msgspec

from fewbits.core.errors import Problem
from fewbits.records.plan import SweepSpec
from fewbits.spec.parameters import Form, Parameter

NULL_WORD = "auto"
"""On a flag of a setting that may be empty, this word asks for the empty value (a flag cannot say `null`)."""

_PLACE = re.compile(r" - at `\$(?P<place>.*)`$")
_SHOWN_CHARACTERS = 60


def convert_value(parameter: Parameter, value: object, path: str) -> tuple[Any, Problem | None]:
    """Convert a value from a file (strict: `"3"` is no number). Returns the value and `None`, or `None` and the problem."""
    return _convert(parameter, value, path, strict=True)


def convert_flag(parameter: Parameter, value: object, path: str) -> tuple[Any, Problem | None]:
    """Convert a value of a flag: text is read as what the field needs, lists are comma-separated. Typed values pass as well."""
    value_type = field_type(parameter)
    if value == NULL_WORD and type(None) in get_args(value_type):
        return None, None
    if parameter.form is Form.LIST:
        return _convert(parameter, split_list(value), path, strict=False)
    if isinstance(value, str):
        value = value.strip()
        return _convert(parameter, value, path, strict=False)
    return _convert(parameter, value, path, strict=True)


def split_list(value: object) -> object:
    """Split comma-separated text (or a list of such texts) into its trimmed, non-empty parts; anything else stays."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, list | tuple):
        return [part for item in value for part in (_parts(item))]
    return value


def _parts(item: object) -> list[object]:
    split = split_list(item) if isinstance(item, str) else [item]
    return list(split) if isinstance(split, list) else [item]


def _convert(parameter: Parameter, value: object, path: str, *, strict: bool) -> tuple[Any, Problem | None]:
    value_type = field_type(parameter)
    try:
        converted = msgspec.convert(value, type=value_type, strict=strict)
    except msgspec.ValidationError as error:
        return None, _explain(parameter, value, path, str(error))
    if isinstance(converted, float) and not math.isfinite(converted):
        return None, Problem(path, f"{converted} is not a usable number", "write a finite number")
    return converted, None


@functools.cache
def _hints(record: type) -> dict[str, Any]:
    return get_type_hints(record, include_extras=True)


def field_type(parameter: Parameter) -> Any:
    """Return the annotated type of a parameter's field in `SweepSpec` (ranges included), or the parameter's own narrower one."""
    if parameter.type is not None:
        return parameter.type
    current: Any = SweepSpec
    for name in parameter.target.split("."):
        current = _hints(current)[name]
    return current


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `did you mean 'x'?` for the closest known word, or an empty text."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean {found[0]!r}?" if found else ""


def shown(value: object) -> str:
    """Render a value for a message, shortened."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def _explain(parameter: Parameter, value: object, path: str, message: str) -> Problem:
    """Turn msgspec's sentence into ours: where inside the value, what was expected, what was got."""
    place = ""
    if found := _PLACE.search(message):
        place, message = found["place"], message[: found.start()]
    part = _part_at(value, place)
    if message.startswith("Invalid enum value"):
        return _explain_choice(parameter, part, path + place)
    message = message[0].lower() + message[1:].replace("`", "").replace("array", "list").replace("object", "table")
    if "matching regex" in message:
        message = message.split(" matching regex")[0] + " in another form"
    got = f"got {shown(part)}" if ", got " not in message else f"({shown(part)})"
    separator = ", " if got.startswith("got") else " "
    return Problem(path + place, f"{message}{separator}{got}", parameter.hint or parameter.help)


def _part_at(value: object, place: str) -> object:
    for index in re.findall(r"\[(\d+)\]", place):
        if isinstance(value, list | tuple):
            value = value[int(index)]
    return value


def _explain_choice(parameter: Parameter, value: object, path: str) -> Problem:
    choices = _choices(field_type(parameter))
    return Problem(path, f"expected one of {', '.join(choices)}; got {shown(value)}", nearest(str(value), choices))


def _choices(value_type: Any) -> list[str]:
    if isinstance(value_type, type) and issubclass(value_type, StrEnum):
        return [member.value for member in value_type]
    return [choice for argument in get_args(value_type) for choice in _choices(argument)]
