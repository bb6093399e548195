"""What a recipe's run begins with: reference, layout, budgets with their stock files, and a plan that pins them; the dry run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewbits.api.recipe_bench import (
    RecipeTools,
    Reference,
    Stock,
    importance_file,
    largest_fitting,
    make_reference,
    make_stock,
    real_tools,
    source_file,
    stock_tags_by_size,
)
from fewbits.api.recipe_layout import Layout, grid_of, lay_out, layout_document
from fewbits.api.recipe_request import (
    CheckedBudget,
    CheckedRequest,
    RecipeRequest,
    SourceGrid,
    check_request,
)
from fewbits.core.codec import decode, encode_pretty, storable, to_builtins
from fewbits.core.errors import SpecError, StoreError
from fewbits.core.files import atomic_write, sha256_file
from fewbits.quantizers.llamacpp.grains import GrainCache
from fewbits.quantizers.llamacpp.importance import read_imatrix
from fewbits.quantizers.llamacpp.off_grid import source_grids
from fewbits.quantizers.llamacpp.recipe_build import build_recipe
from fewbits.quantizers.llamacpp.tensor_types import (
    DEFAULT_TYPES,
    check_type_names,
)
from fewbits.records.recipe import (
    Recipe,
    RecipeBudget,
    RecipePlan,
)
from fewbits.records.variant import ModelSource
from fewbits.report.recipe import PICTURE_NAME, REPORT_NAME
from fewbits.spec.file_budget import read_budget
from fewbits.store.summaries import read_bounded
from fewbits.sweep.progress import SweepObserver

PLAN_NAME = "recipe_plan.json"
RECIPE_NAME = "recipe.json"
MANIFEST_NAME = "recipe_manifest.json"
TYPES_NAME = "tensor_types.txt"
PROBES_NAME = "probes.jsonl"
TASKS_NAME = "tasks"
SCRATCH_NAME = ".scratch"
RESULTS = (RECIPE_NAME, MANIFEST_NAME, TYPES_NAME, REPORT_NAME, PICTURE_NAME, TASKS_NAME)
EQUAL_SIZE = "recipe at the stock file's size"
BASE_TYPE = "Q8_0"
"""llama-quantize heeds its tensor types only above a quantized base type."""


@dataclass(frozen=True, slots=True)
class Target:
    """One budget of the request, with its stock file and where its results go."""

    budget: CheckedBudget
    record: RecipeBudget
    stock: Stock
    folder: Path

    @property
    def equal_slug(self) -> str | None:
        """Name of the budget that is the stock file's own size, where the budget itself is larger."""
        return f"{self.budget.slug}, stock size" if self.record.bytes > self.stock.proof.file.bytes else None


@dataclass(slots=True)
class Lab:
    """Everything that the steps of a run share. `imatrix` is a path with its sha256; `started` a reading of the clock."""

    checked: CheckedRequest
    tools: RecipeTools
    observer: SweepObserver
    reference: Reference
    layout: Layout
    imatrix: tuple[Path, str] | None
    given: Recipe | None
    grains: GrainCache
    started: float
    warnings: list[str] = field(default_factory=list)

    @property
    def request(self) -> RecipeRequest:
        """What was asked."""
        return self.checked.request

    @property
    def scratch(self) -> Path:
        """Folder for files that are measured and removed."""
        return self.checked.out_dir / SCRATCH_NAME

    @property
    def imatrix_path(self) -> Path | None:
        """The importance matrix, where there is one."""
        return self.imatrix[0] if self.imatrix else None

    def recipe_of(self, types: Mapping[str, str]) -> Recipe:
        """Types as a recipe; tensors that keep the reference's type are not named."""
        kinds = {tensor.name: tensor.kind.name for tensor in self.reference.file.tensors}
        return Recipe(
            source_sha256=self.reference.sha256,
            tensor_types={name: kind for name, kind in sorted(types.items()) if kinds.get(name) != kind},
            imatrix_sha256=self.imatrix[1] if self.imatrix else None,
        )

    def build(self, types: Mapping[str, str], output: Path) -> None:
        """Write the file of these types."""
        named = self.recipe_of(types).tensor_types
        path = self.reference.file.path
        build_recipe(path, named, output, imatrix=self.imatrix_path, cache=self.grains, progress=silent)


