"""SHP (Ethayarajh et al. 2022): pairs of Reddit comments, ranked by their scores.

A row: `{"post_id": "qt3nxl", "domain": "askculinary_train", "history": "How do I …?", "human_ref_A": "Try …",
"human_ref_B": "Why …", "score_A": 340, "score_B": 166, "labels": 1, "score_ratio": 2.05, …}`; `labels` 1 says that A is
preferred. A sample keeps the shares of the subreddits, `domain`.
Policy: comparisons need a score ratio of at least 2, at most 5 of a post are kept; demonstrations are each post's best
reply, once. Refused: ties, removed or empty texts, a label that its scores contradict. The margin is the score ratio.
"""

from typing import Any

from alignment.corpora import Cause, Comparison, Demonstration, Group, Refusal, Repository
from alignment.runtime.records import Malformed, brief, finite, require

SOURCE = Repository(
    "stanfordnlp/SHP",
    "e94b5f32602712d78ed494fe79105b1959396686",
    ("*/train.json", "*/validation.json", "*/test.json"),
    licence="Reddit's API terms of use",
    terms="SHP's text remains its Reddit users' content; read the card before using it for more than research",
)
HELDOUT = ("*/validation.json", "*/test.json")
MIN_RATIO = 2.0
GONE = {"[removed]", "[deleted]"}


def best(row: dict[str, Any]) -> tuple[int, str]:
    """By what a post's rows are ranked: the score of the row's better reply, then its text for a strict order."""
    score, text = max((row["score_A"], row["human_ref_A"]), (row["score_B"], row["human_ref_B"]))
    return score, text


GROUP: Group | None = Group(column="post_id", cap=5, best=best, stratum="domain")


def demonstration(row: Any) -> Demonstration | Refusal:
    """The post and the row's better reply."""
    if refusal := _check(row):
        return refusal
    return {
        "messages": [
            {"role": "user", "content": row["history"]},
            {"role": "assistant", "content": best(row)[1]},
        ]
    }


def comparison(row: Any) -> Comparison | Refusal:
    """The post and its two replies, the one with the higher score first."""
    if refusal := _check(row):
        return refusal
    if row["score_A"] == row["score_B"]:
        return Refusal(Cause.tie)
    if (row["score_A"] > row["score_B"]) != (row["labels"] == 1):
        return Refusal(Cause.contradictory)
    if row["score_ratio"] < MIN_RATIO:
        return Refusal(Cause.low_margin)
    texts = (row["human_ref_A"], row["human_ref_B"])
    if texts[0] == texts[1]:
        return Refusal(Cause.equal_sides)
    chosen, rejected = texts if row["labels"] == 1 else texts[::-1]
    return {
        "prompt": [{"role": "user", "content": row["history"]}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "margin": finite(row, "score_ratio"),
    }


def _check(row: Any) -> Refusal | None:
    require(row, {"post_id": str, "history": str, "human_ref_A": str, "human_ref_B": str})
    require(row, {"score_A": int, "score_B": int, "labels": int, "domain": str})
    finite(row, "score_ratio")
    if not row["post_id"].strip() or not row["post_id"].isprintable():  # rows are grouped by it
        raise Malformed(f"found {brief(row['post_id'])} in 'post_id', wanted the name of a post")
    if row["labels"] not in (0, 1):
        raise Malformed(f"found {brief(row['labels'])} in 'labels', wanted 0 or 1")
    texts = [row[name].strip() for name in ("history", "human_ref_A", "human_ref_B")]
    if not all(texts):
        return Refusal(Cause.empty_turn)
    return Refusal(Cause.removed) if GONE & set(texts) else None
