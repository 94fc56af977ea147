"""What SFT and DPO share: rows as tokens, the Trainer's settings, checks before the first step, resuming, metrics.

In: a Parquet file of examples, a model. Out: a trained adapter, its curve, its held-out figures.

Checkpoints lie in a state folder outside the stage's outputs, under a name made of everything the run depends on; a
run that was killed goes on from the last whole one and ends with the bytes of an undisturbed run.
"""

import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from alignment import files
from alignment.chat import IGNORED, Chat
from alignment.command import Refused
from alignment.models import Dtype

if TYPE_CHECKING:
    import torch
    from transformers import Trainer

SEAL = "whole.json"  # in a checkpoint that was written to its end: the SHA-256 of each of its files


@dataclass(frozen=True)
class Settings:
    """The settings that SFT and DPO share, in the words of params.yaml.

    Attributes:
        learning_rate: the peak, reached after warm-up and followed by a cosine to zero.
        epochs: passes over the training rows.
        batch: rows an optimiser step, over all devices.
        per_device_batch: rows a forward pass; gradients accumulate up to `batch`.
        warmup: the share of steps before the peak.
        seed: order and dropout.
        checkpoint_steps: steps between checkpoints.
    """

    learning_rate: float
    epochs: int
    batch: int
    per_device_batch: int
    warmup: float
    seed: int
    checkpoint_steps: int

    def arguments(self, dtype: Dtype, device: str, checkpoints: Path, rows: int) -> dict[str, Any]:
        """Keyword arguments of `transformers.TrainingArguments`.

        Args:
            rows: training rows, from which the number of warm-up steps follows.

        Raises:
            Refused: `batch` is no multiple of `per_device_batch`.
        """
        accumulate, rest = divmod(self.batch, self.per_device_batch)
        if rest:
            raise Refused(
                f"the batch of {self.batch} rows is no multiple of per_device_batch {self.per_device_batch}; "
                "change one of them in params.yaml"
            )
        steps = math.ceil(rows / self.batch) * self.epochs
        return {
            "output_dir": str(checkpoints),
            "learning_rate": self.learning_rate,
            "lr_scheduler_type": "cosine",
            "warmup_steps": math.ceil(steps * self.warmup),
            "num_train_epochs": self.epochs,
            "per_device_train_batch_size": self.per_device_batch,
            "gradient_accumulation_steps": accumulate,
            "seed": self.seed,
            "full_determinism": True,
            "use_cpu": device == "cpu",
            "bf16": dtype is Dtype.bfloat16,
            "gradient_checkpointing": False,
            "logging_steps": 1,
            "logging_nan_inf_filter": False,
            "save_steps": self.checkpoint_steps,
            "save_total_limit": 2,
            "report_to": [],
            "dataloader_pin_memory": device != "cpu",
        }


def read(path: Path, split: str) -> list[dict[str, Any]]:
    """The examples of one split, in the order in which `sample` chose them.

    Raises:
        Refused: there are none.
    """
    rows = [row for row in pq.read_table(path).to_pylist() if row["split"] == split]
    if not rows:
        raise Refused(f"{path} has no row of the split {split!r}; run `dvc repro` to sample it again")
    return rows


def check_tokens(chat: Chat, ids: str, input_ids: Sequence[int], trained: Sequence[bool]) -> None:
    """Check one row against law 8 before anything is trained.

    Args:
        ids: the row's id, for the message.
        input_ids: its tokens.
        trained: which of them are trained.

    Raises:
        Refused: no token is trained, the last trained one is not EOS or something follows it, or BOS stands
            anywhere but once at the start of a model's row that uses it.
    """
    eos, bos = chat.tokenizer.eos_token_id, chat.tokenizer.bos_token_id
    if not any(trained):
        raise Refused(f"row {ids}: no token is trained")
    if not trained[-1] or input_ids[-1] != eos:
        raise Refused(f"row {ids}: the last token must be a trained EOS, found {input_ids[-1]}")
    expected = [0] if chat.bos else []
    found = [i for i, token in enumerate(input_ids) if token == bos]
    # Where the model uses no BOS, its id may serve the template as another control token.
    if chat.bos and found != expected:
        raise Refused(f"row {ids}: one BOS is wanted, at the start; found {len(found)} at {found[:5]}")


def logps(model: Any, prompt_ids: list[int], reply_ids: list[int]) -> "torch.Tensor":
    """Log-probabilities of a reply's tokens after a prompt, in float32.

    Returns:
        A tensor of shape (len(reply_ids),), in nats.
    """
    import torch

    ids = torch.tensor([prompt_ids + reply_ids], device=model.device)
    with torch.no_grad():
        logits = model(input_ids=ids, logits_to_keep=len(reply_ids) + 1, use_cache=False).logits[0, :-1]
    kept = torch.log_softmax(logits.float(), dim=-1)
    return kept.gather(1, ids[0, len(prompt_ids) :, None])[:, 0]


