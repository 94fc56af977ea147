"""The laws of tokenising, over tokenizers of many kinds: bytes, GPT-2's, Llama-2's and 3's, Unigram, WordPiece."""

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.corpora import Comparison, Message
from alignment.fetching import base_model
from alignment.models.chat import IGNORED, LLAMA2_MARKS, Chat, Template, Text
from alignment.models.loading import tokenizer as load_tokenizer
from alignment.runtime import Refused

SENTENCES = [
    "The user asked the assistant about the weather, and the assistant answered the user at once.",
    "[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nWho are you? [/INST] I'm the assistant.",
    "[INST]Again?[/INST] <<SYS>> and <</SYS>>: marks of another template,  twice.",
] * 3
FRAMES = ("[INST]", "[/INST]", "<<SYS>>\n", "\n<</SYS>>\n\n")  # the template's own text, as it tokenises it


def _fast(backend: Any, **names: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **names)


def gpt2_like() -> Any:
    """Byte-level BPE, no BOS; among its added tokens some that are no special ones, as in real models."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(SENTENCES, trainer)
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    backend.add_tokens([AddedToken("<think>", rstrip=True), AddedToken("<｜User｜>"), AddedToken("   ")])
    return _fast(backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token="<|endoftext|>")


def llama_like(byte_fallback: bool = True) -> Any:
    """BPE over characters with a space before the text, byte fallback and a BOS, as Llama-2's."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors, trainers

    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizer
    learner.train_from_iterator(
        [part for sentence in SENTENCES for part in sentence.split()], trainers.BpeTrainer(show_progress=False)
    )
    learned = json.loads(learner.to_str())["model"]
    control = ("<unk>", "<s>", "</s>")
    tokens = [*control, *(f"<0x{byte:02X}>" for byte in range(256)), *learned["vocab"], "</", "|"]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    merges = [tuple(merge) for merge in learned["merges"]]
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=byte_fallback))
    backend.normalizer = normalizer
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return _fast(backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def llama3_like() -> Any:
    """Byte-level BPE that takes whole words of its vocabulary first, with a BOS, as Llama-3's; it knows ChatML too."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    backend = Tokenizer(models.BPE(ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=450, initial_alphabet=alphabet, show_progress=False)
    )
    special = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|im_start|>")
    backend.add_special_tokens([AddedToken(token, special=True) for token in (*special, "<|im_end|>")])
    bos = ("<|begin_of_text|>", backend.token_to_id("<|begin_of_text|>"))
    backend.post_processor = processors.TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    return _fast(backend, bos_token=bos[0], eos_token="<|eot_id|>")


GEMMA_CONTROL = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")


def unigram_like(byte_fallback: bool = True) -> Any:
    """Unigram over Gemma's control tokens, which stand in its vocabulary as pieces that a text could spell."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    learner = Tokenizer(models.Unigram())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    sentences = [part for sentence in SENTENCES for part in sentence.split() if "[" not in part and "<" not in part]
    learner.train_from_iterator(
        sentences,
        trainers.UnigramTrainer(
            vocab_size=90, special_tokens=[*GEMMA_CONTROL, *LLAMA2_MARKS], unk_token="<unk>", show_progress=False
        ),
    )
    learned = [tuple(piece) for piece in json.loads(learner.to_str())["model"]["vocab"]]
    spelled = [(f"<0x{byte:02X}>", -20.0) for byte in range(256)] if byte_fallback else []
    backend = Tokenizer(models.Unigram([*learned, *spelled], unk_id=3, byte_fallback=byte_fallback))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="never")])
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in GEMMA_CONTROL])
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return _fast(backend, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", pad_token="<pad>")


def wordpiece_like() -> Any:
    """WordPiece, as BERT's, but cut at spaces alone, so that a control token's name is a word of its vocabulary."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers

    control = ("[UNK]", "[CLS]", "[SEP]")
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.train_from_iterator(
        SENTENCES, trainers.WordPieceTrainer(vocab_size=200, special_tokens=[*control], show_progress=False)
    )
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return _fast(backend, bos_token="[CLS]", eos_token="[SEP]", unk_token="[UNK]")


MAKE = {
    "bytes": base_model.byte_tokenizer,
    "gpt2": gpt2_like,
    "llama": llama_like,
    "llama3": llama3_like,
    "unigram": unigram_like,
    "wordpiece": wordpiece_like,
}
CHATS = [
    ("bytes", Template.chatml),
    ("gpt2", Template.chatml),
    ("gpt2", Template.llama2),
    ("llama", Template.llama2),
    ("llama3", Template.chatml),
    ("llama3", Template.llama2),
    ("unigram", Template.llama2),
]
LACKING = {"llama without bytes": llama_like, "unigram without bytes": unigram_like}
SPACES = ("llama", "unigram", *LACKING)  # they put "▁" where a space stands, and decode both to a space


@cache
def chat(name: str, template: Template) -> Chat:
    return Chat(MAKE[name](), template)


@pytest.fixture(params=CHATS, ids=lambda pair: "-".join(pair))
def a_chat(request: pytest.FixtureRequest) -> Chat:
    return chat(*request.param)


def decode(chat: Chat, ids: list[int]) -> str:
    return str(chat.tokenizer.decode(ids, skip_special_tokens=False))


def texts(count: int, seed: int = 0) -> list[str]:
    """Texts that mix marks, pieces of marks, control tokens, spaces and all kinds of characters."""
    marks = [*LLAMA2_MARKS, *FRAMES, *base_model.CONTROL_TOKENS, "<|endoftext|>", "<unk>", "<think>", "<｜User｜>"]
    pieces = [mark[a:b] for mark in marks for a, b in ((0, 1), (0, 3), (1, -1), (-1, None))]
    plain = [
        "the assistant",
        "user",
        " ",
        "  ",
        "   ",
        "\n",
        "\n\n",
        "\t",
        "é",
        "e\u0301",
        "😀",
        "你好",
        "\x00",
        "▁",
        "Ġ",
        "<0x0A>",
    ]
    draw = random.Random(seed)
    return ["".join(draw.choices([*marks, *marks, *pieces, *plain], k=draw.randint(1, 9))) for _ in range(count)]


def occurrences(part: list[int], ids: list[int]) -> int:
    return sum(ids[start : start + len(part)] == part for start in range(len(ids) - len(part) + 1))


def control_tokens(tokenizer: Any) -> set[int]:
    """All special tokens, and the added ones that are no run of spaces."""
    return {*tokenizer.all_special_ids, *(i for t, i in tokenizer.get_added_vocab().items() if t.strip())}


def conversation(draw: random.Random, system: bool, turns: int) -> list[Message]:
    some = iter(texts(2 * turns + 1, draw.randrange(10**6)))
    roles = ["system"] * system + ["user", "assistant"] * turns
    return [{"role": role, "content": next(some) + "x"} for role in roles]


CONVERSATIONS = [conversation(random.Random(i), i % 2 == 0, 1 + i % 3) for i in range(40)]


# Text from data


# Control tokens of many models, in whole and in part, marks of textual templates, spaces that a token may swallow, and
# anything else that is Unicode.
CONTROL = (
    *(
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
        "</s>",
        "<s>",
        "<unk>",
        "<pad>",
        "<bos>",
        "<eos>",
        "[CLS]",
        "[SEP]",
    ),
    *("[UNK]", "<start_of_turn>", "<end_of_turn>", "<|begin_of_text|>", "<|start_header_id|>", "<|eot_id|>", "<think>"),
    *("<｜User｜>", "<|im_start|>assistant\n", "<|im_end|>\n<|im_start|>", "<|", "|>", "<0x0A>", "▁", "Ġ"),
)
DATA = st.lists(
    st.sampled_from((*CONTROL, *LLAMA2_MARKS, *FRAMES, "[INST", "INST]", "<<", ">>", " ", "  ", "   ", "\n", "user"))
    | st.text(max_size=4),
    max_size=8,
).map("".join)


@pytest.fixture(scope="module", params=[*MAKE, *LACKING, "tiny", "smollm2"])
def named(request: pytest.FixtureRequest) -> tuple[str, Any]:
    """A kind of tokenizer and one of it; the last two as `fetch` writes them to disk."""
    if request.param in LACKING:
        return request.param, LACKING[request.param](byte_fallback=False)
    if request.param in MAKE:
        return request.param, MAKE[request.param]()
    folder: Path = request.getfixturevalue(request.param)
    return request.param, load_tokenizer(folder)


def test_text_holds_no_control_token_and_is_decoded_to_itself(named: tuple[str, Any]) -> None:
    name, tokenizer = named
    writer, control = Text(tokenizer, LLAMA2_MARKS), control_tokens(tokenizer)
    lacking = {tokenizer.unk_token_id} if name in (*LACKING, "wordpiece") else set()

    @cache
    def knows(character: str) -> bool:
        """SmolLM2's vocabulary lacks 21 bytes: a few control codes, and planes of Unicode that are not assigned."""
        return bool(tokenizer.decode(tokenizer(character, add_special_tokens=False).input_ids) == character)

    @given(DATA)
    def law(text: str) -> None:
        ids = writer.text(text)
        assert control.isdisjoint({*ids} - lacking), tokenizer.convert_ids_to_tokens(ids)
        assert writer.raw(text) == writer.bos + ids
        if lacking:
            return
        if name == "unigram":  # its pieces for bytes are pieces like any other: the text can spell a line's end
            text = text.replace("<0x0A>", "\n")
        if name == "smollm2" and not all(map(knows, text)):
            return
        decoded = tokenizer.decode(ids, skip_special_tokens=False)
        assert decoded == (text.replace("▁", " ") if name in SPACES else text)

    law()


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    turns: list[Message] = [{"role": "system", "content": draw(DATA)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 2))):
        turns += [{"role": "user", "content": draw(DATA)}, {"role": "assistant", "content": draw(DATA)}]
    return turns


