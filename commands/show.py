"""Print the answer of the last run: its table with what limits it, the files to look at, the commands to type next.

In: the report that the stage `report` wrote. Out: text on the terminal; no file is changed and no model is run.
"""

from pathlib import Path
from typing import Annotated

import typer

from alignment.runtime import Refused, command

FILES = {
    "metrics/report.md": "the whole report: rows, training, safety by group, sources and licences",
    "metrics/plots/safety.svg": "safety by group, as a figure",
    "data/eval/*.answers.jsonl": "what each checkpoint answers to eight fixed prompts",
    "data/eval/*.parquet": "every benchmark item, with its log-likelihoods and its outcome",
    "data/safety/*.parquet": "every safety sentence, with its log-perplexity",
    "docs/files.md": "every output and every column",
}


def main(report: Annotated[Path, typer.Argument(help="the report, as Markdown")] = Path("metrics/report.md")) -> None:
    """Print the answer of the last run."""
    title, answer = read(report)
    print("\n\n".join([title, answer, listed("files", here(FILES)), listed("next", following(title))]))


def read(report: Path) -> tuple[str, str]:
    """Return the report's title, and the text before its first section: the setting, the table, the limits.

    Raises:
        Refused: there is no report yet, or it has no table.
    """
    if not report.is_file():
        raise Refused(f"{report} is not there: nothing has been run to its end in {Path.cwd()}.\n`make repro` makes it")
    title, _, rest = report.read_text(encoding="utf-8").partition("\n\n")
    answer = rest.partition("\n## ")[0].strip()
    if not title.startswith("# ") or "\n|" not in answer:
        raise Refused(f"{report} has no title or no table of results.\n`dvc repro --force report` writes it again")
    return title, answer


def here(files: dict[str, str]) -> dict[str, str]:
    """Return the patterns that match a file on this machine."""
    return {pattern: says for pattern, says in files.items() if any(Path().glob(pattern))}


def following(title: str) -> dict[str, str]:
    """Say how to try another dataset after a run of `title`, and how to read the difference."""
    other = "lima" if title.startswith("# orca ") else "orca"
    return {
        "source .venv/bin/activate": "once in each terminal",
        "git commit --all --message run": "keep these results, if they are not those of the last commit",
        f"dvc exp run -S data={other}": "another dataset: only what depends on it is run",
        'make compare REVS="workspace HEAD"': "both side by side, every difference with its test",
    }


def listed(title: str, lines: dict[str, str]) -> str:
    """Return two columns under a title."""
    width = max(map(len, lines), default=0)
    return "\n".join([f"{title}:", *(f"  {left:<{width}}  {right}" for left, right in lines.items())])


if __name__ == "__main__":
    command.run(main)
