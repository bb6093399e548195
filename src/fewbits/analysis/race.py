"""Deciding item by item: which variants still need items, and when each got its verdict.

A race is fed block by block and depends on nothing but the outcomes, so the run loop and the summary get the same decisions from
the same journal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fewbits.analysis.anytime import Hypothesis, PairedEvidence
from fewbits.analysis.statistics import Floats
from fewbits.analysis.verdicts import Candidate, Claims, judge
from fewbits.records.plan import DecidePolicy, SelectionPolicy
from fewbits.records.summary import Decision, VerdictCode

Outcomes = Mapping[str, float]
"""Quant tag -> variant minus reference in mean adherence on one item, -1..1."""


@dataclass(frozen=True, slots=True)
class Finish:
    """A decided variant: its claims when they were first enough, and after how many items and which block that was."""

    claims: Claims
    items: int
    block: int
    p_value: float


class Race:
    """All compared variants of one model. `ranks`: quant tag -> place by bits per weight, 0 = fewest (unique).

    `harm_ps` are the p-values of the divergence test, where divergence was measured.
    """

    def __init__(
        self,
        ranks: Mapping[str, int],
        policy: SelectionPolicy,
        decide: DecidePolicy,
        harm_ps: Mapping[str, float | None],
    ) -> None:
        self._policy, self._decide = policy, decide
        self._candidates = {
            tag: Candidate(tag, rank, PairedEvidence(policy.equivalence_margin), harm_ps.get(tag))
            for tag, rank in sorted(ranks.items(), key=lambda item: item[1])
        }
        self._differences: dict[str, list[float]] = {tag: [] for tag in self._candidates}
        self.finished: dict[str, Finish] = {}

    @property
    def live(self) -> tuple[str, ...]:
        """Variants that still get items, fewest bits first; without early stopping all of them."""
        if not self._decide.early_stop:
            return tuple(self._candidates)
        return tuple(tag for tag in self._candidates if tag not in self.finished)

    def candidate(self, tag: str) -> Candidate:
        """Return a variant's evidence so far."""
        return self._candidates[tag]

    def differences(self, tag: str) -> Floats:
        """Return `float64[items]`: a variant's outcomes in the order in which they were bet on."""
        return np.array(self._differences[tag], dtype=np.float64)

    def claims(self) -> dict[str, Claims]:
        """Return tag -> claims: as they stood when a variant was decided, else as they stand now."""
        return judge(tuple(self._candidates.values()), self._policy) | {
            tag: finish.claims for tag, finish in self.finished.items() if self._decide.early_stop
        }

    def close_block(self, block: int, items: Sequence[Outcomes]) -> tuple[str, ...]:
        """Bet on a block's items (live variants only) and return the variants that are decided by it."""
        for outcomes in items:
            for tag in self.live:
                if tag in outcomes:
                    self._candidates[tag].evidence.add(outcomes[tag])
                    self._differences[tag].append(outcomes[tag])
        now = judge(tuple(self._candidates.values()), self._policy)
        decided = tuple(
            tag
            for tag, claims in now.items()
            if tag not in self.finished
            and claims.verdict is not VerdictCode.UNRESOLVED
            and self._candidates[tag].evidence.items >= self._decide.minimum_items
        )
        for tag in decided:
            candidate = self._candidates[tag]
            p_value = deciding_p_value(candidate, now[tag])
            self.finished[tag] = Finish(now[tag], candidate.evidence.items, block, p_value)
        return decided

    def decisions(self) -> tuple[Decision, ...]:
        """Return the decisions in the order in which they fell; ties by bits, fewest first."""
        order = list(self._candidates)
        ranked = sorted(self.finished.items(), key=lambda pair: (pair[1].block, order.index(pair[0])))
        return tuple(
            Decision(
                quant_tag=tag,
                verdict=finish.claims.verdict,
                after_items=finish.items,
                after_block=finish.block,
                p_value=float(f"{finish.p_value:.6g}"),
            )
            for tag, finish in ranked
        )


def deciding_p_value(candidate: Candidate, claims: Claims) -> float:
    """Return the p-value of the test (or pair of tests) that a verdict rests on."""
    if claims.harm and candidate.harm_p is not None:
        return candidate.harm_p
    nulls: tuple[Hypothesis, ...] = (Hypothesis.NO_GAIN,)
    if claims.equivalent:
        nulls = (Hypothesis.LOSS_BEYOND_MARGIN, Hypothesis.GAIN_BEYOND_MARGIN)
    elif claims.loss:
        nulls = (Hypothesis.NO_LOSS,)
    return max(candidate.evidence.p_value(null) for null in nulls)
