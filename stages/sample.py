"""Choose the rows that are trained on: parse, refuse, measure, hold out.

In: a fetched corpus, the tokenizer of the base model, the fetched benchmarks.
Out: one Parquet file of examples with their split, one of the benchmark items found in rows that were refused for
them, and metrics that account for every row.
"""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from alignment import corpora
from alignment.corpora import Role
from alignment.models.chat import Template
from alignment.runtime import Refused, command, files
from alignment.runtime.command import SEEDS
from alignment.sampling import curation, description, reader
from alignment.sampling.curation import RowCounts
from alignment.sampling.order import RowOrder
from alignment.scoring.benchmarks import tasks


def main(
    raw: Annotated[Path, typer.Argument(help="the fetched corpus")],
    base: Annotated[Path, typer.Argument(help="the base model, for its tokenizer")],
    benchmark_folder: Annotated[Path, typer.Argument(help="the fetched benchmarks, whose items must not be trained")],
    out: Annotated[Path, typer.Argument(help="the chosen rows, as Parquet")],
    contaminated: Annotated[Path, typer.Argument(help="the benchmark items found in refused rows, as Parquet")],
    metrics: Annotated[Path, typer.Argument(help="the account of every row, as JSON")],
    role: Annotated[Role, typer.Option(help="what the rows are for")],
    corpus: Annotated[str, typer.Option(help="a dataset of alignment/corpora/")],
    rows: Annotated[int, typer.Option(help="rows to train on, at most", min=1)],
    heldout: Annotated[int, typer.Option(help="rows to hold out, at most", min=1)],
    heldout_share: Annotated[float, typer.Option(help="share of openings held out", min=0, max=1)],
    max_prompt_tokens: Annotated[int, typer.Option(help="longer prompts are refused", min=1)],
    max_tokens: Annotated[int, typer.Option(help="longer rows are refused", min=1)],
    contamination_ngram: Annotated[int, typer.Option(help="words in a run that gives a benchmark item away", min=4)],
    near_duplicate: Annotated[float, typer.Option(help="similarity from which a row repeats another", min=0, max=1)],
    malformed: Annotated[int, typer.Option(help="rows of the wrong shape that are passed over", min=0)],
    mentions: Annotated[list[str], typer.Option(help="a safety group and its words, as name=word two_words")],
    template: Annotated[Template, typer.Option(help="the chat template")],
    seed: Annotated[int, typer.Option(help="orders the rows that may be trained", min=0, max=SEEDS)],
    item_seed: Annotated[int, typer.Option(help="orders the rows that are held out", min=0, max=SEEDS)],
) -> None:
    """Choose training rows and held-out rows of one corpus."""
    files.claim(out)
    curation.check_limit(max_tokens, base)
    groups = description.group_words(mentions)
    policy = corpora.load(corpus, role)
    limits = (max_prompt_tokens, max_tokens)
    make = partial(curation.Measure.load, base, template, *limits, benchmark_folder, contamination_ngram)
    cap = policy.GROUP.cap if policy.GROUP and role is Role.comparisons else None
    how = RowOrder(corpus, role, raw, seed, item_seed, heldout_share, malformed)
    with reader.reading(how, make) as source:
        train, held, account = curation.choose(source, rows, heldout, cap, near_duplicate)
    if not train or not held:
        raise _refusal(how, account)
    files.write_parquet(out, curation.table(role, train, held))
    files.write_parquet(contaminated, curation.found(account))
    lengths = [row.measured.lengths for row in train]
    described = description.describe(role, [row.example for row in train], lengths, groups)
    files.write_json(metrics, {**account.metrics(tasks.tasks(benchmark_folder)), **described})
    print(f"{corpus}: {len(train)} rows to train on, {len(held)} held out, of {account.read} read")


def _refusal(how: RowOrder, account: RowCounts) -> Refused:
    """Return the refusal that says why no row is left on one side, and the way out."""
    side, wanted = (1, "to hold out") if account.kept else (0, "to train on")
    if any(account.sides) and not account.sides[side]:
        way = f"of {sum(account.sides)} rows that can be used none falls on this side; "
        if how.module.HELDOUT:
            way += f"what is held out lies in {', '.join(how.module.HELDOUT)}: complete the set, or choose another"
        else:
            change = "raise" if side else "lower"
            way += f"{change} `sample.heldout_share`, now {how.heldout_share:g} of the openings, or bring more rows"
    else:
        counts = [f"  {cause}: {count}" for cause, count in account.dropped.most_common()]
        limits = "what is `long` or `long_prompt` has its limit in the section `sample` of params.yaml"
        way = "\n".join(["dropped:", *(counts or ["  none"]), f"{limits}; otherwise bring more rows"])
    return Refused(f"of {account.read} {how.role} of {how.corpus!r} none is left {wanted}\n{way}")


if __name__ == "__main__":
    command.run(main)
