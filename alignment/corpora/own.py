"""A user's own data: one `.jsonl` or `.parquet` file in TRL's formats, named by `own` in params.yaml.

Rows, conversational or plain text:
`{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}` or `{"prompt": …,
"completion": …}` for demonstrations; `{"prompt": …, "chosen": …, "rejected": …}` for comparisons, where each value is
text or a list of messages, with a number as `margin` if there is one. `chosen` and `rejected` may be whole
conversations: what they share is the prompt, with the column `prompt` or without it. A column that is null is as good
as absent, and other columns are passed over. Policy: everything is kept but empty turns, equal sides, conversations
that end without a reply, and sides whose beginnings differ; other shapes are malformed.
"""

from typing import Any

from alignment.corpora import (
    Cause,
    Comparison,
    Demonstration,
    Group,
    Malformed,
    Message,
    Refusal,
    brief,
    finite,
    require,
    shown,
)

SOURCE = None
HELDOUT: tuple[str, ...] = ()
GROUP: Group | None = None


def demonstration(row: Any) -> Demonstration | Refusal:
    """The conversation of a `messages` or a `prompt`/`completion` row."""
    row = _filled_columns(row)
    if "messages" in row:
        require(row, {"messages": list})
        messages = _messages(row, "messages", "user")
    elif "prompt" in row and "completion" in row:
        if isinstance(row.get("label"), bool):  # half of such rows are replies that nobody should imitate
            raise Malformed("found a true or false 'label' (TRL's unpaired preference), wanted rows to imitate alone")
        messages = _messages(row, "prompt", "user") + _messages(row, "completion", "assistant")
    else:
        raise Malformed(f"found {shown(row)}, wanted 'messages', or 'prompt' and 'completion'")
    if not messages or messages[-1]["role"] != "assistant":
        return Refusal(Cause.no_reply)
    return {"messages": messages} if _filled(messages) else Refusal(Cause.empty_turn)


def comparison(row: Any) -> Comparison | Refusal:
    """The prompt and the two replies of a `prompt`/`chosen`/`rejected` or a `chosen`/`rejected` row."""
    row = _filled_columns(row)
    if "chosen" not in row or "rejected" not in row:
        raise Malformed(f"found {shown(row)}, wanted 'prompt', 'chosen' and 'rejected'")
    sides = [_messages(row, side, "assistant") for side in ("chosen", "rejected")]
    if "prompt" in row:
        prompt = _messages(row, "prompt", "user")
        replies = [side[len(prompt) :] if side[: len(prompt)] == prompt else side for side in sides]
    elif isinstance(row["chosen"], str) or isinstance(row["rejected"], str):
        raise Malformed("found text in 'chosen' or 'rejected' and no 'prompt', wanted 'prompt', or lists of messages")
    else:
        prompt, other = (side[:-1] for side in sides)
        if prompt != other:
            return Refusal(Cause.prompt_differs)
        replies = [side[-1:] for side in sides]
    for name, side, reply in zip(("chosen", "rejected"), sides, replies, strict=True):
        if [message["role"] for message in reply] != ["assistant"]:
            raise Malformed(f"found the roles {_roles(side)} in {name!r}, wanted one message, the assistant's")
    if prompt and prompt[-1]["role"] == "assistant":
        raise Malformed(f"found the roles {_roles(prompt)} before the reply, wanted a turn of the user's last")
    chosen, rejected = replies
    if not prompt or not _filled(prompt + chosen + rejected):
        return Refusal(Cause.empty_turn)
    if chosen == rejected:
        return Refusal(Cause.equal_sides)
    margin = finite(row, "margin") if "margin" in row else None
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "margin": margin}


def _filled_columns(row: Any) -> dict[str, Any]:
    """The row without its nulls: every row of a Parquet file has every column."""
    require(row, {})
    return {name: value for name, value in row.items() if value is not None}


def _messages(row: dict[str, Any], column: str, role: str) -> list[Message]:
    require(row, {column: (str, list)})
    if isinstance(row[column], str):
        return [{"role": role, "content": row[column]}]
    for index, message in enumerate(row[column]):
        require(message, {"role": str, "content": str}, inside=f"{column}[{index}]")
        if message["role"] not in ("system", "user", "assistant"):
            raise Malformed(f"found the role {brief(message['role'])} in {column!r}, wanted system, user or assistant")
    return [{"role": message["role"], "content": message["content"]} for message in row[column]]


def _roles(messages: list[Message]) -> str:
    return brief([message["role"] for message in messages])


def _filled(messages: list[Message]) -> bool:
    return all(message["content"].strip() for message in messages)
