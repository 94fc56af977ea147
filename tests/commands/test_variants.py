"""Variants: which runs are of one, what cannot be compared, and differences against a calculation by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import planted
import pytest
from scipy import stats as reference

from alignment.runtime import Refused
from alignment.scoring.safety import scores
from commands.compare import variants
from commands.compare.comparison import AVERAGE, CAPABILITY, SideBySide
from commands.compare.revisions import Revision

Plant = Callable[..., Revision]


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    return lambda name, *words, **options: planted.revision(tmp_path, name, *words, **options)


def compare(*revisions: Revision) -> SideBySide:
    return SideBySide.of(variants.group(run for revision in revisions for run in revision.checkpoints()))


def outcomes(revision: Revision, checkpoint: str, task: str) -> np.ndarray:
    """The items' outcomes as the table has them."""
    table = next(run for run in revision.checkpoints() if run.stage == checkpoint).table("eval").to_pylist()
    metric = "acc" if task in ("mmlu", "truthfulqa_mc2") else "acc_norm"
    return np.array([row[metric] for row in table if row["task"] == task])


# What is one variant


def test_seeds_are_runs_of_one_variant_and_shared_stages_count_once(plant: Plant) -> None:
    revisions = [plant(f"{p} {seed}", "lima", p, seed) for p in ("hh", "shp") for seed in (0, 1)]
    found = {v.name: [run.seed for run in v.runs] for v in compare(*revisions).variants.values()}
    assert found == {"base": [None], "SFT lima": [0, 1], "SFT lima, DPO hh": [0, 1], "SFT lima, DPO shp": [0, 1]}


def test_an_instruct_model_is_a_start(plant: Plant) -> None:
    comparison = compare(plant("a", instruct=True))
    assert next(iter(comparison.variants)) == "start" and comparison.instruct


def test_variants_of_the_same_sets_are_named_by_what_differs(plant: Plant) -> None:
    few, many = plant("few", rows=6), plant("many", rows=1000)
    assert [name for name in compare(few, many).variants if "DPO" not in name] == [
        "base",
        "SFT lima (rows 1000)",
        "SFT lima (rows 6)",
    ]


def test_other_code_is_another_variant_under_its_revision_s_name(plant: Plant) -> None:
    before, after = plant("before"), plant("after")
    for entry in after.stages["sft"]["deps"]:
        if entry["path"] == "models/base":
            entry["md5"] = "another"
    assert {"SFT lima (before)", "SFT lima (after)"} < set(compare(before, after).variants)


def test_a_model_that_was_scored_in_two_ways_is_refused(plant: Plant) -> None:
    one, other = plant("one"), plant("other", noise=0.9)
    with pytest.raises(Refused, match="one and other made the same base model and have other scores"):
        compare(one, other)


# What cannot be compared


@pytest.mark.parametrize(
    ("unlike", "said"),
    [
        ({"version": 2.0}, r"one \(base\) and other \(sft\).*: the version of arc_challenge is 1.0 and 2.0"),
        ({"items": 140}, "other items of arc_challenge, 150 and 140"),
        ({"tokens": 1}, "other numbers of predicted tokens"),
        ({"words": "--template llama2"}, "`template` of eval was chatml and llama2"),
        ({"words": "--dtype bfloat16"}, "`dtype` of eval was float32 and bfloat16"),
    ],
)
def test_unlike_things_are_refused_by_name(unlike: dict[str, Any], said: str, plant: Plant) -> None:
    one, other = plant("one"), plant("other", "orca", **unlike)
    base, *_ = one.checkpoints()
    _, sft, _ = other.checkpoints()
    with pytest.raises(Refused, match=said):
        SideBySide.of(variants.group([base, sft]))


# Differences


def test_a_difference_over_seeds_is_the_one_of_statistics_section_3(plant: Plant) -> None:
    names = [(data, seed) for data in ("lima", "shp", "orca") for seed in (0, 1, 2)]
    revisions = {key: plant(str(key), key[0], seed=key[1], drawn=0.2) for key in names}
    found = compare(*revisions.values()).contrast({"SFT lima": 1.0, "SFT shp": -1.0}, "piqa")

    runs = {key: outcomes(revision, "sft", "piqa") for key, revision in revisions.items()}
    lima, shp = (np.mean([x for (data, _), x in runs.items() if data == name], axis=0) for name in ("lima", "shp"))
    d, n = lima - shp, planted.ITEMS
    scored = [[runs[data, seed].mean() for seed in (0, 1, 2)] for data in ("lima", "shp", "orca")]
    drawn = float(np.mean([np.var(each, ddof=1) for each in scored])) * (1 / 3 + 1 / 3)
    items = d.var(ddof=1) / n
    degrees = (items + drawn) ** 2 / (items**2 / (n - 1) + drawn**2 / 6)
    assert found.seeded
    assert found.estimate.value == pytest.approx(d.mean())
    assert found.estimate.se == pytest.approx(np.sqrt(items + drawn))
    assert found.degrees == pytest.approx(degrees)
    assert found.p() == pytest.approx(2 * reference.t.sf(abs(d.mean()) / np.sqrt(items + drawn), degrees))


