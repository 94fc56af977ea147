"""Direct preference optimisation (Rafailov et al. 2023): the SFT policy goes on, against itself as the reference.

In: the base model, the SFT adapter, sampled comparisons.
Out: one adapter on the base with its tokenizer and lineage, its metrics, its curves.
"""

import math
import shutil
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from alignment import command, files, models, stats, training
from alignment.chat import Chat, Template
from alignment.command import Refused
from alignment.models import Dtype

CURVES = {
    "loss": "loss",
    "rewards/accuracies": "reward_accuracy",
    "rewards/margins": "reward_margin",
    "logps/chosen": "chosen_logps",
    "logps/rejected": "rejected_logps",
}


class Loss(StrEnum):
    """DPO's equation, or another of its family; equations as TRL implements them."""

    sigmoid = "sigmoid"
    ipo = "ipo"
    hinge = "hinge"


def main(
    base: Annotated[Path, typer.Argument(help="the base model")],
    sft: Annotated[Path, typer.Argument(help="the SFT adapter: where the policy starts, and its reference")],
    comparisons: Annotated[Path, typer.Argument(help="sampled comparisons, as Parquet")],
    out: Annotated[Path, typer.Argument(help="the adapter's folder")],
    metrics: Annotated[Path, typer.Argument(help="metrics, as JSON")],
    curve: Annotated[Path, typer.Argument(help="loss, rewards and log-probabilities by step, as CSV")],
    beta: Annotated[float, typer.Option(help="how strongly the policy is held to its reference", min=0)],
    loss: Annotated[Loss, typer.Option(help="the loss")],
    learning_rate: Annotated[float, typer.Option(help="peak learning rate", min=0)],
    epochs: Annotated[int, typer.Option(help="passes over the rows", min=1)],
    batch: Annotated[int, typer.Option(help="comparisons an optimiser step, over all devices", min=1)],
    warmup: Annotated[float, typer.Option(help="share of steps before the peak", min=0, max=1)],
    checkpoint_steps: Annotated[int, typer.Option(help="steps between checkpoints", min=1)],
    per_device_batch: Annotated[int, typer.Option(help="comparisons a forward pass", min=1)],
    template: Annotated[Template, typer.Option(help="the chat template")],
    seed: Annotated[int, typer.Option(help="order and dropout")],
    dtype: Annotated[Dtype, typer.Option(help="precision")],
    device: Annotated[str, typer.Option(help="cpu or cuda")],
    state: Annotated[Path, typer.Option(help="folder for checkpoints, outside the outputs")],
) -> None:
    """Train the SFT policy on comparisons."""
    files.claim(out)
    settings = training.Settings(learning_rate, epochs, batch, per_device_batch, warmup, seed, checkpoint_steps)
    made_from = {
        "stage": "dpo",
        "base": models.identity(base),
        "parent": files.tree_sha256(sft),
        "data": files.sha256(comparisons),
        "parameters": {
            **vars(settings),
            "beta": beta,
            "loss": loss,
            "template": template,
            "dtype": dtype,
            "device": device,
        },
        "versions": models.versions(),
    }
    chat = Chat(models.tokenizer(base), template)
    train, held = (training.read(comparisons, split) for split in ("train", "heldout"))
    rows, held_rows = encode(chat, train), encode(chat, held)
    policy = models.load(base, sft, dtype, device, trainable=True)
    checkpoints = files.unfinished(state, made_from)
    arguments = settings.arguments(dtype, device, checkpoints, len(rows))
    first = rows[:2]
    sft_logps = reply_logps(policy.eval(), first)
    trainer = _trainer(policy, chat, rows, [row["id"] for row in train], beta, loss, arguments)
    check_start(trainer, first, sft_logps, loss)
    training.run(trainer, len(rows))
    figures = heldout(trainer.model.eval(), held_rows, beta)

    models.save_adapter(trainer.model, chat.tokenizer, base, out, made_from)
    training.write_curve(curve, trainer.state.log_history, CURVES)
    files.write_json(
        metrics,
        {
            "rows": len(rows),
            "steps": trainer.state.global_step,
            "tokens.trained": epochs * sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows),
            **stats.of_mean(training.curve(trainer.state.log_history, "loss")).flat("loss.train"),
            **figures,
            "heldout.rows": len(held_rows),
        },
    )
    shutil.rmtree(checkpoints)


def encode(chat: Chat, examples: list[dict[str, Any]]) -> list[dict[str, list[int]]]:
    """Comparisons as `prompt_ids`, `chosen_ids` and `rejected_ids`, each side checked against law 8."""
    rows = []
    for example in tqdm(examples, desc="tokens", unit="row"):
        row = chat.comparison(example)  # type: ignore[arg-type]
        for side in ("chosen_ids", "rejected_ids"):
            trained = [False] * len(row["prompt_ids"]) + [True] * len(row[side])
            training.check_tokens(chat, example["id"], row["prompt_ids"] + row[side], trained)
        rows.append(row)
    return rows


def reply_logps(model: Any, rows: list[dict[str, list[int]]]) -> list[tuple[float, float]]:
    """Summed log-probabilities of the chosen and the rejected reply of each row, in nats."""
    return [
        (
            float(training.logps(model, row["prompt_ids"], row["chosen_ids"]).sum()),
            float(training.logps(model, row["prompt_ids"], row["rejected_ids"]).sum()),
        )
        for row in rows
    ]


