"""AutoQuant on tiny models: scores, choices, exclusions and failures. One process imports ModelOpt once for all of them."""

from __future__ import annotations

import gc
import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from fewbits.core.errors import BackendError, SpecError
from fewbits.quantizers.modelopt.autoquant import AutoQuantOutcome, check_device, run_autoquant, sample_limit, score_loaded
from fewbits.quantizers.modelopt.formats import effective_quantizers, quantizer_config
from fewbits.quantizers.modelopt.outcome import GroupScore, check_state, select
from fewbits.quantizers.torch.batches import forward_inputs, make_batches
from fewbits.quantizers.torch.coverage import Coverage, plan_coverage, quantizable_weights
from fewbits.quantizers.torch.load import load_model
from fewbits.quantizers.torch.tiny import ARCHITECTURES, write_tiny_model
from fewbits.records.quant_formats import QUANT_FORMATS, find_quant_format
from fewbits.records.sensitivity import (
    AutoQuantSettings,
    CoverageMode,
    DatasetSettings,
    ExcludedModule,
    ExclusionReason,
    GranularitySettings,
    ModelSettings,
    OutputSettings,
    PairSettings,
    SensitivityMethod,
    SensitivitySpec,
)

torch = pytest.importorskip("torch")
pytest.importorskip("modelopt")
pytest.importorskip("transformers")

pytestmark = pytest.mark.xdist_group("modelopt")

W, A = "*weight_quantizer", "*input_quantizer"
CAPTIONS = (
    "a man rides a wave on a surfboard near the beach",
    "two dogs play",
    "a plate of food with rice and vegetables on a wooden table",
    "the train is at the station",
    "a cat sleeps on the window sill in the morning sun while it rains",
    "a red ball",
)
SIMULATED = sorted(name for name, fmt in QUANT_FORMATS.items() if not fmt.needs_cuda)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    folder = tmp_path_factory.mktemp("models")
    yield {name: write_tiny_model(folder / name, name) for name in ARCHITECTURES}
    _OUTCOMES.clear()
    gc.unfreeze()


_OUTCOMES: dict[bytes, AutoQuantOutcome] = {}
"""Outcomes by request: several tests look at the same run from different sides."""


class Run:
    """Make specs for the tiny models and run them."""

    def __init__(self, models: dict[str, Path], captions: Path) -> None:
        self._models = models
        self._captions = captions
        self.progress: list[str] = []

    def spec(
        self,
        fmt: str = "INT8_DEFAULT_CFG",
        *,
        model: str = "llama",
        overlay: dict[str, Any] | None = None,
        pair: dict[str, Any] | None = None,
        captions: tuple[str, ...] = CAPTIONS,
        **autoquant: Any,
    ) -> SensitivitySpec:
        self._captions.write_text("\n".join(captions), encoding="utf-8")
        return SensitivitySpec(
            model=ModelSettings(name="tiny", path=str(self._models[model])),
            dataset=DatasetSettings(
                name="captions", size="small", captions_path=str(self._captions), size_to_max_samples={"small": 64}
            ),
            quant_pair=PairSettings(name="pair", weight="int8", activation="int8", format_name=fmt, **(pair or {})),
            quant_granularity=GranularitySettings(name="overlay", quant_cfg_overrides=overlay or {}),
            autoquant=AutoQuantSettings(**({"batch_size": 3, "verbose": False, "threads": 1} | autoquant)),
            output_layout=OutputSettings(),
        )

    def fresh(self, *args: Any, **settings: Any) -> AutoQuantOutcome:
        """Run, whatever was run before."""
        outcome = run_autoquant(self.spec(*args, **settings), self.progress.append)
        # the libraries' own objects: looking through them again and again would take most of the time
        gc.freeze()
        return outcome

    def __call__(self, *args: Any, **settings: Any) -> AutoQuantOutcome:
        """Run, unless a test has run the same before."""
        spec = self.spec(*args, **settings)
        request = msgspec.structs.replace(spec, dataset=msgspec.structs.replace(spec.dataset, captions_path=""))
        key = msgspec.json.encode(request) + self._captions.read_bytes()
        if key not in _OUTCOMES:
            _OUTCOMES[key] = self.fresh(*args, **settings)
        return _OUTCOMES[key]


