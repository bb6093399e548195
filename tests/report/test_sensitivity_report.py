"""Reports of a sensitivity run: golden, pure, and unbroken by whatever a manifest holds."""

from __future__ import annotations

import json
import os
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

import sensitivity_samples as samples
from fewbits.core.codec import decode
from fewbits.records.sensitivity import SensitivityManifest, SensitivityReport
from fewbits.report.drawing import CHARACTER_WIDTH, MOST_DECADES, log_axis_over
from fewbits.report.escape import visible
from fewbits.report.sensitivity import JSON_NAME, MARKDOWN_NAME, render_sensitivity_documents
from fewbits.report.sensitivity_rollup import render_agreement_text, render_rollup_markdown, render_rollup_terminal
from fewbits.report.sensitivity_svg import (
    DEPTH_PICTURE,
    RANKING_PICTURE,
    SHOWN_GROUPS,
    render_depth_svg,
    render_ranking_svg,
    short_names,
)

GOLDEN = Path(__file__).parent / "golden" / "sensitivity"
ROLLUP = "sensitivity-rollup.md"
SVG = "{http://www.w3.org/2000/svg}"
PARSER = MarkdownIt("commonmark", {"html": True}).enable("table")
OUR_HTML = {"<details>\n<summary>All excluded modules</summary>\n", "</details>\n"}
PIECES = ["<script>", "```", "![a](b)", "https://x.y", *"|`<>&\\*_[]()!#~-+=:@$\"'\n\r\t\x00\x1b\u202e\u200b\u2028 0aQ1."]
NASTY = st.lists(st.one_of(st.characters(codec="utf-8"), st.sampled_from(PIECES)), max_size=12).map(
    "".join
)  # as JSON can hold them
NAME, SHA = "wint8_aint8_autoquant_lm_quant_manifest.json", "5" * 64


def documents(manifest: SensitivityManifest) -> dict[str, str]:
    return render_sensitivity_documents(manifest, NAME, SHA)


def with_groups(scores: dict[str, tuple[str, int | None, float]]) -> SensitivityManifest:
    pattern = next(iter(samples.sample_groups().values()))
    groups = {
        name: msgspec.structs.replace(
            pattern, kind=kind, depth=depth, candidates=(msgspec.structs.replace(pattern.candidates[0], score=score),)
        )
        for name, (kind, depth, score) in scores.items()
    }
    return samples.sample_manifest(layer_sensitivity=groups)


def report_of(scores: dict[str, tuple[str, int | None, float]]) -> SensitivityReport:
    return decode(documents(with_groups(scores))[JSON_NAME].encode(), SensitivityReport, "report")


def assert_unbroken(document: str) -> None:
    """Every table has its columns, nothing foreign became markup, and hidden characters are shown."""
    assert not [char for char in document if visible(char) != char and char not in " \n\u00a0"]
    inside_code = False
    for line in document.split("\n"):
        inside_code ^= line.startswith("```")
    assert not inside_code
    for token in PARSER.parse(document):
        if token.type == "html_block":
            assert token.content in OUR_HTML
        for child in token.children or []:
            assert child.type not in {"html_inline", "link_open"}
            if child.type == "image":
                assert str(child.attrs["src"]) in {DEPTH_PICTURE, RANKING_PICTURE}
    for block in re.findall(r"(?:^\|.*\n)+", document, flags=re.MULTILINE):
        lines = [re.sub(r"\\\|", "", line) for line in block.splitlines()]
        assert {line.count("|") for line in lines} == {lines[0].count("|")}


@pytest.mark.parametrize("name", [MARKDOWN_NAME, JSON_NAME, DEPTH_PICTURE, RANKING_PICTURE, ROLLUP])
def test_golden(name: str) -> None:
    rendered = {**documents(samples.sample_manifest()), ROLLUP: render_rollup_markdown(samples.sample_rollup())}[name]
    if os.environ.get("FEWBITS_UPDATE_GOLDEN"):
        GOLDEN.mkdir(parents=True, exist_ok=True)
        (GOLDEN / name).write_text(rendered, encoding="utf-8")
    assert rendered == (GOLDEN / name).read_text(encoding="utf-8")


def test_the_same_manifest_gives_the_same_bytes() -> None:
    manifest = samples.sample_manifest()
    shuffled = msgspec.structs.replace(manifest, layer_sensitivity=dict(reversed(manifest.layer_sensitivity.items())))
    assert documents(manifest) == documents(msgspec.json.decode(msgspec.json.encode(manifest), type=SensitivityManifest))
    assert documents(manifest) == documents(shuffled)


def test_the_json_names_its_manifest() -> None:
    report = json.loads(documents(samples.sample_manifest())[JSON_NAME])
    assert (report["manifest"], report["manifest_sha256"]) == (NAME, SHA)
    scores = [row["sensitivity"] for row in report["layer_sensitivity"]]
    assert scores == sorted(scores, reverse=True)
    assert {"layer", "num_bits", "sensitivity", "size_cost"} <= set(report["layer_sensitivity"][0])


