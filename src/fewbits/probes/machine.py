"""Identity of the machine (not its state), and what of it this process may use."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import psutil

_WORD = re.compile(r"[^a-z0-9.]+")


def usable_cores() -> tuple[int, ...]:
    """Cores that this process may run on, in order."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def default_threads() -> int:
    """Physical cores that this process may use: the thread count that llama.cpp recommends for generation."""
    usable = len(usable_cores())
    physical = psutil.cpu_count(logical=False)
    return max(1, min(usable, physical) if physical else usable)


def total_memory_bytes() -> int:
    """Physical memory of the machine."""
    return int(psutil.virtual_memory().total)


def cpu_name() -> str:
    """The CPU's marketing name; the architecture where the OS does not tell."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model", "Hardware")):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux: the next source answers
    return platform.processor() or platform.machine()


def gpu_names() -> tuple[str, ...]:
    """Names of NVIDIA GPUs through NVML; empty where there is none or NVML is absent."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        names = [pynvml.nvmlDeviceGetName(handle) for handle in handles]
    except Exception:  # noqa: BLE001 - absent library, driver or GPU all mean "no GPU that we can name"
        return ()
    return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)


def hardware_fingerprint() -> str:
    """Identity of the hardware: `arch|cpu|cores|ram|gpus`, e.g. `x86_64|amd-epyc|2c|23gb|none`.

    The OS release is left out on purpose: a kernel patch does not make old baselines incomparable.
    """
    memory_gib = round(total_memory_bytes() / 1024**3)
    gpus = "+".join(_slug(name) for name in gpu_names()) or "none"
    return "|".join([platform.machine().lower(), _slug(cpu_name()), f"{len(usable_cores())}c", f"{memory_gib}gb", gpus])


def _slug(text: str) -> str:
    return _WORD.sub("-", text.lower()).strip("-")
