from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fewbits.core.errors import BackendError
from fewbits.quantizers.reference import perturb
from fewbits.quantizers.reference.fake_quant import FakeQuantization, quantization_of, quantize_weight
from fewbits.quantizers.reference.layers import Rounding, activation_ranges, layer_output, quantized, rounded_weight
from fewbits.quantizers.reference.perturb import LayerStack, mean_by_group, perturb_groups
from fewbits.quantizers.reference.scorer import divergence_scores, gradient_scores, score_groups
from fewbits.quantizers.torch.batches import make_batches
from fewbits.quantizers.torch.coverage import group_modules, is_vision, quantizable_weights
from fewbits.quantizers.torch.load import load_model
from fewbits.quantizers.torch.tiny import write_tiny_model
from fewbits.records.quant_formats import QUANT_FORMATS, ScaleShare
from fewbits.records.sensitivity import ModelSettings, SensitivityMethod

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

TEXTS = ("a man rides a wave on a surfboard", "two dogs", "a plate of food with rice and vegetables on a table")
WEIGHTS_ONLY = Rounding(quantization_of(QUANT_FORMATS["INT4_BLOCKWISE_WEIGHT_ONLY_CFG"], {}, ""))


def silent(_line: str) -> None:
    """Take progress and drop it."""


class Tiny:
    """A tiny model with its groups and batches."""

    def __init__(self, folder: Path, architecture: str) -> None:
        loaded = load_model(ModelSettings(name="tiny", path=str(write_tiny_model(folder, architecture))), "cpu")
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        names = [name for name in quantizable_weights(self.model) if not is_vision(name)]
        self.groups = group_modules(names)
        self.members = names

    def batches(self, size: int, texts: tuple[str, ...] = TEXTS) -> list[dict[str, Any]]:
        return make_batches(self.tokenizer, texts, batch_size=size, max_tokens=64, device="cpu").items

    def rounding(self, format_name: str) -> Rounding:
        how = quantization_of(QUANT_FORMATS[format_name], {}, "")
        return Rounding.calibrated(how, self.model, self.batches(2), self.members)


