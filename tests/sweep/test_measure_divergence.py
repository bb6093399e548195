"""Measuring divergence before the matrix: which rows are made, kept, and made again. The meter is a stand-in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from fewbits.core.errors import BackendError, FewbitsError, IdentityError, SpecError, StoreError
from fewbits.records.divergence import (
    DivergenceKind,
    DivergenceMethod,
    DivergencePolicy,
    DivergenceReason,
    DivergenceRow,
    EvaluationText,
    WindowDivergence,
)
from fewbits.records.plan import Controls, Plan, SweepSpec
from fewbits.records.variant import Artifact, ModelKind, ModelSource, Variant
from fewbits.runtimes.base import Comparison, DivergenceJob, DivergenceUnavailableError, Instrument
from fewbits.store.blobs import BlobCache
from fewbits.store.journal import read_journal
from fewbits.store.run_directory import RunDirectory
from fewbits.sweep.divergence import measure_divergence, read_divergence
from fewbits.sweep.progress import SilentObserver
from fewbits.workloads.text.evaluation import open_evaluation_text

QUANTS = ("F16", "Q8_0", "Q2_K")
WINDOW = WindowDivergence(kl_nats=(0.1, 0.3), same_top=1, reference_nll_nats=4.0, variant_nll_nats=4.2)


class StandInMeter:
    """Writes what it was asked for, and fails where it is told to."""

    def __init__(self, failures: Mapping[str, FewbitsError] | None = None, *, keyed: bool = True) -> None:
        self.failures = failures or {}
        self.keyed = keyed
        self.calls: list[str] = []

    def instrument(self, job: DivergenceJob) -> Instrument:
        return Instrument(DivergenceMethod.FULL_LOGITS, "stand-in", "1", 2, job.policy.top_k)

    def teacher_key(self, reference: Variant, job: DivergenceJob) -> str | None:
        return "ab" * 32 if self.keyed else None

    def read_teacher(self, reference: Variant, job: DivergenceJob, output: Path) -> None:
        self.calls.append("teacher")
        self._fail("teacher")
        output.write_bytes(job.text.encode())

    def compare(self, variant: Variant, teacher: Path, job: DivergenceJob) -> Comparison:
        assert teacher.read_bytes() == job.text.encode()
        self.calls.append(variant.artifact.scheme)
        self._fail(variant.artifact.scheme)
        return Comparison((WINDOW, WINDOW), None, 2)

    def compare_with_itself(self, reference: Variant, teacher: Path, job: DivergenceJob) -> Comparison:
        self.calls.append("floor")
        self._fail("floor")
        return Comparison((WINDOW,), None, 1, "with one thread")

    def _fail(self, what: str) -> None:
        if what in self.failures:
            raise self.failures[what]


class Listener(SilentObserver):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def notice(self, message: str) -> None:
        self.lines.append(message)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text("one two three\r\nfour")
    return path


def plan_for(text: str | None, folder: Path, *, runtime: str = "llamacpp", models: tuple[str, ...] = ("m",)) -> Plan:
    evaluation: EvaluationText | None = None
    if text is not None:
        opened = open_evaluation_text(text)
        assert opened is not None
        evaluation = opened[0]
    spec = SweepSpec(
        models=models,
        quants=QUANTS,
        task_bank="b",
        runtime=runtime,
        divergence=DivergencePolicy(text=text or "none", windows=4),
        out_dir=str(folder),
        summary_out=str(folder / "s"),
    )
    return Plan(
        digest="d" * 64,
        spec=spec,
        models=tuple(ModelSource(model_id=model, kind=ModelKind.GGUF) for model in models),
        tasks=(),
        task_bank_digest="b",
        controls=Controls(threads=2),
        hardware_fingerprint="h",
        commit_sha=None,
        trials_total=0,
        evaluation_text=evaluation,
        artifacts={},
    )


def variants_of(plan: Plan, **datasets: str) -> dict[tuple[str, str], Variant]:
    def artifact(model: str, tag: str) -> Artifact:
        return Artifact(
            model_id=model,
            scheme=tag,
            sha256=None,
            bytes=None,
            weights=None,
            bits_per_weight=None,
            parameters={"imatrix_dataset": datasets[tag]} if tag in datasets else {},
        )

    return {(model, tag): Variant(artifact(model, tag), None) for model in plan.spec.models for tag in QUANTS}


Measure = Callable[..., list[DivergenceRow]]


@pytest.fixture
def measure(tmp_path: Path, text: Path) -> Measure:
    """Measure into one folder; returns the whole journal."""

    def run(meter: StandInMeter | None, *, observer: SilentObserver | None = None, **changes: Any) -> list[DivergenceRow]:
        plan = changes.get("plan") or plan_for(str(text), tmp_path / "run")
        directory = RunDirectory(tmp_path / "run")
        measure_divergence(
            plan,
            changes.get("variants") or variants_of(plan),
            dict.fromkeys(plan.spec.models, "F16"),
            directory,
            observer or SilentObserver(),
            meter=meter,
            blobs=BlobCache(tmp_path / "cache"),
        )
        return list(read_journal(directory.divergence_path, DivergenceRow).rows)

    return run


def test_one_floor_and_one_row_per_variant_that_explain_themselves(measure: Measure, text: Path) -> None:
    meter = StandInMeter()
    rows = measure(meter)
    assert meter.calls == ["teacher", "floor", "Q8_0", "Q2_K"]
    assert [(row.kind, row.quant_tag) for row in rows] == [
        (DivergenceKind.FLOOR, "F16"),
        (DivergenceKind.VARIANT, "Q8_0"),
        (DivergenceKind.VARIANT, "Q2_K"),
    ]
    floor, variant, _ = rows
    assert (floor.threads, floor.teacher_threads, floor.detail) == (1, 2, "with one thread")
    assert (variant.reference_tag, variant.text_name, variant.top_k, variant.engine) == ("F16", "words.txt", 2048, "stand-in")
    assert variant.windows == (WINDOW, WINDOW)
    assert variant.unavailable is None


def test_finished_rows_are_kept_and_the_teacher_is_read_once(measure: Measure, tmp_path: Path) -> None:
    first = measure(StandInMeter())
    again = StandInMeter()
    assert measure(again) == first
    assert again.calls == []
    # half a line, as a kill leaves it, costs that row alone
    journal = tmp_path / "run" / "divergence.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])
    resumed = StandInMeter()
    assert [row.quant_tag for row in measure(resumed)] == ["F16", "Q8_0", "Q2_K"]
    assert resumed.calls == ["Q2_K"]


def test_rows_of_another_plan_do_not_count(measure: Measure, tmp_path: Path, text: Path) -> None:
    measure(StandInMeter())
    other = plan_for(str(text), tmp_path / "run")
    other = type(other)(**{name: getattr(other, name) for name in other.__struct_fields__} | {"digest": "e" * 64})
    meter = StandInMeter()
    assert len(measure(meter, plan=other)) == 6
    assert meter.calls == ["floor", "Q8_0", "Q2_K"], "the teacher comes from the cache"


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (BackendError("engine", "broke", tail="last words"), DivergenceReason.ENGINE_FAILED),
        (DivergenceUnavailableError(DivergenceReason.VOCABULARY_DIFFERS, "other tokens"), DivergenceReason.VOCABULARY_DIFFERS),
    ],
)
def test_a_failing_variant_costs_only_its_own_row(measure: Measure, failure: FewbitsError, reason: DivergenceReason) -> None:
    listener = Listener()
    rows = measure(StandInMeter({"Q8_0": failure}), observer=listener)
    assert [row.unavailable for row in rows] == [None, reason, None]
    assert rows[1].windows == ()
    assert str(failure).splitlines()[-1].rpartition(": ")[2] in rows[1].detail
    assert any("none for Q8_0 of m" in line and reason in line for line in listener.lines)


@pytest.mark.parametrize("keyed", [True, False])
def test_without_a_teacher_every_row_says_why(measure: Measure, tmp_path: Path, keyed: bool) -> None:
    failure = DivergenceUnavailableError(DivergenceReason.TEXT_TOO_SHORT, "4 tokens")
    rows = measure(StandInMeter({"teacher": failure}, keyed=keyed))
    assert [(row.unavailable, row.detail) for row in rows] == [(DivergenceReason.TEXT_TOO_SHORT, "4 tokens")] * 3
    assert not list((tmp_path / "cache").glob("blobs/*/*"))


def test_what_was_mended_is_tried_again_and_a_standing_failure_is_not_repeated(measure: Measure, tmp_path: Path) -> None:
    no_engine = {"teacher": DivergenceUnavailableError(DivergenceReason.NO_ENGINE, "install it")}
    assert len(measure(StandInMeter(no_engine))) == 3
    assert len(measure(StandInMeter(no_engine))) == 3
    rows = measure(StandInMeter())
    assert [row.unavailable for row in rows] == [DivergenceReason.NO_ENGINE] * 3 + [None] * 3
    counted = read_divergence(plan_for(str(tmp_path / "words.txt"), tmp_path / "run"), RunDirectory(tmp_path / "run"))
    assert {row.unavailable for row in (*counted.variants.values(), *counted.floors.values())} == {None}
    assert set(counted.variants) == {("m", "Q8_0"), ("m", "Q2_K")}


@pytest.mark.parametrize("dataset", ["words.txt", "/data/texts/words.txt", "C:\\texts\\Words.TXT"])
def test_a_variant_calibrated_on_this_text_is_not_judged_by_it(
    measure: Measure, tmp_path: Path, text: Path, dataset: str
) -> None:
    plan = plan_for(str(text), tmp_path / "run")
    meter = StandInMeter()
    rows = measure(meter, plan=plan, variants=variants_of(plan, Q2_K=dataset, Q8_0="other-words.txt"))
    assert {row.quant_tag: row.unavailable for row in rows} == {
        "F16": None,
        "Q8_0": None,
        "Q2_K": DivergenceReason.CALIBRATION_TEXT,
    }
    assert "Q2_K" not in meter.calls


def test_a_runtime_without_probabilities_says_so(measure: Measure, tmp_path: Path, text: Path) -> None:
    rows = measure(None, plan=plan_for(str(text), tmp_path / "run", runtime="scripted"))
    assert {(row.unavailable, row.engine) for row in rows} == {(DivergenceReason.NO_LOG_PROBABILITIES, "scripted")}


def test_switched_off_touches_nothing(measure: Measure, tmp_path: Path) -> None:
    assert measure(StandInMeter(), plan=plan_for(None, tmp_path / "run")) == []
    assert not (tmp_path / "run").exists()


def test_another_text_than_planned_is_refused(measure: Measure, tmp_path: Path, text: Path) -> None:
    plan = plan_for(str(text), tmp_path / "run")
    text.write_text("changed")
    with pytest.raises(SpecError, match="not the text that was planned"):
        measure(StandInMeter(), plan=plan)


@pytest.mark.parametrize("error", [IdentityError("another model"), StoreError("disk full")])
def test_labels_that_lie_and_a_full_disk_are_no_engine_failures(measure: Measure, error: FewbitsError) -> None:
    with pytest.raises(type(error)):
        measure(StandInMeter({"Q8_0": error}))


def test_several_models_have_a_teacher_and_a_floor_each(measure: Measure, tmp_path: Path, text: Path) -> None:
    meter = StandInMeter(keyed=False)
    rows = measure(meter, plan=plan_for(str(text), tmp_path / "run", models=("m", "n")))
    assert meter.calls.count("teacher") == meter.calls.count("floor") == 2
    assert [row.model_id for row in rows] == ["m"] * 3 + ["n"] * 3


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_measure_divergence as here
from fewbits.store.blobs import BlobCache
from fewbits.store.run_directory import RunDirectory

class Slow(here.StandInMeter):
    def compare(self, variant, teacher, job):
        if variant.artifact.scheme == "Q2_K":
            print("working", flush=True)
            time.sleep(60)
        return super().compare(variant, teacher, job)

folder = Path({folder!r})
plan = here.plan_for(str(folder / "words.txt"), folder / "run")
here.measure_divergence(plan, here.variants_of(plan), {{"m": "F16"}}, RunDirectory(folder / "run"), here.SilentObserver(),
    meter=Slow(), blobs=BlobCache(folder / "cache"))
"""


def test_a_kill_loses_only_the_row_in_work(measure: Measure, tmp_path: Path) -> None:
    program = KILLED.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"working\n"
        os.kill(child.pid, signal.SIGKILL)
    meter = StandInMeter()
    assert [row.quant_tag for row in measure(meter)] == ["F16", "Q8_0", "Q2_K"]
    assert meter.calls == ["Q2_K"]
