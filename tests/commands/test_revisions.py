"""Revisions of a real repository under DVC: what they hold, how runs are told apart, and what is missing."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import planted
import pytest
import studies
import yaml
from clones import dvc, git

from alignment.runtime import Refused, files
from commands.compare import __main__ as compare
from commands.compare import revisions, variants
from commands.compare.revisions import WORKSPACE, Revision


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose HEAD has LIMA and HH, with two experiments: Orca, and another seed."""
    seeds = ({"data": "lima"}, {"data": "orca"}, {"data": "lima", "seed": 1})
    folder = studies.repository(tmp_path_factory.mktemp("study"), seeds)
    studies.experiment(folder, "orca", "data=orca")
    studies.experiment(folder, "seed-1", "seed=1")
    return folder


@pytest.fixture
def study(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of it, which a test may spoil, as the current folder."""
    shutil.copytree(made, tmp_path / "study", symlinks=True)
    monkeypatch.chdir(tmp_path / "study")
    return tmp_path / "study"


pytestmark = pytest.mark.slow


def test_commits_branches_experiments_and_the_workspace_are_revisions(study: Path) -> None:
    git(study, "branch", "side")
    head = git(study, "rev-parse", "HEAD").strip()
    for name in ("HEAD", head, head[:8], "side", "orca", "seed-1", WORKSPACE):
        assert [run.stage for run in Revision.open(name).checkpoints()] == ["base", "sft", "dpo"]
    sft = Revision.open("orca").checkpoints()[1]
    assert (sft.seed, sft.corpora, sft.origin) == (0, ("orca",), ("owner/base@abc", "mini"))
    assert sft.knobs["sft.batch"] == "4" and sft.option("eval", "dtype") == "float32"


def test_a_recipe_is_all_but_the_seed(study: Path) -> None:
    base, sft, dpo = Revision.open("HEAD").checkpoints()
    for name, same in (("seed-1", [True, True, True]), ("orca", [True, False, False])):
        other = Revision.open(name).checkpoints()
        assert [a.recipe == b.recipe for a, b in zip((base, sft, dpo), other, strict=True)] == same
    assert len({base.recipe, sft.recipe, dpo.recipe}) == 3
    dvc(study, "exp", "run", "--quiet", "--set-param", "rate=0.25")
    assert [
        a.recipe == b.recipe for a, b in zip((base, sft, dpo), Revision.open(WORKSPACE).checkpoints(), strict=True)
    ] == [
        True,
        False,
        False,
    ]


def test_the_page_of_experiments_and_the_workspace(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = Path("metrics/study.md")
    compare.main(["HEAD", "orca", "seed-1", WORKSPACE, "HEAD"], "base", out)
    page = out.read_text(encoding="utf-8")
    assert page.startswith("# What the data changed\n\n5 variants, 7 models; base model `owner/base@abc`")
    assert re.search(r"\| SFT lima +\| 2 ", page) and re.search(r"\| SFT orca, DPO hh +\| 1 ", page)
    assert "SFT orca minus" not in page and "Differences to base" in page
    for figure in re.findall(r"\]\((study/\w+\.svg)\)", page):
        assert (out.parent / figure).read_text(encoding="utf-8").startswith("<svg")
        assert (out.parent / figure).with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    html = out.with_suffix(".html").read_text(encoding="utf-8")
    for name in ("HEAD", "orca", "seed-1"):
        commit = Revision.open(name).commit
        assert f"git checkout {commit} &amp;&amp; dvc checkout" in html and git(study, "cat-file", "-t", commit)
    assert "python -m commands.compare HEAD orca seed-1 --baseline base --out metrics/study.md" in html
    assert str(study) not in html + page
    assert capsys.readouterr().out.startswith("# What the data changed")
    written = [out, out.with_suffix(".html"), *sorted(out.with_suffix("").iterdir())]
    before = {path.name: path.read_bytes() for path in written}
    compare.main(["HEAD", "orca", "seed-1"], "base", out)
    assert before == {path.name: path.read_bytes() for path in written}


def test_another_baseline_is_named_by_its_row(study: Path) -> None:
    compare.main(["HEAD", "orca"], "SFT lima", Path("page.md"))
    assert "## Differences to SFT lima" in Path("page.md").read_text(encoding="utf-8")
    with pytest.raises(
        Refused, match=r"(?s)no variant 'SFT shp'.*there are: base; SFT lima; SFT lima, DPO hh; SFT orca"
    ):
        compare.main(["HEAD", "orca"], "SFT shp", Path("page.md"))


def test_what_a_run_left_half_is_not_taken_for_a_result(study: Path) -> None:
    """SFT was trained anew, and nothing after it: what stands in dvc.lock of DPO is of another SFT."""
    lock = yaml.safe_load(Path("dvc.lock").read_text(encoding="utf-8"))
    for entry in lock["stages"]["sft"]["outs"]:
        entry["md5"] = "0" * 32
    files.write_text(Path("dvc.lock"), yaml.safe_dump(lock))
    assert [run.stage for run in Revision.open(WORKSPACE).checkpoints()] == ["base"]
    assert len(Revision.open("HEAD").checkpoints()) == 3


def test_a_file_that_is_not_the_recorded_one_is_refused(study: Path) -> None:
    path = study / "data/eval/sft.parquet"
    content = path.read_bytes()
    path.unlink()  # it may be a link into the cache
    path.write_bytes(content[:-1] + b"?")
    _, sft, _ = Revision.open(WORKSPACE).checkpoints()
    with pytest.raises(Refused, match=r"data/eval/sft.parquet of workspace is not the file that its dvc.lock names"):
        sft.table("eval")


def test_what_the_cache_lacks_is_named_with_what_brings_it(study: Path) -> None:
    shutil.rmtree(study / ".dvc/cache")
    _, sft, _ = Revision.open("orca").checkpoints()
    with pytest.raises(
        Refused, match=r"(?s)data/eval/sft.parquet of orca is neither here.*dvc exp pull <git remote> orca"
    ):
        sft.table("eval")


def test_what_the_cache_lacks_comes_from_a_remote(study: Path) -> None:
    dvc(study, "remote", "add", "--default", "--local", "shared", str(study.parent / "shared"))
    dvc(study, "push", "--quiet", "--all-commits")
    shutil.rmtree(study / ".dvc/cache")
    assert Revision.open("HEAD").checkpoints()[2].table("safety").num_rows == planted.SENTENCES


def test_revisions_that_are_none_are_refused(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused, match=r"(?s)unknown Git revision 'oraca'.*dvc exp list"):
        Revision.open("oraca")
    for name, kind in (("HEAD:dvc.lock", "file"), ("HEAD:", "folder"), ("HEAD^{tree}", "folder")):
        with pytest.raises(Refused, match=re.escape(f"{name} is a {kind} of git's, wanted a commit")):
            Revision.open(name)
    with pytest.raises(Refused, match="dvc exp list"):
        Revision.open("\udcff")  # what a byte that is no UTF-8 becomes on a command line
    git(study, "rm", "--quiet", "--cached", "dvc.lock")
    git(study, "commit", "--quiet", "--message", "without")
    with pytest.raises(Refused, match=r"HEAD has no dvc\.lock"):
        Revision.open("HEAD")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(Refused, match=r"workspace has no dvc\.lock.*in the study's checkout"):
        Revision.open(WORKSPACE)


def test_options_are_read_as_the_shell_reads_them() -> None:
    stages = {
        "sft": {"cmd": 'python -m stages.sft a b --seed 3 --state "$(dvc cache dir)/../state" --no-x --rate 1e-4'}
    }
    revision = Revision("a", stages, None)
    assert revision.options("sft") == {
        "seed": "3", "state": "$(dvc cache dir)/../state", "no-x": "no-x", "rate": "1e-4",
    }  # fmt: skip
    assert {"seed", "state"} <= set(revisions.UNNAMED)


def test_runs_of_one_variant_need_not_be_of_one_revision(study: Path) -> None:
    runs = [run for name in ("seed-1", "HEAD") for run in Revision.open(name).checkpoints()]
    found = [[run.revision.name for run in variant.runs] for variant in variants.group(runs)]
    assert found == [["seed-1"], ["HEAD", "seed-1"], ["HEAD", "seed-1"]]
