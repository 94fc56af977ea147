"""The speed of SFT and DPO beside TRL's defaults: the same rows, the same global batch, the same precision.

In: a base model's folder (or a shape with random weights) and a source of real rows. Out: a table in Markdown: tokens a
second, the share of them that is padding, the share of the machine's measured peak, peak memory.
"""

import math
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from alignment import command, corpora, models, records, scan, sources, training
from alignment.chat import Chat, Template
from alignment.corpora import Refusal
from benchmarks import speed
from stages import dpo, sft

HEADER = (
    "| work | trainer | tokens/s | padding | share of peak | peak memory, GB |\n"
    "| --- | --- | ---: | ---: | ---: | ---: |"
)
LORA = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": "all-linear"}


def main(
    base: speed.Base,
    source: speed.Source,
    shape: speed.Shape,
    dtype: speed.Precision,
    device: speed.Device,
    steps: Annotated[int, typer.Option(help="optimiser steps; the first is not timed", min=2)],
    batch: Annotated[int, typer.Option(help="rows an optimiser step, of both", min=1)],
    per_device_batch: Annotated[int, typer.Option(help="rows a forward pass, of ours", min=1)],
    max_tokens: Annotated[int, typer.Option(help="longer rows are left out", min=1)],
) -> None:
    """Time SFT on LIMA and DPO on HH-RLHF."""
    chat = Chat(models.tokenizer(base), Template.chatml)
    peak = speed.matrix_peak(dtype, device)
    name = base.name if shape == "none" else shape
    print(f"\n{name}, {dtype}, {device}, batch {batch}, rows of at most {max_tokens} tokens, "
          f"measured peak of matrix products {peak / 1e9:.0f} GFLOP/s\n\n{HEADER}", flush=True)  # fmt: skip

    settings = training.Settings(1e-4, 1, batch, per_device_batch, 0.0, 0, steps)
    with tempfile.TemporaryDirectory() as scratch:
        ours = settings.arguments(dtype, device, Path(scratch) / "state", steps * batch) | {"save_strategy": "no"}
        plain = defaults(ours, batch)
        for work, make in (("sft", sft_trainer), ("dpo", dpo_trainer)):
            data = rows(chat, work, source, Path(scratch) / work, steps * batch, max_tokens)
            peers = {"ours": (True, ours), "TRL": (False, plain)}
            peers["TRL, no checkpointing"] = (False, plain | {"gradient_checkpointing": False})
            for name, (is_ours, arguments) in peers.items():
                model = speed.load(base, shape, len(chat.tokenizer), dtype, device)
                measured = measure(partial(make, model, chat, data, arguments, is_ours))
                del model  # before the next one needs its memory
                print(line(work, name, *measured, peak), flush=True)


def defaults(ours: dict[str, Any], batch: int) -> dict[str, Any]:
    """TRL's own settings, but for what the comparison holds equal."""
    kept = ("output_dir", "learning_rate", "num_train_epochs", "use_cpu", "bf16", "report_to", "save_strategy", "seed")
    size = math.gcd(8, batch)  # TRL's default of 8 rows a forward pass
    sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": batch // size}
    return {name: ours[name] for name in kept} | sizes


def rows(chat: Chat, work: str, source: str, raw: Path, count: int, max_tokens: int) -> list[dict[str, list[int]]]:
    """So many real rows as tokens, in the order of their files."""
    corpus = corpora.load("lima" if work == "sft" else "hh")
    parse = corpus.demonstration if work == "sft" else corpus.comparison
    sources.fetch(corpus.SOURCE, source, raw)
    found: list[dict[str, list[int]]] = []
    for path in scan.paths(raw):
        for _, raw_row in records.rows(path):
            example = parse(raw_row)
            if isinstance(example, Refusal):
                continue
            row = chat.demonstration(example["messages"]) if work == "sft" else chat.comparison(example)
            if max(map(len, training._sequences(row))) <= max_tokens:
                found.append(row)
            if len(found) == count:
                return found
    raise SystemExit(f"{source} has {len(found)} rows for {work} of at most {max_tokens} tokens, {count} are wanted")


def sft_trainer(model: Any, chat: Chat, data: list[dict[str, list[int]]], arguments: dict[str, Any], ours: bool) -> Any:
    """Our stage's trainer, or TRL's with the same tokens."""
    names = [str(number) for number in range(len(data))]
    if ours:
        return sft._trainer(model, chat, data, names, LORA, arguments)
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    return SFTTrainer(
        model=model,
        args=SFTConfig(**arguments),
        train_dataset=Dataset.from_list(data),
        processing_class=chat.tokenizer,
        peft_config=LoraConfig(**LORA, task_type="CAUSAL_LM"),
    )


def dpo_trainer(model: Any, chat: Chat, data: list[dict[str, list[int]]], arguments: dict[str, Any], ours: bool) -> Any:
    """Our stage's trainer, or TRL's with the same tokens, both from an adapter with random weights."""
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from trl import DPOConfig, DPOTrainer

    policy = get_peft_model(model, LoraConfig(**LORA, init_lora_weights=False, task_type="CAUSAL_LM"))
    names = [str(number) for number in range(len(data))]
    if ours:
        return dpo._trainer(policy, chat, data, names, 0.1, dpo.Loss.sigmoid, arguments)

    class Ready(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    return Ready(
        model=policy,
        args=DPOConfig(**arguments),
        train_dataset=Dataset.from_list(data),
        processing_class=chat.tokenizer,
    )


def measure(make: Callable[[], Any]) -> tuple[float, float, float, float]:
    """Train and return tokens/s, the share of padding, FLOP/s, peak memory in GB; the first step is not timed."""
    import torch
    from transformers import TrainerCallback

    trainer = make()
    seen: list[tuple[float, int, int, float]] = []  # after each step: time, tokens, positions, their squares
    count = [0, 0, 0.0]

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seen.append((time.perf_counter(), int(count[0]), int(count[1]), count[2]))

    compute = trainer.compute_loss

    def counted(model: Any, inputs: dict[str, Any], *args: Any, **options: Any) -> Any:
        lengths = inputs["attention_mask"].sum(dim=1)
        count[0] += int(lengths.sum())
        count[1] += inputs["attention_mask"].numel()
        count[2] += float((lengths.double() ** 2).sum())
        return compute(model, inputs, *args, **options)

    trainer.compute_loss = counted
    trainer.add_callback(Clock())
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    seconds, tokens, positions, squares = (b - a for a, b in zip(seen[0], seen[-1], strict=True))
    config = trainer.model.config
    weights = sum(p.numel() for n, p in trainer.model.named_parameters() if "lora" not in n and "embed_tokens" not in n)
    # forward and backward through the weights, without their gradients; causal attention three times
    flops = 4 * weights * tokens + 6 * squares * config.hidden_size * config.num_hidden_layers
    memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    del trainer
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return tokens / seconds, 1 - tokens / positions, flops / seconds, memory / 1e9


def line(work: str, name: str, rate: float, padding: float, flops: float, memory: float, peak: float) -> str:
    """One line of the table."""
    return f"| {work} | {name} | {rate:.0f} | {padding:.0%} | {flops / peak:.0%} | {memory:.1f} |"


if __name__ == "__main__":
    command.run(main, offline=False)
