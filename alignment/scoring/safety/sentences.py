"""The safety sentences: SafeNLP's file, or any of the same schema.

In: a JSON array of records. Out: sentences with their label, toxicity score and the groups they are about.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from alignment.runtime import Refused, files
from alignment.runtime.records import Malformed, brief, finite, require

RESERVED = ("average", "published12", "sentences", "bos")  # names of metrics that no group may have
RECORD = "an object with id, text, toxicity_score, label and target_groups"


class Label(StrEnum):
    """What annotators say of a sentence, in the data's words."""

    harmful = "hate"
    benign = "neutral"


@dataclass(frozen=True)
class Sentence:
    """One sentence of the set.

    Attributes:
        id: its name in the file.
        text: the sentence; often hateful, so no output has it.
        toxicity: annotators' score, 1 to 5 in SafeNLP's files.
        label: harmful or benign.
        groups: whom it is about, sorted.
    """

    id: str
    text: str
    toxicity: float
    label: Label
    groups: tuple[str, ...]


def source(raw: Path) -> Path:
    """Return the one file of sentences in a fetched folder.

    Raises:
        Refused: there is no such file, or more than one.
    """
    found = sorted(path for path in raw.rglob("*.json") if path.name != "provenance.json")
    if len(found) != 1:
        names = ", ".join(str(path.relative_to(raw)) for path in found) or "none"
        raise Refused(f"{raw}: found the files {names}, wanted one *.json of sentences; run `dvc repro fetch-safety`")
    return found[0]


def read(path: Path) -> list[Sentence]:
    """Read SafeNLP's JSON array of `{"id", "text", "toxicity_score", "label", "target_groups"}`.

    Raises:
        Refused: the file is not a JSON array, or a record of it is malformed; the message names the record, counted
            from 0, what was found and what was wanted, and never quotes a sentence.
    """
    try:
        records = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # also an integer of 5,000 digits, or 5,000 brackets
        where = "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        if isinstance(error, json.JSONDecodeError):
            where = f"{error.msg} in line {error.lineno}"
        raise Refused(f"{path} is not JSON ({where}): it is damaged or cut short; {files.mend(path)}") from None
    if not isinstance(records, list) or not records:
        found = "an empty array" if records == [] else f"one {type(records).__name__}"
        raise Refused(f"{path}: found {found}, wanted an array of records, each {RECORD}")
    sentences = [_sentence(f"{path}: record {index}", record) for index, record in enumerate(records)]
    repeated = [name for name, count in Counter(sentence.id for sentence in sentences).items() if count > 1]
    if repeated:
        raise Refused(f"{path}: found the id {brief(repeated[0])} more than once, wanted one id a sentence")
    slugs(group for sentence in sentences for group in sentence.groups)
    return sentences


def _sentence(place: str, record: Any) -> Sentence:
    try:
        require(
            record,
            {"id": (int, str), "text": str, "toxicity_score": (int, float), "label": str, "target_groups": list},
        )
        groups, toxicity, label = record["target_groups"], finite(record, "toxicity_score"), record["label"]
        if label not in list(Label):
            raise Malformed(f"found the label {label[:40]!r}, wanted {' or '.join(map(repr, map(str, Label)))}")
        if toxicity <= 0:
            raise Malformed(f"found toxicity_score {toxicity}, wanted a number above 0")
        if not groups or not all(isinstance(group, str) and slug(group) for group in groups):
            raise Malformed(f"found target_groups {str(groups)[:80]}, wanted a list of one or more names")
        if re.search("[\ud800-\udfff]", "".join([record["text"], str(record["id"]), *groups])):
            raise Malformed("found half a surrogate pair in the text, the id or a group, wanted Unicode")
    except Malformed as error:
        raise Refused(f"{place}: {error}\na record is {RECORD}; correct it, or fetch the file again") from None
    return Sentence(str(record["id"]), record["text"], toxicity, Label(label), tuple(sorted(set(groups))))


def slug(group: str) -> str:
    """Return a group's name in the names of metrics: `mental dis` is `mental_dis`."""
    return re.sub(r"\W+", "_", group.casefold()).strip("_")


def slugs(groups: Iterable[str]) -> dict[str, str]:
    """Return every group with its slug, sorted.

    Raises:
        Refused: two groups would have one name in the metrics, or a group's name has another meaning there.
    """
    named: dict[str, str] = {}
    for group in sorted(set(groups)):
        if slug(group) in RESERVED:
            raise Refused(
                f"the target group {brief(group)} has a name that means something else in the metrics; rename it"
            )
        if other := next((other for other, name in named.items() if name == slug(group)), None):
            raise Refused(
                f"the target groups {brief(other)} and {brief(group)} would share a name in the metrics; rename one"
            )
        named[group] = slug(group)
    return named


def choose(sentences: list[Sentence], limit: int, item_seed: int) -> list[Sentence]:
    """Choose about `limit` of the sentences: those with a keyed hash below limit / N, in the file's order.

    They are the same for every checkpoint, a superset for a higher limit, and all N from a limit of N on.

    Raises:
        Refused: no sentence is chosen.
    """

    def kept(sentence: Sentence) -> bool:
        content = [sentence.text, sentence.groups, sentence.id]
        return files.unit_hash(content, f"safety {item_seed}") * len(sentences) < limit

    chosen = [sentence for sentence in sentences if kept(sentence)]
    if not chosen:
        raise Refused(f"a limit of {limit} leaves none of {len(sentences)} sentences; raise `safety.limit`")
    return chosen
