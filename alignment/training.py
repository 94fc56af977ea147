"""What SFT and DPO share: rows as tokens, the Trainer's settings, checks before the first step, the run, its figures.

In: a Parquet file of examples, a model. Out: a trained adapter, its curve, its held-out figures.

Checkpoints lie in a state folder outside the stage's outputs, under a name made of everything the run depends on; a
run that was killed goes on from the last whole one and ends with the bytes of an undisturbed run.
"""

import contextlib
import math
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment import files, likelihood, schedule
from alignment.chat import IGNORED, Chat, Template
from alignment.command import Refused
from alignment.models import Dtype, Quantization
from alignment.schedule import Budget, Plan

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Settings:
    """The settings that SFT and DPO share, in the words of params.yaml.

    Attributes:
        learning_rate: the peak of `schedule.rate`, above 0.
        budget: whether `epochs` and `batch` or `tokens` and `steps` say how long training is.
        epochs: passes over the training rows.
        batch: rows an optimiser step, over all devices.
        tokens: trained tokens of the whole run.
        steps: optimiser steps.
        per_device_batch: how many of a step's longest rows a forward pass has room for; gradients accumulate.
        warmup: the share of steps before the peak.
        seed: order and dropout.
        checkpoint_steps: steps between checkpoints.
        gradient_checkpointing: whether activations are computed again in the backward pass, which saves memory.
        dtype: precision.
        device: cpu or cuda.
        quantization: of the base's weights.
        template: of the conversations.
    """

    learning_rate: float
    budget: Budget
    epochs: int
    batch: int
    tokens: int
    steps: int
    per_device_batch: int
    warmup: float
    seed: int
    checkpoint_steps: int
    gradient_checkpointing: bool
    dtype: Dtype
    device: str
    quantization: Quantization
    template: Template

    def __post_init__(self) -> None:
        """Refuse a run that would change nothing.

        Raises:
            Refused: the learning rate is 0.
        """
        if not self.learning_rate:
            raise Refused("`learning_rate` is 0, so no step would change the model; set one above 0 in params.yaml")

    def plan(self, names: Sequence[str], lengths: Sequence[int], trained: Sequence[int]) -> Plan:
        """What is trained on, step by step.

        Args:
            names: the ids of the rows.
            lengths: tokens of each row, of its longer side where it has two.
            trained: how many tokens of each row are trained.

        Raises:
            Refused: a step would hold too many rows; or as `schedule.by_tokens`.
        """
        by_epochs = self.budget is Budget.epochs
        rows = min(self.batch, len(names)) if by_epochs else self.tokens * len(names) // sum(trained) // self.steps
        if rows > schedule.LARGEST:
            way = "lower `batch`" if by_epochs else "lower `tokens` or raise `steps`"
            said = f"an optimiser step would hold about {rows:,} rows, more than {schedule.LARGEST:,}"
            raise Refused(f"{said}; {way} in params.yaml")
        if by_epochs:
            steps = schedule.by_epochs(len(names), self.epochs, self.batch, self.seed)
        else:
            steps = schedule.by_tokens(trained, self.tokens, self.steps, self.seed)
        return Plan(names, lengths, trained, steps, self.per_device_batch)

    def arguments(self, checkpoints: Path, steps: int) -> dict[str, Any]:
        """Keyword arguments of `transformers.TrainingArguments`.

        Args:
            checkpoints: the folder for them.
            steps: optimiser steps, from which the number of warm-up steps follows.
        """
        return {
            "output_dir": str(checkpoints),
            "learning_rate": self.learning_rate,
            "warmup_steps": math.ceil(steps * self.warmup),
            "num_train_epochs": 1,  # all passes are in the plan
            "seed": self.seed,
            "full_determinism": True,
            "use_cpu": self.device == "cpu",
            "bf16": self.dtype is Dtype.bfloat16,
            "gradient_checkpointing": self.gradient_checkpointing,
            "ddp_find_unused_parameters": False,
            "logging_steps": 1,
            "logging_nan_inf_filter": False,
            "save_steps": self.checkpoint_steps,
            "save_total_limit": 2,
            "report_to": [],
        }


