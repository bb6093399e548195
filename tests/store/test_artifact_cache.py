from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fewbits.core.errors import StoreError
from fewbits.records.variant import Artifact, Variant
from fewbits.store.artifacts import MANIFEST, ArtifactCache

KEY = "ab" * 32


@pytest.fixture
def cache(tmp_path: Path) -> ArtifactCache:
    return ArtifactCache(tmp_path / "cache")


def path_of(variant: Variant) -> Path:
    assert variant.path is not None
    return variant.path


def manifest() -> Artifact:
    return Artifact(model_id="m", scheme="Q8_0", sha256=None, bytes=None, weights=1, bits_per_weight=8.0)


def writer(data: bytes, calls: list[Path]) -> Callable[[Path], Artifact]:
    def make(path: Path) -> Artifact:
        calls.append(path)
        path.write_bytes(data)
        return manifest()

    return make


def test_made_once_and_sealed(cache: ArtifactCache) -> None:
    calls: list[Path] = []
    first = cache.get_or_make(KEY, "x.gguf", writer(b"abc", calls), print)
    second = cache.get_or_make(KEY, "x.gguf", writer(b"other", calls), print)
    assert first == second == cache.find(KEY, print)
    assert len(calls) == 1
    assert calls[0] != first.path
    assert path_of(first).read_bytes() == b"abc"
    assert (first.artifact.sha256, first.artifact.bytes) == (hashlib.sha256(b"abc").hexdigest(), 3)
    assert sorted(path.name for path in path_of(first).parent.iterdir()) == [MANIFEST, "x.gguf"]


def test_failure_leaves_nothing_and_passes_through(cache: ArtifactCache) -> None:
    def make(path: Path) -> Artifact:
        path.write_bytes(b"half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cache.get_or_make(KEY, "x.gguf", make, print)
    assert not cache.folder(KEY).exists()
    assert cache.find(KEY, print) is None
    # the lock was released
    assert path_of(cache.get_or_make(KEY, "x.gguf", writer(b"abc", []), print)).read_bytes() == b"abc"


def test_leftovers_of_a_killed_process_are_removed(cache: ArtifactCache) -> None:
    folder = cache.folder(KEY)
    folder.mkdir(parents=True)
    (folder / "x.gguf.part").write_bytes(b"half")
    (folder / "x.gguf").write_bytes(b"renamed, but its manifest was never written")
    assert cache.find(KEY, print) is None
    variant = cache.get_or_make(KEY, "x.gguf", writer(b"abc", []), print)
    assert sorted(path.name for path in folder.iterdir()) == [MANIFEST, "x.gguf"]
    assert path_of(variant).read_bytes() == b"abc"


@pytest.mark.parametrize("damage", ["bytes", "same-times", "size", "gone", "manifest"])
def test_damage_is_noticed_told_and_repaired(cache: ArtifactCache, damage: str) -> None:
    calls: list[Path] = []
    path = path_of(cache.get_or_make(KEY, "x.gguf", writer(b"abc", calls), print))
    status = path.stat()
    if damage == "gone":
        path.unlink()
    elif damage == "manifest":
        (path.parent / MANIFEST).write_bytes(b'{"file": ')
    else:
        path.write_bytes(b"abd" if damage != "size" else b"abcd")
    if damage == "same-times":
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    said: list[str] = []
    assert path_of(cache.get_or_make(KEY, "x.gguf", writer(b"abc", calls), said.append)).read_bytes() == b"abc"
    assert len(calls) == 2
    assert len(said) == 1
    assert "making it again" in said[0]


def test_two_at_once_make_it_once(cache: ArtifactCache) -> None:
    entered, release = threading.Event(), threading.Event()
    waiting = threading.Event()
    calls: list[Path] = []

    def slow(path: Path) -> Artifact:
        entered.set()
        release.wait(10)
        return writer(b"abc", calls)(path)

    found: list[Variant] = []
    one = threading.Thread(target=lambda: found.append(cache.get_or_make(KEY, "x.gguf", slow, print)))
    other = ArtifactCache(cache.root)
    two = threading.Thread(
        target=lambda: found.append(other.get_or_make(KEY, "x.gguf", writer(b"no", calls), lambda _: waiting.set()))
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


def test_digest_is_remembered_until_the_file_changes(
    cache: ArtifactCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    expected = hashlib.sha256(b"one").hexdigest()
    assert cache.compute_digest(path) == expected
    assert not cache.root.exists(), "computing writes nothing"
    assert cache.digest_of(path) == expected
    monkeypatch.setattr("fewbits.store.artifacts.sha256_file", lambda _: pytest.fail("was read again"))
    assert cache.digest_of(path) == cache.compute_digest(path) == expected
    monkeypatch.undo()
    path.write_bytes(b"two")
    assert cache.digest_of(path) == hashlib.sha256(b"two").hexdigest()


def test_damaged_digest_note_is_ignored(cache: ArtifactCache, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    cache.digest_of(path)
    for note in (cache.root / "digests").iterdir():
        note.write_bytes(b"\0")
    assert cache.digest_of(path) == hashlib.sha256(b"one").hexdigest()


def test_errors_name_the_path_and_the_variable(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_bytes(b"")
    cache = ArtifactCache(blocker / "cache")
    with pytest.raises(StoreError, match="FEWBITS_CACHE"):
        cache.get_or_make(KEY, "x.gguf", writer(b"abc", []), print)
    with pytest.raises(StoreError, match="cannot read"):
        cache.digest_of(tmp_path / "missing")
    with pytest.raises(ValueError, match="64 hex digits"):
        cache.folder("../../etc")


def test_free_bytes_is_the_disk_s(cache: ArtifactCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 7, 3))
    assert cache.free_bytes() == 3
