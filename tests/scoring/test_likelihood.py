"""The scoring engine against one plain forward pass a request, and what it does where sharing prefixes cannot work."""

import copy
import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pipeline
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    BloomConfig,
    Gemma3Config,
    GPT2Config,
    MistralConfig,
    MistralForCausalLM,
    MptConfig,
    PreTrainedModel,
)

from alignment.models import loading
from alignment.models.loading import Dtype
from alignment.runtime import Refused
from alignment.scoring.engine import engine, prefix_tree
from alignment.scoring.engine.engine import Engine, Score
from alignment.scoring.engine.prefix_tree import Request, Tree

ROOT = Path(__file__).parents[2]
BYTES = 256
WIDTH = 64  # the tiny model's


def load(tiny: Path, attention: str = "sdpa", dtype: Dtype = Dtype.float32) -> PreTrainedModel:
    """The tiny model, its weights larger, so that every token it sees moves what it says by far more than rounding."""
    model = loading.load_base(tiny, dtype, "cpu")
    model.set_attn_implementation(attention)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight *= 4
    return model


@pytest.fixture(scope="module")
def model(tiny: Path) -> PreTrainedModel:
    return load(tiny)


def oracle(model: PreTrainedModel, requests: Sequence[Request]) -> list[Score]:
    """One plain forward pass a request."""
    scores = []
    for context, continuation in requests:
        whole = [*context, *continuation]
        targets = torch.tensor(list(continuation))
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([whole[:-1]])).logits[0, -len(targets) :].double()
        logps = logits.log_softmax(-1).gather(1, targets[:, None])
        scores.append(Score(logps.sum().item(), bool((logits.argmax(-1) == targets).all())))
    return scores


def agree(scores: Sequence[Score], wanted: Sequence[Score]) -> None:
    """Log-likelihoods within 1e-4 of each other, the greedy mark equal."""
    assert [score.loglikelihood for score in scores] == pytest.approx(
        [s.loglikelihood for s in wanted], rel=0, abs=1e-4
    )
    assert [score.is_greedy for score in scores] == [score.is_greedy for score in wanted]


def tokens(draw: random.Random, low: int, high: int) -> list[int]:
    return draw.choices(range(BYTES), k=draw.randint(low, high))


def nested(seed: int, questions: Sequence[int] = (20, 20, 6)) -> list[Request]:
    """Shuffled requests that share a preamble, a question, first tokens of a choice, everything, or nothing.

    Args:
        seed: of the draws.
        questions: how many each preamble has; by default those of the first two are too many for a row.
    """
    draw = random.Random(seed)
    requests = []
    for count in questions:
        preamble = tokens(draw, 80, 80)
        for _ in range(count):
            question, first = preamble + tokens(draw, 4, 30), tokens(draw, 1, 3)
            choices = [tokens(draw, 1, 1), tokens(draw, 1, 1), first, first + tokens(draw, 1, 6), tokens(draw, 2, 9)]
            requests += [Request(question, choice) for choice in choices]
            requests.append(Request(question + first, choices[3][len(first) :]))  # one whole, another border
            requests.append(Request(preamble, question[len(preamble) :]))  # a prefix of the others
    requests += [Request(tokens(draw, 1, 20), tokens(draw, 1, 8)) for _ in range(10)]
    requests += draw.sample(requests, 10)  # exact duplicates
    draw.shuffle(requests)
    return requests


def truthfulqa(seed: int = 0) -> list[Request]:
    """Thirty questions with six choices each behind one preamble."""
    draw = random.Random(seed)
    preamble = tokens(draw, 183, 183)
    questions = [preamble + tokens(draw, 20, 40) for _ in range(30)]
    return [Request(question, tokens(draw, 5, 12)) for question in questions for _ in range(6)]


def watched(monkeypatch: pytest.MonkeyPatch, model: Any, watch: Callable[..., None]) -> None:
    """Have `watch` called with the arguments of every forward pass, before it."""
    forward = model.forward

    def watching(**options: Any) -> Any:
        watch(**options)
        return forward(**options)

    monkeypatch.setattr(model, "forward", watching)


