"""LIMA (Zhou et al. 2023): 1,030 demonstrations curated by hand.

A row: `{"conversations": ["How do I …?", "First …", "And then?", "Then …"], "source": "multi_turn"}`
Policy: turns alternate, the user's first; all of them are kept; a row that ends with the user is refused.
"""

from typing import Any

from alignment.corpora import Cause, Demonstration, Group, Refusal, Repository
from alignment.runtime.records import Malformed, require

SOURCE = Repository(
    "GAIR/lima",
    "68958e98267f5fb4a52a03ebcdae4ae59213fa7c",
    ("train.jsonl",),  # test.jsonl holds prompts without replies
    licence="CC-BY-NC-SA, or the stricter licence of a row's source",
    terms="LIMA may not be used commercially",
    gated=True,
)
HELDOUT: tuple[str, ...] = ()
GROUP: Group | None = None


def demonstration(row: Any) -> Demonstration | Refusal:
    """One conversation, every assistant turn trained."""
    require(row, {"conversations": list})
    turns = row["conversations"]
    if not all(isinstance(turn, str) for turn in turns):
        raise Malformed("found something else than text in 'conversations', wanted a list of strings")
    if len(turns) < 2 or len(turns) % 2:
        return Refusal(Cause.no_reply)
    if not all(turn.strip() for turn in turns):
        return Refusal(Cause.empty_turn)
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]}
