"""What the training rows of a dataset are like, as metrics, so that `dvc metrics diff` compares datasets.

In: examples in TRL's format, their lengths in tokens, the words that mention each safety group. Out: flat figures. All
datasets of one role have the same names, and the order of the rows makes no difference to any figure.

The *prompt* is what is read and the *reply* is what is trained: of a demonstration the trained turns against all
others, of a comparison its two replies against its prompt. A *word* is a run of letters, digits and underscores, in
Unicode's compatibility form and without case. A *share* is of the rows, from 0 to 1. Where nothing defines a figure,
such as the mean margin of a set without margins, it is 0.
"""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from alignment.corpora import Message, Role, is_trained
from alignment.models.chat import Lengths
from alignment.runtime import Refused
from alignment.sampling.words import WORD, normal

FENCE = "```"
CODE_LINES = re.compile(
    r"[;{}][^\S\n]*\n[^\n]*[;{}][^\S\n]*(?:\n|\Z)"
)  # two lines in a row with the ends that code has
DRAWN = 500  # words, for the diversity: fewer than almost every dataset has, enough to tell them apart
DIGITS = 4
GROUP = re.compile(r"[a-z0-9_]+")  # as safety groups are named in metrics, so that the columns line up
FORM = "name=word word two_words, the name in lower case and the words of a phrase joined by _"


class Words(NamedTuple):
    """The words of some messages.

    Attributes:
        words: all of them, in order.
        text: the same with a space around each and a bar between messages, so that no phrase spans two.
    """

    words: list[str]
    text: str

    @classmethod
    def of(cls, messages: Iterable[Message]) -> "Words":
        """Split the messages into words."""
        said = [normal(message["content"]) for message in messages]
        return cls([word for words in said for word in words], f" {' | '.join(map(' '.join, said))} ")


@dataclass
class Texts:
    """Counts over the prompts, or over the replies, of a dataset; it keeps no text."""

    read: int = 0
    distinct: set[bytes] = field(default_factory=set)
    words: Counter[str] = field(default_factory=Counter)

    def add(self, side: Words) -> None:
        """Count one prompt or one reply."""
        self.read += 1
        self.distinct.add(hashlib.blake2b(side.text.encode(), digest_size=16).digest())
        self.words.update(side.words)

    def figures(self, name: str) -> dict[str, float]:
        """Return `diversity.<name>`, and `duplicates.<name>`: the share of texts whose words an earlier one has."""
        return {
            f"diversity.{name}": round(diversity(self.words), DIGITS),
            f"duplicates.{name}": round(1 - len(self.distinct) / self.read, DIGITS),
        }


def diversity(words: Counter[str], drawn: int = DRAWN) -> float:
    """Compute the expected type-token ratio of `drawn` words, drawn at random without replacement.

    A plain type-token ratio falls as a text grows. This one does not: it is Hurlbert's rarefaction (1971, The
    Nonconcept of Species Diversity, Ecology 52), which HD-D (McCarthy and Jarvis 2010, MTLD, vocd-D, and HD-D,
    Behavior Research Methods 42) applies to the words of a text, 42 at a time. Of N words, one that occurs f times is
    absent from n drawn ones with the chance C(N - f, n) / C(N, n), the product of 1 - f / (N - i) over i < n.

    Args:
        words: how often each word occurs, over the whole dataset.
        drawn: how many are drawn. A set of fewer words gives its plain ratio, not comparable between sets.

    Returns:
        Distinct words over words drawn, up to 1; 0 where there is no word.
    """
    times, kinds = np.unique(np.fromiter(words.values(), dtype=np.int64), return_counts=True)
    total = int(times @ kinds)
    drawn = min(drawn, total)
    absent = np.ones(len(times))
    for i in range(drawn):
        absent *= 1 - times / (total - i)  # exactly 0 once no other word is left, and 0 from then on
    return float(kinds @ (1 - absent)) / drawn if drawn else 0.0


