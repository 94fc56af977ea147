"""Parameters: whether a params file is one, before anything is looked at that depends on it.

In: a params file. Out: what it says, with the keys and the kinds of values that every preset has.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignment import corpora, machine
from alignment.command import Refused

Params = dict[str, Any]
KNOWN = Path("presets/paper.yaml")  # a test holds all presets to the same keys


def load(path: Path) -> Params:
    """The parameters, as DVC reads them.

    Raises:
        Refused: no such file, or no YAML, or a key is missing, unknown, or of another kind than in `KNOWN`.
    """
    from dvc.utils.serialize import YAMLFileCorruptedError, load_yaml  # type: ignore[import-untyped]

    if not path.is_file():
        raise Refused(f"there is no file {path}; params.yaml and presets/*.yaml are such files")
    try:
        params = load_yaml(str(path))
    except (YAMLFileCorruptedError, UnicodeDecodeError) as error:
        raise Refused(f"{path} is no YAML: {_why(error)}") from None
    if not isinstance(params, dict):
        raise Refused(f"{path}: found {type(params).__name__}, wanted keys and values as in {KNOWN}")
    wrong = list(_differences(params, load_yaml(str(KNOWN))))
    if wrong:
        more = f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise Refused(f"{path}, beside {KNOWN}: {'; '.join(wrong[:8])}{more}")
    corpora.load(params["data"], corpora.Role.demonstrations)
    corpora.load(params["preferences"], corpora.Role.comparisons)
    choices = {"device": ("cpu", "cuda"), "dtype": tuple(machine.BYTES), "quantization": ("none", "nf4")}
    for name, known in choices.items():
        if params[name] not in known:
            raise Refused(f"{path}: {name} is {params[name]!r}, wanted {' or '.join(known)}")
    return dict(params)


def _why(error: BaseException) -> str:
    """What is wrong and on which line, from the YAML reader's own error, which DVC wraps."""
    cause = error.__cause__
    mark = getattr(cause, "problem_mark", None)
    return f"{getattr(cause, 'problem', cause)}, line {mark.line + 1}" if mark else str(cause or error)


def _differences(found: Params, wanted: Params, prefix: str = "") -> Iterator[str]:
    for key in sorted({*found, *wanted}):
        name = f"{prefix}{key}"
        if key not in found:
            yield f"the key {name} is missing"
        elif key not in wanted:
            yield f"the key {name} is unknown"
        elif isinstance(wanted[key], dict) and isinstance(found[key], dict):
            yield from _differences(found[key], wanted[key], f"{name}.")
        elif type(found[key]) is not type(wanted[key]) and {type(found[key]), type(wanted[key])} != {int, float}:
            yield f"{name} is {found[key]!r} ({type(found[key]).__name__}), wanted {type(wanted[key]).__name__}"
        elif type(found[key]) is int and found[key] < 1 and key not in ("seed", "item_seed", "heldout", "malformed"):
            yield f"{name} is {found[key]}, wanted at least 1"
