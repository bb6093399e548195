"""The search with a scripted prober: journal, resume, kill, failures. No engine."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from fewbits.analysis.recipe_race import SCALE_OPTIONS
from fewbits.core.codec import digest
from fewbits.core.errors import BackendError, PrerequisiteError, ProtocolError, SpecError, StoreError
from fewbits.records.recipe import ProbeRow, ProbeStatus
from fewbits.sensitivity.recipe_search import SearchResult, SearchSettings, search
from fewbits.store.journal import read_journal

SETTINGS = SearchSettings(windows=12, first_windows=4, step_windows=4, resamples=40, seed=3, level=0.95)
DIGEST = digest("search")
SIZES = {
    "token_embd": {"Q4_0": 450, "Q5_1": 600, "Q8_0": 850},
    "attn_k/0-5": {"Q4_0": 45, "Q5_1": 60, "Q8_0": 85},
    "attn_v/0-5": {"Q4_0": 45, "Q5_1": 60, "Q8_0": 85},
    "ffn_down/0-5": {"Q4_0": 180, "Q5_1": 240, "Q8_0": 340},
}
BUDGETS = {"Q4_K_M": 995, "Q3_K_M": 740}
"""The smaller one leaves room for one larger type: attn_k and attn_v are as good as equal, so it takes windows to tell."""
SCALE = {"token_embd": 0.02, "attn_k/0-5": 0.0295, "attn_v/0-5": 0.03, "ffn_down/0-5": 0.018}
SHRINK = {"Q4_0": 1.0, "Q5_1": 0.3, "Q8_0": 0.02}


def kl_of(group: str, ggml_type: str, window: int) -> float:
    """Fixed, and noisy enough that some options stay open for a while."""
    wobble = int(digest([group, ggml_type, window])[:6], 16) / 0xFFFFFF
    return SCALE[group] * SHRINK[ggml_type] * (1 + 0.3 * math.sin(window)) * (0.5 + wobble)


@dataclass
class Scripted:
    """Answers from `kl_of`; `failing` options raise, `stop_after` interrupts like Ctrl-C, `answer` changes an answer."""

    failing: dict[tuple[str, str], Exception] = field(default_factory=dict)
    stop_after: int | None = None
    answer: Callable[[str, str, tuple[float, ...]], tuple[float, ...]] | None = None
    asked: list[tuple[str, str, int, int]] = field(default_factory=list)

    def measure(self, group: str, ggml_type: str, first_window: int, windows: int) -> tuple[float, ...]:
        if self.stop_after is not None and len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        self.asked.append((group, ggml_type, first_window, windows))
        if (group, ggml_type) in self.failing:
            raise self.failing[group, ggml_type]
        values = tuple(kl_of(group, ggml_type, window) for window in range(first_window, first_window + windows))
        return values if self.answer is None else self.answer(group, ggml_type, values)


def run(journal: Path, prober: Scripted, progress: list[str] | None = None, search_digest: str = DIGEST) -> SearchResult:
    lines: list[str] = [] if progress is None else progress
    return search(SIZES, BUDGETS, prober, SETTINGS, journal, search_digest, lines.append)


def without_clock(result: SearchResult) -> SearchResult:
    return replace(result, wall_seconds=0.0)


def rows(journal: Path) -> tuple[ProbeRow, ...]:
    return read_journal(journal, ProbeRow).rows


def test_a_search_chooses_for_every_budget_and_journals_every_probe(tmp_path: Path) -> None:
    prober = Scripted()
    lines: list[str] = []
    result = run(tmp_path / "probes.jsonl", prober, lines)
    assert {name: choice.bytes <= BUDGETS[name] for name, choice in result.choices.items()} == {"Q4_K_M": True, "Q3_K_M": True}
    picks = result.choices["Q3_K_M"].picks
    assert sorted((picks["attn_k/0-5"], picks["attn_v/0-5"])) == ["Q4_0", "Q5_1"]
    journal = rows(tmp_path / "probes.jsonl")
    assert [(row.group, row.ggml_type, row.first_window, len(row.kl_nats)) for row in journal] == prober.asked
    assert result.probes == len(prober.asked)
    assert result.windows_read == sum(asked[3] for asked in prober.asked)
    assert result.exhaustive_windows == 12 * 12
    assert result.windows_read < result.exhaustive_windows
    assert result.wall_seconds == pytest.approx(sum(row.wall_seconds for row in journal))
    assert lines[0].startswith("probe 1/12 attn_k/0-5 Q4_0: 0.0")
    assert lines[0].endswith(" nats")


def test_predictions_and_options_say_what_they_are_made_of(tmp_path: Path) -> None:
    result = run(tmp_path / "probes.jsonl", Scripted())
    for name, choice in result.choices.items():
        chosen = [result.options[group][ggml_type] for group, ggml_type in choice.picks.items()]
        assert result.predicted[name].value == pytest.approx(sum(option.kl or 0.0 for option in chosen), rel=1e-4)
        low, high = result.predicted[name].low, result.predicted[name].high
        assert low is not None
        assert high is not None
        assert low < result.predicted[name].value < high
        assert result.predicted[name].value == pytest.approx(choice.cost, rel=1e-5)
        assert 0 <= result.stability[name].same_picks <= 1
    for types in result.options.values():
        assert list(types) == ["Q4_0", "Q5_1", "Q8_0"]
        for option in types.values():
            assert option.kl is not None
            assert option.low is not None
            assert option.high is not None
            assert option.low <= option.kl <= option.high
            assert option.windows in {4, 8, 12}


@pytest.mark.parametrize("stop_after", [0, 1, 5, 12, 13])
def test_a_stopped_search_goes_on_and_ends_the_same(stop_after: int, tmp_path: Path) -> None:
    whole = Scripted()
    expected = run(tmp_path / "whole.jsonl", whole)
    assert len(whole.asked) > 13
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped.jsonl", Scripted(stop_after=stop_after))
    rest = Scripted()
    lines: list[str] = []
    assert without_clock(run(tmp_path / "stopped.jsonl", rest, lines)) == without_clock(expected)
    assert rest.asked == whole.asked[stop_after:]
    assert (f"{stop_after} probes are in the journal already" in lines) == (stop_after > 0)


def test_a_finished_search_asks_nothing(tmp_path: Path) -> None:
    first = run(tmp_path / "probes.jsonl", Scripted())
    again = Scripted(stop_after=0)
    assert run(tmp_path / "probes.jsonl", again) == first


def test_a_torn_last_line_costs_one_probe(tmp_path: Path) -> None:
    journal = tmp_path / "probes.jsonl"
    expected = run(journal, Scripted())
    data = journal.read_bytes()
    journal.write_bytes(data[: data.rindex(b"\n", 0, -1) + 20])
    rest = Scripted()
    assert without_clock(run(journal, rest)) == without_clock(expected)
    assert len(rest.asked) == 1


def test_a_killed_search_keeps_its_probes(tmp_path: Path) -> None:
    expected = run(tmp_path / "whole.jsonl", Scripted())
    journal = tmp_path / "killed.jsonl"
    script = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[1])
        import test_recipe_search as here

        class Killed(here.Scripted):
            def measure(self, *asked):
                if len(self.asked) == 4:
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().measure(*asked)

        here.run(Path(sys.argv[2]), Killed())
        """
    )
    command = [sys.executable, "-c", script, str(Path(__file__).parent), str(journal)]
    ended = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    assert len(rows(journal)) == 4
    assert without_clock(run(journal, Scripted())) == without_clock(expected)


