"""What the page of a comparison says: sections of text, tables and figures, for any way of showing them.

In: a comparison of variants. Out: sections in the order in which they are read. Nothing here says more than its test:
a figure has its interval, a difference its p and what could have been seen, and one seed gives no verdict.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from alignment.reporting import tables
from alignment.reporting.tables import TITLES
from alignment.scoring.safety import scores
from alignment.statistics.contrasts import Heterogeneity
from commands.compare import cells, claims, drawings, provenance
from commands.compare.blocks import Answer, Cell, Figure, Part, Points, Prompt, Section, Table
from commands.compare.comparison import AVERAGE, SideBySide
from commands.compare.families import Family
from commands.compare.variants import Variant

HOUSE = Path(__file__).parents[2]
QUESTION = "What does a dataset do to a model's alignment?"
ONE_SEED = (
    "**One seed**: an interval here is about these checkpoints, over items or sentences alone. That two checkpoints "
    "differ says nothing about the datasets; `study.seeds: 3` in params.yaml would."
)
SEEDED = (
    "Intervals and tests hold the variance of items or sentences and of seeds, pooled over the variants of a stage."
)
INSTRUCT = (
    "**The base is an instruct model**, named start: what it learnt before is in every row, so no claim gets a verdict."
)
MINIATURE = "**The data are the embedded miniature**: a rehearsal that shows the pipeline, not a result."
PAIRED = (
    "Paired over the same items, or the same sentences clustered by text. p by Holm over the {family} differences of "
    "this table; MDE is the smallest true difference that would be found with a chance of 80 %."
)
GAINED = "Items gained and lost, in the first run of each:"
RULES = (
    "Rules that stood before the results: confirmed is p < 0.05 by Holm over these {family} tests in the claimed "
    "direction; refuted is the same in the other direction, or a 95 % interval that excludes 1 point, or 0.01 of area; "
    "otherwise undecided. A claim about curation needs as many demonstrations, or trained tokens, on both sides; any "
    "other is a claim about a recipe."
)
AGREEMENT = (
    f"The base must agree within rounding (± {claims.ROUNDING}), or the protocol differs. Trained rows are compared in "
    "standard deviations of runs by seed: the items are the same, so their error says nothing here."
)
MOVING_ZERO = (
    "The published score has a zero that moves with the model: its null is what this very model scores when its "
    "perplexities are shuffled over a group's sentences, with 95 % of the shuffles (means over runs). "
    "docs/safety-score.md says what to read instead."
)
ILLUSTRATION = (
    "One greedy answer of the first seed's run to each of eight fixed prompts: an illustration, not a measure. All are "
    "in `data/eval/CHECKPOINT.answers.jsonl` of the revisions below."
)
BACK = (
    "A commit comes back with the command beside it, and `dvc repro` there makes it again; dvc.lock there has the "
    "command of every stage. An experiment of another clone is brought first by `dvc exp pull REMOTE NAME`."
)
DESCRIBED = {  # of `sample`, and what the table calls it
    "rows.kept": "rows",
    "tokens.prompt.mean": "prompt tokens",
    "tokens.reply.mean": "reply tokens",
    "turns.mean": "turns",
    "diversity.reply": "diversity",
    "duplicates.reply": "repeated replies",
    "contaminated.items": "benchmark items found",
}
TRAINED = {  # of `sft` and `dpo`, and what the table calls it
    "loss.heldout": ("held-out loss", 3),
    "heldout.accuracy": ("preference accuracy", 3),
    "heldout.kl": ("KL from SFT, nats a token", 5),
}


def sections(comparison: SideBySide, versus: str, command: str) -> Iterator[Section]:
    """Yield the page's sections.

    In their order: what was compared, both tables, the verdicts, every difference to `versus`, and what explains them.

    Args:
        comparison: of the variants.
        versus: the variant that the others are compared to.
        command: what makes this page again.
    """
    pairs = {name: (versus, name) for name in comparison.others(versus)}
    by_task = Family.of(comparison, pairs, list(cells.titles(comparison)))
    by_group = Family.of(comparison, pairs, [f"auc_len.{group}" for group in comparison.groups])
    rest = _uncontaminated(comparison)
    yield _head(comparison, versus, by_task, by_group, rest)
    yield _levels(comparison)
    if judged := claims.judge(comparison):
        yield _claims(comparison, judged)
    yield _safety(comparison)
    if by_task.found:
        yield _differences(comparison, versus, by_task)
        yield _by_group(comparison, versus, by_group)
    if effects := _effects(comparison):
        yield _grid(comparison, effects)
    yield _contaminated(comparison, rest)
    if published := claims.published(comparison, HOUSE / "data/published"):
        yield _published(published)
    if any(variant.corpora for variant in comparison.variants.values()):
        yield _datasets(comparison, versus)
        yield _training(comparison)
    yield _answers(comparison)
    yield _sources(comparison)
    yield _origins(comparison, command)


def _head(comparison: SideBySide, versus: str, by_task: Family, by_group: Family, rest: SideBySide) -> Section:
    """Return the first section: what is compared, what differs, the detectable effects, and the caveats."""
    base, source = comparison.origin
    others = comparison.others(versus)
    told = (
        f"{len(comparison.variants)} variants, {len(comparison.runs)} models; base model `{base.partition('#')[0]}`, "
        f"data from `{source}`. Compared to {versus}: {'; '.join(others) or 'nothing'}."
    )
    found = [] if comparison.seeded else [ONE_SEED]
    found += caveats(comparison)
    found += [f"**Other versions of a library**: {said}." for said in provenance.versions(comparison)]
    found += _summary(comparison, versus, by_task, by_group) if others else []
    found += [
        f"{TITLES[task]} is {said}: {_named(names, comparison.variants)}." for task, said, names in _flagged(comparison)
    ]
    if touched := _touched(comparison, rest):
        found.append(f"**Found in a dataset**: {_listed(touched)}; see below.")
    items = ", ".join(f"{count} of {TITLES.get(task, task)}" for task, count in comparison.items.items())
    scored = (
        f"All were scored on the same items ({items}) and the same sentences. Benchmarks in percent; safety from 0 to "
        f"1 (½: harmful and benign sentences are equally likely); 95 % intervals. {SEEDED if comparison.seeded else ''}"
    )
    title = "What the data changed" if comparison.seeded else "How these checkpoints differ"
    return Section(title, [told, Points(found), scored.strip()])


def caveats(comparison: SideBySide) -> list[str]:
    """List what about the base model and the data keeps any figure from being a result."""
    found = [(INSTRUCT, comparison.instruct), (MINIATURE, comparison.origin[1] == "mini")]
    return [text for text, holds in found if holds]


def _summary(comparison: SideBySide, versus: str, by_task: Family, by_group: Family) -> Iterator[str]:
    """Yield what differs significantly, what does not, and the minimum detectable effects."""
    some = sum(by_task.significant(*each) for each in by_task.found)
    kind = "" if comparison.seeded else " of checkpoints"
    yield f"**Significant**: {some} of {by_task.size} differences{kind} to {versus} (p < 0.05 by Holm over them)."
    differ = {name: _differs(comparison, versus, by_task, name) for name in comparison.others(versus)}
    same = [name for name, said in differ.items() if not said]
    told = f", so all of {_named(same, differ)}" if same and some else ""
    yield f"**Not significant**: {'all others' if some else 'all'}{told}. That is no evidence of none."
    least = {title: _least(measure, title, by_task) for measure, title in cells.titles(comparison).items()}
    unknown = ", ".join(title for title, said in least.items() if not said)
    told = "; ".join(filter(None, least.values())) or "nothing that can be told"
    still = (
        f" Not known of {unknown}: not one outcome changed, so no standard error can be estimated." if unknown else ""
    )
    yield f"**Could have been seen**, with a chance of 80 %: {told}.{still}"
    yield from (f"**{name}**: {said}." for name, said in differ.items() if said)
    some = sum(by_group.significant(*each) for each in by_group.found)
    yield f"**By group**: {some} of {by_group.size} differences{kind} in safety are significant, by Holm over these."


def _named(names: Sequence[str], of: Iterable[str]) -> str:
    """Return the variants' names, or "all variants"."""
    return "all variants" if set(names) == set(of) else "; ".join(names)


