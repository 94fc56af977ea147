"""Is what dvc.lock records still true: are its files whole, and do its stages give the same bytes again?

In: the names of stages. Out: damaged and missing files, each with what mends it; for each stage `reproduced`, or the
first difference; exit code 1 unless all is well. Nothing in the workspace or in DVC's cache is changed.

A stage runs by the command that dvc.yaml gives it, from the inputs that dvc.lock records, in a temporary copy of what
git tracks with a cache, a state and downloads of its own: no checkpoint and no cached run of yours is taken up. What
dvc.lock records otherwise than dvc.yaml is shown and not run. On a GPU, numbers within `differences.ON_GPU`
count as reproduced, and are said to.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Annotated, NamedTuple

import typer

from alignment.choosing import parameters
from alignment.runtime import Refused, command, files
from commands.doctor import fetched
from commands.study import experiments
from commands.verify import copies, differences, integrity
from commands.verify.differences import Tolerance
from commands.verify.integrity import Records

TAIL = 12  # lines of a failed stage's output
# Beside the cache, so `$(dvc cache dir)/../state` of a recorded command is the copy's own.
CONFIG = "[core]\n    no_scm = true\n[cache]\n    dir = cache\n"


class Verdict(NamedTuple):
    """The result of running a stage again.

    Attributes:
        well: whether it was reproduced.
        says: how, or why not.
    """

    well: bool
    says: str


def main(
    stages: Annotated[
        list[str] | None, typer.Argument(help="such as sft or eval; without any, all that need no network")
    ] = None,
) -> None:
    """Read every recorded byte, then run stages again and compare."""
    records = Records()
    chosen = choose(records, stages or [])
    whole = [check(records, stage) for stage in records.stages]
    moved = sources()
    verdicts = []
    for stage in chosen:
        verdicts.append(rerun(records, stage))
        print(f"{stage}: {verdicts[-1].says}")
    well = sum(verdict.well for verdict in verdicts)
    print(f"\nfiles: {sum(whole)} of {len(whole)} stages' are whole; runs: {well} of {len(chosen)} reproduced")
    if not all(whole) or moved or well < len(chosen):
        raise SystemExit(1)


def choose(records: Records, names: list[str]) -> list[str]:
    """Return the stages of these names, `eval` meaning all of its kind; without names, all that need no network.

    Raises:
        Refused: there is no such stage.
    """
    if not names:
        away = [stage for stage in records.stages if needs_network(records, stage)]
        if away:
            print(f"not run again, since it needs the network: {', '.join(away)} (name a stage to run it)")
        return [stage for stage in records.stages if stage not in away]
    if unknown := [name for name in names if not _named(records, name)]:
        raise Refused(f"dvc.yaml has no stage {', '.join(unknown)}; there are: {', '.join(records.stages)}")
    return list(dict.fromkeys(stage for name in names for stage in _named(records, name)))


def _named(records: Records, name: str) -> list[str]:
    return [stage for stage in records.stages if name in (stage, stage.partition("@")[0])]


def needs_network(records: Records, stage: str) -> bool:
    """Return whether a stage downloads: from the hub or another server, or a wheel that is not kept from before."""
    words = records.revision.words(stage)
    if "stages.fetch" not in words:
        return False
    if any(word.startswith("wheel:") for word in words):
        return not records.wheels()
    return records.revision.options(stage)["source"].startswith(("hub", "http://", "https://"))


def check(records: Records, stage: str) -> bool:
    """Return whether every recorded byte of a stage's outputs is there; print what is not, and what mends it."""
    faults = list(records.faults(stage))
    for fault in faults:
        print("\n".join(f"{stage}: {line}" for line in fault.says), f"  to mend it: {fault.mend}", sep="\n")
    if not faults:
        print(f"{stage}: {', '.join(records.revision.hashes(stage, 'outs'))} as recorded")
    return not faults


def sources() -> bool:
    """Return whether a folder of this machine changed since it was fetched from; print what did, and what mends it."""
    if not fetched.given():
        return False
    changes = fetched.changes(parameters.load(Path("params.yaml")), files.sha256)
    for stage, says in changes.items():
        print(f"{stage}: {fetched.summary(stage, says)}\n  to mend it: {fetched.mend(stage)}")
    return bool(changes)


def rerun(records: Records, stage: str) -> Verdict:
    """Run a stage again in a temporary copy, and compare what it writes with what dvc.lock records."""
    with tempfile.TemporaryDirectory(prefix="verify-") as scratch:
        copy, log = Path(scratch) / "study", Path(scratch) / "log"
        try:
            lay_out(records, stage, copy)
        except Refused as refusal:
            return Verdict(False, f"cannot be run again: {refusal}")
        print(f"{stage}: runs again; what it says is in {log}")
        started = time.monotonic()
        with log.open("wb") as stream:
            code = run(records.commands(stage), copy, stream)
        seconds = time.monotonic() - started
        if code:
            said = log.read_text(encoding="utf-8", errors="replace").strip().split("\n")[-TAIL:]
            return Verdict(False, "\n  ".join([f"failed with exit code {code}:", *said]))
        return compare(records, stage, copy, seconds)


