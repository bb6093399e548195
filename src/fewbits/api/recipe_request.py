"""What a recipe is asked for: the request, its texts and budgets checked at once, and the command that asks the same again."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from fewbits.analysis.wording import listed
from fewbits.api.sweeps import REPOSITORY_ROOT
from fewbits.core.errors import Problem, SpecError
from fewbits.core.files import safe_name
from fewbits.records.divergence import EvaluationText
from fewbits.records.plan import TaskSelection
from fewbits.records.schemes import find_scheme
from fewbits.spec.file_budget import FileBudget, read_budget
from fewbits.spec.load import find_input
from fewbits.workloads.text.evaluation import HELD_OUT_TEXT, PROBE_TEXT, open_evaluation_text
from fewbits.workloads.text.named_banks import open_bank
from fewbits.workloads.text.selection import select_tasks

DEFAULT_TASKS = "benchmarks/task_bank/short/tasks.json"
NO_TASKS = "none"
OUT_ROOT = Path("recipes")
MAX_BANDS = 512
MAX_WINDOWS = 10_000


class SourceGrid(StrEnum):
    """Whether types on the grid of an already quantized source are candidates."""

    EXCLUDE = "exclude"
    ALLOW = "allow"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeRequest:
    """Everything that can be asked of a recipe. At least one of `like`, `budgets` and `recipe` is given."""

    model: str
    """A GGUF file, or the name of a packaged model."""
    like: tuple[str, ...] = ()
    """Stock tags whose file sizes are the budgets, and which the recipes must beat."""
    budgets: tuple[str, ...] = ()
    """`5.0bpw`, `700MB`, `1.2GiB`."""
    out_dir: Path | None = None
    """`None`: a folder below `recipes/` named after model and budget."""
    fresh: bool = False
    bands: int = 5
    """Bands of depth; 0: every layer alone."""
    types: tuple[str, ...] = ()
    """Candidate ggml types; empty: the default list."""
    source_grid: SourceGrid = SourceGrid.EXCLUDE
    off_grid_seed: int | None = None
    imatrix: Path | None = None
    calibration_text: str | None = None
    probe_text: str = PROBE_TEXT
    probe_windows: int = 16
    held_out_text: str = HELD_OUT_TEXT
    held_out_windows: int = 48
    window_tokens: int = 256
    scores: tuple[Path, ...] = ()
    """Sensitivity manifests whose scores replace the probes."""
    recipe: Path | None = None
    """A recipe to build and prove instead of searching one."""
    tasks: str = DEFAULT_TASKS
    task_limit: int = 60
    threads: int | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class CheckedBudget:
    """One budget: `like` is its stock tag, or `size` its amount; neither: the size of the recipe that was brought."""

    asked: str
    slug: str
    like: str | None
    size: FileBudget | None


@dataclass(frozen=True, slots=True)
class CheckedRequest:
    """A request whose words all mean something. Nothing was read but texts."""

    request: RecipeRequest
    budgets: tuple[CheckedBudget, ...]
    probe: tuple[EvaluationText, str]
    held_out: tuple[EvaluationText, str]
    calibration: tuple[EvaluationText, str] | None
    out_dir: Path

    def folder_of(self, budget: CheckedBudget) -> Path:
        """Where a budget's results go: the folder itself, or one inside it where there are several budgets."""
        return self.out_dir if len(self.budgets) == 1 else self.out_dir / budget.slug


def check_request(request: RecipeRequest) -> CheckedRequest:
    """Check a request. Raises `SpecError` with every problem found, `PrerequisiteError` (a Python without its topics)."""
    problems = [*_number_problems(request), *_contradictions(request), *_missing_files(request), *_task_problems(request)]
    budgets, budget_problems = _budgets(request)
    problems += budget_problems
    opened = {}
    for flag, name in _texts(request):
        try:
            opened[flag] = open_evaluation_text(name)
            if opened[flag] is None:
                problems.append(Problem(flag, "a recipe needs this text", "name a UTF-8 text file"))
        except SpecError as error:
            problems += [Problem(flag, problem.message, problem.hint) for problem in error.problems]
    problems += _shared_texts({flag: text[0] for flag, text in opened.items() if text is not None})
    probe, held_out = opened.get("--probe-text"), opened.get("--held-out-text")
    if problems or probe is None or held_out is None:
        raise SpecError(problems)
    return CheckedRequest(request, budgets, probe, held_out, opened.get("--calibrate"), _out_dir(request, budgets))


def _number_problems(request: RecipeRequest) -> Iterator[Problem]:
    limits = (
        ("--bands", request.bands, 0, MAX_BANDS),
        ("--probe-windows", request.probe_windows, 2, MAX_WINDOWS),
        ("--held-out-windows", request.held_out_windows, 2, MAX_WINDOWS),
        ("--window-tokens", request.window_tokens, 32, 131_072),
        ("--task-limit", request.task_limit, 0, 1_000_000),
        ("--seed", request.seed, 0, 2**31 - 1),
        ("--off-grid", request.off_grid_seed, 0, 2**31 - 1),
        ("--threads", request.threads, 1, 4096),
    )
    for flag, value, low, high in limits:
        if value is not None and not low <= value <= high:
            yield Problem(flag, f"{value} is not from {low} to {high}")


