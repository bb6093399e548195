"""A detector sweep's folder becomes a summary: from labels, journal and censuses alone, whatever the answers hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from detection_rows_samples import (
    EIGHT,
    FLOAT,
    MODEL,
    PLAN_DIGEST,
    TWO,
    answers_of,
    make_artifact,
    make_census,
    make_check,
    make_labels,
    make_plan,
)
from fewbits.api.detect_results import decode_answer, labels_digest, read_labels, read_matches, read_row_detections
from fewbits.api.sweeps import build_summary, render_report, verify_run, write_results
from fewbits.core.codec import encode_canonical, encode_pretty
from fewbits.core.errors import StoreError
from fewbits.records.detection import Detections
from fewbits.records.detector_run import DetectorCensuses, RowDetection, SanityChecks
from fewbits.records.summary import SweepSummary
from fewbits.records.trial import TrialView
from fewbits.store.journal import read_journal
from fewbits.store.run_directory import RunDirectory
from fewbits.workloads.detection.score import ANSWER_BYTES_LIMIT, MAX_DETECTIONS
from fewbits.workloads.detection.tasks import task_id

LABELS = make_labels()
RIGHT, SHIFTED, POOR = answers_of(LABELS), answers_of(LABELS, shift=0.1), answers_of(LABELS, shift=0.3, skip=2)


def text_of(found: Detections | None) -> str:
    assert found is not None
    return encode_canonical(found).decode()


def trial_row(tag: str, image_id: int, text: str, **changes: Any) -> dict[str, Any]:
    tokens = {"status": "NO_TOKENS", "prompt_tokens": None, "output_tokens": None}
    telemetry = {
        "total_latency": 0.05,
        "internal_model_seconds": 0.048,
        "peak_memory_rss": 200 * 1024**2,
        "token_metrics": tokens,
    }
    row = {
        "plan_digest": PLAN_DIGEST,
        "phase": "matrix",
        "index": 0,
        "block": 0,
        "attempt": 1,
        "model_id": MODEL,
        "quant_tag": tag,
        "variant_sha256": None,
        "task_id": task_id(image_id),
        "task_revision": 1,
        "bucket": "detection",
        "tier": 1,
        "repetition": 0,
        "status": "OK",
        "output_text": text,
        "output_sha256": "o" * 64,
        "adherence_score": 0.5,
        "telemetry": telemetry,
        "run_quality_status": "CLEAN",
        "run_quality_reasons": [],
        "vibe_metrics": {},
        "controls_effective": {},
        "started_at": "2026-02-21T10:00:00Z",
        "engine": "onnxruntime",
    } | changes
    return row | {"trial_id": f"{tag}/{image_id}/{row['phase']}/{row['repetition']}/{row['attempt']}"}


def rows_of(tag: str, answers: dict[int, Detections | None]) -> list[dict[str, Any]]:
    return [trial_row(tag, image_id, text_of(found)) for image_id, found in answers.items()]


def write_run(folder: Path, rows: list[dict[str, Any]]) -> RunDirectory:
    directory = RunDirectory(folder)
    plan = make_plan(LABELS)
    spec = msgspec.structs.replace(plan.spec, out_dir=str(folder), summary_out=str(directory.summary_path))
    directory.write_plan(msgspec.structs.replace(plan, spec=spec))
    for tag in plan.spec.quants:
        directory.write_manifest(make_artifact(tag))
    directory.labels_path.write_bytes(encode_pretty(LABELS))
    directory.trials_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def detections_of(directory: RunDirectory) -> dict[str, RowDetection]:
    plan = directory.read_plan()
    assert plan is not None
    journal = read_journal(directory.trials_path, TrialView)
    found = read_row_detections(directory, plan, directory.read_manifests(), journal)
    return {tag: row for (_, tag), row in found.items()}


def maps(directory: RunDirectory) -> dict[str, float | None]:
    found = {tag: row.metrics.map_50_95 if row.metrics else None for tag, row in detections_of(directory).items()}
    return {tag: estimate.value if estimate else None for tag, estimate in found.items()}


@pytest.fixture
def whole(tmp_path: Path) -> RunDirectory:
    directory = write_run(tmp_path / "run", rows_of(FLOAT, RIGHT) + rows_of(EIGHT, SHIFTED) + rows_of(TWO, POOR))
    directory.censuses_path.write_bytes(encode_pretty(DetectorCensuses(censuses={EIGHT: make_census()})))
    directory.sanity_path.write_bytes(encode_pretty(SanityChecks(checks=(make_check(),))))
    return directory


def test_the_summary_holds_the_block_and_can_be_verified(whole: RunDirectory) -> None:
    summary = write_results(whole)
    assert verify_run(whole)[0]
    (session,) = summary.sessions
    assert session.sanity == (make_check(),)
    found = {row.quant_tag: row.detection for row in session.per_quant}
    eight, two = found[EIGHT], found[TWO]
    assert eight is not None
    assert two is not None
    assert (eight.census, eight.collapsed, two.census, two.collapsed) == (make_census(), False, None, True)
    assert eight.metrics is not None
    assert eight.metrics.images == 4
    assert [one.name for one in eight.metrics.per_class] == ["cat", "dog"]
    text = whole.report_path.read_text()
    assert "### Detection" in text
    assert "scheme, not wiring" in text


def test_blocks_change_nothing_that_is_decided(whole: RunDirectory) -> None:
    """The same journal as text work: verdicts, frontier and recommendation are the same."""
    with_blocks = build_summary(whole)
    plan = whole.read_plan()
    assert plan is not None
    whole.plan_path.write_bytes(
        encode_pretty(msgspec.structs.replace(plan, spec=msgspec.structs.replace(plan.spec, detection=None)))
    )
    without = build_summary(whole)

    def decided(summary: SweepSummary) -> Any:
        session = msgspec.structs.replace(summary.sessions[0], sanity=())
        rows = tuple(msgspec.structs.replace(row, detection=None, unavailable={}) for row in session.per_quant)
        return msgspec.structs.replace(session, per_quant=rows)

    assert without.sessions[0].sanity == ()
    assert all(row.detection is None for row in without.sessions[0].per_quant)
    assert decided(with_blocks) == decided(without)


def test_only_the_counted_attempt_of_the_first_repetition_is_measured(tmp_path: Path) -> None:
    right, nothing = rows_of(FLOAT, RIGHT), text_of(Detections(width=640, height=480, detections=()))
    others = [
        trial_row(FLOAT, 1, nothing, attempt=2, run_quality_status="POLLUTED", run_quality_reasons=["FOREIGN_CPU_LOAD"]),
        trial_row(FLOAT, 1, nothing, phase="determinism"),
        trial_row(FLOAT, 2, nothing, repetition=1),
    ]
    expected = maps(write_run(tmp_path / "a", right))[FLOAT]
    assert maps(write_run(tmp_path / "b", [*others, *right]))[FLOAT] == expected
    later = trial_row(FLOAT, 1, nothing, attempt=3)
    worse = maps(write_run(tmp_path / "c", [*right, later]))[FLOAT]
    assert worse is not None
    assert expected is not None
    assert worse < expected


HOSTILE = {
    "no json": "]",
    "empty": "",
    "a list": "[]",
    "deep": "[" * 100_000,
    "a lone surrogate": "\ud800",
    "unknown keys": text_of(RIGHT[1])[:-1] + ',"more":1}',
    "another schema": text_of(RIGHT[1]).replace("detections.v1", "detections.v2"),
    "another image": encode_canonical(Detections(width=1, height=1, detections=())).decode(),
    "a score above 1": text_of(RIGHT[1]).replace("0.9", "1.9"),
    "too many": '{"width":640,"height":480,"detections":[' + ",".join(["[1,0.5,0,0,1,1]"] * (MAX_DETECTIONS + 1)) + "]}",
    "too long": " " * (ANSWER_BYTES_LIMIT + 1),
    "long in bytes": "é" * (ANSWER_BYTES_LIMIT // 2 + 1),
    "not a number": '{"width":640,"height":480,"detections":[[1,0.5,NaN,0,1,1]]}',
}


@pytest.mark.parametrize("answer", HOSTILE.values(), ids=HOSTILE)
def test_what_cannot_be_read_counts_as_no_detections(answer: str, tmp_path: Path) -> None:
    assert decode_answer(answer, LABELS.images[0]) is None
    if "\ud800" in answer:
        return  # no journal of ours can hold it
    rows = [trial_row(FLOAT, 1, answer), *rows_of(FLOAT, RIGHT)[1:]]
    found = detections_of(write_run(tmp_path, rows))[FLOAT]
    assert (found.asked_images, found.failed_images) == (4, 1)
    crash = [trial_row(FLOAT, 1, text_of(RIGHT[1]), status="CRASHED"), *rows_of(FLOAT, RIGHT)[1:]]
    assert detections_of(write_run(tmp_path / "crash", crash))[FLOAT] == found


def test_what_scoring_reads_is_read_here() -> None:
    assert decode_answer(text_of(RIGHT[1]), LABELS.images[0]) == RIGHT[1]


def test_boxes_of_absurd_size_still_give_numbers(tmp_path: Path) -> None:
    absurd = '{"width":640,"height":480,"detections":[[1,0.9,-1e308,-1e308,1e308,1e308],[77,0.9,0,0,0,0]]}'
    found = detections_of(write_run(tmp_path, [trial_row(FLOAT, 1, absurd), *rows_of(FLOAT, RIGHT)[1:]]))
    assert encode_canonical(found[FLOAT])


def test_a_run_that_has_not_begun(tmp_path: Path) -> None:
    directory = write_run(tmp_path, [])
    assert {row.unavailable["metrics"] for row in detections_of(directory).values()} == {"NO_TRIALS"}
    summary = build_summary(directory)
    render_report(summary, "x", tmp_path / "r.md", tmp_path / "s.json")
    assert "there are no trials (0 images asked about so far)" in (tmp_path / "r.md").read_text()


def test_matches_are_of_variants_with_all_images(tmp_path: Path) -> None:
    directory = write_run(tmp_path, rows_of(FLOAT, RIGHT) + rows_of(EIGHT, SHIFTED)[:3])
    plan = directory.read_plan()
    assert plan is not None
    labels, journal = read_labels(directory, plan), read_journal(directory.trials_path, TrialView)
    assert labels == LABELS
    (found,) = read_matches(directory, plan, labels, journal).items()
    assert found[0] == (MODEL, FLOAT)
    assert found[1].image_ids == (1, 2, 3, 4)


def test_missing_labels_say_what_to_do(whole: RunDirectory) -> None:
    whole.labels_path.unlink()
    with pytest.raises(StoreError, match=r"no labels\.json.*Run the sweep's command again"):
        build_summary(whole)


def test_labels_of_other_images_are_refused(whole: RunDirectory) -> None:
    whole.labels_path.write_bytes(encode_pretty(make_labels(images=3)))
    with pytest.raises(StoreError, match="no labels for image-000000000004"):
        build_summary(whole)
    twice = msgspec.structs.replace(LABELS, images=(*LABELS.images, LABELS.images[0]))
    whole.labels_path.write_bytes(encode_pretty(twice))
    with pytest.raises(StoreError, match="labelled twice"):
        build_summary(whole)


def test_labels_beyond_the_plan_change_nothing(whole: RunDirectory) -> None:
    before = detections_of(whole)
    whole.labels_path.write_bytes(encode_pretty(make_labels(images=9)))
    assert detections_of(whole) == before


@pytest.mark.parametrize("name", ["labels.json", "censuses.json", "sanity.json"])
@pytest.mark.parametrize(
    ("content", "says"), [(b"{", "damaged"), (b"[]", "damaged"), (b"\xff", "damaged"), (None, "update fewbits")]
)
def test_damaged_documents_are_one_clear_message(whole: RunDirectory, name: str, content: bytes | None, says: str) -> None:
    path = whole.root / name
    if content is None:
        content = path.read_bytes().replace(b".v1", b".v7")
    path.write_bytes(content)
    with pytest.raises(StoreError, match=says) as caught:
        build_summary(whole)
    assert str(path) in str(caught.value)


def test_what_a_detector_sweep_leaves_is_set_aside_with_the_run(whole: RunDirectory) -> None:
    whole.stages_path.write_text("{}")
    shelf = whole.set_aside()
    assert shelf is not None
    for name in ("labels.json", "censuses.json", "sanity.json", "stages.json"):
        assert (shelf / name).exists()
    assert not whole.holds_a_run()


def test_labels_that_are_not_those_of_the_plan_are_refused(whole: RunDirectory) -> None:
    plan = whole.read_plan()
    assert plan is not None
    assert plan.spec.detection is not None
    pinned = msgspec.structs.replace(plan.spec.detection, labels_digest=labels_digest(LABELS))
    plan = msgspec.structs.replace(plan, spec=msgspec.structs.replace(plan.spec, detection=pinned))
    assert read_labels(whole, plan) == LABELS
    first = LABELS.images[0]
    moved = msgspec.structs.replace(first, objects=(*first.objects, first.objects[0]))
    edited = msgspec.structs.replace(LABELS, images=(moved, *LABELS.images[1:]))
    whole.labels_path.write_bytes(encode_pretty(edited))
    with pytest.raises(StoreError, match="was planned with"):
        read_labels(whole, plan)
