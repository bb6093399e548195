from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import msgspec
import pytest

from fewbits.core.codec import decode, encode_pretty
from fewbits.records.recipe import HeldOut, RecipeManifest, RecipeVerdict
from fewbits.report.recipe import render_recipe_markdown, render_recipe_text
from fewbits.report.recipe_picture import render_layers_svg
from recipe_samples import a_group, a_manifest, groups

HOSTILE = '<script>alert("1")</script> | `x` \u202e\n# no'


def test_the_verdict_comes_first_and_names_the_file() -> None:
    report = render_recipe_markdown(a_manifest())
    head = report.split("## On held-out text")[0]
    assert "Use the recipe `smollm2-135m-recipe-0123456789ab.gguf`" in head
    assert "better than the stock file (BETTER)" in head
    assert "41 %" in head


@pytest.mark.parametrize("verdict", [RecipeVerdict.NOT_BETTER, RecipeVerdict.UNRESOLVED])
def test_without_evidence_the_stock_file_is_recommended(verdict: RecipeVerdict) -> None:
    manifest = a_manifest(verdict=verdict, recommended="Q4_K_M", why="Nothing was shown.")
    head = render_recipe_markdown(manifest).split("## On held-out text")[0]
    assert "Use the stock file `Q4_K_M`" in head
    assert verdict.value in head
    assert "Nothing was shown" in head
    assert "Use stock Q4_K_M" in render_recipe_text(manifest, "out")


def test_it_shows_every_file_with_its_interval() -> None:
    report = render_recipe_markdown(a_manifest())
    for words in (
        "0.0465 [0.0456, 0.0474]",
        "stock Q4\\_K\\_M" if "stock Q4\\_K" in report else "stock Q4_K_M",
        "41 % [39 %, 44 %]",
    ):
        assert words in report
    assert "105 440 320" in report
    assert "120 Q5_1, 90 Q8_0" in report


def test_a_file_that_could_not_be_measured_says_why() -> None:
    missing = HeldOut(
        label="embedding pinned",
        bytes=0,
        bits_per_weight=0.0,
        sha256=None,
        kl_nats=None,
        top_token_agreement=None,
        against_stock=None,
        types={},
        unavailable="the budget has no room for it",
    )
    manifest = a_manifest(held_out=(*a_manifest().held_out[:2], missing))
    assert "embedding pinned: the budget has no room for it" in render_recipe_markdown(manifest)
    assert "embedding pinned: the budget has no room for it" in render_recipe_text(manifest, "out")


def test_racing_and_prediction_are_told() -> None:
    report = render_recipe_markdown(a_manifest())
    assert "180 probes read 900 windows" in report
    assert "2,880" in report
    assert "saved 69 %" in report
    assert "predicted 0.0455 nats" in report


def test_imported_scores_predict_nothing() -> None:
    manifest = a_manifest(score_source="autoquant", probes=0, predicted_kl_nats=None, prediction_error=None)
    report = render_recipe_markdown(manifest)
    assert "AutoQuant" in report
    assert "additive model (each" not in report


def test_both_commands_are_there() -> None:
    report = render_recipe_markdown(a_manifest())
    assert "fewbits recipe smollm2-135m --like Q4_K_M" in report
    assert "llama-quantize --tensor-type-file tensor_types.txt" in report


@pytest.mark.parametrize(
    "field", ["model_id", "file", "why", "stock_tag", "command", "quantize_command", "engine", "held_out_text"]
)
def test_foreign_text_cannot_change_a_report(field: str) -> None:
    manifest = a_manifest(**{field: HOSTILE})
    report, picture = render_recipe_markdown(manifest), render_layers_svg(manifest)
    assert "<script" not in report + picture
    assert "\u202e" not in report + picture + render_recipe_text(manifest, HOSTILE)
    assert not re.search(r"^# no", report, re.MULTILINE)
    ET.fromstring(picture)
    rows = [line for line in report.splitlines() if line.startswith("|")]
    assert rows
    assert all(line.endswith("|") for line in rows)


def test_the_report_is_a_function_of_the_manifest_alone() -> None:
    manifest = a_manifest()
    again = decode(encode_pretty(manifest), RecipeManifest, "manifest")
    assert render_recipe_markdown(again) == render_recipe_markdown(manifest)
    assert render_layers_svg(again) == render_layers_svg(manifest)
    assert encode_pretty(again) == encode_pretty(manifest)


def test_the_picture_has_a_field_for_every_group() -> None:
    manifest = a_manifest()
    picture = ET.fromstring(render_layers_svg(manifest))
    words = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert sum(word in {"Q4_0", "Q5_0", "Q5_1", "Q8_0"} for word in words) == len(manifest.groups) - 1
    assert "token_embd Q5_1" in words
    assert "29" in words


def test_a_group_of_several_types_is_shown_as_mixed() -> None:
    manifest = a_manifest(groups=(a_group("attn_q", (0, 0), None),))
    assert ">mixed<" in render_layers_svg(manifest)
    assert "| mixed |" in render_recipe_markdown(manifest)


def test_darker_is_more_bits() -> None:
    shades = []
    for name in ("Q4_0", "Q5_0", "Q5_1", "Q8_0"):
        picture = render_layers_svg(a_manifest(groups=(a_group("attn_q", (0, 0), name),)))
        match = re.search(r'fill="#([0-9a-f]{6})" stroke="#ffffff"', picture)
        assert match
        shades.append(int(match.group(1)[:2], 16))
    assert shades == sorted(shades, reverse=True)
    assert len(set(shades)) == 4


def test_every_layer_alone_fits_too() -> None:
    manifest = a_manifest(groups=groups(layers=30, bands=30))
    ET.fromstring(render_layers_svg(manifest))


def test_warnings_stand_before_the_numbers() -> None:
    manifest = msgspec.structs.replace(a_manifest(), warnings=("source grid allowed",))
    report = render_recipe_markdown(manifest)
    assert report.index("source grid allowed") < report.index("## On held-out text")
