"""How far a sensitivity ranking can be trusted: its scores against measured ablation on text that was not used for scoring."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbits.analysis.agreement import noise_ceiling, rank_agreement
from fewbits.api.agreement_request import AgreementPlan, AgreementRequest, ScoreSource, check_request
from fewbits.core.codec import encode_pretty, storable
from fewbits.core.errors import SpecError
from fewbits.core.files import atomic_write, ensure_writable_directory, sha256_file
from fewbits.records.sensitivity import AutoQuantSettings, PairSettings, SensitivityAgreement

if TYPE_CHECKING:
    from fewbits.quantizers.torch.load import LoadedModel
    from fewbits.sensitivity.ablation import Ablation

_WEIGHT_FILES = (".safetensors", ".gguf")
_MEMORY_REMEDY = "Use fewer tokens per sample, a smaller float type, or a machine with more memory."
Groups = Mapping[str, tuple[str, ...]]
Progress = Callable[[str], None]


def measure_agreement(request: AgreementRequest, progress: Progress) -> SensitivityAgreement:
    """Take or make the scores, quantize each group alone on held-out text, compare the two rankings, write `request.out`.

    `progress` gets one line at a time. The file is written whole or not at all. Raises `SpecError` with every problem that shows
    before the model is loaded, the held-out text being the calibration text among them, and where the model is not the run's;
    `StoreError` for a manifest that cannot be used; `PrerequisiteError` and `BackendError` from the model.
    """
    began = time.monotonic()
    plan = check_request(request)
    ensure_writable_directory(request.out.parent)
    from fewbits.quantizers.torch.library import memory_errors
    from fewbits.quantizers.torch.load import load_model

    progress(f"loading {storable(plan.model.path)}")
    loaded = load_model(plan.model, request.device)
    with memory_errors("torch", _MEMORY_REMEDY):
        groups = _groups(plan, loaded)
        scores, ablation = _measure(plan, loaded, groups, progress)
    agreement = _compared(plan, scores, ablation, seconds=time.monotonic() - began)
    atomic_write(request.out, encode_pretty(agreement))
    return agreement


def _groups(plan: AgreementPlan, loaded: LoadedModel) -> Groups:
    """The run's groups, after a look whether this is the run's model; without a run, the language model's without its head."""
    from fewbits.quantizers.torch.coverage import group_modules, plan_coverage, quantizable_weights

    weights = quantizable_weights(loaded.model)
    if plan.manifest is None:
        fmt = plan.fmt
        pair = PairSettings(name=fmt.name, weight=fmt.weight, activation=fmt.activation, format_name=fmt.name)
        return group_modules(plan_coverage(weights, pair, AutoQuantSettings()).covered)
    absent = sorted({member for members in plan.groups.values() for member in members} - weights.keys())
    if absent:
        message = f"the manifest's layers are not in this model: {', '.join(absent[:3])}"
        raise SpecError.single("--model", message, "give the model that the run scored")
    recorded = {source.sha256 for source in plan.manifest.inputs}
    other = [path.name for path in loaded.files if path.suffix in _WEIGHT_FILES and sha256_file(path) not in recorded]
    if other:
        message = f"{', '.join(other[:3])} is not what the run scored: the digest differs"
        raise SpecError.single("--model", message, "give the model that the run scored")
    return plan.groups


def _measure(
    plan: AgreementPlan, loaded: LoadedModel, groups: Groups, progress: Progress
) -> tuple[Mapping[str, float], Ablation]:
    import torch

    from fewbits.quantizers.reference.fake_quant import quantization_of
    from fewbits.quantizers.reference.layers import Rounding
    from fewbits.quantizers.reference.scorer import score_groups
    from fewbits.sensitivity.ablation import ablate
    from fewbits.sensitivity.held_out import SampleShape, cut_samples

    request = plan.request
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    shape = SampleShape(request.samples, request.sample_tokens)
    held_out = cut_samples(loaded.model, loaded.tokenizer, plan.held_out, shape)
    calibration = _calibration(plan, loaded)
    how = quantization_of(plan.fmt, plan.overrides, "quant_granularity")
    members = [member for names in groups.values() for member in names]
    rounding = Rounding.calibrated(how, loaded.model, calibration, members)
    if request.score_source is ScoreSource.REFERENCE:
        scoring = _prefixed(progress, "scoring")
        scores: Mapping[str, float] = score_groups(
            loaded.model, calibration, groups, rounding, method=plan.method, progress=scoring
        )
    else:
        scores = _run_scores(plan)
    return scores, ablate(loaded.model, held_out, groups, rounding, _prefixed(progress, "ablation"))


def _calibration(plan: AgreementPlan, loaded: LoadedModel) -> list[dict[str, Any]]:
    from fewbits.quantizers.torch.batches import make_batches

    if not plan.captions:
        return []
    batches = make_batches(
        loaded.tokenizer,
        plan.captions,
        batch_size=plan.batch_size,
        max_tokens=plan.calibration_tokens,
        device=loaded.device,
    )
    return batches.items


def _prefixed(progress: Progress, phase: str) -> Progress:
    return lambda words: progress(f"{phase}: {words}")


def _run_scores(plan: AgreementPlan) -> dict[str, float]:
    return {name: group.importance for name, group in plan.manifest.layer_sensitivity.items()} if plan.manifest else {}


def _compared(plan: AgreementPlan, scores: Mapping[str, float], ablation: Ablation, *, seconds: float) -> SensitivityAgreement:
    request, source = plan.request, plan.request.score_source.value
    left = f"{source} {plan.method.value}"
    kl, loss = ablation.mean_kl_nats(), ablation.mean_loss_change_nats()
    top_k = None if request.top_k is None else min(request.top_k, len(scores))
    kl_ceiling, kl_reason = noise_ceiling({group.group: group.kl_nats for group in ablation.groups})
    loss_ceiling, loss_reason = noise_ceiling({group.group: group.loss_change_nats for group in ablation.groups})
    reasons = {"noise_ceiling": kl_reason, "loss_noise_ceiling": loss_reason}
    return SensitivityAgreement(
        scheme=plan.manifest.scheme if plan.manifest else f"{plan.fmt.name.lower()}_reference",
        method=plan.method.value,
        score_source=source,
        format=plan.fmt.name,
        manifest=_shown(plan.run.path) if plan.run else None,
        text_name=plan.text.name,
        text_digest=plan.text.digest,
        samples=request.samples,
        sample_tokens=request.sample_tokens,
        float_loss_nats=ablation.float_loss_nats,
        ablations=ablation.groups,
        scores=dict(scores),
        against_kl=rank_agreement(scores, kl, names=(left, "measured KL"), top_k=top_k),
        against_loss=rank_agreement(scores, loss, names=(left, "measured loss change"), top_k=top_k),
        noise_ceiling=kl_ceiling,
        loss_noise_ceiling=loss_ceiling,
        unavailable={name: reason for name, reason in reasons.items() if reason},
        wall_seconds=round(seconds, 3),
    )


def _shown(path: Path) -> str:
    """A manifest by its name and folder's name: where it lies on this machine is nobody else's business."""
    return storable("/".join(path.parts[-2:]) if path.is_absolute() else str(path))