def check_marks(chat: Chat, messages: list[Message], ids: list[int], reply_follows: bool) -> None:
    """The control tokens, and a textual template's marks, are as many as the template itself writes."""
    roles = [message["role"] for message in messages]
    control_ids = control_tokens(chat.tokenizer)
    control, replies = sum(i in control_ids for i in ids), roles.count("assistant")
    if chat.template is Template.chatml:
        assert control == len(chat.bos) + 2 * len(messages) + reply_follows
        return
    assert control == len(chat.bos) + replies
    system = roles.count("system")
    for frame, count in zip(FRAMES, (roles.count("user"), roles.count("user"), system, system), strict=True):
        assert occurrences(chat.tokenizer(frame, add_special_tokens=False).input_ids, ids) == count, frame


def check_conversation(chat: Chat, messages: list[Message], other: str) -> None:
    eos, control = chat.tokenizer.eos_token_id, control_tokens(chat.tokenizer)
    ids = chat.demonstration(messages)["input_ids"]
    check_marks(chat, messages, ids, reply_follows=False)
    pair: Comparison = {
        "prompt": messages[:-1],
        "chosen": messages[-1:],
        "rejected": [{"role": "assistant", "content": other}],
    }
    sides = chat.comparison(pair)
    check_marks(chat, messages[:-1], sides["prompt_ids"], reply_follows=True)
    assert sides["prompt_ids"] == chat.prompt(messages[:-1]) and sides["prompt_ids"] + sides["chosen_ids"] == ids
    for side in ("chosen_ids", "rejected_ids"):
        assert [i for i in sides[side] if i in control] == sides[side][-1:] == [eos]


