from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fewbits.core.errors import StoreError
from fewbits.store.blobs import BlobCache

KEY = "cd" * 32


@pytest.fixture
def cache(tmp_path: Path) -> BlobCache:
    return BlobCache(tmp_path / "cache")


def writer(data: bytes, calls: list[Path]) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        calls.append(path)
        path.write_bytes(data)

    return make


def silent(_: str) -> None:
    """Nothing is to be told."""


def test_made_once_under_its_key(cache: BlobCache, tmp_path: Path) -> None:
    calls: list[Path] = []
    path = cache.get_or_make(KEY, "teacher.npz", writer(b"abc", calls), pytest.fail)
    assert path == tmp_path / "cache" / "blobs" / "cd" / KEY / "teacher.npz"
    assert path.read_bytes() == b"abc"
    assert cache.get_or_make(KEY, "teacher.npz", writer(b"other", calls), pytest.fail) == path
    assert cache.find(KEY, "teacher.npz", pytest.fail) == path
    assert len(calls) == 1
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["teacher.npz", "teacher.npz.sha256"]
    assert cache.find("ef" * 32, "teacher.npz", pytest.fail) is None


@pytest.mark.parametrize("damage", ["bytes", "gone", "note"])
def test_damage_is_told_and_repaired(cache: BlobCache, damage: str) -> None:
    calls: list[Path] = []
    path = cache.get_or_make(KEY, "t", writer(b"abc", calls), pytest.fail)
    if damage == "bytes":
        path.write_bytes(b"abd")
    elif damage == "gone":
        path.unlink()
    else:
        path.with_name("t.sha256").write_bytes(b"\xff\xff")
    said: list[str] = []
    assert cache.get_or_make(KEY, "t", writer(b"abc", calls), said.append).read_bytes() == b"abc"
    assert len(calls) == 2
    assert len(said) == 1
    assert "making it again" in said[0]


def test_an_unfinished_blob_does_not_exist(cache: BlobCache, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "blobs" / "cd" / KEY
    folder.mkdir(parents=True)
    (folder / "t").write_bytes(b"renamed, but its digest was never written")
    (folder / "t.part.writing").write_bytes(b"half")
    assert cache.find(KEY, "t", pytest.fail) is None
    path = cache.get_or_make(KEY, "t", writer(b"abc", []), silent)
    assert path.read_bytes() == b"abc"
    assert len(list(folder.iterdir())) == 2


def test_failure_leaves_nothing_and_passes_through(cache: BlobCache, tmp_path: Path) -> None:
    def make(path: Path) -> None:
        path.write_bytes(b"half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cache.get_or_make(KEY, "t", make, silent)
    assert not (tmp_path / "cache" / "blobs" / "cd" / KEY).exists()


def test_two_at_once_make_it_once(cache: BlobCache, tmp_path: Path) -> None:
    entered, release, waiting = threading.Event(), threading.Event(), threading.Event()
    calls: list[Path] = []

    def slow(path: Path) -> None:
        entered.set()
        release.wait(10)
        writer(b"abc", calls)(path)

    other = BlobCache(tmp_path / "cache")
    found: list[Path] = []
    one = threading.Thread(target=lambda: found.append(cache.get_or_make(KEY, "t", slow, silent)))
    two = threading.Thread(
        target=lambda: found.append(other.get_or_make(KEY, "t", writer(b"no", calls), lambda _: waiting.set()))
    )
    one.start()
    assert entered.wait(10)
    two.start()
    assert waiting.wait(10)
    release.set()
    one.join(10)
    two.join(10)
    assert len(calls) == 1
    assert found[0] == found[1]


def test_errors_name_the_path_and_the_variable(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_bytes(b"")
    with pytest.raises(StoreError, match="FEWBITS_CACHE"):
        BlobCache(blocker / "cache").get_or_make(KEY, "t", writer(b"abc", []), silent)
    with pytest.raises(ValueError, match="64 hex digits"):
        BlobCache(tmp_path).find("../../etc", "t", silent)
