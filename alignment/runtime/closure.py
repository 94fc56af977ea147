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

    Imports inside functions count, imports for types alone do not. The packages that a module lies in are imported with
    it; one that is nothing but a docstring is left out.
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
    """Return the files of this project's modules that a file imports, and the packages that it lies in."""
    found = set(_packages(path))
    for name in names(path):
        module = ROOT / name.replace(".", "/")
        found |= {
            file for file in (module.with_suffix(".py"), module / "__init__.py", *_packages(module)) if file.is_file()
        }
    return frozenset(file for file in found - {path} if not is_empty(file))


def _packages(path: Path) -> Iterator[Path]:
    """Yield the files of the packages that a module lies in."""
    for folder in path.relative_to(ROOT).parents[:-1]:
        if (file := ROOT / folder / "__init__.py").is_file():
            yield file


def is_empty(path: Path) -> bool:
    """Return whether a file is the docstring of a package and nothing else."""
    return path.name == "__init__.py" and all(
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in _parsed(path).body
    )


def names(path: Path) -> Iterator[str]:
    """Yield all names that a file imports, of modules and of what is in them, except those for types alone."""
    left: list[ast.AST] = [_parsed(path)]
    while left:
        node = left.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            left += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            module = ".".join([*package, *([node.module] if node.module else [])])
            yield from (module, *(f"{module}.{alias.name}" for alias in node.names))
        left += ast.iter_child_nodes(node)


def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))