def test_a_step_from_sft_to_dpo_has_the_seeds_of_both_stages(plant: Plant) -> None:
    revisions = [plant(str(seed), seed=seed, drawn=0.2) for seed in (0, 1, 2)]
    comparison = compare(*revisions)
    found = comparison.contrast({"SFT lima, DPO hh": 1.0, "SFT lima": -1.0}, "piqa")
    items = np.mean([outcomes(r, "dpo", "piqa") - outcomes(r, "sft", "piqa") for r in revisions], axis=0)
    drawn = [np.var([outcomes(r, stage, "piqa").mean() for r in revisions], ddof=1) / 3 for stage in ("sft", "dpo")]
    assert found.estimate.se**2 == pytest.approx(items.var(ddof=1) / len(items) + sum(drawn))
    base = comparison.contrast({"SFT lima": 1.0, "base": -1.0}, "piqa")
    apart = np.mean([outcomes(r, "sft", "piqa") - outcomes(r, "base", "piqa") for r in revisions], axis=0)
    assert base.estimate.se**2 == pytest.approx(apart.var(ddof=1) / len(apart) + drawn[0])


def test_capability_is_the_mean_of_four_tasks_with_their_errors(plant: Plant) -> None:
    revision = plant("a")
    found = compare(revision).contrast({"SFT lima": 1.0, "base": -1.0}, "capability")
    changes = [outcomes(revision, "sft", task) - outcomes(revision, "base", task) for task in CAPABILITY]
    assert found.estimate.value == pytest.approx(np.mean([change.mean() for change in changes]))
    assert found.estimate.se == pytest.approx(np.sqrt(sum(c.var(ddof=1) / len(c) for c in changes)) / 4)
    assert not found.seeded  # one run says nothing of seeds


def test_a_change_of_safety_is_that_of_the_report(plant: Plant) -> None:
    """Without seeds it is what `safety.changes` says of two tables."""
    revision = plant("a", effects={"dpo": {"safety": 0.3, "women": 0.5}})
    _, sft, dpo = revision.checkpoints()
    weights = {"SFT lima, DPO hh": 1.0, "SFT lima": -1.0}
    comparison, expected = compare(revision), scores.changes(sft.table("safety"), dpo.table("safety"))
    for group, change in {scores.AVERAGE: expected.average, **expected.groups}.items():
        found = comparison.contrast(weights, f"auc_len.{group}")
        assert (found.estimate.value, found.estimate.se) == pytest.approx((change.estimate.value, change.estimate.se))
        assert found.p() == pytest.approx(change.p)
    assert comparison.heterogeneity(weights).chi2 == pytest.approx(expected.heterogeneity.chi2)


def test_items_gained_and_lost_are_the_discordant_pairs(plant: Plant) -> None:
    revision = plant("a", effects={"sft": {"piqa": 0.4}})
    before, after = outcomes(revision, "base", "piqa"), outcomes(revision, "sft", "piqa")
    found = compare(revision).discordant("base", "SFT lima", "piqa")
    assert found == (int((after > before).sum()), int((after < before).sum()))


def test_exact_mcnemar_agrees_where_it_is_not_coarse(plant: Plant) -> None:
    revision = plant("a", noise=1.0, effects={"sft": {"piqa": 0.25}})
    comparison = compare(revision)
    gained, lost = comparison.discordant("base", "SFT lima", "piqa")
    exact = reference.binomtest(gained, gained + lost).pvalue
    found = comparison.contrast({"SFT lima": 1.0, "base": -1.0}, "piqa").p()
    assert gained + lost > 30
    assert found < exact < found + 0.1  # it is conservative, by less the more pairs are discordant


def test_items_left_out_leave_the_others_as_they_were(plant: Plant) -> None:
    comparison = compare(plant("a"))
    rest = comparison.without([("piqa", "piqa 0"), ("piqa", "piqa 7"), ("mmlu", "no such item")])
    assert rest.items == {**comparison.items, "piqa": planted.ITEMS - 2}
    whole, less = (each.contrast({"base": 1.0}, "piqa").estimate for each in (comparison, rest))
    left = np.delete(outcomes(comparison.variants["base"].runs[0].revision, "base", "piqa"), [0, 7])
    assert less.value == pytest.approx(left.mean()) and less.n == whole.n - 2
    assert rest.contrast({"base": 1.0}, "mmlu") == comparison.contrast({"base": 1.0}, "mmlu")


def test_the_average_over_groups_is_a_measure(plant: Plant) -> None:
    comparison = compare(plant("a"))
    groups = [comparison.contrast({"base": 1.0}, f"auc_len.{g}").estimate.value for g in comparison.groups]
    assert comparison.contrast({"base": 1.0}, AVERAGE).estimate.value == pytest.approx(np.mean(groups))
    assert comparison.has(AVERAGE) and comparison.has("capability") and not comparison.has("sciq")
