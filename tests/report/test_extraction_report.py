"""The extraction section: every number with what it is about, gaps with their reasons, and names that try to break out."""

from __future__ import annotations

import argparse
import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from extraction_row_samples import ABSENT, PAGES, REFERENCE, SMALLER, blocks, nothing
from fewbits.cli.extract_bench import add_arguments
from fewbits.core.codec import decode, encode_pretty
from fewbits.records.estimate import Estimate
from fewbits.records.extraction_metrics import ExtractionRates, FieldMetrics, GroupRates, SelfConsistency
from fewbits.records.extraction_run import RowExtraction
from fewbits.records.plan import PolicyName, SelectionPolicy
from fewbits.records.summary import QuantRow, Session, SweepSummary
from fewbits.report.extraction import extraction_blocks, has_extraction
from fewbits.report.extraction_breakdowns import FEWEST_OCCURRENCES, LISTED_TESTS
from fewbits.report.markdown import render_markdown

NewRow = Callable[..., QuantRow]
NewSession = Callable[..., Session]
NewSummary = Callable[..., SweepSummary]
SessionOf = Callable[[dict[str, RowExtraction]], Session]
GOLDEN = Path(__file__).with_name("golden_extraction_section.md")
NASTY = "<script>|\n# heading [x](https://evil) \u202e`**"


@pytest.fixture
def session_of(new_row: NewRow, new_session: NewSession) -> SessionOf:
    def make(found: dict[str, RowExtraction]) -> Session:
        rows = tuple(
            new_row(
                tag,
                quant_rank=2 - place,
                is_reference=place == 0,
                bits_per_weight=bits,
                variant_bytes=size,
                extraction=row,
                generation_tokens_per_second=None,
            )
            for place, ((tag, row), bits, size) in enumerate(
                zip(found.items(), (32.0, 8.0, None), (16_000_000, 4_100_000, None), strict=False)
            )
        )
        session = new_session("lab-report-pipeline", rows=rows, minimum_viable_quant_tag=None, best_value_quant_tag=None)
        return msgspec.structs.replace(session, baseline_quant=next(iter(found)))

    return make


def section(session: Session) -> str:
    return "\n\n".join(block for block in extraction_blocks(session) if block) + "\n"


def rows_of(text: str, heading: str = "### Extraction") -> list[list[str]]:
    """The cells of the first table after a heading, without its header."""
    lines = text[text.index(heading) :].splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("|"))
    table = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    assert len({len(cells) for cells in table}) == 1
    return table[2:]


def test_other_work_has_no_such_section(summary: SweepSummary) -> None:
    assert not has_extraction(summary)
    assert extraction_blocks(summary.sessions[0]) == []
    document = render_markdown(summary)
    assert "Extraction" not in document
    assert "extract bench" not in document
    assert "field F1" not in document


