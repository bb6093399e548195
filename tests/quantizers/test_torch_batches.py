"""Batches and losses: padding must change nothing but the time it takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fewbits.core.errors import SpecError
from fewbits.quantizers.torch.batches import (
    NO_LABEL,
    forward_inputs,
    make_batches,
    next_token_loss,
    sample_losses,
    token_counts,
)
from fewbits.spec.captions import read_captions

torch = pytest.importorskip("torch")


class WordTokenizer:
    """One token per word: the length of the word."""

    pad_token_id: int | None = None
    eos_token_id: int | None = 7

    def __call__(self, texts: Sequence[str], *, truncation: bool, max_length: int) -> dict[str, list[list[int]]]:
        assert truncation
        return {"input_ids": [[len(word) for word in text.split()][:max_length] for text in texts]}


def batches(texts: Sequence[str], **settings: Any) -> Any:
    values: dict[str, Any] = {"batch_size": 2, "max_tokens": 8, "device": "cpu"} | settings
    return make_batches(WordTokenizer(), texts, **values)


def test_a_batch_is_padded_to_its_own_longest_sample() -> None:
    made = batches(["a bb ccc", "a bb", "dddd eeeee", "f gg"])
    assert [tuple(batch["input_ids"].shape) for batch in made.items] == [(2, 3), (2, 2)]
    first = made.items[0]
    assert first["input_ids"].tolist() == [[1, 2, 3], [1, 2, 7]]
    assert first["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert first["labels"].tolist() == [[1, 2, 3], [1, 2, NO_LABEL]]
    assert made.padding_ratio == pytest.approx(1 / 10)
    assert made.samples == 4


def test_samples_are_cut_to_the_longest_allowed() -> None:
    made = batches(["a b c d e f g h i j"], max_tokens=4)
    assert made.items[0]["input_ids"].shape == (1, 4)
    assert made.padding_ratio == 0
    assert token_counts(WordTokenizer(), ["a b c d e f g h i j", "a"], 4) == [4, 1]


def test_samples_without_a_next_token_are_left_out_and_named() -> None:
    made = batches(["one", "a b", "", "c d"])
    assert made.skipped == (0, 2)
    assert made.samples == 2


def test_only_samples_without_a_next_token_are_refused() -> None:
    with pytest.raises(SpecError, match="no next token"):
        batches(["one", "two"])


def test_losses_ignore_padding_whatever_stands_there() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 5, 11, generator=generator)
    labels = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, NO_LABEL, NO_LABEL]])
    alone = torch.nn.functional.cross_entropy(logits[1, :2], labels[1, 1:3])
    assert sample_losses(logits, labels)[1] == pytest.approx(float(alone))
    whole = torch.nn.functional.cross_entropy(torch.cat([logits[0, :4], logits[1, :2]]), torch.tensor([2, 3, 4, 5, 7, 8]))
    assert float(next_token_loss(logits, labels)) == pytest.approx(float(whole))
    logits[1, 2:] = 1e9
    assert float(next_token_loss(logits, labels)) == pytest.approx(float(whole))


def test_the_forward_pass_never_gets_labels_or_a_cache() -> None:
    inputs = forward_inputs(batches(["a b"]).items[0])
    assert set(inputs) == {"input_ids", "attention_mask", "use_cache"}
    assert inputs["use_cache"] is False


def test_captions_are_the_first_lines_that_hold_text(tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_text("\ufeffone two\n\n  three \nfour\n", encoding="utf-8")
    assert read_captions(path, 2) == ("one two", "three")
    assert read_captions(path, 99) == ("one two", "three", "four")


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "cannot read .*No such file"), (b"\n  \n", "holds no text"), (b"\xff\xfe\x00caption", "not UTF-8")],
)
def test_unusable_caption_files_are_refused(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "captions.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SpecError, match=words):
        read_captions(path, 4)