def _differs(comparison: SideBySide, versus: str, family: Family, name: str) -> str:
    said = []
    for measure, title in cells.titles(comparison).items():
        if family.significant(name, measure):
            found = family.found[name, measure]
            remarks = "".join(f" ({each})" for each in cells.remarks(comparison, (name, versus), measure, found))
            said.append(f"{title} {cells.change(found, measure, unit=True)}{remarks}")
    return "; ".join(said)


def _least(measure: str, title: str, family: Family) -> str:
    """Return a measure's minimum detectable effects: for the variants of the least and the largest error."""
    ends = [tables.figure(end, None, None, *cells.scale(measure)) for end in family.minimum_detectable_effect(measure)]
    return f"{title} {' to '.join(dict.fromkeys(ends))}{'' if cells.area(measure) else ' points'}" if ends else ""


def _flagged(comparison: SideBySide) -> Iterator[tuple[str, str, list[str]]]:
    """Yield each task with flagged answers, what is wrong with them, and the variants with such a run."""
    for task in (task for task in cells.FLAGGED if task in comparison.tasks):
        for flag, (said, _) in cells.FLAGS.items():
            if names := [name for name in comparison.variants if comparison.flagged(name, f"{task}.{flag}")]:
                yield task, said, names


def _levels(comparison: SideBySide) -> Section:
    """Return the section of the study's first table: one row a variant."""
    measures = cells.titles(comparison)
    heads = {
        **({"capability": "capability"} if comparison.has("capability") else {}),
        **{task: f"{measures[task]} {metric}" for task, metric in comparison.tasks.items()},
        AVERAGE: measures[AVERAGE],
    }
    rows: list[list[str | Cell]] = [["variant", "seeds", *heads.values()]]
    for name, variant in comparison.variants.items():
        runs = _count(len(variant.runs)) if variant.corpora else "–"
        rows.append([name, runs, *(cells.level(comparison, name, measure) for measure in heads)])
    parts: list[Part] = [Table("Every variant on every benchmark, and its safety; 95 % intervals", rows)]
    if comparison.has("capability"):
        says = "Capability against safety: one point a variant, both with 95 % intervals. The numbers: the table above."
        parts.append("Capability is the mean of ARC-C, PIQA, HellaSwag and MMLU.")
        if _known(comparison, AVERAGE):
            parts.append(Figure("tradeoff", says, drawings.tradeoff(comparison)))
    if len(comparison.variants) > 2:
        parts += _best(comparison, [measure for measure in ("capability", AVERAGE) if measure in heads])
    return Section("Capability, truthfulness, safety", parts)


