"""One build of an OCR engine, in a process of its own: what the quantizer's libraries leak or break ends with it.

    python -P -m fewbits.quantizers.ocr.worker JOB

JOB is an `OcrBuildJob` as JSON. Writes the networks and `precision.json` into its folder; exit code 0 only when all are there.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from fewbits.core.codec import decode, encode_pretty
from fewbits.core.errors import FewbitsError
from fewbits.core.files import atomic_write
from fewbits.quantizers.ocr.archive import DETECTION, ORIENTATION, RECOGNITION
from fewbits.quantizers.ocr.calibration import record_inputs
from fewbits.quantizers.ocr.integers import prepare, quantize_dynamic, quantize_static
from fewbits.quantizers.ocr.precision import NetworkPrecision, network_precision
from fewbits.records.base import Record
from fewbits.spec.ocr_schemes import OcrMethod, OcrNetwork, OcrScheme, parse_ocr_scheme

PRECISION = "precision.json"
_FILES = {OcrNetwork.DETECTION: DETECTION, OcrNetwork.RECOGNITION: RECOGNITION}


class OcrBuildJob(Record, frozen=True, kw_only=True):
    """What to build: paths of the float networks, of calibration pages (static schemes), and of the folder to write to."""

    scheme: str
    detection: str
    recognition: str
    orientation: str
    pages: tuple[str, ...]
    folder: str
    threads: int


class EnginePrecision(Record, frozen=True, kw_only=True):
    """How each network is stored and runs, by the name of its file."""

    networks: dict[str, NetworkPrecision]
    calibration_inputs: dict[str, int]
    """Arrays that ranges were taken from; empty where none were."""


def build(job: OcrBuildJob) -> None:
    """Write the networks and their precision. Raises `SpecError`, `BackendError`, `StoreError`."""
    scheme = parse_ocr_scheme(job.scheme)
    folder = Path(job.folder)
    sources = {OcrNetwork.DETECTION: Path(job.detection), OcrNetwork.RECOGNITION: Path(job.recognition)}
    for network, source in sources.items():
        shutil.copyfile(source, folder / _FILES[network])
    shutil.copyfile(job.orientation, folder / ORIENTATION)
    inputs = _quantize(scheme, sources, job, folder) if scheme is not None else {}
    names = (*_FILES.values(), ORIENTATION)
    precision = EnginePrecision(networks={name: network_precision(folder / name) for name in names}, calibration_inputs=inputs)
    atomic_write(folder / PRECISION, encode_pretty(precision))


def _quantize(scheme: OcrScheme, sources: dict[OcrNetwork, Path], job: OcrBuildJob, folder: Path) -> dict[str, int]:
    """Replace the networks of the scheme. Returns how many calibration inputs each had."""
    calibrated = scheme.method is OcrMethod.STATIC
    pages = [Path(page) for page in job.pages]
    recorded = record_inputs(Path(job.detection), Path(job.recognition), pages, job.threads) if calibrated else {}
    for network in scheme.networks:
        prepared = folder / f"prepared-{network}.onnx"
        prepare(sources[network], prepared)
        if calibrated:
            quantize_static(prepared, folder / _FILES[network], recorded[network], spare=network is OcrNetwork.RECOGNITION)
        else:
            quantize_dynamic(prepared, folder / _FILES[network])
    return {network.value: len(recorded[network]) for network in scheme.networks} if calibrated else {}


def main(words: list[str]) -> int:
    """Run one job and return the exit code: that of the error's kind where it is one of ours, which is told on stderr."""
    try:
        build(decode(words[0].encode(), OcrBuildJob, "job"))
    except FewbitsError as error:
        sys.stderr.write(f"{error}\n")
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
