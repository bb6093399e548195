"""The table of everything that a person can set about a sweep: file key, flag, field of `SweepSpec`, help. Data, no logic.

Types and ranges are not repeated here: they are read from the annotated fields of the records.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any

from msgspec import Meta

from fewbits.records.task import TaskId, Tier

Text = Annotated[str, Meta(min_length=1)]


class Form(Enum):
    """How a flag is written."""

    VALUE = "value"
    LIST = "list"
    """Comma-separated, and may be repeated."""
    SWITCH = "switch"
    """`--name` / `--no-name`."""
    LIMITS = "limits"
    """`MODEL:KEY=VALUE`, and may be repeated; an object of objects in files."""


@dataclass(frozen=True, slots=True)
class Alias:
    """Another spelling of a parameter: a file key (`key`), a flag (`flag`), or both.

    `constant` is the value that a bare flag stands for.
    """

    key: str
    flag: str | None = None
    in_files: bool = True
    constant: str | None = None
    help: str = ""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One setting. `target` is its dotted place in `SweepSpec`; `type` narrows that field's own type where given."""

    key: str
    target: str
    help: str
    flags: tuple[str, ...] = ()
    form: Form = Form.VALUE
    aliases: tuple[Alias, ...] = ()
    type: Any = None
    hint: str = ""


_THREADS_HINT = "1 or more; leave it out for all cores that this process may use"
_AFFINITY_HINT = "none, auto, or cores:LIST such as cores:0,2-3"

