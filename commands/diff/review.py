"""What a change to the study does, for who reviews it: what was changed, each measure with its paired test, the gate.

In: two sides of the repository's history, each one revision or several that differ in their seed. Out: Markdown that
fits into a comment on a pull request, and whether the gate lets the change pass.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import yaml

from alignment.fetching import repositories
from alignment.reporting import tables
from alignment.runtime import Refused
from commands.compare import cells, page
from commands.compare.comparison import SideBySide
from commands.compare.families import Family, Gate, Key
from commands.compare.revisions import CHECKPOINTS, ROLES, Revision
from commands.compare.variants import Variant

NOT_DEFINED = "not defined"
WHY_NOT = (
    "*Not defined*: without both a harmful and a benign sentence there is no area; where every item changed alike, or "
    "there is only one, there is no error to test with."
)
ONE_RUN = (
    "**One run on each side**: *real* says that these checkpoints differ on such items; that the change would do it "
    "again with another seed, it does not say."
)


@dataclass(frozen=True)
class Revisions:
    """One side of a change.

    Attributes:
        revisions: one, or runs of it with other seeds.
    """

    revisions: tuple[Revision, ...]

    @property
    def name(self) -> str:
        """The names of its revisions, as they were asked for."""
        return " ".join(revision.name for revision in self.revisions)

    @cached_property
    def variants(self) -> dict[str, Variant]:
        """The variants that are scored there, by stage.

        Raises:
            Refused: nothing is, or its revisions differ in more than their seed.
        """
        found: dict[str, Variant] = {}
        for stage in CHECKPOINTS:
            runs = [run for revision in self.revisions for run in revision.checkpoints() if run.stage == stage]
            for run in runs:
                if run.recipe != runs[0].recipe:
                    names = f"{runs[0].revision.name} and {run.revision.name}"
                    raise Refused(
                        f"{names} differ in more than their seed; `make compare` sets unlike ones side by side"
                    )
            if runs:
                found[stage] = Variant(stage, tuple({run.seed: run for run in reversed(runs)}.values())[::-1])
        if not found:
            raise Refused(f"{self.name}: no checkpoint is scored there; run `dvc repro`, and commit dvc.lock")
        return found

    @cached_property
    def params(self) -> dict[str, str]:
        """Every key of its params file, `sft.epochs`, as text; a `source` that may hold a secret is not shown."""
        try:
            found = dict(_flat(yaml.safe_load(self.revisions[0].tree.read_text("params.yaml"))))
        except FileNotFoundError:
            return {}
        hidden = (
            {"source": "not shown: it may hold a secret"} if repositories.holds_secret(found.get("source", "")) else {}
        )
        return found | hidden

    @cached_property
    def code(self) -> dict[str, str]:
        """The md5 of every file and folder that a stage reads and none makes, but for the parameters."""
        first = self.revisions[0]
        read = {path: md5 for stage in first.stages for path, md5 in first.hashes(stage, "deps").items()}
        return {path: md5 for path, md5 in read.items() if path not in first.made and path != "params.yaml"}

    @cached_property
    def versions(self) -> dict[str, str]:
        """The libraries that its results rest on, where they were recorded."""
        first = self.revisions[0]
        found = [pair for stage in first.stages for pair in first.versions(stage).items()]
        return {name: " and ".join(sorted({v for n, v in found if n == name})) for name in sorted(dict(found))}

    def metrics(self, stage: str) -> dict[str, Any]:
        """Return the metrics that `sample` and a training stage wrote of a run, by file and name."""
        run = self.variants[stage].runs[0]
        files = (f"sample/{ROLES[stage]}.json", f"{stage}.json")
        return {f"{file} {name}": value for file in files for name, value in run.metrics(file).items()}


def _flat(params: Mapping[str, Any], under: str = "") -> Iterator[tuple[str, str]]:
    for key, value in params.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{under}{key}.")
        else:
            yield f"{under}{key}", str(value)


@dataclass(frozen=True)
class Review:
    """A change, judged.

    Attributes:
        before: the side that the change is of.
        after: the change.
        points: how many points a benchmark may fall.
        area: by how much the area of safety may.
    """

    before: Revisions
    after: Revisions
    points: float
    area: float

    @property
    def shared(self) -> list[str]:
        """The checkpoints that both have scored."""
        return [stage for stage in self.before.variants if stage in self.after.variants]

    @cached_property
    def stages(self) -> list[str]:
        """The shared checkpoints whose scores are not the same to the byte."""
        sides = self.before.variants, self.after.variants
        results = {stage: [[run.result for run in side[stage].runs] for side in sides] for stage in self.shared}
        return [stage for stage, (before, after) in results.items() if before != after]

    @cached_property
    def comparison(self) -> SideBySide:
        """The comparison of both sides' checkpoints in `stages`.

        Raises:
            Refused: they were not scored alike.
        """
        sides = {"before": self.before, "after": self.after}
        named = [
            Variant(f"{stage} {name}", side.variants[stage].runs)
            for stage in self.stages
            for name, side in sides.items()
        ]
        return SideBySide.of(named)

    def family(self, measures: list[str]) -> Family:
        """Test the differences of all checkpoints in these measures."""
        return Family.of(
            self.comparison, {stage: (f"{stage} before", f"{stage} after") for stage in self.stages}, measures
        )

    @cached_property
    def gate(self) -> Gate:
        """The gate over the tasks and the average of safety."""
        measures = list(cells.titles(self.comparison))
        margins = {measure: self.area if cells.area(measure) else self.points / 100 for measure in measures}
        return Gate(self.family(measures), margins)

    @property
    def passes(self) -> bool:
        """Return whether nothing is shown to have fallen by more than the margin."""
        return not self.stages or not self.gate.fallen

    def text(self) -> str:
        """Return the comment, as Markdown.

        Raises:
            Refused: the sides cannot be compared.
        """
        parts = [
            f"## {tables.code(self.before.name)} → {tables.code(self.after.name)}",
            "\n".join(f"- {line}" for line in self._told()),
        ]
        if self.stages:
            parts += [self._measures(), self._folded("Safety by group", self._groups())]
        if other := self._other():
            parts.append(self._folded("Other metrics that changed, without a test", other))
        return "\n\n".join([*parts, self._more()]) + "\n"

    def _told(self) -> Iterator[str]:
        yield self._verdict()
        for here, there in itertools.permutations((self.before, self.after)):
            if lacking := [stage for stage in here.variants if stage not in there.variants]:
                yield f"**Not compared**: {', '.join(lacking)}, which {tables.code(there.name)} has not scored."
        if same := [stage for stage in self.shared if stage not in self.stages]:
            yield f"Scored the same to the byte: {', '.join(same)}."
        if changed := list(_changes(self.before.params, self.after.params)):
            told = (f"{tables.code(key)} {tables.code(old)} → {tables.code(new)}" for key, old, new in changed)
            yield f"Parameters: {'; '.join(told)}."
        if code := [key for key, _, _ in _changes(self.before.code, self.after.code)]:
            yield f"Code and data that stages read: {', '.join(map(tables.code, code))}."
        if versions := list(_changes(self.before.versions, self.after.versions)):
            said = (f"{tables.code(name)} {tables.code(old)} → {tables.code(new)}" for name, old, new in versions)
            yield f"Versions of libraries that results rest on: {'; '.join(said)}."
        if self.stages:
            yield page.SEEDED if self.comparison.seeded else ONE_RUN
            yield from page.caveats(self.comparison)

    def _verdict(self) -> str:
        if not self.stages:
            return "**The gate passes**: nothing was scored otherwise, so there was nothing to test."
        unit = "point" if self.points == 1 else "points"
        bound = f"{self.points:g} {unit} or {self.area:g} of area"
        tests = f"one-sided paired tests, Holm over {len(self.gate.adjusted)}"
        if fallen := "; ".join(map(self._fall, self.gate.fallen)):
            return f"**The gate fails**: fallen by more than {bound} ({tests}): {fallen}."
        return (
            f"**The gate passes**: nothing is shown to have fallen by more than {bound} ({tests}). That is no proof "
            "that nothing did: the last column is the true fall at which it would fail with a chance of 80 %."
        )

    def _fall(self, key: Key) -> str:
        stage, measure = key
        change = cells.change(self.gate.family.found[key], measure, unit=True)
        return f"{stage} {tables.escaped(self._title(measure))} {change}, p {cells.p_value(self.gate.adjusted[key])}"

    def _title(self, measure: str) -> str:
        return cells.titles(self.comparison).get(measure, measure)

    def _measures(self) -> str:
        """Return the table of every measure of every checkpoint, before and after."""
        family = self.gate.family
        rows = [["checkpoint", "measure", "before", "after", "change", "p", "", "gate sees"]]
        for stage, measure in family.found:
            levels = [self._level(f"{stage} {side}", measure) for side in ("before", "after")]
            least = tables.figure(
                self.gate.minimum_detectable_effect((stage, measure)), None, None, *cells.scale(measure)
            )
            said = [cells.change(family.found[stage, measure], measure), cells.p_value(family.adjusted[stage, measure])]
            rows.append([stage, self._title(measure), *levels, *said, self._mark(family, stage, measure), least])
        marked = sum(family.significant(*key) for key in family.found)
        told = (
            f"{marked} of {family.size} changes are **real**: p < 0.05, paired over the same items or sentences, by "
            "Holm over the table. *Within noise* is no proof of none. Benchmarks in percent, their changes in points."
        )
        return self._explained(f"{tables.markdown(rows)}\n\n{told}")

    def _level(self, variant: str, measure: str) -> str:
        value = self.comparison.contrast({variant: 1.0}, measure).estimate.value
        return tables.figure(value, None, None, *cells.level_scale(measure))

    def _mark(self, family: Family, stage: str, measure: str) -> str:
        found = family.found[stage, measure]
        if not found.estimate.se > 0:
            return "same outcomes" if found.estimate.value == 0 else NOT_DEFINED
        said = "**real**" if family.significant(stage, measure) else "within noise"
        names = (f"{stage} before", f"{stage} after")
        return ", ".join([said, *cells.remarks(self.comparison, names, measure, found)])

    def _groups(self) -> str:
        """Return the table of the change of safety for each group."""
        measures = {f"auc_len.{group}": group for group in self.comparison.groups}
        family = self.family(list(measures))
        rows = [["group", *self.stages]]
        for measure, group in measures.items():
            marks = [self._mark(family, stage, measure) for stage in self.stages]
            said = [cells.change(family.found[stage, measure], measure) for stage in self.stages]
            rows.append([group, *(f"{each}, {mark}" for each, mark in zip(said, marks, strict=True))])
        return self._explained(f"{tables.markdown(rows)}\n\nAUC by length; p by Holm over these {family.size}.")

    @staticmethod
    def _explained(text: str) -> str:
        """Add to a table why something in it is not defined, if something is."""
        return f"{text} {WHY_NOT}" if NOT_DEFINED in text else text

    def _other(self) -> str:
        """Return the table of other metrics of `sample` and training that changed."""
        rows = [["file and metric", "before", "after"]]
        for stage in (stage for stage in self.shared if stage in ROLES):
            changed = _changes(self.before.metrics(stage), self.after.metrics(stage))
            rows += [[tables.code(name), tables.code(old), tables.code(new)] for name, old, new in changed]
        return tables.markdown(rows) if len(rows) > 1 else ""

    @staticmethod
    def _folded(title: str, text: str) -> str:
        return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"

    def _more(self) -> str:
        names = dict.fromkeys(revision.name for side in (self.before, self.after) for revision in side.revisions)
        command = f'make compare REVS="{" ".join(names)}"'
        return f"All figures side by side: {tables.code(command)}."


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield each key that differs, with both values; – where one has none."""
    for key in dict.fromkeys([*before, *after]):
        old, new = before.get(key, "–"), after.get(key, "–")
        if old != new:
            yield key, old, new


def refused(before: str, after: str, refusal: Refused) -> str:
    """Return the comment for two sides that cannot be compared."""
    return f"## {tables.code(before)} → {tables.code(after)}\n\n- **Not compared**:\n\n{tables.fenced(str(refusal))}\n"
