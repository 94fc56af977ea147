"""Bring your own: rows in TRL's formats through the corpus `own`; a new named corpus is one file and nothing else."""

import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clones import dvc, git, of, ran
from dvc.repo import Repo
from test_corpora import reply, system, user

from alignment.corpora import Cause, Refusal, Role, own
from alignment.fetching import repositories
from alignment.runtime import Refused, records
from alignment.runtime.records import Malformed
from alignment.sampling import reader
from alignment.sampling.order import RowOrder
from soak import broken_rows
from soak.broken_rows import Fault, FileFault

ROOT = Path(__file__).parents[2]


def parsed(example: Any) -> Any:
    return example.cause if isinstance(example, Refusal) else example


# Demonstrations

CHAT = {"messages": [user("Q"), reply("A")]}
TOOL = {"role": "tool", "content": "Q"}

DEMONSTRATIONS = [
    pytest.param({"messages": [system("S"), user("Q"), reply("A")]}, {"messages": [system("S"), *CHAT["messages"]]}),
    pytest.param({"messages": [*CHAT["messages"], *CHAT["messages"]]}, {"messages": CHAT["messages"] * 2}),
    pytest.param({**CHAT, "source": "x", "n": 1}, CHAT, id="other columns"),
    pytest.param({"messages": [{**user("Q"), "name": "x"}, reply("A")]}, CHAT, id="another field in a message"),
    pytest.param({"prompt": "Q", "completion": "A"}, CHAT, id="plain text"),
    pytest.param({"prompt": [user("Q")], "completion": [reply("A")]}, CHAT, id="lists of messages"),
    pytest.param({"prompt": [user("Q")], "completion": "A"}, CHAT, id="a list and text"),
    pytest.param({**CHAT, "prompt": "P", "completion": "C"}, CHAT, id="messages go before prompt and completion"),
    # A Parquet file has every column in every row, and every field in every message: null where there is nothing.
    pytest.param({**CHAT, "prompt": None, "completion": None}, CHAT, id="null prompt"),
    pytest.param({"messages": None, "prompt": "Q", "completion": "A"}, CHAT, id="null messages"),
    pytest.param(
        {"messages": [{**user("Q"), "tool_calls": None, "name": None}, {**reply("A"), "tool_calls": None}]},
        CHAT,
        id="null fields in a message",
    ),
    pytest.param(
        {"prompt": [user("P"), reply("R"), user("Q")], "completion": "A"},
        {"messages": [user("P"), {**reply("R"), "trained": False}, user("Q"), reply("A")]},
        id="the prompt is never trained",
    ),
    pytest.param(
        {"messages": [user("P"), {**reply("R"), "weight": 0}, user("Q"), {**reply("A"), "weight": 1}]},
        {"messages": [user("P"), {**reply("R"), "trained": False}, user("Q"), reply("A")]},
        id="a turn of the weight 0",
    ),
    pytest.param({**CHAT, "tools": [], "images": "", "thinking": None}, CHAT, id="no tools"),
    pytest.param({**CHAT, "label": 3}, CHAT, id="a label of many"),
    pytest.param({"messages": [user("Q")]}, Cause.no_reply, id="ends with the user"),
    pytest.param({"messages": []}, Cause.no_reply, id="no messages"),
    pytest.param({"prompt": "Q", "completion": [user("A")]}, Cause.no_reply, id="the completion is the user's"),
    pytest.param({"prompt": "Q", "completion": []}, Cause.no_reply, id="no completion"),
    pytest.param({"prompt": "Q", "completion": " "}, Cause.empty_turn, id="blank completion"),
    pytest.param({"messages": [user(""), reply("A")]}, Cause.empty_turn, id="blank question"),
]


@pytest.mark.parametrize(("row", "wanted"), DEMONSTRATIONS)
def test_demonstrations(row: Any, wanted: Any) -> None:
    assert parsed(own.demonstration(row)) == wanted


# Comparisons

PAIR = {"prompt": [user("Q")], "chosen": [reply("A")], "rejected": [reply("B")]}
SIDES = {"chosen": [user("Q"), reply("A")], "rejected": [user("Q"), reply("B")]}
WANTED = {**PAIR, "margin": None}
LONGER = [user("P"), reply("R"), user("Q")]

