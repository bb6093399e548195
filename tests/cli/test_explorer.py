"""`fewbits frontier`, `fewbits thermal` and `fewbits schema` as people call them, on real files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fewbits.analysis.thermal_series import ThermalLabels
from fewbits.api import explorer, schemas
from fewbits.cli.main import main
from fewbits.core.codec import encode_pretty
from fewbits.core.errors import PrerequisiteError, SpecError
from fewbits.records.thermal import ThermalArtifact, ThermalThresholds
from fewbits.records.trial import EnvironmentSample
from fewbits.store.history import read_history

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "analysis" / "golden" / "summary.json"
Edit = Callable[[dict[str, Any]], None]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1772186400")


def summary(name: str = "sweep_summary.json", edit: Edit = lambda _: None) -> str:
    document = json.loads(GOLDEN.read_text())
    edit(document)
    Path(name).write_bytes(encode_pretty(document))
    return name


def heated(latency: float, start: float | None = None, end: float | None = None, hour: int = 10) -> Edit:
    def edit(document: dict[str, Any]) -> None:
        row = document["sessions"][0]["per_quant"][0]
        row["total_latency"] = latency
        row["conditions"]["host"] |= {"temperature_start_c": start, "temperature_end_c": end, "temperature_max_c": end}
        document["provenance"]["first_trial_at"] = f"2026-02-27T{hour:02d}:00:00Z"

    return edit


def three_runs() -> str:
    latencies = ((0.40, 44.0, 70.0), (0.42, 47.0, 75.0), (0.45, 52.0, 88.0))
    return ",".join(summary(f"run{n}.json", heated(*heat, hour=n)) for n, heat in enumerate(latencies, start=1))


def load(name: str | Path) -> Any:
    return json.loads(Path(name).read_bytes())


def tree() -> set[str]:
    return {str(path) for path in Path().rglob("*") if path.is_file()}


class TestFrontier:
    def test_artifact_and_history(self, capsys: pytest.CaptureFixture[str]) -> None:
        words = [
            "--summary",
            summary(),
            "--out",
            "o/frontier.json",
            "--provenance-ref",
            "local-run:manual",
            "--storage-root",
            "h",
        ]
        assert main(["frontier", *words]) == 0
        artifact = load("o/frontier.json")
        assert artifact["generated_at"] == "2026-02-27T10:00:00Z"
        assert artifact["provenance"]["ref"] == "local-run:manual"
        assert artifact["provenance"]["sources"][0]["path"] == "sweep_summary.json"
        assert artifact["provenance"]["commit_sha"] == "c" * 40
        *said, out, history = capsys.readouterr().out.splitlines()
        assert said[0].startswith("m: Use F16")
        assert out == "o/frontier.json"
        assert read_history(Path(history)) == (artifact,)
        assert Path(history).parent == Path("h")
        assert main(["frontier", *words, "--keep-last", "1"]) == 0
        assert len(read_history(Path(history))) == 1
        assert schemas.check_files([Path(out), Path(history)]).status == "PASS"

    def test_beside_the_summary_without_a_history(self, capsys: pytest.CaptureFixture[str]) -> None:
        Path("deep").mkdir()
        assert main(["frontier", "--summary", summary("deep/s.json"), "--no-history", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == load("deep/frontier_explorer.json")
        assert tree() == {"deep/s.json", "deep/frontier_explorer.json"}

    def test_the_script_is_the_same(self) -> None:
        words = ["--summary", summary(), "--out", "a.json", "--storage-root", "h"]
        script = ROOT / "scripts" / "quant_frontier_explorer.py"
        done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert main(["frontier", *words[:3], "b.json", "--no-history"]) == 0
        assert Path("a.json").read_bytes() == Path("b.json").read_bytes()

    def test_an_unfinished_sweep_is_called_that(self, capsys: pytest.CaptureFixture[str]) -> None:
        name = summary(edit=lambda document: document.update(complete=False))
        assert main(["frontier", "--summary", name, "--no-history"]) == 0
        assert "trials of the plan are missing" in capsys.readouterr().err
        assert load("frontier_explorer.json")["summary_complete"] is False

    def test_hostile_names_are_shown_harmless_and_stored_as_they_are(self, capsys: pytest.CaptureFixture[str]) -> None:
        name = "\x1b[2J\u202egpj.exe\n../../x"

        def edit(document: dict[str, Any]) -> None:
            document["sessions"][0]["model_id"] = name
            document["hardware_fingerprint"] = name

        assert main(["frontier", "--summary", summary(edit=edit), "--storage-root", "h"]) == 0
        said = capsys.readouterr().out
        assert "\x1b" not in said
        assert "\u202e" not in said
        assert load("frontier_explorer.json")["sessions"][0]["model_id"] == name
        assert all(path.startswith("h/") for path in tree() - {"sweep_summary.json", "frontier_explorer.json"})

    def test_a_damaged_history_is_kept_and_the_artifact_too(self, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["--summary", summary(), "--storage-root", "h"]
        assert main(["frontier", *words]) == 0
        history = Path(capsys.readouterr().out.splitlines()[-1])
        history.write_bytes(damaged := history.read_bytes()[:200])
        assert main(["frontier", *words]) == 2
        assert "left as it is" in capsys.readouterr().err
        assert history.read_bytes() == damaged
        assert load("frontier_explorer.json")["schema_version"] == "explorer.frontier.v1"

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--summary", "none.json"], "cannot read none.json"),
            (["--summary", "s.json", "--out", "x/../s.json"], "is one of the summaries"),
            (["--summary", "s.json", "--provenance-ref", "\udcff"], "no UTF-8"),
            (["--summary", "s.json", "--storage-root", "s.json"], "is a file, not a folder"),
            (["--summary", "half.json"], "half.json"),
            (["--summary", "old.json"], "fewbits import"),
            (["--summary", "new.json"], "update fewbits"),
        ],
    )
    def test_bad_input(self, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
        whole = Path(summary("s.json")).read_bytes()
        Path("half.json").write_bytes(whole[: len(whole) // 2])
        summary("old.json", lambda document: document.update(schema_version="1.1.3"))
        summary("new.json", lambda document: document.update(schema_version="2.99.0"))
        assert main(["frontier", *words]) == 2
        assert said in capsys.readouterr().err
        assert Path("s.json").read_bytes() == whole
        assert not Path(".orket").exists()

    @pytest.mark.parametrize("value", ["-1", "1.5", "nan", "x", "9999999999"])
    def test_a_bad_retention(self, value: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            main(["frontier", "--summary", summary(), "--keep-last", value])
        assert ended.value.code == 2
        assert "--keep-last" in capsys.readouterr().err

    def test_python_callers_are_checked_too(self) -> None:
        with pytest.raises(SpecError, match="keep nothing"):
            explorer.explore_frontier(Path(summary()), "", explorer.Destination(Path("o.json"), Path("h"), 0))
        assert tree() == {"sweep_summary.json"}

    @pytest.mark.parametrize("epoch", ["soon", "1e9", "99999999999999999999"])
    def test_a_bad_clock_override(self, epoch: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
        assert main(["frontier", "--summary", summary()]) == 2
        assert "SOURCE_DATE_EPOCH" in capsys.readouterr().err
        assert tree() == {"sweep_summary.json"}

    def test_the_clock_is_utc(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("SOURCE_DATE_EPOCH")
        assert explorer.generated_at().endswith("Z")
        monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
        assert explorer.generated_at() == "1970-01-01T00:00:00Z"


class TestThermal:
    def test_the_runbooks_command(self, capsys: pytest.CaptureFixture[str]) -> None:
        limits = ["--cooldown-target-c", "50", "--polluted-thermal-threshold-c", "85", "--monotonic-window", "2"]
        labels = ["--execution-lane", "lab", "--vram-profile", "safe", "--provenance-ref", "local-run:manual"]
        words = ["--summaries", three_runs(), *limits, *labels, "--out", "t/profile.json", "--storage-root", "h"]
        script = ROOT / "scripts" / "thermal_stability_profiler.py"
        done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        artifact = load("t/profile.json")
        assert (artifact["heat_soak_detected"], artifact["heat_soak_by_temperature"]) == (True, True)
        assert [point["polluted"] for point in artifact["points"]] == [False, False, True]
        assert artifact["points"][2]["reasons"] == ["COOLDOWN_TARGET_NOT_REACHED", "THERMAL_END_ABOVE_THRESHOLD"]
        assert artifact["polluted_run_rate"] == pytest.approx(1 / 3, abs=1e-6)
        assert artifact["clock_note"] is None
        assert artifact["notes"] == []
        assert [source["path"] for source in artifact["provenance"]["sources"]] == ["run1.json", "run2.json", "run3.json"]
        history = Path(done.stdout.splitlines()[-1])
        assert history.name.endswith("__lab__safe__m__F16.json")
        assert schemas.check_files([Path("t/profile.json"), history]).status == "PASS"
        assert main(["thermal", *words, "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == artifact
        assert len(read_history(history)) == 2

    def test_runs_without_sensors_are_told_plainly(self, capsys: pytest.CaptureFixture[str]) -> None:
        names = [summary(f"{n}.json", heated(0.4 - n / 100, hour=n)) for n in range(3)]
        assert main(["thermal", "--summaries", ", ".join(names), "--monotonic-window", "2", "--no-history"]) == 0
        said = capsys.readouterr().out
        assert "no temperatures  NO_TRIALS" in said
        assert "was not judged" in said
        artifact = load("benchmarks/results/thermal/thermal_profile.json")
        assert artifact["polluted_run_rate"] is None
        assert artifact["unavailable"]["polluted_run_rate"] == "NOTHING_JUDGED"

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--summaries", "run1.json,run1.json"], "the same summary"),
            (["--summaries", "run1.json,copy.json"], "the same summary as run1.json"),
            (["--summaries", "run1.json,,run2.json"], "an empty path"),
            (["--summaries", ""], "an empty path"),
            (["--summaries", "run1.json,none.json"], "cannot read none.json"),
            (["--summaries", "run1.json,foreign.json"], "another hardware"),
            (["--summaries", "run1.json", "--model-id", "x"], "it has m"),
            (["--summaries", "run1.json", "--quant-tag", "Q5_0"], "it has F16, Q8_0, Q2_K"),
            (["--summaries", "run1.json", "--out", "run1.json"], "is one of the summaries"),
        ],
    )
    def test_bad_input(self, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
        three_runs()
        Path("copy.json").write_bytes(Path("run1.json").read_bytes())
        summary("foreign.json", lambda document: document.update(hardware_fingerprint="elsewhere"))
        before = tree()
        assert main(["thermal", *words]) == 2
        assert said in capsys.readouterr().err
        assert tree() == before

    @pytest.mark.parametrize(
        "words",
        [
            ["--cooldown-target-c", "nan"],
            ["--cooldown-target-c=-5"],
            ["--polluted-thermal-threshold-c", "inf"],
            ["--polluted-thermal-threshold-c", "0"],
            ["--monotonic-window", "0"],
            ["--monotonic-window=-1"],
            ["--monotonic-window", "1.5"],
            ["--execution-lane", "moon"],
            ["--watch-seconds", "1"],
        ],
    )
    def test_bad_flags(self, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            main(["thermal", "--summaries", summary(), *words])
        assert ended.value.code == 2
        assert "error:" in capsys.readouterr().err
        assert tree() == {"sweep_summary.json"}

    def test_one_source_is_needed(self) -> None:
        with pytest.raises(SystemExit) as ended:
            main(["thermal"])
        assert ended.value.code == 2

    def test_python_callers_are_checked_too(self) -> None:
        limits = ThermalThresholds(cooldown_target_c=float("nan"), polluted_thermal_threshold_c=-1, monotonic_window=0)
        nowhere = explorer.Destination(Path("o.json"), None, None)
        with pytest.raises(SpecError) as refused:
            explorer.profile_runs([Path(summary())], limits, ThermalLabels(), "", nowhere)
        assert len(refused.value.problems) == 3
        with pytest.raises(SpecError, match="no summary"):
            explorer.profile_runs([], LIMITS, ThermalLabels(), "", nowhere)
        assert tree() == {"sweep_summary.json"}


LIMITS = ThermalThresholds(cooldown_target_c=50, polluted_thermal_threshold_c=85, monotonic_window=2)


class Sensors:
    """A machine that cools by 5 degrees a second, on a clock that only sleeping moves; reading takes 0.1 s."""

    def __init__(self, start: float | None, interrupt_at: int | None = None) -> None:
        self.now = 500.0
        self.start = start
        self.slept: list[float] = []
        self.interrupt_at = interrupt_at

    def sample(self) -> EnvironmentSample:
        names = [name for name in EnvironmentSample.__struct_fields__ if name not in EnvironmentSample.__struct_defaults__]
        nothing: dict[str, Any] = dict.fromkeys(names)
        self.now += 0.1
        heat = None if self.start is None else self.start - 5 * (self.now - 500.1)
        return EnvironmentSample(**(nothing | {"monotonic_seconds": self.now, "temperature_c": heat}))

    def sleep(self, seconds: float) -> None:
        if len(self.slept) == self.interrupt_at:
            raise KeyboardInterrupt
        self.slept.append(seconds)
        self.now += seconds

    def watch(self, seconds: float, interval: float) -> tuple[ThermalArtifact, list[Path], bool]:
        watch, destination = explorer.Watch(seconds, interval), explorer.Destination(Path("o.json"), Path("h"), None)
        labels = ThermalLabels()
        return explorer.profile_machine(watch, LIMITS, labels, "", destination, sample=self.sample, sleep=self.sleep)


class TestWatch:
    def test_readings_at_fixed_moments_until_it_is_cool(self) -> None:
        sensors = Sensors(60)
        artifact, written, interrupted = sensors.watch(4, 1)
        assert not interrupted
        assert len(artifact.samples) == 5
        assert artifact.samples[-1].elapsed_seconds == pytest.approx(4.1, abs=0.01)
        assert sensors.slept == pytest.approx([1.0, 0.9, 0.9, 0.9], abs=0.01)
        assert artifact.cooled_down_after_seconds == pytest.approx(2.1, abs=0.01)
        assert read_history(written[1]) == (load("o.json"),)
        assert schemas.check_files(written).status == "PASS"

    def test_ctrl_c_keeps_what_was_seen(self) -> None:
        artifact, written, interrupted = Sensors(60, interrupt_at=2).watch(100, 1)
        assert interrupted
        assert len(artifact.samples) == 3
        assert artifact.notes[0].code == "WATCH_INTERRUPTED"
        assert all(path.exists() for path in written)

    def test_no_sensor_is_a_skip_and_writes_nothing(self) -> None:
        with pytest.raises(PrerequisiteError, match=r"SKIP: .*nothing to watch") as refused:
            Sensors(None).watch(5, 1)
        assert refused.value.exit_code == 3
        assert tree() == set()

    @pytest.mark.parametrize(
        ("seconds", "interval", "words"),
        [
            (float("nan"), 1, "--watch-seconds"),
            (0, 1, "--watch-seconds"),
            (-1, 1, "--watch-seconds"),
            (1e9, 1e6, "--watch-seconds"),
            (1, 0, "--interval-seconds"),
            (1, float("inf"), "--interval-seconds"),
            (7200, 1, "more than 3600 readings"),
        ],
    )
    def test_bad_times(self, seconds: float, interval: float, words: str) -> None:
        with pytest.raises(SpecError, match=words):
            Sensors(60).watch(seconds, interval)
        assert tree() == set()

    def test_this_machines_own_sensors(self, capsys: pytest.CaptureFixture[str]) -> None:
        code = main(["thermal", "--watch-seconds", "0.02", "--interval-seconds", "0.01", "--out", "o.json", "--no-history"])
        said = capsys.readouterr()
        if code == 3:
            assert "SKIP: this machine shows neither" in said.err
            assert tree() == set()
        else:
            assert code == 0
            assert len(load("o.json")["samples"]) == 3


class TestSchema:
    def test_list_and_show(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["schema", "list"]) == 0
        listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
        assert listed == list(schemas.PUBLISHED)
        for name in (*listed, "2.4.0", "2.3.0", "2.2.0", "2.0.0"):
            assert main(["schema", "show", name]) == 0
            assert capsys.readouterr().out.encode() == encode_pretty(schemas.export_schema(schemas.find(name)))

    def test_an_unknown_name(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["schema", "show", "nonsense"]) == 2
        assert "explorer.frontier.v1" in capsys.readouterr().err

    def test_write(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["schema", "write", "new/folder"]) == 0
        assert set(capsys.readouterr().out.split()) == tree()

    def test_check_is_a_gate(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["schema", "check", summary(), "--json", "--out", "r.json", "--junit", "r.xml"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report == load("r.json")
        assert (report["gate"], report["status"], len(report["sources"])) == ("schema", "PASS", 1)
        assert "<testsuite" in Path("r.xml").read_text()
        assert main(["schema", "check", "r.json"]) == 0

    @pytest.mark.parametrize(
        ("edit", "code", "words"),
        [
            (lambda d: d.pop("hardware_fingerprint"), "DOES_NOT_CONFORM", "'hardware_fingerprint' is a required property"),
            (lambda d: d.update(complete="yes"), "DOES_NOT_CONFORM", "$.complete"),
            (
                lambda d: d["sessions"][0]["per_quant"][1].update(total_latency="1"),
                "DOES_NOT_CONFORM",
                "per_quant[1].total_latency",
            ),
            (lambda d: d["sessions"][0]["per_quant"][1]["verdict"].update(verdict="SAME"), "DOES_NOT_CONFORM", "verdict"),
            (lambda d: d.update(schema_version="2.99.0"), "UNKNOWN_VERSION", "sweep_summary.v2"),
            (lambda d: d.update(schema_version="3.0.0"), "UNKNOWN_VERSION", "known are"),
            (lambda d: d.update(schema_version="1.1.3"), "UNKNOWN_VERSION", "fewbits import"),
            (lambda d: d.update(schema_version="sweep_summary.v2"), "UNKNOWN_VERSION", "known are"),
            (lambda d: d.update(schema_version=2), "NO_VERSION", "known are"),
            (lambda d: d.pop("schema_version"), "NO_VERSION", "explorer.frontier.v1"),
        ],
    )
    def test_what_is_wrong_is_said(self, edit: Edit, code: str, words: str) -> None:
        report = schemas.check_files([Path(summary(edit=edit))])
        assert (report.status, report.checks[0].code) == ("FAIL", code)
        assert words in report.checks[0].evidence
        assert len(report.checks[0].evidence) < 2000

    def test_a_field_to_come_is_no_mistake_but_a_slip_of_a_person_is(self) -> None:
        assert schemas.check_files([Path(summary(edit=lambda d: d.update(later=1)))]).status == "PASS"
        profiles = load(ROOT / "benchmarks" / "configs" / "sidecar_profiles.json")
        Path("p.json").write_text(json.dumps(profiles))
        assert schemas.check_files([Path("p.json")]).status == "PASS"
        Path("p.json").write_text(json.dumps(profiles | {"profile": {}}))
        assert schemas.check_files([Path("p.json")]).checks[0].code == "DOES_NOT_CONFORM"

    @pytest.mark.parametrize(
        ("data", "code"),
        [
            (b"", "NOT_JSON"),
            (b"[]", "NOT_JSON"),
            (b'{"schema_version": "fewbits.plan.v1"', "NOT_JSON"),
            (b'{"a": NaN}', "NOT_JSON"),
            (b"\xff\xfe", "NOT_JSON"),
            (b"[" * 100_000, "NOT_JSON"),
            (b'{"schema_version": "fewbits.plan.v1"}', "DOES_NOT_CONFORM"),
            (b'{"schema_version": "fewbits.history.v1", "history": {}}', "DOES_NOT_CONFORM"),
        ],
    )
    def test_damaged_files_are_failures_not_crashes(self, data: bytes, code: str, capsys: pytest.CaptureFixture[str]) -> None:
        Path("d.json").write_bytes(data)
        assert main(["schema", "check", "d.json", summary(), "none.json", "."]) == 2
        assert code in capsys.readouterr().out
        assert [check.code for check in schemas.check_files([Path("d.json"), Path("none.json")]).checks] == [code, "UNREADABLE"]

    def test_lines_of_a_journal(self) -> None:
        row = json.loads((ROOT / "tests" / "contracts" / "frozen" / "documents" / "fewbits.trial.v1.json").read_text())
        line = json.dumps(row)
        for text, code, words in (
            (f"{line}\n{line}\n", "", "2 rows of fewbits.trial.v1"),
            (f"{line}\n{line[:50]}", "TORN_LINE", "line 2"),
            (f"{line}\n{{}}\n", "NO_VERSION", "line 2"),
            (f"{line}\n" + line.replace('"attempt": 1', '"attempt": "1"') + "\n", "DOES_NOT_CONFORM", "line 2: "),
            (f"\n{line}\n", "NOT_JSON", "line 1"),
            ("", "EMPTY", "no line"),
        ):
            Path("trials.jsonl").write_text(text)
            (check,) = schemas.check_files([Path("trials.jsonl")]).checks
            assert (check.code, words in check.evidence) == (code, True)

    def test_artifacts_inside_a_history(self) -> None:
        assert main(["frontier", "--summary", summary(), "--storage-root", "h"]) == 0
        (path,) = Path("h").glob("*.json")
        document = load(path)
        document["history"].append({"schema_version": "explorer.frontier.v9"})
        path.write_text(json.dumps(document))
        (check,) = schemas.check_files([path]).checks
        assert check.evidence.endswith("(2 artifacts, 1 of a version that is not known here)")
        document["history"][0].pop("vram_profile")
        path.write_text(json.dumps(document))
        (check,) = schemas.check_files([path]).checks
        assert check.code == "DOES_NOT_CONFORM"
        assert "history[0]" in check.evidence


def test_help_and_import_stay_light() -> None:
    code = (
        "import sys\nfrom fewbits.cli.main import main\n"
        "for name in ('frontier', 'thermal', 'schema'):\n"
        " try: main([name, '--help'])\n except SystemExit: pass\n"
        "print([name for name in ('numpy', 'scipy', 'rich', 'psutil', 'yaml', 'jsonschema') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, timeout=60, check=False)
    assert done.stdout.splitlines()[-1] == "[]"