def run(commands: list[str], folder: Path, log: IO[bytes]) -> int:
    """Run a stage's commands until one fails, and return the exit code of the last that ran."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for each in commands:
        ended = subprocess.run(
            ["/bin/sh", "-c", each], cwd=folder, env=environment, stdout=log, stderr=log, check=False
        )
        if ended.returncode:
            return ended.returncode
    return 0


def lay_out(records: Records, stage: str, copy: Path) -> None:
    """Make the copy that a stage runs in: what git tracks, with the stage's recorded inputs and no outputs.

    Raises:
        Refused: dvc.lock and dvc.yaml differ about the stage, or an input is not at hand as it was recorded.
    """
    if departs := records.departs(stage):
        raise Refused(
            f"dvc.lock records {departs}\n"
            f"  if dvc.yaml or params.yaml was changed since, `dvc repro {stage}` records it; else dvc.lock was edited"
        )
    for name in filter(None, experiments.git("ls-files", "-z").split("\0")):
        if Path(name).is_file():
            shutil.copy(name, copies.clear(copy, name))
    for other in records.stages:
        for out in records.named(other, "outs"):
            copies.clear(copy, out)
    copies.clear(copy, ".dvc/config.local").write_text(CONFIG, encoding="utf-8")
    copies.clear(copy, ".dvc/downloads").mkdir()
    for wheel in records.wheels():
        copies.clear(copy, f".dvc/downloads/{wheel.name}").symlink_to(wheel.resolve())
    for name, source in inputs(records, stage):
        copied = source == Path(name) and (copy / name).is_file()
        if not copied and not Path(name).is_absolute():  # as a user's own file may be, which is read where it lies
            copies.clear(copy, name).symlink_to(source.resolve())


def inputs(records: Records, stage: str) -> Iterator[tuple[str, Path]]:
    """Yield the files that a stage was given, and where their bytes lie.

    Raises:
        Refused: one is not at hand as it was recorded.
    """
    for path, md5 in records.revision.hashes(stage, "deps").items():
        for name, each in (records.files(path, md5) or {path: md5}).items():
            source = records.find(name, each)
            if source is None:
                raise Refused(
                    f"{name} is not what dvc.lock records, and the cache does not have that either.\n"
                    f"  if it was edited: `dvc repro {stage}` records it, or `git stash push -- {name}` keeps it apart"
                )
            yield name, source


def compare(records: Records, stage: str, copy: Path, seconds: float) -> Verdict:
    """Compare the outputs in a copy with those that are recorded, and return where they first differ."""
    written: dict[str, str] = {}
    recorded: dict[str, str] = {}
    for path, md5 in records.revision.hashes(stage, "outs").items():
        known = records.files(path, md5) or records.files(path, md5, copy)
        if known is None:
            return Verdict(False, f"{path} differs; where, cannot be said: the list of its recorded files is lost")
        recorded |= known
        written |= integrity.listing(path, copy)
    differing = [name for name in {**recorded, **written} if recorded.get(name) != written.get(name)]
    if not differing:
        return Verdict(True, f"reproduced ({_files(len(recorded))}, {seconds:.0f} s)")
    # What tells most comes first: lineage.json, which names the versions of libraries, before the weights.
    differing.sort(key=lambda name: (not name.endswith(".json"), name))
    tolerance = allowed(records, stage)
    beyond = [name for name in differing if difference(records, name, recorded, copy, tolerance)]
    if not beyond:
        within = f"within {tolerance.relative:.1%}, as on a GPU; other bytes in {len(differing)} of"
        return Verdict(True, f"reproduced {within} {_files(len(recorded))}, {seconds:.0f} s")
    where = difference(records, beyond[0], recorded, copy, tolerance)
    return Verdict(False, f"differs in {len(beyond)} of {_files(len(recorded))}, first {beyond[0]}: {where}")


def allowed(records: Records, stage: str) -> Tolerance:
    """Return how far numbers may lie from those that are recorded."""
    options = records.revision.options(stage)
    return differences.ON_GPU[options["dtype"]] if options.get("device") == "cuda" else differences.EXACT


def difference(records: Records, name: str, recorded: dict[str, str], copy: Path, tolerance: Tolerance) -> str | None:
    """Return where a file that was written again differs from the recorded one, or None."""
    if name not in recorded:
        return "it was not recorded"
    if not (copy / name).is_file():
        return "it was not written"
    source = records.find(name, recorded[name])
    if source is None:
        return "where, cannot be said: the recorded bytes are neither here nor in DVC's cache"
    return differences.first(source, copy / name, tolerance)


def _files(count: int) -> str:
    return f"{count} file" if count == 1 else f"{count} files"


if __name__ == "__main__":
    command.run(main, offline=False)
