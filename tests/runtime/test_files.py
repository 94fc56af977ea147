"""Outputs that are whole or absent, one writer at a time, equal bytes for equal values."""

import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clones import dvc

from alignment.runtime import Refused, files


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# whole


def test_a_failure_leaves_the_older_output_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    files.write_text(out, "older")
    with pytest.raises(KeyboardInterrupt), files.whole(out) as partial:
        partial.write_text("newer, but not to its end")
        raise KeyboardInterrupt
    assert (names(tmp_path), out.read_text()) == (["out"], "older")


def test_a_failed_folder_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError), files.whole(tmp_path / "deep/out") as partial:
        partial.mkdir()
        (partial / "a").write_text("a")
        raise ValueError
    assert names(tmp_path / "deep") == []


def test_making_nothing_is_an_error_that_keeps_the_older_output(tmp_path: Path) -> None:
    files.write_text(tmp_path / "out", "older")
    with pytest.raises(FileNotFoundError), files.whole(tmp_path / "out"):
        pass
    assert (tmp_path / "out").read_text() == "older"


@pytest.mark.parametrize("leftover", ["file", "folder"])
@pytest.mark.parametrize("older", ["none", "file", "folder", "link"])
@pytest.mark.parametrize("newer", ["file", "folder"])
def test_an_output_takes_the_place_of_anything(leftover: str, older: str, newer: str, tmp_path: Path) -> None:
    def make(path: Path, kind: str, content: str) -> None:
        if kind == "folder":
            path.mkdir()
            path = path / "inside"
        if kind == "link":  # as DVC leaves an output that lies in its cache
            (tmp_path / "cache").mkdir()
            (tmp_path / "cache/kept").write_text(content)
            path.symlink_to(tmp_path / "cache/kept")
        elif kind != "none":
            path.write_text(content)

    out = tmp_path / "here/out"
    out.parent.mkdir()
    make(out.parent / ".out.partial", leftover, "of a killed run")
    make(out, older, "older")
    with files.whole(out) as partial:
        assert not partial.exists()
        make(partial, newer, "newer")
    assert names(out.parent) == ["out"] and not out.is_symlink()
    assert (out / "inside" if newer == "folder" else out).read_text() == "newer"
    assert older != "link" or (tmp_path / "cache/kept").read_text() == "older"


