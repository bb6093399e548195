"""Summaries that somebody hands in: of every age, cut off, edited, or another file altogether."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.api import prepare_sweep, run_sweep
from fewbits.cli.main import main
from fewbits.core.codec import encode_pretty
from fewbits.core.errors import ExitCode, SpecError, StoreError
from fewbits.records.summary import SUMMARY_SCHEMA
from fewbits.store import summaries
from fewbits.store.summaries import read_summary
from fewbits.sweep.progress import SilentObserver

REPLY = {"text": "1", "prompt_tokens": 3, "output_tokens": 1, "prompt_ms": 5, "predicted_ms": 10, "wall_seconds": 0.016}
ADDED_IN_2_4 = ("extraction",)
ADDED_IN_2_3 = ("detection",)
ADDED_IN_2_2 = ("conditions", "baseline", "hardware_sidecar")
ADDED_IN_2_1 = (
    "verdict",
    "divergence",
    "latency_ratio",
    "generation_rate_ratio",
    "prompt_rate_ratio",
    "determinism",
    "uncertainty",
)
Write = Callable[[Any], Path]


@pytest.fixture(scope="session")
def real_summary(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What a scripted sweep of two variants and two tasks wrote."""
    folder = tmp_path_factory.mktemp("sweep")
    checks = [{"kind": "exact", "accepted": ["1"]}]
    tasks = [{"id": word, "bucket": "logic", "tier": 1, "prompt": f"Say {word}.", "checks": checks} for word in ("a", "b")]
    (folder / "bank.json").write_text(json.dumps({"name": "tiny", "version": "1", "tasks": tasks}))
    (folder / "script.json").write_text(json.dumps({"schema_version": "fewbits.script.v1", "default": REPLY}))
    flags: dict[str, object] = {
        "models": ["tiny"],
        "quants": ["Q8_0", "Q2_K"],
        "runtime": "scripted",
        "script": str(folder / "script.json"),
        "task_bank": str(folder / "bank.json"),
        "runs_per_quant": "2",
        "canary_runs": "0",
        "rerun_budget_ratio": "0",
        "selection_policy": "threshold-v1",
        "out_dir": str(folder / "out"),
    }
    prepared = prepare_sweep(flags, None)
    run_sweep(prepared, SilentObserver())
    return prepared.directory.summary_path.read_bytes()


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(content: Any) -> Path:
        path = tmp_path / "sweep_summary.json"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return path

    return to_file


def of_version(data: bytes, version: str) -> dict[str, Any]:
    """The same summary in the shape that an earlier minor version wrote."""
    document: dict[str, Any] = json.loads(data)
    document["schema_version"] = version
    added = {"2.1.0": ADDED_IN_2_1, "2.2.0": ADDED_IN_2_2, "2.3.0": ADDED_IN_2_3, "2.4.0": ADDED_IN_2_4}
    gone = [name for later, names in added.items() if later > version for name in names]
    is_older = version in {"2.0.0", "2.1.0"}
    if is_older:
        del document["guard_policy"], document["provenance"]["imported_from"]
    for session in document["sessions"]:
        if is_older:
            del session["selection_policy"]
        if version < "2.3.0":
            del session["sanity"]
        for row in session["per_quant"]:
            for name in gone:
                del row[name]
    return document


