"""Where a comparison comes from: the commit of each run, and the repository and licence of everything it was made from.

In: a comparison of variants. Out: rows of tables.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from alignment import corpora
from alignment.corpora import UNSTATED, Repository
from alignment.fetching import pins
from alignment.reporting.tables import TITLES
from commands.compare.comparison import SideBySide
from commands.compare.revisions import Revision

OWN = "own"  # the dataset, or the sentences, that a user's file is


def commits(comparison: SideBySide) -> dict[str, str]:
    """Return the commit of each revision that has a run in a comparison; "" of the workspace."""
    return {run.revision.name: run.revision.commit for run in comparison.runs}


def versions(comparison: SideBySide) -> Iterator[str]:
    """Yield the libraries of which not all runs had the same version, each with who had which."""
    had = [(name, run.versions) for name, variant in comparison.variants.items() for run in variant.runs]
    for library in sorted({each for _, recorded in had for each in recorded}):
        found: dict[str, list[str]] = {}
        for name, recorded in had:
            if library in recorded or not recorded:  # no base was trained by trl, say
                found.setdefault(recorded.get(library, "unrecorded"), []).append(name)
        if len(found) > 1:
            told = [f"{version} ({', '.join(dict.fromkeys(names))})" for version, names in found.items()]
            yield f"{library} {'; '.join(told)}"


def sources(comparison: SideBySide) -> Iterator[list[str]]:
    """Yield what was used, its repository, revision, licence and terms, by the pins of this checkout.

    A user's own file is named with the hash that dvc.lock has of it; a dataset that another branch added has no pin.
    """
    for model in dict.fromkeys(v.runs[0].origin[0] for v in comparison.variants.values()):
        name, _, revision = model.partition("@")
        yield ["base model", name, revision, UNSTATED, ""]
    trained = dict.fromkeys(name for variant in comparison.variants.values() for name in variant.corpora if name != OWN)
    named = {name: corpora.load(name).SOURCE if name in corpora.names() else None for name in trained}
    named |= {TITLES.get(task, task): repository for task, repository in _benchmarks(comparison).items()}
    if _sentences(comparison) != OWN:
        named["safety sentences"] = pins.SAFETY
    for what, pin in named.items():
        yield [what, pin.name, pin.revision, pin.licence, pin.terms] if pin else [what, "no pin here", "–", "–", ""]
    for what, name, md5 in dict.fromkeys(_own(comparison)):
        yield [f"own {what}", name, f"md5 {md5}", "the user's own", ""]


def _own(comparison: SideBySide) -> Iterator[tuple[str, str, str]]:
    """Yield each file of the user's own: what it served as, its name without its folder, and its md5."""
    for run in comparison.runs:
        for role, corpus in zip(run.roles, run.corpora, strict=True):
            if corpus == OWN:
                yield role, *_file(run.revision, f"fetch-corpus@{role}")
    if _sentences(comparison) == OWN:
        yield "safety sentences", *_file(_first(comparison), "fetch-safety@sentences")


def _file(revision: Revision, stage: str) -> tuple[str, str]:
    path = os.path.normpath(revision.options(stage)["own"])
    md5s = {os.path.normpath(name): md5 for name, md5 in revision.hashes(stage, "deps").items()}
    return Path(path).name, md5s[path]


def _first(comparison: SideBySide) -> Revision:
    return comparison.runs[0].revision


def _benchmarks(comparison: SideBySide) -> dict[str, Repository]:
    """Return the pins of the scored tasks: ours, and those that params.yaml names."""
    known = pins.BENCHMARKS | pins.more(_first(comparison).option("fetch-benchmarks@items", "more"))
    return {task: known[task] for task in comparison.tasks}


def _sentences(comparison: SideBySide) -> str:
    return _first(comparison).option("fetch-safety@sentences", "sentences")
