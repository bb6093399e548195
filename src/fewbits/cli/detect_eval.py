"""`fewbits detect eval`: COCO metrics of one ONNX detector. Also `scripts/cv-models/eval_yolov10m_onnx_coco.py`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fewbits.cli.numbers import at_least_one, finite, share
from fewbits.core.errors import ExitCode

DATA_ROOT = "datasets/coco2017/source-data"
PROVIDERS = "TensorrtExecutionProvider CUDAExecutionProvider CPUExecutionProvider"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument("--onnx-path", type=Path, required=True, metavar="FILE", help="the detector")
    parser.add_argument("--data-root", type=Path, metavar="DIR", help=f"folder in COCO's layout, split val ({DATA_ROOT})")
    parser.add_argument("--instances", type=Path, metavar="FILE", help="annotation file, together with --images-dir")
    parser.add_argument("--images-dir", type=Path, metavar="DIR", help="folder of its images")
    order = "names of the model's classes (key `names`), found by name (default: categories in the order of their ids)"
    parser.add_argument("--coco-yaml", type=Path, metavar="FILE", help=order)
    add_provider_arguments(parser)
    parser.add_argument("--disable-cpu-fallback", action="store_true", help="fail where a part of the graph would run on the CPU")
    parser.add_argument("--warmup-runs", type=_whole, default=0, metavar="N", help="unrecorded calls first (0)")
    parser.add_argument("--skip-latency", type=_whole, default=0, metavar="N", help="first images whose time is not counted (0)")
    parser.add_argument("--imgsz", type=at_least_one, default=640, metavar="PIXELS", help="side of the model's input (640)")
    parser.add_argument("--max-images", type=int, default=100, metavar="N", help="first images by id; 0 or less: all (100)")
    parser.add_argument("--conf", type=share, default=0.001, metavar="SHARE", help="lowest score that is kept (0.001)")
    parser.add_argument("--iou", type=finite, default=0.7, metavar="SHARE", help="overlap that suppresses the weaker box (0.7)")
    parser.add_argument("--max-det", type=at_least_one, default=300, metavar="N", help="most detections of an image (300)")
    parser.add_argument("--pre-nms-topk", type=at_least_one, default=30_000, metavar="N", help="boxes before suppression (30000)")
    parser.add_argument("--image-ids-list", type=Path, metavar="FILE", help="images to take: one id per line, # for comments")
    kinds = ("auto", "probabilities", "logits")
    parser.add_argument("--scores", choices=kinds, default="auto", help="what class scores are (auto: the file says, or shows)")
    heads = ("auto", "one-to-one", "one-to-many")
    parser.add_argument(
        "--head", choices=heads, default="auto", help="whether boxes need suppression (auto: the file says, or yes)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the metrics as JSON")
    parser.add_argument("--detections-out", type=Path, metavar="FILE", help="write the detections as COCO's list of results")
    parser.add_argument("--json", action="store_true", help="print the metrics as JSON on stdout")


def add_provider_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `--providers`, the same for everything that opens an ONNX file."""
    shown = f"in order of preference, those that are missing left out ({PROVIDERS})"
    parser.add_argument("--providers", nargs="+", metavar="NAME", help=shown)


def provider_names(words: list[str] | None) -> tuple[str, ...] | None:
    """Return the providers named, each once; commas separate them as well as blanks."""
    if words is None:
        return None
    names = [name.strip() for word in words for name in word.split(",")]
    return tuple(dict.fromkeys(name for name in names if name))


def run(arguments: argparse.Namespace) -> ExitCode:
    """Evaluate, write, print."""
    from fewbits.api.detect_eval import EvaluationRequest, evaluate_onnx
    from fewbits.core.codec import encode_pretty

    files = (arguments.instances, arguments.images_dir)
    request = EvaluationRequest(
        onnx_path=arguments.onnx_path,
        data_root=arguments.data_root or (Path(DATA_ROOT) if files == (None, None) else None),
        instances=arguments.instances,
        images_dir=arguments.images_dir,
        coco_names=arguments.coco_yaml,
        providers=provider_names(arguments.providers),
        disable_cpu_fallback=arguments.disable_cpu_fallback,
        warmup_runs=arguments.warmup_runs,
        skip_latency=arguments.skip_latency,
        image_size=arguments.imgsz,
        max_images=arguments.max_images,
        confidence=arguments.conf,
        iou=arguments.iou,
        max_detections=arguments.max_det,
        pre_nms_topk=arguments.pre_nms_topk,
        image_ids_list=arguments.image_ids_list,
        scores=arguments.scores,
        head=arguments.head,
        out=arguments.out,
        detections_out=arguments.detections_out,
    )
    record = evaluate_onnx(request, show_notice, _show_progress)
    if arguments.json:
        sys.stdout.write(encode_pretty(record).decode())
        return ExitCode.OK
    from rich.console import Console

    from fewbits.report.detector_terminal import render_metrics_terminal

    Console(highlight=False).print(render_metrics_terminal(record))
    for path in (arguments.out, arguments.detections_out):
        if path is not None:
            print(path)
    return ExitCode.OK


def show_notice(words: str) -> None:
    """Say something on stderr that is no error."""
    from fewbits.report.escape import visible

    print(f"note: {visible(words)}", file=sys.stderr)


def _show_progress(done: int, images: int) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{done} of {images} images", end="\n" if done == images else "", file=sys.stderr, flush=True)


def _whole(text: str) -> int:
    return 0 if text.strip() == "0" else at_least_one(text)
