"""Samples of the machine before and after a trial, from cumulative counters: nothing polls in between.

On Linux everything is read from files that were opened once, so a sample costs well under a millisecond. Elsewhere psutil
gives what it can and the rest is `None`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from fewbits.probes.gpu import GpuSensors
from fewbits.probes.machine import total_memory_bytes
from fewbits.records.trial import EnvironmentSample

_TICK_SECONDS = 1.0 / os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 0.01
_LINUX = sys.platform.startswith("linux")


class _Counter:
    """A /proc or /sys file that is read again and again through one descriptor."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> bytes:
        return os.pread(self._descriptor, 4096, 0)

    def close(self) -> None:
        os.close(self._descriptor)


def _open_counter(path: Path) -> _Counter | None:
    try:
        counter = _Counter(path)
        counter.read()
    except OSError:
        return None  # no such sensor on this machine: reported as null
    return counter


class EnvironmentProbe:
    """Reads counters of the whole machine and of our own processes.

    `track` says which processes hold models: their CPU time is ours, whatever else runs is foreign.
    """

    def __init__(self) -> None:
        self._tracked: tuple[int, ...] = ()
        self._gpu = GpuSensors()
        self._memory_total_bytes = total_memory_bytes()
        self._pressure = {name: _open_counter(Path("/proc/pressure") / name) for name in ("cpu", "memory", "io")}
        self._stat = _open_counter(Path("/proc/stat")) if _LINUX else None
        self._meminfo = _open_counter(Path("/proc/meminfo")) if _LINUX else None
        self._throttle = [
            counter
            for path in sorted(Path("/sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/core_throttle_count"))
            if (counter := _open_counter(path)) is not None
        ]
        self._frequency = [
            counter
            for path in sorted(Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
            if (counter := _open_counter(path)) is not None
        ]
        self._temperature = [
            counter
            for path in sorted(Path("/sys/class/hwmon").glob("hwmon*/temp*_input"))
            if _is_package_sensor(path) and (counter := _open_counter(path)) is not None
        ]

    def track(self, process_ids: Iterable[int]) -> None:
        """Set the processes that count as our own, beside this one."""
        self._tracked = tuple(process_ids)

    def close(self) -> None:
        """Close every descriptor."""
        for counter in (
            *self._pressure.values(),
            self._stat,
            self._meminfo,
            *self._throttle,
            *self._frequency,
            *self._temperature,
        ):
            if counter is not None:
                counter.close()

    def sample(self) -> EnvironmentSample:
        """Read every counter once."""
        busy, steal = self._cpu_seconds()
        return EnvironmentSample(
            monotonic_seconds=time.monotonic(),
            cpu_busy_seconds=busy,
            cpu_steal_seconds=steal,
            own_cpu_seconds=self._own_cpu_seconds(),
            cpu_pressure_seconds=self._pressure_seconds("cpu"),
            memory_pressure_seconds=self._pressure_seconds("memory"),
            io_pressure_seconds=self._pressure_seconds("io"),
            load_1m=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
            throttle_events=sum(int(counter.read()) for counter in self._throttle) if self._throttle else None,
            cpu_mhz=_mean([int(counter.read()) / 1000.0 for counter in self._frequency]),
            temperature_c=max((int(counter.read()) / 1000.0 for counter in self._temperature), default=None),
            memory_available_bytes=self._memory_available_bytes(),
            memory_total_bytes=self._memory_total_bytes,
            **self._gpu.readings(),
        )

    def _cpu_seconds(self) -> tuple[float | None, float | None]:
        """Busy and stolen seconds over all cores. Source: proc(5), first line of /proc/stat."""
        if self._stat is None:
            times = psutil.cpu_times()
            return times.user + times.system + getattr(times, "nice", 0.0), None
        fields = [int(word) for word in self._stat.read().split(b"\n", 1)[0].split()[1:]]
        user, nice, system, _idle, _iowait, irq, softirq, steal = fields[:8]
        return (user + nice + system + irq + softirq) * _TICK_SECONDS, steal * _TICK_SECONDS

    def _own_cpu_seconds(self) -> float:
        """CPU seconds of this process, its reaped children, and the tracked live ones."""
        ours = os.times()
        total = ours.user + ours.system + ours.children_user + ours.children_system
        for pid in self._tracked:
            seconds = _process_cpu_seconds(pid)
            if seconds is not None:
                total += seconds
        return total

    def _pressure_seconds(self, resource: str) -> float | None:
        """Seconds in which some task waited for `resource`. Source: Linux Documentation/accounting/psi.rst (`some total`, us)."""
        counter = self._pressure[resource]
        if counter is None:
            return None
        first_line = counter.read().split(b"\n", 1)[0]
        return int(first_line.rsplit(b"total=", 1)[1]) / 1e6

    def _memory_available_bytes(self) -> int | None:
        if self._meminfo is None:
            return int(psutil.virtual_memory().available)
        for line in self._meminfo.read().split(b"\n"):
            if line.startswith(b"MemAvailable:"):
                return int(line.split()[1]) * 1024
        return None


def _process_cpu_seconds(pid: int) -> float | None:
    """User + system seconds of a live process, all threads; `None` when it is gone."""
    if not _LINUX:
        try:
            times = psutil.Process(pid).cpu_times()
        except psutil.Error:
            return None
        return float(times.user + times.system)
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rsplit(b")", 1)[1].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) * _TICK_SECONDS


def _is_package_sensor(path: Path) -> bool:
    """Whether a hwmon input is a CPU package sensor (coretemp, k10temp, zenpower)."""
    try:
        return (path.parent / "name").read_text().strip() in {"coretemp", "k10temp", "zenpower", "cpu_thermal"}
    except OSError:
        return False


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
