"""Our rows against lm-eval's own run of its stock tasks, which items are kept, and what metrics are made of them."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alignment.fetching import pins
from alignment.models import loading
from alignment.models.chat import Chat, Template, Text
from alignment.models.loading import Dtype
from alignment.runtime import Refused
from alignment.scoring.benchmarks import evaluation, tasks
from alignment.scoring.benchmarks.answers import PROMPTS, _answer, greedy_answers
from alignment.scoring.benchmarks.evaluation import Subtask
from benchmarks import peers

ARC = {
    "id": "a",
    "question": "Which of these is a planet?",
    "choices": {"text": ["Mars", "the Moon", "Io"], "label": ["A", "B", "C"]},
    "answerKey": "A",
}
HELLASWAG = {
    "activity_label": "Cooking",
    "ctx": "A man peels an onion. he",
    "ctx_a": "A man peels an onion.",
    "ctx_b": "he",
    "endings": ["cuts it [step] up.", "flies off.", "sings.", "sleeps."],
    "label": "0",
}
MMLU = {"question": "How many legs has a spider?", "subject": "anatomy", "choices": ["4", "6", "8", "10"], "answer": 2}
TOXIGEN = {"text": "they are all fine people", "toxicity_ai": 1.0, "toxicity_human": 1.5, "target_group": "asian"}
TRUTHFULQA = {
    "question": "What colour is snow?",
    "mc1_targets": {"choices": ["White", "Red"], "labels": [1, 0]},
    "mc2_targets": {"choices": ["White", "It is white", "Red"], "labels": [1, 1, 0]},
}
RAW: dict[str, dict[str, list[dict[str, Any]]]] = {
    "arc_challenge": {
        "ARC-Challenge/test-00000-of-00001.parquet": [
            ARC,
            {**ARC, "id": "b", "answerKey": "B"},
            {**ARC, "id": "c", "answerKey": "3", "choices": {"text": ["x", "yy", "zzz"], "label": ["1", "2", "3"]}},
        ]
    },
    "piqa": {
        "piqa_validation.parquet": [
            {"goal": "open a jar", "sol1": "turn the lid", "sol2": "turn the jar into a lid", "label": 0},
            {"goal": "dry a cup", "sol1": "use water", "sol2": "use a towel", "label": 1},
        ]
    },
    "hellaswag": {"data/validation-00000-of-00001.parquet": [HELLASWAG, {**HELLASWAG, "label": "2"}]},
    "mmlu": {
        "anatomy/test-00000-of-00001.parquet": [MMLU, {**MMLU, "question": "And a bee?", "answer": 1}],
        "anatomy/dev-00000-of-00001.parquet": [MMLU],
        "world_religions/test-00000-of-00001.parquet": [{**MMLU, "subject": "world_religions", "answer": 0}],
    },
    "toxigen": {
        "annotated/test-00000-of-00001.parquet": [TOXIGEN, {**TOXIGEN, "toxicity_human": 5.0}, {**TOXIGEN, "text": "x"}]
    },
    "truthfulqa_mc2": {"multiple_choice/validation-00000-of-00001.parquet": [TRUTHFULQA]},
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few items of every task in the schemas of the hub, as `fetch` lays them out."""
    root = tmp_path_factory.mktemp("benchmarks")
    for task, paths in RAW.items():
        for path, rows in paths.items():
            (root / task / path).parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows), root / task / path)
    return root


