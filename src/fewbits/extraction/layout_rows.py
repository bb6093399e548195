"""One line of tokens read as a row: which part is the name, the value, the unit, the range, the mark.

The best of all divisions is found by dynamic programming. What speaks for one is what the text can be (grammar and names), where
it stands (columns), and the white space between parts. The weights were set on generated pages of the split `tuning`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from fewbits.extraction import layout_spelling as spelling
from fewbits.extraction.layout_columns import Label, Table
from fewbits.extraction.layout_tokens import Token, gap, joined
from fewbits.extraction.names import candidates, closest
from fewbits.extraction.values import parse_number

_LONGEST = {Label.NAME: 9, Label.VALUE: 3, Label.UNIT: 4, Label.RANGE: 10, Label.FLAG: 2, Label.OTHER: 1}
_BITS = {label: 1 << index for index, label in enumerate(Label)}
_SPACE = 0.55
"""White space in text heights up to which two words of one column stand apart."""
_WIDE = 0.9
_LONGEST_UNIT = 16
_BETWEEN_ENDS = ("to", "-", "–", "—")  # noqa: RUF001 - what pages print
_KNOWN = 2.0
"""Score of a name from which the table of analytes knows it, or one near it."""
_LOOSE_WORDS = 2
_REMARK = re.compile(
    r".*\S\s=\s|\(\d\)\s|(?:\*+)?\s*(?:comments?|notes?|remarks?|interpretation|page|performed|method|reviewed|signed|specimen|sample|"
    r"disclaimer|legend|key|end of|\*\*)\b",
    re.IGNORECASE,
)
"""How lines begin that are no results, whatever numbers are in them."""
_FOOTNOTE = re.compile(r"\s*(?:\(\d\)|\[\d\]|[¹²³⁴]|[*†‡]+|:)$")
_IMPOSSIBLE = -1e9


@dataclass(frozen=True, slots=True)
class Part:
    """Neighbouring tokens with one label."""

    label: Label
    tokens: tuple[Token, ...]

    @property
    def text(self) -> str:
        """The tokens' text."""
        return joined(self.tokens)


@dataclass(frozen=True, slots=True)
class Row:
    """A line's parts by label. `score` is of no unit: more is more certain."""

    parts: tuple[Part, ...]
    score: float

    def of(self, label: Label) -> Part | None:
        """Return the part with a label."""
        return next((part for part in self.parts if part.label is label), None)


@lru_cache(maxsize=4096)
def name_text(text: str) -> str:
    """Return a printed name without footnote marks and what leads to the value."""
    bare = text.strip(" .,;·•…_")
    while (match := _FOOTNOTE.search(bare)) is not None and candidates(bare) == ():
        bare = bare[: match.start()].strip(" .,;·")
    return bare


@lru_cache(maxsize=4096)
def name_score(text: str) -> float:
    """Return what speaks for a text as the name of a test: 3 where the table knows it, less where it is near, about 0 else."""
    bare = name_text(text)
    if candidates(bare):
        return 3.0 + 0.02 * len(bare)
    if sum(character.isalpha() for character in bare) < 2:
        return _IMPOSSIBLE
    near = closest(bare)
    if near is not None:
        return 2.3 - 0.1 * near[1]
    if spelling.unit_text(bare) or spelling.is_flag(bare) or spelling.is_word_result(bare):
        return -0.8
    return 0.2 if re.search(r"[:;?]|\.\s", bare) is None else -1.0


@lru_cache(maxsize=8192)
def _text_score(label: Label, text: str, in_column: bool) -> float:
    """Return what speaks for a label by the text alone; impossible where the grammar excludes it."""
    if label is Label.NAME:
        return name_score(text)
    if label is Label.VALUE:
        return _value_score(text, in_column)
    if label is Label.UNIT:
        return _unit_score(text, in_column)
    if label is Label.RANGE:
        return _range_score(text, in_column)
    if label is Label.FLAG:
        return 1.2 if spelling.is_flag(text) else _IMPOSSIBLE
    return -0.6


def _value_score(text: str, in_column: bool) -> float:
    if spelling.number_text(text) is not None:
        return 2.0
    if spelling.is_word_result(text):
        return 1.6 + 0.5 * text.count(" ")
    if spelling.is_span_result(text):
        return 1.2
    return -0.2 if in_column and not spelling.is_flag(text) and spelling.unit_text(text) is None else _IMPOSSIBLE


