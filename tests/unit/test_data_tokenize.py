from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_parablock.data.rows import Row
from lightning_parablock.data.tokenize import TextFormat, make_examples, template_fields
from lightning_parablock.errors import ConfigurationError, DataError
from tests.unit.tiny_text import END, byte_tokenizer

TOKENIZER = byte_tokenizer()
WORDS = st.lists(st.text("abc ", max_size=30), min_size=1, max_size=8)
FIXED = settings(deadline=None, derandomize=True)


def ids(text: str) -> list[int]:
    return TOKENIZER(text)["input_ids"]


def text_rows(texts: list[str]) -> list[Row]:
    return [Row({"text": text}, "f", place) for place, text in enumerate(texts, start=1)]


def answered(question: str, answer: str) -> list[Row]:
    return [Row({"q": question, "a": answer}, "f", 1)]


@FIXED
@given(texts=WORDS, size=st.integers(2, 16))
def test_windows_are_the_text_in_order_without_its_tail(texts: list[str], size: int) -> None:
    stream = [token for text in texts for token in [*ids(text), END]]
    examples = make_examples(text_rows(texts), TOKENIZER, TextFormat(size))
    assert examples.ids.flatten().tolist() == stream[: len(stream) - len(stream) % size]
    for index in range(len(examples)):
        item = examples[index]
        assert all(tensor.shape == (size,) and tensor.dtype == torch.long for tensor in item.values())
        assert torch.equal(item["labels"], item["input_ids"]) and bool(item["attention_mask"].all())


def test_windows_stop_early_when_asked() -> None:
    rows = text_rows(["abcdef"] * 200)
    some = make_examples(rows, TOKENIZER, TextFormat(4), at_most=3)
    assert torch.equal(some.ids, make_examples(rows, TOKENIZER, TextFormat(4)).ids[:3])


def test_prompt_and_padding_are_masked() -> None:
    form = TextFormat(12, answer_field="a", template="Q: {q} ")
    item = make_examples(answered("ab", "cd"), TOKENIZER, form)[0]
    assert item["input_ids"].tolist() == [*ids("Q: ab cd"), END, *[END] * 3]
    assert item["attention_mask"].tolist() == [1] * 9 + [0] * 3
    assert item["labels"].tolist() == [-100] * 6 + [*ids("cd"), END] + [-100] * 3


@pytest.mark.parametrize(
    ("question", "answer", "kept_prompt", "kept_answer"),
    [
        ("abcdef", "xyz", "abcdef", "xy"),  # the answer loses its end
        ("abcdefghij", "xyz", "efghij", "xy"),  # and then, at a quarter of the window, the prompt its beginning
        ("abcdefghij", "x", "efghij", "x|"),
    ],
)
def test_too_long_examples_keep_answer_tokens(question: str, answer: str, kept_prompt: str, kept_answer: str) -> None:
    examples = make_examples(answered(question, answer), TOKENIZER, TextFormat(8, answer_field="a", template="{q}"))
    item, kept_tokens = examples[0], len(kept_answer)
    assert examples.lost.tolist() == [[len(question) - len(kept_prompt), len(answer) + 1 - kept_tokens]]
    tokens = ids(kept_answer.removesuffix("|")) + ([END] if kept_answer.endswith("|") else [])
    assert item["input_ids"].tolist() == ids(kept_prompt) + tokens
    assert item["labels"].tolist() == [-100] * len(kept_prompt) + tokens


def test_rows_without_an_answer_token_are_dropped_and_counted() -> None:
    rows = [*answered("ab", ""), *answered("ab", "c")]
    examples = make_examples(rows, TOKENIZER, TextFormat(8, answer_field="a", template="{q}"))
    assert (len(examples), examples.dropped_rows) == (1, 1)


@FIXED
@given(question=st.text("ab", max_size=20), answer=st.text("cd", min_size=1, max_size=20), size=st.integers(2, 24))
def test_every_example_has_something_to_predict(question: str, answer: str, size: int) -> None:
    examples = make_examples(answered(question, answer), TOKENIZER, TextFormat(size, answer_field="a", template="{q}"))
    assert len(examples) == 1
    assert bool((examples[0]["labels"][1:] != -100).any())
    assert examples.n_tokens <= size


def test_a_begin_token_is_put_before_a_prompt_where_the_tokenizer_puts_one() -> None:
    class Beginning:
        bos_token_id, eos_token_id, pad_token_id = 7, None, None

        def __call__(
            self, text: list[str], *, add_special_tokens: bool = True, **_: object
        ) -> dict[str, list[list[int]]]:
            return {"input_ids": [[7] * add_special_tokens + [len(one)] for one in text]}

    form = TextFormat(4, answer_field="a", template="{q}")
    item = make_examples(answered("abc", "de"), Beginning(), form)[0]
    assert item["input_ids"].tolist() == [7, 3, 2, 0]
    assert item["labels"].tolist() == [-100, -100, 2, -100]


def test_hash_follows_ids_and_label_positions() -> None:
    plain = make_examples(text_rows(["abcdefg"]), TOKENIZER, TextFormat(4))
    same = make_examples(text_rows(["abcdefg"]), TOKENIZER, TextFormat(4))
    other = make_examples(text_rows(["abcdefh"]), TOKENIZER, TextFormat(4))
    assert plain.sha256 == same.sha256 != other.sha256
    same.starts[0] = 1
    assert plain.sha256 != same.sha256


def test_evenly_spaced_examples_span_the_whole() -> None:
    examples = make_examples(text_rows(["abcdefghijklmnopqrs"]), TOKENIZER, TextFormat(2))
    assert examples.evenly_spaced(5).ids[:, 0].tolist() == examples.ids[::2, 0].tolist()
    assert examples.evenly_spaced(99) is examples


def test_templates_name_columns_and_nothing_else() -> None:
    assert template_fields("Q: {q}\n{context} {q} {{}}") == ["q", "context"]
    for template, said in (("plain", "names no column"), ("{q", "malformed"), ("{q!r}", "nothing but a column name")):
        with pytest.raises(ConfigurationError, match=said):
            template_fields(template)


def test_a_column_of_numbers_is_named_with_its_line() -> None:
    with pytest.raises(DataError, match=r"f, line 1: column 'text' must hold text, found int"):
        make_examples([Row({"text": 3}, "f", 1)], TOKENIZER, TextFormat(4))
