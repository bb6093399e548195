"""What a measured agreement needs to know, checked before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

import msgspec

from fewbits.core.errors import Problem, SpecError
from fewbits.records.divergence import NO_TEXT, EvaluationText
from fewbits.records.quant_formats import QuantFormat, find_quant_format
from fewbits.records.sensitivity import ModelSettings, SensitivityManifest, SensitivityMethod
from fewbits.sensitivity.held_out import shares_text
from fewbits.spec.captions import read_captions
from fewbits.spec.model_source import check_dtype, find_model_format
from fewbits.spec.quant_overlay import Overrides, check_overlay
from fewbits.store.sensitivity_runs import LoadedManifest, find_manifest, read_finished_manifest
from fewbits.workloads.text.evaluation import HELD_OUT_TEXT, open_evaluation_text

DEFAULT_SAMPLES = 32
DEFAULT_SAMPLE_TOKENS = 128
MIN_SAMPLES = 4
"""Halving the samples for the noise ceiling takes two in each half."""
MIN_SAMPLE_TOKENS = 8
T = TypeVar("T")


class ScoreSource(StrEnum):
    """Where the scores come from."""

    MODELOPT = "modelopt"
    """From a run's manifest."""
    REFERENCE = "reference"
    """Computed here by the plain PyTorch scorer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgreementRequest:
    """What to compare. What is `None` comes from the manifest; without a manifest it must be given."""

    out: Path
    """The JSON file to write."""
    manifest: Path | None = None
    """A run's manifest or its folder: scores, groups, format, granularity, model and calibration text."""
    score_source: ScoreSource = ScoreSource.MODELOPT
    model: str | None = None
    """Hugging Face folder or GGUF file."""
    format_name: str | None = None
    """Name in the table of quantization formats."""
    method: SensitivityMethod | None = None
    """For the reference scorer; `None`: the manifest's, or `gradient`."""
    captions: Path | None = None
    """Calibration text, one caption per line: what the reference scores on, and what fixes static scales of activations."""
    max_captions: int | None = None
    """Captions that are used; `None`: as many as the manifest's run used, or all."""
    text: str = HELD_OUT_TEXT
    """Held-out text: a name or file of `open_evaluation_text`."""
    samples: int = DEFAULT_SAMPLES
    """Held-out samples, the units of the noise ceiling."""
    sample_tokens: int = DEFAULT_SAMPLE_TOKENS
    top_k: int | None = None
    """`None`: a fifth of the groups."""
    device: str = "cpu"
    dtype: str | None = None
    """`None`: the manifest's, or `auto`."""
    threads: int | None = None
    """PyTorch's threads; `None` leaves its own choice."""


@dataclass(frozen=True, slots=True)
class AgreementPlan:
    """A checked request: what is left to go wrong takes the model to find out."""

    request: AgreementRequest
    model: ModelSettings
    fmt: QuantFormat
    overrides: Overrides
    method: SensitivityMethod
    text: EvaluationText
    held_out: str
    captions: tuple[str, ...]
    """Empty where nothing needs them."""
    calibration_tokens: int
    batch_size: int
    run: LoadedManifest | None

    @property
    def manifest(self) -> SensitivityManifest | None:
        """The run whose ranking is judged; `None` where the reference scores by itself."""
        return self.run.manifest if self.run else None

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """The run's groups; empty without a run."""
        return {name: group.members for name, group in self.manifest.layer_sensitivity.items()} if self.manifest else {}


@dataclass(slots=True)
class _Checks:
    """Problems found so far."""

    problems: list[Problem] = field(default_factory=list)

    def require(self, place: str, message: str, hint: str, *, unless: bool) -> None:
        if not unless:
            self.problems.append(Problem(place, message, hint))

    def value_of(self, make: Callable[[], T]) -> T | None:
        """Return what `make` returns, or keep its problems and return `None`."""
        try:
            return make()
        except SpecError as error:
            self.problems += error.problems
            return None


def check_request(request: AgreementRequest) -> AgreementPlan:
    """Check everything that needs no model.

    Raises `SpecError` with every problem, the held-out text being the calibration text among them; `StoreError` for a manifest
    that cannot be used.
    """
    checks = _Checks()
    run = _read_run(request.manifest) if request.manifest else None
    manifest = run.manifest if run else None
    model = _model(request, manifest)
    _check_numbers(request, checks)
    _check_against_run(request, manifest, checks)
    if model.path:
        checks.value_of(lambda: find_model_format(model))
    checks.problems += check_dtype(model.dtype)
    name = request.format_name or (manifest.spec.quant_pair.format_name if manifest else "")
    fmt = checks.value_of(lambda: find_quant_format(name, "--format")) if name else None
    overrides = manifest.spec.quant_granularity.quant_cfg_overrides if manifest else {}
    if fmt is not None:
        checks.problems += check_overlay(fmt, overrides, "quant_granularity")
    text = checks.value_of(lambda: open_evaluation_text(request.text))
    captions = checks.value_of(lambda: _captions(request, fmt, manifest)) or ()
    if text is not None:
        _check_held_out(text, captions, manifest, checks)
    if checks.problems or fmt is None or text is None:
        raise SpecError(checks.problems)
    return AgreementPlan(
        request=request,
        model=model,
        fmt=fmt,
        overrides=overrides,
        method=request.method or (manifest.spec.autoquant.method if manifest else SensitivityMethod.GRADIENT),
        text=text[0],
        held_out=text[1],
        captions=captions,
        calibration_tokens=manifest.spec.dataset.calib_seq_len if manifest else 512,
        batch_size=manifest.spec.autoquant.batch_size if manifest else 8,
        run=run,
    )


