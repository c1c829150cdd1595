"""The result of a collective of an elastic run: how it travels, and when what others say of it is believed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lightning_parablock.desk.message import Reply
from lightning_parablock.errors import ProtocolError
from lightning_parablock.system.reading import reading

Gathered = dict[int, bytes]
"""Client id -> its payload, ascending."""
Number = tuple[int, int]
"""A collective: the round, and how many this round has had before."""
Describe = Callable[[int], str]
"""Client id -> the member in words, for messages."""


def named(number: Number, what: str = "") -> str:
    """A collective in words."""
    return f"collective {number[1]} of round {number[0]}{f' ({what})' if what else ''}"


def packed(result: Gathered) -> Reply:
    """A result as the answer of a desk."""
    sizes = [[client, len(payload)] for client, payload in result.items()]
    return Reply({"is_complete": True, "sizes": sizes}, b"".join(result.values()))


def unpacked(reply: Reply, sender: str) -> Gathered | None:
    """The payloads that :func:`packed` wrote; None where they are not complete yet.

    Raises:
        ProtocolError: they do not fill the answer's body, or a client has two.
    """
    result, at = Gathered(), 0
    with reading(f"a collective's result from {sender}"):
        if not reply.said["is_complete"]:
            return None
        for client, size in reply.said["sizes"]:
            if not 0 <= int(size) <= len(reply.body) - at or int(client) in result:
                raise ValueError(f"{size!r:.40} bytes of client {client!r:.40} are not in it")
            result[int(client)] = bytes(reply.body[at : at + int(size)])
            at += int(size)
        if at != len(reply.body):
            raise ValueError(f"it states {at} bytes, and has {len(reply.body)}")
    return result


def agreed(number: Number, kept: Mapping[int, Gathered], payloads: Gathered, describe: Describe) -> Gathered:
    """The result with which all of some clients say that they have left a collective.

    Args:
        number: The collective.
        kept: Client id -> the result, as that client says; one at least.
        payloads: What other participants have sent here themselves.
        describe: A member in words, for messages.

    Raises:
        ProtocolError: they say different things, or not what others have sent.
    """
    (first, result), *others = kept.items()
    for client, other in others:
        if other != result:
            raise ProtocolError(
                f"{named(number)}: {describe(first)} and {describe(client)} say that they have left it with different "
                "results; one of them is wrong: see their logs"
            )
    for client, payload in payloads.items():
        if result.get(client, payload) != payload:
            raise ProtocolError(
                f"{named(number)}: {describe(first)} says that it has left it with another value of {describe(client)} "
                f"than that site's own; see the log of {describe(first)}"
            )
    return result
