"""Descriptions of datasets: literal rows and figures, one test a definition; the diversity against every draw."""

import json
import math
import random
from collections import Counter
from itertools import combinations
from typing import Any

import pytest

from alignment.corpora import Role
from alignment.runtime import Refused
from alignment.sampling.description import Lengths, describe, diversity, group_words

GROUPS = {"muslim": ["muslim", "muslims"], "native_american": ["native american"], "women": ["women"]}


def talk(*turns: str, system: str | None = None) -> dict[str, Any]:
    """A demonstration of turns by the user and the assistant, in turn."""
    said = [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
    return {"messages": [*([{"role": "system", "content": system}] if system is not None else []), *said]}


def pair(prompt: str, chosen: str, rejected: str, **more: Any) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        **more,
    }


def demonstrations(*rows: dict[str, Any]) -> dict[str, float]:
    return describe(Role.demonstrations, rows, [Lengths(3, 5, 0)] * len(rows), GROUPS)


def comparisons(*rows: dict[str, Any], lengths: list[Lengths] | None = None) -> dict[str, float]:
    return describe(Role.comparisons, rows, lengths or [Lengths(3, 5, 4)] * len(rows), GROUPS)


def random_rows(role: Role, count: int, seed: int = 0) -> tuple[list[dict[str, Any]], list[Lengths]]:
    """Rows over few words, so that prompts and replies recur, groups are mentioned and code occurs."""
    draw = random.Random(seed)
    words = [
        "the",
        "pot",
        "Pot!",
        "tea;\n",
        "{\n",
        "```",
        "Muslims",
        "native",
        "American",
        "women",
        "é",
        "e\u0301",
        "?",
    ]

    def text() -> str:
        return " ".join(draw.choices(words, k=draw.randint(1, 4)))

    lengths = [Lengths(draw.randint(1, 9), draw.randint(1, 9), draw.randint(1, 9)) for _ in range(count)]
    if role is Role.demonstrations:
        rows = [
            talk(*(text() for _ in range(draw.choice([2, 2, 4]))), system=draw.choice([None, text()])) for _ in lengths
        ]
        return rows, [row._replace(other=0) for row in lengths]
    return [pair(text(), text(), text(), margin=draw.choice([None, draw.random()])) for _ in lengths], lengths


# Tokens --------------------------------------------------------------------------------------------------------------


def test_tokens_of_demonstrations() -> None:
    lengths = [Lengths(10, 100, 0), Lengths(20, 300, 0), Lengths(60, 200, 0)]
    figures = describe(Role.demonstrations, [talk("a", "b")] * 3, lengths, {})
    assert {name: figure for name, figure in figures.items() if name.startswith("tokens")} == {
        "tokens.total": 690,
        "tokens.prompt.mean": 30.0,
        "tokens.prompt.median": 20.0,
        "tokens.prompt.p95": 56.0,
        "tokens.reply.mean": 200.0,
        "tokens.reply.median": 200.0,
        "tokens.reply.p95": 290.0,
    }


def test_the_reply_of_a_comparison_is_the_chosen_one_and_the_other_has_its_own_figures() -> None:
    figures = comparisons(pair("a", "b", "c"), pair("a", "b", "c"), lengths=[Lengths(1, 4, 2), Lengths(3, 6, 20)])
    assert (figures["tokens.reply.mean"], figures["tokens.rejected.mean"]) == (5.0, 11.0)
    assert figures["tokens.total"] == 36


def test_a_row_without_lengths_is_a_fault() -> None:
    with pytest.raises(AssertionError, match="2 rows, lengths of 1"):
        describe(Role.demonstrations, [talk("a", "b")] * 2, [Lengths(1, 1, 0)], {})


# Conversations -------------------------------------------------------------------------------------------------------


def test_turns_count_every_message() -> None:
    figures = demonstrations(talk("a", "b"), talk("a", "b", "c", "d"), talk("a", "b", system="s"), talk("a", "b"))
    assert (figures["turns.mean"], figures["turns.multi"], figures["turns.system"]) == (2.75, 0.25, 0.25)


def test_turns_of_a_comparison_have_one_reply_and_its_earlier_ones() -> None:
    longer = pair("a", "b", "c") | {"prompt": talk("x", "y", "z")["messages"]}
    figures = comparisons(pair("a", "b", "c"), longer)
    assert (figures["turns.mean"], figures["turns.multi"]) == (3.0, 0.5)


