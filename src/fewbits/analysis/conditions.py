"""What the machine went through during a row's trials: temperatures, memory in use, throttling. Pure, from the journal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import msgspec

from fewbits.analysis.statistics import rounded
from fewbits.analysis.trial_table import MATRIX, TrialTable
from fewbits.records.base import Unavailable
from fewbits.records.summary import DeviceConditions, RowConditions
from fewbits.records.trial import EnvironmentView, SampleView, TrialView

Key = tuple[str, str]
Reading = Callable[[SampleView], float | None]


@dataclass(frozen=True, slots=True)
class _Device:
    """How to read one device from a sample."""

    temperature: Reading
    used_ratio: Reading
    total_bytes: Reading


def _ram_used(sample: SampleView) -> float | None:
    total, available = sample.memory_total_bytes, sample.memory_available_bytes
    return None if not total or available is None else min(1.0, max(0.0, 1 - available / total))


def _gpu_used(sample: SampleView) -> float | None:
    total, used = sample.gpu_memory_total_bytes, sample.gpu_memory_used_bytes
    return None if not total or used is None else min(1.0, max(0.0, used / total))


_HOST = _Device(lambda sample: sample.temperature_c, _ram_used, lambda sample: sample.memory_total_bytes)
_GPU = _Device(lambda sample: sample.gpu_temperature_c, _gpu_used, lambda sample: sample.gpu_memory_total_bytes)


def judge_conditions(table: TrialTable) -> dict[Key, RowConditions]:
    """Return what each variant's counted trials went through, by (model id, quant tag)."""
    starts = {device: _block_starts(table, device.temperature) for device in (_HOST, _GPU)}
    found: dict[Key, RowConditions] = {}
    for key, group in table.groups.items():
        trials = sorted(group.trials, key=_in_run_order)
        host, gpu = (_conditions(trials, device, starts[device].get(key[0], {})) for device in (_HOST, _GPU))
        events = [seen for trial in trials if (seen := _events(trial)) is not None]
        host = _with_events(host, sum(events) if events else None, Unavailable.NO_SENSOR)
        found[key] = RowConditions(host=host, gpu=_with_events(gpu, None, Unavailable.NOT_REPORTED))
    return found


def _in_run_order(trial: TrialView) -> tuple[int, int, int]:
    """What is run again is run at the end of its block, round by round."""
    return (trial.block, trial.attempt, trial.index)


def _events(trial: TrialView) -> int | None:
    return trial.environment.during.throttle_events if trial.environment is not None else None


def _with_events(device: DeviceConditions, events: int | None, why: Unavailable) -> DeviceConditions:
    """Fill in throttling. The journal counts both devices' events together, and they stand with the host."""
    if events is not None:
        return msgspec.structs.replace(device, throttle_events=events)
    reasons = {**device.unavailable, "throttle_events": str(why)}
    return msgspec.structs.replace(device, unavailable=dict(sorted(reasons.items())))


def _block_starts(table: TrialTable, read: Reading) -> dict[str, dict[int, float]]:
    """Return model id -> block -> the first reading of the block, whichever variant's trial it was before.

    Superseded attempts count too: the block began with them, and what was run again started warm.
    """
    first: dict[tuple[str, int], TrialView] = {}
    for trial in (trial for runs in table.all_runs.values() for trial in runs if trial.phase == MATRIX):
        place = (trial.model_id, trial.block)
        if place not in first or _in_run_order(trial) < _in_run_order(first[place]):
            first[place] = trial
    starts: dict[str, dict[int, float]] = {}
    for (model_id, block), trial in first.items():
        value = read(trial.environment.before) if trial.environment is not None else None
        if value is not None:
            starts.setdefault(model_id, {})[block] = value
    return starts


def _conditions(trials: list[TrialView], device: _Device, starts: Mapping[int, float]) -> DeviceConditions:
    views = [trial.environment for trial in trials if trial.environment is not None]
    blocks = [trial.block for trial in trials]
    readings = _readings(views, device.temperature)
    own_starts = [starts[block] for block in dict.fromkeys(blocks) if block in starts]
    used = _readings(views, device.used_ratio)
    totals = [
        total for view in views for sample in (view.before, view.after) if (total := device.total_bytes(sample)) is not None
    ]
    values = {
        "temperature_start_c": starts.get(blocks[0]) if blocks else None,
        "temperature_end_c": device.temperature(views[-1].after) if views else None,
        "temperature_max_c": max(readings, default=None),
        "block_temperature_max_c": max(own_starts, default=None),
        "memory_total_bytes": int(max(totals)) if totals else None,
        "memory_used_ratio": rounded(max(used, default=None)),
    }
    why = str(Unavailable.NO_SENSOR if views else Unavailable.NO_TRIALS)
    reasons = {name: why for name, value in values.items() if value is None}
    return DeviceConditions(**values, unavailable=reasons)  # type: ignore[arg-type]


def _readings(views: Iterable[EnvironmentView], read: Reading) -> list[float]:
    return [value for view in views for sample in (view.before, view.after) if (value := read(sample)) is not None]
