"""Models' folders with one fault each, and some that look like one and are none: for tests, and for campaigns."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from alignment.fetching import base_model
from alignment.runtime import files

WORDS = 256 + len(base_model.CONTROL_TOKENS)
INDEX = "model.safetensors.index.json"
Tensors = dict[str, torch.Tensor]


class Fault(NamedTuple):
    """A change to a whole folder, and the pattern of its refusal: "" where it must pass."""

    make: Callable[[Path], None]
    says: str = ""


def state(folder: Path, **changes: Any) -> None:
    """Change what `config.json` states; None takes a key out."""
    stated = files.read_json(folder / "config.json") | changes
    files.write_json(folder / "config.json", {key: value for key, value in stated.items() if value is not None})


def tensors(folder: Path, change: Callable[[Tensors], Tensors], name: str = "model.safetensors") -> None:
    """Change the tensors of a file."""
    from safetensors.torch import load_file, save_file

    save_file(change(load_file(folder / name)), folder / name, metadata={"format": "pt"})


def dropped(pattern: str) -> Callable[[Path], None]:
    """Return a fault that takes out the tensors whose names match a pattern."""
    return lambda folder: tensors(folder, lambda all_: {k: v for k, v in all_.items() if not re.search(pattern, k)})


def renamed(pattern: str, to: str) -> Callable[[Path], None]:
    """Return a fault that renames tensors."""
    return lambda folder: tensors(folder, lambda all_: {re.sub(pattern, to, k): v for k, v in all_.items()})


def added(**more: torch.Tensor) -> Callable[[Path], None]:
    """Return a fault that puts tensors in; `__` in a name is a dot."""
    return lambda folder: tensors(folder, lambda all_: all_ | {k.replace("__", "."): v for k, v in more.items()})


def steps(*makes: Callable[[Path], None]) -> Callable[[Path], None]:
    """Return a fault that does one thing after the other."""

    def make(folder: Path) -> None:
        for each in makes:
            each(folder)

    return make


def indexed(content: Any) -> Callable[[Path], None]:
    """Return a fault that writes another index of the shards."""
    return lambda folder: files.write_json(folder / INDEX, content)


def tied(folder: Path) -> None:
    """Tie the head to the embedding, and take the head out of the file."""
    state(folder, tie_word_embeddings=True)
    dropped("lm_head")(folder)


def shards(folder: Path) -> None:
    """Split the tensors over two files with an index."""
    from safetensors.torch import load_file, save_file

    whole = load_file(folder / "model.safetensors")
    place = {key: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, key in enumerate(sorted(whole))}
    for name in set(place.values()):
        save_file({key: whole[key] for key in whole if place[key] == name}, folder / name, metadata={"format": "pt"})
    files.write_json(folder / INDEX, {"metadata": {}, "weight_map": place})
    (folder / "model.safetensors").unlink()


def without(*names: str, sharded: bool = False) -> Callable[[Path], None]:
    """Return a fault that takes files out."""

    def make(folder: Path) -> None:
        if sharded:
            shards(folder)
        for name in names:
            (folder / name).unlink()

    return make


def words(folder: Path, *more: str, special: bool = False, **names: str) -> None:
    """Add tokens behind the tokenizer's last one, without a resize; name some of its tokens, such as `pad_token`."""
    tokenizer = base_model.byte_tokenizer()
    tokenizer.add_tokens(list(more), special_tokens=special)
    for name, token in names.items():
        setattr(tokenizer, name, token)
    tokenizer.save_pretrained(folder)


def fewer_rows(folder: Path) -> None:
    """Cut the embedding and the head to fewer rows than the tokenizer has tokens."""
    state(folder, vocab_size=200, pad_token_id=None, bos_token_id=1, eos_token_id=2)
    tensors(folder, lambda all_: {k: v[:200].clone() if len(v) == WORDS else v for k, v in all_.items()})


def another(kind: str, **options: Any) -> Callable[[Path], None]:
    """Return a fault that puts a tiny model of another architecture, with random weights, in place of the Llama.

    Args:
        kind: its `model_type`; the class is the causal one, or the masked one, or the one with an encoder.
        options: of its configuration.
    """

    def make(folder: Path) -> None:
        from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

        (folder / "model.safetensors").unlink()
        config = CONFIG_MAPPING[kind](vocab_size=WORDS, **options)
        auto = {"t5": AutoModelForSeq2SeqLM, "bert": AutoModelForMaskedLM}.get(kind, AutoModelForCausalLM)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            auto.from_config(config).save_pretrained(folder)

    return make


WIDTHS = {"hidden_size": 32, "num_hidden_layers": 2}
GEMMA = {**WIDTHS, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}

