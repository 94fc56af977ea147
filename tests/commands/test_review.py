"""The review of a change: what it marks as real, what shuts the gate, what it refuses; on planted tables."""

import re
from pathlib import Path

import numpy as np
import planted
import pytest
from scipy import stats as reference

from alignment.reporting import tables
from alignment.runtime import Refused
from alignment.statistics import contrasts
from commands.compare.revisions import Revision
from commands.diff import review
from commands.diff.review import Review, Revisions

MARGINS = {"points": 1.0, "area": 0.01}


def reviewed(before: Revision | tuple[Revision, ...], after: Revision | tuple[Revision, ...]) -> Review:
    sides = (each if isinstance(each, tuple) else (each,) for each in (before, after))
    return Review(*map(Revisions, sides), **MARGINS)


def rows(text: str) -> dict[tuple[str, str], list[str]]:
    """The first table of a comment: its cells, by checkpoint and measure."""
    lines = [line.strip("| ").split("|") for line in text.split("<details>")[0].split("\n") if line.startswith("| ")]
    cells = [[cell.strip() for cell in line] for line in lines]
    return {(line[0], line[1]): line[2:] for line in cells[1:]}


def test_a_change_within_noise_passes_and_says_what_would_not(tmp_path: Path) -> None:
    found = reviewed(planted.revision(tmp_path, "main"), planted.revision(tmp_path, "work", data="orca"))
    said = found.text()
    assert found.passes and "**The gate passes**: nothing is shown to have fallen by more than 1 point or 0.01" in said
    table = rows(said)
    assert {stage for stage, _ in table} == {"sft", "dpo"} and len(table) == 14
    assert {cells[4] for cells in table.values()} == {"within noise"} and "0 of 14 changes are **real**" in said
    for (_, measure), cells in table.items():
        assert float(cells[5]) > (0.01 if "safety" in measure else 1)  # the fall that the gate would see
    assert "Scored the same to the byte: base." in said and "no change" not in said
    assert review.ONE_RUN in said and "data/raw/orca" in said


def test_a_real_fall_shuts_the_gate_and_a_rise_does_not(tmp_path: Path) -> None:
    before = planted.revision(tmp_path, "main")
    fallen = reviewed(before, planted.revision(tmp_path, "fall", data="orca", effects={"dpo": {"hellaswag": -0.6}}))
    assert not fallen.passes and fallen.gate.fallen == [("dpo", "hellaswag")]
    assert re.search(r"\*\*The gate fails\*\*: .*: dpo HellaSwag -\d+\.\d \[.*\] points, p < 0\.0001\.", fallen.text())
    assert rows(fallen.text())["dpo", "HellaSwag"][4] == "**real**"
    risen = reviewed(before, planted.revision(tmp_path, "rise", data="orca", effects={"dpo": {"hellaswag": 0.6}}))
    assert risen.passes and rows(risen.text())["dpo", "HellaSwag"][4] == "**real**"


def test_a_real_fall_within_the_margin_passes(tmp_path: Path) -> None:
    before = planted.revision(tmp_path, "main", noise=0.0)
    after = planted.revision(tmp_path, "work", noise=0.0, rows=999, effects={"sft": {"truthfulqa_mc2": -0.02}})
    found = reviewed(before, after)
    assert found.passes and -0.01 < found.gate.family.found["sft", "truthfulqa_mc2"].estimate.value < 0
    table = rows(found.text())
    assert table["sft", "TruthfulQA mc2"][4] == "**real**"
    assert table["sft", "PIQA"][4:] == ["same outcomes", "–"]  # nothing can be said of what would have been seen
    assert not Review(found.before, found.after, points=0.0, area=0.0).passes


def test_the_gate_s_p_is_that_of_a_one_sided_paired_t_test(tmp_path: Path) -> None:
    sides = planted.revision(tmp_path, "main"), planted.revision(tmp_path, "work", data="orca")
    found = reviewed(*sides)
    tables = [side.checkpoints()[1].table("eval").to_pandas().query("task == 'piqa'").acc_norm for side in sides]
    change = tables[1].to_numpy() - tables[0].to_numpy()
    expected = reference.ttest_1samp(change, -0.01, alternative="less").pvalue
    assert found.gate.family.found["sft", "piqa"].p_below(-0.01) == pytest.approx(expected, rel=1e-9)
    ps = [found.gate.family.found[key].p_below(-found.gate.margins[key[1]]) for key in found.gate.family.found]
    assert list(found.gate.adjusted.values()) == contrasts.holm(ps) and np.all(np.array(ps) <= contrasts.holm(ps))


