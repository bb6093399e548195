"""Rules of the preflight: pure functions of what was found on the machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fewbits.analysis.wording import count
from fewbits.core.units import GIB, MIB, format_bytes
from fewbits.probes.accelerators import TorchView
from fewbits.records.preflight import CheckStatus, EngineOutlook, Gpu, PreflightCheck, RecommendedSettings, WantedDevice

MEMORY_WARN_BYTES = 8_000_000_000
"""8 GB in the decimal sense: cards sold with 8 GB report slightly less than 8 GiB."""
WHOLE_MODEL_BYTES = 12_000_000_000
"""Memory from which a vision-language model of 4 billion weights runs in 16 bits: 8.6 GB of weights, images and cache beside."""
FOUR_BIT_BYTES = 6_000_000_000
"""The same for 4 bits: about 3.5 GB of weights (the embedding stays in 16 bits)."""
FREE_FAIL_BYTES = 200 * MIB
FREE_WARN_BYTES = 2 * GIB
"""Below it a long benchmark with quantized variants may fill the disk."""
_EXTRACTION = "`pip install 'fewbits[extraction]'`"
_VISION = "`pip install 'fewbits[vision]'`"
_OCR_PACKAGES = ("rapidocr", "onnxruntime", "pillow")
_VISION_PACKAGES = ("torch", "transformers", "accelerate", "pillow")
_CHAT = "xllamacpp"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What was found. `gpus` are PyTorch's, else the driver's; `None` versions are not installed; the problems say why not."""

    torch: TorchView
    gpus: tuple[Gpu, ...]
    inputs: int
    unreadable_inputs: int
    input_problem: str | None
    token_source: str | None
    free_bytes: int | None
    output_problem: str | None
    versions: Mapping[str, str | None]

    @property
    def has_cuda(self) -> bool:
        """Whether PyTorch computes on a GPU here."""
        return bool(self.torch.gpus) and self.torch.problem is None

    def lacking(self, packages: Sequence[str]) -> list[str]:
        """Return those packages that are not installed; ONNX Runtime comes in two."""
        present = {name for name, version in self.versions.items() if version is not None}
        present |= {"onnxruntime"} if "onnxruntime-gpu" in present else set()
        return [name for name in packages if name not in present]


def judge(around: Surroundings, device: WantedDevice, required: Sequence[str]) -> tuple[PreflightCheck, ...]:
    """Return every check, in the order in which they are read."""
    return (
        _cuda(around, device, required),
        _gpu_name(around, device, required),
        _gpu_memory(around, device, required),
        _bf16(around, device, required),
        _input_files(around),
        _token(around),
        _output(around),
        _engines(around, device),
    )


def worst(checks: Sequence[PreflightCheck]) -> CheckStatus:
    """Return the worst status of all."""
    found = {check.status for check in checks}
    return next(status for status in (CheckStatus.FAIL, CheckStatus.WARN, CheckStatus.PASS) if status in found)


def _check(name: str, status: CheckStatus, found: str, remedy: str = "") -> PreflightCheck:
    return PreflightCheck(name=name, status=status, found=found, remedy="" if status is CheckStatus.PASS else remedy)


def _cuda(around: Surroundings, device: WantedDevice, required: Sequence[str]) -> PreflightCheck:
    if around.has_cuda:
        found = f"PyTorch {around.torch.version} computes on {count(len(around.gpus), 'GPU')} (CUDA {around.torch.cuda_version})"
        return _check("cuda", CheckStatus.PASS, found)
    reason = around.torch.problem or "PyTorch finds no GPU"
    if device is WantedDevice.CPU and not required:
        return _check("cuda", CheckStatus.PASS, f"not used: the CPU is asked for ({reason})")
    if not around.gpus:
        remedy = "use a machine with an NVIDIA GPU and its driver, or --device cpu"
    elif around.torch.version is None:
        remedy = f"install it with {_VISION}"
    else:
        remedy = "install the PyTorch build for the driver's CUDA version, or a newer driver"
    if device is WantedDevice.CUDA or required:
        return _check("cuda", CheckStatus.FAIL, f"none: {reason}", remedy)
    if around.lacking(_OCR_PACKAGES):
        return _check("cuda", CheckStatus.FAIL, f"none: {reason}, and OCR is not installed either", remedy)
    return _check("cuda", CheckStatus.WARN, f"none: {reason}, so vision-language models cannot run; OCR needs no GPU", remedy)


