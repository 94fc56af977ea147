"""Models' folders: which of them can be loaded whole, trained and scored; one check for `fetch` and for every load.

In: a folder with `config.json`, safetensors and a tokenizer. Out: a model whose every tensor came from that folder and
a tokenizer whose every token it knows; or a refusal that says what is wrong. Weights are never made up, remote code
never runs, pickles are never read.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.runtime import Refused, files

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

WEIGHTS = "model*.safetensors"
INDEX = "model.safetensors.index.json"
TEMPLATE_TOKENS = ("<|im_start|>", "<|im_end|>")  # that chat.py writes where a vocabulary has them
SHOWN = 3  # names that a refusal lists before it counts
# What a folder from anywhere makes transformers and PEFT raise.
UNREADABLE = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError,
              TypeError, ValueError)  # fmt: skip

log = logging.getLogger(__name__)


def check(folder: Path, name: str) -> None:
    """Check that a folder holds a causal model, every tensor of it, and a tokenizer that agrees with it.

    The model is loaded on the meta device: names and shapes are read, and no weights.

    Args:
        folder: the model's, complete.
        name: its name in messages.

    Raises:
        Refused: it cannot be loaded whole, trained and scored.
    """
    from peft import LoraConfig, get_peft_model

    words = tokenizer(folder, name)
    try:
        model = load(folder, name, dtype="auto", device_map={"": "meta"})
    except UNREADABLE as error:
        raise Refused(
            f"{name}: transformers cannot build this model ({_brief(error)}); choose another `model`"
        ) from None
    _refuse_unknown_tokens(words, model.get_input_embeddings().weight.shape[0], name)
    try:
        get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    except UNREADABLE as error:
        raise Refused(f"{name}: PEFT cannot put an adapter on it ({_brief(error)}); choose another `model`") from None


def configuration(folder: Path, name: str) -> "PreTrainedConfig":
    """Load the configuration of a causal model that transformers knows and that is not quantised.

    A padding token that the embedding has no row for is left out.

    Raises:
        Refused: it is another kind of model, or needs code of its own, or cannot be read.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING, AutoConfig

    path = folder / "config.json"
    if not path.is_file():
        raise Refused(f"{name} has no config.json, so nothing says what model it is; complete that folder")
    found = files.read_json(path)
    stated = found if isinstance(found, dict) else {}
    kind = stated.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        own = "needs code of its own, and code from a repository is never run" if "auto_map" in stated else "is unknown"
        raise Refused(f"{name}: its `model_type` {kind!r} {own}; choose a `model` that transformers itself knows")
    if method := stated.get("quantization_config"):
        how = method.get("quant_method", "some method") if isinstance(method, dict) else method
        raise Refused(
            f"{name}: its weights are quantised ({how}), which this pipeline does not train on; choose "
            "the repository with the whole weights as `model`, and `quantization: nf4` where memory is short"
        )
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        text = config.get_text_config()
    except (*UNREADABLE, StrictDataclassError) as error:
        raise Refused(f"{name}: its config.json cannot be read ({_brief(error)}); choose another `model`") from None
    _refuse_other_kinds(config, name)
    rows, padding = getattr(text, "vocab_size", None), getattr(text, "pad_token_id", None)
    if rows is not None and padding is not None and not 0 <= padding < rows:
        text.pad_token_id = None  # torch knows no such row; masks hide padding, whatever stands there
    return config


