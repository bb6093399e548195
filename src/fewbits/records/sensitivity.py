"""Per-layer sensitivity: what is asked for, what a run leaves behind, and how far its ranking can be trusted.

A *group* is a set of modules that share one precision (q, k and v of a layer read one activation, so they are one group). Its
score says how much the model's output is disturbed when the group alone is quantized; higher is more sensitive.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from msgspec import Meta

from fewbits.records.base import Record
from fewbits.records.estimate import Estimate
from fewbits.records.provenance import SourceFile

SENSITIVITY_MANIFEST_SCHEMA = "fewbits.sensitivity_manifest.v1"
SENSITIVITY_REPORT_SCHEMA = "fewbits.sensitivity_report.v1"
SENSITIVITY_ROLLUP_SCHEMA = "fewbits.sensitivity_rollup.v1"
SENSITIVITY_AGREEMENT_SCHEMA = "fewbits.sensitivity_agreement.v1"

FLOAT_BITS = 16.0
"""What an unquantized weight or activation costs in the budget, bits: the models are deployed in 16-bit floats."""


class SensitivityMethod(StrEnum):
    """How a group is scored."""

    GRADIENT = "gradient"
    """Second-order expansion of the loss: sum of squared (output gradient x output error), ModelOpt's `gradient`."""
    KL_DIV = "kl_div"
    """KL divergence of the model's next-token distribution with only this group quantized, ModelOpt's `kl_div`."""


class CoverageMode(StrEnum):
    """Which part of the model may be quantized."""

    LM_ONLY = "lm_only"
    """The language model without its output head; vision towers stay as they are."""
    LM_DEFAULT = "lm_default"
    """Another name for `lm_only` that earlier INT8 runs were published under; recorded as written."""
    FULL = "full"
    """Every linear and convolution layer, vision and output head included."""


class ExclusionReason(StrEnum):
    """Why a module stays unquantized."""

    VISION_TOWER = "VISION_TOWER"
    OUTPUT_HEAD = "OUTPUT_HEAD"
    COVERAGE_FRACTION = "COVERAGE_FRACTION"
    """Left out by `coverage_fraction`, which covers layers spread evenly over the depth."""
    PATTERN = "PATTERN"
    """Named by `autoquant.disabled_layers`."""


class ModelSettings(Record, frozen=True, kw_only=True):
    """The model under test."""

    name: Annotated[str, Meta(min_length=1)]
    """Used in file and folder names."""
    path: Annotated[str, Meta(min_length=1)]
    """Hugging Face folder (config.json beside safetensors), or a GGUF file, which is loaded as float."""
    family: str = ""
    variant: str = ""
    format: str = "auto"
    """`auto`, `hf` or `gguf`."""
    dtype: str = "auto"
    """`auto` (bfloat16 on CUDA, float32 elsewhere), `float32`, `bfloat16`, `float16`."""


class DatasetSettings(Record, frozen=True, kw_only=True):
    """Calibration text: one caption per line."""

    name: str
    size: str
    captions_path: str
    size_to_max_samples: dict[str, Annotated[int, Meta(ge=1)]]
    root: str = ""
    max_calib_samples: Annotated[int, Meta(ge=1)] | None = None
    """Overrides the size's cap."""
    calib_seq_len: Annotated[int, Meta(ge=2, le=131_072)] = 512
    """Longest sample, tokens; batches are padded to their own longest sample, never beyond."""


class PairSettings(Record, frozen=True, kw_only=True):
    """Weight and activation precision."""

    name: str
    weight: str
    activation: str
    format_name: str
    """Name in the table of quantization formats (`INT8_DEFAULT_CFG`)."""
    experimental: bool = False
    scheme_name: str | None = None
    publish_pair_dir: str | None = None
    publish_run_dir: str | None = None
    coverage_mode: CoverageMode = CoverageMode.LM_ONLY
    coverage_fraction: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """Share of the covered weights that get candidates, layers spread evenly over the depth; 1 covers all."""


class GranularitySettings(Record, frozen=True, kw_only=True):
    """Overlay over the format's own granularity."""

    name: str = "default"
    quant_cfg_overrides: dict[str, dict[str, Any]] = {}  # noqa: RUF012 - msgspec copies mutable defaults


