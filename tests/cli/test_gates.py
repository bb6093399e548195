"""The gate commands as people and CI call them: exit codes, what is printed, what is written, bad numbers, and the nights."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from fewbits.api import prepare_sweep, run_sweep
from fewbits.cli.main import main
from fewbits.cli.numbers import at_least_one, celsius, finite, share
from fewbits.core.codec import decode
from fewbits.probes.environment import EnvironmentProbe
from fewbits.records.gates import GateReport
from fewbits.records.kpis import KpiReport
from fewbits.records.trial import EnvironmentSample
from fewbits.sweep.progress import SilentObserver

ROOT = Path(__file__).resolve().parents[2]
GIB = 1024**3
REPLY = {"text": "1", "prompt_tokens": 3, "output_tokens": 1, "prompt_ms": 5, "predicted_ms": 10, "wall_seconds": 0.016}
STEADY = EnvironmentSample(
    monotonic_seconds=0.0,
    cpu_busy_seconds=0.0,
    cpu_steal_seconds=0.0,
    own_cpu_seconds=0.0,
    cpu_pressure_seconds=0.0,
    memory_pressure_seconds=0.0,
    io_pressure_seconds=0.0,
    load_1m=0.0,
    throttle_events=0,
    cpu_mhz=3000.0,
    temperature_c=44.0,
    memory_available_bytes=12 * GIB,
    memory_total_bytes=16 * GIB,
)


def sweep(folder: Path, **flags: object) -> dict[str, Any]:
    """A scripted sweep of two variants in a quiet, cool lab, whatever machine this is; returns its summary's document."""
    checks = [{"kind": "exact", "accepted": ["1"]}]
    tasks = [{"id": word, "bucket": "logic", "tier": 1, "prompt": f"Say {word}.", "checks": checks} for word in ("a", "b")]
    (folder / "bank.json").write_text(json.dumps({"name": "tiny", "version": "1", "tasks": tasks}))
    (folder / "script.json").write_text(json.dumps({"schema_version": "fewbits.script.v1", "default": REPLY}))
    settings: dict[str, object] = {
        "models": ["tiny"],
        "quants": ["Q8_0", "Q2_K"],
        "runtime": "scripted",
        "script": str(folder / "script.json"),
        "task_bank": str(folder / "bank.json"),
        "runs_per_quant": "2",
        "canary_runs": "0",
        "selection_policy": "threshold-v1",
        "baselines": False,
        "out_dir": str(folder / "out"),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EnvironmentProbe, "sample", lambda probe: STEADY)
        prepared = prepare_sweep(settings | flags, None)
        run_sweep(prepared, SilentObserver())
    document: dict[str, Any] = json.loads(prepared.directory.summary_path.read_bytes())
    return document


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return sweep(tmp_path_factory.mktemp("repeated"))


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return sweep(tmp_path_factory.mktemp("single"), runs_per_quant="1", determinism_tasks="0")


@pytest.fixture
def write(tmp_path: Path) -> Callable[[dict[str, Any]], str]:
    def to_file(document: dict[str, Any], **changes: Any) -> str:
        made = json.loads(json.dumps(document))
        for place, value in changes.items():
            *folders, last = place.split("__")
            inner = made
            for part in folders:
                inner = inner[int(part)] if part.isdecimal() else inner[part]
            inner[last] = value
        path = tmp_path / "sweep_summary.json"
        path.write_text(json.dumps(made))
        return str(path)

    return to_file


Write = Callable[..., str]


