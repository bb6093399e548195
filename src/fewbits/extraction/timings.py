"""What a run measured, apart from what it read: two readings that found the same are then the same text."""

from __future__ import annotations

from typing import Any

import msgspec

from fewbits.records.extraction import GpuMemorySnapshot, PageExtraction, StageResult


def split_timings(page: PageExtraction) -> tuple[PageExtraction, dict[str, Any]]:
    """Return a page without its measurements, and these: seconds in all, by stage and by part of a stage, GPU memory in MiB."""
    timings = {
        "pipeline_seconds": page.total_time_seconds,
        "stages": {stage.stage_name.value: stage.timing_seconds for stage in page.stages},
        "parts": {stage.stage_name.value: stage.parts_seconds for stage in page.stages if stage.parts_seconds},
        "gpu": msgspec.to_builtins(page.gpu) if page.gpu is not None else None,
    }
    stages = tuple(msgspec.structs.replace(stage, timing_seconds=None, parts_seconds={}) for stage in page.stages)
    return msgspec.structs.replace(page, stages=stages, total_time_seconds=None, gpu=None), timings


def join_timings(page: PageExtraction, timings: dict[str, Any] | None) -> PageExtraction:
    """Put measurements back: the inverse of `split_timings`. What is missing or no measurement stays `None`."""
    found = timings or {}
    stages = tuple(_timed(stage, found) for stage in page.stages)
    gpu = _converted(found.get("gpu"), GpuMemorySnapshot)
    return msgspec.structs.replace(page, stages=stages, total_time_seconds=_seconds(found.get("pipeline_seconds")), gpu=gpu)


def _timed(stage: StageResult, timings: dict[str, Any]) -> StageResult:
    name = stage.stage_name.value
    seconds = _seconds(_entry(timings, "stages", name))
    parts = _converted(_entry(timings, "parts", name), dict[str, float]) or {}
    return msgspec.structs.replace(stage, timing_seconds=seconds, parts_seconds=parts)


def _entry(timings: dict[str, Any], group: str, name: str) -> Any:
    found = timings.get(group)
    return found.get(name) if isinstance(found, dict) else None


def _seconds(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 else None


def _converted(value: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(value, kind) if value is not None else None
    except msgspec.ValidationError:
        return None
