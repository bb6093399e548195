"""The sidecar beside a sweep: one row per variant whatever the tool does, joined afterwards, and nothing else changes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fewbits.api.sidecar import check_sidecar, load_profile, read_sidecars, run_sidecar
from fewbits.api.sweeps import PreparedSweep, build_summary, prepare_sweep, run_sweep, verify_run, write_results
from fewbits.core.codec import encode_pretty
from fewbits.core.errors import SpecError, StoreError
from fewbits.records.plan import Plan, SidecarRequest
from fewbits.records.sidecar import SidecarBlock, SidecarRun, SidecarStatus
from fewbits.records.variant import Variant
from fewbits.store.journal import read_journal
from fewbits.store.run_directory import RunDirectory
from fewbits.sweep.progress import SilentObserver

QUANTS = ("Q8_0", "Q4_K_M")
KEYS = [("tiny", tag) for tag in QUANTS]

GOOD = """
import json, sys
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
common = {"build_commit": "abc", "build_number": 7, "cpu_info": "Fake CPU", "gpu_info": "", "backends": "CPU",
          "model_filename": flags["-m"], "n_threads": int(flags["-t"]), "n_gpu_layers": 0}
json.dump([common | {"n_prompt": 8, "n_gen": 0, "avg_ts": 200.5, "stddev_ts": 1.5, "samples_ns": [1, 2]},
           common | {"n_prompt": 0, "n_gen": 4, "avg_ts": 50.25, "stddev_ts": 0.5, "samples_ns": [1, 2]}], sys.stdout)
