from __future__ import annotations

import dataclasses
import hashlib
import re
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

import sensitivity_samples
from fewbits.api import recipe_proof
from fewbits.api.recipe import make_recipe
from fewbits.api.recipe_layout import lay_out
from fewbits.api.recipe_plan import dry_run_recipe
from fewbits.api.recipe_request import RecipeRequest, SourceGrid, check_request, command_of
from fewbits.core.codec import decode, encode_pretty
from fewbits.core.errors import BackendError, SpecError, StoreError
from fewbits.quantizers.llamacpp.gguf_file import read_gguf
from fewbits.quantizers.llamacpp.tensor_types import planned_file_bytes
from fewbits.records.recipe import ProbeRow, Recipe, RecipeManifest, RecipeVerdict, TaskComparison
from fewbits.records.summary import VerdictCode
from fewbits.store.journal import read_journal
from fewbits.sweep.progress import SilentObserver
from recipe_fakes import LOSS, SENSITIVE, Notes, Truth, fake_tools, make_model

TYPES = ("Q4_0", "Q5_0", "Q5_1", "Q8_0")
BITS: dict[str | None, float] = {"Q4_0": 4.5, "Q5_0": 5.5, "Q5_1": 6.0, "Q8_0": 8.5}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "tiny.gguf")


@pytest.fixture
def request_(tmp_path: Path, model: Path) -> RecipeRequest:
    return RecipeRequest(
        model=str(model),
        like=("Q4_K_M",),
        out_dir=tmp_path / "out",
        bands=2,
        types=TYPES,
        probe_windows=8,
        held_out_windows=24,
        tasks="none",
    )


def made(request: RecipeRequest, folder: Path, truth: Truth | None = None, tasks: VerdictCode | None = None) -> RecipeManifest:
    (manifest,) = make_recipe(request, SilentObserver(), fake_tools(folder, truth or Truth(), tasks))
    return manifest


class TestVerdicts:
    def test_better(self, request_: RecipeRequest, tmp_path: Path) -> None:
        manifest = made(request_, tmp_path)
        assert manifest.verdict is RecipeVerdict.BETTER
        assert manifest.recommended == "recipe"
        assert manifest.file_bytes <= manifest.budget.bytes
        labels = [row.label for row in manifest.held_out]
        assert labels[:4] == ["recipe", "stock Q4_K_M", "embedding pinned", "simple rule"]
        assert labels[4].startswith("pure ")
        stock = next(row for row in manifest.held_out if row.label == "stock Q4_K_M")
        assert stock.against_stock is None
        assert stock.bytes == manifest.budget.bytes
        assert all(row.bytes <= stock.bytes for row in manifest.held_out)

    def test_it_finds_what_matters(self, request_: RecipeRequest, tmp_path: Path) -> None:
        manifest = made(request_, tmp_path)
        chosen = {group.name: group.chosen for group in manifest.groups}
        assert chosen["token_embd"] == "Q4_0"
        assert {kind for name, kind in chosen.items() if name.startswith("attn_v")} == {"Q8_0"}
        assert manifest.predicted_kl_nats == pytest.approx(manifest.measured_kl_nats, rel=0.25)

    def test_not_better_when_another_text_says_otherwise(self, request_: RecipeRequest, tmp_path: Path) -> None:
        held_out = dict.fromkeys(SENSITIVE, 0.1) | {"token_embd": 500.0}
        manifest = made(request_, tmp_path, Truth(held_out=held_out))
        assert manifest.verdict is RecipeVerdict.NOT_BETTER
        assert manifest.recommended == "Q4_K_M"
        assert "no less" in manifest.why

    def test_unresolved_when_a_text_sees_no_difference(self, request_: RecipeRequest, tmp_path: Path) -> None:
        types = made(request_, tmp_path).recipe.tensor_types
        embedding = types["token_embd.weight"]
        others = sum(LOSS["Q4_0"] - LOSS[kind] for name, kind in types.items() if name != "token_embd.weight")
        balanced = others / (LOSS[embedding] - LOSS["Q8_0"])
        truth = Truth(held_out={"token_embd": balanced}, held_out_noise=0.3)
        manifest = made(dataclasses.replace(request_, out_dir=tmp_path / "again"), tmp_path / "b", truth)
        assert manifest.recipe.tensor_types == types
        assert manifest.verdict is RecipeVerdict.UNRESOLVED
        assert manifest.recommended == "Q4_K_M"
        assert "cannot be told apart" in manifest.why

    def test_worse_on_tasks_is_not_better(self, request_: RecipeRequest, tmp_path: Path) -> None:
        manifest = made(request_, tmp_path, tasks=VerdictCode.WORSE)
        assert manifest.verdict is RecipeVerdict.NOT_BETTER
        assert manifest.recommended == "Q4_K_M"
        assert manifest.tasks is not None