def _unit_score(text: str, in_column: bool) -> float:
    if spelling.unit_text(text) is not None or spelling.is_power(text):
        return 1.8
    if spelling.looks_like_unit(text):
        return 0.6
    shaped = in_column and parse_number(text) is None and len(text) < _LONGEST_UNIT and not spelling.is_flag(text)
    return -0.6 if shaped else _IMPOSSIBLE


def _range_score(text: str, in_column: bool) -> float:
    found = spelling.range_of(text)
    if found is not None:
        numeric = found.low is not None or found.high is not None or any(each.isdigit() for each in text)
        return 2.0 if numeric else 1.2
    return 0.1 if in_column and any(each.isalnum() for each in text) else _IMPOSSIBLE


def _inner_gaps(label: Label, tokens: Sequence[Token]) -> float:
    """Return the cost of the white space within a part."""
    wide = 0.0
    for before, after in pairwise(tokens):
        space = gap(before, after)
        if space > _WIDE or after.leader:
            wide += 1.2 + 0.4 * min(4.0, space - _WIDE)
        elif space > _SPACE and label is not Label.RANGE:
            wide += 0.3
    return wide


def _place_score(label: Label, near: tuple[Label, float] | None, table: Table | None) -> tuple[float, bool]:
    """Return what the nearest column says for a label, and whether it is a column of that label."""
    if near is None or table is None:
        return 0.0, False
    if label is Label.OTHER:
        return (0.9 if near[0] is Label.OTHER and near[1] > 1 else 0.0), False
    if near[0] is label:
        return min(1.2, 0.3 + 0.4 * near[1]), True
    return -min(1.6, (0.5 if label in table.labels else 0.15) * near[1]), False


def _step_score(last: Label | None, label: Label, before: Token | None, after: Token) -> float:
    """Return what the white space before a part, and the label before it, say."""
    if before is None or last is None:
        return 0.0
    space = gap(before, after)
    if (last, label) == (Label.NAME, Label.UNIT) and space < _WIDE and not after.text.startswith(("(", "[")):
        return -2.0  # `Neutrophils %`, `HDL Ratio`: part of the name
    if Label.OTHER in (last, label) and Label.NAME in (last, label):
        return 0.0 if space > _WIDE else -2.0  # a name is not cut out of a sentence
    if space > _SPACE:
        return 0.3 if space > _WIDE else 0.1
    usual = {(Label.VALUE, Label.UNIT), (Label.VALUE, Label.FLAG), (Label.FLAG, Label.VALUE), (Label.UNIT, Label.RANGE)}
    if (last, label) in usual:
        return -0.1
    return -0.5 if (last, label) == (Label.NAME, Label.VALUE) else -0.8


def _is_range_end(tokens: Sequence[Token], start: int, end: int) -> bool:
    """Say whether these tokens are the low or the high end of a range (`7 to 13`), so that they are no value."""
    after = end < len(tokens) and tokens[end].text in _BETWEEN_ENDS and gap(tokens[end - 1], tokens[end]) < _WIDE
    before = start > 0 and tokens[start - 1].text in _BETWEEN_ENDS and gap(tokens[start - 1], tokens[start]) < _WIDE
    return after or before


def _may_be_result(text: str) -> bool:
    return any(character.isdigit() for character in text) or spelling.is_word_result(text) or text.strip("+") == ""


