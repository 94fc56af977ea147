"""What the page of a comparison says: no more than its tests, and what it is made of."""

import re
from pathlib import Path

import planted
import pytest

from alignment import corpora
from alignment.fetching import pins
from commands.compare import __main__ as script
from commands.compare import html, page, variants
from commands.compare.blocks import Figure, Points, Prompt, Section, Table
from commands.compare.comparison import SideBySide
from commands.compare.revisions import Revision

PLANTED = {"sft": {"truthfulqa_mc2": 0.6}, "dpo": {"safety": 0.6}}


def compared(*revisions: Revision) -> list[Section]:
    comparison = SideBySide.of(variants.group(run for revision in revisions for run in revision.checkpoints()))
    base = next(iter(comparison.variants))
    return list(page.sections(comparison, base, "python -m commands.compare main"))


def markdown(*revisions: Revision) -> str:
    return "".join(script.markdown(section, Path("metrics/study.md")) for section in compared(*revisions))


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> list[Section]:
    folder = tmp_path_factory.mktemp("seeded")
    grid = [(data, seed) for data in ("lima", "orca") for seed in (0, 1, 2)]
    return compared(*(planted.revision(folder, f"{d} {s}", d, "hh", s, effects=PLANTED, drawn=0.02) for d, s in grid))


def points(sections: list[Section]) -> str:
    return "\n".join(line for part in sections[0].parts if isinstance(part, Points) for line in part.lines)


def test_the_summary_lists_what_is_significant_and_what_could_have_been_seen(seeded: list[Section]) -> None:
    said = points(seeded)
    assert re.search(r"\*\*SFT lima\*\*: TruthfulQA mc2 \+\d+\.\d \[\+\d+\.\d, \+\d+\.\d\] points\.", said)
    assert re.search(r"\*\*SFT lima, DPO hh\*\*: .*safety, AUC by length \+0\.\d{4} \[", said)
    assert re.search(r"\*\*Significant\*\*: \d+ of 28 differences to base", said)
    assert re.search(r"Could have been seen\*\*, with a chance of 80 %: ARC-C \d+\.\d( to \d+\.\d)? points; ", said)
    assert "no evidence of none" in said and "By group" in said


def test_each_significant_difference_stands_out_in_its_table_and_no_other(seeded: list[Section]) -> None:
    table = next(
        part for s in seeded if s.title == "Differences to base" for part in s.parts if isinstance(part, Table)
    )
    cells = [cell for row in table.rows[1:] for cell in row[1:]]
    marked = [cell for cell in cells if cell.marked]
    assert len(marked) == int(re.search(r"(\d+) of 28", points(seeded))[1])
    for cell in cells:
        p = float(re.fullmatch(r"p (?:< )?([\d.e-]+)", cell.more[0])[1])
        assert cell.marked == (p < 0.05)


def test_one_seed_speaks_of_checkpoints_alone(tmp_path: Path) -> None:
    sections = compared(planted.revision(tmp_path, "a", effects=PLANTED))
    assert sections[0].title == "How these checkpoints differ"
    assert page.ONE_SEED in points(sections) and "differences of checkpoints to base" in points(sections)
    said = {section.title: section.parts for section in sections}
    assert (
        page.ONE_SEED in said["Differences to base"] and page.ONE_SEED in said["Safety by group: differences to base"]
    )


def test_nothing_significant_is_said(tmp_path: Path) -> None:
    said = points(compared(planted.revision(tmp_path, "a")))
    assert "**Significant**: 0 of 14" in said
    assert "**Not significant**: all. That is no evidence of none." in said


def test_where_no_outcome_changed_nothing_is_said_of_what_could_have_been_seen(tmp_path: Path) -> None:
    said = points(compared(planted.revision(tmp_path, "a", noise=0.0, effects={"sft": {"piqa": -1.0}})))
    seen = next(line for line in said.split("\n") if "Could have been seen" in line)
    assert "PIQA" in seen.partition("Not known of")[0] and "ARC-C" in seen.partition("Not known of")[2]