"""
COUNTING = "import os; open(os.path.join(os.path.dirname(__file__), 'calls'), 'a').write('x')\n"


class Recorder(SilentObserver):
    def __init__(self) -> None:
        self.notices: list[str] = []

    def notice(self, message: str) -> None:
        self.notices.append(message)


@dataclass
class Bench:
    """A finished scripted sweep with a sidecar profile, and files as if its variants had any."""

    folder: Path
    prepared: PreparedSweep
    variants: dict[tuple[str, str], Variant]

    @property
    def plan(self) -> Plan:
        return self.prepared.plan

    @property
    def directory(self) -> RunDirectory:
        return self.prepared.directory

    def tool(self, body: str) -> None:
        program = self.folder / "bench-tool"
        program.write_text(f"#!{sys.executable}\n{body}")
        program.chmod(0o755)

    def measure(self, **sidecar: Any) -> Recorder:
        heard = Recorder()
        run_sidecar(self.asking(**sidecar), self.variants, self.directory, heard)
        return heard

    def asking(self, **sidecar: Any) -> Plan:
        request = msgspec.structs.replace(self.plan.spec.sidecar, **sidecar)
        return msgspec.structs.replace(self.plan, spec=msgspec.structs.replace(self.plan.spec, sidecar=request))

    def rows(self) -> list[SidecarRun]:
        return list(read_journal(self.directory.sidecar_path, SidecarRun).rows)

    def blocks(self) -> dict[tuple[str, str], SidecarBlock]:
        return read_sidecars(self.plan, self.directory)

    def statuses(self) -> list[str]:
        return [block.status.value for block in self.blocks().values()]

    def calls(self) -> int:
        path = self.folder / "calls"
        return len(path.read_text()) if path.exists() else 0


def write_profiles(folder: Path, **changes: Any) -> Path:
    argv = [str(folder / "bench-tool"), "-m", "{model}", "-t", "{threads}"]
    profile = {"backend": "cpu", "argv": argv, "timeout_seconds": 20} | changes
    path = folder / "profiles.json"
    path.write_text(json.dumps({"profiles": {"fake": profile}}))
    return path


def sweep_flags(folder: Path, **flags: object) -> dict[str, object]:
    answers = {"alpha": "11", "beta": "22"}
    tasks = [
        {"id": name, "bucket": "logic", "tier": 1, "prompt": f"Say {name}.", "checks": [{"kind": "exact", "accepted": [text]}]}
        for name, text in answers.items()
    ]
    (folder / "bank.json").write_text(json.dumps({"name": "tiny", "version": "1", "tasks": tasks}))
    times = {"prompt_tokens": 9, "output_tokens": 2, "prompt_ms": 8.0, "predicted_ms": 12.0, "wall_seconds": 0.0201}
    replies = [{"prompt_contains": f"Say {name}.", "replies": [{"text": text} | times]} for name, text in answers.items()]
    sizes = {tag: {"bytes": 1000 - 300 * n, "bits_per_weight": 8.5 - 2.5 * n} for n, tag in enumerate(QUANTS)}
    script = {"schema_version": "fewbits.script.v1", "variants": sizes, "rules": replies, "default": {"text": ""} | times}
    (folder / "script.json").write_text(json.dumps(script))
    return {
        "models": ["tiny"],
        "quants": list(QUANTS),
        "runtime": "scripted",
        "script": str(folder / "script.json"),
        "task_bank": str(folder / "bank.json"),
        "canary_runs": "0",
        "selection_policy": "threshold-v1",
        "rerun_budget_ratio": "0",
        "out_dir": str(folder / "out"),
    } | flags


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    profiles = write_profiles(tmp_path)
    flags = sweep_flags(tmp_path, hardware_sidecar_profile="fake", sidecar_profiles_config=str(profiles))
    prepared = prepare_sweep(flags, None)
    run_sweep(prepared, SilentObserver())
    variants = {}
    for key, artifact in prepared.directory.read_manifests().items():
        path = tmp_path / f"{key[1]}.gguf"
        path.write_bytes(b"GGUF")
        variants[key] = Variant(artifact, path)
    return Bench(tmp_path, prepared, variants)


class TestRows:
    def test_a_whole_sweep_on_a_runtime_without_files(self, bench: Bench) -> None:
        assert bench.statuses() == ["NOT_APPLICABLE"] * 2
        summary = build_summary(bench.directory)
        blocks = [row.hardware_sidecar for row in summary.sessions[0].per_quant]
        assert [block.status if block else None for block in blocks] == [SidecarStatus.NOT_APPLICABLE] * 2
        assert all(block.prefill_tokens_per_second is None for block in blocks if block)
        run_sweep(bench.prepared, SilentObserver())
        assert len(bench.rows()) == 2

    def test_each_variant_is_measured_once(self, bench: Bench) -> None:
        bench.tool(COUNTING + GOOD)
        heard = bench.measure()
        assert [(key, block.prefill_tokens_per_second) for key, block in bench.blocks().items()] == [(key, 200.5) for key in KEYS]
        row = bench.rows()[-1]
        assert row.command[1:] == ("-m", "{model}", "-t", str(bench.plan.controls.threads))
        assert (row.plan_digest, row.variant_sha256) == (bench.plan.digest, bench.variants[KEYS[1]].artifact.sha256)
        assert str(bench.folder / QUANTS[0]) not in bench.directory.sidecar_path.read_text()
        assert heard.notices[0] == "sidecar: Q8_0 of tiny: prefill 200 tokens/s, decode 50.2 tokens/s"
        bench.measure()
        assert bench.calls() == len(KEYS)

    @pytest.mark.parametrize(
        ("body", "status"),
        [
            ("import time; time.sleep(60)", "TIMEOUT"),
            ("print('garbage')", "PARSE_ERROR"),
            ("print('x' * 100_000_000)", "OUTPUT_TOO_LARGE"),
            ("import sys; sys.exit('\\x1b[31mno\\nway')", "TOOL_FAILED"),
        ],
        ids=["hangs", "garbage", "floods", "fails"],
    )
    def test_a_failure_is_a_row_and_is_tried_again(self, bench: Bench, body: str, status: str) -> None:
        bench.tool(body)
        heard = bench.measure(timeout_seconds=0.7 if status == "TIMEOUT" else None)
        assert bench.statuses() == [status] * 2
        assert f"sidecar: Q8_0 of tiny: {status}: " in heard.notices[0]
        assert heard.notices[0].isprintable()
        bench.tool(GOOD)
        bench.measure()
        assert bench.statuses() == ["OK"] * 2

    def test_no_tool(self, bench: Bench) -> None:
        bench.measure()
        assert bench.statuses() == ["TOOL_MISSING"] * 2

    def test_another_profile_or_command_measures_again(self, bench: Bench) -> None:
        bench.tool(COUNTING + GOOD)
        bench.measure()
        write_profiles(bench.folder, argv=[str(bench.folder / "bench-tool"), "-m", "{model}", "-t", "2", "-r", "1"])
        bench.measure()
        assert bench.calls() == 2 * len(KEYS)

    def test_only_what_an_interrupted_run_lacks_is_measured(self, bench: Bench) -> None:
        class Interrupting(SilentObserver):
            def notice(self, message: str) -> None:
                raise KeyboardInterrupt

        bench.tool(COUNTING + GOOD)
        with pytest.raises(KeyboardInterrupt):
            run_sidecar(bench.plan, bench.variants, bench.directory, Interrupting())
        assert bench.calls() == 1
        bench.measure()
        assert bench.calls() == 2
        assert bench.statuses() == ["OK"] * 2

    def test_a_profile_that_vanished_during_the_sweep_ends_nothing(self, bench: Bench) -> None:
        (bench.folder / "profiles.json").unlink()
        bench.measure()
        assert bench.statuses() == ["NOT_RUN"] * 2
        assert "profiles.json" in bench.blocks()[KEYS[0]].detail

    def test_a_mistake_of_our_own_ends_nothing(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: object, **__: object) -> None:
            raise ZeroDivisionError("oops")

        monkeypatch.setattr("fewbits.probes.sidecar.measure", broken)
        bench.measure()
        assert bench.statuses() == ["TOOL_FAILED"] * 2
        assert "ZeroDivisionError: oops" in bench.blocks()[KEYS[0]].detail

    def test_a_full_disk_is_told(self, bench: Bench) -> None:
        bench.directory.sidecar_path.unlink()
        bench.directory.sidecar_path.symlink_to("/dev/full")
        bench.tool(GOOD)
        with pytest.raises(StoreError, match=r"cannot write .*sidecar\.jsonl"):
            bench.measure()

    def test_without_a_profile_nothing_runs_and_nothing_is_written(self, tmp_path: Path) -> None:
        prepared = prepare_sweep(sweep_flags(tmp_path), None)
        summary = run_sweep(prepared, SilentObserver())
        assert not prepared.directory.sidecar_path.exists()
        assert read_sidecars(prepared.plan, prepared.directory) == {}
        (row, *_) = summary.sessions[0].per_quant
        assert (row.hardware_sidecar, row.unavailable["hardware_sidecar"]) == (None, "NOT_MEASURED")


class TestJoin:
    def test_a_profile_that_was_asked_for_later_is_joined_too(self, tmp_path: Path) -> None:
        """The profile is no part of the plan's digest, so the folder keeps its first plan.json, which names none."""
        prepared = prepare_sweep(sweep_flags(tmp_path), None)
        run_sweep(prepared, SilentObserver())
        later = sweep_flags(tmp_path, hardware_sidecar_profile="fake", sidecar_profiles_config=str(write_profiles(tmp_path)))
        summary = run_sweep(prepare_sweep(later, None), SilentObserver())
        assert {row.hardware_sidecar.status for row in summary.sessions[0].per_quant if row.hardware_sidecar} == {
            SidecarStatus.NOT_APPLICABLE
        }
        assert verify_run(prepared.directory)[0]

    def test_no_row_yet_is_not_run(self, bench: Bench) -> None:
        bench.directory.sidecar_path.unlink()
        block = bench.blocks()[KEYS[0]]
        assert (block.status, block.profile) == (SidecarStatus.NOT_RUN, "fake")
        assert block.unavailable["decode_tokens_per_second"] == "NOT_MEASURED"

    @pytest.mark.parametrize("field", ["plan_digest", "variant_sha256", "model_id", "quant_tag"])
    def test_rows_of_something_else_are_not_joined(self, bench: Bench, field: str) -> None:
        bench.tool(GOOD)
        bench.measure()
        rows = [json.loads(line) | {field: "f" * 64} for line in bench.directory.sidecar_path.read_text().splitlines()]
        bench.directory.sidecar_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert bench.statuses() == ["NOT_RUN"] * 2

    def test_the_newest_row_counts(self, bench: Bench) -> None:
        bench.tool(GOOD)
        bench.measure()
        bench.tool(GOOD.replace("200.5", "300.5"))
        bench.directory.sidecar_path.write_text(bench.directory.sidecar_path.read_text().replace('"OK"', '"TIMEOUT"'))
        bench.measure()
        assert [block.prefill_tokens_per_second for block in bench.blocks().values()] == [300.5, 300.5]

    @pytest.mark.parametrize(
        "damage", [b'{"half": \n', b"\xff\xfe\n", b"null\n", b"x" * 2_000_000 + b"\n"], ids=["half", "bytes", "null", "long"]
    )
    def test_a_damaged_file_is_a_status_and_the_run_goes_on(self, bench: Bench, damage: bytes) -> None:
        bench.directory.sidecar_path.write_bytes(damage)
        assert bench.statuses() == ["PARSE_ERROR"] * 2
        assert "line 1 of sidecar.jsonl" in bench.blocks()[KEYS[0]].detail
        assert write_results(bench.directory).complete

    def test_what_can_be_read_beside_damage_still_counts(self, bench: Bench) -> None:
        bench.directory.sidecar_path.write_bytes(b"damage\n")
        bench.tool(GOOD)
        bench.measure()
        assert bench.statuses() == ["OK"] * 2

    def test_a_torn_last_line_is_no_damage(self, bench: Bench) -> None:
        with bench.directory.sidecar_path.open("ab") as stream:
            stream.write(b'{"schema_version": "fewbits.side')
        assert bench.statuses() == ["NOT_APPLICABLE"] * 2

    def test_a_folder_in_its_place_is_a_status(self, bench: Bench) -> None:
        bench.directory.sidecar_path.unlink()
        bench.directory.sidecar_path.mkdir()
        assert bench.statuses() == ["PARSE_ERROR"] * 2


