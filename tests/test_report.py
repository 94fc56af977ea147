"""The report names what it was made from."""

from pathlib import Path

import pipeline
import pytest

from alignment import corpora, files, pins, sources
from stages import report


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of the miniature, and a base model's provenance."""
    folder = tmp_path_factory.mktemp("fetched")
    pipeline.fetch_rows(folder, "lima", "hh")
    sources.fetch(pins.SAFETY, "mini", folder / "data/raw/safety")
    (folder / "models/base").mkdir(parents=True)
    sources.write_provenance(folder / "models/base", "owner/model", "a" * 40, "hub", "llama2")
    return folder


def rows(folder: Path) -> dict[str, list[str]]:
    lines = report.origins(folder / "models/base", folder / "data/raw").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return {name: rest for name, *rest in cells}


def test_every_source_stands_in_the_report_with_its_revision_licence_and_terms(fetched: Path) -> None:
    found = rows(fetched)
    pinned = {"demonstrations": corpora.load("lima").SOURCE, "comparisons": corpora.load("hh").SOURCE}
    pinned |= {report.TITLES[task]: repository for task, repository in pins.BENCHMARKS.items()}
    for name, repository in (pinned | {"safety": pins.SAFETY}).items():
        assert found[name] == [repository.name, repository.revision, repository.licence, repository.terms]
    assert found["base model"] == ["owner/model", "a" * 40, "llama2", ""]
    assert set(found) == {"", "base model", *pinned, "safety"}


def test_a_benchmark_that_a_user_named_stands_there_too(fetched: Path) -> None:
    files.write_json(
        fetched / "data/raw/benchmarks/sciq/provenance.json",
        {"repository": "allenai/sciq", "revision": "b" * 40, "source": "hub", "licence": "cc-by-nc-3.0", "terms": "no"},
    )
    assert rows(fetched)["sciq"] == ["allenai/sciq", "b" * 40, "cc-by-nc-3.0", "no"]


def test_no_path_of_this_machine_stands_there(fetched: Path) -> None:
    assert str(fetched) not in report.origins(fetched / "models/base", fetched / "data/raw")


def test_the_miniature_is_not_taken_for_the_sets_whose_place_it_takes(fetched: Path) -> None:
    base, raw = fetched / "models/base", fetched / "data/raw"
    assert report.MINI in report.origins(base, raw)
    for path in raw.rglob("provenance.json"):
        files.write_json(path, files.read_json(path) | {"source": "mirror"})
    assert report.MINI not in report.origins(base, raw)
