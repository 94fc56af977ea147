"""Experiments in DVC's queue: put there, run to the end one after the other, gone on with after a kill.

In: DVC's repository, names and parameters. Out: experiments of a commit, which `dvc exp show` lists.

`dvc exp run --queue` and `--run-all` do as much while nothing goes wrong. But what a killed worker was running stays
`Running`, and DVC waits for it for ever, as for an experiment that could not be set up; and DVC killed while it queues
leaves the workspace's edits in git's stash.
"""

import contextlib
import fcntl
import itertools
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.runtime import Refused, files, processes

ASKED = 5  # times, each for a second, before a worker that is no process of this machine counts as dead


@dataclass(frozen=True)
class Experiment:
    """One experiment, as `dvc exp run` is given it.

    Attributes:
        name: in its commit.
        settings: parameters, as for `-S`.
        targets: the stages to run; () for all.
    """

    name: str
    settings: tuple[str, ...]
    targets: tuple[str, ...] = ()


def git(*words: str) -> str:
    """Return what git prints.

    Raises:
        Refused: it fails, as without a repository or a commit.
    """
    ended = subprocess.run(["git", *words], capture_output=True, text=True, errors="replace", check=False)
    if ended.returncode:
        way = "experiments start from a commit: git init, git add, git commit"
        raise Refused(f"`git {' '.join(words)}` failed in {Path.cwd()}: {ended.stderr.strip()}\n{way}")
    return ended.stdout.strip()


def finished(commit: str, names: Collection[str]) -> set[str]:
    """Return those of `names` that are experiments of a commit; DVC keeps each that succeeded as a ref."""
    refs = git("for-each-ref", "--format=%(refname:lstrip=4)", f"refs/exps/{commit[:2]}/{commit[2:]}/")
    return {*refs.splitlines()}.intersection(names)


def settle(queue: Any, names: Collection[str]) -> set[str]:
    """Remove from the queue those of `names` that failed or were killed; return the others, waiting or running.

    Raises:
        Refused: some of these are not of `names`; the worker would run them too.
    """
    if (running := list(queue.iter_active())) and not lives(queue):
        for entry in running:
            bury(queue, entry)
    rows = queue.status()
    left = {row["name"] or row["rev"][:7]: row["status"] for row in rows if row["status"] in ("Running", "Queued")}
    if others := [f"{name} ({status})" for name, status in left.items() if name not in names]:
        raise Refused(
            f"DVC's queue holds other experiments, which would be run too: {', '.join(others)}.\nlet them end "
            "(`dvc queue start`), or end them: `dvc queue kill NAME` if running, `dvc queue remove NAME` if queued"
        )
    queue.remove([row["rev"] for row in rows if row["status"] == "Failed" and row["name"] in names])
    return set(left)


def lives(queue: Any) -> bool:
    """Return whether a worker of this queue is there: a process of this machine, or one that answers from another."""
    pids = [files.read_json(path)["pid"] for path in Path(queue.wdir).glob("dvc-exp-worker-*.json")]
    here = any(processes.lives(pid) and "queue-worker" in processes.started_as(pid) for pid in pids)
    return here or any(queue.worker_status() for _ in range(ASKED))


def bury(queue: Any, entry: Any) -> None:
    """Mark an experiment whose worker is dead as failed, and end what is left of it."""
    if process := queue.proc.get(entry.stash_rev):
        if entry.stash_rev in processes.started_as(process.pid):
            os.kill(process.pid, signal.SIGTERM)
        process.returncode = -signal.SIGTERM  # or DVC would kill whatever process has that number now
        queue.proc[entry.stash_rev] = process
    queue.kill([entry.stash_rev], force=True)


@contextlib.contextmanager
def queueing(repo: Any) -> Iterator[None]:
    """Hold the lock to put experiments into the queue; wait while another `make study` holds it.

    DVC sets the workspace's edits aside meanwhile: what another then saw of them would be wrong. The system takes the
    lock back from a process that ends, so whoever has it knows that no other is alive in here.
    """
    with (Path(repo.tmp_dir) / "study.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            print(
                f"another `make study` copies the workspace into DVC's queue: process {lock.read()}.\n"
                "This one waits for that and then follows the same queue; Ctrl-C leaves it to the other"
            )
            fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write(f"{os.getpid()} since {time.strftime('%H:%M:%S')}")
        lock.flush()
        yield