COMPARISONS = [
    pytest.param(PAIR, WANTED, id="lists of messages"),
    pytest.param({"prompt": "Q", "chosen": "A", "rejected": "B"}, WANTED, id="plain text"),
    pytest.param({**PAIR, "prompt": "Q"}, WANTED, id="a prompt of text and replies of messages"),
    pytest.param({**PAIR, "margin": 2}, {**PAIR, "margin": 2.0}, id="a margin"),
    pytest.param({**PAIR, "margin": None}, WANTED, id="a null margin"),
    # TRL's implicit prompt: what the two sides share. Many sets on the hub repeat the prompt in both sides.
    pytest.param(SIDES, WANTED, id="an implicit prompt"),
    pytest.param({**SIDES, "prompt": None}, WANTED, id="a null prompt"),
    pytest.param({**SIDES, "prompt": "Q"}, WANTED, id="sides that repeat a prompt of text"),
    pytest.param({**SIDES, "prompt": [user("Q")]}, WANTED, id="sides that repeat a prompt of messages"),
    pytest.param(
        {"chosen": [*LONGER, reply("A")], "rejected": [*LONGER, reply("B")]},
        {**WANTED, "prompt": LONGER},
        id="an implicit prompt of several turns",
    ),
    pytest.param(
        {"chosen": [user("Q"), reply("A")], "rejected": [user("P"), reply("B")]},
        Cause.prompt_differs,
        id="sides that share no prompt",
    ),
    pytest.param({**SIDES, "rejected": SIDES["chosen"]}, Cause.equal_sides, id="equal conversations"),
    pytest.param({**PAIR, "rejected": "A"}, Cause.equal_sides, id="equal sides"),
    pytest.param({**PAIR, "chosen": ""}, Cause.empty_turn, id="an empty side"),
    pytest.param({**PAIR, "prompt": []}, Cause.empty_turn, id="an empty prompt"),
    pytest.param({"chosen": [reply("A")], "rejected": [reply("B")]}, Cause.empty_turn, id="no prompt before the reply"),
]


@pytest.mark.parametrize(("row", "wanted"), COMPARISONS)
def test_comparisons(row: Any, wanted: Any) -> None:
    assert parsed(own.comparison(row)) == wanted


# The wrong shape: what was found, and what was wanted

FORMS = "'messages', or 'prompt' and 'completion'"
SIX = "'prompt', 'chosen' and 'rejected'"

WRONG_DEMONSTRATIONS = [
    ("Q", "str", "an object with named columns"),
    ([CHAT], "list", "an object with named columns"),
    ({}, "no columns with a value", FORMS),
    ({"messages": None, "prompt": None}, "no columns with a value", FORMS),
    ({"text": "A"}, "the columns text", FORMS),
    ({"prompt": "Q"}, "the columns prompt", FORMS),
    ({"prompt": "Q", "completion": None}, "the columns prompt", FORMS),
    ({"conversations": [{"from": "human", "value": "Q"}]}, "the columns conversations", FORMS),
    (PAIR, "the columns prompt, chosen, rejected", FORMS),
    ({f"c{i}": 1 for i in range(500)}, "c17, c18, c19 and 480 more", FORMS),
    ({"messages": "Q"}, "str in 'messages'", "list"),
    ({"messages": {"role": "user"}}, "dict in 'messages'", "list"),
    ({"messages": ["Q", "A"]}, "str in 'messages[0]'", "an object with named columns"),
    ({"messages": [user("Q"), None]}, "NoneType in 'messages[1]'", "an object with named columns"),
    ({"messages": [{"role": "user", "text": "Q"}]}, "the columns role, text in 'messages[0]'", "'content' among them"),
    ({"messages": [user("Q"), {"content": "A"}]}, "the columns content in 'messages[1]'", "'role' among them"),
    ({"messages": [{"from": "human", "value": "Q"}]}, "the columns from, value in 'messages[0]'", "'role' among them"),
    ({"messages": [{"role": "user", "content": None}]}, "NoneType in 'messages[0].content'", "str"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "list in 'messages[0].content'", "str"),
    ({"messages": [{"role": None, "content": "Q"}]}, "NoneType in 'messages[0].role'", "str"),
    ({"messages": [{"role": "human", "content": "Q"}]}, "the role 'human' in 'messages'", "system, user or assistant"),
    ({"messages": [{"role": "User", "content": "Q"}]}, "the role 'User' in 'messages'", "system, user or assistant"),
    ({"messages": [user("Q"), TOOL, reply("A")]}, "the role 'tool' in 'messages'", "system, user or assistant"),
    ({"prompt": "Q", "completion": 3}, "int in 'completion'", "str or list"),
    ({"prompt": {"role": "user"}, "completion": "A"}, "dict in 'prompt'", "str or list"),
    ({"prompt": "Q", "completion": ["A"]}, "str in 'completion[0]'", "an object with named columns"),
    ({"prompt": "Q", "completion": "A", "label": False}, "'label' (TRL's unpaired preference)", "rows to imitate"),
]

