"""The baseline store: one file per test, changed under a lock, never overwritten when it cannot be read.

<root>/<test_id>.json   its history, oldest entry first (`records.baseline.BaselineHistory`)
<root>/.locks/          who is changing what
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fewbits.analysis.baselines import moment
from fewbits.analysis.wording import listed
from fewbits.core.codec import decode, encode_canonical, storable
from fewbits.core.errors import SpecError, StoreError
from fewbits.records.base import OpenRecord
from fewbits.records.baseline import HISTORY_SCHEMA, BaselineHistory, BaselineRecord
from fewbits.records.baseline_upkeep import UnreadableFile
from fewbits.records.provenance import SourceFile
from fewbits.store.ledger import MAX_BYTES, JsonLedger

_TEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")
_RUN_ID_LIMIT = 200
_LEFT = "It was left as it is."
_SHOWN = 5


class _Version(OpenRecord, frozen=True, kw_only=True):
    schema_version: str | None = None


@dataclass(frozen=True, slots=True)
class StoredHistory:
    """A test's history, and the file that it was read from."""

    history: BaselineHistory
    source: SourceFile


@dataclass(frozen=True, slots=True)
class StoreContent:
    """Everything in a store, by test id, and the files that cannot be read."""

    histories: tuple[StoredHistory, ...]
    unreadable: tuple[UnreadableFile, ...]


def check_test_id(test_id: str, where: str = "--test-id") -> str:
    """Return `test_id` if it can name a file. Raises `SpecError` at `where`."""
    if _TEST_ID.fullmatch(test_id):
        return test_id
    hint = "letters, digits, dot, underscore and hyphen, beginning with a letter or a digit, at most 120 characters"
    raise SpecError.single(where, f"{test_id[:150]!r} cannot name a test", hint)


def check_run_id(run_id: str, where: str) -> str:
    """Return `run_id` if it can be a record's reference. Raises `SpecError` at `where`."""
    if 0 < len(run_id) <= _RUN_ID_LIMIT and run_id.isprintable() and run_id == run_id.strip():
        return run_id
    hint = f"1 to {_RUN_ID_LIMIT} printable characters, no blank at either end"
    raise SpecError.single(where, f"{run_id[:150]!r} cannot be a reference", hint)


