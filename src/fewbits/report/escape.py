"""Foreign text made safe to show: model names, quant tags, model output and messages may hold anything.

Every string that did not come from this package passes through exactly one function of this module before it reaches a
document. None of them ever returns a raw `<`, a line break, a control character or a character that changes direction.
"""

from __future__ import annotations

import re
import unicodedata

NAME_LIMIT = 80
"""Characters of a name that are shown; the rest is cut and marked with an ellipsis."""

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
# Everything that is neither special in Markdown nor in HTML nor in a table, so that a code span shows it as it is
_PLAIN_NAME = re.compile(r"[A-Za-z0-9 _.:/@+=,()\-]*[A-Za-z0-9_.:/@+=,()\-]")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "$": "&#36;", "@": "&#64;", '"': "&quot;"}
_BACKSLASHED = frozenset("\\`*[]{}#!~")
_LIST_OPENING = re.compile(r"^(?:[-+=]|\d+[.)](?=\s|$))")
_LOOK_ALIKES = {ord("<"): "\u2039", ord(">"): "\u203a", ord("`"): "'"}


def visible(text: str, limit: int | None = None) -> str:
    """Return `text` on one line: blanks are collapsed, hidden characters (control, bidirectional, zero-width, surrogates)
    become a visible `[U+202E]`, and text beyond `limit` characters is cut with an ellipsis.
    """
    shown = "".join(
        char if unicodedata.category(char) not in _HIDDEN else f"[U+{ord(char):04X}]" for char in " ".join(text.split())
    )
    if limit is not None and len(shown) > limit:
        return shown[: limit - 1] + "…"
    return shown


def markdown_text(text: str, limit: int | None = None) -> str:
    """Return `text` as inline Markdown that renders as exactly these characters: no markup, no HTML, no links, no cell ends."""
    return _inline(visible(text, limit))


def _inline(shown: str) -> str:
    opening = _LIST_OPENING.match(shown)
    if opening:
        # A sentence that starts like a list item or a heading underline would become one
        position = opening.end() - 1
        return _escaped(shown[:position]) + "\\" + shown[position] + _escaped(shown[position + 1 :])
    return _escaped(shown)


def _escaped(text: str) -> str:
    return "".join(_escape_character(text, position) for position in range(len(text)))


def _escape_character(text: str, position: int) -> str:
    char = text[position]
    if char in _ENTITIES:
        return _ENTITIES[char]
    if char in _BACKSLASHED:
        return "\\" + char
    before, after = text[position - 1 : position], text[position + 1 : position + 2]
    if char == "_" and not (before.isalnum() and after.isalnum()):
        return "\\_"
    if char == ":" and after == "/":
        return "&#58;"  # no automatic link from "https://..."
    if char == "." and text[max(0, position - 3) : position].lower() == "www":
        return "&#46;"
    return char


def markdown_name(name: str, limit: int = NAME_LIMIT) -> str:
    """Return a name as a code span where that is safe, else as escaped text; an empty name becomes `(empty)`."""
    shown = visible(name, limit)
    if not shown:
        return "(empty)"
    return f"`{shown}`" if _PLAIN_NAME.fullmatch(shown) else _inline(shown)


def code_block_text(text: str, limit: int | None = None) -> str:
    """Return `text` for the inside of a fenced block, one column per character, so that pictures stay aligned.

    Entities do not work there, so angle brackets and backticks become look-alikes; wide and combining characters, which
    would shift everything to their right, become `?`.
    """
    shown = visible(text, limit)
    swapped = shown.translate(_LOOK_ALIKES)
    return "".join(char if _is_one_column(char) else "?" for char in swapped)


def _is_one_column(char: str) -> bool:
    return unicodedata.east_asian_width(char) not in {"W", "F"} and not unicodedata.combining(char) and char.isprintable()


def xml_text(text: str, limit: int | None = None) -> str:
    """Return `text` for XML element content or a quoted attribute."""
    shown = visible(text, limit)
    return "".join(_XML_ENTITIES.get(char, char) for char in shown)


_XML_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;"}
