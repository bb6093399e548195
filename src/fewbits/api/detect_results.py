"""A detector sweep's answers read back for the summary: labels, the journal's texts, what is quantized, sanity checks.

The answers are a child process's output: whatever they hold, an image without readable detections is one without detections.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fewbits.analysis.detection_matching import Matches
from fewbits.analysis.detection_rows import Answers, match_answers, row_detections
from fewbits.analysis.items import item_order
from fewbits.analysis.ranking import Artifacts, reference_tag
from fewbits.analysis.trial_table import Group, build_table
from fewbits.core.codec import decode, digest, encode_canonical
from fewbits.core.errors import StoreError
from fewbits.records.base import TrialStatus
from fewbits.records.detection import Detections, LabelledImage
from fewbits.records.detector_run import (
    DetectionLabels,
    DetectorCensuses,
    OperatorCensus,
    RowDetection,
    SanityCheck,
    SanityChecks,
    StageLog,
    StageStatus,
)
from fewbits.records.plan import Plan
from fewbits.records.trial import TrialText, TrialView
from fewbits.store.documents import DAMAGED, read_document
from fewbits.store.journal import JournalContent, read_journal, read_rows_at
from fewbits.store.run_directory import RunDirectory
from fewbits.workloads.detection.score import read_detections
from fewbits.workloads.detection.tasks import task_id


def read_row_detections(
    directory: RunDirectory, plan: Plan, artifacts: Artifacts, journal: JournalContent[TrialView]
) -> dict[tuple[str, str], RowDetection]:
    """Return the detection block of every variant, by (model id, quant tag), from the counted attempts of repetition 0.

    Empty where the plan is not one of detectors. Raises `StoreError` where `labels.json` is missing, damaged, or does not
    label what was asked, and like `build_table` for a journal that cannot be trusted.
    """
    if plan.spec.detection is None:
        return {}
    labels = read_labels(directory, plan)
    answers = read_answers(directory, plan, labels, journal)
    censuses = _censuses(directory, plan)
    rows: dict[tuple[str, str], RowDetection] = {}
    for model in plan.models:
        reference = reference_tag(plan, model.model_id, artifacts)
        rows |= row_detections(plan, model.model_id, reference, labels=labels, answers=answers, censuses=censuses)
    return rows


@dataclass(frozen=True, slots=True)
class MeasuredAnswers:
    """The answers of a run, matched with the labels, for comparisons between any two variants. By quant tag."""

    labels: DetectionLabels
    matches: Mapping[str, Matches]
    """Of variants that were asked about every image."""
    censuses: Mapping[str, OperatorCensus]
    reasons: Mapping[str, str]
    """Why a variant could not be measured, where a stage failed."""


def read_measured(directory: RunDirectory) -> MeasuredAnswers:
    """Read a finished detector sweep of one model. Raises `StoreError` where the folder holds no such run, or a damaged one."""
    plan = directory.read_plan()
    if plan is None or plan.spec.detection is None or len(plan.models) != 1:
        msg = f"{directory.root} is not the folder of a detector sweep."
        raise StoreError(msg)
    labels = read_labels(directory, plan)
    matched = read_matches(directory, plan, labels, read_journal(directory.trials_path, TrialView))
    matches = {tag: found for (_model, tag), found in matched.items()}
    stages = read_document(directory.root / "stages.json", StageLog)
    failed = [record for record in stages.stages if record.status is StageStatus.FAILED] if stages is not None else []
    censuses = {tag: census for (_model, tag), census in _censuses(directory, plan).items()}
    return MeasuredAnswers(labels, matches, censuses, {record.variant: f"{record.stage} failed" for record in failed})


def read_sanity(directory: RunDirectory, plan: Plan) -> dict[str, tuple[SanityCheck, ...]]:
    """Return what `sanity.json` holds, by model id; empty without the file. Raises `StoreError` for a damaged one."""
    found = read_document(directory.sanity_path, SanityChecks) if plan.spec.detection is not None else None
    return {plan.models[0].model_id: found.checks} if found is not None and len(plan.models) == 1 else {}


def read_answers(
    directory: RunDirectory, plan: Plan, labels: DetectionLabels, journal: JournalContent[TrialView]
) -> dict[tuple[str, str], Answers]:
    """Return what each variant that has a trial reported, by (model id, quant tag). Raises `StoreError` like `build_table`."""
    images = {task_id(image.image_id): image for image in labels.images}
    places = {row.trial_id: offset for row, offset in zip(journal.rows, journal.offsets, strict=True)}
    groups = build_table(plan, journal.rows).groups
    return {key: _answers(directory.trials_path, group, images, places) for key, group in groups.items()}


def read_matches(
    directory: RunDirectory, plan: Plan, labels: DetectionLabels, journal: JournalContent[TrialView]
) -> dict[tuple[str, str], Matches]:
    """Return the matches of every variant that was asked about all images, by (model id, quant tag). Raises `StoreError`."""
    answers = read_answers(directory, plan, labels, journal)
    return {key: found for key in answers if (found := match_answers(labels, answers[key])) is not None}


def labels_digest(labels: DetectionLabels) -> str:
    """Return the digest of labels as they come back from a file: numbers are floats there, whatever made them."""
    return digest(decode(encode_canonical(labels), DetectionLabels, "labels"))


def read_labels(directory: RunDirectory, plan: Plan) -> DetectionLabels:
    """Return the labels of the images that the plan asks about, and of no others.

    Raises `StoreError` where `labels.json` is missing, damaged, or does not label all of them once.
    """
    path = directory.labels_path
    labels = read_document(path, DetectionLabels)
    if labels is None:
        msg = (
            f"{directory.root} holds a sweep over detectors but no labels.json, so its answers cannot be measured. "
            "Run the sweep's command again: it writes the file, and finished trials are kept."
        )
        raise StoreError(msg)
    pinned = plan.spec.detection.labels_digest if plan.spec.detection is not None else None
    if pinned is not None and labels_digest(labels) != pinned:
        msg = f"{path} does not hold the labels that this run was planned with. {DAMAGED}"
        raise StoreError(msg)
    asked = set(item_order(plan))
    kept = tuple(image for image in labels.images if task_id(image.image_id) in asked)
    found = {task_id(image.image_id) for image in kept}
    if found != asked or len(kept) != len(found):
        wrong = f"no labels for {min(asked - found)}" if found != asked else "one image is labelled twice"
        msg = f"{path} does not fit the plan of this run: {wrong}. {DAMAGED}"
        raise StoreError(msg)
    return msgspec.structs.replace(labels, images=kept)


def _censuses(directory: RunDirectory, plan: Plan) -> dict[tuple[str, str], OperatorCensus]:
    """Return what `censuses.json` holds, by (model id, quant tag): it is about the only model of a sweep."""
    found = read_document(directory.censuses_path, DetectorCensuses)
    if found is None or len(plan.models) != 1:
        return {}
    return {(plan.models[0].model_id, tag): census for tag, census in found.censuses.items()}


def _answers(path: Path, group: Group, images: Mapping[str, LabelledImage], places: Mapping[str, int]) -> Answers:
    """Read one variant's answers, by image id; `None` where a trial failed or its text is no detections."""
    trials = [trial for trial in group.trials if trial.repetition == 0 and trial.task_id in images]
    answered = [trial for trial in trials if trial.status is TrialStatus.OK]
    texts = read_rows_at(path, [places[trial.trial_id] for trial in answered], TrialText)
    found: dict[int, Detections | None] = {images[trial.task_id].image_id: None for trial in trials}
    for trial, row in zip(answered, texts, strict=True):
        image = images[trial.task_id]
        found[image.image_id] = decode_answer(row.output_text, image)
    return found


def decode_answer(text: str, image: LabelledImage) -> Detections | None:
    """Return what an answer reports about an image; `None` for anything that scoring does not read either."""
    found = read_detections(text, image.width, image.height)
    return None if isinstance(found, str) else found
