"""`fewbits detect`: detectors quantized, exported to ONNX, measured on labelled images; and tools for single ONNX files."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbits.cli.numbers import at_least_one
from fewbits.core.errors import ExitCode

if TYPE_CHECKING:
    from fewbits.api.detect_request import DetectRequest, PreparedDetection

_SETTINGS = (
    "execution_lane",
    "seed",
    "threads",
    "affinity_policy",
    "warmup_steps",
    "canary_runs",
    "runs_per_quant",
    "trial_timeout_seconds",
    "latency_ceiling",
    "adherence_floor",
    "equivalence_margin",
    "error_level",
    "decide",
    "control_profile",
)
"""Settings of an ordinary sweep that a detector sweep takes too."""
_MODULES = {
    "eval": ("fewbits.cli.detect_eval", "COCO metrics of one ONNX file"),
    "smoke": ("fewbits.cli.detect_smoke", "run one ONNX file once on random numbers"),
}
OUT_DIR = "runs/detect"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-commands."""
    actions = parser.add_subparsers(dest="action", required=True)
    for name, (declare, words) in _DECLARED.items():
        action = actions.add_parser(name, help=words, description=words[0].upper() + words[1:] + ".", allow_abbrev=False)
        declare(action)
    for name, (module, words) in _MODULES.items():
        action = actions.add_parser(name, help=words, description=words[0].upper() + words[1:] + ".", allow_abbrev=False)
        importlib.import_module(module).add_arguments(action)


def run(arguments: argparse.Namespace) -> ExitCode:
    """Do what was asked; print the result on stdout."""
    if arguments.action in _MODULES:
        code: ExitCode = importlib.import_module(_MODULES[arguments.action][0]).run(arguments)
        return code
    return _ACTIONS[arguments.action](arguments)


def _declare_sweep(action: argparse.ArgumentParser) -> None:
    _declare_data(action)
    action.add_argument(
        "--schemes",
        type=_words,
        default=(),
        metavar="LIST",
        help="variants beside FP32 (W8A16,W8A8,W4A16,W4A8); -naive, -naive+step, -mixed4.5 and -qat: see docs/detectors.md",
    )
    action.add_argument("--qat", action="store_true", help="add short quantization-aware training of --qat-mode")
    action.add_argument("--qat-mode", default="W4A8", metavar="SCHEME", help="what is trained (W4A8)")
    _declare_run(action)


def _declare_ablation(action: argparse.ArgumentParser) -> None:
    _declare_data(action)
    action.add_argument("--mode", default="W4A8", metavar="SCHEME", help="whose ladder is climbed, from naive to best (W4A8)")
    _declare_run(action)


def _declare_data(action: argparse.ArgumentParser) -> None:
    action.add_argument("--weights", default="yolov10n", metavar="FILE", help="YOLOv10 checkpoint, or a packaged one (yolov10n)")
    action.add_argument(
        "--coco", type=Path, required=True, metavar="DIR", help="folder in COCO's layout: annotations/ and images by split"
    )
    action.add_argument("--split", default="val", metavar="NAME", help="split that is evaluated (val)")
    images = action.add_argument_group("images")
    images.add_argument("--max-images", type=int, metavar="N", help="evaluate the first N images by id; 0 or less: all (all)")
    images.add_argument("--image-ids-list", type=Path, metavar="FILE", help="evaluate these image ids, one a line")
    images.add_argument("--calib-list", type=Path, metavar="FILE", help="calibrate on these image files, one a line")
    images.add_argument(
        "--calib-split", default="train", metavar="NAME", help="split that calibration images are drawn from (train)"
    )
    images.add_argument("--calib-images", type=at_least_one, default=32, metavar="N", help="how many are drawn (32)")
    images.add_argument("--calib-seed", type=int, default=0, metavar="N", help="seed of the draw (0)")
    images.add_argument(
        "--allow-overlap", action="store_true", help="calibrate on evaluated images: flatters, and the notes say so"
    )
    model = action.add_argument_group("model")
    model.add_argument("--imgsz", type=at_least_one, default=640, metavar="N", help="side of the square shown, pixels (640)")
    model.add_argument("--head", choices=("one-to-one", "one-to-many"), default="one-to-many", help="which head (one-to-many)")
    model.add_argument("--conf", type=float, default=0.001, metavar="X", help="smallest score of a detection (0.001)")
    model.add_argument("--iou", type=float, default=0.7, metavar="X", help="overlap that suppresses the weaker box (0.7)")
    model.add_argument("--max-det", type=at_least_one, default=300, metavar="N", help="detections per image (300)")
    model.add_argument("--providers", type=_words, default=("CPUExecutionProvider",), metavar="LIST", help="of ONNX Runtime")


def _declare_run(action: argparse.ArgumentParser) -> None:
    from fewbits.spec.flags import add_chosen_arguments

    group = action.add_argument_group("running")
    group.add_argument("--out-dir", type=Path, default=Path(OUT_DIR), metavar="DIR", help=f"folder of the run ({OUT_DIR})")
    group.add_argument("--fresh", action="store_true", help="start over; an earlier run is kept in superseded/")
    group.add_argument("--dry-run", action="store_true", help="print the resolved plan and touch nothing")
    group.add_argument("--json", action="store_true", help="print the summary (or the dry-run document) as JSON on stdout")
    add_chosen_arguments(action.add_argument_group("settings of the sweep", "as for fewbits sweep"), _SETTINGS)