def test_the_whole_section_is_as_it_was(session_of: SessionOf) -> None:
    """Set `FEWBITS_UPDATE_GOLDEN=1` to write it anew, and read the difference."""
    text = section(session_of(blocks()))
    if os.environ.get("FEWBITS_UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_every_number_of_the_accuracy_table(session_of: SessionOf) -> None:
    found = blocks()
    reference, smaller, absent = rows_of(section(session_of(found)))
    rates, difference = found[SMALLER].rates, found[SMALLER].difference
    assert rates is not None
    assert rates.field_f1 is not None
    assert difference is not None
    # of 12 pages x 4 tests x 5 fields: page 7 gives none of 20, three pages two wrong fields, one page one
    right, wrong, missed = 240 - 20 - 7, 7, 27
    assert rates.field_f1.value == pytest.approx(2 * right / (2 * right + wrong + missed))
    assert smaller[1].startswith(f"{rates.field_f1.value:.3f} [")
    assert smaller[2].startswith("\u22120.0")
    assert smaller[3] == "5 of 12"  # pages 2, 4, 7 and 11, and page 5, which is wrong in both, but not alike
    assert smaller[4].startswith(f"{40 / 44 * 100:.1f} % [")  # 3 + 1 values of the 44 tests that were found
    assert smaller[5:8] == [f"{41 / 44 * 100:.1f} %", "100 %", f"{43 / 44 * 100:.1f} %"]
    assert smaller[8].startswith("66.7 % [")  # pages 0, 4 and 8 hold a critical result; page 4's was lost
    assert smaller[9].startswith("100 % [")
    assert reference[2:4] == ["reference", "reference"]
    assert absent == ["`vision-nf4`", *["—"] * 9]


def test_differences_beyond_f1(session_of: SessionOf) -> None:
    text = section(session_of(blocks()))
    line = next(line for line in text.splitlines() if "difference in critical sensitivity" in line)
    cells = rows_of(text[text.index(line) :], line)
    assert [row[0] for row in cells] == ["`ocr-int8`"]
    assert cells[0][3].startswith("\u22120.333 [")
    assert cells[0][4] == "1 of 12"


def test_levels_come_easiest_first(session_of: SessionOf) -> None:
    cells = rows_of(section(session_of(blocks())), "#### By difficulty")
    assert [row[0] for row in cells] == ["clean", "clean", "scan", "scan", "photo", "photo"]
    assert {row[2] for row in cells} == {"4"}
    assert all("[" in row[3] for row in cells)
    assert cells[1][5].endswith(" of 4")


def test_panels(session_of: SessionOf) -> None:
    cells = rows_of(section(session_of(blocks())), "#### By panel")
    assert [row[:4] for row in cells] == [
        ["cbc", "`ocr`", "12", "12"], ["cbc", "`ocr-int8`", "12", "11"],
        ["metabolic", "`ocr`", "36", "36"], ["metabolic", "`ocr-int8`", "36", "33"],
    ]  # fmt: skip


def test_the_tests_that_are_read_worst(session_of: SessionOf) -> None:
    cells = rows_of(section(session_of(blocks())), "#### The tests that are read worst")
    assert [row[0] for row in cells] == ["zonulin", "glucose", "potassium", "hemoglobin"]
    assert cells[0][1:] == ["12", "1.000 (60 / 0 / 0)", "0.852 (49 / 6 / 11)", "—"]
    assert "missed 4 of 48 tests, and read 0 that no page holds" in section(session_of(blocks()))


def test_only_ten_tests_and_no_rare_ones(session_of: SessionOf) -> None:
    found = blocks()
    zonulin = found[SMALLER].by_test["zonulin"]
    many = {f"test {index:02}": zonulin for index in range(LISTED_TESTS + 5)}
    few = msgspec.structs.replace(zonulin.counts, true_tests=FEWEST_OCCURRENCES - 1)
    rare = msgspec.structs.replace(zonulin, counts=few)
    row = msgspec.structs.replace(found[SMALLER], by_test={**many, "rare": rare})
    cells = rows_of(section(session_of({REFERENCE: found[REFERENCE], SMALLER: row})), "#### The tests that are read worst")
    assert len(cells) == LISTED_TESTS
    assert "rare" not in {row[0] for row in cells}


def test_time_and_memory(session_of: SessionOf) -> None:
    found = blocks()
    cells = rows_of(section(session_of(found)), "#### Time and memory")
    assert cells[1][1:3] == ["24", "91.7 %"]
    assert cells[1][6:] == ["240.0 MiB", "3.9 MiB"]
    assert cells[2] == ["`vision-nf4`", "0", *["—"] * 6]
    speed = found[SMALLER].aggregate.images_per_second
    assert speed is not None
    assert cells[1][5] == f"{speed:.2f}"
    text = section(session_of(found))
    assert "GPU" not in text
    assert "`vision-nf4` has no times and no memory: it was not run." in text


def test_memory_of_a_gpu_where_one_was_used(session_of: SessionOf) -> None:
    found = blocks()
    measured = msgspec.structs.replace(found[SMALLER].aggregate, gpu_peak_mb=5123.0, memory_peak_mb=None)
    text = section(session_of(found | {SMALLER: msgspec.structs.replace(found[SMALLER], aggregate=measured)}))
    cells = rows_of(text, "#### Time and memory")
    assert [row[-1] for row in cells] == ["—", "5.0 GiB", "—"]
    assert "`ocr` has no GPU peak: no run reported one." in text
    assert "`ocr-int8` has no peak memory: no run reported it." in text


def test_stages_failures_hints_and_consistency(session_of: SessionOf) -> None:
    text = section(session_of(blocks()))
    stages = rows_of(text, "#### Where the time goes")
    assert [row[0] for row in stages] == ["classify", "preprocess", "extract", "validate", "other"]
    shares = [float(row[1].split()[-2]) for row in stages]
    assert sum(shares) == pytest.approx(100, abs=0.5)
    assert stages[2][1].startswith("█" * round(shares[2] / 5) + " ")
    assert rows_of(text, "#### Failures") == [["NO_TESTS", "0 of 24 runs", "2 of 24 runs", "—"]]
    hints = text[text.index("#### Interpreting") : text.index("#### Self-consistency")]
    assert "`ocr-int8`: 2 of 24 runs failed (NO_TESTS 2)" in hints.replace("\\_", "_")
    assert "times as many images per second as ocr" in hints
    assert "`vision-nf4`: No run was measured" in hints
    assert "Not measured for `ocr`, `ocr-int8`: the engine is deterministic." in text
    assert "Not measured for `vision-nf4`: no reason recorded." in text


def test_agreement_of_sampled_runs(session_of: SessionOf) -> None:
    agreed = Estimate(value=0.91, low=0.85, high=0.96, level=0.95, method="t", n=12)
    row = msgspec.structs.replace(blocks()[REFERENCE], self_consistency=SelfConsistency(estimate=agreed, runs_per_page=3))
    text = section(session_of({REFERENCE: row}))
    assert "agree in 91 % [85 %, 96 %] of names, values and units, over 12 pages with at least 3 runs each" in text


def test_no_failure_is_said(session_of: SessionOf) -> None:
    found = blocks()
    assert "Every run ended with a report" in section(session_of({REFERENCE: found[REFERENCE]}))
    assert "Every run ended" not in section(session_of({REFERENCE: nothing()}))


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("NO_CHECKS", "the pages have no labels"),
        ("NO_TRIALS", "there are no trials"),
        ("", "no reason recorded"),
        (NASTY, "&lt;script&gt;"),
    ],
)
def test_a_row_about_which_nothing_is_known(session_of: SessionOf, new_summary: NewSummary, reason: str, said: str) -> None:
    session = session_of({REFERENCE: nothing(reason), SMALLER: nothing(reason)})
    text = section(session)
    assert said in text
    assert "have no accuracy: " in text
    assert "None" not in text
    assert "By difficulty" not in text
    assert "None" not in render_markdown(new_summary((session,)))