class AutoQuantSettings(Record, frozen=True, kw_only=True):
    """The search itself."""

    method: SensitivityMethod = SensitivityMethod.GRADIENT
    device: str = "cpu"
    batch_size: Annotated[int, Meta(ge=1)] = 8
    effective_bits: Annotated[float, Meta(gt=0, le=16)] = 8.0
    """Budget over the covered weights, bits per weight; excluded ones are added at 16 bits for the adjusted figure."""
    score_size: Annotated[int, Meta(ge=1)] = 128
    """Samples that are scored (calibration uses all)."""
    disabled_layers: tuple[str, ...] = ()
    """Further name patterns (`*mlp.gate*`) that stay unquantized."""
    include_output_head: bool = False
    """Let `lm_head` be quantized too."""
    seed: Annotated[int, Meta(ge=0, lt=2**32)] = 0
    threads: Annotated[int, Meta(ge=1)] | None = None
    verbose: bool = True
    """Show the quantizer's own progress on stderr."""


class OutputSettings(Record, frozen=True, kw_only=True):
    """Where results go. `output_dir` wins over the layout."""

    mode: str = "tmp"
    """`tmp`: the run directory of the launcher. `publish`: a named folder below `root_dir`."""
    root_dir: str = ""
    output_dir: str | None = None
    overwrite: bool = False
    """Let `publish` or `output_dir` replace a finished run (the earlier one is kept in `superseded/<n>/`)."""


class SensitivitySpec(Record, frozen=True, kw_only=True):
    """A whole run, checked: every field has an effect."""

    model: ModelSettings
    dataset: DatasetSettings
    quant_pair: PairSettings
    quant_granularity: GranularitySettings
    autoquant: AutoQuantSettings
    output_layout: OutputSettings
    experiment: str = "qwen3_lm_sensitivity"


class CandidateScore(Record, frozen=True, kw_only=True):
    """One precision that a group could have."""

    format: str
    """Name of the format; `NONE` leaves the group in 16 bits."""
    weight_bits: float
    """Stored bits per weight, scales included (int4 in blocks of 128 with 16-bit scales: 4.125)."""
    activation_bits: float
    """Bits per activation value (16: not quantized). Costed apart: it saves no memory of weights."""
    score: float
    """Mean over scored samples, 0 or more; the unit is the method's own."""
    cost_bytes: float
    """Bytes of the group's weights in this format, scales included."""


class GroupSensitivity(Record, frozen=True, kw_only=True):
    """A group of modules that share one precision."""

    members: tuple[str, ...]
    """Module names."""
    kind: str
    """`attn_qkv`, `attn_o`, `mlp_gate_up`, `mlp_down`, `lm_head`, or the member's own last name."""
    depth: int | None
    """Layer number, 0 first; `None` outside the stack of layers."""
    weights: int
    candidates: tuple[CandidateScore, ...]
    """Fewest bits first; at least one that is not `NONE`."""
    selected: str
    """Format that the search chose under the budget."""
    importance: float
    """Largest score of the candidates."""
    rank: int
    """1 = least sensitive."""


class ExcludedModule(Record, frozen=True, kw_only=True):
    """A module that stays unquantized, and why."""

    name: str
    reason: ExclusionReason
    detail: str
    weights: int


class RunStatus(StrEnum):
    """How a run ended. A manifest without `OK` has no scores that may be used."""

    OK = "OK"
    FAILED = "FAILED"


class SensitivityManifest(Record, frozen=True, kw_only=True):
    """`<scheme>_quant_manifest.json`: all that a reader or a later report needs. Paths are relative or as the user wrote them."""

    schema_version: str = SENSITIVITY_MANIFEST_SCHEMA
    status: RunStatus
    failure: str = ""
    """One message, when the run failed."""
    scheme: str
    """Scheme name: stem of the file names."""
    spec: SensitivitySpec
    layer_sensitivity: dict[str, GroupSensitivity]
    excluded: tuple[ExcludedModule, ...]
    requested_effective_bits: float
    adjusted_effective_bits: float | None
    """What the request means over *all* quantizable weights, with excluded ones at 16 bits; what the search was given."""
    selected_effective_bits: float | None
    """What the search's choice costs over the covered weights, scales included."""
    selected_score: float | None
    budget_satisfied: bool | None
    method: str
    scored_samples: int
    calibration_samples: int
    padding_ratio: float | None
    """Share of computed token positions that were padding, 0..1 (masked out of loss and statistics)."""
    quantization: dict[str, Any]
    """`base_format_name`, `quant_granularity`, and `effective_quantizers`: what was really configured, `num_bits` included."""
    inputs: tuple[SourceFile, ...]
    """Model and data set files with their sha256."""
    versions: dict[str, str]
    git: dict[str, str | bool | None]
    """`commit` (`None` outside a checkout) and `dirty`."""
    hardware: dict[str, Any]
    seeds: dict[str, int]
    timings_seconds: dict[str, float]
    """`load`, `calibrate_and_score`, `total`."""
    peak_memory_bytes: dict[str, int | None]
    """`rss`, and `cuda` (`None` without one)."""
    run_config: dict[str, Any]
    """`composed_yaml`: the composed configuration as text, so that a report needs this file alone."""
    warnings: tuple[str, ...] = ()


