"""Checks of what reached a trainer, before a step is spent: EOS, BOS and trained tokens of real batches.

In: a trainer, or rows of tokens. Out: nothing, or a refusal.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from alignment.models.chat import IGNORED, Chat
from alignment.runtime import Refused


def check_tokens(chat: Chat, ids: str, input_ids: Sequence[int], trained: Sequence[bool]) -> None:
    """Check the tokens of one row before anything is trained: EOS at the end, BOS at the start alone.

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
    """Check that the base model can read every row, before training starts.

    Args:
        lengths: the id of each row and its tokens, of its longer side where it has two.
        longest: tokens that the model can read.

    Raises:
        Refused: a row is longer; the message names the first one.
    """
    for name, length in lengths:
        if length > longest:
            raise Refused(
                f"row {name} has {length} tokens, and the base model can read {longest}; set `sample.max_tokens` to "
                f"at most {longest} in params.yaml and run `dvc repro`, or choose a `model` that reads more"
            )


def check_batch(chat: Chat, names: Sequence[str], batch: dict[str, Any]) -> None:
    """Check one real batch with `check_tokens`, as it goes into the model: what a collator masks is not trained.

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


def check(trainer: Any, chat: Chat, rows: int) -> None:
    """Check what reached the trainer, before a step is spent.

    Args:
        trainer: a `PlannedTrainer` trainer.
        chat: whose tokens the rows are.
        rows: how many rows the trainer must have: none may be lost on the way.

    Raises:
        Refused: the trainer has another number of rows, or its first batch fails `check_batch`.
    """
    found = len(trainer.train_dataset)
    if found != rows:
        raise Refused(f"{rows} rows were sampled and {found} reached the trainer; none may be lost on the way")
    for part in trainer.step(0).passes:
        if part.rows:  # several processes, and no row for this one
            check_batch(chat, [trainer.plan.names[row] for row in part.rows], part.batch)
