"""Training: what is checked before the first step, what stops a run, and that DPO learns a learnable preference."""

import math
from pathlib import Path
from typing import Any

import pipeline
import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy.stats import binomtest

from alignment import files, models, training
from alignment.chat import IGNORED, Chat, Template
from alignment.command import Refused
from alignment.corpora import Role
from alignment.models import Dtype
from stages import dpo, sft

COMPARISON = {
    "id": "one",
    "prompt": [{"role": "user", "content": "May I?"}],
    "chosen": [{"role": "assistant", "content": "Gladly, if you like."}],
    "rejected": [{"role": "assistant", "content": "No."}],
}


@pytest.fixture(scope="module")
def chat(tiny: Path) -> Chat:
    return Chat(models.tokenizer(tiny), Template.chatml)


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything up to `sample`."""
    folder = tmp_path_factory.mktemp("sampled")
    pipeline.fetch_all(folder)
    for role in Role:
        pipeline.sample_role(folder, role)
    return folder


def adapted(tiny: Path, seed: int) -> Any:
    """The tiny model with a random adapter that changes what it says."""
    torch.manual_seed(seed)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    return get_peft_model(models.load_base(tiny, Dtype.float32, "cpu"), config)


def dpo_trainer(policy: Any, chat: Chat, rows: list[dict[str, list[int]]], out: Path) -> Any:
    settings = training.Settings(1e-3, 1, 1, 1, 0.0, 0, 10)
    arguments = settings.arguments(Dtype.float32, "cpu", out, len(rows))
    return dpo._trainer(policy, chat, rows, ["one"] * len(rows), 0.1, dpo.Loss.sigmoid, arguments)


@pytest.fixture
def rows(chat: Chat) -> list[dict[str, list[int]]]:
    return dpo.encode(chat, [COMPARISON])


def test_dpo_starts_at_ln_2_with_the_sft_policy_as_reference(
    tiny: Path, chat: Chat, rows: list[dict[str, list[int]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = adapted(tiny, seed=1)
    sft_logps = dpo.reply_logps(policy.eval(), rows)
    trainer = dpo_trainer(policy, chat, rows, tmp_path)
    state = torch.get_rng_state()
    dpo.check_start(trainer, rows, sft_logps, dpo.Loss.sigmoid)
    assert f"loss {math.log(2):.6f}" in capsys.readouterr().out
    assert torch.equal(state, torch.get_rng_state())
    assert trainer.model.training


def test_the_base_as_reference_is_refused(
    tiny: Path, chat: Chat, rows: list[dict[str, list[int]]], tmp_path: Path
) -> None:
    policy = adapted(tiny, seed=1)
    sft_logps = dpo.reply_logps(policy.eval(), rows)
    trainer = dpo_trainer(policy, chat, rows, tmp_path)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B.ref" in name:
            parameter.data.zero_()
    with pytest.raises(Refused, match="the reference is not the SFT policy"):
        dpo.check_start(trainer, rows, sft_logps, dpo.Loss.sigmoid)


def test_a_lost_sft_adapter_is_refused_though_the_loss_is_ln_2(
    tiny: Path, chat: Chat, rows: list[dict[str, list[int]]], tmp_path: Path
) -> None:
    policy = adapted(tiny, seed=1)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()
    sft_logps = dpo.reply_logps(policy.eval(), rows)
    trainer = dpo_trainer(policy, chat, rows, tmp_path)
    with torch.no_grad():
        first = float(trainer.compute_loss(trainer.model.eval(), trainer.data_collator(rows)))
    assert first == pytest.approx(math.log(2), abs=1e-6)
    with pytest.raises(Refused, match="changes nothing"):
        dpo.check_start(trainer, rows, sft_logps, dpo.Loss.sigmoid)


def test_dpo_loss_is_the_papers_equation(
    tiny: Path, chat: Chat, rows: list[dict[str, list[int]]], tmp_path: Path
) -> None:
    policy = adapted(tiny, seed=1)
    trainer = dpo_trainer(policy, chat, rows, tmp_path)
    torch.manual_seed(2)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B.default" in name:
            parameter.data += 0.02 * torch.randn_like(parameter)
    model = trainer.model.eval()
    (chosen, rejected), (ref_chosen, ref_rejected) = (
        dpo.reply_logps(model, rows)[0],
        dpo.reference_logps(model, rows)[0],
    )
    margin = 0.1 * ((chosen - ref_chosen) - (rejected - ref_rejected))
    with torch.no_grad():
        loss = float(trainer.compute_loss(model, trainer.data_collator(rows)))
    assert abs(margin) > 1e-3
    assert loss == pytest.approx(math.log1p(math.exp(-margin)), abs=1e-5)


def test_logps_are_those_of_a_plain_forward_pass(tiny: Path) -> None:
    model = models.load_base(tiny, Dtype.float32, "cpu")
    prompt, reply = [256, 10, 20, 30], [40, 50, 257]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + reply])).logits[0].double().log_softmax(-1)
    wanted = [float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(reply)]
    assert training.logps(model, prompt, reply).tolist() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(
    ("ids", "trained", "message"),
    [
        ([256, 1, 257], [False, False, False], "no token is trained"),
        ([256, 1, 2], [False, True, True], "must be a trained EOS"),
        ([256, 1, 257], [False, True, False], "must be a trained EOS"),
        ([256, 256, 1, 257], [False, False, True, True], "one BOS is wanted"),
        ([1, 257], [True, True], "one BOS is wanted"),
    ],
)
def test_rows_that_break_the_token_law_are_refused(
    chat: Chat, ids: list[int], trained: list[bool], message: str
) -> None:
    with pytest.raises(Refused, match=f"row r1: .*{message}"):
        training.check_tokens(chat, "r1", ids, trained)


def test_a_batch_that_cannot_be_split_is_refused() -> None:
    with pytest.raises(Refused, match="batch of 8 rows is no multiple of per_device_batch 3"):
        training.Settings(1e-3, 1, 8, 3, 0.0, 0, 10).arguments(Dtype.float32, "cpu", Path("x"), 8)


def test_a_loss_that_is_no_number_stops_with_step_and_rows(sampled: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"the loss is (nan|inf) at step \d+, in the rows [0-9a-f]{16}"):
        pipeline.train_sft(sampled, tmp_path, learning_rate=1e30)
    assert not (tmp_path / "models/sft").exists()
    assert not (tmp_path / "metrics/sft.json").exists()


def test_a_lost_row_is_noticed(sampled: Path, tmp_path: Path) -> None:
    chat = Chat(models.tokenizer(sampled / "models/base"), Template.chatml)
    rows = sft.encode(chat, training.read(sampled / "data/sampled/demonstrations.parquet", "train"))
    arguments = training.Settings(1e-3, 1, 1, 1, 0.0, 0, 10).arguments(Dtype.float32, "cpu", tmp_path, len(rows))
    model = models.load_base(sampled / "models/base", Dtype.float32, "cpu")
    lora = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": "all-linear"}
    trainer = sft._trainer(model, chat, rows[1:], ["x"] * len(rows[1:]), lora, arguments)
    with pytest.raises(Refused, match=f"{len(rows)} rows were sampled and {len(rows) - 1} reached the trainer"):
        training.run(trainer, len(rows))


def test_sft_trains_replies_and_nothing_else(sampled: Path) -> None:
    chat = Chat(models.tokenizer(sampled / "models/base"), Template.chatml)
    for example in training.read(sampled / "data/sampled/demonstrations.parquet", "train"):
        row = chat.demonstration(example["messages"])
        trained = [label for label in row["labels"] if label != IGNORED]
        said = "".join(turn["content"] + "</s>" for turn in example["messages"] if turn["role"] == "assistant")
        assert chat.tokenizer.decode(trained) == said


def test_reloaded_adapter_gives_the_figures_that_training_ended_with(sampled: Path, tmp_path: Path) -> None:
    pipeline.train_sft(sampled, tmp_path)
    base = sampled / "models/base"
    chat = Chat(models.tokenizer(base), Template.chatml)
    held = sft.encode(chat, training.read(sampled / "data/sampled/demonstrations.parquet", "heldout"))
    model = models.load(base, tmp_path / "models/sft", Dtype.float32, "cpu")
    losses = sft.heldout_loss(model, held)
    metrics = files.read_json(tmp_path / "metrics/sft.json")
    assert metrics["loss.heldout"] == pytest.approx(sum(losses) / len(losses), abs=1e-4)
    assert metrics["loss.heldout"] < metrics["loss.heldout_before"]


@pytest.mark.slow
# A stage is offline; this process is not, so PEFT asks for a configuration that no hub has.
@pytest.mark.filterwarnings("ignore:Unable to fetch remote file:UserWarning")
def test_dpo_learns_the_miniatures_preference(smollm2: Path, tmp_path: Path) -> None:
    """The embedded comparisons share one preference, so held-out accuracy must rise above one half."""
    params = pipeline.params("params.yaml")
    (tmp_path / "models").mkdir()
    (tmp_path / "models/base").symlink_to(smollm2)
    pipeline.fetch_rows(tmp_path, params["data"], params["preferences"])
    for role, heldout in ((Role.demonstrations, 2), (Role.comparisons, 16)):
        pipeline.sample_role(tmp_path, role, params, heldout=heldout)
    pipeline.train_sft(tmp_path, params=params)
    pipeline.train_dpo(tmp_path, params=params)
    metrics = files.read_json(tmp_path / "metrics/dpo.json")
    wins = round(metrics["heldout.accuracy"] * metrics["heldout.rows"])
    assert binomtest(wins, metrics["heldout.rows"], 0.5, alternative="greater").pvalue < 0.01
    assert metrics["heldout.margin_low"] > 0
