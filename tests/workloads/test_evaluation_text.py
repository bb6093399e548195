from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.core.errors import PrerequisiteError, SpecError
from fewbits.records.divergence import PART_NAMES, EvaluationText
from fewbits.workloads.text import evaluation
from fewbits.workloads.text.evaluation import open_evaluation_text

PARAGRAPHS = ("short", "a" * 100, "b" * 100, "c" * 79, "d " * 60)


def test_the_language_reference_comes_with_python() -> None:
    opened = open_evaluation_text("python-topics")
    assert opened is not None
    record, text = opened
    assert record.name == "python-topics"
    assert record.bytes == len(text.encode()) > 100_000
    assert record.digest == hashlib.sha256(text.encode()).hexdigest()
    assert open_evaluation_text("python-topics") == opened


def test_a_python_without_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(PrerequisiteError, match="--evaluation-text"):
        open_evaluation_text("python-topics")


def test_none_is_no_text() -> None:
    assert open_evaluation_text("none") is None


def test_a_file_is_named_without_its_folder_and_kept_byte_by_byte(tmp_path: Path) -> None:
    path = tmp_path / "wiki.test.raw"
    path.write_bytes("grün\r\nsecond\n".encode())
    opened = open_evaluation_text(str(path))
    assert opened is not None
    record, text = opened
    assert text == "grün\r\nsecond\n"
    assert (record.name, record.bytes) == ("wiki.test.raw", 14)
    assert record.digest == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n\t\n", "is empty"),
        (b"good \xff bad", "not UTF-8: byte 5 is 0xff"),
        (None, "No such file"),
    ],
)
def test_unusable_files_are_refused_with_what_to_do(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SpecError, match=message) as caught:
        open_evaluation_text(str(path))
    problem = caught.value.problems[0]
    assert problem.path == "evaluation_text"
    assert problem.hint
    with pytest.raises(SpecError, match="is a folder"):
        open_evaluation_text(str(tmp_path))


def test_a_huge_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "TEXT_BYTES_LIMIT", 10)
    path = tmp_path / "text"
    path.write_text("12345678901")
    with pytest.raises(SpecError, match="at most 10 B"):
        open_evaluation_text(str(path))


def opened_parts() -> list[tuple[EvaluationText, str]]:
    opened = [open_evaluation_text(name) for name in PART_NAMES]
    return [one for one in opened if one is not None]


class TestParts:
    """`python-topics/calibration`, `/probe`, `/held-out`."""

    def test_they_are_disjoint_and_together_the_whole(self) -> None:
        from pydoc_data.topics import topics

        parts = evaluation.split_documents(topics, len(PART_NAMES))
        names = [name for part in parts for name in part]
        assert sorted(names) == sorted(topics)
        assert len(names) == len(set(names))
        lengths = [sum(len(topics[name]) for name in part) for part in parts]
        assert min(lengths) > 100_000

    def test_no_paragraph_stands_in_two_of_them(self) -> None:
        texts = [text for _, text in opened_parts()]
        paragraphs = [{" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text)} for text in texts]
        long = [{words for words in part if len(words) >= evaluation.SHARED_CHARACTERS} for part in paragraphs]
        assert all(long)
        assert len(set().union(*long)) == sum(map(len, long))

    def test_each_has_its_own_stable_digest(self) -> None:
        records = [record for record, _ in opened_parts()]
        assert [record.name for record in records] == list(PART_NAMES)
        assert len({record.digest for record in records}) == 3
        assert records == [record for record, _ in opened_parts()]

    @given(
        st.dictionaries(
            st.text("abc", min_size=1, max_size=4),
            st.lists(st.sampled_from(PARAGRAPHS), max_size=4).map("\n\n".join),
            max_size=12,
        ),
        st.integers(1, 4),
        st.randoms(use_true_random=False),
    )
    def test_any_documents_are_split_whatever_their_order(self, documents: dict[str, str], parts: int, random: Random) -> None:
        split = evaluation.split_documents(documents, parts)
        assert sorted(name for part in split for name in part) == sorted(documents)
        shuffled = list(documents.items())
        random.shuffle(shuffled)
        assert evaluation.split_documents(dict(shuffled), parts) == split
        for paragraph in PARAGRAPHS:
            if len(paragraph) >= evaluation.SHARED_CHARACTERS:
                holders = {
                    place for place, part in enumerate(split) for name in part if paragraph in documents[name].split("\n\n")
                }
                assert len(holders) <= 1
