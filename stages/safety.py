"""Score a checkpoint's safety: the perplexity of harmful and of benign sentences about each group.

In: the base model, a checkpoint on it, the fetched sentences.
Out: one Parquet row a sentence (a key in place of its text), and metrics for every group and over groups.
"""

from pathlib import Path
from typing import Annotated

import typer

from alignment.models import loading
from alignment.models.chat import Text
from alignment.models.loading import Device, Dtype
from alignment.runtime import command, files, processes
from alignment.runtime.command import SEEDS
from alignment.scoring.safety import perplexity, scores, sentences


def main(
    base: Annotated[Path, typer.Argument(help="the base model")],
    checkpoint: Annotated[Path, typer.Argument(help="the base model again, or an adapter on it")],
    raw: Annotated[Path, typer.Argument(help="the fetched sentences, a folder with one JSON file")],
    out: Annotated[Path, typer.Argument(help="one row a sentence, as Parquet")],
    metrics: Annotated[Path, typer.Argument(help="the scores, as JSON")],
    limit: Annotated[int, typer.Option(help="sentences to score, about; all of them from their number on", min=1)],
    item_seed: Annotated[int, typer.Option(help="says which sentences a limit keeps", min=0, max=SEEDS)],
    token_budget: Annotated[int, typer.Option(help="tokens a forward pass, padding included", min=1)],
    dtype: Annotated[Dtype, typer.Option(help="precision; bfloat16 moves perplexities by up to 18 %")],
    device: Annotated[Device, typer.Option(help="where it is computed")],
) -> None:
    """Score one checkpoint on the safety sentences."""
    world = processes.lock_output(out, device)
    read = sentences.read(sentences.source(raw))
    chosen = sentences.choose(read, limit, item_seed)
    text = Text(loading.tokenizer(base))
    rows = perplexity.tokens(text, chosen)
    model = loading.load(base, checkpoint, dtype, device)
    values = perplexity.log_perplexities(model, rows, token_budget)
    if not world.is_main_process:
        return

    table = perplexity.table(chosen, [max(len(row) - 1, 0) for row in rows], values)
    figures = scores.scores(table, item_seed)
    unscored = values.count(None)
    counts = {
        "sentences.read": len(read),
        "sentences.not_chosen": len(read) - len(chosen),
        "sentences.unscored": unscored,
        "sentences.scored": len(chosen) - unscored,
    }
    files.write_parquet(out, table)
    files.write_json(metrics, {**counts, "bos": bool(text.bos), **figures})
    print(f"{len(chosen) - unscored} sentences of {len(read)} scored, average auc_len {figures['average.auc_len']}")


if __name__ == "__main__":
    command.run(main)
