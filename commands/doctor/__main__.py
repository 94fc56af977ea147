"""What to know before a long run: whether this machine, this checkout and its sources can do what a params file says.

In: a params file. Out: one line a finding: ok, a warning, or a failure with what to type next; exit code 1 after a
failure. Nothing is changed: no parameter is edited, no lock removed, nothing downloaded but a few answers of the hub.
"""

import contextlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from alignment.choosing import parameters
from alignment.choosing.parameters import Params
from alignment.runtime import Refused, command
from commands.doctor import (
    access,
    checkout,
    device,
    disk,
    duration,
    environment,
    fetched,
    findings,
    launch,
    length,
    memory,
    predictions,
)
from commands.doctor.findings import Finding, Level, Look, ok, warning


def main(
    path: Annotated[Path, typer.Argument(metavar="PARAMS", help="a params file, such as params.yaml")],
    as_json: Annotated[bool, typer.Option("--json", help="print the findings as JSON, for scripts")] = False,
) -> None:
    """Look at everything that can be known before a long run."""
    if not (parameters.KNOWN.is_file() and Path("dvc.yaml").is_file()):
        raise Refused(f"{Path.cwd()} is not the repository's own folder, where dvc.yaml lies: cd there, `make doctor`")
    look = Look()
    with contextlib.redirect_stdout(sys.stderr):  # what libraries say is no finding
        look.add("environment", environment.check)
        params = look.at("parameters", lambda: parameters.load(path), None, f"correct {path}")
        study = look.at("dvc", checkout.repo, None)
        if params is not None:
            look.found.append(ok("parameters", f"{path} has every key"))
            check(params, study, look)
        look.add("git", checkout.git)
        look.add("dvc", lambda: checkout.dvc(study))
    found = look.found
    if as_json:
        print(findings.as_json(found))
    else:
        print(f"{findings.as_text(found)}\n\n{path}: {findings.counts(found)}")
    if any(finding.level is Level.failure for finding in found):
        raise SystemExit(1)


def check(params: Params, study: Any, look: Look) -> None:
    """Check everything that depends on the parameters."""
    nothing: tuple[list[Finding], dict[str, int]] = ([], {})
    found, sizes = look.at("source", lambda: access.check(params), nothing)
    look.found += found
    look.add("model", lambda: access.model(params))
    look.add("fetched", lambda: fetched.check(params))
    look.add("own files", lambda: checkout.own_files(params))
    look.add("device", lambda: device.check(params))
    shape = look.at("memory", lambda: predictions.shape(params["model"], params["source"], Path("models/base")), None)
    look.add("disk", lambda: disk.check(params, shape, sizes, study))
    if shape is None:
        text = f"nothing here says which shape {params['model']} has, so memory and time are not predicted"
        look.found.append(warning("memory", text, "dvc repro fetch@model, then make doctor again"))
    else:
        look.add("length", lambda: [length.check(params, shape)])
        look.add("memory", lambda: memory.check(params, shape))
        look.add("time", lambda: duration.check(params, shape) if device.usable(params["device"]) else [])
    look.add("processes", lambda: launch.check(params))


if __name__ == "__main__":
    command.run(main, offline=False)
