"""Data sets as they are published: how a row of each becomes a prompt and its answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning_parablock.data.rows import Row, text_of
from lightning_parablock.errors import ConfigurationError, DataError

Format = Literal["gsm8k", "alpaca", "mathinstruct", "dolly", "chat"]
Pair = tuple[str, str]
"""Prompt and answer."""

_TASK = (
    "Below is an instruction that describes a task{also}. Write a response that appropriately completes the request."
)
_ROLES = {"human": "user", "gpt": "assistant"}  # ShareGPT's words


@dataclass(frozen=True)
class Published:
    """One published form of rows.

    Attributes:
        columns: What every row must have.
        pair: (row, tokenizer) -> prompt and answer.
    """

    columns: tuple[str, ...]
    pair: Callable[[Row, Any], Pair]


def _gsm8k(row: Row, tokenizer: Any) -> Pair:
    return f"Question: {text_of(row, 'question')}\nAnswer: ", text_of(row, "answer")


def _alpaca(row: Row, tokenizer: Any) -> Pair:
    return _instruction(text_of(row, "instruction"), _optional(row, "input")), text_of(row, "output")


def _dolly(row: Row, tokenizer: Any) -> Pair:
    return _instruction(text_of(row, "instruction"), _optional(row, "context")), text_of(row, "response")


def _instruction(instruction: str, given: str) -> str:
    """The prompt with which Alpaca was trained (tatsu-lab/stanford_alpaca), and MathInstruct and others after it."""
    also = ", paired with an input that provides further context" if given else ""
    shown = f"\n\n### Input:\n{given}" if given else ""
    return f"{_TASK.format(also=also)}\n\n### Instruction:\n{instruction}{shown}\n\n### Response:\n"


def _optional(row: Row, column: str) -> str:
    return text_of(row, column) if row.values.get(column) else ""


def _chat(row: Row, tokenizer: Any) -> Pair:
    """The conversation up to the assistant's last turn, in the model's own chat template; that turn is the answer."""
    turns = _turns(row)
    last = max((i for i, turn in enumerate(turns) if turn["role"] == "assistant"), default=-1)
    if last < 1:
        raise DataError(f"{row.where}: no turn of the assistant after another one's; nothing is to be learned from it")
    if getattr(tokenizer, "chat_template", None) is None:
        raise ConfigurationError(
            "format 'chat' needs a tokenizer with a chat template, as instruction-tuned models have; set the data "
            "option tokenizer to one, or choose another format"
        )
    prompt = tokenizer.apply_chat_template(turns[:last], tokenize=False, add_generation_prompt=True)
    return prompt, turns[last]["content"]


def _turns(row: Row) -> list[dict[str, str]]:
    """``messages`` of role and content, or ShareGPT's ``conversations`` of from and value."""
    column = "messages" if "messages" in row.values else "conversations"
    turns = row.values.get(column)
    if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
        raise DataError(f"{row.where}: format 'chat' needs a column 'messages' or 'conversations' with a list of turns")
    return [_turn(turn, f"{row.where}: turn {number} of {column!r}") for number, turn in enumerate(turns, start=1)]


def _turn(turn: Any, where: str) -> dict[str, str]:
    if isinstance(turn, Mapping):
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if isinstance(role, str) and isinstance(content, str):
            return {"role": _ROLES.get(role, role), "content": content}
    raise DataError(f"{where} must have texts 'role' and 'content' (or 'from' and 'value'), found {turn!r:.80}")


FORMATS: dict[Format, Published] = {
    "gsm8k": Published(("question", "answer"), _gsm8k),
    "alpaca": Published(("instruction", "output"), _alpaca),
    "mathinstruct": Published(("instruction", "output"), _alpaca),
    "dolly": Published(("instruction", "response"), _dolly),
    "chat": Published((), _chat),
}
