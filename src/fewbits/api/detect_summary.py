"""`summary.md` of a detector run, again, from what lies below its run root. Nothing is measured."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from fewbits.core.codec import decode, storable
from fewbits.core.errors import SpecError, StoreError
from fewbits.core.files import atomic_write
from fewbits.core.units import MIB
from fewbits.records.base import Record
from fewbits.records.detector_run import CocoMetrics, ExportRecord, SanityChecks, StageLog
from fewbits.report.detector_summary import DetectorRun, render_detector_summary

SUMMARY_NAME = "summary.md"
_METRICS_TAIL, _EXPORT_TAIL = "-coco", "_export.json"
_BYTES_LIMIT = 64 * MIB
R = TypeVar("R", bound=Record)


def write_detector_summary(run_root: Path) -> Path:
    """Read the records of a run root, write its `summary.md`, return its path.

    A record that is damaged is named in the summary, with the reason, and left out. Raises `SpecError` without the folder,
    `StoreError` where the summary cannot be written.
    """
    if not run_root.is_dir():
        raise SpecError.single("--run-root", f"there is no folder {run_root}", "name the folder of a detector sweep")
    path = run_root / SUMMARY_NAME
    atomic_write(path, render_detector_summary(read_detector_run(run_root)).encode())
    return path


def read_detector_run(run_root: Path) -> DetectorRun:
    """Return what a run root holds, in the runbook's layout; what is missing is empty or `None`."""
    unread: dict[str, str] = {}

    def read(path: Path, kind: type[R]) -> R | None:
        name = storable(path.relative_to(run_root).as_posix())
        try:
            return _read(path, kind, name)
        except StoreError as error:
            unread[name] = str(error)
            return None

    metrics = {
        storable(path.parent.name.removesuffix(_METRICS_TAIL)): found
        for path in sorted(run_root.glob(f"*{_METRICS_TAIL}/metrics.json"))
        if (found := read(path, CocoMetrics)) is not None
    }
    exports = {
        storable(path.name.removesuffix(_EXPORT_TAIL).replace("_", "-", 1)): export
        for path in sorted(run_root.glob(f"*{_EXPORT_TAIL}"))
        if (export := read(path, ExportRecord)) is not None
    }
    sanity = read(run_root / "sanity.json", SanityChecks)
    return DetectorRun(
        name=storable(run_root.resolve().name),
        metrics=metrics,
        exports=exports,
        stages=read(run_root / "stages.json", StageLog),
        sanity=None if sanity is None else sanity.checks,
        logs=tuple(storable(path.relative_to(run_root).as_posix()) for path in sorted((run_root / "logs").glob("*.log"))),
        unread=unread,
    )


def _read(path: Path, kind: type[R], name: str) -> R | None:
    """Return a record, `None` where there is no such file. Raises `StoreError`."""
    try:
        with path.open("rb") as stream:
            data = stream.read(_BYTES_LIMIT + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        msg = f"cannot be read: {error.strerror or error}"
        raise StoreError(msg) from error
    if len(data) > _BYTES_LIMIT:
        msg = f"larger than {_BYTES_LIMIT} bytes"
        raise StoreError(msg)
    try:
        return decode(data, kind, name)
    except RecursionError as error:
        msg = f"{name}: nested too deep"
        raise StoreError(msg) from error
