"""Per-layer sensitivity by ModelOpt's AutoQuant: load, calibrate, score, search under the budget.

The loss that is differentiated is the sum over samples of each sample's own mean next-token loss. So a sample's contribution to a
score does not depend on the samples it shares a batch with, and dividing by the number of samples gives a mean per sample.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from fewbits.core.errors import BackendError, FewbitsError, Problem, SpecError
from fewbits.quantizers.modelopt.formats import effective_quantizers, quantizer_config
from fewbits.quantizers.modelopt.outcome import TOOL, Selection, check_state, search_note, select
from fewbits.quantizers.modelopt.padding import PaddingGuard
from fewbits.quantizers.torch.batches import (
    MIN_TOKENS,
    Batches,
    forward_inputs,
    make_batches,
    sample_losses,
    token_counts,
)
from fewbits.quantizers.torch.coverage import Coverage, group_modules, plan_coverage, quantizable_weights, weight_shapes
from fewbits.quantizers.torch.library import is_memory_error, memory_errors, quiet_library, require
from fewbits.quantizers.torch.load import LoadedModel, load_model
from fewbits.records.quant_formats import QuantFormat, find_quant_format, stored_weight_bits
from fewbits.records.sensitivity import FLOAT_BITS, ExcludedModule, GroupSensitivity, SensitivityMethod, SensitivitySpec
from fewbits.spec.captions import PLACE as CAPTIONS_PLACE
from fewbits.spec.captions import read_captions
from fewbits.spec.quant_overlay import Overrides, check_budget, check_overlay, overlaid_format

Progress = Callable[[str], None]

_MEMORY_REMEDY = "Use a smaller autoquant.batch_size or dataset.calib_seq_len, model.dtype=bfloat16, or a smaller model."
_PACKAGES = ("nvidia-modelopt", "torch", "transformers", "tokenizers")


@dataclass(frozen=True, slots=True)
class AutoQuantOutcome:
    """What a run found; the fields are those of `SensitivityManifest`."""

    groups: dict[str, GroupSensitivity]
    """First member's name -> scores, in the model's order."""
    excluded: tuple[ExcludedModule, ...]
    adjusted_effective_bits: float
    """The requested bits over all quantizable weights, excluded ones at 16."""
    selected_effective_bits: float
    """Bits per covered weight of the choice, block scales included."""
    selected_score: float
    """Sum of the chosen candidates' scores, mean per sample."""
    budget_satisfied: bool
    scored_samples: int
    calibration_samples: int
    padding_ratio: float
    quantization: dict[str, Any]
    timings_seconds: dict[str, float]
    peak_cuda_bytes: int | None
    inputs: tuple[Path, ...]
    versions: dict[str, str]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Samples:
    """Batches to score, first, and the further ones that only calibrate."""

    scored: Batches
    calibration_only: Batches | None
    warnings: tuple[str, ...]

    @property
    def items(self) -> list[dict[str, Any]]:
        return self.scored.items + (self.calibration_only.items if self.calibration_only else [])

    @property
    def count(self) -> int:
        return self.scored.samples + (self.calibration_only.samples if self.calibration_only else 0)

    @property
    def padding_ratio(self) -> float:
        real = sum(int(batch["attention_mask"].sum()) for batch in self.items)
        return 1 - real / sum(int(batch["attention_mask"].numel()) for batch in self.items)


def check_device(spec: SensitivitySpec) -> list[Problem]:
    """Return what is wrong with the device: unknown, not there, or not able to simulate the format.

    Touches torch for `cuda` devices only; raises `PrerequisiteError` when it is not installed then.
    """
    device, where = spec.autoquant.device, "autoquant.device"
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (":" in device and not (kind == "cuda" and index.isdigit())):
        return [Problem(where, f"unknown device {device!r}", "cpu, cuda, or cuda:0, cuda:1, ...")]
    if kind == "cuda":
        return _check_cuda(int(index or 0), where)
    fmt = find_quant_format(spec.quant_pair.format_name, "quant_pair.format_name")
    if fmt.needs_cuda:
        message = f"{fmt.name} can only be simulated on an NVIDIA GPU, not on {device!r}"
        return [Problem(where, message, "set autoquant.device=cuda, or choose a pair with int8, int4 or fp8 weights")]
    return []


