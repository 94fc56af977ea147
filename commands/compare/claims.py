"""What the study claimed, as tests whose rules stood before the results; and what it published, beside ours.

In: a comparison of variants. Out: a verdict on each claim whose rows are there; the study's figures with ours.

Confirmed: p < 0.05 by Holm over all claims, in the claimed direction. Refuted: the same in the other direction, or the
95 % interval excludes an effect of the margin, 1 point or 0.01 of area. Otherwise undecided.
"""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from alignment.statistics import contrasts
from alignment.statistics.contrasts import Heterogeneity
from alignment.statistics.estimates import LEVEL
from commands.compare.comparison import AVERAGE, Contrast, SideBySide

POINT = 0.01  # the margin: of a share, 1 point; of an area, 0.01
ROUNDING = 0.02  # in the published tables' units: by so much may a figure of the same model differ
STUDIED = "meta-llama/Llama-2-7b-hf"


@dataclass(frozen=True)
class Claim:
    """One statement about a difference of variants in a measure.

    Attributes:
        letter: in STATISTICS' list.
        says: in words.
        weights: of the variants in the difference.
        measure: as `Comparison.contrast` takes it; None for the test over groups.
        above: whether the difference is claimed to lie above `null`, or below.
        null: where.
    """

    letter: str
    says: str
    weights: Mapping[str, float]
    measure: str | None
    above: bool = True
    null: float = 0.0


class Judged(NamedTuple):
    """A claim with its test.

    Attributes:
        claim: what was claimed.
        found: the difference; of the test over groups, that test.
        p: by Holm over all claims.
        verdict: confirmed, refuted or undecided.
    """

    claim: Claim
    found: Contrast | Heterogeneity
    p: float
    verdict: str


def row(comparison: SideBySide, data: str, preferences: str = "", matched: bool = False) -> str | None:
    """Return the name of the variant trained on these sets, or None.

    Of several it is the one of most demonstrations, or for `matched` the one of fewest. It is None if several have that
    number, as no one of them is the study's, and for `matched` if all have the same number. No sets: the base model.
    """
    wanted = tuple(name for name in (data, preferences) if name)
    found = [variant for variant in comparison.variants.values() if variant.corpora == wanted]
    sizes = {variant.rows for variant in found}
    if matched and len(sizes) < 2:
        return None
    rows = [v for v in found if v.rows == (min(sizes) if matched else max(sizes))]
    return rows[0].name if len(rows) == 1 else None


def claims(comparison: SideBySide) -> Iterator[Claim]:
    """Yield the study's claims whose rows are there, in the order of their letters."""
    base, lima, shp, orca = (row(comparison, data) for data in ("", "lima", "shp", "orca"))
    pairs = [("shp", shp, ""), ("shp", row(comparison, "shp", matched=True), ", as many demonstrations")]
    for _, other, size in pairs:
        if lima and other:
            change = {lima: 1.0, other: -1.0}
            yield Claim("a", f"LIMA is more truthful than SHP after SFT{size}", change, "truthfulqa_mc2")
            yield Claim("a", f"and keeps its capability within 1 point{size}", change, "capability", True, -POINT)
    if buys := _steps(comparison, "hh"):
        yield Claim("b", "DPO on HH buys safety", buys, AVERAGE)
    if costs := _steps(comparison, "shp"):
        yield Claim("c", "DPO on SHP costs more than 1 point of capability", costs, "capability", False, -POINT)
        yield Claim("c", "and buys less than 0.01 of safety", costs, AVERAGE, False, POINT)
    if orca and base:
        yield Claim("d", "SFT on Orca gains capability", {orca: 1.0, base: -1.0}, "capability")
    for other, size in ((orca, ""), (row(comparison, "orca", matched=True), ", as many demonstrations")):
        if lima and other:
            says = f"Orca falls short of LIMA on truthfulness{size}"
            yield Claim("d", says, {lima: 1.0, other: -1.0}, "truthfulqa_mc2")
    if buys:
        yield Claim("e", "DPO on HH moves safety unevenly over groups", buys, None)


