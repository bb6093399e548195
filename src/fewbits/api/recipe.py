"""Recipes: a type for every tensor of a GGUF under a size budget, built, and proved on text that it was not made with."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fewbits.analysis.knapsack import Option, choose
from fewbits.analysis.recipe_rules import pure_recipe, simple_recipe
from fewbits.analysis.recipe_verdict import RecipeEvidence, judge_recipe
from fewbits.analysis.wording import count
from fewbits.api.recipe_bench import (
    RecipeTools,
    held_out_bench,
    probe_bench,
    real_tools,
    source_file,
)
from fewbits.api.recipe_costs import Costs, GraftProber, Question, probed_costs, scored_costs
from fewbits.api.recipe_layout import Layout
from fewbits.api.recipe_plan import (
    BASE_TYPE,
    EQUAL_SIZE,
    MANIFEST_NAME,
    PLAN_NAME,
    PROBES_NAME,
    RECIPE_NAME,
    RESULTS,
    SCRATCH_NAME,
    TASKS_NAME,
    TYPES_NAME,
    Lab,
    Target,
    find_targets,
    open_lab,
    pin_plan,
    score_source,
    silent,
)
from fewbits.api.recipe_proof import HeldOutBench, ProofFile, unmeasured
from fewbits.api.recipe_request import (
    CheckedRequest,
    RecipeRequest,
    SourceGrid,
    check_request,
    command_of,
    model_stem,
)
from fewbits.core.codec import decode, encode_pretty, storable
from fewbits.core.errors import SpecError
from fewbits.core.files import atomic_write, sha256_file
from fewbits.quantizers.llamacpp.gguf_file import read_gguf
from fewbits.quantizers.llamacpp.grains import GrainCache
from fewbits.quantizers.llamacpp.tensor_types import (
    TensorGroup,
    check_type_names,
    complete_types,
    tensor_type_flags,
    tensor_type_lines,
)
from fewbits.records.divergence import WindowDivergence
from fewbits.records.recipe import (
    HeldOut,
    Recipe,
    RecipeGroup,
    RecipeManifest,
    RecipeOption,
    RecipeVerdict,
    TaskComparison,
)
from fewbits.records.schemes import recipe_tag
from fewbits.report.recipe import PICTURE_NAME, REPORT_NAME, render_recipe_markdown
from fewbits.report.recipe_picture import render_layers_svg
from fewbits.store.folders import hold_folder, set_aside
from fewbits.store.sensitivity_runs import read_finished_manifest
from fewbits.sweep.progress import SweepObserver


def make_recipe(request: RecipeRequest, observer: SweepObserver, tools: RecipeTools | None = None) -> tuple[RecipeManifest, ...]:
    """Search, build and prove a recipe for every budget of the request, and write its folder. Goes on where a run stopped.

    Raises `SpecError` (bad input, an infeasible budget), `PrerequisiteError`, `BackendError`, `StoreError` (the folder is not
    writable, in use, or holds another recipe).
    """
    started = time.perf_counter()
    checked = check_request(request)
    check_type_names(request.types, "--types")
    for path in request.scores:
        read_finished_manifest(path)
    tools = tools or real_tools(request)
    source = tools.quantizer.resolve(request.model, observer.notice)
    source_file(source)
    busy = f"{checked.out_dir} is in use by another recipe: wait for it to end, or choose another folder with --out-dir."
    with hold_folder(checked.out_dir, busy), _clean_scratch(checked.out_dir), GrainCache(tools.grains) as grains:
        if request.fresh and (shelf := set_aside(checked.out_dir, _owned(checked))):
            observer.notice(f"the earlier recipe was moved to {shelf}")
        lab = open_lab(checked, tools, source, (observer, grains, started))
        targets = find_targets(lab)
        pin_plan(lab, targets)
        costs = _costs(lab, targets)
        return tuple(_prove_and_write(lab, target, costs) for target in targets)


@contextmanager
def _clean_scratch(root: Path) -> Iterator[None]:
    scratch = root / SCRATCH_NAME
    shutil.rmtree(scratch, ignore_errors=True)  # what a killed run left
    scratch.mkdir()
    try:
        yield
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _owned(checked: CheckedRequest) -> list[Path]:
    root = checked.out_dir
    names = [PLAN_NAME, PROBES_NAME, *RESULTS]
    folders = [root / budget.slug for budget in checked.budgets] if len(checked.budgets) > 1 else []
    files = sorted(root.glob(f"{model_stem(checked.request.model)}-recipe-*.gguf"))
    return [*(root / name for name in names), *files, *folders]


# --- choosing --------------------------------------------------------------------------------------------------------


def _costs(lab: Lab, targets: Sequence[Target]) -> Costs | None:
    """What every type of every group costs, and the choice for each budget; `None` where a recipe was brought."""
    if lab.given is not None:
        return None
    fixed = lab.layout.fixed_bytes
    budgets = {target.budget.slug: target.record.bytes - fixed for target in targets}
    for target in targets:
        equal = target.stock.proof.file.bytes - fixed
        if target.equal_slug and sum(min(sizes.values()) for sizes in lab.layout.sizes.values()) <= equal:
            budgets[target.equal_slug] = equal
    prober = GraftProber(
        layout=lab.layout,
        build=lab.build,
        file=lab.scratch / "probe.gguf",
        teacher=lambda: probe_bench(lab.tools, lab.checked, lab.reference, lab.observer.notice).teacher(),
        open_prober=lambda teacher: lab.tools.open_prober(teacher, lab.request),
    )
    identity = {
        "reference_sha256": lab.reference.sha256,
        "imatrix_sha256": lab.imatrix[1] if lab.imatrix else None,
        "engine_version": held_out_bench(lab.tools, lab.checked, lab.reference, silent).engine[1],
    }
    with prober:
        question = Question(lab.layout, budgets, lab.checked, prober, lab.checked.out_dir / PROBES_NAME, identity)
        find = scored_costs if lab.request.scores else probed_costs
        return find(question, lab.observer.notice)


def _recipe_types(lab: Lab, target: Target, costs: Costs | None) -> dict[str, str]:
    if costs is None:
        given = lab.given
        return dict(given.tensor_types) if given is not None else {}
    return lab.layout.tensor_types(costs.choices[target.budget.slug].picks)


def _rivals(lab: Lab, target: Target, costs: Costs | None) -> Iterator[tuple[str, dict[str, str] | None, str]]:
    """Every other file of the same budget: label, tensor types (`None`: there is none), why not."""
    room = target.record.bytes - lab.layout.fixed_bytes
    if target.equal_slug:
        choice = costs.choices.get(target.equal_slug) if costs else None
        types = lab.layout.tensor_types(choice.picks) if choice else None
        yield EQUAL_SIZE, types, "no recipe of that size was searched"
    pinned = _pinned(lab, target, costs)
    yield "embedding pinned", pinned, "no choice fits with the embedding at the stock file's type, or none was searched"
    rule_groups = lab.layout.rule_groups()
    simple = simple_recipe(rule_groups, room)
    yield "simple rule", lab.layout.tensor_types(simple) if simple else None, "nothing fits the budget by that rule"
    pure = pure_recipe(rule_groups, room)
    label = f"pure {pure[0]}" if pure else "pure"
    yield label, lab.layout.tensor_types(pure[1]) if pure else None, "no single type fits the budget"


def _pinned(lab: Lab, target: Target, costs: Costs | None) -> dict[str, str] | None:
    """The best choice with the embedding at the stock file's own type: what the recipe owes to the rest."""
    if costs is None:
        return None
    stock_kinds = {tensor.name: tensor.kind.name for tensor in target.stock.proof.file.tensors}
    fixed = {group.name: stock_kinds[group.tensors[0].name] for group in lab.layout.embeddings}
    room = target.record.bytes - lab.layout.fixed_bytes
    room -= sum(lab.layout.group_bytes(name, kind) for name, kind in fixed.items())
    options = {
        name: [Option(kind, lab.layout.sizes[name][kind], cost) for kind, cost in found.items()]
        for name, found in costs.costs.items()
        if name not in fixed
    }
    try:
        picks = choose(options, room).picks
    except SpecError:
        return None
    return lab.layout.tensor_types({**picks, **fixed})


