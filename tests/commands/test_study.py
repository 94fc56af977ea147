"""`make study`: the grid and its names; killed and failed runs, on a toy pipeline; what is shared, on the real one."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from clones import COMPARISONS, DEMONSTRATIONS, DPO, ENVIRONMENT, SFT, change, dvc, git, ran

from alignment.runtime import Refused, files
from commands.study import __main__ as study
from commands.study import experiments
from commands.study.experiments import Experiment

ROOT = Path(__file__).parents[2]
# Stages of the real names; $CONTROL is a folder from which a test holds them or has them fail.
TOY = """
stages:
  sft:
    cmd: echo ${data} ${rows.demonstrations} ${seed} > sft.txt
    deps: [.gitignore]
    outs: [sft.txt]
  dpo:
    cmd: >-
      while test -e $CONTROL/hold-${preferences}; do sleep 0.1; done;
      test ! -e $CONTROL/refuse-${preferences} && echo ${preferences} | cat sft.txt - > dpo.txt
    deps: [sft.txt]
    outs: [dpo.txt]
  eval: &scored
    foreach: [base, sft]
    do:
      cmd: cat sft.txt > eval-${item}.txt
      deps: [sft.txt]
      outs: ["eval-${item}.txt"]
  safety:
    foreach: [base, sft]
    do:
      cmd: cat sft.txt > safety-${item}.txt
      deps: [sft.txt]
      outs: ["safety-${item}.txt"]
