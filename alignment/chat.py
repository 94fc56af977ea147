"""The chat templates, and the one function that turns text into tokens.

In: messages, or plain text. Out: token ids, with a mark on those that are trained.

Text from data never becomes a control token: where it holds one, it is tokenised as if the tokenizer had none. What
touches a template's textual mark, such as `[INST]`, is spelled out in single characters, which decode to the same
text and are not the tokens of the template's own mark. The template adds no system prompt of its own. One BOS where the
model's tokenizer uses one, none elsewhere; every assistant turn ends with EOS and nothing follows the last.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from alignment.command import Refused
from alignment.corpora import Comparison, Message

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


LLAMA2_MARKS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")


def _chatml(messages: list[Message], eos: str, reply_follows: bool) -> Iterator[Piece]:
    for index, message in enumerate(messages):
        if index:
            yield Piece("frame", "\n")
        yield Piece("control", "<|im_start|>")
        yield Piece("frame", f"{message['role']}\n")
        reply = message["role"] == "assistant"
        yield Piece("data", message["content"], trained=reply)
        yield Piece("control", eos if reply else "<|im_end|>", trained=reply)
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
            yield Piece("data", message["content"], trained=True)
            yield Piece("control", eos, trained=True)
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
MARKS: dict[Template, tuple[str, ...]] = {Template.chatml: (), Template.llama2: LLAMA2_MARKS}


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
        """The tokens of text from data: no BOS, no EOS, no control token whatever it says."""
        ids = self._ids(text)
        if self._control.isdisjoint(ids) and not self._marks.search(text):
            return ids
        return self._without_control(text)

    def raw(self, text: str) -> list[int]:
        """Text scored as it stands, without a template: BOS where the tokenizer uses one, then its tokens."""
        return self.bos + self.text(text)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)

    @cached_property
    def _plain(self) -> Any:
        """The same tokenizer without its added tokens, so that no text can name one."""
        from tokenizers import Tokenizer

        state = json.loads(self.tokenizer.backend_tokenizer.to_str())
        return Tokenizer.from_str(json.dumps({**state, "added_tokens": [], "truncation": None, "padding": None}))

    def _without_control(self, text: str) -> list[int]:
        encoding = self._plain.encode(text, add_special_tokens=False)
        marks = [match.span() for match in self._marks.finditer(text)]
        # Here the unknown token stands for a character that the vocabulary lacks, not for its name in the text.
        control = self._control - {self.tokenizer.unk_token_id}
        ids: list[int] = []
        for token_id, token, (start, end) in zip(encoding.ids, encoding.tokens, encoding.offsets, strict=True):
            marked = any(start < mark_end and mark_start < end for mark_start, mark_end in marks)
            spelled = marked or token_id in control
            ids += [self._vocabulary[character] for character in token] if spelled else [token_id]
        return ids


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
        if same := [mark for mark in MARKS[template] if self.text(mark) == self._ids(mark)]:
            raise Refused(
                f"this model's tokenizer spells {', '.join(same)} in single characters, so that any text could write "
                f"the marks of the template {template}; set `template: chatml` in params.yaml, or choose another model"
            )

    def prompt(self, messages: list[Message]) -> list[int]:
        """A conversation up to where the assistant's next reply begins."""
        return self._encode(messages, reply_follows=True)[0]

    def demonstration(self, messages: list[Message]) -> dict[str, list[int]]:
        """A conversation to train on.

        Returns:
            `input_ids` and `labels`, of equal length; a label is its token where it is trained (every assistant
            turn and its EOS) and `IGNORED` elsewhere.
        """
        ids, trained = self._encode(messages, reply_follows=False)
        return {"input_ids": ids, "labels": [i if t else IGNORED for i, t in zip(ids, trained, strict=True)]}

    def comparison(self, comparison: Comparison) -> dict[str, list[int]]:
        """Two replies to one prompt, as TRL's DPO takes them: `prompt_ids`, `chosen_ids`, `rejected_ids`."""
        reply = {side: self.text(comparison[side][0]["content"]) for side in ("chosen", "rejected")}  # type: ignore[literal-required]
        eos = [self._vocabulary[str(self.tokenizer.eos_token)]]
        return {
            "prompt_ids": self.prompt(comparison["prompt"]),
            "chosen_ids": reply["chosen"] + eos,
            "rejected_ids": reply["rejected"] + eos,
        }

    def lengths(self, example: Any) -> tuple[int, int]:
        """Tokens before the first trained one, and tokens of the row (with the longer reply of a comparison)."""
        if "messages" in example:
            labels = self.demonstration(example["messages"])["labels"]
            return next(i for i, label in enumerate(labels) if label != IGNORED), len(labels)
        ids = self.comparison(example)
        prompt = len(ids["prompt_ids"])
        return prompt, prompt + max(len(ids["chosen_ids"]), len(ids["rejected_ids"]))

    def _encode(self, messages: list[Message], reply_follows: bool) -> tuple[list[int], list[bool]]:
        ids, trained = list(self.bos), [False] * len(self.bos)
        for piece in RENDER[self.template](messages, str(self.tokenizer.eos_token), reply_follows):
            if piece.kind == "control":
                part = [self._vocabulary[piece.text]]
            else:
                part = self.text(piece.text) if piece.kind == "data" else self._ids(piece.text)
            ids += part
            trained += [piece.trained] * len(part)
        return ids, trained
