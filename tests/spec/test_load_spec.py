from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.core.errors import SpecError
from fewbits.records.base import Bucket
from fewbits.records.plan import QualityPolicy, SweepSpec
from fewbits.spec import add_sweep_arguments, explicit_flags, load_spec
from fewbits.spec.affinity import parse_cores
from fewbits.spec.load import DEFAULT_OUT_DIR, DEFAULT_TASK_BANK
from fewbits.spec.parameters import ELSEWHERE, PARAMETERS
from fewbits.spec.sources import settings_of_document
from fewbits.spec.thresholds import LIMITS
from fewbits.spec.values import field_type

WriteMatrix = Callable[..., Path]
BASE = {"models": ["smollm2-135m"], "quants": ["F16", "Q8_0"]}
FLAGS = {"models": "placeholder", "quants": "Q4_0"}


def load(flags: dict[str, object], path: Path | None, where: Path, cores: int | None = None) -> SweepSpec:
    return load_spec(flags, path, cwd=where, available_cores=None if cores is None else range(cores))


def problems(flags: dict[str, object], path: Path | None, where: Path, cores: int | None = None) -> str:
    with pytest.raises(SpecError) as caught:
        load(flags, path, where, cores)
    return str(caught.value)


def parse(*argv: str) -> dict[str, object]:
    parser = argparse.ArgumentParser()
    add_sweep_arguments(parser)
    return explicit_flags(parser.parse_args(argv))


# --- the table ---------------------------------------------------------------------------------------------------------


def test_every_parameter_reaches_a_field_of_its_own_and_every_field_has_a_parameter() -> None:
    targets = [parameter.target for parameter in PARAMETERS]
    assert len(set(targets)) == len(targets)
    sections = {name for name in SweepSpec.__struct_fields__ if isinstance(getattr(_defaults(), name), msgspec.Struct)}
    fields = {
        f"{section}.{name}" if section else name
        for section in ("", *sections)
        for name in (info.name for info in msgspec.structs.fields(_record(section)))
    }
    assert set(targets) == fields - sections - {"detection", "extraction"}  # these have commands of their own
    for parameter in PARAMETERS:
        assert field_type(parameter) is not None


def _record(section: str) -> type[msgspec.Struct]:
    if not section:
        return SweepSpec
    return type(getattr(_defaults(), section))


def _defaults() -> SweepSpec:
    return SweepSpec(models=(), quants=(), task_bank="", out_dir="", summary_out="")


def test_retired_keys_are_not_settings() -> None:
    assert not ELSEWHERE.keys() & {parameter.key for parameter in PARAMETERS}


# --- defaults and inputs -----------------------------------------------------------------------------------------------


def test_defaults(bank_dir: Path) -> None:
    spec = load({"models": "m", "quants": "q8_0"}, None, bank_dir)
    assert spec == SweepSpec(
        models=("m",),
        quants=("Q8_0",),
        task_bank=DEFAULT_TASK_BANK,
        out_dir=DEFAULT_OUT_DIR,
        summary_out=f"{DEFAULT_OUT_DIR}/sweep_summary.json",
    )


def test_summary_follows_out_dir_unless_given(bank_dir: Path) -> None:
    assert load({**FLAGS, "out_dir": "runs/x/"}, None, bank_dir).summary_out == "runs/x/sweep_summary.json"
    assert load({**FLAGS, "out_dir": "runs/x", "summary_out": "s.json"}, None, bank_dir).summary_out == "s.json"


