"""The lm-eval model class against lm-eval's own Hugging Face class around the same model."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, get_peft_model

from alignment.models import loading
from alignment.models.loading import Dtype
from alignment.runtime import Refused
from alignment.scoring.benchmarks.harness import SharedPrefix

WINDOW = 96  # tokens: the tiny model's own window is longer than any text here
PAIRS = [
    ("The sky is", " blue"),
    ("The sky is", " black at night"),
    ("The sky is", " b"),
    ("The sky is", "."),
    ("The grass is  ", "green"),
    ("The grass is", " green"),
    ("\n\t", "x"),
    ("", "A text of its own"),
    ("", " "),
    ("Ein Käsebrot und ein", " Bier 🍺"),
    ("a" * 150, " too long for the window"),
]
TEXTS = ["x", "A text of one window.", "0123456789" * 25, "ab" * (WINDOW // 2), "c" * (WINDOW - 1), ""]


@pytest.fixture(scope="module")
def pair(tiny: Path) -> tuple[SharedPrefix, Any]:
    """Ours and lm-eval's around one model, which reads a short window only."""
    model, tokenizer = loading.load_base(tiny, Dtype.float32, "cpu"), loading.tokenizer(tiny)
    model.config.max_position_embeddings = WINDOW
    ours = SharedPrefix(model, tokenizer, token_budget=256)
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, add_bos_token=True)
    assert theirs.max_length == WINDOW
    return ours, theirs


def instances(pairs: list[tuple[str, ...]], kind: Any = "loglikelihood") -> list[Instance]:
    return [Instance(kind, {}, pair, 0, ("task", number, 1)) for number, pair in enumerate(pairs)]


def test_loglikelihoods_are_those_of_lm_eval_s_own_class(
    pair: tuple[SharedPrefix, Any], caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = (lm.loglikelihood(instances([*PAIRS])) for lm in pair)
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in theirs], rel=0, abs=1e-4)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert f"1 of {len(PAIRS)} requests exceed the model's {WINDOW} tokens: their beginning is left out" in caplog.text


def test_what_the_model_would_say_is_greedy_in_both_classes(pair: tuple[SharedPrefix, Any]) -> None:
    choices = [("The sky is", chr(byte)) for byte in range(128)]
    ours, theirs = (lm.loglikelihood(instances([*choices])) for lm in pair)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]


def test_rolling_loglikelihoods_are_those_of_lm_eval_s_own_class(pair: tuple[SharedPrefix, Any]) -> None:
    requests = instances([(text,) for text in TEXTS], "loglikelihood_rolling")
    ours, theirs = (lm.loglikelihood_rolling(requests) for lm in pair)
    assert ours == pytest.approx(theirs, rel=0, abs=1e-3)
    assert len(set(ours)) == len(TEXTS)


def test_tokens_are_scored_as_lm_eval_s_own_class_scores_them(pair: tuple[SharedPrefix, Any]) -> None:
    requests = [(("", ""), [256, 1, 2], [3, 4]), (("", ""), [256, 1, 2], [3, 5])]
    requests.append((("", ""), [256, *range(WINDOW)], [3, 5]))  # loses its beginning
    ours, theirs = (lm._loglikelihood_tokens(requests) for lm in pair)
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in theirs], rel=0, abs=1e-4)


def test_text_that_spells_a_control_token_stays_text(pair: tuple[SharedPrefix, Any]) -> None:
    lm, _ = pair
    control = set(lm.tokenizer.all_special_ids)
    for text in ("<s>", "a</s>b", "<s><s> x", "<|im_start|>user", "</s>"):
        bos, *rest = lm.tok_encode(text)
        assert bos == lm.tokenizer.bos_token_id
        assert control.isdisjoint(rest) and bytes(map(ord, lm.tokenizer.decode(rest))) == text.encode()
        assert lm.tok_encode(text, add_special_tokens=False) == rest
        request = lm._pair(text, " and so on")
        assert control.isdisjoint([*request.context[1:], *request.continuation])


def test_generated_text_is_refused_by_the_task_s_name(pair: tuple[SharedPrefix, Any]) -> None:
    request = Instance("generate_until", {}, ("Why?", {"until": ["\n"]}), 0, ("gsm8k", 0, 1))
    with pytest.raises(Refused, match=r"the task gsm8k needs generated text.*--model hf"):
        pair[0].generate_until([request])


def test_lm_eval_s_command_line_finds_it_and_attaches_an_adapter(tiny: Path, tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        adapted = get_peft_model(loading.load_base(tiny, Dtype.float32, "cpu"), config)
    loading.save_adapter(adapted, loading.tokenizer(tiny), tiny, tmp_path / "sft", {"base": loading.identity(tiny)})
    assert get_model("shared-prefix") is SharedPrefix
    requests = instances([("The sky is", " blue"), ("The sky is", " green")])

    def scores(arguments: str) -> list[float]:
        lm = SharedPrefix.create_from_arg_string(arguments, {"batch_size": 1, "device": "cpu"})
        assert lm.engine.token_budget == 512
        return [value for value, _ in lm.loglikelihood(requests)]

    base = scores(f"pretrained={tiny},token_budget=512")
    tuned = scores(f"pretrained={tiny},token_budget=512,peft={tmp_path / 'sft'}")
    plain: Any = HFLM(pretrained=str(tiny), device="cpu", batch_size=1, dtype="float32", add_bos_token=True)
    assert base == pytest.approx([value for value, _ in plain.loglikelihood(requests)], rel=0, abs=1e-4)
    assert all(abs(one - other) > 1e-2 for one, other in zip(base, tuned, strict=True))


def test_lm_eval_s_own_classes_stay_registered() -> None:
    code = "import alignment.scoring.benchmarks.harness; from lm_eval.api.registry import get_model; get_model('hf')"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