class TestKpisCheck:
    def test_pass(self, good: dict[str, Any], write: Write, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["kpis", "check", "--summary", write(good)]) == 0
        text = capsys.readouterr().out
        assert text.startswith("kpis: PASS\n")
        assert text.count("  PASS ") == 6

    def test_skip_is_exit_3_and_0_where_allowed(
        self, single: dict[str, Any], write: Write, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = write(single)
        assert main(["kpis", "check", "--summary", path]) == 3
        assert "kpis: SKIP\n  SKIP determinism_rate NOT_DETERMINABLE" in capsys.readouterr().out
        assert main(["kpis", "check", "--summary", path, "--allow-skip"]) == 0
        assert "kpis: SKIP (allowed)" in capsys.readouterr().out
        assert main(["kpis", "check", "--summary", path, "--allow-skip", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["status"] == "SKIP"

    @pytest.mark.parametrize(
        ("kpis", "code"),
        [
            ({"polluted_run_rate": 0.5}, "ABOVE_LIMIT"),
            ({"weighted_runs": 0}, "NO_TRIALS"),
            ({"determinism_rate": 0.5}, "BELOW_LIMIT"),
        ],
    )
    def test_fail_is_exit_2_also_where_a_skip_is_allowed(
        self, good: dict[str, Any], write: Write, capsys: pytest.CaptureFixture[str], kpis: dict[str, Any], code: str
    ) -> None:
        path = write(good, **{f"stability_kpis__{name}": value for name, value in kpis.items()})
        for flags in ([], ["--allow-skip"]):
            assert main(["kpis", "check", "--summary", path, *flags]) == 2
            text = capsys.readouterr().out
            assert code in text
            assert "KPIS_DISAGREE_WITH_ROWS" in text

    def test_pollution_that_was_edited_away_fails(
        self, good: dict[str, Any], write: Write, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = write(good, sessions__0__per_quant__0__polluted_run_rate=0.5)
        assert main(["kpis", "check", "--summary", path, "--max-polluted-run-rate", "1"]) == 2
        assert "polluted_run_rate says 0, the rows say 0.25: was the summary edited?" in capsys.readouterr().out

    def test_an_incomplete_sweep_fails(self, good: dict[str, Any], write: Write, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["kpis", "check", "--summary", write(good, complete=False)]) == 2
        assert "INCOMPLETE" in capsys.readouterr().out

    def test_the_limits_come_from_the_flags(self, good: dict[str, Any], write: Write, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["--max-missing-telemetry-rate", "0.2", "--max-polluted-run-rate", "0.3"]
        words += ["--min-frontier-success-rate", "0.4", "--min-determinism-rate", "0.5"]
        assert main(["kpis", "check", "--summary", write(good), *words, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["thresholds"] == {
            "max_missing_telemetry_rate": 0.2,
            "max_polluted_run_rate": 0.3,
            "min_frontier_success_rate": 0.4,
            "min_determinism_rate": 0.5,
        }

    def test_what_is_written_is_what_is_printed(
        self, single: dict[str, Any], write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out, junit = tmp_path / "deep" / "gate.json", tmp_path / "deep" / "gate.xml"
        words = ["kpis", "check", "--summary", write(single), "--out", str(out), "--junit", str(junit)]
        assert main([*words, "--json"]) == 3
        assert out.read_text() == capsys.readouterr().out
        report = decode(out.read_bytes(), GateReport, "gate")
        assert report.sources[0].path == str(tmp_path / "sweep_summary.json")
        suite = ET.parse(junit).getroot()
        assert (suite.get("name"), suite.get("tests"), suite.get("skipped"), suite.get("failures")) == (
            "fewbits.kpis",
            "6",
            "1",
            "0",
        )
        before = out.read_bytes(), junit.read_bytes()
        assert main(words) == 3
        assert (out.read_bytes(), junit.read_bytes()) == before

    def test_names_from_the_file_are_only_shown(
        self, good: dict[str, Any], write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        hostile = "<b>\x1b[31m../../etc\u202e\n"
        path = write(good, sessions__0__model_id=hostile, stability_kpis__polluted_run_rate=0.5)
        junit = tmp_path / "gate.xml"
        assert main(["kpis", "check", "--summary", path, "--junit", str(junit)]) == 2
        assert main(["guards", "--summary", path, "--junit", str(junit)]) == 0
        assert main(["kpis", "report", "--summary", path]) == 0
        text = capsys.readouterr().out
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert "<b>[U+001B][31m../../etc[U+202E]" in text
        assert ET.parse(junit).getroot().get("failures") == "0"

    @pytest.mark.parametrize("flag", ["--out", "--junit"])
    def test_a_folder_as_output(
        self, good: dict[str, Any], write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str
    ) -> None:
        folder = tmp_path / "folder"
        folder.mkdir()
        assert main(["kpis", "check", "--summary", write(good), flag, str(folder)]) == 2
        assert str(folder) in capsys.readouterr().err
        assert list(folder.iterdir()) == []


class TestKpisReport:
    def test_the_report_is_a_function_of_the_summary(
        self, good: dict[str, Any], write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path, out = write(good), tmp_path / "kpis.json"
        assert main(["kpis", "report", "--summary", path, "--out", str(out), "--json"]) == 0
        assert capsys.readouterr().out == out.read_text()
        report = decode(out.read_bytes(), KpiReport, "kpis")
        assert report.stability_kpis.weighted_runs == 8
        assert [row.quant_tag for row in report.rows] == ["Q8_0", "Q2_K"]
        first = out.read_bytes()
        assert main(["kpis", "report", "--summary", path, "--out", str(out)]) == 0
        assert out.read_bytes() == first
        text = capsys.readouterr().out
        assert "determinism rate        100 %" in text
        assert "over 8 trials, 2 rows, 1 session" in text

    def test_what_is_not_determinable_is_said_in_words(
        self, single: dict[str, Any], write: Write, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["kpis", "report", "--summary", write(single)]) == 0
        text = capsys.readouterr().out
        assert "determinism rate        not determinable" in text
        assert "None" not in text


class TestNights:
    """`fewbits kpis trend`, over a history on disk."""

    @pytest.fixture
    def night(self, good: dict[str, Any], write: Write, tmp_path: Path) -> Callable[..., int]:
        def follow(number: int, rate: float = 0.0, *words: str, **changes: Any) -> int:
            rows = {f"sessions__0__per_quant__{row}__polluted_run_rate": rate for row in (0, 1)}
            summary = write(good, stability_kpis__polluted_run_rate=rate, commit_sha=f"{number:040x}", **rows, **changes)
            kpis = str(tmp_path / "sweep_kpis.json")
            assert main(["kpis", "report", "--summary", summary, "--out", kpis]) == 0
            return main(["kpis", "trend", "--kpis", kpis, "--storage-root", str(tmp_path / "trend"), *words])

        return follow

    def histories(self, tmp_path: Path) -> list[list[dict[str, Any]]]:
        files = sorted((tmp_path / "trend").glob("*.json"))
        return [json.loads(path.read_bytes())["history"] for path in files]

    def test_three_nights_make_a_trend(
        self, night: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert [night(number) for number in range(3)] == [3, 3, 3]
        assert "TOO_FEW_NIGHTS" in capsys.readouterr().out
        assert night(3, 0.05) == 0
        assert night(4, 0.051) == 2
        assert "WORSE_THAN_TREND" in capsys.readouterr().out
        # it is history all the same, and one bad night does not move the median
        (history,) = self.histories(tmp_path)
        assert [entry["stability_kpis"]["polluted_run_rate"] for entry in history] == [0.0, 0.0, 0.0, 0.05, 0.051]
        assert night(5, 0.3, "--max-worsening", "0.3") == 0

    def test_an_allowed_skip(self, night: Callable[..., int]) -> None:
        assert night(0, 0.0, "--allow-skip") == 0

    def test_the_same_night_twice_is_stored_once_and_judged_alike(
        self, night: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for number in range(4):
            night(number)
        capsys.readouterr()
        assert night(4, 0.2) == 2
        first = capsys.readouterr().out
        assert night(4, 0.2) == 2
        assert capsys.readouterr().out == first
        for number in range(5, 12):
            night(number, 0.2)
        capsys.readouterr()
        # an earlier night is compared with the nights before it, not with those after
        assert night(4, 0.2) == 2
        assert capsys.readouterr().out == first
        (history,) = self.histories(tmp_path)
        assert len(history) == 12

    def test_nights_on_other_hardware_have_a_history_of_their_own(
        self, night: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for number in range(3):
            night(number)
        assert night(3, 0.0, hardware_fingerprint="linux|other|64c|1tb|h100") == 3
        assert "0 comparable earlier nights" in capsys.readouterr().out
        assert night(4, 0.0, execution_lane="ci") == 3
        assert night(5, 0.0, sessions__0__model_id="../../other") == 3
        assert sorted(map(len, self.histories(tmp_path))) == [1, 1, 1, 3]
        assert {path.parent for path in tmp_path.rglob("*other*.json")} <= {tmp_path / "trend"}

    def test_only_so_many_nights_are_kept(self, night: Callable[..., int], tmp_path: Path) -> None:
        for number in range(5):
            night(number, number / 100, "--keep-last", "2")
        (history,) = self.histories(tmp_path)
        assert [entry["stability_kpis"]["polluted_run_rate"] for entry in history] == [0.03, 0.04]

    def test_the_window(self, night: Callable[..., int]) -> None:
        for number in range(3):
            night(number, 0.5)
        for number in range(3, 6):
            night(number, 0.0)
        assert night(6, 0.3, "--window", "3") == 2
        assert night(7, 0.3, "--window", "7") == 0

    @pytest.mark.parametrize(
        "damage", [b"", b"{", b"[]", b'{"history": [{"half": 1}]}', b'{"history": [NaN]}', b'{"history": {}}', b"\xff\xfe"]
    )
    def test_a_damaged_history_is_refused_and_left_alone(
        self, night: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: bytes
    ) -> None:
        night(0)
        (path,) = (tmp_path / "trend").glob("*.json")
        path.write_bytes(damage)
        capsys.readouterr()
        assert night(1) == 2
        captured = capsys.readouterr()
        assert str(path) in captured.err
        assert path.read_bytes() == damage

    @pytest.mark.parametrize(
        "content", [None, b"", b"{}", b"[]", b"{", b'{"schema_version": "fewbits.gate_report.v1"}', b"\x00\xff"]
    )
    def test_another_file_than_a_kpi_report(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None
    ) -> None:
        path = tmp_path / "kpis.json"
        if content is not None:
            path.write_bytes(content)
        assert main(["kpis", "trend", "--kpis", str(path), "--storage-root", str(tmp_path / "trend")]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert str(path) in captured.err
        assert "fewbits kpis report --summary FILE --out FILE" in captured.err
        assert not (tmp_path / "trend").exists()

    def test_a_summary_in_the_reports_place(
        self, good: dict[str, Any], write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["kpis", "trend", "--kpis", write(good), "--storage-root", str(tmp_path / "trend")]) == 2
        assert "It is no KPI report" in capsys.readouterr().err


class TestGuards:
    def test_a_cool_lab(self, good: dict[str, Any], write: Write, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["guards", "--summary", write(good)]) == 0
        text = capsys.readouterr().out
        assert text.startswith("lab_guards: PASS\n")
        assert "PASS cooldown · tiny Q8_0, tiny Q2_K: CPU package 44.0 °C at the start, target 50 °C" in text
        assert "at most 25 % of 16.0 GiB RAM in use, limit 50 %" in text

    @pytest.mark.parametrize(("target", "code"), [("44", 0), ("43.9", 2)])
    def test_the_target(
        self, good: dict[str, Any], write: Write, capsys: pytest.CaptureFixture[str], target: str, code: int
    ) -> None:
        assert main(["guards", "--summary", write(good), "--cooldown-target-c", target, "--json"]) == code
        report = json.loads(capsys.readouterr().out)
        assert report["thresholds"] == {"cooldown_target_c": float(target), "memory_used_ratio": 0.5, "vram_profile": "safe"}

    def test_another_profile_than_measured(self, good: dict[str, Any], write: Write, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["guards", "--summary", write(good), "--vram-profile", "stress"]) == 2
        assert "VRAM_PROFILE_MISMATCH" in capsys.readouterr().out

    def test_an_older_summary_is_skipped(self, good: dict[str, Any], write: Write, capsys: pytest.CaptureFixture[str]) -> None:
        path = write(good, schema_version="2.1.0", **{f"sessions__0__per_quant__{n}__conditions": None for n in (0, 1)})
        assert main(["guards", "--summary", path]) == 3
        assert "COOLDOWN_NOT_MEASURED" in capsys.readouterr().out
        assert main(["guards", "--summary", path, "--allow-skip"]) == 0

    def test_a_throttled_row(self, good: dict[str, Any], write: Write, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["guards", "--summary", write(good, sessions__0__per_quant__1__conditions__host__throttle_events=2)]) == 2
        assert "FAIL throttling THROTTLED · tiny Q2_K: 2 throttle events" in capsys.readouterr().out


RATE_FLAGS = (
    "--max-missing-telemetry-rate",
    "--max-polluted-run-rate",
    "--min-frontier-success-rate",
    "--min-determinism-rate",
)


class TestNumbers:
    def refused(self, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert f"argument {words[-1].split('=')[0]}" in captured.err

    @pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999", "-0.1", "1.0001", "many", "", "0,5", "5%", "0x1"])
    @pytest.mark.parametrize("flag", RATE_FLAGS)
    def test_limits_of_kpis(self, capsys: pytest.CaptureFixture[str], flag: str, value: str) -> None:
        self.refused(["kpis", "check", "--summary", "none.json", f"{flag}={value}"], capsys)

    @pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-5", "0", "150", "1000", "hot", "", "50C"])
    def test_temperatures(self, capsys: pytest.CaptureFixture[str], value: str) -> None:
        self.refused(["guards", "--summary", "none.json", f"--cooldown-target-c={value}"], capsys)

    @pytest.mark.parametrize("value", ["0", "-1", "1.5", "nan", "inf", "seven", "", "²", "1" * 10, "9" * 6000])
    @pytest.mark.parametrize("flag", ["--window", "--keep-last"])
    def test_counts_of_nights(self, capsys: pytest.CaptureFixture[str], flag: str, value: str) -> None:
        self.refused(["kpis", "trend", "--kpis", "none.json", f"{flag}={value}"], capsys)

    @pytest.mark.parametrize("value", ["nan", "-0.1", "1.1", "bad"])
    def test_worsening(self, capsys: pytest.CaptureFixture[str], value: str) -> None:
        self.refused(["kpis", "trend", "--kpis", "none.json", f"--max-worsening={value}"], capsys)

    def test_a_long_number_is_not_repeated_in_full(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            main(["kpis", "trend", "--kpis", "none.json", f"--window={'9' * 6000}"])
        assert len(capsys.readouterr().err) < 1000

    def test_what_is_allowed(self) -> None:
        assert [share(text) for text in ("0", "1", "0.05", "1e-3", " 0.5 ")] == [0.0, 1.0, 0.05, 0.001, 0.5]
        assert [celsius(text) for text in ("0.1", "149.9")] == [0.1, 149.9]
        assert [at_least_one(text) for text in ("1", " 7 ", "999999999")] == [1, 7, 999_999_999]
        assert finite("-1e300") == -1e300
        with pytest.raises(argparse.ArgumentTypeError, match="not a finite number"):
            finite("nan")


class TestScripts:
    def run(self, script: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "scripts" / script), *words]
        return subprocess.run(command, cwd=cwd, env=os.environ, capture_output=True, text=True, timeout=60, check=False)

    def test_the_runbooks_commands_work_from_another_folder(self, good: dict[str, Any], write: Write, tmp_path: Path) -> None:
        summary = Path(write(good)).name
        report = self.run("quant_sweep_kpi_report.py", "--summary", summary, "--out", "kpis.json", cwd=tmp_path)
        assert (report.returncode, report.stderr) == (0, "")
        assert decode((tmp_path / "kpis.json").read_bytes(), KpiReport, "kpis").source.path == summary
        check = self.run("check_quant_sweep_kpis.py", "--summary", summary, cwd=tmp_path)
        assert (check.returncode, check.stderr, check.stdout[:10]) == (0, "", "kpis: PASS")
        guards = self.run("check_lab_guards.py", "--summary", summary, "--cooldown-target-c", "40", cwd=tmp_path)
        assert (guards.returncode, guards.stderr, guards.stdout[:16]) == (2, "", "lab_guards: FAIL")
