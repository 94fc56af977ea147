"""Score a checkpoint on the benchmarks, and let it answer eight fixed prompts.

In: the base model, a checkpoint (the base itself, or an adapter on it), the fetched benchmarks.
Out: one row an item as Parquet, greedy answers as JSON lines, metrics.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from alignment import benchmarks, command, evaluation, files, models
from alignment.chat import Chat, Template
from alignment.models import Dtype


def main(
    base: Annotated[Path, typer.Argument(help="the base model")],
    checkpoint: Annotated[Path, typer.Argument(help="the base once more, or an adapter on it")],
    benchmark_folder: Annotated[Path, typer.Argument(help="the fetched benchmarks")],
    out: Annotated[Path, typer.Argument(help="one row an item, as Parquet")],
    answers: Annotated[Path, typer.Argument(help="greedy answers to fixed prompts, as JSON lines")],
    metrics: Annotated[Path, typer.Argument(help="metrics, as JSON")],
    items: Annotated[list[str], typer.Option(help="a task and about how many of its items: piqa=16, or piqa=all")],
    batch: Annotated[int, typer.Option(help="requests a forward pass", min=1)],
    answer_tokens: Annotated[int, typer.Option(help="tokens of an answer, at most", min=1)],
    template: Annotated[Template, typer.Option(help="the chat template, for the answers only")],
    item_seed: Annotated[int, typer.Option(help="which items are scored")],
    dtype: Annotated[Dtype, typer.Option(help="precision")],
    device: Annotated[str, typer.Option(help="cpu or cuda")],
) -> None:
    """Score a checkpoint on the benchmarks."""
    files.claim(out)
    limits = evaluation.limits(items)
    # In one order, whatever the order of the list, since batches are planned over all requests.
    tasks = [task for task in benchmarks.BENCHMARKS if task in limits]
    parts = [part for task in tasks for part in evaluation.items(benchmark_folder, task, limits[task], item_seed)]
    chat = Chat(models.tokenizer(base), template)
    model = models.load(base, checkpoint, dtype, device)

    scored = evaluation.score(evaluation.reference(model, chat.tokenizer, batch), parts)
    replies = evaluation.answers(model, chat, answer_tokens)

    files.write_parquet(out, scored)
    files.write_text(answers, "".join(json.dumps(reply, ensure_ascii=False) + "\n" for reply in replies))
    files.write_json(metrics, evaluation.metrics(scored))
    print(f"{checkpoint}: {len(scored)} items of {len(tasks)} tasks scored")


if __name__ == "__main__":
    command.run(main)
