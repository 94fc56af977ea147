"""The stage itself: its files, equal bytes for equal inputs, adapters, refusals before anything heavy is loaded."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from alignment import evaluation, files, models, pins
from alignment.chat import Template
from alignment.command import Refused
from alignment.models import Dtype
from stages import eval as stage

MINI = Path(__file__).parents[1] / "data" / "mini"
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
    options: dict[str, Any] = {"items": ITEMS, "batch": 2, "answer_tokens": 4, "template": Template.chatml}
    options |= {"item_seed": 0, "dtype": Dtype.float32, "device": "cpu", **changes}
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
    model = get_peft_model(models.load_base(tiny, Dtype.float32, "cpu"), config)
    models.save_adapter(model, models.tokenizer(tiny), tiny, out, {"base": models.identity(tiny)})
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
    assert [reply["prompt"] for reply in replies] == list(evaluation.PROMPTS)
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


def test_an_unknown_task_is_refused_and_nothing_is_written(tiny: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no task 'boolq'"):
        run(tiny, tiny, folder, tmp_path, items=["boolq=3"])
    assert not list(tmp_path.glob("[!.]*"))


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    heavy = "{'torch', 'transformers', 'datasets', 'lm_eval', 'peft', 'scipy.stats'}"
    code = f"import sys, stages.eval; found = {heavy} & set(sys.modules); assert not found, found"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_its_options_are_those_of_the_command_line(tmp_path: Path) -> None:
    paths = ["base", "base", "benchmarks", *(str(tmp_path / name) for name in ("out.parquet", "out.jsonl", "out.json"))]
    options = ["--items", "boolq=3", "--items", "piqa=all", "--batch", "4", "--answer_tokens", "64"]
    options += ["--template", "chatml", "--item_seed", "0", "--dtype", "float32", "--device", "cpu"]
    command = [sys.executable, "-m", "stages.eval", *paths, *options]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    assert ended.returncode == 1
    assert "no task 'boolq' in `eval.items`" in ended.stderr
    assert "Traceback" not in ended.stderr