KILLED = """
import os, signal, sys
from pathlib import Path
from alignment.runtime import files
with files.whole(Path(sys.argv[1])) as partial:
    partial.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_the_older_output_and_the_next_one_clears_up(tmp_path: Path) -> None:
    out = tmp_path / "out"
    files.write_text(out, "older")
    assert subprocess.run([sys.executable, "-c", KILLED, out]).returncode < 0
    assert out.read_text() == "older" and names(tmp_path) == [".out.partial", "out"]
    files.write_text(out, "newer")
    assert out.read_text() == "newer" and names(tmp_path) == ["out"]


# claim

HOLD = """
import sys
from pathlib import Path
from alignment.runtime import files
files.claim(Path(sys.argv[1]))
print("holding", flush=True)
sys.stdin.read()
"""


def hold(out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD, str(out)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_second_process_waits_until_the_first_ends_even_by_force(tmp_path: Path) -> None:
    out = tmp_path / "deep/out"
    with hold(out) as first, hold(tmp_path / "deep/other") as other:
        assert first.stdout and first.stdout.readline() == "holding\n"
        assert other.stdout and other.stdout.readline() == "holding\n", "another output is free"
        with hold(out) as second:
            assert second.stdout and second.stdout.readline() == f"waiting: another process writes {out}\n"
            first.kill()
            assert second.stdout.readline() == "holding\n"
            for process in (second, other):
                process.communicate(timeout=20)
    assert not out.exists()


def test_a_process_may_claim_the_same_output_again(tmp_path: Path) -> None:
    files.claim(tmp_path / "out")
    files.claim(Path(os.path.relpath(tmp_path)) / "out")


# Bytes


@pytest.mark.parametrize("value", [math.nan, math.inf, {"a": [-math.inf]}])
def test_a_number_that_json_lacks_is_refused_and_nothing_is_written(value: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "out.json", value)
    assert names(tmp_path) == []


def test_json_has_sorted_keys_and_text_as_it_is(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a", {"b": {"d": 1, "c": None}, "a": "é\u2028"})
    assert (tmp_path / "a").read_bytes().decode() == json.dumps(
        {"a": "é\u2028", "b": {"c": None, "d": 1}}, indent=2, ensure_ascii=False
    ) + "\n"  # fmt: skip
    assert files.read_json(tmp_path / "a") == {"a": "é\u2028", "b": {"c": None, "d": 1}}


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        ValueError("Error while serializing: I/O error: No space left on device (os error 28)"),  # as safetensors
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),  # as torch.save
    ],
)
def test_a_full_disk_is_named_with_its_bytes_and_leaves_nothing(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(Refused, match=r"needs more than 4 bytes, and the disk .* is full: [\d,]+ free"):  # noqa: SIM117
        with files.whole(tmp_path / "out") as partial:
            partial.mkdir()
            (partial / "half").write_text("half")
            raise error
    assert names(tmp_path) == []


def test_equal_tables_have_equal_bytes_whatever_made_them(tmp_path: Path) -> None:
    columns = {"id": [str(i) for i in range(5000)], "value": [i / 7 for i in range(5000)]}
    table = pa.table(columns)
    chunked = pa.concat_tables([table.slice(0, 10), table.slice(10)])
    labelled = table.replace_schema_metadata({"pandas": "of some version"})
    for name, made in (("a", table), ("b", chunked.combine_chunks()), ("c", labelled)):
        files.write_parquet(tmp_path / name, made)
    assert len({files.sha256(tmp_path / name) for name in "abc"}) == 1
    assert pq.read_table(tmp_path / "a").to_pydict() == columns


def test_a_digest_is_of_the_value_and_its_key() -> None:
    value = {"a": 1, "b": ["é", "\ud800"]}
    assert files.digest(value) == files.digest(dict(reversed(value.items())))
    assert len({files.digest(value), files.digest(value, "key"), files.digest({**value, "a": 2})}) == 3


def test_a_folder_s_hash_is_of_names_and_contents(tmp_path: Path) -> None:
    def tree(name: str, contents: dict[str, str]) -> str:
        for path, content in contents.items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_text(content)
        return files.tree_sha256(tmp_path / name)

    one = tree("one", {"a": "1", "b/c": "2"})
    assert one == tree("two", {"b/c": "2", "a": "1"})
    assert len({one, tree("three", {"a": "2", "b/c": "1"}), tree("four", {"a": "1", "c": "2"})}) == 3


def test_a_damaged_table_or_value_is_named_with_what_mends_it(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"a": 1})
    files.write_parquet(tmp_path / "a.parquet", pa.table({"a": range(1000)}))
    assert (
        files.read_json(tmp_path / "a.json") == {"a": 1} and files.read_parquet(tmp_path / "a.parquet").num_rows == 1000
    )
    for name, read in (("a.json", files.read_json), ("a.parquet", files.read_parquet)):
        content = (tmp_path / name).read_bytes()
        for size in range(len(content) - 1):  # without the line's end, a value is still whole
            (tmp_path / name).write_bytes(content[:size])
            with pytest.raises(Refused, match=rf"{name} is damaged or cut short .*`make verify`"):
                read(tmp_path / name)


# What a stage keeps from run to run


def test_checkpoints_lie_in_the_checkout_that_holds_the_cache_and_queued_copies_share_them(tmp_path: Path) -> None:
    cache = tmp_path / "study/.dvc/cache"
    cache.mkdir(parents=True)
    place = files.kept(cache / ".." / "state")
    assert place == (tmp_path / "study/.dvc/state").resolve() and place.is_dir()
    assert files.kept(tmp_path / "as it is") == tmp_path / "as it is", "a folder that a person names"


def test_beside_a_cache_elsewhere_nothing_is_written(tmp_path: Path) -> None:
    """Its parent is a colleague's, or the root of a disk: a folder of this user's own lies in the cache."""
    cache = tmp_path / "shared/dvc"
    cache.mkdir(parents=True)
    place = files.kept(cache / ".." / "downloads")
    assert place == cache.resolve() / f"user-{os.getuid()}/downloads"
    assert place.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in (tmp_path / "shared").iterdir()] == ["dvc"]


def test_a_colleague_s_checkout_and_folder_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "study/.dvc/cache"
    cache.mkdir(parents=True)
    monkeypatch.setattr(os, "getuid", lambda: 12345)  # all here belongs to another
    assert files.own(cache / ".." / "state") == cache.resolve() / "user-12345/state"
    with pytest.raises(Refused, match=r"user-12345/state, .* somebody else's(.|\n)*dvc cache dir --local <folder>"):
        files.kept(cache / ".." / "state")


def test_where_it_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(Refused, match="cannot be used: Not a directory"):
        files.kept(tmp_path / "cache" / ".." / "state")


def test_dvc_s_garbage_collection_leaves_it_alone(tmp_path: Path) -> None:
    dvc(tmp_path, "init", "--no-scm", "--quiet")
    (tmp_path / "elsewhere").mkdir()
    dvc(tmp_path, "config", "cache.dir", str(tmp_path / "elsewhere"))
    place = files.kept(Path(dvc(tmp_path, "cache", "dir").strip()) / ".." / "state")
    assert place.is_relative_to(tmp_path / "elsewhere")
    files.write_text(place / "sft-0a/checkpoint-1/whole.json", "{}")
    (tmp_path / "gone").write_text("gone")
    dvc(tmp_path, "add", "--quiet", "gone")
    (tmp_path / "gone.dvc").unlink()
    dvc(tmp_path, "gc", "--workspace", "--force")
    assert [path.name for path in (tmp_path / "elsewhere").rglob("*") if path.is_file()] == ["whole.json"]
