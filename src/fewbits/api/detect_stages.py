"""The stages before the trials: export, clean-up, smoke, each variant on its own, so that one that fails loses no other."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from fewbits.api.detect_census import operator_census, qdq_counts
from fewbits.api.detect_layout import DetectionFolder, place
from fewbits.api.detect_request import PreparedDetection
from fewbits.api.detect_smoke import smoke_onnx
from fewbits.core.codec import decode, encode_pretty
from fewbits.core.errors import BackendError, FewbitsError
from fewbits.core.files import atomic_write
from fewbits.quantizers.brevitas.export import OPSET
from fewbits.quantizers.brevitas.quantizer import build_report
from fewbits.quantizers.onnx.agreement import compare_arrays, open_session, run_all
from fewbits.quantizers.onnx.census import take_census
from fewbits.quantizers.onnx.cleanup import slim_effect
from fewbits.quantizers.onnx.graph import io_contract, read_graph
from fewbits.records.detector_run import (
    DetectorCensuses,
    ExportRecord,
    GraphCheck,
    OperatorCensus,
    QdqCounts,
    Stage,
    StageLog,
    StageRecord,
    StageStatus,
)
from fewbits.records.variant import ModelSource, Variant
from fewbits.sweep.progress import SweepObserver

_SMOKE_SEED = 0
_SMOKE_TIMEOUT_SECONDS = 300.0

_LIBRARY_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    MemoryError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    ImportError,
    OSError,
)
"""What torch, Brevitas or a graph may raise; other variants must not suffer for it. Ctrl-C is none of these."""

T = TypeVar("T")


@dataclass(slots=True)
class StageBook:
    """`stages.json`: the last known outcome of every stage, written after each."""

    path: Path
    records: dict[tuple[str, Stage], StageRecord] = field(default_factory=dict)

    def load(self) -> None:
        """Read what an earlier run left. Raises `StoreError` for a damaged file."""
        if self.path.exists():
            log = decode(self.path.read_bytes(), StageLog, str(self.path))
            self.records = {(record.variant, record.stage): record for record in log.stages}

    def write(self, record: StageRecord) -> None:
        """Keep one outcome, in place of an earlier one. Raises `StoreError`."""
        self.records[record.variant, record.stage] = record
        atomic_write(self.path, encode_pretty(StageLog(stages=tuple(self.records.values()))))


class VariantMaker:
    """Takes every variant of a sweep through the stages before the trials."""

    def __init__(self, prepared: PreparedDetection, folder: DetectionFolder, observer: SweepObserver) -> None:
        self._prepared, self._folder, self._observer = prepared, folder, observer
        self._book = StageBook(folder.stages_path)
        self._censuses: dict[str, OperatorCensus] = {}

    def make(self) -> dict[tuple[str, str], Variant]:
        """Return the variants that can be measured, by (model id, quant tag).

        Raises `BackendError` when there is none, naming each reason; other errors of one variant are in `stages.json`.
        """
        self._book.load()
        self._write_inputs()
        source = self._prepared.sweep.sources[self._prepared.sweep.plan.spec.models[0]]
        variants = {}
        for tag in self._prepared.sweep.plan.spec.quants:
            variant = self._one(source, tag)
            if variant is not None:
                variants[source.model_id, tag] = variant
        atomic_write(self._folder.censuses_path, encode_pretty(DetectorCensuses(censuses=self._censuses)))
        if not variants:
            raise BackendError("fewbits", "no variant could be made" + self._why())
        return variants

    def _why(self) -> str:
        """Return the reasons, each once, with the variants that it stopped: one line each."""
        stopped: dict[str, list[str]] = {}
        for tag in self._prepared.sweep.plan.spec.quants:
            # a failed clean-up stops nothing
            for stage in (Stage.EXPORT, Stage.SMOKE):
                record = self._book.records.get((tag, stage))
                if record is not None and record.status is StageStatus.FAILED:
                    stopped.setdefault(f"{stage}: {record.reason}", []).append(tag)
        return "".join(f"\n  - {', '.join(tags)}: {reason}" for reason, tags in stopped.items())

    def _write_inputs(self) -> None:
        """Freeze what was asked about: labels, image ids, calibration images."""
        prepared, folder = self._prepared, self._folder
        atomic_write(folder.labels_path, encode_pretty(prepared.labels))
        ids = "".join(f"{image.image_id}\n" for image in prepared.labels.images)
        atomic_write(folder.image_ids_path, f"# images that every variant was evaluated on\n{ids}".encode())
        if prepared.calibration is not None:
            lines = "".join(f"{path}\n" for path in prepared.calibration_paths)
            atomic_write(folder.calibration_list_path, f"# {prepared.calibration.source}\n{lines}".encode())
        none = "(nothing to note)\n"
        notes = "".join(f"- {note}\n" for note in prepared.notes)
        atomic_write(folder.notes_path, f"# Notes\n\n{notes or none}".encode())

    def _one(self, source: ModelSource, tag: str) -> Variant | None:
        quantizer, folder = self._prepared.quantizer, self._folder

        def export(say: Callable[[str], None]) -> Variant:
            made = quantizer.export(source, tag, say)
            place(_path(made), folder.exported_path(tag))
            return made

        exported = self._stage(tag, Stage.EXPORT, export)
        if exported is None:
            self._skip(tag, Stage.EXPORT, (Stage.CLEANUP, Stage.SMOKE, Stage.EVALUATE))
            return None
        cleaned = self._stage(tag, Stage.CLEANUP, lambda say: self._clean(source, exported, say))
        variant = cleaned or exported  # as the runbook: the graph as exported where it could not be cleaned

        def smoke(say: Callable[[str], None]) -> bool:
            self._write_record(tag, exported, cleaned)
            return self._smoke(tag, variant, say)

        if self._stage(tag, Stage.SMOKE, smoke) is None:
            self._skip(tag, Stage.SMOKE, (Stage.EVALUATE,))
            return None
        return variant

    def _clean(self, source: ModelSource, exported: Variant, say: Callable[[str], None]) -> Variant:
        made = self._prepared.quantizer.clean(source, exported, say)
        place(_path(made), self._folder.cleaned_path(exported.artifact.scheme))
        return made

    def _smoke(self, tag: str, variant: Variant, say: Callable[[str], None]) -> bool:
        """Run the graph on random numbers, and open it as it will be measured. Raises what either raises."""
        plan, runtime = self._prepared.sweep.plan, self._prepared.sweep.runtime
        detection = plan.spec.detection
        size = detection.image_size if detection is not None else 640
        record = smoke_onnx(_path(variant), ("CPUExecutionProvider",), _SMOKE_SEED, size)
        atomic_write(self._folder.smoke_path(tag), encode_pretty(record))
        say(f"random input: {record.runtime_ms:.1f} ms, finite: {record.is_finite}")
        if not record.is_finite:
            raise BackendError("onnxruntime", f"{tag} answers random numbers with values that are not finite")
        session: Any = runtime.open(variant, plan.controls, _SMOKE_TIMEOUT_SECONDS)
        try:
            session.identity()
            self._censuses[tag] = operator_census(take_census(_path(variant)), session)
        finally:
            session.close()
        return True

    def _write_record(self, tag: str, exported: Variant, cleaned: Variant | None) -> None:
        folder = self._folder
        record = export_record(folder, tag, exported, cleaned, self._prepared.quantizer.checked_inputs)
        atomic_write(folder.export_record_path(tag), encode_pretty(record))

    def _stage(self, tag: str, stage: Stage, work: Callable[[Callable[[str], None]], T]) -> T | None:
        """Run one stage, its words and its error kept in a log; `None` when it failed."""
        lines: list[str] = []
        began = time.monotonic()

        def say(line: str) -> None:
            lines.append(line)
            self._observer.notice(f"{tag}: {line}")

        reason = ""
        result: T | None = None
        try:
            result = work(say)
        except FewbitsError as error:
            reason = str(error)
        except _LIBRARY_ERRORS as error:
            reason = f"{type(error).__name__}: {error}"
        seconds = time.monotonic() - began
        status = StageStatus.OK if result is not None else StageStatus.FAILED
        if reason:
            say(f"{stage} failed: {reason}")
        made = any(line.startswith(("making ", "cleaning ")) for line in lines)
        cached = status is StageStatus.OK and stage in (Stage.EXPORT, Stage.CLEANUP) and not made
        log = self._folder.log_path(tag, stage)
        if not (cached and log.exists()):  # how it was made is worth more than that it was found
            atomic_write(log, "".join(f"{line}\n" for line in [*lines, f"{stage}: {status}"]).encode())
        self._book.write(
            StageRecord(variant=tag, stage=stage, status=status, reason=reason, seconds=round(seconds, 3), cached=cached)
        )
        return result

    def _skip(self, tag: str, cause: Stage, stages: tuple[Stage, ...]) -> None:
        for stage in stages:
            self._book.write(StageRecord(variant=tag, stage=stage, status=StageStatus.SKIPPED, reason=f"{cause} failed"))


def export_record(
    folder: DetectionFolder, tag: str, exported: Variant, cleaned: Variant | None, inputs: list[dict[str, Any]]
) -> ExportRecord:
    """Describe a variant's files in the runbook's terms. Raises `BackendError` when a graph does not run."""
    path = _path(exported)
    graph = read_graph(path)
    report = build_report(path)
    calibration = None
    if report.calibration is not None:
        calibration = {
            "image_list_path": folder.calibration_list_path.name,
            "list_images": len(report.calibration.images),
            "calib_images": len(report.calibration.images),
            "imgsz": report.calibration.image_size,
            "device": "cpu",
            "source": report.calibration.source,
        }
    check = contract = None
    if cleaned is not None:
        check = _graph_check(folder, tag, exported, cleaned, inputs)
        contract = io_contract(read_graph(_path(cleaned)))
    return ExportRecord(
        out_path=str(folder.exported_path(tag).relative_to(folder.root)),
        imgsz=report.image_size,
        opset=OPSET,
        head=report.head,
        qdq_counts=qdq_counts(take_census(path)),
        io_contract=io_contract(graph),
        calibration=calibration,
        optimized=check,
        optimized_io_contract=contract,
        qat_training=report.training,
        build=report,
    )


def _graph_check(
    folder: DetectionFolder, tag: str, exported: Variant, cleaned: Variant, inputs: list[dict[str, Any]]
) -> GraphCheck:
    before, after = take_census(_path(exported)), take_census(_path(cleaned))
    answers = [run_all(open_session(_path(variant), 1), inputs) for variant in (exported, cleaned)]
    slim = slim_effect(_path(exported), inputs)
    return GraphCheck(
        in_path=str(folder.exported_path(tag).relative_to(folder.root)),
        out_path=str(folder.cleaned_path(tag).relative_to(folder.root)),
        qdq_before=qdq_counts(before),
        qdq_after=qdq_counts(after),
        nodes_before=sum(before.operators.values()),
        nodes_after=sum(after.operators.values()),
        largest_output_difference=compare_arrays(*answers).largest,
        slim_nodes_after=slim.nodes_after,
        slim_qdq_after=QdqCounts(
            QuantizeLinear=slim.quantize_linear[1], DequantizeLinear=slim.dequantize_linear[1], Clip=slim.clip[1]
        ),
        slim_failure=slim.failure,
    )


def _path(variant: Variant) -> Path:
    if variant.path is None:
        msg = f"{variant.artifact.scheme} has no file"
        raise BackendError("fewbits", msg)
    return variant.path