def test_relative_inputs_are_found_here_first_then_in_the_root(bank_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (bank_dir / "m.json").write_text(json.dumps(BASE))
    spec = load_spec({}, Path("m.json"), cwd=elsewhere, root=bank_dir)
    assert spec.task_bank == str(bank_dir / DEFAULT_TASK_BANK)
    assert load_spec({}, Path("m.json"), cwd=bank_dir, root=elsewhere).task_bank == DEFAULT_TASK_BANK


def test_a_named_bank_is_no_file(bank_dir: Path) -> None:
    assert load({**FLAGS, "task_bank": "humaneval"}, None, bank_dir).task_bank == "humaneval"
    assert "no such task bank file" in problems({**FLAGS, "task_bank": "no/such.json"}, None, bank_dir)


def test_nothing_given_says_what_to_give(bank_dir: Path) -> None:
    message = problems({}, None, bank_dir)
    assert message.startswith("2 problems:")
    assert "--model-id" in message
    assert "--quant-tags" in message


def test_empty_list_flags_say_so(bank_dir: Path) -> None:
    message = problems({"models": ",", "quants": " , "}, None, bank_dir)
    assert "--model-id: expected list of length >= 1" in message
    assert "--quant-tags: expected list of length >= 1" in message


# --- precedence --------------------------------------------------------------------------------------------------------


def test_the_file_replaces_placeholder_flags_even_bad_ones(write_matrix: WriteMatrix, bank_dir: Path) -> None:
    spec = load({"models": "placeholder", "quants": "no_such_tag"}, write_matrix(BASE), bank_dir)
    assert (spec.models, spec.quants) == (("smollm2-135m",), ("F16", "Q8_0"))


def test_flags_fill_in_for_a_file_without_models(write_matrix: WriteMatrix, bank_dir: Path) -> None:
    spec = load({"models": "m"}, write_matrix({"quants": ["Q8_0"]}), bank_dir)
    assert spec.models == ("m",)
    assert "no quantization is given" in problems({"models": "m"}, write_matrix({"seed": 1}), bank_dir)


def test_a_default_can_be_asked_for_explicitly(write_matrix: WriteMatrix, bank_dir: Path) -> None:
    path = write_matrix({**BASE, "runs_per_quant": 3, "threads": 2, "include_invalid": True, "canary_drop_first_run": False})
    flags = parse("--runs", "1", "--threads", "auto", "--no-include-invalid", "--canary-drop-first-run")
    spec = load(flags, path, bank_dir)
    assert (spec.runs_per_quant, spec.controls.threads) == (1, None)
    assert (spec.policy.include_invalid, spec.canary.drop_first_run) == (False, True)


NUMBERS: dict[str, Any] = {
    "runs_per_quant": st.integers(1, 50),
    "seed": st.integers(0, 2**31 - 1),
    "threads": st.integers(1, 64),
    "warmup_steps": st.integers(0, 9),
    "max_tokens": st.integers(1, 1000),
    "task_limit": st.integers(0, 99),
    "latency_ceiling": st.floats(0.1, 60),
    "adherence_floor": st.floats(0, 1),
    "execution_lane": st.sampled_from(["ci", "lab"]),
    "runtime_target": st.sampled_from(["here", "there"]),
}
SOME = st.fixed_dictionaries({}, optional=NUMBERS)


@given(in_file=SOME, on_flags=SOME, as_text=st.booleans())
def test_flag_beats_file_beats_default(in_file: dict[str, Any], on_flags: dict[str, Any], as_text: bool) -> None:
    flags = {key: str(value) for key, value in on_flags.items()} if as_text else on_flags
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        (where / "m.json").write_text(json.dumps({**BASE, **in_file, "task_bank": "humaneval"}))
        spec = msgspec.to_builtins(load({**FLAGS, **flags}, where / "m.json", where))
        default = msgspec.to_builtins(load({**BASE, "task_bank": "humaneval"}, None, where))
    targets = {parameter.key: parameter.target.split(".") for parameter in PARAMETERS}
    for key in NUMBERS:
        got, expected = spec, default
        for name in targets[key]:
            got, expected = got[name], expected[name]
        assert got == on_flags.get(key, in_file.get(key, expected))


@given(st.permutations(list({**BASE, "seed": 5, "threads": 1, "tiers": [1, 2], "task_bank": "humaneval"}.items())))
def test_the_order_of_keys_means_nothing(items: list[tuple[str, Any]]) -> None:
    first, second = settings_of_document(dict(items)), settings_of_document(dict(sorted(items)))
    assert first.values == second.values


# --- aliases -----------------------------------------------------------------------------------------------------------


def test_aliases_in_files_and_on_flags(write_matrix: WriteMatrix, bank_dir: Path) -> None:
    path = write_matrix({**BASE, "venue": "rig", "flow": "batch", "allow_polluted_frontier": True})
    spec = load({}, path, bank_dir)
    assert (spec.runtime_target, spec.execution_mode, spec.policy.include_invalid) == ("rig", "batch", True)
    spec = load(parse("--venue", "other", "--execution-mode", "now"), path, bank_dir)
    assert (spec.runtime_target, spec.execution_mode) == ("other", "now")


def test_two_spellings_must_agree(write_matrix: WriteMatrix, bank_dir: Path) -> None:
    same = write_matrix({**BASE, "venue": "a", "runtime_target": "a"})
    assert load({}, same, bank_dir).runtime_target == "a"
    other = write_matrix({**BASE, "venue": "a", "runtime_target": "b"})
    assert "venue says 'a', runtime_target says 'b'" in problems({}, other, bank_dir)
    assert "one setting" in problems({**FLAGS, **parse("--venue", "a", "--runtime-target", "b")}, None, bank_dir)
    assert "one setting" in problems({**FLAGS, **parse("--no-canary", "--canary-runs", "5")}, None, bank_dir)
    both = {**BASE, "row_max_polluted_rate": 0.5, "quality_policy": {"row_max_polluted_rate": 0.4}}
    assert "one setting" in problems({}, write_matrix(both), bank_dir)


def test_no_canary(bank_dir: Path) -> None:
    assert load({**FLAGS, **parse("--no-canary")}, None, bank_dir).canary.runs == 0


# --- problems ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"modles": ["x"]}, "modles: unknown key (did you mean 'models'?)"),
        ({"canary_task_limit": 1}, "canary_task_limit: unknown key (the canary repeats one task"),
        ({"quality_policy.name": "x"}, "unknown key"),
        ({"quality_policy": {"max_steel_ratio": 0.1}}, "did you mean 'quality_policy.max_steal_ratio'?"),
        ({"quality_policy": 3}, "quality_policy: expected an object of limits, got 3"),
        ({"no_canary": 0}, "no_canary: unknown key"),
        ({"seed": "7"}, "seed: expected int, got str ('7')"),
        ({"seed": True}, "seed: expected int, got bool (True)"),
        ({"seed": 1.5}, "seed: expected int, got float (1.5)"),
        ({"threads": 0}, "threads: expected int >= 1, got 0"),
        ({"runs_per_quant": 0}, "runs_per_quant: expected int >= 1, got 0"),
        ({"runs_per_quant": -3}, "runs_per_quant: expected int >= 1, got -3"),
        ({"runs_per_quant": None}, "runs_per_quant: expected int, got null"),
        ({"models": "m"}, "models: expected list, got str ('m')"),
        ({"models": []}, "models: expected list of length >= 1"),
        ({"models": ["m", ""]}, "models[1]: expected str of length >= 1"),
        ({"models": ["m", "n", "m"]}, "models[2]: m is listed twice (first at 0)"),
        ({"quants": []}, "quants: expected list of length >= 1"),
        ({"quants": ["Q8_0", "q8-0"]}, "quants[1]: Q8_0 is listed twice (first at 0)"),
        ({"quants": ["Q4_K", "Q4_K_M"]}, "quants[1]: Q4_K_M is listed twice"),
        ({"quants": ["F16", "Q8_1"]}, "quants[1]: unknown quant tag 'Q8_1'"),
        ({"quants": [3]}, "quants[0]: expected str, got int (3)"),
        ({"buckets": ["logik"]}, "got 'logik' (did you mean 'logic'?)"),
        ({"tiers": [0]}, "tiers[0]: expected int >= 1, got 0"),
        ({"tiers": [2, 2]}, "tiers[1]: 2 is listed twice"),
        ({"task_id_min": "b", "task_id_max": "a"}, "no task is left"),
        ({"execution_lane": "prod"}, "expected one of ci, lab; got 'prod'"),
        ({"adherence_threshold": 1.5}, "adherence_threshold: expected float <= 1.0, got 1.5"),
        ({"affinity_policy": ""}, "none, auto, or cores:LIST"),
        ({"affinity_policy": "cores:1-"}, "'1-' is neither a core nor a range"),
        ({"affinity_policy": "cores:3-1"}, "from a smaller to a larger"),
        ({"affinity_policy": "cores:0", "threads": 2}, "2 threads on 1 pinned core(s)"),
        ({"max_tokens": 2048}, "leaves no room for a prompt"),
        ({"reference_quant": "Q6_K"}, "reference_quant: Q6_K is not among the quants"),
        ({"canary_quant_tag": "bogus"}, "canary_quant_tag: unknown quant tag"),
        ({"canary_runs": 3}, "3 repeats leave 2 to judge"),
        ({"runtime": "openai"}, "the openai runtime needs a server"),
        ({"runtime": "olama"}, "did you mean 'ollama'?"),
        ({"base_url": "http://x"}, "runtime llamacpp has no server to address"),
        ({"runtime": "ollama", "base_url": "localhost:1"}, "expected an http:// or https:// address"),
        ({"runtime": "scripted"}, "needs the file with its replies"),
        ({"script": "a.json"}, "runtime llamacpp takes no script"),
        ({"quality_policy": {"name": "standard-v1", "max_steal_ratio": 0.5}}, "standard-v1 has other limits"),
    ],
)
def test_file_problems(write_matrix: WriteMatrix, bank_dir: Path, content: dict[str, object], expected: str) -> None:
    assert expected in problems({}, write_matrix({**BASE, **content}), bank_dir)


