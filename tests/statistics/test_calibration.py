"""Error rates under repetition: tests reject a true null hypothesis at 5 %, intervals miss as often, power is as said.

Each law has a mutant, the mistake that is easily made in its place, which must fall outside the bounds that the law
keeps inside. 2,000 repetitions with fixed seeds; 4,000 others in `make soak`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy import stats as reference

from alignment.statistics import contrasts, estimates, permutation
from alignment.statistics.contrasts import SeedVariance
from alignment.statistics.estimates import Estimate, Floats, Statistic
from commands.compare.comparison import Contrast, SideBySide, mean
from commands.compare.families import Family, Gate, Key
from commands.compare.revisions import Checkpoint
from commands.compare.variants import Variant

pytestmark = pytest.mark.slow
FALSE_ALARM = 1e-3  # of a law that holds, at both ends together
GROUPS = (0.9, 0.6, 0.5, 0.5)  # the shares of rows that are about each group; they overlap
ROWS, FEW, STRATA = 2000, 480, 3  # rows of a file, of a small one, and their strata of length


@dataclass(frozen=True)
class Repeated:
    """How often a test is repeated, and from which seeds."""

    times: int
    seed: int

    def bounds(self, rate: float) -> tuple[int, int]:
        """Where the number of events of a rate lies, but for false alarms."""
        low, high = reference.binom.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], self.times, rate)
        return int(low), int(high)

    def events(self, happens: Callable[[np.random.Generator], np.ndarray | bool]) -> np.ndarray:
        """How often each of some events happens."""
        seeds = np.random.SeedSequence(self.seed).spawn(self.times)
        return np.sum([happens(np.random.default_rng(seed)) for seed in seeds], axis=0)

    def holds(self, events: float, rate: float = 0.05) -> bool:
        low, high = self.bounds(rate)
        return low <= events <= high


@pytest.fixture(scope="module")
def repeated(soak: bool) -> Repeated:
    return Repeated(4000, 1) if soak else Repeated(2000, 0)


def test_the_bounds_are_those_of_statistics_section_5() -> None:
    assert (Repeated(2000, 0).bounds(0.05), Repeated(4000, 0).bounds(0.05)) == ((69, 133), (156, 247))


@dataclass(frozen=True)
class Sentences:
    """A file of sentences: rows of several groups, texts that recur, strata of length."""

    harmful: np.ndarray
    texts: np.ndarray
    strata: np.ndarray
    groups: list[np.ndarray]

    def areas(self, values: Floats) -> list[Statistic]:
        return [estimates.auc(values, self.harmful, members, self.strata) for members in self.groups]


def sentences(generator: np.random.Generator, count: int = ROWS) -> Sentences:
    """Rows whose label, length and text belong together, as a text that recurs has them all again."""
    text = generator.integers(count * 5 // 6, size=count)
    harmful, strata = generator.random(count) < 0.5, generator.integers(STRATA, size=count)
    groups = [generator.random(count) < share for share in GROUPS]
    return Sentences(harmful[text], text, strata[text], groups)


def perplexities(generator: np.random.Generator, rows: Sentences, shift: float = 0.0) -> Iterator[Floats]:
    """Log-perplexities of checkpoints over the same sentences: what a text has of its own, and each one's own noise.

    Noise goes into every copy: in one alone it would attenuate its area.
    """
    count = len(rows.texts)
    own = generator.normal(size=count)[rows.texts]
    while True:
        noise = generator.normal(scale=0.4, size=count)[rows.texts]
        yield own + noise + 0.5 * rows.strata + shift * rows.harmful


def two_alike(generator: np.random.Generator) -> tuple[Sentences, list[Statistic], list[Statistic]]:
    """The areas of each group for two checkpoints that differ by noise alone."""
    rows = sentences(generator)
    values = perplexities(generator, rows, 0.3)
    return rows, rows.areas(next(values)), rows.areas(next(values))


def rejected(value: float, se: float, degrees: float) -> bool:
    return contrasts.p_value(Estimate(value, se, 0, 0, 0), degrees) < 0.05


# Two checkpoints


def test_a_change_of_the_average_is_paired_and_groups_are_not_independent(repeated: Repeated) -> None:
    def happens(generator: np.random.Generator) -> list[bool]:
        rows, before, after = two_alike(generator)
        pairs = [contrasts.difference(*pair) for pair in zip(before, after, strict=True)]
        change = estimates.average(pairs, ROWS).estimate(rows.texts)
        errors = [estimates.average(areas, ROWS).estimate(rows.texts).se for areas in (before, after)]
        apart = math.sqrt(sum(pair.estimate(rows.texts).se ** 2 for pair in pairs)) / len(pairs)
        return [rejected(change.value, se, change.n - 1) for se in (change.se, math.hypot(*errors), apart)]

    paired, unpaired, independent = repeated.events(happens)
    low, high = repeated.bounds(0.05)
    assert low <= paired <= high
    assert unpaired < low
    assert independent > high


def test_changes_by_group_keep_their_family_s_level(repeated: Repeated) -> None:
    def happens(generator: np.random.Generator) -> list[bool]:
        rows, before, after = two_alike(generator)
        changes = [contrasts.difference(*pair).estimate(rows.texts) for pair in zip(before, after, strict=True)]
        ps = [contrasts.p_value(change, change.n - 1) for change in changes]
        return [ps[1] < 0.05, min(contrasts.holm(ps)) < 0.05, min(ps) < 0.05]

    one, family, unadjusted = repeated.events(happens)
    low, high = repeated.bounds(0.05)
    assert low <= one <= high
    assert family <= high  # Holm may be below its level, where groups go together
    assert unadjusted > high


def test_alike_changes_are_uneven_at_5_percent(repeated: Repeated) -> None:
    def happens(generator: np.random.Generator) -> list[bool]:
        rows, before, after = two_alike(generator)
        changes = [contrasts.difference(*pair) for pair in zip(before, after, strict=True)]
        errors = np.array([change.estimate(rows.texts).se for change in changes])
        values = np.array([change.value for change in changes])
        weights = 1 / errors**2
        independent = float((weights * (values - np.average(values, weights=weights)) ** 2).sum())
        return [
            contrasts.heterogeneity(changes, rows.texts).p < 0.05,
            reference.chi2.sf(independent, len(changes) - 1) < 0.05,
        ]

    uneven, independent = repeated.events(happens)
    assert repeated.holds(uneven)
    assert not repeated.holds(independent)


def test_a_planted_shift_is_found_as_often_as_the_formula_says(repeated: Repeated) -> None:
    shift = 0.05
    changes: list[Estimate] = []

    def happens(generator: np.random.Generator) -> bool:
        rows = sentences(generator)
        values = perplexities(generator, rows)
        before, after = next(values), next(values) + shift * rows.harmful
        pairs = zip(rows.areas(before), rows.areas(after), strict=True)
        change = estimates.average([contrasts.difference(*pair) for pair in pairs], ROWS).estimate(rows.texts)
        changes.append(change)
        return rejected(change.value, change.se, change.n - 1)

    found = int(repeated.events(happens))
    effect, se = np.mean([change.value for change in changes]), np.mean([change.se for change in changes])
    degrees = changes[0].n - 1
    said = float(reference.nct.sf(reference.t.ppf(0.975, degrees), degrees, effect / se))
    assert 0.2 < said < 0.95
    assert abs(found / repeated.times - said) < 0.04
    # `detectable` is that effect at which it says 80 %.
    least = contrasts.minimum_detectable_effect(float(se), degrees, 1)
    assert reference.nct.sf(reference.t.ppf(0.975, degrees), degrees, least / se) == pytest.approx(0.8, abs=0.005)


# One checkpoint


@pytest.mark.parametrize("measure", ["auc_len", "nats"])
def test_an_interval_misses_the_truth_at_5_percent(measure: str, repeated: Repeated) -> None:
    shift = 0.8
    truth = {"nats": shift, "auc_len": float(reference.norm.cdf(shift / math.sqrt(2 * (1 + 0.4**2))))}[measure]
    figure = {"nats": estimates.shift, "auc_len": estimates.auc}[measure]

    def happens(generator: np.random.Generator) -> list[bool]:
        rows = sentences(generator)
        values = next(perplexities(generator, rows, shift))
        statistic = figure(values, rows.harmful, rows.groups[0], rows.strata)
        clustered, by_row = statistic.estimate(rows.texts), statistic.estimate(np.arange(ROWS))
        return [not found.low <= truth <= found.high for found in (clustered, by_row)]

    clustered, by_row = repeated.events(happens)
    assert repeated.holds(clustered)
    assert by_row > repeated.bounds(0.05)[1]  # rows of one text are no two sentences


def test_the_joint_band_misses_any_truth_at_5_percent(repeated: Repeated) -> None:
    truth, draws = float(reference.norm.cdf(0.3 / math.sqrt(2 * (1 + 0.4**2)))), 101

    def happens(generator: np.random.Generator) -> list[bool]:
        rows = sentences(generator, FEW)
        values = next(perplexities(generator, rows, 0.3))
        found = [area.estimate(rows.texts) for area in rows.areas(values)]
        areas = list(zip(rows.groups, found, strict=True))
        reach = permutation.band_multiplier(values, rows.harmful, rows.strata, rows.texts, areas, generator, draws)
        farthest = max(abs(estimate.value - truth) / estimate.se for estimate in found)
        return [farthest > reach, farthest > 1.96]

    joint, alone = repeated.events(happens)
    assert repeated.holds(joint, 1 - (0.95 * (draws - 1) + 1) / (draws + 1))  # the truth's rank among so few draws
    assert alone > repeated.bounds(0.05)[1]


def test_a_model_without_a_preference_lies_within_its_null_95_times_of_100(repeated: Repeated) -> None:
    """And outside what labels shuffled alone would give, however little it prefers: that null is no null."""
    rows, draws = 30, 201

    def happens(generator: np.random.Generator) -> list[bool]:
        harmful = generator.permutation(np.arange(rows) % 2 == 0)
        values = generator.normal(scale=0.5, size=rows)
        toxicity = np.log(np.where(harmful, generator.integers(4, 6, size=rows), generator.integers(1, 4, size=rows)))
        score = estimates.auc(values - toxicity, harmful, np.ones(rows, bool), np.zeros(rows)).value
        permuted = permutation.permuted(values, toxicity, harmful, generator, draws)
        scaled = values - toxicity
        shuffled = permutation.permuted(scaled, np.zeros(rows), harmful, generator, draws)
        return [
            not low <= score <= high for low, high in (np.quantile(d, [0.025, 0.975]) for d in (permuted, shuffled))
        ]

    within, shuffled = repeated.events(happens)
    exact = 2 * (0.025 * (draws - 1) + 1) / (draws + 1)  # of the score's ranks among so few draws, those outside
    assert repeated.holds(within, exact)
    assert shuffled > repeated.times * 0.9


# Seeds


def test_a_difference_of_variants_has_the_variance_of_their_seeds(repeated: Repeated) -> None:
    variants, runs, items = 4, 3, 300

    def happens(generator: np.random.Generator) -> list[bool]:
        item = generator.normal(scale=0.5, size=items)
        seed = generator.normal(scale=0.03, size=(variants, runs, 1))
        outcomes = item + seed + generator.normal(scale=0.05, size=(variants, runs, items))
        seeds = SeedVariance.pooled(list(outcomes.mean(axis=2))).part([-1, 1], [runs, runs])
        change = estimates.of_mean(outcomes[1].mean(axis=0) - outcomes[0].mean(axis=0))
        parts = [contrasts.VarianceComponent(change.se**2, items - 1), seeds]
        whole, degrees = contrasts.summed(change.value, items, parts)
        return [rejected(whole.value, whole.se, degrees), rejected(change.value, change.se, items - 1)]

    seeded, items_only = repeated.events(happens)
    assert repeated.holds(seeded)
    assert items_only > repeated.bounds(0.05)[1]


def grid(generator: np.random.Generator, names: Sequence[str], runs: int, items: int, drawn: float) -> SideBySide:
    """Variants that are all alike, on two tasks and four groups of sentences; each run has its own noise and draw."""
    ease = {task: generator.normal(size=items) for task in ("piqa", "mmlu")}
    text = generator.integers(items * 5 // 6, size=items)
    groups = {f"g{number}": generator.random(items) < share for number, share in enumerate(GROUPS)}

    def figures() -> dict[str, Statistic]:
        found = {}
        for task, own in ease.items():
            noise = generator.normal(scale=0.3, size=items) + drawn * generator.normal()
            found[task] = mean(own + noise)
        values = (ease["piqa"] + generator.normal(scale=0.3, size=items))[text]
        for group, members in groups.items():
            average = float(values[members].mean())
            influence = np.where(members, (values - average) / members.sum(), 0.0)
            found[f"auc_len.{group}"] = Statistic(average + drawn * generator.normal(), influence, members)
        return found

    seeds = tuple(Checkpoint(None, "sft") for _ in range(runs))
    return SideBySide(
        variants={name: Variant(name, seeds) for name in names},
        figures={name: [figures() for _ in range(runs)] for name in names},
        tasks={"piqa": "acc_norm", "mmlu": "acc"},
        items=dict.fromkeys(ease, items),
        groups=list(groups),
        texts=text,
    )


def test_a_family_of_variants_keeps_its_level(repeated: Repeated) -> None:
    """Holm over all differences to one variant, with the variance of seeds; without either it does not."""
    names = ["a", "b", "c", "d"]

    def happens(generator: np.random.Generator) -> list[bool]:
        comparison = grid(generator, names, 3, 200, 0.05)
        found = [comparison.contrast({v: 1.0, "a": -1.0}, m) for v in names[1:] for m in comparison.tasks]
        items = [
            contrasts.difference(comparison.over_runs("a", m), comparison.over_runs(v, m)).estimate(np.arange(200))
            for v in names[1:]
            for m in comparison.tasks
        ]
        ps, alone = [each.p() for each in found], [contrasts.p_value(each, 199) for each in items]
        return [ps[0] < 0.05, min(contrasts.holm(ps)) < 0.05, min(contrasts.holm(alone)) < 0.05, min(ps) < 0.05]

    one, family, items_only, unadjusted = repeated.events(happens)
    _, high = repeated.bounds(0.05)
    # The noise of a run's items stands in its own variance and in that of seeds: a little below the level.
    assert repeated.times * 0.01 < one <= high
    assert family <= high
    assert items_only > high
    assert unadjusted > high


def test_alike_variants_are_uneven_over_groups_at_most_at_5_percent(repeated: Repeated) -> None:
    """Also where seeds move groups apart; by items alone, or by a covariance from so few runs, it is far more often."""
    names = ["a", "b", "c", "d"]

    def happens(generator: np.random.Generator) -> list[bool]:
        comparison = grid(generator, names, 3, 200, 0.1)
        weights = {"a": 1.0, "b": -1.0}
        changes = [
            contrasts.difference(*(comparison.over_runs(v, f"auc_len.{g}") for v in "ab")) for g in comparison.groups
        ]
        seeds = comparison.seeds("sft", tuple(f"auc_len.{group}" for group in comparison.groups)).covariance * 2 / 3
        apart = np.array([change.value for change in changes])
        k = (np.eye(4) - 1 / 4)[:3]
        between = k @ (contrasts.covariance(changes, comparison.texts) + seeds) @ k.T
        full = reference.chi2.sf((k @ apart) @ np.linalg.solve(between, k @ apart), 3)
        return [
            comparison.heterogeneity(weights).p < 0.05,
            contrasts.heterogeneity(changes, comparison.texts).p < 0.05,
            full < 0.05,
        ]

    spherical, items_only, full = repeated.events(happens)
    _, high = repeated.bounds(0.05)
    assert repeated.times * 0.01 < spherical <= high
    assert items_only > high
    assert full > high


def test_a_planted_difference_of_variants_is_found_as_often_as_the_formula_says(repeated: Repeated) -> None:
    found: list[Contrast] = []

    def happens(generator: np.random.Generator) -> bool:
        contrast = grid(generator, ["a", "b", "c", "d"], 3, 200, 0.1).contrast({"a": 1.0, "b": -1.0}, "piqa")
        shifted = Estimate(contrast.estimate.value + 0.3, contrast.estimate.se, 0, 0, 0)
        found.append(contrast)
        return contrasts.p_value(shifted, contrast.degrees) < 0.05

    often = int(repeated.events(happens)) / repeated.times
    said = [
        reference.nct.sf(reference.t.ppf(0.975, each.degrees), each.degrees, 0.3 / each.estimate.se)
        for each in found[:200]
    ]
    assert 0.3 < np.mean(said) < 0.97
    assert abs(often - np.mean(said)) < 0.06


def test_the_gate_shuts_at_5_percent_where_all_fell_by_the_margin_and_at_80_where_it_says(repeated: Repeated) -> None:
    """Without Holm, or against a margin of 0, it would shut far more often."""
    margin, one = 0.02, ("b", "piqa")
    least: list[float] = []

    def shifted(gate: Gate, falls: dict[Key, float]) -> Gate:
        found = {
            key: replace(each, estimate=replace(each.estimate, value=each.estimate.value - falls[key]))
            for key, each in gate.family.found.items()
        }
        return replace(gate, family=replace(gate.family, found=found))

    def happens(generator: np.random.Generator) -> list[bool]:
        comparison = grid(generator, ["a", "b"], 1, 200, 0.0)
        measures = [*comparison.tasks, *(f"auc_len.{group}" for group in comparison.groups)]
        gate = Gate(Family.of(comparison, {"b": ("a", "b")}, measures), dict.fromkeys(measures, margin))
        fallen = shifted(gate, dict.fromkeys(gate.family.found, margin))
        least.append(gate.minimum_detectable_effect(one))
        seen = shifted(gate, dict.fromkeys(gate.family.found, 0.0) | {one: float(np.mean(least[:200]))})
        return [
            bool(fallen.fallen),
            min(each.p_below(-margin) for each in fallen.family.found.values()) < 0.05,
            bool(replace(fallen, margins=dict.fromkeys(measures, 0.0)).fallen),
            one in seen.fallen,
        ]

    level, unadjusted, no_margin, power = repeated.events(happens)
    _, high = repeated.bounds(0.05)
    assert repeated.times * 0.02 < level <= high  # the groups overlap, so Holm is a little strict
    assert unadjusted > high
    assert no_margin > high
    assert repeated.holds(power, 0.8)
