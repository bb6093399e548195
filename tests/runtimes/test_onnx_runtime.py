"""Detectors in a child process: what the sweep relies on, on real graphs and the real runtime."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
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
from fewbits.core.files import require_name_below
from fewbits.records.base import Unavailable
from fewbits.records.detection import Detections, ImageRequest
from fewbits.records.plan import Controls
from fewbits.records.runtime import GenerateRequest
from fewbits.records.variant import Artifact, Variant
from fewbits.runtimes.onnx.runtime import DetectorOptions, OnnxRuntime, require_images, require_wanted_provider, usable_providers
from fewbits.runtimes.onnx.session import OnnxSession
from fewbits.runtimes.registry import create_runtime
from runtimes.onnx_samples import POINTS, SIZE, variant_of, write_detector, write_image, write_integer_detector

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
    raw[0, :4, :] = 16
    raw[0, 4, 0] = 3.0
    variant = write_detector(tmp_path / "logits.onnx", bias=raw)
    found = found_in(open_detector(variant).generate(request_for(None), 30).text)
    assert found.detections[0].score == pytest.approx(1 / (1 + np.exp(-3 - 0.5 * 114 / 255)), abs=1e-5)
    with pytest.raises(ProtocolError, match="no probabilities"):
        open_detector(variant, scores="probabilities").generate(request_for(None), 30)


def test_half_precision_graphs_are_run(open_detector: Open, tmp_path: Path) -> None:
    single = open_detector(write_detector(tmp_path / "single.onnx")).generate(request_for(None), 30)
    half = open_detector(write_detector(tmp_path / "half.onnx", half=True)).generate(request_for(None), 30)
    one, other = (found_in(reply.text).detections for reply in (single, half))
    assert [item.category_id for item in one] == [item.category_id for item in other]
    assert [item.score for item in other] == pytest.approx([item.score for item in one], abs=1e-3)


def test_boxes_without_area_are_no_detections(open_detector: Open, tmp_path: Path) -> None:
    image = write_image(tmp_path / "images")  # 64 x 48: grey bars of 4 pixels above and below
    boxes = np.zeros((1, 6, POINTS), dtype=np.float32)
    boxes[0, :4, 0] = 16, 16, -8, 12  # of negative width
    boxes[0, :4, 1] = 16, 1, 8, 2  # in the upper bar
    boxes[0, :4, 2] = 16, 16, 8, 12
    boxes[0, 5, :3] = 0.9, 0.8, 0.7
    found = found_in(open_detector(write_detector(tmp_path / "m.onnx", bias=boxes)).generate(request_for(image), 30).text)
    assert [one.score for one in found.detections if one.category_id == 9] == [0.7]
    assert all(one.width > 0 and one.height > 0 for one in found.detections)


def test_integers_are_counted_among_products_alone(open_detector: Open, tmp_path: Path) -> None:
    session = open_detector(write_integer_detector(tmp_path / "m.onnx"))
    assert session.description["operators"]["QLinearConv"] == 1
    assert session.integer_share == 0.5


def test_options_that_make_no_sense_are_all_named(tmp_path: Path) -> None:
    options = DetectorOptions(
        image_folder=tmp_path, category_ids=(1, 1), confidence=2, iou=0, head="none", scores="good", providers=()
    )
    with pytest.raises(SpecError) as caught:
        OnnxRuntime(options)
    assert [problem.path for problem in caught.value.problems] == [
        "category_ids",
        "confidence",
        "iou",
        "scores",
        "head",
        "providers",
    ]
    with pytest.raises(SpecError, match="there is no class"):
        OnnxRuntime(DetectorOptions(image_folder=tmp_path, category_ids=()))


def test_a_graph_for_another_image_size_is_refused_on_opening(open_detector: Open, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"takes images .*64, 64\], not one picture of shape \[1, 3, 32, 32\]"):
        open_detector(write_detector(tmp_path / "m.onnx", size=64))
    assert not [child for child in psutil.Process().children() if "runtimes.onnx.worker" in " ".join(child.cmdline())]


def test_free_dimensions_fit_and_other_inputs_do_not(tmp_path: Path) -> None:
    require_images(tmp_path, [["x", "tensor(float16)", ["batch", 3, None, "w"]]], 640)
    for inputs in (
        [],
        [["x", "tensor(uint8)", [1, 3, 640, 640]]],
        [["x", "tensor(float)", [1, 640, 640, 3]]],
        [["x", "tensor(float)", [1, 3, 640]]],
        [["x", "tensor(float)", [1, 3, 640, 640]], ["size", "tensor(int64)", [2]]],
    ):
        with pytest.raises(SpecError, match="not one picture"):
            require_images(tmp_path, inputs, 640)


def test_a_provider_that_nobody_asked_for_is_refused() -> None:
    require_wanted_provider(("A", "B"), ["B", "CPUExecutionProvider"])
    with pytest.raises(PrerequisiteError, match="fell back to CPUExecutionProvider"):
        require_wanted_provider(("CUDAExecutionProvider",), ["CPUExecutionProvider"])


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
    os.mkfifo(tmp_path / "images" / "pipe.png")
    with pytest.raises(ProtocolError, match="no picture file"):
        session.generate(request_for(ImageRequest(file_name="pipe.png", sha256="0" * 64)), 30)
    with pytest.raises(ProtocolError, match="not a picture"):
        session.generate(request_for(image_named(tmp_path, "bad.png")), 30)
    assert session.generate(request_for(image), 30).text


def image_named(tmp_path: Path, name: str) -> ImageRequest:
    return ImageRequest(file_name=name, sha256=hashlib.sha256((tmp_path / "images" / name).read_bytes()).hexdigest())


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret.png", "a/../../b.png", ""])
def test_names_never_leave_the_folder(name: str) -> None:
    with pytest.raises(SpecError, match="not a name below"):
        require_name_below(name, "image")
    require_name_below("sub/a.png", "image")


def test_a_hang_ends_at_the_timeout(open_detector: Open) -> None:
    session = open_detector()
    (pid,) = session.process_ids()
    os.kill(pid, signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(TrialTimeoutError, match=r"within 0\.3 s"):
        session.generate(request_for(None), 0.3)
    assert time.monotonic() - started < 5
    os.kill(pid, signal.SIGCONT)


def test_an_answer_that_comes_too_late_is_never_taken_for_the_next_one(open_detector: Open, tmp_path: Path) -> None:
    image = write_image(tmp_path / "images")
    session = open_detector()
    (pid,) = session.process_ids()
    os.kill(pid, signal.SIGSTOP)
    for _ in range(2):
        with pytest.raises(TrialTimeoutError):
            session.generate(request_for(None), 0.1)
    os.kill(pid, signal.SIGCONT)
    sizes = [found_in(session.generate(request_for(shown), 30).text).width for shown in (image, None, image)]
    assert sizes == [64, SIZE, 64]


@pytest.mark.parametrize("line", [b"<html>502</html>\n", b"[1, 2]\n", b"\xff\n"])
def test_garbage_is_a_protocol_error(open_detector: Open, monkeypatch: pytest.MonkeyPatch, line: bytes) -> None:
    session = open_detector()
    monkeypatch.setattr("fewbits.runtimes.worker_process.read_line", lambda *_: line)
    with pytest.raises(ProtocolError, match="worker answered something"):
        session.generate(request_for(None), 5)


def test_the_child_dies_with_its_parent(tmp_path: Path) -> None:
    variant = write_detector(tmp_path / "m.onnx")
    program = textwrap.dedent(
        f"""
        import os, signal
        from pathlib import Path
        from fewbits.records.plan import Controls
        from fewbits.records.variant import Variant
        from fewbits.runtimes.onnx.runtime import DetectorOptions, OnnxRuntime
        from runtimes.onnx_samples import SIZE, variant_of
        options = DetectorOptions(image_folder=Path("."), category_ids=(1, 2), image_size=SIZE)
        session = OnnxRuntime(options).open(variant_of(Path({str(variant.path)!r})), Controls(threads=1), 60)
        print(session.process_ids()[0], flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == -signal.SIGKILL, done.stderr
    child = int(done.stdout)
    deadline = time.monotonic() + 10
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the child outlived its parent"
        time.sleep(0.02)


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
