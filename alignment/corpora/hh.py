r"""HH-RLHF (Bai et al. 2022): people's choices between two replies of an assistant.

A row: `{"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant: What?"}`
Policy: the subsets harmless-base and helpful-base; the test files are held out. Refused: both sides equal, an empty
turn, sides that differ before the last reply, a dialogue whose turns do not alternate. A reply that is the beginning
of the other is kept. Demonstrations are the chosen sides.
"""

import re
from typing import Any

from alignment.corpora import Cause, Comparison, Demonstration, Group, Message, Refusal, Repository
from alignment.runtime.records import Malformed, require

SOURCE = Repository(
    "Anthropic/hh-rlhf",
    "09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa",
    ("harmless-base/*.jsonl.gz", "helpful-base/*.jsonl.gz"),
    licence="MIT",
    terms="HH-RLHF holds abusive text by design; it is meant for comparisons, not as demonstrations of behaviour",
)
HELDOUT = ("*/test.jsonl.gz",)
GROUP: Group | None = None

ROLES = {"Human": "user", "Assistant": "assistant"}
# A speaker's name opens a turn only after a blank line: "Human:" inside a sentence is text.
TURN = re.compile(r"\n\n(Human|Assistant):[ \t]?")


def demonstration(row: Any) -> Demonstration | Refusal:
    """The chosen dialogue."""
    require(row, {"chosen": str, "rejected": str})
    turns = _turns(row["chosen"])
    return turns if isinstance(turns, Refusal) else {"messages": turns}


def comparison(row: Any) -> Comparison | Refusal:
    """The shared dialogue and the two last replies."""
    require(row, {"chosen": str, "rejected": str})
    chosen, rejected = _turns(row["chosen"]), _turns(row["rejected"])
    if row["chosen"] == row["rejected"]:
        return Refusal(Cause.equal_sides)
    if isinstance(chosen, Refusal):
        return chosen
    if isinstance(rejected, Refusal):
        return rejected
    if chosen[:-1] != rejected[:-1]:
        return Refusal(Cause.prompt_differs)
    if chosen[-1] == rejected[-1]:
        return Refusal(Cause.equal_sides)
    return {"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:], "margin": None}


def _turns(dialogue: str) -> list[Message] | Refusal:
    before, *parts = TURN.split(dialogue)
    if before or not parts:
        raise Malformed(f"found a dialogue that begins with {dialogue[:30]!r}, wanted '\\n\\nHuman: …'")
    speakers, texts = parts[::2], [text.strip() for text in parts[1::2]]
    if not all(texts):
        return Refusal(Cause.empty_turn)
    if any(speaker != ("Human", "Assistant")[i % 2] for i, speaker in enumerate(speakers)):
        return Refusal(Cause.turn_order)
    if speakers[-1] != "Assistant":
        return Refusal(Cause.no_reply)
    return [{"role": ROLES[speaker], "content": text} for speaker, text in zip(speakers, texts, strict=True)]
