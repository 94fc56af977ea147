"""Log-likelihoods of many continuations, with every shared prefix computed once.

In: a causal model of transformers, and pairs of a context and a continuation, as tokens. Out: for each pair the summed
log-probability of the continuation, and whether greedy decoding would have said it.

All sequences form one tree, in which what several begin with stands once. The tree is cut into rows: a row is a subtree
(a question with its choices, say), whose tokens see their ancestors alone, through an additive mask. What many rows
begin with (the preamble of a task, the header of a subject) is computed once, and its keys and values stand before
each of them. The vocabulary head runs only at positions that are scored. Batches are planned over all requests before
they are dealt to processes, so that the numbers do not depend on how many there are.
"""

import contextlib
import logging
from collections.abc import Hashable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alignment.models import loading
from alignment.runtime import Refused, processes
from alignment.runtime.processes import no_memory
from alignment.scoring.engine.prefix_tree import OVERHEAD, PackedRow, Request, Span, Tree, plan, rows

if TYPE_CHECKING:
    import torch
    from transformers import Cache, PreTrainedModel

HEAD = 512  # positions whose log-probabilities are held at once
SELF_TEST = 2e-3  # nats a token by which the self-test may differ; a wrong mask moves log-probabilities by more
COARSE = 0.1  # the same for arithmetic in less than float32, which hides all but gross faults

log = logging.getLogger(__name__)


class Score(NamedTuple):
    """A continuation's summed log-probability, in nats, and whether each of its tokens is the likeliest one."""

    loglikelihood: float
    is_greedy: bool


class Launched(NamedTuple):
    """A batch that the device may still be computing.

    Attributes:
        requests: the number of each request and how many tokens its continuation has.
        logps: of those tokens, request after request.
        greedy: whether each is the likeliest one.
    """

    requests: list[tuple[int, int]]
    logps: "torch.Tensor"
    greedy: "torch.Tensor"

    def scores(self) -> list[tuple[int, Score]]:
        """List each request's number and score."""
        logps, greedy = self.logps.cpu().numpy(), self.greedy.cpu().numpy()
        scores, start = [], 0
        for request, count in self.requests:
            part = slice(start, start := start + count)
            scores.append((request, Score(float(np.sum(logps[part])), bool(np.all(greedy[part])))))
        return scores


