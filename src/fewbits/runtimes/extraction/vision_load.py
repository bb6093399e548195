"""Loading a vision-language model once: safetensors only, no remote code, and one clear message for what is missing."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fewbits.core.codec import digest
from fewbits.core.errors import BackendError, PrerequisiteError, SpecError
from fewbits.core.files import sha256_file
from fewbits.records.sensitivity import ModelSettings
from fewbits.spec.model_source import find_model_format

Dtype = Literal["bfloat16", "float16", "float32"]
DTYPES: tuple[Dtype, ...] = ("bfloat16", "float16", "float32")
TOKEN_VARIABLES = ("HF_TOKEN", "HUGGINGFACE_TOKEN")
"""Where a token for gated models is looked for, in this order; nowhere else."""

MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer.model")
"""What is downloaded and hashed: weights, settings, tokenizer, chat template. No code, no pickles."""
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_MODULES = ("torch", "transformers", "accelerate", "PIL")
_EXTRA = "Install with: pip install 'fewbits[vision]'"
_WITHOUT_A_MODEL = "The OCR engine (engine `ocr`) needs no model of this kind and runs on this machine."
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "bad alloc", "cannot allocate memory")


@dataclass(frozen=True, slots=True)
class VisionOptions:
    """How a model is loaded and asked. Raises `SpecError` for values that cannot be.

    `model` is a folder, else a name `owner/model` on the hub, at `revision`. `weight_bits` 4 (nf4, double quantization) or 8
    (LLM.int8) quantizes the linear layers on loading by bitsandbytes; `None` keeps `dtype`, which all else computes in.
    """

    model: str
    revision: str | None = None
    device: Literal["cuda", "cpu"] = "cuda"
    dtype: Dtype = "bfloat16"
    weight_bits: Literal[4, 8] | None = None
    max_new_tokens: int = 2048
    timeout_seconds: float | None = None
    """For one page with all its retries, looked at between tokens: reading the prompt cannot be stopped."""

    def __post_init__(self) -> None:
        known = (
            ("device", self.device, ("cuda", "cpu")),
            ("dtype", self.dtype, DTYPES),
            ("weight_bits", self.weight_bits, (4, 8, None)),
        )
        for name, value, allowed in known:
            if value not in allowed:
                raise SpecError.single(name, f"{value!r} is not known", f"one of: {', '.join(map(str, allowed))}")
        if self.max_new_tokens < 1:
            raise SpecError.single("max_new_tokens", f"{self.max_new_tokens} is less than 1", "2048 is enough for most pages")
        if self.timeout_seconds is not None and not self.timeout_seconds > 0:
            raise SpecError.single("timeout_seconds", "must be more than 0", "leave it out for no limit")


@dataclass(frozen=True, slots=True)
class LoadedVision:
    """A model in evaluation mode with its processor, and the folder that both were read from."""

    model: Any
    processor: Any
    folder: Path


def load_vision(options: VisionOptions) -> LoadedVision:
    """Load model and processor onto the device.

    Raises `PrerequisiteError` (a package, CUDA, the network or a permission is missing), `SpecError` (no usable model there),
    `BackendError` (damaged, weights missing, out of memory).
    """
    _require_packages(options)
    _require_device(options)
    folder = model_folder(options.model, options.revision)
    find_model_format(ModelSettings(name="vision", path=str(folder), format="hf"))
    with quiet(), readable(folder.name):
        processor = _load_processor(folder)
        model = _load_model(folder, options)
    return LoadedVision(model=model, processor=processor, folder=folder)


def _require_packages(options: VisionOptions) -> None:
    wanted = _MODULES if options.weight_bits is None else (*_MODULES, "bitsandbytes")
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if missing:
        raise PrerequisiteError(f"{' and '.join(missing)} not installed", _EXTRA)


def _require_device(options: VisionOptions) -> None:
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        build = "this torch is built without CUDA" if torch.version.cuda is None else "torch sees no NVIDIA GPU"
        remedy = f"With --device cpu the same model runs, many times slower. {_WITHOUT_A_MODEL}"
        raise PrerequisiteError(f"CUDA was asked for, but {build}", remedy)


def model_folder(model: str, revision: str | None) -> Path:
    """Return the folder of a model: itself, or the hub's copy in the cache, downloaded where absent.

    Raises `SpecError` for what is neither a folder nor a hub's name, `PrerequisiteError` for what cannot be downloaded.
    """
    folder = Path(model).expanduser()
    if model and folder.is_dir():
        if revision is not None:
            raise SpecError.single("revision", "a folder has no revisions", "leave it out, or name the model on the hub")
        return folder
    if not _HUB_NAME.fullmatch(model):
        hint = "give a folder with config.json and *.safetensors, or a name owner/model"
        raise SpecError.single("model", f"{model} is neither a folder nor a name on the hub", hint)
    return _download(model, revision)


def _download(model: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    # False keeps the library from looking for a token elsewhere
    token: str | bool = next((os.environ[name] for name in TOKEN_VARIABLES if os.environ.get(name)), False)
    asked = f"{model} at revision {revision}" if revision else model
    with_token = "a token is set" if token else f"no token is set in {' or '.join(TOKEN_VARIABLES)}"
    # errors are told in our words and without their cause: a library's message may show headers or addresses
    try:
        with quiet():
            return Path(snapshot_download(model, revision=revision, token=token, allow_patterns=list(MODEL_FILES)))
    except GatedRepoError:
        remedy = f"Accept its terms with your account, and set {TOKEN_VARIABLES[0]} to a token that may read it."
        raise PrerequisiteError(f"{asked} is gated ({with_token})", remedy) from None
    except RepositoryNotFoundError:
        remedy = f"Check the name; for a private model set {TOKEN_VARIABLES[0]}."
        raise PrerequisiteError(f"no folder {model} here, and the hub shows no such model ({with_token})", remedy) from None
    except LocalEntryNotFoundError:
        remedy = f"Connect, or copy the model's folder here and name that. {_WITHOUT_A_MODEL}"
        raise PrerequisiteError(f"{asked} is not on this machine, and the hub cannot be reached", remedy) from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        remedy = "Check the revision, the network and the room on the disk, or copy the model's folder here and name that."
        raise PrerequisiteError(f"{asked} could not be downloaded ({type(error).__name__})", remedy) from None


def _load_processor(folder: Path) -> Any:
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except ImportError as error:
        missing = "torchvision" if "torchvision" in str(error).lower() else "a package that its processor needs"
        raise PrerequisiteError(
            f"{folder.name} needs {missing}", f"Install it, or use another model. {_WITHOUT_A_MODEL}"
        ) from error
    if getattr(processor, "image_processor", None) is None or not getattr(processor, "chat_template", None):
        hint = "use an instruction-tuned vision-language model (image processor and chat template belong to its files)"
        raise SpecError.single("model", f"{folder.name} has no processor that takes pictures in a chat", hint)
    return processor


def _load_model(folder: Path, options: VisionOptions) -> Any:
    import torch
    from transformers import AutoModelForImageTextToText

    model, info = AutoModelForImageTextToText.from_pretrained(
        str(folder),
        dtype=getattr(torch, options.dtype),
        quantization_config=_quantization(options),
        device_map={"": options.device},
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
    )
    broken = sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in info.get(kind, ()))
    if broken:
        shown = ", ".join(broken[:3]) + (f" and {len(broken) - 3} more" if len(broken) > 3 else "")
        raise BackendError("transformers", f"{folder.name} lacks weights ({shown}); they would be random numbers")
    return model.eval()


def _quantization(options: VisionOptions) -> Any:
    if options.weight_bits is None:
        return None
    import torch
    from transformers import BitsAndBytesConfig

    if options.weight_bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, options.dtype),
    )


def model_digest(folder: Path) -> str:
    """Return the sha256 (64 hex digits) of a model: of the canonical JSON of each file's name and sha256."""
    files = {path for pattern in MODEL_FILES for path in folder.glob(pattern) if path.is_file()}
    return digest({path.name: sha256_file(path) for path in sorted(files)})


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let a library print and warn nowhere: its words may hold what a page says."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def readable(what: str) -> Iterator[None]:
    """Say in one sentence what went wrong in the library with `what`; ours pass as they are."""
    try:
        yield
    except (BackendError, PrerequisiteError, SpecError):
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        if isinstance(error, MemoryError) or any(words in str(error).lower() for words in _MEMORY_WORDS):
            msg = f"{what}: out of memory. Use 4 bits, a smaller model, or a machine with more memory."
        else:
            msg = f"{what}: {type(error).__name__}: {lines[0][:300]}"
        raise BackendError("transformers", msg) from error
