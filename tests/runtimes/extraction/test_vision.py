"""A vision-language model, tiny and random but real: one prompt in every precision, no echo, retries that reach it."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewbits.core.errors import BackendError, SpecError
from fewbits.records.extraction import ErrorKind, LabReport, ReportType
from fewbits.runtimes.extraction.vision import Sampling, VisionModel
from fewbits.runtimes.extraction.vision_ask import Pixels, model_inputs
from fewbits.runtimes.extraction.vision_load import VisionOptions

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from runtimes.extraction.vision_samples import write_tiny_vision_model  # noqa: E402

END = 5
"""`<end_of_turn>` of the tiny tokenizer."""
PROMPT = "What does this page say? {braces}"
GOOD = json.dumps({"tests": [{"test_name": "WBC", "value": "7.2", "unit": None, "reference_range": None, "flag": None}]})
EMPTY = '{"tests": []}'


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with contextlib.redirect_stderr(io.StringIO()):
        return write_tiny_vision_model(tmp_path_factory.mktemp("vision") / "tiny")


@pytest.fixture(scope="module")
def page() -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def model(folder: Path) -> VisionModel:
    return VisionModel(VisionOptions(model=str(folder), device="cpu", dtype="float32", max_new_tokens=8))


class Script:
    """Stands in for `generate`: answers in turn, and keeps the prompts that reached it. Processor and template stay real."""

    def __init__(self, model: VisionModel, answers: Sequence[str], *, ended: bool = True) -> None:
        self.tokenizer = model._open().processor.tokenizer
        self.answers = list(answers)
        self.ended = ended
        self.prompts: list[str] = []

    def __call__(self, *, input_ids: Any, **_more: Any) -> Any:
        self.prompts.append(self.tokenizer.decode(input_ids[0]))
        answer = self.tokenizer.encode(self.answers.pop(0)) + ([END] if self.ended else [])
        return torch.cat([input_ids, torch.tensor([answer])], dim=1)


@pytest.fixture
def script(model: VisionModel, monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(*answers: str, ended: bool = True) -> Script:
        scripted = Script(model, answers, ended=ended)
        monkeypatch.setattr(model._open().model, "generate", scripted)
        return scripted

    return install


@pytest.mark.parametrize(
    ("dtype", "bits", "storage"),
    [("bfloat16", None, "bfloat16"), ("bfloat16", 4, "nf4"), ("float16", 4, "nf4"), ("float16", 8, "int8")],
)
def test_every_precision_sees_the_same_prompt_and_is_what_it_says(
    folder: Path, page: Pixels, model: VisionModel, dtype: Any, bits: Any, storage: str
) -> None:
    if bits is not None:
        pytest.importorskip("bitsandbytes")
    whole = model.describe()
    assert set(whole.census.storage) == {"float32"}
    with VisionModel(VisionOptions(model=str(folder), device="cpu", dtype=dtype, weight_bits=bits, max_new_tokens=4)) as other:
        assert other.prompt_tokens(page, PROMPT) == model.prompt_tokens(page, PROMPT)
        answer = other.ask(page, PROMPT)
        said = other.describe()
    assert (answer.prompt_tokens, answer.new_tokens) == (len(model.prompt_tokens(page, PROMPT)), 4)
    assert set(said.census.storage) == {dtype, storage}
    assert said.digest == whole.digest
    assert sum(part.parameters for part in said.census.storage.values()) == whole.census.storage["float32"].parameters
    assert said.census.bytes <= whole.census.bytes / 2
    if bits == 4:
        linear = whole.census.modules["Linear"] - 1  # the output head stays as it is
        assert said.census.modules["Linear4bit"] == linear
        nf4 = said.census.storage["nf4"]
        assert 4 < 8 * nf4.bytes / nf4.parameters < 4.5


def test_the_prompt_holds_the_picture_and_is_not_echoed(model: VisionModel, page: Pixels) -> None:
    processor = model._open().processor
    prompt = processor.tokenizer.decode(model.prompt_tokens(page, PROMPT))
    assert prompt.count("<image>") == 4
    assert prompt.endswith(f"{PROMPT}<end_of_turn>\n<start_of_turn>model\n")
    answer = model.ask(page, PROMPT)
    assert PROMPT not in answer.text
    assert "user" not in answer.text
    pictures = [model_inputs(model._open(), pixels, PROMPT)["pixel_values"] for pixels in (page, 255 - page)]
    assert torch.allclose(pictures[0], -pictures[1], atol=0.02)  # scaled to -1..1, in steps of 1/127.5


def test_answers_are_greedy_unless_sampling_is_asked_for(model: VisionModel, page: Pixels) -> None:
    assert model._open().model.generation_config.do_sample  # the files ask for sampling, and are not followed
    state = torch.random.get_rng_state()
    assert model.ask(page, PROMPT) == model.ask(page, PROMPT)
    drawn = [model.ask(page, PROMPT, sampling=Sampling(2.0, seed)).text for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.equal(state, torch.random.get_rng_state())
    with pytest.raises(SpecError, match="temperature"):
        Sampling(0.0, 1)


def test_limits_are_told(folder: Path, model: VisionModel, page: Pixels, script: Any) -> None:
    assert model.ask(page, PROMPT).truncated
    options = VisionOptions(model=str(folder), device="cpu", dtype="float32", max_new_tokens=50, timeout_seconds=1e-9)
    with VisionModel(options) as hurried:
        found = hurried.extract(page, retries=3)
    assert found.error_kind is ErrorKind.TIMEOUT
    assert (found.retries, found.answers[0].new_tokens, found.answers[0].timed_out) == (0, 1, True)
    script(GOOD[:-1], GOOD[:-1], ended=False)
    cut = model.extract(page, retries=1)
    assert (cut.error_kind, cut.parsed.report, cut.retries) == (ErrorKind.TRUNCATED, None, 1)


def test_a_retry_reaches_the_model_with_what_was_wrong(model: VisionModel, page: Pixels, script: Any) -> None:
    asked = script("no idea", '{"tests": [{"test_name": 5}]}', GOOD, GOOD)
    found = model.extract(page, retries=5, report_type=ReportType.CBC)
    assert found.error_kind is None
    assert found.parsed.report is not None
    assert [test.value for test in found.parsed.report.tests] == ["7.2"]
    assert (found.retries, len(found.answers), len(asked.prompts)) == (2, 3, 3)
    assert "earlier answer" not in asked.prompts[0]
    assert "- answer: no JSON in it" in asked.prompts[1]
    assert "- tests[0].test_name: a number, not text" in asked.prompts[2]
    assert "no JSON in it" not in asked.prompts[2]
    assert all("platelets" in prompt and "<image>" in prompt for prompt in asked.prompts)


def test_what_the_check_says_is_asked_again_and_the_best_answer_is_kept(model: VisionModel, page: Pixels, script: Any) -> None:
    def check(report: LabReport) -> tuple[str, ...]:
        return ("WBC: implausible",)

    asked = script(GOOD, "rubbish", EMPTY)
    found = model.extract(page, retries=2, check=check)
    assert "- WBC: implausible" in asked.prompts[1]
    assert found.error_kind is None
    assert (found.retries, found.problems) == (2, ("WBC: implausible",))


def test_a_failure_to_parse_stays_a_failure(model: VisionModel, page: Pixels, script: Any) -> None:
    script("a", "b")
    found = model.extract(page, retries=1)
    assert (found.error_kind, found.parsed.report, found.retries) == (ErrorKind.PARSE_FAILED, None, 1)
    script(EMPTY)
    assert model.extract(page, retries=0).error_kind is ErrorKind.NO_TESTS


def test_the_panel_is_asked_for(model: VisionModel, page: Pixels, script: Any) -> None:
    script('{"report_type": "thyroid"}')
    assert model.classify(page) is ReportType.THYROID
    script("thyroid, I think")
    assert model.classify(page) is None


@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 4), (0, 50, 3)])
def test_what_is_no_page_is_refused(model: VisionModel, shape: tuple[int, ...]) -> None:
    with pytest.raises(SpecError, match="pixels"):
        model.ask(np.zeros(shape, np.uint8), PROMPT)


def test_memory_of_the_gpu_is_unknown_on_the_cpu(model: VisionModel) -> None:
    assert model.memory(reset_peak=True) is None


def test_errors_of_the_library_become_one_sentence(model: VisionModel, page: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_more: Any) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate")

    monkeypatch.setattr(model._open().model, "generate", full)
    with pytest.raises(BackendError, match=r"out of memory\. Use 4 bits"):
        model.ask(page, PROMPT)


def test_a_closed_model_says_so(folder: Path, page: Pixels) -> None:
    with VisionModel(VisionOptions(model=str(folder), device="cpu", dtype="float32")) as closed:
        pass
    with pytest.raises(RuntimeError, match="closed"):
        closed.ask(page, PROMPT)
