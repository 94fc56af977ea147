"""Score a checkpoint on the benchmarks, and let it answer eight fixed prompts.

In: the base model, a checkpoint (the base itself, or an adapter on it), the fetched benchmarks.
Out: one row an item as Parquet, greedy answers as JSON lines, metrics.
"""

import json
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from alignment.models import loading
from alignment.models.chat import Chat, Template
from alignment.models.loading import Device, Dtype
from alignment.runtime import command, files, processes
from alignment.runtime.command import SEEDS
from alignment.scoring.benchmarks import evaluation
from alignment.scoring.benchmarks.answers import greedy_answers


def main(
    base: Annotated[Path, typer.Argument(help="the base model")],
    checkpoint: Annotated[Path, typer.Argument(help="the base once more, or an adapter on it")],
    benchmark_folder: Annotated[Path, typer.Argument(help="the fetched benchmarks")],
    out: Annotated[Path, typer.Argument(help="one row an item, as Parquet")],
    answers: Annotated[Path, typer.Argument(help="greedy answers to fixed prompts, as JSON lines")],
    metrics: Annotated[Path, typer.Argument(help="metrics, as JSON")],
    items: Annotated[list[str], typer.Option(help="a task and about how many of its items: piqa=16, or piqa=all")],
    token_budget: Annotated[int, typer.Option(help="tokens a forward pass, padding included", min=1)],
    answer_tokens: Annotated[int, typer.Option(help="tokens of an answer, at most", min=1)],
    template: Annotated[Template, typer.Option(help="the chat template, for the answers only")],
    item_seed: Annotated[int, typer.Option(help="which items are scored", min=0, max=SEEDS)],
    dtype: Annotated[Dtype, typer.Option(help="precision")],
    device: Annotated[Device, typer.Option(help="where it is computed")],
    state: Annotated[Path, typer.Option(help="folder for tasks scored so far, outside the outputs")],
) -> None:
    """Score a checkpoint on the benchmarks."""
    limits = evaluation.limits(items)
    world = processes.lock_output(out, device)
    state = files.kept(state)
    made_from = {
        "stage": "eval",
        "base": loading.identity(base),
        "checkpoint": files.tree_sha256(checkpoint),
        "benchmarks": files.tree_sha256(benchmark_folder),
        "parameters": [limits, item_seed, token_budget, dtype, device],
        "versions": {**loading.versions(), "lm_eval": metadata.version("lm_eval")},
    }
    chat = Chat(loading.tokenizer(base), template)
    model = loading.load(base, checkpoint, dtype, device)
    # In one order, whatever the order of the list.
    tasks = sorted(limits)
    parts = {task: evaluation.items(benchmark_folder, task, limits[task], item_seed) for task in tasks}
    done = files.unfinished(state, made_from)
    processes.lock_output(done, device)  # another queued copy may score the same
    scored = evaluation.score_tasks(evaluation.scorer(model, chat.tokenizer, token_budget), parts, done)
    if not world.is_main_process:
        return
    replies = greedy_answers(model, chat, answer_tokens)

    files.write_parquet(out, scored)
    files.write_text(answers, "".join(json.dumps(reply, ensure_ascii=False) + "\n" for reply in replies))
    files.write_json(metrics, {**evaluation.metrics(scored), "instruct": loading.instruct(base)})
    files.remove(done)
    several = f" by {world.num_processes} processes" if world.num_processes > 1 else ""
    print(f"{checkpoint}: {len(scored)} items of {len(tasks)} tasks scored{several}")


if __name__ == "__main__":
    command.run(main)
