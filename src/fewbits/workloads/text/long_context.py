"""Tasks that grow with the context: the same questions in ever longer texts, so that only the length changes.

Three kinds, all scored by the ordinary checks:

- *recall*: a fact at a known depth, with others of its kind at the other depths, asked for at the end;
- *collection*: one fact at every depth, all asked for together (each found one counts);
- *extraction*: a task of a bank whose source passage stands as a numbered document at a known depth.

The rest is filler: plain sentences drawn from word lists, without a digit and without a name that a fact uses. Everything is
drawn by hashes of the seed, so no library version changes a byte; questions, facts and names do not depend on the context.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fewbits.core.errors import SpecError
from fewbits.records.base import Bucket
from fewbits.records.context import LongTaskKind, TokenDensity, long_task_id
from fewbits.records.task import Check, RegexCheck, Task, TaskBank

FILL_TARGET = 0.9
"""Share of the context, less the room for the answer, that a prompt is made to fill. The rest is slack for the estimate."""
TASK_MARGIN = 1.15
"""Questions and passages differ in how densely they are cut into tokens: their estimate is raised by this factor."""
MIN_FILLER_CHARACTERS = 200
"""With less filler than this a task has no depth worth the name."""
ASSUMED_FILLER_TOKENS_PER_CHARACTER = 0.30
ASSUMED_TASK_TOKENS_PER_CHARACTER = 0.50
ASSUMED_TEMPLATE_TOKENS = 64
"""Without token counts: more than the tokenizers of SmolLM2, Qwen2.5 and Llama 3 need for this text (0.19 to 0.22 and about
0.3), so that prompts rather stay short than get cut."""
SPARSEST = TokenDensity(
    model_id="",
    measured=False,
    detail="fewer tokens than any tokenizer makes of such texts",
    template_tokens=0,
    filler_tokens_per_character=0.1,
    task_tokens_per_character=0.15,
)
"""To refuse a context before any engine was asked: what does not fit with these does not fit at all."""
RECALL_TOKENS = 32
CODE_TOKENS = 12
"""Room for one code in a list: five digits may be five tokens."""
_PARAGRAPH_SENTENCES = 6
_TIER = 2
_OPENING = "Read the following text. A question about it comes at the end.\n\n"
_INSTRUCTION = re.compile(
    r"\?|\b(reply|answer|list|give|write|return|extract|name|convert|copy|count|fill)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class LongTaskPlan:
    """What a bank of long tasks is made from, at any context."""

    depths: tuple[float, ...]
    """0..1, ascending."""
    tasks_per_depth: int
    """Of recall and of extraction; and so many collections in all."""
    seed: int
    answer_tokens: int
    """Upper limit of the room for an answer."""
    sources: tuple[Task, ...]
    """Extraction tasks that `extraction_sources` chose."""


@dataclass(frozen=True, slots=True)
class Blueprint:
    """A long task without its filler: what is inserted where, and what is asked at the end."""

    task_id: str
    kind: LongTaskKind
    inserts: tuple[tuple[float, str], ...]
    """(depth, text), ascending."""
    question: str
    checks: tuple[Check, ...]
    reference_answer: str
    wrong_answers: tuple[str, ...]
    answer_tokens: int
    system: str = ""
    tags: tuple[str, ...] = ()

    @property
    def fixed_text(self) -> str:
        """Everything but the filler."""
        return _OPENING + "".join(text for _, text in self.inserts) + self.question


def extraction_sources(bank: TaskBank, wanted: int) -> tuple[Task, ...]:
    """Choose the extraction tasks that can be put into a longer text, easiest first, at most `wanted`.

    Such a task has its source passage, a blank line, and last the paragraph that says what to do. Easiest first, because what is
    measured is what length does to a task that the model can do: one that it fails anyway shows nothing.
    """
    usable = [task for task in bank.tasks if task.bucket is Bucket.EXTRACTION and _split(task.prompt) is not None]
    return tuple(sorted(usable, key=lambda task: (int(task.tier), task.id))[:wanted])


def _split(prompt: str) -> tuple[str, str] | None:
    """Return passage and instruction, or `None` where the last paragraph does not look like an instruction."""
    passage, separator, instruction = prompt.strip().rpartition("\n\n")
    if not separator or not passage.strip() or not _INSTRUCTION.search(instruction):
        return None
    return passage.strip(), instruction.strip()


def blueprints(plan: LongTaskPlan) -> tuple[Blueprint, ...]:
    """Return every task of the plan, in the order in which they are asked: kinds and depths take turns."""
    made: list[Blueprint] = []
    sources = iter(plan.sources)
    for number in range(1, plan.tasks_per_depth + 1):
        for depth in plan.depths:
            made.append(_recall(plan, depth, number))
            source = next(sources, None)
            if source is not None:
                made.append(_extraction(plan, source, depth, number))
        made.append(_collection(plan, number))
    return tuple(made)


def _recall(plan: LongTaskPlan, depth: float, number: int) -> Blueprint:
    task_id = long_task_id(LongTaskKind.RECALL, depth, number)
    facts = _facts(plan, task_id)
    asked, code = facts[plan.depths.index(depth)]
    others = [other for _, other in facts if other != code]
    return Blueprint(
        task_id=task_id,
        kind=LongTaskKind.RECALL,
        inserts=_inserted(plan, facts),
        question=f"Question: What is the access code of the {asked} archive? Answer with the code only.",
        checks=(RegexCheck(pattern=_only_code(code)),),
        reference_answer=code,
        wrong_answers=("The text does not say.", *others[:1], *(f"{code} or {other}" for other in others[:1])),
        answer_tokens=min(RECALL_TOKENS, plan.answer_tokens),
        tags=("long-context", "recall"),
    )


def _only_code(code: str) -> str:
    """A pattern that finds the code in an answer which holds no other five-digit number."""
    return rf"\A(?=[\s\S]*(?<!\d){code}(?!\d))(?![\s\S]*(?<!\d)(?!{code}(?!\d))\d{{5}}(?!\d))"


def _collection(plan: LongTaskPlan, number: int) -> Blueprint:
    task_id = long_task_id(LongTaskKind.COLLECTION, None, number)
    facts = _facts(plan, task_id)
    names = [f"the {name} archive" for name, _ in facts]
    codes = [code for _, code in facts]
    listed = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
    return Blueprint(
        task_id=task_id,
        kind=LongTaskKind.COLLECTION,
        inserts=_inserted(plan, facts),
        question=f"Question: What are the access codes of {listed}? List the codes only, separated by commas.",
        checks=tuple(RegexCheck(pattern=rf"(?<!\d){code}(?!\d)") for code in codes),
        reference_answer=", ".join(codes),
        wrong_answers=("The text does not say.", ", ".join(code[::-1] for code in codes)),
        answer_tokens=min(RECALL_TOKENS + CODE_TOKENS * len(codes), plan.answer_tokens),
        tags=("long-context", "collection"),
    )


def _extraction(plan: LongTaskPlan, source: Task, depth: float, number: int) -> Blueprint:
    parts = _split(source.prompt)
    if parts is None:
        raise SpecError.single(source.id, "this task has no passage that could be moved", "choose it with extraction_sources")
    passage, instruction = parts
    label = 10 + _draw(f"{plan.seed}\n{source.id}\ndocument") % 90
    return Blueprint(
        task_id=long_task_id(LongTaskKind.EXTRACTION, depth, number),
        kind=LongTaskKind.EXTRACTION,
        inserts=((depth, f"\n\nDocument {label}:\n{passage}\nEnd of document {label}.\n\n"),),
        question=f"The rest of the text does not matter: use document {label} only.\n{instruction}",
        checks=source.checks,
        reference_answer=source.reference_answer,
        wrong_answers=source.wrong_answers,
        answer_tokens=min(source.max_tokens or plan.answer_tokens, plan.answer_tokens),
        system=source.system,
        tags=("long-context", "extraction", source.id),
    )


def _facts(plan: LongTaskPlan, task_id: str) -> list[tuple[str, str]]:
    """Draw one (name, code) for each depth; names and codes are all different."""
    key = f"{plan.seed}\n{task_id}"
    names = sorted(_NAMES, key=lambda name: _draw(f"{key}\nname\n{name}"))[: len(plan.depths)]
    codes: list[str] = []
    turn = 0
    while len(codes) < len(plan.depths):
        code = str(10_000 + _draw(f"{key}\ncode\n{turn}") % 90_000)
        turn += 1
        # a code that reads the same backwards would make a wrong answer right
        if code not in codes and code[::-1] not in codes and code != code[::-1]:
            codes.append(code)
    return list(zip(names, codes, strict=True))


def _inserted(plan: LongTaskPlan, facts: Sequence[tuple[str, str]]) -> tuple[tuple[float, str], ...]:
    return tuple(
        (depth, f"The access code of the {name} archive is {code}.")
        for depth, (name, code) in zip(plan.depths, facts, strict=True)
    )


# --- length ----------------------------------------------------------------------------------------------------------


def long_bank(plan: LongTaskPlan, context: int, density: TokenDensity) -> TaskBank:
    """Return the tasks written out for a context: the same bytes for the same arguments.

    Raises `SpecError` when the context has no room for a task and some filler.
    """
    return TaskBank(
        name=f"long-context-{context}",
        version=f"seed{plan.seed}",
        description=(
            f"Recall, collection and extraction in texts that fill {FILL_TARGET:.0%} of a context of {context} tokens less the "
            "room for the answer. Written by fewbits context sweep."
        ),
        license="as the bank that the extraction passages come from",
        tasks=tuple(_written_out(plan, blueprint, context, density) for blueprint in blueprints(plan)),
    )


def filler_characters(blueprint: Blueprint, context: int, density: TokenDensity) -> int:
    """Return how much filler brings a prompt to its target length. Raises `SpecError` when there is no room for any."""
    fixed = density.template_tokens + math.ceil(len(blueprint.fixed_text) * density.task_tokens_per_character * TASK_MARGIN)
    left = FILL_TARGET * (context - blueprint.answer_tokens) - fixed
    characters = int(left / density.filler_tokens_per_character)
    if characters < MIN_FILLER_CHARACTERS:
        needed = fixed + MIN_FILLER_CHARACTERS * density.filler_tokens_per_character
        smallest = math.ceil(needed / FILL_TARGET) + blueprint.answer_tokens
        message = f"{context} tokens are too few for {blueprint.task_id}, which needs about {smallest}"
        raise SpecError.single("--contexts", message, "start with a larger context")
    return characters


def _written_out(plan: LongTaskPlan, blueprint: Blueprint, context: int, density: TokenDensity) -> Task:
    characters = filler_characters(blueprint, context, density)
    text = _with_inserts(filler_sentences(f"{plan.seed}\n{blueprint.task_id}", characters), blueprint.inserts)
    return Task(
        id=blueprint.task_id,
        bucket=Bucket.EXTRACTION,
        tier=_TIER,
        prompt=f"{_OPENING}{text}\n\n{blueprint.question}",
        system=blueprint.system,
        max_tokens=blueprint.answer_tokens,
        checks=blueprint.checks,
        reference_answer=blueprint.reference_answer,
        wrong_answers=blueprint.wrong_answers,
        tags=blueprint.tags,
    )


def _with_inserts(sentences: Sequence[str], inserts: Sequence[tuple[float, str]]) -> str:
    """Lay the sentences out in paragraphs, with each insert before the sentence that its depth names."""
    places: dict[int, list[str]] = {}
    for depth, text in inserts:
        places.setdefault(round(depth * len(sentences)), []).append(text)
    pieces: list[str] = []
    for index in range(len(sentences) + 1):
        pieces += places.get(index, [])
        if index < len(sentences):
            pieces.append(sentences[index] + ("\n\n" if (index + 1) % _PARAGRAPH_SENTENCES == 0 else ""))
    joined = " ".join(pieces)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r" *\n\n *", "\n\n", joined)).strip()


def filler_sentences(key: str, characters: int) -> tuple[str, ...]:
    """Draw sentences until they have so many characters, blanks counted. A larger number only adds sentences at the end."""
    sentences: list[str] = []
    length = 0
    for sentence in _sentences(key):
        length += len(sentence) + 1
        if length > characters:
            return tuple(sentences)
        sentences.append(sentence)
    return tuple(sentences)


# --- how long is a character -----------------------------------------------------------------------------------------


def calibration_prompts(plan: LongTaskPlan, context: int) -> tuple[str, str, str]:
    """Return three prompts for counting tokens: a little filler, more filler, and what is no filler. All fit the context."""
    more = min(6000, round(context * 1.5))
    fixed = "\n".join(blueprint.fixed_text for blueprint in blueprints(plan))
    key = f"{plan.seed}\ncalibration"
    few = " ".join(filler_sentences(f"{key}\nfew", min(300, more // 3)))
    many = " ".join(filler_sentences(f"{key}\nmany", more))
    return few, many, fixed[: min(4000, context)]


def measured_density(model_id: str, prompts: tuple[str, str, str], tokens: Sequence[int | None]) -> TokenDensity:
    """Work the densities out from the prompt tokens that the engine counted; assumed ones where the counts make no sense."""
    few, many, fixed = (count if count is not None else math.nan for count in tokens)
    slope = (many - few) / (len(prompts[1]) - len(prompts[0]))
    template = few - slope * len(prompts[0])
    of_tasks = (fixed - max(0.0, template)) / len(prompts[2])
    if not (0.01 < slope <= 4 and 0.01 < of_tasks <= 4 and template > -0.1 * few):
        counted = ", ".join("none" if count is None else str(count) for count in tokens)
        return assumed_density(model_id, f"the engine counted {counted} tokens for three texts, which makes no sense")
    return TokenDensity(
        model_id=model_id,
        measured=True,
        detail=f"{few:.0f}, {many:.0f} and {fixed:.0f} tokens for {', '.join(str(len(prompt)) for prompt in prompts)} characters",
        template_tokens=max(0, math.ceil(template)),
        filler_tokens_per_character=round(slope, 6),
        task_tokens_per_character=round(of_tasks, 6),
    )


def assumed_density(model_id: str, why: str) -> TokenDensity:
    """Return cautious densities for an engine that counts no tokens."""
    return TokenDensity(
        model_id=model_id,
        measured=False,
        detail=why,
        template_tokens=ASSUMED_TEMPLATE_TOKENS,
        filler_tokens_per_character=ASSUMED_FILLER_TOKENS_PER_CHARACTER,
        task_tokens_per_character=ASSUMED_TASK_TOKENS_PER_CHARACTER,
    )


def densest(densities: Sequence[TokenDensity]) -> TokenDensity:
    """Return the densest cut of each text over several models: tasks that fit this one fit all of them."""
    first = max(densities, key=lambda density: density.filler_tokens_per_character)
    return TokenDensity(
        model_id=first.model_id,
        measured=all(density.measured for density in densities),
        detail=first.detail,
        template_tokens=max(density.template_tokens for density in densities),
        filler_tokens_per_character=first.filler_tokens_per_character,
        task_tokens_per_character=max(density.task_tokens_per_character for density in densities),
    )


# --- words -----------------------------------------------------------------------------------------------------------


def _draw(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8])


def _numbers(key: str) -> Iterator[int]:
    """Yield an endless stream of 16-bit numbers."""
    block = 0
    while True:
        data = hashlib.sha256(f"{key}\n{block}".encode()).digest()
        for place in range(0, len(data), 2):
            yield int.from_bytes(data[place : place + 2])
        block += 1


def _sentences(key: str) -> Iterator[str]:
    """Yield an endless stream of sentences."""
    numbers = _numbers(f"filler\n{key}")

    def pick(words: Sequence[str]) -> str:
        return words[next(numbers) % len(words)]

    while True:
        form = pick(_FORMS)
        words = {slot: pick(choices) for slot, choices in _SLOTS.items() if f"{{{slot}}}" in form}
        sentence = form.format_map(words)
        yield sentence[0].upper() + sentence[1:]


_FORMS = (
    "the {who} of the {place} {did} the {what} {when}.",
    "{when} the {who} {did} a {how} {what} near the {place}.",
    "nobody in the {place} remembered why the {who} {did} the {what}.",
    "the {what} beside the {place} looked {how} {when}.",
    "a {how} {what} stood in the {place}, and the {who} {did} it without a word.",
    "it was said that the {who} {did} every {what} of the {place}.",
    "because the {place} was {how}, the {who} {did} the {what} {when}.",
    "the {who} asked whether the {what} belonged to the {place} or to the {other}.",
    "between the {place} and the {other} lay a {how} path that only the {who} used.",
    "{when} there was little to see in the {place} but a {how} {what}.",
    "the {who} and the {second} {did} the {what} together, although it was {how}.",
    "most visitors of the {place} never noticed the {how} {what} behind the {other}.",
    "the {second} told the {who} that the {place} would soon be {how}.",
    "if the {what} had been {how}, the {who} would have stayed in the {place}.",
)
_PLACES = (
    "harbour", "market hall", "old mill", "village school", "botanical garden", "railway station", "chapel", "library",
    "boatyard", "orchard", "town hall", "bakery", "lighthouse", "quarry", "theatre", "hospital", "courtyard", "brewery",
    "greenhouse", "post office", "weaving mill", "river bank", "monastery", "observatory", "pottery", "vineyard",
    "meadow", "foundry", "tannery", "concert hall", "sawmill", "customs house",
)  # fmt: skip
_PEOPLE = (
    "carpenter", "gardener", "teacher", "clockmaker", "ferryman", "baker", "painter", "surveyor", "doctor", "shepherd",
    "librarian", "printer", "weaver", "fisherman", "conductor", "blacksmith", "tailor", "musician", "porter", "beekeeper",
    "lawyer", "potter", "mason", "sailor", "apprentice", "cook", "innkeeper", "geologist", "translator", "widow",
)  # fmt: skip
_THINGS = (
    "bridge", "wooden gate", "stone wall", "rowing boat", "ladder", "staircase", "map", "curtain", "barrel", "lantern",
    "piano", "cart", "window", "bench", "roof", "well", "portrait", "basket", "fence", "bell", "chimney", "table",
    "mirror", "rope", "clock", "kettle", "carpet", "engine", "letter", "statue", "shelf", "fountain",
)  # fmt: skip
_DEEDS = (
    "repaired", "sold", "described", "painted", "measured", "forgot", "moved", "admired", "cleaned", "borrowed", "drew",
    "hid", "praised", "replaced", "inspected", "closed", "polished", "returned", "mentioned", "carried", "opened",
    "examined", "decorated", "lost",
)  # fmt: skip
_QUALITIES = (
    "quiet", "narrow", "bright", "dusty", "warm", "empty", "crooked", "handsome", "damp", "heavy", "modest", "strange",
    "colourful", "cold", "neglected", "famous", "plain", "steep", "gentle", "crowded", "pale", "solid", "muddy", "fragile",
)  # fmt: skip
_TIMES = (
    "in early spring", "on a rainy evening", "before the holidays", "after the harvest", "during the long winter",
    "late in the afternoon", "at the end of summer", "every other morning", "shortly before midnight", "in those years",
    "while the others slept", "on the day of the fair", "some weeks later", "as soon as the fog lifted", "once a month",
    "when the wind turned",
)  # fmt: skip
_SLOTS = {
    "place": _PLACES,
    "other": tuple(reversed(_PLACES)),
    "who": _PEOPLE,
    "second": tuple(reversed(_PEOPLE)),
    "what": _THINGS,
    "did": _DEEDS,
    "how": _QUALITIES,
    "when": _TIMES,
}
_NAMES = (
    "Marlin", "Osprey", "Heron", "Falcon", "Kestrel", "Lapwing", "Petrel", "Plover", "Puffin", "Curlew", "Dunlin", "Gannet",
    "Merlin", "Bittern", "Avocet", "Cobalt", "Garnet", "Topaz", "Onyx", "Beryl", "Jasper", "Opal", "Zircon", "Basalt",
    "Quartz", "Amber", "Juniper", "Cedar", "Hazel", "Linden", "Rowan", "Alder", "Aspen", "Sorrel", "Saffron", "Tansy",
    "Orion", "Lyra", "Cygnus", "Draco", "Hydra", "Auriga", "Corvus", "Pavo",
)  # fmt: skip
"""No filler sentence holds one of these."""
MAX_DEPTHS = len(_NAMES)