def read(path: Path, split: str) -> list[dict[str, Any]]:
    """The examples of one split, in the order in which `sample` chose them.

    Raises:
        Refused: there are none, or the file is damaged.
    """
    rows = [row for row in files.read_parquet(path).to_pylist() if row["split"] == split]
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


def check_lengths(lengths: Iterable[tuple[str, int]], longest: int) -> None:
    """Check that the base model can read every row, before it reads one.

    Args:
        lengths: the id of each row and its tokens, of its longer side where it has two.
        longest: tokens that the model can read.

    Raises:
        Refused: naming the first row that is longer.
    """
    for name, length in lengths:
        if length > longest:
            raise Refused(
                f"row {name} has {length} tokens, and the base model can read {longest}; set `sample.max_tokens` to "
                f"at most {longest} in params.yaml and run `dvc repro`, or choose a `model` that reads more"
            )


def check_batch(chat: Chat, names: Sequence[str], batch: dict[str, Any]) -> None:
    """Check one real batch against law 8, as it goes into the model: what a collator masks is not trained.

    Args:
        names: the ids of its rows.
        batch: `input_ids` and `attention_mask`, with SFT's `labels` or DPO's `completion_mask`, each of shape
            (sequences, positions), padded at the end; DPO has the chosen sides first, then the rejected ones.

    Raises:
        Refused: as `check_tokens`, or padding is trained.
    """
    masks = batch["labels"] != IGNORED if "labels" in batch else batch["completion_mask"].bool()
    for number, (ids, mask, real) in enumerate(zip(batch["input_ids"], masks, batch["attention_mask"], strict=True)):
        length, name = int(real.sum()), names[number % len(names)]
        if mask[length:].any():
            raise Refused(f"row {name}: padding is trained")
        check_tokens(chat, name, ids[:length].tolist(), mask[:length].tolist())


def distributions(model: Any, prompt_ids: list[int], reply_ids: list[int]) -> "torch.Tensor":
    """Log-probabilities of the whole vocabulary at each token of a reply, in float32.

    Returns:
        A tensor of shape (len(reply_ids), vocabulary), in nats.
    """
    import torch

    ids = torch.tensor([prompt_ids + reply_ids], device=model.device)
    with torch.no_grad():
        logits = model(input_ids=ids, logits_to_keep=len(reply_ids) + 1, use_cache=False).logits[0, :-1]
    return torch.log_softmax(logits.float(), dim=-1)


def chosen(distributions: "torch.Tensor", ids: list[int]) -> "torch.Tensor":
    """The log-probabilities of one token a row of `distributions`, of shape (len(ids),)."""
    import torch

    return distributions.gather(1, torch.tensor(ids, device=distributions.device)[:, None])[:, 0]


def logps(model: Any, prompt_ids: list[int], reply_ids: list[int]) -> "torch.Tensor":
    """Log-probabilities of a reply's tokens after a prompt, of shape (len(reply_ids),), in nats and float32."""
    return chosen(distributions(model, prompt_ids, reply_ids), reply_ids)


def trained_logps(model: Any, row: dict[str, list[int]]) -> "torch.Tensor":
    """Log-probabilities of the trained tokens of one encoded demonstration.

    Returns:
        A tensor of shape (trained tokens,), in nats.
    """
    import torch

    trained = torch.tensor([label != IGNORED for label in row["labels"][1:]])
    return logps(model, row["input_ids"][:1], row["input_ids"][1:])[trained.to(model.device)]


def check(trainer: Any, chat: Chat, rows: int) -> None:
    """Check what reached the trainer, before a step is spent.

    Args:
        trainer: a `planned.Planned` trainer.
        chat: whose tokens the rows are.
        rows: how many rows the trainer must have: none may be lost on the way.

    Raises:
        Refused: the trainer has another number of rows, or its first batch breaks law 8.
    """
    found = len(trainer.train_dataset)
    if found != rows:
        raise Refused(f"{rows} rows were sampled and {found} reached the trainer; none may be lost on the way")
    for part in trainer.step(0).passes:
        if part.rows:  # several processes, and no row for this one
            check_batch(chat, [trainer.plan.names[row] for row in part.rows], part.batch)