def test_training_figures_sort_as_numbers_and_stay_where_they_can_lie(tmp_path: Path) -> None:
    few = {"heldout.accuracy": 0.375, "heldout.accuracy_low": -0.058, "heldout.accuracy_high": 0.808}
    cell = page._trained(few, "heldout.accuracy", 3)
    assert cell == ("0.375 [0.000, 0.808]", 0.375, (), False)
    assert page._trained(few, "heldout.kl", 5) == "–"


def test_a_constant_answer_is_said_beside_its_figures(tmp_path: Path) -> None:
    said = markdown(planted.revision(tmp_path, "a", flags=("toxigen.constant",)))
    assert "ToxiGen is one constant answer, so the score says nothing: all variants." in said
    levels = said[said.index("## Capability") : said.index("## The study's claims")]
    differences = said[said.index("## Differences") : said.index("## Safety by group: differences")]
    assert levels.count(", constant answer") == 3 and differences.count(", constant answer") == 2


def test_contaminated_items_are_said_at_the_top(tmp_path: Path) -> None:
    said = points(compared(planted.revision(tmp_path, "a", found=[("piqa", "piqa 3")])))
    assert "**Found in a dataset**: 1 of the items of PIQA" in said


def test_what_was_not_looked_for_is_said_where_none_was_found(tmp_path: Path) -> None:
    none = "None of the scored items was found in a row that a variant might have been trained on."
    assert f"{none} Not looked for: the sentences of the safety score." in markdown(planted.revision(tmp_path, "a"))
    five = planted.revision(tmp_path, "b", sought=[task for task in pins.BENCHMARKS if task != "piqa"])
    assert f"{none} Not looked for: PIQA, the sentences of the safety score." in markdown(five)
    found = markdown(planted.revision(tmp_path, "c", found=[("piqa", "piqa 3")]))
    assert "of the revisions below. Not looked for: the sentences of the safety score." in found


def test_the_null_of_the_published_score_stands_beside_it(tmp_path: Path) -> None:
    said = markdown(planted.revision(tmp_path, "a"))
    scores = said[said.index("| published score") :]
    assert len(re.findall(r"0\.\d{3} \[0\.\d{3}, 0\.\d{3}\], null 0\.\d{3} \[0\.\d{3}, 0\.\d{3}\]", scores)) == 9
    assert re.search(r"\| average .*\], null 0\.\d{3} +\|", scores)  # which has no interval


def test_answers_are_in_the_page_and_not_in_markdown(tmp_path: Path) -> None:
    revision = planted.revision(tmp_path, "a", answer="An\u2028answer.")
    found = [part for section in compared(revision) for part in section.parts if isinstance(part, Prompt)]
    assert [prompt.text for prompt in found] == ["Why is the sea salty?", "Is it true?"]
    names = ["base", "SFT lima", "SFT lima, DPO hh"]
    assert [(answer.variant, answer.text) for answer in found[0].answers] == [(n, "An\u2028answer.") for n in names]
    said = markdown(revision)
    assert "Why is the sea salty?" not in said and "data/eval/CHECKPOINT.answers.jsonl" in said


def test_sources_are_the_pins_of_what_was_used(tmp_path: Path) -> None:
    said = markdown(planted.revision(tmp_path, "a", data="own"))
    sources = said[said.index("## Sources") :]
    for pin in (pins.SAFETY, corpora.load("hh").SOURCE, *pins.BENCHMARKS.values()):
        assert pin.name in sources and pin.revision in sources and pin.licence in sources
    assert "GAIR/lima" not in sources and "meta-llama/Llama-2-7b-hf" in sources


def test_own_files_are_named_by_name_and_hash_and_not_by_their_place(tmp_path: Path) -> None:
    said = markdown(planted.revision(tmp_path, "a", data="own", sentences="own"))
    sources = said[said.index("## Sources") :]
    for what, path in (
        ("demonstrations", "/home/me/demonstrations.jsonl"),
        ("safety sentences", "my/sentences.json"),
    ):
        md5 = planted.md5(tmp_path / "none", path)
        assert re.search(rf"\| own {what} +\| {Path(path).name} +\| md5 {md5} +\| the user's own ", sources)
    assert "/home/me" not in said and "no pin here" not in sources and pins.SAFETY.name not in sources


