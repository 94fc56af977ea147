"""Laws 1, 2 and 4: no network after `fetch`, same inputs give same bytes, a killed run ends as an undisturbed one."""

import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pipeline
import pytest

from alignment import files, models
from alignment.corpora import Role

STAGES = {
    "sample": ["data/sampled", "metrics/sample"],
    "sft": ["models/sft", "metrics/sft.json", "metrics/curves/sft.csv"],
    "dpo": ["models/dpo", "metrics/dpo.json", "metrics/curves/dpo.csv"],
    "eval": ["data/eval", "metrics/eval"],
    "safety": ["data/safety", "metrics/safety"],
    "report": ["metrics/report.md", "metrics/plots"],
}


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs of the tiny pipeline in folders of other names; the second cannot open a socket."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    pipeline.fetch_all(one)
    pipeline.fetch_all(two)
    pipeline.run(one)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "socket", _closed)
        patch.setattr(socket, "getaddrinfo", _closed)
        pipeline.run(two)
    return one, two


def _closed(*_: Any, **__: Any) -> Any:
    raise AssertionError("a stage after fetch touched the network")


def hashes(folder: Path, place: str) -> dict[str, str]:
    path = folder / place
    paths = [path] if path.is_file() else sorted(inner for inner in path.rglob("*") if inner.is_file())
    assert paths, f"{place} is empty"
    return {inner.relative_to(folder).as_posix(): files.sha256(inner) for inner in paths if inner.suffix != ".lock"}


def test_fetch_gives_the_same_bytes(twice: tuple[Path, Path]) -> None:
    one, two = twice
    for place in ("models/base", "data/raw"):
        assert hashes(one, place) == hashes(two, place)


@pytest.mark.parametrize("stage", STAGES)
def test_stage_gives_the_same_bytes_without_a_network(stage: str, twice: tuple[Path, Path]) -> None:
    one, two = twice
    for place in STAGES[stage]:
        assert hashes(one, place) == hashes(two, place)


def test_outputs_name_no_machine(twice: tuple[Path, Path]) -> None:
    one, _ = twice
    written = [path for place in ("data", "metrics", "models") for path in (one / place).rglob("*") if path.is_file()]
    assert not [path.name for path in written if str(one).encode() in path.read_bytes()]
    assert not [path.name for path in written if path.suffix in {".bin", ".pt", ".pkl"}]


def test_nothing_is_left_beside_the_outputs(twice: tuple[Path, Path]) -> None:
    one, _ = twice
    assert not list(one.rglob(".*.partial"))
    assert not list((one / "state").rglob("checkpoint-*"))


def test_adapter_knows_its_base(twice: tuple[Path, Path], tiny: Path) -> None:
    one, _ = twice
    assert models.lineage(one / "models/dpo")["parent"] == files.tree_sha256(one / "models/sft")
    with pytest.raises(models.Refused, match="another base"):
        models.load(tiny, one / "models/sft", models.Dtype.float32, "cpu")


def sft_process(folder: Path, out: Path) -> subprocess.Popen[str]:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import pipeline, pathlib; "
        f"pipeline.train_sft(pathlib.Path({str(folder)!r}), pathlib.Path({str(out)!r}), epochs=4)"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=pipeline.ROOT
    )


def test_killed_training_ends_with_the_bytes_of_an_undisturbed_run(twice: tuple[Path, Path], tmp_path: Path) -> None:
    one, _ = twice
    pipeline.train_sft(one, tmp_path / "whole", epochs=4)
    out = tmp_path / "killed"
    for checkpoints in (1, 2):  # killed twice, later each time
        process = sft_process(one, out)
        deadline = time.monotonic() + 120
        while len(list(out.glob("state/*/checkpoint-*/whole.json"))) < checkpoints and time.monotonic() < deadline:
            assert process.poll() is None, process.stdout and process.stdout.read()
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (out / "models/sft").exists()
        assert not (out / "metrics/sft.json").exists()
    # A checkpoint that was cut short is never picked up.
    last, later = _later(out)
    shutil.copytree(last, later)
    (later / "optimizer.pt").write_bytes(b"cut short")
    process = sft_process(one, out)
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0, printed
    assert "was not written to its end" in printed
    assert re.search(r"resuming from checkpoint-\d+", printed)
    for place in STAGES["sft"]:
        assert hashes(out, place) == hashes(tmp_path / "whole", place)


def _later(out: Path) -> tuple[Path, Path]:
    """The last whole checkpoint, and the path of a later one."""
    whole = sorted(
        (path.parent for path in out.glob("state/*/checkpoint-*/whole.json")), key=lambda p: int(p.name[11:])
    )
    return whole[-1], whole[-1].with_name("checkpoint-999")


def test_seed_changes_training_rows_but_not_held_out_rows(twice: tuple[Path, Path], tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    one, _ = twice
    for place in ("data/raw", "models/base"):
        shutil.copytree(one / place, tmp_path / place)
    pipeline.sample_role(tmp_path, Role.comparisons, seed=1)
    ids: dict[str, list[set[str]]] = {"train": [], "heldout": []}
    for folder in (one, tmp_path):
        rows = pq.read_table(folder / "data/sampled/comparisons.parquet").to_pylist()
        for split, found in ids.items():
            found.append({row["id"] for row in rows if row["split"] == split})
    assert ids["train"][0] != ids["train"][1]
    assert ids["heldout"][0] == ids["heldout"][1]