def silent(_: str) -> None:
    """Builds are announced by who asks for them."""


def open_lab(
    checked: CheckedRequest, tools: RecipeTools, source: ModelSource, rest: tuple[SweepObserver, GrainCache, float]
) -> Lab:
    """Make the reference, read the importance matrix and lay the model out. Raises what these raise."""
    observer, grains, started = rest
    request = checked.request
    types = request.types or DEFAULT_TYPES
    reference = make_reference(tools, source, request.off_grid_seed, types, observer.notice)
    imatrix = importance_file(tools, checked, reference, observer.notice)
    layout = _layout(request, reference, has_imatrix=imatrix is not None)
    given = _given_recipe(request, reference, imatrix)
    lab = Lab(checked, tools, observer, reference, layout, imatrix, given, grains, started)
    lab.warnings += _reference_warnings(request, reference)
    return lab


def _layout(request: RecipeRequest, reference: Reference, *, has_imatrix: bool) -> Layout:
    excluded = reference.source_types if request.source_grid is SourceGrid.EXCLUDE else {}
    bands = request.bands if request.recipe is None else 0
    types = request.types or DEFAULT_TYPES
    return lay_out(reference.file, bands=bands, types=types, source_types=excluded, has_imatrix=has_imatrix)


def _reference_warnings(request: RecipeRequest, reference: Reference) -> list[str]:
    warnings = []
    if request.off_grid_seed is not None:
        warnings.append(
            "The reference is the dequantized source plus half-step noise (--off-grid): files made from it show how types "
            "compare, they are not for use."
        )
    elif reference.source_types and request.source_grid is SourceGrid.ALLOW:
        names = ", ".join(sorted(frozenset[str]().union(*reference.source_types.values())))
        warnings.append(
            f"Types on the source's own grid were allowed ({names}): they are lossless by construction here, which says nothing "
            "about how few bits the model needs."
        )
    elif reference.words.startswith("dequantized"):
        warnings.append(
            "The source is already quantized, so the reference is what is left of the weights: types near the source's own look "
            "better than they are. --off-grid SEED shows by how much."
        )
    return warnings


def _given_recipe(request: RecipeRequest, reference: Reference, imatrix: tuple[Path, str] | None) -> Recipe | None:
    """Read the recipe of `--from`. Raises `SpecError`: not one, made for other weights or with another importance matrix."""
    if request.recipe is None:
        return None
    where = "--from"
    hint = f"give the {RECIPE_NAME} of an earlier search"
    try:
        recipe = decode(read_bounded(request.recipe, "recipe", hint), Recipe, str(request.recipe))
    except StoreError as error:
        raise SpecError.single(where, storable(str(error)), hint) from error
    if recipe.source_sha256 != reference.sha256:
        message = (
            f"{request.recipe} was made for other weights (sha256 {recipe.source_sha256[:12]}..., not {reference.sha256[:12]}...)"
        )
        raise SpecError.single(where, message, "give the model that it was searched on, with the same --off-grid")
    if recipe.imatrix_sha256 != (imatrix[1] if imatrix else None):
        message = f"{request.recipe} was made with {'another' if recipe.imatrix_sha256 else 'no'} importance matrix"
        raise SpecError.single(where, message, "give the same --imatrix or --calibrate as for the search")
    return recipe


def find_targets(lab: Lab) -> list[Target]:
    """Find each budget's bytes and stock file, building it. Raises `SpecError` for a budget that nothing fits."""
    return [_target(lab, budget) for budget in lab.checked.budgets]


