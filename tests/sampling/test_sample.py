"""The stage `sample`: rows in, a table and an account out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alignment import corpora
from alignment.corpora import Cause, Role
from alignment.fetching import pins, repositories
from alignment.models import chat, loading
from alignment.models.chat import Template
from alignment.objectives import sft
from alignment.runtime import Refused, files
from alignment.sampling import curation
from alignment.scoring.benchmarks import tasks
from stages import sample

MINI = Path(__file__).parents[2] / "data/mini"
LIMITS: dict[str, Any] = {
    "rows": 10**6,
    "heldout": 10**6,
    "heldout_share": 0.3,
    "max_prompt_tokens": 10**6,
    "max_tokens": 1 << 16,  # all that the tiny model can read
    "contamination_ngram": 13,
    "near_duplicate": 1.0,
    "mentions": ["women=woman women"],
    "malformed": 0,
    "template": Template.chatml,
    "seed": 0,
    "item_seed": 0,
}
OUTS = ("rows.parquet", "contaminated.parquet", "metrics.json")
ROWS = [{"prompt": f"Question {i}?", "completion": f"Answer {i}."} for i in range(12)]

Sample = Callable[..., tuple[list[dict[str, Any]], dict[str, float]]]


@pytest.fixture(scope="session")
def benchmark_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks")
    for task, repository in pins.BENCHMARKS.items():
        (folder / task).symlink_to(MINI / repository.name, target_is_directory=True)
    return folder


@pytest.fixture
def run(tiny: Path, benchmark_folder: Path, tmp_path: Path) -> Sample:
    """Run the stage on rows of `own`, or on a fetched folder; give back its table and its metrics."""

    def run(raw: Path | list[Any], name: str = "out", corpus: str = "own", **change: Any) -> Any:
        if isinstance(raw, list):
            (tmp_path / "raw").mkdir(exist_ok=True)
            (tmp_path / "raw/own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in raw))
            raw = tmp_path / "raw"
        out, contaminated, metrics = (tmp_path / name / file for file in OUTS)
        options = {"role": Role.demonstrations, "corpus": corpus, **LIMITS, **change}
        looked_for = options.pop("benchmarks", benchmark_folder)
        sample.main(raw, tiny, looked_for, out, contaminated, metrics, **options)
        return pq.read_table(out).to_pylist(), files.read_json(metrics)

    return run


def test_rows_get_a_split_and_every_row_a_place_in_the_account(run: Sample) -> None:
    rows, metrics = run([*ROWS, {"prompt": "", "completion": "A"}], rows=4)
    assert metrics["rows.kept"] == sum(row["split"] == "train" for row in rows) == 4
    assert (
        metrics["rows.heldout"] == sum(row["split"] == "heldout" for row in rows) == 12 - 4 - metrics["rows.not_needed"]
    )
    assert (metrics["rows.read"], metrics["dropped.empty_turn"]) == (13, 1)
    assert len({row["id"] for row in rows}) == len(rows)


def test_figures_of_tokens_are_those_of_the_rows_to_train_on(run: Sample, tiny: Path) -> None:
    rows, metrics = run(ROWS)
    encoded = chat.Chat(loading.tokenizer(tiny), Template.chatml)
    lengths = [len(encoded.demonstration(row["messages"])["input_ids"]) for row in rows if row["split"] == "train"]
    assert metrics["tokens.total"] == sum(lengths)


@pytest.mark.parametrize(("limit", "cause"), [("max_prompt_tokens", "long_prompt"), ("max_tokens", "long")])
def test_long_rows_are_dropped_and_counted_and_no_error(run: Sample, limit: str, cause: str) -> None:
    long = (
        {"prompt": "Question? " * 40, "completion": "A"}
        if cause == "long_prompt"
        else {"prompt": "Q", "completion": "A " * 300}
    )
    rows, metrics = run([*ROWS, long], **{limit: 200})
    assert (len(rows), metrics[f"dropped.{cause}"], metrics["rows.read"]) == (12, 1, 13)


def test_a_limit_beyond_what_the_model_can_read_is_refused_at_once(run: Sample, tmp_path: Path) -> None:
    message = r"`sample\.max_tokens` is 65537, and the base model in .* can read 65536 tokens; set it to at most 65536"
    with pytest.raises(Refused, match=message):
        run(tmp_path / "no such folder", max_tokens=(1 << 16) + 1)


def test_the_limit_on_prompts_counts_what_the_template_adds(run: Sample, tiny: Path) -> None:
    encoded = chat.Chat(loading.tokenizer(tiny), Template.chatml)
    exact = max(len(encoded.prompt([{"role": "user", "content": row["prompt"]}])) for row in ROWS)
    assert run(ROWS, max_prompt_tokens=exact)[1]["dropped.long_prompt"] == 0
    assert run(ROWS, max_prompt_tokens=exact - 1)[1]["dropped.long_prompt"] == 2  # questions 10 and 11


def test_nothing_left_is_refused_with_the_causes_and_writes_nothing(run: Sample, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"of 12 demonstrations of 'own' none is left(.|\n)*long: 12(.|\n)*`sample`"):
        run(ROWS, max_tokens=3)
    with pytest.raises(
        Refused, match=r"none is left to train on\n.*lower `sample\.heldout_share`, now 1 of the openings"
    ):
        run(ROWS, heldout_share=1)
    with pytest.raises(Refused, match=r"left to hold out\nof 12 rows .* raise `sample\.heldout_share`, now 0\.01 of"):
        run(ROWS, heldout_share=0.01)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {".rows.parquet.lock"}


def test_a_prompt_s_replies_and_those_of_weight_0_reach_training_untrained(
    run: Sample, tiny: Path, tmp_path: Path
) -> None:
    rows: list[Any] = []
    for number in range(12):
        said = [{"role": role, "content": f"{role} {number}"} for role in ("user", "assistant", "user")]
        reply = {"role": "assistant", "content": f"Good {number}."}
        weighed = {"messages": [*({**turn, "weight": 0} for turn in said), reply]}
        rows.append(weighed if number % 2 else {"prompt": said, "completion": [reply]})
    table, metrics = run(rows)
    encoded = chat.Chat(loading.tokenizer(tiny), Template.chatml)
    trained = []
    for row in sft.encode(encoded, table):
        trained.append(encoded.tokenizer.decode([label for label in row["labels"] if label != chat.IGNORED]))
        assert "assistant\nassistant " in encoded.tokenizer.decode(row["input_ids"])
    assert sorted(trained) == sorted(f"Good {number}.</s>" for number in range(12))
    assert metrics["tokens.reply.mean"] < 12  # what is trained; all else is prompt
    fields = pq.read_schema(tmp_path / "out/rows.parquet").field("messages").type.value_type
    assert [field.name for field in fields] == ["role", "content", "trained"]


def test_which_turns_are_trained_is_part_of_what_orders_a_row(run: Sample) -> None:
    asked = [{"role": "user", "content": "P"}, {"role": "assistant", "content": "R"}, {"role": "user", "content": "Q"}]
    twins = [{"prompt": asked, "completion": "A"}, {"messages": [*asked, {"role": "assistant", "content": "A"}]}]
    kept = [run([*ROWS, *order], heldout_share=0.3)[0] for order in (twins, twins[::-1])]
    assert kept[0] == kept[1]  # one of the two, as their texts are the same, and whichever order they have


def test_malformed_rows_stop_the_stage_unless_allowed(run: Sample) -> None:
    rows = [*ROWS, {"text": "another shape"}]
    with pytest.raises(Refused, match=r"own\.jsonl:13: found the columns text, wanted 'messages'"):
        run(rows)
    assert run(rows, malformed=1)[1]["dropped.malformed"] == 1


def test_a_set_without_the_role_is_refused(run: Sample) -> None:
    with pytest.raises(Refused, match="'lima' has no comparisons"):
        run([], corpus="lima", role=Role.comparisons)


@pytest.mark.parametrize("task", tasks.BENCHMARKS)
def test_a_benchmark_s_item_never_trains(run: Sample, benchmark_folder: Path, task: str) -> None:
    _, question, answer = longest(benchmark_folder, task)
    _, metrics = run([*ROWS, {"prompt": f"Look: {question}", "completion": answer or "Yes."}])
    found = {name for name, count in metrics.items() if name.startswith("contaminated.") and count}
    assert (metrics["dropped.contaminated"], found) == (1, {f"contaminated.{task}", "contaminated.items"})


STEMS = ("a magnet", "the moon", "a frozen lake", "an oak", "a river bed", "iron", "a hungry owl", "salt")
ENDS = ("melts into the warm sea", "attracts a nail of steel", "was formed by running water", "hunts mice after dark")
OPENBOOKQA = [
    {
        "id": f"{number}-{place}",
        "question_stem": f"It is known that {stem}" if place % 2 else f"Which of these is true of {stem} in the open",
        "choices": {"text": [f"{end} {number}", f"nothing of {number} at all"], "label": ["A", "B"]},
        "answerKey": "A",
    }
    for number, stem in enumerate(STEMS)
    for place, end in enumerate(ENDS)
]


def test_every_scored_task_is_looked_for(run: Sample, more: Path, tmp_path: Path) -> None:
    """Word for word as the task's rows have it; what is found has the name that `eval` gives it."""
    planted = [{"prompt": item["question_stem"], "completion": item["choices"]["text"][0]} for item in OPENBOOKQA]  # type: ignore[index]
    table, metrics = run([*ROWS, *planted], benchmarks=more)
    assert len(table) == metrics["rows.kept"] + metrics["rows.heldout"] == len(ROWS)
    assert metrics["dropped.contaminated"] == metrics["contaminated.openbookqa"] == len(planted)
    found = pq.read_table(tmp_path / "out/contaminated.parquet").to_pylist()
    names = {tasks.name(row) for row in tasks.items(more, "openbookqa")}
    assert {(row["task"], row["item"]) for row in found} == {("openbookqa", name) for name in names}