def without_sidecar(directory: RunDirectory) -> bytes:
    """The summary's bytes with every sidecar block, and the reason for its absence, taken out."""
    tree = json.loads(encode_pretty(build_summary(directory)))
    for row in tree["sessions"][0]["per_quant"]:
        row["hardware_sidecar"] = None
        row["unavailable"].pop("hardware_sidecar", None)
    return encode_pretty(tree)


def test_the_summary_is_the_same_whatever_the_sidecar_says(bench: Bench) -> None:
    """No verdict, limit, validity, frontier, recommendation or rate looks at it."""
    path = bench.directory.sidecar_path
    plan = json.loads(bench.directory.plan_path.read_text())
    plan["spec"]["sidecar"]["profile"] = None
    seen: dict[str, bytes] = {}
    tools = {
        "OK": GOOD,
        "slow": GOOD.replace("200.5", "0.001").replace("50.25", "0.001"),
        "TIMEOUT": "import time; time.sleep(60)",
        "PARSE_ERROR": "print('garbage')",
        "OUTPUT_TOO_LARGE": "print('x' * 100_000_000)",
        "TOOL_FAILED": "import sys; sys.exit(1)",
    }
    for name, body in tools.items():
        path.unlink(missing_ok=True)
        bench.tool(body)
        bench.measure(timeout_seconds=0.7 if name == "TIMEOUT" else None)
        assert bench.statuses() == ["OK" if name == "slow" else name] * 2
        seen[name] = without_sidecar(bench.directory)
    path.unlink()
    seen["NOT_RUN"] = without_sidecar(bench.directory)
    path.write_bytes(b"damage\n")
    seen["damaged"] = without_sidecar(bench.directory)
    path.unlink()
    bench.directory.plan_path.write_text(json.dumps(plan))
    seen["never asked for"] = without_sidecar(bench.directory)
    assert len(set(seen.values())) == 1
    assert json.loads(seen["OK"])["sessions"][0]["efficiency_frontier"]["minimum_viable_quant_tag"] == "Q4_K_M"


