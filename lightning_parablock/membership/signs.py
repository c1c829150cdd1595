"""Messages of the watch's channel: all of the same size, so that gloo can always receive them.

gloo ends the process if a message is longer than the buffer that waits for it. So the size is fixed forever, and a text
that does not fit is truncated. Little-endian layout::

    offset bytes  field
     0      1     sign: 0 alive, 1 leaving, 2 failed, 3 arrived at a collective
     1      7     unused
     8      8     rounds in all of a rank that has ended its training, else -1
    16      8     newest round that the rank has submitted, -1 for none
    24      8     round in which the rank trains, -1 outside of rounds
    32      8     milliseconds since its last step
    40      8     number of the collective, -1 with any other sign
    48      8     batch whose end the rank has pledged not to pass alone, 0 for none
    56     16     digest of the collective's identity, on which the ranks must agree before they enter it
    72    184     the collective or the beginning of the last words, UTF-8, padded with zeros
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from lightning_parablock.errors import ProtocolError

SIGN_BYTES = 256
_LAYOUT = struct.Struct("<B7xqqqqqq16s184s")
_TEXT_BYTES = 184


class Sign(IntEnum):
    """The kind of a message."""

    ALIVE = 0
    LEAVING = 1
    FAILED = 2
    ARRIVED = 3


@dataclass(frozen=True)
class Progress:
    """Progress of a rank.

    Attributes:
        rounds: Total number of rounds once the rank has ended its training; -1 before.
        submitted: Newest round whose exchange it has submitted; -1 for none.
        round: Round in which it trains; -1 outside of rounds.
        idle_ms: Milliseconds since its last step.
        pledge: Batch whose end it has pledged not to pass alone, see ``stop_point.py``; 0 for none.
    """

    rounds: int = -1
    submitted: int = -1
    round: int = -1
    idle_ms: int = 0
    pledge: int = 0

    @property
    def has_ended(self) -> bool:
        """Whether the rank has ended its training."""
        return self.rounds >= 0


@dataclass(frozen=True)
class Call:
    """A collective that a rank is about to enter.

    Attributes:
        number: Number of collectives the rank has entered before, since the start of the run.
        digest: Digest of the collective's identity; ranks with equal digests may enter together.
        text: Description of the collective.
    """

    number: int = -1
    digest: bytes = bytes(16)
    text: str = ""


@dataclass(frozen=True)
class Word:
    """One message of the watch's channel."""

    sign: Sign
    progress: Progress
    call: Call = Call()

    def pack(self) -> Tensor:
        """Encode the message, shape (256,), uint8."""
        p, call = self.progress, self.call
        text = call.text.encode()[:_TEXT_BYTES]
        said = p.rounds, p.submitted, p.round, p.idle_ms, call.number, p.pledge
        raw = _LAYOUT.pack(self.sign, *said, call.digest, text)
        return torch.frombuffer(bytearray(raw), dtype=torch.uint8)

    @staticmethod
    def unpack(message: Tensor) -> Word:
        """Decode a message, shape (256,), uint8.

        Raises:
            ProtocolError: its sign is none of this version.
        """
        sign, rounds, submitted, round_, idle_ms, number, pledge, digest, text = _LAYOUT.unpack(
            message.numpy().tobytes()
        )
        if sign not in list(Sign):
            raise ProtocolError(
                f"a sign of life of unknown kind {sign}; install the same lightning-parablock everywhere"
            )
        call = Call(number, digest, text.rstrip(b"\0").decode(errors="ignore"))
        return Word(Sign(sign), Progress(rounds, submitted, round_, idle_ms, pledge), call)


def digest_of(identity: str) -> bytes:
    """Digest of a text of any length, 16 bytes."""
    return hashlib.blake2b(identity.encode(), digest_size=16).digest()
