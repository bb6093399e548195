"""A manifest's story: order, totals, and several runs side by side."""

from __future__ import annotations

import math
import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sensitivity_samples as samples
from fewbits.analysis.sensitivity import (
    OUTSIDE,
    most_aggressive,
    report_rows,
    rollup,
    sensitivity_report,
    total_sensitivity,
    totals_by_depth,
    totals_by_kind,
)
from fewbits.records.sensitivity import GranularitySettings, GroupSensitivity, RunStatus, SensitivityManifest


def with_scores(scores: dict[str, float]) -> SensitivityManifest:
    """A manifest whose groups have these scores; kinds and depths go round."""
    pattern = next(iter(samples.sample_groups().values()))
    groups = {
        name: msgspec.structs.replace(
            pattern,
            kind=f"kind{index % 3}",
            depth=None if index % 5 == 4 else index % 5,
            candidates=(msgspec.structs.replace(pattern.candidates[0], score=score), pattern.candidates[1]),
        )
        for index, (name, score) in enumerate(scores.items())
    }
    return samples.sample_manifest(layer_sensitivity=groups)


SCORES = st.dictionaries(st.text(min_size=1, max_size=4), st.floats(0, 1e6), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(SCORES, st.randoms())
def test_rows_are_ordered_and_do_not_depend_on_the_order_of_the_manifest(scores: dict[str, float], rng: random.Random) -> None:
    manifest = with_scores(scores)
    rows = report_rows(manifest)
    assert [(row.layer, row.sensitivity) for row in rows] == sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))
    shuffled = list(manifest.layer_sensitivity.items())
    rng.shuffle(shuffled)
    again = report_rows(msgspec.structs.replace(manifest, layer_sensitivity=dict(shuffled)))
    assert again == rows
    assert total_sensitivity(again) == total_sensitivity(rows) == math.fsum(scores.values())


@settings(max_examples=60, deadline=None)
@given(SCORES)
def test_both_ways_of_adding_up_give_the_whole(scores: dict[str, float]) -> None:
    rows = report_rows(with_scores(scores))
    for totals in (totals_by_kind(rows), totals_by_depth(rows)):
        assert sum(total.groups for total in totals) == len(rows)
        assert math.fsum(total.sensitivity for total in totals) == pytest.approx(total_sensitivity(rows))
        shares = [total.share for total in totals if total.share is not None]
        assert not shares or sum(shares) == pytest.approx(1)
    by_depth = totals_by_depth(rows)
    assert [total.name for total in by_depth if total.depth is None] in ([], [OUTSIDE])
    depths = [total.depth for total in by_depth if total.depth is not None]
    assert depths == sorted(depths)
    assert by_depth[-1].depth is None or OUTSIDE not in {total.name for total in by_depth}


def test_where_nothing_is_sensitive_there_are_no_shares() -> None:
    rows = report_rows(with_scores({"a": 0.0, "b": 0.0}))
    assert {total.share for total in totals_by_kind(rows)} == {None}


def test_the_row_is_about_the_fewest_bits_that_quantize_at_all() -> None:
    group = next(iter(samples.sample_groups().values()))
    int8, none = group.candidates
    int4 = msgspec.structs.replace(int8, format="INT4", weight_bits=4.125, score=7.0, cost_bytes=5.0)
    several = msgspec.structs.replace(group, candidates=(int4, int8, none))
    assert most_aggressive(several) == int4
    only_none = msgspec.structs.replace(group, candidates=(none,))
    assert most_aggressive(only_none) is None
    groups: dict[str, GroupSensitivity] = {"a": several, "b": only_none}
    (row,) = report_rows(samples.sample_manifest(layer_sensitivity=groups))
    assert (row.layer, row.num_bits, row.sensitivity, row.size_cost) == ("a", 4.125, 7.0, 5.0)


def test_the_report_keeps_requested_adjusted_and_selected_bits_apart() -> None:
    report = sensitivity_report(samples.sample_manifest(), "m.json", "0" * 64)
    state = report.autoquant_state
    assert (state["requested_effective_bits"], state["adjusted_effective_bits"]) == (8.5, 9.0123)
    assert (state["selected_effective_bits"], state["score"], state["is_satisfied"]) == (8.0, 0.912, True)
    assert report.total_sensitivity != state["score"]


