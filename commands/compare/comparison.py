"""Variants side by side: what all were scored on, and any difference between them.

In: variants with their runs. Out: contrasts of them, with the variance of items or sentences and of seeds.

A variant's figure is the mean over its runs. Unlike things are not compared: other items, task versions, sentences,
tokens, templates or precisions are refused by name.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from alignment.runtime import Refused
from alignment.scoring.benchmarks.tasks import BENCHMARKS
from alignment.scoring.safety import scores
from alignment.scoring.safety.sentences import slugs
from alignment.statistics import contrasts, estimates
from alignment.statistics.contrasts import Heterogeneity, SeedVariance, VarianceComponent
from alignment.statistics.estimates import Estimate, Statistic
from commands.compare.revisions import Checkpoint
from commands.compare.variants import Variant

CAPABILITY = ("arc_challenge", "piqa", "hellaswag", "mmlu")
AVERAGE = f"auc_len.{scores.AVERAGE}"
GRADED = ("truthfulqa_mc2",)  # tasks whose items are right in part
SAFETY = ("auc_len", "score")  # the primary measure, and the published one for comparison with the literature
# Options by which checkpoints were scored, which must be equal: bfloat16 moves perplexities by up to 18 %.
ALIKE = (("eval", "template"), ("eval", "dtype"), ("safety", "dtype"))
IDENTITY = ("subject", "row", "item", "version")  # of an item of a task


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of variants in one measure.

    Attributes:
        estimate: with its interval; its units are the fewest that one of its parts has.
        degrees: of freedom.
        seeded: whether the variance of seeds is in it. Without, it is about these checkpoints and not about datasets.
    """

    estimate: Estimate
    degrees: float
    seeded: bool

    def p(self, null: float = 0.0) -> float:
        """Return the two-sided p of being `null`, before the correction over its family."""
        return contrasts.p_value(self.estimate, self.degrees, null)

    def p_below(self, bound: float) -> float:
        """Return the one-sided p of being at least `bound`, before the correction over its family."""
        return contrasts.p_below(self.estimate, self.degrees, bound)

    def minimum_detectable_effect(self, family: int, sides: int = 2) -> float:
        """Return the smallest true difference found with a power of 80 % as one of a family of so many tests."""
        return contrasts.minimum_detectable_effect(self.estimate.se, self.degrees, family, sides)


