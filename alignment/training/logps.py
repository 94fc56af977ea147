"""Log-probabilities of replies under a model, one row at a time.

In: a model and tokens. Out: log-probabilities in nats.
"""

from typing import TYPE_CHECKING, Any

from alignment.models.chat import IGNORED

if TYPE_CHECKING:
    import torch


def distributions(model: Any, prompt_ids: list[int], reply_ids: list[int]) -> "torch.Tensor":
    """Compute log-probabilities of the whole vocabulary at each token of a reply, in float32.

    Returns:
        A tensor of shape (len(reply_ids), vocabulary), in nats.
    """
    import torch

    ids = torch.tensor([prompt_ids + reply_ids], device=model.device)
    with torch.no_grad():
        logits = model(input_ids=ids, logits_to_keep=len(reply_ids) + 1, use_cache=False).logits[0, :-1]
    return torch.log_softmax(logits.float(), dim=-1)


def chosen(distributions: "torch.Tensor", ids: list[int]) -> "torch.Tensor":
    """Return the log-probability of one token per row of `distributions`, of shape (len(ids),)."""
    import torch

    return distributions.gather(1, torch.tensor(ids, device=distributions.device)[:, None])[:, 0]


def logps(model: Any, prompt_ids: list[int], reply_ids: list[int]) -> "torch.Tensor":
    """Compute log-probabilities of a reply's tokens after a prompt, of shape (len(reply_ids),), in nats, float32."""
    return chosen(distributions(model, prompt_ids, reply_ids), reply_ids)


def trained_logps(model: Any, row: dict[str, list[int]]) -> "torch.Tensor":
    """Compute log-probabilities of the trained tokens of one encoded demonstration.

    Returns:
        A tensor of shape (trained tokens,), in nats.
    """
    import torch

    trained = torch.tensor([label != IGNORED for label in row["labels"][1:]])
    return logps(model, row["input_ids"][:1], row["input_ids"][1:])[trained.to(model.device)]
