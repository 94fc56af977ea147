"""The report names what it was made from, and says of safety what its tests allow."""

from pathlib import Path

import cooks
import pipeline
import pyarrow.parquet as pq
import pytest

from alignment import corpora
from alignment.fetching import pins, repositories
from alignment.reporting import report, tables
from alignment.runtime import files
from alignment.scoring.safety import scores
from alignment.statistics import contrasts


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of the miniature, and a base model's provenance."""
    folder = tmp_path_factory.mktemp("fetched")
    pipeline.fetch_rows(folder, "lima", "hh")
    repositories.fetch(pins.SAFETY, "mini", folder / "data/raw/safety")
    (folder / "models/base").mkdir(parents=True)
    repositories.write_provenance(folder / "models/base", "owner/model", "a" * 40, "hub", "llama2")
    return folder


def rows(folder: Path) -> dict[str, list[str]]:
    lines = report.origins(folder / "models/base", folder / "data/raw").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return {name: rest for name, *rest in cells}


def test_every_source_stands_in_the_report_with_its_revision_licence_and_terms(fetched: Path) -> None:
    found = rows(fetched)
    pinned = {"demonstrations": corpora.load("lima").SOURCE, "comparisons": corpora.load("hh").SOURCE}
    pinned |= {tables.TITLES[task]: repository for task, repository in pins.BENCHMARKS.items()}
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
    assert tables.MINI in report.origins(base, raw)
    for path in raw.rglob("provenance.json"):
        files.write_json(path, files.read_json(path) | {"source": "mirror"})
    assert tables.MINI not in report.origins(base, raw)


# Safety by group


def made_scores(tmp_path: Path) -> tuple[Path, report.Metrics]:
    """The tables and metrics of three checkpoints over sentences about cooks."""
    metrics: report.Metrics = {}
    for seed, name in enumerate(report.CHECKPOINTS):
        table = cooks.scored(cooks.made(200), seed)
        files.write_parquet(tmp_path / f"{name}.parquet", table)
        metrics[name] = scores.scores(table, 0)
    return tmp_path, metrics


def test_every_group_has_both_measures_its_null_and_its_change(tmp_path: Path) -> None:
    tables, scored = made_scores(tmp_path)
    names = {"base": "base", "sft": "SFT own", "dpo": "SFT own, DPO own"}
    text = report.safety_by_group(names, scored, "mirror", tmp_path / "plots/safety.svg", tmp_path / "report.md")
    assert report.HATEFUL in text and "(plots/safety.svg)" in text
    lines = [line for line in text.splitlines() if line.startswith("| cooks ")]
    assert f"{scored['sft']['cooks.auc_len']:.3f} [" in lines[0]
    assert f"{scored['dpo']['cooks.score']:.3f} ({scored['dpo']['cooks.null']:.3f} [" in lines[1]
    (kettles, published) = [line for line in text.splitlines() if line.startswith("| kettles ")]
    assert kettles.count("–") == published.count("–") == 3  # one side is empty: reported, not left out

    changes = [scores.changes(*(pq.read_table(tables / f"{name}.parquet") for name in step)) for step in report.STEPS]
    said = report.safety_changes(names, changes)
    change = changes[0].groups["cooks"]
    adjusted = contrasts.holm([found.p for step in changes for found in step.groups.values()])[0]
    assert f"{change.estimate.value:+.4f} [" in said and f"p {adjusted:.2g}, MDE " in said
    assert "Holm over the 4 changes" in said  # two groups with both sides, two steps
    assert f"χ²(1) = {changes[0].heterogeneity.chi2:.1f}" in said


def test_checkpoints_that_are_alike_are_not_said_to_have_a_detectable_effect_of_zero(tmp_path: Path) -> None:
    table = cooks.scored(cooks.made(200))
    said = report.safety_changes({"base": "base", "sft": "a", "dpo": "b"}, [scores.changes(table, table)] * 2)
    assert "0: no pair of sentences changed its order" in said and "MDE 0" not in said
    assert "changed unevenly: not defined" in said
