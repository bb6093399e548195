"""Models, schemes and artifacts: a variant is weights, never a label."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from fewbits.records.base import Record

Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]

IMATRIX_DATASET = "imatrix_dataset"
"""Parameter of an artifact: the text that its quantization was calibrated on, where the file names one."""


class ModelKind(StrEnum):
    """How a model is named."""

    GGUF = "gguf"
    """A GGUF file on this machine."""
    PACKAGED = "packaged"
    """A name in fewbits' registry, fetched through the package client."""
    CHECKPOINT = "checkpoint"
    """A PyTorch checkpoint on this machine."""
    SERVER = "server"
    """A model that a server (Ollama, OpenAI-compatible) already holds."""


class ModelSource(Record, frozen=True, kw_only=True):
    """What the user brought: the name as written, resolved to a kind; `path` for GGUF kinds (never hashed into identities)."""

    model_id: str
    kind: ModelKind
    path: str | None = None
    digest: Sha256 | None = None
    bytes: int | None = None


class TensorTypeCount(Record, frozen=True, kw_only=True):
    """One row of the census: how many tensors, weights and bytes a ggml type holds in the file."""

    ggml_type: str
    tensors: int
    weights: int
    bytes: int


class WarningCode(StrEnum):
    """What a reader of a variant's numbers must know."""

    SOURCE_ALREADY_QUANTIZED = "SOURCE_ALREADY_QUANTIZED"
    """The highest precision present was itself quantized: this ladder starts from a dequantized reference."""
    LOSSLESS_BY_CONSTRUCTION = "LOSSLESS_BY_CONSTRUCTION"
    """Same grid as the source's own type: being equal to the reference says nothing about the bits."""
    FALLBACK_TYPES = "FALLBACK_TYPES"
    """Some tensors are too narrow for this K-quant and got another type: read bits per weight, not the tag."""
    DEQUANTIZED_REFERENCE = "DEQUANTIZED_REFERENCE"
    """Stored at 16 or 32 bits, but made from quantized weights."""


class VariantWarning(Record, frozen=True, kw_only=True):
    """A warning code and one sentence for people."""

    code: WarningCode
    message: str


class Artifact(Record, frozen=True, kw_only=True):
    """The manifest of a variant: identity, size and precision measured from the file itself, and how it was made.

    `bits_per_weight` = 8 x bytes of all tensor data / number of weights in all tensors (metadata not counted). Of ONNX files:
    the bits that the weights' ranges of integers need, averaged over the weights of convolutions and matrix products; such files
    may store them wider (INT8), which `bytes` and the census show.
    Server models have no file: every measured field is then `None`.
    """

    schema_version: str = "fewbits.artifact.v1"
    model_id: str
    scheme: str
    """The quant tag asked for, in canonical spelling (`Q4_K_M`)."""
    sha256: Sha256 | None
    bytes: int | None
    weights: int | None
    bits_per_weight: float | None
    census: tuple[TensorTypeCount, ...] = ()
    source_sha256: Sha256 | None = None
    source_scheme: str | None = None
    """Dominant ggml type of the source file's weights (`Q4_1`, `F16`)."""
    built: bool = True
    """False when the user's own file is the variant."""
    recipe: tuple[str, ...] = ()
    """The command that makes the file again, paths as {source} and {output}."""
    tool: str = ""
    tool_version: str = ""
    architecture: str | None = None
    parameters: dict[str, int | str] = {}  # noqa: RUF012 - msgspec copies mutable defaults
    """Model metadata that the sweep needs: n_layers, n_ctx_train, n_embd, n_head, n_head_kv, n_vocab, imatrix_dataset."""
    warnings: tuple[VariantWarning, ...] = ()
    server_digest: str | None = None
    """For server models: the digest the server reports for the model, when it reports one."""


class ServedIdentity(Record, frozen=True, kw_only=True):
    """What the runtime says and shows that it serves, and how that was proved.

    `proof` is one of `weights_inode` (the serving process maps the very file that was hashed), `loaded_bytes` (it hashed what it
    loaded), `model_path`, `server_digest`, `reported_name` (weakest; the server can show no more).
    """

    served_name: str
    proof: str
    artifact_sha256: Sha256 | None = None
    quantization: str | None = None
    server_digest: str | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Variant:
    """An artifact together with where its file lies on this machine (`None` for models that a server holds)."""

    artifact: Artifact
    path: Path | None