@pytest.fixture
def run(models: dict[str, Path], tmp_path: Path) -> Run:
    return Run(models, tmp_path / "captions.txt")


def scores(outcome: AutoQuantOutcome) -> dict[str, float]:
    return {name: group.importance for name, group in outcome.groups.items()}


@pytest.mark.parametrize("name", SIMULATED)
def test_every_format_that_a_cpu_can_simulate_scores_every_group(run: Run, name: str) -> None:
    outcome = run(name)
    fmt = find_quant_format(name, "x")
    assert [group.kind for group in outcome.groups.values()] == ["attn_qkv", "attn_o", "mlp_gate_up", "mlp_down"] * 2
    for group in outcome.groups.values():
        quantized, untouched = group.candidates
        assert (quantized.format, quantized.weight_bits, quantized.activation_bits) == (
            name,
            fmt.weight_bits,
            fmt.activation_bits,
        )
        assert quantized.score > 0
        assert quantized.cost_bytes == group.weights * fmt.weight_bits / 8
        assert (untouched.format, untouched.score, untouched.cost_bytes) == ("NONE", 0, group.weights * 2)
    assert sorted(group.rank for group in outcome.groups.values()) == list(range(1, 9))
    assert outcome.budget_satisfied
    assert outcome.selected_effective_bits <= 8
    assert len(outcome.warnings) == 1 + fmt.experimental


@pytest.mark.parametrize("name", sorted(set(QUANT_FORMATS) - set(SIMULATED)))
def test_formats_that_need_a_gpu_say_so_before_anything_is_loaded(run: Run, name: str) -> None:
    with pytest.raises(SpecError, match=r"can only be simulated on an NVIDIA GPU.*autoquant\.device=cuda"):
        run(name)
    assert run.progress == []


@pytest.mark.parametrize("name", sorted(QUANT_FORMATS))
def test_modelopt_accepts_every_configuration_and_costs_weights_as_we_do(name: str) -> None:
    from modelopt.torch.quantization.algorithms import QuantRecipe

    fmt = find_quant_format(name, "x")
    config = quantizer_config(fmt, {})
    assert QuantRecipe(config, name="ours").compression * 16 == pytest.approx(fmt.weight_bits)
    real = effective_quantizers(config)
    assert real[W]["num_bits"] == {"int8": 8, "int4": 4, "fp8": "E4M3", "fp4": "E2M1"}[fmt.weight]
    assert (real[W]["block_sizes"] or {}).get("-1") == fmt.block
    if fmt.activation == "fp16":
        assert real[A] == {"enable": False}
    else:
        assert real[A]["num_bits"] == {"int8": 8, "int4": 4, "fp8": "E4M3"}[fmt.activation]


def test_configurations_never_change_the_presets() -> None:
    import modelopt.torch.quantization as mtq

    before = repr(mtq.INT8_DEFAULT_CFG)
    config = quantizer_config(find_quant_format("INT8_DEFAULT_CFG", "x"), {W: {"axis": 1}, A: {"type": "dynamic"}})
    assert effective_quantizers(config)[W]["axis"] == 1
    assert repr(mtq.INT8_DEFAULT_CFG) == before


def test_a_vision_tower_keeps_its_bytes_and_gets_no_candidates(run: Run, models: dict[str, Path]) -> None:
    loaded = load_model(ModelSettings(name="vl", path=str(models["qwen3_vl"])), "cpu")

    def vision() -> dict[str, str]:
        return {
            name: hashlib.sha256(tensor.detach().numpy().tobytes()).hexdigest()
            for name, tensor in loaded.model.state_dict().items()
            if ".visual." in name and "quantizer" not in name
        }

    before = vision()
    outcome = score_loaded(loaded, run.spec(model="qwen3_vl"), CAPTIONS, run.progress.append)
    assert len(before) > 20
    assert vision() == before
    assert not any("visual" in name for name in outcome.groups)
    reasons = {module.name: module.reason for module in outcome.excluded}
    assert reasons.pop("lm_head") is ExclusionReason.OUTPUT_HEAD
    assert len(reasons) == 13
    assert set(reasons.values()) == {ExclusionReason.VISION_TOWER}
    assert len(outcome.groups) == 8
    total = sum(module.weights for module in outcome.excluded) + sum(group.weights for group in outcome.groups.values())
    excluded = sum(module.weights for module in outcome.excluded)
    assert outcome.adjusted_effective_bits == pytest.approx((16 * excluded + 8 * (total - excluded)) / total)


