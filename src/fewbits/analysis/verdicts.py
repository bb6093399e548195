"""Three-zone verdicts against the reference, with the error of a whole session under control.

Three families of claims, each with its own error level: `WORSE`, `EQUIVALENT`, `BETTER`. In each, the probability of any false
claim among the session's variants is at most the level, by Holm's step-down with weights that are fixed before any result: losses
are first looked for where the fewest bits are, equivalence where the most are. p-values are anytime-valid, so the step-down may
be repeated after every item.

Sources: Holm (1979), A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6(2), with
weights as in its section 4; Schuirmann (1987), two one-sided tests; evidence: `analysis.anytime`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fewbits.analysis.anytime import Hypothesis, PairedEvidence, confidence_bounds, minimum_detectable_loss
from fewbits.analysis.statistics import Floats, estimate, rounded
from fewbits.records.base import Unavailable
from fewbits.records.plan import SelectionPolicy
from fewbits.records.summary import HypothesisEvidence, VerdictCode, VerdictDetail, VerdictReason

METHOD = "betting confidence sequence on paired items"
DIVERGENCE_METHOD = "one-sided t test by windows"
_WEIGHT_RATIO = 0.5
"""A-priori weight of a variant against its neighbour that is a likelier candidate for the claim."""
_P_FLOOR = 1e-300
MAX_FURTHER_ITEMS = 100_000
"""A projection beyond this is no advice: the difference lies at the margin for every practical purpose."""


@dataclass(frozen=True, slots=True)
class Claims:
    """Which claims about one variant are proven, and at which level each was judged (Holm's share of the family's level)."""

    loss: bool
    gain: bool
    equivalent: bool
    harm: bool
    loss_level: float
    gain_level: float
    equivalent_level: float
    harm_level: float

    @property
    def verdict(self) -> VerdictCode:
        """Divergence eliminates; inside the margin outweighs a loss or gain that is proven but smaller than it."""
        if self.harm:
            return VerdictCode.WORSE
        if self.equivalent:
            return VerdictCode.EQUIVALENT
        if self.loss:
            return VerdictCode.WORSE
        return VerdictCode.BETTER if self.gain else VerdictCode.UNRESOLVED

    @property
    def reasons(self) -> tuple[VerdictReason, ...]:
        """Everything that is proven, in a fixed order."""
        proven = (
            (VerdictReason.DIVERGENCE_HARM, self.harm),
            (VerdictReason.INSIDE_MARGIN, self.equivalent),
            (VerdictReason.PAIRED_LOSS, self.loss),
            (VerdictReason.PAIRED_GAIN, self.gain),
        )
        return tuple(reason for reason, holds in proven if holds)


@dataclass(frozen=True, slots=True)
class Candidate:
    """The evidence about one variant: `harm_p` is the divergence test's p-value, `None` where there is no divergence."""

    quant_tag: str
    rank: int
    """Its place by bits per weight, 0 = fewest; unique in a session."""
    evidence: PairedEvidence
    harm_p: float | None


def weighted_holm(p_values: Mapping[str, float], weights: Mapping[str, float], level: float) -> dict[str, tuple[bool, float]]:
    """Return tag -> (rejected, the level its p-value was compared with). Weights are positive; the family's error is `level`.

    The smallest p / weight is compared with level x weight / total weight; once it is rejected, its weight goes to the rest.
    """
    left = dict(weights)
    results: dict[str, tuple[bool, float]] = {}
    for tag in sorted(p_values, key=lambda tag: (p_values[tag] / weights[tag], tag)):
        share = level * left[tag] / math.fsum(left.values())
        rejected = p_values[tag] <= share
        results[tag] = (rejected, share)
        if not rejected:
            break
        del left[tag]
    total = math.fsum(left.values())
    return results | {tag: (False, level * left[tag] / total) for tag in p_values if tag not in results}


def judge(candidates: Sequence[Candidate], policy: SelectionPolicy) -> dict[str, Claims]:
    """Return tag -> claims for all compared variants of a session (the reference is not among them). Order never matters."""
    upwards = sorted(candidates, key=lambda one: one.rank)
    few_bits_first = {one.quant_tag: _WEIGHT_RATIO**place for place, one in enumerate(upwards)}
    many_bits_first = {one.quant_tag: _WEIGHT_RATIO**place for place, one in enumerate(reversed(upwards))}
    even = {one.quant_tag: 1.0 for one in candidates}
    loss = _family(candidates, few_bits_first, policy.error_level - policy.divergence_error_level, Hypothesis.NO_LOSS)
    gain = _family(candidates, even, policy.error_level, Hypothesis.NO_GAIN)
    both = (Hypothesis.LOSS_BEYOND_MARGIN, Hypothesis.GAIN_BEYOND_MARGIN)
    equivalent = _family(candidates, many_bits_first, policy.error_level, *both)
    harm_ps = {one.quant_tag: 1.0 if one.harm_p is None else one.harm_p for one in candidates}
    harm = weighted_holm(harm_ps, few_bits_first, policy.divergence_error_level)
    return {
        tag: Claims(
            loss=loss[tag][0],
            gain=gain[tag][0],
            equivalent=equivalent[tag][0],
            harm=harm[tag][0],
            loss_level=loss[tag][1],
            gain_level=gain[tag][1],
            equivalent_level=equivalent[tag][1],
            harm_level=harm[tag][1],
        )
        for tag in even
    }