class Mentions:
    """Finds the groups that a text speaks of, by whole words and whole phrases.

    Args:
        groups: for each group, the words and the phrases that mention it, in any case.
    """

    def __init__(self, groups: dict[str, list[str]]) -> None:
        self._starting: dict[str, list[tuple[str, str]]] = {}  # by first word: most texts hold none of them
        for group, phrases in groups.items():
            for phrase in phrases:
                side = Words.of([{"role": "", "content": phrase}])
                self._starting.setdefault(side.words[0], []).append((side.text, group))
        self._first = set(self._starting)

    def __call__(self, side: Words) -> set[str]:
        """Return the groups that `side` mentions."""
        candidates = [entry for word in self._first.intersection(side.words) for entry in self._starting[word]]
        return {group for phrase, group in candidates if phrase in side.text}


def group_words(entries: list[str]) -> dict[str, list[str]]:
    """Parse the words of each group from the list in params.yaml.

    Args:
        entries: such as `muslim=muslim muslims islam` or `lgbtq=gay same_sex`, where `_` joins the words of a phrase.

    Returns:
        For each group its words and its phrases, the words of a phrase apart by one space.

    Raises:
        Refused: an entry has another form, or a group has two.
    """
    groups: dict[str, list[str]] = {}
    for entry in entries:
        name, _, listed = entry.partition("=")
        phrases = listed.split()
        if not GROUP.fullmatch(name) or not phrases or not all(map(_is_phrase, phrases)):
            raise Refused(f"found the group words {entry!r}, wanted {FORM}; correct them in params.yaml")
        if name in groups:
            raise Refused(f"found the group words {entry!r} after others of {name!r}, wanted one entry a group: {FORM}")
        groups[name] = [phrase.replace("_", " ") for phrase in phrases]
    return groups


def _is_phrase(phrase: str) -> bool:
    return all(WORD.fullmatch(word) for word in phrase.split("_"))


def describe(
    role: Role, examples: Sequence[Any], lengths: Sequence[Lengths], groups: dict[str, list[str]]
) -> dict[str, float]:
    """Describe the training rows of a dataset.

    Tokens, for `prompt`, `reply` and, of comparisons, `rejected`; `reply` is the chosen one there:
    - `tokens.total`: of all rows; a comparison counts its prompt once and both replies.
    - `tokens.<side>.mean`, `.median`, `.p95`: of a row; the 95th percentile is interpolated.

    Conversations:
    - `turns.mean`: messages of a row, the system's included, with one reply of a comparison.
    - `turns.multi`: the share with more than one assistant's message; `turns.system`: with a system message.

    Words, for `prompt` and `reply`; the two replies of a comparison are two texts:
    - `diversity.<side>`: see `diversity`.
    - `duplicates.<side>`: the share of texts whose words, in order, an earlier text has.
    - `mentions.<group>.<side>`: the share of rows that mention the group there, in either reply of a comparison.

    Code, in a reply:
    - `code.fenced`: the share with a fence of three backticks.
    - `code.lines`: the share with two lines in a row that end in a semicolon or a brace, fenced or not.

    Of comparisons only:
    - `margin.share`: the share that has a (finite) margin; `margin.mean`, `margin.median`: of those.
    - `length.difference.mean`, `.median`: tokens of the chosen reply less those of the rejected one, a known confound
      of DPO (Park et al. 2024, Disentangling Length from Quality in Direct Preference Optimization).
    - `length.chosen_longer`: the share whose chosen reply has more tokens, a tie counting one half.
    - `overlap.words`: the mean Jaccard index of the two replies' sets of words; two without words are alike.

    Args:
        role: what the rows are for.
        examples: the training rows, at least one, all of this role.
        lengths: of every row.
        groups: for each safety group, the words and phrases that mention it.

    Returns:
        The figures by name; no NaN.
    """
    assert len(lengths) == len(examples), f"{len(examples)} rows, lengths of {len(lengths)}"
    figures = _tokens(role, lengths) | _said(role, examples, groups)
    return figures | _preferred(examples, lengths) if role is Role.comparisons else figures


