"""`make verify` on hostile repositories: what lies outside of its copy stays, and dvc.yaml alone says what runs."""

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml
from clones import ENVIRONMENT, dvc, git
from hypothesis import given
from hypothesis import strategies as st

from alignment.runtime import Refused
from commands.verify import __main__ as verify
from commands.verify import copies, integrity
from commands.verify.integrity import Records
from soak import clone


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the results of two small stages."""
    return clone.small(tmp_path_factory.mktemp("made") / "study")


@pytest.fixture
def sandbox(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a copy of that repository, the current folder, and a neighbour that nobody may touch."""
    shutil.copytree(made, tmp_path / "study", symlinks=True)
    (tmp_path / "outside/deep").mkdir(parents=True)
    for name in ("outside/work.txt", "outside/deep/work.txt"):
        (tmp_path / name).write_text("days of work")
    monkeypatch.chdir(tmp_path / "study")
    return tmp_path


def outside(sandbox: Path) -> dict[str, str]:
    """All that lies beside the temporary copy: the neighbour, the repository and its cache."""
    kept = {place: integrity.file_md5(sandbox / place) for place in integrity.listing("outside", sandbox)}
    study = integrity.listing("study", sandbox)
    return kept | {name: md5 for name, md5 in study.items() if "/.git/" not in name and "/.dvc/tmp/" not in name}


def rewrite(name: str, change: Callable[[Any], Any]) -> None:
    """Edit dvc.yaml or dvc.lock."""
    content = yaml.safe_load(Path(name).read_text())
    change(content["stages"])
    Path(name).write_text(yaml.safe_dump(content, sort_keys=False))


def an_out(where: str, path: str) -> Callable[[Path], None]:
    """The first stage's output in dvc.yaml, dvc.lock or both becomes another path."""

    def edit(sandbox: Path) -> None:
        place = path.format(sandbox=sandbox)
        if "yaml" in where:
            rewrite("dvc.yaml", lambda stages: stages["make"].update(outs=[place]))
        if "lock" in where:
            rewrite("dvc.lock", lambda stages: stages["make"]["outs"][0].update(path=place))

    return edit


def a_dep(path: str) -> Callable[[Path], None]:
    """The last stage's input in dvc.lock becomes another path, with the hash of what lies there."""

    def edit(sandbox: Path) -> None:
        entry = {"path": path, "hash": "md5", "md5": integrity.file_md5(Path(path)), "size": 1}
        rewrite("dvc.lock", lambda stages: stages["end"].update(deps=[entry]))

    return edit


def a_listed_name(name: str) -> Callable[[Path], None]:
    """The list of the first output's files names a place outside; dvc.lock has the hash of that list."""

    def edit(sandbox: Path) -> None:
        entries = [{"md5": integrity.file_md5(Path("in.txt")), "relpath": name.format(sandbox=sandbox)}]
        listed = sandbox / "list"
        listed.write_text(json.dumps(entries))
        md5 = integrity.file_md5(listed)
        (cached := Path(".dvc/cache/files/md5") / md5[:2] / f"{md5[2:]}.dir").parent.mkdir(exist_ok=True)
        listed.rename(cached)
        rewrite("dvc.lock", lambda stages: stages["make"]["outs"][0].update(md5=f"{md5}.dir"))
        rewrite("dvc.lock", lambda stages: stages["end"]["deps"][0].update(md5=f"{md5}.dir"))

    return edit


def a_hash(md5: str) -> Callable[[Path], None]:
    """The hash of the last output leads out of the cache."""

    def edit(sandbox: Path) -> None:
        rewrite("dvc.lock", lambda stages: stages["end"]["outs"][0].update(md5=md5.format(sandbox=sandbox)))

    return edit