def test_what_is_sampled_beside_a_task_is_what_is_sampled_without_it(run: Sample, more: Path, tmp_path: Path) -> None:
    run(ROWS, "with", benchmarks=more)
    run(ROWS, "without")
    for name in OUTS[:2]:
        assert files.sha256(tmp_path / "with" / name) == files.sha256(tmp_path / "without" / name)


@pytest.fixture
def more(benchmark_folder: Path, tmp_path: Path) -> Path:
    """The fetched benchmarks with another task."""
    folder = tmp_path / "benchmarks"
    (folder / "openbookqa/main").mkdir(parents=True)
    for path in benchmark_folder.iterdir():
        (folder / path.name).symlink_to(path.resolve())
    pq.write_table(pa.Table.from_pylist(OPENBOOKQA), folder / "openbookqa/main/test-00000-of-00001.parquet")
    files.write_json(folder / "openbookqa/provenance.json", {"repository": "allenai/openbookqa"})
    return folder


def longest(benchmark_folder: Path, task: str) -> tuple[str, str, str]:
    """The name, the question and the answer of the benchmark's item of most characters."""
    return max(tasks.texts(benchmark_folder, task), key=lambda text: len(" ".join(text)))


def test_the_items_in_a_refused_row_are_named_with_its_id(run: Sample, benchmark_folder: Path, tmp_path: Path) -> None:
    (arc, question, answer), (piqa, goal, solution) = (longest(benchmark_folder, t) for t in ("arc_challenge", "piqa"))
    turns = [
        {"role": "user", "content": f"{question} {answer}"},
        {"role": "assistant", "content": f"{goal} {solution}"},
    ]
    _, metrics = run([*ROWS, {"messages": turns}, {"messages": turns}])
    row = files.digest({"messages": turns})[:16]
    assert pq.read_table(tmp_path / "out/contaminated.parquet").to_pylist() == [
        {"row": row, "task": "arc_challenge", "item": arc},
        {"row": row, "task": "piqa", "item": piqa},
    ]
    assert (metrics["dropped.contaminated"], metrics["contaminated.items"]) == (2, 2)
    assert (metrics["contaminated.arc_challenge"], metrics["contaminated.piqa"]) == (2, 2)


