"""OpenOrca (Lian et al. 2023): 4.2 million generated answers to FLAN's tasks.

A row: `{"id": "flan.564327", "system_prompt": "You are …", "question": "Translate …", "response": "…"}`
Policy: an empty system prompt is left out of the conversation, not the row; a row without a question or without a
response is refused.
"""

from typing import Any

from alignment.corpora import Cause, Demonstration, Group, Refusal, Repository
from alignment.runtime.records import require

SOURCE = Repository(
    "Open-Orca/OpenOrca",
    "3e85783ecb0db83df8b30dbbd94107857b5ac830",
    ("1M-GPT4-Augmented.parquet", "3_5M-GPT3_5-Augmented.parquet"),
    licence="MIT",
)
HELDOUT: tuple[str, ...] = ()
GROUP: Group | None = None
TURNS = {"system": "system_prompt", "user": "question", "assistant": "response"}


def demonstration(row: Any) -> Demonstration | Refusal:
    """A system prompt if there is one, the question, and the response that is trained."""
    require(row, dict.fromkeys(TURNS.values(), str))
    if not row["question"].strip() or not row["response"].strip():
        return Refusal(Cause.empty_turn)
    turns = [(role, row[column]) for role, column in TURNS.items()]
    return {"messages": [{"role": role, "content": text} for role, text in turns if text.strip()]}
