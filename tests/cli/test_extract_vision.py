"""Vision-language models in the benchmark: a tiny random one in two precisions, sampled with another seed each time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("bitsandbytes")
pytest.importorskip("rapidocr")

from fewbits.cli.main import main
from fewbits.core.codec import decode
from fewbits.records.extraction_run import BenchmarkResults, PerRunRow
from fewbits.records.summary import SweepSummary
from runtimes.extraction.vision_samples import write_tiny_vision_model

pytestmark = pytest.mark.xdist_group("vision")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    root = tmp_path_factory.mktemp("vision")
    model = write_tiny_vision_model(root / "model")
    (root / "pages").mkdir()
    Image.new("RGB", (64, 48), "white").save(root / "pages" / "a.png")
    arguments = ["--input-dir", str(root / "pages"), "--output-dir", str(root / "runs"), "--run-id", "one", "--repeats", "2"]
    engines = ["--engines", "vision-fp32,vision-nf4", "--model", str(model), "--max-new-tokens", "16", "--max-retries", "1"]
    assert main(["extract", "bench", *arguments, *engines, "--canary-runs", "0", "--threads", "1", "--temperature", "0.8"]) == 0
    return root / "runs" / "one"


@pytest.mark.real
def test_a_model_that_writes_no_report_fails_every_page_and_stays_in_the_mean(run: Path) -> None:
    results = decode((run / "benchmark_results.json").read_bytes(), BenchmarkResults, "results")
    assert results.variants.keys() == {"vision-fp32", "vision-nf4"}
    for found in results.variants.values():
        assert (found.aggregate.total_runs, found.aggregate.success_rate) == (2, 0.0)
        assert sum(found.aggregate.errors_by_kind.values()) == 2
        assert found.ground_truth is None
        assert found.self_consistency_eval is not None
        assert found.self_consistency_eval.estimate is None
        assert "no run found a test" in found.self_consistency_eval.reason
    rows = [decode(line, PerRunRow, "row") for line in (run / "per_run.jsonl").read_bytes().splitlines()]
    assert {row.error_kind for row in rows} <= {"PARSE_FAILED", "TRUNCATED"}
    assert all(row.pipeline_time_seconds for row in rows)


@pytest.mark.real
def test_repetitions_draw_with_another_seed_and_say_so(run: Path) -> None:
    trials = [json.loads(line) for line in (run / "trials.jsonl").read_bytes().splitlines()]
    seeds = {(trial["quant_tag"], trial["repetition"]): trial["controls_effective"]["seed"] for trial in trials}
    for tag in ("vision-fp32", "vision-nf4"):
        assert seeds[tag, 1] == seeds[tag, 0] + 1


@pytest.mark.real
def test_the_precision_is_counted_from_the_tensors(run: Path) -> None:
    trials = [json.loads(line) for line in (run / "trials.jsonl").read_bytes().splitlines()]
    versions = {trial["quant_tag"]: trial["engine_version"] for trial in trials}
    assert "nf4" in versions["vision-nf4"]
    assert "nf4" not in versions["vision-fp32"]
    assert "32.00 bits each" in versions["vision-fp32"]
    summary = decode((run / "sweep_summary.json").read_bytes(), SweepSummary, "summary")
    assert {row.adherence_score for row in summary.sessions[0].per_quant} == {0.0}
