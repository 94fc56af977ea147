"""The code of a script: every way to import a module, and nothing that is imported for types alone."""

from pathlib import Path

import pytest

from alignment.runtime import closure


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(closure, "ROOT", tmp_path)
    for name, text in {
        "rooms/__init__.py": '"""A docstring."""\n',
        "rooms/inner/__init__.py": "X = 1\n",
        "rooms/inner/one.py": "from . import two\nfrom ._help import A\nfrom .. import three\n",
        "rooms/inner/two.py": "",
        "rooms/inner/_help.py": "A = 1\n",
        "rooms/three.py": "",
        "rooms/four.py": "import typing\nif typing.TYPE_CHECKING:\n import rooms.three\nelse:\n import rooms.inner.two",
        "rooms/empty/__init__.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("script", "wanted"),
    [
        (
            "import rooms.inner.one as one",
            {"inner/__init__.py", "inner/one.py", "inner/two.py", "inner/_help.py", "three.py"},
        ),
        ("def main():\n    from rooms import four", {"four.py", "inner/__init__.py", "inner/two.py"}),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from rooms import three", set()),
        ("import json, rooms.empty", set()),
    ],
)
def test_all_that_a_script_imports_is_its_code(script: str, wanted: set[str], house: Path) -> None:
    (house / "script.py").write_text(script)
    found = closure.closure(house / "script.py") - {house / "script.py"}
    assert found == {house / "rooms" / name for name in wanted}
