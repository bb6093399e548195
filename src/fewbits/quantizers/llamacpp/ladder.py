"""Pure rules of a ladder of variants: what a tag means for this source, its size before it exists, what readers must know."""

from __future__ import annotations

from fewbits.core.errors import SpecError
from fewbits.quantizers.llamacpp.ggml_types import GGML_TYPES, NARROW_FALLBACK, SUPER_BLOCK_WEIGHTS
from fewbits.quantizers.llamacpp.gguf_file import GgufFile
from fewbits.quantizers.llamacpp.gguf_scan import GgufTensor
from fewbits.records.schemes import Scheme
from fewbits.records.variant import VariantWarning, WarningCode

# llama.cpp stores the tensor that makes the logits in Q6_K, or Q8_0 where rows are narrow or the scheme is Q8_0
# Source: llama.cpp, src/llama-quant.cpp, llama_tensor_get_type_impl (category OUTPUT)
_LOGIT_TYPE, _LOGIT_TYPE_NARROW = "Q6_K", "Q8_0"
# quantizes stacked expert tensors (3 dimensions) only and stores all others as Q8_0, by design
_EXPERTS_ONLY, _OTHERS_TYPE = "MXFP4_MOE", "Q8_0"


def is_own_scheme(source: GgufFile, scheme: Scheme) -> bool:
    """True when the user's own file already is the variant."""
    return source.scheme is not None and source.scheme.tag == scheme.tag


def refuse_unbuildable(source: GgufFile, scheme: Scheme) -> None:
    """Raise `SpecError` when the tag cannot be built and the source does not already have it."""
    if scheme.refusal and not is_own_scheme(source, scheme):
        raise SpecError.single(f"quant tag {scheme.tag}", "cannot be built", scheme.refusal)


def estimate_file_bytes(source: GgufFile, scheme: Scheme) -> int:
    """Estimate a variant's size from the source's tensor table: nominal bits, true row widths, small tensors as they are.

    For disk checks: within a tenth of the true size on the models it was tried on.
    """
    logits = _logit_tensor(source)
    data = sum(_estimated_bytes(tensor, scheme, is_logits=tensor.name == logits) for tensor in source.tensors)
    return source.header.data_start + round(data)


def estimate_from_counts(weights: int, scheme: Scheme) -> int:
    """Estimate a variant's size from the number of weights alone."""
    return round(weights * scheme.nominal_bits_per_weight / 8)


def _estimated_bytes(tensor: GgufTensor, scheme: Scheme, *, is_logits: bool) -> float:
    if len(tensor.shape) < 2:
        return tensor.bytes
    bits = scheme.nominal_bits_per_weight
    if scheme.tag == _EXPERTS_ONLY:
        bits = bits if len(tensor.shape) > 2 else GGML_TYPES[_OTHERS_TYPE].bits_per_weight
    elif not scheme.is_float:
        if is_logits and scheme.tag != "Q8_0":
            narrow = tensor.shape[0] % SUPER_BLOCK_WEIGHTS != 0
            bits = GGML_TYPES[_LOGIT_TYPE_NARROW if narrow else _LOGIT_TYPE].bits_per_weight
        elif tensor.shape[0] % GGML_TYPES[scheme.ggml_type].weights:
            bits = GGML_TYPES[NARROW_FALLBACK.get(scheme.ggml_type, "F16")].bits_per_weight
    return tensor.weights * bits / 8


def _logit_tensor(source: GgufFile) -> str:
    """Name of the tensor that makes the logits: `output.weight`, or the embedding when the two are tied."""
    return "output.weight" if any(tensor.name == "output.weight" for tensor in source.tensors) else "token_embd.weight"


def fallback_tensors(variant: GgufFile, scheme: Scheme) -> int:
    """Count tensors whose rows were too narrow for the type that this scheme meant for them.

    Read from the file: a quantized tensor that a super-block does not fit and that has another type than the scheme's; and
    F16 where not even a block of 32 fits.
    """
    if scheme.is_float:
        return 0
    return sum(_fell_back(tensor, scheme) for tensor in variant.tensors)


