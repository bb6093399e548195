from __future__ import annotations

from collections.abc import Callable

import pytest

from fewbits.analysis.sidecar import explain, unmeasured
from fewbits.records.sidecar import SidecarBlock, SidecarStatus
from fewbits.records.summary import QuantRow, Session
from fewbits.report.sidecar import sidecar_blocks

NewRow = Callable[..., QuantRow]
NewSession = Callable[..., Session]

MEASURED = SidecarBlock(
    status=SidecarStatus.OK,
    profile="cpu",
    backend="cpu",
    tool_version="build 11434 (commit abc)",
    device="Some CPU",
    threads=2,
    prefill_tokens=512,
    decode_tokens=128,
    repetitions=3,
    prefill_tokens_per_second=359.4,
    prefill_stddev=3.85,
    decode_tokens_per_second=103.1,
    decode_stddev=0.52,
    wall_seconds=11.2,
    temperature_start_c=48.0,
    temperature_end_c=61.4,
)


@pytest.fixture
def text_of(new_row: NewRow, new_session: NewSession) -> Callable[..., str]:
    def make(*blocks: SidecarBlock | None) -> str:
        rows = [
            new_row(f"Q{8 - n}_0", hardware_sidecar=block, prompt_tokens_per_second=147.0, generation_tokens_per_second=None)
            for n, block in enumerate(blocks)
        ]
        return "\n\n".join(sidecar_blocks(new_session(rows=tuple(rows))))

    return make


def test_nothing_is_shown_where_nothing_was_asked_for(text_of: Callable[..., str]) -> None:
    assert text_of(None, None) == ""


def test_both_speeds_stand_side_by_side(text_of: Callable[..., str]) -> None:
    text = text_of(MEASURED, explain(MEASURED))
    line = next(line for line in text.splitlines() if line.startswith("| `Q8_0`"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == ["`Q8_0`", "359 ± 3.85", "147", "103 ± 0.52", "—", "48 → 61 °C", "11.2 s"]
    assert text.count("Profile `cpu` on Some CPU: 2 threads, a prompt of 512 tokens and 128 generated tokens, 3 repetitions") == 1
    assert "not an interval" in text
    assert "Diagnostics" in text


def test_a_failure_is_a_sentence_and_no_row(text_of: Callable[..., str]) -> None:
    text = text_of(MEASURED, unmeasured(SidecarStatus.TIMEOUT, "it had not ended after 5 s and was killed", profile="cpu"))
    assert "- `Q7_0`: TIMEOUT: it had not ended after 5 s and was killed." in text
    assert "| `Q7_0`" not in text
    alone = text_of(unmeasured(SidecarStatus.NOT_RUN, "no", profile="cpu"))
    assert "|" not in alone
    assert "- `Q8_0`: NOT_RUN: no." in alone


def test_one_repetition_shows_no_spread(text_of: Callable[..., str]) -> None:
    once = SidecarBlock(
        status=SidecarStatus.OK, profile="p", threads=2, prefill_tokens=8, decode_tokens=4, repetitions=1,
        prefill_tokens_per_second=10.0, decode_tokens_per_second=5.0,
    )  # fmt: skip
    text = text_of(once)
    assert "±" not in text
    assert "1 repetition" in text
    assert "| — " in text


def test_what_a_tool_wrote_cannot_leave_its_place(text_of: Callable[..., str]) -> None:
    nasty = "<script>|\n# heading [x](http://evil) \u202e`"
    text = text_of(unmeasured(SidecarStatus.TOOL_FAILED, nasty, profile=nasty))
    assert "<script>" not in text
    assert "\n# heading" not in text
    assert "\u202e" not in text
    measured = SidecarBlock(
        status=SidecarStatus.OK, profile=nasty, device=nasty, tool_version=nasty, threads=2, prefill_tokens=8, decode_tokens=4
    )  # fmt: skip
    shown = text_of(measured)
    assert "<script>" not in shown
    assert "\n# heading" not in shown
