"""A temporary copy of the repository, outside of which nothing is written or removed whatever its files say.

In: the copy's folder, and names that dvc.yaml, dvc.lock or git give. Out: places in it, ready to be written to.
"""

from pathlib import Path

from alignment.runtime import Refused, files


def leads_out(name: str) -> bool:
    """Return whether a name may stand for a place outside of the folder that it is looked for in."""
    return Path(name).is_absolute() or ".." in Path(name).parts


def clear(root: Path, name: str) -> Path:
    """Make room at a name below `root`: remove what is there, and make the folder that it is to lie in.

    Raises:
        Refused: the name is absolute, has `..`, is `root` itself, or goes through a link that leads out of `root`.
    """
    place = root / name  # an absolute name would take the place of `root`
    if leads_out(name) or not place.parent.resolve().is_relative_to(root.resolve()):
        raise Refused(f"{name!r} leads out of {root}, outside of which nothing is written or removed")
    files.remove(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    return place
