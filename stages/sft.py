"""Supervised fine-tuning: a LoRA adapter on the base model, from demonstrations.

In: the base model, sampled demonstrations.
Out: an adapter with its tokenizer and lineage, its metrics, its loss curve.
"""

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from alignment.models import loading
from alignment.models.chat import IGNORED, Chat, Template
from alignment.models.loading import Device, Dtype, Quantization
from alignment.runtime import command, files, processes
from alignment.runtime.command import SEEDS
from alignment.statistics import estimates
from alignment.training import checks, curves, logps, run
from alignment.training.plan import Budget, Plan
from alignment.training.settings import Settings, read_split
from alignment.training.trainer import PlannedTrainer

CURVES = {"loss": "loss", "learning_rate": "learning_rate"}


def main(
    base: Annotated[Path, typer.Argument(help="the base model")],
    demonstrations: Annotated[Path, typer.Argument(help="sampled demonstrations, as Parquet")],
    out: Annotated[Path, typer.Argument(help="the adapter's folder")],
    metrics: Annotated[Path, typer.Argument(help="metrics, as JSON")],
    curve: Annotated[Path, typer.Argument(help="the loss by step, as CSV")],
    learning_rate: Annotated[float, typer.Option(help="peak learning rate", callback=command.above_zero)],
    budget: Annotated[Budget, typer.Option(help="what says how long training is")],
    epochs: Annotated[int, typer.Option(help="budget epochs: passes over the rows", min=1)],
    batch: Annotated[int, typer.Option(help="budget epochs: rows an optimiser step, over all devices", min=1)],
    tokens: Annotated[int, typer.Option(help="budget tokens: trained tokens of the whole run", min=1)],
    steps: Annotated[int, typer.Option(help="budget tokens: optimiser steps", min=1)],
    warmup: Annotated[float, typer.Option(help="share of steps before the peak", min=0, max=1)],
    rank: Annotated[int, typer.Option(help="LoRA rank", min=1)],
    alpha: Annotated[int, typer.Option(help="LoRA alpha; updates are scaled by alpha / rank", min=1)],
    dropout: Annotated[float, typer.Option(help="LoRA dropout", min=0, callback=command.below_one)],
    checkpoint_steps: Annotated[int, typer.Option(help="steps between checkpoints", min=1)],
    gradient_checkpointing: Annotated[bool, typer.Option(help="less memory, a third more time")],
    per_device_batch: Annotated[int, typer.Option(help="long rows a forward pass has room for", min=1)],
    template: Annotated[Template, typer.Option(help="the chat template")],
    seed: Annotated[int, typer.Option(help="initialisation, order and dropout", min=0, max=SEEDS)],
    dtype: Annotated[Dtype, typer.Option(help="precision")],
    device: Annotated[Device, typer.Option(help="where it is computed")],
    quantization: Annotated[Quantization, typer.Option(help="of the base's weights while training")],
    state: Annotated[Path, typer.Option(help="folder for checkpoints, outside the outputs")],
) -> None:
    """Train an adapter on demonstrations."""
    world = processes.claimed(out, device)
    state = files.kept(state)
    settings = Settings(
        learning_rate, budget, epochs, batch, tokens, steps, per_device_batch, warmup, seed, checkpoint_steps,
        gradient_checkpointing, dtype, device, quantization, template,
    )  # fmt: skip
    lora = {"r": rank, "lora_alpha": alpha, "lora_dropout": dropout, "target_modules": "all-linear"}
    made_from = {
        "stage": "sft",
        "base": loading.identity(base),
        "parent": None,
        "data": files.sha256(demonstrations),
        "parameters": {**vars(settings), **lora},
        "versions": loading.versions(),
        "processes": world.num_processes,
    }
    chat = Chat(loading.tokenizer(base), template)
    train, held = (read_split(demonstrations, split) for split in ("train", "heldout"))
    rows, held_rows = encode(chat, train), encode(chat, held)
    checks.check_lengths([(row["id"], length(row)) for row in [*rows, *held_rows]], loading.longest_row(base))
    model = loading.load_base(base, dtype, device, quantization)
    before = heldout_loss(model, held_rows)
    checkpoints = files.unfinished(state, made_from)
    processes.claimed(checkpoints, device)  # another queued copy may train the same
    trainer = _trainer(model, chat, rows, lora, settings, checkpoints)
    checks.check(trainer, chat, len(rows))
    run.run(trainer, CURVES)
    after = heldout_loss(trainer.model.eval(), held_rows)
    loading.save_adapter(trainer.model, chat.published(), base, out, made_from)
    if not world.is_main_process:
        return

    curves.write_curve(curve, trainer.state.log_history, CURVES)
    files.write_json(
        metrics,
        {
            **trainer.plan.amounts(),
            "tokens.trained_share": round(sum(trainer.plan.trained) / sum(trainer.plan.lengths), 4),
            **estimates.of_mean(curves.curve(trainer.state.log_history, "loss")).flat("loss.train"),
            **estimates.of_mean(before).flat("loss.heldout_before"),
            **estimates.of_mean(after).flat("loss.heldout"),
            "loss.heldout_rows": len(held_rows),
        },
    )
    shutil.rmtree(checkpoints)


def encode(chat: Chat, examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Demonstrations as `id`, `input_ids` and `labels`, each checked against law 8."""
    rows = []
    for example in tqdm(examples, desc="tokens", unit="row"):
        row = chat.demonstration(example["messages"])
        checks.check_tokens(chat, example["id"], row["input_ids"], [label != IGNORED for label in row["labels"]])
        rows.append({"id": example["id"], **row})
    return rows


def length(row: dict[str, Any]) -> int:
    """The tokens of an encoded demonstration."""
    return len(row["input_ids"])


def plan_of(rows: list[dict[str, Any]], settings: Settings) -> Plan:
    """The run over encoded demonstrations."""
    trained = [sum(label != IGNORED for label in row["labels"]) for row in rows]
    return settings.plan([row["id"] for row in rows], list(map(length, rows)), trained)


def heldout_loss(model: Any, rows: list[dict[str, Any]]) -> list[float]:
    """The mean loss of each held-out row over its trained tokens, in nats a token."""
    return processes.map_rows(rows, lambda row: -float(logps.trained_logps(model, row).mean()), "held out")


def _trainer(
    model: Any,
    chat: Chat,
    rows: list[dict[str, Any]],
    lora: dict[str, Any],
    settings: Settings,
    checkpoints: Path,
) -> Any:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    class Trainer(PlannedTrainer, SFTTrainer):
        plan = plan_of(rows, settings)
        means_of_rows = False

    arguments = settings.arguments(checkpoints, len(Trainer.plan.steps))
    return Trainer(
        model=model,
        # No length limit and no packing: `sample` has refused what is too long, and every row arrives whole.
        args=SFTConfig(**arguments, max_length=None, packing=False),
        train_dataset=Dataset.from_list(rows).remove_columns("id"),
        processing_class=chat.tokenizer,
        peft_config=LoraConfig(**lora, task_type="CAUSAL_LM"),
    )


if __name__ == "__main__":
    command.run(main)
