from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.core.codec import encode_pretty
from fewbits.core.errors import SpecError, StoreError
from fewbits.core.files import atomic_write
from fewbits.records.base import Record
from fewbits.store.history import DEFAULT_KEEP_LAST, append_history, history_path, read_history

KEY = ("x86_64|ryzen|16c", "lab", "safe")
NEWER = {"schema_version": "explorer.frontier.v9", "later": {"deep": [1, None, 1e300], "ü": 123456789012345678901234567890}}


class Artifact(Record, frozen=True, kw_only=True):
    schema_version: str = "explorer.test.v1"
    number: int
    text: str = ""


def numbers(path: Path) -> list[int]:
    return [entry["number"] for entry in read_history(path)]


def test_artifacts_are_appended_in_the_order_of_the_calls(tmp_path: Path) -> None:
    paths = {append_history(tmp_path / "root", KEY, Artifact(number=n), keep_last=None) for n in (3, 1, 2)}
    (path,) = paths
    assert numbers(path) == [3, 1, 2]
    document = json.loads(path.read_bytes())
    assert document["schema_version"] == "fewbits.history.v1"
    assert document["history"][0] == {"schema_version": "explorer.test.v1", "number": 3, "text": ""}
    assert [entry.name for entry in path.parent.iterdir() if entry.is_file()] == [path.name]


def test_no_file_is_an_empty_history(tmp_path: Path) -> None:
    assert read_history(tmp_path / "none.json") == ()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("keep_last", "kept"), [(1, [4]), (2, [3, 4]), (5, [0, 1, 2, 3, 4]), (None, [0, 1, 2, 3, 4])])
def test_retention_drops_the_oldest(tmp_path: Path, keep_last: int | None, kept: list[int]) -> None:
    for number in range(5):
        path = append_history(tmp_path, KEY, Artifact(number=number), keep_last=keep_last)
    assert numbers(path) == kept
    assert DEFAULT_KEEP_LAST == 200


@pytest.mark.parametrize("keep_last", [0, -1])
def test_keeping_nothing_is_refused(tmp_path: Path, keep_last: int) -> None:
    with pytest.raises(SpecError, match="--keep-last"):
        append_history(tmp_path, KEY, Artifact(number=1), keep_last=keep_last)
    assert list(tmp_path.iterdir()) == []


def test_artifacts_of_a_newer_fewbits_keep_every_field(tmp_path: Path) -> None:
    path = append_history(tmp_path, KEY, Artifact(number=1), keep_last=None)
    document = json.loads(path.read_bytes())
    document["history"].insert(0, NEWER)
    atomic_write(path, encode_pretty(document))
    append_history(tmp_path, KEY, Artifact(number=2), keep_last=None)
    assert json.loads(path.read_bytes())["history"] == [*document["history"], document["history"][1] | {"number": 2}]
    assert read_history(path)[0] == NEWER


def test_a_history_without_a_version_is_taken_over(tmp_path: Path) -> None:
    path = history_path(tmp_path, KEY)
    path.write_text('{"history": [{"number": 7}]}')
    append_history(tmp_path, KEY, Artifact(number=8), keep_last=None)
    assert numbers(path) == [7, 8]


def cut(whole: bytes) -> bytes:
    return whole[: len(whole) // 2]


DAMAGES = {
    "cut in half": cut,
    "empty": lambda _: b"",
    "no object": lambda _: b"[]",
    "an entry that is no object": lambda _: b'{"history": [1]}',
    "a newer kind of history": lambda whole: whole.replace(b"fewbits.history.v1", b"fewbits.history.v2"),
    "a field of another kind": lambda whole: whole.replace(b'"history": [', b'"index": 1, "history": ['),
    "bytes": lambda _: bytes(range(256)),
    "a number that nothing can hold": lambda _: b'{"history": [{"number": 1e999}]}',
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_history_is_reported_and_kept(tmp_path: Path, damage: Any) -> None:
    path = append_history(tmp_path, KEY, Artifact(number=1), keep_last=None)
    path.write_bytes(damaged := damage(path.read_bytes()))
    with pytest.raises(StoreError, match="left as it is") as refused:
        append_history(tmp_path, KEY, Artifact(number=2), keep_last=1)
    assert refused.value.exit_code == 2
    assert path.name in str(refused.value)
    assert path.read_bytes() == damaged
    with pytest.raises(StoreError):
        read_history(path)


def test_several_processes_lose_nothing(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom fewbits.store.history import append_history\n"
        "from fewbits.records.provenance import SourceFile\n"
        "for n in range(10):\n"
        " append_history(Path(sys.argv[1]), ('a', 'b'), SourceFile(path=f'{sys.argv[2]}-{n}', sha256='0' * 64), keep_last=None)\n"
    )
    workers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(worker)]) for worker in range(4)]
    assert [worker.wait(timeout=60) for worker in workers] == [0, 0, 0, 0]
    names = [entry["path"] for entry in read_history(history_path(tmp_path, ("a", "b")))]
    assert sorted(names) == sorted(f"{worker}-{n}" for worker in range(4) for n in range(10))
    for worker in range(4):
        assert [name for name in names if name.startswith(f"{worker}-")] == [f"{worker}-{n}" for n in range(10)]


def test_a_root_that_is_a_file_is_explained(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("x")
    with pytest.raises(StoreError, match="is a file, not a folder"):
        append_history(tmp_path / "root", KEY, Artifact(number=1), keep_last=None)
    assert (tmp_path / "root").read_text() == "x"


class TestNames:
    @pytest.mark.parametrize(
        "parts",
        [
            ("../../etc/passwd",),
            ("/etc/passwd", ".."),
            ("a\nb\0c", "💥"),
            ("", ""),
            ("con", "a:b|c*?"),
            ("\udcff",),
            ("x" * 999,) * 5,
        ],
    )
    def test_a_key_never_leaves_the_root(self, tmp_path: Path, parts: tuple[str, ...]) -> None:
        path = append_history(tmp_path / "root", parts, Artifact(number=1), keep_last=None)
        assert path.parent == tmp_path / "root"
        assert len(path.name) < 220
        assert path.name.isascii()
        assert not path.name.startswith(".")
        assert path.is_file()

    def test_plain_parts_stay_readable(self) -> None:
        assert history_path(Path("r"), ("cpu_2c-24gb", "lab", "safe", "smollm2-135m", "Q4_K_M")) == Path(
            "r/cpu_2c-24gb__lab__safe__smollm2-135m__Q4_K_M.json"
        )

    @settings(max_examples=300)
    @given(
        one=st.lists(st.text("a_-|.0 é", max_size=6), min_size=1, max_size=4),
        other=st.lists(st.text("a_-|.0 é", max_size=6), min_size=1, max_size=4),
    )
    def test_distinct_keys_have_distinct_files(self, one: list[str], other: list[str]) -> None:
        assert (history_path(Path(), one) == history_path(Path(), other)) == (one == other)

    def test_a_part_that_looks_like_a_changed_one_does_not_collide(self) -> None:
        changed = history_path(Path(), ("a b",)).stem
        assert history_path(Path(), (changed,)).stem != changed
