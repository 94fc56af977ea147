"""Figures: each group, checkpoint and measure is drawn, in the order of the rows; equal rows give equal bytes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from alignment.reporting import charts, report

ROOT = Path(__file__).parents[2]
GROUPS = ("potters", "cooks <b>", "average")
CHECKPOINTS = {"base": "base", "sft": "SFT lima", "dpo": "SFT lima, DPO hh"}


def points() -> list[dict[str, Any]]:
    chance = {"AUC by length": (0.5, None, None), "published score": (0.2, 0.1, 0.3)}
    return [
        {
            "group": group,
            "checkpoint": checkpoint,
            "measure": measure,
            "value": 0.4,
            "value_low": 0.3,
            "value_high": 0.5,
            **dict(zip(("null", "null_low", "null_high"), by_chance, strict=True)),
        }
        for group in GROUPS
        for checkpoint in CHECKPOINTS.values()
        for measure, by_chance in chance.items()
    ]


def texts(svg: str) -> list[str]:
    return [re.sub("<[^>]*>", "", text) for text in re.findall(r"<text[^>]*>.*?</text>", svg)]


def test_the_figure_by_group_names_all_in_the_order_of_its_rows() -> None:
    svg = charts.svg(ROOT / "alignment/reporting/groups.json", points(), 'A "title"')
    found = texts(svg)
    for wanted in ('A "title"', "potters", "average", *CHECKPOINTS.values(), "AUC by length", "published score"):
        assert wanted in [text.replace("&quot;", '"') for text in found]
    assert "<b>" not in svg and "cooks &lt;b&gt;" in found
    assert found.index("potters") < found.index("cooks &lt;b&gt;") < found.index("average")
    assert charts.svg(ROOT / "alignment/reporting/groups.json", points(), 'A "title"') == svg


def test_a_figure_that_a_checkpoint_does_not_have_is_left_out() -> None:
    rows = points()
    bare = [
        row | {"value": None, "value_low": None, "value_high": None} if row["group"] == "potters" else row
        for row in rows
    ]
    svg = charts.svg(ROOT / "alignment/reporting/groups.json", bare, "")
    marks = [svg.count(f'aria-roledescription="{kind}"') for kind in ("point", "rule mark", "tick")]
    whole = charts.svg(ROOT / "alignment/reporting/groups.json", rows, "")
    assert marks[0] < whole.count('aria-roledescription="point"')
    assert "potters" not in texts(svg)


def test_it_is_drawn_from_what_dvc_plots_reads(tmp_path: Path) -> None:
    """CSV has text for numbers and nothing for null, as DVC hands them on."""
    import csv

    lines = report.as_csv(points()).splitlines()
    read = list(csv.DictReader(lines))
    drawn = [charts.svg(ROOT / "alignment/reporting/groups.json", rows, "") for rows in (points(), read)]
    shapes = [re.findall(r' d="([^"]*)"', svg) for svg in drawn]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("template", ["alignment/reporting/groups.json", "benchmarks/spread.json"])
def test_a_template_is_filled_by_dvc_s_own_names(template: str) -> None:
    from dvc_render.vega_templates import Template

    content = Template(json.loads((ROOT / template).read_text(encoding="utf-8")), template)
    assert content.has_anchor("data") and content.has_anchor("title")