def _check_cuda(index: int, where: str) -> list[Problem]:
    require("torch")
    import torch

    if not torch.cuda.is_available():
        return [
            Problem(where, "no NVIDIA GPU is visible to PyTorch", "set autoquant.device=cpu, or install a CUDA build of torch")
        ]
    if index >= torch.cuda.device_count():
        return [Problem(where, f"there is no GPU number {index}", f"0 to {torch.cuda.device_count() - 1} are there")]
    return []


def run_autoquant(spec: SensitivitySpec, progress: Progress) -> AutoQuantOutcome:
    """Load the model, calibrate, score every covered group and let AutoQuant choose under the budget.

    `progress` gets a line per stage. Raises `SpecError` (before anything is loaded, where that can be told; else a pattern that
    matches nothing, layers that the text never reaches), `PrerequisiteError`, `BackendError` (the library failed, broke its
    contract, or ran out of memory).
    """
    check_request(spec)
    started = time.monotonic()
    captions = Path(spec.dataset.captions_path).expanduser()
    texts = read_captions(captions, sample_limit(spec))
    require("torch", "transformers", "modelopt")
    with _threads(spec.autoquant.threads):
        progress(f"loading {spec.model.name} on {spec.autoquant.device}")
        loaded = load_model(spec.model, spec.autoquant.device)
        load_seconds = time.monotonic() - started
        return score_loaded(loaded, spec, texts, progress, load_seconds=load_seconds)


def check_request(spec: SensitivitySpec) -> QuantFormat:
    """Check format, overlay, budget and device before anything heavy; return the format. Raises `SpecError`."""
    fmt = find_quant_format(spec.quant_pair.format_name, "quant_pair.format_name")
    overrides = spec.quant_granularity.quant_cfg_overrides
    problems = check_overlay(fmt, overrides, "quant_granularity.quant_cfg_overrides")
    if not problems:
        problems += check_budget(fmt, overrides, spec.autoquant.effective_bits, "autoquant.effective_bits")
    problems += check_device(spec)
    if problems:
        raise SpecError(problems)
    return fmt


def sample_limit(spec: SensitivitySpec) -> int:
    """Return how many captions may be read. Raises `SpecError` for a size without a cap."""
    dataset = spec.dataset
    if dataset.max_calib_samples is not None:
        return dataset.max_calib_samples
    if dataset.size not in dataset.size_to_max_samples:
        known = ", ".join(sorted(dataset.size_to_max_samples))
        raise SpecError.single("dataset.size", f"unknown size {dataset.size!r}", f"known: {known}, or set max_calib_samples")
    return dataset.size_to_max_samples[dataset.size]


@dataclass(frozen=True, slots=True)
class _Run:
    """All that one search works on."""

    loaded: LoadedModel
    spec: SensitivitySpec
    fmt: QuantFormat
    """The format as the overlay leaves it."""
    config: dict[str, Any]
    weights: dict[str, int]
    coverage: Coverage
    samples: _Samples


def score_loaded(
    loaded: LoadedModel, spec: SensitivitySpec, texts: Sequence[str], progress: Progress, *, load_seconds: float = 0.0
) -> AutoQuantOutcome:
    """Score a model that is loaded already. Its quantizable layers are replaced in place by fake-quantized ones.

    Raises as `run_autoquant`. `load_seconds` goes into the timings.
    """
    fmt = check_request(spec)
    require("modelopt")
    overrides = spec.quant_granularity.quant_cfg_overrides
    started = time.monotonic()
    weights = quantizable_weights(loaded.model)
    run = _Run(
        loaded=loaded,
        spec=spec,
        fmt=overlaid_format(fmt, overrides),
        config=_configure(fmt, overrides),
        weights=weights,
        coverage=plan_coverage(weights, spec.quant_pair, spec.autoquant),
        samples=_make_samples(loaded, spec, texts),
    )
    scale_bits = _uncounted_scale_bits(run)
    _seed(spec.autoquant.seed)
    _require_reached(run)
    progress(
        f"calibrating {fmt.name} on {run.samples.count} samples, scoring {len(group_modules(run.coverage.covered))} groups "
        f"by {spec.autoquant.method.value} on {run.samples.scored.samples}"
    )
    scores = check_state(_search(run), run.coverage)
    selection = select(scores, weights, run.fmt, spec.autoquant, scored_samples=run.samples.scored.samples)
    seconds = time.monotonic() - started
    timings = {"load": load_seconds, "calibrate_and_score": seconds, "total": load_seconds + seconds}
    return _outcome(run, selection, timings, scale_bits)


