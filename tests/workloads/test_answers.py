"""Reading answers: numbers, JSON, code, wrapping."""

from __future__ import annotations

import json
import math
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fewbits.workloads.text import answers

JSON_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20)
JSON_VALUES = st.recursive(
    JSON_SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
JSON_CONTAINERS = st.lists(JSON_VALUES, max_size=4) | st.dictionaries(st.text(max_size=8), JSON_VALUES, max_size=4)
# prose may hold anything but brackets (which begin a JSON value) and fences
PROSE = st.text(st.characters(exclude_characters="{}[]`~", exclude_categories=["Cs"]), max_size=60)


class TestNumbers:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("1,234.5", [1234.5]),
            ("The total is $1,234,567.", [1234567.0]),
            ("-3 and +4", [-3.0, 4.0]),
            ("x=5-3", [5.0, 3.0]),
            ("10 - 3 = 7", [10.0, 3.0, 7.0]),
            ("(-2)", [-2.0]),
            ("\u22127 degrees", [-7.0]),
            ("H2O weighs 18", [18.0]),
            ("Q4_K_M", []),
            ("6.02e23", [6.02e23]),
            ("1.5E-3", [1.5e-3]),
            (".5 or -.25", [0.5, -0.25]),
            ("42.", [42.0]),
            ("**42**", [42.0]),
            ("1,2,3", [1.0, 2.0, 3.0]),
            ("5%", [5.0]),
            ("12km", [12.0]),
            (r"so 3 + 4 = \boxed{7}, as 1 shows", [7.0]),
            (r"$\boxed{1{,}234}$", [1234.0]),
            (r"\boxed{x} = 3", []),
            ("none here", []),
            ("1e999", []),
        ],
    )
    def test_examples(self, text: str, expected: list[float]) -> None:
        assert answers.numbers_in(text) == expected

    @given(st.integers(-(10**12), 10**12))
    def test_grouped_integers_come_back(self, value: int) -> None:
        assert answers.numbers_in(f"the answer is {value:,}") == [float(value)]

    @given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e15, max_value=1e15))
    def test_floats_come_back(self, value: float) -> None:
        assert answers.numbers_in(f"It is {value!r} exactly.") == [value]

    @given(st.text(max_size=300))
    def test_any_text_gives_finite_numbers(self, text: str) -> None:
        assert all(math.isfinite(number) for number in answers.numbers_in(text))

    def test_hostile_text_is_fast(self) -> None:
        start = time.process_time()
        for text in ("1" * 10**6, "1," * 500_000, "-" * 10**6, "1,234" * 200_000, "\\boxed{" * 100_000, "1e" * 300_000):
            answers.numbers_in(text)
        assert time.process_time() - start < 3


class TestPlainText:
    @pytest.mark.parametrize(
        "text",
        ["Paris", " Paris. ", "**Paris**", '"Paris."', "`Paris`", "```\nParis\n```", "```text\nParis\n```", "**'Paris'.**"],
    )
    def test_wrapping_is_removed(self, text: str) -> None:
        assert answers.plain_text(text) == "Paris"

    @pytest.mark.parametrize("text", ["U.S. Army", "don't", "a*b", "x = 'y' + z"])
    def test_inside_is_kept(self, text: str) -> None:
        assert answers.plain_text(text) == text

    @given(st.text(max_size=80))
    @example("0\x1f.")
    def test_idempotent(self, text: str) -> None:
        assert answers.plain_text(answers.plain_text(text)) == answers.plain_text(text)

    def test_last_line_skips_wrapping_only(self) -> None:
        assert answers.last_line("Let me see.\n\n**B**\n```\n\n") == "B"
        assert answers.last_line("\n\n") == ""


class TestFinalAnswer:
    def test_think_block_is_dropped(self) -> None:
        assert answers.final_answer("<think>\n2+2 is 5?\n</think>\n\n4") == "4"

    def test_unclosed_think_block_is_no_answer(self) -> None:
        assert answers.final_answer("<think> the answer is 4") == ""

    def test_later_tag_is_text(self) -> None:
        assert answers.final_answer("use <think> tags") == "use <think> tags"