def _refuse_other_kinds(config: "PreTrainedConfig", name: str) -> None:
    """Refuse a model that does not predict each token from those before it with attention."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    kind = config.model_type
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or getattr(config, "is_encoder_decoder", False):
        found = "an encoder with a decoder, or no language model"
    elif type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        found = "a masked language model, whose tokens see those after them"
    # PEFT refuses Mamba, and RWKV rescales its weights for evaluation without those of an adapter on them.
    elif MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._is_stateful and not hasattr(config, "num_attention_heads"):
        found = "a recurrent model without attention, on which adapters do not work"
    else:
        return
    raise Refused(f"{name} is {found} (`model_type` {kind!r}); choose a decoder such as Llama as `model`")


def tokenizer(folder: Path, name: str) -> "PreTrainedTokenizerBase":
    """Load the tokenizer in a model's folder; pad with EOS where the embedding has no row for its padding token.

    Raises:
        Refused: there is no tokenizer, it makes no tokens, or the model is one that `configuration` refuses.
    """
    from transformers import AutoTokenizer

    rows = getattr(configuration(folder, name).get_text_config(), "vocab_size", None)
    try:
        words = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        found = words("a", add_special_tokens=False).input_ids
    except Exception as error:  # tokenizers raises nothing narrower
        raise Refused(
            f"{name}: its tokenizer cannot be loaded ({_brief(error)}); wanted a tokenizer.json that belongs to the "
            "model; complete that folder, or choose another `model`"
        ) from None
    if not found:
        raise Refused(f"{name}: its tokenizer makes no tokens of a text; put the model's own tokenizer.json there")
    if rows is not None and words.pad_token_id is not None and words.pad_token_id >= rows:
        words.pad_token = words.eos_token
    return words


def _refuse_unknown_tokens(words: "PreTrainedTokenizerBase", rows: int, name: str) -> None:
    """Refuse a tokenizer that may produce tokens for which the embedding has no row.

    A special token that neither a text nor a template of ours writes may lie beyond, as one for images does in Gemma 3.
    """
    special = {token.content for token in words.added_tokens_decoder.values() if token.special}
    written = {words.bos_token, words.eos_token, words.unk_token, *TEMPLATE_TOKENS}
    beyond = sorted(
        (number, token)
        for token, number in words.get_vocab().items()
        if number >= rows and (token in written or token not in special)
    )
    if beyond:
        raise Refused(
            f"{name}: its embedding has {rows} rows, and {len(beyond)} of its tokenizer's tokens have none "
            f"({_some(f'{token!r} is {number}' for number, token in beyond)}); the tokenizer is another model's, or "
            "tokens were added without a resize; put the model's own tokenizer there, or choose another `model`"
        )


def load(folder: Path, name: str, **options: Any) -> "PreTrainedModel":
    """Load a causal model in evaluation mode, with every tensor from the folder's safetensors.

    Args:
        folder: the model's folder.
        name: its name in messages.
        options: keyword arguments of `from_pretrained`.

    Raises:
        Refused: as `configuration`; or a file, a tensor or its shape is not what the configuration asks for.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    config = configuration(folder, name)
    _check_files(folder, name)
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if not kind._supports_sdpa:
        log.warning("%s: transformers has no SDPA for %s: eager attention is used, slower and with more memory",
                    name, kind.__name__)  # fmt: skip
    with _without_report():
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            attn_implementation="sdpa" if kind._supports_sdpa else "eager",
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,  # without it transformers asks whoever sits at the terminal
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported instead, and refused here
            **options,
        )
    shapes = {key: f"{list(there)}, wanted {list(wanted)}" for key, there, wanted in found["mismatched_keys"]}
    way = "choose another `model`, or save it again whole"
    refuse_other_tensors(found["missing_keys"], found["unexpected_keys"], shapes, f"{name} as a {kind.__name__}", way)
    return model


