"""Verdicts against simulated truth: error, power, and what deciding item by item saves. No model is run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from benchmarks.result import Result, judged
from fewbits.analysis.anytime import Hypothesis, PairedEvidence
from fewbits.analysis.race import Race
from fewbits.analysis.verdicts import Candidate, Claims, evidence_of, judge, weighted_holm
from fewbits.records.plan import DecidePolicy, SelectionPolicy
from fewbits.records.summary import VerdictCode

Floats = npt.NDArray[np.float64]

POLICY = SelectionPolicy()
ITEMS = 500
BASE_ACCURACY = 0.8
ERROR_RUNS, POWER_RUNS, LADDER_RUNS = 2000, 4000, 400
SMALL_ITEMS, SMALL_RUNS = 51, 4000
FIVE_POINTS, THIRTY_POINTS = (0.07, 0.02), (0.33, 0.03)
"""Probability of losing and of gaining an item against the reference."""
LADDER = {
    "Q8": (0.02, 0.02),
    "Q6": (0.025, 0.025),
    "Q5": (0.1, 0.02),
    "Q4": (0.14, 0.02),
    "Q3": (0.22, 0.03),
    "Q2": THIRTY_POINTS,
}
"""With the reference seven rungs: two equivalent ones, then losses of 8, 12, 19 and 30 points."""
RANKS = {tag: rank for rank, tag in enumerate(reversed(LADDER))}
EQUIVALENT_TAGS = ("Q8", "Q6")


def measure() -> list[Result]:
    """Simulate with a fixed seed, so the numbers are the same everywhere."""
    rng = np.random.default_rng(20260221)
    return [*_errors(rng), _small_samples(rng), *_power(rng), *_ladder(rng)]


def draw(rng: np.random.Generator, rung: tuple[float, float], items: int = ITEMS) -> Floats:
    """Paired differences of binary outcomes, `float64[items]`."""
    draws = rng.random(items)
    return np.where(draws < rung[0], -1.0, np.where(draws < rung[0] + rung[1], 1.0, 0.0))


def session(data: dict[str, Floats]) -> dict[str, Claims]:
    """Judge a full matrix."""
    return judge([Candidate(tag, RANKS[tag], evidence_of(d, POLICY), None) for tag, d in data.items()], POLICY)


def _errors(rng: np.random.Generator) -> list[Result]:
    """Six variants at the edge of a claim, looked at after every item: how often is any such claim made?"""
    edges: dict[str, tuple[tuple[float, float], Callable[[Claims], bool], float]] = {
        "WORSE": ((0.05, 0.05), lambda claims: claims.loss, POLICY.error_level),
        "BETTER": ((0.05, 0.05), lambda claims: claims.gain, POLICY.error_level),
        "EQUIVALENT": (FIVE_POINTS, lambda claims: claims.equivalent, POLICY.error_level),
    }
    results = []
    for name, (rung, claimed, level) in edges.items():
        false = [
            any(claimed(one) for one in session({tag: draw(rng, rung) for tag in LADDER}).values()) for _ in range(ERROR_RUNS)
        ]
        note = (
            f"any false {name} among six variants with the truth at the edge of the claim, a look after each of {ITEMS} items; "
            f"{ERROR_RUNS} sessions, standard error {100 * float(np.std(false)) / ERROR_RUNS**0.5:.1f} %"
        )
        results.append(judged(f"type I error of {name}, a whole session", 100 * float(np.mean(false)), 100 * level, "%", note))
    return results


def _power(rng: np.random.Generator) -> list[Result]:
    """One variant that loses five points, on 500 paired items, against what the usual tests of the same data find."""
    from scipy import stats

    samples = [draw(rng, FIVE_POINTS) for _ in range(POWER_RUNS)]
    ours = float(np.mean([session({"Q5": sample})["Q5"].verdict is VerdictCode.WORSE for sample in samples]))
    losses = np.array([int((sample < 0).sum()) for sample in samples])
    gains = np.array([int((sample > 0).sum()) for sample in samples])
    # exact McNemar, two-sided at 5 %, the number of looks fixed at one
    mcnemar = float(np.mean(2 * stats.binom.cdf(gains, losses + gains, 0.5) <= 0.05))
    base = rng.binomial(ITEMS, BASE_ACCURACY, POWER_RUNS) / ITEMS
    variant = rng.binomial(ITEMS, BASE_ACCURACY - 0.05, POWER_RUNS) / ITEMS
    spread = np.sqrt((base * (1 - base) + variant * (1 - variant)) / ITEMS)
    unpaired = float(np.mean((base - variant) / spread >= 1.96))
    note = (
        f"{FIVE_POINTS[0]:.0%} lost, {FIVE_POINTS[1]:.0%} gained, {ITEMS} items, {POWER_RUNS} runs; what a look after every item "
        f"costs: exact McNemar with one look has {mcnemar:.3f}; an unpaired z test {unpaired:.3f}"
    )
    return [judged("power at 5 points of true loss, 500 items", ours, 0.90, "", note, at_least=True)]


def _ladder(rng: np.random.Generator) -> list[Result]:
    alone, shares, same_pick, same_verdicts, classical, worst = [], [], [], [], [], []
    for _ in range(LADDER_RUNS):
        sample = draw(rng, THIRTY_POINTS)
        alone.append(_race({"Q2": sample}).finished["Q2"].items)
        data = {tag: draw(rng, rung) for tag, rung in LADDER.items()}
        race = _race(data)
        asked = [len(race.differences(tag)) for tag in LADDER]
        shares.append((sum(asked) + max(asked)) / (ITEMS * (len(LADDER) + 1)))
        worst.append(race.finished["Q2"].items)
        early, full = _verdicts(race.claims()), _verdicts(session(data))
        same_verdicts.append(early == full)
        same_pick.append(_pick(early) == _pick(full))
        classical.append(_pick(early) == _pick(_classical(data)))
    runs = f"{LADDER_RUNS} ladders of 7 rungs x {ITEMS} items"
    return [
        judged("items until a variant 30 points worse stops", float(np.mean(alone)), 40, "items", f"alone; {LADDER_RUNS} runs"),
        judged("the same inside the ladder, error shared by six", float(np.mean(worst)), 40, "items", runs),
        judged("trials that deciding needs, of the full matrix", 100 * float(np.mean(shares)), 50, "%", _spread(shares, runs)),
        judged(
            "deciding picks as the full matrix does",
            100 * float(np.mean(same_pick)),
            95,
            "%",
            f"{runs}; every verdict the same in {np.mean(same_verdicts):.1%}; the pick of exact McNemar and t-based TOST with "
            f"Holm on the full matrix in {np.mean(classical):.1%}",
            at_least=True,
        ),
    ]


def _race(data: dict[str, Floats]) -> Race:
    race = Race({tag: RANKS[tag] for tag in data}, POLICY, DecidePolicy(enabled=True), {})
    for item in range(ITEMS):
        if not race.live:
            break
        race.close_block(item, [{tag: float(data[tag][item]) for tag in race.live}])
    return race


def _verdicts(claims: dict[str, Claims]) -> dict[str, VerdictCode]:
    return {tag: one.verdict for tag, one in claims.items()}


def _pick(verdicts: dict[str, VerdictCode]) -> str | None:
    """The accepted variant with the fewest bits."""
    accepted = [tag for tag, code in verdicts.items() if code in {VerdictCode.EQUIVALENT, VerdictCode.BETTER}]
    return min(accepted, key=RANKS.__getitem__, default=None)


def _classical(data: dict[str, Floats]) -> dict[str, VerdictCode]:
    """What fixed-size tests of the whole matrix say: exact McNemar for losses, two one-sided t tests for equivalence."""
    from scipy import stats

    even = dict.fromkeys(data, 1.0)
    losses = {tag: float(stats.binom.cdf((d > 0).sum(), (d != 0).sum(), 0.5)) for tag, d in data.items()}
    sides = {
        tag: max(
            float(stats.ttest_1samp(d, -POLICY.equivalence_margin, alternative="greater").pvalue),
            float(stats.ttest_1samp(d, POLICY.equivalence_margin, alternative="less").pvalue),
        )
        for tag, d in data.items()
    }
    worse = weighted_holm(losses, even, POLICY.error_level)
    same = weighted_holm(sides, even, POLICY.error_level)
    codes = {True: VerdictCode.WORSE, False: VerdictCode.UNRESOLVED}
    return {tag: VerdictCode.EQUIVALENT if same[tag][0] else codes[worse[tag][0]] for tag in data}


def _spread(shares: list[float], runs: str) -> str:
    low, high = np.quantile(shares, [0.05, 0.95])
    return f"mean; 90 % of runs between {low:.0%} and {high:.0%}; {runs}"


def _small_samples(rng: np.random.Generator) -> Result:
    """Why equivalence is not tested by t: few items at the margin's edge, with losses that few of them show."""
    from scipy import stats

    margin, textbook, ours = POLICY.equivalence_margin, 0, 0
    for _ in range(SMALL_RUNS):
        sample = draw(rng, (margin, 0.0), SMALL_ITEMS)
        # without any spread t is infinite: the textbook test rejects
        spread = float(np.ptp(sample)) > 0
        p_value = float(stats.ttest_1samp(sample, -margin, alternative="greater").pvalue) if spread else 0.0
        textbook += p_value <= POLICY.error_level
        evidence = PairedEvidence(margin)
        evidence.extend(sample)
        ours += evidence.p_value(Hypothesis.LOSS_BEYOND_MARGIN) <= POLICY.error_level
    note = f"true loss at the margin, {SMALL_ITEMS} items, {SMALL_RUNS} runs; a one-sided t test {textbook / SMALL_RUNS:.1%}"
    return judged("false EQUIVALENT on few items", 100 * ours / SMALL_RUNS, 100 * POLICY.error_level, "%", note)