WRONG_COMPARISONS = [
    (None, "NoneType", "an object with named columns"),
    (CHAT, "the columns messages", SIX),
    ({"prompt": "Q", "chosen": "A"}, "the columns prompt, chosen", SIX),
    ({**PAIR, "rejected": None}, "the columns prompt, chosen", SIX),
    ({"chosen": "QA", "rejected": "QB"}, "text in 'chosen' or 'rejected' and no 'prompt'", "'prompt', or lists"),
    ({**SIDES, "rejected": "B"}, "text in 'chosen' or 'rejected' and no 'prompt'", "'prompt', or lists"),
    ({**PAIR, "prompt": 1}, "int in 'prompt'", "str or list"),
    ({**PAIR, "chosen": 1.5}, "float in 'chosen'", "str or list"),
    ({**PAIR, "chosen": ["A"]}, "str in 'chosen[0]'", "an object with named columns"),
    ({**PAIR, "chosen": [user("A")]}, "the roles ['user'] in 'chosen'", "one message, the assistant's"),
    ({**PAIR, "rejected": []}, "the roles [] in 'rejected'", "one message, the assistant's"),
    ({**PAIR, "chosen": [reply("A"), reply("A")]}, "'assistant'] in 'chosen'", "one message, the assistant's"),
    ({**SIDES, "prompt": "P"}, "['user', 'assistant'] in 'chosen'", "one message, the assistant's"),
    ({"chosen": [user("Q")], "rejected": [user("P")]}, "the roles ['user'] in 'chosen'", "one message, the"),
    ({**PAIR, "prompt": [user("Q"), reply("R")]}, "['user', 'assistant'] before the reply", "a turn of the user's"),
    ({**PAIR, "margin": "2"}, "str in 'margin'", "int or float"),
    ({**PAIR, "margin": True}, "bool in 'margin'", "int or float"),
    ({**PAIR, "margin": float("nan")}, "nan in 'margin'", "a finite number"),
    ({**PAIR, "margin": 10**400}, "inf in 'margin'", "a finite number"),
]


@pytest.mark.parametrize(
    ("parser", "row", "found", "wanted"),
    [
        *((own.demonstration, *wrong) for wrong in WRONG_DEMONSTRATIONS),
        *((own.comparison, *wrong) for wrong in WRONG_COMPARISONS),
    ],
)
def test_another_shape_is_refused_with_what_was_found_and_what_was_wanted(
    parser: Any, row: Any, found: str, wanted: str
) -> None:
    with pytest.raises(Malformed) as malformed:
        parser(row)
    before, _, after = str(malformed.value).rpartition(", wanted ")
    assert before.startswith("found ") and before.endswith(found)
    assert after.startswith(wanted)


def test_a_parquet_file_of_mixed_rows_is_read_as_its_rows_were_written(tmp_path: Path) -> None:
    """Parquet fills every column and every field of a message with nulls: through the real reader, not by hand."""
    rows = [
        {"messages": [{**user("Q"), "name": "x"}, {**reply("A"), "tool_calls": []}]},
        {"prompt": "Q", "completion": "A"},
        {"messages": [system("S"), user("Q"), reply("A")], "score": 0.5},
    ]
    columns = sorted({name for row in rows for name in row})
    padded = [{name: row.get(name) for name in columns} for row in rows]
    pq.write_table(pa.Table.from_pylist(padded), tmp_path / "mine.parquet")
    read = [row for _, row in records.rows(tmp_path / "mine.parquet")]
    assert read[1]["messages"] is None and read[0]["messages"][1]["name"] is None
    assert [own.demonstration(row) for row in read] == [CHAT, CHAT, {"messages": [system("S"), *CHAT["messages"]]}]


# Files with one fault


def reading(raw: Path, role: Role, malformed: int) -> tuple[int, dict[Cause, int]]:
    """How many rows of a fetched folder can be used, and what became of the others."""
    with reader.reading(RowOrder("own", role, raw, 0, 0, 0.2, malformed), lambda: len) as source:
        keys, read, dropped = source.keys()
    assert read == len(keys) + dropped.total()
    return len(keys), dict(dropped)


