"""The pages say what is so: their links, commands and parameters, the tests that they name, the index of the log."""

import ast
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from alignment.runtime.closure import imports

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("benchmarks/*.md"),
        *ROOT.glob("data/mini/*.md"),
    ]
)
README = "README.md"
FOLDERS = ("alignment", "benchmarks", "commands", "soak", "stages", "tests")
OTHERS = {"dolly.py", "alignment/corpora/dolly.py", "score.py"}  # examples


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def code(text: str) -> list[str]:
    """All that a page shows as code: the lines of its blocks, and what stands between backticks."""
    blocks = re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.S | re.M)
    rest = re.sub(r"^ *```.*?^ *```", "", text, flags=re.S | re.M)
    return [line for block in blocks for line in block.splitlines()] + re.findall(r"`([^`\n]+)`", rest)


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file_and_to_a_heading_in_it(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```", "", read(page), flags=re.S | re.M)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        found = (ROOT / page).parent / path if path else ROOT / page
        assert found.exists(), f"{page}: {target} leads nowhere"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", found.read_text(encoding="utf-8"), re.M)
            assert anchor in map(slug, headings), f"{page}: {target} has no such heading"


@pytest.mark.parametrize("page", [page for page in PAGES if page != "LOG.md"])
def test_every_file_of_code_that_a_page_names_is_there(page: str) -> None:
    shown = [name for text in code(read(page)) for name in re.findall(r"(?<![\w.<*])[\w/]*\w\.py\b", text)]
    for name in shown:
        assert name in OTHERS or list(ROOT.glob(f"[!.]*/**/{Path(name).name}")), f"{page}: there is no {name}"


def test_every_file_of_code_that_a_docstring_names_is_there() -> None:
    for path in (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            said = ast.get_docstring(node) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) else None
            for name in re.findall(r"(?<![\w.<*])[\w/]*\w\.py\b", said or ""):
                assert name in OTHERS or list(ROOT.glob(f"[!.]*/**/{Path(name).name}")), f"{path}: there is no {name}"


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_make_and_python_exists(page: str) -> None:
    makefile = read("Makefile")
    for shown in code(read(page)):
        for target, settings in re.findall(r"\bmake ([a-z.]+)((?: [A-Z]+=)?)", shown):
            assert re.search(rf"^{re.escape(target)}:", makefile, re.M), f"{page}: make has no {target!r}"
            assert not settings or re.search(rf"^{settings.strip(' =')} \?=", makefile, re.M), f"{page}: {shown}"
        for module in re.findall(r"python -m ((?:stages|commands|benchmarks)\.\w+)", shown):
            assert importlib.util.find_spec(module), f"{page}: there is no module {module}"


@pytest.mark.parametrize("page", PAGES)
def test_every_parameter_that_a_command_sets_is_in_params_yaml(page: str) -> None:
    params = yaml.safe_load(read("params.yaml"))
    for name in re.findall(r" -S ([\w.]+)=", "\n".join(code(read(page)))):
        section, _, key = name.partition(".")
        assert section in params and (not key or key in params[section]), f"{page}: params.yaml has no {name}"


def test_every_page_is_in_the_index() -> None:
    assert set(re.findall(r"^- \[[\w-]+\.md\]\(([\w-]+\.md)\): \w", read("docs/README.md"), re.M)) == {
        path.name for path in (ROOT / "docs").glob("*.md") if path.name != README
    }


def test_every_test_that_a_promise_names_is_there() -> None:
    named = re.findall(r"`(\w+)::(\w*)(…?)`", read("docs/trust.md"))
    assert len(named) > 30
    for file, test, more in named:
        (path,) = (ROOT / "tests").rglob(f"test_{file}.py")
        whole = re.escape(f"def test_{test}") + ("" if more else r"\(")
        assert re.search(whole, path.read_text(encoding="utf-8")), f"tests/test_{file}.py has no test_{test}{more}"


# The front page


def test_the_front_page_is_short_and_shows_the_answer_that_is_committed() -> None:
    lines = read(README).splitlines()
    assert len(lines) <= 115 and max(map(len, lines)) <= 140
    table = [line for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1, "one table"
    assert "\n".join(table) in read("metrics/report.md"), "the table of metrics/report.md, as `make repro` prints it"


def test_the_map_shows_what_is_there() -> None:
    (tree,) = re.findall(r"^```\n(params\.yaml .*?)^```", read(README), re.S | re.M)
    found, folder = set(), ROOT
    for line in tree.splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            folder = ROOT / name
        path = folder / name if line.startswith(" ") else folder
        assert path.exists(), f"the map has {name}, which is not there"
        found.add(path)
    packages = {path.parent for path in (ROOT / "alignment").glob("*/__init__.py")}
    assert packages <= found, "every package of alignment/ stands in the map"


def test_the_picture_of_packages_has_the_arrows_that_there_are() -> None:
    (picture,) = re.findall(r"^```mermaid\n(.*?)^```", read("docs/architecture.md"), re.S | re.M)
    lines = [line.strip().partition(" --> ") for line in picture.splitlines()[1:]]
    shown = {(one, other) for one, _, others in lines for other in others.split(" & ")}
    found = set()
    for path in (ROOT / "alignment").glob("*/**/*.py"):
        package = path.relative_to(ROOT / "alignment").parts[0]
        found |= {(package, file.relative_to(ROOT / "alignment").parts[0]) for file in imports(path)}
    assert shown == {(one, other) for one, other in found if one != other and other != "runtime"}


def test_make_alone_lists_every_command_with_its_phrase() -> None:
    make = shutil.which("make")
    assert make
    listed = subprocess.run([make, "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    phony = re.findall(r"^\.PHONY: (.+)$", read("Makefile"), re.M)[0].split()
    assert {line.split()[1] for line in listed.splitlines()} == {name for name in phony if name != ".venv"}
    assert all(len(line.split()) > 3 for line in listed.splitlines())


def test_a_commit_is_checked_by_what_make_check_runs() -> None:
    hooks = [hook for repo in yaml.safe_load(read(".pre-commit-config.yaml"))["repos"] for hook in repo["hooks"]]
    recipe = re.findall(r"^check:.*\n((?:\t.+\n)+)", read("Makefile"), re.M)[0]
    assert [hook["entry"] for hook in hooks] == [line.strip() for line in recipe.splitlines()]


# The log


def test_each_title_of_the_log_has_its_mark_and_stands_in_the_index() -> None:
    log = read("LOG.md")
    titles = re.findall(r"^## (.+)$", log, re.M)
    for title in titles:
        assert re.match(r"\d{4}-\d\d-\d\d, (measured|negative|decided): \S", title), f"LOG.md: {title}"
    index = re.findall(r"^- \[(.+)\]\(#.+\)$", log.partition("\n## ")[0], re.M)
    assert sorted(index) == sorted(titles)