"""
PARAMS = {
    "data": "orca",
    "preferences": "hh",
    "seed": 3,
    "rows": {"demonstrations": 12},
    "study": {
        "seeds": 1,
        "demonstrations": ["lima"],
        "comparisons": ["hh", "shp"],
        "matched": ["lima", "orca"],
        "matched_rows": 6,
    },
}


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return toy_at(tmp_path / "toy")


def toy_at(folder: Path) -> Path:
    """A repository with the toy pipeline, and in place of the comparison one that prints its arguments."""
    (folder / "commands/compare").mkdir(parents=True)
    (folder / "commands/__init__.py").write_text(f"__path__.append({str(ROOT / 'commands')!r})")
    (folder / "commands/compare/__init__.py").touch()
    (folder / "commands/compare/__main__.py").write_text("import sys; print('compared:', *sys.argv[1:])")
    (folder / "dvc.yaml").write_text(TOY)
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    (folder / ".gitignore").write_text("__pycache__/\ncontrol/\n*.out\n/*.txt\n")
    (folder / "control").mkdir()
    git(folder, "init", "--quiet")
    dvc(folder, "init", "--quiet")
    shutil.copy(ROOT / ".dvc/config", folder / ".dvc")
    git(folder, "config", "user.name", "test")
    git(folder, "config", "user.email", "test@localhost")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "first")
    return folder


def start(folder: Path, **settings: str) -> "subprocess.Popen[bytes]":
    """Begin `make study`; what it prints goes to a file, since a worker that is left idle would hold a pipe open."""
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT), "CONTROL": str(folder / "control"), **settings}
    with open(folder / "study.out", "wb") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "commands.study", "params.yaml"],
            cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def said(folder: Path) -> str:
    return (folder / "study.out").read_text(encoding="utf-8")


def run(folder: Path, code: int = 0) -> str:
    """`make study` to its end, and what it printed."""
    assert start(folder).wait() == code, said(folder)
    return said(folder)


def wait_for(reached: Callable[[], Any]) -> None:
    end = time.monotonic() + 300
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.1)


def locks(folder: Path) -> dict[str, str]:
    """The dvc.lock of each experiment, by its name without the digest."""
    refs = git(folder, "for-each-ref", "--format=%(refname)", "refs/exps/*/*/*").split()
    return {ref.rpartition("/")[2].rpartition("-")[0]: git(folder, "show", f"{ref}:dvc.lock") for ref in refs}


def started(printed: str) -> list[str]:
    """The experiments of which output was printed, each with its place, without the digests."""
    return re.findall(r"^experiment (\d+ of \d+: .+)-[0-9a-f]{8}$", printed, flags=re.M)


# The grid ------------------------------------------------------------------------------------------------------------


def test_the_grid_is_every_pair_and_each_matched_set() -> None:
    pair, matched = ("data=lima", "preferences=hh", "seed=3"), ("data=lima", "rows.demonstrations=6", "seed=3")
    few = {**PARAMS, "study": {**PARAMS["study"], "comparisons": ["hh"]}}  # type: ignore[dict-item]
    assert list(study.grid(few, "x")) == [
        Experiment("lima-hh-3-x", pair),
        Experiment("lima-6-3-x", matched, ("eval@base", "safety@base", "eval@sft", "safety@sft")),
    ]


@pytest.mark.parametrize(("path", "count"), [("params.yaml", 8), ("presets/paper.yaml", 24)])
def test_the_study_has_so_many_experiments(path: str, count: int) -> None:
    params = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
    assert len({each.name for each in study.grid(params, "x")}) == count


def names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(folder)
    return [each.name for each in study.plan(Path("params.yaml"), git(folder, "rev-parse", "HEAD").strip())]


def test_a_name_changes_with_what_a_result_may_depend_on(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = names(toy, monkeypatch)
    for same in (("params.yaml", "^data: orca", "data: hh"), ("params.yaml", "seeds: 1", "seeds: 2")):
        change(toy, *same)
        assert names(toy, monkeypatch)[:3] == first
    (toy / "metrics").mkdir()
    (toy / "metrics/study.md").write_text("untracked")
    assert names(toy, monkeypatch)[:3] == first
    for name, text in (("params.yaml", "x: 1"), ("dvc.yaml", "# x")):
        with open(toy / name, "a") as file:
            file.write(text)
        edited = names(toy, monkeypatch)
        assert not set(edited) & set(first)
        first = edited
    git(toy, "commit", "--quiet", "--all", "--message", "second")
    assert not set(names(toy, monkeypatch)) & set(first)


REFUSALS = {
    "an unknown dataset": (("params.yaml", "- lima", "- lama"), "there is no dataset 'lama'"),
    "no comparisons": (("params.yaml", "- hh", "- orca"), "'orca' has no comparisons"),
    "a missing key": (("params.yaml", "  seeds: 1\n", ""), "params.yaml names no grid: KeyError('seeds')"),
}


@pytest.mark.parametrize("wrong", REFUSALS)
def test_a_params_file_without_a_grid_is_refused(wrong: str, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit, message = REFUSALS[wrong]
    change(toy, *edit)
    with pytest.raises(Refused, match=re.escape(message)):
        names(toy, monkeypatch)


def test_no_commit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused, match="experiments start from a commit: git init"):
        study.main(Path("params.yaml"))


# Runs of the toy -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_study_goes_on_and_ends_as_an_undisturbed_one(toy: Path, tmp_path: Path) -> None:
    other = toy_at(tmp_path / "undisturbed")
    for folder in (toy, other):
        change(folder, "params.yaml", r"^  matched:\n  - lima\n  - orca", "  matched: []")
        git(folder, "commit", "--all", "--quiet", "--message", "two experiments")
    printed = run(other)
    assert started(printed) == ["1 of 2: lima-hh-3", "2 of 2: lima-shp-3"]
    assert "2 experiments: 0 finished before, 2 now" in printed
    assert re.search(r"compared: lima-hh-3-\w+ lima-shp-3-\w+ --baseline base --out", printed)
    again = run(other)
    assert "2 experiments: 2 finished before, 0 now" in again and not started(again)

    worker = toy / ".dvc/tmp/exps/celery/dvc-exp-worker-1.pid"
    for preferences in ("hh", "shp"):
        (toy / f"control/hold-{preferences}").touch()
    killed = start(toy)
    wait_for(lambda: "Running stage 'dpo'" in said(toy))
    for process in (int(worker.read_text()), killed.pid):
        os.killpg(os.getpgid(process), signal.SIGKILL)
    killed.wait()

    (toy / "control/hold-hh").unlink()
    orphaned = start(toy)
    wait_for(lambda: "| cat sft.txt" in said(toy).partition("lima-shp-3")[2])
    os.kill(int(worker.read_text()), signal.SIGKILL)
    assert orphaned.wait() == 1
    assert "the worker of DVC's queue died; .dvc/tmp/exps/celery/dvc-exp-worker-1.out may say why" in said(toy)

    (toy / "control/hold-shp").unlink()
    printed = run(toy)
    assert "Running stage 'sft'" not in printed.partition("lima-shp-3")[2].partition("experiment ")[0]
    assert locks(toy) == locks(other)
    assert set(locks(toy)) == {"lima-hh-3", "lima-shp-3"}


@pytest.mark.slow
def test_what_fails_is_named_and_the_others_are_finished(toy: Path) -> None:
    (toy / "control/refuse-hh").touch()
    printed = run(toy, code=1)
    name = next(iter(re.findall(r"lima-hh-3-\w+", printed)))
    assert "3 experiments: 0 finished before, 2 now" in printed
    assert f"1 of 3 failed; why, is in\n  dvc queue logs {name}\ncorrect it and `make study` again" in printed
    assert "failed to reproduce 'dpo'" in dvc(toy, "queue", "logs", name)
    assert set(locks(toy)) == {"lima-shp-3", "lima-6-3"}
    (toy / "control/refuse-hh").unlink()
    printed = run(toy)
    assert started(printed) == ["1 of 1: lima-hh-3"]
    assert "3 experiments: 2 finished before, 1 now" in printed


def test_edits_that_git_cannot_sign_are_refused_with_the_way_out(toy: Path, tmp_path: Path) -> None:
    for key in ("user.name", "user.email"):
        git(toy, "config", "--unset", key)
    change(toy, "dvc.yaml", "^stages:", "# an edit\nstages:")
    nobody = {"HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null"}
    nobody |= {"EMAIL": "", "GIT_COMMITTER_NAME": "", "GIT_COMMITTER_EMAIL": ""}
    assert start(toy, **nobody).wait() == 1
    assert "git config user.name NAME" in said(toy) and "Traceback" not in said(toy)
    assert "# an edit" in (toy / "dvc.yaml").read_text() and not git(toy, "stash", "list")


class Leaving:
    """A queue with one experiment, and with a worker that was about to leave when it was asked for."""

    def __init__(self, folder: Path, comes_back: bool) -> None:
        self.wdir, self.comes_back, self.started, self.proc = folder, comes_back, 0, {}

    def iter_queued(self) -> list[Any]:
        return [] if self.comes_back and self.started else [self]

    def iter_active(self) -> list[Any]:
        return []

    def worker_status(self) -> dict[str, Any]:
        return {}

    def start_workers(self, count: int) -> None:
        self.started += count

    stash_rev = "abc"


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_worker_that_left_is_started_once_more(
    comes_back: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    queue = Leaving(tmp_path, comes_back)
    if comes_back:
        assert list(experiments.output(queue, queue)) == []
    else:
        with pytest.raises(Refused, match="the worker of DVC's queue died"):
            list(experiments.output(queue, queue))
    assert queue.started == 1


@pytest.mark.slow
def test_experiments_of_others_are_not_run(toy: Path) -> None:
    dvc(toy, "exp", "run", "--queue", "--name", "mine", "--set-param", "seed=4")
    printed = run(toy, code=1)
    assert "DVC's queue holds other experiments, which would be run too: mine (Queued)" in printed
    assert "`dvc queue remove NAME` if queued" in printed


@pytest.fixture
def aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What a DVC leaves that was killed as it queued: edits in git's stash, its own in their place; then others'."""
    (tmp_path / "params.yaml").write_text("committed")
    (tmp_path / "notes.txt").write_text("committed")
    git(tmp_path, "init", "--quiet", "--initial-branch", "main")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    (tmp_path / "params.yaml").write_text("older, which is stashed")
    git(tmp_path, "stash")
    (tmp_path / "params.yaml").write_text("days of work")
    monkeypatch.chdir(tmp_path)
    repo = SimpleNamespace(tmp_dir=str(tmp_path / ".git"))
    files.write_json(experiments._note(repo), experiments._place())
    git(tmp_path, "stash")
    git(tmp_path, "checkout", "--quiet", "--detach")
    (tmp_path / "params.yaml").write_text("an experiment's")
    (tmp_path / "notes.txt").write_text("written since")
    return repo