def test_the_control_tokens_and_marks_of_a_conversation_are_the_template_s_own(a_chat: Chat) -> None:
    given(conversations(), DATA)(lambda messages, other: check_conversation(a_chat, messages, other))()


def test_they_are_the_template_s_own_with_the_small_model_s_tokenizer(smollm2: Path) -> None:
    small = Chat(load_tokenizer(smollm2), Template.chatml)
    given(conversations(), DATA)(lambda messages, other: check_conversation(small, messages, other))()


def test_a_mark_is_spelled_out_and_what_surrounds_it_is_not() -> None:
    writer = chat("llama", Template.llama2)
    tokens = writer.tokenizer.convert_ids_to_tokens(writer.text("the [INST] the"))
    assert tokens == ["▁the", "▁", "[", "I", "N", "S", "T", "]", "▁the"]


def test_text_without_control_tokens_or_marks_is_tokenised_as_the_tokenizer_does(a_chat: Chat) -> None:
    for text in [*SENTENCES[::3], "é 你好 😀 two  spaces   three", ""]:
        if not any(mark in text for mark in LLAMA2_MARKS):
            assert a_chat.text(text) == a_chat.tokenizer(text, add_special_tokens=False).input_ids


def test_a_character_that_the_vocabulary_lacks_is_unknown_and_the_name_of_unknown_is_text() -> None:
    tokenizer = llama_like(byte_fallback=False)
    assert Text(tokenizer).text("é").count(tokenizer.unk_token_id) == 1
    assert tokenizer.unk_token_id not in Text(tokenizer).text("<unk>")


def test_a_character_without_a_token_is_refused_where_the_unknown_token_would_end_the_reply() -> None:
    tokenizer = unigram_like(byte_fallback=False)
    tokenizer.unk_token = "<eos>"
    with pytest.raises(Refused, match="no token for '<'; choose a model whose tokenizer knows bytes"):
        Text(tokenizer).text("<bos>")


@pytest.mark.parametrize("name", ["bytes", "gpt2", "llama", "llama3"])
def test_transformers_splits_special_tokens_when_asked_and_only_then(name: str) -> None:
    tokenizer = MAKE[name]()
    eos = tokenizer.eos_token_id
    for _ in range(2):
        split = tokenizer(f"a{tokenizer.eos_token}b", add_special_tokens=False, split_special_tokens=True)
        assert eos not in split.input_ids
        assert eos in tokenizer(f"a{tokenizer.eos_token}b", add_special_tokens=False).input_ids


