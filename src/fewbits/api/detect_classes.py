"""Which category of a data set each class of a detector is: by place, or by the names of a YAML file. Both files are hostile."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fewbits.core.errors import Problem, SpecError
from fewbits.records.detection import Category
from fewbits.records.onnx_graph import NAMES_KEY

if TYPE_CHECKING:
    import yaml

OTHER_NAMES_KEY = "names"
"""Where Ultralytics' own exporter writes them, as a Python dictionary."""
BY_ID = "class i is the i-th category of the annotation file, sorted by id"
BY_NAME = "class i is the category that has the i-th name of the YAML file"
_BYTES_LIMIT = 1024**2
_SHOWN = 5


def class_categories(categories: Sequence[Category], names: Path | None) -> tuple[Category, ...]:
    """Return the category of each class. `categories` are sorted by id; that is the order without `names`.

    `names`: a YAML file with `names`, a list or a mapping from class numbers; each must be a category's name. Raises `SpecError`:
    not readable, no such key, numbers with gaps, names that repeat or that the annotation file lacks.
    """
    if names is None:
        return tuple(categories)
    wanted = read_names(names)
    by_name = {category.name: category for category in categories}
    problems = []
    if missing := [name for name in wanted if name not in by_name]:
        hint = f"it has {_shown([category.name for category in categories])}"
        problems.append(Problem(str(names), f"the annotation file has no category {_shown(missing)}", hint))
    if repeated := sorted({name for name in wanted if wanted.count(name) > 1}):
        problems.append(Problem(str(names), f"two classes are called {_shown(repeated)}", "each class has a name of its own"))
    if problems:
        raise SpecError(problems)
    return tuple(by_name[name] for name in wanted)


def read_names(path: Path) -> tuple[str, ...]:
    """Return the class names of a YAML file, in order. Words such as `no` stay words. Raises `SpecError`."""
    import yaml

    hint = "the key `names` holds a list, or a mapping from 0, 1, 2 ... to names"
    try:
        with path.open("rb") as stream:
            data = stream.read(_BYTES_LIMIT + 1)
        if len(data) > _BYTES_LIMIT:
            raise SpecError.single(str(path), f"larger than {_BYTES_LIMIT} bytes", hint)
        # nodes, not values: nothing is constructed, and no name turns into a number or a truth value
        root = yaml.compose(data.decode("utf-8-sig"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise SpecError.single(str(path), f"cannot be read: {error.strerror or error}", hint) from error
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise SpecError.single(str(path), f"not YAML: {' '.join(str(error).split())[:200]}", hint) from error
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    found = [value for key, value in pairs if key.value == "names"]
    listed = _listed(found[0]) if len(found) == 1 else None
    if not listed:
        raise SpecError.single(str(path), "there are no class names", hint)
    return listed


def _listed(node: yaml.Node) -> tuple[str, ...] | None:
    """Return the texts of a list, or of a mapping whose keys are 0, 1, 2 ... in any order; `None` for anything else."""
    import yaml

    if isinstance(node, yaml.SequenceNode):
        values = list(node.value)
    elif isinstance(node, yaml.MappingNode):
        by_key = {str(key.value): value for key, value in node.value}
        places = [str(place) for place in range(len(node.value))]
        if set(by_key) != set(places):
            return None
        values = [by_key[place] for place in places]
    else:
        return None
    return tuple(value.value for value in values) if all(isinstance(value, yaml.ScalarNode) for value in values) else None


def declared_names(metadata: Mapping[str, str]) -> tuple[str, ...] | None:
    """Return the class names that an ONNX file's own metadata holds, ours before Ultralytics'; `None` where there are none."""
    if (text := metadata.get(NAMES_KEY)) is not None:
        try:
            return tuple(msgspec.json.decode(text, type=list[str]))
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
            return None
    text = metadata.get(OTHER_NAMES_KEY, "")
    if len(text) > _BYTES_LIMIT:
        return None
    try:
        found = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    if isinstance(found, dict) and set(found) == set(range(len(found))):
        found = [found[place] for place in range(len(found))]
    return tuple(map(str, found)) if isinstance(found, list | tuple) and found else None


def check_declared(names: Sequence[str] | None, classes: Sequence[Category], where: str) -> str:
    """Compare the names that a model declares with the categories that its classes are taken for; return a notice, or nothing.

    Numbers as names (`0`, `1` ...) say nothing. Raises `SpecError` for another number of names, and for the same names in another
    order: every box would be mislabelled.
    """
    if names is None:
        return ""
    hint = "give --coco-yaml with the model's names in its order"
    if len(names) != len(classes):
        message = f"the file declares {len(names)} classes ({_shown(names)}), but there are {len(classes)} categories"
        raise SpecError.single(where, message, hint)
    pairs_of_names = enumerate(zip(names, (category.name for category in classes), strict=True))
    differing = [(own, other) for place, (own, other) in pairs_of_names if own not in (other, str(place))]
    if not differing:
        return ""
    if sorted(names) == sorted(category.name for category in classes):
        raise SpecError.single(where, "the file declares the same classes in another order than the annotation file", hint)
    pairs = ", ".join(f"{own!r:.40} as {other!r:.40}" for own, other in differing[:_SHOWN])
    return f"{len(differing)} classes are called otherwise in the annotation file: {pairs}"


def _shown(names: Sequence[str]) -> str:
    tail = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(f"{name!r:.60}" for name in names[:_SHOWN]) + tail
