from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fewbits.analysis.determinism import (
    CHANNELS,
    agreement_floor,
    describe_divergence,
    determinism_of,
    first_differing_pair,
    repeated_cells,
    shared_length,
)
from fewbits.records.base import TrialStatus
from fewbits.records.plan import EffectiveControls
from fewbits.records.summary import DeterminismDetail
from fewbits.records.trial import TrialView

Build = Callable[..., TrialView]


def repeats(trial: Build, *tasks: str) -> list[TrialView]:
    """Each task once in the matrix and once more at the end."""
    return [trial("Q", task, phase=phase, trial_id=f"{task}-{phase}") for task in tasks for phase in ("matrix", "determinism")]


def test_a_variant_that_repeats_itself(trial: Build) -> None:
    found = determinism_of(repeated_cells(repeats(trial, "a", "b", "c")))
    assert found == DeterminismDetail(
        cells=3,
        same_output_rate=1.0,
        same_outcome_rate=1.0,
        agreement_floor=round(0.05 ** (1 / 3), 6),
        deterministic=True,
        channels=("output_text", "finish_reason", "output_tokens", "adherence_score"),
        first_divergence=None,
    )
    assert first_differing_pair(repeated_cells(repeats(trial, "a", "b"))) is None


@pytest.mark.parametrize(
    ("change", "channel", "output", "outcome"),
    [
        ({"output_sha256": "x" * 64}, "output_text", 0.5, 1.0),
        ({"finish_reason": "length"}, "finish_reason", 0.5, 1.0),
        ({"output_tokens": 31}, "output_tokens", 0.5, 1.0),
        ({"adherence_score": 0.25}, "adherence_score", 1.0, 0.5),
    ],
)
def test_every_channel_counts(trial: Build, change: dict[str, Any], channel: str, output: float, outcome: float) -> None:
    again = trial("Q", "b", phase="determinism", **({"finish_reason": "stop"} | change))
    rows = [*repeats(trial, "a"), trial("Q", "b", finish_reason="stop"), again]
    found = determinism_of(repeated_cells(rows))
    assert (found.same_output_rate, found.same_outcome_rate, found.deterministic) == (output, outcome, False)
    pair = first_differing_pair(repeated_cells(rows))
    assert pair is not None
    assert describe_divergence(pair, {}).channel == channel
    assert channel in CHANNELS


def test_timings_and_unreported_values_are_no_difference(trial: Build) -> None:
    rows = [trial("Q", "a", total_latency=0.5), trial("Q", "a", total_latency=9.0, repetition=1, output_tokens=None)]
    assert determinism_of(repeated_cells(rows)).deterministic is True


def test_what_is_no_repeat(trial: Build, failure: Build) -> None:
    other_threads = EffectiveControls(seed=1337, threads=1, affinity=(0, 1), context_size=2048)
    rows = [
        trial("Q", "a", output_sha256="1" * 64),
        trial("Q", "a", output_sha256="2" * 64, engine_version="2", repetition=1),
        trial("Q", "a", output_sha256="3" * 64, controls_effective=other_threads, repetition=1),
        trial("Q", "a", output_sha256="4" * 64, phase="canary"),
        trial("Q", "a", output_sha256="5" * 64, status=TrialStatus.EMPTY, repetition=1),
        failure("Q", "a", repetition=2),
        trial("Q", "b", output_sha256="6" * 64),
    ]
    assert repeated_cells(rows) == ()
    found = determinism_of(repeated_cells(rows))
    assert (found.cells, found.same_output_rate, found.agreement_floor, found.deterministic) == (0, None, None, None)
    unscored = determinism_of(
        repeated_cells([trial("Q", "a", adherence_score=None), trial("Q", "a", adherence_score=None, attempt=2)])
    )
    assert (unscored.cells, unscored.same_outcome_rate, unscored.deterministic) == (1, None, True)


def test_superseded_attempts_are_repeats_too(trial: Build) -> None:
    rows = [trial("Q", "a", attempt=1), trial("Q", "a", attempt=2, output_sha256="x" * 64)]
    assert determinism_of(repeated_cells(rows)).deterministic is False


def test_the_first_difference_is_shown(trial: Build) -> None:
    rows = [
        trial("Q", "a", trial_id="a0"),
        trial("Q", "a", trial_id="a1", repetition=1),
        trial("Q", "b", trial_id="b0", output_sha256="1" * 64),
        trial("Q", "b", trial_id="b1", output_sha256="1" * 64, repetition=1),
        trial("Q", "b", trial_id="b2", output_sha256="2" * 64, repetition=2),
    ]
    pair = first_differing_pair(repeated_cells(reversed(rows)))
    assert pair is not None
    assert [row.trial_id for row in pair] == ["b0", "b2"]
    shown = describe_divergence(pair, {"b0": "The answer is " + "x" * 99, "b2": "The answer is"})
    assert (shown.task_id, shown.channel, shown.position) == ("b", "output_text", 13)
    assert (shown.first, shown.second) == (" " + "x" * 39, "")
    for texts in ({}, {"b0": "only one"}, {"b0": "equal", "b2": "equal"}):
        blind = describe_divergence(pair, texts)
        assert (blind.position, blind.first, blind.second) == (None, "sha256 " + "1" * 16, "sha256 " + "2" * 16)
    assert determinism_of(repeated_cells(rows), shown).first_divergence == shown
    with pytest.raises(ValueError, match="do not differ"):
        describe_divergence((rows[0], rows[1]), {})


@given(st.text(max_size=30), st.text(max_size=30))
def test_shared_length_is_the_common_prefix(one: str, other: str) -> None:
    length = shared_length(one, other)
    assert one[:length] == other[:length]
    assert length == min(len(one), len(other)) or one[length] != other[length]


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 2), st.sampled_from("xy"), st.sampled_from("12")), max_size=8),
    st.randoms(),
)
def test_row_order_never_matters(trial: Build, cells: list[tuple[str, int, str, str]], shuffler: Any) -> None:
    rows = [
        trial("Q", task, repetition=repetition, output_sha256=text * 64, engine_version=version, trial_id=str(i))
        for i, (task, repetition, text, version) in enumerate(cells)
    ]
    mixed = list(rows)
    shuffler.shuffle(mixed)
    assert msgspec.json.encode(determinism_of(repeated_cells(rows))) == msgspec.json.encode(determinism_of(repeated_cells(mixed)))
    assert first_differing_pair(repeated_cells(rows)) == first_differing_pair(repeated_cells(mixed))
    assert (determinism_of(repeated_cells(rows)).deterministic is False) == (
        first_differing_pair(repeated_cells(rows)) is not None
    )


@given(st.integers(1, 60), st.data())
def test_the_floor_equals_scipy(cells: int, data: st.DataObject) -> None:
    agreeing = data.draw(st.integers(0, cells))
    expected = stats.binomtest(agreeing, cells, alternative="greater").proportion_ci(confidence_level=0.95, method="exact").low
    assert agreement_floor(agreeing, cells) == pytest.approx(float(expected), abs=1e-9)


def test_the_floor_holds_its_promise() -> None:
    rng = np.random.default_rng(3)
    for truth in (0.8, 0.95, 0.99):
        floors = [agreement_floor(int(found), 30) for found in rng.binomial(30, truth, 800)]
        assert np.mean([floor <= truth for floor in floors]) >= 0.94
    with pytest.raises(ValueError, match="not a share"):
        agreement_floor(2, 1)