def chosen_gpu(gpus: Sequence[Gpu], required: Sequence[str]) -> int | None:
    """Return the place of the first GPU whose name holds all that is required (any case), from 0; `None` where none does."""
    words = [" ".join(name.lower().split()) for name in required]
    return next(
        (place for place, gpu in enumerate(gpus) if all(word in " ".join(gpu.name.lower().split()) for word in words)), None
    )


def _gpu_name(around: Surroundings, device: WantedDevice, required: Sequence[str]) -> PreflightCheck:
    names = ", ".join(gpu.name for gpu in around.gpus)
    place = chosen_gpu(around.gpus, required)
    if place is None and required:
        wanted = " and ".join(required)
        found = f"{wanted} is required; there is {names or 'no NVIDIA GPU'}"
        return _check("gpu_name", CheckStatus.FAIL, found, "run on that machine, or leave the requirement out")
    if place is None:
        return _no_gpu("gpu_name", device)
    if place > 0:
        found = f"{around.gpus[place].name} is GPU {place} of {len(around.gpus)}, and GPU 0 would be used ({names})"
        return _check("gpu_name", CheckStatus.WARN, found, f"set CUDA_VISIBLE_DEVICES={place}")
    return _check("gpu_name", CheckStatus.PASS, f"{len(around.gpus)}: {names}")


def _no_gpu(name: str, device: WantedDevice) -> PreflightCheck:
    if device is WantedDevice.CPU:
        return _check(name, CheckStatus.PASS, "no NVIDIA GPU, and none is needed")
    return _check(name, CheckStatus.WARN, "no NVIDIA GPU", "see cuda")


def _gpu_memory(around: Surroundings, device: WantedDevice, required: Sequence[str]) -> PreflightCheck:
    place = chosen_gpu(around.gpus, required)
    if place is None:
        return _no_gpu("gpu_memory", device)
    memory = around.gpus[place].memory_bytes
    if memory is None:
        return _check(
            "gpu_memory",
            CheckStatus.WARN,
            "the driver does not tell it",
            "install the NVML binding: `pip install 'fewbits[gpu]'`",
        )
    if memory < MEMORY_WARN_BYTES:
        remedy = "use --quantize-4bit, or a smaller model"
        return _check("gpu_memory", CheckStatus.WARN, f"{format_bytes(memory)}: less than 8 GB", remedy)
    return _check("gpu_memory", CheckStatus.PASS, format_bytes(memory))


def _bf16(around: Surroundings, device: WantedDevice, required: Sequence[str]) -> PreflightCheck:
    place = chosen_gpu(around.gpus, required)
    if place is None:
        return _no_gpu("bf16", device)
    match around.gpus[place].bf16:
        case True:
            return _check("bf16", CheckStatus.PASS, "the GPU computes in bfloat16")
        case False:
            return _check(
                "bf16", CheckStatus.WARN, "the GPU has no bfloat16 (compute capability below 8.0)", "use --torch-dtype float16"
            )
        case _:
            remedy = "install the NVML binding: `pip install 'fewbits[gpu]'`"
            return _check("bf16", CheckStatus.WARN, "the driver does not tell whether there is bfloat16", remedy)


def _input_files(around: Surroundings) -> PreflightCheck:
    if around.input_problem is not None:
        remedy = "name a folder with pictures or PDFs by --input-dir, or draw some with `fewbits extract samples`"
        return _check("input_files", CheckStatus.FAIL, around.input_problem, remedy)
    found = count(around.inputs, "file")
    if around.unreadable_inputs:
        remedy = "replace or remove them: each one counts as a failed page"
        return _check(
            "input_files", CheckStatus.WARN, f"{found}, {around.unreadable_inputs} of them neither picture nor PDF inside", remedy
        )
    return _check("input_files", CheckStatus.PASS, found)


def _token(around: Surroundings) -> PreflightCheck:
    if around.token_source is not None:
        return _check("hugging_face_token", CheckStatus.PASS, f"present in {around.token_source} (never shown or kept)")
    remedy = "only gated models need one: accept the model's terms, then set HF_TOKEN"
    return _check("hugging_face_token", CheckStatus.WARN, "none", remedy)


def _output(around: Surroundings) -> PreflightCheck:
    if around.output_problem is not None or around.free_bytes is None:
        found = around.output_problem or "the free space cannot be read"
        return _check("output", CheckStatus.FAIL, found, "choose another path by --output")
    found = f"{format_bytes(around.free_bytes)} free, and it can be written to"
    if around.free_bytes < FREE_FAIL_BYTES:
        return _check("output", CheckStatus.FAIL, found, "free some space, or choose another path by --output")
    if around.free_bytes < FREE_WARN_BYTES:
        remedy = f"have {format_bytes(FREE_WARN_BYTES)} free for long benchmarks with quantized variants"
        return _check("output", CheckStatus.WARN, found, remedy)
    return _check("output", CheckStatus.PASS, found)


