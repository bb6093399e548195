"""Loading a model for scoring: a Hugging Face folder or a GGUF file, from this machine's disk only, no code and no pickles."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from fewbits.core.errors import BackendError, SpecError
from fewbits.quantizers.torch.library import is_memory_error, memory_errors, quiet_library, require
from fewbits.records.sensitivity import ModelSettings
from fewbits.spec.model_source import check_dtype, find_model_format

_PATH = "model.path"
_READ_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "tokenizer*.*",
    "vocab.*",
    "merges.txt",
    "*_tokens*.json",
)
_MEMORY_REMEDY = "Use a smaller model, model.dtype=bfloat16, or a machine with more memory."


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in evaluation mode, with what was read to get it."""

    model: Any
    """The `torch.nn.Module`."""
    tokenizer: Any
    device: str
    dtype: str
    """Float type of the weights: `float32`, `bfloat16` or `float16`."""
    source_format: str
    """`hf` or `gguf`; weights of a GGUF file were dequantized on loading."""
    files: tuple[Path, ...]
    """Every file of the model that was read."""


def resolve_dtype(dtype: str, device: str) -> str:
    """Return the float type to load in: `auto` is bfloat16 on CUDA and float32 elsewhere. Raises `SpecError`."""
    if problems := check_dtype(dtype):
        raise SpecError(problems)
    if dtype != "auto":
        return dtype
    return "bfloat16" if device.startswith("cuda") else "float32"


def load_model(settings: ModelSettings, device: str) -> LoadedModel:
    """Load a model and its tokenizer onto `device`, in evaluation mode.

    Any causal language model (vision-language ones with their vision tower); local files only, safetensors only, no remote code.
    Raises `SpecError` (nothing usable at the path), `PrerequisiteError`, `BackendError` (unreadable, weights missing from the
    file, out of memory).
    """
    source = find_model_format(settings)
    dtype = resolve_dtype(settings.dtype, device)
    require("torch", "transformers", *(("gguf",) if source == "gguf" else ()))
    path = Path(settings.path).expanduser()
    with quiet_library(show=False), memory_errors("transformers", _MEMORY_REMEDY), _readable(settings.path):
        model, tokenizer = _load_gguf(path, dtype) if source == "gguf" else _load_folder(path, dtype)
        model = model.to(device).eval()
    files = (path,) if source == "gguf" else _files_of(path)
    return LoadedModel(model=model, tokenizer=tokenizer, device=device, dtype=dtype, source_format=source, files=files)


@contextlib.contextmanager
def _readable(shown: str) -> Iterator[None]:
    """Say in one sentence that a model cannot be read, whatever the library raised."""
    try:
        yield
    except (BackendError, SpecError, MemoryError):
        raise
    except Exception as error:
        if is_memory_error(error):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        msg = f"cannot load {shown}: {reason}. Check that the files are complete and the architecture is known to this version."
        raise BackendError("transformers", msg) from error


def _load_folder(folder: Path, dtype: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

    kind = AutoModelForImageTextToText if sees_images(_read_config(folder)) else AutoModelForCausalLM
    model, info = kind.from_pretrained(
        str(folder),
        dtype=getattr(torch, dtype),
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
    )
    _require_all_weights(info, folder.name)
    return model, AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)


def _load_gguf(path: Path, dtype: str) -> tuple[Any, Any]:
    """Build the model from the file's header and fill it with the dequantized tensors.

    `from_pretrained(gguf_file=...)` does the same, but insists on a further package that it never uses for it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    source: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True, "trust_remote_code": False}
    config = AutoConfig.from_pretrained(str(path.parent), **source)
    float_type = getattr(torch, dtype)
    model = AutoModelForCausalLM.from_config(config, dtype=float_type, trust_remote_code=False)
    tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model, torch_dtype=float_type)["tensors"]
    report = model.load_state_dict(tensors, strict=False)
    model.tie_weights()
    tied = set(model.all_tied_weights_keys)
    _require_all_weights({"missing_keys": set(report.missing_keys) - tied}, path.name)
    return model, AutoTokenizer.from_pretrained(str(path.parent), **source)


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = msgspec.json.decode((folder / "config.json").read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise SpecError.single(_PATH, f"{folder.name}/config.json cannot be read: {error}", "copy it again") from error
    if not isinstance(config, dict):
        raise SpecError.single(_PATH, f"{folder.name}/config.json holds no table", "copy it again")
    return config


def sees_images(config: Mapping[str, Any]) -> bool:
    """Tell from a model's `config.json` whether it is a vision-language model."""
    names = config.get("architectures") or []
    conditional = any(str(name).endswith("ForConditionalGeneration") for name in names) if isinstance(names, list) else False
    return "vision_config" in config and (conditional or not names)


def _require_all_weights(info: Mapping[str, Any], name: str) -> None:
    """Refuse a model of which the library would have made up a part at random."""
    missing = sorted(str(key) for key in info.get("missing_keys", ()))
    mismatched = sorted(str(key) for key in info.get("mismatched_keys", ()))
    if broken := missing + mismatched:
        shown = ", ".join(broken[:3]) + (f" and {len(broken) - 3} more" if len(broken) > 3 else "")
        msg = f"{name} lacks weights that the architecture needs ({shown}); they would be random numbers"
        raise BackendError("transformers", msg)


def _files_of(folder: Path) -> tuple[Path, ...]:
    found = {path for pattern in _READ_FILES for path in folder.glob(pattern) if path.is_file()}
    return tuple(sorted(found))
