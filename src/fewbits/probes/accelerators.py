"""NVIDIA GPUs as PyTorch and the driver see them. PyTorch is asked in a child process: it is heavy, and may crash."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from fewbits.core.process import run_command
from fewbits.records.preflight import Gpu

TORCH_TIMEOUT_SECONDS = 180.0
"""The first import from a slow disk takes most of a minute."""
BF16_CAPABILITY = (8, 0)
"""First compute capability with bfloat16. Source: CUDA C++ Programming Guide, table of arithmetic throughput."""
_DRIVER = Path("/proc/driver/nvidia")
_MODEL = re.compile(r"^Model:\s+(.+?)\s*$", re.MULTILINE)
_DRIVER_VERSION = re.compile(r"\s(\d+\.\d+(?:\.\d+)?)\s")
# a product in bfloat16 on each GPU: a driver that is too old is only seen when something is computed
_ASK_TORCH = """
import json, torch
found = {"version": torch.__version__, "cuda_version": torch.version.cuda, "available": torch.cuda.is_available(), "gpus": []}
try:
    for index in range(torch.cuda.device_count() if found["available"] else 0):
        about = torch.cuda.get_device_properties(index)
        bf16 = (about.major, about.minor) >= (8, 0)
        one = torch.ones(8, 8, device=f"cuda:{index}", dtype=torch.bfloat16 if bf16 else torch.float16)
        if float((one @ one).sum()) != 512:
            raise RuntimeError("a product of two matrices comes out wrong")
        found["gpus"].append({"name": about.name, "memory_bytes": about.total_memory, "bf16": bf16})
except Exception as error:
    found["problem"] = " ".join(str(error).split())[:300]
print()
print(json.dumps(found))
"""


class _TorchAnswer(msgspec.Struct, frozen=True):
    version: str
    cuda_version: str | None
    available: bool
    gpus: tuple[Gpu, ...]
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class TorchView:
    """What PyTorch sees. `version` is `None` where it is not installed; `problem` says why its GPUs cannot be used."""

    version: str | None = None
    cuda_version: str | None = None
    gpus: tuple[Gpu, ...] = ()
    problem: str | None = None


def torch_view(hidden_variables: Sequence[str] = ()) -> TorchView:
    """Ask an installed PyTorch for its GPUs, in a child process that does not get `hidden_variables` of the environment."""
    if importlib.util.find_spec("torch") is None:
        return TorchView(problem="PyTorch is not installed")
    environment = {name: value for name, value in os.environ.items() if name not in hidden_variables}
    result = run_command((sys.executable, "-c", _ASK_TORCH), timeout_seconds=TORCH_TIMEOUT_SECONDS, env=environment)
    if result.timed_out:
        return TorchView(version="unknown", problem=f"PyTorch did not answer within {TORCH_TIMEOUT_SECONDS:.0f} s")
    try:
        answer = msgspec.json.decode(result.stdout.strip().rsplit("\n", 1)[-1], type=_TorchAnswer)
    except msgspec.DecodeError:
        last = result.tail.strip().rsplit("\n", 1)[-1][:300]
        return TorchView(version="unknown", problem=f"PyTorch cannot be imported: {last or result.returncode}")
    return TorchView(answer.version, answer.cuda_version, answer.gpus, _problem(answer))


def _problem(answer: _TorchAnswer) -> str | None:
    if answer.problem is not None:
        return f"PyTorch cannot compute on the GPU: {answer.problem}"
    if answer.gpus:
        return None
    if answer.cuda_version is None:
        return f"PyTorch {answer.version} is built without CUDA"
    return f"PyTorch {answer.version} (CUDA {answer.cuda_version}) finds no GPU"


def driver_gpus() -> tuple[Gpu, ...]:
    """Return the GPUs that the driver names, through NVML, else by its files in /proc; empty where there is no driver."""
    return _nvml_gpus() or _proc_gpus(_DRIVER)


def _nvml_gpus() -> tuple[Gpu, ...]:
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return tuple(_nvml_gpu(pynvml, handle) for handle in handles)
    except Exception:  # noqa: BLE001 - absent library, driver or GPU all mean "no GPU that we can name"
        return ()


def _nvml_gpu(nvml: Any, handle: Any) -> Gpu:
    name = nvml.nvmlDeviceGetName(handle)
    text = name.decode() if isinstance(name, bytes) else str(name)
    try:
        bf16 = tuple(nvml.nvmlDeviceGetCudaComputeCapability(handle)) >= BF16_CAPABILITY
        return Gpu(name=text, memory_bytes=int(nvml.nvmlDeviceGetMemoryInfo(handle).total), bf16=bf16)
    except Exception:  # noqa: BLE001 - NVML raises its own family; a refused reading is no reading
        return Gpu(name=text)


def _proc_gpus(driver: Path) -> tuple[Gpu, ...]:
    """Source: README of NVIDIA's Linux driver, "The /proc filesystem interface"."""
    found = []
    for path in sorted(driver.glob("gpus/*/information")):
        try:
            match = _MODEL.search(path.read_text(errors="replace"))
        except OSError:
            continue
        if match is not None:
            found.append(Gpu(name=match[1]))
    return tuple(found)


def driver_version() -> str | None:
    """Version of NVIDIA's kernel driver; `None` where there is none."""
    try:
        match = _DRIVER_VERSION.search((_DRIVER / "version").read_text(errors="replace").partition("\n")[0] + " ")
    except OSError:
        return None
    return match[1] if match else None