# What is edited, and what is said; `{sandbox}` is the folder around the repository.
HOSTILE = {
    "an absolute out in both": (an_out("yaml lock", "{sandbox}/outside"), "/outside, an output of make, leads out"),
    "an absolute out in dvc.yaml": (an_out("yaml", "{sandbox}/outside"), "/outside, an output of make, leads out"),
    "an absolute out in dvc.lock": (an_out("lock", "{sandbox}/outside"), "/outside, an output of make, leads out"),
    "an out above in both": (an_out("yaml lock", "../outside"), r"\.\./outside, an output of make, leads out"),
    "an out above in dvc.lock": (an_out("lock", "made/../../outside"), "an output of make, leads out"),
    "an input above": (a_dep("../outside/work.txt"), r"\.\./outside/work\.txt, an input of end, leads out"),
    "a list that leads above": (a_listed_name("../../outside/work.txt"), "the list of files of made names"),
    "a list that leads anywhere": (a_listed_name("{sandbox}/outside/work.txt"), "the list of files of made names"),
    "a hash that leads out": (a_hash("..{sandbox}/outside/work.txt"), "which is no md5"),
    "a hash that is a folder": (a_hash("../../../../../../outside"), "which is no md5"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_nothing_outside_the_copy_is_touched_and_the_path_is_refused(
    what: str, sandbox: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit, message = HOSTILE[what]
    edit(sandbox)
    before = outside(sandbox)
    with pytest.raises(Refused, match=message):
        verify.main(["end"])
    assert "rm -rf" not in capsys.readouterr().out, "nor is it advised"
    assert outside(sandbox) == before


def test_what_mends_removes_nothing_but_what_was_named(sandbox: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither notes in an output's folder nor, where it is not known what is damaged in it, the folder."""
    Path("made/notes.txt").write_text("mine")
    Path("made/a.txt").write_text("damaged")
    assert follow(capsys) == ["rm -f made/a.txt && dvc checkout made", "move it elsewhere"]
    assert Path("made/notes.txt").read_text() == "mine", "DVC does not remove it either"
    Path("made/notes.txt").rename("notes.txt")
    dvc(Path(), "checkout", "made")
    (cached,) = Path(".dvc/cache").rglob("*.dir")
    cached.unlink()
    Path("made/a.txt").write_text("my words")
    (mend,) = follow(capsys)
    assert mend.startswith("mv made made.damaged && dvc repro make")
    assert Path("made.damaged/a.txt").read_text() == "my words"


def follow(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Type the commands that are advised for the first stage, and return them."""
    capsys.readouterr()
    verify.check(Records(), "make")
    lines = capsys.readouterr().out.splitlines()
    advised = [line.partition(": ")[2] for line in lines if line.startswith("  to mend it: ")]
    for line in advised:
        subprocess.run(["sh", "-c", line.partition(" (or")[0]], env=ENVIRONMENT, check=False, capture_output=True)
    return advised


def test_a_link_in_place_of_an_output_s_folder_is_not_followed(sandbox: Path) -> None:
    shutil.rmtree("made")
    Path("made").symlink_to(sandbox / "outside")
    git(Path(), "add", "--force", "made")
    before = outside(sandbox)
    with pytest.raises(SystemExit):
        verify.main(["make"])
    assert outside(sandbox) == before


@given(st.lists(st.sampled_from(["..", ".", "a", "b", "out", "back", "file", "", "//"]), max_size=5).map("/".join))
def test_room_is_made_below_a_root_or_nowhere(name: str) -> None:
    """`out` is a link to what lies outside, `back` one to the root itself."""
    with tempfile.TemporaryDirectory() as folder:
        sandbox, root = Path(folder), Path(folder) / "root"
        for path in ("root/a/file", "outside/file", "outside/a/b"):
            (sandbox / path).parent.mkdir(parents=True, exist_ok=True)
            (sandbox / path).write_text("work")
        (root / "out").symlink_to(sandbox / "outside")
        (root / "back").symlink_to(root)
        names = PurePosixPath(name).parts
        try:
            copies.clear(root, name).write_text("new")
        except Refused:
            assert not names or name.startswith("/") or ".." in names or "out" in names[:-1]
        except OSError:  # a file stands where a folder is wanted
            assert "file" in names[:-1]
        kept = {path.relative_to(sandbox).as_posix() for path in (sandbox / "outside").rglob("*")}
        assert kept == {"outside/file", "outside/a", "outside/a/b"} and not (sandbox / "a").exists()
        assert all((sandbox / f"outside/{file}").read_text() == "work" for file in ("file", "a/b"))
        assert {path.name for path in sandbox.iterdir()} == {"root", "outside"}


def test_the_whole_is_reproduced_command_by_command(sandbox: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = outside(sandbox)
    verify.main(["make", "end"])
    assert "runs: 2 of 2 reproduced" in capsys.readouterr().out
    assert outside(sandbox) == before


def test_of_several_commands_none_follows_one_that_fails(sandbox: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = ["false", f"touch {sandbox}/ran"]
    rewrite("dvc.yaml", lambda stages: stages["end"].update(cmd=commands))
    rewrite("dvc.lock", lambda stages: stages["end"].update(cmd=commands))
    with pytest.raises(SystemExit):
        verify.main(["end"])
    assert "end: failed with exit code 1" in capsys.readouterr().out and not (sandbox / "ran").exists()


@pytest.mark.parametrize("stage", ["make", "end"])
def test_a_command_that_only_dvc_lock_has_is_shown_and_never_run(
    stage: str, sandbox: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite("dvc.lock", lambda stages: stages[stage].update(cmd=f"touch {sandbox}/ran; exit 1"))
    with pytest.raises(SystemExit):
        verify.main([stage])
    printed = capsys.readouterr().out
    assert f"{stage}: cannot be run again: dvc.lock records another command than dvc.yaml gives now" in printed
    assert f"dvc.lock: touch {sandbox}/ran; exit 1" in printed
    assert re.search(r"dvc\.yaml: (mkdir made && cp in|cp made/a\.txt end\.txt\n)", printed)
    assert not (sandbox / "ran").exists()


def test_changed_parameters_are_refused_and_the_recorded_ones_are_reproduced(
    sandbox: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("params.yaml").write_text("word: second\n")
    with pytest.raises(SystemExit):
        verify.main(["make", "end"])
    printed = capsys.readouterr().out
    assert "echo first > made/b.txt" in printed and "echo second > made/b.txt" in printed
    assert "runs: 1 of 2 reproduced" in printed
    git(Path(), "stash")
    verify.main(["make"])


@pytest.mark.parametrize("key", ["deps", "outs"])
def test_files_that_only_dvc_lock_has_are_shown(key: str, sandbox: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = {"path": "params.yaml", "hash": "md5", "md5": integrity.file_md5(Path("params.yaml")), "size": 12}
    rewrite("dvc.lock", lambda stages: stages["end"][key].append(entry))
    with pytest.raises(SystemExit):
        verify.main(["end"])
    said = {"deps": "inputs", "outs": "outputs"}[key]
    assert f"end: cannot be run again: dvc.lock records other {said} than dvc.yaml" in capsys.readouterr().out


def test_a_frozen_stage_is_verified_like_another(sandbox: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite("dvc.yaml", lambda stages: stages["end"].update(frozen=True))
    verify.main(["end"])
    assert "end: reproduced" in capsys.readouterr().out


def test_a_stage_with_a_folder_of_its_own_is_refused_by_name(sandbox: Path) -> None:
    rewrite("dvc.yaml", lambda stages: stages["end"].update(wdir="made"))
    with pytest.raises(Refused, match=r"end has `wdir: made`"):
        Records()
