"""What leaves the pipeline is the checkpoint: the same log-probabilities, the same tokens for a conversation."""

import re
from pathlib import Path
from typing import Any

import pipeline
import pytest
import torch

from alignment.corpora import Role
from alignment.models import loading
from alignment.models.chat import Chat, Template
from alignment.models.loading import Dtype
from alignment.runtime import Refused, files
from alignment.training import logps
from commands import export

DOCS = Path(__file__).parents[2] / "docs"
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it late?"}]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline up to both adapters."""
    folder = tmp_path_factory.mktemp("trained")
    pipeline.fetch_all(folder)
    for role in Role:
        pipeline.sample_role(folder, role)
    pipeline.train_sft(folder)
    pipeline.train_dpo(folder)
    return folder


def test_export_is_the_checkpoint_merged(trained: Path) -> None:
    figures = {f"piqa.acc_norm{end}": 0.5 for end in ("", "_low", "_high", "_n")}
    files.write_json(trained / "metrics/eval/sft.json", figures)
    base, out = trained / "models/base", trained / "models/export/sft"
    export.main(base, trained / "models/sft", out, trained / "metrics")

    from transformers import AutoModelForCausalLM, AutoTokenizer

    merged, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    ids = Chat(loading.tokenizer(base), Template.chatml).prompt(MESSAGES)  # type: ignore[arg-type]
    assert list(tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True).input_ids) == ids
    adapted = loading.load(base, trained / "models/sft", Dtype.float32, "cpu")
    with torch.no_grad():
        wanted, found = (model(input_ids=torch.tensor([ids])).logits for model in (adapted, merged))
    assert torch.allclose(wanted, found, atol=1e-5)
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "| piqa acc_norm | 0.5 |" in card
    assert str(trained) not in card


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_the_documented_lines_load_an_adapter_and_give_its_log_probabilities(
    stage: str, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (lines,) = re.findall("```python\n(.*?)```", (DOCS / "training.md").read_text(encoding="utf-8"), re.S)
    monkeypatch.chdir(trained)
    found: dict[str, Any] = {}
    exec(lines.replace("models/dpo", f"models/{stage}"), found)  # noqa: S102

    base = trained / "models/base"
    row = Chat(loading.tokenizer(base), Template.chatml).demonstration(
        [{"role": "user", "content": "Is it late?"}, {"role": "assistant", "content": "It is."}]
    )
    assert found["ids"][0].tolist() == row["input_ids"]
    adapted = loading.load(base, trained / "models" / stage, Dtype.float32, "cpu")
    reply = logps.trained_logps(adapted, row)
    assert torch.allclose(found["logps"][-len(reply) :], reply, atol=1e-5)
    assert not torch.allclose(logps.trained_logps(loading.load_base(base, Dtype.float32, "cpu"), row), reply, atol=1e-3)


@pytest.mark.parametrize(
    ("source", "name", "revision"), [("hub", "owner/name", "c" * 40), ("wheel", "models/base", None)]
)
def test_an_adapter_names_a_base_that_loads(source: str, name: str, revision: str | None, tmp_path: Path) -> None:
    provenance = {"repository": "owner/name", "revision": "c" * 40, "source": source}
    files.write_json(tmp_path / "models/base/provenance.json", provenance)
    found = loading.where(tmp_path / "models/base")
    assert found == {"base_model_name_or_path": name, "revision": revision}


def test_the_base_is_no_checkpoint(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="CHECKPOINT is sft or dpo"):
        export.main(tiny, tiny, tmp_path / "out", tmp_path)
