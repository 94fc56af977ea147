"""Merge a checkpoint into one Hugging Face folder with a model card, for people who only want the model.

In: the base model, a checkpoint, the metrics. Out: safetensors, tokenizer with the chat template, `README.md`.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from alignment.models import loading
from alignment.models.chat import Chat, Template
from alignment.models.loading import Dtype
from alignment.runtime import Refused, command, files
from alignment.scoring.benchmarks.tasks import BENCHMARKS


def main(
    base: Annotated[Path, typer.Argument(help="the base model")],
    checkpoint: Annotated[Path, typer.Argument(help="an adapter on it")],
    out: Annotated[Path, typer.Argument(help="the folder to make")],
    metrics: Annotated[Path, typer.Argument(help="the folder of all metrics")],
) -> None:
    """Write a merged model."""
    if not (checkpoint / loading.LINEAGE).is_file():
        raise Refused(f"{checkpoint} is no adapter; CHECKPOINT is sft or dpo, after `dvc repro`")
    files.claim(out)
    made_from = loading.lineage(checkpoint)
    parameters = made_from["parameters"]
    adapted: Any = loading.load(base, checkpoint, Dtype(parameters["dtype"]), "cpu")
    merged = adapted.merge_and_unload()
    chat = Chat(loading.tokenizer(base), Template(parameters["template"]))
    with files.whole(out) as partial:
        merged.save_pretrained(str(partial))
        chat.published().save_pretrained(str(partial))
        files.write_text(partial / "README.md", card(base, checkpoint.name, made_from, metrics))
    print(f"{out}: load it with AutoModelForCausalLM.from_pretrained")


def card(base: Path, checkpoint: str, made_from: dict[str, Any], metrics: Path) -> str:
    """Return the model card: what it was made from, and its figures with their intervals."""
    provenance = files.read_json(base / "provenance.json")
    figures = files.read_json(metrics / "eval" / f"{checkpoint}.json")
    lines = [
        "---",
        "library_name: transformers",
        "tags: [alignment-study]",
        "---",
        "",
        f"# {provenance['repository']}, {checkpoint}",
        "",
        f"Made by alignment-study from `{provenance['repository']}` ({provenance['revision']}, licence: "
        f"{provenance['licence']}). The terms of the base model and of the training data apply to it.",
        "",
        "| benchmark | value | 95 % interval | items |",
        "|---|---|---|---|",
    ]
    for task, benchmark in BENCHMARKS.items():
        name = f"{task}.{benchmark.metric}"
        if name in figures:
            interval = f"{figures[f'{name}_low']} to {figures[f'{name}_high']}"
            lines.append(f"| {task} {benchmark.metric} | {figures[name]} | {interval} | {figures[f'{name}_n']} |")
    return "\n".join([*lines, "", "```json", json.dumps(made_from, indent=2, sort_keys=True), "```", ""])


if __name__ == "__main__":
    command.run(main)
