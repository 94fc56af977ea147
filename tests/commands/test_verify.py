"""`make verify` on a repository with results: a flipped byte is named wherever it lies, stages give the same again."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from clones import ENVIRONMENT, change, dvc

from alignment.runtime import Refused, files
from commands.verify import __main__ as verify
from commands.verify import integrity
from commands.verify.integrity import Records

pytestmark = pytest.mark.slow

RAW = "data/raw/demonstrations/train.jsonl"


@pytest.fixture(scope="module")
def whole(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clone, in which workspace and cache are no longer one file under two names: each can be spoilt alone."""
    return Path(shutil.copytree(clone, tmp_path_factory.mktemp("verify") / "study", symlinks=True))


@pytest.fixture
def study(whole: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """That copy as the current folder; what a test spoils is whole again after it."""
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file() and ".git" not in path.parts}
    monkeypatch.chdir(whole)
    yield whole
    for path, content in before.items():
        if not path.is_file() or path.stat().st_nlink > 1 or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            path.write_bytes(content)


def spoil(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Other bytes under the same time: if the size stays too, DVC does not see it."""
    status, content = path.stat(), path.read_bytes()
    path.chmod(0o644)  # the cache's objects are write-protected
    path.write_bytes(change(content))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def without_last_line(content: bytes) -> bytes:
    return b"".join(content.splitlines(keepends=True)[:-1])


def object_of(path: str) -> Path:
    """DVC's copy of a file, or of the list of a folder's files."""
    hashes = {out["path"]: out["md5"] for stage in lock()["stages"].values() for out in stage["outs"]}
    md5 = hashes.get(path) or integrity.file_md5(Path(path))
    return Path(".dvc/cache/files/md5") / md5[:2] / md5[2:]


def lock() -> dict:
    return dict(yaml.safe_load(Path("dvc.lock").read_text()))


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What is said of files that are not as they were recorded."""
    capsys.readouterr()
    records = Records()
    well = [verify.check(records, stage) for stage in records.stages]
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.endswith(" as recorded")]
    assert all(well) == (not lines)
    return lines