@pytest.fixture(scope="module", params=["llama", "qwen3_vl"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    torch.set_num_threads(1)
    return Tiny(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    torch.set_num_threads(1)
    return Tiny(tmp_path_factory.mktemp("llama"), "llama")


def parameters(model: Any) -> list[bytes]:
    return [parameter.detach().numpy().tobytes() for parameter in model.parameters()]


def logits_of(model: Any, batch: dict[str, Any]) -> Any:
    with torch.inference_mode():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits


def brute_gradient_score(tiny: Tiny, members: tuple[str, ...], rounding: Rounding) -> float:
    """S(g) one sample at a time, with autograd asked directly for the gradient of each output."""
    total = 0.0
    for text in TEXTS:
        (batch,) = tiny.batches(1, (text,))
        seen: dict[str, tuple[Any, Any]] = {}
        handles = [
            tiny.model.get_submodule(name).register_forward_hook(
                lambda module, inputs, output, name=name, seen=seen: seen.update({name: (inputs[0], output)})
            )
            for name in members
        ]
        logits = tiny.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
        for handle in handles:
            handle.remove()
        loss = torch.nn.functional.cross_entropy(logits[0, :-1], batch["input_ids"][0, 1:])
        gradients = torch.autograd.grad(loss, [seen[name][1] for name in members])
        for name, gradient in zip(members, gradients, strict=True):
            module, (values, output) = tiny.model.get_submodule(name), seen[name]
            if rounding.how.activation is not None:
                largest = rounding.ranges[name].max()
                values = (torch.round(values * 127 / largest).clamp(-128, 127)) * largest / 127
            changed = torch.nn.functional.linear(values, quantize_weight(module.weight, rounding.how), module.bias)
            total += float(((changed - output).detach() ** 2 * gradient**2).double().sum())
    return total / len(TEXTS)


@pytest.mark.parametrize("format_name", ["INT4_BLOCKWISE_WEIGHT_ONLY_CFG", "INT8_DEFAULT_CFG"])
def test_gradient_score_is_its_definition(tiny: Tiny, format_name: str) -> None:
    rounding = tiny.rounding(format_name)
    found = gradient_scores(tiny.model, tiny.batches(2), tiny.groups, rounding, silent)
    for group, members in tiny.groups.items():
        assert found[group] == pytest.approx(brute_gradient_score(tiny, members, rounding), rel=1e-3), group


def test_divergence_is_its_definition(tiny: Tiny) -> None:
    """One sample at a time, with the module's weight really replaced and the library's own KL."""
    found = perturb_groups(tiny.model, tiny.batches(2), tiny.groups, WEIGHTS_ONLY, silent)
    for group, members in tiny.groups.items():
        for index, text in enumerate(TEXTS):
            (batch,) = tiny.batches(1, (text,))
            before, labels = logits_of(tiny.model, batch)[0, :-1].double(), batch["input_ids"][0, 1:]
            originals = {name: tiny.model.get_submodule(name).weight.detach().clone() for name in members}
            for name, weight in originals.items():
                tiny.model.get_submodule(name).weight.data.copy_(quantize_weight(weight, WEIGHTS_ONLY.how))
            after = logits_of(tiny.model, batch)[0, :-1].double()
            for name, weight in originals.items():
                tiny.model.get_submodule(name).weight.data.copy_(weight)
            p, q = torch.log_softmax(before, -1), torch.log_softmax(after, -1)
            expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="batchmean")
            assert found.kl[group][index] == pytest.approx(float(expected), rel=1e-3, abs=1e-9)
            rise = torch.nn.functional.cross_entropy(after, labels) - torch.nn.functional.cross_entropy(before, labels)
            assert found.loss_change[group][index] == pytest.approx(float(rise), rel=1e-3, abs=1e-6)
            own = torch.nn.functional.cross_entropy(before, labels)
            assert found.float_loss[index] == pytest.approx(float(own), rel=1e-5)


@pytest.mark.parametrize("method", SensitivityMethod)
def test_scores_do_not_depend_on_batching_or_on_repeating_the_samples(llama: Tiny, method: SensitivityMethod) -> None:
    rounding = llama.rounding("INT8_DEFAULT_CFG")

    def scores(batches: list[dict[str, Any]]) -> dict[str, float]:
        return score_groups(llama.model, batches, llama.groups, rounding, method=method, progress=silent)

    together = scores(llama.batches(3))
    assert scores(llama.batches(1)) == pytest.approx(together, rel=1e-3)
    assert scores(llama.batches(2, TEXTS + TEXTS)) == pytest.approx(together, rel=1e-3)


def test_the_model_is_left_exactly_as_it_was(tiny: Tiny) -> None:
    before, states = parameters(tiny.model), [module.__dict__.keys() - {"forward"} for module in tiny.model.modules()]
    required = [parameter.requires_grad for parameter in tiny.model.parameters()]
    rounding = tiny.rounding("FP8_DEFAULT_CFG")
    gradient_scores(tiny.model, tiny.batches(2), tiny.groups, rounding, silent)
    perturb_groups(tiny.model, tiny.batches(2), tiny.groups, rounding, silent)
    with pytest.raises(ZeroDivisionError), quantized(tiny.model, tiny.members, rounding):
        _ = 1 / 0
    assert parameters(tiny.model) == before
    assert [module.__dict__.keys() for module in tiny.model.modules()] == states
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tiny.model.modules())
    assert [parameter.requires_grad for parameter in tiny.model.parameters()] == required
    assert all(parameter.grad is None for parameter in tiny.model.parameters())


def test_kept_prefixes_change_nothing(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    rounding = tiny.rounding("INT8_DEFAULT_CFG")
    stack = LayerStack.of(tiny.model, tiny.groups)
    assert len(stack.layers) == 2
    assert sorted(stack.first_layer.values()) == [0, 0, 0, 0, 1, 1, 1, 1, 2]
    calls: list[int] = []
    handle = stack.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    shortcut = perturb_groups(tiny.model, tiny.batches(2), tiny.groups, rounding, silent)
    saved = len(calls)
    monkeypatch.setattr(perturb, "_CHECKED_QUARTERS", ())
    monkeypatch.setattr(LayerStack, "_run_from", lambda *_: None)
    monkeypatch.setattr(LayerStack, "prefix_kept", lambda self, _group: self._skipped(0))
    calls.clear()
    assert perturb_groups(tiny.model, tiny.batches(2), tiny.groups, rounding, silent) == shortcut
    handle.remove()
    assert saved < len(calls)


class SideChannelLayer(torch.nn.Module):  # type: ignore[misc, name-defined]
    """A layer that takes what the layer before left behind, besides its output."""

    def __init__(self, mailbox: list[Any]) -> None:
        super().__init__()
        self.proj = torch.nn.Linear(6, 6)
        self.mailbox = mailbox

    def forward(self, values: Any) -> Any:
        extra = self.mailbox.pop() if self.mailbox else 0
        output = torch.tanh(self.proj(values)) + values + extra
        self.mailbox.append(output * 0.5)
        return output


class Toy(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Predictions that depend on the token before alone."""

    def __init__(self, vocabulary: int, layers: int = 0, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.mailbox: list[Any] = []
        self.embedding = torch.nn.Embedding(vocabulary, 6)
        self.layers = torch.nn.ModuleList([SideChannelLayer(self.mailbox) for _ in range(layers)])
        self.head = torch.nn.Linear(6, vocabulary, bias=False)
        self.idle = torch.nn.Linear(6, 6)

    def get_input_embeddings(self) -> Any:
        return self.embedding

    def get_output_embeddings(self) -> Any:
        return self.head

    def forward(self, input_ids: Any, attention_mask: Any = None, use_cache: bool = False) -> Any:
        values = self.embedding(input_ids)
        self.mailbox.clear()
        for layer in self.layers:
            values = layer(values)
        return SimpleNamespace(logits=self.head(values))


def toy_batch(tokens: list[list[int]], labels: list[list[int]] | None = None) -> dict[str, Any]:
    ids = torch.tensor(tokens)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids if labels is None else torch.tensor(labels)}


def test_layers_that_share_more_than_their_output_are_run_again() -> None:
    toy = Toy(5, layers=4)
    groups = {name: (name,) for name in ("layers.0.proj", "layers.2.proj", "layers.3.proj", "head")}
    how = FakeQuantization(weight="int4", share=ScaleShare.CHANNEL)
    batch = toy_batch([[1, 2, 3, 4]])
    found = perturb_groups(toy, [batch], groups, Rounding(how), silent)
    before = torch.log_softmax(logits_of(toy, batch)[0, :-1].double(), -1)
    for group in groups:
        with quantized(toy, (group,), Rounding(how)):
            after = torch.log_softmax(logits_of(toy, batch)[0, :-1].double(), -1)
        expected = torch.nn.functional.kl_div(after, before, log_target=True, reduction="batchmean")
        assert found.kl[group][0] == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize("predicted", [1, 2, 3])
def test_half_the_score_times_the_tokens_predicts_the_divergence(predicted: int) -> None:
    """Labels from the model's own distribution, all of them with their probabilities; errors of many random quantizations."""
    vocabulary, how = 4, FakeQuantization(weight="int8", share=ScaleShare.CHANNEL)
    predictions, divergences = [], []
    for seed in range(200 // predicted):
        toy = Toy(vocabulary, seed=seed)
        inputs = [index % vocabulary for index in range(predicted)] + [0]
        p = torch.softmax(logits_of(toy, toy_batch([inputs]))[0, :-1].double(), dim=-1)
        expected_score = 0.0
        for labels in itertools.product(range(vocabulary), repeat=predicted):
            chance = float(torch.stack([p[place, label] for place, label in enumerate(labels)]).prod())
            scores = gradient_scores(toy, [toy_batch([inputs], [[0, *labels]])], {"head": ("head",)}, Rounding(how), silent)
            expected_score += chance * scores["head"]
        predictions.append(expected_score * predicted / 2)
        divergences.append(divergence_scores(toy, [toy_batch([inputs])], {"head": ("head",)}, Rounding(how), silent)["head"])
    assert sum(divergences) / sum(predictions) == pytest.approx(1.0, abs=0.1)


def test_what_the_text_never_reaches_is_an_error_not_a_zero() -> None:
    toy, groups = Toy(4), {"head": ("head",), "idle": ("idle",)}
    rounding = Rounding(FakeQuantization(weight="int8", share=ScaleShare.CHANNEL))
    for measure in (gradient_scores, divergence_scores):
        with pytest.raises(BackendError, match="never reaches idle"):
            measure(toy, [toy_batch([[1, 2, 3]])], groups, rounding, silent)
    with pytest.raises(BackendError, match="never reaches idle"):
        activation_ranges(toy, [toy_batch([[1, 2, 3]])], ("idle",))


def test_padding_reaches_neither_ranges_nor_scores(llama: Tiny) -> None:
    alone = activation_ranges(llama.model, llama.batches(1), llama.members)
    together = activation_ranges(llama.model, llama.batches(3), llama.members)
    for name in llama.members:
        assert torch.allclose(alone[name], together[name], rtol=1e-4), name
    (batch,) = llama.batches(3)
    noisy = {**batch, "input_ids": torch.where(batch["attention_mask"] == 1, batch["input_ids"], 17)}
    changed = activation_ranges(llama.model, [noisy], llama.members)
    assert all(torch.allclose(changed[name], together[name], rtol=1e-4) for name in llama.members)
    rounding = llama.rounding("INT8_DEFAULT_CFG")
    for score in (gradient_scores, divergence_scores):
        clean = score(llama.model, [batch], llama.groups, rounding, silent)
        assert score(llama.model, [noisy], llama.groups, rounding, silent) == pytest.approx(clean, rel=1e-4)


def test_more_bits_disturb_less(llama: Tiny) -> None:
    def mean_kl(format_name: str) -> float:
        found = perturb_groups(llama.model, llama.batches(3), llama.groups, llama.rounding(format_name), silent).kl
        return sum(mean_by_group(found).values())

    ladder = ["INT8_WEIGHT_ONLY_CFG", "FP8_WEIGHT_ONLY_CFG", "INT4_BLOCKWISE_WEIGHT_ONLY_CFG"]
    values = [mean_kl(name) for name in ladder]
    assert values == sorted(values)
    assert mean_kl("INT8_WEIGHT_INT4_ACT_CFG") > mean_kl("INT8_DEFAULT_CFG") > mean_kl("INT8_WEIGHT_ONLY_CFG")


def test_convolutions_and_transposed_linear_layers() -> None:
    from transformers.pytorch_utils import Conv1D

    how = Rounding(FakeQuantization(weight="int8", share=ScaleShare.CHANNEL))
    values = torch.randn(2, 3, 8, 8)
    for layer in (torch.nn.Conv2d(3, 4, 3, stride=2, padding=1), torch.nn.Conv2d(3, 6, 1, groups=3, bias=False)):
        reference = torch.nn.Conv2d.forward(layer, values)
        found = layer_output(layer, values, rounded_weight(layer, how.how), how, "conv")
        assert found.shape == reference.shape
        assert 0 < (found - reference).abs().max() < 0.05
    transposed, inputs = Conv1D(5, 8), torch.randn(2, 8)
    same = torch.nn.Linear(8, 5)
    same.weight.data.copy_(transposed.weight.t())
    same.bias.data.copy_(transposed.bias)
    expected = layer_output(same, inputs, rounded_weight(same, how.how), how, "linear")
    assert torch.allclose(layer_output(transposed, inputs, rounded_weight(transposed, how.how), how, "linear"), expected)
    with pytest.raises(BackendError, match="Embedding"):
        layer_output(torch.nn.Embedding(3, 3), torch.tensor([1]), None, how, "embedding")
    with pytest.raises(BackendError, match="Conv2d"):
        layer_output(torch.nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"), values, None, how, "conv")