class TestCheck:
    def spec_with(self, bench: Bench, **sidecar: Any) -> Callable[[], None]:
        return lambda: check_sidecar(bench.asking(**sidecar).spec)

    def test_no_profile_looks_at_nothing(self, bench: Bench) -> None:
        (bench.folder / "profiles.json").unlink()
        self.spec_with(bench, profile=None)()
        with pytest.raises(SpecError, match=r"no such file of sidecar profiles: .*profiles\.json"):
            self.spec_with(bench)()

    def test_an_unknown_name_says_which_there_are(self, bench: Bench) -> None:
        with pytest.raises(SpecError, match=r"hardware_sidecar_profile: no profile 'fast' in .*it has: fake"):
            self.spec_with(bench, profile="fast")()

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", "not JSON"),
            ("[]", "expected an object"),
            ("{}", "profiles"),
            ('{"profiles": {}}', "length >= 1"),
            ('{"profiles": {"fake": {"backend": "tpu", "argv": ["x", "{model}"]}}}', "cpu|nvidia|amd"),
            ('{"profiles": {"fake": {"backend": "cpu", "argv": "llama-bench -m {model}"}}}', "Expected `array`"),
            ('{"profiles": {"fake": {"backend": "cpu", "argv": []}}}', "length >= 1"),
            ('{"profiles": {"fake": {"backend": "cpu", "argv": ["x", "{model}"], "timeout_seconds": 0}}}', "> 0.0"),
            ('{"profiles": {"fake": {"backend": "cpu", "argv": ["x", "{model}"], "shell": true}}}', "unknown field `shell`"),
            ('{"profiles": {"fake": {"backend": "cpu", "argv": ["x", "-m", "{modle}"]}}}', "unknown placeholder {modle}"),
            ('{"profiles": {"fake": {"backend": "cpu", "argv": ["x", "-m", "file"]}}}', "no argument holds {model}"),
            ('{"profiles": {"fake": {"backend": "cpu", "argv": ["{model}", "{model}"]}}}', "is not a program"),
            ('{"profiles": {"fake": {"backend": "cpu", "argv": [" ", "{model}"]}}}', "is not a program"),
            ('{"profiles": {"fake": {"backend": "cpu", "argv": ["x", "{model}\\u0000"]}}}', "zero byte"),
            ('{"profiles": {"a": {}, "a": {}}}', "given twice"),
            (
                '{"schema_version": "v9", "profiles": {"fake": {"backend": "cpu", "argv": ["x", "{model}"]}}}',
                "reads fewbits.sidecar",
            ),
        ],
    )
    def test_a_broken_file_is_refused_with_its_place(self, bench: Bench, text: str, words: str) -> None:
        (bench.folder / "profiles.json").write_text(text)
        with pytest.raises(SpecError) as caught:
            self.spec_with(bench)()
        assert words in str(caught.value)
        assert "profiles.json" in str(caught.value)

    def test_every_problem_is_told_at_once(self, bench: Bench) -> None:
        profiles = {name: {"backend": "cpu", "argv": ["x", "{nonsense}"]} for name in ("a", "b")}
        (bench.folder / "profiles.json").write_text(json.dumps({"profiles": profiles}))
        with pytest.raises(SpecError) as caught:
            self.spec_with(bench, profile="c")()
        assert len(caught.value.problems) == 5

    @pytest.mark.parametrize("name", ["cpu", "nvidia", "amd"])
    def test_the_shipped_file_is_found_from_anywhere(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        profile = load_profile(SidecarRequest(profile=name))
        assert (profile.backend, profile.argv[0]) == (name, "llama-bench")
        assert ("{model}" in profile.argv, "{threads}" in profile.argv) == (True, True)
        assert profile.argv[profile.argv.index("-o") + 1] == "json"
