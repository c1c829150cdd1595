"""What a call and its answer consist of, and how both look on the wire.

A message is a JSON object, and bytes beside it where there are any: the HTTP body is the JSON followed by the bytes,
and a header says how long the JSON is. Who calls, and how long the caller waits, is in headers as well, so that a desk
refuses strangers before it reads what they send. Numbers come out of JSON as they went in, NaN and infinity included.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import numpy as np

from lightning_parablock.errors import ProtocolError
from lightning_parablock.system.bounded_json import parsed

SAID, RUN, SITE, INCARNATION, WAIT = (
    "Parablock-Said",
    "Parablock-Run",
    "Parablock-Site",
    "Parablock-Incarnation",
    "Parablock-Wait-S",
)
"""Headers: bytes of JSON; the caller's run, site and incarnation; seconds for which the caller waits."""

MOST_BYTES = 1 << 34
"""Longest message that is accepted: the server state of a large block, and far less than a wrong header may state."""

MOST_HEAD_BYTES = 16 * 1024
"""Longest head of a message or an answer that is accepted: ours have a few hundred bytes."""

SLICE_BYTES = 64 * 1024
"""Bytes that are sent or received at a time: each slice has the whole limit again, so slow links are not lost ones."""


class Headers(Protocol):
    """Headers of a message."""

    def get(self, name: str, failobj: str, /) -> str:
        """The value of a header, or what takes its place."""
        ...


@dataclass(frozen=True)
class Identity:
    """Who calls.

    Attributes:
        run: Id of the run; empty before the run has one.
        site: Name of the site.
        incarnation: Which process of the site it is.
        source: Address from which the call came; empty at the caller. It is no part of who the caller says it is.
    """

    run: str = ""
    site: str = ""
    incarnation: str = ""
    source: str = field(default="", compare=False)

    def headers(self) -> dict[str, str]:
        """As headers of a call."""
        return {RUN: self.run, SITE: self.site, INCARNATION: self.incarnation}

    @classmethod
    def of(cls, headers: Headers, source: str = "") -> Identity:
        """The identity that the headers of a call from ``source`` state; empty where there are none."""
        return cls(headers.get(RUN, ""), headers.get(SITE, ""), headers.get(INCARNATION, ""), source)


@dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
        said: JSON object.
        body: Bytes beside it (a memoryview of single bytes): read, never changed.
        pace: Called before each slice of the body with its number of bytes; sleeps where a rate is capped.
    """

    said: Mapping[str, Any] = field(default_factory=dict[str, Any])
    body: bytes | bytearray | memoryview = b""
    pace: Callable[[int], None] | None = None


def encoded(said: Mapping[str, Any]) -> bytes:
    """A JSON object as bytes.

    Raises:
        TypeError: it holds something that JSON cannot express.
    """
    return json.dumps(said, separators=(",", ":")).encode()


def decoded(text: bytes | bytearray | memoryview) -> dict[str, Any]:
    """The JSON object that :func:`encoded` wrote.

    Raises:
        ProtocolError: it is no JSON object, or has too many values.
    """
    try:
        said = parsed(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a message is not JSON: {error}") from error
    if not isinstance(said, dict):
        raise ProtocolError("a message is not a JSON object")
    return cast(dict[str, Any], said)


def length(headers: Headers, name: str, most: int) -> int:
    """A number of bytes that a header states; 0 without the header.

    Raises:
        ProtocolError: it is no number, or more than allowed.
    """
    text = headers.get(name, "0")
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise ProtocolError(f"header {name} must be a number of bytes, got {text[:40]!r}")
    if int(text) > most:
        raise ProtocolError(f"a message of {int(text)} bytes is longer than the {most} bytes that are accepted")
    return int(text)


def memory_for(total: int) -> memoryview:
    """Memory for a message of so many bytes. The machine gives it as they arrive: a header alone takes none.

    Raises:
        ProtocolError: there is not as much.
    """
    try:
        return memoryview(np.empty(total, np.uint8))  # pyright: ignore[reportArgumentType]
    except MemoryError as error:
        raise ProtocolError(f"there is no memory for a message of {total} bytes") from error


def slices(body: bytes | bytearray | memoryview) -> Iterator[memoryview]:
    """The bytes in pieces of :data:`SLICE_BYTES`, without a copy."""
    view = memoryview(body)
    for start in range(0, len(view), SLICE_BYTES):
        yield view[start : start + SLICE_BYTES]