PARAMETERS: tuple[Parameter, ...] = (
    # What is compared
    Parameter(
        "models",
        "models",
        "model(s): a GGUF path, the name of a packaged model (smollm2-135m), or a model of the server",
        ("--model-id",),
        Form.LIST,
        type=Annotated[tuple[Text, ...], Meta(min_length=1)],
    ),
    Parameter(
        "quants",
        "quants",
        "quantizations to compare, e.g. Q8_0,Q6_K,Q4_K_M; ladder:NAME stands for the tags of a ladder (common, full, fast, ...)",
        ("--quant-tags",),
        Form.LIST,
        type=Annotated[tuple[Text, ...], Meta(min_length=1)],
    ),
    Parameter(
        "reference_quant",
        "reference_quant",
        "the quantization that the others are compared with; auto: the one with the most bits per weight",
        ("--reference-quant",),
        type=Text | None,
    ),
    Parameter("runs_per_quant", "runs_per_quant", "repetitions of each task per quantization", ("--runs",)),
    # What is asked
    Parameter("task_bank", "task_bank", "task bank file", ("--task-bank",), type=Text),
    Parameter("task_limit", "selection.limit", "ask only the first N selected tasks (0: all)", ("--task-limit",)),
    Parameter(
        "task_id_min", "selection.id_min", "smallest task id, inclusive; auto: no bound", ("--task-id-min",), type=TaskId | None
    ),
    Parameter(
        "task_id_max", "selection.id_max", "largest task id, inclusive; auto: no bound", ("--task-id-max",), type=TaskId | None
    ),
    Parameter("task_ids", "selection.ids", "ask exactly these tasks", ("--task-ids",), Form.LIST, type=tuple[TaskId, ...]),
    Parameter(
        "buckets",
        "selection.buckets",
        "task bucket(s): logic, refactor, structured_output, extraction",
        ("--bucket",),
        Form.LIST,
    ),
    Parameter("tiers", "selection.tiers", "task tier(s), 1 to 6", ("--tier",), Form.LIST, type=tuple[Tier, ...]),
    # What runs it
    Parameter(
        "runtime",
        "runtime",
        "llamacpp, ollama, openai or scripted (default: llamacpp; ollama for models named like qwen2.5-coder:7b)",
        ("--runtime",),
    ),
    Parameter("base_url", "base_url", "address of the server, for ollama and openai", ("--base-url",), type=Text | None),
    Parameter("script", "script", "file with the replies of the scripted runtime", ("--script",), type=Text | None),
    Parameter(
        "runtime_target",
        "runtime_target",
        "label: what the sweep ran on",
        ("--runtime-target",),
        aliases=(Alias("venue", "--venue", help="alias of --runtime-target"),),
        type=Text,
    ),
    Parameter(
        "execution_mode",
        "execution_mode",
        "label: how the sweep ran",
        ("--execution-mode",),
        aliases=(Alias("flow", "--flow", help="alias of --execution-mode"),),
        type=Text,
    ),
    Parameter("execution_lane", "execution_lane", "label: ci or lab", ("--execution-lane",)),
    Parameter("vram_profile", "vram_profile", "label: safe, balanced or stress", ("--vram-profile",)),
    Parameter("trial_timeout_seconds", "trial_timeout_seconds", "longest time for one trial", ("--trial-timeout-seconds",)),
    Parameter("load_timeout_seconds", "load_timeout_seconds", "longest time for loading a model", ("--load-timeout-seconds",)),
    # Controls
    Parameter(
        "control_profile",
        "control_profile",
        "named controls, canary and quality settings (lab, ci, ...) or a file of them, below matrix file and flags; auto: none",
        ("--control-profile",),
        type=Text | None,
    ),
    Parameter("seed", "controls.seed", "seed of sampling and of the order of trials", ("--seed",)),
    Parameter(
        "threads", "controls.threads", "compute threads; auto: all cores of this process", ("--threads",), hint=_THREADS_HINT
    ),
    Parameter(
        "affinity_policy",
        "controls.affinity_policy",
        "cores that the engine is pinned to: none, auto, or cores:0,2-3",
        ("--affinity-policy",),
        hint=_AFFINITY_HINT,
    ),
    Parameter("warmup_steps", "controls.warmup_steps", "unrecorded generations after each load", ("--warmup-steps",)),
    Parameter("temperature", "controls.temperature", "sampling temperature; 0 is greedy", ("--temperature",)),
    Parameter("max_tokens", "controls.max_tokens", "longest answer in tokens", ("--max-tokens",)),
    Parameter("context_size", "controls.context_size", "context of the model in tokens", ("--context-size",)),
    Parameter("batch_size", "controls.batch_size", "prompt tokens processed at once", ("--batch-size",)),
    # Canary
    Parameter(
        "canary_runs",
        "canary.runs",
        "repeats of one trial before the matrix; 0 switches the canary off",
        ("--canary-runs",),
        aliases=(Alias("no_canary", "--no-canary", in_files=False, constant="0", help="switch the canary off"),),
    ),
    Parameter(
        "canary_task_id",
        "canary.task_id",
        "task of the canary; auto: the first selected one",
        ("--canary-task-id",),
        type=TaskId | None,
    ),
    Parameter(
        "canary_quant_tag",
        "canary.quant_tag",
        "quantization of the canary; auto: the reference",
        ("--canary-quant-tag",),
        type=Text | None,
    ),
    Parameter(
        "canary_latency_variance_threshold",
        "canary.max_latency_variation",
        "largest coefficient of variation of the canary's model-internal seconds",
        ("--canary-latency-variance-threshold",),
    ),
    Parameter(
        "canary_drop_first_run",
        "canary.drop_first_run",
        "leave the first repeat of the canary out of the statistics",
        ("--canary-drop-first-run",),
        Form.SWITCH,
    ),
    Parameter(
        "canary_max_missing_telemetry_rate",
        "canary.max_missing_telemetry_rate",
        "largest share of canary repeats without token counts or timings",
        ("--canary-max-missing-telemetry-rate",),
    ),
    Parameter(
        "canary_max_polluted_retries",
        "canary.max_polluted_retries",
        "how many canary repeats that foreign load spoiled are run again",
        ("--canary-max-polluted-retries",),
    ),
    # Limits of a recommendation
    Parameter(
        "adherence_threshold",
        "policy.adherence_threshold",
        "smallest mean adherence as a ratio of the reference's",
        ("--adherence-threshold",),
    ),
    Parameter("adherence_floor", "policy.adherence_floor", "smallest absolute mean adherence", ("--adherence-floor",)),
    Parameter("latency_ceiling", "policy.latency_ceiling", "largest median seconds per trial", ("--latency-ceiling",)),
    Parameter(
        "model_thresholds",
        "model_policies",
        "a limit of one model: adherence_threshold, adherence_floor, latency_ceiling or equivalence_margin; may be repeated",
        ("--model-threshold",),
        Form.LIMITS,
    ),
    Parameter(
        "include_invalid",
        "policy.include_invalid",
        "let polluted or otherwise invalid rows into frontier and recommendation",
        ("--include-invalid", "--allow-polluted-frontier"),
        Form.SWITCH,
        aliases=(Alias("allow_polluted_frontier"),),
    ),
    Parameter(
        "selection_policy",
        "policy.name",
        "rule of the recommendation: three-zone-v1 (statistical verdicts) or threshold-v1 (point estimates)",
        ("--selection-policy",),
    ),
    Parameter(
        "equivalence_margin",
        "policy.equivalence_margin",
        "largest difference of mean adherence (0..1) that counts as the same",
        ("--equivalence-margin",),
    ),
    Parameter(
        "error_level",
        "policy.error_level",
        "largest probability of any false verdict of one kind in a session",
        ("--error-level",),
    ),
    Parameter(
        "divergence_error_level",
        "policy.divergence_error_level",
        "the part of error_level that the divergence test spends",
        ("--divergence-error-level",),
    ),
    Parameter(
        "divergence_harm_nats",
        "policy.divergence_harm_nats",
        "harm line: mean KL divergence from the reference, nats per token, that is WORSE by itself",
        ("--divergence-harm-nats",),
    ),
    # Deciding
    Parameter(
        "decide",
        "decide.enabled",
        "decide item by item with anytime-valid tests instead of running the full matrix",
        ("--decide",),
        Form.SWITCH,
    ),
    Parameter(
        "early_stop",
        "decide.early_stop",
        "with --decide: give no further items to variants that have a verdict",
        ("--early-stop",),
        Form.SWITCH,
    ),
    Parameter(
        "decide_minimum_items",
        "decide.minimum_items",
        "with --decide: items that every variant answers at least",
        ("--decide-minimum-items",),
    ),
    Parameter(
        "decide_maximum_items",
        "decide.maximum_items",
        "with --decide: items that are asked at most; auto: all",
        ("--decide-maximum-items",),
    ),
    # Divergence from the reference
    Parameter(
        "evaluation_text",
        "divergence.text",
        "text for KL divergence: a UTF-8 file, python-topics, or none",
        ("--evaluation-text",),
    ),
    Parameter("divergence_windows", "divergence.windows", "windows of the evaluation text", ("--divergence-windows",)),
    Parameter(
        "divergence_window_tokens",
        "divergence.window_tokens",
        "tokens per window; the second half is scored",
        ("--divergence-window-tokens",),
    ),
    Parameter(
        "divergence_top_k", "divergence.top_k", "log-probabilities kept per token of the reference", ("--divergence-top-k",)
    ),
    # How trials are arranged
    Parameter(
        "block_tasks",
        "block_tasks",
        "tasks per interleaved block; auto: 1 where all variants fit into memory together",
        ("--block-tasks",),
    ),
    Parameter(
        "determinism_tasks",
        "determinism_tasks",
        "tasks that every variant answers once more, to see whether it repeats itself",
        ("--determinism-tasks",),
    ),
    Parameter(
        "rerun_budget_ratio",
        "quality.rerun_budget_ratio",
        "polluted trials are run again, up to this share of the planned ones; 0 switches it off",
        ("--rerun-budget-ratio",),
    ),
    Parameter("rerun_max_attempts", "quality.rerun_max_attempts", "attempts at one trial", ("--rerun-max-attempts",)),
    # When a trial or a row is polluted
    Parameter(
        "row_max_polluted_rate",
        "quality.row_max_polluted_rate",
        "largest share of polluted trials in a valid row",
        ("--row-max-polluted-rate",),
        aliases=(Alias("quality_policy.row_max_polluted_rate"),),
    ),
    Parameter(
        "row_max_missing_telemetry_rate",
        "quality.row_max_missing_telemetry_rate",
        "largest share of trials without token counts or timings in a valid row",
        ("--row-max-missing-telemetry-rate",),
        aliases=(Alias("quality_policy.row_max_missing_telemetry_rate"),),
    ),
    Parameter(
        "row_max_orchestration_overhead_ratio",
        "quality.max_orchestration_overhead_ratio",
        "largest (wall - model-internal) / wall of a clean trial",
        ("--row-max-orchestration-overhead-ratio",),
        aliases=(Alias("quality_policy.max_orchestration_overhead_ratio"),),
    ),
    Parameter("quality_policy.name", "quality.name", "name of the quality policy", type=Text),
    Parameter("quality_policy.max_foreign_cpu_ratio", "quality.max_foreign_cpu_ratio", "foreign CPU time of a clean trial"),
    Parameter("quality_policy.max_cpu_pressure_ratio", "quality.max_cpu_pressure_ratio", "CPU pressure of a clean trial"),
    Parameter("quality_policy.max_steal_ratio", "quality.max_steal_ratio", "stolen CPU time of a clean trial"),
    Parameter(
        "quality_policy.max_memory_pressure_ratio", "quality.max_memory_pressure_ratio", "memory pressure of a clean trial"
    ),
    Parameter("quality_policy.max_io_pressure_ratio", "quality.max_io_pressure_ratio", "I/O pressure of a clean trial"),
    Parameter("quality_policy.max_throttle_events", "quality.max_throttle_events", "throttle events of a clean trial"),
    # The lab around it
    Parameter(
        "guard",
        "guard.enabled",
        "live guard: cool down before each block, load only what fits into the memory limit, stop on throttling",
        ("--guard",),
        Form.SWITCH,
    ),
    Parameter(
        "cooldown_target_c",
        "guard.cooldown_target_c",
        "with --guard: hottest sensor reading, degrees Celsius, at which a block may start",
        ("--cooldown-target-c",),
    ),
    Parameter(
        "cooldown_timeout_seconds",
        "guard.cooldown_timeout_seconds",
        "with --guard: longest wait for the cooldown target",
        ("--cooldown-timeout-seconds",),
    ),
    Parameter(
        "max_throttle_events",
        "guard.max_throttle_events",
        "with --guard: throttle events of one trial that are tolerated",
        ("--max-throttle-events",),
    ),
    Parameter(
        "hardware_sidecar_profile",
        "sidecar.profile",
        "run llama-bench after the matrix, by this profile (cpu, nvidia, amd); diagnostics only",
        ("--hardware-sidecar-profile",),
        type=Text | None,
    ),
    Parameter(
        "sidecar_profiles_config",
        "sidecar.profiles_config",
        "file with the sidecar profiles",
        ("--sidecar-profiles-config",),
        type=Text,
    ),
    Parameter(
        "hardware_sidecar_timeout_seconds",
        "sidecar.timeout_seconds",
        "longest time for the sidecar, per variant; auto: the profile's",
        ("--hardware-sidecar-timeout-seconds", "--hardware-sidecar-timeout-sec"),
    ),
    Parameter(
        "baselines",
        "baselines.enabled",
        "compare each row with its stored baseline",
        ("--baselines",),
        Form.SWITCH,
    ),
    Parameter(
        "baseline_root",
        "baselines.storage_root",
        "folder of the stored baselines",
        ("--baseline-root",),
        type=Text,
    ),
    Parameter(
        "baseline_ref",
        "baselines.ref",
        "compare with the record of this run id; auto: the newest that matches",
        ("--baseline-ref",),
        type=Text | None,
    ),
    # What is written
    Parameter("out_dir", "out_dir", "folder of the run", ("--out-dir",), type=Text),
    Parameter("summary_out", "summary_out", "where the summary is written", ("--summary-out",), type=Text),
    Parameter("description", "description", "free text, shown in the dry run"),
)

ELSEWHERE: dict[str, str] = {
    "canary_task_limit": "the canary repeats one task: name it with canary_task_id",
    "canary_task_id_min": "the canary repeats one task: name it with canary_task_id",
    "canary_task_id_max": "the canary repeats one task: name it with canary_task_id",
    "runner_template": "the sweep runs the model itself: choose it with runtime",
    "runtime_env": "the sweep owns the engine's environment: use the controls",
    "model_hash": "digests are read from the model itself",
    "row_max_cpu_saturation_rate": "a model on a CPU saturates it by design: see quality_policy.max_foreign_cpu_ratio",
    "row_max_system_load_rate": "only foreign load counts: see quality_policy.max_foreign_cpu_ratio",
    "sanitize_model_cache": "each variant gets a process of its own, so nothing is left to sanitise",
}
"""Keys of earlier tools that mean nothing here, and what to write instead."""