def best_row(tokens: Sequence[Token], table: Table | None = None) -> Row | None:
    """Return the best division of a line that has a name and a value; `None` where there is none.

    A name precedes its value. Each label but OTHER occurs once.
    """
    count = len(tokens)
    if count < 2 or not (table is not None or any(_may_be_result(token.text) for token in tokens)):
        return None
    states: list[dict[tuple[int, Label | None], tuple[float, tuple[Part, ...]]]] = [{} for _ in range(count + 1)]
    states[0][0, None] = (0.0, ())
    options = _options(tokens, table)
    for start in range(count):
        for (mask, last), (score, parts) in states[start].items():
            for label in Label:
                after_name = label in (Label.VALUE, Label.UNIT, Label.RANGE)
                if (label is not Label.OTHER and mask & _BITS[label]) or (after_name and not mask & _BITS[Label.NAME]):
                    continue
                step = _step_score(last, label, tokens[start - 1] if start else None, tokens[start])
                if label in (Label.UNIT, Label.RANGE) and not mask & _BITS[Label.VALUE]:
                    step -= 0.7
                for end, part_score in options[start, label]:
                    key, total = (mask | _BITS[label], label), score + step + part_score
                    if total > states[end].get(key, (_IMPOSSIBLE,))[0]:
                        states[end][key] = (total, (*parts, Part(label, tuple(tokens[start:end]))))
    needed = _BITS[Label.NAME] | _BITS[Label.VALUE]
    ends = [state for (mask, _), state in states[count].items() if mask & needed == needed]
    if not ends:
        return None
    score, parts = max(ends, key=lambda state: state[0])
    return Row(parts, score)


def _options(tokens: Sequence[Token], table: Table | None) -> dict[tuple[int, Label], list[tuple[int, float]]]:
    """Return, for each first token and label, the (end, score) of every part that may begin there."""
    options: dict[tuple[int, Label], list[tuple[int, float]]] = {
        (start, each): [] for start in range(len(tokens)) for each in Label
    }
    for start in range(len(tokens)):
        for end in range(start + 1, min(len(tokens), start + max(_LONGEST.values())) + 1):
            part = tokens[start:end]
            text = joined(part)
            near = None if table is None else table.nearest(part[0].left, part[-1].right)
            for label, longest in _LONGEST.items():
                if end - start > longest or (label is Label.VALUE and _is_range_end(tokens, start, end)):
                    continue
                place, in_column = _place_score(label, near, table)
                score = _text_score(label, text, in_column)
                if score > _IMPOSSIBLE / 2:
                    options[start, label].append((end, score + place - _inner_gaps(label, part)))
    return options


def _is_word_value(text: str) -> bool:
    return spelling.is_word_result(text) or spelling.is_span_result(text)


def is_plausible(row: Row, table: Table | None) -> bool:
    """Say whether a division is a result at all, not a sentence with a number in it or a line of the patient block.

    An unknown name needs columns, or a wide space before its value and a unit.
    """
    name, value = row.of(Label.NAME), row.of(Label.VALUE)
    if name is None or value is None or _is_sentence(row, name, value):
        return False
    apart = gap(name.tokens[-1], row.parts[row.parts.index(name) + 1].tokens[0])
    number = spelling.number_text(value.text) is not None
    if spelling.is_span_result(value.text) and row.of(Label.RANGE) is None and row.of(Label.UNIT) is None:
        return False  # a range whose value was not read
    evidence = any(row.of(label) is not None for label in (Label.UNIT, Label.RANGE, Label.FLAG))
    score = name_score(name.text)
    if score > _KNOWN:
        return number or evidence or table is not None or apart > _WIDE
    if table is not None and table.columns:
        places = [table.nearest(part.tokens[0].left, part.tokens[-1].right) for part in (name, value)]
        placed = [place[0] for place in places if place is not None] == [Label.NAME, Label.VALUE]
        return placed and (number or evidence or _is_word_value(value.text)) and score > -0.5
    return apart > _WIDE and score > 0 and number and row.of(Label.UNIT) is not None


def _is_sentence(row: Row, name: Part, value: Part) -> bool:
    """Say whether the parts are cut out of running text: words without a label close to them, or how remarks begin."""
    tokens = [(part.label, token) for part in row.parts for token in part.tokens]
    loose = [
        place
        for place, ((label, token), (following, after)) in enumerate(pairwise(tokens))
        if Label.OTHER in (label, following) and gap(token, after) < _WIDE
    ]
    beside_name = any(tokens[place][0] is Label.NAME or tokens[place + 1][0] is Label.NAME for place in loose)
    if beside_name or len(loose) > _LOOSE_WORDS:
        return True
    if name_score(name.text) <= _KNOWN and _REMARK.match(joined([token for _, token in tokens])):
        return True
    exact = spelling.number_text(value.text) is not None or _is_word_value(value.text)
    return not exact and gap(name.tokens[-1], row.parts[row.parts.index(name) + 1].tokens[0]) < _SPACE
