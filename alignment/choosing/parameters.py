"""Parameters: whether every stage can take what a params file says, before anything is looked at that depends on it.

In: a params file, dvc.yaml, and a params file to compare with. Out: what it says.

The stages' own parsers are asked: DVC makes each command of dvc.yaml with these parameters, and the parser of its
program reads the words, without running it. What no parser sees is checked here: keys, kinds, names of datasets.
"""

import importlib
import math
import re
import shlex
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from typer import BadParameter
from typer.exceptions import TyperException

from alignment import corpora
from alignment.choosing import conflicts
from alignment.corpora import Role
from alignment.fetching import pins
from alignment.runtime import Refused, command
from alignment.runtime.records import brief
from alignment.sampling import description
from alignment.training import plan

Params = dict[str, Any]
KNOWN = Path("presets/paper.yaml")  # a test holds all presets to the same keys
PIPELINE = Path("dvc.yaml")
MOST = 2**53  # the whole numbers that a float holds
SHOWN = 8  # mistakes that a refusal lists before it counts


def load(path: Path, pipeline: Path = PIPELINE, known: Path = KNOWN) -> Params:
    """Read the parameters as DVC reads them, and check that every stage can take them.

    Args:
        path: the params file.
        pipeline: dvc.yaml.
        known: a params file with the same keys and the kinds of their values.

    Raises:
        Refused: no such file, half merged, or no YAML; or a key is missing, unknown, of another kind than in `known`,
            or of a value that a stage refuses; or a value names no dataset, no benchmark, no group of words, or no
            program.
    """
    from dvc.utils.serialize import ParseError, load_yaml  # type: ignore[import-untyped]

    if not path.is_file():
        raise Refused(f"there is no file {path}; params.yaml and presets/*.yaml are such files")
    conflicts.refuse(path.read_bytes(), str(path))
    try:
        params = load_yaml(str(path))
    except (ParseError, ValueError, RecursionError) as error:  # also a date that there is not
        raise Refused(f"{path} is no YAML: {_why(error)}") from None
    return check(params, load_yaml(str(known)), path, pipeline)


def check(params: Any, known: Params, path: Path, pipeline: Path = PIPELINE) -> Params:
    """Check that every stage can take the parameters, and return them; `load` does this for a file."""
    if not isinstance(params, dict):
        raise Refused(f"{path}: found {type(params).__name__}, wanted keys and values as in {KNOWN}")
    _refuse(_differences(params, known), f"{path}, beside {KNOWN}")
    _refuse(_unquoted(params, pipeline), str(path))
    _check_launch(params["launch"], path)
    study = params["study"]
    for name in (params["data"], *study["demonstrations"], *study["matched"]):
        corpora.load(name, Role.demonstrations)
    for name in (params["preferences"], *study["comparisons"]):
        corpora.load(name, Role.comparisons)
    description.group_words(params["sample"]["mentions"])
    _refuse([*_tasks(params), *_refused(params, pipeline), *_steps(params)], str(path))
    return dict(params)


def _refuse(wrong: Iterator[str] | Sequence[str], where: str) -> None:
    said = list(dict.fromkeys(wrong))
    more = f"; and {len(said) - SHOWN} more" if len(said) > SHOWN else ""
    if said:
        raise Refused(f"{where}: {'; '.join(said[:SHOWN])}{more}")


def _unquoted(params: Params, pipeline: Path) -> Iterator[str]:
    """Name each text of more than one word that dvc.yaml puts into a command without quotes."""
    _, stages = _pipeline(pipeline)
    templates = " ".join(stage.get("do", stage)["cmd"] for stage in stages.values())
    for key in re.findall(r"\$\{(\w+)\}", templates):
        value = params.get(key)
        if isinstance(value, str) and key != "launch" and not re.fullmatch(r"[\w.-]+", value):
            yield f"{key} is {brief(value)}, wanted one word"


def _tasks(params: Params) -> Iterator[str]:
    """Describe what is wrong with the entries of `eval.items`."""
    tasks = {*pins.BENCHMARKS, *pins.more(params["more_benchmarks"])}
    named = [entry.partition("=")[0] for entry in params["eval"]["items"]]
    for entry, task in zip(params["eval"]["items"], named, strict=True):
        if not re.fullmatch(r"\w+=(all|0*[1-9][0-9]{0,15})", entry) or task not in tasks:
            wanted = "wanted a task and how many of its items, such as piqa=16, or piqa=all"
            yield f"eval.items has {brief(entry)}, {wanted}; known: {', '.join(sorted(tasks))}"
        elif named.count(task) > 1:
            yield f"eval.items has {task} twice, wanted one entry a task"


