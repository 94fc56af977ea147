"""Direct preference optimisation (Rafailov et al. 2023): the SFT policy goes on, against itself as the reference.

In: the base model, the SFT adapter, sampled comparisons.
Out: one adapter on the base with its tokenizer and lineage, its metrics, its curves.
"""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from alignment.models import loading
from alignment.models.chat import Chat
from alignment.models.loading import Dtype, Quantization
from alignment.objectives import dpo
from alignment.runtime import command, files, processes
from alignment.runtime.command import SEEDS
from alignment.statistics import estimates
from alignment.training import checks, curves, options, run
from alignment.training.settings import Settings, read_split


def main(
    base: Annotated[Path, typer.Argument(help="the base model")],
    sft: Annotated[Path, typer.Argument(help="the SFT adapter: where the policy starts, and its reference")],
    comparisons: Annotated[Path, typer.Argument(help="sampled comparisons, as Parquet")],
    out: Annotated[Path, typer.Argument(help="the adapter's folder")],
    metrics: Annotated[Path, typer.Argument(help="metrics, as JSON")],
    curve: Annotated[Path, typer.Argument(help="loss, rewards and log-probabilities by step, as CSV")],
    beta: Annotated[
        float, typer.Option(help="how strongly the policy is held to its reference", callback=command.above_zero)
    ],
    loss: Annotated[dpo.Loss, typer.Option(help="the loss")],
    learning_rate: options.LearningRate,
    budget: options.Budget,
    epochs: options.Epochs,
    batch: options.Batch,
    tokens: options.Tokens,
    steps: options.Steps,
    warmup: options.Warmup,
    checkpoint_steps: options.CheckpointSteps,
    gradient_checkpointing: options.GradientCheckpointing,
    per_device_batch: options.PerDeviceBatch,
    token_budget: Annotated[int, typer.Option(help="tokens a forward pass of the reference, padding included", min=1)],
    template: options.Template,
    seed: Annotated[int, typer.Option(help="the order of rows", min=0, max=SEEDS)],
    dtype: options.Dtype,
    device: options.Device,
    quantization: options.Quantization,
    state: options.State,
) -> None:
    """Train the SFT policy on comparisons."""
    world = processes.lock_output(out, device)
    state = files.kept(state)
    settings = Settings(
        learning_rate=learning_rate, budget=budget, epochs=epochs, batch=batch, tokens=tokens, steps=steps,
        per_device_batch=per_device_batch, warmup=warmup, seed=seed, checkpoint_steps=checkpoint_steps,
        gradient_checkpointing=gradient_checkpointing, dtype=dtype, device=device, quantization=quantization,
        template=template,
    )  # fmt: skip
    made_from = {
        "stage": "dpo",
        "base": loading.identity(base),
        "parent": files.tree_sha256(sft),
        "data": files.sha256(comparisons),
        "parameters": {**vars(settings), "beta": beta, "loss": loss},
        "versions": loading.versions(),
        "processes": world.num_processes,
    }
    chat = Chat(loading.tokenizer(base), template)
    train, held = (read_split(comparisons, split) for split in ("train", "heldout"))
    rows, held_rows = dpo.encode(chat, train), dpo.encode(chat, held)
    checks.check_lengths([(row["id"], dpo.length(row)) for row in [*rows, *held_rows]], loading.longest_row(base))
    policy = loading.load(base, sft, dtype, device, trainable=True, quantization=quantization)
    checkpoints = files.unfinished(state, made_from)
    processes.lock_output(checkpoints, device)  # another queued copy may train the same
    some = rows[:2]
    sft_logps = dpo.reply_logps(policy.eval(), some)
    if dtype is Dtype.float32 and quantization is Quantization.none:
        dpo.add_reference(rows, policy, token_budget, checkpoints / "reference.json")
    trainer = dpo.make_trainer(policy, chat, rows, beta, loss, settings, checkpoints)
    checks.check(trainer, chat, len(rows))
    dpo.check_start(trainer, some, sft_logps, loss, beta)
    run.run(trainer, dpo.CURVES)
    figures = dpo.heldout(trainer.model.eval(), held_rows, beta)
    loading.save_adapter(trainer.model, chat.published(), base, out, made_from)
    if not world.is_main_process:
        return

    curves.write_curve(curve, trainer.state.log_history, dpo.CURVES)
    files.write_json(
        metrics,
        {
            **trainer.plan.amounts(),
            **estimates.of_mean(curves.curve(trainer.state.log_history, "loss")).flat("loss.train"),
            **figures,
            "heldout.rows": len(held_rows),
        },
    )
    shutil.rmtree(checkpoints)


if __name__ == "__main__":
    command.run(main)
