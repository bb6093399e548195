"""Costs for a recipe from the scores of sensitivity runs, instead of probes.

Assumption, and its only one: a score is quadratic in the error of the weights. ModelOpt's `gradient` score is, by construction,
in the error of a layer's output (a second-order expansion of the loss), and that error is linear in the weights'; a KL is so
near its minimum. So, with E the sum of squared weight errors,

    score(tensor at type) = score(group at format) x E(tensor at type) / sum over the group's tensors of E(tensor at format)

which also splits the score of modules that were scored together (q, k and v of a layer) by their share of the error. Of several
scored formats the one whose E is nearest to the type's is taken. What the assumption misses: formats that quantize activations
too (their part of the score does not shrink with the weights' error: a warning says so), and everything beyond second order.

The costs have the unit of the method's scores, not nats: they order choices, and predict no divergence. Sources: LeCun, Denker
and Solla (1990), Optimal Brain Damage, NIPS 2; Dong et al. (2020), HAWQ-V2, NeurIPS 33 (sensitivity x squared weight error).
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fewbits.core.errors import Problem, SpecError
from fewbits.quantizers.torch.coverage import VISION_PATTERNS
from fewbits.records.quant_formats import QUANT_FORMATS, QuantFormat, ScaleShare, own_weight_bits
from fewbits.records.sensitivity import GroupSensitivity, RunStatus, SensitivityManifest

Rows = npt.NDArray[np.float32]

_MODULE = re.compile(r"(?:^|\.)layers\.(\d+)\.(?:self_attn|attention|mlp)\.(?:(experts)\.(?:\d+\.)?)?(\w+)$")
_TENSORS = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "qkv_proj": "attn_qkv",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "gate_up_proj": "ffn_up",
    "down_proj": "ffn_down",
}
"""Last name of a Hugging Face module -> GGUF kind, for LLaMA, Mistral, Qwen2, Qwen3 (also inside Qwen3-VL), SmolLM, Phi-3.
Source: gguf-py, `gguf/tensor_mapping.py`."""
_HEAD, _EMBEDDING = "output.weight", "token_embd.weight"
_FLOAT_CANDIDATE = "NONE"
_E4M3_MAX = 448.0
_E4M3_MANTISSA_BITS, _E4M3_LEAST_EXPONENT = 3, -6


class WeightErrors(Protocol):
    """How far weights are off, as sums of squared errors over a whole tensor (not relative to anything)."""

    def of_type(self, tensor: str, ggml_type: str) -> float:
        """Return the error of a GGUF tensor at a ggml type."""
        ...

    def of_format(self, tensor: str, fmt: QuantFormat) -> float:
        """Return the error of a GGUF tensor in the format that was scored."""
        ...


class SampledErrors:
    """Errors from some rows of each tensor, scaled up to all its weights.

    `rows_of` returns `float32[rows, width]` of a tensor (all, or an even sample; the same at every call), `round_trip` rows as
    a ggml type stores them, `weights` the number of weights of each tensor.
    """

    def __init__(
        self, rows_of: Callable[[str], Rows], round_trip: Callable[[Rows, str], Rows], weights: Mapping[str, int]
    ) -> None:
        self._rows_of, self._round_trip, self._weights = rows_of, round_trip, weights
        self._known: dict[tuple[str, str], float] = {}

    def of_type(self, tensor: str, ggml_type: str) -> float:
        """Return the error of a GGUF tensor at a ggml type."""
        return self._error(tensor, ggml_type, lambda rows: self._round_trip(rows, ggml_type))

    def of_format(self, tensor: str, fmt: QuantFormat) -> float:
        """Return the error of a GGUF tensor in a scored format. Raises `SpecError` for FP4, which is not computed here."""
        return self._error(tensor, fmt.name, lambda rows: format_round_trip(rows, fmt))

    def _error(self, tensor: str, name: str, stored: Callable[[Rows], Rows]) -> float:
        if (tensor, name) not in self._known:
            rows = self._rows_of(tensor)
            error = np.square(stored(rows) - rows, dtype=np.float64).mean()
            self._known[tensor, name] = float(error) * self._weights[tensor]
        return self._known[tensor, name]


def format_round_trip(rows: Rows, fmt: QuantFormat) -> Rows:
    """Return `float32[rows, width]` as a format's weights hold them.

    Symmetric, scaled by the largest magnitude that shares a scale: int8 and int4 (a scale per row, per tensor or per block; a
    row's last block may be shorter) and FP8 E4M3. Raises `SpecError` for FP4.
    """
    if fmt.weight == "fp8":
        return _scaled(rows, float(np.abs(rows).max(initial=0.0)) / _E4M3_MAX, _to_e4m3)
    if not fmt.weight.startswith("int"):
        message = f"{fmt.name}: the weight error of {fmt.weight} is not computed here"
        raise SpecError.single("scores", message, "give scores of an int8, int4 or FP8 format")
    top = 2.0 ** (own_weight_bits(fmt) - 1) - 1
    if fmt.scale_share is ScaleShare.TENSOR:
        return _scaled(rows, float(np.abs(rows).max(initial=0.0)) / top, lambda values: np.clip(np.rint(values), -top - 1, top))
    block = fmt.block or rows.shape[1]
    padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % block))).reshape(len(rows), -1, block)
    scale = np.abs(padded).max(axis=2, keepdims=True) / np.float32(top)
    stored = _scaled(padded, scale, lambda values: np.clip(np.rint(values), -top - 1, top))
    return np.ascontiguousarray(stored.reshape(len(rows), -1)[:, : rows.shape[1]])


def _scaled(rows: Rows, scale: float | Rows, to_grid: Callable[[Rows], Rows]) -> Rows:
    safe = np.where(np.asarray(scale) > 0, scale, 1.0).astype(np.float32)
    stored: Rows = (to_grid(rows / safe) * safe).astype(np.float32)
    return stored


def _to_e4m3(values: Rows) -> Rows:
    """Round to E4M3: 3 bits of mantissa, exponents from -6, up to 448. Source: OCP 8-bit Floating Point Specification (2023)."""
    _, exponent = np.frexp(values)
    step = np.exp2(np.maximum(exponent - 1, _E4M3_LEAST_EXPONENT) - _E4M3_MANTISSA_BITS).astype(np.float32)
    rounded: Rows = np.clip(np.rint(values / step) * step, -_E4M3_MAX, _E4M3_MAX)
    return rounded


def gguf_tensor(module: str, *, tied: bool) -> str | None:
    """Return the GGUF tensor of a Hugging Face module; `None` for what has none (vision towers, unknown names).

    `model.layers.3.self_attn.q_proj` -> `blk.3.attn_q.weight`; an `lm_head` is `output.weight`, or the embedding when `tied`.
    Experts share one tensor: `model.layers.3.mlp.experts.7.up_proj` -> `blk.3.ffn_up_exps.weight`.
    """
    if any(fnmatchcase(module, pattern) for pattern in VISION_PATTERNS):
        return None
    if module.rpartition(".")[2] == "lm_head":
        return _EMBEDDING if tied else _HEAD
    found = _MODULE.search(module)
    if found is None or found[3] not in _TENSORS:
        return None
    return f"blk.{int(found[1])}.{_TENSORS[found[3]]}{'_exps' if found[2] else ''}.weight"


@dataclass(frozen=True, slots=True)
class ImportedScores:
    """Costs in the unit of the scores."""

    costs: dict[str, dict[str, float]]
    """Group -> ggml type -> cost, 0 or more, for groups whose tensors were all scored."""
    uncovered: dict[str, str]
    """Group -> why it has no costs. Such a group must be probed or pinned; it never costs nothing."""
    method: str
    formats: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Score:
    """The score of one format for the tensors that were scored together."""

    fmt: QuantFormat
    score: float
    tensors: tuple[str, ...]


def import_scores(
    manifests: Sequence[SensitivityManifest],
    groups: Mapping[str, Sequence[str]],
    types: Mapping[str, Sequence[str]],
    errors: WeightErrors,
) -> ImportedScores:
    """Turn scores of one or more runs (other pairs of the same model and method) into costs.

    `groups`: group -> its GGUF tensors; `types`: group -> candidate ggml types. Raises `SpecError` with every manifest that
    cannot be used, and when no group at all is covered.
    """
    _check_manifests(manifests)
    tied = not any(_HEAD in tensors for tensors in groups.values())
    here = {tensor for tensors in groups.values() for tensor in tensors}
    scored = _scores_by_tensor(manifests, here, tied=tied)
    costs: dict[str, dict[str, float]] = {}
    uncovered: dict[str, str] = {}
    for group, tensors in groups.items():
        missing = [tensor for tensor in tensors if tensor not in scored]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            uncovered[group] = f"no usable score covers {missing[0]}{more}"
            continue
        found = {name: [_cost(tensor, name, scored[tensor], errors) for tensor in tensors] for name in types[group]}
        if any(value is None for values in found.values() for value in values):
            uncovered[group] = "the scored format holds these weights exactly, so nothing can be scaled from it"
            continue
        costs[group] = {name: math.fsum(value for value in values if value is not None) for name, values in found.items()}
    if not costs:
        message = f"the scores cover no group of this file: {next(iter(uncovered.values()), 'it has none')}"
        raise SpecError.single("scores", message, "give manifests of the same model")
    formats = {score.fmt.name: score.fmt for scores in scored.values() for score in scores}
    return ImportedScores(costs, uncovered, manifests[0].method, tuple(sorted(formats)), _warnings(formats))


def _check_manifests(manifests: Sequence[SensitivityManifest]) -> None:
    problems = [] if manifests else [Problem("scores", "no manifest was given", "give at least one")]
    for place, manifest in enumerate(manifests):
        where = f"scores[{place}] ({manifest.scheme})"
        first = manifests[0]
        if manifest.status is not RunStatus.OK:
            problems.append(Problem(where, "this run failed, its scores cannot be used", "run it again"))
        if manifest.method != first.method:
            problems.append(Problem(where, f"scored by {manifest.method}, the first one by {first.method}", "use one method"))
        if manifest.spec.model.name != first.spec.model.name:
            message = f"is about {manifest.spec.model.name}, the first one about {first.spec.model.name}"
            problems.append(Problem(where, message, "use one model"))
        if manifest.spec.quant_granularity.quant_cfg_overrides:
            message = "was scored with changed granularity, whose weight error is not computed here"
            problems.append(Problem(where, message, "use a run with quant_granularity=default"))
    if problems:
        raise SpecError(problems)


def _scores_by_tensor(manifests: Sequence[SensitivityManifest], here: set[str], *, tied: bool) -> dict[str, list[_Score]]:
    """GGUF tensor -> its scores, one per format; of two runs with the same format the first counts.

    A score that is also about tensors which are not `here` is left out: its share cannot be told.
    """
    found: dict[str, dict[str, _Score]] = {}
    for manifest in manifests:
        for group in manifest.layer_sensitivity.values():
            for score in _scores_of(group, tied=tied):
                if not here.issuperset(score.tensors):
                    continue
                for tensor in score.tensors:
                    found.setdefault(tensor, {}).setdefault(score.fmt.name, score)
    return {tensor: list(scores.values()) for tensor, scores in found.items()}


def _scores_of(group: GroupSensitivity, *, tied: bool) -> list[_Score]:
    named = [gguf_tensor(member, tied=tied) for member in group.members]
    if any(name is None for name in named):
        return []  # a share of the score belongs to what this file does not hold, or what has another name there
    tensors = tuple(dict.fromkeys(name for name in named if name is not None))
    return [
        _Score(QUANT_FORMATS[candidate.format], candidate.score, tensors)
        for candidate in group.candidates
        if candidate.format != _FLOAT_CANDIDATE and candidate.format in QUANT_FORMATS
    ]


def _cost(tensor: str, ggml_type: str, scores: Sequence[_Score], errors: WeightErrors) -> float | None:
    """Scale the score of the format whose error is nearest; `None` when every scored format is exact."""
    own = errors.of_type(tensor, ggml_type)
    usable = [(score, base) for score in scores if (base := errors.of_format(tensor, score.fmt)) > 0]
    if not usable:
        return None
    if own <= 0:
        return 0.0
    nearest, _ = min(usable, key=lambda pair: (abs(math.log(own / pair[1])), pair[0].fmt.name))
    together = math.fsum(errors.of_format(member, nearest.fmt) for member in nearest.tensors)
    return max(0.0, nearest.score) * own / together


def _warnings(formats: Mapping[str, QuantFormat]) -> tuple[str, ...]:
    active = sorted(name for name, fmt in formats.items() if fmt.activation != "fp16")
    if not active:
        return ()
    return (
        f"{', '.join(active)} quantized activations too: that part of the scores does not follow the weights' error, "
        "scores of a weight-only format fit better",
    )


def complete_costs(
    imported: ImportedScores, probed: Mapping[str, Mapping[str, float]], pinned: Mapping[str, str]
) -> dict[str, dict[str, float]]:
    """Return group -> ggml type -> cost for every group, in one unit.

    A group without scores is `pinned` (group -> its one type: a constant, which no choice can change, so 0) or `probed` (group ->
    type -> mean KL, nats). Probed KL are brought to the scores' unit by the ratio that scored groups show that were probed too:
    the median over their types. Raises `SpecError` naming groups that are neither, and when there is no such ratio.
    """
    problems = [
        Problem(group, f"has no costs: {why}", "probe it, or pin it at a type")
        for group, why in imported.uncovered.items()
        if group not in probed and group not in pinned
    ]
    foreign = [group for group in imported.uncovered if group in probed and group not in pinned]
    ratios = [
        kl / imported.costs[group][name]
        for group, found in probed.items()
        for name, kl in found.items()
        if kl > 0 and imported.costs.get(group, {}).get(name, 0.0) > 0
    ]
    if foreign and not ratios:
        message = "its probes are in nats, and no scored group was probed to tell what a score is in nats"
        problems += [Problem(group, message, "probe a scored group too, or pin this one") for group in foreign]
    if problems:
        raise SpecError(problems)
    costs = {group: dict(found) for group, found in imported.costs.items()}
    if foreign:
        nats_per_score = statistics.median(ratios)
        costs |= {group: {name: kl / nats_per_score for name, kl in probed[group].items()} for group in foreign}
    return costs | {group: {name: 0.0} for group, name in pinned.items()}
