"""The detectors' section: every number with what it is about, collapses first, and names that try to break out."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from detection_rows_samples import EIGHT, FLOAT, MODEL, TWO, answers_of, make_census, make_check, make_labels, make_plan
from fewbits.analysis.detection_rows import Answers, row_detections
from fewbits.records.detector_run import RowDetection, SanityCheck, SanityVerdict
from fewbits.records.summary import QuantRow, Session, SweepSummary
from fewbits.report.detection import detection_blocks
from fewbits.report.markdown import render_markdown
from fewbits.report.terminal import render_terminal

NewRow = Callable[..., QuantRow]
NewSession = Callable[..., Session]
NewSummary = Callable[..., SweepSummary]
LABELS = make_labels()
ANSWERS: dict[str, Answers] = {
    FLOAT: answers_of(LABELS),
    EIGHT: answers_of(LABELS, shift=0.1),
    TWO: answers_of(LABELS, shift=0.3, skip=2),
}
NASTY = "<script>|\n# heading [x](https://evil) \u202e`**"


def blocks(names: tuple[str, str] = ("cat", "dog"), **census: str) -> dict[str, RowDetection]:
    labels = make_labels(names)
    keyed = {(MODEL, tag): found for tag, found in ANSWERS.items()}
    censuses = {(MODEL, EIGHT): make_census(**census)}
    found = row_detections(make_plan(labels), MODEL, FLOAT, labels=labels, answers=keyed, censuses=censuses)
    return {tag: row for (_, tag), row in found.items()}


@pytest.fixture
def session_of(new_row: NewRow, new_session: NewSession) -> Callable[..., Session]:
    def make(found: dict[str, RowDetection], sanity: tuple[SanityCheck, ...] = ()) -> Session:
        rows = tuple(
            new_row(
                tag,
                quant_rank=2 - place,
                is_reference=tag == FLOAT,
                bits_per_weight=bits,
                detection=found.get(tag),
                generation_tokens_per_second=None,
            )
            for place, (tag, bits) in enumerate(((FLOAT, 32.0), (EIGHT, 8.0), (TWO, 2.0)))
        )
        session = new_session(rows=rows, minimum_viable_quant_tag=EIGHT, best_value_quant_tag=EIGHT)
        return msgspec.structs.replace(session, baseline_quant=FLOAT, sanity=sanity)

    return make


def cells_of(text: str, start: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(start))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_text_work_has_no_such_section(session_of: Callable[..., Session], summary: SweepSummary) -> None:
    assert detection_blocks(session_of({})) == []
    document = render_markdown(summary)
    assert "Detection" not in document
    assert "R-precision" not in document


def test_every_number_of_the_main_table(session_of: Callable[..., Session]) -> None:
    found = blocks()
    text = "\n\n".join(detection_blocks(session_of(found)))
    metrics = found[EIGHT].metrics
    assert metrics is not None
    assert metrics.map_50_95 is not None
    assert metrics.retained is not None
    cells = cells_of(text, "| `W8A8`")
    assert len(cells) == 12
    assert cells[1].startswith(f"{metrics.map_50_95.value:.3f} [")
    assert cells[2].startswith(f"{metrics.retained.value * 100:.1f} % [")
    assert cells[3].startswith("\u22120.")
    assert cells[9:] == ["8.00", "98.0 MiB", "16"]
    assert cells_of(text, "| `FP32`")[2:4] == ["reference", "reference"]
    assert "of `FP32`" in text
    assert "bootstrap over these 4 images (200 resamples" in text
    assert "small sets are flattered" in text


def test_collapses_come_first_with_the_sanity_verdict(session_of: Callable[..., Session]) -> None:
    found = blocks()
    text = "\n\n".join(detection_blocks(session_of(found, (make_check(),))))
    line = next(line for line in text.splitlines() if "collapsed**" in line)
    assert text.index(line) < text.index("| quant |")
    assert line.startswith("- **`W2A32` collapsed**")
    assert "**scheme, not wiring**" in line
    assert "`W8A32`" in line
    assert "keep 98 %" in line
    assert text.count("collapsed**") == 1
    unchecked = "\n\n".join(detection_blocks(session_of(found)))
    assert "**Not checked at 8 bits**" in unchecked


def test_the_classes_that_lost_most(session_of: Callable[..., Session]) -> None:
    found = blocks()
    text = "\n\n".join(detection_blocks(session_of(found)))
    base, metrics = found[FLOAT].metrics, found[EIGHT].metrics
    assert base is not None
    assert metrics is not None
    lost = {
        one.name: (one.map_50_95 or 0) - (before.map_50_95 or 0)
        for one, before in zip(metrics.per_class, base.per_class, strict=True)
    }
    table = text[text.index("The classes that lost most") :]
    shown = [cell[1] for line in table.splitlines() if line.startswith("| `W8A8`") for cell in [cells_of(line, "|")]][: len(lost)]
    assert shown == sorted((name for name in lost if lost[name] < 0), key=lost.__getitem__)
    rare = msgspec.structs.replace(metrics, per_class=tuple(msgspec.structs.replace(one, objects=2) for one in metrics.per_class))
    few = {**found, EIGHT: msgspec.structs.replace(found[EIGHT], metrics=rare)}
    rest = "\n\n".join(detection_blocks(session_of(few)))
    assert rest[rest.index("lost most") : rest.index("What is quantized")].count("| `W8A8`") == 0


def test_at_most_five_losses_per_variant(session_of: Callable[..., Session]) -> None:
    found = blocks()

    def many(row: RowDetection, scale: float) -> RowDetection:
        assert row.metrics is not None
        one = row.metrics.per_class[0]
        kinds = tuple(
            msgspec.structs.replace(one, category_id=n, name=f"kind {n}", map_50_95=1 - scale * n / 10) for n in range(9)
        )
        return msgspec.structs.replace(row, metrics=msgspec.structs.replace(row.metrics, per_class=kinds))

    session = session_of({FLOAT: many(found[FLOAT], 0), EIGHT: many(found[EIGHT], 1)})
    text = "\n\n".join(detection_blocks(session))
    names = [cells_of(line, "|")[1] for line in text.splitlines() if "| kind " in line]
    assert names == ["kind 8", "kind 7", "kind 6", "kind 5", "kind 4"]


def test_what_is_quantized(session_of: Callable[..., Session]) -> None:
    text = "\n\n".join(detection_blocks(session_of(blocks())))
    cells = cells_of(text[text.index("What is quantized") :], "| `W8A8`")
    assert cells[1:] == [
        "60 tensors at 8 bits, a scale per channel", "60 inputs at 8 bits", "60 of 63", "61, 122, 3", "8.00", "8.00", "—", "63",
        "computed in floats",
    ]  # fmt: skip
    assert "`FP32`, `W2A32` have no count of quantized operators" in text


def test_gaps_are_explained(session_of: Callable[..., Session]) -> None:
    missing = RowDetection(
        metrics=None, census=None, collapsed=None, unavailable={"metrics": "TOO_FEW_SAMPLES"}, asked_images=3
    )  # fmt: skip
    failed = msgspec.structs.replace(blocks()[TWO], failed_images=1)
    text = "\n\n".join(detection_blocks(session_of(blocks() | {EIGHT: missing, TWO: failed})))
    assert "`W8A8` has no COCO metrics: too few samples (3 images asked about so far)." in text
    assert "`W2A32` gave no readable answer for 1 of 4 images; these count as without detections." in text
    assert cells_of(text, "| `W8A8`")[1:9] == ["—"] * 8


def test_the_report_says_what_adherence_is(session_of: Callable[..., Session], new_summary: NewSummary) -> None:
    document = render_markdown(new_summary((session_of(blocks()),)))
    assert document.index("### The variants") < document.index("### Detection") < document.index("### The frontier")
    assert "R-precision of each image" in document[document.index("## How it was measured") :]
    assert "| **mAP50-95** |" in document
    assert document.count("| **bits per weight** | bits that the weights' ranges of integers need") == 1
    assert document.count("| **bits per weight** |") == 1


def test_names_from_outside_stay_in_their_place(session_of: Callable[..., Session], new_summary: NewSummary) -> None:
    check = msgspec.structs.replace(make_check(NASTY), sanity_variant=NASTY, verdict=SanityVerdict.WIRING)
    session = session_of(blocks((NASTY, NASTY + "2"), weights=NASTY, execution=NASTY), (check,))
    session = msgspec.structs.replace(session, baseline_quant=NASTY)
    document = render_markdown(new_summary((session,)))
    for bad in ("<script>", "\n# heading", "\u202e", "https://evil"):
        assert bad not in document
    tokens = MarkdownIt("commonmark").enable("table").parse(document)
    assert not any(token.type == "html_block" for token in tokens)
    children = [child for token in tokens for child in token.children or []]
    assert not any(child.type in {"html_inline", "link_open"} for child in children)
    losses = [line for line in document.splitlines() if "&lt;script" in line and line.startswith("|")]
    assert losses
    assert "wiring, not scheme" in document


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_terminal_shows_map_and_share(session_of: Callable[..., Session], new_summary: NewSummary, width: int) -> None:
    text = printed(new_summary((session_of(blocks()),)), width)
    assert max(len(line) for line in text.split("\n")) <= width
    for word in ("mAP50-95", "of FP32", "W2A32"):
        assert word in text
    assert "tok/s" not in text
    line = next(line for line in text.split("\n") if line.startswith("W8A8"))
    assert ("[" in line) == (width >= 120)
    assert " %" in line


def test_the_terminal_takes_no_markup_from_a_tag(session_of: Callable[..., Session], new_summary: NewSummary) -> None:
    session = msgspec.structs.replace(session_of(blocks()), baseline_quant="[red]\x1b[2J")
    assert "[red]" in printed(new_summary((session,)), 120)


def printed(summary: Any, width: int) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(render_terminal(summary, width))
    return stream.getvalue()