class TestFiles:
    def test_everything_lies_in_the_folder(self, request_: RecipeRequest, tmp_path: Path) -> None:
        manifest = made(request_, tmp_path)
        out = tmp_path / "out"
        names = {path.name for path in out.iterdir()} - {".lock"}
        assert names == {
            manifest.file,
            "recipe_plan.json",
            "recipe.json",
            "recipe_manifest.json",
            "recipe_report.md",
            "recipe_layers.svg",
            "tensor_types.txt",
            "probes.jsonl",
        }
        assert manifest.file == f"tiny-{manifest.tag}.gguf"
        recipe = decode((out / "recipe.json").read_bytes(), Recipe, "recipe")
        kinds = {tensor.name: tensor.kind.name for tensor in read_gguf(out / manifest.file).tensors}
        assert {name: kinds[name] for name in recipe.tensor_types} == recipe.tensor_types
        assert decode((out / "recipe_manifest.json").read_bytes(), RecipeManifest, "manifest") == manifest
        assert (out / "tensor_types.txt").read_text().count("=q") == len(recipe.tensor_types) - 1
        assert "--token-embedding-type q4_0" in manifest.quantize_command
        assert str(tmp_path) not in manifest.quantize_command

    def test_another_recipe_is_not_overwritten(self, request_: RecipeRequest, tmp_path: Path) -> None:
        first = made(request_, tmp_path)
        other = dataclasses.replace(request_, bands=1)
        with pytest.raises(StoreError, match="bands: 1 now, 2 then"):
            made(other, tmp_path)
        manifest = made(dataclasses.replace(other, fresh=True), tmp_path)
        assert manifest.command.endswith("--bands 1 --probe-windows 8 --held-out-windows 24 --tasks none")
        kept = tmp_path / "out" / "superseded" / "1"
        assert decode((kept / "recipe_manifest.json").read_bytes(), RecipeManifest, "kept") == first
        assert (kept / first.file).exists()

    def test_a_folder_of_somebody_else_is_left_alone(self, request_: RecipeRequest, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "recipe.json").write_text("{}")
        with pytest.raises(StoreError, match=r"holds recipe.json but no recipe_plan.json"):
            made(request_, tmp_path)
        assert (tmp_path / "out" / "recipe.json").read_text() == "{}"

    def test_a_read_only_folder_is_said_at_once(self, request_: RecipeRequest, tmp_path: Path) -> None:
        blocked = tmp_path / "file"
        blocked.write_text("")
        truth = Truth()
        with pytest.raises(StoreError, match="cannot write"):
            made(dataclasses.replace(request_, out_dir=blocked / "out"), tmp_path, truth)
        assert truth.probes == 0

    def test_one_run_at_a_time(self, request_: RecipeRequest, tmp_path: Path) -> None:
        from fewbits.store.folders import hold_folder

        with hold_folder(tmp_path / "out", "busy"), pytest.raises(StoreError, match="in use by another recipe"):
            made(request_, tmp_path)

    def test_the_source_is_not_touched(self, request_: RecipeRequest, tmp_path: Path, model: Path) -> None:
        before = model.read_bytes()
        model.chmod(stat.S_IRUSR)
        made(request_, tmp_path)
        assert model.read_bytes() == before


