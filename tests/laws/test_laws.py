"""Laws 1 and 2: no network after `fetch`, same inputs give same bytes. Law 4 is in test_resume.py."""

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pipeline
import pytest

from alignment.corpora import Role
from alignment.models import loading
from alignment.runtime import files
from alignment.scoring.benchmarks import evaluation
from alignment.scoring.benchmarks.tasks import BENCHMARKS

STAGES = {
    "sample": ["data/sampled", "metrics/sample"],
    "sft": ["models/sft", "metrics/sft.json", "metrics/curves/sft.csv"],
    "dpo": ["models/dpo", "metrics/dpo.json", "metrics/curves/dpo.csv"],
    "eval": ["data/eval", "metrics/eval"],
    "safety": ["data/safety", "metrics/safety"],
    "report": ["metrics/report.md", "metrics/plots"],
}


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs of the tiny pipeline in folders of other names; the second cannot open a socket."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    pipeline.fetch_all(one)
    pipeline.fetch_all(two)
    pipeline.run(one)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "socket", _closed)
        patch.setattr(socket, "getaddrinfo", _closed)
        pipeline.run(two)
    return one, two


def _closed(*_: Any, **__: Any) -> Any:
    raise AssertionError("a stage after fetch touched the network")


def hashes(folder: Path, place: str) -> dict[str, str]:
    path = folder / place
    paths = [path] if path.is_file() else sorted(inner for inner in path.rglob("*") if inner.is_file())
    assert paths, f"{place} is empty"
    return {inner.relative_to(folder).as_posix(): files.sha256(inner) for inner in paths if inner.suffix != ".lock"}


def test_fetch_gives_the_same_bytes(twice: tuple[Path, Path]) -> None:
    one, two = twice
    for place in ("models/base", "data/raw"):
        assert hashes(one, place) == hashes(two, place)


@pytest.mark.parametrize("stage", STAGES)
def test_stage_gives_the_same_bytes_without_a_network(stage: str, twice: tuple[Path, Path]) -> None:
    one, two = twice
    for place in STAGES[stage]:
        assert hashes(one, place) == hashes(two, place)


def test_outputs_name_no_machine(twice: tuple[Path, Path]) -> None:
    one, _ = twice
    written = [path for place in ("data", "metrics", "models") for path in (one / place).rglob("*") if path.is_file()]
    assert not [path.name for path in written if str(one).encode() in path.read_bytes()]
    assert not [path.name for path in written if path.suffix in {".bin", ".pt", ".pkl"}]


def test_nothing_is_left_beside_the_outputs(twice: tuple[Path, Path]) -> None:
    one, _ = twice
    assert not list(one.rglob(".*.partial"))
    assert not list((one / "state").rglob("checkpoint-*"))


def test_adapter_knows_its_base(twice: tuple[Path, Path], tiny: Path) -> None:
    one, _ = twice
    assert loading.lineage(one / "models/dpo")["parent"] == files.tree_sha256(one / "models/sft")
    with pytest.raises(loading.Refused, match="another base"):
        loading.load(tiny, one / "models/sft", loading.Dtype.float32, "cpu")


def test_sample_names_an_item_as_eval_does(twice: tuple[Path, Path], tmp_path: Path) -> None:
    """A raw row, known by its place in the benchmark's files, has one name in both tables."""
    import pyarrow.parquet as pq

    one, _ = twice
    for place in ("data/raw", "models/base"):
        shutil.copytree(one / place, tmp_path / place)
    parts = [p for task in BENCHMARKS for p in evaluation.items(one / "data/raw/benchmarks", task, None, 0)]
    raw = {(part.task, part.subject): part.rows for part in parts}
    wanted = set()
    with (tmp_path / "data/raw/demonstrations/train.jsonl").open("a") as stream:
        for scored in pq.read_table(one / "data/eval/base.parquet").to_pylist():
            question, answer = BENCHMARKS[scored["task"]].text(raw[scored["task"], scored["subject"]][scored["row"]])
            if len(f"{question} {answer}".split()) >= 13:
                turns = [f"Look: {question}", answer or "Yes."]
                stream.write(json.dumps({"conversations": turns, "source": "planted"}) + "\n")
                messages = [{"role": r, "content": c} for r, c in zip(("user", "assistant"), turns, strict=True)]
                wanted.add((files.digest({"messages": messages})[:16], scored["task"], scored["item"]))
    pipeline.sample_role(tmp_path, Role.demonstrations, rows=10**6, heldout=10**6)
    found = pq.read_table(tmp_path / "data/sampled/demonstrations.contaminated.parquet").to_pylist()
    assert {task for _, task, _ in wanted} == set(BENCHMARKS)
    assert wanted <= {(row["row"], row["task"], row["item"]) for row in found}


def test_seed_changes_training_rows_but_not_held_out_rows(twice: tuple[Path, Path], tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    one, _ = twice
    for place in ("data/raw", "models/base"):
        shutil.copytree(one / place, tmp_path / place)
    pipeline.sample_role(tmp_path, Role.comparisons, seed=1)
    ids: dict[str, list[set[str]]] = {"train": [], "heldout": []}
    for folder in (one, tmp_path):
        rows = pq.read_table(folder / "data/sampled/comparisons.parquet").to_pylist()
        for split, found in ids.items():
            found.append({row["id"] for row in rows if row["split"] == split})
    assert ids["train"][0] != ids["train"][1]
    assert ids["heldout"][0] == ids["heldout"][1]