@pytest.mark.parametrize("fault", broken_rows.faults(), ids=lambda fault: f"{fault.role}: {fault.name}")
def test_a_fault_is_counted_or_named_and_the_rows_around_it_are_used(fault: Fault, tmp_path: Path) -> None:
    for seed in range(3):
        path, at = broken_rows.write(tmp_path, fault, random.Random(seed))
        raw = tmp_path / f"raw-{seed}"
        repositories.fetch_own(path, raw)
        used, dropped = reading(raw, fault.role, malformed=1)
        assert used == len(list(records.rows(raw / path.name))) - 1
        if isinstance(fault.wanted, Cause):
            assert dropped == {fault.wanted: 1}
            continue
        assert dropped == {Cause.malformed: 1}
        with pytest.raises(Refused) as refused:
            reading(raw, fault.role, malformed=0)
        said = str(refused.value)
        assert f"{path.name}:{at}: found " in said and fault.wanted in said and f"your own {path.name}" in said


@pytest.mark.parametrize("fault", broken_rows.FILE_FAULTS, ids=lambda fault: fault.name)
def test_a_file_that_cannot_be_read_is_refused_as_the_user_s_own(fault: FileFault, tmp_path: Path) -> None:
    mine = tmp_path / "mine.jsonl"
    mine.write_bytes(fault.damage(broken_rows.lines([broken_rows.good(Role.demonstrations, n) for n in range(3)])))
    repositories.fetch_own(mine, tmp_path / "raw")
    with pytest.raises(Refused, match=re.escape(fault.wanted)) as refused:
        reading(tmp_path / "raw", Role.demonstrations, malformed=9)
    assert "your own mine.jsonl" in str(refused.value)


@pytest.mark.parametrize("mark", ["train", "trained", "training", "loss"])
@pytest.mark.parametrize("value", [False, 0, "false"])
@pytest.mark.parametrize("column", ["messages", "completion"])
def test_another_mark_of_a_turn_that_is_not_trained_is_no_column_without_a_use(
    column: str, value: Any, mark: str
) -> None:
    turns = [{**reply("R"), mark: value}, user("Q"), reply("A")]
    row = {"messages": [user("P"), *turns]} if column == "messages" else {"prompt": "P", "completion": turns}
    with pytest.raises(Malformed, match=rf"in '{column}\[.\]\.{mark}', wanted `weight: 0` there"):
        own.demonstration(row)
    assert own.demonstration({"messages": [user("P"), {**reply("R"), mark: True}]})


def test_columns_without_a_use_are_named_in_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {**CHAT, "source": "x", "n": 0, "empty": [], "gone": None, "toxic": False},
        {"messages": [{**user("Q"), "name": "x"}, {**reply("A"), "weight": 1}], "prompt": "P", "id": "7"},
    ]
    (tmp_path / "mine.jsonl").write_bytes(broken_rows.lines(rows))
    assert reading(tmp_path, Role.demonstrations, malformed=0) == (2, {})
    said = capsys.readouterr().out
    assert said == "own, demonstrations: passed over the columns id, messages' name, prompt, source, toxic\n"


# A new named corpus

DOLLY = '''"""Dolly (Conover et al. 2023): 15,011 demonstrations, written by the employees of Databricks.

A row: `{"instruction": "Who …?", "context": "", "response": "She …", "category": "open_qa"}`
Policy: a context, such as the passage to summarise, follows its instruction after a blank line; a row without an
instruction or without a response is refused.
"""

from typing import Any

from alignment.corpora import Cause, Demonstration, Group, Refusal, Repository
from alignment.runtime.records import require

SOURCE = Repository(
    "databricks/databricks-dolly-15k",
    "bdd27f4d94b9c1f951818a7da7fd7aeea5dbff1a",
    ("databricks-dolly-15k.jsonl",),
    licence="CC-BY-SA-3.0",
)
HELDOUT: tuple[str, ...] = ()  # no file is held out: a share of the openings is
GROUP: Group | None = None  # no rows belong together


def demonstration(row: Any) -> Demonstration | Refusal:
    """The instruction with its context, and the response that is trained."""
    require(row, {"instruction": str, "context": str, "response": str})
    if not row["instruction"].strip() or not row["response"].strip():
        return Refusal(Cause.empty_turn)
    asked = "\\n\\n".join(part for part in (row["instruction"], row["context"]) if part.strip())
    return {
        "messages": [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": row["response"]},
        ]
    }
'''


