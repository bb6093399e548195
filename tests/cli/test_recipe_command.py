from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import pytest

from fewbits.api.recipe_request import RecipeRequest, command_of
from fewbits.cli import recipe as command
from fewbits.cli.main import main
from fewbits.core.codec import decode
from fewbits.records.recipe import RecipeManifest, RecipeVerdict
from recipe_fakes import make_model
from recipe_samples import a_manifest


def parsed(*words: str) -> RecipeRequest:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.request_of(parser.parse_args(words))


def test_flags_reach_the_request() -> None:
    assert parsed("m.gguf", "--like", "Q4_K_M,Q3_K_M").like == ("Q4_K_M", "Q3_K_M")
    assert parsed("m.gguf", "--budget", "5.0bpw", "--budget", "1GiB").budgets == ("5.0bpw", "1GiB")
    assert parsed("m.gguf", "--types", "q4_0,q5-1").types == ("Q4_0", "Q5_1")
    request = parsed(
        "m.gguf", "--like", "Q4_K_M", "--tasks", "none", "--held-out-text", "a.txt", "--off-grid", "7", "--threads", "1"
    )
    assert (request.tasks, request.held_out_text, request.off_grid_seed, request.threads) == ("none", "a.txt", 7, 1)


def test_flags_without_a_word_stand_at_the_requests_defaults() -> None:
    assert parsed("m.gguf", "--like", "Q4_K_M") == RecipeRequest(model="m.gguf", like=("Q4_K_M",))


@pytest.mark.parametrize(
    "words",
    [
        ("m.gguf", "--like", "Q4_K_M", "--bands", "0", "--types", "Q4_0,Q8_0", "--seed", "3"),
        ("my model.gguf", "--budget", "5.0bpw", "--budget", "700MB", "--scores", "a.json", "b.json", "--tasks", "none"),
        ("m.gguf", "--from", "recipe.json", "--imatrix", "im.gguf", "--probe-windows", "9", "--source-grid", "allow"),
    ],
)
def test_the_printed_command_asks_for_the_same(words: tuple[str, ...]) -> None:
    import shlex

    request = parsed(*words)
    assert parsed(*shlex.split(command_of(request))[2:]) == request


def test_the_result_is_a_table_a_verdict_and_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fewbits.api.recipe.make_recipe", lambda *_: (a_manifest(),))
    words = ["recipe", "m.gguf", "--like", "Q4_K_M", "--out-dir", str(tmp_path / "out"), "--tasks", "none"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "41 % [39 %, 44 %]" in printed
    assert "BETTER" in printed
    assert f"{tmp_path}/out/smollm2-135m-recipe-0123456789ab.gguf" in printed
    assert "fewbits recipe smollm2-135m --like Q4_K_M" in printed
    assert main([*words, "--json"]) == 0
    assert decode(capsys.readouterr().out.encode(), RecipeManifest, "stdout") == a_manifest()


def test_a_dry_run_prints_groups_and_touches_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_model(tmp_path / "tiny.gguf")
    words = ["recipe", str(model), "--budget", "5.5bpw", "--bands", "1", "--out-dir", str(tmp_path / "out"), "--tasks", "none"]
    assert main([*words, "--dry-run"]) == 0
    assert "attn_v/0-1" in capsys.readouterr().out
    assert main([*words, "--dry-run", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)["dry_run"]
    assert len(document["groups"]) == 7
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nope.gguf", "--like", "Q4_K_M"), "does not exist"),
        (("MODEL", "--like", "Q4_KM"), "did you mean Q4_K_M"),
        (("MODEL", "--budget", "5.0bp"), "'bp' is no unit"),
        (("MODEL",), "there is no budget"),
        (("MODEL", "--budget", "1bpw"), "too small"),
        (("MODEL", "--like", "Q4_K_M", "--held-out-text", "python-topics/probe"), "also the text of --probe-text"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    model = str(make_model(tmp_path / "tiny.gguf"))
    spelled = [model if word == "MODEL" else word for word in words]
    assert main(["recipe", *spelled, "--out-dir", str(tmp_path / "out"), "--tasks", "none", "--dry-run"]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert not captured.out


@pytest.mark.real
def test_a_recipe_of_a_real_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Few windows and types: the path from model to verdict, not the numbers: two types are too few to beat the stock file."""
    words = [
        *("recipe", "smollm2-135m", "--like", "Q4_K_M", "--off-grid", "1", "--bands", "1", "--types", "Q5_0,Q8_0"),
        *("--probe-windows", "2", "--held-out-windows", "4", "--window-tokens", "64", "--tasks", "none", "--threads", "1"),
        *("--out-dir", str(tmp_path / "out"), "--json"),
    ]
    assert main(words) == 0
    manifest = decode(capsys.readouterr().out.encode(), RecipeManifest, "stdout")
    recipe, stock, *_, pure = manifest.held_out
    assert manifest.file_bytes <= manifest.budget.bytes == stock.bytes
    assert stock.kl_nats is not None
    assert recipe.kl_nats is not None
    assert pure.kl_nats is not None
    assert recipe.kl_nats.value < pure.kl_nats.value
    assert (manifest.recommended == "recipe") == (manifest.verdict is RecipeVerdict.BETTER)
    assert (tmp_path / "out" / manifest.file).stat().st_size == manifest.file_bytes
    assert re.search(r"^\^blk\\\.0\\\.attn_v\\\.weight\$=q", (tmp_path / "out" / "tensor_types.txt").read_text(), re.MULTILINE)
