"""Hostile input at length: models' folders, a user's own rows, and repositories, each with one fault or more.

In: nothing but this checkout. Out: a table in Markdown. What is broken must be refused by name, what is sound must
pass, and nothing outside of a temporary folder may be written, removed or run.
"""

import contextlib
import io
import json
import random
import re
import shutil
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml

from alignment.corpora import Cause, Role
from alignment.fetching import base_model, repositories
from alignment.runtime import Refused, command, files, records
from alignment.sampling import reader
from alignment.sampling.order import RowOrder
from commands.verify import __main__ as verify
from commands.verify import integrity
from soak import broken_models, broken_rows, clone
from soak.faults import HEADER, Outcome

SHOWN = 300  # characters of what went wrong
Part = Callable[[Path, random.Random, int], Outcome]


def main(
    models: Annotated[int, typer.Option(help="models' folders", min=1)],
    rows: Annotated[int, typer.Option(help="files of a user's own rows", min=1)],
    wanted: Annotated[int, typer.Option(help="repositories that `make verify` reads", min=1)],
    seed: Annotated[int, typer.Option(help="of what is broken, and how")],
) -> None:
    """Try what is broken, and print what came of it."""
    parts: list[tuple[Part, int]] = [(own_rows, rows), (hostile_repositories, wanted), (model_folders, models)]
    outcomes = []
    for part, count in parts:
        with tempfile.TemporaryDirectory(prefix="hostile-") as scratch:
            outcomes.append(part(Path(scratch).resolve(), random.Random(seed), count))
            print(outcomes[-1].line())
    print("\n".join(["", HEADER, *(outcome.line() for outcome in outcomes)]))
    if wrong := [f"{outcome.part}: {text}" for outcome in outcomes for text in outcome.wrong]:
        raise SystemExit("\n".join(["", *wrong]))


def attempt(act: Callable[[], Any]) -> tuple[str | None, str]:
    """Run something without output; return its refusal or None, and any other error that ended it or ""."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            act()
        except Refused as refusal:
            return str(refusal), ""
        except SystemExit as ended:
            return (f"exit code {ended.code}" if ended.code else None), ""
        except Exception:  # whatever a user would see as a traceback is what is looked for
            return None, traceback.format_exc(limit=-2)[-SHOWN:]
    return None, ""


def tally(outcome: Outcome, what: str, wrong: list[str]) -> None:
    """Count one input, and keep what was not as promised."""
    outcome.tried += 1
    outcome.recovered += not wrong
    outcome.wrong += [f"{what}: {text}" for text in wrong]


# A user's own rows


def own_rows(folder: Path, draw: random.Random, count: int) -> Outcome:
    """Try files of good rows with one faulty row anywhere, or damaged as a whole."""
    outcome, met = Outcome("own rows"), Counter[str]()
    for number in range(count):
        place = folder / str(number)
        place.mkdir()
        if draw.random() < 0.1:
            damaged = draw.choice(broken_rows.FILE_FAULTS)
            name, wrong = damaged.name, _damaged_file(place, damaged, draw)
        else:
            fault = draw.choice(broken_rows.faults())
            name, wrong = fault.name, _faulty_row(place, fault, draw)
        met[name] += 1
        tally(outcome, name, wrong)
        shutil.rmtree(place)
    outcome.remarks = f"{len(met)} kinds of faults"
    return outcome


def _damaged_file(place: Path, fault: broken_rows.FileFault, draw: random.Random) -> list[str]:
    good = [broken_rows.good(Role.demonstrations, number) for number in range(draw.randint(2, 9))]
    (place / "mine.jsonl").write_bytes(fault.damage(broken_rows.lines(good)))
    said, error = attempt(lambda: _use(place / "mine.jsonl", place / "raw", Role.demonstrations, 9))
    if error or said is None:
        return [error or "read as if it were whole"]
    return [] if fault.wanted in said and "your own mine.jsonl" in said else [f"said {said[:SHOWN]}"]


def _faulty_row(place: Path, fault: broken_rows.Fault, draw: random.Random) -> list[str]:
    path, at = broken_rows.write(place, fault, draw)
    found: dict[str, Any] = {}
    said, error = attempt(lambda: found.update(_use(path, place / "raw", fault.role, 1)))
    if error or said:
        return [error or f"refused where one malformed row is allowed: {said}"]
    cause = fault.wanted if isinstance(fault.wanted, Cause) else Cause.malformed
    wrong = [] if found["dropped"] == {cause: 1} else [f"dropped {found['dropped']}, wanted one {cause}"]
    if found["used"] != found["rows"] - 1:
        wrong.append(f"{found['used']} of {found['rows']} rows used")
    if not isinstance(fault.wanted, Cause):
        said, error = attempt(lambda: _use(path, place / "raw-again", fault.role, 0))
        wanted = (f"{path.name}:{at}: found ", fault.wanted, f"your own {path.name}")
        wrong += [f"{error or said} lacks {text!r}" for text in wanted if text not in (said or "")]
    return wrong


def _use(path: Path, raw: Path, role: Role, malformed: int) -> dict[str, Any]:
    """Fetch a file of the user's and parse its rows, as `fetch` and `sample` do."""
    repositories.fetch_own(path, raw)
    with reader.reading(RowOrder("own", role, raw, 0, 0, 0.2, malformed), lambda: len) as source:
        keys, _, dropped = source.keys()
    return {"used": len(keys), "rows": len(list(records.rows(raw / path.name))), "dropped": dict(dropped)}