def test_labelled_pages_without_anything_critical(session_of: SessionOf) -> None:
    found = blocks()
    rates = found[REFERENCE].rates
    assert rates is not None
    calm = msgspec.structs.replace(rates, critical_sensitivity=None, critical_precision=None)
    text = section(session_of({REFERENCE: msgspec.structs.replace(found[REFERENCE], rates=calm)}))
    assert "`ocr` has no critical sensitivity: no page holds a critical result." in text
    assert rows_of(text)[0][8:] == ["—", "—"]


def test_other_pages_than_the_references(session_of: SessionOf) -> None:
    found = blocks()
    alone = msgspec.structs.replace(found[SMALLER], difference=None, unavailable={"difference": "NO_REFERENCE"})
    text = section(session_of({REFERENCE: found[REFERENCE], SMALLER: alone}))
    assert "`ocr-int8` has no difference to the reference: it and the reference were not asked about the same pages." in text
    assert "`ocr` has no difference" not in text


def test_the_report_says_what_adherence_is(session_of: SessionOf, new_summary: NewSummary) -> None:
    document = render_markdown(new_summary((session_of(blocks()),)))
    assert document.index("### The variants") < document.index("### Extraction") < document.index("### The frontier")
    method = document[document.index("## How it was measured") :]
    assert "the field F1 of each page" in method
    assert "Pages from the generator are not patients' pages" in method
    assert document.count("| **adherence** |") == 1
    assert "| **adherence** | mean over pages" in document