def test_layers_that_text_never_reaches_are_refused_instead_of_scored_zero(run: Run) -> None:
    with pytest.raises(SpecError, match=r"never run on text.*model\.visual.*coverage_mode=lm_only"):
        run(model="qwen3_vl", pair={"coverage_mode": CoverageMode.FULL})


def test_full_coverage_without_the_vision_tower_scores_the_head(run: Run) -> None:
    outcome = run(model="qwen3_vl", pair={"coverage_mode": CoverageMode.FULL}, disabled_layers=("*visual*",))
    assert outcome.groups["lm_head"].importance > 0
    assert {module.reason for module in outcome.excluded} == {ExclusionReason.PATTERN}


@pytest.mark.parametrize("method", list(SensitivityMethod))
def test_the_experts_of_a_layer_are_one_group(run: Run, method: SensitivityMethod) -> None:
    outcome = run(model="qwen3_moe", method=method)
    assert [group.kind for group in outcome.groups.values()] == ["attn_qkv", "attn_o", "mlp_experts"] * 2
    assert all(group.importance > 0 for group in outcome.groups.values())
    assert outcome.groups["model.layers.0.mlp.experts"].weights == 4 * 3 * 64 * 64


def test_groups_after_a_disabled_one_keep_their_candidates(run: Run) -> None:
    outcome = run(disabled_layers=("*layers.0.self_attn.k_proj",))
    assert len(outcome.groups) == 7
    assert all(group.importance > 0 for group in outcome.groups.values())
    assert outcome.selected_effective_bits == 8


def test_a_coverage_fraction_scores_the_layers_that_are_left(run: Run) -> None:
    outcome = run(pair={"coverage_fraction": 0.5})
    assert {group.depth for group in outcome.groups.values()} == {1}
    assert sum(module.reason is ExclusionReason.COVERAGE_FRACTION for module in outcome.excluded) == 7


@pytest.mark.parametrize("method", list(SensitivityMethod))
def test_the_same_spec_gives_the_same_scores(run: Run, method: SensitivityMethod) -> None:
    assert scores(run.fresh(method=method)) == scores(run(method=method))


@pytest.mark.parametrize("method", list(SensitivityMethod))
def test_scores_are_means_per_sample(run: Run, method: SensitivityMethod) -> None:
    once, twice = run(method=method), run(method=method, captions=CAPTIONS * 2)
    assert (once.scored_samples, twice.scored_samples) == (6, 12)
    assert scores(twice) == pytest.approx(scores(once), rel=1e-3)


@pytest.mark.parametrize("method", list(SensitivityMethod))
def test_padding_and_batch_partners_change_no_score(run: Run, method: SensitivityMethod) -> None:
    alone, together = run(method=method, batch_size=1), run(method=method, batch_size=6)
    assert alone.padding_ratio == 0
    assert together.padding_ratio > 0.2
    assert scores(together) == pytest.approx(scores(alone), rel=2e-3)


@pytest.mark.parametrize("method", list(SensitivityMethod))
def test_padding_reaches_no_calibration_statistic(run: Run, models: dict[str, Path], method: SensitivityMethod) -> None:
    def scored(batch_size: int) -> dict[str, float]:
        loaded = load_model(ModelSettings(name="tiny", path=str(models["llama"])), "cpu")
        with torch.no_grad():  # a padding token that stands out, so that it would rule every maximum
            loaded.model.model.embed_tokens.weight[loaded.tokenizer.pad_token_id, 0] = 1000.0
        spec = run.spec(method=method, batch_size=batch_size)
        return scores(score_loaded(loaded, spec, CAPTIONS, run.progress.append))

    assert scored(6) == pytest.approx(scored(1), rel=2e-3)


