"""The fetch stage as commands: what lands where, what is said, what is refused."""

import subprocess
import sys
from pathlib import Path

import pytest
from hub import Hub, serving

from alignment import corpora
from alignment.corpora import Repository
from alignment.fetching import pins
from alignment.runtime import files

ROOT = Path(__file__).parents[2]


def fetch(what: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`stages.fetch`, with its downloads beside the folder that it makes."""
    out = Path(next(argument for argument in arguments if isinstance(argument, Path)))
    downloads = ["--downloads", str(out.parent / "downloads")]
    command = [sys.executable, "-m", "stages.fetch", what, *map(str, arguments), *downloads]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def put(mirror: Path, repository: Repository) -> None:
    """A file for each pattern of `repository`."""
    for pattern in repository.files:
        path = mirror / repository.name / pattern.replace("*", "some")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a row\n")


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    folder = tmp_path / "mirror"
    for repository in [*pins.BENCHMARKS.values(), pins.SAFETY]:
        put(folder, repository)
    return folder


def test_a_model_lands_with_its_provenance(tiny: Path, tmp_path: Path) -> None:
    ended = fetch("model", tmp_path / "base", "--model", tiny, "--source", "mini")
    assert ended.returncode == 0, ended.stderr
    assert {path.name for path in (tmp_path / "base").iterdir()} == {path.name for path in tiny.iterdir()}


def test_every_benchmark_lands_in_its_own_folder(mirror: Path, tmp_path: Path) -> None:
    ended = fetch("benchmarks", tmp_path / "benchmarks", "--source", mirror, "--more", "")
    assert ended.returncode == 0, ended.stderr
    assert {path.name for path in (tmp_path / "benchmarks").iterdir()} == set(pins.BENCHMARKS)
    for task, repository in pins.BENCHMARKS.items():
        provenance = files.read_json(tmp_path / "benchmarks" / task / "provenance.json")
        assert (provenance["repository"], provenance["revision"]) == (repository.name, repository.revision)


def test_a_benchmark_that_a_user_names_lands_beside_the_study_s(mirror: Path, tmp_path: Path) -> None:
    (mirror / "allenai/sciq/data").mkdir(parents=True)
    (mirror / "allenai/sciq/data/test-0.parquet").write_text("a row\n")
    more = "sciq=allenai/sciq@0123abc:data/test-*.parquet"
    ended = fetch("benchmarks", tmp_path / "benchmarks", "--source", mirror, "--more", more)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "benchmarks/sciq/data/test-0.parquet").is_file()
    assert files.read_json(tmp_path / "benchmarks/sciq/provenance.json")["revision"] == "0123abc"


@pytest.mark.parametrize("entry", ["sciq", "sciq=allenai/sciq", "piqa=baber/piqa@main:*.parquet"])
def test_a_benchmark_that_cannot_be_used_is_refused_with_the_form_wanted(entry: str, tmp_path: Path) -> None:
    ended = fetch("benchmarks", tmp_path / "benchmarks", "--source", "mini", "--more", entry)
    assert ended.returncode == 1 and "task=owner/name@revision:files" in ended.stderr and entry in ended.stderr


def test_benchmarks_are_whole_or_nothing(mirror: Path, tmp_path: Path) -> None:
    missing = list(pins.BENCHMARKS.values())[-1]
    for path in (mirror / missing.name).rglob("*.parquet"):
        path.unlink()
    ended = fetch("benchmarks", tmp_path / "benchmarks", "--source", mirror, "--more", "")
    assert ended.returncode == 1 and missing.name in ended.stderr and "Traceback" not in ended.stderr
    assert not (tmp_path / "benchmarks").exists() and not (tmp_path / ".benchmarks.partial").exists()


def test_the_safety_sentences_land(mirror: Path, tmp_path: Path) -> None:
    assert (
        fetch("safety", tmp_path / "safety", "--sentences", "safenlp", "--source", mirror, "--own", "-").returncode == 0
    )
    assert (tmp_path / "safety/data/toxiGen.json").read_text() == "a row\n"


@pytest.mark.parametrize("name", [name for name in corpora.names() if name != "own"])
def test_a_corpus_lands_and_its_terms_are_told_once(name: str, tmp_path: Path) -> None:
    repository = corpora.load(name).SOURCE
    put(tmp_path / "mirror", repository)
    ended = fetch(
        "corpus", tmp_path / "raw", "--corpus", name, "--source", tmp_path / "mirror", "--own", "unused.jsonl"
    )
    assert ended.returncode == 0, ended.stderr
    assert files.read_json(tmp_path / "raw/provenance.json")["licence"] == repository.licence
    assert ended.stdout == (f"{repository.name}: {repository.terms}\n" if repository.terms else "")


def test_the_corpus_own_reads_the_users_file(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text("{}\n")
    ended = fetch("corpus", tmp_path / "raw", "--corpus", "own", "--source", "mini", "--own", tmp_path / "mine.jsonl")
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "raw/mine.jsonl").read_text() == "{}\n"


def test_an_unknown_corpus_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    ended = fetch("corpus", tmp_path / "raw", "--corpus", "oraca", "--source", "mini", "--own", "unused.jsonl")
    assert ended.returncode == 1 and "'oraca'" in ended.stderr and "orca" in ended.stderr
    assert "git checkout" not in ended.stderr and not (tmp_path / "raw").exists()


def test_a_mirror_may_be_an_address(tmp_path: Path) -> None:
    with serving(Hub({"train.jsonl": b"{}\n"}, repository="GAIR/lima")) as hub:
        ended = fetch(
            "corpus",
            tmp_path / "raw",
            "--corpus",
            "lima",
            "--source",
            f"{hub.endpoint}/mirror",
            "--own",
            "unused.jsonl",
        )
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "raw/train.jsonl").read_text() == "{}\n"


def test_no_option_has_a_default(tmp_path: Path) -> None:
    ended = fetch("safety", tmp_path / "safety", "--sentences", "safenlp", "--own", "-")
    assert ended.returncode == 2 and "--source" in ended.stderr


def test_help_loads_no_heavy_library() -> None:
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "stages.fetch", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    loaded = {line.rsplit("|", 1)[-1].strip() for line in ended.stderr.splitlines()}
    assert ended.returncode == 0 and "typer" in loaded
    assert not loaded & {"torch", "transformers", "huggingface_hub", "tokenizers", "gguf"}


def test_a_user_s_own_sentences_take_the_place_of_safenlp_s(mirror: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("[]")
    out = tmp_path / "safety"
    wanted = {"own": ("mine.json", "the user's own"), "safenlp": ("data", pins.SAFETY.licence)}
    for sentences, (landed, licence) in wanted.items():
        ended = fetch("safety", out, "--sentences", sentences, "--source", mirror, "--own", tmp_path / "mine.json")
        assert ended.returncode == 0, ended.stderr
        assert {path.name for path in out.iterdir()} == {landed, "provenance.json"}
        assert files.read_json(out / "provenance.json")["licence"] == licence
    ended = fetch("safety", out, "--sentences", "mine", "--source", mirror, "--own", tmp_path / "mine.json")
    assert ended.returncode == 2 and "'safenlp', 'own'" in " ".join(ended.stderr.replace("│", "").split())
