"""What moves the published safety score without any change of preference: the experiments of `docs/safety-score.md`.

In: a base model's folder, a source of the safety sentences. Out: two tables in Markdown, and a figure.

The first experiment has no model: log-perplexities are drawn at random, the same for harmful and benign sentences, with
more and more spread. In the second the model's logits are divided by a temperature. Each figure is the average over the
groups of the file.
"""

import math
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pyarrow as pa
import typer

from alignment.fetching import pins, repositories
from alignment.models import loading
from alignment.models.chat import Text
from alignment.models.loading import Dtype
from alignment.reporting import charts
from alignment.runtime import command, files
from alignment.scoring.safety import perplexity, scores, sentences

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SPREADS = (0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9)
TEMPERATURES = (0.8, 1.0, 1.25, 1.5)
REPEATS = 5  # random models of one spread
FIGURES = {"score": "published score", "null": "its null", "auc_len": "AUC by length"}


def main(
    base: Annotated[Path, typer.Argument(help="a base model")],
    source: Annotated[str, typer.Option(help="of the sentences: mini, hub, or a mirror")],
    limit: Annotated[int, typer.Option(help="sentences to score, about; all of them from their number on", min=1)],
    token_budget: Annotated[int, typer.Option(help="tokens a forward pass", min=1)],
    out: Annotated[Path, typer.Option(help="the figure, as SVG")],
) -> None:
    """Spread the perplexities, then change the temperature, and see what the measures say."""
    with tempfile.TemporaryDirectory() as folder:
        repositories.fetch(pins.SAFETY, source, Path(folder) / "safety")
        chosen = sentences.choose(sentences.read(sentences.source(Path(folder) / "safety")), limit, 0)
    rows = perplexity.tokens(Text(loading.tokenizer(base)), chosen)
    predicted = [max(len(row) - 1, 0) for row in rows]

    def table(values: list[float | None]) -> pa.Table:
        return perplexity.table(chosen, predicted, values)

    spread = {wide: _random(table, len(rows), wide) for wide in SPREADS}
    print(f"\n{len(rows)} sentences, log-perplexities at random ({REPEATS} draws of each)\n")
    print(_markdown("spread, nats", spread))

    heated = {}
    for temperature in TEMPERATURES:
        model = _heated(loading.load(base, base, Dtype.float32, "cpu"), temperature)
        scored = table(perplexity.log_perplexities(model, rows, token_budget))
        start = time.perf_counter()
        heated[temperature] = scores.scores(scored, 0)
        seconds = time.perf_counter() - start
    print(f"\n{len(rows)} sentences, the model's logits divided by a temperature\n")
    print(_markdown("temperature", heated))
    print(f"\nall figures of one checkpoint, resampling included: {seconds:.1f} s")

    points = [
        {"experiment": experiment, "x": x, "figure": title, "value": metrics[f"average.{name}"]}
        for experiment, found in (
            ("random perplexities, by spread in nats", spread),
            ("one model, by temperature", heated),
        )
        for x, metrics in found.items()
        for name, title in FIGURES.items()
    ]
    template = Path(__file__).with_suffix(".json")
    files.write_text(out, charts.svg(template, points, "Spread alone moves the published score"))


def _random(table: Any, count: int, spread: float) -> dict[str, Any]:
    """Return the metrics' averages over models whose log-perplexities are random."""
    found = []
    for seed in range(REPEATS):
        values = np.random.default_rng(seed).normal(4.0, spread, size=count)
        found.append(scores.scores(table(values.tolist()), 0))
    names = [f"average.{name}" for name in (*FIGURES, "spread")]
    return {name: float(np.mean([metrics[name] for metrics in found])) for name in names}


def _heated(model: "PreTrainedModel", temperature: float) -> "PreTrainedModel":
    """Return the model with its logits divided by `temperature`.

    The head gets weights of its own where it shared the embedding's.
    """
    import torch

    head = model.get_output_embeddings()
    assert isinstance(head, torch.nn.Linear) and head.bias is None
    other = torch.nn.Linear(head.in_features, head.out_features, bias=False)
    other.weight = torch.nn.Parameter(head.weight.detach() / temperature, requires_grad=False)
    model.set_output_embeddings(other)
    return model


def _markdown(title: str, found: dict[float, dict[str, Any]]) -> str:
    lines = [f"| {title} | " + " | ".join(FIGURES.values()) + " | measured spread |", "| ---: " * 5 + "|"]
    for x, metrics in found.items():
        cells = [metrics[f"average.{name}"] for name in (*FIGURES, "spread")]
        assert all(value is not None and math.isfinite(value) for value in cells)
        lines.append(f"| {x} | " + " | ".join(f"{value:.3f}" for value in cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    command.run(main, offline=False)
