"""Direct preference optimisation (Rafailov et al. 2023): the SFT policy goes on, against itself as the reference.

In: comparisons, the SFT policy. Out: rows as tokens, a trainer, the proof that it starts where it must, held-out
figures.
"""

import contextlib
import itertools
import math
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from alignment.models.chat import Chat
from alignment.runtime import Refused, files, processes
from alignment.scoring.engine import engine, prefix_tree
from alignment.statistics import estimates
from alignment.training import checks
from alignment.training.logps import chosen, distributions, logps
from alignment.training.plan import Plan
from alignment.training.settings import Settings
from alignment.training.trainer import PlannedTrainer

Logps = list[tuple[float, float]]  # of the chosen and the rejected reply of each row, in nats
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


def encode(chat: Chat, examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tokenise comparisons: `id`, `prompt_ids`, `chosen_ids`, `rejected_ids`.

    Each side is checked with `checks.check_tokens`.
    """
    rows = []
    for example in tqdm(examples, desc="tokens", unit="row"):
        row = chat.comparison(example)  # type: ignore[arg-type]
        for side in ("chosen_ids", "rejected_ids"):
            trained = [False] * len(row["prompt_ids"]) + [True] * len(row[side])
            checks.check_tokens(chat, example["id"], row["prompt_ids"] + row[side], trained)
        rows.append({"id": example["id"], **row})
    return rows


def length(row: dict[str, Any]) -> int:
    """Count the tokens of an encoded comparison, with its longer reply."""
    return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))


def plan_of(rows: list[dict[str, Any]], settings: Settings) -> Plan:
    """Plan the run over encoded comparisons; trained tokens are those of both replies."""
    trained = [len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows]
    return settings.plan([row["id"] for row in rows], list(map(length, rows)), trained)


def add_reference(rows: list[dict[str, Any]], sft: Any, token_budget: int, kept: Path) -> None:
    """Add `ref_chosen_logps` and `ref_rejected_logps` to each row, computed once for all passes over them.

    The scoring engine computes a prompt once for both replies. That is exact in float32 alone: in bfloat16, and on a
    quantised base, the reference is taken in each step instead, from the policy's own batch, so that rounding cancels.

    Args:
        sft: the SFT policy, as it was loaded.
        kept: the file from which a run that was killed reads them again.
    """
    first = processes.world().is_main_process
    if not kept.exists():
        sides = [(row["prompt_ids"], row[side]) for row in rows for side in ("chosen_ids", "rejected_ids")]
        scores = engine.Engine(sft, token_budget).score(
            [prefix_tree.Request(*side) for side in sides], [n // 2 for n in range(len(sides))], "reference", "row"
        )
        if first:
            files.write_json(kept, [score.loglikelihood for score in scores])
    processes.world().wait_for_everyone()
    found = files.read_json(kept)
    for row, of_chosen, of_rejected in zip(rows, found[::2], found[1::2], strict=True):
        row |= {"ref_chosen_logps": of_chosen, "ref_rejected_logps": of_rejected}


def reply_logps(model: Any, rows: list[dict[str, Any]]) -> Logps:
    """Sum the log-probabilities of the chosen and of the rejected reply of each row, in nats."""
    return [
        (
            float(logps(model, row["prompt_ids"], row["chosen_ids"]).sum()),
            float(logps(model, row["prompt_ids"], row["rejected_ids"]).sum()),
        )
        for row in rows
    ]


@contextlib.contextmanager
def reference(model: Any) -> Iterator[None]:
    """Use the frozen reference, the adapter that TRL calls `ref`, while the block runs."""
    model.set_adapter("ref", inference_mode=True)
    try:
        yield
    finally:
        model.set_adapter("default")


def check_start(trainer: Any, rows: list[dict[str, Any]], sft_logps: Logps, loss: Loss, beta: float) -> None:
    """Check DPO's starting point on real rows, before a step is spent.

    The policy and its reference are the SFT policy, so rewards are zero and the loss is that of no preference, ln 2
    for the sigmoid. That alone proves nothing: it also holds when the SFT adapter was lost and both are the base. So
    the reference must also give the log-probabilities that the SFT policy gave when it was loaded, and others than the
    base's.

    Args:
        trainer: the DPO trainer, before training.
        rows: a few encoded training rows.
        sft_logps: their log-probabilities under the SFT policy as it was loaded, before the trainer had it.
        loss: which loss the trainer has.
        beta: its β.

    Raises:
        Refused: naming which of these does not hold.
    """
    import torch

    model = trainer.model.eval()
    generator = torch.get_rng_state()
    base, references, policy = start_logps(model, rows)
    exact = all(weights.dtype is torch.float32 for weights in model.parameters())
    lengths = [len(row[side]) for row in rows for side in ("chosen_ids", "rejected_ids")]
    from_sft, from_base = check_policies(sft_logps, base, references, policy, lengths, 1e-4 if exact else 1e-2)
    first, wanted = check_first_loss(trainer, loss, beta)
    trainer.accelerator.print(
        f"step 0: {loss} loss {first:.6f}, {wanted:.6f} without rewards; the reference is the SFT policy within "
        f"{from_sft:.1g} nats a token, and {from_base:.2g} from the base",
    )
    trainer._metrics["eval"].clear()
    torch.set_rng_state(generator)
    model.train()


def start_logps(model: Any, rows: list[dict[str, Any]]) -> tuple[Logps, list[Logps], Logps]:
    """Return the replies' log-probabilities under the base, the reference and the policy.

    Where rows carry the reference's, it has two: those of its adapter, and those.
    """
    with model.disable_adapter():
        base = reply_logps(model, rows)
    with reference(model):
        references = [reply_logps(model, rows)]
    if "ref_chosen_logps" in rows[0]:
        references.append([(row["ref_chosen_logps"], row["ref_rejected_logps"]) for row in rows])
    return base, references, reply_logps(model, rows)


def check_policies(
    sft: Logps, base: Logps, references: list[Logps], policy: Logps, lengths: list[int], tolerance: float
) -> tuple[float, float]:
    """Check that the reference and the policy are the SFT policy, and not the base.

    Args:
        sft: log-probabilities of each row's replies under the SFT policy as it was loaded, in nats.
        base: the same under the base; so the others.
        references: the same under the reference, once or more.
        policy: the same under the policy.
        lengths: tokens of each reply, chosen and rejected in turn.
        tolerance: nats a token.

    Returns:
        How far the last of `references` is from the SFT policy, and how far from the base, in nats a token.

    Raises:
        Refused: naming which is another.
    """

    def differ(one: Logps, other: Logps) -> float:
        """Return the largest difference, in nats a token."""
        pairs = zip(itertools.chain(*one), itertools.chain(*other), lengths, strict=True)
        return max(abs(a - b) / n for a, b, n in pairs)

    if differ(sft, base) == 0:
        raise Refused("DPO: the SFT adapter changes nothing: the SFT policy gives the base's log-probabilities")
    # Where the SFT policy is hardly another than the base, no tolerance tells them apart, but the nearer one does.
    for name, given in (*(("the reference", each) for each in references), ("the policy", policy)):
        found, from_base = differ(given, sft), differ(given, base)
        if found > tolerance or found >= from_base:
            raise Refused(
                f"DPO: {name} is not the SFT policy: they differ by {found:.2g} nats a token, "
                f"and {from_base:.2g} from the base"
            )
    return differ(references[-1], sft), differ(references[-1], base)


def check_first_loss(trainer: Any, loss: Loss, beta: float) -> tuple[float, float]:
    """Check that the loss of the first forward pass is that of rewards of 0; return it, and what it must be.

    Raises:
        Refused: it is another.
    """
    import torch

    wanted = {Loss.sigmoid: math.log(2), Loss.ipo: 1 / (4 * beta**2), Loss.hinge: 1.0}[loss]
    with torch.no_grad():
        first = float(trainer.compute_loss(trainer.model, trainer._prepare_inputs(trainer.step(0).passes[0].batch)))
    if abs(first - wanted) > 1e-3 * max(1.0, wanted):
        raise Refused(
            f"DPO: the {loss} loss before the first step is {first:.6f}, wanted {wanted:.6f}: rewards are not 0"
        )
    return first, wanted


class Held(NamedTuple):
    """One held-out row: what policy and reference say of both replies, in nats, and how far apart they are."""

    policy: tuple[float, float]
    reference: tuple[float, float]
    kl: float


def heldout(model: Any, rows: list[dict[str, Any]], beta: float) -> dict[str, Any]:
    """Compute held-out figures: how often and by how much the chosen reply is preferred, and the drift.

    `heldout.accuracy` is the share of rows whose chosen reply has the higher reward β·(log π − log π_ref), ties half;
    it is ½ by definition before the first step. Log-probabilities are sums over a reply, in nats. `heldout.kl` is the
    divergence KL(π ‖ π_ref) of the next token, exact over the vocabulary, in nats a token: its mean over the tokens of
    both replies, then over rows.
    """
    found = processes.map_rows(rows, lambda row: _held(model, row), "held out")
    margins = [beta * ((p[0] - ref[0]) - (p[1] - ref[1])) for p, ref, _ in found]
    return {
        **estimates.of_mean([0.5 if margin == 0 else float(margin > 0) for margin in margins]).flat("heldout.accuracy"),
        **estimates.of_mean(margins).flat("heldout.margin"),
        **estimates.of_mean([row.policy[0] for row in found]).flat("heldout.chosen_logps"),
        **estimates.of_mean([row.reference[0] for row in found]).flat("heldout.chosen_logps_before"),
        **estimates.of_mean([row.policy[1] for row in found]).flat("heldout.rejected_logps"),
        **estimates.of_mean([row.reference[1] for row in found]).flat("heldout.rejected_logps_before"),
        **estimates.of_mean([row.kl for row in found]).flat("heldout.kl", digits=6),
    }


def _held(model: Any, row: dict[str, Any]) -> Held:
    policy, before, divergences = [], [], []
    for reply in (row["chosen_ids"], row["rejected_ids"]):
        now = distributions(model, row["prompt_ids"], reply)
        with reference(model):
            then = distributions(model, row["prompt_ids"], reply)
        policy.append(float(chosen(now, reply).sum()))
        before.append(float(chosen(then, reply).sum()))
        divergences += (now.exp() * (now - then)).sum(dim=-1).tolist()
    return Held((policy[0], policy[1]), (before[0], before[1]), sum(divergences) / len(divergences))


def make_trainer(
    policy: Any,
    chat: Chat,
    rows: list[dict[str, Any]],
    beta: float,
    loss: Loss,
    settings: Settings,
    checkpoints: Path,
) -> Any:
    """Make TRL's DPO trainer for encoded comparisons; its reference is the adapter that the policy was loaded with."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    class Trainer(PlannedTrainer, DPOTrainer):
        plan = plan_of(rows, settings)
        means_of_rows = True

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            """Return the rows as they are: `chat.py` has tokenised them, so TRL tokenises and drops nothing."""
            return dataset

    arguments = settings.arguments(checkpoints, len(Trainer.plan.steps))
    # Neither `ref_model` nor `peft_config`: TRL then copies the loaded SFT adapter to a frozen one called `ref`.
    trainer = Trainer(
        model=policy,
        args=DPOConfig(**arguments, beta=beta, loss_type=[str(loss)], max_length=None),
        train_dataset=Dataset.from_list(rows),
        processing_class=chat.tokenizer,
    )
    trainer.precompute_ref_logps = "ref_chosen_logps" in rows[0]  # its own way of computing them is not ours
    return trainer