def refuse_set_aside(repo: Any) -> None:
    """Refuse to go on with a workspace that a killed `enqueue` has not brought back.

    Raises:
        Refused: another branch or another stash than before it.
    """
    note = _note(repo)
    if note.is_file() and (before := files.read_json(note)) != _place():
        raise Refused(
            f"DVC was killed while it had set the edits of {before['branch']} aside, as `git stash list` shows.\n"
            f"`{_back(before)}`\nbrings them back, and keeps in the stash what is here now; then, or if nothing is "
            f"missing, rm {os.path.relpath(note)}"
        )


def _back(before: dict[str, str]) -> str:
    """Return the command that brings back the edits that DVC has set aside; it first stashes what is in their place."""
    stashed = git("stash", "list", "--format=%H").splitlines()
    newer = stashed[: stashed.index(before["stash"])] if before["stash"] in stashed else stashed
    steps = ["git stash push", f"git checkout {shlex.quote(before['branch'])}"]
    return " && ".join(steps + [f"git stash apply {each}" for each in newer[-1:]])


def _note(repo: Any) -> Path:
    return Path(repo.tmp_dir) / "set-aside.json"


def _place() -> dict[str, str]:
    """Return the branch and the newest stash, which DVC changes while it copies the workspace."""
    return {"branch": git("rev-parse", "--abbrev-ref", "HEAD"), "stash": git("stash", "list", "--format=%H", "-1")}


def enqueue(repo: Any, experiments: list[Experiment]) -> None:
    """Let DVC copy the workspace into its queue, with the parameters of each experiment.

    Raises:
        Refused: DVC cannot.
    """
    from dvc.exceptions import DvcException  # type: ignore[import-untyped]
    from scmrepo.exceptions import SCMError  # type: ignore[import-untyped]

    files.write_json(_note(repo), _place())
    for each in experiments:
        try:
            repo.experiments.run(each.targets, params=each.settings, queue=True, name=each.name)
        except DvcException as error:
            raise Refused(f"DVC cannot queue {each.name}: {error}") from None
        except SCMError as error:  # as where edits are to be stashed, which git signs
            way = "git config user.name NAME && git config user.email ADDRESS, if it is a name that git lacks"
            raise Refused(f"git cannot keep this workspace for {each.name}: {error}.\n{way}") from None
    _note(repo).unlink()


def follow(queue: Any) -> None:
    """Start a worker for what is queued, and print what each experiment prints, until the last has ended.

    Raises:
        Refused: no worker is left, or Ctrl-C.
    """
    queued, running = list(queue.iter_queued()), list(queue.iter_active())
    entries = list(dict.fromkeys([*running, *queued]))  # one is in both if it was started meanwhile
    if entries:
        queue.start_workers(1)
    try:
        for place, entry in enumerate(entries, 1):
            print(f"\nexperiment {place} of {len(entries)}: {entry.name}")
            for said in output(queue, entry):
                print(said, end="", flush=True)
    except KeyboardInterrupt:
        way = "`make study` follows them again, `dvc queue stop --kill` ends them"
        raise Refused(f"the experiments go on in the background: {way}") from None


def output(queue: Any, entry: Any) -> Iterator[str]:
    """Yield what an experiment prints, as it prints it, until it has ended.

    Raises:
        Refused: no worker is left.
    """
    shown, lasts, restarted = 0, True, False
    while lasts:
        time.sleep(1)
        process = queue.proc.get(entry.stash_rev)
        works = process and process.returncode is None
        # The queue is read only where it must be: in days a worker leaves thousands of files in it. First who waits,
        # then who runs, for an experiment goes from there to here.
        lasts = works or entry in itertools.chain(queue.iter_queued(), queue.iter_active())
        if process:
            with open(process.stdout, "rb") as log:
                log.seek(shown)
                said = log.read()
            shown += len(said)
            yield said.decode(errors="replace")
        if lasts and not lives(queue):
            if works or restarted:
                why = os.path.relpath(Path(queue.wdir) / "dvc-exp-worker-1.out")
                raise Refused(f"the worker of DVC's queue died; {why} may say why.\n`make study` goes on from here")
            queue.start_workers(1)  # the one of an earlier run leaves when idle, perhaps as this run began
            restarted = True
