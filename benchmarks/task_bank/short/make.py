"""Write `tasks.json` beside this file: many short tasks from templates, for decisions that need hundreds of paired items.

    python -m benchmarks.task_bank.short.make

Each task asks for a word, a number or a small object and has one check that only a short, right answer passes; so an item takes a
small model a fraction of a second and its outcome is 0 or 1. Same words in, same file out: a test compares.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BANK = Path(__file__).parent / "tasks.json"
SEED = 20260221
PER_FAMILY = 20
MAX_TOKENS = 24


def words(text: str) -> list[str]:
    """Read `a b c` as a list."""
    return text.split()


NAMES = words("Anna Ben Clara David Emma Felix Grace Henry Irene Jonas Kate Leo Maria Noah Olga Paul Rosa Sam Tina Victor")
CITIES = words("Oslo Lisbon Vienna Dublin Prague Madrid Athens Warsaw Helsinki Zurich Naples Bergen Lyon Porto Krakow Geneva")
JOBS = words("nurse teacher baker pilot farmer lawyer plumber dentist painter driver cook tailor singer editor gardener judge")
THINGS = words("car door cup chair house shirt boat lamp book bag coat bike table box hat roof")
COLOURS = words("red blue green yellow black white brown grey purple orange")
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
OPPOSITES = (
    "hot cold, big small, open closed, early late, full empty, fast slow, high low, light dark, hard soft, rich poor, old new, "
    "clean dirty, strong weak, happy sad, long short, near far, wet dry, loud quiet, true false, left right, day night, "
    "win lose, buy sell, push pull"
)
PLURALS = (
    "cat cats, dog dogs, box boxes, bus buses, city cities, baby babies, child children, man men, woman women, foot feet, "
    "tooth teeth, mouse mice, leaf leaves, knife knives, wife wives, tree trees, dish dishes, hero heroes, lady ladies, "
    "glass glasses, book books, brush brushes"
)
CAPITALS = (
    "France Paris, Italy Rome, Spain Madrid, Germany Berlin, Japan Tokyo, Russia Moscow, China Beijing, Egypt Cairo, "
    "Greece Athens, "
    "Austria Vienna, Ireland Dublin, Norway Oslo, Sweden Stockholm, Finland Helsinki, Poland Warsaw, Portugal Lisbon, "
    "Hungary Budapest, Cuba Havana, Peru Lima, Canada Ottawa, Turkey Ankara, Kenya Nairobi"
)
GOOD = (
    "The food was wonderful|I love this phone|What a great film|The staff was kind and helpful|Best holiday of my life|"
    "It works perfectly|A beautiful, warm room|I would buy it again|The concert was amazing|Fast delivery and a lovely gift"
)
BAD = (
    "The food was awful|I hate this phone|What a boring film|The staff was rude|Worst holiday of my life|It broke after one day|"
    "A dirty, cold room|I want my money back|The concert was terrible|Late delivery and a broken gift"
)
KINDS = {
    "a fruit or a vegetable": (
        "apple fruit, banana fruit, carrot vegetable, pear fruit, cabbage vegetable, grape fruit, spinach vegetable"
    ),
    "an animal or a plant": "dog animal, rose plant, horse animal, oak plant, tiger animal, tulip plant, rabbit animal",
    "a bird or a fish": "eagle bird, salmon fish, sparrow bird, trout fish, owl bird, shark fish, robin bird",
}


def pairs(text: str) -> list[tuple[str, str]]:
    """Read `a b, c d` as pairs."""
    return [(first, second) for first, second in (item.split() for item in text.split(","))]


def says(value: str, *others: str) -> dict[str, Any]:
    """A check for one short line that holds `value` as a word and none of `others`."""
    forbidden = "".join(rf"(?!.*(?<!\w){re.escape(other)}(?!\w))" for other in others)
    pattern = rf"\A\s*{forbidden}(?=.{{1,60}}\s*\Z)[^\n?]*(?<!\w){re.escape(value)}(?!\w)[^\n?]*\Z"
    return {"kind": "regex", "pattern": pattern, "ignore_case": True}


def word(prompt: str, value: str, *others: str, wrong: tuple[str, ...] = ()) -> dict[str, Any]:
    """A task whose answer is a word or a number; naming one of `others` beside it is wrong, and so are the words of `wrong`."""
    return {
        "prompt": prompt,
        "checks": [says(value, *others)],
        "reference_answer": value,
        "wrong_answers": [*others, *wrong, "I am not sure."],
    }


def extraction(rng: random.Random) -> Iterator[tuple[str, dict[str, Any]]]:
    """What stands in a sentence."""
    for _ in range(PER_FAMILY):
        name, city, job = rng.choice(NAMES), rng.choice(CITIES), rng.choice(JOBS)
        where = f"{name} lives in {city} and works as a {job}. In which city does {name} live? Reply with the city only."
        yield "city", word(where, city, job)
        name, city, job = rng.choice(NAMES), rng.choice(CITIES), rng.choice(JOBS)
        what = f"{name} moved to {city} and works there as a {job}. What is {name}'s job? Reply with one word."
        yield "job", word(what, job, city)
        thing, colour, other = rng.choice(THINGS), *rng.sample(COLOURS, 2)
        which = f"The {thing} is {colour}. What colour is the {thing}? Reply with one word."
        yield "colour", word(which, colour, wrong=(other,))
        price, days = str(rng.randrange(11, 99)), str(rng.randrange(2, 10))
        ticket = f"The ticket costs {price} euros and is valid for {days} days."
        yield "price", word(f"{ticket} How many euros does it cost? Reply with the number only.", price, days)
        name, code = rng.choice(NAMES), rng.randrange(1000, 9999)
        yield "code", word(f"{name}'s door code is {code}. What is the door code?", str(code), wrong=(str(code + 1),))


def logic(rng: random.Random) -> Iterator[tuple[str, dict[str, Any]]]:
    """Small facts and small sums."""
    for a, b in rng.sample([(a, b) for a in range(2, 10) for b in range(2, 10)], PER_FAMILY):
        yield "sum", word(f"What is {a} + {b}? Reply with the number only.", str(a + b), wrong=(str(a + b + 1),))
    for number in sorted(rng.sample(range(10, 99), PER_FAMILY)):
        yield "next", word(f"Which number comes right after {number}?", str(number + 1), wrong=(str(number - 1),))
    for first, second in rng.sample(pairs(OPPOSITES), PER_FAMILY):
        yield "opposite", word(f'What is the opposite of "{first}"? Reply with one word.', second, wrong=(first,))
    for one, many in rng.sample(pairs(PLURALS), PER_FAMILY):
        yield "plural", word(f'What is the plural of "{one}"? Reply with one word.', many, wrong=(one,))
    for country, capital in rng.sample(pairs(CAPITALS), PER_FAMILY):
        yield "capital", word(f"What is the capital of {country}? Reply with one word.", capital, wrong=(country,))
    for relation, step in (("after", 1), ("before", -1)):
        for number, day in enumerate(DAYS):
            right, other = (DAYS[(number + shift) % 7] for shift in (step, -step))
            yield "day", word(f"Which day comes right {relation} {day}? Reply with one word.", right, other)
    yield from judgements()


def judgements() -> Iterator[tuple[str, dict[str, Any]]]:
    """One of two words that the question names."""
    for texts, value, other in ((GOOD, "positive", "negative"), (BAD, "negative", "positive")):
        for text in texts.split("|"):
            yield "review", word(f'Is this review positive or negative? "{text}." Reply with one word.', value, other)
    for question, members in KINDS.items():
        options = re.findall(r"an? (\w+)", question)
        for member, kind in pairs(members):
            other = next(option for option in options if option != kind)
            article = "an" if member[0] in "aeiou" else "a"
            yield "kind", word(f"Is {article} {member} {question}? Reply with one word.", kind, other)


def structured(rng: random.Random) -> Iterator[tuple[str, dict[str, Any]]]:
    """Small objects."""
    for _ in range(PER_FAMILY):
        name, age = rng.choice(NAMES), rng.randrange(18, 80)
        prompt = f'{name} is {age} years old. Write this as JSON with the keys "name" and "age".'
        yield "person", _object(prompt, {"name": name, "age": age})
    for country, capital in rng.sample(pairs(CAPITALS), PER_FAMILY):
        prompt = f'{capital} is a city in {country}. Write this as JSON with the keys "city" and "country".'
        yield "place", _object(prompt, {"city": capital, "country": country})


def _object(prompt: str, value: dict[str, Any]) -> dict[str, Any]:
    half = dict(list(value.items())[:1])
    return {
        "prompt": prompt,
        "checks": [{"kind": "json_equals", "value": value}],
        "reference_answer": json.dumps(value),
        "wrong_answers": [json.dumps(half), "Here is the JSON you asked for."],
    }


def bank() -> dict[str, Any]:
    """The whole bank; a prompt that a template made twice is kept once."""
    rng = random.Random(SEED)
    tasks: list[dict[str, Any]] = []
    seen: set[str] = set()
    made_by_bucket = {"extraction": extraction(rng), "logic": logic(rng), "structured_output": structured(rng)}
    for bucket, made in made_by_bucket.items():
        for family, task in made:
            if task["prompt"] in seen:
                continue
            seen.add(task["prompt"])
            number = sum(other["tags"] == [family] for other in tasks) + 1
            head = {"id": f"{family}-{number:02d}", "revision": 1, "bucket": bucket, "tier": 1, "max_tokens": MAX_TOKENS}
            tasks.append({**head, **task, "tags": [family]})
    return {
        "schema_version": "fewbits.task_bank.v1",
        "name": "short",
        "version": "1",
        "description": "Short tasks from templates, one check each: for paired decisions that need hundreds of items.",
        "license": "Apache-2.0",
        "tasks": tasks,
    }


def render() -> str:
    """The file's text."""
    return json.dumps(bank(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    BANK.write_text(render(), encoding="utf-8")
