"""`fewbits sensitivity` as people call it: reports again, several runs in one table, exit codes, and what is never loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import sensitivity_samples as samples
from fewbits.api.agreement_request import AgreementRequest, ScoreSource
from fewbits.cli.main import main
from fewbits.core.codec import decode, encode_pretty
from fewbits.core.files import sha256_file
from fewbits.records.sensitivity import SensitivityAgreement, SensitivityManifest, SensitivityMethod, SensitivityRollup

MANIFEST = "wint8_aint8_autoquant_lm_quant_manifest.json"
REPORTS = [
    "layer-sensitivity-report.md",
    "layer-sensitivity-report.json",
    "layer-sensitivity-depth.svg",
    "layer-sensitivity-ranking.svg",
]
HEAVY = ("torch", "transformers", "modelopt", "hydra", "omegaconf", "gguf", "libgguf", "cyllama", "xllamacpp")


def put(folder: Path, manifest: SensitivityManifest, name: str = MANIFEST) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(encode_pretty(manifest))
    return folder


def test_report_writes_the_same_bytes_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = put(tmp_path, samples.sample_manifest())
    assert main(["sensitivity", "report", str(folder)]) == 0
    assert capsys.readouterr().out.split() == [str(folder / name) for name in REPORTS]
    first = {name: sha256_file(folder / name) for name in REPORTS}
    manifest = (folder / MANIFEST).stat()
    assert main(["sensitivity", "report", str(folder / MANIFEST), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"written": [str(folder / name) for name in REPORTS]}
    assert {name: sha256_file(folder / name) for name in REPORTS} == first
    assert (folder / MANIFEST).stat().st_mtime_ns == manifest.st_mtime_ns
    assert sorted(path.name for path in folder.iterdir()) == sorted([*REPORTS, MANIFEST])


@pytest.mark.parametrize("words", [["--help"], ["report", "."], ["rollup", "."]], ids=["help", "report", "rollup"])
def test_neither_torch_nor_hydra_is_loaded(tmp_path: Path, words: list[str]) -> None:
    put(tmp_path, samples.sample_manifest())
    program = (
        "import sys\n"
        "from fewbits.cli.main import main\n"
        "try:\n"
        "    code = main(['sensitivity', *sys.argv[1:]])\n"
        "except SystemExit as error:\n"
        "    code = error.code\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not loaded, loaded\n"
        "raise SystemExit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "holds no *_quant_manifest.json"),
        (b'{"schema_version": "fewb', "truncated, edited, or another file"),
        (b'{"schema_version": "fewbits.sensitivity_manifest.v2"}', "made by another version of fewbits"),
        (encode_pretty(samples.failed_manifest()), "that run failed, so it has no scores: ModelOpt: out of memory"),
    ],
    ids=["absent", "truncated", "other version", "failed"],
)
def test_a_manifest_that_cannot_be_used_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, words: str
) -> None:
    if content is not None:
        (tmp_path / MANIFEST).write_bytes(content)
    assert main(["sensitivity", "report", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert "Traceback" not in said.err
    assert not said.out
    assert [path.name for path in tmp_path.iterdir()] == ([MANIFEST] if content is not None else [])


def test_two_manifests_in_one_folder_need_the_scheme(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(put(tmp_path, samples.sample_manifest()), samples.sample_manifest(scheme="int8"), "int8_quant_manifest.json")
    assert main(["sensitivity", "report", str(tmp_path)]) == 2
    assert "schemes: int8, wint8_aint8_autoquant_lm" in capsys.readouterr().err
    assert main(["sensitivity", "report", str(tmp_path), "--scheme", "int8"]) == 0
    assert "# Layer sensitivity: `int8`" in (tmp_path / REPORTS[0]).read_text()


class TestRollup:
    @pytest.fixture
    def runs(self, tmp_path: Path) -> Path:
        for pair in ("wint8_aint8", "wfp8_afp8"):
            for size, twist in (("small", 0.2), ("medium", 0.0)):
                manifest = samples.sample_manifest(pair, size, layer_sensitivity=samples.sample_groups(1.0, twist))
                put(tmp_path / "runs" / pair / size, manifest, f"{pair}_autoquant_lm_quant_manifest.json")
        put(tmp_path / "runs" / "bad", samples.failed_manifest())
        (tmp_path / "runs" / "old").mkdir()
        (tmp_path / "runs" / "old" / MANIFEST).write_text("{}")
        return tmp_path / "runs"

    def test_it_prints_a_table_and_writes_it_twice(
        self, runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "160")
        assert main(["sensitivity", "rollup", str(runs)]) == 0
        said = capsys.readouterr().out
        for words in ("wfp8_afp8", "Between calibration sizes", "Between pairs", "failed: ", "not read: ", "no schema_version"):
            assert words in said
        found = decode((runs / "sensitivity-rollup.json").read_bytes(), SensitivityRollup, "rollup")
        assert (len(found.runs), len(found.between_sizes), len(found.between_pairs), len(found.skipped)) == (5, 2, 2, 1)
        first = (runs / "sensitivity-rollup.md").read_bytes()
        assert main(["sensitivity", "rollup", str(runs)]) == 0
        assert (runs / "sensitivity-rollup.md").read_bytes() == first

    def test_paths_are_as_the_user_wrote_them(
        self, runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(runs.parent)
        assert main(["sensitivity", "rollup", "runs", "--out", "table/my rollup.json", "--json"]) == 0
        found = decode(capsys.readouterr().out.encode(), SensitivityRollup, "rollup")
        assert all(run.manifest.startswith("runs" + os.sep) for run in found.runs)
        assert (runs.parent / "table" / "my rollup.md").is_file()
        assert str(runs.parent) not in (runs.parent / "table" / "my rollup.json").read_text()

    @pytest.mark.parametrize("words", [["absent"], ["runs", "empty"], ["runs/old"], ["runs", "--out", "x.md"]], ids="".join)
    def test_what_cannot_be_put_together_is_said(
        self, runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str]
    ) -> None:
        monkeypatch.chdir(runs.parent)
        Path("empty").mkdir()
        assert main(["sensitivity", "rollup", *words]) == 2
        assert "fewbits sensitivity: " in capsys.readouterr().err
        assert not list(runs.parent.rglob("sensitivity-rollup.json"))


class TestAgree:
    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[AgreementRequest]:
        """Answers every request with the sample; returns what was asked."""
        requests: list[AgreementRequest] = []

        def answer(request: AgreementRequest, progress: Callable[[str], None]) -> SensitivityAgreement:
            requests.append(request)
            progress("quantizing group 1 of 48")
            return samples.sample_agreement()

        monkeypatch.setattr("fewbits.api.agreement.measure_agreement", answer)
        return requests

    def test_every_flag_arrives(self, tmp_path: Path, asked: list[AgreementRequest]) -> None:
        words = (
            "--manifest m.json --reference --model dir --format INT8_DEFAULT_CFG --method kl_div --captions c.txt --text t.txt"
        )
        more = "--samples 8 --sample-tokens 64 --top-k 3 --device cuda:1 --dtype bfloat16 --threads 2 --out o.json"
        assert main(["sensitivity", "agree", *words.split(), *more.split()]) == 0
        assert asked == [
            AgreementRequest(
                out=Path("o.json"),
                manifest=Path("m.json"),
                score_source=ScoreSource.REFERENCE,
                model="dir",
                format_name="INT8_DEFAULT_CFG",
                method=SensitivityMethod.KL_DIV,
                captions=Path("c.txt"),
                text="t.txt",
                samples=8,
                sample_tokens=64,
                top_k=3,
                device="cuda:1",
                dtype="bfloat16",
                threads=2,
            )
        ]

    def test_without_flags_the_request_keeps_its_defaults(
        self, tmp_path: Path, asked: list[AgreementRequest], capsys: pytest.CaptureFixture[str]
    ) -> None:
        put(tmp_path, samples.sample_manifest())
        assert main(["sensitivity", "agree", "--manifest", str(tmp_path)]) == 0
        out = tmp_path / "sensitivity-agreement.json"
        assert asked == [AgreementRequest(out=out, manifest=tmp_path)]
        said = capsys.readouterr()
        assert "rank correlation 0.930 [0.850, 0.980]" in said.out
        assert said.out.endswith(f"{out}\n")
        assert said.err == "quantizing group 1 of 48\n"

    def test_json(self, asked: list[AgreementRequest], capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["sensitivity", "agree", "--manifest", "a/m.json", "--json"]) == 0
        assert decode(capsys.readouterr().out.encode(), SensitivityAgreement, "agreement") == samples.sample_agreement()
        assert asked[0].out == Path("a/sensitivity-agreement.json")

    def test_nothing_to_score_with_is_said(self, asked: list[AgreementRequest], capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["sensitivity", "agree"]) == 2
        assert "--manifest: is missing (give a run's manifest, or --reference to score here)" in capsys.readouterr().err
        assert asked == []
