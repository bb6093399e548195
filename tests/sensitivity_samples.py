"""Sample sensitivity manifests that several test modules share: shaped like real ones, with hostile names on demand."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from fewbits.analysis.sensitivity import rollup, sensitivity_report
from fewbits.core.codec import digest, to_builtins
from fewbits.records.estimate import Estimate
from fewbits.records.provenance import SourceFile
from fewbits.records.sensitivity import (
    AutoQuantSettings,
    CandidateScore,
    CoverageMode,
    DatasetSettings,
    ExcludedModule,
    ExclusionReason,
    GranularitySettings,
    GroupAblation,
    GroupSensitivity,
    ModelSettings,
    OutputSettings,
    PairSettings,
    RankAgreement,
    RunStatus,
    SensitivityAgreement,
    SensitivityManifest,
    SensitivityMethod,
    SensitivityReport,
    SensitivityRollup,
    SensitivitySpec,
)

LAYERS = 12
WEIGHTS = {"attn_qkv": 15_728_640, "attn_o": 10_485_760, "mlp_gate_up": 49_807_360, "mlp_down": 24_903_680}
MEMBERS = {
    "attn_qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn_o": ("self_attn.o_proj",),
    "mlp_gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp_down": ("mlp.down_proj",),
}
BASE_SCORES = {"attn_qkv": 2e-4, "attn_o": 4e-5, "mlp_gate_up": 6e-2, "mlp_down": 1.1e-1}
SIZES = {"small": 16, "medium": 128, "large": 512}
COMPOSED = """\
model:
  name: qwen3_vl_4b_instruct
  path: models/Qwen3-VL-4B-Instruct
quant_pair:
  name: wint8_aint8
  note: "a <b> `c`"
