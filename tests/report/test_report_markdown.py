"""The Markdown report: golden file, what must be said when, and names that try to break out."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from fewbits.records.base import RunQuality
from fewbits.records.estimate import Estimate
from fewbits.records.plan import SelectionPolicy
from fewbits.records.summary import (
    Decision,
    DecisionLog,
    DeterminismDetail,
    DivergenceEstimate,
    FirstDivergence,
    FrontierReason,
    QuantRow,
    RecommendationDetail,
    Session,
    SweepSummary,
    VerdictCode,
    VerdictDetail,
    VerdictReason,
)
from fewbits.records.summary import (
    HypothesisEvidence as Evidence,
)
from fewbits.report.escape import markdown_name, markdown_text, visible
from fewbits.report.markdown import render_markdown

GOLDEN = Path(__file__).with_name("golden_report.md")
OLD_GOLDEN = Path(__file__).with_name("golden_report_before_verdicts.md")
PARSER = MarkdownIt("commonmark", {"html": True}).enable("table").enable("strikethrough")
PIECES = ["<script>", "```", "![a](b)", "https://x.y", *"|`<>&\\*_[]()!#~-+=:@$\"'\n\r\t\x00\x1b\u202e\u200b\u2028 0aQ1."]
NASTY = st.lists(st.one_of(st.characters(), st.sampled_from(PIECES)), max_size=25).map("".join)
EXAMPLES = [
    "<script>alert(1)</script>",
    "a|b|c",
    "`code` ``x``",
    "line\nbreak\r\n| x | y |",
    "\u202eevil\u2066",
    "[text](javascript:alert(1))",
    "![x](http://x/y.png)",
    "https://example.org www.example.org @someone",
    "# heading",
    "1. item",
    "--- ",
    "```\n<b>",
    "\x1b[31mred",
    "\ud800",
    "",
    "$(rm -rf ~)",
]


def tables_of(document: str) -> list[list[str]]:
    """Blocks of consecutive table lines outside fenced code."""
    blocks: list[list[str]] = []
    inside_code, current = False, []
    for line in [*document.split("\n"), ""]:
        if line.startswith("```"):
            inside_code = not inside_code
        if line.startswith("|") and not inside_code:
            current.append(line)
        elif current:
            blocks.append(current)
            current = []
    return blocks


def assert_unbroken(document: str) -> None:
    assert "<" not in document
    assert not [char for char in document if visible(char) != char and char not in " \n\u00a0"]
    for block in tables_of(document):
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in block} == {block[0].count("|")}
    for token in PARSER.parse(document):
        assert token.type != "html_block"
        for child in token.children or []:
            assert child.type not in {"html_inline", "link_open"}
            if child.type == "image":
                assert re.fullmatch(r"sweep_frontier_[A-Za-z0-9_.-]+\.svg", str(child.attrs["src"]))


def test_golden_report(summary: SweepSummary) -> None:
    document = render_markdown(summary)
    if os.environ.get("FEWBITS_UPDATE_GOLDEN"):
        GOLDEN.write_text(document, encoding="utf-8")
    assert document == GOLDEN.read_text(encoding="utf-8")


def test_a_summary_of_an_earlier_version_renders_as_before(old_summary: SweepSummary) -> None:
    """As the version without verdicts wrote it, but for the name of the policy in the command: the default has changed."""
    assert render_markdown(old_summary) == OLD_GOLDEN.read_text(encoding="utf-8")


def test_recommendation_stands_before_every_table(summary: SweepSummary) -> None:
    document = render_markdown(summary)
    order = [document.index(words) for words in ("Use `Q4_1`", "| quant |", "```text", "## How it was measured")]
    assert order == sorted(order)
    assert_unbroken(document)


def test_invalid_rows_stay_in_the_table_but_not_in_the_picture(summary: SweepSummary) -> None:
    document = render_markdown(summary)
    row = next(line for line in document.split("\n") if line.startswith("| `Q4_K_M`"))
    assert "*0.521 [0.416, 0.625]*" in row
    assert "invalid: polluted, missing telemetry (CPU pressure, foreign CPU load)" in row
    assert "Not drawn: Q4_K_M (invalid)." in document
    assert "x Q4_K_M" in render_markdown(summary, include_invalid=True)
    assert "Not drawn" not in render_markdown(summary, include_invalid=True)


def test_incomplete_failed_canary_and_override_are_said_at_the_top(new_summary: Callable[..., SweepSummary]) -> None:
    plain = new_summary()
    canary = msgspec.structs.replace(
        plain.canary, passed=False, failed_reasons=("FOREIGN_LOAD",), remedies=("Close the browser.",)
    )
    document = render_markdown(
        new_summary(complete=False, trials_counted=3, canary=canary, selection_policy=SelectionPolicy(include_invalid=True))
    )
    top = document[: document.index("## `smollm2-135m`")]
    assert "3 of 720 planned trials" in top
    assert "canary failed" in top
    assert "Override" in top
    assert "What to do: Close the browser." in document
    assert "not complete" not in render_markdown(plain)


def test_no_pick_gives_the_reason_instead(new_summary: Callable[..., SweepSummary], new_session: Callable[..., Session]) -> None:
    session = new_session(
        minimum_viable_quant_tag=None,
        best_value_quant_tag=None,
        optimal_quant_tag=None,
        reason=FrontierReason.NO_QUANT_MET_LIMITS,
    )
    session = msgspec.structs.replace(session, recommendation="No recommendation. No variant met the limits.")
    document = render_markdown(new_summary((session,)))
    assert "## No variant is recommended" in document
    assert "No recommendation. No variant met the limits." in document
    assert "## Use" not in document


def test_missing_numbers_are_dashes_with_reasons(summary: SweepSummary) -> None:
    document = render_markdown(summary)
    assert "`Q4_K_M` has no tokens/s: token counts or timings are incomplete." in document
    assert "`Q2_K` has no interval for its adherence: one task alone has no spread" in document
    assert "None" not in document


def test_several_sessions_and_none(new_summary: Callable[..., SweepSummary], new_session: Callable[..., Session]) -> None:
    document = render_markdown(new_summary((new_session("one"), new_session("two/three"))))
    assert document.index("## `one`") < document.index("## `two/three`")
    assert document.count("```text") == 2
    assert "nothing to recommend" in render_markdown(new_summary(()))


def test_a_control_that_changed_is_marked(summary: SweepSummary) -> None:
    document = render_markdown(summary)
    assert "| context size | 2048 | **changed during the run:** 2048 / 4096 |" in document
    assert "| affinity policy | auto | cores 0, 1 |" in document
    assert "| max tokens | 256 | not read back |" in document


@pytest.mark.parametrize("name", EXAMPLES)
def test_known_attacks(name: str, new_summary: Callable[..., SweepSummary]) -> None:
    assert_unbroken(render_markdown(poisoned(new_summary(), name), include_invalid=True))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=NASTY)
def test_no_text_breaks_the_report(name: str, new_summary: Callable[..., SweepSummary]) -> None:
    assert_unbroken(render_markdown(poisoned(new_summary(), name), include_invalid=True))


def poisoned(summary: SweepSummary, name: str) -> SweepSummary:
    """Put `name` wherever text from outside can stand."""
    replace = msgspec.structs.replace
    session = summary.sessions[0]
    rows = tuple(poisoned_row(row, name) if index % 2 else row for index, row in enumerate(session.per_quant))
    frontier = replace(
        session.efficiency_frontier,
        minimum_viable_quant_tag=rows[1].quant_tag,
        pareto_quant_tags=(name,),
        objectives=(name, "total_latency:min"),
    )
    detail = RecommendationDetail(
        minimum_viable_quant=name, best_value_quant=name, because=(name,), uncertain=(name,), missing=(name,), would_change=name
    )
    decided = Decision(quant_tag=name, verdict=VerdictCode.WORSE, after_items=1, after_block=0, p_value=0.01)
    log = DecisionLog(
        decisions=(decided,), undecided=(name,), items_available=1, items_asked=1, trials_run=1, trials_full_matrix=0
    )
    shown = replace(
        session,
        model_id=name,
        engine=name,
        engine_version=name,
        per_quant=rows,
        efficiency_frontier=frontier,
        recommendation_detail=detail,
        recommendation=name,
        decision_log=log,
    )
    return replace(
        summary,
        sessions=(shown,),
        commit_sha=name,
        hardware_fingerprint=name,
        execution_lane=name,
        matrix={**summary.matrix, "task_bank": name, name: [name, {name: name}]},
        controls_effective={"seed": [name], name: [name, name]},
        canary=replace(summary.canary, quant_tag=name, failed_reasons=(name,), remedies=(name,)),
        run_quality=replace(summary.run_quality, reasons={name: 1}),
        provenance=replace(summary.provenance, fewbits_version=name, plan_digest=name, first_trial_at=name),
    )


def poisoned_row(row: QuantRow, name: str) -> QuantRow:
    bad = Estimate(value=0.4, low=None, high=None, level=0.95, method=name, n=1, reason=name)
    return msgspec.structs.replace(
        row,
        quant_tag=row.quant_tag + name,
        warnings=tuple(msgspec.structs.replace(warning, message=name) for warning in row.warnings),
        adherence=bad,
        latency_p95=msgspec.structs.replace(bad, low=0.1, high=0.5),
        by_bucket=tuple(msgspec.structs.replace(score, bucket=score.bucket + name) for score in row.by_bucket),
        valid=False,
        invalid_reasons=(name,),
        run_quality_status=RunQuality.POLLUTED,
        dominated_by=(name,),
        **poisoned_evidence(bad, name),
        unavailable=dict.fromkeys(("peak_memory_rss", "verdict", "divergence", "determinism", "prompt_rate_ratio"), name),
    )


def poisoned_evidence(bad: Estimate, name: str) -> dict[str, object]:
    bounded = msgspec.structs.replace(bad, low=0.1, high=0.5)
    test = Evidence(null_hypothesis=name, method=name, p_value=0.5, level=0.05, rejected=False)
    verdict = VerdictDetail(
        verdict=VerdictCode.UNRESOLVED,
        reasons=(VerdictReason.TOO_FEW_ITEMS,),
        difference=bounded,
        margin=0.05,
        method=name,
        items_used=1,
        minimum_detectable_effect=None,
        further_items=None,
        tests=(test,),
    )
    divergence = DivergenceEstimate(
        text_name=name,
        text_digest=name,
        method=name,
        engine=name,
        engine_version=name,
        windows=2,
        positions=2,
        mean_nats=bad,
        p99_nats=None,
        top_token_agreement=bounded,
        perplexity_ratio=None,
        reference_perplexity=None,
        variant_perplexity=None,
        floor_nats=None,
        below_floor=None,
        truncation_nats=None,
        top_k=1,
        lower_bound=None,
        unavailable={"p99_nats": name},
    )
    determinism = DeterminismDetail(
        cells=1,
        same_output_rate=0.0,
        same_outcome_rate=None,
        agreement_floor=0.0,
        deterministic=False,
        channels=(name,),
        first_divergence=FirstDivergence(task_id=name, channel=name, position=0, first=name, second=name),
    )
    return {"verdict": verdict, "divergence": divergence, "determinism": determinism, "latency_ratio": bounded}


@given(text=NASTY)
@example(text="- \x08")
@example(text="1. [x]")
@settings(max_examples=200, deadline=None)
def test_escaped_text_renders_as_itself(text: str) -> None:
    shown = visible(text)
    for source in (markdown_text(text), markdown_name(text, limit=10_000)):
        if not shown:
            continue
        cells = [token for token in PARSER.parse(f"| h | i |\n|---|---|\n| {source} | end |\n") if token.type == "inline"]
        assert [cell.type for cell in cells] == ["inline"] * 4
        assert plain_text(cells[2].children or []) == shown
        item = PARSER.parse(f"- {source}\n")
        assert [token.type for token in item if token.type.endswith("_open")] == [
            "bullet_list_open",
            "list_item_open",
            "paragraph_open",
        ]


def plain_text(children: Sequence[object]) -> str:
    return "".join(str(getattr(child, "content", "")) for child in children)