# Without SDPA in transformers, and sound all the same.
EAGER = {
    "gemma2": another("gemma2", **GEMMA, max_position_embeddings=256, sliding_window=64),
    "bloom": another("bloom", hidden_size=32, n_layer=2, n_head=4),
    "mpt": another("mpt", d_model=32, n_layers=2, n_heads=4, max_seq_len=128),
}
TENSORS = {
    "a prefix": Fault(renamed("^", "_orig_mod."), "'_orig_mod.'.*torch.compile"),
    "a prefix of every tensor but the tied head": Fault(steps(tied, renamed("^", "_orig_mod.")), "'_orig_mod.'"),
    "a missing layer": Fault(dropped(r"layers\.1\."), r"9 missing \(model\.layers\.1\..* and 6 more\)"),
    "a missing head": Fault(dropped("lm_head"), r"1 missing \(lm_head\.weight\)"),
    "a missing embedding": Fault(dropped("embed_tokens"), r"1 missing \(model\.embed_tokens\.weight\)"),
    "a missing norm": Fault(dropped(r"^model\.norm"), r"1 missing \(model\.norm\.weight\)"),
    "an extra layer": Fault(lambda folder: state(folder, num_hidden_layers=1), r"9 unknown \(model\.layers\.1\."),
    "an unknown tensor": Fault(added(model__gate=torch.ones(3)), r"1 unknown \(model\.gate\)"),
    "a bias that Llama has not": Fault(
        added(model__layers__0__self_attn__q_proj__bias=torch.ones(64)), r"1 unknown \(.*q_proj\.bias\)"
    ),
    "another shape": Fault(
        lambda folder: tensors(folder, lambda all_: all_ | {"model.norm.weight": torch.ones(32)}),
        r"1 of another shape \(model\.norm\.weight is \[32\], wanted \[64\]\)",
    ),
    "a misspelt tensor": Fault(renamed(r"layers\.0\.mlp\.up_proj", "layers.0.mlp.up"), "1 missing.*1 unknown"),
    "a missing shard": Fault(
        without("model-00002-of-00002.safetensors", sharded=True), r"1 of the 2 files .*model-00002-of-00002"
    ),
    "shards without an index": Fault(without(INDEX, sharded=True), f"2 files .* without {re.escape(INDEX)}"),
    "an index of nothing": Fault(steps(shards, indexed({})), "no `weight_map`"),
    "an index that leads out": Fault(
        steps(shards, indexed({"weight_map": {"a": "../a.safetensors"}})),
        r"not there \(\.\./a\.safetensors\)",
    ),
}
KINDS = {
    "an encoder with a decoder": Fault(
        another("t5", d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4), "an encoder with a decoder.*'t5'"
    ),
    "a masked model": Fault(
        another("bert", **WIDTHS, num_attention_heads=4, intermediate_size=64), "a masked language model.*'bert'"
    ),
    "mamba": Fault(another("mamba", **WIDTHS, state_size=8), "recurrent.*'mamba'"),
    "rwkv": Fault(another("rwkv", **WIDTHS, attention_hidden_size=32), "recurrent.*'rwkv'"),
    "quantised": Fault(lambda folder: state(folder, quantization_config=GPTQ), r"quantised \(gptq\)"),
    "an unknown type": Fault(lambda folder: state(folder, model_type="llamar"), "'llamar' is unknown"),
    "no type": Fault(lambda folder: state(folder, model_type=None), "`model_type` None is unknown"),
    "a type with code": Fault(
        lambda folder: state(folder, model_type="x", auto_map={"AutoConfig": "x.X"}), "'x' needs code of its own"
    ),
    "a width in words": Fault(lambda folder: state(folder, hidden_size="wide"), "config.json cannot be read"),
    "heads that do not divide": Fault(lambda folder: state(folder, num_attention_heads=3), "hidden|heads|shape"),
}
TOKENIZERS = {
    "no tokenizer": Fault(without("tokenizer.json"), "its tokenizer cannot be loaded"),
    "a tokenizer of nothing": Fault(
        lambda folder: files.write_json(folder / "tokenizer.json", {}), "its tokenizer cannot be loaded"
    ),
    "a tokenizer of another schema": Fault(
        lambda folder: files.write_json(folder / "tokenizer.json", {"added_tokens": [], "model": 5}),
        "its tokenizer cannot be loaded",
    ),
    "fewer rows than tokens": Fault(fewer_rows, "200 rows, and 60 of its tokenizer's tokens"),
    "added words": Fault(lambda folder: words(folder, "alignment"), "1 of its tokenizer's tokens.*'alignment' is 261"),
    "an end beyond": Fault(
        lambda folder: words(folder, "<end>", special=True, eos_token="<end>"),
        "'<end>' is 261",
    ),
}
PASSES = {
    "as it is": Fault(lambda folder: None),
    "a tied head that the file does not hold": Fault(tied),
    "rotary buffers, as Llama-2's": Fault(
        added(**{f"model__layers__{n}__self_attn__rotary_emb__inv_freq": torch.ones(8) for n in range(2)})
    ),
    "shards": Fault(shards),
    "names without `model.`": Fault(renamed(r"^model\.", "")),  # transformers adds it
    "a padding token beyond": Fault(lambda folder: words(folder, "[PAD]", special=True, pad_token="[PAD]")),
    "a padding index beyond": Fault(lambda folder: state(folder, pad_token_id=WORDS)),
    "a padding index of -1": Fault(lambda folder: state(folder, pad_token_id=-1)),
    "a special token for images beyond": Fault(lambda folder: words(folder, "<image>", special=True)),
    **{kind: Fault(make) for kind, make in EAGER.items()},
}
FAULTS = TENSORS | KINDS | TOKENIZERS | PASSES


def broken(whole: Path, fault: str, out: Path) -> Path:
    """Return a copy of a whole folder with one of `FAULTS`, without provenance, as a repository would have it."""
    shutil.copytree(whole, out)
    (out / "provenance.json").unlink()
    FAULTS[fault].make(out)
    return out
