"""Faults on purpose: kills, full disks, too little memory, runs at once; does the pipeline end as if left alone?

In: nothing but this checkout. Out: a table in Markdown. All happens in a throwaway clone on the tiny preset, whose
undisturbed run says what every output must be, to the byte.
"""

import contextlib
import dataclasses
import functools
import http.server
import math
import random
import re
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
import yaml

from alignment.runtime import command, files
from commands.doctor import checkout
from commands.doctor.findings import Level
from soak.clone import ENVIRONMENT, REPRO, Clone

HEADER = "| part | tried | recovered | mismatches | remarks |\n| --- | ---: | ---: | ---: | --- |"
ORPHANED_SECONDS = 120.0  # by when all that a killed DVC started must have ended; training ends with a checkpoint
TARGETS = ("the stage", "DVC", "both")


@dataclass
class Outcome:
    """The result of one part of the campaign.

    Attributes:
        part: its name.
        tried: how many faults there were.
        recovered: after how many of them the pipeline went on to its end.
        wrong: what was not as promised, each in words.
        remarks: what else is worth a line.
    """

    part: str
    tried: int = 0
    recovered: int = 0
    wrong: list[str] = field(default_factory=list)
    remarks: str = ""

    def line(self) -> str:
        """Return a row of the table."""
        return f"| {self.part} | {self.tried} | {self.recovered} | {len(self.wrong)} | {self.remarks} |"


def main(
    each: Annotated[int, typer.Option(help="SIGKILLs that a stage meets in one run, at most", min=1)],
    least: Annotated[int, typer.Option(help="SIGKILLs in all: the pipeline is run until there were so many", min=0)],
    seed: Annotated[int, typer.Option(help="of the moments")],
) -> None:
    """Maltreat a clone of this checkout, and print what came of it."""
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        clone = Clone.made(Path(scratch).resolve() / "clone")
        print(f"an undisturbed run in {clone.folder} …")
        if clone.start("repro").wait():
            raise SystemExit(clone.printed())
        clone.remember()
        parts: list[Callable[[], Outcome]] = [
            lambda: kills(clone, list(clone.whole), each, least, seed),
            lambda: disk(clone, DISKS),
            lambda: memory(clone),
            lambda: two_repros(clone, ["sft", "safety@base"]),
            lambda: shared_state(clone),
            lambda: two_fetches(clone),
            lambda: queue(clone),
        ]
        outcomes = []
        for part in parts:
            outcomes.append(part())
            print(outcomes[-1].line())
    print("\n".join(["", HEADER, *(outcome.line() for outcome in outcomes)]))
    if wrong := [f"{outcome.part}: {text}" for outcome in outcomes for text in outcome.wrong]:
        raise SystemExit("\n".join(["", *wrong]))


def kills(clone: Clone, stages: Sequence[str], each: int, least: int, seed: int) -> Outcome:
    """Send SIGKILL at random moments, several in one run: to the stage, DVC, or both at once; then run DVC once more.

    Args:
        clone: with results.
        stages: what is run and killed.
        each: how many kills a stage meets in one run, at most, before it is let through.
        least: how many kills in all: there are runs from the beginning, each killed until it ends, until then.
        seed: of the moments and of whom they meet.
    """
    draw, outcome, hit, met = random.Random(seed), Outcome("kills"), Counter[str](), Counter[str]()
    usual = _undisturbed(clone, stages, outcome)
    longest, named = 0.0, 0
    while outcome.tried < least and not outcome.wrong:
        clone.forget(stages)
        left = dict.fromkeys(stages, each)
        pending = failures = 0
        while failures < 3:
            code = _killed(clone, stages, left, usual, draw, hit, met)
            if code is not None:
                failures += bool(code)
                if code == 0:
                    outcome.recovered += pending
                    break
                outcome.wrong.append(f"dvc repro ended with {code}: {_tail(clone.printed())}")
            else:
                pending += 1
                outcome.tried += 1
                seconds, orphans = _ended(clone)
                longest = max(longest, seconds)
                outcome.wrong += [*orphans, *(f"after a kill, {text}" for text in clone.wrong(absent=True))]
            named += cured(clone)
        outcome.wrong += clone.wrong(absent=False)
    by = ", ".join(f"{stage} {count}" for stage, count in sorted(hit.items()))
    whom = ", ".join(f"{name} {met[name]}" for name in TARGETS)
    outcome.remarks = (
        f"killed: {whom}; at work: {by}; the last process ended at most {longest:.1f} s later; "
        f"{named} files of DVC's that `make doctor` had to name"
    )
    return outcome


