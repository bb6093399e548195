"""The variants of an extraction sweep: each engine's own quantizer behind one, and the pages that static ranges come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fewbits.api.extract_chat import chat_digest, check_chat_model, ensure_chat_variant, estimate_chat_bytes
from fewbits.core.codec import digest
from fewbits.core.errors import Problem, SpecError
from fewbits.core.files import safe_name
from fewbits.extraction.analytes import ANALYTES
from fewbits.quantizers.base import Progress
from fewbits.quantizers.ocr.models import MODEL_ID as OCR_MODEL
from fewbits.quantizers.ocr.quantizer import OcrQuantizer
from fewbits.records.extraction import Level
from fewbits.records.variant import Artifact, ModelKind, ModelSource, Variant
from fewbits.spec.extraction_engines import EngineChoice, EngineKind, parse_engine
from fewbits.store.artifacts import ArtifactCache

PIPELINE = "lab-report-pipeline"
"""Model id of the sweep: what varies is the engine, and it is the variant's tag."""
CALIBRATION_SEED = 0
CALIBRATION_PAGES = 24
_CALIBRATION_LEVELS = tuple(Level)


@dataclass(frozen=True, slots=True)
class ExtractionVariants:
    """Makes engines, as a `Quantizer`: the scheme is the engine's tag."""

    cache: ArtifactCache
    threads: int
    vision_model: str | None = None
    chat_model: str | None = None

    def locate(self, model_id: str) -> ModelSource:
        """Describe the pipeline by the engines' sources; fetches nothing. Raises `PrerequisiteError`, `StoreError`."""
        ocr = self._ocr().locate(OCR_MODEL)
        models = [self.vision_model, self.chat_model, chat_digest(self.cache, self.chat_model)]
        sources = digest([ocr.digest, *models]) if any(models) else ocr.digest
        return ModelSource(model_id=model_id, kind=ModelKind.PACKAGED, digest=sources, bytes=ocr.bytes)

    def check(self, source: ModelSource, scheme: str) -> None:  # noqa: ARG002 - one pipeline, which takes every engine
        """Raise `SpecError` for an engine that is unknown, or whose model is not named."""
        choice = parse_engine(scheme, "--engines")
        if choice.kind is EngineKind.VISION and self.vision_model is None:
            raise SpecError.single("--engines", f"{choice.tag} needs a vision-language model", "name it with --model")
        if choice.kind is EngineKind.OCR_CHAT:
            check_chat_model(self.cache, self.chat_model, choice)

    def estimate_bytes(self, source: ModelSource, scheme: str) -> int:
        """Estimate an engine's size without making it."""
        choice = parse_engine(scheme, "--engines")
        if choice.kind is EngineKind.VISION:
            folder = Path(self.vision_model or "")
            return sum(path.stat().st_size for path in folder.glob("*.safetensors")) if folder.is_dir() else 0
        if choice.kind is EngineKind.OCR_CHAT:
            return estimate_chat_bytes(self.cache, self.chat_model, choice)
        return self._ocr().estimate_bytes(source, choice.precision)

    def ensure(self, source: ModelSource, scheme: str, progress: Progress) -> Variant:
        """Return the engine, made where the cache lacks it.

        Raises `SpecError`, `PrerequisiteError`, `BackendError`, `StoreError`.
        """
        self.check(source, scheme)
        choice = parse_engine(scheme, "--engines")
        if choice.kind is EngineKind.VISION:
            return self._vision(source, choice)
        if choice.kind is EngineKind.OCR_CHAT:
            chat = ensure_chat_variant(self.cache, self.chat_model, choice, self.threads, progress)
            return Variant(msgspec.structs.replace(chat.artifact, model_id=source.model_id), chat.path)
        pages = calibration_pages(self.cache, progress) if _is_static(choice) else ()
        quantizer = OcrQuantizer(self.cache, pages, threads=self.threads)
        made = quantizer.ensure(quantizer.locate(OCR_MODEL), choice.precision, progress)
        artifact = msgspec.structs.replace(made.artifact, model_id=source.model_id, scheme=choice.tag)
        return Variant(artifact, made.path)

    def _ocr(self) -> OcrQuantizer:
        return OcrQuantizer(self.cache, threads=self.threads)

    def _vision(self, source: ModelSource, choice: EngineChoice) -> Variant:
        from fewbits.runtimes.extraction.vision_load import model_digest, model_folder

        folder = model_folder(self.vision_model or "", None)
        weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        artifact = Artifact(
            model_id=source.model_id,
            scheme=choice.tag,
            sha256=model_digest(folder),
            bytes=weights,
            weights=None,
            bits_per_weight=None,
            built=False,
            tool="transformers",
            architecture="vision-language model",
        )
        return Variant(artifact, folder)


def _is_static(choice: EngineChoice) -> bool:
    return "static" in choice.precision


def calibration_pages(cache: ArtifactCache, progress: Progress) -> tuple[Path, ...]:
    """Return the generated pages that static ranges come from, drawn once into the cache: none is ever tested on."""
    from fewbits.workloads.extraction.generator.samples import generate_pages
    from fewbits.workloads.extraction.generator.seeds import VERSION
    from fewbits.workloads.extraction.labelled import LABELS_NAME, read_labelled

    key = digest(["calibration", VERSION, repr(ANALYTES), CALIBRATION_SEED, CALIBRATION_PAGES, list(_CALIBRATION_LEVELS)])
    folder = cache.root / "pages" / safe_name(f"calibration-{key[:16]}")
    with cache.exclusive(f"pages-{key[:16]}", progress):
        if not (folder / LABELS_NAME).exists():
            progress(f"drawing {CALIBRATION_PAGES} pages to calibrate on")
            generate_pages(
                folder,
                seed=CALIBRATION_SEED,
                count=CALIBRATION_PAGES,
                levels=_CALIBRATION_LEVELS,
                split="calibration",
                name="calibration pages",
            )
        return tuple(folder / page.file_name for page in read_labelled(folder).pages)


def engine_tags(words: Sequence[str]) -> tuple[str, ...]:
    """Return the canonical tags of engines as written, each once. Raises `SpecError` with the problems of all."""
    tags: list[str] = []
    problems: list[Problem] = []
    for word in words:
        try:
            tags.append(parse_engine(word, "--engines").tag)
        except SpecError as error:
            problems.extend(error.problems)
    if problems:
        raise SpecError(problems)
    return tuple(dict.fromkeys(tags))