def _count(number: int) -> Cell:
    return Cell(f"{number:,}", number)


def _known(comparison: SideBySide, measure: str) -> dict[str, float]:
    """Return the variants' figures in a measure, but for those that are not defined.

    Safety is not defined without both labels.
    """
    values = {name: comparison.contrast({name: 1.0}, measure).estimate.value for name in comparison.variants}
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _best(comparison: SideBySide, measures: Sequence[str]) -> Iterator[str]:
    """Yield a line on the variants with the highest figures.

    A variant picked as the best of many looks better in its table than it will be again.
    """
    said = []
    for measure in measures:
        if known := _known(comparison, measure):
            first = max(known.values())
            leaders = [name for name, value in known.items() if math.isclose(value, first)]
            told = "none, all are equal" if len(leaders) == len(known) else " and ".join(leaders)
            said.append(f"{cells.titles(comparison).get(measure, measure)}: {told}")
    many = len(comparison.variants)
    if said:
        yield f"Highest, each picked as the best of {many} and so flattered by chance: {'; '.join(said)}."


def _claims(comparison: SideBySide, judged: Sequence[claims.Judged]) -> Section:
    """Return the section of the study's claims whose rows are here, each with its verdict where it can have one."""
    rows: list[list[str | Cell]] = [["letter", "claim", "difference", "p", "verdict"]]
    for claim, found, p, verdict in judged:
        shown = (
            _chi2(found) if isinstance(found, Heterogeneity) else cells.changed(found, claim.measure or "", unit=True)
        )
        seeded = comparison.contrast(claim.weights, AVERAGE).seeded
        none = "none: an instruct base" if comparison.instruct else "" if seeded else "none: one seed"
        rows.append([claim.letter, claim.says, shown, Cell(cells.p_value(p), p), none or verdict])
    told = RULES.format(family=len(judged))
    return Section("The study's claims", [Table("Each claim with its test and its verdict", rows), told])


def _chi2(found: Heterogeneity) -> str:
    return "–" if math.isnan(found.p) else f"χ²({found.degrees}) = {found.chi2:.1f}"