def _steps(comparison: SideBySide, preferences: str) -> dict[str, float]:
    """Return the mean over demonstration sets of (DPO on `preferences` - its SFT), as weights of variants."""
    data = dict.fromkeys(variant.corpora[0] for variant in comparison.variants.values() if variant.corpora)
    pairs = [(row(comparison, name, preferences), row(comparison, name)) for name in data]
    return mean_change([(after, before) for after, before in pairs if after and before])


def mean_change(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Return the mean over pairs of variants of (the first - the second), as weights; {} of no pairs."""
    return {name: sign / len(pairs) for pair in pairs for name, sign in zip(pair, (1, -1), strict=True)}


def judge(comparison: SideBySide) -> list[Judged]:
    """Test every claim, corrected over all of them; claims on measures that were not scored are left out."""
    stated = [claim for claim in claims(comparison) if not claim.measure or comparison.has(claim.measure)]
    found = [
        comparison.heterogeneity(c.weights) if c.measure is None else comparison.contrast(c.weights, c.measure)
        for c in stated
    ]
    ps = [each.p if isinstance(each, Heterogeneity) else each.p(c.null) for c, each in zip(stated, found, strict=True)]
    adjusted = contrasts.holm(ps)
    return [Judged(c, each, p, verdict(c, each, p)) for c, each, p in zip(stated, found, adjusted, strict=True)]


def verdict(claim: Claim, found: Contrast | Heterogeneity, p: float) -> str:
    """Return confirmed, refuted or undecided, by the rule at the head of this module."""
    significant = p < 1 - LEVEL  # never of NaN
    if isinstance(found, Heterogeneity):
        return "confirmed" if significant else "undecided"
    estimate, sign = found.estimate, 1 if claim.above else -1
    if significant and sign * (estimate.value - claim.null) > 0:
        return "confirmed"
    # The end of the interval that is nearest to what was claimed; a claim about a margin has the margin in its null.
    best = estimate.high if claim.above else -estimate.low
    least = sign * claim.null if claim.null else POINT
    return "refuted" if significant or best < least else "undecided"


class Published(NamedTuple):
    """A figure of the published tables and ours.

    Attributes:
        variant: whose.
        measure: as `Comparison.contrast` takes it.
        theirs: as printed: percent for benchmarks.
        ours: in the same unit.
        seeds: the standard deviation of runs by their seeds, in the same unit; NaN where there is none.
        base: whether it is of a base model.
    """

    variant: str
    measure: str
    theirs: float
    ours: float
    seeds: float
    base: bool

    @property
    def apart(self) -> str:
        """Return how far the published figure is from ours.

        Of a base model: whether they agree within rounding. Else: the distance in standard deviations of runs by seed.
        """
        if self.base:
            near = abs(self.theirs - self.ours) <= ROUNDING + 1e-9  # both are decimal fractions
            return "matches" if near else "differs: the protocol is another"
        return f"{(self.theirs - self.ours) / self.seeds:+.1f} s_seed" if self.seeds > 0 else "–"


def published(comparison: SideBySide, folder: Path) -> list[Published]:
    """Return the published figures of the rows that are there, from the CSV files in `folder`.

    There are none for another base model than the study's.
    """
    if not comparison.origin[0].startswith(f"{STUDIED}@"):
        return []
    found = []
    for name, prefix, scale in (("benchmarks.csv", "", 100), ("safety.csv", "score.", 1)):
        with (folder / name).open(encoding="utf-8", newline="") as lines:
            for line in csv.DictReader(lines):
                variant = row(comparison, line.pop("data"), line.pop("preferences"))
                for figure, printed in line.items():
                    if variant and comparison.has(f"{prefix}{figure}"):
                        ours = _ours(comparison, variant, f"{prefix}{figure}", scale)
                        found.append(Published(variant, f"{prefix}{figure}", float(printed), *ours))
    return found


def _ours(comparison: SideBySide, variant: str, measure: str, scale: float) -> tuple[float, float, bool]:
    """Return our figure, the standard deviation of its runs by seed, and whether it is a base model's."""
    stage = comparison.variants[variant].stage
    base = stage == "base"
    seeds = math.nan if base else math.sqrt(comparison.seeds(stage, (measure,)).covariance.item())
    return scale * comparison.contrast({variant: 1.0}, measure).estimate.value, scale * seeds, base
