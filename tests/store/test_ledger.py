"""The ledger under real processes: nothing lost, nothing torn, nothing damaged overwritten."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.core.errors import StoreError
from fewbits.records.base import Record
from fewbits.store import ledger
from fewbits.store.ledger import JsonLedger

PROCESSES, CHANGES = 4, 100
WRITER = """
import sys
from pathlib import Path
from fewbits.records.base import Record
from fewbits.store.ledger import JsonLedger

class Notes(Record, frozen=True, kw_only=True):
    lines: tuple[str, ...] = ()

def add(line):
    return lambda present: Notes(lines=(*(present.lines if present else ()), line))

path, name, times = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
for n in range(times):
    JsonLedger(path, Notes).change(add(f"{name}-{n}"))
    print(n, flush=True)
"""


class Notes(Record, frozen=True, kw_only=True):
    lines: tuple[str, ...] = ()
    number: float = 0.0


def notes(path: Path) -> JsonLedger[Notes]:
    return JsonLedger(path, Notes)


def adding(line: str) -> Any:
    return lambda present: Notes(lines=(*(present.lines if present is not None else ()), line))


def start_writer(path: Path, name: str, times: int) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), name, str(times)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def go(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("go\n")
    child.stdin.flush()


def test_creating_a_ledger_and_reading_nothing_touches_nothing(tmp_path: Path) -> None:
    assert notes(tmp_path / "folder" / "a.json").read() is None
    assert list(tmp_path.iterdir()) == []


def test_a_change_makes_the_folder_and_gives_back_what_it_wrote(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder" / "a.json"
    seen: list[Notes | None] = []

    def update(present: Notes | None) -> Notes:
        seen.append(present)
        return Notes(lines=("one",), number=0.1)

    written = notes(path).change(update)
    assert notes(path).change(update) == written == notes(path).read()
    assert seen == [None, written]
    assert path.read_bytes() == b'{\n  "lines": [\n    "one"\n  ],\n  "number": 0.1\n}\n'
    assert sorted(entry.name for entry in path.parent.iterdir()) == [".locks", "a.json"]


def test_four_processes_lose_no_change(tmp_path: Path) -> None:
    path = tmp_path / "shared.json"
    children = [start_writer(path, f"p{n}", CHANGES) for n in range(PROCESSES)]
    for child in children:
        go(child)
    for child in children:
        child.communicate(timeout=120)
    assert [child.returncode for child in children] == [0] * PROCESSES
    lines = json.loads(path.read_bytes())["lines"]
    assert sorted(lines) == sorted(f"p{process}-{n}" for process in range(PROCESSES) for n in range(CHANGES))
    for process in range(PROCESSES):
        own = [line for line in lines if line.startswith(f"p{process}-")]
        assert own == [f"p{process}-{n}" for n in range(CHANGES)]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".locks", "shared.json"]


@pytest.mark.parametrize("moment", [0, 3, 11])
def test_a_killed_writer_leaves_a_whole_document_and_no_lock(tmp_path: Path, moment: int) -> None:
    path = tmp_path / "shared.json"
    child = start_writer(path, "killed", 100_000)
    go(child)
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) == moment:
            break
    child.send_signal(signal.SIGKILL)
    said = child.communicate(timeout=20)[0].split()
    assert child.returncode == -signal.SIGKILL
    kept = notes(path).read()
    assert kept is not None
    told = int(said[-1]) if said else moment
    # one change may have been written and not told any more
    assert kept.lines in {tuple(f"killed-{n}" for n in range(told + extra)) for extra in (1, 2)}
    after = notes(path).change(adding("next"))
    assert after.lines == (*kept.lines, "next")


DYING = """
import os, signal, sys
from pathlib import Path
from fewbits.records.base import Record
from fewbits.store.ledger import JsonLedger

class Notes(Record, frozen=True, kw_only=True):
    lines: tuple[str, ...] = ()

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

path, where = Path(sys.argv[1]), sys.argv[2]
JsonLedger(path, Notes).change(lambda present: Notes(lines=("kept",)))
if where == "update":
    JsonLedger(path, Notes).change(die)
