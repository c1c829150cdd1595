"""Rows as known data sets are published: the prompt, the answer, and what is said of rows that are not so."""

from __future__ import annotations

import re
from typing import Any

import pytest

from lightning_parablock.data.formats import FORMATS, Format
from lightning_parablock.data.rows import Row
from lightning_parablock.data.text import FederatedTextDataModule
from lightning_parablock.data.tokenize import TextFormat, make_examples
from lightning_parablock.errors import ConfigurationError, DataError
from tests.unit.tiny_text import END, byte_tokenizer

ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TURNS = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "U"},
    {"role": "assistant", "content": "A"},
    {"role": "user", "content": "V"},
    {"role": "assistant", "content": "B"},
    {"role": "user", "content": "not answered"},
]
SHARED = [{"from": "human", "value": "U"}, {"from": "gpt", "value": "A"}]


def chat_tokenizer() -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


CASES: list[tuple[Format, dict[str, Any], str, str]] = [
    ("gsm8k", {"question": "1+1?", "answer": "two\n#### 2"}, "Question: 1+1?\nAnswer: ", "two\n#### 2"),
    (
        "alpaca",
        {"instruction": "Do", "input": "", "output": "done"},
        f"{ALPACA}\n\n### Instruction:\nDo\n\n### Response:\n",
        "done",
    ),
    (
        "alpaca",
        {"instruction": "Do", "input": "this", "output": "done"},
        f"{ALPACA_INPUT}\n\n### Instruction:\nDo\n\n### Input:\nthis\n\n### Response:\n",
        "done",
    ),
    (
        "mathinstruct",
        {"source": "x.json", "instruction": "1+1?", "output": "2"},
        f"{ALPACA}\n\n### Instruction:\n1+1?\n\n### Response:\n",
        "2",
    ),
    (
        "dolly",
        {"instruction": "Who?", "context": "It was I.", "response": "I", "category": "qa"},
        f"{ALPACA_INPUT}\n\n### Instruction:\nWho?\n\n### Input:\nIt was I.\n\n### Response:\n",
        "I",
    ),
    ("chat", {"messages": TURNS}, "<system>S\n<user>U\n<assistant>A\n<user>V\n<assistant>", "B"),
    ("chat", {"conversations": SHARED}, "<user>U\n<assistant>", "A"),
]


@pytest.mark.parametrize(("form", "values", "prompt", "answer"), CASES)
def test_a_row_becomes_a_prompt_and_its_answer(form: Format, values: dict[str, Any], prompt: str, answer: str) -> None:
    tokenizer, row = chat_tokenizer(), Row(values, "f", 1)
    assert TextFormat(64, published=form).pair(row, tokenizer) == (prompt, answer)
    item = make_examples([row], tokenizer, TextFormat(512, published=form))[0]
    labelled = item["labels"] != -100
    assert tokenizer.decode(item["input_ids"][: int(labelled.int().argmax())]) == prompt
    assert item["labels"][labelled].tolist() == [*tokenizer(answer)["input_ids"], END]


def test_every_format_is_tried() -> None:
    assert {form for form, *_ in CASES} == set(FORMATS)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"text": "x"}, "f, line 7: format 'chat' needs a column 'messages' or 'conversations'"),
        ({"messages": "x"}, "needs a column 'messages' or 'conversations' with a list of turns"),
        ({"messages": []}, "with a list of turns"),
        ({"messages": [{"role": "user"}]}, "turn 1 of 'messages' must have texts 'role' and 'content'"),
        ({"messages": ["hi"]}, "turn 1 of 'messages' must have texts"),
        ({"messages": TURNS[:2]}, "no turn of the assistant after another one's"),
        ({"messages": [TURNS[2]]}, "no turn of the assistant after another one's"),
    ],
)
def test_a_conversation_that_is_none(values: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=re.escape(says)):
        TextFormat(64, published="chat").pair(Row(values, "f", 7), chat_tokenizer())


def test_chat_needs_a_template() -> None:
    with pytest.raises(ConfigurationError, match="needs a tokenizer with a chat template"):
        TextFormat(64, published="chat").pair(Row({"messages": TURNS}, "f", 1), byte_tokenizer())


def test_a_text_that_the_chat_template_has_begun_is_not_begun_twice() -> None:
    tokenizer = chat_tokenizer()
    first = tokenizer("<")["input_ids"]

    class Beginning:
        """Puts a token before each text by itself, and so does its chat template."""

        bos_token_id, eos_token_id, pad_token_id = first[0], END, END
        chat_template = CHAT_TEMPLATE
        apply_chat_template = tokenizer.apply_chat_template

        def __call__(self, texts: list[str], add_special_tokens: bool = True, **options: Any) -> Any:
            found = tokenizer(texts, add_special_tokens=False)["input_ids"]
            return {"input_ids": [first + ids for ids in found] if add_special_tokens else found}

    row = Row({"messages": TURNS[1:3]}, "f", 1)
    chat = make_examples([row], Beginning(), TextFormat(64, published="chat"))[0]
    assert tokenizer.decode(chat["input_ids"]).startswith("<user>U")
    plain = make_examples(
        [Row({"question": "q", "answer": "a"}, "f", 1)], Beginning(), TextFormat(64, published="gsm8k")
    )
    assert tokenizer.decode(plain[0]["input_ids"]).startswith("<Question")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"format": "alpacca"}, "format='alpacca' is not known.*did you mean 'alpaca'"),
        ({"format": "gsm8k", "answer_field": "answer"}, "columns of its own; leave out answer_field"),
        ({"format": "gsm8k", "template": "{q}", "text_field": "t"}, "leave out text_field and template"),
    ],
)
def test_a_wrong_format_is_refused_before_anything_is_read(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        FederatedTextDataModule("nowhere.jsonl", **options)