class ReportRow(Record, frozen=True, kw_only=True):
    """A line of the report's table, for the most aggressive candidate of a group."""

    layer: str
    kind: str
    depth: int | None
    num_bits: float
    activation_bits: float
    sensitivity: float
    size_cost: float
    """Bytes of the group in this format."""
    selected: str


class SensitivityReport(Record, frozen=True, kw_only=True):
    """`layer-sensitivity-report.json`: the manifest's story, most sensitive group first. A pure function of the manifest."""

    schema_version: str = SENSITIVITY_REPORT_SCHEMA
    scheme: str
    model: dict[str, Any]
    dataset: dict[str, Any]
    quantization: dict[str, Any]
    autoquant_state: dict[str, Any]
    """`method`, `requested_effective_bits`, `adjusted_effective_bits`, `selected_effective_bits`, `score`, `is_satisfied`."""
    layer_sensitivity: tuple[ReportRow, ...]
    excluded: tuple[ExcludedModule, ...]
    total_sensitivity: float
    """Sum of the rows' sensitivities: comparable between pairs, since it does not depend on the search's choice."""
    manifest: str
    """File name of the manifest."""
    manifest_sha256: str


class RankAgreement(Record, frozen=True, kw_only=True):
    """How well two rankings of the same groups agree."""

    left: str
    right: str
    groups: int
    spearman: Estimate | None
    """Rank correlation, -1..1; the interval is a bootstrap over groups. `None` where it does not exist (see `reason`)."""
    top_k: int
    top_k_overlap: Estimate | None
    """Share of the `top_k` most sensitive groups that both name, 0..1. `None` where it does not exist (see `reason`)."""
    reason: str = ""
    """Why there is no correlation: too few groups, or all scores of one side are the same."""


class PairTotals(Record, frozen=True, kw_only=True):
    """One run in a rollup."""

    scheme: str
    pair: str
    granularity: str
    size: str
    method: str
    status: RunStatus
    failure: str = ""
    manifest: str
    groups: int
    total_sensitivity: float | None
    selected_effective_bits: float | None
    scored_samples: int
    most_sensitive: str | None
    wall_seconds: float | None
    peak_rss_bytes: int | None


class SensitivityRollup(Record, frozen=True, kw_only=True):
    """A table over several runs: totals per run, and rank agreement between sizes of a pair and between pairs of a size."""

    schema_version: str = SENSITIVITY_ROLLUP_SCHEMA
    runs: tuple[PairTotals, ...]
    between_sizes: tuple[RankAgreement, ...]
    between_pairs: tuple[RankAgreement, ...]
    skipped: dict[str, str]
    """Manifest path -> why it could not be used."""


class GroupAblation(Record, frozen=True, kw_only=True):
    """The truth about one group: what quantizing it alone does to held-out text."""

    group: str
    loss_change_nats: tuple[float, ...]
    """Per held-out sample: mean next-token loss with this group quantized minus without, nats per token. May be negative."""
    kl_nats: tuple[float, ...]
    """Per held-out sample: mean KL(float || quantized) per token, nats. 0 or more."""


class SensitivityAgreement(Record, frozen=True, kw_only=True):
    """How far a ranking can be trusted: scores against measured ablation on text that was not used for scoring."""

    schema_version: str = SENSITIVITY_AGREEMENT_SCHEMA
    scheme: str
    method: str
    score_source: str
    """`modelopt` or `reference`."""
    format: str
    manifest: str | None
    text_name: str
    text_digest: str
    samples: int
    sample_tokens: int
    """Length of a held-out sample, tokens; each gives one prediction fewer."""
    float_loss_nats: float
    """Mean next-token loss of the unquantized model on the held-out text, nats per token."""
    ablations: tuple[GroupAblation, ...]
    scores: dict[str, float]
    against_kl: RankAgreement
    against_loss: RankAgreement
    noise_ceiling: Estimate | None
    """Spearman that a score equal to the true mean KL would be expected to reach against this measured KL, 0..1, from how well
    halves of the held-out samples agree. A score that agrees better does so by luck. `None` where `unavailable` says why."""
    loss_noise_ceiling: Estimate | None
    """The same for the loss change, which is the noisier measure."""
    unavailable: dict[str, str] = {}  # noqa: RUF012 - msgspec copies mutable defaults
    """Why a field is `None`."""
    wall_seconds: float
