"""What the machine went through during a row's trials: temperatures, memory in use, throttling. Pure, from the journal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import msgspec

from fewbits.analysis.statistics import rounded
from fewbits.analysis.trial_table import MATRIX, TrialTable
from fewbits.records.base import Unavailable
from fewbits.records.summary import DeviceConditions, RowConditions
from fewbits.records.trial import SampleView, TrialView

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class _Device:
    """Which fields of a sample tell of a device. Memory is given either as what is free or as what is used."""

    temperature: str
    total: str
    available: str | None = None
    used: str | None = None

    def temperatures(self, samples: Sequence[SampleView]) -> list[float]:
        """Return the readings that there are. Fields are read in bulk: a journal has a hundred thousand samples."""
        return [value for value in map(attrgetter(self.temperature), samples) if value is not None]

    def used_ratios(self, samples: Sequence[SampleView]) -> list[float]:
        """Return the shares of the memory in use, 0..1, where both readings are there."""
        pairs = zip(map(attrgetter(self.total), samples), map(attrgetter(self.available or str(self.used)), samples), strict=True)
        shares = [read / total for total, read in pairs if total and read is not None]
        return [min(1.0, max(0.0, 1 - share if self.available else share)) for share in shares]

    def totals(self, samples: Sequence[SampleView]) -> list[int]:
        """Return the sizes of the memory, bytes."""
        return [value for value in map(attrgetter(self.total), samples) if value is not None]


_HOST = _Device("temperature_c", "memory_total_bytes", available="memory_available_bytes")
_GPU = _Device("gpu_temperature_c", "gpu_memory_total_bytes", used="gpu_memory_used_bytes")


def judge_conditions(table: TrialTable) -> dict[Key, RowConditions]:
    """Return what each variant's counted trials went through, by (model id, quant tag)."""
    first = _first_of_blocks(table)
    starts = {device: _block_starts(first, device) for device in (_HOST, _GPU)}
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


def _first_of_blocks(table: TrialTable) -> dict[tuple[str, int], TrialView]:
    """Return the first trial of every block, whichever variant's it was.

    Superseded attempts count too: the block began with them, and what was run again started warm.
    """
    first: dict[tuple[str, int], TrialView] = {}
    for trial in (trial for runs in table.all_runs.values() for trial in runs if trial.phase == MATRIX):
        known = first.setdefault((trial.model_id, trial.block), trial)
        if known is not trial and _in_run_order(trial) < _in_run_order(known):
            first[trial.model_id, trial.block] = trial
    return first


def _block_starts(first: Mapping[tuple[str, int], TrialView], device: _Device) -> dict[str, dict[int, float]]:
    """Return model id -> block -> the temperature that the block started at, where there is a reading."""
    starts: dict[str, dict[int, float]] = {}
    for (model_id, block), trial in first.items():
        value = getattr(trial.environment.before, device.temperature) if trial.environment is not None else None
        if value is not None:
            starts.setdefault(model_id, {})[block] = value
    return starts


def _conditions(trials: Sequence[TrialView], device: _Device, starts: Mapping[int, float]) -> DeviceConditions:
    views = [trial.environment for trial in trials if trial.environment is not None]
    samples = [sample for view in views for sample in (view.before, view.after)]
    blocks = tuple(dict.fromkeys(trial.block for trial in trials))
    own_starts = [starts[block] for block in blocks if block in starts]
    totals = device.totals(samples)
    values: dict[str, Any] = {
        "temperature_start_c": starts.get(blocks[0]) if blocks else None,
        "temperature_end_c": getattr(samples[-1], device.temperature) if samples else None,
        "temperature_max_c": max(device.temperatures(samples), default=None),
        "block_temperature_max_c": max(own_starts, default=None),
        "memory_total_bytes": max(totals, default=None),
        "memory_used_ratio": rounded(max(device.used_ratios(samples), default=None)),
    }
    why = str(Unavailable.NO_SENSOR if samples else Unavailable.NO_TRIALS)
    reasons = {name: why for name, value in values.items() if value is None}
    return DeviceConditions(**values, unavailable=reasons)