def _target(lab: Lab, budget: CheckedBudget) -> Target:
    layout, folder = lab.layout, lab.checked.folder_of(budget)
    if budget.like is not None:
        lab.tools.quantizer.check(lab.reference.source, budget.like)
        stock = make_stock(lab.tools, lab.reference, budget.like, lab.imatrix, lab.observer.notice)
        limit = stock.proof.file.bytes
        if lab.given is None:
            layout.refuse_too_small(limit, budget.asked, minimum_in_megabytes(layout))
        return Target(budget, RecipeBudget(asked=budget.asked, bytes=limit), stock, folder)
    limit = _limit(lab, budget)
    stock = _stock_for(lab, limit)
    return Target(budget, RecipeBudget(asked=budget.asked, bytes=limit), stock, folder)


def _limit(lab: Lab, budget: CheckedBudget) -> int:
    """The budget in bytes, checked against the smallest file."""
    if budget.size is None:
        given = lab.given
        if given is None:
            msg = "a budget without a size comes only with a recipe"
            raise AssertionError(msg)
        return lab.layout.fixed_bytes + sum(
            lab.layout.group_bytes(group.name, lab.layout.chosen_type(group, given.tensor_types) or "F16")
            for group in lab.layout.groups
        )
    limit = file_bytes_of(lab.layout, budget)
    refuse_infeasible(lab.layout, budget)
    return limit


def minimum_in_megabytes(layout: Layout) -> str:
    """Return the smallest file that may be chosen as a budget in MB."""
    size = read_budget("1MB").words_for(layout.smallest_bytes, weights=layout.file.weights, overhead_bytes=0)
    return f"--budget {size}"


def file_bytes_of(layout: Layout, budget: CheckedBudget) -> int:
    """Return a size budget in bytes of the whole file."""
    if budget.size is None:
        msg = f"{budget.asked} is no size"
        raise ValueError(msg)
    return budget.size.file_bytes(weights=layout.file.weights, overhead_bytes=layout.file.header.data_start)


def refuse_infeasible(layout: Layout, budget: CheckedBudget) -> None:
    """Raise `SpecError` with the minimum, in the budget's own unit, when even the smallest types do not fit."""
    if budget.size is None:
        return
    words = budget.size.words_for(
        layout.smallest_bytes, weights=layout.file.weights, overhead_bytes=layout.file.header.data_start
    )
    layout.refuse_too_small(file_bytes_of(layout, budget), budget.asked, words)


def _stock_for(lab: Lab, limit: int) -> Stock:
    """Build the largest stock file that fits; where none does, the smallest there is."""
    tags = largest_fitting(stock_tags_by_size(lab.tools, lab.reference.source), limit)
    stock = None
    for tag in tags:
        stock = make_stock(lab.tools, lab.reference, tag, lab.imatrix, lab.observer.notice)
        if stock.proof.file.bytes <= limit:
            return stock
    if stock is None:
        raise SpecError.single("--budget", "no stock file can be built of this model", "name one with --like")
    return stock


def pin_plan(lab: Lab, targets: Sequence[Target]) -> None:
    """Write the plan, or check that the folder's one is the same. Raises `StoreError` naming what differs."""
    plan, root = _plan(lab, targets), lab.checked.out_dir
    path = root / PLAN_NAME
    if path.exists():
        present = decode(path.read_bytes(), RecipePlan, str(path))
        if present == plan:
            return
        ours, theirs = to_builtins(plan), to_builtins(present)
        differs = "".join(f"\n  - {key}: {ours[key]} now, {theirs[key]} then" for key in ours if ours[key] != theirs[key])
        msg = (
            f"{root} holds another recipe, and results of two must not mix. What differs:{storable(differs)}\n"
            "Use --fresh to start over (the old one is kept in superseded/), or another --out-dir."
        )
        raise StoreError(msg)
    if foreign := [name for name in (MANIFEST_NAME, RECIPE_NAME, PROBES_NAME) if (root / name).exists()]:
        msg = f"{root} holds {foreign[0]} but no {PLAN_NAME}: choose another --out-dir, or use --fresh to set it aside."
        raise StoreError(msg)
    atomic_write(path, encode_pretty(plan))


