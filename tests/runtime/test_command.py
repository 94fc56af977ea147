"""A stage as a command: flags, refusals, the network, its end with its parent."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from clones import change, dvc, git
from pipeline import MAINS
from typer import BadParameter
from typer.exceptions import TyperException

from alignment.runtime import command
from stages import dpo, fetch, sft

ROOT = Path(__file__).parents[2]

STAGE = r"""
import os, time
from typing import Annotated
import typer
from alignment.runtime import Refused, command

def main(name: str, learning_rate: Annotated[float, typer.Option()], own: Annotated[bool, typer.Option()]) -> None:
    if name == "refused":
        raise Refused("no such thing; take another")
    if name == "broken":
        raise KeyError("a bug")
    if name == "words":
        print("\u00bd \u2013 \udcff")
        raise command.Refused("\u00bd \u2013 \udcff")
    if name == "slow":
        print("ready", flush=True)
        time.sleep(60)
    print(name, learning_rate, own, {k: v for k, v in os.environ.items() if k.startswith(("HF_", "TRANSFORMERS_"))})

command.run(main, offline=OFFLINE)
"""


def arguments(*given: str, offline: bool = True) -> list[str]:
    return [sys.executable, "-c", STAGE.replace("OFFLINE", str(offline)), *given]


def stage(*given: str, offline: bool = True, **settings: str) -> "subprocess.CompletedProcess[str]":
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))} | settings
    command = arguments(*given, offline=offline)
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("flag", ["--learning_rate", "--learning-rate"])
def test_flags_are_those_of_params_yaml_or_of_a_person(flag: str) -> None:
    ended = stage("a", flag, "1e-6", "--no-own")
    assert ended.returncode == 0 and ended.stdout.startswith("a 1e-06 False "), ended.stderr


def test_the_hub_s_clients_are_offline_unless_the_stage_fetches() -> None:
    offline = stage("a", "--learning_rate", "1", "--own").stdout
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
        assert f"'{name}': '1'" in offline
    assert "OFFLINE" not in stage("a", "--learning_rate", "1", "--own", offline=False).stdout


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["a", "--learning_rate", "1", "--own", "--learning_rat", "2"], "No such option: --learning-rat"),
        (["a", "--own"], "--learning-rate"),
        (["a", "--learning_rate", "None", "--own"], "'--learning-rate'"),
        (["a", "--learning_rate", "1"], "--own"),
        (["a", "--learning_rate", "nan", "--own"], "'--learning-rate': found 'nan', wanted a number"),
        (["a", "--learning_rate", "3", "--own", "--learning_rate", "1"], "'--learning-rate': given 2 times"),
    ],
)
def test_an_unknown_missing_or_mistyped_flag_is_named(given: list[str], named: str) -> None:
    ended = stage(*given)
    assert ended.returncode == 2 and named in ended.stderr and "Traceback" not in ended.stderr


def test_a_refusal_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = stage("refused", "--learning_rate", "1", "--own")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "\nerror: no such thing; take another\n"
    monkeypatch.setenv("DVC_STAGE", "sft")
    back = (
        "\nDVC removed the last result of sft before it began. Set back what was changed, and `dvc repro` brings it\n"
        "back, from its cache where it can; `dvc checkout sft` brings back the cached files alone.\n"
    )
    assert stage("refused", "--learning_rate", "1", "--own").stderr == ended.stderr + back
    assert stage("a", "--own").stderr.endswith(back) and back not in stage("a", "--own", "--help").stderr


TRAINED = """
import sys
from pathlib import Path
sys.path.insert(0, ROOT)
from alignment.runtime import Refused, command

def main(rank: int) -> None:
    if not rank:
        raise Refused("no adapter has rank 0")
    print("trains")
    Path("model.txt").write_text(f"{rank}")
    Path("metrics.txt").write_text(f"{rank}")