setattr(Path if where == "replace" else os, where, die)
JsonLedger(path, Notes).change(lambda present: Notes(lines=("kept", "lost")))
"""


@pytest.mark.parametrize("where", ["update", "fsync", "replace"])
def test_killed_at_the_worst_moment(tmp_path: Path, where: str) -> None:
    path = tmp_path / "a.json"
    done = subprocess.run([sys.executable, "-c", DYING, str(path), where], timeout=30, check=False)
    assert done.returncode == -signal.SIGKILL
    assert notes(path).read() == Notes(lines=("kept",))
    assert notes(path).change(adding("next")).lines == ("kept", "next")


def test_the_lock_is_held_from_reading_to_replacing(tmp_path: Path) -> None:
    path = tmp_path / "shared.json"

    def try_lock() -> None:
        descriptor = os.open(tmp_path / ".locks" / "shared.lock", os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(descriptor)

    def while_locked(present: Notes | None) -> Notes:
        with pytest.raises(BlockingIOError):
            try_lock()
        return Notes(lines=("first",))

    assert notes(path).change(while_locked).lines == ("first",)
    try_lock()
    with pytest.raises(ZeroDivisionError):
        notes(path).change(lambda present: Notes(number=1 / 0))
    try_lock()


WHOLE = json.dumps({"lines": ["kept"], "number": 2.5}).encode()
DAMAGED = {
    "half": WHOLE[: len(WHOLE) // 2],
    "empty": b"",
    "another shape": b'{"entries": []}',
    "unknown field": b'{"lines": [], "more": 1}',
    "a list": b"[]",
    "null": b"null",
    "nan": b'{"number": NaN}',
    "infinity": b'{"number": 1e999}',
    "a number as text": b'{"number": "2.5"}',
    "wrong type": b'{"lines": "kept"}',
    "two documents": WHOLE + WHOLE,
    "binary": bytes(range(256)),
    "not utf-8": b'{"lines": ["\xff\xfe"]}',
    "utf-16": WHOLE.decode().encode("utf-16"),
    "deep": b'{"lines": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_document_is_refused_and_left_alone(tmp_path: Path, case: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(DAMAGED[case])
    asked: list[object] = []

    def update(present: Notes | None) -> Notes:
        asked.append(present)
        return Notes()

    for use in (notes(path).read, lambda: notes(path).change(update)):
        with pytest.raises(StoreError) as caught:
            use()
        assert str(path) in str(caught.value)
        assert "left as it is" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert asked == []
    assert path.read_bytes() == DAMAGED[case]
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_file()] == ["a.json"]


def test_a_document_nested_too_deeply_for_a_free_field(tmp_path: Path) -> None:
    class Loose(Record, frozen=True, kw_only=True):
        anything: Any = None

    path = tmp_path / "a.json"
    path.write_bytes(b'{"anything": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    with pytest.raises(StoreError, match="nested too deeply"):
        JsonLedger(path, Loose).read()


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, len(WHOLE) - 1))
def test_no_prefix_of_a_document_passes_for_one(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("ledger") / "a.json"
    path.write_bytes(WHOLE[:cut])
    with pytest.raises(StoreError):
        notes(path).change(adding("x"))
    assert path.read_bytes() == WHOLE[:cut]


def test_an_enormous_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with path.open("wb") as stream:
        stream.truncate(ledger.MAX_BYTES + 1)
    with pytest.raises(StoreError, match="larger than"):
        notes(path).change(adding("x"))
    assert path.stat().st_size == ledger.MAX_BYTES + 1


def test_what_the_update_raises_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    notes(path).change(adding("kept"))
    before = path.read_bytes()

    class OwnError(Exception):
        pass

    def failing(present: Notes | None) -> Notes:
        raise OwnError

    with pytest.raises(OwnError):
        notes(path).change(failing)
    with pytest.raises(KeyboardInterrupt):
        notes(path).change(lambda present: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(ValueError, match="not a number"):
        notes(path).change(lambda present: Notes(number=float("nan")))
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".locks", "a.json"]
    assert notes(path).change(adding("next")).lines == ("kept", "next")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_document_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    notes(path).change(adding("kept"))
    path.chmod(0)
    with pytest.raises(StoreError, match="Permission denied"):
        notes(path).read()
    path.chmod(0o600)
    assert notes(path).read() == Notes(lines=("kept",))


def test_a_folder_in_the_documents_place(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    with pytest.raises(StoreError, match="Is a directory"):
        notes(tmp_path / "a.json").read()


@pytest.mark.parametrize("blocked", ["folder", "locks"])
def test_a_file_in_a_folders_place(tmp_path: Path, blocked: str) -> None:
    folder = tmp_path / "folder"
    if blocked == "folder":
        folder.write_text("mine")
    else:
        folder.mkdir()
        (folder / ".locks").write_text("mine")
    with pytest.raises(StoreError):
        notes(folder / "a.json").change(adding("x"))
    assert not (folder / "a.json").exists()


def test_a_full_disk_keeps_the_old_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    path = tmp_path / "a.json"
    notes(path).change(adding("kept"))
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="disk is full"):
        notes(path).change(adding("lost"))
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".locks", "a.json"]