def _fell_back(tensor: GgufTensor, scheme: Scheme) -> bool:
    width, kind = tensor.shape[0], tensor.kind
    if not kind.is_quantized:
        return kind.name == "F16" and len(tensor.shape) > 1 and width % 32 != 0
    if scheme.tag == _EXPERTS_ONLY:
        return False
    return width % SUPER_BLOCK_WEIGHTS != 0 and kind.name != scheme.ggml_type


def missing_type(variant: GgufFile, scheme: Scheme) -> bool:
    """True when not one tensor has the type that the scheme is named after."""
    return not any(tensor.kind.name == scheme.ggml_type for tensor in variant.tensors)


def warnings_for(source: GgufFile, variant: GgufFile, scheme: Scheme) -> tuple[VariantWarning, ...]:
    """Say what a reader of this variant's numbers must know, in a fixed order."""
    found = (
        _already_quantized(source),
        _dequantized(source, scheme),
        _lossless(source, variant, scheme),
        _fallback(variant, scheme),
    )
    return tuple(warning for warning in found if warning is not None)


def _source_name(source: GgufFile) -> str:
    return source.scheme.tag if source.scheme is not None else source.dominant_type


def _already_quantized(source: GgufFile) -> VariantWarning | None:
    if not source.is_quantized:
        return None
    message = (
        f"The highest precision present is {_source_name(source)} ({source.bits_per_weight:.2f} bits per weight), so this ladder "
        "measures what is lost after that loss, not from the original model."
    )
    return VariantWarning(code=WarningCode.SOURCE_ALREADY_QUANTIZED, message=message)


def _dequantized(source: GgufFile, scheme: Scheme) -> VariantWarning | None:
    if not (source.is_quantized and scheme.is_float):
        return None
    message = f"Stored as {scheme.tag}, but made from {_source_name(source)} weights: it is no better than they are, only larger."
    return VariantWarning(code=WarningCode.DEQUANTIZED_REFERENCE, message=message)


def _lossless(source: GgufFile, variant: GgufFile, scheme: Scheme) -> VariantWarning | None:
    if not source.is_quantized:
        if scheme.tag != "F32" or source.dominant_type not in ("F16", "BF16"):
            return None
        message = f"F32 holds every {source.dominant_type} number exactly, so this is the source's weights in a larger file."
    elif is_own_scheme(source, scheme):
        message = (
            f"{scheme.tag} is the source's own type, so this is the source itself: being equal to the reference says nothing "
            f"about {variant.bits_per_weight:.1f} bits."
        )
    elif variant.dominant_type == source.dominant_type and not scheme.is_float:
        message = (
            f"Most weights were {source.dominant_type} in the source and are so again, on nearly the same grid: "
            f"being close to the reference says little about {variant.bits_per_weight:.1f} bits."
        )
    else:
        return None
    return VariantWarning(code=WarningCode.LOSSLESS_BY_CONSTRUCTION, message=message)


def _fallback(variant: GgufFile, scheme: Scheme) -> VariantWarning | None:
    if scheme.is_float:
        return None
    quantized = sum(tensor.kind.is_quantized for tensor in variant.tensors)
    count = quantized if missing_type(variant, scheme) else fallback_tensors(variant, scheme)
    if count == 0:
        return None
    none_left = f", and not one is {scheme.ggml_type}" if missing_type(variant, scheme) else ""
    message = (
        f"{count} of {len(variant.tensors)} tensors have a shape that {scheme.tag} does not fit and got another type{none_left}: "
        f"{scheme.tag} is {variant.bits_per_weight:.2f} bits per weight here (nominal {scheme.nominal_bits_per_weight:.2f})."
    )
    return VariantWarning(code=WarningCode.FALLBACK_TYPES, message=message)
