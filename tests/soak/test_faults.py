"""The short form of `make soak`'s campaign: three kills, a full disk, two runs at once, on a clone with results."""

import shutil
from pathlib import Path

import pytest
from clones import git

from soak import faults
from soak.clone import Clone


@pytest.fixture(scope="module")
def maltreated(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A copy of the clone with results, for every test to leave as it was."""
    folder = tmp_path_factory.mktemp("faults").resolve() / "clone"
    shutil.copytree(clone, folder, symlinks=True)
    return Clone(folder, log=folder.with_name("clone.log")).remember()


@pytest.mark.slow
def test_killed_again_and_again_dvc_ends_with_the_undisturbed_bytes(maltreated: Clone) -> None:
    stages = ["fetch-safety@sentences", "sample@demonstrations", "safety@base"]
    outcome = faults.kills(maltreated, stages, each=1, least=2, seed=0)
    assert outcome.wrong == []
    assert 2 <= outcome.tried == outcome.recovered <= 1 + 3  # 3 a run, fewer where a stage ends before its moment


@pytest.mark.slow
def test_what_the_doctor_says_of_a_damaged_lock_is_done(maltreated: Clone) -> None:
    lock = maltreated.folder / "dvc.lock"
    whole = lock.read_bytes()
    lock.write_bytes(whole[: whole.rindex(b"md5:") + 2])  # in the middle of a key
    assert faults.cured(maltreated) == 1
    assert lock.read_text() == git(maltreated.folder, "show", "HEAD:dvc.lock")
    lock.write_bytes(whole)


@pytest.mark.slow
def test_on_a_full_disk_a_stage_says_what_it_needs_and_goes_on_when_there_is_room(maltreated: Clone) -> None:
    outcome = faults.disk(maltreated, [("fetch-safety@sentences", "data/raw")])
    assert outcome.wrong == []
    if "skipped" in outcome.remarks:
        pytest.skip(outcome.remarks)
    assert outcome.tried == outcome.recovered == 1


@pytest.mark.slow
def test_two_runs_at_once_end_with_the_bytes_of_one_alone(maltreated: Clone) -> None:
    for outcome in (faults.two_repros(maltreated, ["safety@base"]), faults.two_fetches(maltreated)):
        assert outcome.wrong == [] and outcome.recovered == 1
