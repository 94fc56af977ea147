"""Law 3: what a stage imports and reads is what dvc.yaml says it depends on; presets have the keys of params.yaml."""

import inspect
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo
from pipeline import MAINS

from alignment.choosing import libraries
from alignment.runtime.closure import closure, imports, is_empty, names
from stages import fetch

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def stages() -> dict[str, Any]:
    """DVC's own view of the stages, after templating."""
    return {stage.name: stage for stage in Repo(str(ROOT)).index.stages}


def code(script: str) -> set[str]:
    """The files of a script's code, as dvc.yaml names them."""
    return {path.relative_to(ROOT).as_posix() for path in closure(ROOT / script)}


def corpora() -> set[str]:
    """The files of all datasets' parsers."""
    return {path.relative_to(ROOT).as_posix() for path in (ROOT / "alignment/corpora").glob("*.py")}


def folded(files: set[str]) -> set[str]:
    """Files as dvc.yaml names them: a folder stands for its modules where all are among them, the runtime always."""
    for folder in sorted(path for path in (ROOT / "alignment").glob("**/") if path.name != "__pycache__"):
        name = folder.relative_to(ROOT).as_posix()
        modules = {f"{name}/{path.relative_to(folder)}" for path in folder.rglob("*.py") if not is_empty(path)}
        if name == "alignment/runtime" or (len(modules) > 1 and modules <= files):
            files = (files - modules) | {name}
    return files


def test_code_dependencies_are_the_imports(stages: dict[str, Any]) -> None:
    for name, stage in stages.items():
        command = shlex.split(stage.cmd.replace('"$(dvc cache dir)/', '"'))
        script = next(word for word in command if word.startswith("stages.")).replace(".", "/") + ".py"
        named = {path for path in _paths(stage.deps) if path.endswith(".py") or (ROOT / path / "__init__.py").is_file()}
        # A corpus is imported by its name, and the others read what `choose` says of it.
        assert named == folded(code(script) | (corpora() if name == "choose" else set())), name
        reads = name.startswith(("fetch-corpus", "sample"))
        assert any(path.endswith(".parser") for path in _paths(stage.deps)) == reads, name


@cache
def libraries_of(path: Path) -> set[str]:
    """The libraries that a file imports, and that results rest on."""
    found = {name.partition(".")[0] for name in names(path)}
    return {name for module in found & libraries.RESULTS.keys() for name in libraries.RESULTS[module]}


def test_versions_are_those_of_the_libraries_that_a_stage_computes_with(stages: dict[str, Any]) -> None:
    for name, stage in stages.items():
        script = f"stages/{name.partition('@')[0]}.py"
        if name in ("choose", "versions") or name.startswith("fetch"):  # these write names, versions, or copies
            parts = {"alignment/fetching/base_model.py"} if name == "fetch@model" else set()  # which converts a model
        else:
            parts = code(script)
            if name.startswith("sample"):
                parts = parts.union(*(code(path) for path in corpora()))
        wanted = set().union(*(libraries_of(ROOT / path) for path in parts))
        recorded = [dep for dep in stage.deps if dep.def_path == "data/raw/versions.yaml"]
        assert {library for dep in recorded for library in dep.params} == wanted, name


def test_the_lock_alone_makes_versions(stages: dict[str, Any]) -> None:
    assert [name for name, stage in stages.items() if "requirements.lock" in _paths(stage.deps)] == ["versions"]


def test_file_arguments_are_dependencies_or_outputs(stages: dict[str, Any]) -> None:
    for name, stage in stages.items():
        known = _paths(stage.deps) | _paths(stage.outs)
        words = [word for word in shlex.split(stage.cmd) if "/" in word and "$(" not in word and word[0] != "-"]
        for word in words:
            inside = any(path == word or path.startswith(f"{word}/") for path in known)
            assert inside, f"{name}: {word} is neither a dependency nor an output"


def _paths(items: Any) -> set[str]:
    return {item.def_path for item in items}


def test_every_option_is_given_by_the_command(stages: dict[str, Any]) -> None:
    for name, stage in stages.items():
        script = name.partition("@")[0]
        if script not in MAINS:
            continue
        given = {word[2:].removeprefix("no-") for word in shlex.split(stage.cmd) if word.startswith("--")}
        assert given == options(MAINS[script]), name


def options(main: Any) -> set[str]:
    """The options of a stage: its parameters that Typer makes flags of."""
    return {
        parameter.name
        for parameter in inspect.signature(main).parameters.values()
        if type(parameter.annotation.__metadata__[0]).__name__ == "OptionInfo"
    }


def test_options_have_help_and_no_default() -> None:
    for main in [*MAINS.values(), fetch.model, fetch.corpus, fetch.benchmarks, fetch.safety]:
        for parameter in inspect.signature(main).parameters.values():
            assert parameter.default is inspect.Parameter.empty, f"{main.__module__}: {parameter.name}"
            assert parameter.annotation.__metadata__[0].help, f"{main.__module__}: {parameter.name}"


def keys(value: Any, prefix: str = "") -> set[str]:
    """Dotted names of all keys."""
    if not isinstance(value, dict):
        return {prefix}
    return {name for key, inner in value.items() for name in keys(inner, f"{prefix}.{key}")}


@pytest.mark.parametrize("preset", ["handbook", "paper", "tiny"])
def test_presets_have_the_keys_of_params(preset: str) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    other = yaml.safe_load((ROOT / f"presets/{preset}.yaml").read_text(encoding="utf-8"))
    assert keys(other) == keys(params)
    assert [item.partition("=")[0] for item in other["eval"]["items"]] == [
        item.partition("=")[0] for item in params["eval"]["items"]
    ]


def test_the_two_schools_of_dpo_differ_in_the_learning_rate_alone() -> None:
    paper, handbook = (yaml.safe_load((ROOT / f"presets/{name}.yaml").read_text()) for name in ("paper", "handbook"))
    assert (paper["dpo"].pop("learning_rate"), handbook["dpo"].pop("learning_rate")) == (5e-4, 5e-6)
    assert paper == handbook


def test_base_depends_on_nothing_that_varies(stages: dict[str, Any]) -> None:
    for name in ("eval@base", "safety@base"):
        assert "--seed" not in shlex.split(stages[name].cmd)
        assert not {path for path in _paths(stages[name].deps) if "sampled" in path or "/sft" in path}


def test_no_room_is_called_utils() -> None:
    for path in [*(ROOT / "alignment").rglob("*.py"), *(ROOT / "stages").glob("*.py")]:
        assert path.stem not in {"utils", "common", "helpers", "manager", "handler"}
    for path in (ROOT / "stages").glob("*.py"):
        assert not {file for file in imports(path) if file.parent.name == "stages" and file.stem != "__init__"}