@pytest.mark.parametrize("name", MAKE)
def test_raw_text_has_a_bos_where_the_tokenizer_adds_one_and_no_eos(name: str) -> None:
    tokenizer = MAKE[name]()
    for text in ("the user", ""):
        assert Text(tokenizer).raw(text) == tokenizer(text).input_ids
    bos = [tokenizer.bos_token_id] if name not in ("gpt2", "wordpiece") else []
    assert Text(tokenizer).raw("") == bos


# Conversations


def test_demonstrations_train_the_assistant_s_turns_and_their_eos_and_nothing_else(a_chat: Chat) -> None:
    tokenizer = a_chat.tokenizer
    for messages in CONVERSATIONS:
        row = a_chat.demonstration(messages)
        ids, labels = row["input_ids"], row["labels"]
        assert len(ids) == len(labels) and all(label in (i, IGNORED) for i, label in zip(ids, labels, strict=True))
        assert labels[-1] == ids[-1] == tokenizer.eos_token_id
        replies: list[list[int]] = [[]]
        for label in labels:
            if label == tokenizer.eos_token_id:
                replies.append([])
            elif label != IGNORED:
                replies[-1].append(label)
        wanted = [message["content"] for message in messages if message["role"] == "assistant"]
        assert replies == [*map(a_chat.text, wanted), []]


def test_a_turn_that_says_so_is_read_and_not_trained(a_chat: Chat) -> None:
    for messages in CONVERSATIONS:
        marked = [
            {**m, "trained": False} if m["role"] == "assistant" and m is not messages[-1] else m for m in messages
        ]
        plain, row = a_chat.demonstration(messages), a_chat.demonstration(marked)  # type: ignore[arg-type]
        reply = [*a_chat.text(messages[-1]["content"]), a_chat.tokenizer.eos_token_id]
        assert row["input_ids"] == plain["input_ids"]
        assert row["labels"] == [IGNORED] * (len(row["labels"]) - len(reply)) + reply


def test_a_prompt_is_the_beginning_of_the_demonstration_and_the_reply_is_what_follows(a_chat: Chat) -> None:
    for messages in CONVERSATIONS:
        ids, prompt = a_chat.demonstration(messages)["input_ids"], a_chat.prompt(messages[:-1])
        assert ids == [*prompt, *a_chat.text(messages[-1]["content"]), a_chat.tokenizer.eos_token_id]


@pytest.mark.parametrize(("name", "template"), [pair for pair in CHATS if pair[0] != "gpt2"])
def test_one_bos_at_the_start_where_the_tokenizer_adds_one(name: str, template: Template) -> None:
    bos = chat(name, template).tokenizer.bos_token_id
    for messages in CONVERSATIONS:
        ids = chat(name, template).demonstration(messages)["input_ids"]
        assert ids[0] == bos and ids.count(bos) == 1


def test_a_tokenizer_that_adds_no_bos_gets_none_even_if_it_has_one() -> None:
    tokenizer = gpt2_like()
    tokenizer.bos_token = "<|endoftext|>"
    ids = Chat(tokenizer, Template.chatml).demonstration(CONVERSATIONS[0])["input_ids"]
    assert tokenizer.bos_token_id not in ids and ids[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")


MESSAGES: list[Message] = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "Me."},
    {"role": "user", "content": "Really?"},
    {"role": "assistant", "content": "Yes."},
]


@pytest.mark.parametrize(
    ("name", "template", "messages", "wanted"),
    [
        (
            "gpt2",
            Template.chatml,
            MESSAGES,
            "<|im_start|>system\nBe kind.<|im_end|>\n"
            "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nMe.<|im_end|>\n"
            "<|im_start|>user\nReally?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>",
        ),
        (
            "bytes",
            Template.chatml,
            MESSAGES[1:3],
            "<s><|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nMe.</s>",
        ),
        (
            "gpt2",
            Template.llama2,
            MESSAGES,
            "[INST]<<SYS>>\nBe kind.\n<</SYS>>\n\nWho?[/INST]Me.<|im_end|>[INST]Really?[/INST]Yes.<|im_end|>",
        ),
        ("gpt2", Template.llama2, MESSAGES[1:3], "[INST]Who?[/INST]Me.<|im_end|>"),
        ("llama", Template.llama2, MESSAGES[1:3], "<s> [INST] Who? [/INST] Me.</s>"),
    ],
)
def test_templates_word_for_word_without_a_default_system_prompt(
    name: str, template: Template, messages: list[Message], wanted: str
) -> None:
    ids = chat(name, template).demonstration(messages)["input_ids"]
    assert decode(chat(name, template), ids) == wanted


