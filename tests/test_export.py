"""The exported folder is the checkpoint: the same log-probabilities, the same tokens for a conversation."""

from pathlib import Path

import pipeline
import pytest
import torch

from alignment import files, models
from alignment.chat import Chat, Template
from alignment.command import Refused
from alignment.corpora import Role
from alignment.models import Dtype
from stages import export

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it late?"}]


def test_export_is_the_checkpoint_merged(tmp_path: Path) -> None:
    pipeline.fetch_all(tmp_path)
    pipeline.sample_role(tmp_path, Role.demonstrations)
    pipeline.train_sft(tmp_path)
    figures = {f"piqa.acc_norm{end}": 0.5 for end in ("", "_low", "_high", "_n")}
    files.write_json(tmp_path / "metrics/eval/sft.json", figures)
    base, out = tmp_path / "models/base", tmp_path / "models/export/sft"
    export.main(base, tmp_path / "models/sft", out, tmp_path / "metrics")

    from transformers import AutoModelForCausalLM, AutoTokenizer

    merged, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    ids = Chat(models.tokenizer(base), Template.chatml).prompt(MESSAGES)  # type: ignore[arg-type]
    assert list(tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True).input_ids) == ids
    adapted = models.load(base, tmp_path / "models/sft", Dtype.float32, "cpu")
    with torch.no_grad():
        wanted, found = (model(input_ids=torch.tensor([ids])).logits for model in (adapted, merged))
    assert torch.allclose(wanted, found, atol=1e-5)
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "| piqa acc_norm | 0.5 |" in card
    assert str(tmp_path) not in card


def test_the_base_is_no_checkpoint(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="CHECKPOINT is sft or dpo"):
        export.main(tiny, tiny, tmp_path / "out", tmp_path)