def test_only_the_first_samples_are_scored_and_all_of_them_calibrate(run: Run) -> None:
    outcome = run("INT8_WEIGHT_ONLY_CFG", score_size=2)
    assert (outcome.scored_samples, outcome.calibration_samples) == (2, 6)
    # weights need no calibration, so the further samples must not matter
    assert scores(outcome) == pytest.approx(scores(run("INT8_WEIGHT_ONLY_CFG", captions=CAPTIONS[:2])), rel=1e-6)


def test_kl_div_scores_are_the_divergence_that_quantizing_one_group_causes(run: Run, models: dict[str, Path]) -> None:
    outcome = run("INT8_WEIGHT_ONLY_CFG", method=SensitivityMethod.KL_DIV)
    loaded = load_model(ModelSettings(name="tiny", path=str(models["llama"])), "cpu")
    batches = make_batches(loaded.tokenizer, CAPTIONS, batch_size=1, max_tokens=512, device="cpu")

    def log_probabilities() -> list[Any]:
        with torch.no_grad():
            return [loaded.model(**forward_inputs(batch)).logits.log_softmax(-1) for batch in batches.items]

    reference = log_probabilities()
    for group in outcome.groups.values():
        saved = {}
        for name in group.members:
            weight = loaded.model.get_parameter(f"{name}.weight")
            saved[name] = weight.detach().clone()
            step = weight.detach().abs().amax(dim=1, keepdim=True) / 127
            weight.data = (weight.detach() / step).round() * step
        divergences = [
            float((left.exp() * (left - right)).sum()) for left, right in zip(reference, log_probabilities(), strict=True)
        ]
        assert group.importance == pytest.approx(sum(divergences) / len(divergences), rel=0.02)
        for name, values in saved.items():
            loaded.model.get_parameter(f"{name}.weight").data = values


def test_gradient_scores_rank_groups_like_the_divergence_does(run: Run) -> None:
    gradient, divergence = (scores(run("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", method=method)) for method in SensitivityMethod)
    assert max(gradient, key=lambda name: gradient[name]) == max(divergence, key=lambda name: divergence[name])


@pytest.mark.parametrize(
    "overlay",
    [
        {W: {"axis": None}},
        {W: {"axis": 1}},
        {W: {"block_sizes": {"-1": 16}}},
        {A: {"type": "dynamic", "block_sizes": {-1: None}}},
    ],
)
def test_a_granularity_overlay_changes_scores_and_costs(run: Run, overlay: dict[str, Any]) -> None:
    plain, changed = run(effective_bits=9), run(overlay=overlay, effective_bits=9)
    assert all(left != right for left, right in zip(scores(plain).values(), scores(changed).values(), strict=True))
    bits = {group.candidates[0].weight_bits for group in changed.groups.values()}
    assert bits == {9.0 if "block_sizes" in overlay.get(W, {}) else 8.0}
    assert changed.quantization["effective_quantizers"] != plain.quantization["effective_quantizers"]
    msgspec.json.encode(changed.quantization)


@pytest.mark.parametrize("bits", [6, 8, 10, 13])
def test_the_choice_is_the_best_one_under_the_budget(run: Run, bits: float) -> None:
    outcome = run("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", effective_bits=bits)
    groups = list(outcome.groups.values())
    best = min(
        sum(group.importance for group, quantized in zip(groups, choice, strict=True) if quantized)
        for choice in itertools.product((False, True), repeat=len(groups))
        if sum(group.candidates[0 if quantized else 1].cost_bytes for group, quantized in zip(groups, choice, strict=True)) * 8
        <= bits * sum(group.weights for group in groups) + 1e-6
    )
    assert outcome.selected_score == pytest.approx(best, rel=1e-6)
    assert outcome.selected_effective_bits <= bits
    assert {group.selected for group in groups} == {"NONE", "INT4_BLOCKWISE_WEIGHT_ONLY_CFG"}


@pytest.mark.parametrize("bits", [8.0, 9.5, 12.0])
def test_a_search_by_threshold_meets_every_budget_that_can_be_met(run: Run, bits: float) -> None:
    outcome = run(method=SensitivityMethod.KL_DIV, effective_bits=bits)
    assert outcome.budget_satisfied
    chosen = [group.importance for group in outcome.groups.values() if group.selected != "NONE"]
    left = [group.importance for group in outcome.groups.values() if group.selected == "NONE"]
    assert not left or max(chosen) <= min(left)


