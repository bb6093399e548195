"""A recipe's manifest as a search on a small model would leave it, for tests of reports and of commands."""

from __future__ import annotations

from fewbits.records.estimate import Estimate
from fewbits.records.recipe import (
    ExcludedOption,
    HeldOut,
    Recipe,
    RecipeBudget,
    RecipeGroup,
    RecipeManifest,
    RecipeOption,
    RecipeVerdict,
    TaskComparison,
)
from fewbits.records.summary import VerdictCode

KINDS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
BITS = {"Q4_0": 4.5, "Q5_0": 5.5, "Q5_1": 6.0, "Q8_0": 8.5}
CHOSEN = ("Q4_0", "Q5_0", "Q8_0", "Q5_1", "Q4_0", "Q5_0", "Q5_1")


def an_estimate(value: float, low: float | None, high: float | None, n: int = 48) -> Estimate:
    return Estimate(value=value, low=low, high=high, level=0.95, method="bootstrap by window, expanded percentile", n=n)


def an_option(name: str, weights: int, kl: float | None) -> RecipeOption:
    low, high = (None, None) if kl is None else (kl * 0.9, kl * 1.1)
    return RecipeOption(
        ggml_type=name, bytes=int(weights * BITS[name] / 8), kl_nats=kl, kl_low=low, kl_high=high, windows=0 if kl is None else 16
    )


def a_group(kind: str, layers: tuple[int, int] | None, chosen: str | None) -> RecipeGroup:
    weights = 96_000
    name = kind if layers is None else f"{kind}/{layers[0]}-{layers[1]}"
    tensors = (f"{kind}.weight",) if layers is None else tuple(f"blk.{n}.{kind}.weight" for n in range(layers[0], layers[1] + 1))
    return RecipeGroup(
        name=name,
        kind=kind,
        first_layer=layers and layers[0],
        last_layer=layers and layers[1],
        tensors=tensors,
        weights=weights,
        row_width=96,
        options=(
            RecipeOption(
                ggml_type="Q4_1",
                bytes=60_000,
                kl_nats=None,
                kl_low=None,
                kl_high=None,
                windows=0,
                excluded=ExcludedOption.SOURCE_GRID,
                detail="the source's weights lie on the grid of Q4_1",
            ),
            *(an_option(one, weights, 0.02 / BITS[one]) for one in BITS),
        ),
        chosen=chosen,
    )


def groups(layers: int = 30, bands: int = 5) -> tuple[RecipeGroup, ...]:
    step = layers // bands
    return (
        a_group("token_embd", None, "Q5_1"),
        *(
            a_group(kind, (first, first + step - 1), CHOSEN[(place + first // step) % len(CHOSEN)])
            for place, kind in enumerate(KINDS)
            for first in range(0, layers, step)
        ),
    )


def a_held_out(label: str, kl: float, against: Estimate | None, *, size: int = 105_000_000) -> HeldOut:
    return HeldOut(
        label=label,
        bytes=size,
        bits_per_weight=6.1,
        sha256="b" * 64,
        kl_nats=an_estimate(kl, kl * 0.98, kl * 1.02),
        top_token_agreement=an_estimate(0.93, 0.92, 0.94),
        against_stock=against,
        types={"Q5_1": 120, "Q8_0": 90},
    )


def a_manifest(**changes: object) -> RecipeManifest:
    values: dict[str, object] = {
        "model_id": "smollm2-135m",
        "tag": "recipe-0123456789ab",
        "recipe": Recipe(source_sha256="a" * 64, tensor_types={"token_embd.weight": "Q5_1"}),
        "budget": RecipeBudget(asked="--like Q4_K_M", bytes=105_454_144),
        "file": "smollm2-135m-recipe-0123456789ab.gguf",
        "file_sha256": "b" * 64,
        "file_bytes": 105_440_320,
        "bits_per_weight": 6.13,
        "reference_scheme": "dequantized F16",
        "off_grid_seed": None,
        "probe_text": "python-topics/probe",
        "probe_text_digest": "c" * 64,
        "held_out_text": "python-topics/held-out",
        "held_out_text_digest": "d" * 64,
        "score_source": "probes",
        "groups": groups(),
        "predicted_kl_nats": 0.0455,
        "measured_kl_nats": 0.0465,
        "prediction_error": -0.0215,
        "held_out": (
            a_held_out("recipe", 0.0465, an_estimate(0.41, 0.39, 0.44), size=105_440_320),
            a_held_out("stock Q4_K_M", 0.0794, None, size=105_454_144),
            a_held_out("embedding pinned", 0.0608, an_estimate(0.23, 0.2, 0.26)),
        ),
        "tasks": TaskComparison(
            bank="benchmarks/task_bank/short/tasks.json",
            items=60,
            difference=an_estimate(0.02, -0.05, 0.09, 60),
            verdict=VerdictCode.UNRESOLVED,
            run="tasks",
        ),
        "verdict": RecipeVerdict.BETTER,
        "recommended": "recipe",
        "why": "On held-out text the recipe diverges 41 % [39 %, 44 %] less than Q4_K_M, in no more bytes.",
        "stock_tag": "Q4_K_M",
        "probes": 180,
        "probe_windows": 900,
        "exhaustive_windows": 2880,
        "probe_wall_seconds": 300.0,
        "total_wall_seconds": 520.0,
        "command": "fewbits recipe smollm2-135m --like Q4_K_M",
        "quantize_command": "llama-quantize --tensor-type-file tensor_types.txt F16.gguf out.gguf Q8_0",
        "engine": "cyllama",
        "engine_version": "0.2.18",
    }
    return RecipeManifest(**(values | changes))  # type: ignore[arg-type]
