"""What the jobs of one multirun leave behind: a record each, written at its start and its end, and the folders they claim.

The jobs may run in one process, in several, or on several machines that share the folder; a job that was killed leaves its record
at RUNNING.
"""

from __future__ import annotations

import os
import tempfile
from enum import StrEnum
from pathlib import Path

from fewbits.core.codec import decode, encode_pretty, text_digest
from fewbits.core.errors import StoreError
from fewbits.core.files import atomic_write, storage_error
from fewbits.records.base import Record


class JobStatus(StrEnum):
    """How far a job got."""

    RUNNING = "RUNNING"
    """Started; after the end of the multirun: it was killed."""
    OK = "OK"
    FAILED = "FAILED"


class JobRecord(Record, frozen=True, kw_only=True):
    """One job of a multirun."""

    number: int
    """Hydra's job number, 0 first."""
    overrides: tuple[str, ...]
    """What makes it differ from the others: `quant_pair=wint8_afp16`."""
    status: JobStatus
    directory: str | None = None
    """Where its results are; `None` before that is known."""
    message: str = ""
    """Why it failed."""
    exit_code: int = 0


class JobLedger:
    """The folder of a multirun's records. Creating the object touches nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, record: JobRecord) -> None:
        """Write a job's record, whole or not at all. Raises `StoreError`."""
        atomic_write(self.root / f"{record.number}.json", encode_pretty(record))

    def claim(self, directory: Path, record: JobRecord) -> None:
        """Keep `directory` for one job. Raises `StoreError` naming the other job when another one of this multirun has it."""
        claims = self.root / "claims"
        path = claims / f"{text_digest(str(directory.absolute()))}.json"
        try:
            claims.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=claims)
            try:
                with os.fdopen(handle, "wb") as stream:
                    stream.write(encode_pretty(record))
                # a link appears with its content or not at all, and only one of two jobs can make it
                os.link(temporary, path)
            finally:
                Path(temporary).unlink()
        except FileExistsError:
            owner = decode(path.read_bytes(), JobRecord, str(path))
            if owner.number == record.number:
                return  # the same job again: a cluster restarted it
            msg = (
                f"{directory} is the folder of job {owner.number} of this multirun ({' '.join(owner.overrides)}): two jobs may "
                "not share one. Give them names that differ (quant_pair.publish_run_dir), or sweep over something else."
            )
            raise StoreError(msg) from None
        except OSError as error:
            raise storage_error(path, error) from error

    def read(self) -> tuple[JobRecord, ...]:
        """Return every job's record, by number; nothing when no job started. Raises `StoreError` for a damaged one."""
        records = [decode(path.read_bytes(), JobRecord, str(path)) for path in self.root.glob("*.json")]
        return tuple(sorted(records, key=lambda record: record.number))