def test_where_no_item_is_found_the_file_is_empty_with_its_schema(run: Sample, tmp_path: Path) -> None:
    _, metrics = run(ROWS)
    found = pq.read_table(tmp_path / "out/contaminated.parquet")
    assert (found.num_rows, metrics["contaminated.items"]) == (0, 0) and found.schema == curation.FOUND


@pytest.fixture
def planted(benchmark_folder: Path) -> list[dict[str, str]]:
    """A row for every embedded item that is long enough to be found."""
    texts = (text for task in tasks.BENCHMARKS for text in tasks.texts(benchmark_folder, task))
    found = [(question, answer) for _, question, answer in texts if len(f"{question} {answer}".split()) > 20]
    return [{"prompt": f"Look: {question}", "completion": answer or "Yes."} for question, answer in found]


def test_items_in_rows_that_were_not_needed_are_not_named(
    run: Sample, planted: list[dict[str, str]], tmp_path: Path
) -> None:
    _, metrics = run([*ROWS, *planted], rows=1, heldout=1)
    named = {row["row"] for row in pq.read_table(tmp_path / "out/contaminated.parquet").to_pylist()}
    assert 0 < len(named) == metrics["dropped.contaminated"] < len(planted)


def test_the_order_of_rows_does_not_change_the_bytes(
    run: Sample, planted: list[dict[str, str]], tmp_path: Path
) -> None:
    for name, rows in (("one", [*ROWS, *planted]), ("two", [*planted[::-1], *ROWS])):
        run(rows, name)
    found = [tuple(row.values()) for row in pq.read_table(tmp_path / "one/contaminated.parquet").to_pylist()]
    assert len(found) >= len(planted) and found == sorted(set(found))
    assert files.tree_sha256(tmp_path / "one") == files.tree_sha256(tmp_path / "two")