def _plan(lab: Lab, targets: Sequence[Target]) -> RecipePlan:
    request, checked = lab.request, lab.checked
    brought = [*request.scores, *([request.recipe] if request.recipe else [])]
    return RecipePlan(
        model_id=request.model,
        reference_sha256=lab.reference.sha256,
        budgets=tuple(target.record for target in targets),
        stock_tags=tuple(target.stock.tag for target in targets),
        bands=request.bands,
        types=tuple(request.types or DEFAULT_TYPES),
        source_grid=request.source_grid.value,
        off_grid_seed=request.off_grid_seed,
        imatrix_sha256=lab.imatrix[1] if lab.imatrix else None,
        probe_text=checked.probe[0].name,
        probe_text_digest=checked.probe[0].digest,
        probe_windows=request.probe_windows,
        held_out_text=checked.held_out[0].name,
        held_out_text_digest=checked.held_out[0].digest,
        held_out_windows=request.held_out_windows,
        window_tokens=request.window_tokens,
        score_source=score_source(request),
        scores_sha256=tuple(sha256_file(path) for path in brought),
        tasks=f"{request.tasks}, {request.task_limit or 'all'}",
        seed=request.seed,
    )


def score_source(request: RecipeRequest) -> str:
    """Return what the choice rests on: `probes`, `autoquant` or `given`."""
    return "given" if request.recipe else "autoquant" if request.scores else "probes"


def dry_run_recipe(request: RecipeRequest, tools: RecipeTools | None = None) -> dict[str, Any]:
    """Return what would be done: groups, candidates, budgets, sizes. Reads headers and some rows, writes nothing, runs no engine.

    Raises `SpecError` as `make_recipe` does. Sizes of stock files are estimates.
    """
    checked = check_request(request)
    check_type_names(request.types, "--types")
    tools = tools or real_tools(request)
    source = tools.quantizer.locate(request.model)
    file = source_file(source)
    if request.imatrix is not None:
        read_imatrix(request.imatrix, file)
    types = request.types or DEFAULT_TYPES
    on_grid = source_grids(file, types) if request.off_grid_seed is None else {}
    excluded = on_grid if request.source_grid is SourceGrid.EXCLUDE else {}
    has_imatrix = request.imatrix is not None or request.calibration_text is not None
    layout = lay_out(file, bands=request.bands, types=types, source_types=excluded, has_imatrix=has_imatrix)
    options = sum(len(sizes) for sizes in layout.sizes.values())
    return {
        "model": request.model,
        "out_dir": storable(str(checked.out_dir)),
        "source_is_quantized": file.is_quantized,
        "source_grid_types": {group.name: sorted(names) for group in layout.groups if (names := grid_of(group, on_grid))},
        "groups": layout_document(layout),
        "options": options,
        "probes_at_most": 0 if request.recipe or request.scores else options,
        "probe_windows_at_most": 0 if request.recipe or request.scores else options * request.probe_windows,
        "smallest_file_bytes": layout.smallest_bytes,
        "budgets": [_budget_document(tools, source, layout, budget) for budget in checked.budgets],
        "probe_text": checked.probe[0].name,
        "held_out_text": checked.held_out[0].name,
        "tasks": request.tasks,
    }


def _budget_document(tools: RecipeTools, source: ModelSource, layout: Layout, budget: CheckedBudget) -> dict[str, object]:
    if budget.like is not None:
        tools.quantizer.check(source, budget.like)
        return {"asked": budget.asked, "stock": budget.like, "bytes": tools.quantizer.estimate_bytes(source, budget.like)}
    if budget.size is None:
        return {"asked": budget.asked, "stock": None, "bytes": None}
    refuse_infeasible(layout, budget)
    limit = file_bytes_of(layout, budget)
    fitting = [tag for tag, size in stock_tags_by_size(tools, source) if size <= limit]
    return {"asked": budget.asked, "stock": fitting[0] if fitting else None, "bytes": limit}
