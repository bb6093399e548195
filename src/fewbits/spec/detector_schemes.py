"""Tags of detector variants: `FP32`, `W8A8`, `W4A8-naive+fold`, `W4A8-mixed4.5`, `W4A8-qat`; read, checked, written back.

`W<bits>A<bits>` alone means the best known steps for that width. `-naive` means the runbook's own quantizers and nothing else;
`+step` adds named steps to it. `-mixed<bits>` gives each layer its own bits, under that average; `-qat` trains shortly after.
Tags are read in upper and lower case; `scheme_tag` writes the one spelling that files and reports have.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from fewbits.core.errors import Problem, SpecError
from fewbits.records.detector_quant import LadderRow, Recipe, Step

FLOAT_TAG = "FP32"
SPARED_BITS = 8
"""Weight bits of layers that a step spares."""
FLOAT_ACTIVATION_BITS = 16
"""As the runbook writes float activations: A16."""

_TAG = re.compile(
    r"w(?P<weights>[2-8])a(?P<activations>8|16)(?P<naive>-naive)?(?P<steps>(?:\+[a-z-]+?)*)"
    r"(?:-mixed(?P<budget>\d(?:\.\d+)?))?(?P<tuned>-qat)?"
)
_SPARING = (Step.SPARE_DISTRIBUTION, Step.SPARE_ENDS, Step.SPARE_DEPTHWISE)
_BEST_AT_8 = (Step.FOLD, Step.PER_CHANNEL, Step.UNSIGNED, Step.WEIGHTED, Step.BIAS)
_BEST_BELOW = (
    Step.FOLD,
    Step.PER_CHANNEL,
    Step.CLIP,
    Step.UNSIGNED,
    Step.WEIGHTED,
    *_SPARING,
    Step.GPTQ,
    Step.TARGET,
    Step.BIAS,
)
_ROUNDINGS = (Step.GPTQ, Step.BREVITAS_GPTQ, Step.BREVITAS_GPFQ, Step.LEARNED)
_NEEDS: dict[Step, tuple[Step, str]] = {
    Step.EQUALIZE: (Step.FOLD, "ranges move between weights and biases"),
    Step.CLIP: (Step.PER_CHANNEL, "there is one scale per channel to shrink"),
    Step.GPTQ: (Step.PER_CHANNEL, "a tensor-wide scale cannot be fitted row by row"),
    Step.TARGET: (Step.PER_CHANNEL, "fitted weights need scales of their own"),
    Step.LEARNED: (Step.PER_CHANNEL, "a tensor-wide scale cannot be fitted row by row"),
    Step.WEIGHTED: (Step.PER_CHANNEL, "the runbook's quantizers take no statistics of ours"),
    Step.BIAS: (Step.FOLD, "a convolution before a batch norm has no bias"),
    Step.BREVITAS_BIAS: (Step.FOLD, "a convolution before a batch norm has no bias"),
}


def parse_scheme(tag: str, where: str = "--schemes") -> Recipe | None:
    """Read a tag in any case; `None` is the float model. Raises `SpecError` with every problem of the tag."""
    if tag.upper() == FLOAT_TAG:
        return None
    found = _TAG.fullmatch(tag.lower())
    if found is None:
        hint = "for example FP32, W8A8, W4A8, W4A8-naive, W4A8-naive+fold+per-channel, W4A8-mixed4.5, W4A8-qat"
        raise SpecError.single(where, f"{tag!r} is no detector scheme", hint)
    words = [word for word in found["steps"].split("+") if word]
    problems = _word_problems(tag, words, where)
    bits, activations = int(found["weights"]), int(found["activations"])
    steps = tuple(step for step in Step if step.value in words)
    if not found["naive"]:
        if words:
            problems.append(Problem(where, f"{tag!r} adds steps to nothing", f"write {tag.replace('+', '-naive+', 1)}"))
        steps = _best_steps(bits, activations)
    budget = float(found["budget"]) if found["budget"] else None
    recipe = Recipe(weight_bits=bits, activation_bits=activations, steps=steps, budget_bits=None, tuned=bool(found["tuned"]))
    problems += [Problem(where, f"{tag!r}: {message}", hint) for message, hint in _conflicts(recipe, budget)]
    if problems:
        raise SpecError(problems)
    return Recipe(weight_bits=bits, activation_bits=activations, steps=steps, budget_bits=budget, tuned=bool(found["tuned"]))


def _best_steps(bits: int, activations: int) -> tuple[Step, ...]:
    steps = _BEST_AT_8 if bits == SPARED_BITS else _BEST_BELOW
    return tuple(step for step in steps if activations != FLOAT_ACTIVATION_BITS or step is not Step.UNSIGNED)


def _word_problems(tag: str, words: Sequence[str], where: str) -> list[Problem]:
    known = [step.value for step in Step]
    problems = []
    for word in dict.fromkeys(words):
        if word not in known:
            near = difflib.get_close_matches(word, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known steps: {', '.join(known)}"
            problems.append(Problem(where, f"{tag!r} names the unknown step {word!r}", hint))
        elif words.count(word) > 1:
            problems.append(Problem(where, f"{tag!r} names the step {word!r} twice"))
    return problems


def _conflicts(recipe: Recipe, budget: float | None) -> list[tuple[str, str]]:
    steps = recipe.steps
    found = [
        (f"the step {step} needs {needed}", why)
        for step, (needed, why) in _NEEDS.items()
        if step in steps and needed not in steps
    ]
    roundings = [step.value for step in _ROUNDINGS if step in steps]
    if len(roundings) > 1:
        found.append((f"{' and '.join(roundings)} both round the weights", "choose one"))
    if Step.BIAS in steps and Step.BREVITAS_BIAS in steps:
        found.append(("bias and brevitas-bias both correct biases", "choose one"))
    if Step.UNSIGNED in steps and recipe.activation_bits == FLOAT_ACTIVATION_BITS:
        found.append(("the step unsigned has no effect where activations stay float", "leave it out, or use A8"))
    if recipe.tuned and (Step.FOLD not in steps or Step.EQUALIZE in steps):
        found.append(("training needs fold and does not go with equalize", "layers are trained under the float model's names"))
    if budget is not None:
        if Step.PER_CHANNEL not in steps:
            found.append(("a mixed recipe needs per-channel", "scales belong to layers of different width"))
        if not recipe.weight_bits <= budget <= SPARED_BITS:
            found.append((f"an average of {budget:g} bits is not between {recipe.weight_bits} and {SPARED_BITS}", ""))
    return found


def scheme_tag(recipe: Recipe | None) -> str:
    """Write a recipe's tag, the shortest that reads back as the same recipe."""
    if recipe is None:
        return FLOAT_TAG
    tag = f"W{recipe.weight_bits}A{recipe.activation_bits}"
    if recipe.steps != _best_steps(recipe.weight_bits, recipe.activation_bits):
        tag += "-naive" + "".join(f"+{step}" for step in recipe.steps)
    if recipe.budget_bits is not None:
        tag += f"-mixed{recipe.budget_bits:g}"
    return tag + ("-qat" if recipe.tuned else "")


