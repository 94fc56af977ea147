"""A repository under DVC with the stages of the real pipeline, which copy planted tables in place of training."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import planted
import yaml
from clones import dvc, git

from alignment.runtime import files

# In place of training and scoring: what was planted for these datasets and this seed is copied.
COPY = """
data='*' preferences='*' seed='*'
while case $1 in --*) true ;; *) false ;; esac; do
  case $1 in --data) data=$2 ;; --preferences) preferences=$2 ;; --seed) seed=$2 ;; esac
  shift 2
done
from=$(ls -d planted/$data-$preferences-$seed | head -n 1)
for out; do mkdir -p "$(dirname "$out")" && cp "$from/$out" "$out" || exit 1; done
"""
SCORED = "--template chatml --dtype float32"


def pipeline() -> str:
    """A pipeline with the stages, options and outputs of the real one."""

    def stage(options: str, outs: list[str], metrics: list[str], deps: list[str]) -> dict:
        cmd = f"sh copy.sh {options} {' '.join([*outs, *metrics])}"
        return {"cmd": cmd, "deps": deps, "outs": outs, "metrics": [{name: {"cache": False}} for name in metrics]}

    def sampled(role: str) -> list[str]:
        return [f"data/sampled/{role}.parquet", f"data/sampled/{role}.contaminated.parquet"]

    def curves(name: str) -> list[str]:
        return [f"metrics/{name}.json", f"metrics/curves/{name}.csv"]

    train = "--seed ${seed} --batch 4 --learning_rate ${rate}"
    metrics, dataset = ["metrics/sample/${key}.json"], ["data/sampled/demonstrations.parquet"]
    sample = stage(
        "--${item.flag} ${item.corpus} --corpus ${item.corpus} --rows 10 --seed ${seed}", sampled("${key}"), metrics, []
    )
    sft = stage("--data ${data} " + train, ["models/sft"], curves("sft"), ["models/base", *dataset])
    comparisons = ["models/base", "models/sft", "data/sampled/comparisons.parquet"]
    dpo = stage("--data ${data} --preferences ${preferences} " + train, ["models/dpo"], curves("dpo"), comparisons)
    # A checkpoint is found by what made it, which its own file says.
    which = "$(cat models/${item})"
    scores = {
        name: {
            "foreach": ["base", "sft", "dpo"],
            "do": stage(
                f"{which} {SCORED}",
                [f"data/{name}/${{item}}.parquet", *more],
                [f"metrics/{name}/${{item}}.json"],
                ["models/base", "models/${item}"],
            ),
        }
        for name, more in (("eval", ["data/eval/${item}.answers.jsonl"]), ("safety", []))
    }
    fetched = {
        "fetch": {"model": {"words": "--model owner/base@abc", "out": "models/base"}},
        "fetch-benchmarks": {"items": {"words": "--more ''", "out": "raw-benchmarks"}},
        "fetch-safety": {"sentences": {"words": "--sentences safenlp", "out": "raw-safety"}},
    }
    cmd = "true ${item.words} --source mini && echo > ${item.out}"
    fetch = {"cmd": cmd, "outs": [{"${item.out}": {"push": False}}]}
    roles = {
        "demonstrations": {"corpus": "${data}", "flag": "data"},
        "comparisons": {"corpus": "${preferences}", "flag": "preferences"},
    }
    found = {name: {"foreach": items, "do": fetch} for name, items in fetched.items()}
    found["sample"] = {"foreach": roles, "do": sample}
    return yaml.safe_dump({"stages": {**found, "sft": sft, "dpo": dpo, **scores}})


def repository(folder: Path, variants: Iterable[dict[str, Any]]) -> Path:
    """A commit of the first variant's results, with what was planted for all of them.

    Args:
        folder: the repository's.
        variants: what `planted.revision` is told of each: `data` and more.
    """
    git(folder, "init", "--quiet", "--initial-branch", "main")
    dvc(folder, "init", "--quiet")
    for variant in variants:
        data, seed = variant["data"], variant.get("seed", 0)
        name = f"{data}-hh-{seed}"
        planted.revision(folder / "planted", name, **variant, model="owner/base@abc")
        for stage, options in (
            ("sft", f"--data {data} --seed {seed}"),
            ("dpo", f"--data {data} --preferences hh --seed {seed}"),
        ):
            files.write_text(folder / "planted" / name / "models" / stage, options)
    files.write_text(folder / "copy.sh", COPY)
    (folder / "models").mkdir()
    files.write_text(folder / "dvc.yaml", pipeline())
    files.write_text(folder / "params.yaml", "data: lima\npreferences: hh\nseed: 0\nrate: 0.5\n")
    dvc(folder, "repro", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "first")
    return folder


def experiment(folder: Path, name: str, setting: str) -> None:
    """Run an experiment there, outside the workspace."""
    dvc(folder, "exp", "run", "--quiet", "--temp", "--name", name, "--set-param", setting)
