"""Detectors in a child process: what the sweep relies on, on real graphs and the real runtime."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytest.importorskip("PIL")

from fewbits.core.errors import BackendError, IdentityError, PrerequisiteError, ProtocolError, SpecError, TrialTimeoutError
from fewbits.records.base import Unavailable
from fewbits.records.detection import Detections, ImageRequest
from fewbits.records.plan import Controls
from fewbits.records.runtime import GenerateRequest
from fewbits.records.variant import Artifact, Variant
from fewbits.runtimes.onnx.runtime import DetectorOptions, OnnxRuntime, usable_providers
from fewbits.runtimes.onnx.session import OnnxSession, require_image_name
from fewbits.runtimes.registry import create_runtime
from runtimes.onnx_samples import POINTS, SIZE, variant_of, write_detector, write_image

Open = Callable[..., OnnxSession]


def request_for(image: ImageRequest | None) -> GenerateRequest:
    return GenerateRequest(prompt="Find the objects.", seed=1, temperature=0, max_tokens=1, image=image)


def found_in(text: str) -> Detections:
    return msgspec.json.decode(text, type=Detections)


@pytest.fixture
def open_detector(tmp_path: Path) -> Iterator[Open]:
    sessions: list[OnnxSession] = []

    def start(variant: Variant | None = None, threads: int = 1, **options: Any) -> OnnxSession:
        chosen = DetectorOptions(image_folder=tmp_path / "images", category_ids=(7, 9), image_size=SIZE, **options)
        made = variant or write_detector(tmp_path / "m.onnx")
        session = OnnxRuntime(chosen).open(made, Controls(threads=threads), 60)
        sessions.append(session)
        return session

    yield start
    for session in sessions:
        session.close()


def test_an_image_gives_detections_in_its_own_pixels_and_both_times(open_detector: Open, tmp_path: Path) -> None:
    image = write_image(tmp_path / "images")
    session = open_detector()
    reply = session.generate(request_for(image), 30)
    session.verify_reply(reply)
    found = found_in(reply.text)
    assert (found.width, found.height) == (64, 48)
    best, second = found.detections
    # 64 x 48 is letterboxed to 32 x 24 with bands of 4 above and below: a box around (16, 16), 8 wide and 12 high
    assert (best.category_id, best.x, best.y, best.width, best.height) == (7, 24.0, 12.0, 16.0, 24.0)
    assert best.score == pytest.approx(0.25 + 0.5 * (24 + 8 * 114 / 255) / 32, abs=1e-5)
    assert (second.category_id, second.score) == (9, 0.5)
    assert not reply.has_tokens
    assert 0 < (reply.predicted_ms or 0) <= reply.wall_seconds * 1000
    assert reply.prompt_tokens is None
    assert set(reply.raw_timings or {}) == {"run_ms", "decode_ms", "preprocess_ms"}
    assert session.generate(request_for(image), 30).text == reply.text


def test_identity_is_proved_by_the_loaded_bytes(open_detector: Open, tmp_path: Path) -> None:
    variant = write_detector(tmp_path / "m.onnx")
    identity = open_detector(variant).identity()
    assert (identity.proof, identity.artifact_sha256) == ("loaded_bytes", variant.artifact.sha256)
    other = Variant(msgspec.structs.replace(variant.artifact, sha256="0" * 64), variant.path)
    with pytest.raises(IdentityError, match="not 0000"):
        open_detector(other).identity()


def test_controls_are_read_back(open_detector: Open) -> None:
    effective = open_detector(threads=2).effective_controls()
    assert effective.threads == 2
    assert effective.affinity is not None
    assert len(effective.affinity) <= 2
    assert effective.seed is None
    assert effective.unavailable["temperature"] == Unavailable.NOT_SUPPORTED


def test_a_warm_up_needs_no_image(open_detector: Open) -> None:
    reply = open_detector().generate(request_for(None), 30)
    assert (found_in(reply.text).width, found_in(reply.text).height) == (SIZE, SIZE)


def test_the_child_tells_what_it_runs(open_detector: Open) -> None:
    session = open_detector()
    assert session.engine == "onnxruntime"
    assert "CPUExecutionProvider" in session.engine_version
    assert session.description["inputs"][0][2] == [1, 3, SIZE, SIZE]
    assert "Add" in session.description["operators"]
    assert session.integer_share is None
    assert (session.init_latency_seconds or 0) > 0


def test_the_file_says_how_it_is_read(open_detector: Open, tmp_path: Path) -> None:
    write_image(tmp_path / "images")
    twins = np.zeros((1, 6, POINTS), dtype=np.float32)
    twins[0, :4, :] = 16
    twins[0, 4, :] = 0.5
    metadata = {"fewbits.head": "one-to-one", "fewbits.scores": "probabilities"}
    declared = write_detector(tmp_path / "one.onnx", bias=twins, metadata=metadata)
    silent = write_detector(tmp_path / "many.onnx", bias=twins)
    counts = [
        len(found_in(open_detector(variant).generate(request_for(None), 30).text).detections) for variant in (declared, silent)
    ]
    assert counts == [4, 1]
    told = open_detector(silent, head="one-to-one").generate(request_for(None), 30)
    assert len(found_in(told.text).detections) == 4


def test_undeclared_logits_are_seen_and_declared_ones_must_fit(open_detector: Open, tmp_path: Path) -> None:
    raw = np.full((1, 6, POINTS), -5.0, dtype=np.float32)
    raw[0, 4, 0] = 3.0
    variant = write_detector(tmp_path / "logits.onnx", bias=raw)
    found = found_in(open_detector(variant).generate(request_for(None), 30).text)
    assert found.detections[0].score == pytest.approx(1 / (1 + np.exp(-3 - 0.5 * 114 / 255)), abs=1e-5)
    with pytest.raises(ProtocolError, match="no probabilities"):
        open_detector(variant, scores="probabilities").generate(request_for(None), 30)


def test_another_head_is_named(open_detector: Open, tmp_path: Path) -> None:
    variant = write_detector(tmp_path / "m.onnx", bias=np.zeros((1, 9, POINTS), dtype=np.float32))
    with pytest.raises(ProtocolError, match=r"\(9, 4\).*another head"):
        open_detector(variant).generate(request_for(None), 30)


def test_images_that_cannot_be_shown_fail_the_trial_alone(open_detector: Open, tmp_path: Path) -> None:
    image = write_image(tmp_path / "images")
    session = open_detector()
    (tmp_path / "images" / "bad.png").write_bytes(b"no image")
    changed = ImageRequest(file_name="a.png", sha256="0" * 64)
    with pytest.raises(ProtocolError, match="bytes have changed"):
        session.generate(request_for(changed), 30)
    with pytest.raises(BackendError, match="FileNotFoundError"):
        session.generate(request_for(ImageRequest(file_name="gone.png", sha256="0" * 64)), 30)
    assert session.generate(request_for(image), 30).text


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret.png", "a/../../b.png", ""])
def test_names_never_leave_the_folder(name: str) -> None:
    with pytest.raises(SpecError, match="not a name below"):
        require_image_name(name)
    require_image_name("sub/a.png")


def test_a_hang_ends_at_the_timeout(open_detector: Open) -> None:
    session = open_detector()
    (pid,) = session.process_ids()
    os.kill(pid, signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(TrialTimeoutError, match=r"within 0\.3 s"):
        session.generate(request_for(None), 0.3)
    assert time.monotonic() - started < 5
    os.kill(pid, signal.SIGCONT)


def test_a_dead_engine_is_a_backend_error_and_not_alive(open_detector: Open) -> None:
    session = open_detector()
    (pid,) = session.process_ids()
    os.kill(pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=5)
    with pytest.raises(BackendError):
        session.generate(request_for(None), 5)
    assert not session.is_alive()
    assert session.process_ids() == ()


def test_closing_twice_is_fine_and_leaves_no_child(open_detector: Open) -> None:
    session = open_detector()
    (pid,) = session.process_ids()
    session.close()
    session.close()
    assert not psutil.pid_exists(pid)
    with pytest.raises(BackendError, match="not running"):
        session.generate(request_for(None), 5)


def test_a_file_that_is_no_graph_fails_on_opening(open_detector: Open, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"nonsense")
    with pytest.raises(BackendError, match="could not be loaded"):
        open_detector(variant_of(tmp_path / "bad.onnx"))
    artifact = Artifact(model_id="m", scheme="FP32", sha256=None, bytes=None, weights=None, bits_per_weight=None)
    with pytest.raises(SpecError, match="there is no ONNX file"):
        open_detector(Variant(artifact, tmp_path / "gone.onnx"))


def test_providers_that_are_not_here_are_left_out() -> None:
    assert usable_providers(("NoSuchProvider", "CPUExecutionProvider")) == ("CPUExecutionProvider",)
    with pytest.raises(PrerequisiteError, match="none of the providers NoSuchProvider"):
        usable_providers(("NoSuchProvider",))


def test_the_registry_makes_it_for_detectors_only(tmp_path: Path) -> None:
    options = DetectorOptions(image_folder=tmp_path, category_ids=(1,))
    runtime = create_runtime("onnx", detector=options)
    assert runtime.capabilities.images
    assert not runtime.capabilities.token_counts
    with pytest.raises(SpecError, match="detectors on labelled images"):
        create_runtime("onnx")