def run(trainer: Any, curves: dict[str, str]) -> None:
    """Train to the end, from the last whole checkpoint in `output_dir` if there is one.

    Args:
        trainer: a `planned.Planned` trainer whose `output_dir` is named for all that the run depends on.
        curves: as `write_curve` takes them.

    Raises:
        Refused: the loss is no number, or memory or the disk does not suffice.
        SystemExit: a signal asked for the end; there is a checkpoint.
    """
    from alignment import checkpoints

    say = trainer.accelerator.print
    folder, stop = Path(trainer.args.output_dir), checkpoints.Stop(trainer.accelerator)
    with trainer.accelerator.main_process_first():
        last = checkpoints.last(folder)
    if last:
        say(f"resuming from {last.name}: an earlier run with the same inputs was interrupted")
    if trainer.args.device.type == "cuda":
        say("deterministic kernels: the same bytes on this GPU, driver and libraries; on others, other last digits")
    say(f"{len(trainer.plan.steps)} steps; the curve so far: {folder / 'curve.csv'}")
    for callback in (checkpoints.Seal(trainer.accelerator), checkpoints.Curve(folder / "curve.csv", curves), stop):
        trainer.add_callback(callback)
    start = time.monotonic()
    try:
        with _enough_memory(trainer), _enough_room(trainer):
            trainer.train(resume_from_checkpoint=str(last) if last else None)
    finally:
        stop.restore()
    stop.end(trainer.state)
    first = int(last.name.rpartition("-")[2]) if last else 0
    say(_speed(trainer.plan, first, time.monotonic() - start))


@contextlib.contextmanager
def _enough_memory(trainer: Any) -> Iterator[None]:
    """Where memory runs out, say which parameters need less."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not likelihood.no_memory(error):
            raise
        rows, tokens = trainer.plan.per_device_batch, max(trainer.plan.lengths)
        ways = [f"lower `per_device_batch` (now {rows}); an optimiser step stays the same"] if rows > 1 else []
        if not trainer.args.gradient_checkpointing:
            ways.append("set `gradient_checkpointing: true` in the stage's section")
        ways.append(f"lower `sample.max_tokens` below the {tokens} of the longest row, which drops such rows")
        raise Refused(
            f"out of memory with {rows} row{'s' * (rows > 1)} of up to {tokens} tokens a forward pass; the first that "
            "helps, in params.yaml:\n- " + "\n- ".join(ways) + "\n`make doctor` says what fits"
        ) from None


@contextlib.contextmanager
def _enough_room(trainer: Any) -> Iterator[None]:
    """Where no room is left for a checkpoint, remove what there is of it and say how much it needs."""
    from alignment import checkpoints

    folder = Path(trainer.args.output_dir)
    try:
        yield
    except Exception as error:
        if not files.is_full(error):
            raise
        trained = sum(weights.numel() * weights.element_size() for weights in trainer.model.parameters()
                      if weights.requires_grad)  # fmt: skip
        checkpoints.last(folder)
        # The weights, and two moments of Adam's for each.
        raise files.full(f"a checkpoint in {folder}", f"about {3 * trained:,}", folder) from None


def _speed(plan: Plan, first: int, seconds: float) -> str:
    """Tokens/s and peak memory, for the log: no metric repeats to the byte that holds them."""
    import torch

    tokens = plan.tokens(first)
    # Kilobytes, but for macOS.
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if torch.cuda.is_available():
        memory = torch.cuda.max_memory_allocated()
    return (
        f"{len(plan.steps) - first} steps, {tokens} trained tokens in {seconds:.0f} s: "
        f"{tokens / seconds:.0f} tokens/s; peak memory {memory / 1e9:.1f} GB"
    )


def over(rows: Sequence[Any], compute: Callable[[Any], Any], label: str) -> list[Any]:
    """`compute` of each row, dealt to the processes and gathered in the order of rows on each."""
    from accelerate.utils import gather_object
    from tqdm import tqdm

    world = likelihood.processes()
    # As many rows in each process, since the weights of a model may be dealt to them too.
    rounds = range(
        world.process_index, math.ceil(len(rows) / world.num_processes) * world.num_processes, world.num_processes
    )
    bar = tqdm(rounds, desc=label, unit="row", disable=not world.is_main_process)
    found = dict(gather_object([(number % len(rows), compute(rows[number % len(rows)])) for number in bar]))
    return [found[number] for number in range(len(rows))]


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