"""


def sample_spec(pair: str = "wint8_aint8", size: str = "medium", **changes: Any) -> SensitivitySpec:
    """The specification of a run; `changes` replace whole sections."""
    weight, activation = pair.removeprefix("w").split("_a")
    spec = SensitivitySpec(
        model=ModelSettings(
            name="qwen3_vl_4b_instruct", path="models/Qwen3-VL-4B-Instruct", family="qwen", variant="3-vl-4b-instruct"
        ),
        dataset=DatasetSettings(
            name="vlm_coco2017_captions",
            size=size,
            captions_path=f"datasets/vlm-quantize-calib/coco2017_captions_{size}.txt",
            size_to_max_samples=dict(SIZES),
            root="datasets/vlm-quantize-calib",
        ),
        quant_pair=PairSettings(
            name=pair,
            weight=weight,
            activation=activation,
            format_name="INT8_DEFAULT_CFG",
            coverage_mode=CoverageMode.LM_ONLY,
        ),
        quant_granularity=GranularitySettings(),
        autoquant=AutoQuantSettings(method=SensitivityMethod.GRADIENT),
        output_layout=OutputSettings(),
    )
    return msgspec.structs.replace(spec, **changes)


def sample_groups(scale: float = 1.0, twist: float = 0.0) -> dict[str, GroupSensitivity]:
    """Groups of twelve layers, early MLP layers most sensitive; `twist` changes the order a little."""
    scored = {}
    for depth in range(LAYERS):
        for index, kind in enumerate(WEIGHTS):
            name = f"model.language_model.layers.{depth}.{MEMBERS[kind][0]}"
            wave = 1 + 0.6 * math.cos(1.7 * depth + index) + twist * math.sin(3.1 * depth + 2 * index)
            scored[name] = (kind, depth, scale * BASE_SCORES[kind] * math.exp(-0.35 * depth) * wave)
    order = sorted(scored, key=lambda name: (scored[name][2], name))
    return {name: _group(name, kind, depth, (score, order.index(name) + 1)) for name, (kind, depth, score) in scored.items()}


def _group(name: str, kind: str, depth: int, standing: tuple[float, int]) -> GroupSensitivity:
    stem = name.removesuffix(MEMBERS[kind][0])
    weights, (score, rank) = WEIGHTS[kind], standing
    return GroupSensitivity(
        members=tuple(stem + member for member in MEMBERS[kind]),
        kind=kind,
        depth=depth,
        weights=weights,
        candidates=(
            CandidateScore(
                format="INT8_DEFAULT_CFG", weight_bits=8.0, activation_bits=8.0, score=score, cost_bytes=weights * 1.0
            ),
            CandidateScore(format="NONE", weight_bits=16.0, activation_bits=16.0, score=0.0, cost_bytes=weights * 2.0),
        ),
        selected="INT8_DEFAULT_CFG",
        importance=score,
        rank=rank,
    )


def sample_manifest(pair: str = "wint8_aint8", size: str = "medium", **changes: Any) -> SensitivityManifest:
    """A run that ended well; `changes` replace fields."""
    spec = changes.pop("spec", None) or sample_spec(pair, size)
    groups = changes.pop("layer_sensitivity", None)
    manifest = SensitivityManifest(
        status=RunStatus.OK,
        scheme=f"{pair}_autoquant_lm",
        spec=spec,
        layer_sensitivity=sample_groups() if groups is None else groups,
        excluded=(
            ExcludedModule(
                name="model.visual.patch_embed.proj",
                reason=ExclusionReason.VISION_TOWER,
                detail="matches *visual*",
                weights=1_572_864,
            ),
            ExcludedModule(
                name="model.visual.blocks.0.attn.qkv",
                reason=ExclusionReason.VISION_TOWER,
                detail="matches *visual*",
                weights=3_145_728,
            ),
            ExcludedModule(
                name="lm_head",
                reason=ExclusionReason.OUTPUT_HEAD,
                detail="set autoquant.include_output_head",
                weights=388_956_160,
            ),
        ),
        requested_effective_bits=8.5,
        adjusted_effective_bits=9.0123,
        selected_effective_bits=8.0,
        selected_score=0.912,
        budget_satisfied=True,
        method="gradient",
        scored_samples=min(SIZES[size], 128),
        calibration_samples=SIZES[size],
        padding_ratio=0.1831,
        quantization={
            "base_format_name": "INT8_DEFAULT_CFG",
            "quant_granularity": {"name": "default", "quant_cfg_overrides": {}},
            "effective_quantizers": {
                "*weight_quantizer": {"num_bits": 8, "axis": 0, "enable": True},
                "*input_quantizer": {"num_bits": 8, "axis": None, "enable": True},
            },
        },
        inputs=(
            SourceFile(path="models/Qwen3-VL-4B-Instruct/model.safetensors", sha256=digest("model")),
            SourceFile(path=spec.dataset.captions_path, sha256=digest("captions")),
        ),
        versions={
            "fewbits": "0.1.0",
            "nvidia-modelopt": "0.47.0",
            "python": "3.11.2",
            "torch": "2.13.0",
            "transformers": "5.23.0",
        },
        git={"commit": "a" * 40, "dirty": True},
        hardware={
            "fingerprint": "x86_64|cpu|2c|23gb|none",
            "cpu": "a CPU",
            "usable_cores": 2,
            "memory_bytes": 24 * 2**30,
            "gpus": [],
        },
        seeds={"autoquant": 0},
        timings_seconds={"load": 12.5, "calibrate_and_score": 180.25, "total": 195.5},
        peak_memory_bytes={"rss": 9_876_543_210, "cuda": None},
        run_config={"composed_yaml": COMPOSED},
    )
    return msgspec.structs.replace(manifest, **changes)


def failed_manifest(pair: str = "wint4_aint4", size: str = "medium") -> SensitivityManifest:
    """A run that ended badly."""
    return sample_manifest(
        pair,
        size,
        status=RunStatus.FAILED,
        failure="ModelOpt: out of memory; use a smaller batch_size",
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
    )


def sample_report() -> SensitivityReport:
    """The report of the sample manifest."""
    manifest = sample_manifest()
    return sensitivity_report(manifest, f"{manifest.scheme}_quant_manifest.json", digest(to_builtins(manifest)))


def sample_rollup() -> SensitivityRollup:
    """Two pairs in two sizes, a failed run and an unreadable manifest."""
    manifests = {
        f"runs/{pair}/{size}/{pair}_autoquant_lm_quant_manifest.json": sample_manifest(
            pair, size, layer_sensitivity=sample_groups(scale, twist)
        )
        for pair, size, scale, twist in (
            ("wint8_aint8", "small", 0.95, 0.1),
            ("wint8_aint8", "medium", 1.0, 0.0),
            ("wint4_afp16", "small", 9.0, 0.3),
            ("wint4_afp16", "medium", 9.5, 0.35),
        )
    }
    failed = {"runs/wint4_aint4/medium/wint4_aint4_autoquant_lm_quant_manifest.json": failed_manifest()}
    return rollup(manifests | failed, {"runs/old/int8_quant_manifest.json": "made by another version of fewbits"})


def sample_agreement() -> SensitivityAgreement:
    """A ranking checked against measured ablation, as `fewbits sensitivity agree` writes it."""
    groups = sample_groups()
    scores = {name: group.importance for name, group in groups.items()}

    def agreement(right: str, rho: float) -> RankAgreement:
        return RankAgreement(
            left="modelopt gradient",
            right=right,
            groups=len(groups),
            spearman=Estimate(
                value=rho, low=rho - 0.08, high=min(1.0, rho + 0.05), level=0.95, method="bootstrap", n=len(groups)
            ),
            top_k=9,
            top_k_overlap=Estimate(value=0.777778, low=0.44, high=0.94, level=0.95, method="Wilson score", n=9),
        )

    return SensitivityAgreement(
        scheme="wint8_aint8_autoquant_lm",
        method="gradient",
        score_source="modelopt",
        format="INT8_DEFAULT_CFG",
        manifest="wint8_aint8_autoquant_lm_quant_manifest.json",
        text_name="python-topics",
        text_digest=digest("text"),
        samples=4,
        sample_tokens=256,
        float_loss_nats=2.31,
        ablations=tuple(
            GroupAblation(group=name, loss_change_nats=(0.01, -0.002, 0.004, 0.0), kl_nats=(0.02, 0.01, 0.015, 0.012))
            for name in groups
        ),
        scores=scores,
        against_kl=agreement("measured KL", 0.93),
        against_loss=agreement("measured loss change", 0.71),
        noise_ceiling=Estimate(value=0.97, low=0.95, high=0.99, level=0.95, method="split halves", n=len(groups)),
        loss_noise_ceiling=None,
        unavailable={"loss_noise_ceiling": "4 held-out samples: halving them takes at least 5"},
        wall_seconds=312.5,
    )