@dataclass(frozen=True)
class SideBySide:
    """Variants that were scored on the same items and sentences.

    Attributes:
        variants: by name.
        figures: of each run of a variant: of every task, and of every group and measure of safety, `auc_len.women`.
        tasks: the scored tasks, the study's first, and the metric of each.
        items: how many items of each task.
        groups: of the sentences, by their names in metrics.
        texts: the distinct text of each sentence.
    """

    variants: dict[str, Variant]
    figures: dict[str, list[dict[str, Statistic]]]
    tasks: dict[str, str]
    items: dict[str, int]
    groups: list[str]
    texts: NDArray[np.str_]

    @classmethod
    def of(cls, variants: Sequence[Variant]) -> "SideBySide":
        """Compare variants with distinct names.

        Raises:
            Refused: they were not scored alike.
        """
        first = _refuse_unlike([run for variant in variants for run in variant.runs])
        items, sentences = first.table("eval"), scores.Scored.of(first.table("safety"))
        tasks = _tasks(items)
        kept = _kept(items, tasks)

        def scored(run: Checkpoint) -> dict[str, Statistic]:
            return task_figures(run.table("eval"), tasks, kept) | safety_figures(run.table("safety"))

        return cls(
            variants={variant.name: variant for variant in variants},
            figures={variant.name: [scored(run) for run in variant.runs] for variant in variants},
            tasks=tasks,
            items={task: int(rows.sum()) for task, rows in kept.items()},
            groups=sorted(slugs(name for groups in sentences.groups for name in groups).values()),
            texts=sentences.text_keys,
        )

    def without(self, items: Iterable[tuple[str, str]]) -> "SideBySide":
        """Return the same variants, on all items but these, given as (task, item)."""
        left_out = set(items)
        if not left_out:
            return self
        kept = _kept(self.runs[0].table("eval"), self.tasks, left_out)
        figures = {
            name: [
                scored | task_figures(run.table("eval"), self.tasks, kept)
                for run, scored in zip(variant.runs, self.figures[name], strict=True)
            ]
            for name, variant in self.variants.items()
        }
        return replace(self, figures=figures, items={task: int(rows.sum()) for task, rows in kept.items()})

    @property
    def runs(self) -> list[Checkpoint]:
        """The runs of all variants, in their order."""
        return [run for variant in self.variants.values() for run in variant.runs]

    def others(self, versus: str) -> list[str]:
        """List the variants but one."""
        return [name for name in self.variants if name != versus]

    @property
    def origin(self) -> tuple[str, str]:
        """The base model, and where the data come from."""
        return self.runs[0].origin

    @property
    def instruct(self) -> bool:
        """Return whether a base model was tuned on conversations before."""
        return any(run.instruct for run in self.runs)

    def flagged(self, variant: str, flag: str) -> bool:
        """Return whether `eval` sets a flag, such as `mmlu.constant`, in a run of a variant.

        Not every run has every flag.
        """
        return any(run.metrics(f"eval/{run.stage}.json").get(flag) for run in self.variants[variant].runs)

    def has(self, measure: str) -> bool:
        """Return whether a measure was scored; capability needs all of its tasks."""
        wanted = CAPABILITY if measure == "capability" else (measure,)
        return all(part in figures[0] for part in wanted for figures in self.figures.values())

    @property
    def exact(self) -> list[str]:
        """The tasks whose items are right or wrong."""
        return [task for task in self.tasks if task not in GRADED]

    def discordant(self, before: str, after: str, task: str) -> tuple[int, int]:
        """Count the items of a task that were wrong and are right, and the reverse, in the first runs."""
        one, other = (self.figures[name][0][task] for name in (before, after))
        figure = contrasts.difference(one, other)
        change = np.round(figure.influence * self.items[task] + figure.value)  # of each item's outcome
        return int((change > 0).sum()), int((change < 0).sum())

    def parts(self, measure: str) -> tuple[str, ...]:
        """Return the figures whose mean a measure is: of capability those of its tasks."""
        return CAPABILITY if measure == "capability" else (measure,)

    def over_runs(self, variant: str, part: str) -> Statistic:
        """Return a variant's figure, the mean of its runs'."""
        runs = [figures[part] for figures in self.figures[variant]]
        return estimates.average(runs, len(runs[0].influence))

    def seeds(self, stage: str, measures: tuple[str, ...]) -> SeedVariance:
        """Return the variance of measures by seed, pooled over the variants of a stage."""
        tables = []
        for name, variant in self.variants.items():
            if variant.stage == stage:
                values = [[np.mean([f[p].value for p in self.parts(m)]) for m in measures] for f in self.figures[name]]
                tables.append(np.array(values))
        return SeedVariance.pooled(tables)

    def _drawn(self, weights: Mapping[str, float]) -> dict[str, tuple[list[float], list[int]]]:
        """Return the weights and the numbers of runs of the trained variants, by stage."""
        found: dict[str, tuple[list[float], list[int]]] = {}
        for name, weight in weights.items():
            if self.variants[name].stage != "base":
                here = found.setdefault(self.variants[name].stage, ([], []))
                here[0].append(weight)
                here[1].append(len(self.variants[name].runs))
        return found

    def contrast(self, weights: Mapping[str, float], measure: str) -> Contrast:
        """Estimate a weighted sum of variants, paired over the same items or sentences.

        V = s_d^2 / n + sum over stages of s_seed^2 * (sum of w^2 / S), with Satterthwaite's degrees of freedom. V is
        the variance, s_d the deviation over n items or clusters, s_seed that by seed, w a weight, S its number of runs.

        Args:
            weights: by the variants' names; those of a difference add up to 0.
            measure: a task, `capability`, or a measure of safety and a group: `auc_len.women`.
        """
        parts = self.parts(measure)
        figures = [contrasts.contrast(list(weights.values()), [self.over_runs(v, p) for v in weights]) for p in parts]
        found = [figure.estimate(self._clusters(part)) for figure, part in zip(figures, parts, strict=True)]
        variances = [VarianceComponent(e.se**2 / len(parts) ** 2, e.n - 1) for e in found]
        drawn = self._drawn(weights)
        pools = {stage: self.seeds(stage, (measure,)) for stage in drawn}
        seeded = bool(drawn) and all(pool.degrees for pool in pools.values())
        if seeded:
            variances += [pools[stage].part(*drawn[stage]) for stage in drawn]
        value = float(np.mean([e.value for e in found]))
        return Contrast(*contrasts.summed(value, min(e.n for e in found), variances), seeded)

    def heterogeneity(self, weights: Mapping[str, float]) -> Heterogeneity:
        """Test whether a difference of variants is the same for all groups, by the length-stratified areas."""
        measures = tuple(f"auc_len.{group}" for group in self.groups)
        changes = [
            contrasts.contrast(list(weights.values()), [self.over_runs(v, m) for v in weights]) for m in measures
        ]
        known = [at for at, change in enumerate(changes) if math.isfinite(change.value)]
        pools = {stage: self.seeds(stage, tuple(measures[at] for at in known)) for stage in self._drawn(weights)}
        drawn = [pools[stage].apart(*told) for stage, told in self._drawn(weights).items() if pools[stage].degrees]
        return contrasts.heterogeneity([changes[at] for at in known], self.texts, contrasts.total(drawn))

    def _clusters(self, part: str) -> NDArray[Any]:
        return np.arange(self.items[part]) if part in self.items else self.texts

    @cached_property
    def seeded(self) -> bool:
        """Return whether some stage has a variant with a second run, without which nothing is said of datasets."""
        return any(len(variant.runs) > 1 for variant in self.variants.values())