def _family(
    candidates: Sequence[Candidate], weights: Mapping[str, float], level: float, *nulls: Hypothesis
) -> dict[str, tuple[bool, float]]:
    """Judge one family: a claim needs all its nulls rejected, so its p-value is the largest (intersection-union test)."""
    p_values = {one.quant_tag: max(one.evidence.p_value(null) for null in nulls) for one in candidates}
    return weighted_holm(p_values, weights, level)


def verdict_detail(
    candidate: Candidate,
    claims: Claims,
    differences: Floats,
    policy: SelectionPolicy,
    *,
    stopped_after_items: int | None = None,
) -> VerdictDetail:
    """Return the verdict with its evidence. `differences`: `float64[items]`, the same items as in the candidate's evidence."""
    n = len(differences)
    unavailable: dict[str, str] = {}
    further = _further_items(candidate.evidence, claims)
    detectable = minimum_detectable_loss(differences, claims.loss_level)
    reasons = claims.reasons or (_missing(n, further),)
    if n == 0:
        unavailable |= dict.fromkeys(("difference", "minimum_detectable_effect"), str(Unavailable.NO_TRIALS))
    if claims.verdict is not VerdictCode.UNRESOLVED:
        further = None
        unavailable["further_items"] = str(Unavailable.ALREADY_DECIDED)
    elif further is None:
        unavailable["further_items"] = str(Unavailable.AT_THE_MARGIN if n else Unavailable.NO_TRIALS)
    difference = None
    if n:
        low, high = confidence_bounds(differences, policy.error_level)
        value = math.fsum(differences.tolist()) / n
        difference = estimate(value, low, high, method=METHOD, n=n, level=1 - 2 * policy.error_level)
    return VerdictDetail(
        verdict=claims.verdict,
        reasons=reasons,
        difference=difference,
        margin=policy.equivalence_margin,
        method=METHOD,
        items_used=n,
        minimum_detectable_effect=rounded(detectable),
        further_items=further,
        tests=_tests(candidate, claims, policy),
        stopped_after_items=stopped_after_items,
        unavailable=unavailable,
    )


def _missing(items: int, further: int | None) -> VerdictReason:
    if items == 0:
        return VerdictReason.NO_PAIRED_ITEMS
    return VerdictReason.TOO_FEW_ITEMS if further is not None else VerdictReason.AT_THE_MARGIN


def _further_items(evidence: PairedEvidence, claims: Claims) -> int | None:
    """Return how many items like those so far bring the nearest verdict, rounded up to two digits; `None`: none would."""
    loss = evidence.items_to_reject(Hypothesis.NO_LOSS, claims.loss_level)
    gain = evidence.items_to_reject(Hypothesis.NO_GAIN, claims.gain_level)
    sides = [
        evidence.items_to_reject(null, claims.equivalent_level)
        for null in (Hypothesis.LOSS_BEYOND_MARGIN, Hypothesis.GAIN_BEYOND_MARGIN)
    ]
    inside = max(side for side in sides if side is not None) if None not in sides else None
    totals = [total for total in (loss, gain, inside) if total is not None]
    if not totals or min(totals) - evidence.items > MAX_FURTHER_ITEMS:
        return None
    further = max(1, min(totals) - evidence.items)
    step = int(10 ** max(0, math.floor(math.log10(further)) - 1))
    return math.ceil(further / step) * step


def _tests(candidate: Candidate, claims: Claims, policy: SelectionPolicy) -> tuple[HypothesisEvidence, ...]:
    margin = policy.equivalence_margin
    rows = [
        ("difference >= 0", Hypothesis.NO_LOSS, claims.loss_level),
        ("difference <= 0", Hypothesis.NO_GAIN, claims.gain_level),
        (f"difference <= -{margin:g}", Hypothesis.LOSS_BEYOND_MARGIN, claims.equivalent_level),
        (f"difference >= {margin:g}", Hypothesis.GAIN_BEYOND_MARGIN, claims.equivalent_level),
    ]
    tests = [_test(words, METHOD, candidate.evidence.p_value(null), level) for words, null, level in rows]
    if candidate.harm_p is not None:
        words = f"divergence <= {policy.divergence_harm_nats:g} nats"
        tests.append(_test(words, DIVERGENCE_METHOD, candidate.harm_p, claims.harm_level))
    return tuple(tests)


def _test(words: str, method: str, p_value: float, level: float) -> HypothesisEvidence:
    p = float(f"{max(p_value, _P_FLOOR):.6g}")
    return HypothesisEvidence(
        null_hypothesis=words, method=method, p_value=p, level=float(f"{level:.6g}"), rejected=p_value <= level
    )


def evidence_of(differences: Floats, policy: SelectionPolicy) -> PairedEvidence:
    """Return the evidence of `float64[items]` differences, taken in that order."""
    evidence = PairedEvidence(policy.equivalence_margin)
    evidence.extend(np.asarray(differences, dtype=np.float64))
    return evidence
