"""Loading: what is on disk is what is scored, or there is one clear message."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fewbits.core.errors import BackendError, PrerequisiteError, SpecError
from fewbits.quantizers.torch.library import memory_errors, quiet_library, require
from fewbits.quantizers.torch.load import load_model, resolve_dtype
from fewbits.quantizers.torch.tiny import write_tiny_model
from fewbits.records.sensitivity import ModelSettings
from fewbits.spec.model_source import find_model_format

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

MakeGguf = Callable[..., Path]


def settings(path: Path, **more: Any) -> ModelSettings:
    return ModelSettings(name="tiny", path=str(path), **more)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def broken(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "broken"))


def test_a_folder_is_loaded_in_the_requested_type(llama: Path) -> None:
    loaded = load_model(settings(llama, dtype="bfloat16"), "cpu")
    assert loaded.model.dtype == torch.bfloat16
    assert (loaded.dtype, loaded.source_format, loaded.model.training) == ("bfloat16", "hf", False)
    assert {path.name for path in loaded.files} >= {"config.json", "model.safetensors", "tokenizer.json"}


def test_a_vision_language_model_keeps_its_vision_tower(tmp_path: Path) -> None:
    loaded = load_model(settings(write_tiny_model(tmp_path, "qwen3_vl")), "cpu")
    assert type(loaded.model).__name__ == "Qwen3VLForConditionalGeneration"
    assert any(name.startswith("model.visual.") for name, _ in loaded.model.named_parameters())


def test_tiny_models_depend_on_their_seed_alone(tmp_path: Path) -> None:
    digests = [
        (write_tiny_model(tmp_path / name, seed=seed) / "model.safetensors").read_bytes()
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert digests[0] == digests[1] != digests[2]
    with pytest.raises(SpecError, match="unknown tiny architecture"):
        write_tiny_model(tmp_path / "d", "gpt5")


def test_a_gguf_file_is_loaded_as_float_with_its_own_weights(make_gguf: MakeGguf) -> None:
    gguf = pytest.importorskip("gguf")
    path = make_gguf()
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    with pytest.MonkeyPatch.context() as patch:
        # the fixture's 32 tokens make no tokenizer
        patch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_args, **_more: "tokenizer")
        loaded = load_model(settings(path), "cpu")
    assert (loaded.source_format, loaded.files, loaded.dtype) == ("gguf", (path,), "float32")
    down = loaded.model.model.layers[0].mlp.down_proj.weight.detach().numpy()
    assert (down == tensors["blk.0.ffn_down.weight"].data).all()


@pytest.mark.parametrize(
    ("remove", "words"),
    [("config.json", "no config.json"), ("model.safetensors", r"no weights"), ("tokenizer.json", "no tokenizer")],
)
def test_a_folder_without_a_part_is_refused_before_loading(broken: Path, remove: str, words: str) -> None:
    (broken / remove).unlink()
    with pytest.raises(SpecError, match=words):
        load_model(settings(broken), "cpu")


def test_pickled_weights_are_not_read(broken: Path) -> None:
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    with pytest.raises(SpecError, match="pickled weights can run code"):
        load_model(settings(broken), "cpu")


def test_a_gguf_inside_a_folder_is_pointed_out(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    with pytest.raises(SpecError, match=r"name the file: model\.gguf"):
        find_model_format(settings(tmp_path))


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="is not there"):
        find_model_format(settings(tmp_path / "nowhere"))
    with pytest.raises(SpecError, match="unknown format"):
        find_model_format(settings(tmp_path, format="onnx"))
    with pytest.raises(SpecError, match=r"no \.gguf file"):
        find_model_format(settings(tmp_path, format="gguf"))


def test_weights_that_would_be_made_up_are_refused(broken: Path) -> None:
    config = json.loads((broken / "config.json").read_text())
    config["num_hidden_layers"] = 3
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(BackendError, match=r"lacks weights that the architecture needs .*layers\.2"):
        load_model(settings(broken), "cpu")


@pytest.mark.parametrize("damage", ["weights", "architecture", "config"])
def test_damaged_models_give_one_clear_message(broken: Path, damage: str) -> None:
    if damage == "weights":
        (broken / "model.safetensors").write_bytes(b"nothing of use")
    elif damage == "architecture":
        (broken / "config.json").write_text('{"model_type": "no-such-model"}')
    else:
        (broken / "config.json").write_text("{")
    with pytest.raises((BackendError, SpecError), match=r"cannot (load|be read)"):
        load_model(settings(broken), "cpu")


def test_the_automatic_type_follows_the_device() -> None:
    assert resolve_dtype("auto", "cpu") == "float32"
    assert resolve_dtype("auto", "cuda:1") == "bfloat16"
    assert resolve_dtype("float16", "cpu") == "float16"
    with pytest.raises(SpecError, match="unknown dtype 'int8'"):
        resolve_dtype("int8", "cpu")


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")],
)
def test_out_of_memory_becomes_one_message_with_a_remedy(error: Exception) -> None:
    with pytest.raises(BackendError, match=r"out of memory.*Buy more"), memory_errors("torch", "Buy more."):
        raise error


def test_other_errors_are_not_called_out_of_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory_errors("torch", "x"):
        raise RuntimeError("shapes do not match")


def test_libraries_never_print_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with quiet_library(show=True):
        print("chatter")
    with quiet_library(show=False):
        print("hidden")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "chatter\n"


def test_a_missing_library_is_named_with_its_remedy() -> None:
    with pytest.raises(PrerequisiteError, match=r"no_such_library not installed.*pip install"):
        require("json", "no_such_library")