@pytest.fixture
def trained(run: Sample) -> Callable[..., tuple[list[dict[str, Any]], dict[str, float]]]:
    """The embedded rows of a set."""

    def trained(corpus: str, role: Role, **change: Any) -> Any:
        source = MINI / "own" if corpus == "own" else MINI / corpora.load(corpus).SOURCE.name
        return run(source, f"{corpus}-{role}", corpus, role=role, **change)

    return trained


SETS = [("hh", Role.comparisons), ("shp", Role.comparisons), ("hh", Role.demonstrations), ("lima", Role.demonstrations)]
SETS += [("orca", Role.demonstrations), ("shp", Role.demonstrations)]


def test_all_sets_have_the_same_columns_of_metrics(trained: Sample) -> None:
    columns: dict[Role, list[list[str]]] = {role: [] for role in Role}
    for corpus, role in SETS:
        rows, metrics = trained(corpus, role)
        columns[role].append(list(metrics))
        assert list(rows[0]) == curation.SCHEMAS[role].names
        assert sum(metrics[name] for name in metrics if name.startswith("dropped.")) == (
            metrics["rows.read"] - metrics["rows.kept"] - metrics["rows.heldout"] - metrics["rows.not_needed"]
        )
        assert {row["split"] for row in rows} == {"train", "heldout"}
    for found in columns.values():
        assert len(found) > 1 and all(names == found[0] for names in found)
        assert {f"dropped.{cause}" for cause in Cause} < set(found[0])
        assert {f"contaminated.{task}" for task in tasks.BENCHMARKS} < set(found[0])
        assert {"mentions.women.prompt", "mentions.women.reply", "diversity.reply"} < set(found[0])
    assert {"length.difference.mean", "overlap.words", "margin.mean"} < set(columns[Role.comparisons][0])


def test_equal_inputs_give_equal_bytes(run: Sample, tmp_path: Path) -> None:
    for name in ("one", "two"):
        run(MINI / "Anthropic/hh-rlhf", name, "hh", role=Role.comparisons, rows=40, heldout=8)
    assert files.tree_sha256(tmp_path / "one") == files.tree_sha256(tmp_path / "two")
    run(MINI / "Anthropic/hh-rlhf", "three", "hh", role=Role.comparisons, rows=40, heldout=8, seed=1)
    assert files.sha256(tmp_path / "three/rows.parquet") != files.sha256(tmp_path / "one/rows.parquet")


REAL: list[tuple[str, Role, dict[str, int]]] = [
    (
        "lima",
        Role.demonstrations,
        {"rows.read": 1029, "rows.kept": 973, "rows.heldout": 42, "dropped.contaminated": 14}
        | {"contaminated.hellaswag": 12, "contaminated.arc_challenge": 1, "contaminated.mmlu": 1}
        | {"contaminated.items": 14},
    ),
    (
        "orca",
        Role.demonstrations,
        {"rows.read": 384, "rows.kept": 362, "rows.heldout": 20, "dropped.contaminated": 2}
        | {"contaminated.hellaswag": 1, "contaminated.mmlu": 1, "contaminated.items": 2},
    ),
    (
        "hh",
        Role.demonstrations,
        {"rows.read": 4666, "rows.kept": 4188, "rows.heldout": 400, "dropped.heldout_prompt": 49}
        | {"dropped.turn_order": 17, "dropped.near_duplicate": 7, "dropped.empty_turn": 5},
    ),
    (
        "hh",
        Role.comparisons,
        {"rows.read": 4666, "rows.kept": 4184, "rows.heldout": 399, "dropped.heldout_prompt": 49}
        | {"dropped.turn_order": 24, "dropped.empty_turn": 8, "dropped.equal_sides": 2},
    ),
]


@pytest.mark.parametrize(("corpus", "role", "wanted"), REAL)
def test_real_rows_are_accounted_for_exactly(
    corpus: str, role: Role, wanted: dict[str, int], tiny: Path, mirror: Path, tmp_path: Path, soak: bool
) -> None:
    """All that is found in real rows, items of the real benchmarks included: LOG.md says what was read in them."""
    if (corpus, role) == ("hh", Role.demonstrations) and not soak:
        pytest.skip("in the soak; `make test` reads the same rows as comparisons")
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    for task, repository in pins.BENCHMARKS.items():
        (folder / task).symlink_to(mirror / repository.name, target_is_directory=True)
    (tmp_path / "raw").mkdir()
    repositories.fetch(corpora.load(corpus).SOURCE, str(mirror), tmp_path / "raw")
    outs = [tmp_path / file for file in OUTS]
    options = {**LIMITS, "near_duplicate": 0.8, "heldout_share": 0.05}
    sample.main(tmp_path / "raw", tiny, folder, *outs, role=role, corpus=corpus, **options)
    counts = {name: n for name, n in files.read_json(outs[2]).items() if name.startswith(("rows", "drop", "contam"))}
    assert {name: n for name, n in counts.items() if n} == wanted
