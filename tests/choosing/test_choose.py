"""The first stage: it refuses what any later one would, and what users write reaches every stage word by word."""

import json
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment import corpora
from alignment.choosing import parameters
from alignment.corpora import Role
from alignment.runtime import Refused, closure, files
from stages import choose

ROOT = Path(__file__).parents[2]
TINY = yaml.safe_load((ROOT / "presets/tiny.yaml").read_text(encoding="utf-8"))
CHOSEN = [f"{role}.{what}" for what in ("name", "parser") for role in ("demonstrations", "comparisons")]
HOSTILE = """it's "mine" $HOME ${HOME} `id`; a * b # c \\ d"""


@pytest.fixture(autouse=True)
def _root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def run(folder: Path, params: dict[str, Any]) -> dict[str, str]:
    """What the stage writes, by name."""
    files.write_text(folder / "params.yaml", yaml.safe_dump(params))
    outs = [folder / name for name in (*CHOSEN, "parameters.checked")]
    choose.main(folder / "params.yaml", Path("dvc.yaml"), Path("presets/paper.yaml"), *outs)
    return {out.name: out.read_text() for out in outs}


def test_only_the_names_of_datasets_change_with_the_parameters(tmp_path: Path) -> None:
    first = run(tmp_path, TINY)
    assert (first["demonstrations.name"], first["comparisons.name"]) == ("lima\n", "hh\n")
    assert run(tmp_path, TINY | {"seed": 7, "dpo": TINY["dpo"] | {"beta": 0.5}}) == first
    assert run(tmp_path, TINY | {"study": TINY["study"] | {"matched": []}}) == first
    other = run(tmp_path, TINY | {"data": "orca"})
    assert {name for name in first if first[name] != other[name]} == {"demonstrations.name", "demonstrations.parser"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"data": "oraca"},
            "no dataset 'oraca' (parameters `data` and `preferences` of params.yaml).\nknown: hh, lima",
        ),
        ({"preferences": "lima"}, "the dataset 'lima' has no comparisons.\nsets that have them: hh, own, shp"),
        ({"dpo": TINY["dpo"] | {"loss": "kto"}}, "dpo.loss: 'kto' is not one of"),
        ({"dpo": TINY["dpo"] | {"learning_rate": 0.0}}, "dpo.learning_rate: found '0.0': wanted more than 0"),
        ({"eval": TINY["eval"] | {"items": ["boolq=3"]}}, "eval.items has 'boolq=3', wanted a task"),
        ({"more_benchmarks": "sciq=a/b@c:test sciq=a/b@c:train"}, "`more_benchmarks` in params.yaml has sciq twice"),
    ],
)
def test_a_mistake_is_refused_before_anything_is_written(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(Refused) as refusal:
        run(tmp_path, TINY | change)
    assert said in str(refusal.value)
    assert {path.name for path in tmp_path.iterdir() if path.suffix != ".lock"} == {"params.yaml"}


def test_a_gpu_that_is_not_here_is_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Refused, match=r"`device: cuda`, and torch .*; set `device: cpu`"):
        run(tmp_path, TINY | {"device": "cuda"})


def test_it_costs_about_a_second(tmp_path: Path) -> None:
    outs = [str(tmp_path / name) for name in "abcde"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = ["params.yaml", "dvc.yaml", "presets/paper.yaml", *outs]
    subprocess.run([sys.executable, "-m", "stages.choose", *words], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime < 3, "it imports what only training needs"


def test_what_a_parser_is_made_of_is_in_its_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpora = tmp_path / "alignment/corpora"
    corpora.mkdir(parents=True)
    for module in (choose, closure):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    for name in ("mine.py", "_help.py", "other.py", "map.json", ".DS_Store"):
        (corpora / name).write_text("from ._help import X\n" if name == "mine.py" else "")
    assert choose.code("mine") == {corpora / name for name in ("mine.py", "_help.py", "map.json")}


def test_a_dataset_that_cannot_be_imported_is_named_and_no_other_stops_at_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpora, "__path__", [*corpora.__path__, str(tmp_path)])
    (tmp_path / "broken.py").write_text("def (")
    (tmp_path / "lacking.py").write_text("import a_library_that_is_not_here")
    (tmp_path / "_help.py").write_text("")
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack/__init__.py").write_text("")
    for name, said in {"broken": "line 1", "lacking": "a_library_that_is_not_here"}.items():
        with pytest.raises(Refused, match=rf"corpora/{name}\.py cannot be imported: .*{said}"):
            corpora.load(name)
    with pytest.raises(Refused, match=r"known: broken, hh, lacking, lima, orca, own, shp; a new one"):
        corpora.load("pack")
    with pytest.raises(Refused, match=r"sets that have them: hh, own, shp$"):
        corpora.load("lima", Role.comparisons)


def texts(params: dict[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The keys of all text that is no list."""
    for key, value in params.items():
        if isinstance(value, dict):
            yield from texts(value, (*prefix, key))
        elif isinstance(value, str) and (*prefix, key) != ("launch",):  # a command on purpose
            yield (*prefix, key)


@pytest.mark.parametrize("keys", list(texts(TINY)), ids=".".join)
def test_any_text_reaches_the_stages_as_one_word_or_is_refused(keys: tuple[str, ...], tmp_path: Path) -> None:
    text = str(tmp_path / HOSTILE)
    Path(text).mkdir()  # a folder may have any name, an address no secret
    params = json.loads(json.dumps(TINY))
    place = params
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = text
    known = yaml.safe_load(Path("presets/paper.yaml").read_text())
    if keys[0] in ("model", "source", "own"):
        commands = parameters.commands(parameters.check(params, known, Path("params.yaml")), Path("dvc.yaml"))
        used = [words for words in map(shlex.split, commands.values()) if text in words]
        assert used and all(words[words.index(text) - 1] == f"--{keys[0]}" for words in used)
    else:
        with pytest.raises(Refused) as refusal:
            parameters.check(params, known, Path("params.yaml"))
        assert keys[-1] in str(refusal.value)


@pytest.mark.parametrize("key", sorted(TINY["own"]))
@pytest.mark.parametrize("address", ["http://me:secret@example.org/a.jsonl", "s3://bucket/a.jsonl?token=secret"])
def test_an_address_for_a_user_s_file_is_refused_and_not_repeated(key: str, address: str, tmp_path: Path) -> None:
    """DVC takes one for an input, asks it, and records it, also while `data` names another dataset."""
    with pytest.raises(Refused, match=r"`own` .* wanted a file on this machine") as refusal:
        run(tmp_path, TINY | {"own": TINY["own"] | {key: address}})
    assert "secret" not in str(refusal.value)


def test_a_user_s_file_is_fetched_whatever_its_path(tmp_path: Path) -> None:
    """By the command that DVC makes, through a shell, as DVC runs it."""
    mine = tmp_path / HOSTILE / "a b.jsonl"
    mine.parent.mkdir()
    shutil.copy(TINY["own"]["demonstrations"], mine)
    params = TINY | {"data": "own", "own": TINY["own"] | {"demonstrations": str(mine)}}
    command = parameters.commands(params, Path("dvc.yaml"))["fetch-corpus@demonstrations"]
    command = command.replace("$(dvc cache dir)", str(tmp_path / "cache")).replace("python", sys.executable, 1)
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": "/nowhere"}
    subprocess.run(["/bin/sh", "-c", command], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "data/raw/demonstrations/a b.jsonl").read_bytes() == mine.read_bytes()
