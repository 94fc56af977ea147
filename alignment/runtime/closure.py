"""The code that a script is made of: what dvc.yaml names as its dependencies, and what an unfinished run was made with.

In: a script of this project. Out: it and every module that it imports, in turn.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]


def closure(script: Path) -> set[Path]:
    """Return a script and all modules of this project that it imports, directly or through others.

    Imports inside functions count, imports for types alone do not.

    A package that is nothing but a docstring is left out.
    """
    seen: set[Path] = set()
    left = {script}
    while left:
        path = left.pop()
        seen.add(path)
        left |= imports(path) - seen
    return seen


@cache
def imports(path: Path) -> frozenset[Path]:
    """Return the files of this project's modules that a file imports."""
    found = set()
    for name in names(path):
        module = ROOT / name.replace(".", "/")
        found |= {file for file in (module.with_suffix(".py"), module / "__init__.py") if file.is_file()}
    return frozenset(file for file in found if not is_empty(file))


def is_empty(path: Path) -> bool:
    """Return whether a file is the docstring of a package and nothing else."""
    return path.name == "__init__.py" and len(_parsed(path).body) == 1


def names(path: Path) -> Iterator[str]:
    """Yield all names that a file imports, of modules and of what is in them, except those for types alone."""
    left: list[ast.AST] = [_parsed(path)]
    while left:
        node = left.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
        left += ast.iter_child_nodes(node)


def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))
