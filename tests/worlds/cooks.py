"""Sentences about cooks, potters and kettles, in place of hateful ones."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pyarrow as pa

from alignment.scoring.safety import perplexity
from alignment.scoring.safety.sentences import Label, Sentence

WORDS = ["the", "old", "cook", "burns", "every", "third", "pot", "and", "blames", "a", "kettle"]


def write(folder: Path, records: Any, name: str = "toxiGen.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(records if isinstance(records, str) else json.dumps(records), encoding="utf-8")
    return folder / name


def made(rows: int, seed: int = 0) -> list[Sentence]:
    """Sentences of many lengths about two overlapping groups and one with harmful sentences only."""
    draw = random.Random(seed)
    sentences = []
    for row in range(rows):
        label = draw.choice(list(Label))
        groups = draw.choice([("cooks",), ("cooks", "potters"), ("potters",)])
        alone = ("kettles",) if label is Label.harmful and row % 5 == 0 else ()
        text = " ".join(draw.choices(WORDS, k=draw.randint(1, 12)))
        sentences.append(Sentence(str(row), text, draw.randint(3, 15) / 3, label, tuple(sorted(groups + alone))))
    return sentences


def records(sentences: list[Sentence]) -> list[dict[str, Any]]:
    return [
        {"id": int(s.id), "text": s.text, "toxicity_score": s.toxicity, "label": s.label, "target_groups": [*s.groups]}
        for s in sentences
    ]


def scored(sentences: list[Sentence], seed: int = 0) -> pa.Table:
    """A table with made-up log-perplexities that tie and that fall with length."""
    draw = random.Random(seed)
    lengths = [len(sentence.text.split()) for sentence in sentences]
    return perplexity.table(sentences, lengths, [draw.randint(8, 20) / 4 - math.log(n) / 2 for n in lengths])
