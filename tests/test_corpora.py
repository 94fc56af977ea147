"""Parsers on literal rows, one for each trap; who can serve as what; counts on real and on embedded rows."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from alignment import corpora, records
from alignment.command import Refused
from alignment.corpora import Cause, Malformed, Refusal, Role

MINI = Path(__file__).parents[1] / "data/mini"


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def reply(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def parse(name: str, role: Role, row: Any) -> Any:
    parsed = getattr(corpora.load(name, role), role.value.removesuffix("s"))(row)
    return parsed.cause if isinstance(parsed, Refusal) else parsed


def demonstration(name: str, row: Any) -> Any:
    return parse(name, Role.demonstrations, row)


def comparison(name: str, row: Any) -> Any:
    return parse(name, Role.comparisons, row)


# HH


def hh(chosen: str, rejected: str) -> dict[str, str]:
    return {"chosen": chosen, "rejected": rejected}


def of(*turns: str) -> str:
    return "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {text}" for i, text in enumerate(turns))


HH_COMPARISONS = [
    pytest.param(
        hh(of("Hi", "Hello!", "Why?", "So."), of("Hi", "Hello!", "Why?", "No.")),
        {
            "prompt": [user("Hi"), reply("Hello!"), user("Why?")],
            "chosen": [reply("So.")],
            "rejected": [reply("No.")],
            "margin": None,
        },
        id="two turns shared",
    ),
    pytest.param(
        hh(of("Hi", "Yes, and more."), of("Hi", "Yes")),
        {"prompt": [user("Hi")], "chosen": [reply("Yes, and more.")], "rejected": [reply("Yes")], "margin": None},
        id="a reply that begins the other is kept",
    ),
    pytest.param(
        hh(
            of("He said\nHuman: no. Assistant: yes", "Human: is a word\n\n Assistant: too"),
            of("He said\nHuman: no. Assistant: yes", "B"),
        ),
        {
            "prompt": [user("He said\nHuman: no. Assistant: yes")],
            "chosen": [reply("Human: is a word\n\n Assistant: too")],
            "rejected": [reply("B")],
            "margin": None,
        },
        id="a speaker's name inside a text is text",
    ),
    pytest.param(hh(of("Hi", "A"), of("Hi", "A")), Cause.equal_sides, id="equal sides"),
    pytest.param(hh(of("Hi", "A"), of("Hi", "A ")), Cause.equal_sides, id="sides equal but for a space"),
    pytest.param(hh(of("Hi", "A"), of("Hi", "")), Cause.empty_turn, id="empty last turn"),
    pytest.param(
        hh(of("Hi", " \n", "So?", "A"), of("Hi", " \n", "So?", "B")), Cause.empty_turn, id="empty turn inside"
    ),
    pytest.param(hh(of("Hi", "A"), of("Hi there", "B")), Cause.prompt_differs, id="no shared prompt"),
    pytest.param(hh(of("Hi", "A"), of("Hi", "A", "So?", "B")), Cause.prompt_differs, id="another number of turns"),
    pytest.param(hh(of("Hi", "A"), of("Hi", "B", "So?")), Cause.no_reply, id="ends with the human"),
    pytest.param(hh(of("Hi", "A"), of("Hi", "B") + "\n\nAssistant: C"), Cause.turn_order, id="a speaker twice"),
    pytest.param(hh("\n\nAssistant: A", "\n\nAssistant: B"), Cause.turn_order, id="the assistant begins"),
]


@pytest.mark.parametrize(("row", "wanted"), HH_COMPARISONS)
def test_hh_comparisons(row: Any, wanted: Any) -> None:
    assert comparison("hh", row) == wanted


def test_hh_demonstrations_are_the_chosen_sides_whatever_the_other_says() -> None:
    wanted = {"messages": [user("Hi"), reply("A")]}
    assert [demonstration("hh", hh(of("Hi", "A"), other)) for other in (of("Hi", "A"), of("Hi", ""), "")] == [
        wanted
    ] * 3
    assert demonstration("hh", hh(of("Hi", ""), of("Hi", "A"))) == Cause.empty_turn


# LIMA


@pytest.mark.parametrize(
    ("turns", "wanted"),
    [
        (["Q", " A\n"], {"messages": [user("Q"), reply(" A\n")]}),
        (["Q", "A", "R", "B"], {"messages": [user("Q"), reply("A"), user("R"), reply("B")]}),
        (["Q", "A", "R"], Cause.no_reply),
        (["Q"], Cause.no_reply),
        ([], Cause.no_reply),
        (["Q", " "], Cause.empty_turn),
    ],
)
def test_lima(turns: list[str], wanted: Any) -> None:
    assert demonstration("lima", {"conversations": turns, "source": "stackexchange"}) == wanted


# Orca


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        (("flan.1", "Be kind.", "Q", "A"), {"messages": [system("Be kind."), user("Q"), reply("A")]}),
        (("flan.1", "", "Q", "A"), {"messages": [user("Q"), reply("A")]}),
        (("flan.1", " \n", "Q", "A"), {"messages": [user("Q"), reply("A")]}),
        ((None, "", "Q", "A"), {"messages": [user("Q"), reply("A")]}),
        (("flan.1", "Be kind.", "Q", ""), Cause.empty_turn),
        (("flan.1", "Be kind.", "\n", "A"), Cause.empty_turn),
    ],
)
def test_orca(row: tuple[Any, ...], wanted: Any) -> None:
    columns = ("id", "system_prompt", "question", "response")
    assert demonstration("orca", dict(zip(columns, row, strict=True))) == wanted


# SHP


def shp(**change: Any) -> dict[str, Any]:
    row = {"post_id": "p", "history": "Q", "human_ref_A": "A", "human_ref_B": "B"}
    return {**row, "score_A": 20, "score_B": 8, "labels": 1, "score_ratio": 2.5, "domain": "askculinary", **change}


def preferred(chosen: str, rejected: str, margin: float) -> dict[str, Any]:
    return {"prompt": [user("Q")], "chosen": [reply(chosen)], "rejected": [reply(rejected)], "margin": margin}


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        (shp(), preferred("A", "B", 2.5)),
        (shp(score_A=4, score_B=8, labels=0, score_ratio=2), preferred("B", "A", 2.0)),
        (shp(score_A=8, score_ratio=1.0), Cause.tie),
        (shp(score_ratio=1.99), Cause.low_margin),
        (shp(labels=0), Cause.contradictory),
        (shp(human_ref_B="[removed]"), Cause.removed),
        (shp(human_ref_A=" [deleted]\n"), Cause.removed),
        (shp(history="[removed]"), Cause.removed),
        (shp(human_ref_B="not [removed] at all"), preferred("A", "not [removed] at all", 2.5)),
        (shp(human_ref_A=" "), Cause.empty_turn),
        (shp(human_ref_B="A"), Cause.equal_sides),
    ],
)
def test_shp_comparisons(row: Any, wanted: Any) -> None:
    assert comparison("shp", row) == wanted


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        (shp(), "A"),
        (shp(score_A=4, labels=0), "B"),
        (shp(score_ratio=1.01), "A"),
        (shp(score_A=8, labels=0), "B"),
        (shp(score_A=8, human_ref_A="C"), "C"),
    ],
)
def test_shp_demonstrations_take_the_reply_with_the_higher_score(row: Any, wanted: str) -> None:
    assert demonstration("shp", row) == {"messages": [user("Q"), reply(wanted)]}


def test_shp_ranks_a_post_s_rows_by_their_better_reply() -> None:
    group = corpora.load("shp").GROUP
    rows = [shp(score_A=9), shp(score_B=30), shp(score_A=30, human_ref_A="Z"), shp(score_A=29)]
    assert (group.column, group.cap) == ("post_id", 5)
    assert sorted(rows, key=group.best) == [rows[0], rows[3], rows[1], rows[2]]


# A user's own


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({"messages": [system("S"), user("Q"), reply("A")]}, {"messages": [system("S"), user("Q"), reply("A")]}),
        ({"messages": [{**user("Q"), "name": "x"}, reply("A")]}, {"messages": [user("Q"), reply("A")]}),
        ({"prompt": "Q", "completion": "A"}, {"messages": [user("Q"), reply("A")]}),
        (
            {"prompt": [system("S"), user("Q")], "completion": [reply("A")]},
            {"messages": [system("S"), user("Q"), reply("A")]},
        ),
        ({"prompt": [user("Q")], "completion": "A"}, {"messages": [user("Q"), reply("A")]}),
        ({"messages": [user("Q")]}, Cause.no_reply),
        ({"messages": []}, Cause.no_reply),
        ({"prompt": "Q", "completion": [user("A")]}, Cause.no_reply),
        ({"prompt": "Q", "completion": " "}, Cause.empty_turn),
        ({"messages": [user(""), reply("A")]}, Cause.empty_turn),
    ],
)
def test_own_demonstrations(row: Any, wanted: Any) -> None:
    assert demonstration("own", row) == wanted


OWN = {"prompt": [user("Q")], "chosen": [reply("A")], "rejected": [reply("B")]}


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        (OWN, {**OWN, "margin": None}),
        ({"prompt": "Q", "chosen": "A", "rejected": "B"}, {**OWN, "margin": None}),
        ({**OWN, "margin": 2}, {**OWN, "margin": 2.0}),
        ({**OWN, "margin": None}, {**OWN, "margin": None}),
        ({**OWN, "rejected": "A"}, Cause.equal_sides),
        ({**OWN, "chosen": ""}, Cause.empty_turn),
        ({**OWN, "prompt": []}, Cause.empty_turn),
    ],
)
def test_own_comparisons(row: Any, wanted: Any) -> None:
    assert comparison("own", row) == wanted


# The wrong shape


@pytest.mark.parametrize(
    ("parser", "name", "row", "found", "wanted"),
    [
        (comparison, "hh", {"chosen": "x"}, "the columns chosen", "'rejected' among them"),
        (comparison, "hh", hh(of("Hi", "A"), "Human: Hi"), "'Human: Hi'", r"\n\nHuman: …"),
        (comparison, "hh", hh("x" + of("Hi", "A"), of("Hi", "B")), r"'x\n\nHuman", r"\n\nHuman: …"),
        (comparison, "hh", hh("", of("Hi", "B")), "''", r"\n\nHuman: …"),
        (demonstration, "hh", {"chosen": None, "rejected": ""}, "NoneType in 'chosen'", "str"),
        (demonstration, "lima", {"conversations": ["Q", None]}, "something else than text", "list of strings"),
        (demonstration, "lima", {"conversations": "Q"}, "str in 'conversations'", "list"),
        (demonstration, "lima", ["Q", "A"], "list", "an object with named columns"),
        (
            demonstration,
            "orca",
            {"system_prompt": "", "question": "Q", "response": None},
            "NoneType in 'response'",
            "str",
        ),
        (comparison, "shp", shp(labels=2), "2 in 'labels'", "0 or 1"),
        (comparison, "shp", shp(labels=True), "bool in 'labels'", "int"),
        (comparison, "shp", shp(score_A="9"), "str in 'score_A'", "int"),
        (comparison, "shp", shp(post_id=None), "NoneType in 'post_id'", "str"),
        (demonstration, "own", {"text": "A"}, "the columns text", "'prompt' among them"),
        (demonstration, "own", {"messages": "Q"}, "str in 'messages'", "list"),
        (demonstration, "own", {"messages": ["Q", "A"]}, "str", "an object with named columns"),
        (
            demonstration,
            "own",
            {"messages": [{"role": "user", "text": "Q"}]},
            "the columns role, text",
            "'content' among",
        ),
        (
            demonstration,
            "own",
            {"messages": [{"role": "human", "content": "Q"}]},
            "the role 'human'",
            "system, user or",
        ),
        (demonstration, "own", {"prompt": "Q", "completion": 3}, "int in 'completion'", "str or list"),
        (comparison, "own", {"chosen": "A", "rejected": "B"}, "the columns chosen, rejected", "'prompt' among them"),
        (
            comparison,
            "own",
            {**OWN, "chosen": [user("A")]},
            "the roles ['user'] in 'chosen'",
            "one message, the assistant's",
        ),
        (comparison, "own", {**OWN, "rejected": []}, "the roles [] in 'rejected'", "one message"),
        (comparison, "own", {**OWN, "chosen": [reply("A"), reply("A")]}, "'assistant'] in 'chosen'", "one message"),
        (comparison, "own", {**OWN, "margin": "2"}, "str in 'margin'", "int or float"),
    ],
)
def test_another_shape_is_malformed(parser: Any, name: str, row: Any, found: str, wanted: str) -> None:
    with pytest.raises(Malformed) as malformed:
        parser(name, row)
    before, _, after = str(malformed.value).rpartition(", wanted ")
    assert before.startswith("found ") and found in before and wanted in after


# Who serves as what


def test_an_unknown_dataset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(Refused, match=r"'oraca'.*\n.*hh, lima, orca, own, shp"):
        corpora.load("oraca")


@pytest.mark.parametrize("name", ["lima", "orca"])
def test_a_set_without_comparisons_is_refused_with_those_that_have_them(name: str) -> None:
    with pytest.raises(Refused, match=rf"'{name}' has no comparisons(.|\n)*: hh, own, shp$"):
        corpora.load(name, Role.comparisons)


@pytest.mark.parametrize("name", corpora.names())
def test_every_set_has_demonstrations_a_policy_and_pinned_files(name: str) -> None:
    corpus = corpora.load(name, Role.demonstrations)
    assert "Policy:" in (corpus.__doc__ or "")
    if corpus.SOURCE:
        assert len(corpus.SOURCE.revision) == 40 and corpus.SOURCE.files and corpus.SOURCE.licence


# Counts on whole files


def counts(root: Path, name: str, role: Role) -> dict[str, int]:
    folder = root / corpora.load(name).SOURCE.name
    rows = [row for path in sorted(folder.rglob("*")) if path.is_file() for _, row in records.rows(path)]
    parsed = [parse(name, role, row) for row in rows]
    return dict(Counter(str(example) if isinstance(example, Cause) else "ok" for example in parsed))


@pytest.mark.parametrize(
    ("name", "role", "wanted"),
    [
        ("hh", Role.demonstrations, {"ok": 4644, "empty_turn": 5, "turn_order": 17}),
        ("hh", Role.comparisons, {"ok": 4632, "empty_turn": 8, "turn_order": 24, "equal_sides": 2}),
        ("lima", Role.demonstrations, {"ok": 1029}),
        ("orca", Role.demonstrations, {"ok": 384}),
        ("shp", Role.comparisons, {"ok": 1}),
    ],
)
def test_counts_on_real_rows(mirror: Path, name: str, role: Role, wanted: dict[str, int]) -> None:
    assert counts(mirror, name, role) == wanted


@pytest.mark.parametrize(
    ("name", "role", "causes"),
    [
        ("hh", Role.demonstrations, {"empty_turn"}),
        ("hh", Role.comparisons, {"equal_sides", "empty_turn", "prompt_differs"}),
        ("lima", Role.demonstrations, set()),
        ("orca", Role.demonstrations, {"empty_turn"}),
        ("shp", Role.demonstrations, {"empty_turn", "removed"}),
        ("shp", Role.comparisons, {"empty_turn", "removed", "low_margin", "tie", "contradictory"}),
    ],
)
def test_the_embedded_rows_are_well_formed_and_show_the_traps(name: str, role: Role, causes: set[str]) -> None:
    found = counts(MINI, name, role)
    assert found.pop("ok") >= 90
    assert causes <= set(found) and "malformed" not in found


@pytest.mark.parametrize("role", Role)
def test_the_embedded_own_rows_parse(role: Role) -> None:
    examples = [parse("own", role, row) for _, row in records.rows(MINI / f"own/{role}.jsonl")]
    assert examples and not any(isinstance(example, Cause) for example in examples)
