"""What several tests share: a tiny base model, and the mirror of real records where it is at hand."""

from pathlib import Path

import pytest

from alignment import weights

MIRROR = Path(__file__).parents[1].parent / "shared" / "mirror"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model's folder: a two-layer Llama with random weights and a byte-level tokenizer that uses a BOS."""
    folder = tmp_path_factory.mktemp("tiny")
    weights.fetch_model("random:2x64", "mini", folder / "downloads", folder / "base")
    return folder / "base"


@pytest.fixture(scope="session")
def mirror() -> Path:
    """The folder of real records, laid out as the hub lays out its repositories; without it the test is skipped."""
    if not MIRROR.is_dir():
        pytest.skip("the mirror of real records (../shared/mirror) is not here")
    return MIRROR