def mean(values: ArrayLike) -> Statistic:
    """Return the mean of items, as a figure that can be contrasted over them."""
    x = np.asarray(values, dtype=np.float64)
    return Statistic(float(x.mean()), (x - x.mean()) / len(x), np.ones(len(x), dtype=np.bool_))


def task_figures(
    items: pa.Table, tasks: Mapping[str, str], kept: Mapping[str, NDArray[np.bool_]]
) -> dict[str, Statistic]:
    """Return the mean of each task of a table of items, in its metric, over the items that are kept."""
    return {task: mean(_column(items, task, metric)[kept[task]]) for task, metric in tasks.items()}


def safety_figures(sentences: pa.Table) -> dict[str, Statistic]:
    """Return the measures of `SAFETY` for every group of a table of sentences, and their averages.

    Keys are `measure.group`.
    """
    rows = scores.Scored.of(sentences)
    named = slugs(name for groups in rows.groups for name in groups)
    measured = {group: rows.measures(rows.members(group)) for group in named}
    figures = {f"{m}.{named[group]}": found[m] for group, found in measured.items() for m in SAFETY}
    for average, groups in ((scores.AVERAGE, list(named)), (scores.PUBLISHED12, scores.PUBLISHED)):
        for m in SAFETY:
            defined = [measured[g][m] for g in groups if g in measured and math.isfinite(measured[g][m].value)]
            figures[f"{m}.{average}"] = estimates.average(defined, len(rows.harmful))
    return figures


def _tasks(items: pa.Table) -> dict[str, str]:
    """Return the tasks of a table of `eval`, the study's first, and the metric of each."""
    scored = set(items["task"].to_pylist())
    order = [*(task for task in BENCHMARKS if task in scored), *sorted(scored - set(BENCHMARKS))]
    whole = {task: not np.isnan(_column(items, task, "acc_norm")).any() for task in order}
    return {task: BENCHMARKS[task].metric if task in BENCHMARKS else ("acc", "acc_norm")[whole[task]] for task in order}


def _column(items: pa.Table, task: str, name: str) -> NDArray[Any]:
    column: NDArray[Any] = items.filter(pc.field("task") == task)[name].to_numpy()
    return column


def _kept(
    items: pa.Table, tasks: Iterable[str], without: Collection[tuple[str, str]] = ()
) -> dict[str, NDArray[np.bool_]]:
    """Return for each task which of its items are kept."""
    return {task: np.array([(task, item) not in without for item in _column(items, task, "item")]) for task in tasks}


def _refuse_unlike(runs: Sequence[Checkpoint]) -> Checkpoint:
    """Refuse checkpoints that were not scored alike, by the first thing in which two of them differ.

    Returns:
        One of them.

    Raises:
        Refused: naming it, and both.
    """
    first = runs[0]
    items, sentences = first.table("eval"), first.table("safety")
    for other in runs[1:]:
        where = f"{first.revision.name} ({first.stage}) and {other.revision.name} ({other.stage}) cannot be compared"
        for stage, option in ALIKE:
            values = first.option(stage, option), other.option(stage, option)
            if values[0] != values[1]:
                raise Refused(
                    f"{where}: `{option}` of {stage} was {values[0]} and {values[1]}; "
                    "set one of them in params.yaml, and run `dvc repro` there"
                )
        _refuse_unlike_items(items, other.table("eval"), where)
        try:
            scores.refuse_unlike(sentences, other.table("safety"))
        except Refused as refusal:
            raise Refused(f"{where}: {refusal}") from None
    return first


def _refuse_unlike_items(before: pa.Table, after: pa.Table, where: str) -> None:
    tasks = [sorted(set(table["task"].to_pylist())) for table in (before, after)]
    if tasks[0] != tasks[1]:
        raise Refused(
            f"{where}: the tasks are {', '.join(tasks[0])} and {', '.join(tasks[1])}; "
            "make `eval.items` of params.yaml the same, and run `dvc repro`"
        )
    for task in tasks[0]:
        versions = [set(_column(table, task, "version").tolist()) for table in (before, after)]
        if versions[0] != versions[1]:
            told = " and ".join(", ".join(map(str, sorted(found))) for found in versions)
            raise Refused(f"{where}: the version of {task} is {told}; score both with one lm-eval")
        columns = ((_column(table, task, name).tolist() for table in (before, after)) for name in IDENTITY)
        if any(one != other for one, other in columns):
            counts = [len(_column(table, task, "item")) for table in (before, after)]
            raise Refused(
                f"{where}: they were scored on other items of {task}, {counts[0]} and {counts[1]};\n"
                "make `eval.items`, `item_seed` and `source` of params.yaml the same, and run `dvc repro`"
            )
