"""Loading a vision-language model: whatever is missing is said in one sentence with its remedy, and no token is shown."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fewbits.core.errors import BackendError, PrerequisiteError, SpecError
from fewbits.runtimes.extraction.vision_load import VisionOptions, load_vision, model_digest, model_folder

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from runtimes.extraction.vision_samples import write_tiny_vision_model  # noqa: E402

TOKEN = "hf_secret"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with contextlib.redirect_stderr(io.StringIO()):
        return write_tiny_vision_model(tmp_path_factory.mktemp("vision") / "tiny")


@pytest.fixture
def broken(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "broken"))


def load(model: Path | str, **more: Any) -> Any:
    return load_vision(VisionOptions(model=str(model), device="cpu", dtype="float32", **more))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"device": "tpu"}, "'tpu' is not known"),
        ({"dtype": "int8"}, "one of: bfloat16, float16, float32"),
        ({"weight_bits": 3}, "3 is not known"),
        ({"max_new_tokens": 0}, "less than 1"),
        ({"timeout_seconds": 0}, "more than 0"),
        ({"timeout_seconds": float("nan")}, "more than 0"),
    ],
)
def test_options_that_cannot_be_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        VisionOptions(model="m", **wrong)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_cuda_it_is_said_what_can_run(whole: Path) -> None:
    with pytest.raises(PrerequisiteError, match=r"CUDA was asked for.*--device cpu.*OCR engine"):
        load_vision(VisionOptions(model=str(whole)))


@pytest.mark.parametrize(
    ("remove", "words"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", r"no weights"),
        ("tokenizer.json", "no tokenizer"),
        ("chat_template.jinja", "no processor that takes pictures in a chat"),
    ],
)
def test_a_folder_without_a_part_is_refused(broken: Path, remove: str, words: str) -> None:
    (broken / remove).unlink()
    with pytest.raises(SpecError, match=words):
        load(broken)


def test_pickled_weights_and_code_are_not_read(broken: Path) -> None:
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    with pytest.raises(SpecError, match="pickled weights can run code"):
        load(broken)
    (broken / "pytorch_model.bin").rename(broken / "model.safetensors")
    config = json.loads((broken / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": dict.fromkeys(("AutoConfig", "AutoModelForImageTextToText"), "evil.Own")}
    (broken / "config.json").write_text(json.dumps(config))
    (broken / "evil.py").write_text(f"open({str(broken / 'ran')!r}, 'w')")
    with pytest.raises((BackendError, SpecError)):
        load(broken)
    assert not (broken / "ran").exists()


def test_weights_that_would_be_made_up_are_refused(broken: Path) -> None:
    config = json.loads((broken / "config.json").read_text())
    config["text_config"] |= {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(BackendError, match=r"lacks weights .*layers\.2"):
        load(broken)


def test_damaged_weights_give_one_message(broken: Path) -> None:
    (broken / "model.safetensors").write_bytes(b"nothing of use")
    with pytest.raises(BackendError, match="broken: "):
        load(broken)


def test_the_digest_is_of_every_file_that_matters(whole: Path, broken: Path) -> None:
    assert model_digest(broken) == model_digest(whole)
    (broken / "README.md").write_text("words")
    assert model_digest(broken) == model_digest(whole)
    (broken / "chat_template.jinja").write_text("another")
    assert model_digest(broken) != model_digest(whole)


def test_what_is_neither_folder_nor_name_is_refused(tmp_path: Path) -> None:
    for name in (str(tmp_path / "nowhere"), "nowhere", "a/b/c", ""):
        with pytest.raises(SpecError, match="neither a folder nor a name"):
            model_folder(name, None)
    with pytest.raises(SpecError, match="revision"):
        model_folder(str(tmp_path), "main")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("GatedRepoError", r"at revision r1 is gated \(a token is set\)\. Accept its terms"),
        ("RepositoryNotFoundError", "the hub shows no such model"),
        ("LocalEntryNotFoundError", r"the hub cannot be reached\. Connect, or copy the model's folder"),
        ("RevisionNotFoundError", "could not be downloaded .* Check the revision"),
    ],
)
def test_what_the_hub_refuses_has_a_remedy_and_shows_no_token(monkeypatch: pytest.MonkeyPatch, kind: str, words: str) -> None:
    from huggingface_hub import errors

    seen: dict[str, Any] = {}

    def refuse(model: str, **more: Any) -> str:
        seen.update(more)
        error: Exception = errors.__dict__[kind].__new__(errors.__dict__[kind])
        error.args = (f"with {TOKEN}",)
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(PrerequisiteError, match=words) as caught:
        model_folder("owner/model", "r1")
    assert TOKEN not in str(caught.value)
    assert caught.value.__cause__ is None
    assert seen["token"] == TOKEN
    assert not any(pattern.endswith((".py", ".bin", ".pt")) for pattern in seen["allow_patterns"])


def test_no_token_is_looked_for_outside_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def download(model: str, **more: Any) -> str:
        seen.update(more)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGINGFACE_TOKEN", raising=False)
    assert model_folder("owner/model", None) == tmp_path
    assert seen["token"] is False