# --- proving and writing ---------------------------------------------------------------------------------------------


def _prove_and_write(lab: Lab, target: Target, costs: Costs | None) -> RecipeManifest:
    types = _recipe_types(lab, target, costs)
    recipe = lab.recipe_of(types)
    tag = recipe_tag(recipe)
    path = target.folder / f"{model_stem(lab.request.model)}-{tag}.gguf"
    target.folder.mkdir(parents=True, exist_ok=True)
    lab.observer.notice(f"building {path.name}")
    lab.build(types, path)
    own = ProofFile("recipe", path, sha256_file(path), read_gguf(path))
    bench = held_out_bench(lab.tools, lab.checked, lab.reference, lab.observer.notice)
    rows = _held_out(lab, target, costs, (bench, own))
    tasks = _tasks(lab, target, recipe)
    reductions = {row.label: row.against_stock for row in rows}
    verdict, why = judge_recipe(
        RecipeEvidence(
            recipe_bytes=own.file.bytes,
            stock_bytes=target.stock.proof.file.bytes,
            stock_tag=target.stock.tag,
            reduction=reductions["recipe"],
            equal_size=reductions.get(EQUAL_SIZE) if target.equal_slug else reductions["recipe"],
            tasks=tasks.verdict if tasks else None,
        )
    )
    manifest = _manifest(lab, target, costs, _Proof(recipe, tag, own, rows, tasks, verdict, why, bench.engine))
    _write(lab, target, manifest)
    return manifest


