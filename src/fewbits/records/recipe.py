"""Recipes: a precision for every tensor of a GGUF, how it was searched, and what held-out text says of it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from msgspec import Meta

from fewbits.records.base import Record
from fewbits.records.estimate import Estimate
from fewbits.records.summary import VerdictCode
from fewbits.records.variant import Sha256

RECIPE_SCHEMA = "fewbits.recipe.v1"
RECIPE_MANIFEST_SCHEMA = "fewbits.recipe_manifest.v1"
RECIPE_PLAN_SCHEMA = "fewbits.recipe_plan.v1"
PROBE_SCHEMA = "fewbits.recipe_probe.v1"
RECIPE_TAG_PREFIX = "recipe-"


class Recipe(Record, frozen=True, kw_only=True):
    """A ggml type for every quantized tensor of a model. Its digest is its identity: its tag is `recipe-<12 digits>`."""

    schema_version: str = RECIPE_SCHEMA
    source_sha256: Sha256
    """Digest of the file that the weights are taken from (the float reference, or the user's own float file)."""
    tensor_types: dict[str, str]
    """Tensor name -> ggml type (`Q5_K`). Tensors that are not named stay as they are in the source."""
    imatrix_sha256: Sha256 | None = None
    """Digest of the importance matrix that the rows were quantized with."""


class ExcludedOption(StrEnum):
    """Why a type is no candidate for a group."""

    ROW_WIDTH = "ROW_WIDTH"
    """A block of the type does not divide the rows."""
    SOURCE_GRID = "SOURCE_GRID"
    """The source was quantized on this type's grid, so it would be lossless by construction: no evidence about bits."""
    NEEDS_IMATRIX = "NEEDS_IMATRIX"
    DOMINATED = "DOMINATED"
    """Another option of the group is no larger and certainly diverges less."""


class ProbeStatus(StrEnum):
    """How a probe ended."""

    OK = "OK"
    FAILED = "FAILED"


class ProbeRow(Record, frozen=True, kw_only=True):
    """A row of `probes.jsonl`: one group at one type, everything else at the reference's precision, some windows of the text."""

    schema_version: str = PROBE_SCHEMA
    search_digest: Sha256
    """What was asked: source, groups, text, windows, imatrix, engine. Rows of another search do not count."""
    group: str
    ggml_type: str
    first_window: int
    kl_nats: tuple[float, ...]
    """Mean KL(reference || probe) of each window from `first_window` on, nats per token; empty when the probe failed."""
    status: ProbeStatus
    detail: str = ""
    wall_seconds: float


class RecipeOption(Record, frozen=True, kw_only=True):
    """One type that a group could have."""

    ggml_type: str
    bytes: int
    """Bytes of the group's tensors at this type."""
    kl_nats: float | None
    """Estimate that the choice was made with; `None` when the option was never probed."""
    kl_low: float | None
    kl_high: float | None
    windows: int
    """Windows that were read: clear cases got few."""
    excluded: ExcludedOption | None = None
    detail: str = ""


class RecipeGroup(Record, frozen=True, kw_only=True):
    """Tensors that get one type together: a kind of tensor in a band of depth."""

    name: str
    """`attn_v/0-5`, `token_embd`."""
    kind: str
    first_layer: int | None
    last_layer: int | None
    tensors: tuple[str, ...]
    weights: int
    row_width: int
    options: tuple[RecipeOption, ...]
    """Fewest bytes first."""
    chosen: str | None
    """ggml type in the recipe."""


class RecipeBudget(Record, frozen=True, kw_only=True):
    """What the file may weigh."""

    asked: str
    """As written: `--like Q4_K_M`, `5.0bpw`, `700MB`."""
    bytes: int
    """Largest file size, bytes."""


class RecipePlan(Record, frozen=True, kw_only=True):
    """`recipe_plan.json`: everything that was asked and that decides the result. A folder holds results of one plan."""

    schema_version: str = RECIPE_PLAN_SCHEMA
    model_id: str
    reference_sha256: Sha256
    """The float file that every file here is made from."""
    budgets: tuple[RecipeBudget, ...]
    stock_tags: tuple[str, ...]
    """The stock file beside each budget."""
    bands: Annotated[int, Meta(ge=0)]
    """Bands of depth; 0: every layer alone."""
    types: tuple[str, ...]
    source_grid: str
    """`exclude`: types on the source's own grid are no candidates; `allow`: they are."""
    off_grid_seed: int | None
    imatrix_sha256: Sha256 | None
    probe_text: str
    probe_text_digest: str
    probe_windows: int
    held_out_text: str
    held_out_text_digest: str
    held_out_windows: int
    window_tokens: int
    score_source: str
    """`probes`, `autoquant`, or `given` (a recipe was brought)."""
    scores_sha256: tuple[Sha256, ...] = ()
    """Digests of the imported manifests, or of the recipe that was brought."""
    tasks: str
    """Task bank and how many of its tasks; empty: none."""
    seed: Annotated[int, Meta(ge=0)] = 0


class HeldOut(Record, frozen=True, kw_only=True):
    """One file on held-out text."""

    label: str
    """`recipe`, `stock Q4_K_M`, `embedding pinned`, `simple rule`, `pure Q4_0`."""
    bytes: int
    bits_per_weight: float
    sha256: Sha256 | None
    kl_nats: Estimate | None
    top_token_agreement: Estimate | None
    against_stock: Estimate | None
    """Paired: 1 - mean KL of this file / mean KL of the stock file; positive is better than stock. `None` for stock itself."""
    types: dict[str, int]
    """ggml type -> number of tensors, read from the file."""
    unavailable: str = ""


class TaskComparison(Record, frozen=True, kw_only=True):
    """The recipe against the stock file on tasks."""

    bank: str
    items: int
    difference: Estimate | None
    """Mean adherence of the recipe minus the stock file's, -1..1, paired by task."""
    verdict: VerdictCode | None
    run: str
    """Folder of the sweep, relative to the manifest."""
    unavailable: str = ""


class RecipeVerdict(StrEnum):
    """What the evidence supports."""

    BETTER = "BETTER"
    """Held-out divergence is lower than the stock file's beyond its interval, and the tasks do not say worse."""
    NOT_BETTER = "NOT_BETTER"
    """Held-out divergence is not lower, or the tasks say worse."""
    UNRESOLVED = "UNRESOLVED"


class RecipeManifest(Record, frozen=True, kw_only=True):
    """`recipe_manifest.json`: the recipe with its evidence."""

    schema_version: str = RECIPE_MANIFEST_SCHEMA
    model_id: str
    tag: str
    recipe: Recipe
    budget: RecipeBudget
    file: str
    """GGUF beside the manifest."""
    file_sha256: Sha256
    file_bytes: int
    bits_per_weight: float
    reference_scheme: str
    off_grid_seed: int | None
    """Seed of the half-step noise that took the reference off the source's grid; `None`: weights as they are."""
    probe_text: str
    probe_text_digest: str
    held_out_text: str
    held_out_text_digest: str
    score_source: str
    """`probes`, `given`, or `autoquant` with the digest of the manifest (of several: of their digests) in `scores_sha256`."""
    scores_sha256: Sha256 | None = None
    groups: tuple[RecipeGroup, ...]
    predicted_kl_nats: float | None
    """Sum of the chosen options' estimates: the additive model."""
    measured_kl_nats: float | None
    """On the held-out text."""
    prediction_error: float | None
    """predicted / measured - 1."""
    held_out: tuple[HeldOut, ...]
    tasks: TaskComparison | None
    verdict: RecipeVerdict
    recommended: str
    """`recipe`, or the stock tag."""
    why: str
    stock_tag: str
    probes: int
    probe_windows: int
    """Windows read over all probes, and what probing every option on all windows would have read."""
    exhaustive_windows: int
    probe_wall_seconds: float
    total_wall_seconds: float
    command: str
    """Reproduces the recipe (`fewbits recipe ...`)."""
    quantize_command: str
    """Makes the same tensors with llama.cpp's own tool."""
    engine: str
    engine_version: str
    warnings: tuple[str, ...] = ()
    seed: Annotated[int, Meta(ge=0)] = 0
