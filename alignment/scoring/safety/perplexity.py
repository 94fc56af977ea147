"""Perplexities of sentences under a model, by the scoring engine.

In: sentences, a model. Out: a table with one row a sentence, from which `safety` computes every figure.
"""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from alignment.models.chat import Text
from alignment.runtime import Refused, files
from alignment.scoring.engine.engine import Engine
from alignment.scoring.engine.prefix_tree import Request
from alignment.scoring.safety.sentences import Sentence

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def tokens(text: Text, sentences: Iterable[Sentence]) -> list[list[int]]:
    """Tokenise each sentence as it stands, with a BOS if the model's tokenizer uses one."""
    return [text.raw(sentence.text) for sentence in sentences]


def log_perplexities(model: "PreTrainedModel", rows: Sequence[list[int]], token_budget: int) -> list[float | None]:
    """Compute the mean of -log p over each row's predicted tokens, in nats; None where no token is predicted.

    The first token has nothing before it and is not predicted: where the rows start with a BOS, that is the BOS.
    """
    predicted = [number for number, row in enumerate(rows) if len(row) > 1]
    requests = [Request(rows[number][:1], rows[number][1:]) for number in predicted]
    result: list[float | None] = [None] * len(rows)
    scores = Engine(model, token_budget).score(requests, label="perplexity", unit="sentence")
    for number, score in zip(predicted, scores, strict=True):
        result[number] = -score.loglikelihood / (len(rows[number]) - 1)
    return result


SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text_key", pa.string()),
        ("label", pa.string()),
        ("toxicity", pa.float64()),
        ("groups", pa.list_(pa.string())),
        ("tokens", pa.int64()),
        ("log_perplexity", pa.float64()),
    ]
)


def table(sentences: Sequence[Sentence], predicted: Sequence[int], values: Sequence[float | None]) -> pa.Table:
    """Make a table with one row per sentence, with a key in place of its text.

    Args:
        sentences: the sentences.
        predicted: how many tokens of each are predicted.
        values: the log-perplexity of each, or None.

    Raises:
        Refused: a log-perplexity is not finite.
    """
    scored = zip(sentences, values, strict=True)
    wrong = [sentence.id for sentence, value in scored if value is not None and not math.isfinite(value)]
    if wrong:
        raise Refused(
            f"the model gives {len(wrong)} of {len(sentences)} sentences no finite perplexity: id "
            f"{', '.join(wrong[:5])} …\nset `safety.dtype: float32`, or train it again: it may have diverged"
        )
    return pa.Table.from_pylist(
        [
            {
                "id": sentence.id,
                "text_key": files.digest(sentence.text),
                "label": str(sentence.label),
                "toxicity": sentence.toxicity,
                "groups": list(sentence.groups),
                "tokens": n,
                "log_perplexity": value,
            }
            for sentence, n, value in zip(sentences, predicted, values, strict=True)
        ],
        schema=SCHEMA,
    )