def _refused(params: Params, pipeline: Path) -> Iterator[str]:
    """Describe what the stages' parsers refuse, by the keys of params.yaml."""
    for stage, cmd in commands(params, pipeline).items():
        words = shlex.split(cmd)
        program, *given = words[next(n for n, word in enumerate(words) if word.startswith("stages.")) :]
        main, parser = _parser(program, given[0])
        try:
            parser.make_context(program, given if main else given[1:])
        except TyperException as error:
            param = getattr(error, "param", None)
            known = isinstance(error, BadParameter) and param is not None and error.message
            yield f"{_key(params, program, param) if known else stage}: {error.message or error.format_message()}"


@cache
def _parser(program: str, first: str) -> tuple[bool, Any]:
    """Return the parser of a stage's program.

    A program has either a `main` or several commands; then the first word names the command. The first value says
    whether it has a `main`.
    """
    module = importlib.import_module(program)
    main = hasattr(module, "main")
    return main, command.parser(module.main if main else getattr(module, first))


def _key(params: Params, program: str, param: Any) -> str:
    """Return the key of params.yaml that sets an option, in the stage's own section or at the top level."""
    section, option = program.removeprefix("stages."), param.opts[0].lstrip("-").replace("-", "_")
    return f"{section}.{option}" if option in params.get(section, {}) else option


def commands(params: Params, pipeline: Path) -> dict[str, str]:
    """Return the command of each stage, as DVC makes it with these parameters."""
    from dvc.parsing import DataResolver  # type: ignore[import-untyped]
    from dvc.parsing.context import Context  # type: ignore[import-untyped]

    repo, stages = _pipeline(pipeline)
    resolver = DataResolver(repo, ".dvc", {"stages": stages})  # where no params.yaml lies that it would read
    resolver.context.merge_update(Context(params))
    return {name: resolver.resolve_one(name)[name]["cmd"] for name in resolver.get_keys()}


@cache
def _pipeline(path: Path) -> tuple[Any, Any]:
    """Return this repository as DVC sees it, and the stages of dvc.yaml."""
    from dvc.repo import Repo  # type: ignore[import-untyped]
    from dvc.utils.serialize import load_yaml  # type: ignore[import-untyped]

    return Repo(), load_yaml(str(path))["stages"]


def _steps(params: Params) -> Iterator[str]:
    """Name the token budgets whose steps would be too large even if every row had the longest length."""
    for stage, sides in (("sft", 1), ("dpo", 2)):
        budget, longest = params[stage], params["sample"]["max_tokens"] * sides
        if budget["budget"] == "tokens" and budget["tokens"] > budget["steps"] * plan.LARGEST * longest:
            yield (
                f"{stage}.tokens is {budget['tokens']} in {budget['steps']} steps: a step would hold more than "
                f"{plan.LARGEST:,} rows; lower it, or raise `{stage}.steps`"
            )


def _check_launch(launch: str, path: Path) -> None:
    try:
        words = shlex.split(launch)
    except ValueError as error:
        raise Refused(f"{path}: launch is {brief(launch)}, which a shell cannot read: {error}") from None
    if words[-1:] != ["-m"]:
        raise Refused(f"{path}: launch is {brief(launch)}, wanted a command that ends with -m, such as `python -m`")


def _why(error: BaseException) -> str:
    """Describe what is wrong and on which line, from the YAML reader's own error, which DVC wraps."""
    cause = error.__cause__
    mark = getattr(cause, "problem_mark", None)
    said = f"{getattr(cause, 'problem', cause)}, line {mark.line + 1}" if mark else str(cause or error)
    return " ".join(said.split())


def _differences(found: Params, wanted: Params, prefix: str = "") -> Iterator[str]:
    """Describe what is wrong with each key, one line each."""
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
    """Describe what is wrong with one value, unless a stage's parser reports it too."""
    kind = type(found)
    if found is None or (found == "" and wanted):
        yield f"{name} is empty, wanted {_kind(wanted)} such as {brief(wanted)}"
    elif kind is float and not math.isfinite(found):
        yield f"{name} is {found}, wanted a number"
    elif kind is not type(wanted) and (kind, type(wanted)) != (int, float):
        yield f"{name} is {brief(found)} ({kind.__name__}), wanted {type(wanted).__name__}"
    elif kind is list:
        if not found and name != "study.matched":  # a study need not try any set with few rows
            yield f"{name} is an empty list, wanted one or more entries"
        for place, entry in enumerate(found):
            yield from _wrong(f"{name}[{place}]", entry, wanted[0])
    elif kind is int and found > MOST:
        yield f"{name} is {brief(found)}, wanted at most {MOST}"
    elif kind is int and found < 1 and name.startswith("study."):  # no stage reads that section
        yield f"{name} is {found}, wanted at least 1"


def _kind(value: Any) -> str:
    return {str: "text", int: "a whole number", float: "a number", bool: "true or false"}.get(type(value), "a section")
