"""A model's folder or a mirror that changes in place after `fetch` read it, which DVC cannot see."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pipeline
import pytest
import yaml
from dvc.repo import Repo

from alignment.corpora import Role
from alignment.runtime import Refused, files
from commands import fetched as command
from commands.doctor import fetched
from commands.doctor.findings import Level
from commands.verify import __main__ as verify
from stages import fetch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def here(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study whose model is a folder and whose source is a mirror, both beside it, after every `fetch`."""
    shutil.copytree(tiny, tmp_path / "model")
    shutil.copytree(ROOT / "data/mini", tmp_path / "mirror")
    (tmp_path / "study").mkdir()
    monkeypatch.chdir(tmp_path / "study")
    Repo.init(no_scm=True).close()
    for name in ("presets/paper.yaml", "dvc.yaml"):
        files.write_text(Path(name), (ROOT / name).read_text(encoding="utf-8"))
    with Path(".dvc/config").open("a") as config:  # how DVC writes lists and flags into commands
        config.write("[parsing]\n    bool = boolean_optional\n    list = append\n")
    model, source = str(tmp_path / "model"), str(tmp_path / "mirror")
    Path("params.yaml").write_text(yaml.safe_dump(pipeline.TINY | {"model": model, "source": source}))
    downloads, unused = tmp_path / "downloads", Path("unused")
    fetch.model(model, Path("models/base"), source, downloads)
    fetch.benchmarks(Path("data/raw/benchmarks"), source, "", downloads)
    fetch.safety(fetch.Sentences.safenlp, Path("data/raw/safety"), source, unused, downloads)
    for role, corpus in ((Role.demonstrations, "lima"), (Role.comparisons, "hh")):
        fetch.corpus(corpus, Path("data/raw", role), source, unused, downloads)
    names = ("fetch@model", "fetch-benchmarks@items", "fetch-corpus@demonstrations", "fetch-corpus@comparisons")
    cmd = f'python -m stages.fetch "{model}" --source {source}'
    stages = {name: {"cmd": cmd} for name in (*names, "fetch-safety@sentences")}
    Path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))
    return tmp_path


def asked() -> None:
    """As `make repro` asks."""
    command.main(Path("params.yaml"))


def flip(path: Path) -> None:
    """Another byte under the same size and time."""
    status, content = path.stat(), path.read_bytes()
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def add(path: Path) -> None:
    path.write_bytes(b"{}")


# What changes, how, and the stage that reads it again.
CHANGES: dict[str, tuple[str, Callable[[Path], None], str, str]] = {
    "weights": ("model/model.safetensors", flip, "has changed", "fetch@model"),
    "a file of the tokenizer": ("model/tokenizer.json", Path.unlink, "is gone", "fetch@model"),
    "a file that was not there": ("model/generation_config_.json", add, "", ""),  # which `fetch` does not take
    "another file of the tokenizer": ("model/added_tokens.json", add, "is new", "fetch@model"),
    "a benchmark": ("mirror/baber/piqa/piqa_validation.parquet", flip, "has changed", "fetch-benchmarks@items"),
    "demonstrations": ("mirror/GAIR/lima/train.jsonl", flip, "has changed", "fetch-corpus@demonstrations"),
    "comparisons": (
        "mirror/Anthropic/hh-rlhf/harmless-base/train.jsonl.gz", flip, "has changed", "fetch-corpus@comparisons",
    ),
    "sentences": ("mirror/microsoft/SafeNLP/data/toxiGen.json", flip, "has changed", "fetch-safety@sentences"),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_a_source_that_changes_in_place_is_named_with_what_reads_it_again(what: str, here: Path) -> None:
    name, change, said, stage = CHANGES[what]
    asked()
    asked()
    change(here / name)
    params = yaml.safe_load(Path("params.yaml").read_text())
    (finding,) = fetched.check(params)
    if not stage:
        asked()
        assert finding.level is Level.ok
        return
    with pytest.raises(Refused, match=f"^{here / name} {said} since {stage} read it") as refusal:
        asked()
    assert f"`dvc repro --force --single-item {stage}` reads it again" in str(refusal.value)
    assert finding.level is Level.failure and f"{here / name} {said}" in finding.found
    assert finding.next == f"dvc repro --force --single-item {stage}, then make repro"


def test_it_is_as_before_once_it_was_read_again(here: Path) -> None:
    stated = here / "model/config.json"
    stated.write_text(f"{stated.read_text()} ")  # other bytes, and a model all the same
    with pytest.raises(Refused, match=r"config\.json has changed"):
        asked()
    fetch.model(str(here / "model"), Path("models/base"), "mini", here / "downloads")
    asked()


def test_nothing_is_said_of_what_was_not_fetched_or_is_no_longer_asked_for(here: Path) -> None:
    flip(here / "model/config.json")
    asked_for = Path("params.yaml").read_text()
    shutil.copytree(here / "model", here / "other")
    Path("params.yaml").write_text(asked_for.replace(str(here / "model"), str(here / "other")))
    asked()  # DVC fetches another model
    Path("params.yaml").write_text(asked_for)
    (here / "model").rename(here / "away")
    asked()  # as a disk that is not mounted: nothing says that it changed
    (here / "away").rename(here / "model")
    with pytest.raises(Refused):
        asked()
    shutil.rmtree("models/base")
    asked()


def test_only_what_the_system_says_has_changed_is_read_again(here: Path) -> None:
    """The hash that was kept is believed: were the file read, it would be found whole."""
    asked()
    kept = files.read_json(fetched.KNOWN)
    (key,) = (name for name in kept if name.startswith(f"{here / 'model/model.safetensors'} "))
    files.write_json(fetched.KNOWN, kept | {key: "0" * 64})
    with pytest.raises(Refused, match=r"model\.safetensors has changed"):
        asked()
    os.utime(here / "model/model.safetensors")
    asked()
    fetched.KNOWN.write_text("damaged")
    asked()
    assert files.read_json(fetched.KNOWN).keys() != kept.keys()


def test_verify_says_so_too(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not verify.sources() and not capsys.readouterr().out
    flip(here / "model/config.json")
    assert verify.sources()
    said, mend = capsys.readouterr().out.splitlines()
    assert f"{here / 'model/config.json'} has changed" in said
    assert mend == "  to mend it: dvc repro --force --single-item fetch@model"


def test_make_repro_asks_before_dvc() -> None:
    printed = subprocess.run(
        ["make", "--dry-run", "repro"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert printed.index("commands.fetched params.yaml") < printed.index("dvc repro")
