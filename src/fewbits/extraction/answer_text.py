"""One field of a model's answer: text within bounds, or nothing and the reason."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Mapping, Sequence

from fewbits.extraction.answer_json import NumberText

MAX_TEXT = 200
MAX_PROBLEMS = 50
_NOTHING = frozenset({"null", "none", "n/a"})
"""Words that models write where a page shows nothing."""
_KINDS = {dict: "an object", list: "a list", bool: "true or false", type(None): "null"}


class FieldReader:
    """Reads fields of parsed JSON and keeps what was wrong with them, with the place, never with the content."""

    def __init__(self, problems: Sequence[str]) -> None:
        self._problems = list(problems)
        self.unknown_keys = 0

    @property
    def count(self) -> int:
        """How many problems there are."""
        return len(self._problems)

    @property
    def problems(self) -> tuple[str, ...]:
        """Return the first `MAX_PROBLEMS`, and how many more there were."""
        shown = self._problems[:MAX_PROBLEMS]
        more = [f"and {self.count - MAX_PROBLEMS} more"] if self.count > MAX_PROBLEMS else []
        return (*shown, *more)

    def problem(self, words: str) -> None:
        """Note one problem."""
        self._problems.append(words)

    def wrong(self, where: str, value: object, wanted: str) -> None:
        """Note a value of the wrong type."""
        kind = "a number" if isinstance(value, NumberText) else _KINDS.get(type(value), "text")
        self.problem(f"{where}: {kind}, not {wanted}")

    def count_unknown(self, tree: Mapping[str, object], known: Collection[str]) -> None:
        """Count keys that nobody reads."""
        self.unknown_keys += sum(key not in known for key in tree)

    def text(self, tree: Mapping[str, object], key: str, where: str, *, words_for_nothing: bool = True) -> str | None:
        """Return `tree[key]` as text on one line; numbers keep their digits as written. `None` for null, nothing and white space.

        `words_for_nothing` also takes `null`, `None` and `N/A` for nothing. Other types, more than `MAX_TEXT` characters and what
        UTF-8 cannot hold are noted and dropped.
        """
        value = tree.get(key)
        if value is None:
            return None
        if not isinstance(value, str):
            self.wrong(where + key, value, "text")
            return None
        line = " ".join("".join(" " if unicodedata.category(char) == "Cc" else char for char in value).split())
        if len(line) > MAX_TEXT:
            self.problem(f"{where}{key}: longer than {MAX_TEXT} characters")
            return None
        if any(unicodedata.category(char) == "Cs" for char in line):
            self.problem(f"{where}{key}: characters that are no text")
            return None
        if not line or (words_for_nothing and line.lower() in _NOTHING):
            return None
        return line