class TestResume:
    def test_a_killed_search_goes_on_and_finds_the_same(self, request_: RecipeRequest, tmp_path: Path) -> None:
        whole_truth = Truth()
        whole = made(dataclasses.replace(request_, out_dir=tmp_path / "whole"), tmp_path / "a", whole_truth)
        with pytest.raises(KeyboardInterrupt):
            made(request_, tmp_path / "b", Truth(die_at_probe=7))
        assert len(read_journal(tmp_path / "out" / "probes.jsonl", ProbeRow).rows) == 6
        assert not (tmp_path / "out" / ".scratch").exists()
        rest = Truth()
        resumed = made(request_, tmp_path / "b", rest)
        assert rest.probes == whole_truth.probes - 6
        assert resumed.recipe == whole.recipe
        assert resumed.groups == whole.groups
        assert resumed.probes == whole.probes

    def test_a_finished_one_measures_nothing_again(self, request_: RecipeRequest, tmp_path: Path) -> None:
        first = made(request_, tmp_path)
        truth = Truth()
        again = made(request_, tmp_path, truth)
        assert (truth.probes, truth.compared) == (0, 0)
        assert dataclasses.asdict(request_)  # the request itself is untouched
        assert (again.recipe, again.held_out, again.verdict) == (first.recipe, first.held_out, first.verdict)

    def test_what_a_killed_run_left_is_removed(self, request_: RecipeRequest, tmp_path: Path) -> None:
        scratch = tmp_path / "out" / ".scratch"
        scratch.mkdir(parents=True)
        (scratch / "probe.gguf").write_bytes(b"half")
        made(request_, tmp_path)
        assert not scratch.exists()


class TestBudgets:
    def test_two_budgets_share_their_probes(self, request_: RecipeRequest, tmp_path: Path) -> None:
        alone = Truth()
        made(dataclasses.replace(request_, out_dir=tmp_path / "alone"), tmp_path / "a", alone)
        both = Truth()
        request = dataclasses.replace(request_, like=("Q4_K_M", "Q5_K_M"))
        manifests = make_recipe(request, SilentObserver(), fake_tools(tmp_path / "b", both, None))
        assert [manifest.stock_tag for manifest in manifests] == ["Q4_K_M", "Q5_K_M"]
        assert both.probes < 2 * alone.probes
        for tag in ("Q4_K_M", "Q5_K_M"):
            assert (tmp_path / "out" / f"like-{tag}" / "recipe_manifest.json").exists()
        assert (tmp_path / "out" / "probes.jsonl").exists()

    def test_a_budget_by_size_is_compared_with_the_largest_stock_file_that_fits(
        self, request_: RecipeRequest, tmp_path: Path
    ) -> None:
        request = dataclasses.replace(request_, like=(), budgets=("6.2bpw",))
        manifest = made(request, tmp_path)
        assert manifest.bits_per_weight <= 6.2
        assert manifest.file_bytes <= manifest.budget.bytes
        stock = next(row for row in manifest.held_out if row.label.startswith("stock"))
        assert stock.bytes <= manifest.budget.bytes
        equal = next(row for row in manifest.held_out if row.label == "recipe at the stock file's size")
        assert equal.bytes <= stock.bytes
        assert manifest.verdict is RecipeVerdict.BETTER
        assert "in no more bytes a recipe still diverges" in manifest.why

    @pytest.mark.parametrize("budget", ["0.5bpw", "20KB"])
    def test_too_small_a_budget_names_one_that_works(self, request_: RecipeRequest, tmp_path: Path, budget: str) -> None:
        truth = Truth()
        request = dataclasses.replace(request_, like=(), budgets=(budget,))
        with pytest.raises(SpecError, match="too small") as caught:
            made(request, tmp_path, truth)
        assert truth.probes == 0
        enough = re.search(r"ask for (\S+) or more", str(caught.value))
        assert enough
        manifest = made(dataclasses.replace(request, budgets=(enough.group(1),)), tmp_path)
        assert {group.chosen for group in manifest.groups} == {"Q4_0"}

    def test_a_recipe_can_be_brought(self, request_: RecipeRequest, tmp_path: Path) -> None:
        first = made(request_, tmp_path)
        truth = Truth()
        request = dataclasses.replace(request_, recipe=tmp_path / "out" / "recipe.json", out_dir=tmp_path / "again")
        manifest = made(request, tmp_path, truth)
        assert truth.probes == 0
        assert manifest.tag == first.tag
        assert manifest.file_sha256 == first.file_sha256
        assert manifest.predicted_kl_nats is None
        assert manifest.score_source == "given"
        assert next(row for row in manifest.held_out if row.label == "embedding pinned").unavailable
        alone = made(dataclasses.replace(request, like=(), out_dir=tmp_path / "alone"), tmp_path)
        assert alone.budget.bytes == alone.file_bytes

    def test_a_recipe_of_another_model_is_refused(self, request_: RecipeRequest, tmp_path: Path) -> None:
        made(request_, tmp_path)
        other = make_model(tmp_path / "other.gguf", layers=3)
        request = dataclasses.replace(
            request_, model=str(other), recipe=tmp_path / "out" / "recipe.json", out_dir=tmp_path / "again"
        )
        with pytest.raises(SpecError, match="made for other weights"):
            made(request, tmp_path)