def _safety(comparison: SideBySide) -> Section:
    """Return the section of the study's second table, by the primary measure and by the published one."""
    chance = "one point a variant with its 95 % interval, beside chance in grey"
    groups = [*comparison.groups, scores.AVERAGE]
    areas: list[list[str | Cell]] = [["AUC by length", *comparison.variants]]
    published: list[list[str | Cell]] = [["published score", *comparison.variants]]
    for group in groups:
        areas.append([group, *(cells.level(comparison, name, f"auc_len.{group}") for name in comparison.variants)])
        published.append([group, *(_score(comparison, each, group) for each in comparison.variants.values())])
    parts: list[Part] = [
        Figure("safety", f"AUC by length for each group: {chance}, ½.", drawings.areas(comparison)),
        Table("AUC by length for each group and variant; ½ is chance", areas),
        Figure(
            "scores", f"The published score for each group: {chance}, its null.", drawings.published_scores(comparison)
        ),
        Table("The published score for each group and variant, with its null", published),
        MOVING_ZERO,
    ]
    return Section("Safety by group", parts)


def _score(comparison: SideBySide, variant: Variant, group: str) -> Cell:
    """Return the published score beside what the same models would score by chance."""
    null = tables.figure(*drawings.null(variant, group), 1, 3)
    return cells.level(comparison, variant.name, f"score.{group}")._replace(more=(f"null {null}",))


def _differences(comparison: SideBySide, versus: str, family: Family) -> Section:
    measures = cells.titles(comparison)
    rows: list[list[str | Cell]] = [["variant", *measures.values()]]
    for name in comparison.others(versus):
        rows.append([name, *(cells.tested(comparison, versus, family, name, measure) for measure in measures)])
    caption = f"Differences to {versus} in points, and in area of safety; those with p < 0.05 stand out"
    told = [PAIRED.format(family=family.size), *_alone(comparison)]
    gained: list[Part] = [GAINED, _discordant(comparison, versus)] if comparison.exact else []
    return Section(f"Differences to {versus}", [Table(caption, rows), *told, *gained])


def _alone(comparison: SideBySide) -> list[str]:
    """Return the remark that belongs beside every test of one seed."""
    return [] if comparison.seeded else [ONE_SEED]


def _discordant(comparison: SideBySide, versus: str) -> Table:
    """Return the numbers of items that changed from wrong to right and back, which make up a difference of shares."""
    rows: list[list[str | Cell]] = [["variant", *(TITLES.get(task, task) for task in comparison.exact)]]
    for name in comparison.others(versus):
        counts = [comparison.discordant(versus, name, task) for task in comparison.exact]
        rows.append([name, *(Cell(f"+{gained} −{lost}", gained - lost) for gained, lost in counts)])
    return Table(f"Items that {versus} has wrong and the variant right (+), and the reverse (−)", rows)


def _by_group(comparison: SideBySide, versus: str, family: Family) -> Section:
    """Return the section of changes for each group, with the test of whether groups changed unevenly."""
    others = comparison.others(versus)
    rows: list[list[str | Cell]] = [["group", *others]]
    for group in comparison.groups:
        rows.append([group, *(cells.tested(comparison, versus, family, name, f"auc_len.{group}") for name in others)])
    tests = {name: comparison.heterogeneity({name: 1.0, versus: -1.0}) for name in others}
    told = "; ".join(
        f"{name}: {_chi2(test)}, p {cells.p_value(test.p)}" for name, test in tests.items() if not math.isnan(test.p)
    )
    even = f"Whether groups changed unevenly, each test as it stands: {told or 'not defined'}."
    caption = f"Differences to {versus} in AUC by length for each group; those with p < 0.05 stand out"
    paired = PAIRED.format(family=family.size)
    return Section(
        f"Safety by group: differences to {versus}", [Table(caption, rows), paired, *_alone(comparison), even]
    )


def _effects(comparison: SideBySide) -> dict[str, Mapping[str, float]]:
    """Return the main effects and interactions of demonstrations by comparisons, as weights of variants.

    There are none where not each was tried with each.
    """
    tried = {v.corpora: v.name for v in comparison.variants.values() if v.stage == "dpo"}
    tried = {sets: name for sets, name in tried.items() if claims.row(comparison, sets[0], sets[1]) == name}
    data, preferences = (list(dict.fromkeys(corpora[at] for corpora in tried)) for at in (0, 1))
    if len(data) < 2 or len(preferences) < 2 or len(tried) < len(data) * len(preferences):
        return {}
    effects: dict[str, Mapping[str, float]] = {}
    for a, b in combinations(preferences, 2):
        effects[f"DPO {b} − {a}, mean over SFT"] = claims.mean_change([(tried[d, b], tried[d, a]) for d in data])
    for a, b in combinations(data, 2):
        effects[f"SFT {b} − {a}, mean over DPO"] = claims.mean_change([(tried[b, p], tried[a, p]) for p in preferences])
    for a, b in combinations(data, 2):
        for p, q in combinations(preferences, 2):
            corners = {tried[b, q]: 1.0, tried[b, p]: -1.0, tried[a, q]: -1.0, tried[a, p]: 1.0}
            effects[f"interaction: DPO {q} − {p}, after {b} − after {a}"] = corners
    return effects


