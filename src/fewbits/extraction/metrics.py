"""Fields of predicted reports compared with the truth: counts, and the rates that follow from them.

Counts add up over pages (`sum_metrics`), so rates of sums are micro averages. A rate that would divide by 0 is `None`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from fewbits.extraction import names
from fewbits.extraction.comparison import (
    RANGE_FIELDS,
    TOLERANCE,
    Field,
    Outcome,
    Pair,
    field_outcomes,
    match_tests,
    same_text,
)
from fewbits.records.extraction import Flag, LabReport, LabTest, PatientInfo
from fewbits.records.extraction_metrics import FieldCounts, FieldMetrics, Share

ComparedPages = Sequence[tuple[LabReport, LabReport]]
"""(predicted, truth) of each page."""
CRITICAL = (Flag.CRITICAL_LOW, Flag.CRITICAL_HIGH)
ABNORMAL = (Flag.LOW, Flag.HIGH, Flag.ABNORMAL, *CRITICAL)
NOT_ON_THE_PAGE = "(not on the page)"
"""Where `by_test` counts predictions without a partner whose name no analyte has: any text could stand there."""
_REPORT_FIELDS = ("lab_name", "report_date", "report_type")
_PATIENT_FIELDS = ("name", "age", "gender", "patient_id", "date_of_birth")


def field_level_metrics(predicted: LabReport, truth: LabReport, *, tolerance: float = TOLERANCE) -> FieldMetrics:
    """Compare the report that was read from a page with what the page says.

    Tests are paired one to one, duplicates kept (`comparison.match_tests`); `tolerance` is relative.

    - `names`: a pair is a true positive, a predicted test without a partner a false positive, a true one a false negative.
    - `fields`: the same over all fields of all tests: name, value, unit, and the range's low end, high end, or its text where it
      has no number (so `<200` and `<=200` are alike). A field that agrees is one true positive; one that differs is one false
      positive and one false negative; one that only the prediction has is a false positive, one that only the truth has a false
      negative; one that neither has counts nothing. A test without a partner counts with each of its fields.
    - `value_accuracy`, `unit_accuracy`, `range_accuracy`: of the pairs in which either side has the field, the share in which
      all of it agrees (a range: both ends, or its text).
    - `flag_accuracy`: of the pairs in which either side has a flag, the share with the same flag.
    - `abnormal_flags`, `critical_flags`: over all tests, paired or not. A true positive is a pair with the same flag of that
      kind; a true flag of the kind that was not reported so is a false negative, a reported one that is not so a false positive.
    - `report_fields`: patient, laboratory, date and type of report, each counted as the fields of tests are; texts apart from
      case and spaces.

    Raises `ValueError` on a tolerance outside of 0..1.
    """
    metrics = _of_pairs(match_tests(predicted, truth, tolerance=tolerance), tolerance)
    return msgspec.structs.replace(metrics, report_fields=_report_fields(predicted, truth))


def sum_metrics(pages: Iterable[FieldMetrics]) -> FieldMetrics:
    """Add the counts of pages; the rates are micro averages. No pages: all counts 0, all rates `None`."""
    found = list(pages)
    named = sorted({name for page in found for name in page.report_fields})
    return FieldMetrics(
        predicted_tests=sum(page.predicted_tests for page in found),
        true_tests=sum(page.true_tests for page in found),
        matched_tests=sum(page.matched_tests for page in found),
        names=_added_counts([page.names for page in found]),
        fields=_added_counts([page.fields for page in found]),
        value_accuracy=_added_shares([page.value_accuracy for page in found]),
        unit_accuracy=_added_shares([page.unit_accuracy for page in found]),
        range_accuracy=_added_shares([page.range_accuracy for page in found]),
        flag_accuracy=_added_shares([page.flag_accuracy for page in found]),
        abnormal_flags=_added_counts([page.abnormal_flags for page in found]),
        critical_flags=_added_counts([page.critical_flags for page in found]),
        report_fields={
            name: _added_counts([page.report_fields[name] for page in found if name in page.report_fields]) for name in named
        },
    )


def by_panel(pages: ComparedPages, *, tolerance: float = TOLERANCE) -> dict[str, FieldMetrics]:
    """Return the metrics of each panel. A test's panel is its analyte's; that of the page where no analyte has the name."""
    grouped: dict[str, list[Pair]] = {}
    for predicted, truth in pages:
        for pair in match_tests(predicted, truth, tolerance=tolerance):
            panel = truth.report_type if pair.analyte is None else pair.analyte.panel
            grouped.setdefault(panel.value, []).append(pair)
    return {panel: _of_pairs(grouped[panel], tolerance) for panel in sorted(grouped)}


def by_test(pages: ComparedPages, *, tolerance: float = TOLERANCE) -> dict[str, FieldMetrics]:
    """Return the metrics of each test: by the key of its analyte, else by its normalized true name, else `NOT_ON_THE_PAGE`."""
    grouped: dict[str, list[Pair]] = {}
    for predicted, truth in pages:
        for pair in match_tests(predicted, truth, tolerance=tolerance):
            grouped.setdefault(_test_key(pair), []).append(pair)
    return {test: _of_pairs(grouped[test], tolerance) for test in sorted(grouped)}


def field_counts(true_positive: int, false_positive: int, false_negative: int) -> FieldCounts:
    """Return counts with their rates."""
    return FieldCounts(
        true_positive=true_positive,
        false_positive=false_positive,
        false_negative=false_negative,
        precision=_divided(true_positive, true_positive + false_positive),
        recall=_divided(true_positive, true_positive + false_negative),
        f1=_divided(2 * true_positive, 2 * true_positive + false_positive + false_negative),
    )


def _share(correct: int, total: int) -> Share:
    return Share(correct=correct, total=total, value=_divided(correct, total))


def _divided(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _test_key(pair: Pair) -> str:
    if pair.analyte is not None:
        return pair.analyte.key
    return NOT_ON_THE_PAGE if pair.truth is None else names.normalized(pair.truth.test_name)


def _of_pairs(pairs: Sequence[Pair], tolerance: float) -> FieldMetrics:
    outcomes = [field_outcomes(pair, tolerance=tolerance) for pair in pairs]
    both = [pair.predicted is not None and pair.truth is not None for pair in pairs]
    matched = [found for found, paired in zip(outcomes, both, strict=True) if paired]
    predicted = sum(pair.predicted is not None for pair in pairs)
    true = sum(pair.truth is not None for pair in pairs)
    flags = [(_flag(pair.predicted), _flag(pair.truth)) for pair, paired in zip(pairs, both, strict=True) if paired]
    flags = [each for each in flags if each != (None, None)]
    return FieldMetrics(
        predicted_tests=predicted,
        true_tests=true,
        matched_tests=len(matched),
        names=field_counts(len(matched), predicted - len(matched), true - len(matched)),
        fields=_outcome_counts([outcome for found in outcomes for outcome in found.values()]),
        value_accuracy=_agreement_of(matched, (Field.VALUE,)),
        unit_accuracy=_agreement_of(matched, (Field.UNIT,)),
        range_accuracy=_agreement_of(matched, RANGE_FIELDS),
        flag_accuracy=_share(sum(mine == theirs for mine, theirs in flags), len(flags)),
        abnormal_flags=_flag_counts(pairs, ABNORMAL),
        critical_flags=_flag_counts(pairs, CRITICAL),
    )


def _outcome_counts(outcomes: Sequence[Outcome]) -> FieldCounts:
    """Count outcomes; what differs is wrong on both sides."""
    differs = outcomes.count(Outcome.DIFFERS)
    return field_counts(
        outcomes.count(Outcome.AGREES), outcomes.count(Outcome.INVENTED) + differs, outcomes.count(Outcome.MISSING) + differs
    )


def _agreement_of(matched: Sequence[dict[Field, Outcome]], fields: Sequence[Field]) -> Share:
    """Return the share of pairs in which all of these fields agree, of those in which either side has any of them."""
    found = [[outcomes[field] for field in fields if field in outcomes] for outcomes in matched]
    compared = [outcomes for outcomes in found if outcomes]
    return _share(sum(set(outcomes) == {Outcome.AGREES} for outcomes in compared), len(compared))


def _flag(test: LabTest | None) -> Flag | None:
    return None if test is None else test.flag


def _flag_counts(pairs: Sequence[Pair], kinds: Sequence[Flag]) -> FieldCounts:
    """Count flags of these kinds; a flag of another direction is wrong on both sides."""
    flags = [(_flag(pair.predicted), _flag(pair.truth)) for pair in pairs]
    hits = sum(mine == theirs and theirs in kinds for mine, theirs in flags)
    return field_counts(hits, sum(mine in kinds for mine, _ in flags) - hits, sum(theirs in kinds for _, theirs in flags) - hits)


def _report_fields(predicted: LabReport, truth: LabReport) -> dict[str, FieldCounts]:
    compared = {name: (getattr(predicted, name), getattr(truth, name)) for name in _REPORT_FIELDS}
    mine, theirs = predicted.patient_info or PatientInfo(), truth.patient_info or PatientInfo()
    compared |= {
        f"patient_{name.removeprefix('patient_')}": (getattr(mine, name), getattr(theirs, name)) for name in _PATIENT_FIELDS
    }
    return {name: _outcome_counts(_text_outcomes(first, second)) for name, (first, second) in compared.items()}


def _text_outcomes(first: object, second: object) -> list[Outcome]:
    """Compare two optional values as texts: no outcome where neither is there."""
    mine, theirs = ("" if value is None else str(value).strip() for value in (first, second))
    if mine and theirs:
        return [Outcome.AGREES if same_text(mine, theirs) else Outcome.DIFFERS]
    if mine or theirs:
        return [Outcome.INVENTED if mine else Outcome.MISSING]
    return []


def _added_counts(counts: Sequence[FieldCounts]) -> FieldCounts:
    return field_counts(
        sum(each.true_positive for each in counts),
        sum(each.false_positive for each in counts),
        sum(each.false_negative for each in counts),
    )


def _added_shares(shares: Sequence[Share]) -> Share:
    return _share(sum(each.correct for each in shares), sum(each.total for each in shares))
