"""Repeatable and resumable: runs that are killed, stopped, or shared by processes end with the undisturbed bytes.

The stages run as processes of their own, by the commands of dvc.yaml on the tiny preset. `make test` kills twice;
`make soak` kills each stage twenty times, at new moments.
"""

import csv
import dataclasses
import os
import pickle
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pipeline
import psutil
import pytest

from alignment.corpora import Role
from alignment.runtime import files
from alignment.training import resume

pytestmark = pytest.mark.slow
OUTPUTS = {
    "sft": ["models/sft", "metrics/sft.json", "metrics/curves/sft.csv"],
    "dpo": ["models/dpo", "metrics/dpo.json", "metrics/curves/dpo.csv"],
}
LONG = {"epochs": 5, "checkpoint_steps": 2}  # 15 steps
# 12 rows in steps of 5, 5 and 2: rows do not go round evenly. Dropout depends on which process draws it.
UNEVEN = {"epochs": 4, "batch": 5, "per_device_batch": 2, "dropout": 0.0}
ALONE = [sys.executable, "-m"]


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that `sft` and `dpo` read."""
    folder = tmp_path_factory.mktemp("sampled")
    pipeline.fetch_all(folder)
    for role in Role:
        pipeline.sample_role(folder, role)
    pipeline.train_sft(folder)
    return folder


@dataclass
class Run:
    """A stage in a folder of its own, which it may be run in again and again.

    Attributes:
        folder: with links to what the stage reads, and all that it writes.
        stage: sft or dpo.
        launch: what starts it.
        changes: parameters that are not the tiny preset's.
    """

    folder: Path
    stage: str
    launch: list[str]
    changes: dict[str, Any]

    def prepare(self, sampled: Path) -> "Run":
        """Link what the stage reads."""
        for place in ("data", "models/base", "models/sft")[: 2 if self.stage == "sft" else 3]:
            (self.folder / place).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / place).symlink_to(sampled / place)
        return self

    def command(self) -> list[str]:
        """The stage's command in dvc.yaml, with its parameters as DVC writes them."""
        section = {**pipeline.TINY[self.stage], **self.changes}
        params = {**pipeline.TINY, **self.changes, "launch": shlex.join(self.launch)}
        params[self.stage] = " ".join(_flag(key, section[key]) for key in pipeline.TINY[self.stage])
        command = str(pipeline.params("dvc.yaml")["stages"][self.stage]["cmd"])
        command = command.replace('"$(dvc cache dir)/../state"', "state")
        return shlex.split(re.sub(r"\$\{(\w+)\}", lambda found: str(params[found[1]]), command))

    def start(self, *before: str) -> "subprocess.Popen[str]":
        """Start it, by way of `before`, without its outputs, as DVC does; what it prints goes to a file."""
        for place in OUTPUTS[self.stage]:
            files.remove(self.folder / place)
        with (self.folder / "printed").open("w") as printed:
            return subprocess.Popen(
                [*before, *self.command()],
                stdout=printed,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=self.folder,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(pipeline.ROOT)},
            )

    def end(self) -> str:
        """Run it to its end and return what it printed."""
        code = self.start().wait(timeout=300)
        assert code == 0, self.printed()
        return self.printed()

    def printed(self) -> str:
        return (self.folder / "printed").read_text()

    def steps(self) -> int:
        """How many steps the curve so far has; none before training."""
        curves = [path.read_text() for path in self.folder.glob("state/*/curve.csv")]
        return curves[0].count("\n") - 1 if curves else 0

    def last(self) -> int:
        """The step of the last checkpoint that has all files of its seal; 0 if there is none."""
        whole = [0]
        for seal in self.folder.glob(f"state/*/checkpoint-*/{resume.SEAL}"):
            if all((seal.parent / name).is_file() for name in files.read_json(seal)):
                whole.append(int(seal.parent.name.rpartition("-")[2]))
        return max(whole)

    def resumed(self) -> int:
        """The step that it said it goes on from; 0 if it did not."""
        found = re.search(r"resuming from checkpoint-(\d+):", self.printed())
        return int(found[1]) if found else 0

    def wait_until(self, happened: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
        """Wait until something has happened, while a process of the run works."""
        deadline = time.monotonic() + 300
        while not happened():
            assert process.poll() is None and time.monotonic() < deadline, self.printed()
            time.sleep(0.01)

    def wait_for(self, said: str, process: "subprocess.Popen[str]") -> None:
        """Wait until it has been said."""
        self.wait_until(lambda: said in self.printed(), process)

    def copy(self, folder: Path) -> "Run":
        """The same run in another folder."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return dataclasses.replace(self, folder=folder)

    def written(self) -> dict[str, str]:
        """The hash of each file that the stage wrote besides its state."""
        places = [self.folder / place for place in OUTPUTS[self.stage]]
        paths = [path for place in places for path in (place, *sorted(place.rglob("*"))) if path.is_file()]
        return {path.relative_to(self.folder).as_posix(): files.sha256(path) for path in paths}

    def left(self) -> set[str]:
        """What there is in the folder besides inputs, outputs, locks and what was printed."""
        known = ("data", "models/base", "models/sft", "printed", *OUTPUTS[self.stage])
        found = [path for path in self.folder.rglob("*") if not path.is_dir() or path.parent.name == "state"]
        names = {path.relative_to(self.folder).as_posix() for path in found}
        return {name for name in names if not name.startswith(known) and not name.endswith(".lock")}

    def curve(self, name: str) -> list[float]:
        with (self.folder / OUTPUTS[self.stage][2]).open() as lines:
            return [float(line[name]) for line in csv.DictReader(lines)]

    def metrics(self) -> dict[str, float]:
        return dict(files.read_json(self.folder / OUTPUTS[self.stage][1]))


def _flag(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{key}" if value else f"--no-{key}"
    return f"--{key} {shlex.quote(str(value))}"


@pytest.fixture
def run(sampled: Path, tmp_path: Path) -> Callable[..., Run]:
    """Makes a stage ready to run in a folder of the test."""

    def make(name: str, stage: str, launch: list[str] = ALONE, **changes: Any) -> Run:
        return Run(tmp_path / name, stage, launch, changes).prepare(sampled)

    return make


@dataclass
class Whole:
    """An undisturbed run of a stage.

    Attributes:
        bytes: of each file that it wrote, the hash.
        seconds: how long it imported and encoded, trained, and then scored held-out rows and wrote.
    """

    bytes: dict[str, str]
    seconds: dict[str, float]


# What a stage says when a part of its work begins.
BEGINS = {"imports": "", "trains": "the curve so far", "writes": "trained tokens in"}


@pytest.fixture(scope="module")
def whole(sampled: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Whole]:
    """Undisturbed runs of both stages, at the same time."""

    def undisturbed(stage: str) -> Whole:
        run = Run(tmp_path_factory.mktemp("whole") / stage, stage, ALONE, LONG).prepare(sampled)
        process, times = run.start(), []
        for said in BEGINS.values():
            run.wait_for(said, process)
            times.append(time.monotonic())
        assert process.wait(timeout=300) == 0, run.printed()
        assert run.left() == set()
        ends = [*times[1:], time.monotonic()]
        seconds = [end - begin for begin, end in zip(times, ends, strict=True)]
        return Whole(run.written(), dict(zip(BEGINS, seconds, strict=True)))

    with ThreadPoolExecutor() as pool:
        return dict(zip(OUTPUTS, pool.map(undisturbed, OUTPUTS), strict=True))


def test_killed_at_any_moment_a_run_goes_on_and_ends_with_the_same_bytes(
    run: Callable[..., Run], whole: dict[str, Whole], soak: bool
) -> None:
    kills, seed = {"sft": ["writes"], "dpo": ["trains"]}, 0
    if soak:
        parts = ["trains", "trains", "imports", "trains", "writes"]
        kills, seed = dict.fromkeys(OUTPUTS, parts * 4), random.randrange(2**32)
    print(f"the moments of seed {seed}")

    def kill_again_and_again(stage: str) -> None:
        draw, killed = random.Random(f"{seed} {stage}"), run(stage, stage, **LONG)
        for part in kills[stage]:
            while not _killed(killed, whole[stage], part, draw.uniform(0, whole[stage].seconds[part])):
                _ended(killed, whole[stage])
        last = killed.last()
        killed.end()
        assert killed.resumed() == last
        _ended(killed, whole[stage])

    with ThreadPoolExecutor() as pool:
        list(pool.map(kill_again_and_again, OUTPUTS))


def _killed(run: Run, whole: Whole, part: str, seconds: float) -> bool:
    """Start a run and kill it so many seconds after a part of it began; False if it ended before that."""
    last = run.last()
    process = run.start()
    run.wait_for(BEGINS[part], process)
    if part != "imports":
        assert run.resumed() == last
    try:
        code = process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        for place in OUTPUTS[run.stage]:  # complete, or not there at all
            there, complete = (
                {name: sha for name, sha in found.items() if name.startswith(place)}
                for found in (run.written(), whole.bytes)
            )
            assert there in ({}, complete)
        print(f"{run.stage} went on from {last}, killed {seconds:.1f} s after it {part}: {run.last()}")
        return True
    assert code == 0, run.printed()
    return False


def _ended(run: Run, whole: Whole) -> None:
    """Nothing tells this run from an undisturbed one."""
    assert run.written() == whole.bytes
    assert run.left() == set()


PARENT = [sys.executable, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:])"]


def _stopped(run: Run, number: signal.Signals, *parent: str) -> None:
    """Stop a run after a few steps, and see that it left a checkpoint of its last step, no output and no process.

    Args:
        run: any.
        number: the signal that stops it.
        parent: starts the run and is killed, instead of a signal to the run itself.
    """
    process, first = run.start(*parent), run.last()
    run.wait_until(lambda: run.steps() >= first + 3, process)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL if parent else number)
    code = process.wait(timeout=300)
    _, orphans = psutil.wait_procs(children, timeout=300)
    assert not orphans
    found = re.search(rf"stopped by {number.name} after step (\d+) of (\d+), with a checkpoint", run.printed())
    assert found, run.printed()
    assert first + 3 <= int(found[1]) < int(found[2])
    assert run.last() == int(found[1])
    assert run.written() == {}
    assert parent or code == 128 + number


@pytest.fixture(scope="module")
def stopped(sampled: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A run of `sft` that SIGTERM stopped in the middle, and one of `dpo` that Ctrl-C did."""
    folder = tmp_path_factory.mktemp("stopped")
    runs = {stage: Run(folder / stage, stage, ALONE, LONG).prepare(sampled) for stage in OUTPUTS}
    with ThreadPoolExecutor() as pool:
        list(pool.map(_stopped, runs.values(), (signal.SIGTERM, signal.SIGINT)))
    return runs


def test_stopped_by_ctrl_c_and_by_the_end_of_its_parent_a_run_goes_on(
    stopped: dict[str, Run], whole: dict[str, Whole], tmp_path: Path
) -> None:
    again = stopped["dpo"].copy(tmp_path / "again")
    _stopped(again, signal.SIGTERM, *PARENT)
    last = again.last()
    again.end()
    assert again.resumed() == last
    _ended(again, whole["dpo"])


def test_before_training_a_signal_ends_a_run_at_once(run: Callable[..., Run]) -> None:
    sft = run("sft", "sft", **LONG)
    process = sft.start()
    time.sleep(1)
    process.terminate()
    assert process.wait(timeout=5) == -signal.SIGTERM
    assert sft.left() == set() and sft.written() == {}


def test_a_second_signal_ends_a_run_at_once() -> None:
    before = signal.getsignal(signal.SIGTERM)
    stop = resume.Stop(None)
    stop.on_train_begin(None, None, None)
    signal.raise_signal(signal.SIGTERM)
    assert stop.asked == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        stop = resume.Stop(None)
        stop.on_train_begin(None, None, None)
        signal.raise_signal(signal.SIGINT)
        stop.restore()
        assert stop.asked == 0
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


SPOILED: dict[str, Callable[[Path], Any]] = {
    "cut short": lambda folder: os.truncate(folder / "optimizer.pt", 1000),
    "a flipped bit": lambda folder: _flip(folder / "adapter_model.safetensors"),
    "a file is missing": lambda folder: (folder / "rng_state.pth").unlink(),
    "no seal": lambda folder: (folder / resume.SEAL).unlink(),
    "a seal cut short": lambda folder: os.truncate(folder / resume.SEAL, 100),
}


def test_stopped_by_sigterm_a_run_goes_on_and_no_spoiled_checkpoint_is_picked_up(
    stopped: dict[str, Run], whole: dict[str, Whole], tmp_path: Path
) -> None:
    again = stopped["sft"].copy(tmp_path / "again")
    last = again.last()
    (folder,) = again.folder.glob(f"state/*/checkpoint-{last}")
    for number, spoil in enumerate(SPOILED.values(), start=100):
        shutil.copytree(folder, folder.with_name(f"checkpoint-{number}"))
        spoil(folder.with_name(f"checkpoint-{number}"))
    printed = again.end()
    for number in range(100, 100 + len(SPOILED)):
        assert f"checkpoint-{number} was not written to its end: removed" in printed
    assert again.resumed() == last
    _ended(again, whole["sft"])


def test_a_pickle_that_was_planted_with_a_seal_of_its_own_is_not_run(stopped: dict[str, Run], tmp_path: Path) -> None:
    """Whoever can write to the state folder can write a seal too; the Trainer reads tensors and numbers alone."""
    again, marker = stopped["sft"].copy(tmp_path / "again"), tmp_path / "marker"
    (folder,) = again.folder.glob(f"state/*/checkpoint-{again.last()}")
    (folder / "optimizer.pt").write_bytes(pickle.dumps(_Planted(marker)))
    files.write_json(folder / resume.SEAL, resume._hashes(folder))
    assert again.start().wait(timeout=300) != 0
    assert "Weights only load failed" in again.printed() and again.resumed() == again.last()
    assert not marker.exists()


class _Planted:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def test_a_checkpoint_of_other_inputs_is_never_picked_up(
    stopped: dict[str, Run], sampled: Path, tmp_path: Path
) -> None:
    rate, data = (stopped["sft"].copy(tmp_path / name) for name in ("rate", "data"))
    rate.changes = {**LONG, "learning_rate": 2e-3}
    for place in ("data/raw", "models/base"):
        (tmp_path / "other" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "other" / place).symlink_to(sampled / place)
    pipeline.sample_role(tmp_path / "other", Role.demonstrations, seed=1)
    (data.folder / "data").unlink()
    (data.folder / "data").symlink_to(tmp_path / "other/data")
    with ThreadPoolExecutor() as pool:
        list(pool.map(Run.end, (rate, data)))
    for run in (rate, data):
        assert run.resumed() == 0
        assert run.last() == stopped["sft"].last()  # still there, for a run with its inputs


@pytest.fixture(scope="module")
def alone(sampled: Path, tmp_path_factory: pytest.TempPathFactory, soak: bool) -> dict[str, Run]:
    """Runs by one process, of both stages in the soak, at the same time, to their ends."""
    folder = tmp_path_factory.mktemp("alone")
    runs = {
        stage: Run(folder / stage, stage, ALONE, UNEVEN).prepare(sampled) for stage in (OUTPUTS if soak else ["dpo"])
    }
    with ThreadPoolExecutor() as pool:
        list(pool.map(Run.end, runs.values()))
    return runs


def test_several_processes_train_what_one_trains_and_the_same_bytes_every_time(
    run: Callable[..., Run], alone: dict[str, Run], soak: bool
) -> None:
    if not soak:
        pytest.skip("in the soak; `make test` has two processes train under FSDP")

    def two(stage: str) -> None:
        one, many, again = (run(f"two {stage} {name}", stage, **UNEVEN) for name in ("one", "many", "again"))
        many.launch = again.launch = [*pipeline.several(2), "-m"]
        _stopped(again, signal.SIGTERM, *PARENT)
        # What several processes began is not for one.
        (one.folder / "state").symlink_to(again.folder / "state")
        one.end()
        assert one.resumed() == 0
        _same_training(one, many, stage)
        _goes_on(again, many)

    def three(stage: str) -> None:
        many, again = (run(f"three {stage} {name}", stage, **UNEVEN) for name in ("many", "again"))
        many.launch = again.launch = [*pipeline.several(3), "-m"]
        _same_training(alone[stage], many, stage)
        again.end()
        assert again.written() == many.written()

    jobs = [(two, "sft"), (three, "dpo"), (two, "dpo"), (three, "sft")]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda job: job[0](job[1]), jobs))


