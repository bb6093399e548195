"""Laws of divergence and of its compact form."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fewbits.analysis.distributions import (
    compact,
    compact_divergence,
    exact_divergence,
    log_normaliser,
    negative_log_likelihood,
    shared_divergence,
)

Logits = npt.NDArray[np.float32]
VOCABULARY = 40
LOGITS = arrays(np.float32, VOCABULARY, elements=st.floats(-40, 40, width=32))


def log_probabilities(logits: Logits) -> dict[str, float]:
    norm = log_normaliser(logits.astype(np.float64))
    return {str(token): float(value) - norm for token, value in enumerate(logits)}


def top(probabilities: dict[str, float], count: int) -> dict[str, float]:
    return dict(sorted(probabilities.items(), key=lambda pair: -pair[1])[:count])


@given(LOGITS, LOGITS, st.integers(1, VOCABULARY + 5))
def test_compact_lies_between_zero_and_exact(reference: Logits, other: Logits, top_k: int) -> None:
    found = compact_divergence(compact(reference, top_k), other)
    exact = exact_divergence(reference, other)
    assert 0 <= found <= exact + 1e-9
    if top_k >= VOCABULARY:
        assert found == pytest.approx(exact, abs=1e-9)


@given(LOGITS, LOGITS, st.integers(1, VOCABULARY - 1))
def test_keeping_more_never_shows_less(reference: Logits, other: Logits, top_k: int) -> None:
    fewer, more = (compact_divergence(compact(reference, k), other) for k in (top_k, top_k + 1))
    assert fewer <= more + 1e-9


@given(LOGITS, st.integers(1, VOCABULARY))
def test_a_model_does_not_diverge_from_itself(logits: Logits, top_k: int) -> None:
    assert compact_divergence(compact(logits, top_k), logits) == 0
    assert exact_divergence(logits, logits) == 0


@given(LOGITS, LOGITS, st.floats(-20, 20, width=32))
def test_a_common_shift_of_the_logits_changes_nothing(reference: Logits, other: Logits, shift: float) -> None:
    shifted = (other.astype(np.float64) + shift).astype(np.float32)
    assert exact_divergence(reference, shifted) == pytest.approx(exact_divergence(reference, other), rel=1e-4, abs=1e-4)


@given(LOGITS, st.integers(1, VOCABULARY))
def test_what_is_kept_and_the_rest_make_a_whole(logits: Logits, top_k: int) -> None:
    kept = compact(logits, top_k)
    probabilities = np.exp(kept.logits.astype(np.float64) - kept.log_norm)
    assert probabilities.sum() + math.exp(kept.log_tail) == pytest.approx(1)
    assert list(probabilities) == sorted(probabilities, reverse=True)
    assert len(set(kept.ids.tolist())) == top_k
    assert kept.logits.min() >= np.delete(logits, kept.ids).max(initial=-np.inf)


def test_ties_are_kept_in_the_order_of_token_ids() -> None:
    logits = np.array([1.0, 2.0, 1.0, 3.0, 1.0], dtype=np.float32)
    assert [compact(logits, k).ids.tolist() for k in (1, 2, 3, 4, 9)] == [[3], [3, 1], [3, 1, 0], [3, 1, 0, 2], [3, 1, 0, 2, 4]]


def test_the_rest_is_exact_where_one_minus_the_others_would_cancel() -> None:
    logits = np.full(50_000, -30.0, dtype=np.float32)
    logits[7] = 0.0
    assert compact(logits, 1).log_tail == pytest.approx(math.log(49_999) - 30, rel=1e-9)


def test_known_values() -> None:
    reference, other = np.log(np.array([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]])).astype(np.float32)
    assert exact_divergence(reference, other) == pytest.approx(0.25 * math.log(2), rel=1e-6)
    # the last two tokens merged: 0.5 log(0.5/0.25) + 0.5 log(0.5/0.75)
    assert compact_divergence(compact(reference, 1), other) == pytest.approx(0.5 * math.log(4 / 3), rel=1e-6)
    assert negative_log_likelihood(reference, 1) == pytest.approx(math.log(4), rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_refused(bad: float) -> None:
    logits = np.array([0.0, bad, 1.0], dtype=np.float32)
    with pytest.raises(ValueError, match="not finite"):
        compact(logits, 2)
    with pytest.raises(ValueError, match="not finite"):
        exact_divergence(np.zeros(3, dtype=np.float32), logits)


@given(LOGITS, LOGITS, st.integers(1, VOCABULARY))
def test_what_two_servers_report_is_a_lower_bound(reference: Logits, other: Logits, count: int) -> None:
    found = shared_divergence(top(log_probabilities(reference), count), top(log_probabilities(other), count))
    assert 0 <= found <= exact_divergence(reference, other) + 1e-6


def test_reports_that_share_nothing_say_nothing() -> None:
    assert shared_divergence({"a": -0.1}, {"b": -0.1}) == 0
    assert shared_divergence({}, {}) == 0


def test_the_smallest_float_of_a_server_is_no_trap() -> None:
    lowest = -3.4028235e38
    assert shared_divergence({"a": -0.1, "b": lowest}, {"a": -0.3, "b": lowest}) > 0
