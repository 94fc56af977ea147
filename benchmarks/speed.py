"""The scoring engine's speed beside the peers', in one run on the same items.

In: a base model's folder (or a shape with random weights) and a source of real records. Out: a table in Markdown: the
median of interleaved pairs with their spread, the ratio of tokens read, the share of the machine's measured peak.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from alignment.models import loading
from alignment.models.loading import Dtype
from alignment.runtime import command
from alignment.scoring.benchmarks import evaluation
from alignment.scoring.engine.engine import Engine
from alignment.scoring.engine.prefix_tree import Request, Tree
from benchmarks import peers
from commands.doctor import predictions

# Items a task, so that lm-eval's class takes about as long for each on two cores.
ITEMS = {"arc_challenge": 24, "piqa": 48, "hellaswag": 12, "mmlu": 40, "toxigen": 32, "truthfulqa_mc2": 12}
SENTENCES = 96
SHAPES: dict[str, dict[str, int]] = {
    "llama-2-7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
}
Base = Annotated[Path, typer.Argument(help="a base model; of a shape, its tokenizer alone is taken")]
Source = Annotated[str, typer.Option(help="mini, hub, or the absolute path of a folder laid out as the hub")]
Shape = Annotated[str, typer.Option(help="random weights of this shape, such as llama-2-7b, or none")]
Precision = Annotated[Dtype, typer.Option(help="precision of both")]
Device = Annotated[str, typer.Option(help="cpu or cuda")]
HEADER = (
    "| work | n | peer's best batch | peer, n/s | ours, n/s | ratio (lowest to highest) | token ratio "
    "| share of peak |\n| --- | ---: | ---: | ---: | ---: | --- | ---: | ---: |"
)


def main(
    base: Base,
    source: Source,
    shape: Shape,
    dtype: Precision,
    device: Device,
    token_budget: Annotated[int, typer.Option(help="tokens a forward pass of ours", min=1)],
    scale: Annotated[int, typer.Option(help="how many times the items that two cores take", min=1)],
    pairs: Annotated[int, typer.Option(help="interleaved pairs of runs", min=1)],
    batches: Annotated[list[int], typer.Option(help="batch sizes of lm-eval's class to try")],
) -> None:
    """Time every task and the safety sentences."""
    tokenizer = loading.tokenizer(base)
    model = load(base, shape, len(tokenizer), dtype, device)
    peak = predictions.matrix_peak(dtype, device)
    print(f"\n{base.name if shape == 'none' else shape}, {dtype}, {device}, token budget {token_budget}, "
          f"measured peak of matrix products {peak / 1e9:.0f} GFLOP/s\n\n{HEADER}")  # fmt: skip
    ours, seconds = evaluation.scorer(model, tokenizer, token_budget), 0.0
    with tempfile.TemporaryDirectory() as scratch:
        folder = peers.fetch(source, Path(scratch) / "raw")
        for task, count in ITEMS.items():
            instances = _instances(evaluation.items(folder, task, count * scale, 0))
            items = len({(instance.task_name, instance.doc_id) for instance in instances})
            runs = {size: _loglikelihoods(peers.lm_eval_class(model, tokenizer, size), instances) for size in batches}
            mine = _loglikelihoods(ours, instances)
            requests = [Request(*ours._encode_pair(*instance.args)) for instance in instances]  # type: ignore[attr-defined]
            taken = _row(task, items, runs, mine, ours.engine, requests, peak, pairs)  # type: ignore[attr-defined]
            seconds += taken / items * predictions.READ[task][0]
        text, engine = ours.text, ours.engine  # type: ignore[attr-defined]
        rows = peers.sentence_rows(text, folder, SENTENCES * scale)
        requests = [Request(row[:1], row[1:]) for row in rows]
        loop = {1: lambda: peers.safenlp(model, rows)}
        _row("safety", len(rows), loop, lambda: engine.score(requests), engine, requests, peak, pairs)
    print(f"\nall items of the six tasks, one checkpoint: about {seconds / 3600:.1f} h")


def _instances(parts: list[evaluation.Subtask]) -> list[Any]:
    tasks = evaluation.load(parts).values()
    for task in tasks:
        task.build_all_requests()
    return [instance for task in tasks for instance in task.instances]


def _loglikelihoods(lm: Any, instances: list[Any]) -> Callable[[], Any]:
    return lambda: lm.loglikelihood(instances, disable_tqdm=True)


def _row(
    name: str,
    count: int,
    peer: dict[int, Callable[[], Any]],
    mine: Callable[[], Any],
    engine: Engine,
    requests: Sequence[Request],
    peak: float,
    pairs: int,
) -> float:
    """Print one line and return our median seconds."""
    mine()  # both are warm before they are timed
    best = min(peer, key=lambda size: _seconds(peer[size])) if len(peer) > 1 else next(iter(peer))
    times = [(_seconds(peer[best]), _seconds(mine)) for _ in range(pairs)]
    ratios = sorted(theirs / ours for theirs, ours in times)
    theirs, ours = (statistics.median(column) for column in zip(*times, strict=True))
    tree = Tree(requests, engine.longest)
    # lm-eval runs choices of one token once, as the tree does; the head runs where something is predicted.
    tokens = sum(map(len, tree.sequences)) / engine.tokens[0]
    scored = int((tree.lengths - tree.unscored).sum())
    share = _flops(engine, scored) / ours / peak
    cells = [name, count, best, f"{count / theirs:.2f}", f"{count / ours:.2f}"]
    cells += [
        f"×{statistics.median(ratios):.2f} (×{ratios[0]:.2f} to ×{ratios[-1]:.2f})",
        f"×{tokens:.2f}",
        f"{share:.0%}",
    ]
    print("| " + " | ".join(map(str, cells)) + " |")
    return float(ours)


def _flops(engine: Engine, scored: int) -> float:
    """Return the floating-point operations of the last scoring in products with weights; attention is left out."""
    model: Any = engine.model
    head = model.get_output_embeddings().weight.numel()
    layers = sum(p.numel() for p in model.get_decoder().parameters()) - model.get_input_embeddings().weight.numel()
    return float(2 * (layers * engine.tokens[0] + head * scored))


def _seconds(run: Callable[[], Any]) -> float:
    start = now()
    run()
    return now() - start


def now() -> float:
    """Return the time in seconds, once the GPU has done what it was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def load(base: Path, shape: str, vocabulary: int, dtype: Dtype, device: str) -> Any:
    """Load the base model, or make one of a shape."""
    return loading.load_base(base, dtype, device) if shape == "none" else _shaped(shape, vocabulary, dtype, device)


def _shaped(shape: str, vocabulary: int, dtype: Dtype, device: str) -> Any:
    """Make a Llama of a known shape with random weights; its vocabulary is that of the tokenizer at hand."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, dtype))
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, max_position_embeddings=4096, **SHAPES[shape]))
    torch.set_default_dtype(torch.float32)
    return model.eval()


if __name__ == "__main__":
    command.run(main, offline=False)