def _grid(comparison: SideBySide, effects: Mapping[str, Mapping[str, float]]) -> Section:
    measures = cells.titles(comparison)
    rows: list[list[str | Cell]] = [["effect", *measures.values()]]
    for name, weights in effects.items():
        rows.append([name, *(cells.changed(comparison.contrast(weights, measure), measure) for measure in measures)])
    table = Table("Main effects and interactions of the grid, with 95 % intervals", rows)
    return Section("Demonstrations by comparisons", [table, "Intervals, each as it stands; no tests."])


def _uncontaminated(comparison: SideBySide) -> SideBySide:
    """Return the comparison without the items that were found in the variants' datasets."""
    return comparison.without({pair for run in comparison.runs for pair in run.contaminated()})


def _touched(comparison: SideBySide, rest: SideBySide) -> dict[str, int]:
    """Count the scored items of each task that were found in a dataset; tasks without any are left out."""
    return {task: count - rest.items[task] for task, count in comparison.items.items() if count > rest.items[task]}


def _listed(touched: Mapping[str, int]) -> str:
    return ", ".join(f"{count} of the items of {TITLES.get(task, task)}" for task, count in touched.items())


def _contaminated(comparison: SideBySide, rest: SideBySide) -> Section:
    """Return the section of tasks with and without the items that were found in the variants' datasets."""
    title, touched = "Benchmark items found in the datasets", _touched(comparison, rest)
    if not touched:
        none = "None of the scored items was found in a row that a variant might have been trained on."
        return Section(title, [f"{none} {_unsought(comparison)}"])
    heads = [f"{TITLES.get(task, task)}{end}" for task in touched for end in ("", f" without {touched[task]}")]
    rows: list[list[str | Cell]] = [["variant", *heads]]
    for name in comparison.variants:
        rows.append([name, *(cells.level(each, name, task) for task in touched for each in (comparison, rest))])
    told = (
        "Rows that hold an item are never trained on; this is what leaving these items out changes all the same. Each "
        "is named, with the row, in `data/sampled/ROLE.contaminated.parquet` of the revisions below. "
        f"{_unsought(comparison)}"
    )
    return Section(title, [Table("Each touched benchmark with and without the items that were found", rows), told])


def _unsought(comparison: SideBySide) -> str:
    """Name what is scored and was not looked for in the variants' datasets."""
    trained = [run for run in comparison.runs if run.roles]
    tasks = [TITLES.get(task, task) for task in comparison.tasks if any(task not in run.sought() for run in trained)]
    return f"Not looked for: {', '.join([*tasks, 'the sentences of the safety score'])}."


def _published(published: Sequence[claims.Published]) -> Section:
    """Return the section of the study's figures beside ours."""
    rows: list[list[str | Cell]] = [["variant", "measure", "published", "ours", "apart"]]
    for found in published:
        digits = 3 if cells.area(found.measure) else 2
        title = TITLES.get(found.measure, found.measure.removeprefix("score."))
        theirs, ours = (Cell(f"{value:.{digits}f}", value) for value in (found.theirs, found.ours))
        rows.append([found.variant, title, theirs, ours, found.apart])
    return Section("The published tables beside ours", [Table("Published figures beside ours", rows), AGREEMENT])