def _engines(around: Surroundings, device: WantedDevice) -> PreflightCheck:
    outlooks = engine_outlooks(around, device)
    able = [outlook.engine for outlook in outlooks if outlook.can_run]
    if not able:
        return _check("engines", CheckStatus.FAIL, "no extraction engine can run here", f"install {_EXTRACTION}")
    if "ocr" not in able:
        return _check("engines", CheckStatus.WARN, f"{', '.join(able)}, but not the default ocr", f"install {_EXTRACTION}")
    return _check("engines", CheckStatus.PASS, ", ".join(able))


def engine_outlooks(around: Surroundings, device: WantedDevice) -> tuple[EngineOutlook, ...]:
    """Say of each extraction engine whether it can run here, and why."""
    ocr = around.lacking(_OCR_PACKAGES)
    int8 = around.lacking((*_OCR_PACKAGES, "onnx"))
    chat = around.lacking((*_OCR_PACKAGES, _CHAT))
    chat_words = "OCR, then a local chat model in llama.cpp"
    return (
        _outlook("ocr", _install(ocr, _EXTRACTION), "OCR and layout rules on the CPU"),
        _outlook("ocr-int8", _install(int8, _EXTRACTION), "the same with OCR models quantized to 8 bits"),
        _outlook("ocr+chat", _install(chat, "`pip install 'fewbits[extraction,llamacpp]'`"), chat_words),
        _outlook("vision-bf16", _vision(around, device, bf16=True), "a vision-language model in bfloat16"),
        _outlook("vision-fp16", _vision(around, device), "a vision-language model in float16"),
        _outlook("vision-nf4", _vision(around, device, four_bit=True), "a vision-language model in 4 bits (bitsandbytes)"),
    )


def _outlook(engine: str, problem: str | None, words: str) -> EngineOutlook:
    return EngineOutlook(engine=engine, can_run=problem is None, why=problem or words)


def _install(lacking: Sequence[str], command: str) -> str | None:
    return f"not installed: {', '.join(lacking)} ({command})" if lacking else None


def _vision(around: Surroundings, device: WantedDevice, *, bf16: bool = False, four_bit: bool = False) -> str | None:
    """Say what keeps a vision-language model from running here; `None`: nothing that can be seen without loading one."""
    packages = (*_VISION_PACKAGES, "bitsandbytes") if four_bit else _VISION_PACKAGES
    if problem := _install(around.lacking(packages), _VISION):
        return problem
    if device is WantedDevice.CPU:
        return "the CPU is asked for, and there a page would take minutes"
    if not around.has_cuda:
        return f"{around.torch.problem or 'PyTorch finds no GPU'}, and on a CPU a page would take minutes"
    if bf16 and around.gpus[0].bf16 is False:
        return f"{around.gpus[0].name} has no bfloat16"
    return None


def recommend(around: Surroundings, device: WantedDevice, required: Sequence[str]) -> RecommendedSettings:
    """Return settings to start with, for a vision-language model of 4 billion weights where the GPU can hold one."""
    cpu = RecommendedSettings(engine="ocr", device=WantedDevice.CPU, why="the default engine: it runs on any CPU")
    able = {outlook.engine for outlook in engine_outlooks(around, device) if outlook.can_run}
    place = chosen_gpu(around.gpus, required)
    if place is None or "vision-fp16" not in able:
        return cpu
    gpu = around.gpus[place]
    memory = gpu.memory_bytes or 0
    dtype = "bfloat16" if gpu.bf16 else "float16"
    of = f"of the {format_bytes(memory)} of {gpu.name}; whether it beats ocr, the benchmark has to say"
    if memory >= WHOLE_MODEL_BYTES:
        why = f"4 billion weights of 16 bits take 8.6 GB {of}"
        return RecommendedSettings(engine="vision", device=WantedDevice.CUDA, torch_dtype=dtype, quantization="none", why=why)
    if memory >= FOUR_BIT_BYTES and "vision-nf4" in able:
        why = f"4 billion weights take 8.6 GB in 16 bits, about 3.5 GB in 4 bits {of}"
        return RecommendedSettings(engine="vision", device=WantedDevice.CUDA, torch_dtype=dtype, quantization="4bit", why=why)
    return cpu
