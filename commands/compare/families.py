"""Differences that are tested together, and the gate that a certain fall does not pass.

In: a comparison, and which of its variants are set against which. Out: the p of each difference by Holm's correction
over all of them, two-sided for what differs, one-sided for what fell by more than a margin.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alignment.statistics import contrasts
from alignment.statistics.estimates import LEVEL
from commands.compare.comparison import Contrast, SideBySide

Key = tuple[str, str]  # the name of a difference, such as its variant, and the measure


@dataclass(frozen=True)
class Family:
    """Differences that are tested together.

    Attributes:
        found: by name and measure.
        adjusted: p of each by Holm; NaN where there is no test.
    """

    found: dict[Key, Contrast]
    adjusted: dict[Key, float]

    @classmethod
    def of(cls, comparison: SideBySide, pairs: Mapping[str, tuple[str, str]], measures: Sequence[str]) -> "Family":
        """Test pairs of variants, before and after, each under a name, in each of these measures."""
        found = {
            (name, measure): comparison.contrast({after: 1.0, before: -1.0}, measure)
            for name, (before, after) in pairs.items()
            for measure in measures
        }
        return cls(found, dict(zip(found, contrasts.holm([each.p() for each in found.values()]), strict=True)))

    @property
    def size(self) -> int:
        """The number of differences that were tested."""
        return sum(not math.isnan(p) for p in self.adjusted.values())

    def significant(self, name: str, measure: str) -> bool:
        """Return whether a difference is significant, after correction."""
        return self.adjusted[name, measure] < 1 - LEVEL  # never of NaN

    def minimum_detectable_effect(self, measure: str) -> list[float]:
        """Return the smallest and the largest minimum detectable effect in a measure; [] where nothing changed."""
        differences = [found for (_, m), found in self.found.items() if m == measure]
        least = [found.minimum_detectable_effect(self.size) for found in differences if found.estimate.se > 0]
        return [min(least), max(least)] if least else []


@dataclass(frozen=True)
class Gate:
    """A test of falls beyond a margin: Holm over one-sided tests of D >= -margin, one for each difference.

    Attributes:
        family: the differences.
        margins: the fall that is put up with, by measure.
    """

    family: Family
    margins: Mapping[str, float]

    @property
    def adjusted(self) -> dict[Key, float]:
        """The p of each by Holm; NaN where there is no test."""
        found = self.family.found
        ps = [found[key].p_below(-self.margins[key[1]]) for key in found]
        return dict(zip(found, contrasts.holm(ps), strict=True))

    @property
    def fallen(self) -> list[Key]:
        """The differences that are shown to have fallen by more than their margin."""
        return [key for key, p in self.adjusted.items() if p < 1 - LEVEL]

    def minimum_detectable_effect(self, key: Key) -> float:
        """Return the smallest true fall that fails the gate with a power of 80 %; NaN where no outcome changed."""
        found = self.family.found[key]
        if not found.estimate.se > 0:
            return math.nan
        return self.margins[key[1]] + found.minimum_detectable_effect(self.family.size, sides=1)