@pytest.fixture(scope="session")
def real(mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mirror's benchmarks, as `fetch` lays them out."""
    root = tmp_path_factory.mktemp("real")
    for task, repository in pins.BENCHMARKS.items():
        (root / task).symlink_to(mirror / repository.name)
    return root


@pytest.fixture(scope="session")
def lm(tiny: Path) -> Any:
    """The scoring engine around the tiny model."""
    return evaluation.scorer(loading.load_base(tiny, Dtype.float32, "cpu"), loading.tokenizer(tiny), token_budget=512)


@pytest.fixture(scope="session")
def peer(lm: Any) -> Any:
    """lm-eval's own class around the same model, one request a pass."""
    return peers.lm_eval_class(lm.model, lm.tokenizer, batch=1)


def all_parts(folder: Path, limit: int | None = None) -> list[Subtask]:
    return [part for task in tasks.BENCHMARKS for part in evaluation.items(folder, task, limit, 0)]


def agrees(lm: Any, peer: Any, folder: Path, limit: int | None, cache: Path) -> None:
    """Our table says what `lm_eval.simple_evaluate` says of its stock tasks on the same rows of the same files."""
    parts = all_parts(folder, limit)
    theirs = peers.simple_evaluate(peer, parts, folder, cache)
    rows = evaluation.score(lm, parts).to_pylist()
    for part in parts:
        ours = [row for row in rows if (row["task"], row["subject"]) == (part.task, part.subject)]
        samples = theirs["samples"][part.name]
        assert [row["row"] for row in ours] == [sample["doc_id"] for sample in samples]
        for row, sample in zip(ours, samples, strict=True):
            loglikelihoods, is_greedy = zip(*sample["filtered_resps"], strict=True)
            assert row["loglikelihoods"] == pytest.approx(loglikelihoods, rel=1e-4, abs=5e-4)
            assert row["is_greedy"] == list(is_greedy)
            assert row["acc"] == pytest.approx(sample["acc"], abs=1e-4)
            assert row["acc_norm"] == sample.get("acc_norm")
            assert row["gold"] in (None, sample["target"])
            assert row["version"] == theirs["versions"][part.name]
        for metric in ("acc", "acc_norm"):
            if f"{metric},none" in theirs["results"][part.name]:
                mean = sum(row[metric] for row in ours) / len(ours)
                assert mean == pytest.approx(theirs["results"][part.name][f"{metric},none"], abs=1e-4)


def test_agrees_with_stock_lm_eval(lm: Any, peer: Any, folder: Path, tmp_path: Path) -> None:
    agrees(lm, peer, folder, None, tmp_path)


def test_agrees_with_stock_lm_eval_on_real_items(lm: Any, peer: Any, real: Path, tmp_path: Path) -> None:
    agrees(lm, peer, real, 5, tmp_path)


def test_rows_are_kept_in_memory_and_no_cache_is_asked(folder: Path) -> None:
    for part in all_parts(folder):
        (split,) = evaluation.load([part])[part.name].dataset.values()
        assert split.cache_files == []
        assert len(split) == len(part.rows)


def test_a_row_holds_what_a_paired_test_needs(lm: Any, folder: Path) -> None:
    table = evaluation.score(lm, evaluation.items(folder, "hellaswag", None, 0))
    row = table.to_pylist()[1]
    assert table.schema == evaluation.SCHEMA
    assert row["lengths"] == [len(end) for end in ("cuts it up.", "flies off.", "sings.", "sleeps.")]
    ranked = [value / length for value, length in zip(row["loglikelihoods"], row["lengths"], strict=True)]
    assert row["chosen"] == max(range(4), key=row["loglikelihoods"].__getitem__)
    assert row["chosen_norm"] == max(range(4), key=ranked.__getitem__)
    assert (row["row"], row["gold"], row["subject"]) == (1, 2, "")


def test_truthfulqa_has_no_gold_and_mc2_is_the_share_of_the_true(lm: Any, folder: Path) -> None:
    (row,) = evaluation.score(lm, evaluation.items(folder, "truthfulqa_mc2", None, 0)).to_pylist()
    shares = [math.exp(value) for value in row["loglikelihoods"]]
    assert row["gold"] is None and row["acc_norm"] is None
    assert row["acc"] == pytest.approx(sum(shares[:2]) / sum(shares))


def test_a_score_that_is_no_number_is_refused(folder: Path, tiny: Path) -> None:
    model = loading.load_base(tiny, Dtype.float32, "cpu")
    model.lm_head.weight.data.fill_(math.nan)
    broken = evaluation.scorer(model, loading.tokenizer(tiny), token_budget=512)
    with pytest.raises(Refused, match="piqa, row 0: the score is nan"):
        evaluation.score(broken, evaluation.items(folder, "piqa", None, 0))


@pytest.mark.parametrize("change", [{"acc": 0.5}, {"chosen": 7}])
def test_rows_that_lm_eval_contradicts_stop_the_stage(change: dict[str, Any]) -> None:
    row = {"row": 0, "gold": 1, "chosen": 1, "chosen_norm": 1, "acc": 1.0, "acc_norm": None}
    part = Subtask("mmlu", "anatomy", {0: MMLU})
    evaluation._check(part, [row], {"acc,none": 1.0})
    with pytest.raises(AssertionError, match="lm-eval says"):
        evaluation._check(part, [{**row, **change}], {"acc,none": 1.0})


def test_bos_stands_where_the_tokenizer_puts_one(lm: Any, tiny: Path) -> None:
    from tokenizers import processors

    bos = lm.tokenizer.bos_token_id
    assert lm.tok_encode("Question: x") == Text(lm.tokenizer).raw("Question: x")
    assert lm.tok_encode("Question: x")[0] == bos

    without, closing = loading.tokenizer(tiny), loading.tokenizer(tiny)
    without.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    closing.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", closing.eos_token_id)]
    )
    for tokenizer in (without, closing):
        tokens = peers.lm_eval_class(lm.model, tokenizer, batch=1).tok_encode("Question: x")
        assert tokens == Text(tokenizer).raw("Question: x")
        assert not {bos, tokenizer.eos_token_id} & set(tokens)