class BaselineStore:
    """The store at `root`. Creating the object touches nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path_of(self, test_id: str) -> Path:
        """Where a test's history lies. Raises `SpecError` for an id that cannot name a file."""
        return self.root / f"{check_test_id(test_id)}.json"

    def read(self, test_id: str) -> BaselineHistory | None:
        """Return a test's history; `None` when there is none. Raises `SpecError` (bad id), `StoreError` (damaged)."""
        return _HistoryLedger(self.path_of(test_id), test_id).read()

    def read_all(self, test_id: str | None = None) -> StoreContent:
        """Read every test, or the one named; an empty or missing root is an empty store.

        Raises `StoreError` when the root itself cannot be read.
        """
        histories: list[StoredHistory] = []
        unreadable: list[UnreadableFile] = []
        for path in self._files():
            if test_id not in (None, path.stem):
                continue
            try:
                if not _TEST_ID.fullmatch(path.stem):
                    msg = f"{path}: its name is no test id, so fewbits did not write it. {_LEFT}"
                    raise StoreError(msg)
                history = _HistoryLedger(path, path.stem).read()
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
            except (StoreError, OSError) as error:
                unreadable.append(UnreadableFile(path=storable(str(path)), reason=storable(str(error))))
                continue
            if history is not None:
                source = SourceFile(path=storable(str(path)), sha256=digest, schema_version=history.schema_version)
                histories.append(StoredHistory(history, source))
        return StoreContent(tuple(histories), tuple(unreadable))

    def _files(self) -> list[Path]:
        try:
            names = sorted(self.root.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            msg = f"cannot read {self.root}: {error.strerror or error}. Check it, or choose another folder with --storage-root."
            raise StoreError(msg) from error
        return [path for path in names if path.suffix == ".json" and not path.name.startswith(".")]

    def append(self, test_id: str, record: BaselineRecord) -> None:
        """Add a record at the end. Raises `SpecError` when its reference is taken, `StoreError` when the file is damaged."""
        ref = check_run_id(record.baseline_metadata.test_run_id, "--run-id")

        def add(present: BaselineHistory | None) -> BaselineHistory:
            history = present or BaselineHistory(test_id=test_id)
            if any(known.baseline_metadata.test_run_id == ref for known in history.history):
                hint = "each run is stored once; give another reference with --run-id"
                raise SpecError.single("--run-id", f"{test_id} already has a baseline {ref!r}", hint)
            return msgspec.structs.replace(history, history=(*history.history, record))

        self._change(test_id, add)

    def set_pinned(self, test_id: str, ref: str, *, pinned: bool) -> bool:
        """Pin or unpin a record; returns whether anything changed. Raises `SpecError` for an unknown test or reference."""
        if self._named(self._present(test_id), ref).baseline_metadata.pinned is pinned:
            return False

        def mark(present: BaselineHistory | None) -> BaselineHistory:
            history = _still_there(present, test_id)
            self._named(history, ref)
            return msgspec.structs.replace(history, history=tuple(_marked(record, ref, pinned) for record in history.history))

        self._change(test_id, mark)
        return True

    def retain(
        self, test_id: str, keep: Callable[[BaselineHistory], tuple[BaselineRecord, ...]]
    ) -> tuple[BaselineHistory, tuple[BaselineRecord, ...]]:
        """Keep what `keep` returns; returns the history before, and what stayed. A history that loses nothing is not written."""
        before = self._present(test_id)
        if len(keep(before)) == len(before.history):
            return before, before.history
        seen: list[BaselineHistory] = []

        def shorten(present: BaselineHistory | None) -> BaselineHistory:
            history = _still_there(present, test_id)
            seen.append(history)
            return msgspec.structs.replace(history, history=keep(history))

        after = self._change(test_id, shorten)
        return seen[-1], after.history

    def _present(self, test_id: str) -> BaselineHistory:
        """Return a history that must be there, without touching the store."""
        return _still_there(self.read(test_id), test_id)

    def _named(self, history: BaselineHistory, ref: str) -> BaselineRecord:
        refs = [record.baseline_metadata.test_run_id for record in history.history]
        if ref not in refs:
            there = listed(refs if len(refs) <= _SHOWN else [*refs[-_SHOWN:], f"{len(refs) - _SHOWN} older ones"])
            hint = f"there is {there}" if refs else "its history is empty"
            raise SpecError.single("--baseline-ref", f"{history.test_id} has no baseline {ref!r}", hint)
        return history.history[refs.index(ref)]

    def _change(self, test_id: str, update: Callable[[BaselineHistory | None], BaselineHistory]) -> BaselineHistory:
        path = self.path_of(test_id)

        def checked(present: BaselineHistory | None) -> BaselineHistory:
            changed = update(present)
            try:
                again = decode(encode_canonical(changed), BaselineHistory, f"{path} (not written)")
            except ValueError as error:  # a NaN
                msg = f"{path} (not written): {error}"
                raise StoreError(msg) from error
            _check_content(again, path, test_id)
            return changed

        try:
            return _HistoryLedger(path, test_id).change(checked)
        except StoreError as error:
            if isinstance(error.__cause__, OSError):
                why = error.__cause__.strerror or error.__cause__
                msg = (
                    f"cannot use {path}: {why}. Check the path and its permissions, or choose another folder with --storage-root."
                )
                raise StoreError(msg) from error.__cause__
            raise


def _still_there(history: BaselineHistory | None, test_id: str) -> BaselineHistory:
    if history is None:
        raise SpecError.single("--test-id", f"nothing is stored for {test_id}", "`fewbits baseline list` shows what there is")
    return history


def _marked(record: BaselineRecord, ref: str, pinned: bool) -> BaselineRecord:
    known = record.baseline_metadata
    if known.test_run_id != ref:
        return record
    return msgspec.structs.replace(record, baseline_metadata=msgspec.structs.replace(known, pinned=pinned))


class _HistoryLedger(JsonLedger[BaselineHistory]):
    """A ledger that also refuses histories of another version, another test, or with entries that contradict each other."""

    def __init__(self, path: Path, test_id: str) -> None:
        super().__init__(path, BaselineHistory)
        self._test_id = test_id

    def read(self) -> BaselineHistory | None:
        """Return the history; `None` when there is none. Raises `StoreError`."""
        self._refuse_other_kinds()
        history = super().read()
        if history is not None:
            _check_content(history, self.path, self._test_id)
        return history

    def _refuse_other_kinds(self) -> None:
        """Look at the declared version first: a newer file may have fields that this fewbits does not know."""
        try:
            if self.path.exists() and not self.path.is_file():
                msg = f"{self.path} is no regular file. {_LEFT}"
                raise StoreError(msg)
            if self.path.stat().st_size > MAX_BYTES:
                return  # the ledger says so
            declared = msgspec.json.decode(self.path.read_bytes(), type=_Version).schema_version
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return  # so does it about these
        if declared == HISTORY_SCHEMA:
            return
        if declared is None:
            why = "declares no schema_version: fewbits did not write it (the older tool's files count memory in other units)"
        elif declared.startswith(HISTORY_SCHEMA.rstrip("0123456789")):
            why = f"has schema {declared}, this fewbits reads {HISTORY_SCHEMA}: update fewbits"
        else:
            why = f"is no baseline history: it declares {declared[:80]!r}"
        msg = f"{self.path} {why}. {_LEFT}"
        raise StoreError(msg)


def _check_content(history: BaselineHistory, path: Path, test_id: str) -> None:
    """Refuse what decodes but cannot be true. Raises `StoreError`."""
    problem = ""
    refs = Counter(record.baseline_metadata.test_run_id for record in history.history)
    twice = [ref for ref, number in refs.items() if number > 1]
    if history.test_id != test_id:
        problem = f"it says that it is of test {history.test_id[:150]!r}"
    elif twice:
        problem = f"the reference {twice[0]!r} is there {refs[twice[0]]} times"
    else:
        problem = next((words for record in history.history if (words := _bad_date(record))), "")
    if problem:
        msg = f"{path}: {problem}. The file was edited or damaged. {_LEFT} Mend it, or move it away to start anew."
        raise StoreError(msg)


def _bad_date(record: BaselineRecord) -> str:
    known = record.baseline_metadata
    try:
        moment(known.created_at)
    except ValueError:
        return f"the baseline {known.test_run_id!r} is dated {known.created_at[:80]!r}, which is no ISO 8601 time"
    return ""
