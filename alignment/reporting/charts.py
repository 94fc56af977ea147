"""Figures as files, from the templates that `dvc plots` fills: one drawing for both.

In: a Vega-Lite template with DVC's anchors, and rows. Out: SVG.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

VEGA_LITE = "5.20"  # of the versions that the renderer carries, so that a figure's bytes do not change by themselves


def svg(template: Path, rows: Sequence[dict[str, Any]], title: str) -> str:
    """Draw a template.

    Args:
        template: a Vega-Lite specification, whose data are `<DVC_METRIC_DATA>` and whose title `<DVC_METRIC_TITLE>`.
        rows: the data; DVC adds to each the revision that it is of, here there is one.
        title: the title.
    """
    import vl_convert

    values = json.dumps([{"rev": "", **row} for row in rows])
    text = template.read_text(encoding="utf-8")
    text = text.replace('"<DVC_METRIC_DATA>"', values).replace('"<DVC_METRIC_TITLE>"', json.dumps(title))
    drawn: str = vl_convert.vegalite_to_svg(json.loads(text), vl_version=VEGA_LITE)
    return drawn
