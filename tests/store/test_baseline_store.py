"""The baseline store on disk: nothing lost, nothing overwritten, nothing read that cannot be true."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fewbits.core.errors import FewbitsError, SpecError, StoreError
from fewbits.records.baseline import BaselineMetadata, BaselineRecord, GoldTelemetry
from fewbits.store.baselines import BaselineStore, check_run_id

TEST = "sweep.tiny.Q8_0"


def record(ref: str, **changes: Any) -> BaselineRecord:
    gold = {"adherence_score": 0.9, "peak_memory_rss": 1000, "total_latency": 1.5}
    gold |= {name: changes.pop(name) for name in list(changes) if name in GoldTelemetry.__struct_fields__}
    known = {
        "test_run_id": ref,
        "model_id": "tiny",
        "quant_tag": "Q8_0",
        "model_hash": "a" * 64,
        "hardware_fingerprint": "here",
        "task_revision": "r1",
        "created_at": "2026-02-21T10:00:00+00:00",
    }
    return BaselineRecord(baseline_metadata=BaselineMetadata(**(known | changes)), gold_telemetry=GoldTelemetry(**gold))  # type: ignore[arg-type]


def refs(store: BaselineStore, test_id: str = TEST) -> list[str]:
    history = store.read(test_id)
    assert history is not None
    return [one.baseline_metadata.test_run_id for one in history.history]


@pytest.fixture
def store(tmp_path: Path) -> BaselineStore:
    return BaselineStore(tmp_path / "baselines")


class TestNames:
    @pytest.mark.parametrize(
        "test_id",
        ["", ".", "..", ".hidden", "../up", "a/b", "a\\b", "/etc/passwd", "a\n", "a b", "\u00e9", "-x", "a" * 121, "a\0b"],
    )
    def test_what_cannot_name_a_file_reaches_no_path(self, store: BaselineStore, test_id: str) -> None:
        for attempt in (
            lambda: store.read(test_id),
            lambda: store.append(test_id, record("r")),
            lambda: store.set_pinned(test_id, "r", pinned=True),
            lambda: store.retain(test_id, lambda history: history.history),
        ):
            with pytest.raises(SpecError, match=r"--test-id.*cannot name a test"):
                attempt()
        assert not store.root.exists()
        assert list(store.root.parent.iterdir()) == []

    @pytest.mark.parametrize("test_id", ["a", "0", "sweep.m.Q4_K_M", "a" * 120, "A.b-c_d"])
    def test_what_can(self, store: BaselineStore, test_id: str) -> None:
        store.append(test_id, record("r"))
        assert store.path_of(test_id).parent == store.root
        assert refs(store, test_id) == ["r"]

    @pytest.mark.parametrize("run_id", ["", " x", "x\ny", "x" * 201, "\u202ex", "\udcff"])
    def test_references_that_nobody_can_type(self, store: BaselineStore, run_id: str) -> None:
        with pytest.raises(SpecError, match="--run-id"):
            check_run_id(run_id, "--run-id")
        with pytest.raises(SpecError, match="--run-id"):
            store.append(TEST, record(run_id))
        assert not store.root.exists()


class TestChange:
    def test_a_missing_root_is_empty_and_stays_missing(self, store: BaselineStore) -> None:
        assert store.read(TEST) is None
        assert (store.read_all().histories, store.read_all().unreadable) == ((), ())
        with pytest.raises(SpecError, match="nothing is stored"):
            store.set_pinned(TEST, "r", pinned=True)
        with pytest.raises(SpecError, match="nothing is stored"):
            store.retain(TEST, lambda history: history.history)
        assert not store.root.exists()

    def test_the_order_of_writing_is_kept(self, store: BaselineStore) -> None:
        for ref, day in (("b", 21), ("a", 20), ("c", 22)):
            store.append(TEST, record(ref, created_at=f"2026-02-{day}T00:00:00Z"))
        assert refs(store) == ["b", "a", "c"]
        document = json.loads(store.path_of(TEST).read_bytes())
        assert (document["schema_version"], document["test_id"]) == ("fewbits.baseline_history.v1", TEST)
        assert document["history"][1]["baseline_metadata"]["created_at"] == "2026-02-20T00:00:00Z"

    def test_a_reference_is_taken_once(self, store: BaselineStore) -> None:
        store.append(TEST, record("r"))
        before = store.path_of(TEST).read_bytes()
        with pytest.raises(SpecError, match="already has a baseline 'r'"):
            store.append(TEST, record("r", adherence_score=0.1))
        assert store.path_of(TEST).read_bytes() == before
        store.append("other", record("r"))
        assert refs(store, "other") == ["r"]

    def test_pinning_changes_one_record_and_is_idempotent(self, store: BaselineStore) -> None:
        for ref in "abc":
            store.append(TEST, record(ref))
        assert store.set_pinned(TEST, "b", pinned=True) is True
        pinned = store.path_of(TEST).read_bytes()
        assert store.set_pinned(TEST, "b", pinned=True) is False
        history = store.read(TEST)
        assert history is not None
        assert [one.baseline_metadata.pinned for one in history.history] == [False, True, False]
        assert store.path_of(TEST).read_bytes() == pinned
        with pytest.raises(SpecError, match=r"has no baseline 'x' .*a, b and c"):
            store.set_pinned(TEST, "x", pinned=True)
        assert store.set_pinned(TEST, "b", pinned=False) is True
        assert store.path_of(TEST).read_bytes() != pinned

    def test_what_is_kept_stays_as_it_was(self, store: BaselineStore) -> None:
        for ref in "abcd":
            store.append(TEST, record(ref))
        before, kept = store.retain(TEST, lambda history: history.history[1::2])
        assert [one.baseline_metadata.test_run_id for one in before.history] == list("abcd")
        assert refs(store) == [one.baseline_metadata.test_run_id for one in kept] == ["b", "d"]

    def test_keeping_everything_does_not_write(self, store: BaselineStore) -> None:
        store.append(TEST, record("a"))
        before = store.path_of(TEST).stat().st_ino
        store.retain(TEST, lambda history: history.history)
        assert store.path_of(TEST).stat().st_ino == before

    @pytest.mark.parametrize(
        "bad",
        [
            {"adherence_score": float("nan")},
            {"total_latency": float("inf")},
            {"total_latency": -1.0},
            {"adherence_score": 1.5},
            {"peak_memory_rss": -1},
            {"task_scores": {"a": -0.5}},
            {"task_seconds": {"a": float("nan")}},
            {"created_at": "yesterday"},
        ],
    )
    def test_numbers_that_cannot_be_true_are_not_written(self, store: BaselineStore, bad: dict[str, Any]) -> None:
        with pytest.raises(StoreError, match=r"Expected|not a number|no ISO 8601"):
            store.append(TEST, record("r", **bad))
        assert not store.path_of(TEST).exists()
        store.append(TEST, record("good"))
        with pytest.raises(StoreError):
            store.append(TEST, record("r", **bad))
        assert refs(store) == ["good"]

    def test_a_root_that_is_a_file_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        store = BaselineStore(tmp_path / "file")
        with pytest.raises(StoreError, match=r"file.*--storage-root"):
            store.read_all()
        with pytest.raises(StoreError, match=r"file.*--storage-root"):
            store.append(TEST, record("r"))
        assert (tmp_path / "file").read_text() == "mine"


def test_two_processes_lose_nothing(store: BaselineStore) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nimport msgspec\n"
        "from fewbits.records.baseline import BaselineRecord\nfrom fewbits.store.baselines import BaselineStore\n"
        "from msgspec.structs import replace\n"
        "root, name, text = sys.argv[1:]\nrecord = msgspec.json.decode(text, type=BaselineRecord)\n"
        "print('ready', flush=True)\nsys.stdin.readline()\n"
        "for n in range(100):\n"
        "    known = replace(record.baseline_metadata, test_run_id=f'{name}{n}')\n"
        f"    BaselineStore(Path(root)).append({TEST!r}, replace(record, baseline_metadata=known))\n"
    )
    text = msgspec.json.encode(record("seed")).decode()
    words = [sys.executable, "-c", code, str(store.root)]
    writers = [
        subprocess.Popen([*words, name, text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for name in ("a", "b")
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    found = refs(store)
    assert sorted(found) == sorted(f"{name}{n}" for name in "ab" for n in range(100))
    for name in "ab":  # each writer's own records in its own order
        assert [ref for ref in found if ref.startswith(name)] == [f"{name}{n}" for n in range(100)]
    assert [path.name for path in store.root.iterdir() if path.name != ".locks"] == [f"{TEST}.json"]


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def edited(old: str, new: str) -> Callable[[bytes], bytes]:
    def edit(data: bytes) -> bytes:
        assert old.encode() in data
        return data.replace(old.encode(), new.encode(), 1)

    return edit


def doubled(data: bytes) -> bytes:
    document = json.loads(data)
    document["history"] *= 2
    return json.dumps(document).encode()


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "half": (half, "truncated"),
    "empty": (lambda _: b"", "truncated"),
    "binary": (lambda _: bytes(range(256)), "malformed"),
    "NaN": (edited('"total_latency": 1.5', '"total_latency": NaN'), "malformed"),
    "negative": (edited('"total_latency": 1.5', '"total_latency": -1.5'), "Expected `float` >= 0"),
    "infinite": (edited('"total_latency": 1.5', '"total_latency": 1e999'), "out of range"),
    "above one": (edited('"adherence_score": 0.9', '"adherence_score": 9'), "Expected `float` <= 1"),
    "future schema": (edited("baseline_history.v1", "baseline_history.v2"), "update fewbits"),
    "future schema with new fields": (
        edited('"schema_version": "fewbits.baseline_history.v1"', '"schema_version": "fewbits.baseline_history.v9", "new": 1'),
        "update fewbits",
    ),
    "another document": (edited("fewbits.baseline_history.v1", "fewbits.plan.v1"), "no baseline history"),
    "no schema": (edited('"schema_version"', '"schema"'), "declares no schema_version"),
    "of another test": (edited(TEST, "sweep.tiny.Q4_0"), "it is of test 'sweep.tiny.Q4_0'"),
    "one reference twice": (doubled, "there 2 times"),
    "no date": (edited("2026-02-21T10:00:00+00:00", "last week"), "no ISO 8601 time"),
    "beyond the calendar": (edited("2026-02-21T10:00:00+00:00", "0001-01-01T00:00:00+23:59"), "no ISO 8601 time"),
    "unknown key": (edited('"pinned"', '"pined"'), "unknown field"),
    "deep": (lambda _: b'{"history":' + b"[" * 100_000, "Expected `object`"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_left_as_it_is(store: BaselineStore, kind: str) -> None:
    damage, words = DAMAGE[kind]
    store.append(TEST, record("r"))
    store.append("well", record("r"))
    path = store.path_of(TEST)
    path.write_bytes(damage(path.read_bytes()))
    before = path.read_bytes()
    attempts: tuple[Callable[[], object], ...] = (
        lambda: store.read(TEST),
        lambda: store.append(TEST, record("new")),
        lambda: store.set_pinned(TEST, "r", pinned=True),
        lambda: store.retain(TEST, lambda _: ()),
    )
    for attempt in attempts:
        with pytest.raises(StoreError) as raised:
            attempt()
        assert words in str(raised.value)
        assert str(path) in str(raised.value)
        assert "left as it" in str(raised.value)
        assert raised.value.exit_code == 2
    assert path.read_bytes() == before
    content = store.read_all()
    assert [stored.history.test_id for stored in content.histories] == ["well"]
    assert [(bad.path, words in bad.reason) for bad in content.unreadable] == [(str(path), True)]


def test_strangers_in_the_root_are_named_or_passed_over(store: BaselineStore) -> None:
    store.append(TEST, record("r"))
    (store.root / "README.md").write_text("notes")
    (store.root / ".half.json").write_text("{")
    (store.root / "-bad name.json").write_text("{}")
    (store.root / "folder.json").mkdir()
    os.mkfifo(store.root / "pipe.json")  # reading it would wait for ever
    (store.root / os.fsdecode(b"\xff.json")).write_text("{}")
    content = store.read_all()
    assert [stored.history.test_id for stored in content.histories] == [TEST]
    assert sorted(Path(bad.path).name for bad in content.unreadable) == [
        "-bad name.json",
        "\\xff.json",
        "folder.json",
        "pipe.json",
    ]
    assert msgspec.json.encode(content.unreadable)
    assert store.read_all(TEST).unreadable == ()
    for name in ("pipe", "folder"):
        with pytest.raises(FewbitsError, match="no regular file"):
            store.append(name, record("r"))
