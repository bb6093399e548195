"""NVIDIA GPUs through NVML: temperature, memory in use, throttling. Everything is `None` where there is no GPU or no NVML."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# clocks held down by heat or power, not by idling or by the user's own limits. Source: nvml.h, NVML_CLOCKS_EVENT_REASONS
_HW_SLOWDOWN, _SW_THERMAL, _HW_THERMAL, _POWER_BRAKE = 0x08, 0x20, 0x40, 0x80
THROTTLE_MASK = _HW_SLOWDOWN | _SW_THERMAL | _HW_THERMAL | _POWER_BRAKE
_NVML_TEMPERATURE_GPU = 0


class GpuSensors:
    """Opens NVML once; a reading that one GPU refuses is left out, never guessed."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._handles: list[Any] = []
        try:
            import pynvml

            pynvml.nvmlInit()
            cards = range(pynvml.nvmlDeviceGetCount())
        except Exception:  # noqa: BLE001 - NVML raises its own family; absent library, driver or GPU all mean "no sensor"
            return
        self._nvml = pynvml
        opened = [self._one(lambda nvml, index: nvml.nvmlDeviceGetHandleByIndex(index), index) for index in cards]
        self._handles = [handle for handle in opened if handle is not None]

    def readings(self) -> dict[str, Any]:
        """Return the GPU fields of an `EnvironmentSample`; empty without a GPU."""
        if not self._handles:
            return {}
        temperatures = self._each(lambda nvml, handle: float(nvml.nvmlDeviceGetTemperature(handle, _NVML_TEMPERATURE_GPU)))
        memory = self._each(lambda nvml, handle: nvml.nvmlDeviceGetMemoryInfo(handle))
        reasons = self._each(lambda nvml, handle: int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)))
        fullest = max(memory, key=lambda info: info.used / info.total if info.total else 0.0, default=None)
        return {
            "gpu_temperature_c": max(temperatures, default=None),
            "gpu_memory_used_bytes": int(fullest.used) if fullest is not None else None,
            "gpu_memory_total_bytes": int(fullest.total) if fullest is not None else None,
            "gpu_throttled": any(mask & THROTTLE_MASK for mask in reasons) if reasons else None,
        }

    def _each(self, read: Callable[[Any, Any], Any]) -> list[Any]:
        return [value for handle in self._handles if (value := self._one(read, handle)) is not None]

    def _one(self, read: Callable[[Any, Any], Any], card: Any) -> Any:
        try:
            return read(self._nvml, card)
        except Exception:  # noqa: BLE001 - "not supported" on this card is no reading, not an error
            return None
