"""Supervised fine-tuning: a LoRA adapter on the base model, from demonstrations.

In: the base model, sampled demonstrations.
Out: an adapter with its tokenizer and lineage, its metrics, its loss curve.
"""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from alignment.models import loading
from alignment.models.chat import Chat
from alignment.objectives import sft
from alignment.runtime import command, files, processes
from alignment.runtime.command import SEEDS
from alignment.statistics import estimates
from alignment.training import checks, curves, options, run
from alignment.training.settings import Settings, read_split


def main(
    base: Annotated[Path, typer.Argument(help="the base model")],
    demonstrations: Annotated[Path, typer.Argument(help="sampled demonstrations, as Parquet")],
    out: Annotated[Path, typer.Argument(help="the adapter's folder")],
    metrics: Annotated[Path, typer.Argument(help="metrics, as JSON")],
    curve: Annotated[Path, typer.Argument(help="the loss by step, as CSV")],
    learning_rate: options.LearningRate,
    budget: options.Budget,
    epochs: options.Epochs,
    batch: options.Batch,
    tokens: options.Tokens,
    steps: options.Steps,
    warmup: options.Warmup,
    rank: Annotated[int, typer.Option(help="LoRA rank", min=1)],
    alpha: Annotated[int, typer.Option(help="LoRA alpha; updates are scaled by alpha / rank", min=1)],
    dropout: Annotated[float, typer.Option(help="LoRA dropout", min=0, callback=command.below_one)],
    checkpoint_steps: options.CheckpointSteps,
    gradient_checkpointing: options.GradientCheckpointing,
    per_device_batch: options.PerDeviceBatch,
    template: options.Template,
    seed: Annotated[int, typer.Option(help="initialisation, order and dropout", min=0, max=SEEDS)],
    dtype: options.Dtype,
    device: options.Device,
    quantization: options.Quantization,
    state: options.State,
) -> None:
    """Train an adapter on demonstrations."""
    world = processes.lock_output(out, device)
    state = files.kept(state)
    settings = Settings(
        learning_rate=learning_rate, budget=budget, epochs=epochs, batch=batch, tokens=tokens, steps=steps,
        per_device_batch=per_device_batch, warmup=warmup, seed=seed, checkpoint_steps=checkpoint_steps,
        gradient_checkpointing=gradient_checkpointing, dtype=dtype, device=device, quantization=quantization,
        template=template,
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
    rows, held_rows = sft.encode(chat, train), sft.encode(chat, held)
    checks.check_lengths([(row["id"], sft.length(row)) for row in [*rows, *held_rows]], loading.longest_row(base))
    model = loading.load_base(base, dtype, device, quantization)
    before = sft.heldout_loss(model, held_rows)
    checkpoints = files.unfinished(state, made_from)
    processes.lock_output(checkpoints, device)  # another queued copy may train the same
    trainer = sft.make_trainer(model, chat, rows, lora, settings, checkpoints)
    checks.check(trainer, chat, len(rows))
    run.run(trainer, sft.CURVES)
    after = sft.heldout_loss(trainer.model.eval(), held_rows)
    loading.save_adapter(trainer.model, chat.published(), base, out, made_from)
    if not world.is_main_process:
        return

    curves.write_curve(curve, trainer.state.log_history, sft.CURVES)
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


if __name__ == "__main__":
    command.run(main)