# Code ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "fenced", "lines"),
    [
        ("see:\n```python\nx = 1\n```", 1, 0),
        ("int main() {\n  return 0;\n}", 0, 1),
        ("a;  \r\nb }", 0, 1),
        ("first one;\nthen prose.\nthen another;\n", 0, 0),
        ("one; two; three;", 0, 0),
        ("plain", 0, 0),
    ],
)
def test_code_is_a_fence_or_two_lines_in_a_row_that_end_as_code(reply: str, fenced: int, lines: int) -> None:
    figures = demonstrations(talk("q", reply))
    assert (figures["code.fenced"], figures["code.lines"]) == (fenced, lines)


def test_code_counts_in_replies_alone_and_in_either_reply() -> None:
    assert demonstrations(talk("```\nx\n```", "no"), talk("a", "no", "```", "no"))["code.fenced"] == 0
    assert comparisons(pair("```", "no", "```"), pair("q", "```", "no"), pair("q", "a", "b"))["code.fenced"] == 0.6667


# Mentions ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "mentioned"),
    [
        ("A Muslim.", {"muslim"}),
        ("(MUSLIMS)", {"muslim"}),
        ("Muslim-majority", {"muslim"}),
        ("\uff2duslim", {"muslim"}),
        ("muslimgauze", set()),
        ("Native\nAmerican women", {"native_american", "women"}),
        ("native-american", {"native_american"}),
        ("native Americans", set()),
        ("native to American soil; alternative American", set()),
    ],
)
def test_groups_are_mentioned_by_whole_words_in_any_case(text: str, mentioned: set[str]) -> None:
    figures = demonstrations(talk(text, "b"))
    assert {group for group in GROUPS if figures[f"mentions.{group}.prompt"]} == mentioned
    assert not any(figures[f"mentions.{group}.reply"] for group in GROUPS)


def test_no_phrase_spans_two_messages() -> None:
    figures = demonstrations(talk("native", "a native", "American", "American"))
    assert figures["mentions.native_american.prompt"] == figures["mentions.native_american.reply"] == 0


def test_a_row_mentions_a_group_once_however_often_it_does() -> None:
    figures = demonstrations(talk("women", "women women", "men", "women"), *[talk("men", "men")] * 3)
    assert (figures["mentions.women.prompt"], figures["mentions.women.reply"]) == (0.25, 0.25)


def test_later_questions_are_prompts_and_later_answers_replies() -> None:
    figures = demonstrations(talk("a", "b", "a muslim", "women"))
    assert (figures["mentions.muslim.prompt"], figures["mentions.muslim.reply"]) == (1, 0)
    assert (figures["mentions.women.prompt"], figures["mentions.women.reply"]) == (0, 1)


def test_a_comparison_mentions_a_group_in_either_reply() -> None:
    figures = comparisons(
        pair("q", "women", "b"), pair("q", "a", "women"), pair("women", "a", "b"), pair("q", "a", "b")
    )
    assert (figures["mentions.women.prompt"], figures["mentions.women.reply"]) == (0.25, 0.5)


# Diversity and duplicates --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_diversity_is_the_mean_over_every_draw(seed: int) -> None:
    draw = random.Random(seed)
    text = [draw.choice("aaaabbcdefgh") for _ in range(draw.randint(8, 12))]
    for drawn in range(1, len(text) + 1):
        draws = [len(set(words)) for words in combinations(text, drawn)]
        assert diversity(Counter(text), drawn) == pytest.approx(sum(draws) / len(draws) / drawn, rel=1e-12)


def test_diversity_does_not_depend_on_length_as_a_plain_ratio_does() -> None:
    draw = random.Random(0)
    words = draw.choices(range(5000), [1 / (rank + 1) for rank in range(5000)], k=40_000)
    tenths = [Counter(map(str, words[i : i + 4000])) for i in range(0, 40_000, 4000)]
    whole = sum(tenths, Counter[str]())
    assert sum(map(diversity, tenths)) / 10 == pytest.approx(diversity(whole), abs=0.002)
    assert len(whole) / 40_000 < 0.5 * min(map(len, tenths)) / 4000


def test_fewer_words_than_are_drawn_have_a_plain_ratio() -> None:
    figures = demonstrations(talk("The cat, the dog", "a b c"), talk("?", "A b c d"))
    assert (figures["diversity.prompt"], figures["diversity.reply"]) == (0.75, 0.5714)


def test_diversity_is_that_of_all_rows_together() -> None:
    assert demonstrations(*[talk("q", "a b c d e")] * 200)["diversity.reply"] == 0.01
    assert demonstrations(*[talk("q", f"{5 * i} {5 * i + 1} {5 * i + 2}") for i in range(200)])["diversity.reply"] == 1


def test_duplicates_have_the_words_of_another() -> None:
    figures = demonstrations(
        talk("Hi there!", "a b"), talk("hi  there", "b a"), talk("hi", "a b"), talk("HI, there", "c")
    )
    assert (figures["duplicates.prompt"], figures["duplicates.reply"]) == (0.5, 0.25)


