"""The reference scorer against ModelOpt: two implementations that share no code of ours but the batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fewbits.analysis.agreement import rank_agreement
from fewbits.quantizers.reference.fake_quant import quantization_of
from fewbits.quantizers.reference.layers import Rounding
from fewbits.quantizers.reference.scorer import score_groups
from fewbits.quantizers.torch.batches import make_batches
from fewbits.quantizers.torch.load import load_model
from fewbits.quantizers.torch.tiny import write_tiny_model
from fewbits.records.quant_formats import QUANT_FORMATS
from fewbits.records.sensitivity import (
    AutoQuantSettings,
    DatasetSettings,
    GranularitySettings,
    ModelSettings,
    OutputSettings,
    PairSettings,
    SensitivityMethod,
    SensitivitySpec,
)

pytest.importorskip("torch")
pytest.importorskip("modelopt")

pytestmark = pytest.mark.xdist_group("modelopt")

TEXTS = ("a man rides a wave", "two dogs play with a red ball", "the train is at the station", "a plate of food with rice")
GRADIENT, KL = SensitivityMethod.GRADIENT, SensitivityMethod.KL_DIV
PER_TOKEN = {"*input_quantizer": {"type": "dynamic", "block_sizes": {-1: None}}}
BLOCKS = {"*weight_quantizer": {"block_sizes": {-1: 16}}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), "llama", seed=1)


def spec_of(folder: Path, format_name: str, method: SensitivityMethod, overrides: dict[str, Any]) -> SensitivitySpec:
    fmt = QUANT_FORMATS[format_name]
    return SensitivitySpec(
        model=ModelSettings(name="tiny", path=str(folder)),
        dataset=DatasetSettings(name="c", size="small", captions_path="c.txt", size_to_max_samples={"small": 4}),
        quant_pair=PairSettings(name="p", weight=fmt.weight, activation=fmt.activation, format_name=format_name),
        quant_granularity=GranularitySettings(quant_cfg_overrides=overrides),
        autoquant=AutoQuantSettings(method=method, batch_size=2, effective_bits=12.0, score_size=4, verbose=False, threads=1),
        output_layout=OutputSettings(),
    )


@pytest.mark.parametrize(
    ("format_name", "method", "overrides"),
    [
        ("INT8_WEIGHT_ONLY_CFG", GRADIENT, {}),
        ("INT8_DEFAULT_CFG", GRADIENT, {}),
        ("INT8_DEFAULT_CFG", GRADIENT, PER_TOKEN),
        ("INT8_WEIGHT_ONLY_CFG", GRADIENT, BLOCKS),
        ("FP8_DEFAULT_CFG", GRADIENT, {}),
        ("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", GRADIENT, {}),
        ("INT8_DEFAULT_CFG", KL, {}),
    ],
)
def test_modelopt_and_the_reference_agree(
    folder: Path, format_name: str, method: SensitivityMethod, overrides: dict[str, Any]
) -> None:
    from fewbits.quantizers.modelopt.autoquant import score_loaded

    spec = spec_of(folder, format_name, method, overrides)
    theirs = score_loaded(load_model(spec.model, "cpu"), spec, TEXTS, silent).groups
    loaded = load_model(spec.model, "cpu")
    batches = make_batches(loaded.tokenizer, TEXTS, batch_size=2, max_tokens=512, device="cpu").items
    groups = {name: group.members for name, group in theirs.items()}
    how = quantization_of(QUANT_FORMATS[format_name], overrides, "")
    rounding = Rounding.calibrated(how, loaded.model, batches, [member for members in groups.values() for member in members])
    ours = score_groups(loaded.model, batches, groups, rounding, method=method, progress=silent)
    scores = {name: group.importance for name, group in theirs.items()}
    found = rank_agreement(scores, ours, names=("modelopt", "reference")).spearman
    assert found is not None
    assert found.value > 0.9
    ratios = [scores[name] / ours[name] for name in ours]
    if method is GRADIENT:
        assert ratios == pytest.approx([1.0] * len(ratios), rel=1e-3)
    else:
        # ModelOpt adds up the divergences of a sample's tokens, the reference averages them
        counts = [int(batch["attention_mask"][row].sum()) for batch in batches for row in range(len(batch["labels"]))]
        assert min(counts) - 1 < min(ratios)
        assert max(ratios) < max(counts) + 1


def silent(_line: str) -> None:
    """Take progress and drop it."""