def reference_logps(model: Any, rows: list[dict[str, list[int]]]) -> list[tuple[float, float]]:
    """The same under the frozen reference, the adapter that TRL calls `ref`."""
    model.set_adapter("ref", inference_mode=True)
    try:
        return reply_logps(model, rows)
    finally:
        model.set_adapter("default")


def check_start(
    trainer: Any, rows: list[dict[str, list[int]]], sft_logps: list[tuple[float, float]], loss: Loss
) -> None:
    """Check DPO's starting point on real rows, before a step is spent.

    The policy and its reference are the SFT policy, so rewards are zero and the sigmoid loss is ln 2. That alone
    proves nothing: it also holds when the SFT adapter was lost and both are the base. So the reference must also give
    the log-probabilities that the SFT policy gave when it was loaded, and others than the base's.

    Args:
        trainer: the DPO trainer, before training.
        rows: a few encoded training rows.
        sft_logps: their log-probabilities under the SFT policy as it was loaded, before the trainer had it.
        loss: which loss the trainer has; ln 2 holds for the sigmoid.

    Raises:
        Refused: naming which of these does not hold.
    """
    import torch

    model = trainer.model.eval()
    generator = torch.get_rng_state()
    with model.disable_adapter():
        base = reply_logps(model, rows)
    reference, policy = reference_logps(model, rows), reply_logps(model, rows)
    tolerance = 1e-4 if model.dtype == torch.float32 else 1e-2
    lengths = [(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in rows]

    def differ(one: list[tuple[float, float]], other: list[tuple[float, float]]) -> float:
        """The largest difference, in nats a token."""
        pairs = zip(sum(one, ()), sum(other, ()), sum(lengths, ()), strict=True)
        return max(abs(a - b) / n for a, b, n in pairs)

    if differ(sft_logps, base) == 0:
        raise Refused("DPO: the SFT adapter changes nothing: the SFT policy gives the base's log-probabilities")
    if (found := differ(reference, sft_logps)) > tolerance:
        raise Refused(f"DPO: the reference is not the SFT policy: they differ by {found:.2g} nats a token")
    if (found := differ(policy, sft_logps)) > tolerance:
        raise Refused(f"DPO: the policy does not start at the SFT policy: they differ by {found:.2g} nats a token")
    with torch.no_grad():
        first = float(trainer.compute_loss(model, trainer._prepare_inputs(trainer.data_collator(rows))))
    if loss is Loss.sigmoid and abs(first - math.log(2)) > tolerance * 10:
        raise Refused(f"DPO: the loss before the first step is {first:.6f}, wanted ln 2 = {math.log(2):.6f}")
    print(
        f"step 0: loss {first:.6f}; the reference is the SFT policy, {differ(reference, base):.2g} nats from the base"
    )
    trainer._metrics["eval"].clear()
    torch.set_rng_state(generator)
    model.train()


def heldout(model: Any, rows: list[dict[str, list[int]]], beta: float) -> dict[str, Any]:
    """Held-out figures: how often the implicit reward prefers the chosen reply, and by how much.

    `heldout.accuracy` is the share of rows whose chosen reply has the higher reward β·(log π − log π_ref), ties half;
    it is ½ by definition before the first step. Log-probabilities are sums over a reply, in nats.
    """
    progress = tqdm(rows, desc="held out", unit="row")
    both = [(reply_logps(model, [row])[0], reference_logps(model, [row])[0]) for row in progress]
    margins = [beta * ((policy[0] - ref[0]) - (policy[1] - ref[1])) for policy, ref in both]
    return {
        **stats.of_mean([0.5 if margin == 0 else float(margin > 0) for margin in margins]).flat("heldout.accuracy"),
        **stats.of_mean(margins).flat("heldout.margin"),
        **stats.of_mean([policy[0] for policy, _ in both]).flat("heldout.chosen_logps"),
        **stats.of_mean([ref[0] for _, ref in both]).flat("heldout.chosen_logps_before"),
        **stats.of_mean([policy[1] for policy, _ in both]).flat("heldout.rejected_logps"),
        **stats.of_mean([ref[1] for _, ref in both]).flat("heldout.rejected_logps_before"),
    }


def _trainer(
    policy: Any,
    chat: Chat,
    rows: list[dict[str, list[int]]],
    names: list[str],
    beta: float,
    loss: Loss,
    arguments: dict[str, Any],
) -> Any:
    from datasets import Dataset
    from transformers import enable_full_determinism
    from trl import DPOConfig, DPOTrainer

    class Trainer(training.StopAtNonFinite, DPOTrainer):
        row_names = names

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            """Rows arrive as tokens from `chat.py`; TRL tokenises and drops nothing."""
            return dataset

    enable_full_determinism(arguments["seed"])
    # Neither `ref_model` nor `peft_config`: TRL then copies the loaded SFT adapter to a frozen one called `ref`.
    return Trainer(
        model=policy,
        args=DPOConfig(**arguments, beta=beta, loss_type=[str(loss)], max_length=None),
        train_dataset=Dataset.from_list(rows),
        processing_class=chat.tokenizer,
    )


if __name__ == "__main__":
    command.run(main)
