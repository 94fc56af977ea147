"""The stage itself: its files, equal bytes for equal inputs, adapters, refusals before anything heavy is loaded."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pipeline
import pyarrow.parquet as pq
import pytest

from alignment.fetching import pins
from alignment.models import loading
from alignment.models.chat import Template
from alignment.models.loading import Dtype
from alignment.runtime import Refused, files
from alignment.scoring.benchmarks import evaluation
from alignment.scoring.benchmarks.answers import PROMPTS
from stages import eval as stage

MINI = Path(__file__).parents[2] / "data" / "mini"
ITEMS = ["toxigen=6", "piqa=4", "mmlu=4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded benchmarks, as `fetch` lays them out."""
    root = tmp_path_factory.mktemp("benchmarks")
    for task, repository in pins.BENCHMARKS.items():
        (root / task).symlink_to(MINI / repository.name)
    return root


def run(base: Path, checkpoint: Path, folder: Path, out: Path, **changes: Any) -> list[Path]:
    """Run the stage and return its files."""
    written = [out / name for name in ("items.parquet", "answers.jsonl", "metrics.json")]
    options: dict[str, Any] = {"items": ITEMS, "token_budget": 512, "answer_tokens": 4, "template": Template.chatml}
    options |= {"item_seed": 0, "dtype": Dtype.float32, "device": "cpu", "state": out / "state", **changes}
    stage.main(base, checkpoint, folder, *written, **options)
    return written


@pytest.fixture(scope="module")
def adapter(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter on the tiny model that changes what it says."""
    import torch
    from peft import LoraConfig, get_peft_model

    out = tmp_path_factory.mktemp("adapter") / "sft"
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    model = get_peft_model(loading.load_base(tiny, Dtype.float32, "cpu"), config)
    loading.save_adapter(model, loading.tokenizer(tiny), tiny, out, {"base": loading.identity(tiny)})
    return out


def test_writes_items_answers_and_metrics(tiny: Path, folder: Path, tmp_path: Path) -> None:
    items, answers, metrics = run(tiny, tiny, folder, tmp_path)
    table = pq.read_table(items)
    assert table.schema == evaluation.SCHEMA
    assert set(table["task"].to_pylist()) == {"toxigen", "piqa", "mmlu"}
    figures = files.read_json(metrics)
    assert {"toxigen.acc_norm_low", "piqa.acc_norm_n", "mmlu.acc", "mmlu.version", "lm_eval"} <= set(figures)
    assert figures["mmlu.acc_n"] == table["task"].to_pylist().count("mmlu")
    replies = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [reply["prompt"] for reply in replies] == list(PROMPTS)
    assert all(set(reply) == {"prompt", "answer", "tokens", "finished"} for reply in replies)
    assert all(1 <= reply["tokens"] <= 4 for reply in replies)


def test_equal_inputs_give_equal_bytes_in_any_order_of_tasks(tiny: Path, folder: Path, tmp_path: Path) -> None:
    first = run(tiny, tiny, folder, tmp_path / "first")
    second = run(tiny, tiny, folder, tmp_path / "second", items=ITEMS[::-1])
    assert [files.sha256(path) for path in first] == [files.sha256(path) for path in second]


def test_an_adapter_is_scored_on_the_same_items(tiny: Path, adapter: Path, folder: Path, tmp_path: Path) -> None:
    base, tuned = (
        pq.read_table(run(tiny, checkpoint, folder, tmp_path / name)[0])
        for name, checkpoint in (("base", tiny), ("tuned", adapter))
    )
    for column in ("task", "subject", "item", "row", "gold", "lengths"):
        assert base[column] == tuned[column]
    assert base["loglikelihoods"] != tuned["loglikelihoods"]


def test_an_adapter_that_changes_nothing_is_refused(tiny: Path, folder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")  # its second factor starts at zero
    model = get_peft_model(loading.load_base(tiny, Dtype.float32, "cpu"), config)
    loading.save_adapter(model, loading.tokenizer(tiny), tiny, tmp_path / "sft", {"base": loading.identity(tiny)})
    with pytest.raises(Refused, match="changes nothing"):
        run(tiny, tmp_path / "sft", folder, tmp_path)


def process(base: Path, folder: Path, out: Path, *launch: str) -> "subprocess.Popen[str]":
    """The stage in processes of its own, each with one thread."""
    written = [str(out / name) for name in ("items.parquet", "answers.jsonl", "metrics.json")]
    items = [word for entry in ITEMS for word in ("--items", entry)]
    options = ["--token_budget", "512", "--answer_tokens", "4", "--template", "chatml", "--item_seed", "0"]
    options += ["--dtype", "float32", "--device", "cpu", "--state", str(out / "state")]
    command = [*(launch or [sys.executable]), "-m", "stages.eval", str(base), str(base), str(folder), *written]
    return subprocess.Popen(
        [*command, *items, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def ended(started: "subprocess.Popen[str]") -> str:
    printed, _ = started.communicate(timeout=300)
    assert started.returncode == 0, printed
    return printed


def test_two_processes_write_what_one_writes(tiny: Path, folder: Path, tmp_path: Path) -> None:
    run(tiny, tiny, folder, tmp_path / "one")
    assert "2 processes" in ended(process(tiny, folder, tmp_path / "two", *pipeline.several(2)))
    for name in ("items.parquet", "answers.jsonl", "metrics.json"):
        assert files.sha256(tmp_path / "one" / name) == files.sha256(tmp_path / "two" / name)


def test_killed_between_tasks_it_goes_on_and_ends_with_the_same_bytes(tiny: Path, folder: Path, tmp_path: Path) -> None:
    run(tiny, tiny, folder, tmp_path / "whole")
    killed = tmp_path / "killed"
    started = process(tiny, folder, killed)
    deadline = time.monotonic() + 120
    while not list(killed.glob("state/*/*.parquet")) and time.monotonic() < deadline:
        assert started.poll() is None
        time.sleep(0.002)
    started.kill()
    started.communicate()
    assert not (killed / "items.parquet").exists()
    scored = [path.stem for path in killed.glob("state/*/*.parquet")]
    printed = ended(process(tiny, folder, killed))
    assert scored and all(f"had scored {task}" in printed for task in scored)
    assert not list(killed.glob("state/[!.]*"))  # but for locks, which are empty
    for name in ("items.parquet", "answers.jsonl", "metrics.json"):
        assert files.sha256(tmp_path / "whole" / name) == files.sha256(killed / name)


def test_an_unknown_task_is_refused_and_nothing_is_written(tiny: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no task 'boolqq'"):
        run(tiny, tiny, folder, tmp_path, items=["boolqq=3"])
    assert not list(tmp_path.glob("[!.]*"))


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    heavy = "{'torch', 'transformers', 'datasets', 'lm_eval', 'peft', 'scipy.stats'}"
    code = f"import sys, stages.eval; found = {heavy} & set(sys.modules); assert not found, found"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_its_options_are_those_of_the_command_line(tmp_path: Path) -> None:
    paths = ["base", "base", "benchmarks", *(str(tmp_path / name) for name in ("out.parquet", "out.jsonl", "out.json"))]
    options = ["--items", "boolqq=3", "--items", "piqa=all", "--token_budget", "64", "--answer_tokens", "64"]
    options += ["--template", "chatml", "--item_seed", "0", "--dtype", "float32", "--device", "cpu"]
    options += ["--state", str(tmp_path)]
    command = [sys.executable, "-m", "stages.eval", *paths, *options]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert ended.returncode == 1
    assert "no task 'boolqq'" in ended.stderr and "`eval.items`" in ended.stderr
    assert "Traceback" not in ended.stderr