def _read_run(path: Path) -> LoadedManifest:
    return read_finished_manifest(find_manifest(path) if path.is_dir() else path)


def _model(request: AgreementRequest, manifest: SensitivityManifest | None) -> ModelSettings:
    path = request.model or (manifest.spec.model.path if manifest else "")
    # an empty path is reported as missing; the record itself refuses it
    base = manifest.spec.model if manifest else ModelSettings(name=Path(path).stem or "model", path=path)
    kind = "auto" if request.model else base.format
    return msgspec.structs.replace(base, path=path, format=kind, dtype=request.dtype or base.dtype)


def _check_numbers(request: AgreementRequest, checks: _Checks) -> None:
    checks.require("--samples", f"is {request.samples}", f"at least {MIN_SAMPLES}", unless=request.samples >= MIN_SAMPLES)
    enough = request.sample_tokens >= MIN_SAMPLE_TOKENS
    checks.require("--sample-tokens", f"is {request.sample_tokens}", f"at least {MIN_SAMPLE_TOKENS}", unless=enough)
    checks.require("--top-k", f"is {request.top_k}", "at least 1", unless=request.top_k is None or request.top_k >= 1)
    few = request.max_captions is None or request.max_captions >= 1
    checks.require("--max-captions", f"is {request.max_captions}", "at least 1", unless=few)
    checks.require("--threads", f"is {request.threads}", "at least 1", unless=request.threads is None or request.threads >= 1)
    folder = request.out.is_dir() or not request.out.name
    checks.require("--out", f"{request.out} is a folder", "name the file that the result is written to", unless=not folder)
    checks.require("--text", "there is nothing to measure on", "name a text", unless=request.text != NO_TEXT)


def _check_against_run(request: AgreementRequest, manifest: SensitivityManifest | None, checks: _Checks) -> None:
    """What a run says may not be contradicted while its scores are taken; what it would say must be given without one."""
    if manifest is None:
        hint = "give it, or a manifest that names it"
        checks.require("--model", "is missing", hint, unless=bool(request.model))
        checks.require("--format", "is missing", hint, unless=bool(request.format_name))
        reference = request.score_source is ScoreSource.REFERENCE
        checks.require(
            "--manifest", "is missing, so there are no scores", "give a run's manifest, or --reference", unless=reference
        )
        return
    if request.score_source is ScoreSource.REFERENCE:
        return
    scored = manifest.spec.quant_pair.format_name
    same = request.format_name in (None, scored)
    checks.require("--format", f"the manifest's scores are for {scored}", "leave it out, or score with --reference", unless=same)
    same = request.method in (None, manifest.spec.autoquant.method)
    message = f"the manifest's scores were made by {manifest.spec.autoquant.method.value}"
    checks.require("--method", message, "leave it out, or score with --reference", unless=same)


def _captions(request: AgreementRequest, fmt: QuantFormat | None, manifest: SensitivityManifest | None) -> tuple[str, ...]:
    """Read the calibration text; empty where it is neither needed nor there. Raises `SpecError` when it cannot be read."""
    path = request.captions or (Path(manifest.spec.dataset.captions_path) if manifest else None)
    scored_here = request.score_source is ScoreSource.REFERENCE
    needed = scored_here or (fmt is not None and fmt.activation != "fp16")
    if path is None and needed:
        what = "the reference scores on them" if scored_here else "they fix the scales of activations"
        raise SpecError.single("--captions", "is missing", f"{what}: give a text file, one caption per line")
    if path is None or not (needed or request.captions or path.is_file()):
        return ()
    limit = request.max_captions or (manifest.calibration_samples if manifest else None)
    return read_captions(path.expanduser(), limit)


def _check_held_out(
    text: tuple[EvaluationText, str], captions: tuple[str, ...], manifest: SensitivityManifest | None, checks: _Checks
) -> None:
    """A ranking that is judged on the text it was made from looks better than it is."""
    read: Mapping[str, str] = {source.sha256: source.path for source in manifest.inputs} if manifest else {}
    hint = "use a text that was not used for calibration or scoring"
    if text[0].digest in read:
        checks.problems.append(Problem("--text", f"is the calibration text itself ({read[text[0].digest]})", hint))
    elif shares_text("\n".join(captions), text[1]):
        checks.problems.append(Problem("--text", "shares most of its lines with the calibration text", hint))
