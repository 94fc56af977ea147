"""What a commit, an experiment or the workspace holds: its checkpoints, how each was made, and their tables.

In: the names of revisions of this DVC repository. Out: checkpoints, whose tables are read from DVC's cache or remote.

All is taken from dvc.lock, which says of every result the whole command and the hash of each input; a file is read only
if it has the hash that stands there. So nothing is said of a result that was made with other parameters, or half.
"""

import contextlib
import hashlib
import io
import json
import os
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from alignment.choosing import conflicts
from alignment.runtime import Refused, files

if TYPE_CHECKING:
    from dvc.api import DVCFileSystem  # type: ignore[import-untyped]

WORKSPACE = "workspace"
CHECKPOINTS = ("base", "sft", "dpo")
ROLES = {"sft": "demonstrations", "dpo": "comparisons"}  # what each training stage is trained on
# The stages that a seed reaches, each with the one output by which the next of them knows it.
TRAINED = {
    "sample@demonstrations": "data/sampled/demonstrations.parquet",
    "sample@comparisons": "data/sampled/comparisons.parquet",
    "sft": "models/sft",
    "dpo": "models/dpo",
}
MAKERS = {out: stage for stage, out in TRAINED.items()}
# Nothing is lost: what the damaged file still says is kept beside.
MEND = "`mv dvc.lock dvc.lock.damaged && git checkout -- dvc.lock`, then `dvc repro`: what ran since is in its cache"
KINDS = ("mini", "hub")  # of sources; any other is a mirror's place
UNNAMED = ("seed", "state", "mentions")  # options that name no variant: runs of one, places, and what only describes


def recorded(content: bytes, of: str = "") -> dict[str, Any]:
    """Return the stages of a dvc.lock.

    Args:
        content: its bytes; DVC writes it in place, so one that was killed may leave it empty or cut short.
        of: the commit or experiment that it is of; "" of the workspace.

    Raises:
        Refused: it is damaged or half merged.
    """
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA  # type: ignore[import-untyped]
    from voluptuous import Invalid

    conflicts.refuse(content, "dvc.lock", of)
    try:
        found = COMPILED_LOCKFILE_SCHEMA(yaml.safe_load(content))
    except (Invalid, yaml.YAMLError, UnicodeDecodeError):
        place = f"dvc.lock of {of}" if of else "dvc.lock"
        way = "`git log -- dvc.lock` shows older ones" if of else MEND
        raise Refused(f"{place} is empty, cut short or damaged, and DVC stops at it.\n{way}") from None
    return dict(found.get("stages", {}))


def words(command: str | list[str]) -> list[str]:
    """Return a command of dvc.lock, split as a shell would split it; several, one after the other."""
    return shlex.split(command if isinstance(command, str) else "\n".join(command))