def test_rows_of_another_search_do_not_count(tmp_path: Path) -> None:
    journal = tmp_path / "probes.jsonl"
    run(journal, Scripted(), search_digest=digest("another text"))
    prober = Scripted()
    result = run(journal, prober)
    assert result.probes == len(prober.asked) > 0


def test_a_damaged_journal_is_an_error(tmp_path: Path) -> None:
    journal = tmp_path / "probes.jsonl"
    journal.write_bytes(b"{}\n")
    with pytest.raises(StoreError, match=r"probes\.jsonl"):
        run(journal, Scripted())


@pytest.mark.parametrize("error", [BackendError("llama.cpp", "exploded <b>"), ProtocolError("llama.cpp sent <b>")])
def test_an_option_that_fails_is_left_out_with_its_reason(error: Exception, tmp_path: Path) -> None:
    lines: list[str] = []
    result = run(tmp_path / "probes.jsonl", Scripted(failing={("attn_v/0-5", "Q5_1"): error}), lines)
    option = result.options["attn_v/0-5"]["Q5_1"]
    assert option.kl is None
    assert "<b>" in option.detail
    assert all(choice.picks["attn_v/0-5"] != "Q5_1" for choice in result.choices.values())
    (failed,) = [row for row in rows(tmp_path / "probes.jsonl") if row.status is ProbeStatus.FAILED]
    assert (failed.group, failed.ggml_type, failed.kl_nats) == ("attn_v/0-5", "Q5_1", ())
    assert "<b>" in failed.detail
    assert any("attn_v/0-5 Q5_1: failed, left out" in line for line in lines)


