"""Lines of text from words with places."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fewbits.extraction.issues import issues_in_words
from fewbits.extraction.page_lines import page_lines
from fewbits.extraction.words import Word
from fewbits.records.extraction import LabReport, LabTest


def word(text: str, left: float, top: float, *, width: float | None = None, height: float = 20.0) -> Word:
    right = left + (width if width is not None else 10.0 * len(text))
    return Word(text, ((left, top), (right, top), (right, top + height), (left, top + height)), 0.9)


def test_columns_are_parted_and_lines_ordered() -> None:
    words = [
        word("7.2", 300, 100),
        word("WBC", 20, 101),
        word("Hemoglobin", 20, 50),
        word("g/dL", 400, 52),
        word("13.5", 300, 50),
    ]
    assert page_lines(words) == ("Hemoglobin | 13.5 | g/dL", "WBC | 7.2")


def test_words_of_one_text_stay_together() -> None:
    assert page_lines([word("Free", 20, 50), word("T4", 66, 50), word("1.2", 300, 50)]) == ("Free T4 | 1.2",)


def test_what_was_read_in_one_piece_stays_as_read() -> None:
    assert page_lines([word("13.5H", 20, 50)]) == ("13.5H",)


def test_leaders_and_printed_bars_do_not_pass_for_text_or_columns() -> None:
    assert page_lines([word("Glucose........95", 20, 50)]) == ("Glucose | 95",)
    assert page_lines([word("a | b", 20, 50)]) == ("a / b",)


def test_no_words_no_lines() -> None:
    assert page_lines([]) == ()
    assert page_lines([word("  ", 20, 50)]) == ()


@given(
    st.lists(
        st.tuples(st.text(min_size=1, max_size=12), st.floats(0, 2000), st.floats(0, 2000), st.floats(5, 60)),
        max_size=20,
    )
)
def test_every_line_is_one_line_with_text(places: list[tuple[str, float, float, float]]) -> None:
    words = [word(text, left, top, height=height) for text, left, top, height in places]
    for line in page_lines(words):
        assert line.strip()
        assert len(line.splitlines()) == 1


def test_issues_are_told_with_their_test() -> None:
    report = LabReport(tests=(LabTest(test_name="Hemoglobin", value=""),))
    assert issues_in_words(report) == ("Hemoglobin: empty value (the row has no value)",)
    assert issues_in_words(LabReport()) == ("the report: no tests (no row of a lab report)",)
