"""Labelled sets on disk: strict, complete, each page once."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import pytest

from fewbits.core.errors import SpecError, StoreError
from fewbits.records.extraction import LabelledReport, LabelledReports, LabReport, LabTest
from fewbits.workloads.extraction.labelled import read_labelled, write_labelled


@pytest.fixture
def labels(tmp_path: Path) -> LabelledReports:
    """Two pages that are in the folder."""
    pages = []
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(name.encode())
        truth = LabReport(tests=(LabTest(test_name="Glucose", value="95", unit="mg/dL"),))
        pages.append(LabelledReport(file_name=name, sha256=hashlib.sha256(name.encode()).hexdigest(), truth=truth))
    return LabelledReports(name="two", pages=tuple(pages))


def test_what_is_written_is_read(tmp_path: Path, labels: LabelledReports) -> None:
    assert write_labelled(tmp_path, labels) == tmp_path / "labels.json"
    assert read_labelled(tmp_path, check_digests=True) == labels


def test_a_changed_page_is_found_on_demand(tmp_path: Path, labels: LabelledReports) -> None:
    write_labelled(tmp_path, labels)
    (tmp_path / "b.png").write_bytes(b"other")
    assert read_labelled(tmp_path) == labels
    with pytest.raises(SpecError, match=r"b\.png: is not the file that was labelled"):
        read_labelled(tmp_path, check_digests=True)


def test_all_missing_pages_are_named(tmp_path: Path, labels: LabelledReports) -> None:
    write_labelled(tmp_path, labels)
    (tmp_path / "a.png").unlink()
    (tmp_path / "b.png").unlink()
    with pytest.raises(SpecError) as caught:
        read_labelled(tmp_path)
    assert [problem.path for problem in caught.value.problems] == ["labels.json: a.png", "labels.json: b.png"]
    with pytest.raises(SpecError, match="is not a file in"):
        write_labelled(tmp_path, labels)


def test_a_page_named_twice_is_refused(tmp_path: Path, labels: LabelledReports) -> None:
    twice = msgspec.structs.replace(labels, pages=(*labels.pages, labels.pages[0]))
    with pytest.raises(SpecError, match=r"a\.png: is labelled 2 times"):
        write_labelled(tmp_path, twice)
    (tmp_path / "labels.json").write_bytes(msgspec.json.encode(twice))
    with pytest.raises(SpecError, match="keep one entry"):
        read_labelled(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema_version": "fewbits.labelled_reports.v2"}, "schema_version"),
        ({"surprise": 1}, "surprise"),
        ({"name": ""}, "name"),
        ({"pages": [{"file_name": "../a.png", "sha256": "0" * 64, "truth": {}}]}, "file_name"),
        ({"pages": [{"file_name": "a.png", "sha256": "0", "truth": {}}]}, "sha256"),
    ],
)
def test_other_shapes_are_refused(tmp_path: Path, labels: LabelledReports, change: dict[str, object], said: str) -> None:
    (tmp_path / "labels.json").write_bytes(msgspec.json.encode({**msgspec.to_builtins(labels), **change}))
    with pytest.raises(StoreError, match=said):
        read_labelled(tmp_path)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[]"])
def test_what_is_no_json_object_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "labels.json").write_bytes(data)
    with pytest.raises(StoreError, match=r"labels\.json"):
        read_labelled(tmp_path)


def test_a_folder_without_labels_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="fewbits extract label"):
        read_labelled(tmp_path)
    (tmp_path / "labels.json").mkdir()
    with pytest.raises(StoreError, match="cannot read"):
        read_labelled(tmp_path)