def test_a_budget_that_was_missed_and_numbers_that_are_missing_are_said() -> None:
    changed = samples.sample_manifest(
        budget_satisfied=False, adjusted_effective_bits=None, padding_ratio=None, warnings=("lm_head <b>",)
    )
    document = documents(changed)[MARKDOWN_NAME]
    assert "| budget satisfied | **no** |" in document
    assert "| adjusted | — over all" in document
    assert "> lm_head &lt;b&gt;" in document
    assert_unbroken(document)


def test_every_group_and_every_excluded_module_is_listed() -> None:
    manifest = samples.sample_manifest()
    document = documents(manifest)[MARKDOWN_NAME]
    for name in [*manifest.layer_sensitivity, *(module.name for module in manifest.excluded)]:
        assert f"| `{name}` |" in document


def test_the_composed_configuration_keeps_its_indentation() -> None:
    document = documents(samples.sample_manifest())[MARKDOWN_NAME]
    assert "\n  path: models/Qwen3-VL-4B-Instruct\n" in document
    assert "  note: \"a \u2039b\u203a 'c'\"" in document
    fence = samples.sample_manifest(run_config={"composed_yaml": "a: 1\n```\n# out <b>\n"})
    assert_unbroken(documents(fence)[MARKDOWN_NAME])
    empty = samples.sample_manifest(run_config={})
    assert "The manifest holds none." in documents(empty)[MARKDOWN_NAME]


def test_quantizers_may_come_as_a_list_or_not_at_all() -> None:
    entries = [{"quantizer_name": f"*{index}*", "enable": False} for index in range(70)]
    listed = documents(samples.sample_manifest(quantization={"effective_quantizers": entries}))[MARKDOWN_NAME]
    assert "quantizer_name: \\*3\\*; enable: no" in listed
    assert "10 further quantizers: see the manifest." in listed
    assert "names no quantizers" in documents(samples.sample_manifest(quantization={}))[MARKDOWN_NAME]


@settings(max_examples=60, deadline=None)
@given(text=NASTY, other=NASTY)
def test_nothing_foreign_breaks_a_report(text: str, other: str) -> None:
    spec = samples.sample_spec()
    spec = msgspec.structs.replace(
        spec,
        model=msgspec.structs.replace(spec.model, name=text),
        dataset=msgspec.structs.replace(spec.dataset, name=other, captions_path=text),
    )
    base = samples.sample_manifest()
    groups = {
        name: msgspec.structs.replace(group, kind=other, selected=text)
        for name, group in zip((text, other + "2"), base.layer_sensitivity.values(), strict=False)
    }
    manifest = msgspec.structs.replace(
        base,
        scheme=text,
        spec=spec,
        layer_sensitivity=groups,
        excluded=(msgspec.structs.replace(base.excluded[0], name=text, detail=other),),
        inputs=(msgspec.structs.replace(base.inputs[0], path=text),),
        quantization={text: other, "effective_quantizers": {text: {other: text}}},
        versions={text: other},
        git={"commit": text, "dirty": False},
        hardware={other: text},
        timings_seconds={text: 1.0},
        run_config={"composed_yaml": f"{text}\n  {other}"},
        warnings=(text, other),
    )
    rendered = documents(manifest)
    assert_unbroken(rendered[MARKDOWN_NAME])
    for name in (DEPTH_PICTURE, RANKING_PICTURE):
        assert_safe_svg(rendered[name])


def assert_safe_svg(picture: str) -> None:
    root = ElementTree.fromstring(picture)
    allowed = {"svg", "title", "rect", "text", "line", "circle", "polygon", "polyline", "path"}
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= allowed
    for element in root.iter():
        assert not [name for name in element.attrib if name.startswith("on") or "href" in name]


def texts(picture: str) -> list[tuple[float, float, float, float]]:
    """Boxes (left, top, right, bottom) of the upright texts."""
    boxes = []
    for element in ElementTree.fromstring(picture).iter(f"{SVG}text"):
        if "transform" in element.attrib:
            continue
        x, y, size = (float(element.attrib[name]) for name in ("x", "y", "font-size"))
        width = len(element.text or "") * size * CHARACTER_WIDTH
        left = {"start": x, "middle": x - width / 2, "end": x - width}[element.attrib["text-anchor"]]
        boxes.append((left, y - 0.75 * size, left + width, y + 0.1 * size))
    return boxes


MANY: dict[str, tuple[str, int | None, float]] = {
    f"model.layers.{depth}.{kind}_of_a_model_with_long_names": (kind, depth, 10.0 ** (-(depth % 9)) / (1 + index))
    for depth in range(40)
    for index, kind in enumerate(
        ["attn_qkv", "attn_o", "mlp_gate_up", "mlp_down", "router", "expert_gate", "expert_up", "shared"]
    )
}


