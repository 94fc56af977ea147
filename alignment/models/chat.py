"""The chat templates, and the one function that turns text into tokens.

In: messages, or plain text. Out: token ids, with a mark on those that are trained.

Text from data never becomes a control token: where it holds one, it is tokenised as if the tokenizer had none. What
touches a template's textual mark, such as `[INST]`, is spelled out in single characters, which decode to the same
text and are not the tokens of the template's own mark. The template adds no system prompt of its own. One BOS where the
model's tokenizer uses one, none elsewhere; every assistant turn ends with EOS and nothing follows the last.
"""

import copy
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from alignment.corpora import Comparison, Message, is_trained
from alignment.runtime import Refused

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # the label of a token that is not trained, as PyTorch's cross entropy has it


class Template(StrEnum):
    """How turns are marked: ChatML's control tokens, or Llama-2's `[INST]` text."""

    chatml = "chatml"
    llama2 = "llama2"


@dataclass(frozen=True)
class Piece:
    """A part of a rendered conversation: a control token, the template's own text, or text from data."""

    kind: Literal["control", "frame", "data"]
    text: str
    trained: bool = False


BYTE = re.compile("<0x[0-9A-F]{2}>")  # SentencePiece's tokens for the bytes of what its vocabulary lacks
LLAMA2_MARKS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")


def _chatml(messages: list[Message], eos: str, reply_follows: bool) -> Iterator[Piece]:
    for index, message in enumerate(messages):
        if index:
            yield Piece("frame", "\n")
        yield Piece("control", "<|im_start|>")
        yield Piece("frame", f"{message['role']}\n")
        reply, trained = message["role"] == "assistant", is_trained(message)
        yield Piece("data", message["content"], trained)
        yield Piece("control", eos if reply else "<|im_end|>", trained)
    if reply_follows:
        yield Piece("frame", "\n")
        yield Piece("control", "<|im_start|>")
        yield Piece("frame", "assistant\n")


def _llama2(messages: list[Message], eos: str, reply_follows: bool) -> Iterator[Piece]:
    # No spaces between the pieces: Llama's tokenizer begins each of them with one.
    opened = False
    for message in messages:
        if message["role"] == "assistant":
            if opened:
                yield Piece("frame", "[/INST]")
            opened = False
            yield Piece("data", message["content"], is_trained(message))
            yield Piece("control", eos, is_trained(message))
            continue
        if not opened:
            yield Piece("frame", "[INST]")
        opened = True
        if message["role"] == "system":
            yield Piece("frame", "<<SYS>>\n")
            yield Piece("data", message["content"])
            yield Piece("frame", "\n<</SYS>>\n\n")
        else:
            yield Piece("data", message["content"])
    if reply_follows and opened:
        yield Piece("frame", "[/INST]")


RENDER = {Template.chatml: _chatml, Template.llama2: _llama2}
# The same in Jinja. Our function tokenises each piece by itself, which some tokenizers begin with a space: `gap` is
# what stands before a piece that follows text, `after` before one that follows a control token.
JINJA = {
    Template.chatml: (
        "{% for message in messages %}{% if not loop.first %}{{ after + '\\n' }}{% endif %}"
        "{{ '<|im_start|>' + after + message['role'] + '\\n' + gap + message['content'] }}"
        "{{ eos_token if message['role'] == 'assistant' else '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ after + '\\n<|im_start|>' + after + 'assistant\\n' }}{% endif %}"
    ),
    Template.llama2: (
        "{% set ns = namespace(open=false) %}{% for message in messages %}"
        "{% set before = gap if ns.open else (start if loop.first else after) %}"
        "{% if message['role'] == 'assistant' %}{{ before + ('[/INST]' + gap if ns.open else '') }}"
        "{{ message['content'] + eos_token }}{% set ns.open = false %}"
        "{% else %}{{ before + ('' if ns.open else '[INST]' + gap) }}{% set ns.open = true %}"
        "{% if message['role'] == 'system' %}"
        "{{ '<<SYS>>\\n' + gap + message['content'] + gap + '\\n<</SYS>>\\n\\n' }}"
        "{% else %}{{ message['content'] }}{% endif %}{% endif %}{% endfor %}"
        "{% if add_generation_prompt and ns.open %}{{ gap + '[/INST]' }}{% endif %}"
    ),
}
MARKS: dict[Template, tuple[str, ...]] = {Template.chatml: (), Template.llama2: LLAMA2_MARKS}