def _held_out(lab: Lab, target: Target, costs: Costs | None, own: tuple[HeldOutBench, ProofFile]) -> tuple[HeldOut, ...]:
    bench, recipe = own
    stock = target.stock.proof
    stock_windows = bench.windows(stock)
    rows = [bench.summed_up(recipe, bench.windows(recipe), stock_windows), bench.summed_up(stock, stock_windows, None)]
    for label, types, why_not in _rivals(lab, target, costs):
        rows.append(unmeasured(label, why_not) if types is None else _rival_row(lab, bench, (label, types), stock_windows))
    return tuple(rows)


def _rival_row(lab: Lab, bench: HeldOutBench, rival: tuple[str, dict[str, str]], stock: tuple[WindowDivergence, ...]) -> HeldOut:
    label, types = rival
    path = lab.scratch / "rival.gguf"
    lab.build(types, path)
    try:
        file = ProofFile(label, path, sha256_file(path), read_gguf(path))
        return bench.summed_up(file, bench.windows(file), stock)
    finally:
        path.unlink(missing_ok=True)


def _tasks(lab: Lab, target: Target, recipe: Recipe) -> TaskComparison | None:
    """Keep the recipe on the shelf, so that sweeps know its tag, and run the tasks."""
    tag = lab.tools.shelf.put(recipe, lab.imatrix_path)
    stock_tag = target.stock.tag
    if lab.imatrix is not None:
        # the tag alone would be built without the matrix
        kinds = {tensor.name: tensor.kind.name for tensor in target.stock.proof.file.tensors}
        stock_tag = lab.tools.shelf.put(lab.recipe_of(kinds), lab.imatrix_path)
    model = str(lab.reference.file.path) if lab.request.off_grid_seed is not None else lab.request.model
    return lab.tools.run_tasks(lab.request, model, (stock_tag, tag), target.folder / TASKS_NAME, lab.observer)


@dataclass(frozen=True, slots=True)
class _Proof:
    """What a target's proof left."""

    recipe: Recipe
    tag: str
    own: ProofFile
    rows: tuple[HeldOut, ...]
    tasks: TaskComparison | None
    verdict: RecipeVerdict
    why: str
    engine: tuple[str, str]


def _manifest(lab: Lab, target: Target, costs: Costs | None, proof: _Proof) -> RecipeManifest:
    request, checked = lab.request, lab.checked
    measured = proof.rows[0].kl_nats.value if proof.rows[0].kl_nats else None
    predicted = costs.predicted.get(target.budget.slug) if costs else None
    return RecipeManifest(
        model_id=request.model,
        tag=proof.tag,
        recipe=proof.recipe,
        budget=target.record,
        file=proof.own.path.name,
        file_sha256=proof.own.sha256,
        file_bytes=proof.own.file.bytes,
        bits_per_weight=proof.own.file.bits_per_weight,
        reference_scheme=lab.reference.words,
        off_grid_seed=request.off_grid_seed,
        probe_text=checked.probe[0].name,
        probe_text_digest=checked.probe[0].digest,
        held_out_text=checked.held_out[0].name,
        held_out_text_digest=checked.held_out[0].digest,
        score_source=score_source(request),
        scores_sha256=costs.scores_sha256 if costs else None,
        groups=tuple(_group(lab.layout, group, costs, proof.recipe) for group in lab.layout.groups),
        predicted_kl_nats=predicted,
        measured_kl_nats=measured,
        prediction_error=predicted / measured - 1 if predicted is not None and measured else None,
        held_out=proof.rows,
        tasks=proof.tasks,
        verdict=proof.verdict,
        recommended="recipe" if proof.verdict is RecipeVerdict.BETTER else target.stock.tag,
        why=proof.why,
        stock_tag=target.stock.tag,
        probes=costs.probes if costs else 0,
        probe_windows=costs.windows_read if costs else 0,
        exhaustive_windows=costs.exhaustive_windows if costs else 0,
        probe_wall_seconds=costs.wall_seconds if costs else 0.0,
        total_wall_seconds=round(time.perf_counter() - lab.started, 3),
        command=storable(command_of(request)),
        quantize_command=storable(_quantize_command(lab, proof)),
        engine=proof.engine[0],
        engine_version=proof.engine[1],
        warnings=(*lab.warnings, *_stock_warnings(lab, target), *(costs.warnings if costs else ())),
        seed=request.seed,
    )


