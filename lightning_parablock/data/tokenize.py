"""From rows to fixed-length token examples: packed windows of plain text, or prompts with answers."""

from __future__ import annotations

import hashlib
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_parablock.data.formats import FORMATS, Format, Pair
from lightning_parablock.data.rows import Row, text_of
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.models.names import IGNORED_LABEL

_ROWS_A_CALL = 64
_Lost = tuple[int, int]
"""Tokens for which the window had no room: of the prompt's beginning, of the answer's end."""
_Example = tuple[list[int], int, int, int, _Lost]
"""Tokens, position of the first label, index of the row it begins in, of the one it ends in, what was lost of it."""


class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None

    def __call__(self, text: list[str], /, **options: Any) -> Any:
        """Token ids of each text under the key ``input_ids``."""
        ...


@dataclass(frozen=True, slots=True)
class TextFormat:
    """How the columns of a row become text.

    Args:
        sequence_length: Tokens an example.
        text_field: Column of plain text; used when ``answer_field`` is None.
        answer_field: Column of the answer, the only part whose tokens are labels.
        template: Text of the prompt, with column names in braces.
        published: The form in which a known data set is published; then the other columns are its own.
    """

    sequence_length: int
    text_field: str = "text"
    answer_field: str | None = None
    template: str = ""
    published: Format | None = None

    @property
    def has_answers(self) -> bool:
        """Whether a row is a prompt with its answer, else plain text."""
        return self.published is not None or self.answer_field is not None

    @property
    def columns(self) -> list[str]:
        """The columns that every row must have."""
        if self.published is not None:
            return list(FORMATS[self.published].columns)
        return [self.text_field] if self.answer_field is None else [*template_fields(self.template), self.answer_field]

    def pair(self, row: Row, tokenizer: Tokenizer) -> Pair:
        """Prompt and answer of a row that has them."""
        if self.published is not None:
            return FORMATS[self.published].pair(row, tokenizer)
        assert self.answer_field is not None
        return _fill(self.template, row), text_of(row, self.answer_field)


class TokenExamples(Dataset[dict[str, Tensor]]):
    """Token examples of one length in compact form; an item is a dict of three (sequence_length,) torch.long tensors.

    Args:
        ids: (examples, sequence_length) int32 token ids, padded at the end.
        starts: (examples,) int32 position of the first label; the prompt is before it.
        lengths: (examples,) int32 tokens before the padding.
        rows: (examples,) int32 index of the row an example is from; a packed window is from the row it begins in.
        lost: (examples, 2) int32 tokens for which the window had no room: of the prompt's beginning, of the answer's
            end.
        dropped_rows: Rows that gave no example because no answer token was left.
        rows_used: Rows of which some token is in an example.

    Attributes:
        row_labels: For each example the index of its row's label in ``label_names``; None where rows have no labels.
        label_names: The labels.
        left_out: Examples that :meth:`evenly_spaced` has left out.
    """

    def __init__(
        self,
        ids: Tensor,
        starts: Tensor,
        lengths: Tensor,
        rows: Tensor,
        lost: Tensor,
        dropped_rows: int = 0,
        rows_used: int = 0,
    ) -> None:
        self.ids, self.starts, self.lengths, self.rows, self.lost = ids, starts, lengths, rows, lost
        self.dropped_rows, self.rows_used = dropped_rows, rows_used
        self.row_labels: list[int] | None = None
        self.label_names: list[str] = []
        self.left_out = 0

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = self.ids[index].long()
        position = torch.arange(len(ids))
        inside = position < self.lengths[index]
        labels = ids.masked_fill(~inside | (position < self.starts[index]), IGNORED_LABEL)
        return {"input_ids": ids, "attention_mask": inside.long(), "labels": labels}

    @property
    def n_tokens(self) -> int:
        """Tokens of all examples, padding not counted."""
        return int(self.lengths.sum())

    @property
    def sha256(self) -> str:
        """Hash of every id, length and label position, as hexadecimal digits."""
        digest = hashlib.sha256(f"{tuple(self.ids.shape)}".encode())
        for tensor in (self.ids, self.starts, self.lengths):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def evenly_spaced(self, at_most: int) -> TokenExamples:
        """At most ``at_most`` of the examples, evenly spaced, so that every client's part stays represented."""
        if len(self) <= at_most:
            return self
        chosen = torch.arange(at_most) * len(self) // at_most
        parts = (part[chosen] for part in (self.ids, self.starts, self.lengths, self.rows, self.lost))
        kept = TokenExamples(*parts, dropped_rows=self.dropped_rows, rows_used=self.rows_used)
        kept.left_out = len(self) - at_most
        return kept

    def label(self, labels: Sequence[str]) -> None:
        """Name the label of every row that the examples were made from."""
        self.label_names = sorted(set(labels))
        number = {name: index for index, name in enumerate(self.label_names)}
        self.row_labels = [number[labels[int(row)]] for row in self.rows]