def test_limits() -> None:
    assert evaluation.limits(["piqa=16", "mmlu=all"]) == {"piqa": 16, "mmlu": None}


@pytest.mark.parametrize("entry", ["piqa", "piqa=", "piqa=0", "piqa=-1", "piqa=some", "piqa=1.5", "piqa=ALL"])
def test_a_malformed_limit_is_refused_with_the_form_wanted(entry: str) -> None:
    with pytest.raises(Refused, match="piqa=16, or piqa=all"):
        evaluation.limits([entry])


def test_unknown_and_repeated_tasks_are_refused() -> None:
    with pytest.raises(Refused, match=r"no task 'boolqq'.*arc_challenge, piqa, hellaswag"):
        evaluation.limits(["boolqq=3"])
    with pytest.raises(Refused, match="twice"):
        evaluation.limits(["piqa=3", "piqa=4"])


@pytest.mark.parametrize(("task", "why"), [("gsm8k", "needs generated text"), ("wikitext", "does not choose")])
def test_a_task_that_is_no_choice_among_answers_is_refused_with_the_reason(task: str, why: str) -> None:
    with pytest.raises(Refused, match=f"'{task}'.*{why}.*output_type"):
        evaluation.limits([f"{task}=3"])


SCIQ = {
    "question": "What do plants breathe in?",
    "support": "",
    "correct_answer": "carbon dioxide",
    "distractor1": "neon",
    "distractor2": "chlorine",
    "distractor3": "helium",
}
WINOGRANDE = {
    "sentence": "The cup did not fit the shelf because the _ was too high.",
    "option1": "cup",
    "option2": "shelf",
    "answer": "1",
}
OTHERS: dict[str, tuple[list[dict[str, str]], str, list[int]]] = {
    "sciq": ([SCIQ, {**SCIQ, "question": "What do people breathe out?"}], "acc_norm", [3, 3]),
    # Its choices are contexts of one continuation.
    "winogrande": ([WINOGRANDE, {**WINOGRANDE, "answer": "2"}], "acc", [0, 1]),
}


@pytest.mark.parametrize("task", OTHERS)
def test_another_multiple_choice_task_of_lm_eval_is_scored_as_lm_eval_does(
    task: str, lm: Any, peer: Any, tmp_path: Path
) -> None:
    rows, metric, gold = OTHERS[task]
    (tmp_path / task).mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / task / "some-split.parquet")
    parts = evaluation.items(tmp_path, task, None, 0)
    ours, theirs = (evaluation.score(scorer, parts) for scorer in (lm, peer))  # each is checked against lm-eval's mean
    assert ours["gold"].to_pylist() == gold
    for one, other in zip(ours["loglikelihoods"].to_pylist(), theirs["loglikelihoods"].to_pylist(), strict=True):
        assert one == pytest.approx(other, abs=5e-4)
    figures = evaluation.metrics(ours)
    assert figures[f"{task}.{metric}_n"] == 2 and figures[f"{task}.version"] == 1.0


def test_a_task_whose_rows_were_not_fetched_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="more_benchmarks"):
        evaluation.items(tmp_path, "sciq", None, 0)


def rows_of(parts: list[Subtask]) -> set[tuple[str, int]]:
    return {(part.subject, row) for part in parts for row in part.rows}