def _stock_warnings(lab: Lab, target: Target) -> list[str]:
    """What a reader must know of the stock file: above all, whether it has types that the recipe was denied."""
    warnings = list(target.stock.warnings)
    if lab.request.source_grid is SourceGrid.EXCLUDE:
        on_grid = lab.reference.source_types
        lossless = [
            tensor for tensor in target.stock.proof.file.tensors if tensor.kind.name in on_grid.get(tensor.name, frozenset())
        ]
        if lossless:
            warnings.append(
                f"{count(len(lossless), 'tensor')} of stock {target.stock.tag} lie on the source's own grid: they lose nothing "
                "by construction, and the recipe was denied those types: this favours the stock file, --off-grid SEED is fair."
            )
    return warnings


def _group(layout: Layout, group: TensorGroup, costs: Costs | None, recipe: Recipe) -> RecipeGroup:
    found = costs.options.get(group.name, {}) if costs else {}
    options = []
    for name, size, excluded, detail in layout.candidates[group.name]:
        known = found.get(name)
        options.append(
            RecipeOption(
                ggml_type=name,
                bytes=layout.sizes[group.name].get(name, size),
                kl_nats=known.kl if known else None,
                kl_low=known.low if known else None,
                kl_high=known.high if known else None,
                windows=known.windows if known else 0,
                excluded=excluded or (known.excluded if known else None),
                detail=detail or (known.detail if known else ""),
            )
        )
    return RecipeGroup(
        name=group.name,
        kind=group.kind,
        first_layer=group.first_layer,
        last_layer=group.last_layer,
        tensors=tuple(tensor.name for tensor in group.tensors),
        weights=group.weights,
        row_width=group.row_width,
        options=tuple(options),
        chosen=layout.chosen_type(group, recipe.tensor_types),
    )


def _quantize_command(lab: Lab, proof: _Proof) -> str:
    """The command of llama.cpp's own tool; file names without folders, since folders are this machine's."""
    import shlex

    types = complete_types(lab.reference.file, proof.recipe.tensor_types)
    words = ["llama-quantize", "--tensor-type-file", TYPES_NAME, *tensor_type_flags(types)]
    words += ["--imatrix", lab.imatrix[0].name] if lab.imatrix else []
    return shlex.join([*words, lab.reference.file.path.name, proof.own.path.name, BASE_TYPE])


def _write(lab: Lab, target: Target, manifest: RecipeManifest) -> None:
    """Write everything but the model file; the manifest last, so that a folder that has one is whole."""
    folder = target.folder
    types = complete_types(lab.reference.file, manifest.recipe.tensor_types)
    atomic_write(folder / TYPES_NAME, tensor_type_lines(types).encode())
    atomic_write(folder / RECIPE_NAME, encode_pretty(manifest.recipe))
    data = encode_pretty(manifest)
    manifest = decode(data, RecipeManifest, MANIFEST_NAME)  # keys in the file's order
    atomic_write(folder / REPORT_NAME, render_recipe_markdown(manifest).encode())
    atomic_write(folder / PICTURE_NAME, render_layers_svg(manifest).encode())
    for stale in folder.glob(f"{model_stem(lab.request.model)}-recipe-*.gguf"):
        if stale.name != manifest.file:
            stale.unlink()
    atomic_write(folder / MANIFEST_NAME, data)
