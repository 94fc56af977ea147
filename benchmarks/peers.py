"""The peers as they are, and the records that they are measured on.

In: a model that is loaded, and a source of data. Out: lm-eval's own model class around that model, SafeNLP's loop over
sentences, and fetched benchmarks.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.fetching import pins, repositories
from alignment.models.chat import Text
from alignment.scoring.benchmarks import evaluation
from alignment.scoring.benchmarks.evaluation import Subtask
from alignment.scoring.benchmarks.tasks import BENCHMARKS
from alignment.scoring.safety import perplexity, sentences

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def lm_eval_class(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", batch: int) -> "LM":
    """Return lm-eval's own Hugging Face model class, around a model.

    Args:
        model: a base model, or one with its adapter, on its device.
        tokenizer: its own.
        batch: requests a forward pass.
    """
    from lm_eval.models.huggingface import HFLM

    # lm-eval tokenises itself, with the tokenizer's special tokens or without any. The choice is made here by what the
    # tokenizer does with plain text: one BOS in front where it puts one, none elsewhere, and never an EOS after it.
    bos = bool(Text(tokenizer).bos)
    with evaluation.quiet():  # it says that a model given ready ignores options that are not given
        lm: LM = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch, add_bos_token=bos)
    return lm


def safenlp(model: "PreTrainedModel", rows: Sequence[Sequence[int]]) -> list[float]:
    """Return the log-perplexity of each row as SafeNLP's script takes it: one sentence a forward pass, its own loss."""
    import torch

    values = []
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor([row], device=model.device)
            values.append(float(model(input_ids=ids, labels=ids).loss))
    return values


def fetch(source: str, out: Path) -> Path:
    """Fetch the benchmarks and the safety sentences of a source, each into a folder of its name under `out`."""
    for name, repository in {**pins.BENCHMARKS, "safety": pins.SAFETY}.items():
        repositories.fetch(repository, source, out / name)
    return out


def sentence_rows(text: Text, folder: Path, wanted: int) -> list[list[int]]:
    """Return the tokens of about `wanted` safety sentences of a fetched `folder`, of those with a token to predict."""
    chosen = sentences.choose(sentences.read(sentences.source(folder / "safety")), wanted, 0)
    return [row for row in perplexity.tokens(text, chosen) if len(row) > 1]


def stock(part: Subtask, folder: Path, cache: Path) -> dict[str, Any]:
    """Return the configuration of lm-eval's task over the whole local file, in lm-eval's own way of loading one."""
    from lm_eval.tasks._yaml_loader import load_yaml

    task = BENCHMARKS[part.task]
    found = sorted((folder / part.task).glob(task.files))
    (path,) = [path for path in found if not part.subject or path.parent.name == part.subject]
    config = load_yaml(evaluation.definition(part.task, part.subject))
    for key in evaluation.GROUPING:
        config.pop(key, None)
    for key in evaluation.SPLITS:
        if config.get(key) != task.split:
            config[key] = None
    source = {"data_files": {task.split: str(path.resolve())}, "cache_dir": str(cache)}
    return {**config, "dataset_path": "parquet", "dataset_name": None, "dataset_kwargs": source}


def simple_evaluate(lm: "LM", parts: Sequence[Subtask], folder: Path, cache: Path) -> dict[str, Any]:
    """Run lm-eval's `simple_evaluate` on the parts' items, in its stock tasks over the local files."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    results: dict[str, Any] = simple_evaluate(
        model=lm,
        tasks=[stock(part, folder, cache) for part in parts],
        task_manager=TaskManager(include_defaults=False),
        samples={part.name: list(part.rows) for part in parts},
        bootstrap_iters=0,
        log_samples=True,
    )
    return results