def _declare_census(action: argparse.ArgumentParser) -> None:
    action.add_argument("onnx", type=Path, metavar="FILE", help="any ONNX file")
    action.add_argument("--json", action="store_true", help="print the census as JSON on stdout")


def _declare_summary(action: argparse.ArgumentParser) -> None:
    action.add_argument("--run-root", type=Path, required=True, metavar="DIR", help="folder of a detector sweep")


def _sweep(arguments: argparse.Namespace) -> ExitCode:
    from fewbits.api.detect_request import DEFAULT_SCHEMES

    return _run(arguments, arguments.schemes or DEFAULT_SCHEMES, qat=arguments.qat, qat_mode=arguments.qat_mode)


def _ablation(arguments: argparse.Namespace) -> ExitCode:
    from fewbits.api.detect_ablation import ladder_tags

    return _run(arguments, ladder_tags(arguments.mode), ladder=arguments.mode)


def _run(
    arguments: argparse.Namespace, schemes: tuple[str, ...], *, qat: bool = False, qat_mode: str = "W4A8", ladder: str = ""
) -> ExitCode:
    from fewbits.api.detect_request import prepare_detection
    from fewbits.cli.progress import create_observer
    from fewbits.cli.sweep import print_dry_run, print_paths, print_summary

    request = _request(arguments, schemes, qat=qat, qat_mode=qat_mode)
    prepared = prepare_detection(request)
    if arguments.dry_run:
        from fewbits.api.sweeps import dry_run

        print_dry_run(dry_run(prepared.sweep), as_json=arguments.json)
        return ExitCode.OK
    result = _run_watched(request, prepared, create_observer(), fresh=arguments.fresh)
    paths = [("table", result.summary_md)]
    if ladder:
        from fewbits.api.detect_ablation import write_ablation

        paths.append(("ablation", write_ablation(result.root, ladder)))
    print_summary(result.summary, as_json=arguments.json)
    if not arguments.json:
        print_paths(result.root, result.root / "sweep_summary.json")
        for name, path in paths:
            print(f"{name:<8} {path}")
        for check in result.checks:
            print(f"collapse {check.variant}: {check.verdict.value} ({check.explanation})")
    return ExitCode.OK


def _run_watched(request: DetectRequest, prepared: PreparedDetection, observer: Any, *, fresh: bool) -> Any:
    from fewbits.api.detect import run_detection

    try:
        return run_detection(request, prepared, observer, fresh=fresh)
    finally:
        observer.close()


def _request(arguments: argparse.Namespace, schemes: tuple[str, ...], *, qat: bool, qat_mode: str) -> DetectRequest:
    from fewbits.api.detect_request import DetectRequest
    from fewbits.spec.flags import explicit_flags

    settings = {key: value for key, value in explicit_flags(arguments).items() if key in _SETTINGS}
    count = arguments.max_images
    return DetectRequest(
        weights=arguments.weights,
        coco=arguments.coco,
        out_dir=arguments.out_dir,
        schemes=tuple(schemes),
        qat=qat,
        qat_mode=qat_mode,
        split=arguments.split,
        max_images=count if count is not None and count > 0 else None,
        image_ids_list=arguments.image_ids_list,
        calibration_split=arguments.calib_split,
        calib_list=arguments.calib_list,
        calib_images=arguments.calib_images,
        calib_seed=arguments.calib_seed,
        allow_overlap=arguments.allow_overlap,
        image_size=arguments.imgsz,
        head=arguments.head,
        confidence=arguments.conf,
        iou=arguments.iou,
        max_detections=arguments.max_det,
        providers=arguments.providers,
        settings=settings,
    )


def _census(arguments: argparse.Namespace) -> ExitCode:
    from fewbits.core.codec import encode_pretty
    from fewbits.quantizers.onnx.census import take_census

    census = take_census(arguments.onnx)
    if arguments.json:
        sys.stdout.write(encode_pretty(census).decode())
        return ExitCode.OK
    from rich.console import Console

    from fewbits.report.terminal_census import render_census

    console = Console()
    console.print(render_census(census))
    return ExitCode.OK


def _summary(arguments: argparse.Namespace) -> ExitCode:
    from fewbits.api.detect_summary import write_detector_summary

    print(write_detector_summary(arguments.run_root))
    return ExitCode.OK


def _words(text: str) -> tuple[str, ...]:
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    if not words:
        raise argparse.ArgumentTypeError("expected names separated by commas")
    return words


_DECLARED = {
    "sweep": (_declare_sweep, "quantize a detector, export every variant to ONNX, measure all on labelled images, recommend one"),
    "ablation": (_declare_ablation, "measure what each step from the naive to the best recipe brings"),
    "census": (_declare_census, "count what an ONNX file quantizes, and how"),
    "summary": (_declare_summary, "write summary.md of a run again"),
}
_ACTIONS = {"sweep": _sweep, "ablation": _ablation, "census": _census, "summary": _summary}
