"""What a model on disk is: a Hugging Face folder or a GGUF file. Looks at names only, so it is quick and loads nothing."""

from __future__ import annotations

from pathlib import Path

from fewbits.core.errors import Problem, SpecError
from fewbits.records.sensitivity import ModelSettings
from fewbits.spec.values import nearest

DTYPES = ("auto", "float32", "bfloat16", "float16")
FORMATS = ("auto", "hf", "gguf")

_PATH = "model.path"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_PICKLES = ("*.bin", "*.pt", "*.pth")


def find_model_format(settings: ModelSettings, root: Path = Path()) -> str:
    """Return `hf` or `gguf` for a model on disk; relative paths are below `root`. Raises `SpecError` naming what is missing."""
    path = root / Path(settings.path).expanduser()
    if settings.format not in FORMATS:
        hint = nearest(settings.format, FORMATS) or f"known: {', '.join(FORMATS)}"
        raise SpecError.single("model.format", f"unknown format {settings.format!r}", hint)
    if not path.exists():
        raise SpecError.single(
            _PATH, f"{settings.path} is not there", "set model.path to a Hugging Face folder or a GGUF file on this machine"
        )
    is_gguf = path.is_file() and path.suffix.lower() == ".gguf"
    if settings.format == "gguf" and not is_gguf:
        raise SpecError.single(_PATH, f"{settings.path} is no .gguf file", "name the file itself, or set model.format=hf")
    if is_gguf and settings.format != "hf":
        return "gguf"
    if problems := _folder_problems(path, settings.path):
        raise SpecError(problems)
    return "hf"


def _folder_problems(folder: Path, shown: str) -> list[Problem]:
    if not folder.is_dir():
        return [Problem(_PATH, f"{shown} is neither a folder nor a .gguf file", "give a Hugging Face folder or a GGUF file")]
    problems = []
    if not (folder / "config.json").is_file():
        hint = "a Hugging Face folder holds one"
        if found := sorted(folder.glob("*.gguf")):
            hint = f"for the GGUF file in it, name the file: {found[0].name}"
        problems.append(Problem(_PATH, f"{shown} has no config.json", hint))
    if not any(folder.glob("*.safetensors")):
        pickles = any(any(folder.glob(pattern)) for pattern in _PICKLES)
        hint = "pickled weights can run code and are not read: convert them to safetensors" if pickles else "download the weights"
        problems.append(Problem(_PATH, f"{shown} has no weights (*.safetensors)", hint))
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        problems.append(
            Problem(_PATH, f"{shown} has no tokenizer ({', '.join(_TOKENIZERS)})", "copy the model's tokenizer files into it")
        )
    return problems


def check_dtype(dtype: str) -> list[Problem]:
    """Return the problem of an unknown float type."""
    if dtype in DTYPES:
        return []
    hint = nearest(dtype, DTYPES) or f"known: {', '.join(DTYPES)}"
    return [Problem("model.dtype", f"unknown dtype {dtype!r}", hint)]