def make_examples(
    rows: Sequence[Row], tokenizer: Tokenizer, form: TextFormat, at_most: int | None = None
) -> TokenExamples:
    """Tokenise ``rows`` in order; stop early once ``at_most`` examples are there.

    Plain text: the rows' tokens in a row, an end-of-text token after each, cut into windows; the tail that fills no
    window is left out. Prompt and answer: one example a row; see :func:`_fit`.
    """
    build = _prompts if form.has_answers else _windows
    ids: list[list[int]] = []
    starts: list[int] = []
    lengths: list[int] = []
    origins: list[int] = []
    losses: list[_Lost] = []
    dropped = used = 0
    for example in build(rows, tokenizer, form):
        if example is None:
            dropped += 1
            continue
        tokens, start, row, last_row, lost = example
        used = last_row + 1 - dropped
        ids.append(tokens + [_pad_id(tokenizer)] * (form.sequence_length - len(tokens)))
        starts.append(start)
        lengths.append(len(tokens))
        origins.append(row)
        losses.append(lost)
        if len(ids) == at_most:
            break
    table = torch.tensor(ids, dtype=torch.int32).reshape(len(ids), form.sequence_length)
    columns = [torch.tensor(column, dtype=torch.int32) for column in (starts, lengths, origins)]
    columns.append(torch.tensor(losses, dtype=torch.int32).reshape(len(losses), 2))
    return TokenExamples(table, *columns, dropped_rows=dropped, rows_used=used)


def template_fields(template: str) -> list[str]:
    """The column names in the braces of ``template``, in order.

    Raises:
        ConfigurationError: the template is malformed, names no column, or asks for more than a column.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigurationError(f"template {template!r} is malformed: {error}; double a literal brace") from error
    fields = [name for _, name, _, _ in parts if name is not None]
    if not fields:
        raise ConfigurationError(f"template {template!r} names no column, so every prompt is the same; use {{column}}")
    if any(conversion or spec for _, _, spec, conversion in parts):
        raise ConfigurationError(f"template {template!r}: put nothing but a column name into braces")
    return list(dict.fromkeys(fields))


def _windows(rows: Sequence[Row], tokenizer: Tokenizer, form: TextFormat) -> Iterator[_Example]:
    size = form.sequence_length
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    stream: list[int] = []
    origins: list[int] = []  # the row of each token in the stream
    numbers = count()
    for chunk in _chunks(rows):
        for tokens in _encode(tokenizer, [text_of(row, form.text_field) for row in chunk]):
            stream += tokens + end
            origins += [next(numbers)] * len(tokens + end)
        whole = len(stream) - len(stream) % size
        for start in range(0, whole, size):
            yield stream[start : start + size], 0, origins[start], origins[start + size - 1], (0, 0)
        stream, origins = stream[whole:], origins[whole:]


def _prompts(rows: Sequence[Row], tokenizer: Tokenizer, form: TextFormat) -> Iterator[_Example | None]:
    begin = _begin_ids(tokenizer)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    numbers = count()
    for chunk in _chunks(rows):
        pairs = [form.pair(row, tokenizer) for row in chunk]
        prompts = _encode(tokenizer, [prompt for prompt, _ in pairs])
        answers = _encode(tokenizer, [answer for _, answer in pairs])
        for prompt, answer in zip(prompts, answers, strict=True):
            # A chat template may have begun the text itself.
            begun = prompt if prompt[: len(begin)] == begin else begin + prompt
            row = next(numbers)
            yield _fit(begun, answer + end, row, form.sequence_length) if answer else None


def _fit(prompt: list[int], answer: list[int], row: int, size: int) -> _Example | None:
    """The example of a row, or None where no label would be left.

    Too long: the answer loses its end first, down to a quarter of the window; then the prompt loses its beginning.
    """
    kept_answer = min(len(answer), max(size - len(prompt), size // 4, 1))
    lost = max(len(prompt) - (size - kept_answer), 0)
    kept_prompt = prompt[lost:]
    tokens = kept_prompt + answer[:kept_answer]
    # The token at position 0 is predicted from nothing: an example needs a label behind it.
    if len(tokens) <= max(len(kept_prompt), 1):
        return None
    return tokens, len(kept_prompt), row, row, (lost, len(answer) - kept_answer)


def _fill(template: str, row: Row) -> str:
    # Replaced by hand rather than by str.format_map: a column name may hold dots or brackets.
    parts = string.Formatter().parse(template)
    return "".join(literal + (text_of(row, name) if name is not None else "") for literal, name, _, _ in parts)


def _chunks(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    return (rows[start : start + _ROWS_A_CALL] for start in range(0, len(rows), _ROWS_A_CALL))


def _encode(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    # verbose=False: a source file longer than the model's context is cut into windows and deserves no warning
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def _begin_ids(tokenizer: Tokenizer) -> list[int]:
    """The begin-of-text token, where this tokenizer puts one before a text by itself."""
    first = tokenizer(["a"], verbose=False)["input_ids"][0][:1]
    return first if first == [tokenizer.bos_token_id] else []


def _pad_id(tokenizer: Tokenizer) -> int:
    """Any id will do behind the attention mask; the tokenizer's own where it has one."""
    return next((token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None), 0)