def test_a_failed_run_has_no_report() -> None:
    with pytest.raises(ValueError, match="out of memory"):
        sensitivity_report(samples.failed_manifest(), "m.json", "0" * 64)


class TestRollup:
    def test_sizes_of_a_pair_and_pairs_of_a_size_are_compared(self) -> None:
        found = samples.sample_rollup()
        assert [(one.left, one.right) for one in found.between_sizes] == [
            ("wint4_afp16 small", "wint4_afp16 medium"),
            ("wint8_aint8 small", "wint8_aint8 medium"),
        ]
        assert [(one.left, one.right) for one in found.between_pairs] == [
            ("wint4_afp16 small", "wint8_aint8 small"),
            ("wint4_afp16 medium", "wint8_aint8 medium"),
        ]
        assert all(one.spearman is not None and one.spearman.value > 0.9 for one in found.between_sizes)

    def test_a_failed_run_is_listed_without_numbers_and_compared_with_nothing(self) -> None:
        found = samples.sample_rollup()
        (failed,) = [run for run in found.runs if run.status is RunStatus.FAILED]
        assert failed.total_sensitivity is None
        assert failed.most_sensitive is None
        assert "out of memory" in failed.failure
        assert not any("wint4_aint4" in one.left + one.right for one in found.between_pairs)
        assert found.skipped == {"runs/old/int8_quant_manifest.json": "made by another version of fewbits"}

    def test_the_order_of_the_files_does_not_matter(self) -> None:
        manifests = {
            f"{pair}{size}": samples.sample_manifest(pair, size)
            for pair in ("wint8_aint8", "wfp8_afp8")
            for size in ("small", "large")
        }
        backwards = dict(reversed(manifests.items()))
        assert rollup(manifests, {}) == rollup(backwards, {})

    def test_other_groups_granularities_and_models_are_not_compared(self) -> None:
        groups = dict(list(samples.sample_groups().items())[:20])
        spec = samples.sample_spec("wfp8_afp8")
        other_model = msgspec.structs.replace(spec, model=msgspec.structs.replace(spec.model, name="another"))
        finer = msgspec.structs.replace(spec, quant_granularity=GranularitySettings(name="w_group64"))
        found = rollup(
            {
                "a": samples.sample_manifest(),
                "b": samples.sample_manifest("wfp8_afp8", layer_sensitivity=groups),
                "c": samples.sample_manifest("wfp8_afp8", spec=other_model),
                "d": samples.sample_manifest("wfp8_afp8", spec=finer),
            },
            {},
        )
        assert found.between_pairs == found.between_sizes == ()
        assert len(found.runs) == 4

    def test_a_cap_of_its_own_is_another_size(self) -> None:
        spec = samples.sample_spec()
        capped = msgspec.structs.replace(spec, dataset=msgspec.structs.replace(spec.dataset, max_calib_samples=32))
        found = rollup({"a": samples.sample_manifest(), "b": samples.sample_manifest(spec=capped, calibration_samples=32)}, {})
        (one,) = found.between_sizes
        assert {one.left, one.right} == {"wint8_aint8 medium", "wint8_aint8 medium (at most 32)"}

    def test_two_configurations_of_one_pair_are_told_apart(self) -> None:
        found = rollup({"a": samples.sample_manifest(), "b": samples.sample_manifest(scheme="int8_autoquant_lm_default")}, {})
        (one,) = found.between_pairs
        assert one.left != one.right
        assert "int8_autoquant_lm_default" in one.left + one.right

    def test_what_differs_within_the_rollup_is_part_of_the_names(self) -> None:
        spec = samples.sample_spec()
        finer = [
            msgspec.structs.replace(samples.sample_spec(pair), quant_granularity=GranularitySettings(name="w_group64"))
            for pair in ("wint8_aint8", "wfp8_afp8")
        ]
        found = rollup(
            {
                "a": samples.sample_manifest(spec=spec),
                "b": samples.sample_manifest("wint8_aint8", spec=finer[0]),
                "c": samples.sample_manifest("wfp8_afp8", spec=finer[1]),
            },
            {},
        )
        (one,) = found.between_pairs
        assert one.left.endswith(", w_group64")
        assert one.right.endswith(", w_group64")