def trained_logps(model: Any, row: dict[str, list[int]]) -> "torch.Tensor":
    """Log-probabilities of the trained tokens of one encoded demonstration.

    Returns:
        A tensor of shape (trained tokens,), in nats.
    """
    import torch

    trained = torch.tensor([label != IGNORED for label in row["labels"][1:]])
    return logps(model, row["input_ids"][:1], row["input_ids"][1:])[trained.to(model.device)]


class StopAtNonFinite:
    """A mixin for a Trainer: a loss that is not a number stops the run and names the step and the rows.

    Attributes:
        row_names: the ids of the training rows, in their order.
    """

    row_names: Sequence[str]

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **options: Any) -> Any:
        """The Trainer's own loss, checked.

        Raises:
            Refused: the loss is NaN or infinite.
        """
        result = super().compute_loss(model, inputs, *args, **options)  # type: ignore[misc]
        loss = float((result[0] if isinstance(result, tuple) else result).detach())
        if not math.isfinite(loss):
            step, rows = self.state.global_step + 1, ", ".join(self._rows_of(inputs))  # type: ignore[attr-defined]
            raise Refused(
                f"the loss is {loss} at step {step}, in the rows {rows}.\n"
                "lower the learning rate in params.yaml, or look at these rows in data/sampled/ by their id"
            )
        return result

    def _rows_of(self, inputs: dict[str, Any]) -> list[str]:
        padded = zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), strict=True)
        batch = {tuple(row[: sum(mask)]) for row, mask in padded}
        rows = zip(self.row_names, self.train_dataset, strict=True)  # type: ignore[attr-defined]
        return [name for name, row in rows if batch & set(_sequences(row))]


def _sequences(row: dict[str, list[int]]) -> Iterator[tuple[int, ...]]:
    if "input_ids" in row:
        yield tuple(row["input_ids"])
    else:
        yield tuple(row["prompt_ids"] + row["chosen_ids"])
        yield tuple(row["prompt_ids"] + row["rejected_ids"])


def run(trainer: "Trainer", rows: int) -> None:
    """Train to the end, from the last whole checkpoint in `output_dir` if there is one.

    Args:
        trainer: a Trainer whose `output_dir` is named for all that the run depends on.
        rows: how many rows the trainer must have: none may be lost on the way.

    Raises:
        Refused: the trainer has another number of rows.
    """
    from transformers import TrainerCallback

    class Seal(TrainerCallback):
        """Marks a checkpoint as whole after its last file."""

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            files.write_json(folder / SEAL, _hashes(folder))

    found = len(trainer.train_dataset)  # type: ignore[arg-type]
    if found != rows:
        raise Refused(f"{rows} rows were sampled and {found} reached the trainer; none may be lost on the way")
    last = last_checkpoint(Path(trainer.args.output_dir))  # type: ignore[arg-type]
    if last:
        print(f"resuming from {last.name}: an earlier run with the same inputs was interrupted", flush=True)
    trainer.add_callback(Seal())
    trainer.train(resume_from_checkpoint=str(last) if last else None)


def last_checkpoint(folder: Path) -> Path | None:
    """The latest checkpoint whose files are all there and unchanged; the others are removed, saying so."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    while found:
        checkpoint = found.pop()
        seal = checkpoint / SEAL
        if seal.is_file() and files.read_json(seal) == _hashes(checkpoint):
            return checkpoint
        print(f"{checkpoint.name} was not written to its end: removed", flush=True)
        shutil.rmtree(checkpoint)
    return None


def _hashes(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)
    return {path.relative_to(folder).as_posix(): files.sha256(path) for path in paths}


def curve(history: list[dict[str, float]], name: str) -> list[float]:
    """A figure's value at each logged step."""
    return [entry[name] for entry in history if name in entry]


def write_curve(out: Path, history: list[dict[str, float]], columns: dict[str, str]) -> None:
    """Write one line a logged step as CSV.

    Args:
        history: the Trainer's `state.log_history`.
        columns: the Trainer's name of a figure to its name in the file.
    """
    lines = [",".join(["step", *columns.values()])]
    for entry in history:
        if all(name in entry for name in columns):
            lines.append(",".join([str(entry["step"]), *(f"{float(entry[name]):.6g}" for name in columns)]))
    files.write_text(out, "\n".join(lines) + "\n")
