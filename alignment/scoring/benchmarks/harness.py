"""The scoring engine as a model class of lm-eval, for its own tasks here and for its command line.

In: a model's folder, or a model and its tokenizer. Out: an lm-eval `LM`, registered as `shared-prefix`, whose
log-likelihoods are the engine's. What needs generated text is refused.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lm_eval.models  # noqa: F401  # lm-eval registers its own classes only where none is registered yet
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from alignment.models.chat import Text
from alignment.runtime import Refused
from alignment.runtime.processes import world
from alignment.scoring.engine.engine import Engine
from alignment.scoring.engine.prefix_tree import Request

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

UNSTATED = 2048  # tokens that lm-eval's Hugging Face class has a model read whose configuration does not say


@register_model("shared-prefix")
class SharedPrefix(TemplateLM):
    """lm-eval's view of a model that computes shared prefixes once.

    Text is tokenised as data: one BOS where the tokenizer puts one, no EOS, and no control token whatever it says.

    Args:
        pretrained: a folder of safetensors with its tokenizer, or a model on its device.
        tokenizer: the tokenizer of a model that is given.
        peft: an adapter's folder.
        dtype: float32 or bfloat16, for a folder.
        device: cpu or cuda, for a folder.
        token_budget: tokens of a forward pass, padding included.
        batch_size: what lm-eval's command line passes; `token_budget` stands in its place.
        max_batch_size: the same.
    """

    def __init__(
        self,
        pretrained: "str | PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        peft: str | None = None,
        dtype: str = "float32",
        device: str = "cpu",
        token_budget: int = 2048,
        batch_size: Any = None,
        max_batch_size: Any = None,
    ) -> None:
        super().__init__()
        if isinstance(pretrained, str):
            from alignment.models import loading

            world(device)  # each of several processes takes a device of its own
            folder = Path(pretrained)
            tokenizer = loading.tokenizer(folder)
            pretrained = loading.load_base(folder, loading.Dtype(dtype), device)
            if peft:
                pretrained = loading.adapt(pretrained, Path(peft))
        assert tokenizer is not None, "a model that is given needs its tokenizer"
        self.tokenizer = tokenizer
        self.model = pretrained
        self.text = Text(tokenizer)
        self.engine = Engine(self.model, token_budget)
        self._known: dict[str, list[int]] = {}

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token before a continuation that has no context, as in lm-eval's Hugging Face class."""
        return self.eot_token_id if self.tokenizer.bos_token_id is None else int(self.tokenizer.bos_token_id)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Tokenise text, with a BOS if the tokenizer uses one, unless `add_special_tokens` is false."""
        bos = [] if add_special_tokens is False else self.text.bos
        return [*bos, *(self._known.get(string) or self.text.text(string))]

    def loglikelihood(self, requests: "Sequence[Instance]", disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return each continuation's summed log-probability and whether it is greedy, in the order of the requests."""
        # lm-eval asks for the tokens of one text after another: all of them are made at once.
        texts = {
            text for context, answer in (r.args for r in requests) for text in (context.rstrip(), context + answer)
        }
        self._known = dict(zip(texts, self.text.texts(list(texts)), strict=True))
        pairs = [self._pair(*request.args) for request in requests]
        self._known = {}
        tasks = {str(request.task_name) for request in requests}
        label = f"{len(tasks)} tasks" if len(tasks) > 1 else "".join(tasks)
        items = [(request.task_name, request.doc_id) for request in requests]
        scores = self.engine.score(self._cut(pairs), items, label)
        for request, score in zip(requests, scores, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, tuple(score))
        return [(score.loglikelihood, score.is_greedy) for score in scores]

    def _pair(self, context: str, continuation: str) -> Request:
        if context:
            return Request(*self._encode_pair(context, continuation))
        return Request([self.prefix_token_id], self.tok_encode(continuation, add_special_tokens=False))

    def _cut(self, requests: list[Request]) -> list[Request]:
        """Cut requests as lm-eval does: one longer than the model can read loses its beginning."""
        longest = UNSTATED if self.engine.longest == sys.maxsize else self.engine.longest
        over = [len(context) + len(continuation) - longest - 1 for context, continuation in requests]
        if cut := sum(tokens > 0 for tokens in over):
            log.warning("%d of %d requests exceed the model's %d tokens: their beginning is left out, as lm-eval does",
                        cut, len(requests), longest)  # fmt: skip
        return [
            Request(context[max(0, min(tokens, len(context) - 1)) :], continuation)
            for (context, continuation), tokens in zip(requests, over, strict=True)
        ]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        pairs = [Request(context, continuation) for _, context, continuation in requests]
        scores = self.engine.score(self._cut(pairs))
        return [(score.loglikelihood, score.is_greedy) for score in scores]

    def loglikelihood_rolling(self, requests: "Sequence[Instance]", disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each whole text.

        A long text is scored in windows as long as the model can read, as lm-eval cuts them.
        """
        windows: list[Request] = []
        texts: list[int] = []
        for number, request in enumerate(requests):
            cut = get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.engine.longest, context_len=1
            )
            windows += [Request(*make_disjoint_window(window)) for window in cut]
            texts += [number] * (len(windows) - len(texts))
        totals = [0.0] * len(requests)
        for number, score in zip(texts, self.engine.score(windows, texts, "texts", "text"), strict=True):
            totals[number] += score.loglikelihood
        return totals

    def generate_until(self, requests: "Sequence[Instance]", disable_tqdm: bool = False) -> list[str]:
        """Refuse to generate text.

        Raises:
            Refused: always.
        """
        raise Refused(
            f"the task {requests[0].task_name} needs generated text, and this class scores given continuations only; "
            "take lm-eval's own class for it: --model hf"
        )
