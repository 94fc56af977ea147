"""Length: whether the model can read the rows that `sample` lets through."""

from alignment.choosing.parameters import Params
from commands.doctor.findings import Finding, failure, ok
from commands.doctor.predictions import Shape


def check(params: Params, shape: Shape) -> Finding:
    """Check `sample.max_tokens` against what the model can read."""
    limit = params["sample"]["max_tokens"]
    if limit <= shape.longest:
        return ok("length", f"rows of at most {limit:,} tokens, which the model can read")
    found = f"`sample.max_tokens` is {limit:,}, and the model can read {shape.longest:,} tokens"
    return failure("length", found, f"set `sample.max_tokens: {shape.longest}`, or choose a `model` that reads more")
