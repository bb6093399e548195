"""Which execution providers a detector runs on, and when the CPU may not help out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from fewbits.core.errors import PrerequisiteError, SpecError
from fewbits.runtimes.onnx.runtime import usable_providers

CPU = "CPUExecutionProvider"
DEFAULT_PROVIDERS = ("TensorrtExecutionProvider", "CUDAExecutionProvider", CPU)
NO_GRAPH = ("INVALID_PROTOBUF", "does not have a graph", "Protobuf parsing failed")
"""What ONNX Runtime says of a file that is no ONNX file."""

Notice = Callable[[str], None]


def choose_providers(wanted: tuple[str, ...] | None, disable_cpu_fallback: bool, notice: Notice) -> tuple[str, ...]:
    """Return the providers to use: those wanted (`None`: the usual ones) that this machine has, in that order.

    Raises `SpecError` where the CPU is asked for and banned at once, `PrerequisiteError` where none is there.
    """
    if wanted is not None and disable_cpu_fallback and CPU in wanted:
        hint = f"leave {CPU} out of --providers, or allow the fallback"
        raise SpecError.single("--disable-cpu-fallback", f"--providers names {CPU}, which this flag bans", hint)
    chosen = (
        wanted if wanted is not None else tuple(name for name in DEFAULT_PROVIDERS if name != CPU or not disable_cpu_fallback)
    )
    usable = usable_providers(chosen)
    if missing := [name for name in chosen if name not in usable]:
        notice(f"not on this machine: {', '.join(missing)}; used: {', '.join(usable)}")
    return usable


def require_no_cpu(path: Path, providers: Sequence[str]) -> None:
    """Raise `PrerequisiteError` unless the whole graph runs on `providers`: ONNX Runtime itself adds the CPU where they cannot.

    Raises `SpecError` for what is no ONNX file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        onnxruntime.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        if any(words in reason for words in NO_GRAPH):
            raise no_onnx_file(path) from error
        what = f"{path.name} does not run on {', '.join(providers)} alone: {reason}"
        raise PrerequisiteError(what, "Choose other providers, or leave --disable-cpu-fallback out.") from error


def no_onnx_file(path: Path) -> SpecError:
    """Return the error for a file that is none."""
    return SpecError.single(str(path), "is no ONNX file", "give a file that an ONNX exporter wrote")
