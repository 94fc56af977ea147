"""Training is right: losses, gradients and figures against plain float64, faults refused before they cost an hour.

What a plan is made of is in `test_plan.py`, same bytes are in `test_laws.py`, killed runs in `test_resume.py`.
"""

import copy
import csv
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pipeline
import pyarrow as pa
import pytest
import torch
import trl
from accelerate import Accelerator
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from scipy.stats import binomtest
from torch.nn.functional import logsigmoid
from transformers import TrainingArguments
from trl.kernels import chunked_logprob
from trl.trainer import dpo_trainer as trl_dpo
from trl.trainer import sft_trainer as trl_sft
from trl.trainer import utils as trl_utils

from alignment.corpora import Role
from alignment.models import loading
from alignment.models.chat import IGNORED, Chat, Template
from alignment.models.loading import Dtype, Quantization
from alignment.objectives import dpo, sft
from alignment.runtime import Refused, files
from alignment.scoring.engine import engine
from alignment.training import checks, plan, run
from alignment.training.logps import logps
from alignment.training.plan import Budget
from alignment.training.settings import Settings, read_split
from stages import fetch

Row = dict[str, Any]
Curve = dict[str, list[float]]

BETA = 1.0  # large enough that the margins of short replies matter to the loss, and that hinge leaves some alone
TRL = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": []}  # else its defaults
BOS, EOS = 256, 257  # of the tiny model
LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": "all-linear"}
# A run whose figures move far, so that a small error would show.
RUN = {"batch": 8, "epochs": 2, "learning_rate": 1e-2, "warmup": 0.0}


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def demonstration(number: int, split: str = "train") -> Row:
    """A short demonstration; no two have as many tokens, and every third has two replies."""
    messages = [turn("user", f"Count, from {number}."), turn("assistant", " ".join("abcdefghijklm"[: 1 + number]))]
    if number % 3 == 0:
        messages += [turn("user", "On."), turn("assistant", "n" * (2 * number + 1))]
    return {"id": f"demonstration-{number}", "split": split, "messages": messages}


def comparison(number: int, split: str = "train") -> Row:
    """A short comparison; the longer reply is now the chosen one, now the rejected one."""
    replies = ["Gladly" + " indeed" * (number % 4), "No" + "!" * (1 + 5 * number % 17)]
    return {
        "id": f"comparison-{number}",
        "split": split,
        "prompt": [turn("user", "May I" + " please" * (number % 3) + "?")],
        "chosen": [turn("assistant", replies[number % 2])],
        "rejected": [turn("assistant", replies[1 - number % 2])],
        "margin": None,
    }


@pytest.fixture(scope="module")
def chat(tiny: Path) -> Chat:
    return Chat(loading.tokenizer(tiny), Template.chatml)


@pytest.fixture(scope="module")
def demonstrations(chat: Chat) -> list[Row]:
    return sft.encode(chat, [demonstration(number) for number in range(5)])


@pytest.fixture
def comparisons(chat: Chat) -> list[Row]:
    return dpo.encode(chat, [comparison(number) for number in range(5)])