def _undisturbed(clone: Clone, stages: Sequence[str], outcome: Outcome) -> dict[str, float]:
    """Run `stages` once, and return the seconds that each takes."""
    clone.forget(stages)
    process, begun = clone.start(*REPRO, *stages), dict[str, float]()
    while process.poll() is None:
        begun.setdefault(clone.stage(), time.monotonic())
        time.sleep(0.02)
    if process.returncode:
        outcome.wrong.append(f"undisturbed: {_tail(clone.printed())}")
    outcome.wrong += [f"undisturbed, {text}" for text in clone.wrong(absent=False)]
    moments = [*list(begun.values())[1:], time.monotonic()]
    return {stage: end - start for (stage, start), end in zip(begun.items(), moments, strict=True)}


def _killed(
    clone: Clone, stages: Sequence[str], left: dict[str, int], usual: dict[str, float], draw: random.Random,
    hit: Counter[str], met: Counter[str],
) -> int | None:  # fmt: skip
    """Run DVC until a moment in a stage that has kills left; return its exit code, or None if it was killed."""
    process, now = clone.start(*REPRO, *stages), ""
    moment = None
    while process.poll() is None:
        if (stage := clone.stage()) != now:
            now = stage
            if moment is None and left.get(now):
                left[now] -= 1
                moment = time.monotonic() + draw.uniform(0, usual[now])
        if moment is not None and time.monotonic() >= moment:
            hit[now] += 1
            target = _kill(process, draw.choice(TARGETS))
            met[target] += 1
            process.wait()
            print(f"kill {sum(hit.values())}: {target}, in {now}")
            return None
        time.sleep(0.02)
    return process.returncode


def _kill(process: "subprocess.Popen[str]", target: str) -> str:
    """Send SIGKILL to the target, and return what it hit: between two stages, DVC alone."""
    started = psutil.Process(process.pid).children(recursive=True)
    target = target if started else "DVC"
    if target != "the stage":
        process.kill()
    for each in started if target != "DVC" else []:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue
    return target


def _ended(clone: Clone) -> tuple[float, list[str]]:
    """Wait until nothing works there; return the seconds that took, and what had to be ended by force."""
    start = time.monotonic()
    while (working := clone.at_work()) and time.monotonic() - start < ORPHANED_SECONDS:
        time.sleep(0.05)
    found = [f"an orphan: {' '.join(process.cmdline())[:200]}" for process in working]
    for process in working:
        process.kill()
    return time.monotonic() - start, found


def cured(clone: Clone) -> int:
    """Mend what the next DVC would stop at, as `make doctor` says, and return how often there was something."""
    with contextlib.chdir(clone.folder):
        found = [*checkout.recorded(), *checkout.locks(Path(".dvc/tmp"))]
        failures = [one for one in found if one.level is Level.failure]
        for failure in failures:
            command = re.match(r"`([^`]+)`|[^,]+", failure.next)
            assert command, failure
            subprocess.run(["bash", "-c", command[1] or command[0]], check=True)
    return len(failures)


def _tail(printed: str) -> str:
    return " / ".join(line for line in printed.splitlines()[-5:] if line.strip())


