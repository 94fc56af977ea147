"""The study's grid as DVC experiments: run what is missing of it, then compare the whole.

In: a params file, whose section `study` names the grid. Out: experiments of this commit, and metrics/study.md.
"""

import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from alignment import corpora
from alignment.corpora import Role
from alignment.runtime import Refused, command, files
from commands.study import experiments
from commands.study.experiments import Experiment

VARIED = ("data", "preferences", "seed", "study")  # keys that an experiment sets for itself, or that no stage reads
SFT_ONLY = tuple(f"{stage}@{checkpoint}" for checkpoint in ("base", "sft") for stage in ("eval", "safety"))


def main(path: Annotated[Path, typer.Argument(metavar="PARAMS", help="a params file, such as params.yaml")]) -> None:
    """Run what is missing of the grid, and compare the whole."""
    from dvc.repo import Repo  # type: ignore[import-untyped]

    commit = experiments.git("rev-parse", "--verify", "HEAD")
    with Repo() as repo:
        with experiments.queueing(repo):
            experiments.refuse_set_aside(repo)
            wanted = plan(path, commit)
            names = [each.name for each in wanted]
            before = experiments.finished(commit, names)
            queue = repo.experiments.celery_queue
            known = experiments.settle(queue, names) | before
            experiments.enqueue(repo, [each for each in wanted if each.name not in known])
        experiments.follow(queue)
    failed = sorted(set(names) - experiments.finished(commit, names), key=names.index)
    print(f"\n{len(names)} experiments: {len(before)} finished before, {len(names) - len(before) - len(failed)} now")
    if failed:
        logs = "\n".join(f"  dvc queue logs {name}" for name in failed)
        raise Refused(f"{len(failed)} of {len(names)} failed; why, is in\n{logs}\ncorrect it and `make study` again")
    print("\n".join(names))
    compare(names)


def plan(path: Path, commit: str) -> list[Experiment]:
    """List the experiments that a params file asks for.

    A name changes with all that its results may depend on.

    Raises:
        Refused: there is no such file, or its section `study` names no grid of known datasets.
    """
    from dvc.exceptions import DvcException  # type: ignore[import-untyped]
    from dvc.utils.serialize import load_yaml  # type: ignore[import-untyped]

    try:
        params = load_yaml(str(path))
        common = {key: value for key, value in params.items() if key not in VARIED}
        edits = experiments.git("diff", "HEAD", "--", ".", f":!{path}", ":!dvc.lock", ":!metrics")
        return list(dict.fromkeys(grid(params, files.digest([commit, edits, common])[:8])))
    except (OSError, DvcException, AttributeError, KeyError, TypeError) as error:
        raise Refused(f"{path} names no grid: {error!r}; `make doctor` says which key is wrong") from None


def grid(params: dict[str, Any], alike: str) -> Iterator[Experiment]:
    """Yield the whole pipeline for each pair of datasets, and SFT alone on `matched_rows` of each set in `matched`.

    Args:
        params: of the file.
        alike: ends each name.
    """
    study, first = params["study"], params["seed"]
    for name in (*study["demonstrations"], *study["matched"]):
        corpora.load(name, Role.demonstrations)
    for name in study["comparisons"]:
        corpora.load(name, Role.comparisons)
    for seed in range(first, first + study["seeds"]):
        for data, preferences in itertools.product(study["demonstrations"], study["comparisons"]):
            settings = (f"data={data}", f"preferences={preferences}", f"seed={seed}")
            yield Experiment(f"{data}-{preferences}-{seed}-{alike}", settings)
        for data in (each for each in study["demonstrations"] if each in study["matched"]):
            settings = (f"data={data}", f"rows.demonstrations={study['matched_rows']}", f"seed={seed}")
            yield Experiment(f"{data}-{study['matched_rows']}-{seed}-{alike}", settings, SFT_ONLY)


def compare(names: list[str]) -> None:
    """Set the experiments side by side."""
    words = ["-m", "commands.compare", *names, "--baseline", "base", "--out", "metrics/study.md"]
    raise SystemExit(subprocess.run([sys.executable, *words], check=False).returncode)


if __name__ == "__main__":
    command.run(main, offline=False)
