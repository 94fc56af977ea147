"""Revisions whose tables were planted: what a comparison must find in them is known."""

import hashlib
import json
import shlex
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from alignment.runtime import files
from alignment.sampling import curation
from alignment.scoring.benchmarks import evaluation
from alignment.scoring.benchmarks.tasks import BENCHMARKS
from alignment.scoring.safety import perplexity
from commands.compare.revisions import Revision

ITEMS, SENTENCES = 150, 400
GROUPS = {"asian": 0.6, "mental dis": 0.5, "women": 0.4}  # the share of sentences that are about each; they overlap
MODEL = "meta-llama/Llama-2-7b-hf@abc"
STEPS = ("base", "sft", "dpo")
BAND = {"low": -0.05, "high": 0.05}  # of a null

Effects = Mapping[str, Mapping[str, float]]  # of a checkpoint: what it adds to a task's latent scores, or to `safety`


def revision(
    folder: Path,
    name: str,
    data: str = "lima",
    preferences: str = "hh",
    seed: int = 0,
    rows: int = 1000,
    effects: Effects | None = None,
    **more: Any,
) -> Revision:
    """A revision with three checkpoints: a folder of tables and metrics, and the dvc.lock that names them.

    Args:
        folder: where revisions lie, each in one of its name.
        name: of the revision.
        data: the demonstrations.
        preferences: the comparisons.
        seed: of training; together with the datasets it decides the noise of a checkpoint.
        rows: demonstrations.
        effects: of `base`, `sft` and `dpo`.
        more: `noise` of items by run, `drawn` by seed (a standard deviation of latent scores), `version` of tasks,
            `words` that are added to every command of `eval`, `tokens` that every sentence has more, `items`,
            `instruct`, `found` (contaminated items), `sought` (tasks whose items were looked for), `code` (of the
            training stages), `flags` of `eval` that are true, `prompts`, `answer`, `sentences` (own or safenlp),
            `label` (of all sentences).
    """
    here = folder / name
    made = {"base": (), "sft": (data, str(rows)), "dpo": (data, str(rows), preferences)}
    outs = {stage: [f"metrics/{stage}.json", f"metrics/curves/{stage}.csv"] for stage in ("sft", "dpo")}
    for checkpoint in STEPS:
        key = [*made[checkpoint], *([str(seed)] if checkpoint != "base" else [])]
        generator = np.random.default_rng(zlib.crc32(" ".join(key).encode()))
        effect = dict((effects or {}).get(checkpoint, {}))
        drawn = generator.normal(scale=more.get("drawn", 0.0)) if checkpoint != "base" else 0.0
        files.write_parquet(here / f"data/eval/{checkpoint}.parquet", items(generator, effect, drawn, more))
        files.write_parquet(here / f"data/safety/{checkpoint}.parquet", sentences(generator, effect, drawn, more))
        flags = {f"{task}.{flag}": False for task in ("toxigen", "mmlu") for flag in ("constant", "near_constant")}
        flags |= dict.fromkeys(more.get("flags", ()), True)
        files.write_json(here / f"metrics/eval/{checkpoint}.json", flags | {"instruct": more.get("instruct", False)})
        files.write_text(here / f"data/eval/{checkpoint}.answers.jsonl", answers(key, more))
        files.write_json(here / f"metrics/safety/{checkpoint}.json", nulls(generator))
    for stage in ("sft", "dpo"):
        files.write_text(here / f"metrics/curves/{stage}.csv", curve(generator))
        files.write_json(here / f"metrics/{stage}.json", {"tokens.trained": 1000, "steps": 3, "heldout.kl": 0.01})
    for role in ("demonstrations", "comparisons"):
        found = [{"row": "r", "task": task, "item": item} for task, item in more.get("found", ())]
        files.write_parquet(
            here / f"data/sampled/{role}.contaminated.parquet", pa.Table.from_pylist(found, curation.FOUND)
        )
        files.write_text(here / f"data/sampled/{role}.parquet", f"{data} {preferences} {seed} {role}")
        described = dict.fromkeys(("tokens.prompt.mean", "tokens.reply.mean", "turns.mean", "diversity.reply"), 1.5)
        described |= {"duplicates.reply": 0.0, "rows.kept": rows, "contaminated.items": len(found)}
        described |= {f"contaminated.{task}": 0 for task in more.get("sought", BENCHMARKS)}
        files.write_json(here / f"metrics/sample/{role}.json", described)
    for stage in ("sft", "dpo"):
        files.write_text(here / f"models/{stage}", f"{made[stage]} {seed}")
    lock = stages(here, data, preferences, seed, rows, outs, more)
    return Revision(name, lock, DirFileSystem(str(here), LocalFileSystem()))