def test_under_fsdp_a_run_trains_what_one_process_trains_goes_on_and_has_the_same_bytes_every_time(
    run: Callable[..., Run], alone: dict[str, Run]
) -> None:
    for stage in alone:  # DPO has SFT's adapter besides its own
        many, again = (run(f"fsdp {stage} {name}", stage, **UNEVEN) for name in ("many", "again"))
        config = ["--config_file", str(pipeline.ROOT / "launch/fsdp.yaml")]
        many.launch = again.launch = [*pipeline.LAUNCH, *config, str(pipeline.ROOT / "tests/worlds/fsdp.py")]
        _same_training(alone[stage], many, stage)
        _stopped(again, signal.SIGTERM, *PARENT)
        assert list(again.folder.glob("state/*/checkpoint-*/pytorch_model_fsdp.bin")), "FSDP's own, so it is FSDP"
        _goes_on(again, many)


def _goes_on(again: Run, whole: Run) -> None:
    """Run what was stopped to its end: nothing tells it from a run that was not."""
    last = again.last()
    again.end()
    assert again.resumed() == last
    assert again.left() == set()
    assert again.written() == whole.written()


def _same_training(one: Run, many: Run, stage: str) -> None:
    """Run many processes to their end: losses, figures and gradients are the one's, but for the order of sums."""
    # Adam hides a gradient of the wrong size, but not its norm, which is printed with four digits.
    assert _norms(one.printed()) == pytest.approx(_norms(many.end()), rel=1e-2)
    for column in {"sft": ["loss"], "dpo": ["loss", "reward_margin", "chosen_logps"]}[stage]:
        # A reply's log-probability is about -1,400 nats, to 1e-4 in float32; rewards are a tenth of differences.
        assert one.curve(column) == pytest.approx(many.curve(column), rel=1e-5, abs=1e-4)
    assert one.metrics() == pytest.approx(many.metrics(), abs=1e-3)
    assert one.left() == many.left() == set()


