"""Merge conflicts in the files that a study is written in, and what to do about them.

In: a file's bytes. Out: a refusal that names the line.
"""

import re

from alignment.runtime import Refused

MARK = re.compile(rb"^(<{7}|={7}|>{7})( |\r?$)", re.MULTILINE)  # as git writes them


def refuse(content: bytes, path: str, of: str = "") -> None:
    """Refuse a file that holds both sides of a merge.

    Args:
        content: its bytes.
        path: its name.
        of: the commit or experiment that the file is from; "" for the workspace.

    Raises:
        Refused: the file holds a conflict; the message names the line and says what to do.
    """
    if mark := MARK.search(content):
        line = content.count(b"\n", 0, mark.start()) + 1
        place = f"{path} of {of}" if of else path
        raise Refused(f"{place} holds a merge conflict, in line {line}.\n{_way(path, of)}")


def _way(path: str, of: str) -> str:
    if of:
        return "Choose another revision, or solve it there and commit"
    if path != "dvc.lock":
        return "Choose between the two sides there, and take out the lines of <, = and >"
    return (
        "Keep one side whole, `git checkout --ours dvc.lock` or `git checkout --theirs dvc.lock`, then `dvc repro`: "
        "it records\nwhat the merged files give, from its cache where either side ran it"
    )
