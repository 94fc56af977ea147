"""Perplexities against the model's own loss, one sentence at a time."""

import math
from pathlib import Path

import pytest
from cooks import made

from alignment.models import loading
from alignment.models.chat import Text
from alignment.models.loading import Dtype
from alignment.runtime import Refused
from alignment.scoring.safety import perplexity
from alignment.scoring.safety.sentences import Label, Sentence


def test_perplexities_are_the_exponential_of_the_model_s_own_loss(tiny: Path) -> None:
    import torch

    model, text = loading.load(tiny, tiny, Dtype.float32, "cpu"), Text(loading.tokenizer(tiny))
    sentences = made(30)
    rows = perplexity.tokens(text, sentences)
    values = perplexity.log_perplexities(model, rows, 300)
    for sentence, row, value in zip(sentences, rows, values, strict=True):
        # SafeNLP's calculation: the tokenizer's own encoding, the model's own mean loss, one sentence at a time.
        ids = text.tokenizer.encode(sentence.text, return_tensors="pt")
        assert ids[0].tolist() == row
        with torch.no_grad():
            assert value == pytest.approx(float(model(ids, labels=ids).loss), rel=5e-5)


def test_padding_and_company_do_not_move_a_sentence(tiny: Path) -> None:
    model, text = loading.load(tiny, tiny, Dtype.float32, "cpu"), Text(loading.tokenizer(tiny))
    rows = perplexity.tokens(text, made(30))
    alone = perplexity.log_perplexities(model, rows, 1)
    assert perplexity.log_perplexities(model, rows, 4096) == pytest.approx(alone, rel=5e-5)


def test_without_bos_the_first_token_is_not_predicted_and_one_token_is_unscored(tiny: Path) -> None:
    model, text = loading.load(tiny, tiny, Dtype.float32, "cpu"), Text(loading.tokenizer(tiny))
    rows = perplexity.tokens(
        text, [Sentence("0", words, 1.0, Label.benign, ("cooks",)) for words in ("a", "ab", "abc")]
    )
    assert [len(row) - 1 for row in rows] == [1, 2, 3]  # all of a byte-level text's tokens, after BOS
    assert None not in perplexity.log_perplexities(model, rows, 64)
    bare = [row[1:] for row in rows] + [[]]
    values = perplexity.log_perplexities(model, bare, 64)
    assert [value is None for value in values] == [True, False, False, True]


def test_a_model_that_gives_no_number_is_refused() -> None:
    with pytest.raises(Refused, match="1 of 2 sentences no finite perplexity: id 1"):
        perplexity.table(made(2), [3, 3], [1.0, math.nan])
