from __future__ import annotations

from typing import Any

import pytest

from fewbits.core.errors import SpecError
from fewbits.quantizers.reference.fake_quant import quantization_of
from fewbits.quantizers.reference.layers import Rounding
from fewbits.quantizers.torch.coverage import group_modules, quantizable_weights
from fewbits.quantizers.torch.load import LoadedModel, load_model
from fewbits.quantizers.torch.tiny import write_tiny_model
from fewbits.records.quant_formats import QUANT_FORMATS
from fewbits.records.sensitivity import ModelSettings
from fewbits.sensitivity import held_out
from fewbits.sensitivity.ablation import ablate
from fewbits.sensitivity.held_out import SampleShape, cut_samples, shares_text

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

TEXT = " ".join(f"train {index * index * 7919} at the station" for index in range(90))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    torch.set_num_threads(1)
    return load_model(ModelSettings(name="tiny", path=str(write_tiny_model(tmp_path_factory.mktemp("model")))), "cpu")


def cut(tiny: LoadedModel, samples: int, tokens: int) -> list[dict[str, Any]]:
    return cut_samples(tiny.model, tiny.tokenizer, TEXT, SampleShape(samples, tokens))


def test_ablation_measures_every_group_on_every_sample_and_restores_the_model(tiny: LoadedModel) -> None:
    before = {name: parameter.detach().numpy().tobytes() for name, parameter in tiny.model.named_parameters()}
    groups = group_modules(quantizable_weights(tiny.model))
    rounding = Rounding(quantization_of(QUANT_FORMATS["INT4_BLOCKWISE_WEIGHT_ONLY_CFG"], {}, ""))
    lines: list[str] = []
    found = ablate(tiny.model, cut(tiny, 5, 16), groups, rounding, lines.append)
    assert {name: parameter.detach().numpy().tobytes() for name, parameter in tiny.model.named_parameters()} == before
    assert [group.group for group in found.groups] == list(groups)
    assert all(len(group.kl_nats) == len(group.loss_change_nats) == 5 for group in found.groups)
    assert all(value > 0 for value in found.mean_kl_nats().values())
    assert any(value < 0 for group in found.groups for value in group.loss_change_nats)
    assert found.float_loss_nats > 1
    assert lines


def test_a_quantization_that_changes_nothing_measures_nothing(tiny: LoadedModel) -> None:
    groups = {"model.layers.1.mlp.down_proj": ("model.layers.1.mlp.down_proj",)}
    weight = tiny.model.get_submodule("model.layers.1.mlp.down_proj").weight
    original = weight.detach().clone()
    weight.data.copy_(torch.round(original.sign()) * 0.5)
    try:
        rounding = Rounding(quantization_of(QUANT_FORMATS["INT8_WEIGHT_ONLY_CFG"], {}, ""))
        (found,) = ablate(tiny.model, cut(tiny, 4, 16), groups, rounding, lambda _line: None).groups
    finally:
        weight.data.copy_(original)
    assert found.kl_nats == pytest.approx([0.0] * 4, abs=1e-9)
    assert found.loss_change_nats == pytest.approx([0.0] * 4, abs=1e-6)


def test_samples_are_spread_over_the_text_and_start_as_every_text_does(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = cut(tiny, 6, 16)
    ids = torch.cat([batch["input_ids"] for batch in whole])
    assert ids.shape == (6, 16)
    assert (ids[:, 0] == tiny.tokenizer.bos_token_id).all()
    stream = tiny.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    starts = [next(at for at in range(0, len(stream), 15) if stream[at : at + 15] == row[1:].tolist()) for row in ids]
    assert starts == sorted(starts)
    assert starts[0] < len(stream) / 6
    assert starts[-1] > len(stream) * 2 / 3
    monkeypatch.setattr(held_out, "LOGITS_BYTES", 4 * tiny.model.get_output_embeddings().weight.shape[0] * 16 * 2)
    parts = cut(tiny, 6, 16)
    assert [len(batch["input_ids"]) for batch in parts] == [2, 2, 2]
    assert torch.equal(torch.cat([batch["input_ids"] for batch in parts]), ids)
    rounding = Rounding(quantization_of(QUANT_FORMATS["INT8_WEIGHT_ONLY_CFG"], {}, ""))
    groups = {"lm_head": ("lm_head",)}
    in_parts = ablate(tiny.model, parts, groups, rounding, lambda _line: None).groups[0]
    at_once = ablate(tiny.model, whole, groups, rounding, lambda _line: None).groups[0]
    assert in_parts.kl_nats == pytest.approx(at_once.kl_nats, rel=1e-4)


def test_a_text_that_is_too_short_says_how_much_is_needed(tiny: LoadedModel) -> None:
    with pytest.raises(SpecError, match=r"500 samples of 64 tokens need 31500"):
        cut(tiny, 500, 64)


CAPTIONS = "\n".join(f"a photograph of {what} on a wooden table" for what in ("bread", "a cat", "two cups", "a lamp", "books"))


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (CAPTIONS, True),
        (CAPTIONS.replace("\n", "\r\n").replace(" on ", "  on "), True),
        ("\n".join(reversed(CAPTIONS.splitlines())), True),
        (CAPTIONS + "\n" + "\n".join(f"line {index} about something else entirely" for index in range(100)), True),
        (CAPTIONS.splitlines()[0], True),
        (CAPTIONS.replace("\n", " "), True),
        ("\n".join(f"line {index} about something else entirely" for index in range(100)), False),
        (CAPTIONS.splitlines()[0] + "\n" + "\n".join(f"line {index} about something else" for index in range(9)), False),
        ("on\na\ntable", False),
        ("", False),
    ],
)
def test_a_copy_of_the_calibration_text_is_recognised(other: str, same: bool) -> None:
    assert shares_text(CAPTIONS, other) is same
    assert shares_text(other, CAPTIONS) is same
