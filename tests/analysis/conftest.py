"""Builders for small scripted journals."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest

from fewbits.analysis.canary import judge_canary
from fewbits.analysis.summary import summarise
from fewbits.records.base import Bucket, RunQuality, TokenStatus, TrialStatus
from fewbits.records.plan import (
    CanaryPolicy,
    Controls,
    EffectiveControls,
    Plan,
    PlannedTask,
    PolicyName,
    SelectionPolicy,
    SweepSpec,
)
from fewbits.records.summary import SweepSummary
from fewbits.records.trial import TelemetryView, TokenMetricsView, TrialView, VibeView
from fewbits.records.variant import Artifact, ModelKind, ModelSource

DIGEST = "d" * 64
MIB = 1024**2


def build_trial(quant: str, task: str, **changes: Any) -> TrialView:
    """A clean, successful trial: 0.5 s wall, 0.1 s prefill of 20 tokens, 0.3 s decode of 30 tokens."""
    tokens = {"prompt_tokens": 20, "output_tokens": 30, "cached_prompt_tokens": 0, "status": TokenStatus.OK}
    tokens |= {name: changes.pop(name) for name in list(changes) if name in tokens and name != "status"}
    tokens["status"] = changes.pop("token_status", tokens["status"])
    tokens["decode_steps"] = tokens["output_tokens"]
    times: dict[str, Any] = {
        "total_latency": 0.5,
        "init_latency": 1.25,
        "time_to_first_token_seconds": 0.12,
        "prefill_seconds": 0.1,
        "decode_seconds": 0.3,
        "internal_model_seconds": 0.4,
        "orchestration_overhead_ratio": 0.2,
        "peak_memory_rss": 200 * MIB,
    }
    times |= {name: changes.pop(name) for name in list(changes) if name in times}
    fields: dict[str, Any] = {
        "plan_digest": DIGEST,
        "phase": "matrix",
        "index": 0,
        "block": 0,
        "attempt": 1,
        "model_id": "m",
        "quant_tag": quant,
        "variant_sha256": sha(quant),
        "task_id": task,
        "task_revision": 1,
        "bucket": "logic",
        "tier": 1,
        "repetition": 0,
        "status": TrialStatus.OK,
        "output_sha256": "o" * 64,
        "adherence_score": 1.0,
        "run_quality_status": RunQuality.CLEAN,
        "run_quality_reasons": (),
        "vibe_metrics": VibeView(code_density=None, gen_retries=0),
        "controls_effective": EffectiveControls(seed=1337, threads=2, affinity=(0, 1), context_size=2048),
        "started_at": "2026-02-21T10:00:00Z",
        "engine": "scripted",
        "engine_version": "1",
    }
    if reasons := changes.get("run_quality_reasons"):
        changes["run_quality_reasons"] = tuple(reasons)
        changes.setdefault("run_quality_status", RunQuality.POLLUTED)
    telemetry = TelemetryView(**times, token_metrics=TokenMetricsView(**tokens))  # type: ignore[arg-type]
    return TrialView(telemetry=telemetry, **(fields | changes))


def build_failure(quant: str, task: str, status: TrialStatus = TrialStatus.CRASHED, **changes: Any) -> TrialView:
    """A trial that ended before any reply."""
    nothing = dict.fromkeys(
        (
            "total_latency",
            "time_to_first_token_seconds",
            "prefill_seconds",
            "decode_seconds",
            "internal_model_seconds",
            "orchestration_overhead_ratio",
            "prompt_tokens",
            "output_tokens",
            "cached_prompt_tokens",
        )
    )
    base = {"status": status, "adherence_score": 0.0, "token_status": TokenStatus.TOKEN_AND_TIMING_UNAVAILABLE}
    return build_trial(quant, task, **(nothing | base | changes))


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def build_plan(quants: tuple[str, ...], tasks: tuple[str, ...], runs: int = 1, **policy: Any) -> Plan:
    spec = SweepSpec(
        models=("m",),
        quants=quants,
        task_bank="bank.json",
        runs_per_quant=runs,
        policy=SelectionPolicy(**({"name": PolicyName.THRESHOLD} | policy)),
        out_dir="out",
        summary_out="out/sweep_summary.json",
    )
    return Plan(
        digest=DIGEST,
        spec=spec,
        models=(ModelSource(model_id="m", kind=ModelKind.GGUF),),
        tasks=tuple(PlannedTask(task_id=task, revision=1, digest="x", bucket=Bucket.LOGIC, tier=1) for task in tasks),
        task_bank_digest="b" * 64,
        controls=Controls(threads=2),
        hardware_fingerprint="linux|cpu|2c|24gb|none",
        commit_sha="c" * 40,
        trials_total=len(quants) * len(tasks) * runs,
        artifacts={},
    )


def build_artifact(quant: str, bits: float | None, size: int | None, **changes: Any) -> Artifact:
    return Artifact(
        model_id="m", scheme=quant, sha256=sha(quant), bytes=size, weights=100_000_000, bits_per_weight=bits, **changes
    )


LADDER = {"F16": (16.0, 270), "Q8_0": (8.5, 145), "Q4_K_M": (5.9, 100), "Q2_K": (5.1, 88)}


def build_summary(
    plan: Plan, trials: list[TrialView], artifacts: dict[str, Artifact] | None = None, **blocks: Any
) -> SweepSummary:
    made = artifacts or {tag: build_artifact(tag, *_scaled(LADDER[tag])) for tag in plan.spec.quants if tag in LADDER}
    canary = judge_canary([], CanaryPolicy(runs=0), model_id=None, quant_tag=None, task_id=None)
    keyed = {("m", tag): artifact for tag, artifact in made.items()}
    return summarise(plan, keyed, trials, canary=canary, journal_digest="j" * 64, fewbits_version="0.1.0", **blocks)


def _scaled(row: tuple[float, int]) -> tuple[float, int]:
    return row[0], row[1] * MIB


@pytest.fixture(scope="session")
def trial() -> Callable[..., TrialView]:
    return build_trial


@pytest.fixture(scope="session")
def failure() -> Callable[..., TrialView]:
    return build_failure


@pytest.fixture(scope="session")
def make_plan() -> Callable[..., Plan]:
    return build_plan


@pytest.fixture(scope="session")
def make_artifact() -> Callable[..., Artifact]:
    return build_artifact


@pytest.fixture(scope="session")
def make_summary() -> Callable[..., SweepSummary]:
    return build_summary