command.run(main)
"""


@pytest.mark.slow
def test_what_a_refusal_advises_loses_no_uncommitted_work(tmp_path: Path) -> None:
    """Parameters, results and notes that no commit has: all of it is there after each command that is named."""
    stages = {"sft": {"cmd": f"{sys.executable} sft.py ${{rank}}", "deps": ["sft.py"], "outs": ["model.txt"]}}
    stages["sft"]["metrics"] = [{"metrics.txt": {"cache": False}}]
    for name, text in (
        ("dvc.yaml", json.dumps({"stages": stages})),
        ("sft.py", TRAINED.replace("ROOT", repr(str(ROOT)))),
        ("params.yaml", "rank: 4\n"),
    ):
        (tmp_path / name).write_text(text)
    git(tmp_path, "init", "--quiet")
    dvc(tmp_path, "init", "--quiet")
    dvc(tmp_path, "repro", "--quiet")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    (tmp_path / "params.yaml").write_text("rank: 8\nnote: mine\n")
    assert "trains" in dvc(tmp_path, "repro")
    kept = {name: (tmp_path / name).read_text() for name in ("params.yaml", "dvc.lock", "model.txt", "metrics.txt")}
    change(tmp_path, "params.yaml", "8", "0")
    printed = dvc(tmp_path, "repro", code=255)
    advised = re.findall(r"`(dvc [^`]+)`", printed)
    assert advised == ["dvc repro", "dvc checkout sft"] and not (tmp_path / "model.txt").exists()
    dvc(tmp_path, "checkout", "sft")
    assert (tmp_path / "model.txt").read_text() == "8" and "note: mine" in (tmp_path / "params.yaml").read_text()
    change(tmp_path, "params.yaml", "0", "8")
    assert "trains" not in dvc(tmp_path, "repro"), "it comes from the cache"
    assert {name: (tmp_path / name).read_text() for name in kept} == kept


ASCII = r"\xbd \u2013 \udcff"


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"PYTHONIOENCODING": "ascii"}, ASCII),
        ({"PYTHONIOENCODING": "ascii:strict"}, ASCII),
        ({"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, ASCII),
        ({"PYTHONIOENCODING": "utf-8"}, r"½ – \udcff"),
    ],
)
def test_what_a_terminal_cannot_show_is_spelt_out(settings: dict[str, str], shown: str) -> None:
    ended = stage("words", "--learning_rate", "1", "--own", **settings)
    assert ended.stdout == f"{shown}\n" and f"error: {shown}\n" in ended.stderr
    assert stage("--help", **settings).returncode == 0


def test_a_bug_is_a_traceback() -> None:
    ended = stage("broken", "--learning_rate", "1", "--own")
    assert ended.returncode == 1 and "KeyError: 'a bug'" in ended.stderr and "Traceback" in ended.stderr


def test_a_stage_ends_when_its_parent_is_killed() -> None:
    starter = "import subprocess, sys; subprocess.run(sys.argv[1:])"
    started = [sys.executable, "-c", starter, *arguments("slow", "--learning_rate", "1", "--own")]
    with subprocess.Popen(started, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout and parent.stdout.readline() == "ready\n"
        os.kill(parent.pid, signal.SIGKILL)
        # The stage holds the pipe's other end: it is closed when the stage is gone.
        assert parent.communicate(timeout=20) == ("", None)


def test_a_stage_does_not_begin_when_its_dvc_was_killed_before() -> None:
    starter = "import subprocess, sys; subprocess.run(sys.argv[1:])"
    # When DVC is killed its shell is still at the command's arguments, as at `$(dvc cache dir)`, and outlives it.
    shell = ["sh", "-c", 'echo begun; read line; exec "$0" "$@"']
    with subprocess.Popen(
        [sys.executable, "-c", starter, *shell, *arguments("slow", "--learning_rate", "1", "--own")],
        cwd=ROOT, env={**os.environ, "DVC_STAGE": "sft"}, text=True, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as parent:  # fmt: skip
        assert parent.stdout and parent.stdout.readline() == "begun\n"
        parent.kill()
        parent.wait()
        assert (
            parent.communicate("\n", timeout=60)[0] == "the DVC that was to run this stage has ended, and so does it\n"
        )


@pytest.mark.parametrize("main", [*MAINS.values(), fetch.model, fetch.corpus, fetch.benchmarks, fetch.safety])
def test_only_a_list_may_be_given_twice(main: Any) -> None:
    parser = command.parser(main)
    for option in (each for each in parser.params if each.param_type_name == "option" and each.name != "help"):
        flag = option.type_descriptor.annotation is bool
        name = option.opts[0]
        twice = [name, f"--no-{name[2:]}"] if flag else [name, "1", name, "1"]
        with pytest.raises(TyperException) as refusal:  # of a list: what else is missing
            parser.make_context("stage", twice)
        assert ("given 2 times" in refusal.value.message) is not option.multiple, option.name


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("seed", "-1", "found '-1': Input should be greater than or equal to 0"),
        ("seed", str(2**32), "found '4294967296': Input should be less than or equal to 4294967295"),
        ("beta", "0", "found '0': wanted more than 0"),
        ("beta", "-inf", "found '-inf', wanted a number"),
        ("device", "mps", "'mps' is not one of 'cpu', 'cuda'"),
        ("device", "gpu", "'gpu' is not one of 'cpu', 'cuda'"),
        ("warmup", "nan", "found 'nan', wanted a number"),
        ("steps", "2.5", "found '2.5': Input should be a valid integer"),
    ],
)
def test_a_value_that_no_run_can_have_is_refused_by_the_stage(option: str, value: str, said: str) -> None:
    with pytest.raises(BadParameter, match=re.escape(said)) as refusal:
        command.parser(dpo.main).make_context("dpo", [*"abcdef", f"--{option}", value])
    assert refusal.value.param and refusal.value.param.name == option


@pytest.mark.parametrize("value", ["1", "1.0", "2"])
def test_a_dropout_that_leaves_nothing_to_train_is_refused(value: str) -> None:
    with pytest.raises(BadParameter, match=f"found '{value}': wanted less than 1"):
        command.parser(sft.main).make_context("sft", [*"abcde", "--dropout", value])
