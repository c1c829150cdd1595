"""JSON that another process has written, read within limits that are checked before memory is taken for its values."""

from __future__ import annotations

import json
from typing import Any

from lightning_parablock.errors import ProtocolError

MOST_VALUES = 1 << 24
"""Most values in one text: two gigabytes as objects of Python, and far more than any message has."""

MOST_JSON_BYTES = 1 << 28
"""Longest JSON of a message or payload: the log of a long run, and far less than a parser's memory."""

_SEPARATORS = (b",", b"[", b"{")


def most_values(text: bytes) -> int:
    """An upper limit of the values that a text has; commas within its strings count, too."""
    return 1 + sum(text.count(one) for one in _SEPARATORS)


def parsed(text: bytes | bytearray | memoryview) -> Any:
    """The value of a JSON text; lone surrogates in its strings are kept as they are.

    Args:
        text: UTF-8.

    Raises:
        ProtocolError: it may have more than :data:`MOST_VALUES` values.
        ValueError, RecursionError: it is no JSON; nests too deeply.
    """
    whole = bytes(text)
    if most_values(whole) > MOST_VALUES:
        raise ProtocolError(f"a JSON text of {len(whole)} bytes may have more than {MOST_VALUES} values")
    return json.loads(whole.decode("utf-8", "surrogatepass"))
