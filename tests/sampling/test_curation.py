"""Which rows are used: every row accounted for, whatever their order; held-out rows; duplicates; contamination."""

import gzip
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alignment import corpora
from alignment.corpora import Cause, Role
from alignment.fetching import pins
from alignment.models.chat import Lengths
from alignment.runtime import Refused
from alignment.sampling import curation, decontamination, deduplication, reader
from alignment.sampling.curation import Measured, RowCounts
from alignment.sampling.decontamination import Contamination, Item
from alignment.sampling.order import RowOrder
from alignment.sampling.reader import ParsedRow
from alignment.sampling.words import hashes, normal
from alignment.scoring.benchmarks import tasks

MINI = Path(__file__).parents[2] / "data/mini"
TASKS = tuple(tasks.BENCHMARKS)


def demo(question: str, answer: str) -> dict[str, Any]:
    return {"prompt": question, "completion": answer}


def write(path: Path, rows: Iterable[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.parent


def measured(
    example: Any,
    too_long: Callable[[str], Cause | None] = lambda text: None,
    contamination: Callable[[str], list[Item]] = lambda text: [],
) -> Measured:
    text, opened = (" ".join(normal(said(example))) for said in (corpora.whole_text, corpora.opening))
    signature = deduplication.signature(hashes(text.split()))
    lengths = Lengths(1, 1, 0)
    return Measured(text.encode(), opened.encode(), lengths, too_long(text), contamination(text), signature)


def sample(
    raw: Path,
    name: str = "own",
    role: Role = Role.demonstrations,
    seed: int = 0,
    item_seed: int = 0,
    share: float = 0.3,
    malformed: int = 0,
    kept: int = 10**9,
    heldout: int = 10**9,
    near: float = 1,
    processes: int = 1,
    measure: Callable[[Any], Measured] = measured,
) -> tuple[list[ParsedRow], list[ParsedRow], RowCounts]:
    group = corpora.load(name, role).GROUP
    policy = RowOrder(name, role, raw, seed, item_seed, share, malformed)
    cap = group.cap if group and role is Role.comparisons else None
    with reader.reading(policy, partial(partial, measure), processes) as source:
        return curation.choose(source, kept, heldout, cap, near)


def ids(rows: list[ParsedRow]) -> list[str]:
    return [row.id for row in rows]


@pytest.fixture
def many(tmp_path: Path) -> list[dict[str, str]]:
    """Rows over few words, so that openings recur and rows repeat but for case and punctuation."""
    draw = random.Random(0)
    words = ["the", "The", "pot", "POT!", "kettle", "tea", "cup", "?", "é", "e\u0301"]
    return [demo(" ".join(draw.choices(words, k=2)), " ".join(draw.choices(words, k=2))) for _ in range(600)]


def test_every_row_is_accounted_for(many: list[dict[str, str]], tmp_path: Path) -> None:
    rows = [*many, {"text": "another shape"}, demo("Q", " "), {"messages": []}]
    train, held, account = sample(
        write(tmp_path / "raw/a.jsonl", rows),
        malformed=1,
        kept=30,
        heldout=5,
        measure=partial(
            measured,
            too_long=lambda text: Cause.long if len(text) > 14 else None,
            contamination=lambda text: [("mmlu", "a"), ("mmlu", "b"), ("piqa", "a")] if "kettle" in text else [],
        ),
    )
    metrics = account.metrics(TASKS)
    assert sum(count for name, count in metrics.items() if name.startswith(("rows.", "dropped."))) == 2 * len(rows)
    assert (metrics["rows.read"], metrics["rows.kept"], metrics["rows.heldout"]) == (603, len(train), len(held))
    assert (len(train), len(held)) == (30, 5)
    assert {f"dropped.{cause}" for cause in Cause} == {name for name in metrics if name.startswith("dropped.")}
    assert (metrics["dropped.malformed"], metrics["dropped.empty_turn"], metrics["dropped.no_reply"]) == (1, 1, 1)
    for cause in ("duplicate", "long", "contaminated"):
        assert metrics[f"dropped.{cause}"] > 1
    assert metrics["rows.not_needed"] > 1
    assert metrics["contaminated.piqa"] == metrics["contaminated.mmlu"] == metrics["dropped.contaminated"]
    assert (metrics["contaminated.toxigen"], metrics["contaminated.items"]) == (0, 3)


def test_an_account_that_does_not_add_up_is_an_error() -> None:
    with pytest.raises(AssertionError, match="3 rows read, 2 accounted for"):
        RowCounts(read=3, kept=2).check()


def test_the_order_of_rows_and_files_does_not_matter(many: list[dict[str, str]], tmp_path: Path) -> None:
    train, held, account = sample(write(tmp_path / "one/a.jsonl", many), kept=50, heldout=20)
    shuffled = random.Random(1).sample(many, len(many))
    write(tmp_path / "two/z.jsonl", shuffled[:200])
    train2, held2, account2 = sample(write(tmp_path / "two/b.jsonl", shuffled[200:]), kept=50, heldout=20)
    assert (ids(train), ids(held)) == (ids(train2), ids(held2))
    assert account.metrics(TASKS) == account2.metrics(TASKS)


@pytest.mark.parametrize("role", Role)
def test_the_number_of_processes_does_not_matter(role: Role, posts: Path) -> None:
    train, held, account = sample(posts, "shp", role)
    train2, held2, account2 = sample(posts, "shp", role, processes=2)
    assert (ids(train), ids(held)) == (ids(train2), ids(held2)) and train
    assert account == account2


READS = """
import sys, time
from functools import partial
from pathlib import Path
import psutil
from alignment.corpora import Role
from alignment.sampling import reader
from alignment.sampling.order import RowOrder

if __name__ == "__main__":
    policy = RowOrder("own", Role.demonstrations, Path(sys.argv[1]), 0, 0, 0.3, 0)
    with reader.reading(policy, partial(partial, len), 2) as source:
        source.keys()
        print(*(child.pid for child in psutil.Process().children(recursive=True)), flush=True)
        time.sleep(60)
"""


def test_the_processes_end_with_the_stage_that_is_killed(many: list[dict[str, str]], tmp_path: Path) -> None:
    raw, script = write(tmp_path / "raw/a.jsonl", many), tmp_path / "reads.py"
    script.write_text(READS)
    environment = os.environ | {"PYTHONPATH": str(MINI.parents[1])}
    stage = subprocess.Popen([sys.executable, script, raw], stdout=subprocess.PIPE, text=True, env=environment)
    assert stage.stdout
    children = [psutil.Process(int(number)) for number in stage.stdout.readline().split()]
    assert len(children) >= 3  # those that read, and the one that they are forks of
    stage.kill()
    _, alive = psutil.wait_procs(children, timeout=20)
    stage.wait()
    stage.stdout.close()
    assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]


def test_a_refusal_in_another_process_is_told(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw/a.jsonl", [{"text": "x"}])
    with pytest.raises(Refused, match=r"a.jsonl:1: found the columns text"):
        sample(raw, processes=2)


def test_row_groups_of_parquet_do_not_matter(many: list[dict[str, str]], tmp_path: Path) -> None:
    table = pa.Table.from_pylist(many)
    for name, size in (("one", 10**6), ("many", 7)):
        (tmp_path / name).mkdir()
        pq.write_table(table, tmp_path / name / "a.parquet", row_group_size=size)
    one, many_groups = (sample(tmp_path / name, kept=50, heldout=20) for name in ("one", "many"))
    assert ids(one[0]) == ids(many_groups[0]) and one[2] == many_groups[2]
    assert ids(one[0]) == ids(sample(write(tmp_path / "lines/a.jsonl", many), kept=50, heldout=20)[0])


def test_asking_for_more_gives_a_superset_in_the_same_order(many: list[dict[str, str]], tmp_path: Path) -> None:
    raw = write(tmp_path / "raw/a.jsonl", many)
    few, more, held = sample(raw, kept=20, heldout=5), sample(raw, kept=60, heldout=5), sample(raw, heldout=15)[1]
    assert (len(few[0]), len(more[0]), len(few[1]), len(held)) == (20, 60, 5, 15)
    assert ids(few[0]) == ids(more[0])[:20] and ids(few[1]) == ids(more[1]) == ids(held)[:5]


def test_the_seed_changes_training_rows_and_never_held_out_ones(many: list[dict[str, str]], tmp_path: Path) -> None:
    raw = write(tmp_path / "raw/a.jsonl", many)
    first, second, third = (sample(raw, seed=seed, kept=20, heldout=9) for seed in (0, 1, 0))
    assert ids(first[0]) != ids(second[0]) and ids(first[0]) == ids(third[0])
    assert ids(first[1]) == ids(second[1])
    assert ids(sample(raw, item_seed=1, heldout=9)[1]) != ids(first[1])


def test_no_opening_stands_on_both_sides(many: list[dict[str, str]], tmp_path: Path) -> None:
    train, held, _ = sample(write(tmp_path / "raw/a.jsonl", many), heldout=3)
    openings = [{row.measured.opening for row in rows} for rows in (train, held)]
    assert openings[0] and openings[1] and not openings[0] & openings[1]


def hh(*turns: str) -> str:
    return "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {text}" for i, text in enumerate(turns))


def test_where_files_are_held_out_their_openings_are_not_trained(tmp_path: Path) -> None:
    train = [{"chosen": hh(q, "A"), "rejected": hh(q, "B")} for q in ("Shared?", "Other?")]
    test = [{"chosen": hh("SHARED", "C", "D", "E"), "rejected": hh("SHARED", "C", "D", "F")}]
    write_gz(tmp_path / "helpful-base/train.jsonl.gz", train)
    write_gz(tmp_path / "helpful-base/test.jsonl.gz", test)
    kept, held, account = sample(tmp_path, "hh", Role.comparisons)
    assert [row.example["prompt"][0]["content"] for row in kept] == ["Other?"]
    assert [row.example["chosen"][0]["content"] for row in held] == ["E"]
    assert account.dropped == {Cause.heldout_prompt: 1}


def write_gz(path: Path, rows: Iterable[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


def shp(post: str, a: str, b: str, score_a: int, score_b: int, domain: str = "askculinary") -> dict[str, Any]:
    row = {"post_id": post, "history": f"Post {post}?", "human_ref_A": a, "human_ref_B": b}
    ratio = max(score_a, score_b) / min(score_a, score_b)
    scores = {"score_A": score_a, "score_B": score_b, "labels": int(score_a > score_b), "score_ratio": ratio}
    return {**row, **scores, "domain": domain}


@pytest.fixture
def posts(tmp_path: Path) -> Path:
    rows = [shp("p", f"reply {i}", "the worst", 10 + i, 2) for i in range(9)] + [shp("q", "one", "two", 3, 9)]
    write(tmp_path / "raw/askculinary/train.json", rows)
    write(tmp_path / "raw/askculinary/test.json", [shp("t", "x", "y", 9, 1)])
    return tmp_path / "raw"


def test_at_most_a_cap_of_comparisons_of_a_group(posts: Path) -> None:
    train, held, account = sample(posts, "shp", Role.comparisons)
    assert (len(train), len(held), account.dropped) == (6, 1, {Cause.group_cap: 4})


def test_strata_keep_their_shares_however_many_rows_are_taken(tmp_path: Path) -> None:
    sizes = {"askculinary": 60, "explainlikeimfive": 30, "askphysics": 10}
    rows = [shp(f"{domain}{i}", f"{i} is so", "no", 9, 1, domain) for domain, n in sizes.items() for i in range(n)]
    raw = write(tmp_path / "raw/train.json", random.Random(0).sample(rows, 100))
    for kept in (10, 20, 50):
        train, _, _ = sample(raw, "shp", Role.comparisons, kept=kept)
        texts = [row.example["prompt"][0]["content"] for row in train]
        found = {domain: sum(domain in text for text in texts) for domain in sizes}
        assert found == {domain: n * kept // 100 for domain, n in sizes.items()}


def test_a_group_s_demonstration_is_its_best_reply_once(posts: Path) -> None:
    train, held, account = sample(posts, "shp", Role.demonstrations)
    assert {row.example["messages"][1]["content"] for row in train} == {"reply 8", "two"}
    assert len(held) == 1 and account.dropped == {Cause.not_best: 8}


@pytest.mark.parametrize(
    ("other", "duplicate"),
    [
        (demo("How IS   it", "good"), True),
        (demo("How is it? -- ", "Good!"), True),
        (demo("How is it", "Ｇｏｏｄ"), True),
        (demo("How is it", "goody"), False),
        (demo("How is it not", "good"), False),
    ],
)
def test_duplicates(tmp_path: Path, other: dict[str, str], duplicate: bool) -> None:
    rows = [demo("How is it?", "Good."), other]
    train, _, account = sample(write(tmp_path / "raw/a.jsonl", rows), share=0)
    assert len(train) == 2 - duplicate and account.dropped[Cause.duplicate] == duplicate


WORDS = [f"word{number}" for number in range(60)]


def test_near_duplicates_are_dropped_and_counted(tmp_path: Path) -> None:
    said = " ".join(WORDS)
    rows = [demo("Tell me", said), demo("Tell me", f"{said} again"), demo("Tell me", " ".join(reversed(WORDS)))]
    raw = write(tmp_path / "raw/a.jsonl", rows)
    assert sample(raw, share=0, near=0.8)[2].dropped == {Cause.near_duplicate: 1}
    assert not sample(raw, share=0, near=1)[2].dropped


def test_rows_of_one_group_may_be_nearly_the_same(tmp_path: Path) -> None:
    said = " ".join(WORDS)
    rows = [shp("p", f"{said} one", "no", 9, 1), shp("p", f"{said} two", "no", 9, 1)]
    rows = [{**row, "history": "The same post"} for row in [*rows, shp("q", f"{said} three", "no", 9, 1)]]
    train, _, account = sample(write(tmp_path / "raw/train.json", rows), "shp", Role.comparisons, near=0.8)
    posts = Counter(row.group for row in train)
    assert len(posts) == 1 and len(train) + account.dropped[Cause.near_duplicate] == 3


@pytest.mark.parametrize("shared", [0, 20, 100, 150, 190, 200])
def test_the_signature_estimates_the_share_of_common_runs(shared: int) -> None:
    """MinHash against the Jaccard index of the sets of runs, within four standard errors."""
    draw = random.Random(shared)
    common = [str(draw.random()) for _ in range(shared)]
    texts = [[*common, *(str(draw.random()) for _ in range(200 - shared))] for _ in range(2)]
    sets = [{tuple(words[i : i + 5]) for i in range(len(words) - 4)} for words in texts]
    true = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
    one, other = (deduplication.signature(hashes(words)) for words in texts)
    assert abs(float((one == other).mean()) - true) <= 4 * (true * (1 - true) / 128) ** 0.5


def test_short_texts_have_a_signature_of_all_their_words() -> None:
    same, other, none = (deduplication.signature(hashes(words)) for words in (["a", "b"], ["a", "c"], []))
    assert (same == deduplication.signature(hashes(["a", "b"]))).all()
    assert not (same == other).any() and not (same == none).any()


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("Stra\u00dfe", "STRASSE", True),
        ("caf\u00e9", "cafe\u0301", True),
        ("\ufb01ne \u2460 wor\u00addy", "fine 1 wor\u00addy", True),
        ("it’s", "it's", True),
        ("a\n\tb", " A, b.", True),
        ("1.5", "15", False),
        ("你好 世界", "你好世界。", True),
        ("ソフトウェア", "ｿﾌﾄｳｪｱ", True),
        ("한국 어", "한국어", False),
    ],
)
def test_normal(one: str, other: str, equal: bool) -> None:
    assert (normal(one) == normal(other)) is equal


# The wrong shape


def test_malformed_rows_beyond_the_limit_stop_with_place_found_and_wanted(tmp_path: Path) -> None:
    rows: list[Any] = [demo("Q", "A")] * 3 + [{"text": "x"}, demo("Q", "\ud800"), {"messages": 3}]
    raw = write(tmp_path / "raw/a.jsonl", rows)
    assert sample(raw, malformed=3, share=0)[2].dropped[Cause.malformed] == 3
    with pytest.raises(Refused) as refused:
        sample(raw, malformed=2)
    message = str(refused.value)
    assert "2 are allowed (`sample.malformed`)" in message
    assert f"{raw}/a.jsonl:4: found the columns text, wanted 'messages', or 'prompt' and 'completion'" in message
    assert f"{raw}/a.jsonl:5: found half a surrogate pair, '\\ud800', wanted" in message
    assert f"{raw}/a.jsonl:6: found int in 'messages', wanted list" in message


def test_the_first_five_malformed_rows_are_shown_and_no_more_are_read(tmp_path: Path) -> None:
    rows: list[Any] = [{"text": "x"}] * 7
    raw = write(tmp_path / "raw/a.jsonl", rows)
    with (raw / "a.jsonl").open("a") as stream:
        stream.write("this line is never reached\n")
    with pytest.raises(Refused, match="5 or more rows have the wrong shape, 0 are allowed") as refused:
        sample(raw)
    assert str(refused.value).count("a.jsonl:") == 5


# Contamination


def contamination(items: dict[str, Iterable[tuple[str, str, str]]], text: str) -> list[Item]:
    return Contamination(items, 13)(hashes(normal(text)))


LONG = "A farmer leaves his wet boots beside the stove every night. Why do they crack?"
ITEMS: dict[str, Iterable[tuple[str, str, str]]] = {
    "piqa": [
        ("heat", LONG, "Dry heat shrinks the leather of the boots too fast."),
        ("cold", LONG, "The cold of the night makes them shrink."),
    ],
    "arc_challenge": [("stove", "Which of these boils a kettle fastest on a stove?", "steam")],
    "truthfulqa_mc2": [
        ("stone", "What happens to you if you swallow a cherry stone?", "It passes through you, and you will be fine.")
    ],
    "mmlu": [("who", "Who painted it?", "Artemisia Gentileschi of Rome"), ("sum", "7 + 5", "12")],
}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"Tell me. {LONG} I wonder.", [("piqa", "cold"), ("piqa", "heat")]),
        (LONG.upper().replace(" ", "\n"), [("piqa", "cold"), ("piqa", "heat")]),
        ("He leaves his wet boots beside the stove every night.", []),
        ("Every night, why do they crack? Dry heat shrinks the leather of the boots too fast.", [("piqa", "heat")]),
        ("which of these boils a kettle fastest on a stove", [("arc_challenge", "stove")]),
        ("Which of these boils a kettle faster on a stove? Steam.", []),
        ("What happens to you if you swallow a cherry stone? A tree grows.", [("truthfulqa_mc2", "stone")]),
        ("Who painted it? Artemisia Gentileschi, of Rome.", [("mmlu", "who")]),
        ("Who painted it? Rembrandt.", []),
        ("7 + 5 = 12", []),
        (
            f"{LONG} The cold of the night. Who painted it? Artemisia Gentileschi of Rome.",
            [("mmlu", "who"), ("piqa", "cold"), ("piqa", "heat")],
        ),
        ("", []),
    ],
)
def test_the_items_inside_a_text_are_found_and_named(text: str, found: list[Item]) -> None:
    assert contamination(ITEMS, text) == found


