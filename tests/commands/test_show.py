"""`make repro` ends with the answer: the report's own table, files that are there, commands that can be typed."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from alignment.runtime import Refused
from commands import show

ROOT = Path(__file__).parents[2]
REPORT = (ROOT / "metrics/report.md").read_text(encoding="utf-8")  # as the stage wrote it


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the metrics of the run that is committed."""
    shutil.copytree(ROOT / "metrics", tmp_path / "metrics")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_answer_is_the_head_of_the_report_with_every_limit_that_it_states(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show.main()
    printed = capsys.readouterr().out
    head, _, rest = REPORT.partition("\n\n## ")
    assert printed.startswith(head + "\n\nfiles:\n")
    assert head.count("\n| ") == 9 and "- One seed" in head  # the table, a line a measure, and what limits it
    assert rest.splitlines()[2] not in printed


def test_only_files_that_are_there_are_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show.main()
    printed = capsys.readouterr().out
    assert "  metrics/report.md " in printed and "  metrics/plots/safety.svg " in printed
    assert "data/eval" not in printed
    (run / "data/eval").mkdir(parents=True)
    (run / "data/eval/sft.answers.jsonl").touch()
    show.main()
    assert "  data/eval/*.answers.jsonl " in capsys.readouterr().out


def test_the_next_dataset_is_another_one_than_the_last(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show.main()
    assert "dvc exp run -S data=orca" in capsys.readouterr().out
    (run / "metrics/report.md").write_text(REPORT.replace("# lima →", "# orca →", 1), encoding="utf-8")
    show.main()
    assert "dvc exp run -S data=lima" in capsys.readouterr().out


def test_without_results_it_says_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused, match=r"metrics/report\.md is not there(.|\n)*`make repro`"):
        show.main()
    for text in ("", "# lima → hh\n", REPORT.partition("\n|")[0], REPORT.partition("\n\n")[2]):
        (tmp_path / "report.md").write_text(text, encoding="utf-8")
        with pytest.raises(Refused, match=r"no title or no table(.|\n)*`dvc repro --force report`"):
            show.main(tmp_path / "report.md")


def test_a_refusal_is_one_message_and_not_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "commands.show", str(tmp_path / "report.md")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and ended.stderr.startswith("\nerror: ") and "Traceback" not in ended.stderr
    assert "dvc checkout" not in ended.stderr  # it is no stage: nothing was deleted that would have to come back