def at_eight_bits(recipe: Recipe) -> str:
    """Return the tag of the same steps at 8 weight bits, without budget and training: it shows whether the wiring holds."""
    is_best = recipe.steps == _best_steps(recipe.weight_bits, recipe.activation_bits)
    steps = _best_steps(SPARED_BITS, recipe.activation_bits) if is_best else recipe.steps
    return scheme_tag(Recipe(weight_bits=SPARED_BITS, activation_bits=recipe.activation_bits, steps=steps))


def ladder(weight_bits: int, activation_bits: int) -> tuple[LadderRow, ...]:
    """Return the ablation: the main ladder from naive to best, one step more in each row, then side rows that replace one step.

    A side row stands on the main row before its rival, so that the two differ in one step alone.
    """
    best = _best_steps(weight_bits, activation_bits)
    rows = [LadderRow(recipe=_row(weight_bits, activation_bits, ()), adds=None, beside=None)]
    for count, step in enumerate(best, start=1):
        rows.append(LadderRow(recipe=_row(weight_bits, activation_bits, best[:count]), adds=step, beside=None))
    for rival, others in _RIVALS.items():
        if rival in best:
            before = best[: best.index(rival)]
            rows += [
                LadderRow(recipe=_row(weight_bits, activation_bits, (*before, other)), adds=other, beside=rival)
                for other in others
            ]
    return tuple(rows)


_RIVALS: dict[Step, tuple[Step, ...]] = {
    Step.GPTQ: (Step.EQUALIZE, Step.BIAS, Step.BREVITAS_BIAS, Step.BREVITAS_GPTQ, Step.BREVITAS_GPFQ, Step.LEARNED)
}


def _row(weight_bits: int, activation_bits: int, steps: Sequence[Step]) -> Recipe:
    ordered = tuple(step for step in Step if step in steps)
    return Recipe(weight_bits=weight_bits, activation_bits=activation_bits, steps=ordered)