def test_a_budget_that_cannot_be_met_names_the_minimum_before_loading(run: Run) -> None:
    with pytest.raises(SpecError, match=r"autoquant\.effective_bits.*4 bits per weight cannot be reached.*needs 4\.125"):
        run("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", effective_bits=4)
    assert run.progress == []


def test_every_problem_of_a_request_is_reported_at_once(run: Run) -> None:
    with pytest.raises(SpecError) as caught:
        run("NVFP4_WEIGHT_ONLY_CFG", overlay={W: {"axis": 0}, "what": {}}, device="cpu")
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("device", "words"), [("tpu", "unknown device"), ("cuda:x", "unknown device"), ("cpu:0", "unknown device")]
)
def test_unknown_devices_are_refused(run: Run, device: str, words: str) -> None:
    assert words in str(check_device(run.spec(device=device))[0])


def test_a_gpu_that_is_not_there_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no NVIDIA GPU" in str(check_device(run.spec("NVFP4_WEIGHT_ONLY_CFG", device="cuda"))[0])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert check_device(run.spec("NVFP4_WEIGHT_ONLY_CFG", device="cuda:1")) == []
    assert "no GPU number 2" in str(check_device(run.spec(device="cuda:2"))[0])


def test_the_size_names_the_number_of_captions(run: Run) -> None:
    spec = run.spec()
    assert sample_limit(spec) == 64
    small = msgspec.structs.replace(spec, dataset=msgspec.structs.replace(spec.dataset, max_calib_samples=3))
    assert run_autoquant(small, run.progress.append).calibration_samples == 3
    wrong = msgspec.structs.replace(spec, dataset=msgspec.structs.replace(spec.dataset, size="huge"))
    with pytest.raises(SpecError, match=r"unknown size 'huge' .*small"):
        sample_limit(wrong)


def test_captions_without_a_next_token_are_counted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "fewbits.quantizers.modelopt.autoquant.token_counts", lambda _tokenizer, texts, _limit: [1] + [9] * (len(texts) - 1)
    )
    outcome = run.fresh()
    assert outcome.calibration_samples == len(CAPTIONS) - 1
    assert any("1 captions of fewer than two tokens" in warning for warning in outcome.warnings)


@pytest.mark.parametrize("verbose", [True, False])
def test_stdout_stays_clean_and_stderr_talks_on_request_only(run: Run, capfd: pytest.CaptureFixture[str], verbose: bool) -> None:
    run.fresh(verbose=verbose)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert bool(captured.err) is verbose
    assert [line.split()[0] for line in run.progress] == ["loading", "calibrating"]


