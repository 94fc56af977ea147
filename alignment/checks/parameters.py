"""Parameters: whether a params file is one, before anything is looked at that depends on it.

In: a params file. Out: what it says, with the keys and the kinds of values that every preset has.
"""

import math
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignment import corpora, description, pins
from alignment.chat import Template
from alignment.command import Refused
from alignment.corpora import Role, brief
from alignment.models import Dtype, Quantization
from alignment.schedule import Budget

Params = dict[str, Any]
KNOWN = Path("presets/paper.yaml")  # a test holds all presets to the same keys
CHOICES: dict[str, tuple[str, ...]] = {
    "sentences": ("safenlp", "own"),
    "device": ("cpu", "cuda"),
    "dtype": tuple(Dtype),
    "safety.dtype": tuple(Dtype),
    "quantization": tuple(Quantization),
    "template": tuple(Template),
    "sft.budget": tuple(Budget),
    "dpo.budget": tuple(Budget),
    "dpo.loss": ("sigmoid", "ipo", "hinge"),
}
# Where a number may lie, other than from 1 up for a whole one and from 0 up for another; as the stages' options say.
SHARES = ("sample.heldout_share", "sample.near_duplicate", "sft.warmup", "sft.dropout", "dpo.warmup")
LEAST = {"seed": 0, "item_seed": 0, "sample.malformed": 0, "sample.contamination_ngram": 4}
SEEDS = 2**32 - 1  # NumPy takes no larger one
MOST = 2**53  # the whole numbers that a float holds


def load(path: Path) -> Params:
    """The parameters, as DVC reads them.

    Raises:
        Refused: no such file, or no YAML; or as `check`.
    """
    from dvc.utils.serialize import ParseError, load_yaml  # type: ignore[import-untyped]

    if not path.is_file():
        raise Refused(f"there is no file {path}; params.yaml and presets/*.yaml are such files")
    try:
        params = load_yaml(str(path))
    except (ParseError, ValueError, RecursionError) as error:  # also a date that there is not
        raise Refused(f"{path} is no YAML: {_why(error)}") from None
    return check(params, load_yaml(str(KNOWN)), path)


def check(params: Any, known: Params, path: Path) -> Params:
    """The parameters, once it is clear that every stage can take them.

    Args:
        params: what a params file says.
        known: what `KNOWN` says.
        path: the file, for messages.

    Raises:
        Refused: a key is missing, unknown, of another kind than in `known`, or beyond what a stage takes; or a value
            names no dataset, no benchmark, no group of words, or no program.
    """
    if not isinstance(params, dict):
        raise Refused(f"{path}: found {type(params).__name__}, wanted keys and values as in {KNOWN}")
    wrong = list(_differences(params, known))
    if wrong:
        more = f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise Refused(f"{path}, beside {KNOWN}: {'; '.join(wrong[:8])}{more}")
    study = params["study"]
    for name in (params["data"], *study["demonstrations"], *study["matched"]):
        corpora.load(name, Role.demonstrations)
    for name in (params["preferences"], *study["comparisons"]):
        corpora.load(name, Role.comparisons)
    description.group_words(params["sample"]["mentions"])
    tasks = {*pins.BENCHMARKS, *pins.more(params["more_benchmarks"])}
    for entry in params["eval"]["items"]:
        if not re.fullmatch(r"\w+=(all|0*[1-9][0-9]{0,15})", entry) or entry.partition("=")[0] not in tasks:
            said = f"{path}: eval.items has {brief(entry)}, wanted a task and how many of its items, such as piqa=16"
            raise Refused(f"{said}, or piqa=all; known: {', '.join(sorted(tasks))}")
    _check_launch(params["launch"], path)
    return dict(params)


def _check_launch(launch: str, path: Path) -> None:
    try:
        words = shlex.split(launch)
    except ValueError as error:
        raise Refused(f"{path}: launch is {brief(launch)}, which a shell cannot read: {error}") from None
    if words[-1:] != ["-m"]:
        raise Refused(f"{path}: launch is {brief(launch)}, wanted a command that ends with -m, such as `python -m`")


def _why(error: BaseException) -> str:
    """What is wrong and on which line, from the YAML reader's own error, which DVC wraps."""
    cause = error.__cause__
    mark = getattr(cause, "problem_mark", None)
    said = f"{getattr(cause, 'problem', cause)}, line {mark.line + 1}" if mark else str(cause or error)
    return " ".join(said.split())


def _differences(found: Params, wanted: Params, prefix: str = "") -> Iterator[str]:
    """What is wrong with each key: one line each."""
    for key in sorted({*found, *wanted}, key=str):
        name = f"{prefix}{key}"
        if key not in found:
            yield f"the key {name} is missing"
        elif key not in wanted:
            yield f"the key {brief(name)[1:-1]} is unknown"
        elif isinstance(wanted[key], dict) and isinstance(found[key], dict):
            yield from _differences(found[key], wanted[key], f"{name}.")
        else:
            yield from _wrong(name, found[key], wanted[key])


def _wrong(name: str, found: Any, wanted: Any) -> Iterator[str]:
    """What is wrong with one value, if anything is."""
    kind = type(found)
    if kind is not type(wanted) and (kind, type(wanted)) != (int, float):
        yield f"{name} is {brief(found)} ({kind.__name__}), wanted {type(wanted).__name__}"
    elif kind is list:
        if not found:
            yield f"{name} is an empty list, wanted one or more entries"
        for place, entry in enumerate(found):
            yield from _wrong(f"{name}[{place}]", entry, wanted[0])
    elif isinstance(found, int | float) and kind is not bool:
        least, most = _bounds(name, wanted)
        if not least <= found <= most:  # nor is NaN
            yield f"{name} is {brief(found)}, wanted {f'at least {least}' if found < least else f'at most {most}'}"
    elif name in CHOICES and found not in CHOICES[name]:
        yield f"{name} is {brief(found)}, wanted {' or '.join(CHOICES[name])}"


def _bounds(name: str, wanted: Any) -> tuple[float, float]:
    if name in SHARES:
        return 0, 1
    if isinstance(wanted, float):
        return 0, math.nextafter(math.inf, 0)
    return LEAST.get(name, 1), SEEDS if name.endswith("seed") else MOST