@contextmanager
def _without_report() -> Iterator[None]:
    """Keep transformers from printing its table of tensors, where mismatches can be ignored, and its bar."""
    from transformers.utils import logging as transformers_logging

    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()  # stages have their own
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def refuse_other_tensors(
    missing: Iterable[str], unexpected: Iterable[str], shapes: dict[str, str], name: str, way: str
) -> None:
    """Refuse weights that are not exactly the model's.

    A library would fill missing tensors with random values and drop unknown ones.

    Args:
        missing: tensors that the model has and the files do not.
        unexpected: tensors that the files have and the model does not.
        shapes: found and wanted shapes of those that differ, by name.
        name: the model's name in messages.
        way: what the message tells the user to do.
    """
    missing, unexpected = sorted(missing), sorted(unexpected)
    differing = [f"{key} is {shape}" for key, shape in sorted(shapes.items())]
    faults = {"missing": missing, "unknown": unexpected, "of another shape": differing}
    parts = [f"{len(names)} {what} ({_some(names)})" for what, names in faults.items() if names]
    if not parts:
        return
    if prefix := _prefix(set(missing), unexpected):
        way = (
            f"their names begin with {prefix!r}: save the model inside it again (torch.compile keeps it in `_orig_mod`)"
        )
    raise Refused(f"{name}: its tensors are not the model's: {'; '.join(parts)}. None is made up here; {way}")


def _prefix(missing: set[str], unexpected: list[str]) -> str:
    """Return the prefix that turns every unexpected name into that of a missing tensor, or "" if there is none."""
    if not unexpected:
        return ""
    prefixes = [unexpected[0].removesuffix(name) for name in missing if unexpected[0].endswith(name)]
    return next((prefix for prefix in prefixes if {name.removeprefix(prefix) for name in unexpected} <= missing), "")


def _check_files(folder: Path, name: str) -> None:
    """Check that all files of a model's weights are there, and are safetensors."""
    there = refuse_other_weights(folder, WEIGHTS, name)
    if "model.safetensors" in there:
        return
    if not (folder / INDEX).is_file():
        raise Refused(
            f"{name}: its weights lie in {len(there)} files ({_some(there)}) without {INDEX}, which says what belongs "
            "together; complete the folder, or choose another `model`"
        )
    index = files.read_json(folder / INDEX)
    tensors = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(tensors, dict) or not tensors:
        raise Refused(f"{name}: {INDEX} has no `weight_map`; bring it again, or choose another `model`")
    wanted = {str(file) for file in tensors.values()}
    if missing := sorted(wanted - set(there)):
        raise Refused(
            f"{name}: {len(missing)} of the {len(wanted)} files with weights that {INDEX} names are not there "
            f"({_some(missing)}); complete the folder, or choose another `model`"
        )


def refuse_other_weights(folder: Path, pattern: str, name: str = "") -> list[str]:
    """Check that a folder's weights are safetensors, before a library looks for pickles beside them.

    Args:
        folder: the folder with the weights.
        pattern: a glob pattern of the weights' file names.
        name: the folder's name in messages, by default its path.

    Returns:
        The names of the files.

    Raises:
        Refused: no file has such a name, or one of them is something else.
    """
    from safetensors import SafetensorError, safe_open

    paths = sorted(folder.glob(pattern))
    if not paths:
        raise Refused(
            f"{name or folder} has no {pattern}, and weights are read from nothing else; bring it with `dvc repro`"
        )
    for path in paths:
        try:
            with safe_open(path, framework="numpy"):
                pass
        except SafetensorError as error:
            raise Refused(
                f"{name or folder}: {path.name} is no safetensors file ({error}): it is damaged, or a pickle under "
                "that name, which is never read; bring it again with `dvc repro --force`, or choose another `model`"
            ) from None
    return [path.name for path in paths]


def refuse_foresight(model: "PreTrainedModel", name: str) -> None:
    """Refuse a loaded model whose predictions depend on tokens that follow.

    Raises:
        Refused: changing the last token changes a prediction before it.
    """
    import torch

    ids = torch.arange(8, device=model.device)[None] % model.config.get_text_config().vocab_size
    other = ids.clone()
    other[0, -1] = ids[0, 0]
    with torch.inference_mode():
        before, after = (model(input_ids=tokens, use_cache=False).logits[0, :-1].float() for tokens in (ids, other))
    # Experts take tokens in other groups, whose sums are rounded otherwise.
    bound = 1e-3 if model.dtype is torch.float32 else 0.05
    if (before - after).abs().max() > bound * before.std():
        raise Refused(f"{name}: its tokens see those after them, so it is no causal model; choose another `model`")


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