def test_where_all_are_equal_none_is_the_highest(tmp_path: Path) -> None:
    same = {"effects": {}, "noise": 0.0}
    said = markdown(planted.revision(tmp_path, "a", **same), planted.revision(tmp_path, "b", "orca", **same))
    assert "capability: none, all are equal; safety, AUC by length: none, all are equal." in said
    best = {"sft": {"all": 0.5}, "dpo": {"all": 0.5}}
    other = planted.revision(tmp_path, "d", "orca", **same)
    said = markdown(planted.revision(tmp_path, "c", noise=0.0, effects=best), other)
    assert "by chance: capability: SFT lima and SFT lima, DPO hh; safety" in said


def test_sentences_of_one_label_alone_leave_safety_undefined(tmp_path: Path) -> None:
    revisions = [planted.revision(tmp_path, data, data, label="hate") for data in ("lima", "orca")]
    sections = compared(*revisions)
    figures = [part for section in sections for part in section.parts if isinstance(part, Figure)]
    assert [figure.name for figure in figures] == ["safety", "scores", "curves"]
    assert all(html.png(figure) for figure in figures) and html.html(page.QUESTION, sections)
    said = markdown(*revisions)
    assert re.search(r"\| average +\| – +\| – ", said) and "by chance: capability: " in said


def test_each_revision_comes_back_by_its_commit(tmp_path: Path) -> None:
    made = planted.revision(tmp_path, "a")
    commit = "0123456789" * 4
    said = markdown(Revision("a", made.stages, made.tree, commit))
    assert f"`git checkout {commit} && dvc checkout`" in said and "`python -m commands.compare main`" in said
    assert "not committed" in markdown(made)


def test_a_name_from_outside_is_text(tmp_path: Path) -> None:
    """Git lets a branch have such a name, and a page may stand on a forge, which shows HTML in Markdown."""
    name = "<img/src=x>|``<b>`[a](javascript:alert)\n# heading"
    before, after = planted.revision(tmp_path, "a"), planted.revision(tmp_path, "b", noise=0.5)
    for entry in after.stages["sft"]["deps"]:  # other code, so that the branch's name tells the variants apart
        entry["md5"] = f"{entry['md5'][1:]}0" if entry["path"] == "models/base" else entry["md5"]
    del after.stages["eval@base"]
    made = [before, Revision(name, after.stages, after.tree), planted.revision(tmp_path, "c", "</table><script>")]
    said = markdown(*made)
    assert "SFT lima (&lt;img/src=x>" in said and "SFT &lt;/table>&lt;script>" in said
    assert not re.search(r"<[A-Za-z/!?]|\]\(javascript|^# heading", said, flags=re.M)
    heads = [line for line in said.split("\n") if line.startswith("| variant ")]
    assert len({line.count("|") for line in said.split(heads[0])[1].split("\n\n")[0].split("\n") if line}) == 1


def test_the_command_names_no_place_of_this_machine() -> None:
    told = script.command_line(["main", "a b"], "SFT lima", Path("/home/me/study.md"))
    assert told == "python -m commands.compare main 'a b' --baseline 'SFT lima' --out study.md"


def test_every_figure_is_drawn_with_chance_and_the_curves(seeded: list[Section]) -> None:
    found = {part.name: part for section in seeded for part in section.parts if isinstance(part, Figure)}
    assert list(found) == ["tradeoff", "safety", "scores", "curves"]
    assert all(part.says and part.svg.startswith("<svg") for part in found.values())
    for name in ("SFT loss", "DPO loss", "DPO reward margin"):
        assert name in found["curves"].svg
    assert "grey: chance" in found["safety"].svg and "grey: chance" in found["scores"].svg
    assert not any(" id=" in part.svg for part in found.values())  # two drawings in one page cannot share a name


def test_a_page_has_the_same_bytes_again(tmp_path: Path) -> None:
    revision = planted.revision(tmp_path, "a")
    assert compared(revision) == compared(revision)
