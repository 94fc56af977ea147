"""Which runs are of one variant, and what each variant is called in tables.

In: checkpoints of several revisions. Out: variants with their runs. A variant is all that a checkpoint was made from
but the seed.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from alignment.runtime import Refused
from commands.compare.revisions import Checkpoint


@dataclass(frozen=True)
class Variant:
    """One recipe, with a run for each seed.

    Attributes:
        name: in tables.
        runs: in the order of their seeds; a base model has one.
    """

    name: str
    runs: tuple[Checkpoint, ...]

    @property
    def stage(self) -> str:
        """Base, sft or dpo."""
        return self.runs[0].stage

    @property
    def corpora(self) -> tuple[str, ...]:
        """The datasets it was trained on, demonstrations first."""
        return self.runs[0].corpora

    @property
    def rows(self) -> int:
        """Demonstrations it was to be trained on, at most; 0 of a base model."""
        return int(self.runs[0].knobs.get("sample@demonstrations.rows", 0))


def group(checkpoints: Iterable[Checkpoint]) -> list[Variant]:
    """Return the variants that checkpoints are runs of, each under a name of its own.

    Base models come first, then the others by their demonstrations.

    Args:
        checkpoints: of all revisions; one that several revisions have counts once.

    Raises:
        Refused: two revisions made the same checkpoint and scored it differently.
    """
    runs: dict[tuple[str, str], dict[int | None, Checkpoint]] = {}
    for each in checkpoints:
        first = runs.setdefault((each.stage, each.recipe), {}).setdefault(each.seed, each)
        if first.result != each.result:
            raise Refused(
                f"{first.revision.name} and {each.revision.name} made the same {each.stage} model and have other "
                "scores of it: they were scored by other code or on other items.\n"
                "run `dvc repro` in both, or leave one out"
            )
    found = [[each for _, each in sorted(seeds.items(), key=str)] for seeds in runs.values()]
    names = _names([each[0] for each in found])
    variants = [Variant(name, tuple(each)) for name, each in zip(names, found, strict=True)]
    data = list(dict.fromkeys(variant.corpora[:1] for variant in variants))
    return sorted(variants, key=lambda v: (v.stage != "base", data.index(v.corpora[:1]), -v.rows, len(v.corpora)))


def _names(firsts: Sequence[Checkpoint]) -> list[str]:
    """Return a name for each, of its datasets.

    Where datasets do not tell them apart, the options in which they differ are added, then the revision.
    """
    steps = [[f"{step} {name}" for step, name in zip(("SFT", "DPO"), f.corpora, strict=False)] for f in firsts]
    plain = [", ".join(said) or ("start" if f.instruct else "base") for f, said in zip(firsts, steps, strict=True)]
    names = []
    for name, first in zip(plain, firsts, strict=True):
        alike = [other for other, others in zip(firsts, plain, strict=True) if others == name]
        apart = [key for key in first.knobs if len({other.knobs.get(key) for other in alike}) > 1]
        said = [f"{key.partition('.')[2]} {first.knobs[key]}" for key in apart]
        names.append(f"{name} ({', '.join(said)})" if said else name)
    twice = Counter(names)
    return [f"{n} ({f.revision.name})" if twice[n] > 1 else n for n, f in zip(names, firsts, strict=True)]
