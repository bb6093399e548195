from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from fewbits.core.errors import PrerequisiteError, SpecError
from fewbits.workloads.text import evaluation
from fewbits.workloads.text.evaluation import open_evaluation_text


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
