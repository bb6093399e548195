"""Calibration text as padded batches, and the losses over their real tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fewbits.core.errors import SpecError
from fewbits.spec.captions import PLACE as CAPTIONS_PLACE

NO_LABEL = -100
"""Label of positions without a token: cross-entropy skips them (PyTorch's default `ignore_index`)."""

MIN_TOKENS = 2
"""A next-token loss needs a token and a next one."""


@dataclass(frozen=True, slots=True)
class Batches:
    """Tokenized samples, each batch padded on the right to its own longest sample."""

    items: list[dict[str, Any]]
    """Per batch: `input_ids`, `attention_mask` (1 on real tokens), `labels` (`NO_LABEL` on padding); int64, (samples, tokens)."""
    samples: int
    padding_ratio: float
    """Share of token positions that are padding, 0..1."""
    skipped: tuple[int, ...]
    """Positions, in the list of texts, of samples with fewer than two tokens: they have no next token and are in no batch."""


def encode_texts(tokenizer: Any, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
    """Return the token numbers of each text, cut to its first `max_tokens`."""
    if not texts:
        return []
    return [list(ids)[:max_tokens] for ids in tokenizer(list(texts), truncation=True, max_length=max_tokens)["input_ids"]]


def token_counts(tokenizer: Any, texts: Sequence[str], max_tokens: int) -> list[int]:
    """Return the number of tokens of each text, at most `max_tokens`. Samples with fewer than two are of no use to a loss."""
    return [len(ids) for ids in encode_texts(tokenizer, texts, max_tokens)]


def make_batches(tokenizer: Any, texts: Sequence[str], *, batch_size: int, max_tokens: int, device: str) -> Batches:
    """Tokenize texts, in their order, into batches of up to `batch_size` samples on `device`.

    Samples are cut to `max_tokens`. Padding is on the right, so that positions count from 0 and causal attention never looks at
    it. Raises `SpecError` when no sample has two tokens.
    """
    encoded = encode_texts(tokenizer, texts, max_tokens)
    kept = [ids for ids in encoded if len(ids) >= MIN_TOKENS]
    skipped = tuple(index for index, ids in enumerate(encoded) if len(ids) < MIN_TOKENS)
    if not kept:
        raise SpecError.single(
            CAPTIONS_PLACE, "no sample has two tokens or more, so there is no next token to predict", "use longer text"
        )
    padding = next((number for number in (tokenizer.pad_token_id, tokenizer.eos_token_id) if number is not None), 0)
    groups = [kept[start : start + batch_size] for start in range(0, len(kept), batch_size)]
    real = sum(len(ids) for ids in kept)
    computed = sum(len(group) * max(map(len, group)) for group in groups)
    items = [_pad(group, padding, device) for group in groups]
    return Batches(items=items, samples=len(kept), padding_ratio=1 - real / computed, skipped=skipped)


def _pad(group: Sequence[Sequence[int]], padding: int, device: str) -> dict[str, Any]:
    import torch

    longest = max(map(len, group))
    shape = (len(group), longest)
    input_ids = torch.full(shape, padding, dtype=torch.int64)
    attention_mask = torch.zeros(shape, dtype=torch.int64)
    labels = torch.full(shape, NO_LABEL, dtype=torch.int64)
    for row, ids in enumerate(group):
        numbers = torch.tensor(ids, dtype=torch.int64)
        input_ids[row, : len(ids)] = numbers
        labels[row, : len(ids)] = numbers
        attention_mask[row, : len(ids)] = 1
    return {"input_ids": input_ids.to(device), "attention_mask": attention_mask.to(device), "labels": labels.to(device)}


def forward_inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """Return what a model's forward pass takes from a batch: everything but the labels, and no cache."""
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}


def token_losses(logits: Any, labels: Any) -> Any:
    """Return the next-token cross-entropy of every position, nats, (samples, tokens - 1); 0 where there is no next token."""
    from torch.nn import functional

    shifted = logits[:, :-1].float()
    return functional.cross_entropy(shifted.transpose(1, 2), labels[:, 1:], ignore_index=NO_LABEL, reduction="none")


def next_token_loss(logits: Any, labels: Any) -> Any:
    """Return the mean next-token cross-entropy over a batch's real tokens, nats per token (a scalar tensor)."""
    return token_losses(logits, labels).sum() / (labels[:, 1:] != NO_LABEL).sum()


def sample_losses(logits: Any, labels: Any) -> Any:
    """Return each sample's own mean next-token cross-entropy, nats per token, (samples,)."""
    return token_losses(logits, labels).sum(dim=1) / (labels[:, 1:] != NO_LABEL).sum(dim=1)