def test_a_failed_option_is_tried_again_by_the_next_run(tmp_path: Path) -> None:
    journal = tmp_path / "probes.jsonl"
    run(journal, Scripted(failing={("attn_v/0-5", "Q5_1"): BackendError("llama.cpp", "no memory")}))
    mended = Scripted()
    assert run(journal, mended).options["attn_v/0-5"]["Q5_1"].kl is not None
    assert mended.asked[0] == ("attn_v/0-5", "Q5_1", 0, 4)


def too_short(group: str, ggml_type: str, values: tuple[float, ...]) -> tuple[float, ...]:
    return values[:-1] if (group, ggml_type) == ("attn_v/0-5", "Q5_1") else values


def not_a_number(group: str, ggml_type: str, values: tuple[float, ...]) -> tuple[float, ...]:
    return (math.nan, *values[1:]) if (group, ggml_type) == ("attn_v/0-5", "Q5_1") else values


@pytest.mark.parametrize(
    ("answer", "words"), [(too_short, "3 windows came back, 4 were asked"), (not_a_number, "nan, not a number")]
)
def test_answers_that_cannot_be_used_are_failures(
    answer: Callable[[str, str, tuple[float, ...]], tuple[float, ...]], words: str, tmp_path: Path
) -> None:
    result = run(tmp_path / "probes.jsonl", Scripted(answer=answer))
    assert words in result.options["attn_v/0-5"]["Q5_1"].detail
    assert result.options["attn_v/0-5"]["Q5_1"].kl is None


def test_an_engine_that_never_works_is_given_up(tmp_path: Path) -> None:
    class Broken(Scripted):
        def measure(self, group: str, ggml_type: str, first_window: int, windows: int) -> tuple[float, ...]:
            super().measure(group, ggml_type, first_window, windows)
            raise BackendError("llama.cpp", "cannot open the teacher")

    many = {f"g{place}": {"Q4_0": 10, "Q5_1": 12} for place in range(20)}
    broken = Broken(answer=lambda group, ggml_type, values: values)
    SCALE.update(dict.fromkeys(many, 1.0))
    with pytest.raises(BackendError, match=r"every type failed|first 5 all failed") as caught:
        search(many, {"b": 10**6}, broken, SETTINGS, tmp_path / "probes.jsonl", DIGEST, lambda _: None)
    assert "cannot open the teacher" in str(caught.value)
    assert len(broken.asked) <= 5


def test_a_missing_prerequisite_ends_the_search_and_blames_no_option(tmp_path: Path) -> None:
    missing = Scripted(failing={("attn_v/0-5", "Q4_0"): PrerequisiteError("cyllama is missing", "install it")})
    with pytest.raises(PrerequisiteError):
        run(tmp_path / "probes.jsonl", missing)
    assert all(row.status is ProbeStatus.OK for row in rows(tmp_path / "probes.jsonl"))


def test_budgets_that_cannot_be_met_are_named_before_any_probe(tmp_path: Path) -> None:
    prober = Scripted()
    with pytest.raises(SpecError) as caught:
        search(SIZES, {"Q3_K_M": 719, "Q2_K": 5, "fine": 720}, prober, SETTINGS, tmp_path / "p.jsonl", DIGEST, lambda _: None)
    assert {problem.path for problem in caught.value.problems} == {"Q2_K", "Q3_K_M"}
    assert all("720 bytes" in problem.message for problem in caught.value.problems)
    assert prober.asked == []
    assert not (tmp_path / "p.jsonl").exists()


def test_a_budget_that_only_the_smallest_types_meet(tmp_path: Path) -> None:
    result = search(SIZES, {"b": 720}, Scripted(), SETTINGS, tmp_path / "p.jsonl", DIGEST, lambda _: None)
    assert set(result.choices["b"].picks.values()) == {"Q4_0"}
    assert result.windows_read == 12 * 4 + SCALE_OPTIONS * 8  # nothing to decide: no further round but for the scale
