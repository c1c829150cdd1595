"""A parser of bytes from elsewhere, what it may raise, and how its valid messages are damaged."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lightning_parablock.errors import ParaBlockError

_NUMBERS = (-1, 0, 3, 1 << 70, 1.5, float("inf"), float("nan"))
ODD_VALUES = (None, True, *_NUMBERS, "", "x", "9", "\ud800", [], [[]], {}, {"x": 1})
"""What takes the place of a value in JSON."""


@dataclass(frozen=True)
class Target:
    """One parser.

    Attributes:
        name: Of the parser.
        parse: Gives it the bytes.
        refusals: The errors that it may raise.
        seeds: Valid messages, made by what writes them.
    """

    name: str
    parse: Callable[[bytes], object]
    refusals: tuple[type[ParaBlockError], ...]
    seeds: tuple[bytes, ...]

    def accepts(self, data: bytes) -> bool:
        """Whether the bytes were read and not refused; any other error is a finding, and is raised."""
        try:
            self.parse(data)
        except self.refusals:
            return False
        except BaseException as error:
            error.add_note(f"{self.name} has been given {data!r}")
            raise
        return True

    def damaged(self, choice: int) -> bytes:
        """A seed with one to four damages; ``choice`` decides which."""
        dice = random.Random(choice)
        data = dice.choice(self.seeds)
        for _ in range(dice.randint(1, 4)):
            data = damaged(data, dice, dice.choice(self.seeds))
        return data


def said_and_body(data: bytes) -> tuple[bytes, bytes]:
    """The first line, which is JSON, and the bytes behind it."""
    said, _, body = data.partition(b"\n")
    return said, body


def message(said: Any, body: bytes | memoryview = b"") -> bytes:
    """What :func:`said_and_body` takes apart."""
    return json.dumps(said).encode() + (b"\n" + bytes(body) if body else b"")


def damaged(data: bytes, dice: random.Random, other: bytes) -> bytes:
    """Bytes with one damage: flipped, cut, doubled, spliced with others, or with another value in their JSON."""
    if dice.random() < 0.6 and (changed := _with_an_odd_value(data, dice)) is not None:
        return changed
    at, end = sorted((dice.randint(0, len(data)), dice.randint(0, len(data))))
    match dice.randint(0, 4):
        case 0 if data:
            at = dice.randrange(len(data))
            return data[:at] + bytes([data[at] ^ (1 << dice.randint(0, 7))]) + data[at + 1 :]
        case 1:
            return data[:at] + data[end:]
        case 2:
            return data[:end] + data[at:]
        case 3:
            return data[:at] + other[dice.randint(0, len(other)) :]
        case _:
            return data[:at] + dice.randbytes(end - at) + data[end:]


def _with_an_odd_value(data: bytes, dice: random.Random) -> bytes | None:
    line, _, body = data.partition(b"\n")
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        return None
    places: list[tuple[Any, Any]] = []
    _collect(said, places)
    if not places:
        return None
    holder, key = dice.choice(places)
    if isinstance(holder, dict) and dice.random() < 0.3:
        del holder[key]
    else:
        holder[key] = dice.choice(ODD_VALUES)
    return message(said, body)


def _collect(said: Any, places: list[tuple[Any, Any]]) -> None:
    if isinstance(said, dict | list):
        for key, value in list(said.items()) if isinstance(said, dict) else enumerate(said):
            places.append((said, key))
            _collect(value, places)