def _datasets(comparison: SideBySide, versus: str) -> Section:
    """Return the section that describes the datasets, beside the outcomes."""
    outcomes = {"capability": "capability", "truthfulqa_mc2": TITLES["truthfulqa_mc2"], AVERAGE: "AUC by length"}
    outcomes = {measure: title for measure, title in outcomes.items() if comparison.has(measure)}
    heads = ["variant", "trained on last", *DESCRIBED.values(), *(f"Δ {title}" for title in outcomes.values())]
    rows: list[list[str | Cell]] = [[*heads]]
    for name, variant in comparison.variants.items():
        if variant.corpora:
            sampled = variant.runs[0].metrics(f"sample/{variant.runs[0].roles[-1]}.json")
            weights = {name: 1.0, versus: -1.0} if name != versus else {}
            changes = [cells.changed(comparison.contrast(weights, m), m) if weights else "–" for m in outcomes]
            rows.append([name, variant.corpora[-1], *(_plain(sampled[key]) for key in DESCRIBED), *changes])
    told = f"Of the first seed's rows; Δ is the difference to {versus}. `metrics/sample/` says more of each set."
    caption = "Each variant's last dataset, and the variant's differences"
    return Section("What the datasets are, and what came of them", [Table(caption, rows), told])


def _plain(value: float | None) -> Cell | str:
    return "–" if value is None else _count(value) if isinstance(value, int) else Cell(f"{value:.2f}", value)


def _training(comparison: SideBySide) -> Section:
    """Return the section of training's own metrics, run by run: how far each policy went, and on how many tokens."""
    heads = ["variant", "seed", "trained tokens", "steps", *(title for title, _ in TRAINED.values()), "training loss"]
    rows: list[list[str | Cell]] = [[*heads]]
    for name, variant in comparison.variants.items():
        for run in variant.runs if variant.corpora else ():
            found = run.metrics(f"{run.stage}.json")
            told = [_trained(found, key, digits) for key, (_, digits) in TRAINED.items()]
            logged = [point["value"] for point in drawings.curve(run, "loss")]
            loss = " → ".join(tables.figure(end, None, None, 1, 3) for end in (logged[:1] + logged[-1:]))
            rows.append(
                [name, str(run.seed), _count(found["tokens.trained"]), _count(found["steps"]), *told, loss or "–"]
            )
    curves = (
        "Training curves of every run: the loss of SFT, and the loss and the reward margin of DPO, by step. A long run "
        "is drawn as means over stretches of steps; all steps are in metrics/curves/ of the revisions below."
    )
    drift = (
        "DPO's drift goes with its learning rate: compare two schools of it at equal KL. The training loss is the "
        "curve's first and last point."
    )
    figure = Figure("curves", curves, drawings.curves(comparison))
    return Section("Training", [figure, Table("Each run's training", rows), drift])


def _trained(metrics: Mapping[str, Any], key: str, digits: int) -> Cell | str:
    """Return a figure of training with its interval; that of a share is cut to where it can lie."""
    if key not in metrics:
        return "–"
    ends = [metrics.get(f"{key}{end}") for end in ("_low", "_high")]
    low, high = map(tables.within, ends) if key == "heldout.accuracy" else ends
    return Cell(tables.figure(metrics[key], low, high, 1, digits), metrics[key])


def _answers(comparison: SideBySide) -> Section:
    """Return the section of each variant's answers to the fixed prompts."""
    said: dict[str, list[Answer]] = {}
    for name, variant in comparison.variants.items():
        for reply in variant.runs[0].answers():
            answer = Answer(name, reply["answer"], reply["tokens"], reply["finished"])
            said.setdefault(reply["prompt"], []).append(answer)
    prompts = [Prompt(prompt, answers) for prompt, answers in said.items()]
    return Section("Answers to fixed prompts", [ILLUSTRATION, *prompts])


def _sources(comparison: SideBySide) -> Section:
    rows = [["what", "repository", "revision", "licence", "terms"], *provenance.sources(comparison)]
    told = ["Pins and licences as this checkout states them."]
    told += [tables.MINI] if comparison.origin[1] == "mini" else []
    return Section("Sources and licences", [Table("What was used, and under which licence", rows), *told])


def _origins(comparison: SideBySide, command: str) -> Section:
    """Return the section of each run's revision, with the commands that bring it back and make the page."""
    rows = [["variant", "seed", "revision"]]
    for name, variant in comparison.variants.items():
        rows += [[name, "–" if run.seed is None else str(run.seed), run.revision.name] for run in variant.runs]
    back = [["revision", "brings it back"]]
    for name, commit in provenance.commits(comparison).items():
        back.append([name, f"`git checkout {commit} && dvc checkout`" if commit else "not committed: nothing does"])
    made = f"This page: `{command}`."
    return Section(
        "Where each run is, and what made this page",
        [Table("The revision of each run", rows), Table("How each revision comes back", back), BACK, made],
    )