def test_an_item_limit_keeps_a_subset_by_the_key_alone(real: Path) -> None:
    few, more = (rows_of(evaluation.items(real, "mmlu", limit, 0)) for limit in (40, 400))
    other = rows_of(evaluation.items(real, "mmlu", 400, 1))
    assert few < more
    assert 340 < len(more) < 460  # a binomial's three standard deviations about 400
    assert len(other & more) < 60
    assert all(part.rows for part in evaluation.items(real, "mmlu", 40, 0))  # no empty subject is loaded


def test_all_items_are_those_of_the_scored_split(folder: Path) -> None:
    found = {(part.name, len(part.rows)) for part in all_parts(folder)}
    assert {("mmlu_anatomy", 2), ("mmlu_world_religions", 1), ("arc_challenge", 3)} <= found
    assert rows_of(all_parts(folder, 10**6)) == rows_of(all_parts(folder))


def test_a_limit_that_keeps_nothing_is_refused(folder: Path) -> None:
    refusals = []
    for item_seed in range(30):  # with one item of three wanted, none is kept in 8 cases of 27
        try:
            evaluation.items(folder, "arc_challenge", 1, item_seed)
        except Refused as refusal:
            refusals.append(str(refusal))
    assert 0 < len(refusals) < 30
    assert all("limit 1 keeps none of the 3 items" in text and "arc_challenge=all" in text for text in refusals)


def test_an_unknown_subject_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mmlu" / "alchemy" / "test-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([MMLU]), path)
    with pytest.raises(Refused, match="alchemy"):
        evaluation.items(tmp_path, "mmlu", None, 0)


def row(said: int, gold: int, **columns: Any) -> dict[str, Any]:
    """A row of a table, as far as metrics read it."""
    fixed = {"task": "toxigen", "subject": "", "item": "", "row": 0, "version": 1.0, "acc": 0.0}
    answers = {"chosen": said, "chosen_norm": said, "gold": gold, "acc_norm": float(said == gold)}
    return {**fixed, **answers, "loglikelihoods": [-1.0, -1.0 - 0.1 * row_margin(said, gold)], **columns}


def row_margin(said: int, gold: int) -> int:
    """How far below ll(No) a made-up ll(Yes) lies."""
    return 2 - 2 * said + gold


def test_metrics_of_a_yes_no_task() -> None:
    from scipy.stats import binomtest
    from sklearn.metrics import balanced_accuracy_score, confusion_matrix, matthews_corrcoef, roc_auc_score

    said, gold = [1, 1, 1, 0, 0, 1, 0], [1, 0, 1, 0, 1, 0, 0]
    rows = [row(s, g) for s, g in zip(said, gold, strict=True)]
    table = pa.Table.from_pylist(rows, schema=evaluation.SCHEMA)
    figures = evaluation.metrics(table)
    (true_no, false_yes), (false_no, true_yes) = confusion_matrix(gold, said).tolist()
    assert figures["toxigen.balanced_accuracy"] == round(balanced_accuracy_score(gold, said), 4)
    counts = {"true_no": true_no, "false_yes": false_yes, "false_no": false_no, "true_yes": true_yes}
    assert {name: figures[f"toxigen.{name}"] for name in counts} == counts
    rate = binomtest(4, 7).proportion_ci(method="wilson")
    wanted = {"yes_rate": 4 / 7, "yes_rate_low": rate.low, "yes_rate_high": rate.high}
    wanted |= {"mcc": matthews_corrcoef(gold, said), "acc_of_always_yes": 3 / 7, "acc_of_always_no": 4 / 7}
    wanted["margin_auc"] = roc_auc_score(gold, [yes - no for no, yes in (r["loglikelihoods"] for r in rows)])
    assert {name: figures[f"toxigen.{name}"] for name in wanted} == {k: round(v, 4) for k, v in wanted.items()}
    assert figures["toxigen.margin_auc_low"] < 0.5 < figures["toxigen.margin_auc_high"]
    assert figures["toxigen.uninformative"] is True
    assert figures["toxigen.constant"] is False
    assert figures["toxigen.acc"] == 0.0 and figures["toxigen.acc_norm_n"] == 7


