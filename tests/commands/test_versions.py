"""Results depend on the versions of the libraries that computed them; who compares results says which differ."""

import re
from pathlib import Path

import planted
import pytest
import yaml
from test_page import compared, points
from test_review import reviewed

from alignment.choosing import libraries
from alignment.runtime import Refused
from commands.doctor import environment
from commands.doctor.findings import Level
from stages import versions

LOCK = Path(__file__).parents[2] / "requirements.lock"


def edited(folder: Path, name: str, line: str) -> Path:
    """The lock with another line for a package."""
    lines = [line if text.startswith(f"{name}==") else text for text in LOCK.read_text().splitlines()]
    (folder / "lock").write_text("\n".join(lines))
    return folder / "lock"


def test_the_versions_of_what_computes_are_written_and_no_others(tmp_path: Path) -> None:
    versions.main(LOCK, tmp_path / "versions.yaml")
    first = (tmp_path / "versions.yaml").read_bytes()
    found = yaml.safe_load(first)
    assert found.keys() == {name for names in libraries.RESULTS.values() for name in names}
    assert all(f"{name}=={version}" in LOCK.read_text().splitlines() for name, version in found.items())
    versions.main(edited(tmp_path, "pytest", "pytest==0.1"), tmp_path / "versions.yaml")
    assert (tmp_path / "versions.yaml").read_bytes() == first, "a tool is no part of a result"


@pytest.mark.parametrize(
    ("line", "said"),
    [("numpy==0.1", r"numpy [\d.]+ \(locked: 0\.1\)"), ("", "pins no version of numpy; add it")],
)
def test_a_lock_that_is_not_what_computes_is_refused(line: str, said: str, tmp_path: Path) -> None:
    lock = edited(tmp_path, "numpy", line)
    with pytest.raises(Refused, match=said):
        versions.main(lock, tmp_path / "versions.yaml")
    assert not (tmp_path / "versions.yaml").exists()
    assert environment.results(lock).level is Level.failure
    assert environment.results(LOCK).level is Level.ok


def test_a_comparison_names_the_versions_that_differ(tmp_path: Path) -> None:
    old, new = planted.revision(tmp_path, "old"), planted.revision(tmp_path, "new", "orca", torch="2.14.0")
    said = points(compared(old, new))
    assert re.search(r"versions of a library\*\*: torch 2\.13\.0 \(.*SFT lima.*\); 2\.14\.0 \(SFT orca", said)
    assert "versions of a library" not in points(compared(old, planted.revision(tmp_path, "alike", "orca")))


def test_a_review_names_an_upgrade_even_where_all_scores_are_the_same(tmp_path: Path) -> None:
    before, after = (planted.revision(tmp_path / version, "main", torch=version) for version in ("2.13.0", "2.14.0"))
    said = reviewed(before, after).text()
    assert "Versions of libraries that results rest on: `torch` `2.13.0` → `2.14.0`." in said
    assert "Scored the same to the byte: base, sft, dpo." in said
    assert "Versions of" not in reviewed(before, before).text()
