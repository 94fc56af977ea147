"""The laws of tokenising, over tokenizers of three kinds: bytes, GPT-2's, Llama's."""

import json
import random
from functools import cache
from typing import Any

import pytest

from alignment import weights
from alignment.chat import IGNORED, LLAMA2_MARKS, Chat, Template, Text
from alignment.command import Refused
from alignment.corpora import Comparison, Message

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


MAKE = {"bytes": weights.byte_tokenizer, "gpt2": gpt2_like, "llama": llama_like}
CHATS = [("bytes", Template.chatml), ("gpt2", Template.chatml), ("gpt2", Template.llama2), ("llama", Template.llama2)]


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
    marks = [*LLAMA2_MARKS, *FRAMES, *weights.CONTROL_TOKENS, "<|endoftext|>", "<unk>", "<think>", "<｜User｜>"]
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


def inside(part: list[int], ids: list[int]) -> bool:
    return any(ids[start : start + len(part)] == part for start in range(len(ids) - len(part) + 1))


def conversation(draw: random.Random, system: bool, turns: int) -> list[Message]:
    some = iter(texts(2 * turns + 1, draw.randrange(10**6)))
    roles = ["system"] * system + ["user", "assistant"] * turns
    return [{"role": role, "content": next(some) + "x"} for role in roles]


CONVERSATIONS = [conversation(random.Random(i), i % 2 == 0, 1 + i % 3) for i in range(40)]


# Text from data


def test_text_is_decoded_to_itself_and_holds_no_control_token(a_chat: Chat) -> None:
    tokenizer = a_chat.tokenizer
    control = {*tokenizer.all_special_ids, *(i for t, i in tokenizer.get_added_vocab().items() if t.strip())}
    for text in texts(1500):
        ids = a_chat.text(text)
        assert control.isdisjoint(ids), text
        # Llama's tokenizer puts "▁" where a space stands, and decodes both to a space.
        assert decode(a_chat, ids) == (text.replace("▁", " ") if chat("llama", Template.llama2) is a_chat else text)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_text_cannot_write_the_marks_of_a_textual_template(name: str) -> None:
    writer = chat(name, Template.llama2)
    marks = [writer.tokenizer(mark, add_special_tokens=False).input_ids for mark in (*LLAMA2_MARKS, *FRAMES)]
    for text in [*texts(1500), *FRAMES, *(f"{a} {b}" for a in FRAMES for b in FRAMES)]:
        ids = writer.text(text)
        assert not any(inside(mark, ids) for mark in marks), text
    # The same marks are there when the template writes them.
    ids = writer.prompt([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}])
    assert all(inside(mark, ids) for mark in marks[4:])


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


@pytest.mark.parametrize("name", MAKE)
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
    bos = [tokenizer.bos_token_id] if name != "gpt2" else []
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
    longer = len(ids["prompt_ids"]) + len(ids["rejected_ids"])
    assert a_chat.lengths(comparison) == (len(ids["prompt_ids"]), longer)


def test_lengths_of_a_demonstration_are_before_its_first_trained_token_and_in_all(a_chat: Chat) -> None:
    whole = len(a_chat.demonstration(MESSAGES)["input_ids"])
    assert a_chat.lengths({"messages": MESSAGES}) == (len(a_chat.prompt(MESSAGES[:2])), whole)


# What cannot be


def test_chatml_is_refused_for_a_tokenizer_without_its_control_tokens() -> None:
    with pytest.raises(
        Refused, match=r"<\|im_end\|>, <\|im_start\|>, which this model's tokenizer lacks; set `template: "
    ):
        Chat(llama_like(), Template.chatml)


def test_llama2_is_refused_where_any_text_could_write_its_marks() -> None:
    with pytest.raises(Refused, match=r"spells \[INST\], .* set `template: chatml`"):
        Chat(weights.byte_tokenizer(), Template.llama2)


def test_a_tokenizer_without_eos_is_refused() -> None:
    tokenizer = gpt2_like()
    tokenizer.eos_token = None
    with pytest.raises(Refused, match="no EOS"):
        Chat(tokenizer, Template.llama2)
