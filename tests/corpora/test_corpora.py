"""Parsers on literal rows, one for each trap; who can serve as what; counts on real and on embedded rows."""

from collections import Counter
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from alignment import corpora
from alignment.corpora import Cause, Refusal, Role
from alignment.runtime import Refused, records
from alignment.runtime.records import Malformed

MINI = Path(__file__).parents[2] / "data/mini"


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
        hh(of("Hi", "Yes"), of("Hi", "Yes, and more.")),
        {"prompt": [user("Hi")], "chosen": [reply("Yes")], "rejected": [reply("Yes, and more.")], "margin": None},
        id="a reply that is the other's beginning is kept",
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
    pytest.param(hh(of("Hi", "A"), of("Hi", "")), Cause.empty_turn, id="empty last turn of the rejected side"),
    pytest.param(hh(of("Hi", ""), of("Hi", "B")), Cause.empty_turn, id="empty last turn of the chosen side"),
    pytest.param(hh(of("Hi", ""), of("Hi", "")), Cause.equal_sides, id="equal sides with empty last turns"),
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
        (["Q", "A"] * 10, {"messages": [user("Q"), reply("A")] * 10}),  # the longest row has 20 turns
        (["Q", "A", "R"], Cause.no_reply),
        (["Q"], Cause.no_reply),  # as in test.jsonl
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
        (shp(score_ratio=2), preferred("A", "B", 2.0)),
        (shp(score_A=-8, score_B=-20, score_ratio=0.4), Cause.low_margin),
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


# The wrong shape


@pytest.mark.parametrize(
    ("parser", "name", "row", "found", "wanted"),
    [
        (comparison, "hh", {"chosen": "x"}, "the columns chosen", "'rejected' among them"),
        (comparison, "hh", hh(of("Hi", "A"), "Human: Hi"), "'Human: Hi'", r"\n\nHuman: …"),
        (comparison, "hh", hh("x" + of("Hi", "A"), of("Hi", "B")), r"'x\n\nHuman", r"\n\nHuman: …"),
        (comparison, "hh", hh("", of("Hi", "B")), "''", r"\n\nHuman: …"),
        (comparison, "hh", hh("Hi", "Hi"), "'Hi'", r"\n\nHuman: …"),  # equal, but no dialogues
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
        (comparison, "shp", shp(score_ratio=None), "NoneType in 'score_ratio'", "int or float"),
        (comparison, "shp", shp(score_ratio=float("nan")), "nan in 'score_ratio'", "a finite number"),
        (demonstration, "shp", shp(score_ratio=float("inf")), "inf in 'score_ratio'", "a finite number"),
        (comparison, "shp", shp(score_ratio=10**400), "inf in 'score_ratio'", "a finite number"),
        # rows are grouped by their post: one of no name would gather strangers
        (comparison, "shp", shp(post_id=None), "NoneType in 'post_id'", "str"),
        (demonstration, "shp", shp(post_id=["p"]), "list in 'post_id'", "str"),
        (demonstration, "shp", shp(post_id=" "), "' ' in 'post_id'", "the name of a post"),
        (demonstration, "shp", shp(post_id="\ud800"), r"'\ud800' in 'post_id'", "the name of a post"),
    ],
)
def test_another_shape_is_malformed(parser: Any, name: str, row: Any, found: str, wanted: str) -> None:
    with pytest.raises(Malformed) as malformed:
        parser(name, row)
    before, _, after = str(malformed.value).rpartition(", wanted ")
    assert before.startswith("found ") and found in before and wanted in after


# Who serves as what


def test_an_unknown_dataset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(Refused, match=rf"'oraca'.*\n.*{', '.join(corpora.names())}"):
        corpora.load("oraca")


def test_the_five_datasets_are_there() -> None:
    assert {"hh", "lima", "orca", "own", "shp"} <= set(corpora.names())


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


@pytest.mark.parametrize(
    ("name", "file", "fetched", "heldout"),
    [
        ("hh", "harmless-base/train.jsonl.gz", True, False),
        ("hh", "helpful-base/test.jsonl.gz", True, True),
        ("hh", "helpful-online/train.jsonl.gz", False, False),  # the study took the two base subsets
        ("hh", "red-team-attempts/red_team_attempts.jsonl.gz", False, False),
        ("lima", "train.jsonl", True, False),
        ("lima", "test.jsonl", False, False),
        ("orca", "3_5M-GPT3_5-Augmented.parquet", True, False),
        ("shp", "askculinary/train.json", True, False),
        ("shp", "legaladvice/validation.json", True, True),
        ("shp", "legaladvice/test.json", True, True),
    ],
)
def test_which_files_are_fetched_and_which_of_them_are_never_trained(
    name: str, file: str, fetched: bool, heldout: bool
) -> None:
    corpus = corpora.load(name)
    assert any(fnmatchcase(file, pattern) for pattern in corpus.SOURCE.files) == fetched
    assert any(fnmatchcase(file, pattern) for pattern in corpus.HELDOUT) == heldout