def _tokens(role: Role, lengths: Sequence[Lengths]) -> dict[str, float]:
    rows = np.array(lengths, dtype=np.int64)
    sides = ("prompt", "reply", "rejected") if role is Role.comparisons else ("prompt", "reply")
    figures: dict[str, float] = {"tokens.total": int(rows.sum())}
    for side, tokens in zip(sides, rows.T, strict=False):  # a demonstration has no rejected reply
        figures[f"tokens.{side}.mean"] = round(float(tokens.mean()), 1)
        figures[f"tokens.{side}.median"] = float(np.median(tokens))
        figures[f"tokens.{side}.p95"] = round(float(np.quantile(tokens, 0.95)), 1)
    return figures


def _said(role: Role, examples: Sequence[Any], groups: dict[str, list[str]]) -> dict[str, float]:
    """Compute the figures of turns, words and code, in one pass that splits every text once."""
    mentions, prompts, replies = Mentions(groups), Texts(), Texts()
    messages, rows_with = 0, Counter[str]()
    overlaps: list[float] = []
    for example in examples:
        conversation = example["messages"] if "messages" in example else [*example["prompt"], *example["chosen"]]
        messages += len(conversation)
        read, trained = _sides(example)
        prompt, answers = Words.of(read), [Words.of(reply) for reply in trained]
        prompts.add(prompt)
        for answer in answers:
            replies.add(answer)
        rows_with.update(_turns(conversation) | _code(trained))
        rows_with.update(f"mentions.{group}.prompt" for group in mentions(prompt))
        rows_with.update(f"mentions.{group}.reply" for group in set[str]().union(*map(mentions, answers)))
        if role is Role.comparisons:
            overlaps.append(_overlap(*answers))
    shares = ["turns.multi", "turns.system", "code.fenced", "code.lines"]
    shares += [f"mentions.{group}.{side}" for group in groups for side in ("prompt", "reply")]
    return {
        "turns.mean": round(messages / len(examples), DIGITS),
        **{name: round(rows_with[name] / len(examples), DIGITS) for name in shares},
        **prompts.figures("prompt"),
        **replies.figures("reply"),
        **({"overlap.words": round(_mean(overlaps), DIGITS)} if role is Role.comparisons else {}),
    }


def _sides(example: Any) -> tuple[list[Message], list[list[Message]]]:
    """Return the messages that are read, and those of each reply that is trained."""
    if "messages" not in example:
        return example["prompt"], [example["chosen"], example["rejected"]]
    read = [message for message in example["messages"] if not is_trained(message)]
    return read, [list(filter(is_trained, example["messages"]))]


def _turns(conversation: Iterable[Message]) -> set[str]:
    roles = Counter(message["role"] for message in conversation)
    return {name for name, true in (("turns.multi", roles["assistant"] > 1), ("turns.system", roles["system"])) if true}


def _code(answers: Iterable[Iterable[Message]]) -> set[str]:
    texts = [message["content"] for answer in answers for message in answer]
    found = {"code.fenced": any(FENCE in text for text in texts), "code.lines": any(map(CODE_LINES.search, texts))}
    return {name for name, true in found.items() if true}


def _overlap(chosen: Words, rejected: Words) -> float:
    mine, other = set(chosen.words), set(rejected.words)
    return len(mine & other) / len(mine | other) if mine or other else 1.0


def _preferred(examples: Sequence[Any], lengths: Sequence[Lengths]) -> dict[str, float]:
    """Compute by how much the chosen replies are preferred, and by how much they are longer."""
    margins = [m for m in (example.get("margin") for example in examples) if m is not None and math.isfinite(m)]
    differences = [row.reply - row.other for row in lengths]
    longer = sum((difference > 0) + (difference >= 0) for difference in differences) / 2
    figures = {
        "margin.share": len(margins) / len(examples),
        "margin.mean": _mean(margins),
        "margin.median": median(margins) if margins else 0.0,
        "length.difference.mean": _mean(differences),
        "length.difference.median": float(median(differences)),
        "length.chosen_longer": longer / len(examples),
    }
    return {name: round(figure, DIGITS) for name, figure in figures.items()}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0  # fsum: the same in any order of rows