def test_what_dvc_had_set_aside_comes_back_by_what_is_advised(aside: SimpleNamespace) -> None:
    with pytest.raises(Refused, match="killed while it had set the edits of main aside") as refusal:
        experiments.refuse_set_aside(aside)
    (way,) = re.findall(r"`(git stash push .*?)`", str(refusal.value))
    assert "--force" not in way
    identity = {f"GIT_{who}_{what}": "test" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    subprocess.run(["sh", "-c", way], check=True, env={**ENVIRONMENT, **identity})
    assert git(Path(), "branch", "--show-current") == "main\n"
    assert Path("params.yaml").read_text() == "days of work"
    stashed = [git(Path(), "show", f"stash@{{{n}}}:{name}") for n in range(3) for name in ("params.yaml", "notes.txt")]
    assert {"older, which is stashed", "days of work", "an experiment's", "written since"} <= {*stashed}


def test_a_study_begins_with_what_was_set_aside(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_json(toy / ".dvc/tmp/set-aside.json", {"branch": "main", "stash": "abc"})
    monkeypatch.chdir(toy)
    with pytest.raises(Refused, match=r"set the edits of main aside(.|\n)*rm \.dvc/tmp/set-aside\.json"):
        study.main(Path("params.yaml"))


def test_a_second_study_waits_while_the_first_one_queues(aside: SimpleNamespace) -> None:
    """The first has set edits aside too, as it must, and is alive: no advice, but who is at work, and since when."""
    code = "import sys, types; from commands.study import experiments\n"
    code += "with experiments.queueing(types.SimpleNamespace(tmp_dir=sys.argv[1])): print('holds', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, aside.tmp_dir], text=True,
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as first:  # fmt: skip
        assert first.stdout and first.stdout.readline() == "holds\n"
        second = subprocess.Popen(
            [sys.executable, "-u", "-c", code, aside.tmp_dir], text=True,
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert second.stdout
        waits = second.stdout.readline() + second.stdout.readline()
        assert re.search(rf"another `make study` .*process {first.pid} since \d\d:\d\d:\d\d", waits), waits
        assert "waits" in waits and "Ctrl-C" in waits and "git" not in waits
        first.kill()
        assert second.stdout.readline() == "holds\n", "whatever ended the first"
        second.communicate()


# The real pipeline ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_experiments_share_is_made_once(studied: Path) -> None:
    printed = (studied / "said").read_text(encoding="utf-8")
    shp, hh = re.split("^experiment .*", printed, flags=re.M)[1:]
    assert ran(shp) == {*DEMONSTRATIONS, *COMPARISONS, *SFT} and ran(hh) & SFT == DPO
    assert "Running stage 'sft'" in shp and "Stage 'sft' is cached" in hh
    assert "Running stage 'dpo'" in hh and "Running stage 'sft'" not in hh
    assert not {"eval@base", "safety@base", "fetch@model", "fetch-safety@sentences"} & ran(printed)
    assert (studied / "study/metrics/study.md").is_file()
