"""Preflight of the extraction benchmark: read the machine, then judge it (`preflight_rules`)."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fewbits import __version__
from fewbits.api.explorer import generated_at
from fewbits.api.preflight_rules import Surroundings, engine_outlooks, judge, recommend, worst
from fewbits.core.codec import storable
from fewbits.core.errors import SpecError, StoreError
from fewbits.core.files import ensure_writable_directory
from fewbits.images.pages import content_kind, find_inputs
from fewbits.probes.accelerators import driver_gpus, driver_version, torch_view
from fewbits.records.preflight import Preflight, WantedDevice

TOKEN_VARIABLES = ("HF_TOKEN", "HUGGINGFACE_TOKEN", "HUGGING_FACE_HUB_TOKEN")
PACKAGES = (
    "accelerate",
    "bitsandbytes",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "pillow",
    "pypdfium2",
    "rapidocr",
    "torch",
    "transformers",
    "xllamacpp",
)
"""Distributions whose versions are told: what the engines are made of."""


@dataclass(frozen=True, slots=True)
class PreflightRequest:
    """What is to be run: pages of `input_dir` on `device`, the answer going to `output`, on GPUs whose names hold each of
    `required_gpus` (any case).
    """

    input_dir: Path
    output: Path
    device: WantedDevice = WantedDevice.AUTO
    required_gpus: tuple[str, ...] = ()


def run_preflight(request: PreflightRequest) -> Preflight:
    """Look at the machine and judge it. Creates the folder of `output` and tries to write there, but writes no answer.

    Raises `SpecError` for a required GPU without a name.
    """
    if not all(name.strip() for name in request.required_gpus):
        raise SpecError.single("--require-gpu", "the name is empty", "give a part of the GPU's name, such as 4060")
    around = look_around(request)
    checks = judge(around, request.device, request.required_gpus)
    return Preflight(
        generated_at=generated_at(),
        status=worst(checks),
        input_dir=storable(str(request.input_dir)),
        device=request.device,
        required_gpus=tuple(map(storable, request.required_gpus)),
        checks=checks,
        gpus=around.gpus,
        versions=dict(around.versions),
        engines=engine_outlooks(around, request.device),
        recommended=recommend(around, request.device, request.required_gpus),
    )


def look_around(request: PreflightRequest) -> Surroundings:
    """Read everything that the rules ask for."""
    torch = torch_view(TOKEN_VARIABLES)
    inputs, unreadable, input_problem = _inputs(request.input_dir)
    free_bytes, output_problem = _output(request.output)
    versions: dict[str, str | None] = {name: _installed(name) for name in PACKAGES}
    return Surroundings(
        torch=torch,
        gpus=torch.gpus or driver_gpus(),
        inputs=inputs,
        unreadable_inputs=unreadable,
        input_problem=input_problem,
        token_source=token_source(os.environ),
        free_bytes=free_bytes,
        output_problem=output_problem,
        versions={
            "fewbits": __version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            **versions,
            "cuda": torch.cuda_version,
            "nvidia_driver": driver_version(),
        },
    )


def _installed(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _inputs(folder: Path) -> tuple[int, int, str | None]:
    """Return how many files there are, how many of them are neither picture nor PDF, and why there is none."""
    try:
        paths = find_inputs(folder)
    except SpecError as error:
        return 0, 0, storable(f"{error.problems[0].path}: {error.problems[0].message}")
    return len(paths), sum(content_kind(path) is None for path in paths), None


def _output(path: Path) -> tuple[int | None, str | None]:
    """Return the bytes free where the answer goes, and why nothing can be written there."""
    try:
        ensure_writable_directory(path.parent)
        return shutil.disk_usage(path.parent).free, f"{path} is a folder" if path.is_dir() else None
    except (OSError, StoreError) as error:
        return None, storable(str(error).partition(". ")[0])


def token_source(environment: Mapping[str, str]) -> str | None:
    """Say where a Hugging Face token is: a variable's name, `the token file`, or `None`. Nothing about it is kept.

    Source: huggingface_hub's reference of environment variables: HF_TOKEN_PATH, else `token` in HF_HOME, else in the cache.
    """
    for name in TOKEN_VARIABLES:
        if environment.get(name, "").strip():
            return name
    cache = environment.get("XDG_CACHE_HOME") or "~/.cache"
    home = environment.get("HF_HOME") or f"{cache}/huggingface"
    path = Path(os.path.expandvars(environment.get("HF_TOKEN_PATH") or f"{home}/token"))
    try:
        return "the token file" if path.expanduser().read_bytes().strip() else None
    except (OSError, RuntimeError, ValueError):
        return None
