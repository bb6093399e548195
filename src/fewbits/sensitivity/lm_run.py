"""One sensitivity run of a language model: score it, and record all that it took to get these scores."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbits import __version__
from fewbits.core.codec import storable, to_builtins
from fewbits.core.errors import SpecError
from fewbits.core.files import sha256_file
from fewbits.core.git import commit_sha
from fewbits.probes.machine import cpu_name, gpu_names, hardware_fingerprint, total_memory_bytes, usable_cores
from fewbits.probes.memory import peak_rss_bytes, reset_peak_rss
from fewbits.records.provenance import SourceFile
from fewbits.records.sensitivity import RunStatus, SensitivityManifest, SensitivitySpec
from fewbits.spec.sensitivity_layout import scheme_name

if TYPE_CHECKING:
    from fewbits.quantizers.modelopt.autoquant import AutoQuantOutcome

_DISTRIBUTIONS = {
    "hydra": "hydra-core",
    "modelopt": "nvidia-modelopt",
    "numpy": "numpy",
    "torch": "torch",
    "transformers": "transformers",
}
"""Module -> distribution whose version is recorded, under the distribution's name, when the module is loaded."""
_FAILURE_LIMIT = 4000

Progress = Callable[[str], None]


class RunRecorder:
    """Measures time and memory of one run from its creation on, and turns its end into a manifest."""

    def __init__(self, spec: SensitivitySpec, composed_yaml: str) -> None:
        self._spec = spec
        self._composed_yaml = composed_yaml
        self._pid = os.getpid()
        # else a job of a multirun would be charged the peak of the jobs before it in the same process
        reset_peak_rss([self._pid])
        self._began = time.monotonic()

    def measure(self, progress: Progress) -> SensitivityManifest:
        """Score the model and return the manifest of a run that ended well.

        Raises `SpecError` for formats that the device cannot run, before anything is loaded, and whatever the quantizer raises.
        """
        from fewbits.quantizers.modelopt.autoquant import check_device, run_autoquant

        problems = check_device(self._spec)
        if problems:
            raise SpecError(problems)
        outcome = run_autoquant(self._spec, progress)
        seconds, peak = time.monotonic() - self._began, peak_rss_bytes([self._pid])
        progress("digests of the input files")
        return self._finished(outcome, seconds, peak)

    def _finished(self, outcome: AutoQuantOutcome, seconds: float, peak: int | None) -> SensitivityManifest:
        spec = self._spec
        common = self._common(outcome.versions)
        common["timings_seconds"] = {**outcome.timings_seconds, "total": seconds}
        common["peak_memory_bytes"] = {"rss": peak, "cuda": outcome.peak_cuda_bytes}
        return SensitivityManifest(
            status=RunStatus.OK,
            layer_sensitivity=outcome.groups,
            excluded=outcome.excluded,
            adjusted_effective_bits=outcome.adjusted_effective_bits,
            selected_effective_bits=outcome.selected_effective_bits,
            selected_score=outcome.selected_score,
            budget_satisfied=outcome.budget_satisfied,
            scored_samples=outcome.scored_samples,
            calibration_samples=outcome.calibration_samples,
            padding_ratio=outcome.padding_ratio,
            quantization=to_builtins(outcome.quantization),
            inputs=source_files(outcome.inputs, (spec.model.path, spec.dataset.captions_path)),
            warnings=tuple(map(storable, outcome.warnings)),
            **common,
        )

    def failed(self, error: BaseException) -> SensitivityManifest:
        """Return the manifest of a run that ended with `error`: what was asked for, where, and the message; no scores."""
        common = self._common({})
        common["timings_seconds"] = {"total": time.monotonic() - self._began}
        common["peak_memory_bytes"] = {"rss": peak_rss_bytes([self._pid]), "cuda": None}
        return SensitivityManifest(
            status=RunStatus.FAILED,
            failure=failure_words(error),
            layer_sensitivity={},
            excluded=(),
            adjusted_effective_bits=None,
            selected_effective_bits=None,
            selected_score=None,
            budget_satisfied=None,
            scored_samples=0,
            calibration_samples=0,
            padding_ratio=None,
            quantization={},
            inputs=(),
            **common,
        )

    def _common(self, versions: Mapping[str, str]) -> dict[str, Any]:
        spec = self._spec
        return {
            "scheme": scheme_name(spec),
            "spec": spec,
            "requested_effective_bits": spec.autoquant.effective_bits,
            "method": spec.autoquant.method.value,
            "versions": loaded_versions() | dict(versions),
            "git": git_state(),
            "hardware": hardware(),
            "seeds": {"autoquant": spec.autoquant.seed},
            "run_config": {"composed_yaml": storable(self._composed_yaml)},
        }


def failure_words(error: BaseException) -> str:
    """Return why a run failed, in words that can be stored; never empty, at most 4,000 characters."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    # messages of foreign tools may hold anything, halves of surrogate pairs too
    said = str(error).encode("utf-8", "backslashreplace").decode()
    words = f"out of memory: {said or 'an allocation failed'}" if isinstance(error, MemoryError) else said
    return (words or type(error).__name__)[:_FAILURE_LIMIT]


def source_files(paths: Sequence[Path], written: Sequence[str]) -> tuple[SourceFile, ...]:
    """Return the files with their digests, named from the paths that the user wrote; absolute only where those were.

    A file that lies below none of `written` is named without its folder. Raises `OSError` when one has gone.
    """
    return tuple(SourceFile(path=_as_written(path, written), sha256=sha256_file(path)) for path in paths)


def _as_written(path: Path, written: Sequence[str]) -> str:
    full = path.resolve()
    for text in written:
        base = Path(text).expanduser()
        if full == base.resolve():
            return storable(text)
        if full.is_relative_to(base.resolve()):
            return storable(str(Path(text) / full.relative_to(base.resolve())))
    return storable(path.name)


def loaded_versions() -> dict[str, str]:
    """Versions of fewbits, Python and the heavy libraries that are loaded in this process."""
    versions = {"fewbits": __version__, "python": platform.python_version()}
    for module, distribution in _DISTRIBUTIONS.items():
        if module in sys.modules:
            try:
                versions[distribution] = importlib.metadata.version(distribution)
            except importlib.metadata.PackageNotFoundError:
                continue  # loaded from a source tree without metadata: nothing can be said
    return versions


def git_state() -> dict[str, str | bool | None]:
    """Commit of fewbits' own checkout, and whether tracked files differ; both `None` outside one."""
    sha = commit_sha(Path(__file__).resolve().parent)
    if sha is None:
        return {"commit": None, "dirty": None}
    commit, plus, _ = sha.partition("+")
    return {"commit": commit, "dirty": bool(plus)}


def hardware() -> dict[str, Any]:
    """What the run ran on."""
    return {
        "fingerprint": hardware_fingerprint(),
        "cpu": cpu_name(),
        "usable_cores": len(usable_cores()),
        "memory_bytes": total_memory_bytes(),
        "gpus": list(gpu_names()),
    }
