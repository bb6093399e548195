"""Ladders among the quants, and limits of single models: where they are written, what they become, what is refused."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.core.errors import SpecError
from fewbits.records.plan import SweepSpec
from fewbits.spec import add_sweep_arguments, explicit_flags, load_spec
from fewbits.spec.thresholds import LIMITS, split_key, threshold_key

WriteMatrix = Callable[..., Path]
BASE = {"models": ["a:1b", "b"], "quants": ["F16", "Q8_0"], "selection_policy": "threshold-v1", "task_bank": "humaneval"}


@pytest.fixture
def ladders(bank_dir: Path) -> Callable[..., None]:
    def write(name: str = "short", content: object = None) -> None:
        path = bank_dir / "benchmarks/ladders" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        document = {"name": name, "quants": ["F16", "q8-0", "Q4_K_M"]} if content is None else content
        path.write_text(document if isinstance(document, str) else json.dumps(document))

    return write


def load(where: Path, path: Path | None = None, **flags: object) -> SweepSpec:
    return load_spec(flags if path is not None else {**BASE, **flags}, path, cwd=where, root=where)


def problems(where: Path, path: Path | None = None, **flags: object) -> str:
    with pytest.raises(SpecError) as caught:
        load(where, path, **flags)
    return str(caught.value)


def parse(*argv: str) -> dict[str, object]:
    parser = argparse.ArgumentParser()
    add_sweep_arguments(parser)
    return explicit_flags(parser.parse_args(argv))


# --- ladders -----------------------------------------------------------------------------------------------------------


def test_a_ladder_stands_for_its_tags_in_its_place(
    bank_dir: Path, write_matrix: WriteMatrix, ladders: Callable[..., None]
) -> None:
    ladders()
    assert load(bank_dir, quants="ladder:short").quants == ("F16", "Q8_0", "Q4_K_M")
    matrix = write_matrix({**BASE, "quants": ["Q6_K", "ladder:short", "Q2_K"], "reference_quant": "F16"})
    assert load(bank_dir, matrix).quants == ("Q6_K", "F16", "Q8_0", "Q4_K_M", "Q2_K")
    assert load(bank_dir, quants="LADDER:short,Q3_K").quants[-1] == "Q3_K_M"


def test_duplicates_are_refused_and_say_where_from(bank_dir: Path, ladders: Callable[..., None]) -> None:
    ladders()
    message = problems(bank_dir, quants="Q8_0,ladder:short")
    assert "--quant-tags[1, from ladder:short]: Q8_0 is listed twice (first at 0)" in message
    message = problems(bank_dir, quants="ladder:short,Q8_0")
    assert "--quant-tags[1]: Q8_0 is listed twice (first at 0, from ladder:short)" in message
    assert problems(bank_dir, quants="ladder:short,ladder:short").startswith("3 problems:")


def test_a_placeholder_ladder_is_replaced_by_the_file(bank_dir: Path, write_matrix: WriteMatrix) -> None:
    assert load(bank_dir, write_matrix(BASE), quants="ladder:none_such").quants == ("F16", "Q8_0")


def test_unknown_ladders_say_what_there_is(bank_dir: Path, write_matrix: WriteMatrix, ladders: Callable[..., None]) -> None:
    assert "there is no benchmarks/ladders here" in problems(bank_dir, quants="ladder:common")
    ladders()
    message = problems(bank_dir, write_matrix({**BASE, "quants": ["Q8_0", "ladder:shrt"]}))
    assert "quants[1]: unknown ladder 'shrt' (did you mean 'short'?; there are: short;" in message
    for name in ("", "../short", "a/b", "short.json/..", ".hidden"):
        assert "is no name of a ladder" in problems(bank_dir, quants=f"ladder:{name}")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"quants": []}, "quants: expected a list of quantization tags, got []"),
        ({"quants": "F16"}, "quants: expected a list of quantization tags, got 'F16'"),
        ({"name": "short"}, "quants: expected a list of quantization tags, got None"),
        ({"quants": ["F16", 8]}, "quants[1]: expected a quantization tag, got 8"),
        ({"quants": ["F16", " "]}, "quants[1]: expected a quantization tag, got ' '"),
        ({"quants": ["ladder:short"]}, "quants[0]: a ladder lists tags, not other ladders"),
        ({"quants": ["F16", "F16"]}, "F16 is listed twice"),
        ({"quants": ["Q8_1"]}, "unknown quant tag 'Q8_1'"),
        ({"quants": ["F16"], "quant": 1}, "quant: unknown key (did you mean 'quants'?)"),
        ({"quants": ["F16"], "name": "long"}, "name: says 'long', but the file is called 'short'"),
        ({"quants": ["F16"], "description": 1}, "description: expected text, got 1"),
        ("[]", "expected an object of settings, got a list"),
        ('{"quants": ["F16"], "quants": []}', "'quants' is given twice"),
        ("{", "not JSON"),
    ],
)
def test_unusable_ladder_files(bank_dir: Path, ladders: Callable[..., None], content: object, expected: str) -> None:
    ladders("short", content)
    message = problems(bank_dir, quants="ladder:short", threads="0")
    assert expected in message
    assert "--threads" in message


def test_a_tag_that_the_runtime_cannot_build_is_found_inside_a_ladder(bank_dir: Path, ladders: Callable[..., None]) -> None:
    ladders("short", {"quants": ["F16", "awq"]})
    assert "--quant-tags[0, from ladder:short]: unknown quant tag 'awq'" in problems(bank_dir, quants="ladder:short")
    flags = {"runtime": "openai", "base_url": "http://x/v1"}
    assert load(bank_dir, None, quants="ladder:short", **flags).quants == ("F16", "awq")


# --- limits of single models -------------------------------------------------------------------------------------------


def test_a_model_has_its_own_limits_and_the_sweeps_for_the_rest(bank_dir: Path, write_matrix: WriteMatrix) -> None:
    own = {"a:1b": {"latency_ceiling": 3, "adherence_floor": 0.5, "equivalence_margin": 0.2, "adherence_threshold": 0.8}}
    spec = load(bank_dir, write_matrix({**BASE, "adherence_floor": 0.3, "include_invalid": True, "model_thresholds": own}))
    policy = spec.policy_of("a:1b")
    assert (policy.latency_ceiling, policy.adherence_floor, policy.equivalence_margin) == (3.0, 0.5, 0.2)
    assert (policy.adherence_threshold, policy.include_invalid, policy.name) == (0.8, True, spec.policy.name)
    assert spec.policy_of("b") == spec.policy
    assert set(spec.model_policies) == {"a:1b"}
    # on disk and back
    assert msgspec.convert(msgspec.to_builtins(spec), SweepSpec) == spec


def test_limits_that_change_nothing_leave_no_trace(bank_dir: Path, write_matrix: WriteMatrix) -> None:
    same = write_matrix({**BASE, "latency_ceiling": 5, "model_thresholds": {"b": {"latency_ceiling": 5.0}}})
    assert load(bank_dir, same) == load(bank_dir, write_matrix({**BASE, "latency_ceiling": 5}, "plain.json"))


def test_flags_beat_the_file_limit_by_limit(bank_dir: Path, write_matrix: WriteMatrix) -> None:
    matrix = write_matrix({**BASE, "model_thresholds": {"a:1b": {"latency_ceiling": 3, "adherence_floor": 0.5}}})
    flags = parse("--model-threshold", "a:1b:latency_ceiling=4", "--model-threshold", "b:adherence_floor=0.2")
    spec = load(bank_dir, matrix, **flags)
    assert (spec.policy_of("a:1b").latency_ceiling, spec.policy_of("a:1b").adherence_floor) == (4.0, 0.5)
    assert spec.policy_of("b").adherence_floor == 0.2
    from_python = load(bank_dir, matrix, model_thresholds={"b": {"adherence_floor": 0.25}})
    assert from_python.policy_of("b").adherence_floor == 0.25


def test_a_models_own_limit_beats_a_general_one(bank_dir: Path, write_matrix: WriteMatrix) -> None:
    matrix = write_matrix({**BASE, "model_thresholds": {"b": {"latency_ceiling": 3}}})
    assert load(bank_dir, matrix, latency_ceiling="7").policy_of("b").latency_ceiling == 3


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (
            {"c": {"latency_ceiling": 1}},
            "model_thresholds[\"c\"].latency_ceiling: 'c' is no model of this sweep (it has a:1b, b)",
        ),
        ({"a:1bb": {"latency_ceiling": 1}}, "(did you mean 'a:1b'?)"),
        (
            {"b": {"latency_cieling": 1}},
            "model_thresholds[\"b\"].latency_cieling: unknown limit (did you mean 'latency_ceiling'?)",
        ),
        ({"b": {"seed": 1}}, 'model_thresholds["b"].seed: unknown limit (one of adherence_threshold,'),
        ({"b": {"error_level": 0.1}}, 'model_thresholds["b"].error_level: unknown limit'),
        ({"b": {"latency_ceiling": "3"}}, "model_thresholds[\"b\"].latency_ceiling: expected float, got str ('3')"),
        ({"b": {"latency_ceiling": True}}, "expected float, got bool"),
        ({"b": {"latency_ceiling": None}}, "expected float, got null"),
        ({"b": {"latency_ceiling": 0}}, "expected float > 0.0, got 0"),
        ({"b": {"latency_ceiling": -1}}, "expected float > 0.0, got -1"),
        ({"b": {"adherence_floor": -0.1}}, "expected float >= 0.0, got -0.1"),
        ({"b": {"adherence_threshold": 1.5}}, "expected float <= 1.0, got 1.5"),
        ({"b": {"equivalence_margin": 1}}, "expected float < 1.0, got 1"),
        ({"b": {}}, 'model_thresholds["b"]: expected an object of limits, got {}'),
        ({"b": 3}, 'model_thresholds["b"]: expected an object of limits, got 3'),
        ({"": {"latency_ceiling": 1}}, 'model_thresholds[""]: a model needs a name'),
        (["b"], "model_thresholds: expected an object of models, got ['b']"),
        (None, "model_thresholds: expected an object of models, got None"),
    ],
)
def test_problems_stand_at_their_place(bank_dir: Path, write_matrix: WriteMatrix, own: object, expected: str) -> None:
    assert expected in problems(bank_dir, write_matrix({**BASE, "model_thresholds": own}))


def test_not_a_number_is_refused_at_its_place(bank_dir: Path, write_matrix: WriteMatrix) -> None:
    text = json.dumps({**BASE, "model_thresholds": {"b": {"latency_ceiling": 123456}}})
    for word in ("NaN", "Infinity", "-Infinity", "1e999"):
        message = problems(bank_dir, write_matrix(text.replace("123456", word)))
        assert "model_thresholds.b.latency_ceiling: " in message
        assert "not a usable number" in message
    assert "got 'nan'" in problems(bank_dir, model_thresholds=["b:latency_ceiling=nan"])
    assert "inf is not a usable number" in problems(bank_dir, model_thresholds=["b:latency_ceiling=inf"])


def test_a_threshold_under_three_zone_is_refused(bank_dir: Path, write_matrix: WriteMatrix) -> None:
    own = {"b": {"adherence_threshold": 0.9}, "a:1b": {"equivalence_margin": 0.1}}
    matrix = write_matrix({**BASE, "selection_policy": "three-zone-v1", "model_thresholds": own})
    message = problems(bank_dir, matrix)
    assert 'model_thresholds["b"].adherence_threshold: decides nothing under three-zone-v1' in message
    assert message.startswith("1 problem:")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("latency_ceiling=3", "--model-threshold: cannot read 'latency_ceiling=3' (write MODEL:KEY=VALUE"),
        ("b:latency_ceiling", "cannot read 'b:latency_ceiling'"),
        ("b:latency=3", "--model-threshold b:latency: unknown limit"),
        ("b:latency_ceiling=", "--model-threshold b:latency_ceiling: expected float, got str ('')"),
        ("b:latency_ceiling=fast", "expected float, got str ('fast')"),
        ("b:latency_ceiling=-2", "expected float > 0.0"),
        ("c:latency_ceiling=2", "--model-threshold c:latency_ceiling: 'c' is no model of this sweep"),
        (":latency_ceiling=2", "cannot read"),
    ],
)
def test_problems_of_the_flag(bank_dir: Path, text: str, expected: str) -> None:
    assert expected in problems(bank_dir, None, **parse("--model-threshold", text))


def test_the_flag_given_twice_must_agree(bank_dir: Path) -> None:
    twice = ["b:latency_ceiling=2", "b:latency_ceiling=3"]
    assert "they are one setting" in problems(bank_dir, model_thresholds=twice)
    assert load(bank_dir, model_thresholds=["b:latency_ceiling=2", "b:latency_ceiling=2.0"]).policy_of("b").latency_ceiling == 2
    assert "cannot read 3" in problems(bank_dir, model_thresholds=3)


def test_a_written_out_inner_key_is_no_second_spelling(bank_dir: Path, write_matrix: WriteMatrix) -> None:
    matrix = write_matrix({**BASE, threshold_key("b", "latency_ceiling"): 3})
    assert "unknown key" in problems(bank_dir, matrix)


@given(st.text(min_size=1), st.sampled_from(LIMITS))
def test_keys_of_any_model_name_can_be_split_again(model: str, limit: str) -> None:
    assert split_key(threshold_key(model, limit)) == (model, limit)


@given(model=st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1).filter(lambda text: text.strip() == text))
def test_any_model_name_can_have_limits(model: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.json"
        own = {model: {"latency_ceiling": 3}}
        path.write_text(json.dumps({**BASE, "models": [model], "model_thresholds": own}))
        assert load(Path(folder), path).policy_of(model).latency_ceiling == 3
        path.write_text(json.dumps({**BASE, "models": [model]}))
        assert load(Path(folder), path, model_thresholds=[f"{model}:latency_ceiling=3"]).policy_of(model).latency_ceiling == 3