OPENBOOKQA = {
    "id": "7-980",
    "question_stem": "The sun is responsible for",
    "choices": {"text": ["puppies", "plants sprouting and wilting"], "label": ["A", "B"]},
    "answerKey": "B",
    "subject": "one of the many facts about the natural world that every school child knows",
}
SCIQ = {
    "question": "What type of organism is commonly used in preparation of foods such as cheese?",
    "correct_answer": "mesophilic organisms",
    "support": "",
    "subject": OPENBOOKQA["subject"],
}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The sun is responsible for plants sprouting and wilting.", [0]),
        ("Plants sprouting and wilting: the sun is responsible for ...", [0]),
        ("Is the sun responsible for plants sprouting and wilting?", []),
        ("The sun is responsible for a lot.", []),
        ("Tell me what type of organism is commonly used in preparation of foods such as cheese?", [1]),
        (OPENBOOKQA["subject"], []),
        ("The sun is responsible for B", []),
    ],
)
def test_the_items_of_a_task_whose_columns_nobody_named_are_found(text: str, found: list[int]) -> None:
    texts = [(str(number), *pair) for number, *pair in decontamination.telling([OPENBOOKQA, SCIQ])]
    assert contamination({"other": texts}, text) == [("other", str(number)) for number in found]


CHINESE = [
    {"question": "下列关于光合作用的说法，正确的是哪一项？", "A": "只在夜间进行", "B": "释放氧气", "answer": "B"},
    {"question": "下列说法中，正确的是哪一项？", "A": "鲸是鱼", "B": "蝙蝠属于哺乳动物", "answer": "B"},
    {"question": "《红楼梦》的作者是谁？", "A": "曹雪芹", "B": "罗贯中", "answer": "A"},
]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("老师问：下列关于光合作用的说法正确的是哪一项", [0]),
        ("请回答《红楼梦》的作者是谁？曹雪芹", [2]),
        ("下列说法中，正确的是哪一项？B 蝙蝠会飞", []),
        ("曹雪芹和罗贯中都是作家", []),
        ("《红楼梦》的作者是谁，我不知道", []),
    ],
)
def test_items_in_a_script_without_spaces_are_found_inside_a_text(text: str, found: list[int]) -> None:
    texts = [(str(number), *pair) for number, *pair in decontamination.telling(CHINESE)]
    assert contamination({"other": texts}, text) == [("other", str(number)) for number in found]


