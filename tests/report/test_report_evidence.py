"""The sections of evidence: shown where there are records, left out where there are none, and every null with its reason."""

from __future__ import annotations

import io
from collections.abc import Callable
from enum import StrEnum
from typing import Any

import msgspec
import pytest
from rich.console import Console

from fewbits.records.base import Unavailable
from fewbits.records.divergence import DivergenceReason
from fewbits.records.plan import PolicyName, SelectionPolicy
from fewbits.records.summary import FrontierReason, QuantRow, Session, SweepSummary, VerdictReason
from fewbits.report.evidence import has_evidence
from fewbits.report.formats import nats, p_value
from fewbits.report.markdown import render_markdown
from fewbits.report.terminal import EXTRA_COLUMNS, render_terminal
from fewbits.report.verdicts import deciding_words, reason_words, rerun_words, snippet_words, standing_words

SECTIONS = (
    "### Verdicts",
    "### When it was decided",
    "### How sure the choice is",
    "### Divergence from the reference",
    "### Speed",
    "### Does it repeat itself?",
)


def printed(summary: SweepSummary, width: int) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(render_terminal(summary, width))
    return stream.getvalue()


def test_every_section_is_there_with_records_and_none_without(summary: SweepSummary, old_summary: SweepSummary) -> None:
    assert has_evidence(summary)
    assert not has_evidence(old_summary)
    new, old = render_markdown(summary), render_markdown(old_summary)
    for section in SECTIONS:
        assert section in new
        assert section not in old
    assert "**UNRESOLVED**" in new
    assert "UNRESOLVED" not in old


def test_a_summary_on_disk_without_the_new_fields_reads_and_prints(old_summary: SweepSummary) -> None:
    tree = msgspec.to_builtins(old_summary)
    for session in tree["sessions"]:
        del session["decision_log"], session["recommendation_detail"]["missing"], session["recommendation_detail"]["would_change"]
        for row in session["per_quant"]:
            for field in ("verdict", "divergence", "latency_ratio", "determinism", "uncertainty"):
                del row[field]
    read = msgspec.convert(tree, SweepSummary)
    assert read == old_summary
    assert "below the adherence" in " ".join(printed(read, 120).split())


@pytest.mark.parametrize("codes", [Unavailable, DivergenceReason, VerdictReason, FrontierReason])
def test_every_code_has_words(codes: type[StrEnum]) -> None:
    silent = [code for code in codes if reason_words(code.value) == code.value]
    assert silent in ([], [FrontierReason.OK])


def test_under_the_threshold_policy_the_limit_is_said_beside_the_verdict(summary: SweepSummary) -> None:
    row = next(row for row in summary.sessions[0].per_quant if row.quant_tag == "Q2_K")
    assert standing_words(row, PolicyName.THREE_ZONE) == ("WORSE",)
    assert standing_words(row, PolicyName.THRESHOLD) == ("WORSE", "below the adherence limit")
    document = render_markdown(msgspec.structs.replace(summary, selection_policy=SelectionPolicy(name=PolicyName.THRESHOLD)))
    assert "Limits: adherence at least 0.515" in document


def test_what_is_missing_is_said(summary: SweepSummary) -> None:
    document = render_markdown(summary)
    for words in (
        "too few items: about 130 more like these would decide",
        "(below the floor)",
        "`Q4_1` has no divergence: it was calibrated on this very text.",
        "`Q4_K_M` has no latency ratio: no clean trial is left.",
        "`Q2_K` has no interval for its latency ratio: too few tasks",
        "`Q4_1` has no repeats: there are no trials.",
        "At the first attempt 89.3 % were clean; 17 of at most 144 re-runs were made.",
    ):
        assert words in document
    assert "`F16` has no verdict" not in document


def test_divergence_that_nobody_measured_has_its_reason(
    new_summary: Callable[..., SweepSummary], new_session: Callable[..., Session], new_row: Callable[..., QuantRow]
) -> None:
    rows = tuple(new_row(tag, unavailable={"divergence": "NO_LOG_PROBABILITIES"}) for tag in ("A", "B"))
    document = render_markdown(new_summary((new_session("m", rows),)))
    assert (
        "### Divergence from the reference\n\n- `A`, `B` have no divergence: the server reports no log-probabilities." in document
    )


def test_the_first_difference_is_shown_harmlessly(summary: SweepSummary) -> None:
    line = next(line for line in render_markdown(summary).split("\n") if "First difference" in line)
    assert "task `logic-007`, output text after 37 characters, “⏎&#124;" in line
    assert "<b>" not in line
    assert (snippet_words(""), snippet_words(" "), snippet_words(" a\t\n")) == ("(the end)", "␣", "␣a⇥⏎")


@pytest.mark.parametrize("width", [60, 80, 110, EXTRA_COLUMNS, 200])
def test_the_terminal_says_verdicts_and_what_is_missing(summary: SweepSummary, width: int) -> None:
    text = printed(summary, width)
    assert max(len(line) for line in text.split("\n")) <= width
    for word in ("EQUIVALENT", "UNRESOLVED", "WORSE", "Not decided", "What would change it"):
        assert word in text
    flat = " ".join(text.replace("│", " ").split())
    assert "3 of 4 variants decided after 48 of 48 items; 85.4 % of the full matrix's trials." in flat
    assert "660 of 720 trials were clean (91.7 %). At the first attempt 89.3 % were clean" in flat
    for heading in ("time ratio", "KLD"):
        assert (heading in text) == (width >= EXTRA_COLUMNS)


def test_the_terminal_leaves_out_columns_that_nobody_can_fill(old_summary: SweepSummary) -> None:
    text = printed(old_summary, 200)
    assert "KLD" not in text
    assert "Not decided" not in text
    assert "660 of 720 trials were clean." in text


def test_sentences(summary: SweepSummary) -> None:
    log = summary.sessions[0].decision_log
    assert log is not None
    done = msgspec.structs.replace(log, undecided=(), items_asked=37, items_available=251, trials_run=41, trials_full_matrix=100)
    assert deciding_words(done) == "Decided after 37 of 251 items; 41 % of the full matrix's trials."
    quality: Any = msgspec.structs.replace(summary.run_quality, rerun_budget=0, reruns=0)
    assert rerun_words(quality) == "At the first attempt 89.3 % were clean."
    assert (nats(None), nats(0.0), nats(0.01234), nats(5.5), nats(123.4)) == (
        "—",
        "0",
        "0.0123",
        "5.50",
        "123.40",
    )
    assert (p_value(0.00001), p_value(0.0316)) == ("under 0.001", "0.032")
