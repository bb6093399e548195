"""Next-token distributions in compact form, and the divergence between two of them. Pure. Nats, 64-bit arithmetic.

KL(P || Q) = sum of p_i (log p_i - log q_i) over all tokens. Merging tokens into cells can only lower it, so each compact
form here (the top K and one cell for all the rest) gives a lower bound, which is exact when nothing is merged.
Source: Cover and Thomas (2006), Elements of Information Theory, 2nd ed., theorem 2.7.1 (log sum inequality).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
TokenIds = npt.NDArray[np.int32]

_ROUNDING_NATS = 1e-9
_REST_RESOLUTION = 1e-6
"""Servers print 32-bit log-probabilities, so one minus their sum is known to about this."""


@dataclass(frozen=True, slots=True)
class CompactDistribution:
    """The top K of a distribution and what is left.

    `ids` are the K most likely tokens, most likely first; `logits` theirs as the engine gave them; `log_norm` turns logits
    into log-probabilities (log p = logit - log_norm); `log_tail` is the log of the exact total probability of all other
    tokens, -inf when there is none.
    """

    ids: TokenIds
    logits: Logits
    log_norm: float
    log_tail: float


def log_normaliser(logits: Floats) -> float:
    """Return log sum exp of `float64[n_vocab]`. Raises `ValueError` on logits that are not finite: no distribution has them."""
    largest = float(logits.max())
    if not (math.isfinite(largest) and math.isfinite(float(logits.min()))):
        msg = "the engine gave logits that are not finite"
        raise ValueError(msg)
    return largest + math.log(float(np.exp(logits - largest).sum()))


def compact(logits: Logits, top_k: int) -> CompactDistribution:
    """Keep the `top_k` most likely tokens of `float32[n_vocab]` (all, if there are fewer) and the exact rest.

    Among equal logits the lower token ids are kept, so that the top K + 1 always contain the top K.
    """
    ids = _most_likely(logits, min(top_k, len(logits)))
    wide = logits.astype(np.float64)
    norm = log_normaliser(wide)
    return CompactDistribution(ids, logits[ids], norm, _log_rest(wide, ids, norm))


def _most_likely(logits: Logits, count: int) -> TokenIds:
    """Ids of the `count` largest logits, largest first, ties by id."""
    last = np.partition(logits, len(logits) - count)[len(logits) - count]
    above = np.flatnonzero(logits > last)
    kept = np.concatenate([above, np.flatnonzero(logits == last)[: count - len(above)]])
    return kept[np.lexsort((kept, -logits[kept]))].astype(np.int32)


def _log_rest(logits: Floats, ids: TokenIds, log_norm: float) -> float:
    """Log of the total probability of every token but `ids`, summed over them: one minus the others would cancel."""
    if len(ids) == len(logits):
        return -math.inf
    others = logits.copy()
    others[ids] = -math.inf
    largest = float(others.max())
    return largest + math.log(float(np.exp(others - largest).sum())) - log_norm


def compact_divergence(reference: CompactDistribution, logits: Logits) -> float:
    """KL(reference || other) over the reference's top K and the rest, given all logits of the other (`float32[n_vocab]`)."""
    wide = logits.astype(np.float64)
    norm = log_normaliser(wide)
    log_p = reference.logits.astype(np.float64) - reference.log_norm
    log_q = wide[reference.ids] - norm
    total = float(np.sum(np.exp(log_p) * (log_p - log_q)))
    if reference.log_tail > -math.inf:
        total += math.exp(reference.log_tail) * (reference.log_tail - _log_rest(wide, reference.ids, norm))
    return _not_negative(total)


def exact_divergence(reference: Logits, logits: Logits) -> float:
    """KL(reference || other) over all tokens, from all logits of both (`float32[n_vocab]` each)."""
    wide, other = reference.astype(np.float64), logits.astype(np.float64)
    log_p, log_q = wide - log_normaliser(wide), other - log_normaliser(other)
    return _not_negative(float(np.sum(np.exp(log_p) * (log_p - log_q))))


def negative_log_likelihood(logits: Logits, token: int) -> float:
    """-log p(token), nats, from `float32[n_vocab]`."""
    return log_normaliser(logits.astype(np.float64)) - float(logits[token])


def _not_negative(total: float) -> float:
    """Divergence is never negative; rounding of 1e5 double-precision terms may say -1e-12, and nothing but a mistake -1e-9."""
    if total < -_ROUNDING_NATS:
        msg = f"a divergence of {total} nats is no rounding: one of the two is not a distribution"
        raise ValueError(msg)
    return max(total, 0.0)


def shared_divergence(reference: Mapping[str, float], other: Mapping[str, float]) -> float:
    """KL(reference || other) over the tokens that both report and one cell for all the rest: a lower bound.

    The values are log-probabilities of the few most likely tokens. A rest below what their rounding can tell is merged with
    the least likely shared tokens, which keeps the bound a bound. 0 when they share no token: then nothing is known.
    """
    shared = sorted(reference.keys() & other.keys(), key=lambda token: (reference[token], token))
    cells = [(math.exp(reference[token]), math.exp(other[token])) for token in shared]
    rest = (1 - math.fsum(p for p, _ in cells), 1 - math.fsum(q for _, q in cells))
    while min(rest) < _REST_RESOLUTION and cells:
        p, q = cells.pop(0)
        rest = (rest[0] + p, rest[1] + q)
    cells.append(rest)
    # masses that printing has rounded need not sum to one, so a hair below zero is possible here
    return max(0.0, math.fsum(p * math.log(p / q) for p, q in cells if p > 0 and q > 0))