def _norms(printed: str) -> list[float]:
    return [float(norm) for norm in re.findall(r"gradient_norm (\S+)$", printed, re.M)]


@pytest.mark.parametrize("stage", OUTPUTS)
def test_gradient_checkpointing_changes_memory_and_nothing_else(stage: str, sampled: Path, tmp_path: Path) -> None:
    train = {"sft": pipeline.train_sft, "dpo": pipeline.train_dpo}[stage]
    for name, checkpointing in (("plain", False), ("checkpointing", True)):
        train(sampled, tmp_path / name, gradient_checkpointing=checkpointing)
    with (
        (tmp_path / "plain" / OUTPUTS[stage][2]).open() as plain,
        (tmp_path / "checkpointing" / OUTPUTS[stage][2]).open() as other,
    ):
        for one, two in zip(csv.DictReader(plain), csv.DictReader(other), strict=True):
            assert float(one["loss"]) == pytest.approx(float(two["loss"]), rel=1e-5)


def test_of_unfinished_runs_the_last_ones_are_kept(tmp_path: Path) -> None:
    made_from = {"stage": "sft", "data": "one"}
    own = files.unfinished(tmp_path, made_from)
    names = [own.name, *(f"sft-{number}" for number in range(20)), "dpo-0"]
    for age, name in enumerate(names):  # the run's own folder is the oldest
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (age, age))
    assert files.unfinished(tmp_path, made_from) == own
    kept = {own.name, "dpo-0", *(f"sft-{number}" for number in range(20 - files.UNFINISHED + 1, 20))}
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_an_unfinished_run_that_another_process_has_just_removed_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "sft-gone").symlink_to(tmp_path / "nowhere")  # it is listed, and not there
    assert files.unfinished(tmp_path, {"stage": "sft"}).parent == tmp_path