def test_a_task_of_one_item_has_its_texts() -> None:
    assert {text for _, text, _ in decontamination.telling([SCIQ])} == {value for value in SCIQ.values() if value}


@pytest.mark.parametrize("sides", [("messages",), ("prompt", "chosen", "rejected"), ("prompt", "rejected", "chosen")])
def test_an_item_is_found_across_the_turns_of_a_row(sides: tuple[str, ...]) -> None:
    turns = [{"role": "user", "content": "Who painted it?"}, {"role": "assistant", "content": "Gentileschi?"}]
    answer = {"role": "assistant", "content": "Artemisia Gentileschi of Rome!"}
    parts = [[turns[0], answer]] if sides == ("messages",) else [turns[:1], [answer], turns[1:]]
    example = dict(zip(sides, parts, strict=True))
    assert contamination(ITEMS, corpora.whole_text(example)) == [("mmlu", "who")]


@pytest.mark.parametrize("task", tasks.BENCHMARKS)
def test_every_embedded_item_has_a_text_and_is_found(task: str, tmp_path: Path) -> None:
    (tmp_path / task).symlink_to(MINI / pins.BENCHMARKS[task].name, target_is_directory=True)
    texts = list(tasks.texts(tmp_path, task))
    find = Contamination({task: texts}, 13)
    quoted = [(name, normal(f"{question} {answer}")) for name, question, answer in texts]
    assert texts and all((task, name) in find(hashes(words)) for name, words in quoted if len(words) >= 4)


def test_a_benchmark_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"piqa has no piqa_validation.parquet; run `dvc repro fetch-benchmarks`"):
        list(tasks.items(tmp_path, "piqa"))


# The table


def test_the_table_is_trl_s_format_with_a_split(tmp_path: Path) -> None:
    rows = [{"prompt": "Q", "chosen": "A", "rejected": "B", "margin": 2.5}]
    train, _, _ = sample(write(tmp_path / "raw/a.jsonl", rows), role=Role.comparisons, share=0)
    assert curation.table(Role.comparisons, train, []).to_pylist() == [
        {
            "id": train[0].id,
            "split": "train",
            "prompt": [{"role": "user", "content": "Q"}],
            "chosen": [{"role": "assistant", "content": "A"}],
            "rejected": [{"role": "assistant", "content": "B"}],
            "margin": 2.5,
        }
    ]