def test_out_of_memory_has_a_remedy(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_args: Any, **_settings: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr("modelopt.torch.quantization.auto_quantize", explode)
    with pytest.raises(BackendError, match=r"modelopt: out of memory .*smaller autoquant\.batch_size"):
        run.fresh()


def test_what_modelopt_raises_becomes_one_message(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_args: Any, **_settings: Any) -> None:
        raise AssertionError("something internal\nsecond line")

    monkeypatch.setattr("modelopt.torch.quantization.auto_quantize", explode)
    with pytest.raises(BackendError, match=r"AutoQuant failed: AssertionError: something internal$"):
        run.fresh()


@pytest.mark.real
@pytest.mark.slow
def test_a_real_model_is_scored_from_a_gguf_file(tmp_path: Path) -> None:
    from fewbits.quantizers.llamacpp.models import fetch_model
    from fewbits.store.artifacts import ArtifactCache

    path = fetch_model("smollm2-135m", ArtifactCache(), lambda _line: None)
    (tmp_path / "captions.txt").write_text("\n".join(CAPTIONS), encoding="utf-8")
    spec = SensitivitySpec(
        model=ModelSettings(name="smollm2", path=str(path)),
        dataset=DatasetSettings(
            name="captions", size="small", captions_path=str(tmp_path / "captions.txt"), size_to_max_samples={"small": 6}
        ),
        quant_pair=PairSettings(
            name="wint4_afp16", weight="int4", activation="fp16", format_name="INT4_BLOCKWISE_WEIGHT_ONLY_CFG"
        ),
        quant_granularity=GranularitySettings(),
        autoquant=AutoQuantSettings(verbose=False),
        output_layout=OutputSettings(),
    )
    outcome = run_autoquant(spec, lambda _line: None)
    assert len(outcome.groups) == 120
    assert outcome.budget_satisfied
    assert [module.name for module in outcome.excluded] == ["lm_head"]
    assert any("dequantized from a GGUF file" in warning for warning in outcome.warnings)
    most = max(outcome.groups.values(), key=lambda group: group.importance)
    # massive activations enter the down projections: every published ranking of this family starts there
    assert most.kind == "mlp_down"


def state(**changes: Any) -> tuple[dict[str, Any], Coverage]:
    """A search state like ModelOpt's for one covered and one excluded module."""
    stats: dict[str, dict[str, Any]] = {
        "a.quant_recipe": {
            "formats": ["X(effective-bits: 8.0)", "NONE(effective-bits: 16.0)"],
            "scores": [0.5, 0.0],
            "module_names": ["a"],
        },
        "b.quant_recipe": {"formats": ["NONE(effective-bits: 16.0)"], "scores": [0.0], "module_names": ["b"]},
    }
    for name, change in changes.items():
        stats[f"{name}.quant_recipe"] |= change
    excluded = ExcludedModule(name="b", reason=ExclusionReason.PATTERN, detail="", weights=1)
    best = {name: entry["formats"][0] for name, entry in stats.items()}
    return {"candidate_stats": stats, "best": {"recipe": best}}, Coverage(covered=("a",), excluded=(excluded,))


def test_a_state_that_keeps_the_contract_is_read() -> None:
    assert check_state(*state()) == {"a": GroupScore(members=("a",), total=0.5, chosen=True)}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"a": {"formats": ["NONE(effective-bits: 16.0)"]}}, "a has 0 candidates"),
        ({"a": {"scores": [float("nan"), 0]}}, "has the score nan"),
        ({"a": {"scores": [-1.0, 0]}}, "has the score -1"),
        ({"a": {"module_names": ["a", "c"]}}, "does not know how to cover: c"),
        ({"b": {"formats": ["X(effective-bits: 8.0)"]}}, "stay as they are have candidates: b"),
        ({"a": {"module_names": ["a", "b"]}}, "have candidates"),
        ({"a": {"module_names": []}}, "1 of 1 groups are grouped otherwise or missing: a"),
    ],
)
def test_a_broken_contract_is_an_error(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(BackendError, match=words):
        check_state(*state(**changes))


def test_a_missed_budget_is_solved_again_and_reported() -> None:
    found = {name: GroupScore(members=(name,), total=total, chosen=False) for name, total in (("a", 3.0), ("b", 1.0), ("c", 2.0))}
    selection = select(
        found,
        {"a": 10, "b": 10, "c": 10},
        find_quant_format("INT8_DEFAULT_CFG", "x"),
        AutoQuantSettings(effective_bits=11),
        scored_samples=2,
    )
    assert selection.solved_here
    assert selection.satisfied
    assert {name for name, group in selection.groups.items() if group.selected != "NONE"} == {"b", "c"}
    assert selection.score == 1.5


def test_quantizable_weights_name_linear_and_convolution_layers_only() -> None:
    from torch import nn

    class Conv1D(nn.Module):  # type: ignore[misc]  # named like GPT-2's linear layer
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3, 4))

    model = nn.Sequential(nn.Linear(4, 2), nn.Embedding(9, 4), nn.Conv2d(1, 2, 3), nn.LayerNorm(4), Conv1D())
    assert quantizable_weights(model) == {"0": 8, "2": 18, "4": 12}
    settings = SimpleNamespace(disabled_layers=(), include_output_head=False)
    pair = PairSettings(name="p", weight="int8", activation="int8", format_name="INT8_DEFAULT_CFG")
    assert plan_coverage(quantizable_weights(model), pair, settings).covered == ("0", "2", "4")  # type: ignore[arg-type]
