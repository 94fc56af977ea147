"""Supervised fine-tuning: the next token of each reply, from demonstrations.

In: demonstrations, the base model. Out: rows as tokens, a trainer, held-out losses.
"""

from pathlib import Path
from typing import Any

from tqdm import tqdm

from alignment.models.chat import IGNORED, Chat
from alignment.runtime import processes
from alignment.training import checks, logps
from alignment.training.plan import Plan
from alignment.training.settings import Settings
from alignment.training.trainer import PlannedTrainer

CURVES = {"loss": "loss", "learning_rate": "learning_rate"}


def encode(chat: Chat, examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tokenise demonstrations: `id`, `input_ids`, `labels`.

    Each row is checked with `checks.check_tokens`.
    """
    rows = []
    for example in tqdm(examples, desc="tokens", unit="row"):
        row = chat.demonstration(example["messages"])
        checks.check_tokens(chat, example["id"], row["input_ids"], [label != IGNORED for label in row["labels"]])
        rows.append({"id": example["id"], **row})
    return rows


def length(row: dict[str, Any]) -> int:
    """Count the tokens of an encoded demonstration."""
    return len(row["input_ids"])


def plan_of(rows: list[dict[str, Any]], settings: Settings) -> Plan:
    """Plan the run over encoded demonstrations."""
    trained = [sum(label != IGNORED for label in row["labels"]) for row in rows]
    return settings.plan([row["id"] for row in rows], list(map(length, rows)), trained)


def heldout_loss(model: Any, rows: list[dict[str, Any]]) -> list[float]:
    """Compute the mean loss of each held-out row over its trained tokens, in nats per token."""
    return processes.map_rows(rows, lambda row: -float(logps.trained_logps(model, row).mean()), "held out")


def make_trainer(
    model: Any,
    chat: Chat,
    rows: list[dict[str, Any]],
    lora: dict[str, Any],
    settings: Settings,
    checkpoints: Path,
) -> Any:
    """Make TRL's SFT trainer for encoded demonstrations, with a new adapter on the base."""
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