# What is spoilt, and the command that is offered.
SPOILT = {
    "a raw file": (RAW, f"rm -f {RAW} && dvc checkout data/raw/demonstrations"),
    "a benchmark": ("data/raw/benchmarks/piqa/piqa_validation.parquet", "dvc checkout data/raw/benchmarks"),
    "where it is from": ("data/raw/safety/provenance.json", "dvc checkout data/raw/safety"),
    "sampled rows": ("data/sampled/comparisons.parquet", "dvc checkout data/sampled/comparisons.parquet"),
    "an adapter": (
        "models/dpo/adapter_model.safetensors",
        "rm -f models/dpo/adapter_model.safetensors && dvc checkout",
    ),
    "base weights": (
        "models/base/model.safetensors",
        "rm -f models/base/model.safetensors && dvc checkout models/base",
    ),
    "a per-item table": ("data/eval/sft.parquet", "dvc checkout data/eval/sft.parquet"),
    "a per-sentence table": ("data/safety/base.parquet", "dvc checkout data/safety/base.parquet"),
    "metrics": ("metrics/eval/dpo.json", "git checkout -- metrics/eval/dpo.json"),
    "a curve": ("metrics/curves/sft.csv", "git checkout -- metrics/curves/sft.csv"),
    "a figure's data": ("metrics/plots/safety.csv", "git checkout -- metrics/plots"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_flipped_byte_is_named_with_what_mends_it(what: str, study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, mend = SPOILT[what]
    spoil(study / name, flip)
    fault, command = said(capsys)
    assert name in fault and "is damaged or edited" in fault
    assert mend in command


@pytest.mark.parametrize("name", [RAW, "models/sft", "data/eval/base.parquet", "models/base/model.safetensors"])
def test_a_flipped_byte_in_the_cache_is_named(name: str, study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = object_of(name)
    spoil(damaged, flip)
    lines = said(capsys)
    of = f"the list of files of {name}" if damaged.suffix else name
    assert any(f"{damaged}, DVC's copy of {of}, is damaged" in line for line in lines)
    assert any(f"rm -f {damaged} && dvc commit" in line for line in lines)


def test_one_byte_under_two_names_is_named_twice(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As DVC links by default where it can: the cache is damaged with the file, and nothing is left to check out."""
    name = "data/safety/dpo.parquet"
    kept = object_of(name)
    Path(name).unlink()
    os.link(kept, name)
    spoil(study / name, flip)
    here, there, mend = said(capsys)
    assert name in here and str(kept) in there
    assert f"rm -f {name} && rm -f {kept} && dvc repro safety@dpo" in mend


def test_a_file_cut_at_a_line_s_end_is_named(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What no parser can see: it would be read as a shorter dataset."""
    spoil(study / RAW, without_last_line)
    fault, _ = said(capsys)
    assert RAW in fault


@pytest.mark.parametrize("share", [0, 0.5, 0.999])
def test_a_file_that_is_cut_short_is_named(share: float, study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "data/sampled/demonstrations.parquet"
    spoil(study / name, lambda content: content[: int(len(content) * share)])
    fault, _ = said(capsys)
    assert name in fault


def test_missing_and_added_files_are_named(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (study / "models/sft/lineage.json").unlink()
    (study / "models/dpo/notes.txt").write_text("mine")
    shutil.rmtree(study / "data/raw/safety")
    lines = said(capsys)
    (study / "models/dpo/notes.txt").unlink()
    assert {line for line in lines if "to mend" not in line} == {
        "fetch-safety@sentences: data/raw/safety is missing",
        "sft: models/sft/lineage.json is missing",
        "dpo: models/dpo/notes.txt was not recorded",
    }


@pytest.mark.parametrize("name", [RAW, "metrics/sft.json"])
def test_the_command_that_is_offered_mends_it(name: str, study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dvc(study, "status")  # DVC notes the files' times
    spoil(study / name, flip)
    assert "up to date" in dvc(study, "status"), "DVC sees such an edit now: it need not be looked for here"
    run_offered(said(capsys))
    assert not said(capsys)


def test_the_command_that_is_offered_mends_the_cache(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(object_of(RAW), flip)
    object_of("models/dpo").unlink()
    run_offered(said(capsys))
    assert not said(capsys)


def run_offered(lines: list[str]) -> None:
    for line in lines:
        if line.startswith("  to mend it: "):
            subprocess.run(["sh", "-c", line.partition(": ")[2]], check=True, env=ENVIRONMENT, capture_output=True)


def test_a_lock_that_is_cut_short_is_refused(study: Path) -> None:
    text = (study / "dvc.lock").read_text()
    (study / "dvc.lock").write_text(text[: text.index("  eval@dpo:")])
    with pytest.raises(Refused, match=r"dvc.lock does not record .*eval@dpo(.|\n)*`dvc repro` runs them"):
        Records()
    (study / "dvc.lock").write_text(text.replace("      md5:", "      md6:", 1))
    with pytest.raises(Refused, match=r"dvc\.lock is empty, cut short or damaged"):
        Records()


# Running again


def kept() -> dict[str, str]:
    """All files but those that Python and DVC keep for themselves: also checkpoints, the cache, its runs."""
    passing = ("__pycache__", ".dvc/tmp/", ".git/")
    return {name: md5 for name, md5 in integrity.listing(".").items() if not any(part in name for part in passing)}


def run_verify(study: Path, *stages: str, code: int) -> str:
    words = [sys.executable, "-m", "commands.verify", *stages]
    ended = subprocess.run(words, cwd=study, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert ended.returncode == code, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def test_what_was_not_touched_is_reproduced_and_left_as_it_is(study: Path) -> None:
    """Training, tables and the report, from DVC's cache where the workspace lacks an input."""
    (study / "data/sampled/demonstrations.parquet").unlink()
    before = kept()
    printed = run_verify(study, "choose", "fetch-safety", "sft", "safety@dpo", "report", code=1)
    assert "data/sampled/demonstrations.parquet is missing" in printed
    for stage, count in {"choose": 5, "fetch-safety@sentences": 2, "safety@dpo": 2, "report": 4}.items():
        assert f"{stage}: reproduced ({count} file" in printed
    assert "sft: reproduced (" in printed
    assert "files: 17 of 18 stages' are whole; runs: 5 of 5 reproduced" in printed
    assert {*before.items()} == {*kept().items()}


def test_another_result_is_shown_with_its_first_difference(study: Path) -> None:
    """File and dvc.lock say the same, so nothing is damaged: it is what the stage did not say."""
    name = "metrics/sample/comparisons.json"
    before = integrity.file_md5(study / name)
    change(study, name, r'("rows.read": )\d+', r"\g<1>12345")
    change(study, "dvc.lock", before, integrity.file_md5(study / name))
    printed = run_verify(study, "sample@comparisons", code=1)
    assert f"sample@comparisons: differs in 1 of 3 files, first {name}: " in printed
    assert "rows.read: recorded 12345, now 122" in printed
    assert "18 of 18 stages' are whole; runs: 0 of 1" in printed


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_on_a_gpu_numbers_may_lie_a_little_apart_and_that_is_said(device: str, study: Path, tmp_path: Path) -> None:
    change(study, "dvc.lock", r"(stages\.eval models/base models/sft(.|\n)*?--device )cpu", rf"\g<1>{device}")
    outs = ("data/eval/sft.parquet", "data/eval/sft.answers.jsonl", "metrics/eval/sft.json")
    for name in outs:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(name, tmp_path / name)
    records = Records()
    assert verify.compare(records, "eval@sft", tmp_path, 1) == (True, "reproduced (3 files, 1 s)")
    metrics = files.read_json(tmp_path / outs[2])
    files.write_json(tmp_path / outs[2], metrics | {"piqa.acc_norm": metrics["piqa.acc_norm"] * 1.0005})
    within = "reproduced within 0.1%, as on a GPU; other bytes in 1 of 3 files, 1 s"
    apart = verify.compare(records, "eval@sft", tmp_path, 1)
    assert apart.well == (device == "cuda")
    assert apart.says == within if apart.well else f"first {outs[2]}: piqa.acc_norm: recorded" in apart.says
    files.write_json(tmp_path / outs[2], metrics | {"piqa.acc_norm_n": 99})
    counted = verify.compare(records, "eval@sft", tmp_path, 1)
    assert not counted.well and "differs in 1 of 3 files" in counted.says


def test_an_input_that_was_edited_is_named(study: Path) -> None:
    with (study / "stages/choose.py").open("a") as stream:
        stream.write("# edited\n")
    printed = run_verify(study, "choose", code=1)
    assert "choose: cannot be run again: stages/choose.py is not what dvc.lock records" in printed
    assert "`dvc repro choose`" in printed


def test_a_stage_that_fails_shows_why(study: Path) -> None:
    for name in ("dvc.lock", "dvc.yaml"):
        change(study, name, "stages.choose params.yaml", "stages.choose hhh.yaml")
    printed = run_verify(study, "choose", code=1)
    assert "choose: failed with exit code 1:" in printed and "hhh.yaml" in printed


def test_an_unknown_stage_is_refused_with_those_that_there_are(study: Path) -> None:
    with pytest.raises(Refused, match=r"no stage evil; there are: choose, .*report"):
        verify.choose(Records(), ["eval", "evil"])


def test_what_needs_the_network_runs_only_when_named(study: Path) -> None:
    change(study, "dvc.lock", r"(data/raw/benchmarks --more\s+''\s+--source) mini", r"\1 hub")
    records = Records()
    assert "hub" in records.revision.words("fetch-benchmarks@items")
    assert {*records.stages} - {*verify.choose(records, [])} == {"fetch-benchmarks@items"}  # random weights need none
    assert verify.choose(records, ["fetch-corpus", "eval@base"]) == [
        "fetch-corpus@demonstrations", "fetch-corpus@comparisons", "eval@base",
    ]  # fmt: skip