def test_all_problems_at_once(write_matrix: WriteMatrix, bank_dir: Path) -> None:
    path = write_matrix({"models": [], "quants": ["Q9"], "sede": 1, "seed": -1, "affinity_policy": "cores:x-"})
    message = problems(parse("--runs", "0", "--temperature", "nan", "--tier", "9"), path, bank_dir)
    for part in ("models:", "quants[0]:", "sede:", "seed:", "affinity_policy:", "--runs:", "--temperature:", "--tier[0]:"):
        assert part in message
    assert message.startswith("8 problems:")


def test_a_broken_file_does_not_blame_the_placeholders(write_matrix: WriteMatrix, bank_dir: Path) -> None:
    message = problems({"models": "placeholder", "quants": "bogus", "seed": "x"}, write_matrix("{"), bank_dir)
    assert "not JSON" in message
    assert "--seed" in message
    assert "bogus" not in message


def test_machine_limits(bank_dir: Path) -> None:
    assert "--threads: 3 threads, but this process may use 2 core(s)" in problems({**FLAGS, "threads": "3"}, None, bank_dir, 2)
    pinned = problems({**FLAGS, "affinity_policy": "cores:1,5"}, None, bank_dir, 2)
    assert "no such core for this process: 5" in pinned
    assert load({**FLAGS, "threads": "2", "affinity_policy": "cores:0-1"}, None, bank_dir, 2).controls.threads == 2
    # a server has cores of its own
    assert load({**FLAGS, "threads": "64", "runtime": "ollama"}, None, bank_dir, 2).controls.threads == 64