@dataclass(frozen=True)
class Revision:
    """One revision of the repository.

    Attributes:
        name: as it was asked for.
        stages: of its dvc.lock.
        tree: reads its files, those in DVC's cache or remote too.
        commit: its full hash; "" of the workspace, which has none.
    """

    name: str
    stages: dict[str, Any]
    tree: "DVCFileSystem"
    commit: str = ""

    @classmethod
    def open(cls, name: str) -> "Revision":
        """Open a commit, branch, tag or experiment of the repository in the current folder, or `workspace`.

        Raises:
            Refused: there is no such revision, it has no results, its dvc.lock is damaged, or it is half merged.
        """
        from dvc.api import DVCFileSystem
        from dvc.exceptions import DvcException  # type: ignore[import-untyped]

        _refuse_no_commit(name)
        try:
            tree = DVCFileSystem(rev=None if name == WORKSPACE else name)
            content = tree.read_bytes("dvc.lock")
        except FileNotFoundError:
            raise Refused(
                f"{name} has no dvc.lock, so no results here; run `dvc repro` in the study's checkout, and commit"
            ) from None
        except (DvcException, UnicodeError) as error:
            raise Refused(
                f"{error}; there are: `git branch --all`, `git log`, `dvc exp list --all-commits`, and {WORKSPACE!r}.\n"
                "in a shallow clone, `git fetch --unshallow` brings older commits; in a workflow, `fetch-depth: 0`"
            ) from None
        of = "" if name == WORKSPACE else name
        for path in ("dvc.yaml", "params.yaml"):
            with contextlib.suppress(FileNotFoundError):
                conflicts.refuse(tree.read_bytes(path), path, of)
        return cls(name, recorded(content, of), tree, of and tree.repo.get_rev())

    def check_parameters(self) -> None:
        """Check that its dvc.lock was made with its params.yaml.

        Raises:
            Refused: it was made with another one.
        """
        made_with = self.hashes("choose", "deps").get("params.yaml") if "choose" in self.stages else None
        if (
            made_with
            and hashlib.md5(self.tree.read_bytes("params.yaml"), usedforsecurity=False).hexdigest() != made_with
        ):
            raise Refused(
                f"{self.name}: its results were not made with its params.yaml; `make repro` there, and commit"
            )

    def checkpoints(self) -> "list[Checkpoint]":
        """Return the scored checkpoints whose recorded inputs are the recorded outputs of the stages before."""
        return [Checkpoint(self, stage) for stage in CHECKPOINTS if self._whole(stage)]

    def _whole(self, checkpoint: str) -> bool:
        scored = (f"eval@{checkpoint}", f"safety@{checkpoint}")
        return all(stage in self.stages and self._follows(stage) for stage in scored)

    def _follows(self, stage: str) -> bool:
        """Return whether a stage read what the stages before it wrote last, back to the data."""
        inputs = [(MAKERS[path], path, md5) for path, md5 in self.hashes(stage, "deps").items() if path in MAKERS]
        return all(
            maker in self.stages and self.hashes(maker, "outs").get(path) == md5 and self._follows(maker)
            for maker, path, md5 in inputs
        )

    def hashes(self, stage: str, kind: str) -> dict[str, str]:
        """Return the md5 of each of a stage's `deps` or `outs`, by path."""
        return {entry["path"]: entry["md5"] for entry in self.stages[stage].get(kind, [])}

    def versions(self, stage: str) -> dict[str, str]:
        """Return the versions of the libraries that a stage's result rests on."""
        return {
            name: str(each) for file in self.stages[stage].get("params", {}).values() for name, each in file.items()
        }

    def words(self, stage: str) -> list[str]:
        """Return a stage's command, split as a shell would split it."""
        return words(self.stages[stage]["cmd"])

    def options(self, stage: str) -> dict[str, str]:
        """Return the options of a stage's command and their values; a flag's value is its own name."""
        words = self.words(stage)
        given = [(a, b) for a, b in pairwise([*words, "--"]) if a.startswith("--")]
        return {a[2:]: a[2:] if b.startswith("--") else b for a, b in given}

    def option(self, stage: str, name: str) -> str:
        """Return one option of a stage's command.

        Raises:
            Refused: the stage was not run with it.
        """
        if stage not in self.stages or name not in (given := self.options(stage)):
            raise Refused(
                f"{self.name}: its dvc.lock has no --{name} of the stage {stage}: another version of the pipeline made "
                f"it.\n`dvc repro` there with this version, or compare with the version of its own checkout"
            )
        return given[name]

    def recipe(self, stage: str) -> str:
        """Return a digest of all that a stage's result depends on, back to the data, but for the seed."""
        words = self.words(stage)
        if "--seed" in words:
            at = words.index("--seed")
            del words[at : at + 2]
        deps = self.hashes(stage, "deps")
        made = [[p, self.recipe(MAKERS[p]) if p in MAKERS else deps[p]] for p in sorted(deps)]
        return files.digest([words, made, self.versions(stage)])

    @cached_property
    def made(self) -> dict[str, str]:
        """The md5 of every result, by path."""
        return {path: md5 for stage in self.stages for path, md5 in self.hashes(stage, "outs").items()}

    def read(self, path: str) -> bytes:
        """Read a result's bytes.

        Raises:
            Refused: it is not at hand, or is not what dvc.lock says.
        """
        try:
            content = bytes(self.tree.read_bytes(path))
        except FileNotFoundError:
            way = (
                "bring it with `dvc pull`, or make it again with `dvc repro`"
                if self.name == WORKSPACE
                else f"bring it with `dvc exp pull <git remote> {self.name}` if that is an experiment, with "
                "`dvc fetch --all-commits` if it is a commit; or make it again there with `dvc repro`"
            )
            raise Refused(
                f"{path} of {self.name} is neither here nor in a remote that its .dvc/config names.\n{way}"
            ) from None
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != self.made.get(path):
            raise Refused(
                f"{path} of {self.name} is not the file that its dvc.lock names: it was edited or damaged, or a run "
                "was stopped half-way.\nin the workspace run `dvc repro`; elsewhere `dvc fetch --all-commits` mends "
                "the cache"
            )
        return content


def _refuse_no_commit(name: str) -> None:
    """Refuse a name by which git knows a file or a folder.

    A name that git does not know at all may be an experiment of DVC's.

    Raises:
        Refused: naming which it is.
    """
    ask = ["git", "cat-file", "--batch-check=%(objecttype)"]
    kind = subprocess.run(ask, input=os.fsencode(f"{name}\n"), capture_output=True, check=False).stdout.strip()
    if kind in (b"blob", b"tree"):
        raise Refused(
            f"{name} is a {'file' if kind == b'blob' else 'folder'} of git's, wanted a commit, a branch, a tag, an "
            f"experiment or {WORKSPACE!r}: leave out the colon and what follows it"
        )


