"""The short form of `make soak`'s hostile input: a few of each kind, all refused by name or sound."""

import random
from pathlib import Path

import pytest

from soak import hostile


@pytest.mark.parametrize(
    ("part", "count"), [(hostile.own_rows, 20), (hostile.hostile_repositories, 8), (hostile.model_folders, 8)]
)
def test_what_is_broken_is_refused_by_name_and_nothing_else_is_touched(
    part: hostile.Part, count: int, tmp_path: Path
) -> None:
    outcome = part(tmp_path, random.Random(1), count)
    assert outcome.wrong == []
    assert outcome.tried == outcome.recovered == count
