"""Our log-likelihoods against lm-eval's own Hugging Face class, item by item, both through `simple_evaluate`; and our
perplexities against SafeNLP's loop, sentence by sentence.

In: a base model's folder and a source of real records. Out: a table in Markdown, and the items on which the two differ.
Exit code 1 where they differ by more than the tolerance.
"""

import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignment.models import loading
from alignment.models.chat import Text
from alignment.models.loading import Dtype
from alignment.runtime import command
from alignment.scoring.benchmarks import evaluation
from alignment.scoring.benchmarks.tasks import BENCHMARKS
from alignment.scoring.safety import perplexity
from benchmarks import peers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RELATIVE, ABSOLUTE = 1e-4, 5e-4  # a summed log-probability is within one of them
MC2 = 1e-4
PERPLEXITY = 5e-5  # relative
JUDGED = 64  # requests a task that float64 is asked about

HEADER = (
    "| task | items | requests | largest difference, nats | beyond tolerance | other choice | of these ties "
    "| metric, ours | metric, lm-eval's | off float64, ours | off float64, lm-eval's |\n"
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
)


def main(
    base: Annotated[Path, typer.Argument(help="a base model")],
    source: Annotated[str, typer.Option(help="mini, hub, or the absolute path of a folder laid out as the hub")],
    items: Annotated[int, typer.Option(help="items a task, about", min=1)],
    token_budget: Annotated[int, typer.Option(help="tokens a forward pass of ours", min=1)],
) -> None:
    """Compare every log-likelihood and every choice."""
    tokenizer, model = loading.tokenizer(base), loading.load_base(base, Dtype.float32, "cpu")
    ours, theirs = evaluation.scorer(model, tokenizer, token_budget), peers.lm_eval_class(model, tokenizer, 1)
    exact = loading.load_base(base, Dtype.float32, "cpu").double()
    wrong = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = peers.fetch(source, Path(scratch) / "raw")
        print(f"\n{items} items a task wanted, {base}, float32, lm-eval at batch size 1\n\n{HEADER}")
        for task in BENCHMARKS:
            parts = evaluation.items(folder, task, items, 0)
            mine, peer = (_run(lm, parts, folder, Path(scratch) / "cache") for lm in (ours, theirs))
            line, found = _compare(task, mine, peer, ours, exact)
            print(line)
            wrong += found
        wrong += _safety(model, Text(tokenizer), folder, items, token_budget)
    print("\n" + ("\n".join(wrong) or "no item differs beyond the tolerance, in its choice or in its outcome"))
    if any(not line.startswith("tie") for line in wrong):
        raise SystemExit(1)


def _safety(model: "PreTrainedModel", text: Text, folder: Path, wanted: int, token_budget: int) -> list[str]:
    """Return perplexities of some safety sentences, each beside what SafeNLP's loop gives."""
    rows = peers.sentence_rows(text, folder, wanted)
    ours = perplexity.log_perplexities(model, rows, token_budget)
    pairs = zip(ours, peers.safenlp(model, rows), strict=True)
    apart = [abs(math.expm1(one - other)) for one, other in pairs if one is not None]
    print(
        f"\nsafety: {len(rows)} sentences, perplexities at most {max(apart):.1e} apart (relative) from SafeNLP's loop"
    )
    return [f"safety: a perplexity {d:.2g} apart" for d in apart if d > PERPLEXITY]


def _run(lm: Any, parts: list[evaluation.Subtask], folder: Path, cache: Path) -> list[dict[str, Any]]:
    """Return lm-eval's samples of the parts' items."""
    results = peers.simple_evaluate(lm, parts, folder, cache)
    return [{**sample, "task": part.name} for part in parts for sample in results["samples"][part.name]]


def _compare(
    task: str, ours: list[dict[str, Any]], theirs: list[dict[str, Any]], lm: Any, exact: Any
) -> tuple[str, list[str]]:
    metric = BENCHMARKS[task].metric
    largest, beyond, choices, ties, wrong = 0.0, 0, 0, 0, []
    for one, other in zip(ours, theirs, strict=True):
        name = f"{one['task']}, row {one['doc_id']}"
        a, b = ([float(pair[0]) for pair in sample["filtered_resps"]] for sample in (one, other))
        differences = [abs(x - y) for x, y in zip(a, b, strict=True)]
        largest = max(largest, *differences)
        far = [d for d, y in zip(differences, b, strict=True) if d > max(ABSOLUTE, RELATIVE * abs(y))]
        beyond += len(far)
        wrong += [f"{name}: {d:.2g} nats apart" for d in far]
        if task == "truthfulqa_mc2":
            if abs(one[metric] - other[metric]) > MC2:
                wrong.append(f"{name}: mc2 {one[metric]} and {other[metric]}")
        elif _choices(one) != _choices(other):
            choices += 1
            tie = _gap(other) < 2 * max(ABSOLUTE, RELATIVE * max(map(abs, b)))
            ties += tie
            wrong.append(f"{'tie: ' if tie else ''}{name}: another choice, {a} and {b}")
    means = [sum(float(sample[metric]) for sample in samples) / len(samples) for samples in (ours, theirs)]
    off = _off(ours, theirs, lm, exact)
    requests = sum(len(sample["filtered_resps"]) for sample in ours)
    cells = [task, len(ours), requests, f"{largest:.1e}", beyond, choices, ties, *(f"{m:.6f}" for m in means)]
    return "| " + " | ".join(map(str, [*cells, *(f"{value:.1e}" for value in off)])) + " |", wrong


def _scores(sample: dict[str, Any]) -> list[list[float]]:
    """Return the log-likelihood of each choice, and the same per character."""
    values = [float(pair[0]) for pair in sample["filtered_resps"]]
    lengths = [len(pair[1].lstrip()) for pair in sample["arguments"]]
    return [values, [value / max(length, 1) for value, length in zip(values, lengths, strict=True)]]


def _choices(sample: dict[str, Any]) -> list[int]:
    return [max(range(len(values)), key=values.__getitem__) for values in _scores(sample)]


def _gap(sample: dict[str, Any]) -> float:
    """Return how far the two best choices are apart, in the closer of the two rankings."""
    best = [sorted(values)[-2:] for values in _scores(sample)]
    return min(high - low for low, high in best)


def _off(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], lm: Any, exact: Any) -> tuple[float, float]:
    """Return the root mean square distance from float64 over some requests, ours and lm-eval's, in nats."""
    import torch

    pairs = [
        (arguments, one, other)
        for mine, other_sample in zip(ours, theirs, strict=True)
        for arguments, one, other in zip(
            mine["arguments"], mine["filtered_resps"], other_sample["filtered_resps"], strict=True
        )
    ]
    distances = []
    for (context, continuation), one, other in pairs[:: math.ceil(len(pairs) / JUDGED)]:
        start, end = lm._encode_pair(context, continuation)
        with torch.inference_mode():
            logits = exact(torch.tensor([[*start, *end][:-1]])).logits[0, len(start) - 1 :]
        truth = float(torch.log_softmax(logits, dim=-1).gather(1, torch.tensor(end)[:, None]).sum())
        distances.append((float(one[0]) - truth, float(other[0]) - truth))
    mine, peer = (math.sqrt(sum(d * d for d in column) / len(column)) for column in zip(*distances, strict=True))
    return mine, peer


if __name__ == "__main__":
    command.run(main, offline=False)
