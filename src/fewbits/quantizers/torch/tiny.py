"""Tiny random models on disk: a dry run of a whole sweep takes seconds and shows every file that the real one will leave.

Their weights are random, so a score says nothing about any language; everything else (layers, groups, files) is as in the real
architecture.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fewbits.core.errors import SpecError
from fewbits.quantizers.torch.library import quiet_library, require

ARCHITECTURES = ("llama", "qwen3_moe", "qwen3_vl")

HIDDEN = 64
"""Width of the tiny models, a multiple of the blocks of 16, 32 and 64."""
LAYERS = 2

_TRAINING_LINES = (
    "a man rides a wave on a surfboard",
    "two dogs play with a red ball in the grass",
    "a plate of food with rice and vegetables on a wooden table",
    "a group of people standing around a kitchen",
    "the train is at the station near the old bridge",
    "a cat sleeps on the window sill in the morning sun",
)
_UNKNOWN, _START, _END, _PAD = "<unk>", "<s>", "</s>", "<pad>"
_VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def write_tiny_model(folder: Path, architecture: str = "llama", seed: int = 0) -> Path:
    """Write a tiny random model with its tokenizer into `folder` (made when absent) and return the folder.

    `architecture` is one of `ARCHITECTURES`; the same seed gives the same bytes. Raises `SpecError` for an unknown architecture,
    `PrerequisiteError` without torch and transformers.
    """
    if architecture not in ARCHITECTURES:
        raise SpecError.single(
            "architecture", f"unknown tiny architecture {architecture!r}", f"known: {', '.join(ARCHITECTURES)}"
        )
    require("torch", "transformers", "tokenizers")
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    with torch.random.fork_rng(devices=[]), quiet_library(show=False):
        torch.manual_seed(seed)
        model = _MAKERS[architecture](tokenizer)
        model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer() -> Any:
    """Train a byte-pair tokenizer on a few captions: every byte is known, so any text can be encoded."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(unk_token=_UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=[_UNKNOWN, _START, _END, _PAD, *_VISION_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(_TRAINING_LINES, trainer)
    start = core.token_to_id(_START)
    core.post_processor = processors.TemplateProcessing(single=f"{_START} $A", special_tokens=[(_START, start)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token=_UNKNOWN, bos_token=_START, eos_token=_END, pad_token=_PAD, model_max_length=512
    )


def _text_settings(vocabulary: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        # far wider than usual, so that quantization of random weights moves the output by more than rounding does
        "initializer_range": 0.15,
    }


def _llama(tokenizer: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**_text_settings(len(tokenizer)), bos_token_id=1, eos_token_id=2, pad_token_id=3)).eval()


def _qwen3_moe(tokenizer: Any) -> Any:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": HIDDEN, "head_dim": HIDDEN // 4}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**_text_settings(len(tokenizer)), **experts, pad_token_id=3)).eval()


def _qwen3_vl(tokenizer: Any) -> Any:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    ids = dict(zip(_VISION_TOKENS, tokenizer.convert_tokens_to_ids(list(_VISION_TOKENS)), strict=True))
    head = HIDDEN // 4
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3], "mrope_interleaved": True}
    text = _text_settings(len(tokenizer)) | {"head_dim": head, "rope_parameters": rope, "pad_token_id": 3}
    vision = {
        "depth": LAYERS,
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_heads": 4,
        "out_hidden_size": HIDDEN,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 1,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=False,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    return Qwen3VLForConditionalGeneration(config).eval()


_MAKERS: dict[str, Callable[[Any], Any]] = {"llama": _llama, "qwen3_moe": _qwen3_moe, "qwen3_vl": _qwen3_vl}
