"""Records and claims of the jobs of one multirun."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fewbits.core.errors import StoreError
from fewbits.store.multirun_jobs import JobLedger, JobRecord, JobStatus


def job(number: int, status: JobStatus = JobStatus.RUNNING) -> JobRecord:
    return JobRecord(number=number, overrides=(f"dataset.size=s{number}",), status=status)


def test_records_come_back_by_number(tmp_path: Path) -> None:
    ledger = JobLedger(tmp_path / "jobs")
    assert ledger.read() == ()
    for number in (10, 9, 0):
        ledger.write(job(number))
    ledger.write(job(9, JobStatus.OK))
    assert [(record.number, record.status) for record in ledger.read()] == [(0, "RUNNING"), (9, "OK"), (10, "RUNNING")]


def test_a_folder_belongs_to_one_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ledger = JobLedger(tmp_path / "jobs")
    ledger.claim(Path("results"), job(0))
    ledger.claim(Path("results"), job(0))
    ledger.claim(Path("others"), job(1))
    with pytest.raises(StoreError, match=r"job 0 of this multirun \(dataset.size=s0\)"):
        ledger.claim(tmp_path / "results", job(1))
    assert ledger.read() == (), "claims are no records"


def test_of_many_at_once_one_gets_it(tmp_path: Path) -> None:
    ledger = JobLedger(tmp_path / "jobs")

    def claims(number: int) -> bool:
        try:
            ledger.claim(tmp_path / "results", job(number))
        except StoreError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(claims, range(24))) == 1
