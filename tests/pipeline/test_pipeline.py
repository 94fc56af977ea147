"""The pipeline through DVC, on the tiny preset: what each change rebuilds, and what a refusal leaves."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from clones import COMPARISONS, DEMONSTRATIONS, DPO, ENVIRONMENT, EVAL, SAFETY, SFT, change, dvc, git, ran
from pipeline import params

from alignment import corpora
from alignment.runtime import files

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture
def fresh(clone: Path) -> Iterator[Path]:
    """The clone as committed, before and after a test."""
    yield clone
    git(clone, "reset", "--hard", "--quiet")
    dvc(clone, "checkout", "--force")


# What is edited, and the exact set of stages that runs after it. docs/pipeline.md shows this table.
RERUNS: dict[str, tuple[tuple[str, str, str] | None, set[str]]] = {
    "nothing": (None, set()),
    "the file of another dataset": (("alignment/corpora/orca.py", r"\Z", "# edited\n"), {"choose"}),
    # Its rows come out the same, so nothing after `sample` runs.
    "the file of the dataset in use, the same rows": (
        ("alignment/corpora/lima.py", r"\Z", "# edited\n"),
        DEMONSTRATIONS,
    ),
    "a comment in stages/report.py": (("stages/report.py", r"\Z", "# edited\n"), {"report"}),
    "the page of a comparison": (("commands/compare/page.py", r"\Z", "# edited\n"), set()),
    "the scoring engine": (
        ("alignment/scoring/engine/engine.py", r"\Z", "# edited\n"),
        {"dpo", *EVAL, *SAFETY, "report"},  # DPO's reference is scored by it
    ),
    "a tool in requirements.lock": (("requirements.lock", r"^pytest==.*", "pytest==0.1"), {"versions"}),
    "safety.limit": (("params.yaml", r"^  limit: 60", "  limit: 50"), {"choose", *SAFETY, "report"}),
    "how many items of one benchmark": (("params.yaml", r"piqa=5", "piqa=20"), {"choose", *EVAL, "report"}),
    "dpo.beta": (("params.yaml", r"^  beta: 0.1", "  beta: 0.2"), {"choose", *DPO}),
    "preferences": (("params.yaml", r"^preferences: hh", "preferences: shp"), {*COMPARISONS, *DPO}),
    "sft.learning_rate": (("params.yaml", r"^(sft:\n  learning_rate:) \S+", r"\1 2.0e-3"), {"choose", *SFT}),
    "data": (("params.yaml", r"^data: lima", "data: orca"), {*DEMONSTRATIONS, *SFT}),
    "seed": (
        ("params.yaml", r"^seed: 0", "seed: 1"),
        {"choose", "sample@demonstrations", "sample@comparisons", *SFT},
    ),
}


HEAVY = ("sft", "dpo", "eval", "safety", "report")


@pytest.mark.parametrize("edited", RERUNS)
def test_only_what_depends_on_a_change_is_rebuilt(edited: str, fresh: Path, soak: bool) -> None:
    """All stages up to `sample` are run, for some give what they gave; what follows is foretold, and run in the soak.

    `--force-downstream`: training and scoring give something else whenever they run, which DVC cannot know before.
    """
    edit, expected = RERUNS[edited]
    if edit:
        change(fresh, *edit)
    light = [name for name in params("dvc.yaml")["stages"] if name not in HEAVY]
    foretold = [] if soak else ["--dry", "--force-downstream"]
    assert ran(dvc(fresh, "repro", *light) + dvc(fresh, "repro", *foretold)) == expected


def test_the_page_shows_what_reruns() -> None:
    page = (ROOT / "docs/pipeline.md").read_text(encoding="utf-8")
    head, _, *rows = re.findall(r"^\| (.+) \|$", page[page.index("| change |") :], re.M)
    stages = head.split(" | ")[1:]
    shown: dict[str, set[str]] = {}
    for edited, *cells in ([cell.strip() for cell in f"{row} ".split("|")] for row in rows):
        runs = {stage: cell.split(", ") for stage, cell in zip(stages, cells, strict=True) if cell}
        names = {stage if name == "yes" else f"{stage}@{name}" for stage, each in runs.items() for name in each}
        shown[edited.replace("`", "")] = names
    assert shown == {edited: expected for edited, (_, expected) in RERUNS.items()}


def test_make_repro_ends_with_the_answer_where_nothing_ran(fresh: Path) -> None:
    (fresh / ".venv").mkdir(exist_ok=True)
    (fresh / ".venv/installed").touch()  # as if its packages had been
    made = subprocess.run(
        ["make", "--no-print-directory", "repro"],
        cwd=fresh,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Running stage" not in made.stdout
    answer = made.stdout.partition("# lima → hh\n")[2]
    assert "| SFT lima, DPO hh " in answer and "data/eval/*.parquet" in answer and "skipping" not in answer
    assert answer.splitlines()[-1].startswith("  make compare REVS=")


def test_what_the_page_of_files_shows_runs_on_a_run_s_outputs(fresh: Path) -> None:
    page = (ROOT / "docs/files.md").read_text(encoding="utf-8")
    shown = re.findall(r"^```python\n(.*?)^```", page, re.S | re.M)
    assert len(shown) == 2  # pandas, and an adapter elsewhere
    end = "print(accuracy.to_json())\nassert [name for name, _ in model.named_parameters() if 'lora' in name]\n"
    script = [sys.executable, "-c", "\n".join([*shown, end])]
    ended = subprocess.run(script, cwd=fresh, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    for checkpoint, accuracy in json.loads(ended.stdout.splitlines()[-1]).items():
        metrics = files.read_json(fresh / f"metrics/eval/{checkpoint}.json")
        assert accuracy == pytest.approx({task: metrics[f"{task}.acc"] for task in accuracy}, abs=1e-4)


def test_the_page_s_way_to_undo_a_run_loses_nothing(fresh: Path) -> None:
    (undo,) = re.findall(r"^(git stash push .*?) +#", (ROOT / "docs/files.md").read_text(encoding="utf-8"), re.M)
    before, dpo = files.sha256(fresh / "params.yaml"), files.tree_sha256(fresh / "models/dpo")
    change(fresh, "params.yaml", r"^  beta: 0.1", "  beta: 0.2")
    dvc(fresh, "repro", "dpo")
    edited, made = files.sha256(fresh / "params.yaml"), files.tree_sha256(fresh / "models/dpo")
    assert made != dpo
    for words in (undo, "git stash pop && dvc checkout"):
        subprocess.run(["bash", "-c", words], cwd=fresh, check=True, env=ENVIRONMENT)
        found = files.sha256(fresh / "params.yaml"), files.tree_sha256(fresh / "models/dpo")
        assert found == ((before, dpo) if words == undo else (edited, made))
        assert not ran(dvc(fresh, "repro", "dpo"))


def test_a_gate_does_not_speak_of_results_of_other_parameters(fresh: Path) -> None:
    change(fresh, "params.yaml", r"^seed: 0", "seed: 1")
    words = [sys.executable, "-m", "commands.diff", "HEAD", "--out", "metrics/diff.md"]
    ended = subprocess.run(words, cwd=fresh, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "workspace: its results were not made with its params.yaml; `make repro` there" in ended.stderr


def test_another_version_of_a_library_reruns_what_computes_with_it(fresh: Path) -> None:
    """As if these results had been made before an upgrade; another lock than what is installed is refused."""
    change(fresh, "dvc.lock", r"^( +lm_eval): .*", r"\1: 0.1")
    changed = json.loads(dvc(fresh, "status", "--json"))
    assert changed == {"eval@base": [{"changed deps": {"data/raw/versions.yaml": {"lm_eval": "modified"}}}]}
    change(fresh, "requirements.lock", r"^torch==.*", "torch==0.1")
    assert "(locked: 0.1)" in dvc(fresh, "repro", "versions", code=255)


@pytest.fixture
def studied_before(studied: Path, tmp_path: Path) -> Path:
    """A copy of a repository whose cache has the results of other datasets too, as committed."""
    # DVC's notes on its queue are left out: a worker may still be at work in them.
    shutil.copytree(studied / "study", tmp_path / "study", symlinks=True, ignore=shutil.ignore_patterns("tmp"))
    git(tmp_path / "study", "reset", "--hard", "--quiet")
    return tmp_path / "study"


def test_going_back_restores_from_the_run_cache(studied_before: Path) -> None:
    fresh = studied_before
    before = files.sha256(fresh / "metrics/report.md")
    change(fresh, "params.yaml", r"^data: lima", "data: hh")
    printed = dvc(fresh, "repro")
    # No run had these sets beside this section `study`, so `choose` looks; what it writes is what a run had.
    assert ran(printed) <= {"choose", "report"}
    assert "Stage 'dpo' is cached - skipping run" in printed
    assert files.sha256(fresh / "metrics/report.md") != before
    change(fresh, "params.yaml", r"^data: hh", "data: lima")
    printed = dvc(fresh, "repro")
    # The report is kept in git, not in the cache, so DVC writes it again.
    assert ran(printed) <= {"choose", "report"}
    assert "Stage 'dpo' is cached - skipping run" in printed
    assert files.sha256(fresh / "metrics/report.md") == before


REFUSALS = {
    "an unknown dataset": (("params.yaml", r"^data: lima", "data: oraca"), ["'oraca'", ", ".join(corpora.names())]),
    "no comparisons": (
        ("params.yaml", r"^preferences: hh", "preferences: lima"),
        ["'lima' has no comparisons", "hh, own, shp"],
    ),
    "an unknown flag": (
        ("params.yaml", r"^  rank: 4", "  rnak: 4"),
        ["the key sft.rank is missing", "the key sft.rnak is unknown"],
    ),
}


@pytest.mark.parametrize("wrong", REFUSALS)
def test_a_refusal_names_the_way_out_and_leaves_the_rest(wrong: str, fresh: Path) -> None:
    edit, wanted = REFUSALS[wrong]
    kept = {name: files.tree_sha256(fresh / name) for name in ("models/base", "data/raw/benchmarks", "models/dpo")}
    change(fresh, *edit)
    printed = dvc(fresh, "repro", code=255)
    for words in wanted:
        assert words in printed
    for name, tree in kept.items():
        assert files.tree_sha256(fresh / name) == tree
    assert not list(fresh.rglob(".*.partial"))
    assert "Set back what was changed, and `dvc repro` brings it" in printed
    name, before, after = edit
    change(fresh, name, f"^{after}", before.removeprefix("^"))
    assert not ran(dvc(fresh, "repro"))


def test_a_mirror_that_lacks_a_file_is_refused_with_what_is_there(fresh: Path, tmp_path: Path) -> None:
    shutil.copytree(fresh / "data/mini", tmp_path / "mirror")
    (tmp_path / "mirror/baber/piqa/piqa_validation.parquet").unlink()
    (tmp_path / "mirror/baber/piqa/piqa_test.parquet").touch()
    printed = dvc(
        fresh, "exp", "run", "fetch-benchmarks@items", "--set-param", f"source={tmp_path / 'mirror'}", code=255
    )
    assert "nothing matches 'piqa_validation.parquet'" in printed
    assert "piqa_test.parquet" in printed


def test_experiments_line_up_in_one_set_of_columns(studied_before: Path) -> None:
    fresh = studied_before
    dvc(fresh, "exp", "run", "--set-param", "data=hh", "--name", "with-hh")
    shown = dvc(fresh, "exp", "show", "--csv")
    header, *lines = [line.split(",") for line in shown.splitlines() if line]
    assert len({column.strip() for column in header}) == len(header)
    names = [line[header.index("Experiment")] for line in lines]
    assert "with-hh" in names
    filled = [i for i, column in enumerate(header) if column.startswith("metrics/")]
    assert filled
    for line in lines:
        if line[header.index("Experiment")] == "with-hh":
            assert all(line[i] for i in filled if "se" not in header[i])
    assert "dpo.json" in dvc(fresh, "metrics", "diff", "HEAD", "with-hh")
    dvc(fresh, "plots", "diff", "HEAD", "with-hh", "--out", "plots")
    assert (fresh / "plots/index.html").is_file()
