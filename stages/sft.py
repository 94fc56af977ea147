"""Supervised fine-tuning: a LoRA adapter on the base model, from demonstrations.

In: the base model, sampled demonstrations.
Out: an adapter with its tokenizer and lineage, its metrics, its loss curve.
"""

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from alignment import command, files, models, stats, training
from alignment.chat import IGNORED, Chat, Template
from alignment.models import Dtype


def main(
    base: Annotated[Path, typer.Argument(help="the base model")],
    demonstrations: Annotated[Path, typer.Argument(help="sampled demonstrations, as Parquet")],
    out: Annotated[Path, typer.Argument(help="the adapter's folder")],
    metrics: Annotated[Path, typer.Argument(help="metrics, as JSON")],
    curve: Annotated[Path, typer.Argument(help="the loss by step, as CSV")],
    learning_rate: Annotated[float, typer.Option(help="peak learning rate", min=0)],
    epochs: Annotated[int, typer.Option(help="passes over the rows", min=1)],
    batch: Annotated[int, typer.Option(help="rows an optimiser step, over all devices", min=1)],
    warmup: Annotated[float, typer.Option(help="share of steps before the peak", min=0, max=1)],
    rank: Annotated[int, typer.Option(help="LoRA rank", min=1)],
    alpha: Annotated[int, typer.Option(help="LoRA alpha; updates are scaled by alpha / rank", min=1)],
    dropout: Annotated[float, typer.Option(help="LoRA dropout", min=0, max=1)],
    checkpoint_steps: Annotated[int, typer.Option(help="steps between checkpoints", min=1)],
    per_device_batch: Annotated[int, typer.Option(help="rows a forward pass", min=1)],
    template: Annotated[Template, typer.Option(help="the chat template")],
    seed: Annotated[int, typer.Option(help="initialisation, order and dropout")],
    dtype: Annotated[Dtype, typer.Option(help="precision")],
    device: Annotated[str, typer.Option(help="cpu or cuda")],
    state: Annotated[Path, typer.Option(help="folder for checkpoints, outside the outputs")],
) -> None:
    """Train an adapter on demonstrations."""
    files.claim(out)
    settings = training.Settings(learning_rate, epochs, batch, per_device_batch, warmup, seed, checkpoint_steps)
    lora = {"r": rank, "lora_alpha": alpha, "lora_dropout": dropout, "target_modules": "all-linear"}
    made_from = {
        "stage": "sft",
        "base": models.identity(base),
        "parent": None,
        "data": files.sha256(demonstrations),
        "parameters": {**vars(settings), **lora, "template": template, "dtype": dtype, "device": device},
        "versions": models.versions(),
    }
    chat = Chat(models.tokenizer(base), template)
    train, held = (training.read(demonstrations, split) for split in ("train", "heldout"))
    rows, held_rows = encode(chat, train), encode(chat, held)
    model = models.load_base(base, dtype, device)
    before = heldout_loss(model, held_rows)
    checkpoints = files.unfinished(state, made_from)
    arguments = settings.arguments(dtype, device, checkpoints, len(rows))
    trainer = _trainer(model, chat, rows, [row["id"] for row in train], lora, arguments)
    training.run(trainer, len(rows))
    after = heldout_loss(trainer.model.eval(), held_rows)

    models.save_adapter(trainer.model, chat.tokenizer, base, out, made_from)
    training.write_curve(curve, trainer.state.log_history, {"loss": "loss", "learning_rate": "learning_rate"})
    trained = sum(label != IGNORED for row in rows for label in row["labels"])
    files.write_json(
        metrics,
        {
            "rows": len(rows),
            "steps": trainer.state.global_step,
            "tokens.trained": trained * epochs,
            "tokens.trained_share": round(trained / sum(len(row["input_ids"]) for row in rows), 4),
            **stats.of_mean(training.curve(trainer.state.log_history, "loss")).flat("loss.train"),
            **stats.of_mean(before).flat("loss.heldout_before"),
            **stats.of_mean(after).flat("loss.heldout"),
            "loss.heldout_rows": len(held_rows),
        },
    )
    shutil.rmtree(checkpoints)


def encode(chat: Chat, examples: list[dict[str, Any]]) -> list[dict[str, list[int]]]:
    """Demonstrations as `input_ids` and `labels`, each checked against law 8."""
    rows = []
    for example in tqdm(examples, desc="tokens", unit="row"):
        row = chat.demonstration(example["messages"])
        training.check_tokens(chat, example["id"], row["input_ids"], [label != IGNORED for label in row["labels"]])
        rows.append(row)
    return rows


def heldout_loss(model: Any, rows: list[dict[str, list[int]]]) -> list[float]:
    """The mean loss of each held-out row over its trained tokens, in nats a token."""
    return [-float(training.trained_logps(model, row).mean()) for row in tqdm(rows, desc="held out", unit="row")]


def _trainer(
    model: Any,
    chat: Chat,
    rows: list[dict[str, list[int]]],
    names: list[str],
    lora: dict[str, Any],
    arguments: dict[str, Any],
) -> Any:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import enable_full_determinism
    from trl import SFTConfig, SFTTrainer

    class Trainer(training.StopAtNonFinite, SFTTrainer):
        row_names = names

    enable_full_determinism(arguments["seed"])  # before the adapter's weights are drawn
    return Trainer(
        model=model,
        # No length limit and no packing: `sample` has refused what is too long, and every row arrives whole.
        args=SFTConfig(**arguments, max_length=None, packing=False),
        train_dataset=Dataset.from_list(rows),
        processing_class=chat.tokenizer,
        peft_config=LoraConfig(**lora, task_type="CAUSAL_LM"),
    )


if __name__ == "__main__":
    command.run(main)
