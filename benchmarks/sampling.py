"""Choosing 100,000 of millions of rows: seconds and memory, as the set grows, beside `datasets`.

In: a base model's folder, for its tokenizer, and a source of the benchmarks. Out: a table in Markdown. Each figure is
of a process of its own, with those that it starts: the largest sum of their memory, shared pages counted once.
"""

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
import yaml

from alignment.corpora import Role
from alignment.models.chat import Template
from alignment.runtime import command
from alignment.sampling import curation, reader
from alignment.sampling.order import RowOrder
from benchmarks import peers, rows
from stages import sample

HEADER = (
    "| rows | `datasets`: load, shuffle, select | ours: select | ours: curate as well |\n| ---: | ---: | ---: | ---: |"
)


def main(
    base: Annotated[Path, typer.Argument(help="a base model, for its tokenizer")],
    source: Annotated[str, typer.Option(help="of the benchmarks: mini, hub, or a mirror")],
    scratch: Annotated[Path, typer.Option(help="a folder on a disk with 15 GB free; what is written there is removed")],
    sizes: Annotated[list[int], typer.Option(help="how many rows the sets have")],
    wanted: Annotated[int, typer.Option(help="how many are chosen", min=1)],
) -> None:
    """Time the choice of rows from sets of OpenOrca's shape."""
    print(f"\n{wanted} rows are chosen; seconds, and GiB at most\n\n{HEADER}")
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        benchmarks = peers.fetch(source, Path(folder) / "benchmarks")
        for size in sizes:
            raw = Path(folder) / str(size)
            rows.write(raw, size)
            cells = [
                measured(peer, raw, wanted, Path(folder) / f"cache-{size}"),
                measured(select, raw, wanted),
                measured(curate, raw, wanted, base, benchmarks, Path(folder) / f"out-{size}"),
            ]
            print(f"| {size:,} | " + " | ".join(cells) + " |")


def peer(raw: Path, wanted: int, cache: Path) -> None:
    """Convert, shuffle and select rows with `datasets`, as is usual."""
    from datasets import load_dataset

    paths = [str(path) for path in sorted(raw.glob("*.parquet"))]
    data: Any = load_dataset("parquet", data_files=paths, split="train", cache_dir=str(cache))
    assert len(data.shuffle(seed=0).select(range(min(wanted, len(data)))).to_list()) == min(wanted, len(data))


def select(raw: Path, wanted: int) -> None:
    """Choose rows by our order: read the keys of all rows, and the text of those that come first."""
    with reader.reading(RowOrder("orca", Role.demonstrations, raw, 0, 0, 0.05, 0), partial(partial, len)) as source:
        keys, _, _ = source.keys()
        source.rows(keys[curation.order(keys, heldout=False)[:wanted]])


def curate(raw: Path, wanted: int, base: Path, benchmarks: Path, out: Path) -> None:
    """Run the stage `sample` with the limits of the paper's preset."""
    limits = yaml.safe_load(Path("presets/paper.yaml").read_text(encoding="utf-8"))["sample"]
    options: dict[str, Any] = {"role": Role.demonstrations, "corpus": "orca", "rows": wanted, **limits}
    options |= {"template": Template.chatml, "seed": 0, "item_seed": 0}
    outs = (out / "rows.parquet", out / "contaminated.parquet", out / "metrics.json")
    sample.main(raw, base, benchmarks, *outs, **options)


def measured(work: Callable[..., None], *arguments: Any) -> str:
    """Return the seconds and the memory of some work in a process of its own."""
    process = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
    start, most = time.perf_counter(), 0
    process.start()
    while process.is_alive():
        most = max(most, _memory(psutil.Process(process.pid)))
        process.join(0.5)
    if process.exitcode:
        raise SystemExit(f"{work.__name__} ended with {process.exitcode}")
    return f"{time.perf_counter() - start:.0f} s, {most / 2**30:.2f} GiB"


def _memory(process: psutil.Process) -> int:
    """Return the proportional set sizes of a process and its children, in bytes; 0 where it has just ended."""
    total = 0
    try:
        for each in [process, *process.children(recursive=True)]:
            total += each.memory_full_info().pss
    except psutil.Error:
        return total
    return total


if __name__ == "__main__":
    command.run(main, offline=False)
