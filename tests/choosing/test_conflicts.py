"""What is half merged or damaged in dvc.lock, dvc.yaml and params.yaml is refused with its line and the way out."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from clones import ENVIRONMENT, change, dvc, git

from alignment.runtime import Refused
from commands.compare import __main__ as compare
from commands.compare.revisions import Revision
from commands.diff import __main__ as diff
from commands.verify import __main__ as verify
from commands.verify.integrity import Records
from soak import clone


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose branch `side` has the results of another parameter."""
    folder = clone.small(tmp_path_factory.mktemp("made") / "study")
    for branch, word in (("side", "second"), ("main", "third")):
        git(folder, "switch", "--quiet", *(["--create"] if branch == "side" else []), branch)
        change(folder, "params.yaml", "first", word)
        dvc(folder, "repro", "--quiet")
        git(folder, "commit", "--quiet", "--all", "--message", word)
    return folder


@pytest.fixture
def study(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path / "study", symlinks=True)
    monkeypatch.chdir(tmp_path / "study")
    return tmp_path / "study"


COMMANDS: dict[str, Callable[[Path], None]] = {
    "verify": lambda _: verify.main(None),
    "compare": lambda folder: compare.main(["workspace"], "base", folder / "out.md"),
    "diff": lambda folder: diff.main(["main"], folder / "out.md"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_names_the_file_and_line_of_a_merge_that_stopped(name: str, study: Path, tmp_path: Path) -> None:
    subprocess.run(["git", "merge", "--quiet", "side"], check=False, capture_output=True)
    for path in ("params.yaml", "dvc.lock"):
        line = Path(path).read_text().splitlines().index("<<<<<<< HEAD") + 1
        with pytest.raises(Refused, match=rf"^{path} holds a merge conflict, in line {line}\."):
            COMMANDS[name](tmp_path)
        git(study, "checkout", "--theirs", path)


def test_what_is_advised_for_a_merge_ends_it(study: Path) -> None:
    subprocess.run(["git", "merge", "--quiet", "side"], check=False, capture_output=True)
    Path("params.yaml").write_text("word: second\n")
    with pytest.raises(Refused, match=r"`git checkout --ours dvc\.lock` or .* then `dvc repro`"):
        Records()
    git(study, "checkout", "--ours", "dvc.lock")
    assert "Running stage" not in dvc(study, "repro"), "each side has run what it gives"
    assert Path("made/b.txt").read_text() == "second\n" and Records().stages == ["make", "end"]


def test_a_commit_with_both_sides_is_refused_by_its_name(study: Path) -> None:
    text = Path("dvc.yaml").read_text()
    Path("dvc.yaml").write_text(f"# first\n<<<<<<< HEAD\n{text}=======\n{text}>>>>>>> side\n")
    git(study, "commit", "--quiet", "--all", "--message", "half merged")
    git(study, "checkout", "--quiet", "HEAD~1")
    with pytest.raises(Refused, match=r"dvc\.yaml of main holds a merge conflict, in line 2\.\nChoose another"):
        Revision.open("main")


# What DVC, killed or edited, may leave in dvc.lock.
DAMAGED = {
    "nothing": b"",
    "a list": b"- one\n",
    "no stages": b"stages:\n",
    "no YAML": b"a: [\n",
    "no text": b"\xff\xfe",
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_dvc_lock_is_refused_and_comes_back_by_what_is_advised(what: str, study: Path) -> None:
    whole = Path("dvc.lock").read_bytes()
    Path("dvc.lock").write_bytes(DAMAGED[what])
    with pytest.raises(Refused, match=r"^dvc\.lock is empty, cut short or damaged") as refusal:
        Revision.open("workspace")
    way = str(refusal.value).split("`")[1]
    subprocess.run(["sh", "-c", way], check=True, env=ENVIRONMENT, capture_output=True)
    assert Path("dvc.lock").read_bytes() == whole and Path("dvc.lock.damaged").read_bytes() == DAMAGED[what]


def test_a_dvc_lock_without_stages_is_one_of_which_nothing_was_run(study: Path) -> None:
    Path("dvc.lock").write_text("schema: '2.0'\n")
    with pytest.raises(Refused, match=r"dvc\.lock does not record make, end"):
        Records()
