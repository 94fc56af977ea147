"""Base models and the adapters on them: load, save, lineage.

In: folders of safetensors and a tokenizer. Out: models, and adapter folders that know what they were made from.
"""

import sys
import warnings
from enum import StrEnum
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.models import loadable
from alignment.runtime import Refused, files

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LINEAGE = "lineage.json"
ADAPTER = "adapter_model.safetensors"
BITSANDBYTES = "bitsandbytes==0.50.2"  # no dependency: it would slow every start down


class Device(StrEnum):
    """Where models are computed."""

    cpu = "cpu"
    cuda = "cuda"


class Dtype(StrEnum):
    """The precision of weights and of arithmetic."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class Quantization(StrEnum):
    """How a base model's weights are kept while an adapter on it is trained."""

    none = "none"
    nf4 = "nf4"


def instruct(base: Path) -> bool:
    """Return whether the base model has a chat template of its own, and so was already tuned on conversations."""
    return (base / "chat_template.jinja").exists() or "chat_template" in files.read_json(base / "tokenizer_config.json")


def longest(config: Any) -> int:
    """Return how many tokens a model can read by its configuration; `sys.maxsize` where that does not say."""
    text = config.get_text_config()
    stated = (getattr(text, name, None) for name in ("max_position_embeddings", "max_seq_len"))  # the latter is MPT's
    return next((int(tokens) for tokens in stated if tokens), sys.maxsize)


def longest_row(base: Path) -> int:
    """Return how many tokens the base model in a folder can read, as `longest`."""
    return longest(loadable.configuration(base, str(base)))


def tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """Load the tokenizer in a model's folder.

    Raises:
        Refused: as `loadable.tokenizer`.
    """
    return loadable.tokenizer(folder, str(folder))


def load_base(
    folder: Path, dtype: Dtype, device: str, quantization: Quantization = Quantization.none
) -> "PreTrainedModel":
    """Load the base model in evaluation mode, from safetensors only and without remote code.

    Args:
        folder: the model's folder.
        dtype: precision of weights and arithmetic; of arithmetic alone where weights are quantised.
        device: cpu or cuda.
        quantization: `nf4` keeps the weights of linear layers in 4 bits, as QLoRA does (Dettmers et al. 2023).

    Raises:
        Refused: bitsandbytes, which quantises, is not installed; or the folder does not hold every tensor of a causal
            model, as `loadable.load` has it.
    """
    options = _nf4(dtype, device) if quantization is Quantization.nf4 else {}
    model = loadable.load(folder, str(folder), dtype=str(dtype), **options)
    model = (model if options else model.to(device)).eval()
    loadable.refuse_foresight(model, str(folder))
    return model


def _nf4(dtype: Dtype, device: str) -> dict[str, Any]:
    import torch
    from transformers import BitsAndBytesConfig

    if not find_spec("bitsandbytes"):
        raise Refused(
            "quantization nf4 needs bitsandbytes, which is not installed; run "
            f"`.venv/bin/pip install {BITSANDBYTES}`, or set `quantization: none` in params.yaml"
        )
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )
    return {"quantization_config": config, "device_map": {"": device}}


def load(
    base: Path,
    checkpoint: Path,
    dtype: Dtype,
    device: str,
    trainable: bool = False,
    quantization: Quantization = Quantization.none,
) -> "PreTrainedModel":
    """Load the model of a checkpoint in evaluation mode: the base, or the base with the adapter in `checkpoint`.

    Raises:
        Refused: the adapter was trained on another base, or changes nothing; or as `adapt`.
    """
    model = load_base(base, dtype, device, quantization)
    if checkpoint == base:
        return model
    found, wanted = lineage(checkpoint)["base"], identity(base)
    if found != wanted:
        raise Refused(
            f"{checkpoint} is an adapter on another base than {base}:\n  its lineage.json says {found}\n"
            f"  {base} is {wanted}\ntrain it again with `dvc repro`, or bring its base back with `dvc checkout`"
        )
    adapted = adapt(model, checkpoint, trainable)
    if not _changes(adapted):
        raise Refused(
            f"the adapter in {checkpoint} changes nothing: with it the model says what {base} says, and would score "
            "the same; look at its learning rate and its steps, and train it again with `dvc repro --force`"
        )
    return adapted