def test_runs_with_other_seeds_bring_the_variance_of_seeds(tmp_path: Path) -> None:
    runs = [
        tuple(planted.revision(tmp_path, f"{data}-{seed}", data, seed=seed, drawn=0.5) for seed in range(3))
        for data in ("lima", "orca")
    ]
    found = reviewed(*runs)
    assert review.ONE_RUN not in found.text() and found.gate.family.found["dpo", "mmlu"].seeded
    alone = reviewed(runs[0][0], runs[1][0]).gate.family.found["dpo", "mmlu"]
    assert found.gate.family.found["dpo", "mmlu"].degrees < 10 < alone.degrees
    with pytest.raises(Refused, match="lima-0 and orca-0 differ in more than their seed"):
        reviewed((runs[0][0], runs[1][0]), runs[1]).text()


def test_what_was_scored_the_same_is_not_tested(tmp_path: Path) -> None:
    revision = planted.revision(tmp_path, "main")
    said = reviewed(revision, revision).text()
    assert "nothing was scored otherwise" in said and "Scored the same to the byte: base, sft, dpo." in said
    assert "|" not in said


def test_scores_of_other_code_are_compared_where_the_models_are_the_same(tmp_path: Path) -> None:
    before = planted.revision(tmp_path, "main")
    after = planted.revision(tmp_path, "work", effects={"base": {"piqa": -0.8}, "sft": {"piqa": -0.8}})
    found = reviewed(before, after)
    assert found.stages == ["base", "sft"] and found.gate.fallen == [("base", "piqa"), ("sft", "piqa")]


def test_what_is_not_defined_is_explained_below_its_table(tmp_path: Path) -> None:
    before, after = (planted.revision(tmp_path, data, data, label="hate") for data in ("lima", "orca"))
    first, groups = reviewed(before, after).text().split("<details>")[:2]
    for text in (first, groups):
        assert "not defined" in text and review.WHY_NOT in text.rpartition("|\n\n")[2]
    assert rows(first)["sft", "safety, AUC by length"][4] == "not defined"
    assert review.WHY_NOT not in reviewed(*(planted.revision(tmp_path, n, n) for n in ("shp", "hh"))).text()


def test_unlike_scores_are_refused(tmp_path: Path) -> None:
    before, after = planted.revision(tmp_path, "main"), planted.revision(tmp_path, "work", version=2.0)
    with pytest.raises(Refused, match=r"the version of arc_challenge is 1\.0 and 2\.0"):
        reviewed(before, after).text()


def test_a_checkpoint_of_one_side_alone_is_named(tmp_path: Path) -> None:
    before, after = planted.revision(tmp_path, "main"), planted.revision(tmp_path, "work", data="orca")
    del after.stages["eval@dpo"]
    found = reviewed(before, after)
    assert found.stages == ["sft"] and "**Not compared**: dpo, which `work` has not scored." in found.text()


def test_a_source_with_a_secret_is_not_shown(tmp_path: Path) -> None:
    before, after = planted.revision(tmp_path, "main"), planted.revision(tmp_path, "work", data="orca")
    for revision, source in ((before, "mini"), (after, "http://me:secret@example.org")):
        revision.tree.pipe_file("params.yaml", f"source: {source}\nseed: 0\n".encode())
    said = reviewed(before, after).text()
    assert "Parameters: `source` `mini` → `not shown: it may hold a secret`." in said and "me:secret" not in said


def test_names_and_values_cannot_become_markup() -> None:
    assert tables.code("a`b|c\n@everyone") == "`a´b¦c @everyone`"
    assert tables.escaped("p < 0.05\n<b>|[a](b)") == "p < 0.05 &lt;b>¦[a] (b)"
    said = review.refused("main", "<b>", Refused("no\n```\n<script>\n````"))
    assert said.endswith("`````\nno\n```\n<script>\n````\n`````\n") and "→ `<b>`" in said