# Counts on whole files


def count(paths: Iterable[Path], name: str, role: Role) -> dict[str, int]:
    """How many rows are used, and how many are refused for each cause; a malformed row is an error here."""
    parsed = [parse(name, role, row) for path in paths for _, row in records.rows(path)]
    return dict(Counter(str(example) if isinstance(example, Cause) else "ok" for example in parsed))


def counts(root: Path, name: str, role: Role) -> dict[str, int]:
    folder = root / corpora.load(name).SOURCE.name
    return count((path for path in sorted(folder.rglob("*")) if path.is_file()), name, role)


HH_HARMLESS, HH_HELPFUL = "Anthropic/hh-rlhf/harmless-base", "Anthropic/hh-rlhf/helpful-base"
REAL = {
    ("hh", Role.demonstrations): {
        f"{HH_HARMLESS}/train.jsonl.gz": {"ok": 2100, "empty_turn": 4, "turn_order": 8},
        f"{HH_HARMLESS}/test.jsonl.gz": {"ok": 200},
        f"{HH_HELPFUL}/train.jsonl.gz": {"ok": 2144, "empty_turn": 1, "turn_order": 9},
        f"{HH_HELPFUL}/test.jsonl.gz": {"ok": 200},
    },
    ("hh", Role.comparisons): {
        f"{HH_HARMLESS}/train.jsonl.gz": {"ok": 2099, "empty_turn": 4, "turn_order": 9},
        f"{HH_HARMLESS}/test.jsonl.gz": {"ok": 200},
        f"{HH_HELPFUL}/train.jsonl.gz": {"ok": 2134, "empty_turn": 4, "turn_order": 15, "equal_sides": 1},
        f"{HH_HELPFUL}/test.jsonl.gz": {"ok": 199, "equal_sides": 1},
    },
    ("lima", Role.demonstrations): {"GAIR/lima/train.jsonl": {"ok": 1029}},
    ("orca", Role.demonstrations): {
        "Open-Orca/OpenOrca/1M-GPT4-Augmented.parquet": {"ok": 384},
        "Open-Orca/OpenOrca/3_5M-GPT3_5-Augmented.parquet": {},  # a file of no rows is no error
    },
    ("shp", Role.demonstrations): {"stanfordnlp/SHP/askculinary/train.json": {"ok": 1}},
    ("shp", Role.comparisons): {"stanfordnlp/SHP/askculinary/train.json": {"ok": 1}},
}


@pytest.mark.parametrize(("name", "role"), REAL)
def test_counts_on_real_rows(mirror: Path, name: str, role: Role) -> None:
    wanted = REAL[name, role]
    folder = mirror / corpora.load(name).SOURCE.name
    assert {path.relative_to(mirror).as_posix() for path in folder.rglob("*") if path.is_file()} == set(wanted)
    for file, causes in wanted.items():
        assert count([mirror / file], name, role) == causes, file


def test_what_real_rows_look_like(mirror: Path) -> None:
    """Facts that a wrong parser would not give by chance: turns, system prompts, replies that begin the other."""
    lima = [demonstration("lima", row) for _, row in records.rows(mirror / "GAIR/lima/train.jsonl")]
    assert Counter(len(example["messages"]) for example in lima) == {2: 1000, 4: 15, 6: 10, 8: 3, 20: 1}
    orca = mirror / "Open-Orca/OpenOrca/1M-GPT4-Augmented.parquet"
    turns = Counter(len(demonstration("orca", row)["messages"]) for _, row in records.rows(orca))
    assert turns == {3: 376, 2: 8}  # `system_prompt` is empty in 8 rows
    begun = 0
    for file in REAL["hh", Role.comparisons]:
        pairs = [comparison("hh", row) for _, row in records.rows(mirror / file)]
        sides = [
            [pair[side][0]["content"] for side in ("chosen", "rejected")] for pair in pairs if isinstance(pair, dict)
        ]
        begun += sum(a.startswith(b) or b.startswith(a) for a, b in sides)
    assert begun == 12
    ((_, row),) = records.rows(mirror / "stanfordnlp/SHP/askculinary/train.json")
    pair = comparison("shp", row)
    assert (row["post_id"], row["score_A"], row["score_B"], row["labels"]) == ("qt3nxl", 340, 166, 1)
    assert pair["chosen"] == [reply(row["human_ref_A"])] and pair["margin"] == row["score_ratio"]
    assert demonstration("shp", row) == {"messages": [*pair["prompt"], *pair["chosen"]]}


def test_rows_in_shp_s_shape_without_its_scores_are_all_malformed(mirror: Path) -> None:
    for _, row in records.rows(mirror / "kawine/steamshp/data/anthropic_helpful/test.json"):
        with pytest.raises(Malformed, match="labels, post_id, wanted 'score_A' among them"):
            comparison("shp", row)


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