def dolly_rows() -> list[dict[str, str]]:
    """48 rows in the set's columns, two of them without a response; every text is another, so none is a duplicate."""
    things = ("bridge", "candle", "drum", "engine", "feather", "glacier", "harbour", "island")
    about = ("is made of", "was first seen by", "costs more than", "sounds like", "never touches", "weighs less than")
    return [
        {
            "instruction": f"Which thing {verb} the {thing} in that old story?",
            "context": f"The story of the {thing} has {i} chapters." if i % 3 == 0 else "",
            "response": ""
            if i in (7, 20)
            else f"In chapter {i} a {things[i % 5]} {verb} it, says the {thing}'s owner.",
            "category": "closed_qa",
        }
        for i, (thing, verb) in enumerate((thing, verb) for thing in things for verb in about)
    ]


@pytest.fixture(scope="module")
def copied(warm_stages: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of the files that git knows, on the tiny preset, with a mirror that also has Dolly; committed."""
    folder = tmp_path_factory.mktemp("copied")
    names = git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    for name in names:
        if (ROOT / name).is_file() and not name.startswith("metrics/") and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    mirror = tmp_path_factory.mktemp("mirror") / "hub"
    shutil.copytree(ROOT / "data/mini", mirror)
    dolly = mirror / "databricks/databricks-dolly-15k/databricks-dolly-15k.jsonl"
    dolly.parent.mkdir(parents=True)
    dolly.write_text("".join(json.dumps(row) + "\n" for row in dolly_rows()), encoding="utf-8")
    tiny = (folder / "presets/tiny.yaml").read_text(encoding="utf-8")
    params = re.sub(r"^source: mini", f"source: {mirror}", tiny, flags=re.M)
    (folder / "params.yaml").write_text(params, encoding="utf-8")
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "first")
    return folder


@pytest.mark.slow
def test_a_new_named_corpus_is_one_file_and_nothing_else(copied: Path) -> None:
    assert 30 <= len(DOLLY.splitlines()) <= 60
    assert DOLLY in (ROOT / "docs/own-data.md").read_text(encoding="utf-8"), "the page shows this very file"
    (copied / "alignment/corpora/dolly.py").write_text(DOLLY, encoding="utf-8")
    params = (copied / "params.yaml").read_text(encoding="utf-8")
    (copied / "params.yaml").write_text(re.sub(r"^data: \w+", "data: dolly", params, flags=re.M), encoding="utf-8")
    assert set(git(copied, "status", "--short", "--untracked-files=all").split()[1::2]) == {
        "alignment/corpora/dolly.py",
        "params.yaml",
    }

    assert {"fetch-corpus@demonstrations", "sample@demonstrations"} <= ran(
        dvc(copied, "repro", "sample@demonstrations")
    )

    account = json.loads((copied / "metrics/sample/demonstrations.json").read_text(encoding="utf-8"))
    assert account["rows.read"] == 48 and account["dropped.empty_turn"] == 2 and account["dropped.malformed"] == 0
    used = account["rows.kept"] + account["rows.heldout"] + account["rows.not_needed"]
    assert used + sum(count for name, count in account.items() if name.startswith("dropped.")) == 48
    assert account["rows.kept"] == 12 and account["rows.heldout"] >= 1

    # What is measured on the base model, and the comparisons, know nothing of the new file.
    stages = {stage.name: {dep.def_path for dep in stage.deps} for stage in Repo(str(copied)).index.stages}
    knowing = {name for name, paths in stages.items() if "data/raw/demonstrations.parser" in paths}
    assert knowing == {"fetch-corpus@demonstrations", "sample@demonstrations"}
    assert all(path not in stages[name] for name in of("base") for path in ("data/raw/demonstrations", "models/sft"))


@pytest.mark.slow
def test_the_new_corpus_passes_the_project_s_own_checks(copied: Path) -> None:
    """The page shows this text: formatted, linted, typed, and met by the tests that look at every corpus."""
    (copied / "alignment/corpora/dolly.py").write_text(DOLLY, encoding="utf-8")
    for words in (
        ["ruff", "format", "--check", "alignment/corpora"],
        ["ruff", "check", "alignment/corpora"],
        ["mypy", "alignment/corpora"],
        [
            "pytest",
            "-q",
            "tests/corpora/test_corpora.py",
            "tests/laws/test_properties.py",
            "-k",
            "dolly or dataset or set or any_json",
        ],
    ):
        ended = subprocess.run([sys.executable, "-m", *words], cwd=copied, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr
