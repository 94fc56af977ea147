"""A user's own data: one `.jsonl` or `.parquet` file in TRL's formats, named by `own` in params.yaml.

Rows, conversational or plain text:
`{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}` or `{"prompt": …,
"completion": …}` for demonstrations; `{"prompt": …, "chosen": …, "rejected": …}` for comparisons, where each value is
text or a list of messages, with a number as `margin` if there is one. `chosen` and `rejected` may be whole
conversations: what they share is the prompt, with the column `prompt` or without it. All assistant turns of a
demonstration are trained but those of its `prompt` and those that have the `weight` 0, as OpenAI's files mark them;
another mark of such a turn (`train: false`) is malformed. A
column that is null is as good as absent. Policy: everything is kept but empty turns, equal sides, conversations that
end without a reply to train, and sides whose beginnings differ; other shapes are malformed, and so are what text cannot
say (tools, reasoning, images and the like) and a `label` of good and bad replies. The log names all other columns,
which are passed over.
"""

from typing import Any

from alignment.corpora import Cause, Comparison, Demonstration, Group, Message, Refusal, Role, is_trained
from alignment.runtime.records import Malformed, brief, finite, require, shown

SOURCE = None
HELDOUT: tuple[str, ...] = ()
GROUP: Group | None = None


# What TRL's formats can hold beside text, in a row or in a message.
NO_TEXT = {
    *("tools", "tool_calls", "functions", "function_call", "reasoning", "reasoning_content", "thinking"),
    *("image", "images", "video", "videos", "audio", "audios", "chat_template_kwargs"),
}
# How others mark a turn that is not trained; Axolotl's is `train`, this pipeline's tables have `trained`.
MARKS = ("train", "trained", "training", "loss")
LABELS = {"true", "false", "yes", "no", "0", "1", "good", "bad", "desirable", "undesirable", "chosen", "rejected"}


def demonstration(row: Any) -> Demonstration | Refusal:
    """The conversation of a `messages` or a `prompt`/`completion` row."""
    row = _columns(row)
    _refuse_label(row)
    if "messages" in row:
        require(row, {"messages": list})
        messages = _weighed(row, "messages", "user")
    elif "prompt" in row and "completion" in row:
        prompt = _messages(row, "prompt", "user")
        if not prompt:
            return Refusal(Cause.empty_turn)
        if prompt[-1]["role"] != "user":
            raise Malformed(f"found the roles {_roles(prompt)} in 'prompt', wanted a turn of the user's last")
        messages = [_untrained(message) for message in prompt] + _weighed(row, "completion", "assistant")
    else:
        raise Malformed(f"found {shown(row)}, wanted 'messages', or 'prompt' and 'completion'")
    if not messages or not is_trained(messages[-1]):
        return Refusal(Cause.no_reply)
    return {"messages": messages} if _filled(messages) else Refusal(Cause.empty_turn)


def comparison(row: Any) -> Comparison | Refusal:
    """The prompt and the two replies of a `prompt`/`chosen`/`rejected` or a `chosen`/`rejected` row."""
    row = _columns(row)
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


def passed_over(row: dict[str, Any], role: Role) -> set[str]:
    """The names of a usable row's columns, and of its messages' fields, that say something and have no use."""
    row = _columns(row)
    if role is Role.comparisons:
        used, fields = {"prompt", "chosen", "rejected", "margin"}, {"role", "content"}
    else:
        used, fields = {"messages"} if "messages" in row else {"prompt", "completion"}, {"role", "content", "weight"}
    messages = [message for name in used if isinstance(row.get(name), list) for message in row[name]]
    inside = {name for message in messages for name in _saying(message)}
    return _saying(row) - used | {f"messages' {name}" for name in inside - fields}


def _saying(holder: dict[str, Any]) -> set[str]:
    """The names of what says something; so does a `false`."""
    return {name for name, value in holder.items() if value is False or _says(value)}


def _columns(row: Any) -> dict[str, Any]:
    """The row without its nulls, since every row of a Parquet file has every column; text says all that is left."""
    require(row, {})
    filled: dict[str, Any] = {name: value for name, value in row.items() if value is not None}
    _refuse_no_text(filled, "")
    if filled.get("weight", 1) != 1:
        raise Malformed(f"found {brief(filled['weight'])} in 'weight', wanted rows that count alike")
    return filled


def _refuse_no_text(holder: dict[str, Any], inside: str) -> None:
    for name, value in holder.items():
        if name in NO_TEXT and _says(value):
            raise Malformed(f"found {name!r}{inside}, wanted text alone: leave it out, or such rows")


def _refuse_label(row: dict[str, Any]) -> None:
    """Refuse TRL's unpaired preference: half of such rows are replies that nobody should imitate."""
    label = row.get("label")
    if label in (0, 1) or (isinstance(label, str) and label.strip().lower() in LABELS):
        raise Malformed(
            f"found {brief(label)} in 'label' (TRL's unpaired preference), wanted rows to imitate alone: keep those "
            "whose label is true, and leave the column out"
        )


def _says(value: Any) -> bool:
    """Whether a value holds anything; Parquet has a struct of nulls for none."""
    return any(inner is not None for inner in value.values()) if isinstance(value, dict) else bool(value)


def _messages(row: dict[str, Any], column: str, role: str) -> list[Message]:
    require(row, {column: (str, list)})
    if isinstance(row[column], str):
        return [{"role": role, "content": row[column]}]
    for index, message in enumerate(row[column]):
        require(message, {"role": str, "content": str}, inside=f"{column}[{index}]")
        if message["role"] not in ("system", "user", "assistant"):
            raise Malformed(f"found the role {brief(message['role'])} in {column!r}, wanted system, user or assistant")
        _refuse_no_text(message, f" in '{column}[{index}]'")
    return [{"role": message["role"], "content": message["content"]} for message in row[column]]


def _weighed(row: dict[str, Any], column: str, role: str) -> list[Message]:
    """The messages of a column, of which those of the weight 0 are not trained."""
    messages = _messages(row, column, role)
    for index, message in enumerate(row[column] if isinstance(row[column], list) else ()):
        for mark in MARKS:
            if message.get(mark) in (False, "false", "False"):  # 0 too
                raise Malformed(f"found {brief(message[mark])} in '{column}[{index}].{mark}', wanted `weight: 0` there")
        weight = message.get("weight")
        if weight not in (None, 0, 1):
            raise Malformed(f"found {brief(weight)} in '{column}[{index}].weight', wanted 0 or 1")
        if weight == 0:
            messages[index] = _untrained(messages[index])
    return messages


def _untrained(message: Message) -> Message:
    """A message that is read alone; only an assistant's needs a mark."""
    return {**message, "trained": False} if message["role"] == "assistant" else message


def _roles(messages: list[Message]) -> str:
    return brief([message["role"] for message in messages])


def _filled(messages: list[Message]) -> bool:
    return all(message["content"].strip() for message in messages)
