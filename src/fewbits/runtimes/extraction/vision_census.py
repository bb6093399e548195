"""What a loaded model really is: its precision counted from the tensors, and the memory that it takes on the GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fewbits.records.base import Record
from fewbits.records.extraction import GpuMemorySnapshot

_MB = 1e6
_QUANTIZED = {"Linear4bit": "4-bit", "Linear8bitLt": "8-bit"}
"""Classes of bitsandbytes. Counted by class and not by the settings asked for, which a library may ignore."""


class StoredAs(Record, frozen=True, kw_only=True):
    """Parameters of one storage: their number, and their bytes with the scales that belong to them."""

    parameters: int
    bytes: int


class PrecisionCensus(Record, frozen=True, kw_only=True):
    """How a model's parameters are stored. Keys of `storage`: a torch type (`bfloat16`), `nf4`, `fp4` or `int8` (quantized)."""

    storage: dict[str, StoredAs]
    modules: dict[str, int]
    """Linear layers by class: `Linear4bit` and `Linear8bitLt` are bitsandbytes'."""

    @property
    def bytes(self) -> int:
        """Return the bytes of all parameters."""
        return sum(stored.bytes for stored in self.storage.values())

    @property
    def bits_per_parameter(self) -> float | None:
        """Return the mean; `None` for a model without parameters."""
        parameters = sum(stored.parameters for stored in self.storage.values())
        return 8 * self.bytes / parameters if parameters else None


class VisionDescription(Record, frozen=True, kw_only=True):
    """What answers: `digest` is `vision_load.model_digest`, `asked_*` what was asked for, `census` what is there."""

    model: str
    revision: str | None
    digest: str
    architecture: str
    device: str
    asked_dtype: str
    asked_weight_bits: int | None
    census: PrecisionCensus
    versions: dict[str, str]
    """Of torch, transformers and bitsandbytes, where installed."""


def take_census(model: Any) -> PrecisionCensus:
    """Count the parameters of a `torch.nn.Module` by how they are stored. Shared ones count once, buffers not at all."""
    counts: dict[str, tuple[int, int]] = {}
    modules: dict[str, int] = {}
    seen: set[int] = set()
    for module in model.modules():
        name = type(module).__name__
        if "Linear" in name:
            modules[name] = modules.get(name, 0) + 1
        for stored, parameters, size in _parameters(module, seen):
            before = counts.get(stored, (0, 0))
            counts[stored] = (before[0] + parameters, before[1] + size)
    storage = {stored: StoredAs(parameters=number, bytes=size) for stored, (number, size) in sorted(counts.items())}
    return PrecisionCensus(storage=storage, modules=dict(sorted(modules.items())))


def _parameters(module: Any, seen: set[int]) -> Iterator[tuple[str, int, int]]:
    """Yield (storage, parameters, bytes) of a module's own parameters that were not seen before."""
    quantized = _QUANTIZED.get(type(module).__name__)
    for name, parameter in module.named_parameters(recurse=False):
        if id(parameter) in seen:
            continue
        seen.add(id(parameter))
        size = parameter.numel() * parameter.element_size()
        if name != "weight" or quantized is None:
            yield str(parameter.dtype).removeprefix("torch."), parameter.numel(), size
        elif quantized == "4-bit":
            # two weights share a byte; the shape before packing is the module's
            state = parameter.quant_state
            stored = "unknown 4-bit" if state is None else str(state.quant_type)
            yield stored, module.in_features * module.out_features, size + _scale_bytes(state)
        else:
            scales = getattr(parameter, "SCB", None)
            extra = 0 if scales is None else scales.numel() * scales.element_size()
            yield str(parameter.dtype).removeprefix("torch."), parameter.numel(), size + extra


def _scale_bytes(state: Any) -> int:
    """Return the bytes of a `QuantState`: scales, their own scales where they are quantized too, and the offset."""
    if state is None:
        return 0
    tensors = [state.absmax, getattr(state, "offset", None)]
    size: int = sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)
    return size + _scale_bytes(getattr(state, "state2", None))


def gpu_memory(device: str, *, reset_peak: bool = False) -> GpuMemorySnapshot | None:
    """Return the memory of the current CUDA device after all its work is done; `None` on the CPU, where torch counts none.

    `reset_peak` sets the peaks back to the present after reading them.
    """
    if not device.startswith("cuda"):
        return None
    import torch

    torch.cuda.synchronize()
    memory = GpuMemorySnapshot(
        memory_allocated_mb=torch.cuda.memory_allocated() / _MB,
        memory_reserved_mb=torch.cuda.memory_reserved() / _MB,
        max_memory_allocated_mb=torch.cuda.max_memory_allocated() / _MB,
        max_memory_reserved_mb=torch.cuda.max_memory_reserved() / _MB,
    )
    if reset_peak:
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    return memory