class Lengths(NamedTuple):
    """The tokens of one row.

    Attributes:
        prompt: before the first trained one.
        reply: all that follows: the chosen reply of a comparison; of a demonstration the rest of the conversation,
            later questions included.
        other: the rejected reply of a comparison; 0 for a demonstration.
    """

    prompt: int
    reply: int
    other: int


class Text:
    """A model's tokenizer, for text that is data.

    Args:
        tokenizer: the model's own.
        marks: the template's textual marks, which data must not be able to write.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", marks: tuple[str, ...] = ()) -> None:
        self.tokenizer = tokenizer
        self._vocabulary: dict[str, int] = tokenizer.get_vocab()
        # Some models have runs of spaces among their added tokens: these control nothing.
        added = {token_id for token, token_id in tokenizer.get_added_vocab().items() if token.strip()}
        self._control = {*added, *tokenizer.all_special_ids}
        self._marks = re.compile("|".join(map(re.escape, marks)) or "(?!)")
        first = tokenizer("a").input_ids[0]
        self.bos: list[int] = [first] if first == tokenizer.bos_token_id else []

    def text(self, text: str) -> list[int]:
        """Return the tokens of text from data: no BOS, no EOS, and no control token whatever the text holds."""
        return self.texts([text])[0]

    def texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Return what `text` returns, for many texts at once, which is several times faster."""
        found = self._ids(list(texts)) if texts else []
        return [
            ids if self._harmless(ids, text) else self._without_control(text)
            for ids, text in zip(found, texts, strict=True)
        ]

    def raw(self, text: str) -> list[int]:
        """Return the tokens of text that is scored without a template, after a BOS if the tokenizer uses one."""
        return self.bos + self.text(text)

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return list(self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True).input_ids)

    def _harmless(self, ids: list[int], text: str) -> bool:
        return self._control.isdisjoint(ids) and not self._marks.search(text)

    @cached_property
    def _plain(self) -> Any:
        """The same tokenizer without its added tokens, so that no text can produce one."""
        from tokenizers import Tokenizer

        state = json.loads(self.tokenizer.backend_tokenizer.to_str())
        return Tokenizer.from_str(json.dumps({**state, "added_tokens": [], "truncation": None, "padding": None}))

    def _without_control(self, text: str) -> list[int]:
        encoding = self._plain.encode(text, add_special_tokens=False)
        marks = [match.span() for match in self._marks.finditer(text)]
        ids: list[int] = []
        for token_id, token, (start, end) in zip(encoding.ids, encoding.tokens, encoding.offsets, strict=True):
            marked = any(start < mark_end and mark_start < end for mark_start, mark_end in marks)
            # The unknown token stands for a character that the vocabulary lacks, unless the text says its name.
            if token_id == self.tokenizer.unk_token_id and text[start:end].strip() != self.tokenizer.unk_token:
                ids.append(self._unknown(text[start:end]))
            elif token_id in self._control or (marked and not BYTE.fullmatch(token)):
                ids += [spelled for character in token for spelled in self._character(character)]
            else:
                ids.append(token_id)
        return ids

    def _character(self, character: str) -> list[int]:
        """Return the token of a character, else those of its bytes, else the unknown token."""
        own = self._vocabulary.get(character)
        if own is not None and own not in self._control:
            return [own]
        names = [f"<0x{byte:02X}>" for byte in character.encode()]
        if all(name in self._vocabulary for name in names):
            return [self._vocabulary[name] for name in names]
        return [self._unknown(character)]

    def _unknown(self, text: str) -> int:
        """Return the unknown token.

        Some models have none, or use one that also begins a text or ends a reply; these are refused.
        """
        unknown = self.tokenizer.unk_token_id
        if unknown in (None, self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            raise Refused(
                f"the model's tokenizer has no token for {text!r}; choose a model whose tokenizer knows bytes"
            )
        return int(unknown)


class Chat(Text):
    """A tokenizer and a template: everything that turns conversations into the tokens of a model.

    Args:
        tokenizer: the model's own, with its EOS.
        template: how turns are marked.

    Raises:
        Refused: the tokenizer has no EOS, lacks a control token that the template needs, or has no tokens for a
            textual mark that differ from its characters.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", template: Template) -> None:
        if tokenizer.eos_token is None:
            raise Refused("the model's tokenizer has no EOS token; choose a model whose tokenizer has one")
        needed = {"<|im_start|>", "<|im_end|>"} if template is Template.chatml else set()
        if missing := needed - set(tokenizer.get_added_vocab()):
            raise Refused(
                f"the template chatml needs the control tokens {', '.join(sorted(missing))}, which this model's "
                "tokenizer lacks; set `template: llama2` in params.yaml, which needs none"
            )
        super().__init__(tokenizer, MARKS[template])
        self.template = template
        self._frames: dict[str, list[int]] = {}
        if same := [mark for mark in MARKS[template] if self.text(mark) == self._ids([mark])[0]]:
            raise Refused(
                f"this model's tokenizer spells {', '.join(same)} in single characters, so that any text could write "
                f"the marks of the template {template}; set `template: chatml` in params.yaml, or choose another model"
            )

    def published(self) -> "PreTrainedTokenizerBase":
        """Return the tokenizer as saved with a model: its `apply_chat_template` gives the tokens of this class.

        That holds for harmless text: a plain tokenizer also takes control tokens and marks in data for its own.
        Byte-level tokenizers also join punctuation to the marks of `llama2`; SentencePiece's do not.
        """
        tokenizer = copy.deepcopy(self.tokenizer)
        one, eos = self._ids(["a"])[0], str(tokenizer.eos_token)
        gap = " " if self._ids(["a a"])[0] == one * 2 else ""
        bare = tokenizer(f"{eos}a", add_special_tokens=False).input_ids == [tokenizer.eos_token_id, *one]
        after = "" if bare else gap
        known = {"gap": gap, "after": after, "start": after if self.bos else ""}
        says = "".join(f"{{% set {name} = '{space}' %}}" for name, space in known.items())
        tokenizer.chat_template = says + ("{{ bos_token }}" if self.bos else "") + JINJA[self.template]
        return tokenizer

    def prompt(self, messages: list[Message]) -> list[int]:
        """Tokenise a conversation up to where the assistant's next reply begins."""
        return self._encode(messages, reply_follows=True)[0]

    def demonstration(self, messages: list[Message]) -> dict[str, list[int]]:
        """Tokenise a conversation to train on.

        Returns:
            `input_ids` and `labels`, of equal length; a label is its token where it is trained (an assistant's turn
            and its EOS, unless the turn says otherwise) and `IGNORED` elsewhere.
        """
        ids, trained = self._encode(messages, reply_follows=False)
        return {"input_ids": ids, "labels": [i if t else IGNORED for i, t in zip(ids, trained, strict=True)]}

    def comparison(self, comparison: Comparison) -> dict[str, list[int]]:
        """Tokenise a comparison for TRL's DPO: `prompt_ids`, `chosen_ids`, `rejected_ids`."""
        reply = {side: self.text(comparison[side][0]["content"]) for side in ("chosen", "rejected")}  # type: ignore[literal-required]
        eos = [self._vocabulary[str(self.tokenizer.eos_token)]]
        return {
            "prompt_ids": self.prompt(comparison["prompt"]),
            "chosen_ids": reply["chosen"] + eos,
            "rejected_ids": reply["rejected"] + eos,
        }

    def lengths(self, example: Any) -> Lengths:
        """Count the tokens of an example."""
        if "messages" in example:
            labels = self.demonstration(example["messages"])["labels"]
            prompt = next(i for i, label in enumerate(labels) if label != IGNORED)
            return Lengths(prompt, len(labels) - prompt, 0)
        return Lengths(*map(len, self.comparison(example).values()))  # type: ignore[arg-type]

    def _encode(self, messages: list[Message], reply_follows: bool) -> tuple[list[int], list[bool]]:
        ids, trained = list(self.bos), [False] * len(self.bos)
        for piece in RENDER[self.template](messages, str(self.tokenizer.eos_token), reply_follows):
            if piece.kind == "control":
                part = [self._vocabulary[piece.text]]
            else:
                part = self.text(piece.text) if piece.kind == "data" else self._frame(piece.text)
            ids += part
            trained += [piece.trained] * len(part)
        return ids, trained

    def _frame(self, text: str) -> list[int]:
        """Tokenise the template's own text, and keep the result: few strings recur in every row."""
        if text not in self._frames:
            self._frames[text] = self._ids([text])[0]
        return self._frames[text]