# Repositories


def hostile_repositories(folder: Path, draw: random.Random, count: int) -> Outcome:
    """Run `make verify` in repositories whose dvc.yaml, dvc.lock or cache name what lies outside of them.

    Beside each lies a neighbour's folder. It, and the repository with its cache, must be to the byte what they were;
    no command that only dvc.lock has may run.
    """
    outcome, said_of = Outcome("hostile repositories"), Counter[str]()
    whole = clone.small(folder / "whole/study")
    for number in range(count):
        sandbox = folder / str(number)
        shutil.copytree(whole, sandbox / "study", symlinks=True)
        (sandbox / "outside/deep").mkdir(parents=True)
        for name in ("outside/work.txt", "outside/deep/work.txt"):
            (sandbox / name).write_text("days of work", encoding="utf-8")
        with contextlib.chdir(sandbox / "study"):
            edits = [draw.choice(EDITS)(sandbox, draw) for _ in range(draw.randint(1, 2))]
            before = _around(sandbox)
            said, error = attempt(lambda: verify.main(draw.choice([None, ["make"], ["end"]])))
            after = _around(sandbox)
        wrong = [error] if error else []
        wrong += [f"{name} was touched" for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
        if said and re.search(r"rm -rf? (/|\.\.)", said):
            wrong.append(f"it is advised to remove what lies outside: {said[:SHOWN]}")
        said_of["refused" if said and "exit code" not in said else "compared" if said else "reproduced"] += 1
        tally(outcome, " and ".join(edits), wrong)
        shutil.rmtree(sandbox)
    outcome.remarks = ", ".join(f"{count} {how}" for how, count in sorted(said_of.items()))
    return outcome


def _around(sandbox: Path) -> dict[str, str]:
    """Return the hashes of all that lies around the temporary copy: the neighbour, the repository and its cache."""
    paths = [path for path in sandbox.rglob("*") if path.is_file() or path.is_symlink()]
    names = {path.relative_to(sandbox).as_posix(): path for path in paths}
    kept = {name: path for name, path in names.items() if "/.git/" not in name and "/.dvc/tmp/" not in name}
    return {name: str(path.readlink()) if path.is_symlink() else files.sha256(path) for name, path in kept.items()}


def _leading_out(sandbox: Path, draw: random.Random) -> str:
    """Return a name that leads out of the repository, or looks as if it did."""
    outside = draw.choice(["outside", "outside/work.txt", "outside/deep", "outside/new"])
    above = draw.choice(["../", "./../", "made/../../", ".//..//", "made/deep/../../../"])
    return draw.choice(
        [str(sandbox / outside), f"{above}{outside}", f"{sandbox}/study/../{outside}", f"/{above}", ".."]
    )


def _rewrite(name: str, change: Callable[[Any], Any]) -> None:
    content = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
    change(content["stages"])
    Path(name).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def _an_output(sandbox: Path, draw: random.Random) -> str:
    path, where = _leading_out(sandbox, draw), draw.choice([("dvc.yaml",), ("dvc.lock",), ("dvc.yaml", "dvc.lock")])
    if "dvc.yaml" in where:
        _rewrite("dvc.yaml", lambda stages: stages["make"].update(outs=[path]))
    if "dvc.lock" in where:
        _rewrite("dvc.lock", lambda stages: stages["make"]["outs"][0].update(path=path))
    return f"the output {path} in {' and '.join(where)}"


def _an_input(sandbox: Path, draw: random.Random) -> str:
    path, name = _leading_out(sandbox, draw), draw.choice(["dvc.yaml", "dvc.lock"])
    entry = {"path": path, "hash": "md5", "md5": "0" * 32, "size": 1}
    _rewrite(name, lambda stages: stages["end"].update(deps=[path if name == "dvc.yaml" else entry]))
    return f"the input {path} in {name}"


def _a_hash(sandbox: Path, draw: random.Random) -> str:
    md5 = draw.choice(
        [f"..{sandbox}/outside/work.txt", "../../../../../../outside", "", "x" * 32, str(sandbox / "outside")]
    )
    which = draw.choice([("make", "outs"), ("end", "outs"), ("end", "deps"), ("make", "deps")])
    _rewrite("dvc.lock", lambda stages: stages[which[0]][which[1]][0].update(md5=md5))
    return f"the hash {md5} of the {which[1]} of {which[0]}"


def _a_listed_name(sandbox: Path, draw: random.Random) -> str:
    path = _leading_out(sandbox, draw)
    listed = sandbox / "list"
    listed.write_text(json.dumps([{"md5": integrity.file_md5(Path("in.txt")), "relpath": path}]), encoding="utf-8")
    md5 = integrity.file_md5(listed)
    cached = Path(".dvc/cache/files/md5") / md5[:2] / f"{md5[2:]}.dir"
    cached.parent.mkdir(exist_ok=True)
    listed.rename(cached)
    _rewrite("dvc.lock", lambda stages: stages["make"]["outs"][0].update(md5=f"{md5}.dir"))
    if draw.random() < 0.5:
        _rewrite("dvc.lock", lambda stages: stages["end"]["deps"][0].update(md5=f"{md5}.dir"))
    return f"{path} in the list of an output's files"


def _a_command(sandbox: Path, draw: random.Random) -> str:
    stage = draw.choice(["make", "end"])
    given = draw.choice([f"touch {sandbox}/outside/ran", [f"rm -rf {sandbox}/outside"], "echo > ../outside/work.txt"])
    _rewrite("dvc.lock", lambda stages: stages[stage].update(cmd=given))
    return f"the command {given} of {stage} in dvc.lock"


def _a_folder(sandbox: Path, draw: random.Random) -> str:
    place = draw.choice(["../outside", str(sandbox / "outside"), "made"])
    _rewrite("dvc.yaml", lambda stages: stages["make"].update(wdir=place))
    return f"the working folder {place}"


def _a_link(sandbox: Path, draw: random.Random) -> str:
    name = draw.choice(["made", "end.txt", "in.txt"])
    files.remove(Path(name))
    Path(name).symlink_to(sandbox / draw.choice(["outside", "outside/work.txt"]))
    return f"a link for {name}"


EDITS = (_an_output, _an_input, _a_hash, _a_listed_name, _a_command, _a_folder, _a_link)


# Models' folders


def model_folders(folder: Path, draw: random.Random, count: int) -> Outcome:
    """Check with `fetch` model folders of any precision, some sound and some with a fault."""
    outcome, met = Outcome("models' folders"), Counter[str]()
    base_model.fetch_model("random:2x64", "mini", folder / "downloads", folder / "whole")
    faulty = [name for name, fault in broken_models.FAULTS.items() if fault.says]
    for number in range(count):
        place, fault = folder / str(number), draw.choice([None, *faulty])
        name = fault or draw.choice(list(broken_models.PASSES))
        dtype = draw.choice([torch.float32, torch.float16, torch.bfloat16])
        said, error = _fetched(folder / "whole", name, place, dtype)
        wanted = broken_models.FAULTS[name].says
        wrong = [error] if error else []
        if not error and bool(said) != bool(wanted):
            wrong.append(said or "passed")
        elif said and not re.search(wanted, said, re.S):
            wrong.append(f"said {said[:SHOWN]}")
        if said and (place / "base").exists():
            wrong.append("refused, and left an output")
        met[name] += 1
        tally(outcome, name, wrong)
        shutil.rmtree(place)
    outcome.remarks = f"{len(met)} kinds"
    return outcome


def _fetched(whole: Path, name: str, place: Path, dtype: torch.dtype) -> tuple[str | None, str]:
    shutil.copytree(whole, place / "whole")
    broken_models.tensors(place / "whole", lambda all_: {key: value.to(dtype) for key, value in all_.items()})
    broken = broken_models.broken(place / "whole", name, place / "model")
    return attempt(lambda: base_model.fetch_model(str(broken), "mini", place / "downloads", place / "base"))


if __name__ == "__main__":
    command.run(main)
