"""Peak memory of the process that holds the weights."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

_LINUX = sys.platform.startswith("linux")
_PEAK = re.compile(rb"VmHWM:\s+(\d+) kB")


def reset_peak_rss(process_ids: Sequence[int]) -> bool:
    """Set the kernel's peak mark back to the present size, so that a trial gets a peak of its own.

    Source: proc(5), /proc/pid/clear_refs, value 5. Returns False where the kernel cannot (the peak is then since the start).
    """
    if not process_ids or not _LINUX:
        return False
    try:
        for pid in process_ids:
            Path(f"/proc/{pid}/clear_refs").write_bytes(b"5")
    except OSError:
        return False
    return True


def peak_rss_bytes(process_ids: Sequence[int]) -> int | None:
    """Sum of the processes' peak resident set sizes in bytes; `None` when one of them is gone or unreadable."""
    if not process_ids:
        return None
    total = 0
    for pid in process_ids:
        peak = _one_peak(pid)
        if peak is None:
            return None
        total += peak
    return total


def _one_peak(pid: int) -> int | None:
    if _LINUX:
        try:
            match = _PEAK.search(Path(f"/proc/{pid}/status").read_bytes())
        except OSError:
            return None
        return int(match[1]) * 1024 if match else None
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None


class GpuMemory:
    """Memory that given processes hold on NVIDIA GPUs, through NVML; answers `None` where there is no GPU or no NVML."""

    def __init__(self) -> None:
        self._handles: list[object] = []
        try:
            import pynvml

            pynvml.nvmlInit()
        except Exception:  # noqa: BLE001 - NVML raises its own family; absent library, driver or GPU all mean "no sensor"
            return
        self._nvml = pynvml
        self._handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]

    def used_bytes(self, process_ids: Sequence[int]) -> int | None:
        """Bytes used by the processes on all GPUs; `None` without a GPU or where the driver hides per-process use."""
        if not self._handles:
            return None
        wanted, total = set(process_ids), 0
        for handle in self._handles:
            for process in self._nvml.nvmlDeviceGetComputeRunningProcesses(handle):
                if process.pid in wanted:
                    if process.usedGpuMemory is None:
                        return None
                    total += int(process.usedGpuMemory)
        return total