# Scores


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_scores_are_those_of_plain_forward_passes(tiny: Path, seed: int, attention: str) -> None:
    model, requests = load(tiny, attention), nested(seed)
    wanted = oracle(model, requests)
    for token_budget in (64, 4096):
        scorer = Engine(model, token_budget)
        agree(scorer.score(requests), wanted)
        assert scorer.shares
        assert scorer.tokens[0] < scorer.tokens[1] / 3


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_those_requests_have_cached_prefixes_and_trees_in_a_row(seed: int) -> None:
    tree = Tree(nested(seed), 1 << 16)
    trees = [span for span in prefix_tree.rows(tree, WIDTH, overhead=64) if span.high - span.low > 1]
    assert any(not span.depth for span in trees)
    prefixes = {tree.sequences[span.low][: span.depth] for span in trees if span.depth}
    assert len(prefixes) == 2
    assert len(set(map(len, prefixes))) == 1  # equally long, so that nothing but their tokens tells them apart


def test_scores_stand_in_the_order_of_the_requests(model: PreTrainedModel) -> None:
    requests = nested(3)
    order = random.Random(0).sample(range(len(requests)), len(requests))
    scorer = Engine(model, 256)
    scores = scorer.score(requests)
    assert len(set(scores)) > len(requests) / 2
    assert scorer.score([requests[number] for number in order]) == [scores[number] for number in order]


def test_a_score_of_many_positions_is_read_off_in_parts(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "HEAD", 7)
    requests = nested(4)
    agree(Engine(model, 1024).score(requests), oracle(model, requests))


def test_what_greedy_decoding_says_is_greedy_and_nothing_else_is(model: PreTrainedModel) -> None:
    context = tokens(random.Random(0), 30, 30)
    with torch.inference_mode():
        said = list(context)
        for _ in range(6):
            said.append(int(model(input_ids=torch.tensor([said])).logits[0, -1].argmax()))
    greedy = said[len(context) :]
    wrong = [[*greedy[:place], (greedy[place] + 1) % BYTES, *greedy[place + 1 :]] for place in range(6)]
    requests = [Request(context, choice) for choice in (greedy, greedy[:1], *wrong)]
    scores = Engine(model, 256).score(requests)
    assert [score.is_greedy for score in scores] == [True, True, *[False] * 6]
    agree(scores, oracle(model, requests))


def test_no_requests_have_no_scores(model: PreTrainedModel) -> None:
    scorer = Engine(model, 64)
    assert scorer.score([]) == []
    assert scorer.tokens == (0, 0)


# What is computed


