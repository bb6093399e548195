"""Read a matrix file, JSON or YAML, strictly: bounded, no duplicate keys, no NaN, no aliases."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbits.core.errors import Problem, SpecError

if TYPE_CHECKING:
    import yaml

MAX_BYTES = 128 * 1024
"""A matrix file is a page of text; a larger file is something else, and YAML of this size already takes 2 s to parse."""
MAX_DEPTH = 32
_SUFFIXES = {".json": "JSON", ".yaml": "YAML", ".yml": "YAML"}


def read_document(path: Path, what: str = "matrix file") -> dict[str, object]:
    """Return the top-level mapping of a settings file. Raises `SpecError` with every problem of the text itself.

    `what` the file is said to be in messages.

    Values are plain: `dict`, `list`, `str`, `int`, `float` (finite), `bool`, `None`; for YAML also dates. Numbers too large for
    a float, and `NaN`, are refused with their place.
    """
    where = str(path)
    kind = _SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise SpecError.single(where, f"unknown kind of file {path.suffix or '(no suffix)'!r}", "use .json, .yaml or .yml")
    text = _read_text(path, what)
    problems: list[Problem] = []
    tree = _parse_json(text, where, problems) if kind == "JSON" else _parse_yaml(text, where, problems)
    _check_tree(tree, "", where, problems)
    if not problems and not isinstance(tree, dict):
        problems.append(Problem(where, f"expected an object of settings, got {_kind_of(tree)}"))
    if problems or not isinstance(tree, dict):
        raise SpecError(problems)
    return tree


def _read_text(path: Path, what: str) -> str:
    where = str(path)
    try:
        with path.open("rb") as handle:
            data = handle.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        beside = sorted(entry.name for entry in path.parent.glob("*.json")) if path.parent.is_dir() else []
        hint = f"beside it there are: {', '.join(beside[:8])}" if beside else "check the path"
        raise SpecError.single(where, f"no such {what}", hint) from error
    except OSError as error:
        raise SpecError.single(where, f"cannot be read: {error.strerror or error}", "check the path") from error
    if len(data) > MAX_BYTES:
        raise SpecError.single(where, f"larger than {MAX_BYTES} bytes", f"a {what} is a page of settings")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError.single(where, f"not UTF-8 text: {error.reason} at byte {error.start}") from error


def _parse_json(text: str, where: str, problems: list[Problem]) -> object:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key, value in items:
            if key in mapping:
                problems.append(Problem(where, f"key {key!r} is given twice", "keep one of them"))
            mapping[key] = value
        return mapping

    try:
        return json.loads(text, object_pairs_hook=pairs)
    except json.JSONDecodeError as error:
        raise SpecError.single(f"{where}:{error.lineno}:{error.colno}", f"not JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        # integers of thousands of digits, or brackets nested thousands deep
        raise SpecError.single(where, f"not a usable JSON file: {error}") from error


def _parse_yaml(text: str, where: str, problems: list[Problem]) -> object:
    import yaml

    class StrictLoader(yaml.SafeLoader):
        """Aliases are refused while composing: they are how a small file becomes a huge tree."""

        def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
            if self.check_event(yaml.AliasEvent):
                mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
                raise yaml.composer.ComposerError(None, None, "aliases are not used here; write the value out", mark)
            return super().compose_node(parent, index)

    try:
        loader = StrictLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check_yaml_keys(node, where, problems)
            # a key that is no text may not be constructible; it has been reported already
            tree: object = loader.construct_document(node) if not problems else None
            return tree
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
        raise SpecError.single(place, f"not YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SpecError.single(where, f"not a usable YAML file: {error}") from error


def _check_yaml_keys(node: yaml.Node, where: str, problems: list[Problem]) -> None:
    import yaml

    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            place = f"{where}:{key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                problems.append(Problem(place, "a key must be plain text", "quote it if it is meant"))
            elif key.value in seen:
                problems.append(Problem(place, f"key {key.value!r} is given twice", "keep one of them"))
            else:
                seen.add(key.value)
            _check_yaml_keys(value, where, problems)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_yaml_keys(item, where, problems)


def _check_tree(value: object, path: str, where: str, problems: list[Problem], depth: int = 0) -> None:
    place = path or where
    if depth > MAX_DEPTH:
        problems.append(Problem(place, f"nested more than {MAX_DEPTH} deep"))
    elif isinstance(value, float) and not math.isfinite(value):
        problems.append(Problem(place, f"{value} is not a usable number", "write a finite number"))
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_tree(item, f"{path}.{key}" if path else str(key), where, problems, depth + 1)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_tree(item, f"{place}[{index}]", where, problems, depth + 1)


def _kind_of(value: object) -> str:
    if value is None:
        return "nothing"
    return {"list": "a list", "str": "text"}.get(type(value).__name__, type(value).__name__)
