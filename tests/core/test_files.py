import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.core.errors import StoreError
from fewbits.core.files import atomic_write, ensure_writable_directory, safe_name, sha256_file


@given(st.text())
def test_safe_names_are_one_harmless_path_component(text: str) -> None:
    name = safe_name(text)
    assert name
    assert name not in {".", ".."}
    assert "/" not in name
    assert not name.startswith(".")
    assert len(name) <= 100
    assert Path("/a", name).parent == Path("/a")


@given(st.text(), st.text())
def test_safe_names_do_not_collide(left: str, right: str) -> None:
    if left != right:
        assert safe_name(left) != safe_name(right)


def test_atomic_write_replaces_whole_and_leaves_nothing_behind(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.json"
    atomic_write(target, b"one")
    atomic_write(target, b"two")
    assert target.read_bytes() == b"two"
    assert [path.name for path in target.parent.iterdir()] == ["file.json"]
    assert stat.S_IMODE(target.stat().st_mode) & 0o400


def test_writing_below_a_file_says_what_to_do(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("x")
    with pytest.raises(StoreError, match="is a file, not a folder"):
        atomic_write(blocker / "out.json", b"x")
    with pytest.raises(StoreError, match="--out-dir"):
        ensure_writable_directory(blocker / "sub")


def test_sha256_of_a_known_text(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    assert sha256_file(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
