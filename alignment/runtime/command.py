"""How a stage becomes a command: its options, its refusals, its end.

In: a stage's `main`. Out: a Typer command that takes the flags DVC unpacks from params.yaml, prints a refusal as
one message with exit code 1, works without the network, and ends with the process that started it.
"""

import ctypes
import gc
import io
import math
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from alignment.runtime import Refused

SEEDS = 2**32 - 1  # NumPy takes no larger one
# DVC writes a key of params.yaml as it stands there (`--max_length`); Typer's flags have dashes.
FLAGS = {"token_normalize_func": lambda name: name.replace("_", "-")}
# Nothing here may lose what no commit has: parameters are the user's, results come from DVC's cache.
RESTORE = (
    "DVC removed the last result of {stage} before it began. Set back what was changed, and `dvc repro` brings it\n"
    "back, from its cache where it can; `dvc checkout {stage}` brings back the cached files alone."
)


class Command(TyperCommand):
    """A stage's command line: an option has one value unless it is a list, and a number is one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words of a command line.

        It refuses what Typer alone accepts: several values, of which Typer takes the last, and NaN as a number.
        """
        given, _, order = self.make_parser(ctx).parse_args(args=list(args))
        option: Any
        for option in order:
            if order.count(option) > 1 and not option.multiple:
                said = f"given {order.count(option)} times, wanted one value, not a list"
                raise typer.BadParameter(said, ctx, option)
            if option.type_descriptor.annotation is float and not _number(given[option.name]):
                raise typer.BadParameter(f"found {given[option.name]!r}, wanted a number", ctx, option)
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            said = error.message.removeprefix("Value error, ")
            value = given.get(error.param.name) if error.param else None
            error.message = f"found {value!r}: {said}" if isinstance(value, str) and repr(value) not in said else said
            raise


def _number(word: str) -> bool:
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False


def above_zero(value: float) -> float:
    """Refuse 0 as an option's value, which a bound of Typer's allows."""
    if value <= 0:
        raise typer.BadParameter("wanted more than 0")
    return value


def below_one(value: float) -> float:
    """Refuse 1 as an option's value, which a bound of Typer's allows."""
    if value >= 1:
        raise typer.BadParameter("wanted less than 1")
    return value


def parser(*mains: Callable[..., Any]) -> Any:
    """Make the parser of a command line: one of `mains` is the command itself, several are its subcommands."""
    app = typer.Typer(context_settings=FLAGS, add_completion=False, pretty_exceptions_enable=False)
    for main in mains:
        app.command(cls=Command, context_settings=FLAGS)(main)
    return typer.main.get_command(app)


def go_offline() -> None:
    """Keep the hub's clients off the network; they read these when they are first imported."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ[name] = "1"


def run(*mains: Callable[..., Any], offline: bool = True) -> None:
    """Run the command line against `mains`: one is the command itself, several are its subcommands.

    Args:
        mains: functions whose parameters Typer turns into arguments and options.
        offline: whether the hub's clients are kept off the network, for every stage but `fetch`.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Messages come as they are said, in a pipe too; what an encoding cannot say is spelt out, as `\u2013`.
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
    if offline:
        go_offline()
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its warnings are about its interfaces
    # Imports make two million objects and no garbage; Python would look for some after every 700 of them.
    gc.set_threshold(50_000, 50, 50)
    # TRL's configuration and PEFT's models still use a name that transformers is giving up.
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)
    _keep_pages()
    end_with_parent()
    code: Any = 0
    try:
        parser(*mains)()
    except Refused as refusal:
        print(f"\nerror: {refusal}", file=sys.stderr)
        code = 1
    except SystemExit as ended:  # as Typer ends, after its own refusal of a flag too
        code = ended.code
    if code and "DVC_STAGE" in os.environ:
        print(f"\n{RESTORE.format(stage=os.environ['DVC_STAGE'])}", file=sys.stderr)
    raise SystemExit(code)


def _keep_pages() -> None:
    """Make glibc keep freed memory: returning every large tensor to the kernel takes a quarter of CPU training."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def end_with_parent() -> None:
    """Stop this process when its parent dies: a killed DVC must not leave a process that still writes."""
    parents = _parents()
    if _orphaned(parents):
        raise SystemExit("the DVC that was to run this stage has ended, and so does it")

    def watch() -> None:
        while _parents() == parents:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _orphaned(parents: tuple[int, ...]) -> bool:
    """Return whether DVC ended before the stage began, while its shell still ran `$(dvc cache dir)`.

    DVC starts its stages in its own session; the process that adopts orphans is in another one.
    """
    try:
        session = os.getsid(0 if len(parents) == 1 else parents[0])
        return "DVC_STAGE" in os.environ and session != os.getsid(parents[-1])
    except OSError:  # that process has just ended, or may not be asked, since it is in another session
        return "DVC_STAGE" in os.environ


def _parents() -> tuple[int, ...]:
    """Return the process that started this one; with a launcher, also the process that started the launcher."""
    parent = os.getppid()
    if "LOCAL_RANK" not in os.environ:
        return (parent,)
    try:
        fields = Path(f"/proc/{parent}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:  # no such folder on this system
        return (parent,)
    return parent, int(fields[1])
