"""Collapse and sanity verdicts, and the ablation table, on numbers written by hand."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from detection_rows_samples import answers_of, make_labels
from fewbits.analysis.detection_rows import match_answers
from fewbits.api import detect
from fewbits.api.detect_ablation import ablation_table, ladder_rows, ladder_tags
from fewbits.api.detect_request import DetectRequest
from fewbits.api.detect_results import MeasuredAnswers
from fewbits.core.errors import BackendError, PrerequisiteError, SpecError, StoreError
from fewbits.records.detector_run import OperatorCensus, SanityCheck, SanityVerdict
from fewbits.spec.detector_schemes import parse_scheme, scheme_tag
from fewbits.sweep.progress import SilentObserver

REQUEST = DetectRequest(weights="tiny.pt", coco=Path("coco"), out_dir=Path("out"))


class Notices(SilentObserver):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def notice(self, message: str) -> None:
        self.lines.append(message)


def row(tag: str, retained: float | None) -> Any:
    estimate = None if retained is None else SimpleNamespace(value=retained)
    return SimpleNamespace(quant_tag=tag, detection=SimpleNamespace(metrics=SimpleNamespace(retained=estimate)))


def summary(**shares: float | None) -> Any:
    rows = [row(tag.replace("_", "-"), share) for tag, share in shares.items()]
    return SimpleNamespace(sessions=[SimpleNamespace(per_quant=rows)])


@pytest.mark.parametrize(
    ("wide", "verdict"),
    [
        (1.02, SanityVerdict.SCHEME),
        (0.9, SanityVerdict.SCHEME),
        (0.899, SanityVerdict.UNDECIDED),
        (0.5, SanityVerdict.UNDECIDED),
        (0.499, SanityVerdict.WIRING),
        (0.0, SanityVerdict.WIRING),
        (None, SanityVerdict.UNDECIDED),
    ],
)
def test_what_eight_bits_say(wide: float | None, verdict: SanityVerdict) -> None:
    check = detect._judged("W4A8", 0.1, "W8A8", wide)
    assert (check.verdict, check.retained, check.sanity_retained) == (verdict, 0.1, wide)
    assert check.explanation.startswith("W8A8 ")
    assert ("could not be measured" in check.explanation) == (wide is None)


def asked(monkeypatch: pytest.MonkeyPatch, answer: Any) -> tuple[list[str], Notices]:
    """Put `answer` (a row, `None` or an error) in place of sanity runs; return what was asked for."""
    tags: list[str] = []

    def run(_request: DetectRequest, tag: str, _observer: Any, *, fresh: bool) -> Any:
        tags.append(tag)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    monkeypatch.setattr(detect, "_sanity_row", run)
    return tags, Notices()


def test_only_what_collapsed_below_eight_bits_is_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    tags, observer = asked(monkeypatch, row("W8A8-naive", 0.97))
    shares = {"FP32": None, "W8A16": 0.2, "W4A8": 0.5, "W4A16": 0.9, "W3A8": None, "W4A8_naive": 0.19}
    checks = detect._check_sanity(REQUEST, summary(**shares), observer)
    assert tags == ["W8A8-naive"]
    assert [(check.variant, check.sanity_variant, check.verdict) for check in checks] == [
        ("W4A8-naive", "W8A8-naive", SanityVerdict.SCHEME)
    ]
    assert "W4A8-naive keeps 19% of the float model's mAP50-95" in observer.lines[0]


def test_an_eight_bit_variant_of_the_sweep_is_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tags, observer = asked(monkeypatch, None)
    (check,) = detect._check_sanity(REQUEST, summary(FP32=None, W4A8=0.1, W8A8=0.3), observer)
    assert (tags, check.verdict) == ([], SanityVerdict.WIRING)


@pytest.mark.parametrize(
    "failure",
    [
        BackendError("fewbits", "no variant could be made"),
        StoreError("the folder holds a run of another plan"),
        PrerequisiteError("an extra is missing", "Install it."),
        SpecError.single("x", "no"),
        None,
        row("W8A8", None),
    ],
)
def test_a_sanity_run_without_an_answer_decides_nothing(monkeypatch: pytest.MonkeyPatch, failure: Any) -> None:
    _tags, observer = asked(monkeypatch, failure)
    # the sweep's own W8A8 has failed too
    (check,) = detect._check_sanity(REQUEST, summary(FP32=None, W4A8=0.1, W8A8=None), observer)
    assert (check.verdict, check.sanity_retained) == (SanityVerdict.UNDECIDED, None)
    assert check.explanation.startswith("W8A8 could not be measured: ")
    if isinstance(failure, Exception):
        assert str(failure) in check.explanation
        assert any(str(failure) in line for line in observer.lines)
    assert isinstance(check, SanityCheck)


def test_ctrl_c_in_a_sanity_run_ends_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    _tags, observer = asked(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        detect._check_sanity(REQUEST, summary(FP32=None, W4A8=0.1), observer)


def test_nothing_collapses_where_the_float_model_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tags, observer = asked(monkeypatch, None)
    assert detect._check_sanity(REQUEST, summary(FP32=None, W4A8=None), observer) == ()
    assert tags == []


# --- ablation ---------------------------------------------------------------------------------------------------------


def test_a_ladder_climbs_from_naive_to_best() -> None:
    tags = ladder_tags("W4A8")
    assert tags[0] == "W4A8-naive"
    assert "W4A8" in tags
    assert len(set(tags)) == len(tags)
    assert ladder_tags("w4a8") == tags
    mains = [scheme_tag(one.recipe) for one in ladder_rows("W4A8") if one.beside is None]
    assert mains[-1] == "W4A8"
    assert [parse_scheme(tag) for tag in tags]


@pytest.mark.parametrize("mode", ["W4A8-naive", "W4A8-qat", "W4A8-mixed4.5", "FP32", "fp32", "x", ""])
def test_modes_without_a_ladder(mode: str) -> None:
    with pytest.raises(SpecError, match="--mode"):
        ladder_tags(mode)


def census(bits: float) -> OperatorCensus:
    return OperatorCensus(
        quantize_linear=1,
        dequantize_linear=2,
        clip=1,
        level_bits_per_weight=bits,
        storage_bits_per_weight=8,
        consumers=1,
        quantized_inputs=1,
        weights_quantized="",
        inputs_quantized="",
        integer_operators=None,
        float_operators=None,
        execution="",
    )


def measured(shifts: dict[str, float], **reasons: str) -> MeasuredAnswers:
    labels = make_labels(images=6)
    found = {tag: match_answers(labels, answers_of(labels, shift=shift)) for tag, shift in shifts.items()}
    matches = {tag: one for tag, one in found.items() if one is not None}
    censuses = {tag: census(4.0) for tag in shifts if tag != "FP32"}
    return MeasuredAnswers(labels, matches, censuses, {tag.replace("_", "-"): why for tag, why in reasons.items()})


def test_each_row_is_measured_against_the_row_it_stands_on() -> None:
    tags = ladder_tags("W4A8")
    shifts = {tag: 0.3 / (place + 1) for place, tag in enumerate(tags)}
    table = ablation_table("w4a8", measured({"FP32": 0.0, **shifts}))
    assert (table.mode, table.images) == ("W4A8", 6)
    assert table.float_map_50_95 is not None
    assert table.float_map_50_95.value > 0.9
    assert [one.variant for one in table.rows] == list(tags)
    by_variant = {one.variant: one for one in table.rows}
    first = table.rows[0]
    assert (first.adds, first.stands_on, first.change) == (None, None, None)
    mains = [one for one in table.rows if one.rival_of is None]
    for below, above in pairwise(mains):
        assert above.stands_on == below.variant
        assert above.change is not None
        assert above.map_50_95 is not None
        assert below.map_50_95 is not None
        assert above.change.value == pytest.approx(above.map_50_95.value - below.map_50_95.value, abs=1e-6)
        assert above.change.low is not None or above.change.reason
    for side in table.rows:
        assert side.retained is not None
        assert side.level_bits_per_weight == 4.0
        if side.rival_of is not None:
            # both stand on the same row, so that they differ in one step
            rival = next(one for one in mains if one.adds == side.rival_of)
            assert side.stands_on == rival.stands_on
            assert side.stands_on in by_variant


def test_rows_without_answers_say_why_and_cost_their_neighbours_the_change_only() -> None:
    tags = ladder_tags("W4A8")
    shifts = dict.fromkeys(tags[2:], 0.1)
    table = ablation_table("W4A8", measured({"FP32": 0.0, **shifts}, W4A8_naive="export failed"))
    assert [one.unavailable for one in table.rows[:3]] == ["export failed", "not measured", ""]
    third = table.rows[2]
    assert third.map_50_95 is not None
    assert third.change is None
    assert table.rows[0].level_bits_per_weight is None


def test_without_the_float_model_there_are_values_but_no_shares() -> None:
    tags = ladder_tags("W4A8")
    table = ablation_table("W4A8", measured(dict.fromkeys(tags, 0.1)))
    assert table.float_map_50_95 is None
    assert all(one.map_50_95 is not None and one.retained is None for one in table.rows)
