"""The file of safety sentences: what is read, what is refused, and which sentences a limit keeps."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from cooks import made, write

from alignment.runtime import Refused
from alignment.scoring.safety.sentences import Sentence, choose, read, source

ROW: dict[str, Any] = {"id": 0, "text": "a", "toxicity_score": 4.5, "label": "hate", "target_groups": ["cooks"]}


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"label": "hateful"}, "'hateful', wanted 'hate' or 'neutral'"),
        ({"toxicity_score": 0}, "wanted a number above 0"),
        ({"toxicity_score": math.nan}, "found nan in 'toxicity_score', wanted a finite number"),
        ({"toxicity_score": 10**400}, "found inf in 'toxicity_score', wanted a finite number"),
        ({"id": "\ud800"}, "half a surrogate pair in the text, the id or a group"),
        ({"target_groups": ["cooks\ud800"]}, "half a surrogate pair in the text, the id or a group"),
        ({"toxicity_score": "4.5"}, "found str in 'toxicity_score', wanted int or float"),
        ({"toxicity_score": True}, "found bool in 'toxicity_score'"),
        ({"text": None}, "found NoneType in 'text', wanted str"),
        ({"text": "\ud800"}, "half a surrogate pair"),
        ({"target_groups": []}, "one or more names"),
        ({"target_groups": "cooks"}, "found str in 'target_groups', wanted list"),
        ({"target_groups": ["cooks", 3]}, "one or more names"),
        ({"target_groups": ["..."]}, "one or more names"),
    ],
)
def test_a_malformed_record_is_refused_by_its_index(tmp_path: Path, change: dict[str, Any], wanted: str) -> None:
    path = write(tmp_path, [ROW, {**ROW, "id": 1, **change}])
    with pytest.raises(Refused) as refused:
        read(path)
    assert f"{path}: record 1: " in str(refused.value)
    assert wanted in str(refused.value)


def test_a_record_without_a_field_or_of_another_shape_is_refused(tmp_path: Path) -> None:
    without = {key: value for key, value in ROW.items() if key != "label"}
    for record, wanted in ((without, "wanted 'label'"), ("text", "found str, wanted an object")):
        with pytest.raises(Refused, match=wanted):
            read(write(tmp_path, [record]))


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (json.dumps([ROW, ROW])[:-9], "not JSON"),
        ("", "not JSON"),
        ("[" * 50_000, "maximum recursion depth"),
        ("1" * 5000, "Exceeds the limit"),
        ("[]", "found an empty array"),
        (json.dumps(ROW), "found one dict, wanted an array"),
        (json.dumps([ROW, ROW]), "the id '0' more than once"),
        (json.dumps([{**ROW, "target_groups": ["pot ters", "pot-ters"]}]), "would share a name"),
        (json.dumps([{**ROW, "target_groups": ["Average"]}]), "means something else"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, content: str, wanted: str) -> None:
    with pytest.raises(Refused, match=wanted):
        read(write(tmp_path, content))


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'[{"id": "\xff\xfe"}]')
    with pytest.raises(Refused, match="not UTF-8"):
        read(tmp_path / "a.json")


def test_no_beginning_of_a_file_is_taken_for_fewer_sentences(tmp_path: Path) -> None:
    whole = write(tmp_path, [ROW, ROW | {"id": 1, "text": "é 😀"}]).read_bytes()
    for length in range(whole.rindex(b"]")):
        (tmp_path / "cut.json").write_bytes(whole[:length])
        with pytest.raises(Refused, match=r"cut\.json is not JSON .*cut short"):
            read(tmp_path / "cut.json")


def test_one_file_of_sentences_is_wanted(tmp_path: Path) -> None:
    write(tmp_path, {}, "provenance.json")
    with pytest.raises(Refused, match="none, wanted one"):
        source(tmp_path)
    path = write(tmp_path / "data", [ROW], "own.json")
    assert source(tmp_path) == path
    write(tmp_path, [ROW], "more.json")
    with pytest.raises(Refused, match=r"data/own.json, more.json, wanted one"):
        source(tmp_path)


def test_the_mirror_s_file_reads_whole(mirror: Path) -> None:
    sentences = read(mirror / "microsoft/SafeNLP/data/toxiGen.json")
    assert len(sentences) == 6514
    assert len({sentence.text for sentence in sentences}) == 6438
    assert len({group for sentence in sentences for group in sentence.groups}) == 13
    assert sum(len(sentence.groups) > 1 for sentence in sentences) == 1017


# Choosing


def test_a_limit_keeps_about_so_many_and_the_same_for_all() -> None:
    sentences = made(2000)
    chosen = choose(sentences, 500, 0)
    assert 430 < len(chosen) < 570
    assert choose(sentences[::-1], 500, 0) == chosen[::-1]
    assert set(chosen) < set(choose(sentences, 900, 0)) < set(sentences)
    assert choose(sentences, 500, 1) != chosen


def test_a_limit_from_their_number_on_keeps_all() -> None:
    sentences = made(50)
    assert choose(sentences, 50, 0) == choose(sentences, 10**9, 0) == sentences


def test_a_limit_that_keeps_none_is_refused() -> None:
    with pytest.raises(Refused, match="leaves none of 2"):
        choose(made(2), 1, next(seed for seed in range(99) if not _kept(made(2), seed)))


def _kept(sentences: list[Sentence], seed: int) -> bool:
    try:
        return bool(choose(sentences, 1, seed))
    except Refused:
        return False