@pytest.mark.parametrize("said", [0, 1])
def test_a_constant_answer_is_called_one(said: int) -> None:
    table = pa.Table.from_pylist([row(said, 0), row(said, 1)], schema=evaluation.SCHEMA)
    figures = evaluation.metrics(table)
    assert figures["toxigen.constant"] is True
    assert figures["toxigen.balanced_accuracy"] == 0.5
    one_class = pa.Table.from_pylist([row(said, 0)], schema=evaluation.SCHEMA)
    alone = evaluation.metrics(one_class)
    assert alone["toxigen.balanced_accuracy"] is None and alone["toxigen.mcc"] is None
    assert alone["toxigen.margin_auc"] is None and alone["toxigen.uninformative"] is True


@pytest.mark.parametrize(("others", "near"), [(0, True), (35, True), (36, False)])
def test_nearly_one_answer_is_flagged_up_to_35_of_940(others: int, near: bool) -> None:
    rows = [row(1, i % 2) for i in range(940 - others)] + [row(0, i % 2) for i in range(others)]
    figures = evaluation.metrics(pa.Table.from_pylist(rows, schema=evaluation.SCHEMA))
    assert figures["toxigen.near_constant"] is near
    assert figures["toxigen.constant"] is (others == 0)


def test_a_margin_that_tells_the_classes_apart_is_informative() -> None:
    rows = [row(1, gold, loglikelihoods=[-1.0, -2.0 + gold]) for gold in (0, 1) for _ in range(20)]
    figures = evaluation.metrics(pa.Table.from_pylist(rows, schema=evaluation.SCHEMA))
    assert figures["toxigen.constant"] is True and figures["toxigen.uninformative"] is False
    assert figures["toxigen.margin_auc"] == 1.0


def test_mmlu_is_the_plain_mean_over_its_items() -> None:
    scores = {"anatomy": [1.0, 1.0, 1.0], "world_religions": [0.0]}
    rows = [row(0, 0, task="mmlu", subject=s, acc=x, acc_norm=None) for s, values in scores.items() for x in values]
    figures = evaluation.metrics(pa.Table.from_pylist(rows, schema=evaluation.SCHEMA))
    assert figures["mmlu.acc"] == 0.75 and figures["mmlu.acc_n"] == 4
    assert "mmlu.acc_norm" not in figures
    assert (figures["mmlu.stem.acc"], figures["mmlu.humanities.acc"]) == (1.0, 0.0)
    assert figures["mmlu.constant"] is True


def test_every_subject_has_one_of_four_categories(real: Path) -> None:
    subjects = {part.subject for part in evaluation.items(real, "mmlu", None, 0)}
    found = Counter(evaluation.category("mmlu", subject) for subject in subjects)
    assert found == {"stem": 19, "humanities": 13, "social_sciences": 12, "other": 13}


def greedy(model: Any, ids: list[int], tokens: int, eos: int) -> list[int]:
    """One token after another, without a cache, padding or `generate`."""
    import torch

    start = len(ids)
    with torch.inference_mode():
        while len(ids) < start + tokens and ids[-1] != eos:
            ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
    return ids[start:]


def test_answers_are_greedy_whatever_the_model_would_rather_do(tiny: Path) -> None:
    from transformers import GenerationConfig

    chat = Chat(loading.tokenizer(tiny), Template.chatml)
    model = loading.load_base(tiny, Dtype.float32, "cpu")
    model.generation_config = GenerationConfig(do_sample=True, temperature=5.0, repetition_penalty=3.0)
    replies = greedy_answers(model, chat, 6)
    assert [reply["prompt"] for reply in replies] == list(PROMPTS)
    for reply in replies:
        ids = chat.prompt([{"role": "user", "content": reply["prompt"]}])
        expected = greedy(model, ids, 6, chat.tokenizer.eos_token_id)
        assert reply == _answer(reply["prompt"], expected, chat)


def test_an_answer_ends_at_eos(tiny: Path) -> None:
    chat = Chat(loading.tokenizer(tiny), Template.chatml)
    eos, yes = chat.tokenizer.eos_token_id, chat.text("yes")
    ended = {"prompt": "p", "answer": "yes", "tokens": 4, "finished": True}
    assert _answer("p", [*yes, eos, eos, eos], chat) == ended
    assert _answer("p", yes, chat) == {**ended, "tokens": 3, "finished": False}