class Engine:
    """A model that scores continuations.

    Args:
        model: a causal model of transformers, on its device, in evaluation mode; adapters may be attached.
        token_budget: tokens of a forward pass, padding included. More than fit in memory are split, saying so.

    Attributes:
        shares: whether prefixes are shared: not where a self-test shows that the model does not heed an additive
            mask, nor where its attention does not reach over the longest sequence; then each sequence is a row.
        tokens: how many tokens the last scoring read, and how many one request at a time would have read.
    """

    def __init__(self, model: "PreTrainedModel", token_budget: int) -> None:
        self.model = model
        self.token_budget = token_budget
        self.tokens = (0, 0)
        self._prefix: tuple[tuple[int, ...], list[tuple[torch.Tensor, torch.Tensor]]] | None = None
        self.shares = True
        if wrong := self._self_test():
            self.shares = False
            log.warning("prefixes are not shared with this model: %s; each sequence is computed alone", wrong)

    @cached_property
    def longest(self) -> int:
        """The number of tokens that the model can read."""
        return loading.longest(self.model.config)

    @cached_property
    def window(self) -> int:
        """The number of tokens over which attention reaches in every layer."""
        config = self.model.config.get_text_config()
        kinds = getattr(config, "layer_types", None)
        if kinds is not None and not any("sliding" in kind or "chunked" in kind for kind in kinds):
            return self.longest
        reach = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
        return min([self.longest, *(int(tokens) for tokens in reach if tokens)])

    def score(
        self, requests: Sequence[Request], items: Sequence[Hashable] | None = None, label: str = "", unit: str = "item"
    ) -> list[Score]:
        """Score every request.

        Args:
            requests: contexts with their continuations; several processes get the same list.
            items: what each request belongs to, for the progress bar; by default each is an item.
            label: the progress bar's label.
            unit: the progress bar's unit.

        Returns:
            A score for each, in their order, on every process.

        Raises:
            Refused: a request cannot be scored whole, or one row alone does not fit in memory.
        """
        tree = Tree(requests, self.longest)
        shares = self.shares and max(map(len, tree.sequences), default=0) <= self.window
        if self.shares and not shares:
            log.warning("prefixes are not shared: the model attends over %d tokens only", self.window)
        overhead = OVERHEAD[self.model.device.type]
        spans = rows(tree, self.model.config.get_text_config().hidden_size, overhead) if shares else _alone(tree)
        batches = plan(tree, spans, self.token_budget, overhead)
        self.tokens = _tokens_read(tree, batches), sum(len(c) + len(t) - 1 for c, t in requests)
        found = self._run(tree, batches, shares, items or range(len(requests)), label, unit)
        return [found[number] for number in range(len(requests))]

    def _run(
        self, tree: Tree, batches: list[list[Span]], shares: bool, items: Sequence[Hashable], label: str, unit: str
    ) -> dict[int, Score]:
        from accelerate.utils import gather_object
        from tqdm import tqdm

        mine: list[tuple[int, Score]] = []
        seen: set[Hashable] = set()
        world = processes.world(self.model.device.type)
        with tqdm(total=len(set(items)), desc=label, unit=unit, disable=not world.is_main_process) as bar:
            for scores in self._scores(tree, batches[world.process_index :: world.num_processes], shares):
                mine += scores
                seen |= {items[number] for number, _ in scores}
                bar.update(min(len(seen) * world.num_processes, bar.total) - bar.n)
        self._prefix = None
        return dict(gather_object(mine))

    def _scores(self, tree: Tree, batches: list[list[Span]], shares: bool) -> Iterator[list[tuple[int, Score]]]:
        """Yield the scores of each batch, read while the device computes the next one."""
        before: list[Launched] = []
        for batch in batches:
            launched = self._fitting(tree, batch, shares)
            yield [score for part in before for score in part.scores()]
            before = launched
        yield [score for part in before for score in part.scores()]

    def _fitting(self, tree: Tree, batch: list[Span], shares: bool) -> "list[Launched]":
        """Compute a batch, in halves if it does not fit in memory."""
        import torch

        try:
            return [self._batch(tree, batch, shares)]
        except (MemoryError, RuntimeError) as error:
            if not no_memory(error):
                raise
            if len(batch) == 1:
                raise Refused(
                    f"one row of {batch[0].depth + tree.tokens(batch[0])} tokens does not fit in memory; free some, "
                    "or take a smaller model or dtype"
                ) from None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        log.warning("out of memory with %d rows: split, so the last digits may differ; lower token_budget", len(batch))
        half = len(batch) // 2
        return [launched for part in (batch[:half], batch[half:]) for launched in self._fitting(tree, part, shares)]

    def _batch(self, tree: Tree, batch: list[Span], shares: bool) -> "Launched":
        import torch

        laid = [tree.row(span) for span in batch]
        depth = batch[0].depth
        scored = [
            (place, row.paths[number - span.low][-len(targets) :], request, targets)
            for place, (span, row) in enumerate(zip(batch, laid, strict=True))
            for number in range(span.low, span.high)
            for request, targets in tree.scored[number]
        ]
        # A position that several continuations are scored at stands here once.
        at = sorted({(place, int(node)) for place, nodes, _, _ in scored for node in nodes})
        found = {pair: index for index, pair in enumerate(at)}
        where = np.array([found[place, int(node)] for place, nodes, _, _ in scored for node in nodes])
        targets = np.array([token for *_, tokens in scored for token in tokens])
        with torch.inference_mode():
            cached = self._cached(tree.sequences[batch[0].low][:depth])
            logits = self._logits(*self._inputs(laid, depth, cached, shares), at)
            return Launched([(request, len(tokens)) for *_, request, tokens in scored], *_read(logits, where, targets))

    def _inputs(
        self, laid: list[PackedRow], depth: int, cached: "Cache | None", shares: bool
    ) -> "tuple[torch.Tensor, dict[str, Any]]":
        """Return a batch's tokens, padded on the right, and the options with the mask of which tokens see which."""
        import torch

        model, longest = self.model, max(len(row.tokens) for row in laid)
        ids = torch.tensor([row.tokens + [0] * (longest - len(row.tokens)) for row in laid], device=model.device)
        if not shares:
            real = [[1] * len(row.tokens) + [0] * (longest - len(row.tokens)) for row in laid]
            return ids, {"attention_mask": torch.tensor(real, device=model.device), "use_cache": False}
        if not depth and all(len(row.branches) == 1 for row in laid):
            return ids, {"use_cache": False}  # plain sequences: nothing sees the padding after it
        positions = [row.positions + [0] * (longest - len(row.tokens)) for row in laid]
        sees = torch.tensor(np.stack([_sees(row, depth, longest) for row in laid]), device=model.device)
        # Boolean masks are silently wrong under eager attention.
        mask = torch.zeros(sees.shape, dtype=model.dtype, device=model.device)
        mask = mask.masked_fill_(~sees, torch.finfo(model.dtype).min)[:, None]
        known = {"past_key_values": cached, "use_cache": True} if cached else {"use_cache": False}
        return ids, {"attention_mask": mask, "position_ids": torch.tensor(positions, device=model.device), **known}

    def _logits(self, ids: "torch.Tensor", options: dict[str, Any], at: list[tuple[int, int]]) -> "torch.Tensor":
        """Compute logits of shape (positions, vocabulary) at the given rows and places."""
        import torch

        rows, places = torch.tensor(at, device=ids.device).T
        with self._head_at(rows, places):
            logits: torch.Tensor = self.model(input_ids=ids, **options).logits
        return logits[0] if len(logits) == 1 and logits.shape[1] == len(at) else logits[rows, places]

    @contextlib.contextmanager
    def _head_at(self, rows: "torch.Tensor", places: "torch.Tensor") -> Iterator[None]:
        """Run the vocabulary head at these positions only; the model's own changes to its logits stay."""
        head = self.model.get_output_embeddings()
        if head is None:
            yield
            return
        hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0][rows, places][None], *inputs[1:]))
        try:
            yield
        finally:
            hook.remove()

    def _cached(self, prefix: tuple[int, ...]) -> "Cache | None":
        """Return the keys and values of a prefix, kept until another one is asked for."""
        import torch
        from transformers import DynamicCache

        if not prefix:
            return None
        if self._prefix is None or self._prefix[0] != prefix:
            self._prefix = None  # before its memory is needed
            cache = DynamicCache()
            ids = torch.tensor([prefix], device=self.model.device)
            self._logits(ids, {"past_key_values": cache, "use_cache": True}, [(0, len(prefix) - 1)])
            self._prefix = prefix, [(layer.keys, layer.values) for layer in cache.layers]  # type: ignore[misc]
        return _before(self._prefix[1])

    def _self_test(self) -> str:
        """Say what is wrong with sharing prefixes, or "".

        Compare the scores of a small tree with those of its sequences one by one.
        """
        generator = np.random.default_rng(0)
        vocabulary = self.model.config.get_text_config().vocab_size

        def tokens(count: int) -> list[int]:
            return generator.integers(vocabulary, size=count).tolist()  # type: ignore[no-any-return]

        start = tokens(4)
        questions = [start + tokens(count) for count in (3, 5, 4)]
        requests = [Request(question, tokens(3)[:count]) for question in questions for count in (1, 3)]
        requests += [Request(requests[1].context, [*requests[1].continuation[:1], *tokens(2)])]
        tree = Tree(requests, self.longest)
        spans = [part._replace(depth=len(start)) for part in tree.parts(Span(0, 0, len(tree.sequences)))]
        try:
            ours = dict(self._batch(tree, spans, shares=True).scores())
        except (TypeError, ValueError, IndexError, AttributeError, NotImplementedError, RuntimeError) as error:
            return f"it refuses a mask or cached keys ({type(error).__name__}: {error})"
        finally:
            self._prefix = None
        alone = dict(score for span in _alone(tree) for score in self._batch(tree, [span], shares=False).scores())
        off = max(
            abs(ours[number].loglikelihood - score.loglikelihood) / len(requests[number].continuation)
            for number, score in alone.items()
        )
        import torch

        bound = SELF_TEST if self.model.dtype in (torch.float32, torch.float64) else COARSE
        return f"the self-test is {off:.2g} nats a token off" if not off <= bound else ""