def test_server_tags_are_free(bank_dir: Path) -> None:
    spec = load(
        {"models": "llama3.1:8b", "quants": "q4_k_m,awq-int4", "runtime": "openai", "base_url": "http://x/v1"}, None, bank_dir
    )
    assert spec.quants == ("Q4_K_M", "awq-int4")


def test_id_bounds_of_digits_are_numbers(bank_dir: Path) -> None:
    selection = load({**FLAGS, "task_id_min": "9", "task_id_max": "10"}, None, bank_dir).selection
    assert (selection.id_min, selection.id_max) == ("9", "10")
    assert "no task is left" in problems({**FLAGS, "task_id_min": "10", "task_id_max": "9"}, None, bank_dir)


def test_unknown_setting_from_python(bank_dir: Path) -> None:
    assert "run: unknown setting" in problems({**FLAGS, "run": 3}, None, bank_dir)


# --- flags -------------------------------------------------------------------------------------------------------------


def test_lists_on_flags(bank_dir: Path) -> None:
    flags = parse("--model-id", "a, b", "--model-id", "c", "--quant-tags", "Q8_0,,q4_k_m ,", "--bucket", "logic", "--tier", "1,2")
    spec = load(flags, None, bank_dir)
    assert spec.models == ("a", "b", "c")
    assert spec.quants == ("Q8_0", "Q4_K_M")
    assert spec.selection.buckets == (Bucket.LOGIC,)
    assert spec.selection.tiers == (1, 2)


def test_nothing_is_explicit_by_default() -> None:
    assert parse() == {}


def test_quality_policy_has_an_honest_name(write_matrix: WriteMatrix, bank_dir: Path) -> None:
    assert load({}, write_matrix(BASE), bank_dir).quality == QualityPolicy()
    assert load(parse("--row-max-polluted-rate", "0.5"), write_matrix(BASE), bank_dir).quality.name == "custom"
    named = {**BASE, "quality_policy": {"name": "noisy-host", "max_foreign_cpu_ratio": 0.3}}
    quality = load({}, write_matrix(named), bank_dir).quality
    assert (quality.name, quality.max_foreign_cpu_ratio) == ("noisy-host", 0.3)


