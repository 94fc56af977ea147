"""The speed of SFT and DPO beside TRL's defaults: the same rows, the same global batch, the same precision.

In: a base model's folder (or a shape with random weights) and a source of real rows. Out: a table in Markdown: tokens a
second, the share of them that is padding, the share of the machine's measured peak, peak memory.
"""

import gc
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from alignment import corpora
from alignment.corpora import Refusal
from alignment.fetching import repositories
from alignment.models import loading
from alignment.models.chat import Chat, Template
from alignment.models.loading import Dtype, Quantization
from alignment.objectives import dpo, sft
from alignment.runtime import command, records
from alignment.sampling import reader
from alignment.training.plan import Budget
from alignment.training.settings import Settings
from benchmarks import speed
from commands.doctor import predictions

HEADER = (
    "| work | trainer | tokens/s | ours is faster by (lowest to highest) | padding | share of peak | GPU memory, GB |\n"
    "| --- | --- | ---: | --- | ---: | ---: | ---: |"
)
LORA = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": "all-linear"}


def main(
    base: speed.Base,
    source: speed.Source,
    shape: speed.Shape,
    dtype: speed.Precision,
    device: speed.Device,
    steps: Annotated[int, typer.Option(help="optimiser steps", min=1)],
    batch: Annotated[int, typer.Option(help="rows an optimiser step, of both", min=1)],
    per_device_batch: Annotated[int, typer.Option(help="long rows a forward pass, of ours", min=1)],
    max_tokens: Annotated[int, typer.Option(help="longer rows are left out", min=1)],
    token_budget: Annotated[int, typer.Option(help="tokens a forward pass of our reference", min=1)],
    pairs: Annotated[int, typer.Option(help="interleaved runs of each", min=1)],
) -> None:
    """Time SFT on LIMA and DPO on HH-RLHF."""
    chat = Chat(loading.tokenizer(base), Template.chatml)
    peak = predictions.matrix_peak(dtype, device)
    name = base.name if shape == "none" else shape
    print(f"\n{name}, {dtype}, {device}, batch {batch}, rows of at most {max_tokens} tokens, "
          f"measured peak of matrix products {peak / 1e9:.0f} GFLOP/s\n\n{HEADER}")  # fmt: skip

    with tempfile.TemporaryDirectory() as scratch:
        state = Path(scratch) / "state"
        settings = Settings(
            learning_rate=1e-4, budget=Budget.epochs, epochs=1, batch=batch, tokens=1, steps=1,
            per_device_batch=per_device_batch, warmup=0.0, seed=0, checkpoint_steps=steps + 1,
            gradient_checkpointing=False, dtype=dtype, device=device,
            quantization=Quantization.none, template=chat.template,
        )  # fmt: skip
        plain = defaults(settings.arguments(state, steps), batch)
        for work in ("sft", "dpo"):
            data = rows(chat, work, source, Path(scratch) / work, steps * batch, max_tokens)
            makers = {
                "ours": partial(ours, work, chat, data, settings, state, token_budget),
                "TRL": partial(peer, work, chat, data, plain),
                "TRL, no checkpointing": partial(peer, work, chat, data, plain | {"gradient_checkpointing": False}),
            }
            runs: dict[str, list[Measured]] = {name: [] for name in makers}
            for _ in range(pairs):
                for name, make in makers.items():
                    model = speed.load(base, shape, len(chat.tokenizer), dtype, device)
                    runs[name].append(measure(partial(make, model)))
                    del model
                    release()
            for name, found in runs.items():
                print(line(work, name, found, runs["ours"], peak))


def release() -> None:
    """Free a run's memory before the next run needs it."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def defaults(held_equal: dict[str, Any], batch: int) -> dict[str, Any]:
    """Return TRL's own settings, but for what the comparison holds equal."""
    kept = ("output_dir", "learning_rate", "num_train_epochs", "use_cpu", "bf16", "report_to", "seed")
    size = math.gcd(8, batch)  # TRL's default of 8 rows a forward pass
    sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": batch // size}
    return {name: held_equal[name] for name in kept} | sizes | {"save_strategy": "no"}


def rows(chat: Chat, work: str, source: str, raw: Path, count: int, max_tokens: int) -> list[dict[str, Any]]:
    """Return so many real rows as tokens, in the order of their files."""
    corpus = corpora.load("lima" if work == "sft" else "hh")
    parse = corpus.demonstration if work == "sft" else corpus.comparison
    repositories.fetch(corpus.SOURCE, source, raw)
    found: list[dict[str, Any]] = []
    for path in reader.paths(raw):
        for _, raw_row in records.rows(path):
            example = parse(raw_row)
            if isinstance(example, Refusal):
                continue
            if sum(chat.lengths(example)[:2]) > max_tokens or sum(chat.lengths(example)[::2]) > max_tokens:
                continue
            found += (sft if work == "sft" else dpo).encode(chat, [{"id": str(len(found)), **example}])
            if len(found) == count:
                return found
    raise SystemExit(f"{source} has {len(found)} rows for {work} of at most {max_tokens} tokens, {count} are wanted")