@dataclass(frozen=True)
class Checkpoint:
    """A model as one revision made and scored it.

    Attributes:
        revision: which.
        stage: base, sft or dpo.
    """

    revision: Revision
    stage: str
    _metrics: dict[str, dict[str, Any]] = field(
        default_factory=dict, compare=False
    )  # a page asks for them cell by cell

    @cached_property
    def recipe(self) -> str:
        """A hash that is equal for the runs of one variant, which differ by their seed alone."""
        if self.stage == "base":
            return self.revision.hashes("eval@base", "deps")["models/base"]
        return self.revision.recipe(self.stage)

    @cached_property
    def seed(self) -> int | None:
        """The seed it was trained with; None of a base model."""
        return None if self.stage == "base" else int(self.revision.option(self.stage, "seed"))

    @property
    def result(self) -> tuple[str, str]:
        """The hashes of its tables: equal for equal scores."""
        eval_outs, safety_outs = (self.revision.hashes(f"{s}@{self.stage}", "outs") for s in ("eval", "safety"))
        return eval_outs[f"data/eval/{self.stage}.parquet"], safety_outs[f"data/safety/{self.stage}.parquet"]

    @cached_property
    def corpora(self) -> tuple[str, ...]:
        """The datasets it was trained on: none, the demonstrations, or these and the comparisons."""
        return tuple(self.revision.option(f"sample@{role}", "corpus") for role in self.roles)

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of the data it was trained on: none, demonstrations, or these and comparisons."""
        return tuple(ROLES[stage] for stage in CHECKPOINTS[1 : CHECKPOINTS.index(self.stage) + 1])

    @cached_property
    def knobs(self) -> Mapping[str, str]:
        """The options of the stages that made it, by `stage.option`; of a base model its name."""
        if self.stage == "base":
            return {"fetch.model": self.origin[0]}
        options = {stage: self.revision.options(stage) for stage in self._trained}
        named = {f"{stage}.{key}": value for stage, given in options.items() for key, value in given.items()}
        named |= {f"version.{name}": version for name, version in self._versions(self._trained).items()}
        return {name: value for name, value in named.items() if name.rpartition(".")[2] not in UNNAMED}

    @property
    def _trained(self) -> list[str]:
        """The stages that made it from a base model."""
        return [stage for trained, role in ROLES.items() if role in self.roles for stage in (f"sample@{role}", trained)]

    @property
    def versions(self) -> dict[str, str]:
        """The libraries that made and scored it."""
        return self._versions(["fetch@model", *self._trained, f"eval@{self.stage}", f"safety@{self.stage}"])

    def _versions(self, stages: list[str]) -> dict[str, str]:
        found: dict[str, set[str]] = {}
        for stage in stages:
            for name, version in self.revision.versions(stage).items():
                found.setdefault(name, set()).add(version)
        return {name: " and ".join(sorted(versions)) for name, versions in sorted(found.items())}

    @cached_property
    def instruct(self) -> bool:
        """Return whether its base model was tuned on conversations before."""
        return bool(self.metrics(f"eval/{self.stage}.json")["instruct"])

    @property
    def origin(self) -> tuple[str, str]:
        """Its base model, and `mini`, `hub` or `mirror`; a folder of this machine is given by its last part."""
        model, source = (self.revision.option("fetch@model", name) for name in ("model", "source"))
        return model.rpartition("/")[2] if model.startswith("/") else model, source if source in KINDS else "mirror"

    def option(self, stage: str, name: str) -> str:
        """Return an option by which `eval` or `safety` scored it."""
        return self.revision.option(f"{stage}@{self.stage}", name)

    def table(self, kind: str) -> pa.Table:
        """Read its table of `eval`, one row an item, or of `safety`, one row a sentence."""
        return pq.read_table(io.BytesIO(self.revision.read(f"data/{kind}/{self.stage}.parquet")))

    def metrics(self, path: str) -> dict[str, Any]:
        """Read a metrics file of its revision, such as `sft.json`."""
        if path not in self._metrics:
            self._metrics[path] = json.loads(self.revision.read(f"metrics/{path}"))
        return self._metrics[path]

    def answers(self) -> list[dict[str, Any]]:
        """Read its greedy answers to the fixed prompts, each with `prompt`, `answer`, `tokens` and `finished`."""
        lines = self.revision.read(f"data/eval/{self.stage}.answers.jsonl").decode().split("\n")
        return [json.loads(line) for line in lines if line]

    def sought(self) -> set[str]:
        """Return the tasks whose items `sample` looked for in all datasets that it was trained on."""
        counted = [self.metrics(f"sample/{role}.json") for role in self.roles]
        start = "contaminated."
        return set.intersection(*({name[len(start) :] for name in each if name.startswith(start)} for each in counted))

    def contaminated(self) -> Iterator[tuple[str, str]]:
        """Yield the benchmark items that `sample` found in its datasets, and refused: task and item."""
        for role in self.roles:
            found = pq.read_table(io.BytesIO(self.revision.read(f"data/sampled/{role}.contaminated.parquet")))
            yield from zip(found["task"].to_pylist(), found["item"].to_pylist(), strict=True)