def test_an_interval_that_does_not_exist_is_explained(session_of: SessionOf, new_summary: NewSummary) -> None:
    found = blocks()
    rates = found[REFERENCE].rates
    assert rates is not None
    one = Estimate(value=0.9, low=None, high=None, level=0.95, method="x", n=1, reason="one page alone has no spread")
    row = msgspec.structs.replace(found[REFERENCE], rates=msgspec.structs.replace(rates, field_f1=one))
    document = render_markdown(new_summary((session_of({REFERENCE: row}),)))
    assert "`ocr` has no interval for its field F1: one page alone has no spread." in document
    assert rows_of(document)[0][1] == "0.900"


def test_the_command_can_be_given_again(session_of: SessionOf, new_summary: NewSummary) -> None:
    policy = SelectionPolicy(name=PolicyName.THREE_ZONE)
    document = render_markdown(msgspec.structs.replace(new_summary((session_of(blocks()),)), selection_policy=policy))
    start = document.index("fewbits extract bench")
    words = shlex.split(document[start : document.index("```", start)].replace("\\\n", ""))
    assert words[:3] == ["fewbits", "extract", "bench"]
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    found = parser.parse_args(words[3:])
    assert found.engines == "ocr,ocr-int8,vision-nf4"
    assert found.input_dir == Path("DIR")
    assert "--schemes" not in document


def test_the_reference_is_named_first(session_of: SessionOf, new_summary: NewSummary) -> None:
    session = msgspec.structs.replace(session_of(blocks()), baseline_quant=SMALLER)
    assert "--engines ocr-int8,ocr,vision-nf4" in render_markdown(new_summary((session,)))


def hostile(text: str) -> dict[str, RowExtraction]:
    found = blocks()

    def spoilt(row: RowExtraction) -> RowExtraction:
        measured = msgspec.structs.replace(row.aggregate, errors_by_kind={text: 2}, stage_time_share={text: 0.4, "extract": 0.6})
        return msgspec.structs.replace(
            row,
            by_level={text: found[SMALLER].rates or ExtractionRates(pages=0, counts=metrics())},
            by_panel={text: zonulin()},
            by_test={text: zonulin()},
            aggregate=measured,
            self_consistency=SelfConsistency(estimate=None, reason=text),
        )

    return {text: spoilt(found[REFERENCE]), text + "2": spoilt(found[SMALLER])}


def zonulin() -> GroupRates:
    return blocks()[SMALLER].by_test["zonulin"]


def metrics() -> FieldMetrics:
    return zonulin().counts


def check_is_harmless(document: str) -> None:
    for bad in ("<script>", "\n# heading", "\u202e", "https://evil"):
        assert bad not in document
    tokens = MarkdownIt("commonmark").enable("table").parse(document)
    assert not any(token.type == "html_block" for token in tokens)
    children = [child for token in tokens for child in token.children or []]
    assert not any(child.type in {"html_inline", "link_open"} for child in children)


def test_names_from_outside_stay_in_their_place(session_of: SessionOf, new_summary: NewSummary) -> None:
    session = session_of(hostile(NASTY))
    check_is_harmless(render_markdown(new_summary((session,))))
    text = section(session)
    for heading in ("By difficulty", "By panel", "The tests that are read worst", "Where the time goes", "Failures"):
        assert any("&lt;script" in cell for row in rows_of(text, f"#### {heading}") for cell in row), heading


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(st.characters(codec="utf-8") | st.sampled_from("|\n`<>[]*_#\x1b\u202e"), min_size=1, max_size=20))
def test_any_name_keeps_the_tables_whole(session_of: SessionOf, name: str) -> None:
    text = section(session_of(hostile(name)))
    for line in text.splitlines():
        assert not line.startswith("|") or line.count("|") == line.count(" | ") + 2
    for heading in ("By difficulty", "By panel", "The tests that are read worst", "Where the time goes", "Failures"):
        rows_of(text, f"#### {heading}")


def test_a_summary_from_a_file_says_the_same(session_of: SessionOf, new_summary: NewSummary) -> None:
    """Keys are sorted in a file; the order of levels, panels and stages must not depend on it."""
    summary = new_summary((session_of(blocks()),))
    data = encode_pretty(summary)
    again = decode(data, SweepSummary, "summary")
    assert section(again.sessions[0]) == section(summary.sessions[0])
    row = json.loads(data)["sessions"][0]["per_quant"][1]
    assert row["extraction"]["asked_pages"] == PAGES
    assert ABSENT in render_markdown(again)