def policy_of(model: Any) -> Any:
    """Return the policy that DPO starts from: an adapter with random weights, which changes the model's outputs."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(**LORA, init_lora_weights=False, task_type="CAUSAL_LM"))


def ours(
    work: str,
    chat: Chat,
    data: list[dict[str, Any]],
    settings: Settings,
    state: Path,
    token_budget: int,
    model: Any,
) -> Any:
    """Make our stage's trainer; what DPO computes before its first step is part of its time."""
    if work == "sft":
        return sft.make_trainer(model, chat, data, LORA, settings, state)
    policy, rows = policy_of(model), [dict(row) for row in data]
    start = time.perf_counter()
    if settings.dtype is Dtype.float32:
        dpo.add_reference(rows, policy, token_budget, state / "reference.json")
        (state / "reference.json").unlink()
    trainer = dpo.make_trainer(policy, chat, rows, 0.1, dpo.Loss.sigmoid, settings, state)
    trainer.seconds_before = time.perf_counter() - start
    return trainer


def peer(work: str, chat: Chat, data: list[dict[str, Any]], arguments: dict[str, Any], model: Any) -> Any:
    """Make TRL's trainer with the same tokens, and its head as it is."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    class Ready(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    given: dict[str, Any] = {
        "train_dataset": Dataset.from_list(data).remove_columns("id"),
        "processing_class": chat.tokenizer,
    }
    if work == "sft":
        lora = LoraConfig(**LORA, task_type="CAUSAL_LM")
        return SFTTrainer(model=model, args=SFTConfig(**arguments), peft_config=lora, **given)
    return Ready(model=policy_of(model), args=DPOConfig(**arguments), **given)


@dataclass(frozen=True)
class Measured:
    """One run: its seconds, real tokens, the share of positions that were padding, FLOP, peak memory in bytes."""

    seconds: float
    tokens: int
    padding: float
    flops: float
    memory: int


def measure(make: Callable[[], Any]) -> Measured:
    """Train to the end, and measure it. Loading is not timed; what DPO computes before its first step is."""
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        seconds = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.seconds = -speed.now()

        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step == state.max_steps:
                self.seconds += speed.now()

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    trainer, clock, batches = make(), Clock(), []
    compute = trainer.compute_loss

    def seen(model: Any, inputs: dict[str, Any], *args: Any, **options: Any) -> Any:
        batches.append(inputs["attention_mask"])
        return compute(model, inputs, *args, **options)

    trainer.compute_loss = seen
    trainer.add_callback(clock)
    trainer.train()
    lengths = torch.cat([mask.sum(dim=1) for mask in batches]).double()
    positions = sum(mask.numel() for mask in batches)
    tokens, config = int(lengths.sum()), trainer.model.config
    weights = sum(p.numel() for n, p in trainer.model.named_parameters() if "lora" not in n and "embed_tokens" not in n)
    # Forward and backward through the weights, without their gradients; causal attention three times.
    attention = 6 * float((lengths**2).sum()) * config.hidden_size * config.num_hidden_layers
    memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    seconds = clock.seconds + getattr(trainer, "seconds_before", 0.0)
    return Measured(seconds, tokens, 1 - tokens / positions, 4 * weights * tokens + attention, memory)


def line(work: str, name: str, runs: list[Measured], ours: list[Measured], peak: float) -> str:
    """Return one line of the table: medians, and the lowest and highest ratio of the pairs."""
    ratios = sorted(theirs.seconds / mine.seconds for theirs, mine in zip(runs, ours, strict=True))
    seconds, first = statistics.median(each.seconds for each in runs), runs[0]
    ratio = f"×{statistics.median(ratios):.2f} (×{ratios[0]:.2f} to ×{ratios[-1]:.2f})" if runs is not ours else ""
    share, memory = first.flops / seconds / peak, max(each.memory for each in runs) / 1e9
    rate = f"{first.tokens / seconds:.0f}"
    return f"| {work} | {name} | {rate} | {ratio} | {first.padding:.0%} | {share:.0%} | {memory:.1f} |"


if __name__ == "__main__":
    command.run(main, offline=False)