@pytest.mark.parametrize(
    "report",
    [
        report_of(MANY),
        samples.sample_report(),
        report_of({"a": ("k", 0, 0.0)}),
        report_of({"lm_head": ("lm_head", None, 1e-30), "layers.1000.x": ("x" * 90, 1000, 1e30), "layers.0.x": ("y", 0, 0.0)}),
    ],
    ids=["many", "sample", "one", "extreme"],
)
@pytest.mark.parametrize("render", [render_depth_svg, render_ranking_svg])
def test_texts_of_a_picture_do_not_overlap_and_stay_inside(report: SensitivityReport, render: object) -> None:
    picture = render_depth_svg(report) if render is render_depth_svg else render_ranking_svg(report)
    root = ElementTree.fromstring(picture)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    boxes = texts(picture)
    for index, (left, top, right, bottom) in enumerate(boxes):
        assert left >= 0
        assert right <= width
        assert bottom <= height
        for a, b, c, d in boxes[index + 1 :]:
            assert not (left < c and a < right and top < d and b < bottom), (boxes[index], (a, b, c, d))


def test_every_kind_has_a_colour_of_its_own_until_they_run_out() -> None:
    legend = {"attn_qkv", "attn_o", "mlp_gate_up", "mlp_down"}
    drawn = {element.text for element in ElementTree.fromstring(render_depth_svg(samples.sample_report())).iter(f"{SVG}text")}
    assert legend <= drawn
    many = {element.text for element in ElementTree.fromstring(render_depth_svg(report_of(MANY))).iter(f"{SVG}text")}
    assert "other kinds" in many
    picture = render_depth_svg(samples.sample_report())
    assert len(set(re.findall(r'polyline [^>]*stroke="(#\w+)"', picture))) == len(legend)


def test_the_ranking_says_what_it_leaves_out() -> None:
    picture = render_ranking_svg(report_of(MANY))
    assert f"{len(MANY) - SHOWN_GROUPS} further groups" in picture
    assert picture.count('stroke-opacity="0.35"') == SHOWN_GROUPS


def test_nothing_to_draw_is_said() -> None:
    none = report_of({})
    assert "Nothing to draw" in render_depth_svg(none)
    assert "Nothing to draw" in render_ranking_svg(none)
    assert_unbroken(documents(samples.sample_manifest(layer_sensitivity={}))[MARKDOWN_NAME])


@given(st.lists(st.floats(0, 1e300), max_size=20))
def test_a_log_axis_holds_what_is_on_it(values: list[float]) -> None:
    axis = log_axis_over(values)
    assert 0 < axis.high - axis.low <= MOST_DECADES
    assert all(0 <= axis.position(value) <= 1 for value in values)
    if any(values):
        assert axis.shows(max(values))
    ordered = sorted(values)
    assert [axis.position(value) for value in ordered] == sorted(axis.position(value) for value in values)


def test_short_names_keep_what_tells_groups_apart() -> None:
    names = ["model.language_model.layers.0.mlp.down_proj", "model.language_model.layers.1.mlp.down_proj"]
    assert short_names(names) == ["layers.0.mlp.down_proj", "layers.1.mlp.down_proj"]
    assert short_names(["lm_head"]) == ["lm_head"]
    assert short_names(["a.b", "c.d"]) == ["a.b", "c.d"]
    assert len(short_names(["x" * 200])[0]) <= 46


def test_a_rollup_is_unbroken_by_names() -> None:
    found = samples.sample_rollup()
    nasty = "a|b`<script>\n\u202e"
    runs = tuple(
        msgspec.structs.replace(run, pair=nasty, manifest=nasty, most_sensitive=nasty, failure=nasty) for run in found.runs
    )
    agreement = msgspec.structs.replace(found.between_sizes[0], left=nasty, spearman=None, top_k_overlap=None, reason=nasty)
    changed = msgspec.structs.replace(found, runs=runs, between_sizes=(agreement,), skipped={nasty: nasty})
    document = render_rollup_markdown(changed)
    assert_unbroken(document)
    from rich.console import Console

    console = Console(width=100, record=True, file=open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123
    console.print(render_rollup_terminal(changed))
    assert "\u202e" not in console.export_text()


def test_an_agreement_is_told_in_words() -> None:
    found = samples.sample_agreement()
    words = render_agreement_text(found)
    assert "rank correlation 0.930 [0.850, 0.980], 77.8 % [44 %, 94 %] of the top 9" in words
    none = msgspec.structs.replace(found.against_kl, spearman=None, top_k_overlap=None, reason="2 groups")
    assert "no rank correlation: 2 groups" in render_agreement_text(msgspec.structs.replace(found, against_kl=none))
