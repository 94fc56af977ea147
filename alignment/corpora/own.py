"""A user's own data: one `.jsonl` or `.parquet` file in TRL's formats, named by `own` in params.yaml.

Rows, conversational or plain text:
`{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}` or `{"prompt": …,
"completion": …}` for demonstrations; `{"prompt": …, "chosen": …, "rejected": …}` for comparisons, where each value is
text or a list of messages, with a number as `margin` if there is one. Policy: everything is kept but empty turns and
equal sides; other shapes are malformed.
"""

from typing import Any

from alignment.corpora import Cause, Comparison, Demonstration, Group, Malformed, Message, Refusal, require

SOURCE = None
HELDOUT: tuple[str, ...] = ()
GROUP: Group | None = None


def demonstration(row: Any) -> Demonstration | Refusal:
    """The conversation of a `messages` or a `prompt`/`completion` row."""
    require(row, {})
    if "messages" in row:
        require(row, {"messages": list})
        messages = _messages(row, "messages", "user")
    else:
        require(row, {"prompt": (str, list), "completion": (str, list)})
        messages = _messages(row, "prompt", "user") + _messages(row, "completion", "assistant")
    if not messages or messages[-1]["role"] != "assistant":
        return Refusal(Cause.no_reply)
    return {"messages": messages} if _filled(messages) else Refusal(Cause.empty_turn)


def comparison(row: Any) -> Comparison | Refusal:
    """The prompt and the two replies of a `prompt`/`chosen`/`rejected` row."""
    require(row, {"prompt": (str, list), "chosen": (str, list), "rejected": (str, list)})
    prompt = _messages(row, "prompt", "user")
    chosen, rejected = (_messages(row, side, "assistant") for side in ("chosen", "rejected"))
    for side, reply in (("chosen", chosen), ("rejected", rejected)):
        roles = [message["role"] for message in reply]
        if roles != ["assistant"]:
            raise Malformed(f"found the roles {roles} in {side!r}, wanted one message, the assistant's")
    if not prompt or not _filled(prompt + chosen + rejected):
        return Refusal(Cause.empty_turn)
    if chosen == rejected:
        return Refusal(Cause.equal_sides)
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "margin": _margin(row)}


def _margin(row: dict[str, Any]) -> float | None:
    if row.get("margin") is None:
        return None
    require(row, {"margin": (int, float)})
    return float(row["margin"])


def _messages(row: dict[str, Any], column: str, role: str) -> list[Message]:
    if isinstance(row[column], str):
        return [{"role": role, "content": row[column]}]
    require(row, {column: list})
    for message in row[column]:
        require(message, {"role": str, "content": str})
        if message["role"] not in ("system", "user", "assistant"):
            raise Malformed(f"found the role {message['role']!r} in {column!r}, wanted system, user or assistant")
    return [{"role": message["role"], "content": message["content"]} for message in row[column]]


def _filled(messages: list[Message]) -> bool:
    return all(message["content"].strip() for message in messages)