# Where each stage's first output lies, and where what has no room for it belongs.
DISKS = [
    ("choose", "data/raw"),
    ("fetch@model", "models"),
    ("fetch-benchmarks@items", "data/raw"),
    ("fetch-corpus@demonstrations", "data/raw"),
    ("fetch-corpus@comparisons", "data/raw"),
    ("fetch-safety@sentences", "data/raw"),
    ("sample@demonstrations", "data/sampled"),
    ("sample@comparisons", "data/sampled"),
    ("sft", "models"),
    ("sft", ".dvc/state"),
    ("sft", ".dvc/cache"),
    ("dpo", "models"),
    ("dpo", ".dvc/state"),
    ("eval@dpo", "data/eval"),
    ("eval@dpo", ".dvc/state"),
    ("safety@dpo", "data/safety"),
    ("report", "metrics"),
]
PAGE = 4096


def disk(clone: Clone, places: Sequence[tuple[str, str]]) -> Outcome:
    """Run stages whose outputs, checkpoints or cache lie on a file system that fills up; make room, and go on.

    Args:
        clone: with results.
        places: stages, each with the folder that has too little room.
    """
    outcome, said = Outcome("full disks"), Counter[str]()
    for stage, place in places:
        folder = clone.folder / place
        clone.forget([stage])
        if place == ".dvc/cache":  # which would have it already
            clone.start("gc", "--workspace", "--force").wait()
        with small(folder) as room:
            if room is None:
                outcome.remarks = "skipped: `mount -t tmpfs` is not allowed here"
                clone.repro([stage])
                return outcome
            # Half of what the stage writes there; a checkpoint, which leaves nothing behind, is about as large. Of what
            # is cached, other stages' outputs hold a part already.
            outs = [out for out in clone.whole[stage] if place.startswith(".dvc") or out.startswith(place)]
            room(PAGE if place == ".dvc/cache" else sum(clone.sizes[out] for out in outs) // 2)
            outcome.tried += 1
            code, printed = clone.repro([stage]), clone.printed()
            clear = re.search(r"needs [\w ]*[\d,]+ bytes, and the disk .* is full: [\d,]+ free", printed)
            said["the stage" if clear else "DVC"] += 1
            where = f"{stage} without room in {place}"
            if code == 0:
                outcome.wrong.append(f"{where} ended as if there were room")
            if not clear and place != ".dvc/cache":
                outcome.wrong.append(f"{where} does not say what is needed and free: {_tail(printed)}")
            outcome.wrong += [f"{where}: {text}" for text in clone.wrong(absent=True)]
            outcome.wrong += [f"{where} left {path}" for path in clone.folder.rglob(".*.partial")]
            others = [text for text in clone.wrong(absent=False) if not text.startswith(f"{stage}: ")]
            outcome.wrong += [f"{where}: {text}" for text in others]
            named = cured(clone)
            room(1 << 28)
            if clone.repro([stage]) == 0 and not clone.wrong(absent=False):
                outcome.recovered += 1
            else:
                outcome.wrong.append(f"{where} did not go on when there was room: {_tail(clone.printed())}")
            outcome.remarks += f"{stage} in {place}: {named} files of DVC's; " if named else ""
    outcome.remarks += "; ".join(f"refused by {who} {count}" for who, count in said.items())
    return outcome


@contextlib.contextmanager
def small(folder: Path) -> Iterator[Callable[[int], None] | None]:
    """Put `folder` on a file system of its own, with what is in it, and yield what sets how many bytes are free there.

    Yields None where mounting is not allowed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f"{folder.name}.aside")
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={1 << 30}", "tmpfs", str(folder)]
    shutil.copytree(folder, aside, symlinks=True)
    if shutil.which("mount") is None or subprocess.run(mounting, capture_output=True, check=False).returncode:
        shutil.rmtree(aside)
        yield None
        return

    def room(free: int) -> None:
        usage = shutil.disk_usage(folder)
        size = usage.used + free // PAGE * PAGE
        # A size of 0 would be no limit.
        subprocess.run(["mount", "-o", f"remount,size={max(size, PAGE)}", str(folder)], check=True)

    try:
        shutil.copytree(aside, folder, symlinks=True, dirs_exist_ok=True)
        yield room
    finally:
        shutil.rmtree(aside)
        shutil.copytree(folder, aside, symlinks=True)
        subprocess.run(["umount", str(folder)], check=True)
        shutil.rmtree(folder)
        aside.rename(folder)


def memory(clone: Clone) -> Outcome:
    """Run stages below the address space that they need: scoring splits its batches, training names a parameter."""
    outcome, said = Outcome("too little memory"), list[str]()
    if not Path("/proc/self/status").is_file():
        outcome.remarks = "skipped: only Linux says how much memory a process has had"
        return outcome
    with tempfile.TemporaryDirectory(prefix="memory-") as scratch:
        folder = Path(scratch)
        given = {"models/base": folder / "base"}
        fetch = [
            sys.executable,
            "-m",
            "stages.fetch",
            "model",
            str(folder / "base"),
            f"--model={WIDE}",
            "--source=mini",
        ]
        subprocess.run(
            [*fetch, f"--downloads={scratch}"], cwd=clone.folder, env=ENVIRONMENT, capture_output=True, check=True
        )
        for stage, (option, value, step) in MEMORY.items():
            enough, less = (Limited(clone, stage, given, folder / f"{stage}-{name}") for name in ("enough", "less"))
            enough.run(option, value)
            for missing in range(step, 10 * step, step):
                code = less.run(option, value, enough.peak - missing)
                if SHORT in less.printed or code:
                    break
            outcome.tried += 1
            found = less.wrong(code, enough)
            outcome.wrong += [f"{stage}: {text}" for text in found]
            outcome.recovered += not found
            given |= {name: enough.folder / name for name in clone.whole[stage] if name.startswith("models/")}
            said.append(f"{stage} with {missing / 2**20:.0f} of {enough.peak / 2**20:.0f} MiB missing: {less.said()}")
    outcome.remarks = "; ".join(said)
    return outcome


WIDE = "random:2x256"  # wide enough for its activations to count
# An option with a value that needs much memory, and how many bytes are missing: as many again until that is noticed.
# Safety scores with the same engine, and the miniature's sentences need less than its imports.
MEMORY = {
    "eval@base": ("token_budget", 1 << 20, 4 << 20),
    "sft": ("per_device_batch", 12, 128 << 20),
    "dpo": ("per_device_batch", 12, 128 << 20),
}
SHORT = "out of memory with"
# How each refuses: scoring splits down to one row, where that does not fit either.
NAMED = {
    "eval@base": ("does not fit in memory", "lower `eval.answer_tokens`"),
    "sft": ("lower `per_device_batch`",),
    "dpo": ("lower `per_device_batch`",),
}


@dataclass
class Limited:
    """A stage on another model, in a folder of its own, with a limit to its addresses.

    Attributes:
        clone: whose stage it is.
        stage: its name.
        given: what it reads in place of the clone's own: the model, and adapters on it.
        folder: for what it writes.
        peak: bytes of addresses that its last run had.
        printed: what that said.
    """

    clone: Clone
    stage: str
    given: dict[str, Path]
    folder: Path
    peak: int = 0
    printed: str = ""

    def run(self, option: str, value: int, limit: int = resource.RLIM_INFINITY) -> int:
        """Run the stage with another value of an option, and return its exit code."""
        files.remove(self.folder)
        state = str(self.folder / "state")
        words = shlex.split(self.clone.commands[self.stage].replace('"$(dvc cache dir)/../state"', state))[1:]
        words[words.index(f"--{option}") + 1] = str(value)
        words = [str(self.given.get(word, word)) for word in words]
        words = [str(self.folder / word) if word in self.clone.sizes and not word.startswith("data/raw")
                 and not word.startswith("data/sampled") else word for word in words]  # fmt: skip
        with tempfile.TemporaryFile("w+") as printed:
            process = subprocess.Popen(
                [sys.executable, *words], cwd=self.clone.folder, env=ENVIRONMENT, stdout=printed, stderr=printed,
                preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
            )  # fmt: skip
            while process.poll() is None:
                status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
                peak = re.search(r"VmPeak:\s+(\d+) kB", status)  # of a process that has just ended, none
                self.peak = max(self.peak, int(peak[1]) * 1024 if peak else 0)
                time.sleep(0.05)
            printed.seek(0)
            self.printed = printed.read()
        return process.returncode

    def said(self) -> str:
        """Return what the run first said of memory."""
        found = re.search(f"{SHORT}[^;,]+", self.printed)
        return found[0] if found else "nothing of memory"

    def metrics(self) -> dict[str, Any]:
        """Read what the run measured."""
        (path,) = self.folder.glob("metrics/**/*.json")
        return dict(files.read_json(path))

    def wrong(self, code: int, enough: "Limited") -> list[str]:
        """List what is not as promised of a run with too little memory, beside one with enough."""
        if SHORT not in self.printed:
            return [f"ended with {code} and said nothing of memory: {_tail(self.printed)}"]
        if code:
            named = any(words in self.printed for words in NAMED[self.stage])
            written = [path for path in self.folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
            left = [f"left {path}" for path in written if "state" not in path.parts]
            return left if named else [*left, f"ended with {code}: {_tail(self.printed)}"]
        ours, theirs = self.metrics(), enough.metrics()
        return [f"{name} is {ours[name]}, with enough memory {theirs[name]}" for name in theirs
                if not _close(ours[name], theirs[name])]  # fmt: skip


def _close(one: Any, other: Any) -> bool:
    """Return whether two metrics agree, but for the rounding of sums in another order."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, abs_tol=2e-3)
    return bool(one == other)


def two_repros(clone: Clone, stages: Sequence[str]) -> Outcome:
    """Run DVC twice at once in one checkout: each ends well, or says who holds what."""
    outcome = Outcome("two `dvc repro` in one checkout", tried=1)
    clone.forget(stages)
    other = dataclasses.replace(clone, log=clone.folder.with_name("other.log"))
    first = clone.start(*REPRO, *stages)
    while not clone.stage() and first.poll() is None:
        time.sleep(0.05)
    second = other.start(*REPRO, *stages)
    codes = first.wait(), second.wait()
    busy = re.search(r"is busy, it is being blocked by|Unable to acquire lock", clone.printed() + other.printed())
    if 0 not in codes or (any(codes) and not busy):
        outcome.wrong.append(f"ended with {codes}: {_tail(clone.printed())} / {_tail(other.printed())}")
    if clone.repro(stages):
        outcome.wrong.append(f"afterwards: {_tail(clone.printed())}")
    outcome.wrong += clone.wrong(absent=False)
    outcome.recovered = int(not outcome.wrong)
    outcome.remarks = f"exit codes {codes}; " + (f"one says: {busy[0]}" if busy else "the second waited")
    return outcome


def shared_state(clone: Clone) -> Outcome:
    """Train the same adapter twice at once, with one folder for checkpoints, as two workers of a queue may."""
    outcome = Outcome("two equal `sft` with one state folder", tried=1)
    started = []
    for name in ("one", "other"):
        folder, words = clone.folder / "twice" / name, clone.commands["sft"]
        for out in clone.whole["sft"]:
            words = words.replace(f" {out}", f" {folder / out}")
        folder.mkdir(parents=True)
        with (folder / "printed").open("w") as printed:
            started.append((folder, subprocess.Popen(
                ["sh", "-c", words], cwd=clone.folder, env=ENVIRONMENT, stdout=printed, stderr=printed,
            )))  # fmt: skip
    for folder, process in started:
        code = process.wait()
        text = (folder / "printed").read_text(encoding="utf-8")
        outcome.remarks += "one waited for the other" if "waiting: another process" in text else ""
        if code or dataclasses.replace(clone, folder=folder).written(list(clone.whole["sft"])) != clone.whole["sft"]:
            outcome.wrong.append(f"{folder.name} ended with {code}: {_tail(text)}")
    shutil.rmtree(clone.folder / "twice")
    outcome.recovered = int(not outcome.wrong)
    return outcome


def two_fetches(clone: Clone) -> Outcome:
    """Fetch one corpus twice at once from a mirror on this machine, into one folder of downloads."""
    outcome = Outcome("two fetches of one file", tried=1)
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    handler = functools.partial(quiet, directory=str(clone.folder / "data/mini"))
    with (
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server,
        tempfile.TemporaryDirectory(prefix="fetches-") as scratch,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        words = [
            *(sys.executable, "-m", "stages.fetch", "safety", "--sentences", "safenlp"),
            *("--own", "none.json", "--source", f"http://127.0.0.1:{server.server_port}"),
            *("--downloads", f"{scratch}/downloads"),
        ]
        outs = [Path(scratch) / "one", Path(scratch) / "other", Path(scratch) / "other"]
        started = [
            subprocess.Popen([*words, str(out)], cwd=clone.folder, env=ENVIRONMENT, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            for out in outs
        ]  # fmt: skip
        printed = [process.communicate()[0] for process in started]
        for out, process, text in zip(outs, started, printed, strict=True):
            found = {path.name: files.sha256(path) for path in out.rglob("*.json") if path.name != "provenance.json"}
            wanted = files.sha256(clone.folder / "data/mini/microsoft/SafeNLP/data/toxiGen.json")
            if process.returncode or list(found.values()) != [wanted]:
                outcome.wrong.append(f"ended with {process.returncode}: {_tail(text)}")
        server.shutdown()
    waited = sum("waiting: another process" in text for text in printed)
    outcome.recovered = int(not outcome.wrong)
    outcome.remarks = f"three processes, two of them with one output; {waited} waited"
    return outcome


def queue(clone: Clone) -> Outcome:
    """Run two experiments that share their SFT by two workers of `dvc queue`, then the first one alone."""
    outcome = Outcome("`dvc queue` with two workers", tried=2)
    identity = ["-c", "user.name=faults", "-c", "user.email=faults@localhost"]
    subprocess.run(["git", "add", "--all"], cwd=clone.folder, check=True)
    subprocess.run(["git", *identity, "commit", "--quiet", "--message", "first"], cwd=clone.folder, check=True)
    for name, comparisons in (("one", "hh"), ("other", "shp")):
        words = ("--name", name, "--set-param", "seed=1", "--set-param", f"preferences={comparisons}")
        if clone.start("exp", "run", "--queue", *words).wait():
            outcome.wrong.append(_tail(clone.printed()))
    clone.start("queue", "start", "--jobs", "2").wait()
    while not clone.start("queue", "status").wait() and re.search(r"Running|Queued", clone.printed()):
        time.sleep(5)
    status = clone.printed()
    outcome.recovered = len(re.findall("Success", status))
    if outcome.recovered != outcome.tried:
        outcome.wrong.append(_tail(status))
    locks = [_lock_at(clone, name) for name in ("one", "other")]
    change = (clone.folder / "params.yaml").read_text(encoding="utf-8").replace("\nseed: 0", "\nseed: 1", 1)
    (clone.folder / "params.yaml").write_text(change, encoding="utf-8")
    if clone.repro(["sft"]):
        outcome.wrong.append(f"alone: {_tail(clone.printed())}")
    alone = clone.lock()["stages"]["sft"]["outs"]
    for lock in locks:
        if lock.get("sft", {}).get("outs") != alone:
            outcome.wrong.append("the SFT of a queued run is not the one of a run alone")
    outcome.remarks = f"{outcome.recovered} ended well, with the SFT of a run alone"
    return outcome


def _lock_at(clone: Clone, name: str) -> dict[str, Any]:
    """Read the stages in dvc.lock of an experiment; {} if it failed."""
    ended = subprocess.run(
        ["git", "for-each-ref", "--format=%(refname)", f"refs/exps/**/{name}"],
        cwd=clone.folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    if not ended.stdout.strip():
        return {}
    shown = ["git", "show", f"{ended.stdout.split()[0]}:dvc.lock"]
    text = subprocess.run(shown, cwd=clone.folder, capture_output=True, text=True, check=True).stdout
    return dict(yaml.safe_load(text)["stages"])


if __name__ == "__main__":
    command.run(main, offline=False)
