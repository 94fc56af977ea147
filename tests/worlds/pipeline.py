"""The whole pipeline on the tiny preset, in one process: what the tests of its laws run twice."""

import sys
from pathlib import Path
from typing import Any

import yaml

from alignment.corpora import Role
from alignment.models.chat import Template
from alignment.models.loading import Dtype, Quantization
from alignment.objectives.dpo import Loss
from alignment.runtime import files
from alignment.training.plan import Budget
from stages import choose, dpo, eval, fetch, report, safety, sample, sft, versions

ROOT = Path(__file__).parents[2]
Params = dict[str, Any]
MAINS = {
    "choose": choose.main,
    "versions": versions.main,
    "sample": sample.main,
    "sft": sft.main,
    "dpo": dpo.main,
    "eval": eval.main,
    "safety": safety.main,
    "report": report.main,
}


def params(path: str) -> Params:
    """A params file of the repository."""
    return dict(yaml.safe_load((ROOT / path).read_text(encoding="utf-8")))


TINY = params("presets/tiny.yaml")
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]


def several(processes: int) -> list[str]:
    """What starts so many; on a machine without GPUs over gloo, where `--cpu` would start one."""
    launch = [*LAUNCH, "--multi_gpu", "--num_processes", str(processes), "--num_machines", "1"]
    return [*launch, "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]


def fetch_all(folder: Path) -> None:
    """The five fetches, from the embedded miniature."""
    fetch.model(TINY["model"], folder / "models/base", "mini", folder / "downloads")
    fetch.safety(fetch.Sentences.safenlp, folder / "data/raw/safety", "mini", Path("unused"), folder / "downloads")
    fetch_rows(folder, TINY["data"], TINY["preferences"])


def fetch_rows(folder: Path, data: str, preferences: str) -> None:
    """What `sample` reads besides the tokenizer."""
    for role, corpus in ((Role.demonstrations, data), (Role.comparisons, preferences)):
        files.write_text(folder / f"data/raw/{role}.name", f"{corpus}\n")
        fetch.corpus(corpus, folder / f"data/raw/{role}", "mini", ROOT / TINY["own"][role], folder / "downloads")
    fetch.benchmarks(folder / "data/raw/benchmarks", "mini", more="", downloads=folder / "downloads")


def sample_role(folder: Path, role: Role, params: Params = TINY, **changes: Any) -> None:
    """`sample` for one role."""
    options = {
        **params["sample"],
        "rows": params["rows"][role],
        "corpus": params["data" if role is Role.demonstrations else "preferences"],
        "template": Template(params["template"]),
        "seed": params["seed"],
        "item_seed": params["item_seed"],
        **changes,
    }
    sample.main(
        folder / f"data/raw/{role}",
        folder / "models/base",
        folder / "data/raw/benchmarks",
        folder / f"data/sampled/{role}.parquet",
        folder / f"data/sampled/{role}.contaminated.parquet",
        folder / f"metrics/sample/{role}.json",
        role=role,
        **options,
    )


def train_sft(folder: Path, out: Path | None = None, params: Params = TINY, **changes: Any) -> None:
    """`sft`, into `out` or its place in the pipeline."""
    out = out or folder
    sft.main(
        folder / "models/base",
        folder / "data/sampled/demonstrations.parquet",
        out / "models/sft",
        out / "metrics/sft.json",
        out / "metrics/curves/sft.csv",
        **{**_training(params, "sft"), "state": out / "state", **changes},
    )


def train_dpo(folder: Path, out: Path | None = None, params: Params = TINY, **changes: Any) -> None:
    """`dpo`, into `out` or its place in the pipeline."""
    out = out or folder
    loss = Loss(params["dpo"]["loss"])
    dpo.main(
        folder / "models/base",
        folder / "models/sft",
        folder / "data/sampled/comparisons.parquet",
        out / "models/dpo",
        out / "metrics/dpo.json",
        out / "metrics/curves/dpo.csv",
        **{
            **_training(params, "dpo"),
            "loss": loss,
            "token_budget": params["token_budget"],
            "state": out / "state",
            **changes,
        },
    )


def _training(params: Params, stage: str) -> Params:
    return {
        **params[stage],
        "budget": Budget(params[stage]["budget"]),
        "template": Template(params["template"]),
        "device": params["device"],
        "dtype": Dtype(params["dtype"]),
        "quantization": Quantization(params["quantization"]),
        "seed": params["seed"],
        "per_device_batch": params["per_device_batch"],
    }


def measure(folder: Path) -> None:
    """`eval` and `safety` for the three checkpoints, then `report`."""
    for name in ("base", "sft", "dpo"):
        eval.main(
            folder / "models/base",
            folder / f"models/{name}",
            folder / "data/raw/benchmarks",
            folder / f"data/eval/{name}.parquet",
            folder / f"data/eval/{name}.answers.jsonl",
            folder / f"metrics/eval/{name}.json",
            **TINY["eval"],
            token_budget=TINY["token_budget"],
            state=folder / "state",
            template=Template(TINY["template"]),
            item_seed=TINY["item_seed"],
            dtype=Dtype(TINY["dtype"]),
            device=TINY["device"],
        )
        safety.main(
            folder / "models/base",
            folder / f"models/{name}",
            folder / "data/raw/safety",
            folder / f"data/safety/{name}.parquet",
            folder / f"metrics/safety/{name}.json",
            **{**TINY["safety"], "dtype": Dtype(TINY["safety"]["dtype"])},
            item_seed=TINY["item_seed"],
            token_budget=TINY["token_budget"],
            device=TINY["device"],
        )
    report.main(
        folder / "metrics",
        folder / "data/safety",
        folder / "models/base",
        folder / "data/raw",
        ROOT / "alignment/reporting/groups.json",
        folder / "metrics/report.md",
        folder / "metrics/plots",
        seed=TINY["seed"],
    )


def run(folder: Path) -> None:
    """Everything after `fetch`."""
    for role in Role:
        sample_role(folder, role)
    train_sft(folder)
    train_dpo(folder)
    measure(folder)