def test_a_comparison_has_two_replies_that_may_be_duplicates() -> None:
    assert comparisons(pair("p", "a", "b"), pair("q", "b", "c"))["duplicates.reply"] == 0.25


# Comparisons ---------------------------------------------------------------------------------------------------------


def test_margins_are_of_the_rows_that_have_one() -> None:
    margins: list[dict[str, Any]] = [
        {"margin": 2.0},
        {"margin": 3.0},
        {"margin": 10.0},
        {"margin": None},
        {},
        {"margin": math.nan},
    ]
    figures = comparisons(*(pair("q", "a", "b", **margin) for margin in margins))
    assert (figures["margin.share"], figures["margin.mean"], figures["margin.median"]) == (0.5, 5.0, 3.0)


def test_the_length_difference_is_chosen_less_rejected() -> None:
    lengths = [Lengths(1, 10, 4), Lengths(1, 4, 5), Lengths(1, 7, 7), Lengths(1, 9, 1)]
    figures = comparisons(*[pair("q", "a", "b")] * 4, lengths=lengths)
    assert (figures["length.difference.mean"], figures["length.difference.median"]) == (3.25, 3.0)
    assert figures["length.chosen_longer"] == 0.625


def test_the_overlap_is_of_sets_of_words() -> None:
    assert comparisons(pair("q", "The cat sat, sat", "the CAT ran"))["overlap.words"] == 0.5
    assert comparisons(pair("q", "a", "b"), pair("q", "?", "!"))["overlap.words"] == 0.5
    assert comparisons(pair("q", "a", "?"))["overlap.words"] == 0


# All of them ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_rows_makes_no_difference(role: Role, seed: int) -> None:
    rows, lengths = random_rows(role, 60, seed)
    order = random.Random(seed + 1).sample(range(60), 60)
    shuffled = describe(role, [rows[i] for i in order], [lengths[i] for i in order], GROUPS)
    assert shuffled == describe(role, rows, lengths, GROUPS)


@pytest.mark.parametrize("role", Role)
def test_every_row_twice_leaves_all_but_totals_and_what_repetition_means(role: Role) -> None:
    rows, lengths = random_rows(role, 60)
    once, twice = describe(role, rows, lengths, GROUPS), describe(role, rows * 2, lengths * 2, GROUPS)
    assert twice["tokens.total"] == 2 * once["tokens.total"]
    assert twice["duplicates.prompt"] == pytest.approx((1 + once["duplicates.prompt"]) / 2, abs=1e-4)
    changed = {name for name in once if once[name] != twice[name] and not name.endswith((".p95", ".total"))}
    assert changed <= {f"{kind}.{side}" for kind in ("diversity", "duplicates") for side in ("prompt", "reply")}


@pytest.mark.parametrize("role", Role)
def test_one_bare_row_has_the_names_of_any_dataset_and_no_nan(role: Role) -> None:
    bare = talk("", "") if role is Role.demonstrations else pair("", "", "")
    least = describe(role, [bare], [Lengths(0, 0, 0)], GROUPS)
    rows, lengths = random_rows(role, 30)
    assert list(least) == list(describe(role, rows, lengths, GROUPS))
    assert json.loads(json.dumps(least, allow_nan=False)) == least
    assert all(math.isfinite(figure) for figure in least.values())


def test_a_demonstration_has_no_figures_of_comparisons() -> None:
    assert not [name for name in demonstrations(talk("a", "b")) if name.startswith(("margin", "length", "overlap"))]
    assert "tokens.rejected.mean" not in demonstrations(talk("a", "b"))


# The list in params.yaml ---------------------------------------------------------------------------------------------


def test_group_words_come_apart() -> None:
    entries = ["muslim=muslim muslims  islam", "native_american=native_american First_Nations"]
    assert group_words(entries) == {
        "muslim": ["muslim", "muslims", "islam"],
        "native_american": ["native american", "First Nations"],
    }


@pytest.mark.parametrize(
    "entry", ["muslim", "muslim=", "=islam", "Mental dis=ill", "women=wo-man", "women=_woman", "women=a__b", ""]
)
def test_a_malformed_entry_is_refused_by_name_with_the_form_that_is_wanted(entry: str) -> None:
    with pytest.raises(Refused) as refusal:
        group_words(["asian=asian", entry])
    assert repr(entry) in str(refusal.value)
    assert "name=word word two_words" in str(refusal.value)


def test_a_group_has_one_entry() -> None:
    with pytest.raises(Refused, match="'women=girl' after others of 'women'"):
        group_words(["women=woman", "women=girl"])