def _configure(fmt: QuantFormat, overrides: Overrides) -> dict[str, Any]:
    with quiet_library(show=False):  # the first import of ModelOpt talks
        return quantizer_config(fmt, overrides)


def _make_samples(loaded: LoadedModel, spec: SensitivitySpec, texts: Sequence[str]) -> _Samples:
    """Score the first `score_size` usable samples and calibrate on all; each part sorted by length, which saves padding."""
    limit = spec.dataset.calib_seq_len
    counts = token_counts(loaded.tokenizer, texts, limit)
    usable = [index for index, count in enumerate(counts) if count >= MIN_TOKENS]
    if not usable:
        raise SpecError.single(CAPTIONS_PLACE, "no caption has two tokens or more", "use longer text")

    def batches(indexes: list[int]) -> Batches:
        ordered = sorted(indexes, key=lambda index: (counts[index], index))
        lines = [texts[index] for index in ordered]
        size = spec.autoquant.batch_size
        return make_batches(loaded.tokenizer, lines, batch_size=size, max_tokens=limit, device=loaded.device)

    scored, rest = usable[: spec.autoquant.score_size], usable[spec.autoquant.score_size :]
    skipped = len(texts) - len(usable)
    notes = [f"{skipped} captions of fewer than two tokens were left out"] if skipped else []
    if len(texts) < (wanted := sample_limit(spec)):
        notes.append(f"the captions file holds {len(texts)} captions, fewer than the {wanted} asked for")
    return _Samples(scored=batches(scored), calibration_only=batches(rest) if rest else None, warnings=tuple(notes))


def _uncounted_scale_bits(run: _Run) -> float:
    """Return the scale bits per covered weight that the costs leave out: those of rows and tensors, and of shortened blocks."""
    stored = 0.0
    for name in run.coverage.covered:
        for rows, length in weight_shapes(run.loaded.model.get_submodule(name)):
            stored += rows * length * stored_weight_bits(run.fmt, length, rows)
    covered = sum(run.weights[name] for name in run.coverage.covered)
    return stored / covered - run.fmt.weight_bits


def _require_reached(run: _Run) -> None:
    """Refuse covered groups that the text never runs through: nothing can be measured there, and a 0 would be a lie."""
    import torch

    reached: set[str] = set()
    model = run.loaded.model
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda _module, _inputs, name=name: reached.add(name))
        for name in run.coverage.covered
    ]
    with memory_errors(TOOL, _MEMORY_REMEDY), torch.no_grad():
        model(**forward_inputs(run.samples.items[0]))
    for hook in hooks:
        hook.remove()
    groups = group_modules(run.coverage.covered)
    idle = [group for group, members in groups.items() if not reached.intersection(members)]
    if idle:
        message = f"{len(idle)} of {len(groups)} groups never run on text, so they cannot be scored: {', '.join(idle[:3])}"
        hint = "use coverage_mode=lm_only, or name them in autoquant.disabled_layers"
        raise SpecError.single("quant_pair.coverage_mode", message, hint)


def _search(run: _Run) -> dict[str, Any]:
    """Run AutoQuant and return its state."""
    settings = run.spec.autoquant
    layers = [run.loaded.model.get_submodule(name) for name in run.coverage.covered]
    excluded = [module.name for module in run.coverage.excluded]
    constraints: dict[str, Any] = {"effective_bits": settings.effective_bits}
    if excluded:
        # without this, excluded weights count at 16 bits and a budget over the covered ones cannot be met
        constraints["cost"] = {"excluded_module_name_patterns": excluded}
    with quiet_library(show=settings.verbose), memory_errors(TOOL, _MEMORY_REMEDY), _contract(), PaddingGuard(layers) as guard:
        import modelopt.torch.quantization as mtq

        forward, loss = _steps(guard, settings.method)
        _, state = mtq.auto_quantize(
            run.loaded.model,
            constraints=constraints,
            quantization_formats=[run.config],
            data_loader=run.samples.items,
            forward_step=forward,
            loss_func=loss,
            disabled_layers=excluded or None,
            num_calib_steps=len(run.samples.items),
            num_score_steps=len(run.samples.scored.items),
            verbose=False,  # its solver is a child process that would write to our stdout; the progress bars stay
            method=settings.method.value,
        )
    return dict(state)


