"""One check of a model's folder: what is refused at `fetch` and at every load, what passes, what adapters must hold."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from alignment.fetching import base_model
from alignment.models import loadable, loading
from alignment.models.loading import Dtype
from alignment.runtime import Refused
from alignment.scoring.engine.engine import Engine
from alignment.scoring.engine.prefix_tree import Request
from alignment.training.logps import logps
from commands.doctor import access
from soak import broken_models
from soak.broken_models import EAGER, FAULTS, KINDS, PASSES, TENSORS, TOKENIZERS, broken


def fetched(model: Path, tmp_path: Path) -> Path:
    base_model.fetch_model(str(model), "mini", tmp_path / "downloads", tmp_path / "models/base")
    return tmp_path / "models/base"


@pytest.mark.parametrize("fault", [*TENSORS, *KINDS, *TOKENIZERS])
def test_a_fault_is_refused_at_fetch_by_name(fault: str, tiny: Path, tmp_path: Path) -> None:
    model = broken(tiny, fault, tmp_path / "a model")
    with pytest.raises(Refused, match=f"(?s){FAULTS[fault].says}") as refused:
        fetched(model, tmp_path)
    assert str(model) in str(refused.value) and ".partial" not in str(refused.value)
    assert not list((tmp_path / "models").iterdir())


@pytest.mark.parametrize("fault", TENSORS)
def test_weights_that_are_not_whole_are_refused_at_every_load(fault: str, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=f"(?s){FAULTS[fault].says}"):
        loading.load_base(broken(tiny, fault, tmp_path / "base"), Dtype.float32, "cpu")


@pytest.mark.parametrize("fault", PASSES)
def test_what_is_no_fault_passes_and_is_scored(fault: str, tiny: Path, tmp_path: Path) -> None:
    base = fetched(broken(tiny, fault, tmp_path / "a model"), tmp_path)
    model, words = loading.load_base(base, Dtype.float32, "cpu"), loading.tokenizer(base)
    assert words.pad_token_id < 261 and model.get_input_embeddings().weight.shape[0] == 261
    assert model.config._attn_implementation == ("eager" if fault in EAGER else "sdpa")
    context, reply = words("Is it late?").input_ids, words(" It is.", add_special_tokens=False).input_ids
    wanted = float(logps(model, context, reply).sum())
    requests = [Request(context, reply), Request(context, reply[:2])]
    score = Engine(model, 64).score(requests)[0].loglikelihood
    assert score == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("kind", EAGER)
def test_eager_attention_is_said(kind: str, tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loadable.check(broken(tiny, kind, tmp_path / "base"), "owner/name@v1")
    assert len([said for said in caplog.messages if "owner/name@v1: transformers has no SDPA for" in said]) == 1


def test_padding_beyond_the_embedding_becomes_eos(tiny: Path, tmp_path: Path) -> None:
    words = loading.tokenizer(broken(tiny, "a padding token beyond", tmp_path / "base"))
    assert words.pad_token == words.eos_token == "</s>"
    assert loading.tokenizer(tiny).pad_token == "<|pad|>"


def test_a_repository_is_checked_before_it_appears(tiny: Path, tmp_path: Path) -> None:
    broken(tiny, "a missing layer", tmp_path / "mirror/owner/name")
    with pytest.raises(Refused, match=r"owner/name@v1 as a LlamaForCausalLM: .* 9 missing"):
        base_model.fetch_model("owner/name@v1", str(tmp_path / "mirror"), tmp_path / "downloads", tmp_path / "base")
    assert not (tmp_path / "base").exists()


def test_no_weights_are_read_for_it(tiny: Path, tmp_path: Path) -> None:
    """The numbers may be anything: NaN passes, since their names and shapes are whole."""
    shutil.copytree(tiny, tmp_path / "base")
    broken_models.tensors(tmp_path / "base", lambda all_: {k: torch.full_like(v, torch.nan) for k, v in all_.items()})
    loadable.check(tmp_path / "base", "a model")


def test_the_doctor_checks_a_local_folder(tiny: Path, tmp_path: Path) -> None:
    (found,) = access.model({"model": str(broken(tiny, "a prefix", tmp_path / "base"))})
    assert "_orig_mod." in found.found
    (found,) = access.model({"model": str(broken(tiny, "as it is", tmp_path / "whole"))})
    assert found.found == str(tmp_path / "whole")


def test_a_model_whose_tokens_see_those_that_follow_is_refused_when_loaded(tiny: Path) -> None:
    model: Any = loading.load_base(tiny, Dtype.float32, "cpu")
    loadable.refuse_foresight(model, "a model")
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    model.config.is_causal = False
    with pytest.raises(Refused, match="its tokens see those after them"):
        loadable.refuse_foresight(model, "a model")


# Adapters


@pytest.fixture(scope="module")
def adapter(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    adapted: Any = get_peft_model(loading.load_base(tiny, Dtype.float32, "cpu"), lora)
    out = tmp_path_factory.mktemp("adapter") / "sft"
    loading.save_adapter(adapted, loading.tokenizer(tiny), tiny, out, {"base": loading.identity(tiny)})
    return out


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda all_: {k: v for k, v in all_.items() if "layers.1." not in k}, r"14 missing \(.*and 11 more\)"),
        (lambda all_: {}, "28 missing"),
        (lambda all_: {f"_orig_mod.{k}": v for k, v in all_.items()}, "'_orig_mod.'"),
        (lambda all_: all_ | {"base_model.model.lm_head.lora_C.weight": torch.ones(2)}, r"1 unknown \(.*lora_C"),
        (lambda all_: {k: v[:1].clone() if "lora_A" in k else v for k, v in all_.items()}, "14 of another shape"),
    ],
    ids=["a missing layer", "nothing", "a prefix", "an unknown tensor", "another rank"],
)
def test_an_adapter_that_is_not_whole_is_refused(
    change: Any, says: str, adapter: Path, tiny: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sft"
    shutil.copytree(adapter, out)
    loading.load(tiny, out, Dtype.float32, "cpu")
    broken_models.tensors(out, change, loading.ADAPTER)
    with pytest.raises(Refused, match=f"(?s)the adapter in {out}.*{says}"):
        loading.load(tiny, out, Dtype.float32, "cpu")