def _alone(tree: Tree) -> list[Span]:
    """Put every sequence in a row of its own."""
    return [Span(0, number, number + 1) for number in range(len(tree.sequences))]


def _tokens_read(tree: Tree, batches: list[list[Span]]) -> int:
    """Count the tokens that the model reads in a plan: shared prefixes once, padding left out."""
    prefixes = {tree.sequences[batch[0].low][: batch[0].depth] for batch in batches}
    return sum(map(len, prefixes)) + sum(tree.tokens(span) for batch in batches for span in batch)


def _sees(row: PackedRow, depth: int, longest: int) -> NDArray[np.bool_]:
    """Mark the tokens that a row's tokens see, of shape (longest, depth + longest).

    They see the prefix, their ancestors and themselves.
    """
    sees = np.zeros((longest, longest), dtype=np.bool_)
    for start, end, path in row.branches:
        sees[start:end, path] = True
        sees[start:end, start:end] = np.tri(end - start, dtype=np.bool_)
    np.fill_diagonal(sees, True)  # a softmax over nothing would be NaN in the padding
    return np.concatenate([np.ones((longest, depth), dtype=np.bool_), sees], axis=1)


def _before(layers: "list[tuple[torch.Tensor, torch.Tensor]]") -> "Cache":
    """Make a cache that puts the keys and values of one sequence before those of every row, and keeps nothing."""
    import torch
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    class Before(DynamicLayer):
        def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> Any:
            pairs = ((self.keys, keys), (self.values, values))
            return tuple(torch.cat([old.expand(len(new), -1, -1, -1), new], dim=-2) for old, new in pairs)

    cache = DynamicCache()
    for keys, values in layers:
        layer = Before()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache


def _read(
    logits: "torch.Tensor", where: NDArray[np.intp], targets: NDArray[np.intp]
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Return each target's log-probability at its position, and whether it is the likeliest; float32, as lm-eval.

    Nothing here waits for the device.
    """
    import torch

    order = np.argsort(where, kind="stable")
    starts = range(0, len(logits), HEAD)
    ends = np.searchsorted(where[order], [*starts, len(logits)])
    place, token = (torch.from_numpy(numbers[order]).to(logits.device) for numbers in (where, targets))
    logps = torch.empty(len(where), dtype=torch.float64, device=logits.device)
    greedy = torch.empty(len(where), dtype=torch.bool, device=logits.device)
    back = torch.from_numpy(order).to(logits.device)
    for start, (low, high) in zip(starts, pairwise(ends), strict=True):
        part = torch.log_softmax(logits[start : start + HEAD].float(), dim=-1)
        here, wanted, to = place[low:high] - start, token[low:high], back[low:high]
        logps[to] = part[here, wanted].double()
        greedy[to] = part.argmax(dim=-1)[here] == wanted
    return logps, greedy
