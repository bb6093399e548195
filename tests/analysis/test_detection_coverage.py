"""Do the intervals cover as often as they claim? By simulation from a population whose numbers are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from detection_samples import classes, detection, found, labelled, thing
from fewbits.analysis.detection import detection_metrics, match_detections
from fewbits.analysis.detection_matching import ClassMatches, Matches
from fewbits.analysis.detection_metrics import class_averages, mean_average
from fewbits.records.detection import Detection, LabelledObject

CLASSES = classes(1, 2, 3, 4, 5)
POPULATION, SET = 1200, 80


def population(seed: int) -> tuple[Matches, Matches]:
    """Return a reference and a worse variant on many images; hard images are hard for both."""
    rng = np.random.default_rng(seed)
    images, detections = [], ({}, {})  # type: ignore[var-annotated]
    for number in range(1, POPULATION + 1):
        hardness, objects = rng.normal(), []
        reported: tuple[list[Detection], list[Detection]] = ([], [])
        for _ in range(rng.integers(0, 6)):
            one = thing(int(rng.integers(1, 6)), *rng.random(2) * 400, *np.exp(rng.normal(4, 0.7, 2)))
            objects.append(one)
            shift, luck = rng.normal(0, 1, 4), rng.normal()
            for ones, noise, skill in zip(reported, (0.05, 0.08), (0.9, 0.4), strict=True):
                if skill + luck - 0.5 * hardness > -0.5:
                    ones.append(near(one, noise * (shift + rng.normal(0, 0.4, 4)), skill + luck - 0.5 * hardness))
        for ones in reported:
            ones += [alarm(rng) for _ in range(rng.poisson(2))]
        images.append(labelled(number, objects))
        for kept, ones in zip(detections, reported, strict=True):
            kept[number] = found(images[-1], ones)
    return match_detections(images, CLASSES, detections[0]), match_detections(images, CLASSES, detections[1])


def near(one: LabelledObject, shift: Any, confidence: float) -> Detection:
    x, y, width, height = one.bbox
    box = (x + shift[0] * width, y + shift[1] * height, width * np.exp(shift[2]), height * np.exp(shift[3]))
    return detection(one.category_id, float(1 / (1 + np.exp(-confidence))), *(float(side) for side in box))


def alarm(rng: np.random.Generator) -> Detection:
    box = (*rng.random(2) * 400, *(20 + rng.random(2) * 150))
    return detection(int(rng.integers(1, 6)), float(rng.beta(2, 4)), *(float(side) for side in box))


def only(matches: Matches, chosen: Any) -> Matches:
    """Return the matches of some images: what matching those images alone gives, since images do not touch each other."""
    place = np.full(len(matches.image_ids), -1)
    place[chosen] = np.arange(len(chosen))
    kept = {}
    for category_id, one in matches.classes.items():
        inside = place[one.images] >= 0
        kept[category_id] = ClassMatches(
            place[one.images[inside]], one.hits[:, :, inside], one.counted[:, :, inside], one.objects[:, chosen]
        )
    return Matches(tuple(matches.image_ids[index] for index in chosen), kept, 0)


def whole_map(matches: Matches) -> float:
    counts = np.ones((len(matches.image_ids), 1), dtype=int)
    return float(mean_average(class_averages(matches, CLASSES, counts)[:, :, 0]))


def coverage(repeats: int, resamples: int, seed: int) -> dict[str, float]:
    """Return how often the intervals of sets of 80 images hold the true value: what such sets show on average."""
    reference, variant = population(seed)
    rng = np.random.default_rng(seed + 1)
    sets = [np.sort(rng.choice(POPULATION, SET, replace=False)) for _ in range(repeats)]
    shown, values = [], []
    for chosen in sets:
        base, own = only(reference, chosen), only(variant, chosen)
        metrics = detection_metrics(own, CLASSES, reference=base, resamples=resamples)
        shown.append({"difference": metrics.difference, "retained": metrics.retained, "map_50_95": metrics.map_50_95})
        values.append((whole_map(base), whole_map(own)))
    base_mean, own_mean = np.mean(values, axis=0)
    # many classes or few images would make sets differ from the population itself; here they hardly do
    truth = {"difference": whole_map(variant) - whole_map(reference), "retained": own_mean / base_mean, "map_50_95": own_mean}
    held = {name: np.mean([one[name].low <= truth[name] <= one[name].high for one in shown]) for name in truth}  # type: ignore[union-attr]
    return {name: float(share) for name, share in held.items()}


def test_intervals_cover_about_as_often_as_they_claim() -> None:
    held = coverage(repeats=60, resamples=200, seed=3)
    assert all(0.85 <= share <= 1.0 for share in held.values()), held
    assert held["difference"] >= 0.87, held


@pytest.mark.slow
def test_intervals_cover_as_often_as_they_claim_in_many_repeats() -> None:
    held = coverage(repeats=200, resamples=500, seed=5)
    assert all(0.88 <= share <= 0.99 for share in held.values()), held
