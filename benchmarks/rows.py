"""Rows in the shape of OpenOrca, as many as one likes: what the data stages are timed on.

In: how many rows, and a folder. Out: two Parquet files under the names and in the columns of the set, with texts of
about the lengths of real rows. The words are those of the embedded miniature; what they say means nothing.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from alignment.runtime import records

FILES = {"1M-GPT4-Augmented.parquet": 0.235, "3_5M-GPT3_5-Augmented.parquet": 0.765}  # their shares of the rows
WORDS = Path("data/mini/GAIR/lima/train.jsonl")
QUESTION, RESPONSE = 900, 750  # mean characters, as in real rows
COPIES = 0.02  # the share of rows that say what another one says, or nearly
BATCH = 10_000
COLUMNS = ("id", "system_prompt", "question", "response")


def write(folder: Path, rows: int) -> None:
    """Write `rows` rows into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    found = (word for _, row in records.rows(WORDS) for turn in row["conversations"] for word in turn.split())
    words = list(dict.fromkeys(found))
    frequent = 1 / (np.arange(len(words)) + 10)
    drawn = generator.choice(len(words), size=(20_000, 12), p=frequent / frequent.sum())
    sentences = [" ".join(words[number] for number in row).capitalize() + ". " for row in drawn]
    systems = ["", *("".join(sentences[i : i + 2]) for i in range(16))]
    for name, share in FILES.items():
        left = round(rows * share)
        with (
            pq.ParquetWriter(folder / name, pa.schema([(column, pa.string()) for column in COLUMNS])) as writer,
            tqdm(total=left, desc=name, unit="row") as progress,
        ):
            while left:
                count = min(left, BATCH)
                writer.write_table(_batch(generator, count, words, sentences, systems))
                progress.update(count)
                left -= count


def _batch(
    generator: np.random.Generator, count: int, words: list[str], sentences: list[str], systems: list[str]
) -> pa.Table:
    length = np.mean([len(sentence) for sentence in sentences])
    sides = []
    for mean in (QUESTION, RESPONSE):
        counts = 1 + generator.poisson(generator.exponential(mean / length, size=count))
        picks = generator.integers(len(sentences), size=int(counts.sum())).tolist()
        ends = np.cumsum(counts).tolist()
        # A number of its own makes every row differ from the others, as real rows do.
        numbers = generator.integers(10**9, size=count).tolist()
        sides.append(
            [
                "".join([sentences[i] for i in picks[start:end]]) + f"{words[number % len(words)]} {number}."
                for start, end, number in zip([0, *ends], ends, numbers, strict=False)
            ]
        )
    questions, responses = sides
    for copy in np.flatnonzero(generator.random(count) < COPIES).tolist()[1:]:
        questions[copy], responses[copy] = questions[copy - 1], responses[copy - 1] + ("!" if copy % 2 else " Yes.")
    chosen = [systems[i] for i in generator.integers(len(systems), size=count).tolist()]
    ids = [f"flan.{number}" for number in generator.integers(10**9, size=count).tolist()]
    return pa.table(dict(zip(COLUMNS, (ids, chosen, questions, responses), strict=True)))
