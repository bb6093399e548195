"""Racing probes against simulations whose truth is known, and what the race promises."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest

from fewbits.analysis.knapsack import Choice, Option, choose
from fewbits.analysis.recipe_race import SCALE_OPTIONS, ProbeRace, SearchSettings, Wanted
from fewbits.core.errors import BackendError, SpecError
from fewbits.records.recipe import ExcludedOption

BITS = {"Q2_K": 2.625, "Q3_K": 3.4375, "IQ4_XS": 4.25, "Q4_0": 4.5, "Q4_K": 4.5, "Q5_K": 5.5, "Q6_K": 6.5625, "Q8_0": 8.5}
Key = tuple[str, str]


@dataclass(frozen=True)
class World:
    """Known divergences, and windows of a text that shows them with noise."""

    sizes: dict[str, dict[str, int]]
    truth: dict[Key, float]
    windows: dict[Key, np.ndarray]

    @property
    def budgets(self) -> dict[str, int]:
        """Two budgets: about 3.6 and 5 bits per weight."""
        least = sum(min(types.values()) for types in self.sizes.values())
        most = sum(max(types.values()) for types in self.sizes.values())
        return {"tight": int(least + 0.2 * (most - least)), "loose": int(least + 0.45 * (most - least))}

    def read(self, wanted: Wanted) -> list[float]:
        values: list[float] = self.windows[wanted.group, wanted.ggml_type].tolist()
        return values[wanted.first_window : wanted.first_window + wanted.windows]

    def exhaustive(self, budget: int) -> Choice:
        return choose(
            {
                group: [Option(name, size, float(self.windows[group, name].mean())) for name, size in types.items()]
                for group, types in self.sizes.items()
            },
            budget,
        )

    def true_cost(self, choice: Choice) -> float:
        return math.fsum(self.truth[pick] for pick in choice.picks.items())


def log_normal(random: np.random.Generator, sigma: float, count: int) -> np.ndarray:
    """Factors with mean 1."""
    return np.exp(random.normal(-sigma * sigma / 2, sigma, count))


def make_world(seed: int, groups: int, windows: int, *, own_noise: float = 0.2) -> World:
    """Divergences about four times smaller per bit, types of unlike quality; windows hard for all, some for a group, own noise"""
    random = np.random.default_rng(seed)
    hard = log_normal(random, 0.4, windows)
    sizes: dict[str, dict[str, int]] = {}
    truth: dict[Key, float] = {}
    seen: dict[Key, np.ndarray] = {}
    for place in range(groups):
        group = f"g{place:02d}"
        weights = int(random.choice([576 * 576 * 6, 576 * 192 * 6, 576 * 1536 * 6]))
        scale = math.exp(random.normal(0, 1.2)) * weights * 4e-10
        alike = log_normal(random, 0.1, windows)
        sizes[group] = {name: int(weights * bits / 8) for name, bits in BITS.items()}
        for name, bits in BITS.items():
            truth[group, name] = scale * 4 ** -(bits - 4) * math.exp(random.normal(0, 0.25))
            seen[group, name] = truth[group, name] * hard * alike * log_normal(random, own_noise, windows)
    return World(sizes, truth, seen)


def settings(**changes: int) -> SearchSettings:
    values = {"windows": 16, "first_windows": 4, "step_windows": 4, "resamples": 60, "seed": 0} | changes
    return SearchSettings(**values, level=0.95)


def race_through(world: World, chosen: SearchSettings) -> tuple[ProbeRace, int]:
    race = ProbeRace(world.sizes, world.budgets, chosen)
    read = 0
    while wanted := race.wanted():
        for step in wanted:
            race.add(step, world.read(step))
            read += step.windows
    return race, read


def test_racing_costs_next_to_nothing_and_reads_about_half() -> None:
    shares, losses = [], []
    for seed in range(10):
        world = make_world(seed, 12, 16)
        race, read = race_through(world, settings())
        shares.append(read / (16 * len(world.truth)))
        for name, choice in race.choices().items():
            best = world.exhaustive(world.budgets[name])
            assert choice.bytes <= world.budgets[name]
            losses.append(world.true_cost(choice) / world.true_cost(best) - 1)
    assert np.mean(shares) <= 0.6
    assert np.mean(np.array(losses) <= 0.02) >= 0.9
    assert np.mean(losses) < 0.01


def test_an_undecided_race_reads_every_window_of_what_is_live() -> None:
    """Two alike groups, room for one larger type: no number of windows settles which."""
    random = np.random.default_rng(4)
    sizes = {group: {"Q4_0": 10, "Q8_0": 20} for group in ("a", "b")}
    mean = {"Q4_0": 1.0, "Q8_0": 0.1}
    world = World(sizes, {}, {(group, name): mean[name] * log_normal(random, 0.8, 8) for group in sizes for name in mean})
    race = ProbeRace(sizes, {"b": 30}, settings(windows=8, first_windows=2, step_windows=2))
    while wanted := race.wanted():
        for step in wanted:
            race.add(step, world.read(step))
    assert race.stability()["b"].regret > 0.02
    assert {race.options()[group][name].windows for group in sizes for name in mean} == {8}


def test_the_same_readings_give_the_same_race() -> None:
    world = make_world(2, 6, 16)
    first, read = race_through(world, settings())
    second, again = race_through(world, settings())
    assert read == again
    assert first.choices() == second.choices()
    assert first.options() == second.options()
    assert first.stability() == second.stability()


def test_clear_options_stay_at_the_first_windows() -> None:
    world = make_world(3, 12, 16)
    race, _ = race_through(world, settings())
    windows = [estimate.windows for types in race.options().values() for estimate in types.values()]
    assert min(windows) == 4
    assert max(windows) > 4


def test_intervals_cover_the_truth() -> None:
    covered, options = [], []
    for seed in range(200):
        world = make_world(1000 + seed, 2, 12)
        race = ProbeRace(world.sizes, {"all": 10**12}, settings(windows=12, first_windows=12, resamples=200))
        for step in race.wanted():
            race.add(step, world.read(step))
        choice = race.choices()["all"]
        prediction = race.prediction(choice)
        assert prediction.low is not None
        assert prediction.high is not None
        covered.append(prediction.low <= world.true_cost(choice) <= prediction.high)
        estimate = race.options()["g00"]["Q4_K"]
        assert estimate.low is not None
        assert estimate.high is not None
        options.append(estimate.low <= world.truth["g00", "Q4_K"] <= estimate.high)
    assert 0.88 <= np.mean(covered) <= 0.99
    assert 0.88 <= np.mean(options) <= 0.99


def test_few_windows_are_put_on_the_scale_of_all() -> None:
    """An option that read only easy windows would look better than it is; the others say how easy they were."""
    hard = np.array([0.2, 0.2, 1.8, 1.8])
    race = ProbeRace(
        {"a": {"Q4_0": 10, "Q8_0": 20}, "b": {"Q4_0": 10, "Q8_0": 20}}, {"b": 30}, settings(windows=4, first_windows=2)
    )
    truth = {("a", "Q4_0"): 4.0, ("a", "Q8_0"): 1.0, ("b", "Q4_0"): 4.0, ("b", "Q8_0"): 1.0}
    for step in race.wanted():
        race.add(step, (truth[step.group, step.ggml_type] * hard[:2]).tolist())
    race.add(Wanted("b", "Q4_0", 2, 2), (4.0 * hard[2:]).tolist())
    assert race.options()["b"]["Q4_0"].kl == pytest.approx(4.0)
    assert race.options()["a"]["Q8_0"].kl == pytest.approx(1.0)  # read 0.2 alone


def test_a_certainly_dominated_type_is_dropped_with_a_reason() -> None:
    random = np.random.default_rng(0)
    hard = log_normal(random, 0.3, 8)
    kl = {"Q5_0": 0.01, "Q5_K": 0.002, "Q8_0": 0.001}
    sizes = {"g": {"Q5_0": 55, "Q5_K": 55, "Q8_0": 85}}
    race = ProbeRace(sizes, {"b": 60}, settings(windows=8))
    while wanted := race.wanted():
        for step in wanted:
            part = slice(step.first_window, step.first_window + step.windows)
            race.add(step, (kl[step.ggml_type] * hard[part] * log_normal(random, 0.05, 8)[part]).tolist())
    options = race.options()["g"]
    assert options["Q5_0"].excluded is ExcludedOption.DOMINATED
    assert "Q5_K" in options["Q5_0"].detail
    assert options["Q5_K"].excluded is None
    assert options["Q8_0"].excluded is None  # larger, so never dominated by a smaller one that diverges more
    assert race.choices()["b"].picks == {"g": "Q5_K"}


def test_what_a_failed_type_beat_stands_in_for_it() -> None:
    race = ProbeRace({"g": {"Q5_0": 55, "Q5_K": 55}}, {"b": 60}, settings())
    kl = {"Q5_0": 0.01, "Q5_K": 0.002}
    for step in race.wanted():
        race.add(step, [kl[step.ggml_type] * (1 + 0.01 * place) for place in range(4)])
    assert race.wanted() == (Wanted("g", "Q5_K", 4, 12),)
    assert race.choices()["b"].picks == {"g": "Q5_K"}
    race.fail("g", "Q5_K", "it crashed")
    assert race.choices()["b"].picks == {"g": "Q5_0"}
    assert race.options()["g"]["Q5_K"].kl is None


def test_a_failed_type_has_no_number_and_is_never_chosen() -> None:
    race = ProbeRace({"g": {"Q4_0": 10, "Q8_0": 20}}, {"b": 100}, settings())
    race.add(Wanted("g", "Q4_0", 0, 4), [0.1, 0.2, 0.1, 0.2])
    race.fail("g", "Q8_0", "the engine said no")
    assert [step.ggml_type for step in race.wanted()] == ["Q4_0"]
    failed = race.options()["g"]["Q8_0"]
    assert (failed.kl, failed.low, failed.high, failed.windows) == (None, None, None, 0)
    assert "the engine said no" in failed.detail
    assert race.choices()["b"].picks == {"g": "Q4_0"}


def test_a_group_without_any_type_left_ends_the_race() -> None:
    race = ProbeRace({"g": {"Q4_0": 10}}, {"b": 100}, settings())
    with pytest.raises(BackendError, match=r"probes of g.*crashed"):
        race.fail("g", "Q4_0", "crashed")


def test_a_budget_that_only_a_failed_type_met_is_impossible() -> None:
    race = ProbeRace({"g": {"Q4_0": 10, "Q8_0": 20}}, {"b": 15}, settings())
    with pytest.raises(SpecError, match="20 bytes"):
        race.fail("g", "Q4_0", "crashed")


def test_every_impossible_budget_is_named_before_anything_is_read() -> None:
    with pytest.raises(SpecError) as caught:
        ProbeRace({"g": {"Q4_0": 10}}, {"Q4_K_M": 5, "Q3_K_M": 3, "fine": 10}, settings())
    assert {problem.path for problem in caught.value.problems} == {"Q4_K_M", "Q3_K_M"}


def test_readings_below_nothing_count_as_nothing() -> None:
    race = ProbeRace({"g": {"Q8_0": 10}}, {"b": 10}, settings())
    race.add(Wanted("g", "Q8_0", 0, 4), [-1e-9, 0.0, -1e-12, 0.0])
    assert race.options()["g"]["Q8_0"].kl == 0.0
    prediction = race.prediction(race.choices()["b"])
    assert (prediction.value, prediction.low, prediction.high) == (0.0, 0.0, 0.0)


def test_first_windows_that_are_harder_than_the_text_do_not_mislead() -> None:
    hard = [3.0, 3.0, *[0.8] * 14]
    truth = {f"g{place}": 0.1 / (1 + place) for place in range(8)}
    race = ProbeRace({key: {"Q4_0": 10} for key in truth}, {"b": 100}, settings(first_windows=2))
    while wanted := race.wanted():
        for step in wanted:
            part = hard[step.first_window : step.first_window + step.windows]
            race.add(step, [truth[step.group] * factor for factor in part])
    read = sum(options["Q4_0"].windows for options in race.options().values())
    assert read == 8 * 2 + SCALE_OPTIONS * 14
    expected = sum(truth.values()) * sum(hard) / 16
    assert race.prediction(race.choices()["b"]).value == pytest.approx(expected, rel=1e-3)


def test_readings_must_follow_each_other() -> None:
    race = ProbeRace({"g": {"Q8_0": 10}}, {"b": 10}, settings())
    with pytest.raises(ValueError, match="does not follow"):
        race.add(Wanted("g", "Q8_0", 4, 4), [0.0] * 4)


def test_an_order_that_is_not_monotone_is_left_as_measured() -> None:
    race = ProbeRace({"g": {"Q4_0": 10, "Q5_0": 12}}, {"b": 12}, settings())
    kl = {"Q4_0": 0.001, "Q5_0": 0.01}  # near the source's own grid
    for step in race.wanted():
        race.add(step, [kl[step.ggml_type] * (1 + 0.01 * place) for place in range(4)])
    race.wanted()
    assert race.options()["g"]["Q5_0"].kl == pytest.approx(0.01015)
    assert race.options()["g"]["Q5_0"].excluded is ExcludedOption.DOMINATED
    assert race.choices()["b"].picks == {"g": "Q4_0"}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"windows": 1, "first_windows": 1}, "windows"),
        ({"first_windows": 1}, "first_windows"),
        ({"first_windows": 17}, "first_windows"),
        ({"step_windows": 0}, "step_windows"),
        ({"resamples": 3}, "resamples"),
    ],
)
def test_settings_out_of_range_are_named(changes: dict[str, int], name: str) -> None:
    with pytest.raises(SpecError) as caught:
        ProbeRace({"g": {"Q8_0": 10}}, {"b": 10}, settings(**changes))
    assert name in {problem.path for problem in caught.value.problems}


def test_no_groups_and_groups_without_types_are_refused() -> None:
    with pytest.raises(SpecError, match="nothing to choose"):
        ProbeRace({}, {"b": 10}, settings())
    with pytest.raises(SpecError, match="no type is left"):
        ProbeRace({"g": {}}, {"b": 10}, settings())