@given(st.sets(st.integers(0, 200), min_size=1))
def test_core_lists_survive_being_written(cores: set[int]) -> None:
    assert parse_cores("cores:" + ",".join(str(core) for core in cores)) == tuple(sorted(cores))
    assert parse_cores(f"cores:{min(cores)}-{max(cores)}") == tuple(range(min(cores), max(cores) + 1))


def test_every_flag_of_the_runbook_and_the_issue_is_declared() -> None:
    parser = argparse.ArgumentParser()
    add_sweep_arguments(parser)
    declared = {option for action in parser._actions for option in action.option_strings}
    wanted = """--model-id --quant-tags --matrix-config --runs --task-bank --task-limit --task-id-min --task-id-max --task-ids
    --bucket --tier --seed --threads --affinity-policy --warmup-steps --temperature --max-tokens --context-size --batch-size
    --runtime --base-url --script --runtime-target --venue --execution-mode --flow --execution-lane --vram-profile --canary-runs
    --canary-task-id --canary-latency-variance-threshold --canary-drop-first-run --no-canary-drop-first-run
    --canary-max-missing-telemetry-rate --no-canary --adherence-threshold --adherence-floor --latency-ceiling --include-invalid
    --allow-polluted-frontier --reference-quant --trial-timeout-seconds --load-timeout-seconds --row-max-polluted-rate
    --row-max-missing-telemetry-rate --row-max-orchestration-overhead-ratio --out-dir --summary-out"""
    assert set(wanted.split()) <= declared


def test_help_renders() -> None:
    parser = argparse.ArgumentParser()
    add_sweep_arguments(parser)
    assert "--quant-tags LIST" in parser.format_help()


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["auto", "cores:,", "http://"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from([parameter.key for parameter in PARAMETERS] + ["quality_policy", "venue", "x"])
OWN = st.dictionaries(st.sampled_from(["smollm2-135m", "m"]), ANYTHING | st.dictionaries(st.sampled_from(LIMITS), ANYTHING))


SETTINGS = st.dictionaries(KEYS, ANYTHING, max_size=6) | st.fixed_dictionaries({"model_thresholds": OWN})


@given(in_file=SETTINGS, on_flags=SETTINGS, profile=st.dictionaries(KEYS, ANYTHING, max_size=3))
def test_whatever_is_written_gives_a_spec_or_a_spec_error(
    in_file: dict[str, Any], on_flags: dict[str, Any], profile: dict[str, Any]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        (where / "p.json").write_text(json.dumps(profile))
        named = {"control_profile": "p.json"} if profile else {}
        (where / "m.json").write_text(json.dumps({**BASE, "task_bank": "humaneval", **named, **in_file}))
        try:
            spec = load(on_flags, where / "m.json", where, 2)
        except SpecError:
            return
    # what was accepted is what the records allow, on disk too
    assert msgspec.convert(msgspec.to_builtins(spec), SweepSpec) == spec


class TestOllamaNames:
    """The roadmap's commands name `qwen2.5-coder:7b` and no runtime."""

    def test_a_name_with_a_tag_is_looked_for_in_ollama(self) -> None:
        assert load_spec({"models": "qwen2.5-coder:7b", "quants": "Q8_0"}).runtime == "ollama"
        assert load_spec({"models": "qwen2.5-coder:7b,me/llama3.1:8b", "quants": "Q8_0"}).runtime == "ollama"

    @pytest.mark.parametrize("models", ["smollm2-135m", "./a.gguf", "smollm2-135m,qwen2.5-coder:7b"])
    def test_other_names_are_not(self, models: str) -> None:
        assert load_spec({"models": models, "quants": "Q8_0"}).runtime == "llamacpp"

    def test_a_chosen_runtime_stays_chosen(self) -> None:
        assert load_spec({"models": "qwen2.5-coder:7b", "quants": "Q8_0", "runtime": "llamacpp"}).runtime == "llamacpp"
        flags = {"models": "a:b", "quants": "Q8_0", "runtime": "openai", "base_url": "http://127.0.0.1:1/v1"}
        assert load_spec(flags).runtime == "openai"

    def test_a_file_of_that_name_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "a:b").touch()
        assert load_spec({"models": "a:b", "quants": "Q8_0"}, cwd=tmp_path).runtime == "llamacpp"