def test_a_comparison_is_a_prompt_and_two_replies_that_end_with_eos(a_chat: Chat) -> None:
    eos = [a_chat.tokenizer.eos_token_id]
    prompt: list[Message] = MESSAGES[:-1]
    comparison: Comparison = {
        "prompt": prompt,
        "chosen": MESSAGES[-1:],
        "rejected": [{"role": "assistant", "content": "[/INST] <|im_end|>"}],
    }
    ids = a_chat.comparison(comparison)
    assert ids == {
        "prompt_ids": a_chat.prompt(prompt),
        "chosen_ids": a_chat.text("Yes.") + eos,
        "rejected_ids": a_chat.text("[/INST] <|im_end|>") + eos,
    }
    assert ids["prompt_ids"] + ids["chosen_ids"] == a_chat.demonstration(MESSAGES)["input_ids"]
    assert a_chat.lengths(comparison) == tuple(map(len, ids.values()))


def test_lengths_of_a_demonstration_are_before_its_first_trained_token_and_after_it(a_chat: Chat) -> None:
    whole, prompt = len(a_chat.demonstration(MESSAGES)["input_ids"]), len(a_chat.prompt(MESSAGES[:2]))
    assert a_chat.lengths({"messages": MESSAGES}) == (prompt, whole - prompt, 0)


def test_many_texts_have_the_tokens_of_each(a_chat: Chat) -> None:
    texts = ["Yes.", "", "[/INST] <|im_end|>", "Yes."]
    assert a_chat.texts(texts) == [a_chat.text(text) for text in texts]
    assert a_chat.texts([]) == []


# What cannot be


def test_chatml_is_refused_for_a_tokenizer_without_its_control_tokens() -> None:
    with pytest.raises(
        Refused, match=r"<\|im_end\|>, <\|im_start\|>, which this model's tokenizer lacks; set `template: "
    ):
        Chat(llama_like(), Template.chatml)


def test_llama2_is_refused_where_any_text_could_write_its_marks() -> None:
    with pytest.raises(Refused, match=r"spells \[INST\], .* set `template: chatml`"):
        Chat(base_model.byte_tokenizer(), Template.llama2)


def test_a_tokenizer_without_eos_is_refused() -> None:
    tokenizer = gpt2_like()
    tokenizer.eos_token = None
    with pytest.raises(Refused, match="no EOS"):
        Chat(tokenizer, Template.llama2)


# The template that is saved


def spaced(scheme: str) -> Any:
    """SentencePiece's space before a text: before every part between control tokens, or before the first alone."""
    from tokenizers import pre_tokenizers

    tokenizer = llama_like()
    if scheme == "first":
        tokenizer.backend_tokenizer.normalizer = None
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


def check_published(chat: Chat) -> None:
    turns: list[Message] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Is it late?\nOr  is it early?"},
        {"role": "assistant", "content": "It's 3 o'clock."},
        {"role": "user", "content": "Thank you"},
        {"role": "user", "content": "a lot"},
        {"role": "assistant", "content": "Well."},
    ]
    saved: Any = chat.published()
    for part in (turns[first:end] for first in (0, 1) for end in range(first + 1, len(turns) + 1)):
        if part[-1]["role"] == "assistant":
            assert saved.apply_chat_template(part).input_ids == chat.demonstration(part)["input_ids"]
        else:
            assert saved.apply_chat_template(part, add_generation_prompt=True).input_ids == chat.prompt(part)


@pytest.mark.parametrize("pair", [p for p in CHATS if p[1] is Template.chatml or p[0] in SPACES], ids="-".join)
def test_the_saved_template_gives_the_tokens_that_were_trained(pair: tuple[str, Template]) -> None:
    check_published(chat(*pair))


@pytest.mark.parametrize("template", Template)
@pytest.mark.parametrize("scheme", ["always", "first"])
def test_it_writes_the_spaces_that_a_tokenizer_puts_before_a_text(scheme: str, template: Template) -> None:
    check_published(Chat(spaced(scheme), template))


def test_it_takes_the_place_of_the_model_s_own(smollm2: Path) -> None:
    """SmolLM2's adds a system prompt that training never saw."""
    small = Chat(load_tokenizer(smollm2), Template.chatml)
    check_published(small)
    assert "You are a helpful" in str(small.tokenizer.chat_template)
    assert "You are a helpful" not in str(small.published().chat_template)