def test_a_shared_prefix_is_read_once(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = truthfulqa()
    sequences = [(*context, *continuation)[:-1] for context, continuation in requests]
    distinct = {sequence[:end] for sequence in sequences for end in range(1, len(sequence) + 1)}
    scorer = Engine(model, 1)  # one row a pass: no padding
    read: list[int] = []
    watched(monkeypatch, model, lambda input_ids, **_: read.append(input_ids.numel()))
    agree(scorer.score(requests), oracle(model, requests))
    assert len(distinct) <= scorer.tokens[0] <= 1.1 * len(distinct)
    assert scorer.tokens[1] == sum(map(len, sequences))
    assert sum(read) == scorer.tokens[0] + scorer.tokens[1]  # the engine's, and the oracle's


@pytest.mark.parametrize("token_budget", [1, 100, 2048])
@pytest.mark.parametrize("requests", [truthfulqa(), nested(0), nested(1)], ids=["truthfulqa", "nested", "another"])
def test_a_plan_has_every_sequence_once_in_batches_of_one_prefix(requests: list[Request], token_budget: int) -> None:
    tree = Tree(requests, 1 << 16)
    spans = prefix_tree.rows(tree, WIDTH, overhead=64)
    assert sorted(n for span in spans for n in range(span.low, span.high)) == list(range(len(tree.sequences)))
    batches = prefix_tree.plan(tree, spans, token_budget, overhead=64)
    assert sorted(span for batch in batches for span in batch) == sorted(spans)
    for batch in batches:
        longest = max(len(tree.row(span).tokens) for span in batch)
        assert len(batch) == 1 or len(batch) * longest <= token_budget
        assert len({tree.sequences[n][: s.depth] for s in batch for n in range(s.low, s.high)}) == 1
    if token_budget == 2048:
        assert len(batches) < len(spans)


@pytest.mark.parametrize("seed", range(4))
def test_batches_are_the_cheapest_of_all_ways_to_cut_the_rows(seed: int) -> None:
    generator = random.Random(seed)
    lengths = sorted((generator.randint(1, 60) for _ in range(9)), reverse=True)
    budget, overhead = 100, 16

    def cost(ends: tuple[int, ...]) -> float:
        """Rows times their longest and a pass, for each batch; a batch of one may exceed the budget."""
        parts = [lengths[start:end] for start, end in pairwise((0, *ends, len(lengths)))]
        if any(len(part) > 1 and len(part) * part[0] > budget for part in parts):
            return math.inf
        return sum(len(part) * part[0] + overhead for part in parts)

    ways = [ends for count in range(9) for ends in combinations(range(1, 9), count)]
    found = prefix_tree._cuts(np.array(lengths), budget, overhead)
    assert found[-1] == len(lengths)
    assert cost(tuple(found[:-1])) == min(map(cost, ways))


def test_a_row_spells_its_sequences() -> None:
    tree = Tree(nested(0), 1 << 16)
    for span in prefix_tree.rows(tree, WIDTH, overhead=64):
        row = tree.row(span)
        assert len(row.tokens) == len(row.positions) == tree.tokens(span)
        for sequence, path in zip(tree.sequences[span.low : span.high], row.paths, strict=True):
            assert tuple(row.tokens[place] for place in path) == sequence[span.depth :]
            assert [row.positions[place] for place in path] == list(range(span.depth, len(sequence)))


def test_the_vocabulary_head_reads_scored_positions_only(model: PreTrainedModel) -> None:
    context = tokens(random.Random(0), 50, 50)
    scorer = Engine(model, 256)
    read: list[int] = []
    # A hook before the head's pass would come before the engine's own.
    hook = model.lm_head.register_forward_hook(lambda _, inputs, output: read.append(inputs[0].shape[:-1].numel()))
    try:
        scorer.score([Request(context, [token]) for token in (1, 2, 3, 4)])
        assert sum(read) == 1
        read.clear()
        scorer.score([Request(context, [1, 2, 3]), Request(context, [1, 2, 4]), Request(context, [5, 6])])
        assert sum(read) == 4  # after the context, after 1, after 1 2, after 5
    finally:
        hook.remove()


# Where prefixes cannot be shared


@pytest.mark.parametrize("dtype", Dtype)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_prefixes_are_shared_where_the_model_heeds_the_mask(
    tiny: Path, attention: str, dtype: Dtype, caplog: pytest.LogCaptureFixture
) -> None:
    assert Engine(load(tiny, attention, dtype), 256).shares
    assert not caplog.records


SEES = engine._sees


def sees_its_row(row: Any, depth: int, longest: int) -> Any:
    return np.tri(longest, depth + longest, depth, dtype=np.bool_)


def sees_no_prefix(row: Any, depth: int, longest: int) -> Any:
    sees = SEES(row, depth, longest)
    sees[:, :depth] = False
    return sees


def sees_its_branch(row: Any, depth: int, longest: int) -> Any:
    return SEES(row._replace(branches=[(start, end, path[:0]) for start, end, path in row.branches]), depth, longest)


@pytest.mark.parametrize("plain", [False, True], ids=["larger weights", "as it is"])
@pytest.mark.parametrize("fault", [sees_its_row, sees_no_prefix, sees_its_branch])
def test_a_mask_that_is_not_heeded_is_found_and_done_without(
    tiny: Path,
    fault: Callable[..., Any],
    plain: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = loading.load_base(tiny, Dtype.float32, "cpu") if plain else load(tiny)
    monkeypatch.setattr(engine, "_sees", fault)
    scorer = Engine(model, 512)
    assert not scorer.shares
    assert "prefixes are not shared with this model: the self-test is" in caplog.text
    requests = nested(0, [5])
    agree(scorer.score(requests), oracle(model, requests))
    assert scorer.tokens[0] > scorer.tokens[1] / 2


def test_a_model_that_refuses_the_mask_computes_each_sequence_alone(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(attention_mask: Any = None, **_: Any) -> None:
        if attention_mask is not None and attention_mask.dim() == 4:
            raise ValueError("wanted a mask of two dimensions")

    watched(monkeypatch, model, refuse)
    scorer = Engine(model, 512)
    assert not scorer.shares
    assert "it refuses a mask or cached keys (ValueError: wanted a mask of two dimensions)" in caplog.text
    requests = nested(1, [5])
    agree(scorer.score(requests), oracle(model, requests))


@pytest.fixture(scope="module")
def sliding() -> PreTrainedModel:
    """A two-layer Mistral whose tokens see the 16 before them."""
    config = MistralConfig(
        vocab_size=BYTES,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        sliding_window=16,
        initializer_range=0.1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MistralForCausalLM(config).eval()


def test_prefixes_are_not_shared_beyond_a_sliding_window(
    sliding: PreTrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    requests = nested(0, [5])
    scorer = Engine(sliding, 512)
    agree(scorer.score(requests), oracle(sliding, requests))
    assert "prefixes are not shared: the model attends over 16 tokens only" in caplog.text
    assert scorer.tokens[0] > scorer.tokens[1] / 2


def test_prefixes_are_shared_inside_a_sliding_window(
    sliding: PreTrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    draw = random.Random(0)
    start = tokens(draw, 6, 6)
    questions = [start + tokens(draw, 2, 4) for _ in range(40)]
    requests = [Request(question, tokens(draw, 7, 7)) for question in questions for _ in range(4)]
    assert max(len(context) + len(continuation) - 1 for context, continuation in requests) == 16
    scorer = Engine(sliding, 512)
    agree(scorer.score(requests), oracle(sliding, requests))
    assert not caplog.records
    assert scorer.tokens[0] < scorer.tokens[1] * 0.7


# Memory


def fitting(tokens: int) -> Callable[..., None]:
    def fit(input_ids: torch.Tensor, **_: Any) -> None:
        if input_ids.numel() > tokens:
            raise torch.OutOfMemoryError("planted: out of memory")

    return fit


def test_a_batch_that_does_not_fit_is_split(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    requests = nested(0)
    wanted = oracle(model, requests)
    monkeypatch.setitem(prefix_tree.OVERHEAD, "cpu", 4096)  # so that the plan has few batches
    scorer = Engine(model, 4096)
    tree = Tree(requests, scorer.longest)
    longest = max(map(tree.tokens, prefix_tree.rows(tree, WIDTH, overhead=4096)))
    watched(monkeypatch, model, fitting(2 * longest))
    agree(scorer.score(requests), wanted)
    assert "out of memory with" in caplog.text
    assert "lower token_budget" in caplog.text


def test_a_row_that_does_not_fit_is_refused_with_its_length(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(0)
    scorer = Engine(model, 4096)
    watched(monkeypatch, model, fitting(60))
    with pytest.raises(Refused, match="one row of 87 tokens does not fit in memory"):
        scorer.score([Request(tokens(draw, 80, 80), tokens(draw, 8, 8)), Request([1], [2, 3])])


def test_another_failure_of_the_model_is_not_taken_for_memory(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: Any) -> None:
        raise RuntimeError("device-side assert triggered")

    scorer = Engine(model, 4096)
    watched(monkeypatch, model, fail)
    with pytest.raises(RuntimeError, match="device-side assert"):
        scorer.score(nested(0))


# Lengths


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        (GPT2Config(n_positions=300), 300),
        (MptConfig(max_seq_len=400), 400),
        (Gemma3Config(text_config={"max_position_embeddings": 500}), 500),
        (BloomConfig(), sys.maxsize),  # no position is further than another that it was trained on
    ],
)
def test_how_much_a_model_can_read_is_what_its_configuration_says(config: Any, tokens: int) -> None:
    assert loading.longest(config) == tokens


def test_what_the_model_can_just_read_is_scored_whole(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.config, "max_position_embeddings", 64)
    requests = [Request(tokens(random.Random(0), 65 - length, 65 - length), [1] * length) for length in (1, 9, 64)]
    agree(Engine(model, 256).score(requests), oracle(model, requests))


@pytest.mark.parametrize(
    ("request_", "wanted"),
    [
        (Request([], [1]), "request 1 has 0 tokens of context and 1 of continuation"),
        (Request([1], []), "request 1 has 1 tokens of context and 0 of continuation"),
        (Request([1], [2] * 65), "request 1 has 1 tokens of context and 65 of continuation.*no more than 65 together"),
        (Request([1] * 64, [2, 3]), "request 1 has 64 tokens of context and 2 of continuation.*can read 64"),
    ],
)
def test_a_request_that_cannot_be_scored_is_refused_by_its_number(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, request_: Request, wanted: str
) -> None:
    monkeypatch.setattr(model.config, "max_position_embeddings", 64)
    with pytest.raises(Refused, match=wanted):
        Engine(model, 256).score([Request([1], [2] * 64), request_])


# Adapters and processes


def test_an_adapter_s_scores_are_those_of_the_merged_model(tiny: Path) -> None:
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        adapted: Any = get_peft_model(load(tiny), config).eval()
    requests = nested(0)
    scorer = Engine(adapted, 512)
    assert scorer.shares
    scores = scorer.score(requests)
    agree(scores, oracle(copy.deepcopy(adapted).merge_and_unload(), requests))
    base = oracle(load(tiny), requests)
    moved = [abs(ours.loglikelihood - theirs.loglikelihood) for ours, theirs in zip(scores, base, strict=True)]
    assert np.median(moved) > 0.1


PROCESS = """
import json
import math
import sys
from itertools import combinations, pairwise
from pathlib import Path

from alignment.models import loading
from alignment.runtime import processes
from alignment.scoring.engine.engine import Engine
from alignment.scoring.engine.prefix_tree import Request

base, out = map(Path, sys.argv[1:])
model = loading.load_base(base, loading.Dtype.float32, "cpu")
engine = Engine(model, 256)
passes = []
model.register_forward_hook(lambda *_: passes.append(1))
requests = [Request(*pair) for pair in json.loads((out / "requests.json").read_text())]
scores = engine.score(requests)
world = processes.world()
(out / f"scores.{world.process_index}").write_text(repr(scores))
(out / f"passes.{world.process_index}").write_text(str(len(passes)))
world.destroy_process_group()
"""


def test_two_processes_share_the_work_and_give_the_same_digits_as_one(tiny: Path, tmp_path: Path, soak: bool) -> None:
    if not soak:
        pytest.skip("in the soak; `make test` has two processes run the stage, in test_eval.py")
    requests, passes = nested(0), []
    model = loading.load_base(tiny, loading.Dtype.float32, "cpu")
    model.register_forward_hook(lambda *_: passes.append(1))
    alone = Engine(model, 256).score([Request(*pair) for pair in requests])
    (tmp_path / "requests.json").write_text(json.dumps(requests))
    (tmp_path / "script.py").write_text(PROCESS)
    command = [*pipeline.several(2), str(tmp_path / "script.py"), str(tiny), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert len(alone) == len(requests)
    for process in range(2):
        assert (tmp_path / f"scores.{process}").read_text() == repr(alone)
        assert 0.3 * len(passes) < int((tmp_path / f"passes.{process}").read_text()) < 0.8 * len(passes)


def test_the_progress_bar_counts_items(model: PreTrainedModel, capsys: pytest.CaptureFixture[str]) -> None:
    requests = truthfulqa()
    Engine(model, 256).score(requests, [number // 6 for number in range(len(requests))], "truthfulqa", "question")
    shown = capsys.readouterr().err
    assert "truthfulqa: 100%" in shown
    assert "30/30" in shown