def adapt(model: "PreTrainedModel", checkpoint: Path, trainable: bool = False) -> Any:
    """Return a base model with the adapter in `checkpoint`, in evaluation mode.

    Every tensor of the adapter comes from its file.

    Raises:
        Refused: the file is no safetensors, or lacks a tensor, or has another one or another shape.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    loadable.refuse_other_weights(checkpoint, ADAPTER)
    with warnings.catch_warnings():
        # PEFT warns of some of what is refused below, and passes over the rest.
        warnings.filterwarnings("ignore", message="Found missing adapter keys|Some weights of PeftModel")
        adapted: Any = PeftModel.from_pretrained(
            model, checkpoint, is_trainable=trainable, ignore_mismatched_sizes=True
        ).eval()
    # Whenever PEFT saves a checkpoint it looks for the base's configuration, on the hub where the name is no folder.
    adapted.peft_config["default"].base_model_name_or_path = model.name_or_path
    stated = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    wanted = {key: list(part.shape) for key, part in stated.items()}
    with safe_open(checkpoint / ADAPTER, framework="numpy") as stored:
        found = {key: stored.get_slice(key).get_shape() for key in stored.keys()}  # noqa: SIM118
    shapes = {key: f"{found[key]}, wanted {wanted[key]}" for key in found.keys() & wanted if found[key] != wanted[key]}
    way = "bring it back with `dvc checkout`, or train it again with `dvc repro --force`"
    missing, unknown = wanted.keys() - found, found.keys() - wanted
    loadable.refuse_other_tensors(missing, unknown, shapes, f"the adapter in {checkpoint}", way)
    return adapted


def _changes(adapted: Any) -> bool:
    """Return whether an adapter changes any logit of a few tokens."""
    import torch

    ids = torch.arange(8, device=adapted.device)[None] % adapted.config.vocab_size
    with torch.inference_mode():
        tuned = adapted(input_ids=ids).logits
        with adapted.disable_adapter():
            return not torch.equal(tuned, adapted(input_ids=ids).logits)


def identity(base: Path) -> str:
    """Hash a base model: one digest over the files that its provenance names, with their SHA-256."""
    return files.digest(files.read_json(base / "provenance.json")["files"])


def where(base: Path) -> dict[str, Any]:
    """Return the base model as PEFT loads it.

    It is the hub's repository, or the folder's path relative to the pipeline's own folder.
    """
    provenance = files.read_json(base / "provenance.json")
    if provenance["source"] == "hub":
        return {"base_model_name_or_path": provenance["repository"], "revision": provenance["revision"]}
    return {"base_model_name_or_path": "/".join(base.parts[-2:]), "revision": None}  # `models/base`


def versions() -> dict[str, str]:
    """Return the versions of the libraries that can change a trained adapter's bytes."""
    return {name: metadata.version(name) for name in ("accelerate", "peft", "torch", "transformers", "trl")}


def lineage(adapter: Path) -> dict[str, Any]:
    """Read what an adapter was made from.

    Raises:
        Refused: the folder has no lineage.
    """
    if not (adapter / LINEAGE).is_file():
        raise Refused(f"{adapter} has no {LINEAGE}, so nothing says on which base it was trained; run `dvc repro`")
    return dict(files.read_json(adapter / LINEAGE))


def save_adapter(model: "PeftModel", chat_tokenizer: Any, base: Path, out: Path, made_from: dict[str, Any]) -> None:
    """Write the adapter `default` with its tokenizer and lineage, and nothing that varies from run to run.

    Plain PEFT can load it: the tokenizer has its chat template, and the adapter's configuration names the base.

    Every process must call it, since FSDP shards the weights over them; the first one writes.
    """
    from torch import distributed
    from torch.distributed.tensor import DTensor

    weights = {name: part for name, part in model.state_dict().items() if "lora_" in name}
    weights = {name: part.full_tensor() if isinstance(part, DTensor) else part for name, part in weights.items()}
    if distributed.is_initialized() and distributed.get_rank():
        return
    with files.whole(out) as partial:
        model.save_pretrained(str(partial), selected_adapters=["default"], state_dict=weights)
        chat_tokenizer.save_pretrained(str(partial))
        (partial / "README.md").unlink(missing_ok=True)
        config = files.read_json(partial / "adapter_config.json")
        config |= where(base)
        # PEFT keeps sets, whose order changes with the interpreter's hash seed.
        ordered = {k: sorted(v) if k.endswith("modules") and isinstance(v, list) else v for k, v in config.items()}
        files.write_json(partial / "adapter_config.json", ordered)
        files.write_json(partial / LINEAGE, made_from)