class TestJson:
    @given(JSON_VALUES)
    def test_bare_round_trip(self, value: object) -> None:
        assert answers.same_json(answers.extract_json(json.dumps(value)), value)

    @given(PROSE, JSON_CONTAINERS, PROSE, st.sampled_from([None, 2]))
    def test_round_trip_in_prose(self, before: str, value: object, after: str, indent: int | None) -> None:
        text = f"Here: {before}\n{json.dumps(value, indent=indent)}\n{after} done"
        assert answers.same_json(answers.extract_json(text), value)

    @given(PROSE, JSON_VALUES, PROSE, st.sampled_from(["", "json", "JSON"]))
    def test_round_trip_in_a_fence(self, before: str, value: object, after: str, language: str) -> None:
        text = f"Here: {before}\n```{language}\n{json.dumps(value, indent=1)}\n```\n{after} done"
        assert answers.same_json(answers.extract_json(text), value)

    def test_json_fence_beats_an_earlier_fence(self) -> None:
        assert answers.extract_json('```\n1\n```\n```json\n{"a": 2}\n```') == {"a": 2}

    def test_braces_of_prose_are_skipped(self) -> None:
        assert answers.extract_json('With {x, y} in mind, and a [ bracket: {"a": [1]}') == {"a": [1]}

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("", "empty"),
            ("no json", "no JSON value"),
            ('{"a": 1, "a": 2}', "twice"),
            ('{"a": {"b": 1}, "a": 2}', "twice"),
            ('{"a": NaN}', "NaN"),
            ("[Infinity]", "Infinity"),
            ("[1e999]", "out of range"),
            ('text {"a": -Infinity}', "Infinity"),
            ('{"a": {"b": 1}', "cut off"),
            ('{"a": {"b": 1},}', "not valid JSON"),
            ("{'a': {'b': 1}}", "no JSON value"),
            ("[" * 100 + "]" * 100, "deeper"),
            ("[" + "9" * 6000 + "]", "too long"),
        ],
    )
    def test_refusals(self, text: str, reason: str) -> None:
        with pytest.raises(answers.AnswerError, match=reason):
            answers.extract_json(text)

    @given(st.text(st.sampled_from('{}[]",:1 \\truefalsn`\n'), max_size=200))
    def test_any_text_gives_a_value_or_a_reason(self, text: str) -> None:
        try:
            value = answers.extract_json(text)
        except answers.AnswerError:
            return
        assert answers.same_json(json.loads(json.dumps(value)), value)

    def test_hostile_text_is_fast(self) -> None:
        start = time.process_time()
        for text in ("[" * 10**6, "[x" * 10**5, "{" * 10**6, '"' * 10**6, "[ {x" * 10**5):
            with pytest.raises(answers.AnswerError):
                answers.extract_json(text)
        assert time.process_time() - start < 5


class TestSameJson:
    def test_types_matter_and_key_order_does_not(self) -> None:
        assert answers.same_json({"a": 1, "b": [1.0]}, {"b": [1], "a": 1.0})
        assert not answers.same_json(True, 1)
        assert not answers.same_json(0, False)
        assert not answers.same_json("1", 1)
        assert not answers.same_json(None, False)
        assert not answers.same_json([1, 2], [2, 1])
        assert not answers.same_json({"a": 1}, {"a": 1, "b": 2})

    def test_tolerance_reaches_inside(self) -> None:
        assert answers.same_json([{"x": 0.30000000000000004}], [{"x": 0.3}], 1e-9)
        assert not answers.same_json([0.31], [0.3], 1e-9)
        assert not answers.same_json(10**400, 1.0, 1e-9)

    @given(JSON_VALUES)
    def test_reflexive(self, value: object) -> None:
        assert answers.same_json(value, json.loads(json.dumps(value)))


class TestPointer:
    # Source: RFC 6901, section 5
    DOCUMENT = {"foo": ["bar", "baz"], "": 0, "a/b": 1, "m~n": 8, " ": 7}  # noqa: RUF012

    @pytest.mark.parametrize(
        ("pointer", "value"),
        [("/foo", ["bar", "baz"]), ("/foo/0", "bar"), ("/", 0), ("/a~1b", 1), ("/m~0n", 8), ("/ ", 7), ("", DOCUMENT)],
    )
    def test_resolves(self, pointer: str, value: object) -> None:
        assert answers.pointer_problem(pointer) == ""
        assert answers.resolve_pointer(self.DOCUMENT, pointer) == value

    @pytest.mark.parametrize("pointer", ["/foo/2", "/foo/-", "/foo/00", "/x", "/foo/bar", "/foo/0/1"])
    def test_nothing_there(self, pointer: str) -> None:
        with pytest.raises(answers.AnswerError):
            answers.resolve_pointer(self.DOCUMENT, pointer)

    @pytest.mark.parametrize("pointer", ["foo", "/a~2", "/a~"])
    def test_malformed(self, pointer: str) -> None:
        assert answers.pointer_problem(pointer)


class TestCode:
    def test_first_block_that_defines_the_function(self) -> None:
        text = "Usage:\n```python\nprint(add(1, 2))\n```\nCode:\n```python\ndef add(a, b):\n    return a + b\n```"
        assert answers.extract_code(text, "add").startswith("def add")

    def test_longest_block_else(self) -> None:
        assert answers.extract_code("```\nx\n```\n~~~python\ny = (1\n~~~", "add") == "y = (1"

    def test_whole_text_when_it_parses(self) -> None:
        assert answers.extract_code("add = lambda a, b: a + b", "add") == "add = lambda a, b: a + b"

    def test_prose_is_not_code(self) -> None:
        with pytest.raises(answers.AnswerError, match="no code block"):
            answers.extract_code("I would add the two numbers.", "add")

    def test_unclosed_fence_runs_to_the_end(self) -> None:
        assert answers.extract_code("```python\ndef f():\n    return 1", "f") == "def f():\n    return 1"

    def test_longer_fence_may_hold_a_shorter_one(self) -> None:
        (block,) = answers.fenced_blocks("````markdown\n```python\nx\n```\n````")
        assert block == answers.Fence("markdown", "```python\nx\n```")

    @pytest.mark.parametrize("source", ["(" * 10_000, "-" * 60_000 + "1", "x\0y", "lambda: " * 5_000 + "1", "\ud800"])
    def test_hostile_source_does_not_parse(self, source: str) -> None:
        assert isinstance(answers.parses_as_python(source), bool)
