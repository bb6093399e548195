"""The contract of the sensitivity configuration: what is accepted, and that every problem is said at once, with its place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fewbits.core.codec import decode, encode_canonical
from fewbits.core.errors import Problem, SpecError
from fewbits.records.sensitivity import CoverageMode, SensitivityMethod, SensitivitySpec
from fewbits.spec.sensitivity import known_keys, load_sensitivity_spec, wants_report_only

Config = dict[str, Any]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    (tmp_path / "captions_small.txt").write_text("a dog\n\na cat\n")
    return tmp_path


@pytest.fixture
def config() -> Config:
    return {
        "experiment": "test",
        "runner": {"report_only": False, "output_dir": None, "overwrite": False},
        "model": {"name": "tiny", "path": "model", "format": "auto", "dtype": "auto"},
        "dataset": {
            "name": "captions",
            "size": "small",
            "captions_path": "captions_small.txt",
            "size_to_max_samples": {"small": 16, "medium": 128},
        },
        "quant_pair": {
            "name": "wint8_aint8",
            "weight": "int8",
            "activation": "int8",
            "format_name": "INT8_DEFAULT_CFG",
        },
        "quant_granularity": {"name": "default", "quant_cfg_overrides": {}},
        "autoquant": {"method": "gradient", "device": "cpu", "effective_bits": 8.0},
        "output_layout": {"mode": "tmp"},
    }


def problems_of(config: Config, root: Path) -> list[Problem]:
    with pytest.raises(SpecError) as caught:
        load_sensitivity_spec(config, root=root)
    return list(caught.value.problems)


def changed(config: Config, path: str, value: object) -> Config:
    tree = copy.deepcopy(config)
    section, _, key = path.rpartition(".")
    target = tree[section] if section else tree
    target[key] = value
    return tree


def test_values_arrive_in_the_spec(config: Config, root: Path) -> None:
    config["autoquant"] |= {"method": "kl_div", "disabled_layers": ["*down*"], "seed": 7, "batch_size": 2}
    config["quant_pair"] |= {"coverage_mode": "full", "coverage_fraction": 0.5}
    config["dataset"] |= {"max_calib_samples": 3, "calib_seq_len": 64}
    spec = load_sensitivity_spec(config, root=root)
    assert spec.experiment == "test"
    assert spec.autoquant.method is SensitivityMethod.KL_DIV
    assert spec.autoquant.disabled_layers == ("*down*",)
    assert (spec.autoquant.seed, spec.autoquant.batch_size) == (7, 2)
    assert (spec.quant_pair.coverage_mode, spec.quant_pair.coverage_fraction) == (CoverageMode.FULL, 0.5)
    assert (spec.dataset.max_calib_samples, spec.dataset.calib_seq_len) == (3, 64)
    assert (spec.model.path, spec.dataset.captions_path) == ("model", "captions_small.txt"), "as written, never made absolute"


def test_runner_settings_end_up_in_the_output(config: Config, root: Path) -> None:
    config["runner"] |= {"output_dir": "results", "overwrite": True}
    output = load_sensitivity_spec(config, root=root).output_layout
    assert (output.mode, output.output_dir, output.overwrite) == ("tmp", "results", True)


def test_a_spec_survives_json(config: Config, root: Path) -> None:
    config["quant_granularity"] = {"name": "w_group64", "quant_cfg_overrides": {"*weight_quantizer": {"block_sizes": {-1: 64}}}}
    config["autoquant"]["effective_bits"] = 9
    spec = load_sensitivity_spec(config, root=root)
    assert decode(encode_canonical(spec), SensitivitySpec, "spec") == spec


def test_home_is_expanded(config: Config, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(root))
    config["dataset"]["captions_path"] = "~/captions_small.txt"
    spec = load_sensitivity_spec(changed(config, "model.path", "~/model"), root=Path("elsewhere"))
    assert (spec.model.path, spec.dataset.captions_path) == (str(root / "model"), str(root / "captions_small.txt"))


def test_every_problem_at_once(config: Config, root: Path) -> None:
    config["model"] |= {"path": "nowhere", "dtype": "bf16", "name": "a/b"}
    config["dataset"] |= {"size": "smal", "naem": "x"}
    config["quant_pair"] |= {"weight": "int4", "coverage_mode": "lm_onyl", "coverage_fraction": 0, "scheme_name": ".."}
    config["quant_granularity"]["quant_cfg_overrides"] = {"*weight_quantizer": {"axis": 0, "block_sizes": {-1: 64}}}
    config["autoquant"] |= {"method": "gradiant", "device": "gpu", "batch_size": 0, "effective_bits": 17}
    config["output_layout"]["mode"] = "publsh"
    config["sweep"] = {}
    found = {problem.path: problem for problem in problems_of(config, root)}
    assert set(found) == {
        "model.path",
        "model.dtype",
        "model.name",
        "dataset.size",
        "dataset.naem",
        "quant_pair.weight",
        "quant_pair.coverage_mode",
        "quant_pair.coverage_fraction",
        "quant_pair.scheme_name",
        "quant_granularity.quant_cfg_overrides.*weight_quantizer",
        "autoquant.method",
        "autoquant.device",
        "autoquant.batch_size",
        "autoquant.effective_bits",
        "output_layout.mode",
        "sweep",
    }
    assert "'small'" in found["dataset.size"].hint
    assert "'name'" in found["dataset.naem"].hint
    assert "'lm_only'" in found["quant_pair.coverage_mode"].hint
    assert "'gradient'" in found["autoquant.method"].hint
    assert "'publish'" in found["output_layout.mode"].hint
    assert "'bfloat16'" in found["model.dtype"].hint
    assert [path for path, problem in found.items() if not problem.hint] == []


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("model.path", "???", "must be given"),
        ("model.format", "gguf", "no .gguf file"),
        ("quant_pair.format_name", "INT8_DEFALT_CFG", "INT8_DEFAULT_CFG"),
        ("quant_pair.activation", "fp16", "has activation 'int8'"),
        ("quant_pair.experimental", True, "is not experimental"),
        ("quant_pair.publish_run_dir", "../up", "cannot be part of a file name"),
        ("quant_pair.publish_pair_dir", "a/b", "cannot be part of a file name"),
        ("quant_granularity.name", ".hidden", "cannot be part of a file name"),
        ("dataset.size_to_max_samples", {"small": 0}, ">= 1"),
        ("dataset.captions_path", "none.txt", "No such file"),
        ("autoquant.effective_bits", 7.5, "cannot be reached"),
        ("autoquant.disabled_layers", ["*a*", " "], "empty pattern"),
        ("autoquant.device", "cuda:x", "unknown device"),
        ("autoquant.threads", 0, ">= 1"),
        ("autoquant.verbose", "yes", "bool"),
        ("autoquant.seed", -1, ">= 0"),
        ("runner.overwrite", True, "has no effect"),
        ("runner.report_only", True, "a new folder each time"),
        ("runner.output_dir", "", "is empty"),
        ("output_layout.root_dir", "models", "has no effect"),
        ("output_layout.mode", "publish", "missing"),
    ],
)
def test_one_bad_value_is_one_problem(config: Config, root: Path, path: str, value: object, said: str) -> None:
    found = problems_of(changed(config, path, value), root)
    assert len(found) == 1
    assert said in str(found[0])
    assert found[0].path.startswith(path.split(".", maxsplit=1)[0])


def test_experimental_formats_must_be_called_so(config: Config, root: Path) -> None:
    config["quant_pair"] |= {"weight": "int4", "format_name": "INT4_WEIGHT_INT8_ACT_CFG"}
    assert [problem.path for problem in problems_of(config, root)] == ["quant_pair.experimental"]
    config["quant_pair"]["experimental"] = True
    assert load_sensitivity_spec(config, root=root).quant_pair.experimental


def test_publish_and_an_output_folder_contradict(config: Config, root: Path) -> None:
    config["output_layout"] = {"mode": "publish", "root_dir": "models"}
    config["runner"]["output_dir"] = "elsewhere"
    assert [problem.path for problem in problems_of(config, root)] == ["runner.output_dir"]


def test_a_group_that_was_not_chosen_is_named(config: Config, root: Path) -> None:
    del config["quant_pair"]
    (problem,) = problems_of(config, root)
    assert problem.path == "quant_pair"
    assert "conf/quant_pair/" in problem.hint


def test_required_values_are_named(config: Config, root: Path) -> None:
    del config["model"]["path"]
    del config["quant_pair"]["format_name"]
    assert {problem.path for problem in problems_of(config, root)} == {"model.path", "quant_pair.format_name"}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.write_text("\n  \n"), "holds no text"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "not UTF-8"),
        (lambda path: (path.unlink(), path.mkdir()), "directory"),
    ],
)
def test_unusable_captions(config: Config, root: Path, spoil: Callable[[Path], object], said: str) -> None:
    spoil(root / "captions_small.txt")
    (problem,) = problems_of(config, root)
    assert problem.path == "dataset.captions_path"
    assert said in problem.message


@pytest.mark.parametrize(
    ("removed", "said"),
    [("config.json", "no config.json"), ("model.safetensors", "no weights"), ("tokenizer.json", "no tokenizer")],
)
def test_incomplete_models(config: Config, root: Path, removed: str, said: str) -> None:
    (root / "model" / removed).unlink()
    (problem,) = problems_of(config, root)
    assert problem.path == "model.path"
    assert said in problem.message


def test_pickled_weights_are_no_weights(config: Config, root: Path) -> None:
    (root / "model" / "model.safetensors").rename(root / "model" / "pytorch_model.bin")
    assert "safetensors" in problems_of(config, root)[0].hint


def test_a_cap_of_its_own_needs_no_size_in_the_table(config: Config, root: Path) -> None:
    config["dataset"] |= {"size": "mine", "max_calib_samples": 2}
    assert load_sensitivity_spec(config, root=root).dataset.size == "mine"


def test_reports_alone_need_neither_model_nor_captions(config: Config, root: Path) -> None:
    config["runner"] |= {"report_only": True, "output_dir": "results"}
    config["model"]["path"] = "nowhere"
    config["dataset"]["captions_path"] = "nowhere.txt"
    assert load_sensitivity_spec(config, root=root).output_layout.output_dir == "results"
    assert wants_report_only(config)
    config["runner"]["overwrite"] = True
    assert [problem.path for problem in problems_of(config, root)] == ["runner.overwrite"]


def test_the_known_keys_are_those_that_are_read(config: Config, root: Path) -> None:
    assert {"experiment", "model.path", "runner.report_only", "output_layout.root_dir"} <= set(known_keys())
    assert "output_layout.output_dir" not in known_keys()
    assert "unknown key" in str(problems_of(changed(config, "output_layout.output_dir", "x"), root)[0])