def refused(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Read it and hand it to every command that takes one: exit code 2 and the same single message each time."""
    with pytest.raises((StoreError, SpecError)) as caught:
        read_summary(path)
    said = str(caught.value)
    assert caught.value.exit_code is ExitCode.FAILED_CHECK
    assert str(path) in said
    for words in (["kpis", "report"], ["kpis", "check"], ["guards"]):
        assert main([*words, "--summary", str(path)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err == f"fewbits {words[0]}: {said}\n"
    return said


def test_a_real_one_comes_back_with_its_source(real_summary: bytes, write: Write) -> None:
    path = write(real_summary)
    loaded = read_summary(path)
    assert encode_pretty(loaded.summary) == real_summary
    assert loaded.source.path == str(path)
    assert loaded.source.sha256 == hashlib.sha256(real_summary).hexdigest()
    assert loaded.source.schema_version == SUMMARY_SCHEMA == "2.4.0"


@pytest.mark.parametrize("version", ["2.0.0", "2.1.0", "2.2.0", "2.3.0", "2.4.0"])
def test_every_2_x_so_far_is_read(real_summary: bytes, write: Write, version: str) -> None:
    loaded = read_summary(write(of_version(real_summary, version)))
    assert loaded.source.schema_version == loaded.summary.schema_version == version
    assert loaded.summary.trials_counted == 8
    has_conditions = [row.conditions is not None for row in loaded.summary.sessions[0].per_quant]
    assert has_conditions == [version not in {"2.0.0", "2.1.0"}] * 2


@pytest.mark.parametrize(
    ("version", "says"),
    [
        ("1.1.3", "fewbits import"),
        ("1.0.0", "fewbits import"),
        ("2.4.1", "newer than 2.4.0"),
        ("2.9.0", "newer than 2.4.0"),
        ("2.10.0", "newer than 2.4.0"),
        ("3.0.0", "newer than 2.4.0"),
        ("0.9.0", "this fewbits reads 2.x"),
        ("2", "is no sweep summary"),
        ("2.2", "is no sweep summary"),
        ("", "is no sweep summary"),
        ("v2.4.0", "is no sweep summary"),
        ("2.4.0-beta", "is no sweep summary"),
        ("2.2.²", "is no sweep summary"),
        ("2.2.-1", "is no sweep summary"),
        ("2." + "9" * 4000 + ".0", "is no sweep summary"),
        ("fewbits.kpi_report.v1", "is no sweep summary"),
        (None, "is no sweep summary"),
        (2, "not a JSON object of ours"),
        (2.2, "not a JSON object of ours"),
        (["2.4.0"], "not a JSON object of ours"),
    ],
)
def test_other_versions_are_refused_with_what_to_do(
    real_summary: bytes, write: Write, capsys: pytest.CaptureFixture[str], version: object, says: str
) -> None:
    document = json.loads(real_summary)
    document["schema_version"] = version
    assert says in refused(write(document), capsys)


def test_without_a_version(real_summary: bytes, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(real_summary)
    del document["schema_version"]
    assert "schema_version is None" in refused(write(document), capsys)


FOREIGN = {
    "empty": b"",
    "blank": b" \n",
    "a list": b"[1, 2]",
    "null": b"null",
    "a number": b"7",
    "a text": b'"2.4.0"',
    "foreign json": b'{"name": "package", "version": "1.0.0"}',
    "an empty object": b"{}",
    "binary": bytes(range(256)) * 8,
    "not utf-8": b'{"schema_version": "2.4.0\xff"}',
    "markdown": b"# Sweep\n\n| a | b |\n",
    "deep": b'{"schema_version": "2.4.0", "matrix": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "only the version": b'{"schema_version": "2.4.0"}',
}


@pytest.mark.parametrize("case", FOREIGN)
def test_other_files_are_refused(write: Write, capsys: pytest.CaptureFixture[str], case: str) -> None:
    said = refused(write(FOREIGN[case]), capsys)
    assert "\n" not in said
    assert len(said) < 600


def test_with_a_byte_order_mark_and_in_utf_16(real_summary: bytes, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert "not a JSON object of ours" in refused(write(b"\xef\xbb\xbf" + real_summary), capsys)
    assert "not a JSON object of ours" in refused(write(real_summary.decode().encode("utf-16")), capsys)


@settings(max_examples=50, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_cut_off_anywhere_it_is_refused(share: float, real_summary: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("cut") / "sweep_summary.json"
    # the last byte is a newline, and without it the document is whole
    path.write_bytes(real_summary[: int(share * (len(real_summary) - 1))])
    with pytest.raises(StoreError, match="truncated"):
        read_summary(path)


def set_at(document: Any, place: str, value: object) -> None:
    *folders, last = (int(part) if part.isdecimal() else part for part in place.split("/"))
    for part in folders:
        document = document[part]
    document[last] = value


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("stability_kpis/polluted_run_rate", -0.1),
        ("stability_kpis/polluted_run_rate", 1.5),
        ("stability_kpis/polluted_run_rate", "0.0"),
        ("stability_kpis/polluted_run_rate", None),
        ("stability_kpis/determinism_rate", float("nan")),
        ("stability_kpis/missing_telemetry_rate", float("inf")),
        ("stability_kpis/frontier_success_rate", True),
        ("stability_kpis/weighted_runs", 1.5),
        ("stability_kpis/better_rate", 1.0),
        ("sessions/0/per_quant/0/total_latency", "fast"),
        ("sessions/0/per_quant/0/quant_tag", 8),
        ("sessions/0/per_quant/0/my_own_field", 1),
        ("sessions/0/per_quant/0/conditions", {"host": {}}),
        ("sessions/0/per_quant/0/conditions/host/temperature_max_c", float("nan")),
        ("sessions/0/per_quant/0/run_quality_status", "SPARKLING"),
        ("sessions/0/per_quant", {}),
        ("sessions", None),
        ("complete", "yes"),
        ("my_own_block", {}),
    ],
)
def test_edited_values_are_refused_with_their_place(
    real_summary: bytes, write: Write, capsys: pytest.CaptureFixture[str], place: str, value: object
) -> None:
    document = json.loads(real_summary)
    set_at(document, place, value)
    said = refused(write(document), capsys)
    not_json = isinstance(value, float) and not math.isfinite(value)
    assert ("not a JSON object of ours" if not_json else "fewbits summarize RUN") in said


@pytest.mark.parametrize("name", ["polluted_run_rate", "missing_telemetry_rate"])
@pytest.mark.parametrize("value", [-0.5, 1.5])
def test_rates_of_rows_that_are_no_shares_reach_no_kpi_report(
    real_summary: bytes, write: Write, capsys: pytest.CaptureFixture[str], name: str, value: float
) -> None:
    document = json.loads(real_summary)
    document["sessions"][0]["per_quant"][1][name] = value
    for action in ("report", "check"):
        assert main(["kpis", action, "--summary", str(write(document))]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert f"$.rows[1].{name}" in captured.err


def test_a_folder_and_a_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, says in ((tmp_path, "Is a directory"), (tmp_path / "none.json", "No such file"), (tmp_path / "a" / "b", "No such")):
        said = refused(path, capsys)
        assert says in said
        assert "--summary" in said
        assert "give the path of a sweep_summary.json" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read(real_summary: bytes, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(real_summary)
    path.chmod(0)
    assert "Permission denied" in refused(path, capsys)


def test_an_endless_file_is_given_up(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(summaries, "MAX_BYTES", 100_000)
    assert "larger than 100000 bytes" in refused(Path("/dev/zero"), capsys)


def test_a_pipe_can_be_read(real_summary: bytes, tmp_path: Path) -> None:
    import threading

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(real_summary,))
    writer.start()
    loaded = read_summary(pipe)
    writer.join(timeout=20)
    assert encode_pretty(loaded.summary) == real_summary


def test_a_name_that_is_no_text(real_summary: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / os.fsdecode(b"summary-\xff\n\x1b[31m.json")
    path.write_bytes(real_summary)
    assert main(["kpis", "report", "--summary", str(path), "--json"]) == 0
    source = json.loads(capsys.readouterr().out)["source"]
    assert source["path"].endswith("summary-\\xff\n\x1b[31m.json")