def _steps(guard: PaddingGuard, method: SensitivityMethod) -> tuple[Callable[..., Any], Callable[..., Any] | None]:
    """Return the forward step and the loss that a method wants."""

    def forward(model: Any, batch: dict[str, Any]) -> Any:
        guard.set_batch(batch)
        logits = model(**forward_inputs(batch)).logits
        # kl_div sums over all that it is given: padded positions must not be among it
        return logits if method is SensitivityMethod.GRADIENT else logits[batch["attention_mask"].bool()]

    def loss(logits: Any, batch: dict[str, Any]) -> Any:
        return sample_losses(logits, batch["labels"]).sum()

    return forward, loss if method is SensitivityMethod.GRADIENT else None


@contextlib.contextmanager
def _contract() -> Iterator[None]:
    """Say in one sentence what the library raised; what it says about memory is for `memory_errors`."""
    try:
        yield
    except (FewbitsError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and is_memory_error(error):
            raise
        reason = (str(error).strip().splitlines() or [""])[0]
        raise BackendError(TOOL, f"AutoQuant failed: {type(error).__name__}: {reason}") from error


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Compute with `count` threads (`None`: the library's own choice), and as before afterwards."""
    import torch

    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _seed(seed: int) -> None:
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _outcome(run: _Run, selection: Selection, timings: dict[str, float], scale_bits: float) -> AutoQuantOutcome:
    spec, samples = run.spec, run.samples
    excluded = sum(module.weights for module in run.coverage.excluded)
    covered = sum(run.weights[name] for name in run.coverage.covered)
    quantization = {
        "base_format_name": spec.quant_pair.format_name,
        "quant_granularity": {
            "name": spec.quant_granularity.name,
            "quant_cfg_overrides": {key: _text_keys(value) for key, value in spec.quant_granularity.quant_cfg_overrides.items()},
        },
        "effective_quantizers": effective_quantizers(run.config),
        "weight_bits": run.fmt.weight_bits,
        "uncounted_scale_bits": scale_bits,
        "search_constraint": {"effective_bits": spec.autoquant.effective_bits, "over": "covered weights"},
    }
    return AutoQuantOutcome(
        groups=selection.groups,
        excluded=run.coverage.excluded,
        adjusted_effective_bits=(spec.autoquant.effective_bits * covered + FLOAT_BITS * excluded) / (covered + excluded),
        selected_effective_bits=selection.effective_bits,
        selected_score=selection.score,
        budget_satisfied=selection.satisfied,
        scored_samples=samples.scored.samples,
        calibration_samples=samples.count,
        padding_ratio=samples.padding_ratio,
        quantization=quantization,
        timings_seconds=timings,
        peak_cuda_bytes=_peak_cuda(run.loaded.device),
        inputs=(*run.loaded.files, Path(spec.dataset.captions_path).expanduser()),
        versions=_versions(run.loaded.source_format),
        warnings=(*samples.warnings, *_notes(run), *search_note(selection, spec.autoquant.method)),
    )


def _notes(run: _Run) -> list[str]:
    notes = []
    if run.loaded.source_format == "gguf":
        notes.append(
            "the weights were dequantized from a GGUF file: scores are relative to that file, not to the model it came from"
        )
    if run.fmt.experimental:
        notes.append(f"{run.fmt.name} is experimental: no known engine runs this pair")
    return notes


def _text_keys(value: Any) -> Any:
    """Return a table with text keys all the way down, as JSON wants."""
    return {str(key): _text_keys(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _peak_cuda(device: str) -> int | None:
    if not device.startswith("cuda"):
        return None
    import torch

    return int(torch.cuda.max_memory_allocated(device))


def _versions(source_format: str) -> dict[str, str]:
    packages = (*_PACKAGES, "gguf") if source_format == "gguf" else _PACKAGES
    return {name: metadata.version(name) for name in packages}
