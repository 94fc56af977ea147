"""The order of rows: from what a parser makes of a row, and straight from columns of text, the same key."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment import corpora
from alignment.corpora import Role
from alignment.runtime import Refused, records
from alignment.sampling import order, reader
from alignment.sampling.order import KEY, RowOrder

FLAT = [name for name in corpora.names() if hasattr(corpora.load(name), "TURNS")]
# Everything that some reader takes for a blank, and texts on both sides of what is seen at first sight.
BLANKS = "".join(chr(code) for code in range(0x110000) if chr(code).isspace()) + "\0\x7f\u200b\ufeff"
texts = st.text(st.sampled_from(BLANKS + "a~!é“字😀"), max_size=3)


def policy(name: str, raw: Path, share: float = 0.5) -> RowOrder:
    return RowOrder(name, Role.demonstrations, raw, 1, 2, share, 10**6)


def slow(how: RowOrder, path: Path) -> dict[int, Any]:
    """The keys of a file's rows, each by way of the parser."""
    numbered = (
        (number, row, how.parse(row)) for part in records.chunks(path) for number, row in records.numbered(part)
    )
    usable = ((number, row, made) for number, row, made in numbered if not isinstance(made, corpora.Refusal))
    return {number: how.key(0, path, number, row, made) for number, row, made in usable}


@pytest.mark.parametrize("name", FLAT)
@given(data=st.data())
def test_columns_give_the_parser_s_keys(
    name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    columns = corpora.load(name).TURNS.values()
    rows = data.draw(st.lists(st.fixed_dictionaries({column: texts for column in columns}), min_size=1, max_size=20))
    kind = data.draw(st.sampled_from([pa.string(), pa.large_string()]))
    raw = tmp_path_factory.mktemp("raw")
    path = raw / "rows.parquet"
    pq.write_table(pa.table({column: pa.array([row[column] for row in rows], kind) for column in columns}), path)
    how = policy(name, raw)
    found = np.concatenate(reader._find(how, 0, records.chunks(path)[0]).keys)
    assert {int(key["number"]): key.item() for key in found} == {
        number: np.array(key, dtype=KEY).item() for number, key in slow(how, path).items()
    }


@pytest.mark.parametrize("name", FLAT)
def test_most_rows_need_no_parser(name: str) -> None:
    how = policy(name, Path())
    batch = pa.RecordBatch.from_pydict({column: ["Seen", " not", "", None] for column in how.turns.values()})
    plain, found = how.plain(3, Path("x.parquet"), 11, batch)
    assert plain.tolist() == [True, False, False, False]
    assert (found["part"].tolist(), found["number"].tolist()) == ([3], [11])


@pytest.mark.parametrize("column", [[1, 2], [b"a", b"b"], ["a", None], None])
def test_a_column_of_another_type_is_left_to_the_parser(column: list[Any] | None, tmp_path: Path) -> None:
    """Which says what it found and what it wanted; a missing column likewise."""
    values = {"system_prompt": ["a", "b"], "question": ["c", "d"], "response": column}
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({name: value for name, value in values.items() if value is not None}), path)
    found = reader._find(policy("orca", tmp_path), 0, records.chunks(path)[0])
    wrong = 1 if column == ["a", None] else 2
    assert (found.read, found.dropped[corpora.Cause.malformed], sum(map(len, found.keys))) == (2, wrong, 2 - wrong)
    assert len(found.wrong) == wrong and all("response" in line for line in found.wrong)


def test_text_that_is_no_unicode_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    broken = pa.array([b"seen \xff"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"system_prompt": ["a"], "question": ["b"], "response": broken}), path)
    with pytest.raises(Refused, match=r"rows\.parquet: not a whole Parquet file .*UTF8"):
        reader._find(policy("orca", tmp_path), 0, records.chunks(path)[0])


def test_the_share_held_out_is_that_asked_for(tmp_path: Path) -> None:
    batch = pa.RecordBatch.from_pydict(
        {
            "system_prompt": ["Answer."] * 20_000,
            "question": [f"Q{i // 2}" for i in range(20_000)],
            "response": [f"A{i}" for i in range(20_000)],
        }
    )
    _, found = policy("orca", tmp_path, 0.05).plain(0, tmp_path / "x.parquet", 1, batch)
    heldout = found["heldout"].reshape(-1, 2)
    assert (heldout[:, 0] == heldout[:, 1]).all()  # one opening, one side
    assert abs(heldout.mean() - 0.05) < 4 * (0.05 * 0.95 / len(heldout)) ** 0.5
    assert len(np.unique(found["key"])) == 20_000
    quartiles = np.quantile(found["key"] / 2.0**64, [0.25, 0.5, 0.75])
    assert np.allclose(quartiles, [0.25, 0.5, 0.75], atol=0.02)


def test_equal_content_alone_is_joined_alike() -> None:
    """What a key is made of: no text can pass for the end of another one."""
    texts = ["", "a", "4 9", "user", "messages", "a9user"]
    examples = [
        {"messages": [{"role": "user", "content": one}, {"role": "assistant", "content": two}]}
        for one in texts
        for two in texts
    ]
    replies = [[{"role": "assistant", "content": text}] for text in texts]
    examples += [{"prompt": [], "chosen": one, "rejected": two} for one in replies for two in replies]
    assert len({order._content(example) for example in examples}) == len(examples)