def _contradictions(request: RecipeRequest) -> Iterator[Problem]:
    if not (request.like or request.budgets or request.recipe):
        yield Problem("--like", "there is no budget", "give --like Q4_K_M, --budget 5.0bpw, or --from recipe.json")
    if request.recipe is not None and len(request.like) + len(request.budgets) > 1:
        yield Problem("--from", "one recipe has one size, so it can be compared with one stock file", "give a single --like")
    if request.recipe is not None and request.budgets:
        yield Problem(
            "--budget", "the recipe of --from has its size already", "leave --budget out, or name a stock tag with --like"
        )
    if request.recipe is not None and request.scores:
        yield Problem("--scores", "the recipe of --from needs no scores", "give one of the two")
    if request.imatrix is not None and request.calibration_text is not None:
        yield Problem("--imatrix", "an importance matrix is either brought or made", "give --imatrix or --calibrate, not both")


def _missing_files(request: RecipeRequest) -> Iterator[Problem]:
    brought = [("--scores", path) for path in request.scores]
    brought += [(flag, path) for flag, path in (("--from", request.recipe), ("--imatrix", request.imatrix)) if path is not None]
    for flag, path in brought:
        if not path.is_file():
            yield Problem(flag, f"{path} {'is no file' if path.exists() else 'does not exist'}", "check the path")


def _task_problems(request: RecipeRequest) -> Iterator[Problem]:
    """Look at the bank before anything is searched: it is asked last."""
    if request.tasks == NO_TASKS:
        return
    try:
        bank = find_input(request.tasks, [Path(), REPOSITORY_ROOT])
        select_tasks(open_bank(bank or request.tasks).bank, TaskSelection(limit=request.task_limit))
    except SpecError as error:
        for problem in error.problems:
            yield Problem("--tasks", f"{problem.path}: {problem.message}", problem.hint or f"name a task bank, or {NO_TASKS}")


def _budgets(request: RecipeRequest) -> tuple[tuple[CheckedBudget, ...], list[Problem]]:
    found: list[CheckedBudget] = []
    problems: list[Problem] = []
    for text in request.like:
        try:
            scheme = find_scheme(text, "--like")
            if scheme.is_float:
                problems.append(Problem("--like", f"{scheme.tag} is no quantization", "name a stock tag such as Q4_K_M"))
            found.append(CheckedBudget(f"--like {scheme.tag}", f"like-{scheme.tag}", scheme.tag, None))
        except SpecError as error:
            problems += error.problems
    for text in request.budgets:
        try:
            size = read_budget(text)
            found.append(CheckedBudget(f"--budget {size.asked}", safe_name(size.asked), None, size))
        except SpecError as error:
            problems += error.problems
    if request.recipe is not None and not found:
        found.append(CheckedBudget("the size of the recipe", safe_name(request.recipe.stem), None, None))
    once = {budget.slug: budget for budget in found}
    return tuple(once.values()), problems


def _texts(request: RecipeRequest) -> list[tuple[str, str]]:
    texts = [("--probe-text", request.probe_text), ("--held-out-text", request.held_out_text)]
    return texts if request.calibration_text is None else [*texts, ("--calibrate", request.calibration_text)]


def _shared_texts(texts: dict[str, EvaluationText]) -> Iterator[Problem]:
    """Texts that are the same bytes: what was chosen on a text cannot be judged on it."""
    by_digest: dict[str, list[str]] = {}
    for flag, text in texts.items():
        by_digest.setdefault(text.digest, []).append(flag)
    for flags in by_digest.values():
        if "--held-out-text" in flags and len(flags) > 1:
            others = listed([flag for flag in flags if flag != "--held-out-text"])
            message = f"{texts['--held-out-text'].name} is also the text of {others}"
            yield Problem("--held-out-text", message, "a recipe must be judged on a text that it was not made with")


def model_stem(model: str) -> str:
    """Return the name of a model for file names: that of its file without `.gguf`, as one safe path component."""
    name = Path(model).name
    return safe_name(name.removesuffix(".gguf") or name)


def _out_dir(request: RecipeRequest, budgets: tuple[CheckedBudget, ...]) -> Path:
    if request.out_dir is not None:
        return request.out_dir
    folder = OUT_ROOT / model_stem(request.model)
    return folder / budgets[0].slug if len(budgets) == 1 else folder


_FLAGS = {
    "bands": "--bands",
    "source_grid": "--source-grid",
    "off_grid_seed": "--off-grid",
    "imatrix": "--imatrix",
    "calibration_text": "--calibrate",
    "probe_text": "--probe-text",
    "probe_windows": "--probe-windows",
    "held_out_text": "--held-out-text",
    "held_out_windows": "--held-out-windows",
    "window_tokens": "--window-tokens",
    "recipe": "--from",
    "tasks": "--tasks",
    "task_limit": "--task-limit",
    "threads": "--threads",
    "seed": "--seed",
}


def command_of(request: RecipeRequest) -> str:
    """Return the command that asks for the same, without the flags that stand at their defaults and without the folder."""
    words = ["fewbits", "recipe", request.model]
    words += ["--like", ",".join(request.like)] if request.like else []
    words += [word for budget in request.budgets for word in ("--budget", budget)]
    words += ["--types", ",".join(request.types)] if request.types else []
    words += ["--scores", *map(str, request.scores)] if request.scores else []
    defaults = {field.name: field.default for field in dataclasses.fields(RecipeRequest)}
    for name, flag in _FLAGS.items():
        value = getattr(request, name)
        if value != defaults[name]:
            words += [flag, str(value)]
    return shlex.join(words)
