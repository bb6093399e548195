"""The configuration tree: every file composes, loads, and says what its name promises."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from fewbits.records.quant_formats import QUANT_FORMATS
from fewbits.records.sensitivity import CoverageMode, SensitivitySpec
from fewbits.spec.sensitivity import known_keys, load_sensitivity_spec
from fewbits.spec.sensitivity_layout import publish_folder, scheme_name

CONF = Path(__file__).resolve().parents[2] / "conf"
hydra = pytest.importorskip("hydra")


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


PAIRS = options("quant_pair")
PRECISIONS = {f"w{weight}_a{act}" for weight in ("fp4", "fp8", "int4", "int8") for act in ("fp16", "fp8", "int8", "int4")}


@pytest.fixture(autouse=True)
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder that has what the defaults name: models and captions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEWBITS_CACHE", str(tmp_path / "cache"))
    for path in ("models/qwen3_vl_4b_instruct/checkpoints/Qwen3-VL-4B-Instruct", "tmp/models/tiny_qwen3_vl"):
        folder = tmp_path / path
        folder.mkdir(parents=True)
        for name in ("config.json", "tokenizer.json", "model.safetensors"):
            (folder / name).write_text("{}")
    gguf = tmp_path / "cache/models/smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf"
    gguf.parent.mkdir(parents=True)
    gguf.write_bytes(b"GGUF")
    captions = tmp_path / "datasets/vlm-quantize-calib"
    captions.mkdir(parents=True)
    for size in ("small", "medium", "large"):
        (captions / f"coco2017_captions_{size}.txt").write_text("a dog on a beach\n")
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        yield


def composed(overrides: Sequence[str] = (), *, hydra_too: bool = False) -> Any:
    return hydra.compose("qwen3_lm_sensitivity", overrides=list(overrides), return_hydra_config=hydra_too)


def loaded(*overrides: str) -> SensitivitySpec:
    from omegaconf import OmegaConf

    config: Any = OmegaConf.to_container(composed(overrides), resolve=True)
    return load_sensitivity_spec(config, root=Path())


def keys(tree: Any, prefix: str = "") -> set[str]:
    found = set()
    for key, value in tree.items():
        nested = isinstance(value, dict) and not prefix and value
        found |= keys(value, f"{key}.") if nested else {f"{prefix}{key}"}
    return found


def test_the_defaults_load() -> None:
    spec = loaded()
    assert (spec.experiment, spec.model.name, spec.dataset.size) == ("qwen3_lm_sensitivity", "qwen3_vl_4b_instruct", "large")
    assert spec.output_layout.mode == "tmp"


def test_every_key_of_the_tree_is_read() -> None:
    from omegaconf import OmegaConf

    config: Any = OmegaConf.to_container(composed(["output_layout=publish"]), resolve=True)
    assert keys(config) <= set(known_keys())


def test_every_pair_of_the_runbook_is_there() -> None:
    assert set(PAIRS) == PRECISIONS | {"wint8_aint8_lm_only"}


@pytest.mark.parametrize("pair", PAIRS)
def test_a_pair_is_what_it_is_called(pair: str) -> None:
    spec = loaded(f"quant_pair={pair}")
    settings = spec.quant_pair
    fmt = QUANT_FORMATS[settings.format_name]
    assert settings.name == pair, "two files with one name would share folders"
    assert pair.removesuffix("_lm_only") == f"w{fmt.weight}_a{fmt.activation}"
    assert spec.quant_pair.coverage_fraction == 1


def test_the_pair_of_earlier_runs_keeps_its_names() -> None:
    spec = loaded("quant_pair=wint8_aint8", "dataset.size=small", "output_layout=publish")
    assert scheme_name(spec) == "int8_autoquant_lm_default"
    assert spec.quant_pair.coverage_mode is CoverageMode.LM_DEFAULT
    assert publish_folder(spec).name == "qwen3_vl_4b_instruct_autoquant_int8_lm_small"
    other = loaded("quant_pair=wint8_aint8_lm_only", "dataset.size=small", "output_layout=publish")
    assert publish_folder(other) != publish_folder(spec)


@pytest.mark.parametrize("granularity", options("quant_granularity"))
def test_a_granularity_loads_over_a_pair_that_it_fits(granularity: str) -> None:
    # 8-bit weights in groups cost more than 8 bits
    spec = loaded(f"quant_granularity={granularity}", "quant_pair=wint8_aint8_lm_only", "autoquant.effective_bits=9")
    assert spec.quant_granularity.name == granularity
    assert bool(spec.quant_granularity.quant_cfg_overrides) == (granularity != "default")


@pytest.mark.parametrize("group", ["model", "dataset", "autoquant", "output_layout"])
def test_every_other_option_loads(group: str) -> None:
    for option in options(group):
        assert loaded(f"{group}={option}", "dataset.size=small")


def test_methods_are_as_called() -> None:
    assert loaded("autoquant=kl_div").autoquant.method == "kl_div"
    assert loaded("autoquant=kl_div").autoquant.score_size == loaded().autoquant.score_size


def test_published_runs_go_below_the_model() -> None:
    assert loaded("output_layout=publish").output_layout.root_dir == "models/qwen3_vl_4b_instruct/layer-analysis"


@pytest.mark.parametrize("preset", options("preset"))
def test_every_job_of_a_preset_loads(preset: str) -> None:
    config = composed([f"preset={preset}"], hydra_too=True)
    params = config.hydra.sweeper.params or {}
    assert bool(params) == preset.startswith("sweep_")
    assert (str(config.hydra.mode) == "RunMode.MULTIRUN") == bool(params)
    for key, values in params.items():
        chosen = values.split(",")
        assert len(set(chosen)) == len(chosen) >= 2
        for value in chosen:
            assert loaded(f"preset={preset}", f"{key}={value}")


def test_run_folders_name_what_was_run() -> None:
    config = composed(["dataset.size=small", "quant_pair=wint4_afp16"], hydra_too=True).hydra
    base = "tmp/model-experiments/qwen3_lm_sensitivity/qwen3_vl_4b_instruct"
    assert config.run.dir.rpartition("/")[0] == f"{base}/wint4_afp16/default/small"
    assert config.sweep.dir.rpartition("/")[0] == f"{base}/multirun"
    assert "${hydra.job.num}" in (CONF / "qwen3_lm_sensitivity.yaml").read_text()
    assert not config.job.chdir


def test_sizes_are_those_of_the_caption_files() -> None:
    from fewbits.api.captions import SIZES

    assert loaded().dataset.size_to_max_samples == SIZES