class TestBadInput:
    def test_a_type_that_fails_is_left_out(self, request_: RecipeRequest, tmp_path: Path) -> None:
        manifest = made(request_, tmp_path, Truth(fail_type="Q5_1"))
        assert "Q5_1" not in {group.chosen for group in manifest.groups}
        failed = [option for group in manifest.groups for option in group.options if option.ggml_type == "Q5_1"]
        assert all(option.kl_nats is None and "failed" in option.detail for option in failed)

    def test_an_engine_that_never_works_ends_it(self, request_: RecipeRequest, tmp_path: Path) -> None:
        with pytest.raises(BackendError):
            made(dataclasses.replace(request_, types=("Q4_0",)), tmp_path, Truth(fail_type="Q4_0"))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"like": ("Q4_KM",)}, "did you mean Q4_K_M"),
            ({"like": ("F16",)}, "is no quantization"),
            ({"like": (), "budgets": ("5.0bp",)}, "'bp' is no unit"),
            ({"like": ()}, "there is no budget"),
            ({"held_out_text": "python-topics/probe"}, "also the text of --probe-text"),
            ({"calibration_text": "python-topics/held-out"}, "also the text of --calibrate"),
            ({"probe_text": "missing.txt"}, "--probe-text"),
            ({"probe_text": "none"}, "needs this text"),
            ({"tasks": "missing/tasks.json"}, "--tasks"),
            ({"bands": -1}, "--bands: -1"),
            ({"probe_windows": 1}, "--probe-windows: 1"),
            ({"types": ("Q9_K",)}, "unknown or unsupported ggml type 'Q9_K'"),
            ({"types": ("Q4_K",)}, "no type is left"),
            ({"model": "nope.gguf"}, "does not exist"),
            ({"off_grid_seed": 3}, "lies on no grid"),
            ({"imatrix": Path("missing.gguf")}, "missing.gguf does not exist"),
            ({"recipe": Path("missing.json")}, "missing.json does not exist"),
            ({"imatrix": Path("a"), "calibration_text": "python-topics/calibration"}, "not both"),
            ({"budgets": ("1MB",), "recipe": Path("recipe.json")}, "has its size already"),
        ],
    )
    def test_it_is_refused_before_anything_is_measured(
        self, request_: RecipeRequest, tmp_path: Path, changes: dict[str, object], message: str
    ) -> None:
        truth = Truth()
        with pytest.raises(SpecError, match=re.escape(message)):
            made(dataclasses.replace(request_, **changes), tmp_path, truth)  # type: ignore[arg-type]
        assert (truth.probes, truth.compared) == (0, 0)

    def test_every_problem_is_told_at_once(self, request_: RecipeRequest, tmp_path: Path) -> None:
        request = dataclasses.replace(request_, like=("Q4_KM",), bands=-1, held_out_text=request_.probe_text)
        with pytest.raises(SpecError) as caught:
            made(request, tmp_path)
        assert len(caught.value.problems) == 3

    @pytest.mark.parametrize("content", [b"", b"GGUF", b"{}", b"\x80\x02hello"])
    def test_no_model(self, request_: RecipeRequest, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "bad.gguf"
        path.write_bytes(content)
        with pytest.raises(SpecError, match=r"bad\.gguf"):
            made(dataclasses.replace(request_, model=str(path)), tmp_path)

    @pytest.mark.parametrize("content", ["", "{}", '{"tensor_types": 3}', "not json"])
    def test_no_recipe(self, request_: RecipeRequest, tmp_path: Path, content: str) -> None:
        path = tmp_path / "bad.json"
        path.write_text(content)
        with pytest.raises(SpecError, match="--from"):
            made(dataclasses.replace(request_, recipe=path), tmp_path)


class TestDryRun:
    def test_it_touches_nothing(self, request_: RecipeRequest, tmp_path: Path) -> None:
        truth = Truth()
        before = sorted(path.name for path in tmp_path.iterdir())
        document = dry_run_recipe(request_, fake_tools(tmp_path, truth))
        assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == before
        assert not (tmp_path / "out").exists()
        assert truth.probes == 0
        assert document["options"] == 13 * len(TYPES)
        assert document["probe_windows_at_most"] == 13 * len(TYPES) * 8

    def test_an_infeasible_budget_is_refused_there_too(self, request_: RecipeRequest, tmp_path: Path) -> None:
        with pytest.raises(SpecError, match="too small"):
            dry_run_recipe(dataclasses.replace(request_, like=(), budgets=("1bpw",)), fake_tools(tmp_path, Truth()))

    def test_a_file_that_is_no_importance_matrix_is_refused_there_too(self, request_: RecipeRequest, tmp_path: Path) -> None:
        pytest.importorskip("libgguf")
        other = tmp_path / "notes.txt"
        other.write_text("not a matrix")
        with pytest.raises(SpecError, match="no importance matrix"):
            dry_run_recipe(dataclasses.replace(request_, imatrix=other), fake_tools(tmp_path, Truth()))


class TestLayout:
    @pytest.mark.parametrize("bands", [0, 1, 2])
    def test_sizes_add_up_to_the_file(self, model: Path, bands: int) -> None:
        file = read_gguf(model)
        layout = lay_out(file, bands=bands, types=TYPES, source_types={}, has_imatrix=False)
        for pick in (0, 1, -1):
            picks = {name: list(sizes)[pick] for name, sizes in layout.sizes.items()}
            total = layout.fixed_bytes + sum(layout.sizes[name][kind] for name, kind in picks.items())
            assert total == planned_file_bytes(file, layout.tensor_types(picks))

    def test_source_types_are_left_out_by_tensor(self, model: Path) -> None:
        source_types = {"blk.1.attn_q.weight": frozenset({"Q4_0"})}
        layout = lay_out(read_gguf(model), bands=1, types=TYPES, source_types=source_types, has_imatrix=False)
        assert "Q4_0" not in layout.sizes["attn_q/0-1"]
        assert "Q4_0" in layout.sizes["attn_k/0-1"]


def test_the_command_says_what_differs_from_the_defaults(request_: RecipeRequest) -> None:
    request = RecipeRequest(model="my model.gguf", like=("Q4_K_M",), source_grid=SourceGrid.ALLOW, threads=2)
    assert command_of(request) == "fewbits recipe 'my model.gguf' --like Q4_K_M --source-grid allow --threads 2"
    assert command_of(dataclasses.replace(request, fresh=True)) == command_of(request)


def test_folders_are_named_after_model_and_budget() -> None:
    checked = check_request(RecipeRequest(model="a/tiny.gguf", budgets=("5.0bpw",), tasks="none"))
    assert checked.out_dir == Path("recipes/tiny/5.0bpw")
    both = check_request(RecipeRequest(model="a/tiny.gguf", like=("Q4_K_M", "Q3_K_M"), tasks="none"))
    assert both.folder_of(both.budgets[1]) == Path("recipes/tiny/like-Q3_K_M")


def test_progress_is_told(request_: RecipeRequest, tmp_path: Path) -> None:
    notes = Notes()
    make_recipe(request_, notes, fake_tools(tmp_path, Truth(), None))
    assert any("probe" in line for line in notes.lines)
    assert any("held-out" in line for line in notes.lines)


class TestScores:
    """Imported sensitivity scores in the place of probes."""

    def manifest(self, path: Path, *, broken: str = "") -> Path:
        groups = {}
        for depth in range(2):
            for kind, members, score in (
                ("attn_qkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), 5.0),
                ("attn_o", ("self_attn.o_proj",), 0.01),
                ("mlp_up", ("mlp.up_proj",), 0.01),
                ("mlp_down", ("mlp.down_proj",), 1.0),
            ):
                stem = f"model.layers.{depth}."
                sample = sensitivity_samples.sample_groups()["model.language_model.layers.0.mlp.down_proj"]
                candidate = msgspec.structs.replace(sample.candidates[0], format="INT4_BLOCKWISE_WEIGHT_ONLY_CFG", score=score)
                groups[stem + members[0]] = msgspec.structs.replace(
                    sample, members=tuple(stem + member for member in members), kind=kind, candidates=(candidate,)
                )
        manifest = sensitivity_samples.sample_manifest(layer_sensitivity=groups)
        path.write_bytes(encode_pretty(manifest) if not broken else broken.encode())
        return path

    def test_scores_decide_and_the_embedding_is_probed(self, request_: RecipeRequest, tmp_path: Path) -> None:
        truth = Truth()
        path = self.manifest(tmp_path / "w4_quant_manifest.json")
        manifest = made(dataclasses.replace(request_, scores=(path,)), tmp_path, truth)
        assert manifest.score_source == "autoquant"
        assert manifest.scores_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert manifest.predicted_kl_nats is None
        assert manifest.prediction_error is None
        probed = {row.group for row in read_journal(tmp_path / "out" / "probes.jsonl", ProbeRow).rows}
        assert "token_embd" in probed
        assert len(probed) == 2
        assert 0 < manifest.probe_windows < manifest.exhaustive_windows
        chosen = {group.name: group.chosen for group in manifest.groups}
        assert BITS[chosen["attn_v/0"]] > BITS[chosen["attn_output/0"]]
        assert f"--scores {path}" in manifest.command
        assert manifest.file_bytes <= manifest.budget.bytes

    @pytest.mark.parametrize("content", ["{}", "no json", '{"schema_version": "fewbits.sensitivity_manifest.v9"}'])
    def test_no_manifest_is_no_score(self, request_: RecipeRequest, tmp_path: Path, content: str) -> None:
        path = self.manifest(tmp_path / "bad_quant_manifest.json", broken=content)
        with pytest.raises(StoreError, match="bad_quant_manifest"):
            made(dataclasses.replace(request_, scores=(path,)), tmp_path)

    def test_a_missing_manifest_is_said_at_once(self, request_: RecipeRequest, tmp_path: Path) -> None:
        truth = Truth()
        with pytest.raises(SpecError, match="missing"):
            made(dataclasses.replace(request_, scores=(tmp_path / "missing_quant_manifest.json",)), tmp_path, truth)
        assert truth.compared == 0


class TestTasks:
    """The sweep of both files, without running one."""

    def compared(
        self, request: RecipeRequest, folder: Path, monkeypatch: pytest.MonkeyPatch, outcome: object
    ) -> tuple[TaskComparison | None, dict[str, Any]]:
        seen: dict[str, Any] = {}

        def prepare(flags: dict[str, Any], matrix: None) -> object:
            seen.update(flags)
            return SimpleNamespace(plan=SimpleNamespace(tasks=[1, 2, 3]))

        def run(_prepared: object, _observer: object) -> object:
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        monkeypatch.setattr(recipe_proof, "prepare_sweep", prepare)
        monkeypatch.setattr(recipe_proof, "run_sweep", run)
        tags = ("Q4_K_M", "recipe-0123456789ab")
        return recipe_proof.compare_on_tasks(request, "m.gguf", tags, folder / "tasks", SilentObserver()), seen

    def test_the_stock_file_is_the_reference(
        self, request_: RecipeRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        verdict = SimpleNamespace(verdict=VerdictCode.EQUIVALENT, difference=None, items_used=3)
        rows = [SimpleNamespace(quant_tag=tag, verdict=verdict) for tag in ("Q4_K_M", "recipe-0123456789ab")]
        summary = SimpleNamespace(sessions=[SimpleNamespace(per_quant=rows)])
        request = dataclasses.replace(request_, tasks="bank.json", task_limit=3, threads=2)
        found, flags = self.compared(request, tmp_path, monkeypatch, summary)
        assert found is not None
        assert (found.verdict, found.items, found.run) == (VerdictCode.EQUIVALENT, 3, "tasks")
        assert flags["reference_quant"] == "Q4_K_M"
        assert flags["quants"] == ["Q4_K_M", "recipe-0123456789ab"]
        assert flags["evaluation_text"] == "none"
        assert (flags["task_bank"], flags["task_limit"], flags["threads"]) == ("bank.json", "3", "2")

    def test_an_engine_that_fails_is_a_reason(
        self, request_: RecipeRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        request = dataclasses.replace(request_, tasks="bank.json")
        found, _ = self.compared(request, tmp_path, monkeypatch, BackendError("server", "died"))
        assert found is not None
        assert found.verdict is None
        assert "died" in found.unavailable

    def test_none_asks_nothing(self, request_: RecipeRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        found, flags = self.compared(request_, tmp_path, monkeypatch, None)
        assert found is None
        assert not flags


class TestQuantizedSource:
    def test_types_on_the_sources_grid_are_no_candidates(self, request_: RecipeRequest, tmp_path: Path, model: Path) -> None:
        tools = fake_tools(tmp_path, Truth(), None)
        source = tools.quantizer.locate(str(model))
        quantized = tools.quantizer.ensure(source, "Q4_K_M", lambda _line: None).path
        request = dataclasses.replace(request_, model=str(quantized), like=("Q8_0",), types=("Q4_0", "Q5_1", "Q8_0"))
        document = dry_run_recipe(request, tools)
        by_name = {group["group"]: group for group in document["groups"]}
        assert by_name["attn_q/0"]["excluded"] == {"Q4_0": "SOURCE_GRID"}
        assert by_name["token_embd"]["excluded"] == {"Q8_0": "SOURCE_GRID"}
        allowed = dry_run_recipe(dataclasses.replace(request, source_grid=SourceGrid.ALLOW), tools)
        assert not any(group["excluded"] for group in allowed["groups"])

    def test_off_grid_is_a_reference_of_its_own(self, request_: RecipeRequest, tmp_path: Path, model: Path) -> None:
        tools = fake_tools(tmp_path, Truth(), None)
        quantized = tools.quantizer.ensure(tools.quantizer.locate(str(model)), "Q4_K_M", lambda _line: None).path
        request = dataclasses.replace(request_, model=str(quantized), off_grid_seed=1)
        (manifest,) = make_recipe(request, SilentObserver(), tools)
        assert manifest.reference_scheme == "off-grid F16"
        assert manifest.off_grid_seed == 1
        assert any("not for use" in warning for warning in manifest.warnings)
        assert not any(option.excluded for group in manifest.groups for option in group.options)
        assert manifest.verdict is RecipeVerdict.BETTER