@pytest.fixture(scope="module")
def short(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `sample` leaves it, with 11 and 3 short rows of each kind, and an SFT adapter."""
    folder = tmp_path_factory.mktemp("short")
    (folder / "models").mkdir()
    (folder / "models/base").symlink_to(tiny)
    for role, make in ((Role.demonstrations, demonstration), (Role.comparisons, comparison)):
        rows = [make(number, "train" if number < 11 else "heldout") for number in range(14)]
        files.write_parquet(folder / f"data/sampled/{role}.parquet", pa.Table.from_pylist(rows))
    pipeline.train_sft(folder, **RUN)
    return folder


def with_inputs(short: Path, folder: Path) -> Path:
    """A folder with the base and the rows of another one."""
    for name in ("models/base", "data"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(short / name)
    return folder


@pytest.fixture(scope="module")
def barely(short: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with an SFT adapter that changes little: 6e-3 nats a token, which bfloat16 tells from nothing."""
    folder = with_inputs(short, tmp_path_factory.mktemp("barely"))
    pipeline.train_sft(folder, **{**RUN, "learning_rate": 3e-4})
    return folder


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything up to `sample`, of the embedded corpora."""
    folder = tmp_path_factory.mktemp("sampled")
    pipeline.fetch_all(folder)
    pipeline.sample_role(folder, Role.demonstrations)
    return folder


def settings(**changes: Any) -> Settings:
    return Settings(
        **{
            "learning_rate": 1e-3,
            "budget": Budget.epochs,
            "epochs": 1,
            "batch": 8,
            "tokens": 1,
            "steps": 1,
            "per_device_batch": 2,
            "warmup": 0.0,
            "seed": 0,
            "checkpoint_steps": 10,
            "gradient_checkpointing": False,
            "dtype": Dtype.float32,
            "device": "cpu",
            "quantization": Quantization.none,
            "template": Template.chatml,
            **changes,
        }
    )


def adapted(tiny: Path) -> Any:
    """The tiny model with a random adapter that changes what it says."""
    torch.manual_seed(1)
    config = LoraConfig(**LORA, task_type="CAUSAL_LM", init_lora_weights=False)
    return get_peft_model(loading.load_base(tiny, Dtype.float32, "cpu"), config)


def dpo_trainer(
    policy: Any, chat: Chat, rows: list[Row], out: Path, loss: dpo.Loss = dpo.Loss.sigmoid, **changes: Any
) -> Any:
    return dpo.make_trainer(policy, chat, rows, BETA, loss, settings(**changes), out)


def sft_trainer(tiny: Path, chat: Chat, rows: list[Row], out: Path, **changes: Any) -> Any:
    lora = {**LORA, "lora_dropout": changes.pop("dropout", 0.0)}
    return sft.make_trainer(loading.load_base(tiny, Dtype.float32, "cpu"), chat, rows, lora, settings(**changes), out)


def trainable(model: Any) -> dict[str, torch.nn.Parameter]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def move(*adapters: Any) -> None:
    """Move each of some equal adapters by the same random amount."""
    for model in adapters:
        generator = torch.Generator().manual_seed(2)
        for weight in trainable(model).values():
            weight.data += 0.3 * torch.randn(weight.shape, generator=generator).to(weight.dtype)


def step_loss(trainer: Any, number: int = 0) -> float:
    """The loss of an optimiser step; its gradients are left in the trainer's model."""
    trainer.model.zero_grad()
    trainer.current_gradient_accumulation_steps = 1  # as the Trainer's loop has it, which takes a step for one batch
    step = trainer.step(number)
    return float(trainer.training_step(trainer.model, step, step.trained))


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """A copy of each trainable weight's gradient, in float64."""
    return {name: weight.grad.double() for name, weight in trainable(model).items() if weight.grad is not None}


def plain_logps(model: Any, prompt: list[int], reply: list[int]) -> torch.Tensor:
    """A reply's log-probabilities from one sequence alone, in the model's own precision."""
    logps = model(input_ids=torch.tensor([prompt + reply]), use_cache=False).logits[0].log_softmax(dim=-1)
    return logps[len(prompt) - 1 : -1].gather(1, torch.tensor(reply)[:, None])[:, 0]


def plain_dpo(loss: dpo.Loss, policy: Any, reference: Any, rows: list[Row]) -> tuple[torch.Tensor, list[float]]:
    """The papers' loss of some comparisons, and their margins."""
    losses, margins = [], []
    for row in rows:
        sides = []
        for side in ("chosen_ids", "rejected_ids"):
            with torch.no_grad():
                ref = plain_logps(reference, row["prompt_ids"], row[side]).sum()
            sides.append(plain_logps(policy, row["prompt_ids"], row[side]).sum() - ref)
        chosen, rejected = sides
        margin = BETA * (chosen - rejected)
        margins.append(margin.item())
        if loss is dpo.Loss.sigmoid:  # Rafailov et al. 2023, eq. 7
            losses.append(-logsigmoid(margin))
        elif loss is dpo.Loss.hinge:  # Zhao et al. 2023 (SLiC-HF), as Liu et al. 2024 (RSO) have it for this reward
            losses.append(torch.relu(1 - margin))
        else:
            # Azar et al. 2023, eq. 17, with log-ratios a token, as TRL has it: its comment says that the authors
            # confirmed that their results are of this form.
            each = chosen / len(row["chosen_ids"]) - rejected / len(row["rejected_ids"])
            losses.append((each - 1 / (2 * BETA)) ** 2)
    return torch.stack(losses).mean(), margins


def plain_sft(model: Any, rows: list[Row]) -> torch.Tensor:
    """The mean negative log-likelihood of all trained tokens of some demonstrations together."""
    logps = []
    for row in rows:
        trained = torch.tensor([label != IGNORED for label in row["labels"][1:]])
        logps.append(plain_logps(model, row["input_ids"][:1], row["input_ids"][1:])[trained])
    return -torch.cat(logps).mean()


def assert_near(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """All gradients are there, and within 1e-4 of the largest: float32's rounding."""
    assert found.keys() == wanted.keys() != set()
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    assert largest > 1e-3
    for name, gradient in found.items():
        off = float((gradient - wanted[name]).abs().max())
        assert off <= 1e-4 * largest, f"{name}: {off:.2g} of {largest:.2g}"


# Losses and gradients


@pytest.mark.parametrize("precomputed", [True, False], ids=["reference before", "reference in the step"])
@pytest.mark.parametrize("loss", dpo.Loss)
def test_a_step_of_dpo_has_the_loss_and_gradient_of_the_papers_equation(
    loss: dpo.Loss, precomputed: bool, tiny: Path, chat: Chat, comparisons: list[Row], tmp_path: Path
) -> None:
    policy = adapted(tiny)
    # Llama's norm rounds to float32 in any precision; all else of these copies is float64.
    reference, oracle = copy.deepcopy(policy).double(), copy.deepcopy(policy).double()
    if precomputed:
        dpo.add_reference(comparisons, policy.eval(), 1024, tmp_path / "reference.json")
    trainer = dpo_trainer(policy, chat, comparisons, tmp_path, loss)
    move(trainer.model, oracle)
    assert [len(part.rows) for part in trainer.step(0).passes] == [1, 2, 2]
    found = step_loss(trainer)
    wanted, margins = plain_dpo(loss, oracle, reference, comparisons)
    wanted.backward()
    assert min(margins) < -1 < 1 < max(margins)
    assert found == pytest.approx(wanted.item(), rel=1e-5)
    assert_near(gradients(trainer.model), gradients(oracle))


def test_no_beginning_of_a_sampled_table_is_taken_for_fewer_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    files.write_parquet(path, pa.table({"split": ["train"] * 50, "id": list(range(50))}))
    whole = path.read_bytes()
    assert len(read_split(path, "train")) == 50
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(Refused, match="damaged or cut short"):
            read_split(path, "train")


def test_a_step_of_sft_has_the_loss_and_gradient_of_its_trained_tokens_together(
    tiny: Path, chat: Chat, demonstrations: list[Row], tmp_path: Path
) -> None:
    trainer = sft_trainer(tiny, chat, demonstrations, tmp_path)
    move(trainer.model)
    oracle = adapted(tiny)
    oracle.load_state_dict(trainer.model.state_dict())
    assert [len(part.rows) for part in trainer.step(0).passes] == [1, 1, 3]
    found = step_loss(trainer)
    wanted = plain_sft(oracle.double(), demonstrations)
    wanted.backward()
    assert found == pytest.approx(wanted.item(), rel=1e-6)
    assert_near(gradients(trainer.model), gradients(oracle))


def as_process(patch: pytest.MonkeyPatch, rank: int, processes: int) -> None:
    """Have this process believe that it is one of several; nothing is exchanged."""
    for owner, names in ((TrainingArguments, ("world_size", "process_index")), (Accelerator, ("num_processes",))):
        for name in names:
            value = rank if name == "process_index" else processes
            patch.setattr(owner, name, property(lambda _, value=value: value))


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_the_mean_over_processes_is_the_gradient_of_the_step(
    stage: str,
    processes: int,
    tiny: Path,
    chat: Chat,
    demonstrations: list[Row],
    comparisons: list[Row],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Five rows go round neither two nor three processes; what DDP does with their gradients is to take the mean."""
    if stage == "sft":
        trainer = sft_trainer(tiny, chat, demonstrations, tmp_path)
    else:
        trainer = dpo_trainer(adapted(tiny), chat, comparisons, tmp_path)
    move(trainer.model)
    loss = step_loss(trainer)
    wanted = gradients(trainer.model)
    losses, found, taken = [], [], []
    monkeypatch.setattr(trainer.accelerator, "gather", lambda values: values.reshape(-1))  # several make a row
    for rank in range(processes):
        as_process(monkeypatch, rank, processes)
        checks.check(trainer, chat, rows=5)  # also where a process has no row of its own
        losses.append(step_loss(trainer))
        found.append(gradients(trainer.model))
        taken += [row for part in trainer.step(0).passes for row in part.rows]
    assert sorted(taken) == list(range(5))
    assert sum(losses) / processes == pytest.approx(loss, rel=1e-5)
    assert_near({name: sum(each[name] for each in found) / processes for name in wanted}, wanted)


@pytest.fixture
def plain_head(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """What gives TRL its own head back, which computes every position."""
    return lambda: monkeypatch.setattr(trl_utils, "_use_triton", chunked_logprob._use_triton)


@pytest.mark.parametrize("loss", dpo.Loss)
def test_dpo_has_the_loss_and_gradient_of_trls_own_trainer(
    loss: dpo.Loss, tiny: Path, chat: Chat, comparisons: list[Row], tmp_path: Path, plain_head: Callable[[], None]
) -> None:
    """Ours takes three forward passes, its references from our engine; TRL's takes one, with its own of all."""

    class Own(trl.DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset  # our tokens

    theirs = Own(
        model=adapted(tiny),
        args=trl.DPOConfig(str(tmp_path), beta=BETA, loss_type=[str(loss)], max_length=None, **TRL),
        train_dataset=Dataset.from_list(comparisons),
        processing_class=chat.tokenizer,
    )
    policy = adapted(tiny)
    dpo.add_reference(comparisons, policy.eval(), 1024, tmp_path / "reference.json")
    ours = dpo_trainer(policy, chat, comparisons, tmp_path, loss)
    move(ours.model, theirs.model)
    found = step_loss(ours)
    plain_head()
    assert not trl_utils._use_triton(torch.device("cpu"))
    theirs.current_gradient_accumulation_steps = 1
    wanted = theirs.training_step(theirs.model, theirs.data_collator(comparisons))
    assert found == pytest.approx(float(wanted), rel=1e-5)
    assert_near(gradients(ours.model), gradients(theirs.model))


def test_sft_has_the_loss_and_gradient_of_trls_own_trainer(
    tiny: Path, chat: Chat, demonstrations: list[Row], tmp_path: Path, plain_head: Callable[[], None]
) -> None:
    theirs = trl.SFTTrainer(
        model=adapted(tiny),
        args=trl.SFTConfig(str(tmp_path), max_length=None, **TRL),
        train_dataset=Dataset.from_list(demonstrations).remove_columns("id"),
        processing_class=chat.tokenizer,
    )
    ours = sft_trainer(tiny, chat, demonstrations, tmp_path)
    ours.model.load_state_dict(theirs.model.state_dict())
    found = step_loss(ours)
    plain_head()
    theirs.current_gradient_accumulation_steps = 1
    wanted = theirs.training_step(theirs.model, theirs.data_collator(list(theirs.train_dataset)))
    assert found == pytest.approx(float(wanted), rel=1e-6)
    assert_near(gradients(ours.model), gradients(theirs.model))


def test_logps_are_those_of_a_plain_forward_pass(tiny: Path) -> None:
    model = loading.load_base(tiny, Dtype.float32, "cpu")
    prompt, reply = [256, 10, 20, 30], [40, 50, 257]
    found = logps(model, prompt, reply).tolist()
    with torch.no_grad():
        wanted = plain_logps(model.double(), prompt, reply).tolist()
    assert found == pytest.approx(wanted, abs=1e-5)


# What does not change a run


TRAIN: dict[str, Callable[..., None]] = {"sft": pipeline.train_sft, "dpo": pipeline.train_dpo}


def train(stage: str, folder: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """Run a stage into `out`; its metrics."""
    TRAIN[stage](folder, out, **{**RUN, **({"dropout": 0.0} if stage == "sft" else {}), **changes})
    return dict(files.read_json(out / f"metrics/{stage}.json"))


def curve(out: Path, stage: str) -> Curve:
    """The columns of a run's curve."""
    with (out / f"metrics/curves/{stage}.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    return {name: [float(line[name]) for line in lines] for name in lines[0]}


@pytest.fixture(scope="module")
def whole(short: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs that compute each step in one forward pass."""
    out = {stage: tmp_path_factory.mktemp(f"whole-{stage}") for stage in TRAIN}
    for stage, folder in out.items():
        train(stage, short, folder, per_device_batch=8)
    return out


def assert_same_run(one: Path, other: Path, stage: str) -> None:
    """Two runs have one curve within 2e-5, in which what is learnt moves a hundred times as far."""
    found, wanted = curve(other, stage), curve(one, stage)
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        # At the first step all rewards are 0 but for rounding, which then says which is the larger.
        told = slice(1, None) if name == "reward_accuracy" else slice(None)
        assert found[name][told] == pytest.approx(values[told], rel=1e-5, abs=2e-5), name
    moves = {"sft": ["loss"], "dpo": ["loss", "reward_margin", "chosen_logps"]}[stage]
    assert all(abs(wanted[name][-1] - wanted[name][0]) > 2e-3 for name in moves)


@pytest.mark.parametrize("per_device_batch", [1, 2, 3, 4])
@pytest.mark.parametrize("stage", TRAIN)
def test_rows_a_forward_pass_do_not_change_a_run(
    stage: str, per_device_batch: int, short: Path, whole: dict[str, Path], tmp_path: Path
) -> None:
    train(stage, short, tmp_path, per_device_batch=per_device_batch)
    assert_same_run(whole[stage], tmp_path, stage)


@pytest.mark.parametrize("stage", TRAIN)
def test_gradient_checkpointing_does_not_change_a_run(
    stage: str, short: Path, whole: dict[str, Path], tmp_path: Path
) -> None:
    train(stage, short, tmp_path, per_device_batch=8, gradient_checkpointing=True)
    assert_same_run(whole[stage], tmp_path, stage)


@pytest.mark.parametrize("stage", TRAIN)
def test_padding_with_eos_changes_nothing(
    stage: str, short: Path, whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padding is masked by length: where a tokenizer pads with EOS, as many do, EOS is trained all the same."""
    spoil(monkeypatch, stage, lambda batch, _: batch["input_ids"].masked_fill_(batch["attention_mask"] == 0, EOS))
    train(stage, short, tmp_path, per_device_batch=8)
    assert curve(tmp_path, stage) == curve(whole[stage], stage)


# Faults, each planted where a library gives it to a stage


COLLATORS = {"sft": trl_sft.DataCollatorForLanguageModeling, "dpo": trl_dpo.DataCollatorForPreference}


def spoil(patch: pytest.MonkeyPatch, stage: str, fault: Callable[[Row, torch.Tensor], Any]) -> None:
    """Have the collator of a stage's trainer do something to its batch, and to its mask of what is trained."""
    collate, name = COLLATORS[stage].torch_call, "labels" if stage == "sft" else "completion_mask"

    def spoiled(self: Any, examples: list[Row]) -> Row:
        batch: Row = collate(self, examples)
        fault(batch, batch[name])
        return batch

    patch.setattr(COLLATORS[stage], "torch_call", spoiled)


def untrained(mask: torch.Tensor) -> int:
    """What says in a mask that a token is not trained: the smaller value, whichever mask it is."""
    return int(mask.min())


def eos_as_padding(batch: Row, mask: torch.Tensor) -> None:
    mask[batch["input_ids"] == EOS] = untrained(mask)


def eos_unseen_as_padding(batch: Row, mask: torch.Tensor) -> None:
    eos_as_padding(batch, mask)
    batch["attention_mask"][batch["input_ids"] == EOS] = 0


def two_bos(batch: Row, mask: torch.Tensor) -> None:
    batch["input_ids"][:, 1] = BOS


def nothing_trained(batch: Row, mask: torch.Tensor) -> None:
    mask[-1] = untrained(mask)


def trained_padding(batch: Row, mask: torch.Tensor) -> None:
    mask[batch["attention_mask"] == 0] = 1


FAULTS = [
    (eos_as_padding, "the last token must be a trained EOS"),
    (eos_unseen_as_padding, "(the last token must be a trained EOS|padding is trained)"),
    (two_bos, r"one BOS is wanted, at the start; found 2 at \[0, 1\]"),
    (nothing_trained, "no token is trained"),
    (trained_padding, "padding is trained"),
]


def assert_refused(stage: str, folder: Path, out: Path, message: str, **changes: Any) -> None:
    """A stage refuses with a message, and leaves no output."""
    with pytest.raises(Refused, match=message):
        train(stage, folder, out, **changes)
    left = {path.relative_to(out).parts[0] for path in out.rglob("*") if path.is_file() and path.suffix != ".lock"}
    assert left <= {"state"}


@pytest.mark.parametrize(("fault", "message"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS])
@pytest.mark.parametrize("stage", TRAIN)
def test_a_batch_that_breaks_the_token_law_is_refused(
    stage: str,
    fault: Callable[[Row, torch.Tensor], None],
    message: str,
    short: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spoil(monkeypatch, stage, fault)
    assert_refused(stage, short, tmp_path, rf"row (demonstration|comparison)-\d+: {message}")


@pytest.mark.parametrize("row", [0, 10])
@pytest.mark.parametrize("stage", TRAIN)
def test_a_row_that_is_lost_on_the_way_is_noticed(
    stage: str, row: int, short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Dataset.from_list
    monkeypatch.setattr(Dataset, "from_list", lambda rows: make([*rows[:row], *rows[row + 1 :]]))
    assert_refused(stage, short, tmp_path, "11 rows were sampled and 10 reached the trainer")


@pytest.mark.parametrize("stage", TRAIN)
def test_a_loss_that_is_no_number_stops_with_step_and_rows(stage: str, short: Path, tmp_path: Path) -> None:
    message = r"the loss is (nan|inf) at step \d+, in the rows (demonstration|comparison)-\d+"
    assert_refused(stage, short, tmp_path, message, learning_rate=1e30)


@pytest.mark.parametrize(
    ("ids", "trained", "message"),
    [
        ([BOS, 1, EOS], [False, False, False], "no token is trained"),
        ([BOS, 1, 2], [False, True, True], "must be a trained EOS"),
        ([BOS, 1, EOS], [False, True, False], "must be a trained EOS"),
        ([BOS, BOS, 1, EOS], [False, False, True, True], "one BOS is wanted"),
        ([1, EOS], [True, True], "one BOS is wanted"),
    ],
)
def test_rows_that_break_the_token_law_are_refused(
    chat: Chat, ids: list[int], trained: list[bool], message: str
) -> None:
    with pytest.raises(Refused, match=f"row r1: .*{message}"):
        checks.check_tokens(chat, "r1", ids, trained)


def test_sft_trains_replies_and_nothing_else(sampled: Path) -> None:
    chat = Chat(loading.tokenizer(sampled / "models/base"), Template.chatml)
    for example in read_split(sampled / "data/sampled/demonstrations.parquet", "train"):
        row = chat.demonstration(example["messages"])
        trained = [label for label in row["labels"] if label != IGNORED]
        said = "".join(turn["content"] + "</s>" for turn in example["messages"] if turn["role"] == "assistant")
        assert chat.tokenizer.decode(trained) == said


def reads(short: Path, folder: Path, longest: int) -> Path:
    """The folder with a base model that says that it can read no more tokens."""
    for name in ("data", "models/sft"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(short / name)
    shutil.copytree(short / "models/base", folder / "models/base")
    config = files.read_json(folder / "models/base/config.json")
    files.write_json(folder / "models/base/config.json", {**config, "max_position_embeddings": longest})
    return folder


@pytest.mark.parametrize("stage", TRAIN)
def test_a_row_longer_than_the_model_can_read_is_refused_by_its_id(
    stage: str, chat: Chat, short: Path, tmp_path: Path
) -> None:
    module, role = (sft, Role.demonstrations) if stage == "sft" else (dpo, Role.comparisons)
    table = short / f"data/sampled/{role}.parquet"
    rows = module.encode(chat, [row for split in ("train", "heldout") for row in read_split(table, split)])
    longest = max(rows, key=module.length)
    most = module.length(longest)
    message = rf"row {longest['id']} has {most} tokens, and the base model can read {most - 1}; .*`sample.max_tokens`"
    assert_refused(stage, reads(short, tmp_path, most - 1), tmp_path / "out", message)


def test_a_reference_is_never_computed_on_a_part_of_its_row(
    tiny: Path, comparisons: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = adapted(tiny).eval()
    monkeypatch.setattr(policy.config, "max_position_embeddings", max(map(dpo.length, comparisons)) - 2)
    with pytest.raises(Refused, match=r"tokens of context and \d+ of continuation; wanted .* the model can read"):
        dpo.add_reference(comparisons, policy, 1024, tmp_path / "reference.json")


# DPO's start


@pytest.mark.parametrize(
    ("loss", "wanted"),
    [(dpo.Loss.sigmoid, math.log(2)), (dpo.Loss.ipo, 1 / (2 * BETA) ** 2), (dpo.Loss.hinge, 1.0)],
)
def test_dpo_starts_without_rewards_and_with_the_sft_policy_as_reference(
    loss: dpo.Loss,
    wanted: float,
    tiny: Path,
    chat: Chat,
    comparisons: list[Row],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    policy = adapted(tiny)
    sft_logps = dpo.reply_logps(policy.eval(), comparisons)
    trainer = dpo_trainer(policy, chat, comparisons, tmp_path, loss)
    state = torch.get_rng_state()
    dpo.check_start(trainer, comparisons, sft_logps, loss, BETA)
    assert f"{loss} loss {wanted:.6f}" in capsys.readouterr().out
    assert torch.equal(state, torch.get_rng_state())
    assert trainer.model.training
    assert trainer.model.active_adapters == ["default"]
    assert {name.split(".")[-2] for name in trainable(trainer.model)} == {"default"}


def test_an_adapter_lost_before_dpo_is_refused_though_the_loss_is_ln_2(
    tiny: Path, chat: Chat, comparisons: list[Row], tmp_path: Path
) -> None:
    policy = adapted(tiny)
    silence(policy, "default")
    sft_logps = dpo.reply_logps(policy.eval(), comparisons)
    dpo.add_reference(comparisons, policy, 1024, tmp_path / "reference.json")
    trainer = dpo_trainer(policy, chat, comparisons, tmp_path)
    assert step_loss(trainer) == pytest.approx(math.log(2), abs=1e-6)
    with pytest.raises(Refused, match="the SFT adapter changes nothing"):
        dpo.check_start(trainer, comparisons, sft_logps, dpo.Loss.sigmoid, BETA)


def silence(model: Any, *adapters: str) -> None:
    """Have adapters of a model say what its base says."""
    for name, weight in model.named_parameters():
        if any(f"lora_B.{adapter}." in name for adapter in adapters):
            weight.data.zero_()


NOT_THE_REFERENCE = r"DPO: the reference is not the SFT policy: they differ by [0-9.e-]+ nats a token"


# Where both are lost, policy and reference are the base; in bfloat16, whose reference is taken in the step, the loss is
# ln 2 all the same.
@pytest.mark.parametrize("lost", [["ref"], ["default", "ref"]], ids=["reference", "both"])
@pytest.mark.parametrize("dtype", Dtype)
@pytest.mark.parametrize("start", ["short", "barely"])
def test_an_adapter_that_the_trainer_loses_is_refused(
    start: str,
    dtype: Dtype,
    lost: list[str],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make = trl.DPOTrainer.__init__

    def losing(self: Any, **options: Any) -> None:
        make(self, **options)
        silence(self.model, *lost)

    monkeypatch.setattr(trl.DPOTrainer, "__init__", losing)
    assert_refused("dpo", request.getfixturevalue(start), tmp_path, "DPO: the reference is", dtype=dtype)


def test_a_policy_that_does_not_start_at_the_sft_policy_is_refused(
    tiny: Path, chat: Chat, comparisons: list[Row], tmp_path: Path
) -> None:
    policy = adapted(tiny)
    sft_logps = dpo.reply_logps(policy.eval(), comparisons)
    trainer = dpo_trainer(policy, chat, comparisons, tmp_path)
    move(trainer.model)
    with pytest.raises(Refused, match="the policy is not the SFT policy: they differ by"):
        dpo.check_start(trainer, comparisons, sft_logps, dpo.Loss.sigmoid, BETA)


def test_the_base_as_dpos_reference_is_refused(short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score = engine.Engine.score

    def of_base(self: engine.Engine, *args: Any) -> list[engine.Score]:
        with self.model.disable_adapter():
            return score(self, *args)

    monkeypatch.setattr(engine.Engine, "score", of_base)
    assert_refused("dpo", short, tmp_path, NOT_THE_REFERENCE)


def test_an_sft_adapter_without_effect_is_refused(short: Path, tmp_path: Path) -> None:
    shutil.copytree(short / "models/sft", with_inputs(short, tmp_path) / "models/sft")
    weights = tmp_path / "models/sft/adapter_model.safetensors"
    kept = {name: weight * ("lora_B" not in name) for name, weight in load_file(weights).items()}
    save_file(kept, weights, metadata={"format": "pt"})
    assert_refused("dpo", tmp_path, tmp_path / "out", "the adapter in .*models/sft changes nothing")


# DPO's reference log-probabilities


def test_references_from_the_engine_are_those_of_a_plain_forward_pass(
    tiny: Path, comparisons: list[Row], tmp_path: Path
) -> None:
    policy = adapted(tiny).eval()
    dpo.add_reference(comparisons, policy, 64, tmp_path / "reference.json")
    policy.double()
    for row in comparisons:
        for side in ("chosen", "rejected"):
            with torch.no_grad():
                wanted = float(plain_logps(policy, row["prompt_ids"], row[f"{side}_ids"]).sum())
            assert abs(row[f"ref_{side}_logps"] - wanted) < 1e-4 * len(row[f"{side}_ids"])


def test_references_are_computed_once_and_used(tiny: Path, chat: Chat, comparisons: list[Row], tmp_path: Path) -> None:
    policy, kept = adapted(tiny).eval(), tmp_path / "reference.json"
    dpo.add_reference(comparisons, policy, 1024, kept)
    files.write_json(kept, [float(number) for number in range(10)])
    dpo.add_reference(comparisons, policy, 1024, kept)
    found = [(row["ref_chosen_logps"], row["ref_rejected_logps"]) for row in comparisons]
    assert found == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
    # They are what the loss is made of: here a margin of 1 less for each of the rejected replies.
    loss = step_loss(dpo_trainer(policy, chat, comparisons, tmp_path))
    assert loss != pytest.approx(math.log(2), abs=1)


def test_references_that_an_interrupted_run_left_are_checked(
    short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trl.DPOTrainer, "__init__", interrupted)
        train("dpo", short, tmp_path)
    (kept,) = tmp_path.glob("state/dpo-*/reference.json")
    files.write_json(kept, [logps - 1 for logps in files.read_json(kept)])
    assert_refused("dpo", short, tmp_path, NOT_THE_REFERENCE)


@pytest.mark.parametrize(("dtype", "before"), [(Dtype.float32, True), (Dtype.bfloat16, False)])
def test_references_are_computed_before_training_in_float32_alone(
    dtype: Dtype, before: bool, short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Row] = []
    spoil(monkeypatch, "dpo", lambda batch, _: seen.append(batch))
    train("dpo", short, tmp_path, dtype=dtype, epochs=1)
    assert {"ref_chosen_logps" in batch and "ref_rejected_logps" in batch for batch in seen} == {before}
    assert curve(tmp_path, "dpo")["loss"][0] == pytest.approx(math.log(2), abs=1e-6 if before else 1e-3)


# Figures


def recounted(patch: pytest.MonkeyPatch, stage: str) -> list[int]:
    """Trained tokens of each forward pass that TRL is given from now on."""
    owner = {"sft": trl.SFTTrainer, "dpo": trl.DPOTrainer}[stage]
    counts: list[int] = []
    step = owner.training_step

    def counted(self: Any, model: Any, batch: Row, *args: Any) -> Any:
        mask = batch["labels"] != IGNORED if stage == "sft" else batch["completion_mask"]
        counts.append(int(mask.sum()))
        return step(self, model, batch, *args)

    patch.setattr(owner, "training_step", counted)
    return counts


@pytest.mark.parametrize(
    "length",
    [{}, {"budget": Budget.tokens, "tokens": 1000, "steps": 5}, {"budget": Budget.tokens, "tokens": 201, "steps": 3}],
    ids=["epochs", "tokens", "fewer tokens"],
)
@pytest.mark.parametrize("stage", TRAIN)
def test_metrics_tell_what_was_trained(
    stage: str, length: dict[str, Any], short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = recounted(monkeypatch, stage)
    metrics = train(stage, short, tmp_path, **length)
    assert metrics["tokens.trained"] == sum(counts)
    assert metrics["rows"] == 11
    assert metrics["steps"] == length.get("steps", 4) == len(curve(tmp_path, stage)["loss"])
    assert length or metrics["passes"] == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"budget": Budget.tokens, "tokens": 10**8, "steps": 2}, "2,500,000 rows, more than 10,000; lower `tokens`"),
        ({"batch": 10**6}, "20,000 rows, more than 10,000; lower `batch`"),
    ],
)
def test_a_step_of_too_many_rows_is_refused_before_it_is_planned(changes: dict[str, Any], said: str) -> None:
    names = [str(number) for number in range(20_000)]
    with pytest.raises(Refused, match=re.escape(said)):
        settings(**changes).plan(names, [30] * 20_000, [20] * 20_000)


def test_a_budget_of_tokens_trains_unlike_datasets_alike(
    tiny: Path, sampled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LIMA's replies are long, the first ones of OpenOrca here shorter: as many steps, tokens and learning rates."""
    counts = recounted(monkeypatch, "sft")
    metrics, totals, longest = [], [], []
    for data in ("lima", "orca"):
        folder = tmp_path / data
        for name in ("models/base", "data/raw/benchmarks"):
            (folder / name).parent.mkdir(parents=True)
            (folder / name).symlink_to(sampled / name)
        fetch.corpus(data, folder / "data/raw/demonstrations", "mini", "", tmp_path / "downloads")
        pipeline.sample_role(folder, Role.demonstrations, {**pipeline.TINY, "data": data}, heldout=2)
        counts.clear()
        metrics.append(train("sft", folder, folder, budget=Budget.tokens, tokens=3000, steps=3))
        totals.append(sum(counts))
        chat = Chat(loading.tokenizer(tiny), Template.chatml)
        rows = sft.encode(chat, read_split(folder / "data/sampled/demonstrations.parquet", "train"))
        longest.append(max(sum(label != IGNORED for label in row["labels"]) for row in rows))
    lima, orca = metrics
    assert [lima["tokens.trained"], orca["tokens.trained"]] == totals
    assert lima["steps"] == orca["steps"] == 3
    assert abs(totals[0] - totals[1]) * 2 <= sum(longest)
    assert longest[0] > 1.5 * longest[1]
    assert lima["passes"] < orca["passes"]
    rates = [curve(tmp_path / data, "sft")["learning_rate"] for data in ("lima", "orca")]
    assert rates[0] == rates[1]


def held_out(chat: Chat, folder: Path, role: Role) -> list[Row]:
    encode = sft.encode if role is Role.demonstrations else dpo.encode
    return encode(chat, read_split(folder / f"data/sampled/{role}.parquet", "heldout"))


def test_the_saved_sft_adapter_has_the_held_out_loss_that_training_ended_with(
    short: Path, whole: dict[str, Path], chat: Chat
) -> None:
    metrics = files.read_json(whole["sft"] / "metrics/sft.json")
    rows = held_out(chat, short, Role.demonstrations)
    for name, adapter in (("heldout_before", short / "models/base"), ("heldout", whole["sft"] / "models/sft")):
        model = loading.load(short / "models/base", adapter, Dtype.float32, "cpu").double()
        with torch.no_grad():
            losses = [float(plain_sft(model, [row])) for row in rows]
        assert metrics[f"loss.{name}"] == pytest.approx(sum(losses) / len(rows), abs=1e-4)
    assert metrics["loss.heldout"] < metrics["loss.heldout_before"] - 0.01


def plain_distributions(model: Any, prompt: list[int], reply: list[int]) -> torch.Tensor:
    """Log-probabilities of the whole vocabulary at each token of a reply, from one sequence alone."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + reply]), use_cache=False).logits[0]
    return logits.log_softmax(dim=-1)[len(prompt) - 1 : -1]


def plain_kl(policy: Any, reference: Any, row: Row) -> float:
    """KL(π ‖ π_ref) of the next token, averaged over the tokens of both replies."""
    divergences = []
    for side in ("chosen_ids", "rejected_ids"):
        now, then = (plain_distributions(model, row["prompt_ids"], row[side]) for model in (policy, reference))
        divergences.append((now.exp() * (now - then)).sum(dim=-1))
    return float(torch.cat(divergences).mean())


def test_the_saved_dpo_adapter_has_the_held_out_figures_that_training_ended_with(
    short: Path, whole: dict[str, Path], chat: Chat
) -> None:
    base, rows = short / "models/base", held_out(chat, short, Role.comparisons)
    reference = loading.load(base, short / "models/sft", Dtype.float32, "cpu").double()
    policy = loading.load(base, whole["dpo"] / "models/dpo", Dtype.float32, "cpu").double()

    def logps(model: Any, side: str) -> torch.Tensor:
        with torch.no_grad():
            return torch.stack([plain_logps(model, row["prompt_ids"], row[f"{side}_ids"]).sum() for row in rows])

    chosen, rejected, ref_chosen, ref_rejected = (
        logps(model, side) for model in (policy, reference) for side in ("chosen", "rejected")
    )
    margins = pipeline.TINY["dpo"]["beta"] * ((chosen - ref_chosen) - (rejected - ref_rejected))
    wanted = {
        "accuracy": (margins > 0).double(),
        "margin": margins,
        "chosen_logps": chosen,
        "chosen_logps_before": ref_chosen,
        "rejected_logps": rejected,
        "rejected_logps_before": ref_rejected,
        "kl": torch.tensor([plain_kl(policy, reference, row) for row in rows]),
    }
    metrics = files.read_json(whole["dpo"] / "metrics/dpo.json")
    for name, values in wanted.items():
        assert metrics[f"heldout.{name}"] == pytest.approx(float(values.mean()), abs=1e-4), name
    assert metrics["heldout.kl"] > 1e-3
    assert abs(metrics["heldout.margin"]) > 1e-2


def test_held_out_kl_is_that_of_float64_and_never_negative(
    tiny: Path, chat: Chat, comparisons: list[Row], tmp_path: Path
) -> None:
    policy = adapted(tiny)
    reference, oracle = copy.deepcopy(policy).double(), copy.deepcopy(policy).double()
    model = dpo_trainer(policy, chat, comparisons, tmp_path).model.eval()
    assert [dpo._held(model, row).kl for row in comparisons] == [0.0] * 5  # before the first step
    move(model, oracle)
    for row in comparisons:
        wanted = plain_kl(oracle, reference, row)
        assert wanted > 0.01
        assert dpo._held(model, row).kl == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("stage", TRAIN)
def test_the_only_step_of_a_warm_up_trains(stage: str, short: Path, tmp_path: Path) -> None:
    train(stage, short, tmp_path, batch=100, epochs=1, warmup=0.1)
    before = loading.load(short / "models/base", short / "models/sft", Dtype.float32, "cpu").state_dict()
    after = load_file(tmp_path / f"models/{stage}/adapter_model.safetensors")
    learnt = {name: weight for name, weight in after.items() if "lora_B" in name}
    if stage == "sft":  # which starts at 0
        assert all(weight.any() for weight in learnt.values())
    else:
        assert not any(torch.equal(weight, before[name.replace(".weight", ".default.weight")])
                       for name, weight in learnt.items())  # fmt: skip


def test_a_warm_up_s_rates_are_those_of_its_steps(short: Path, tmp_path: Path) -> None:
    train("sft", short, tmp_path, batch=2, epochs=1, warmup=0.5)
    peak = RUN["learning_rate"]
    wanted = [f"{peak * plan.rate(step, 6, 3):.6g}" for step in range(6)]
    assert curve(tmp_path, "sft")["learning_rate"] == [float(rate) for rate in wanted]


@pytest.mark.parametrize("stage", TRAIN)
def test_a_rate_of_0_is_refused_before_the_base_is_loaded(stage: str, short: Path, tmp_path: Path) -> None:
    assert_refused(stage, with_rows_alone(short, tmp_path), tmp_path / "out", "`learning_rate` is 0", learning_rate=0.0)


def with_rows_alone(short: Path, folder: Path) -> Path:
    """A folder with the rows of another one and no model."""
    (folder / "data").symlink_to(short / "data")
    return folder


def test_dpo_that_learns_nothing_has_drifted_nowhere(short: Path, tmp_path: Path) -> None:
    metrics = train("dpo", short, tmp_path, learning_rate=1e-30)
    assert metrics["heldout.kl"] == metrics["heldout.margin"] == 0
    assert metrics["heldout.accuracy"] == 0.5
    assert metrics["heldout.chosen_logps"] == metrics["heldout.chosen_logps_before"]


# The seed


def adapter(out: Path, stage: str) -> bytes:
    return (out / f"models/{stage}/adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("stage", TRAIN)
def test_a_seed_gives_its_adapter_to_the_byte_and_another_seed_another_one(
    stage: str, short: Path, whole: dict[str, Path], tmp_path: Path
) -> None:
    for seed in (0, 1):
        train(stage, short, tmp_path / str(seed), per_device_batch=8, seed=seed)
    assert adapter(tmp_path / "0", stage) == adapter(whole[stage], stage)
    assert adapter(tmp_path / "1", stage) != adapter(whole[stage], stage)
    # The first step computes one loss of other rows: the seed reaches their order, also where no adapter is drawn.
    assert curve(tmp_path / "1", stage)["chosen_logps" if stage == "dpo" else "loss"] != curve(whole[stage], stage)


def test_the_seed_draws_the_adapter_and_its_dropout(
    tiny: Path, chat: Chat, demonstrations: list[Row], tmp_path: Path
) -> None:
    """In one step of all rows, whose order changes nothing."""

    def first_step(seed: int, dropout: float, start: Any = None) -> Any:
        trainer = sft_trainer(tiny, chat, demonstrations, tmp_path, seed=seed, dropout=dropout)
        if start:
            trainer.model.load_state_dict(start.state_dict())
        step_loss(trainer)
        return trainer.model

    def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
        return all(torch.equal(one[name], other[name]) for name in one)

    model = first_step(seed=0, dropout=0.5)
    assert equal(trainable(first_step(seed=0, dropout=0.5)), trainable(model))
    assert not equal(trainable(first_step(seed=1, dropout=0.5)), trainable(model))
    # From one start, all that is left of the seed is dropout.
    assert equal(gradients(first_step(0, 0.5)), gradients(model))
    assert not equal(gradients(first_step(1, 0.5, model)), gradients(model))
    still = first_step(seed=0, dropout=0.0)
    assert equal(gradients(first_step(1, 0.0, still)), gradients(still))


# Memory


@pytest.mark.parametrize(
    ("rows", "checkpointing", "ways"),
    [
        (4, False, ["`per_device_batch` (now 4)", "`gradient_checkpointing: true`", "`sample.max_tokens` below the 9"]),
        (1, True, ["`sample.max_tokens` below the 9"]),
    ],
)
def test_without_memory_training_says_what_needs_less(rows: int, checkpointing: bool, ways: list[str]) -> None:
    plan = SimpleNamespace(per_device_batch=rows, lengths=[3, 9])
    trainer = SimpleNamespace(plan=plan, args=SimpleNamespace(gradient_checkpointing=checkpointing))
    with pytest.raises(Refused) as refusal, run._enough_memory(trainer):
        torch.empty(1 << 55, dtype=torch.uint8)
    said = str(refusal.value)
    assert said.startswith(f"out of memory with {rows} row") and said.count("\n- ") == len(ways)
    assert all(way in said for way in ways)


# Learning


def first_layers(base: Path, count: int, out: Path) -> None:
    """Write the first layers of a base model to another folder: real weights at a fraction of the time."""
    shutil.copytree(base, out)
    config = files.read_json(out / "config.json")
    weights = {
        name: tensor
        for name, tensor in load_file(out / "model.safetensors").items()
        if not (layer := re.match(r"model\.layers\.(\d+)\.", name)) or int(layer[1]) < count
    }
    for name in ("config.json", "model.safetensors"):
        (out / name).unlink()
    files.write_json(out / "config.json", {**config, "num_hidden_layers": count})
    save_file(weights, out / "model.safetensors", {"format": "pt"})


@pytest.mark.slow
# A stage is offline; this process is not, so PEFT asks for a configuration that no hub has.
@pytest.mark.filterwarnings("ignore:Unable to fetch remote file:UserWarning")
def test_dpo_learns_the_miniatures_preference(smollm2: Path, tmp_path: Path, soak: bool) -> None:
    """The embedded comparisons share one preference, so held-out accuracy must rise above one half."""
    params = pipeline.params("params.yaml")
    layers, heldout, changes = 30, 16, {}
    if not soak:  # the least that can show it: 8 of 8 have p = .004
        layers, heldout, changes = 8, 8, {"learning_rate": 1e-3, "batch": 2}
        params["rows"] = {"demonstrations": 4, "comparisons": 6}
    first_layers(smollm2, layers, tmp_path / "models/base")
    pipeline.fetch_rows(tmp_path, params["data"], params["preferences"])
    for role, count in ((Role.demonstrations, 2), (Role.comparisons, heldout)):
        pipeline.sample_role(tmp_path, role, params, heldout=count)
    pipeline.train_sft(tmp_path, params=params)
    pipeline.train_dpo(tmp_path, params=params, **changes)
    metrics = files.read_json(tmp_path / "metrics/dpo.json")
    wins = round(metrics["heldout.accuracy"] * metrics["heldout.rows"])
    assert binomtest(wins, metrics["heldout.rows"], 0.5, alternative="greater").pvalue < 0.01
    assert metrics["heldout.margin_low"] > 0