def items(generator: np.random.Generator, effect: Mapping[str, float], drawn: float, more: dict[str, Any]) -> pa.Table:
    """A table of `eval`: an item is right where its own ease, what was planted and noise exceed 0."""
    table, own = [], np.random.default_rng(1)
    for task, benchmark in BENCHMARKS.items():
        ease = own.normal(size=ITEMS)
        latent = ease + effect.get(task, effect.get("all", 0.0)) + drawn
        latent += generator.normal(scale=more.get("noise", 0.3), size=ITEMS)
        for row in range(more.get("items", ITEMS)):
            right = float(1 / (1 + np.exp(-latent[row]))) if task == "truthfulqa_mc2" else float(latent[row] > 0)
            table.append(
                {
                    "task": task, "subject": "", "item": f"{task} {row}", "row": row,
                    "version": more.get("version", 1.0),
                    "acc": right, "acc_norm": right if benchmark.metric == "acc_norm" else None,
                }
            )  # fmt: skip
    return pa.Table.from_pylist(table, schema=evaluation.SCHEMA)


def sentences(
    generator: np.random.Generator, effect: Mapping[str, float], drawn: float, more: dict[str, Any]
) -> pa.Table:
    """A table of `safety`: harmful sentences surprise by what was planted; some texts stand there twice."""
    own = np.random.default_rng(2)
    text = own.integers(SENTENCES * 5 // 6, size=SENTENCES)
    harmful, tokens = own.random(SENTENCES) < 0.5, own.integers(5, 40, size=SENTENCES)
    about = {group: own.random(SENTENCES) < share for group, share in GROUPS.items()}
    ease, noise = own.normal(size=SENTENCES), generator.normal(scale=more.get("noise", 0.3), size=SENTENCES)
    shift = 0.3 + effect.get("safety", 0.0) + drawn + effect.get("women", 0.0) * about["women"]
    table = [
        {
            "id": str(row), "text_key": str(at), "label": more.get("label", "hate" if harmful[at] else "neutral"),
            "toxicity": 4.0 if harmful[at] else 2.0, "groups": [group for group in GROUPS if about[group][at]],
            "tokens": int(tokens[at]) + more.get("tokens", 0),
            "log_perplexity": float(4 + ease[at] + noise[at] + shift[at] * harmful[at]),
        }
        for row, at in enumerate(text.tolist())
    ]  # fmt: skip
    return pa.Table.from_pylist(table, schema=perplexity.SCHEMA)


def answers(key: list[str], more: dict[str, Any]) -> str:
    """A file of greedy answers, as `eval` writes it."""
    said = more.get("answer", f"What {' '.join(key) or 'the base'} says.\n\nIn two paragraphs.")
    prompts = more.get("prompts", ("Why is the sea salty?", "Is it true?"))
    rows = [{"prompt": prompt, "answer": said, "tokens": 24, "finished": False} for prompt in prompts]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def nulls(generator: np.random.Generator) -> dict[str, float]:
    """The published score's null of each group, and of their average, which has no interval."""
    slugs = [group.replace(" ", "_") for group in GROUPS]
    middle = {f"{group}.null": round(0.2 + generator.normal(scale=0.005), 4) for group in (*slugs, "average")}
    ends = {f"{group}.null_{end}": middle[f"{group}.null"] + by for group in slugs for end, by in BAND.items()}
    return middle | ends


def curve(generator: np.random.Generator) -> str:
    """A training curve of a hundred steps, with the columns of both stages."""
    loss = 2 * np.exp(-np.arange(100) / 30) + 1 + generator.normal(scale=0.1, size=100)
    lines = [f"{step},{at:.6g},{3 - at:.6g}" for step, at in enumerate(loss.tolist(), 1)]
    return "\n".join(["step,loss,reward_margin", *lines]) + "\n"


def stages(
    here: Path, data: str, preferences: str, seed: int, rows: int, outs: dict[str, list[str]], more: dict[str, Any]
) -> dict[str, Any]:
    """What dvc.lock says of it."""
    sets = {"demonstrations": (data, f" --rows {rows}"), "comparisons": (preferences, " --rows 500")}
    model = shlex.quote(more.get("model", MODEL))
    commands = {
        "fetch@model": ("stages.fetch", f"model models/base --model {model} --source hub", (), ()),
        "fetch-benchmarks@items": ("stages.fetch", "benchmarks data/raw/benchmarks --more '' --source hub", (), ()),
        "fetch-safety@sentences": (
            "stages.fetch",
            f"safety data/raw/safety --sentences {more.get('sentences', 'safenlp')} --own ./my/sentences.json "
            "--source hub",
            ("my/sentences.json",),
            (),
        ),
    }
    for role, (corpus, size) in sets.items():
        written = (
            f"data/sampled/{role}.parquet",
            f"data/sampled/{role}.contaminated.parquet",
            f"metrics/sample/{role}.json",
        )
        words = f"--role {role} --corpus {shlex.quote(corpus)}{size} --seed {seed}"
        own = f"/home/me/{role}.jsonl"
        fetched = f"corpus {shlex.quote(corpus)} data/raw/{role} --own {own} --source hub"
        commands[f"fetch-corpus@{role}"] = ("stages.fetch", fetched, (own,), ())
        commands[f"sample@{role}"] = ("stages.sample", words, (f"data/raw/{corpus}",), written)
    for stage, role in (("sft", "demonstrations"), ("dpo", "comparisons")):
        needed = ("models/base", f"data/sampled/{role}.parquet", *(("models/sft",) if stage == "dpo" else ()))
        words = f"--seed {seed} --batch 4 --no-gradient_checkpointing {more.get('code', '')}"
        commands[stage] = (f"stages.{stage}", words, needed, (f"models/{stage}", *outs[stage]))
    for checkpoint in STEPS:
        needed = ("models/base", *((f"models/{checkpoint}",) if checkpoint != "base" else ()))
        scored = (
            f"data/eval/{checkpoint}.parquet",
            f"data/eval/{checkpoint}.answers.jsonl",
            f"metrics/eval/{checkpoint}.json",
        )
        words = f"--template chatml --dtype float32 {more.get('words', '')}"
        commands[f"eval@{checkpoint}"] = ("stages.eval", words, needed, scored)
        commands[f"safety@{checkpoint}"] = (
            "stages.safety",
            "--dtype float32",
            needed,
            (f"data/safety/{checkpoint}.parquet", f"metrics/safety/{checkpoint}.json"),
        )

    def entries(paths: tuple[str, ...]) -> list[dict[str, str]]:
        return [{"path": path, "md5": md5(here / path, path)} for path in paths]

    versions = {"data/raw/versions.yaml": {"torch": more.get("torch", "2.13.0")}}
    return {
        name: {
            "cmd": shlex.join(["python", "-m", module]) + f" {words}", "deps": entries(deps), "params": versions,
            "outs": entries(out),
        }
        for name, (module, words, deps, out) in commands.items()
    }  # fmt: skip


def md5(path: Path, name: str) -> str:
    """Of a file; of what no test reads, such as weights and raw data, of its name."""
    content = path.read_bytes() if path.is_file() else name.encode()
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
