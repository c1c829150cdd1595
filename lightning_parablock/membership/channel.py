"""The gloo group that carries only the signs of life: one message at a time to and from each peer."""

from __future__ import annotations

import contextlib
import re
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_parablock.meeting.devices import open_group
from lightning_parablock.membership.signs import SIGN_BYTES, Word

_FOREVER = timedelta(days=3650)  # gloo closes every pair when a wait times out, so the canary's must not time out
_LAST_WORDS_BYTES = 2048


class Channel:
    """Sends and receives words, with one receiving and one sending thread per peer.

    Args:
        timeout_s: Time limit of the group's own waits, in seconds. Collective: every rank must open its channel at the
            same point.
    """

    def __init__(self, timeout_s: float) -> None:
        self._group = open_group("gloo", timeout_s)

    def hear(self, rank: int) -> Word:
        """Wait for the next word of a peer; raises gloo's error if none can arrive any more."""
        message = torch.zeros(SIGN_BYTES, dtype=torch.uint8)
        self._receive(message, rank)
        return Word.unpack(message)

    def hear_last_words(self, rank: int) -> str:
        """Wait for the text that follows the sign of a failed peer; empty if it does not arrive."""
        words = torch.zeros(_LAST_WORDS_BYTES, dtype=torch.uint8)
        with contextlib.suppress(Exception):  # the sign alone is sufficient
            self._receive(words, rank)
        return bytes(words.tolist()).rstrip(b"\0").decode(errors="replace")

    def say(self, word: Word, rank: int) -> None:
        """Send a word and wait until the peer has received it; raises gloo's error if that fails."""
        self._send(word.pack(), rank)

    def say_last_words(self, text: str, rank: int) -> None:
        """Send the text that follows the sign of failure, truncated to its maximum length."""
        encoded = text.encode()[:_LAST_WORDS_BYTES].ljust(_LAST_WORDS_BYTES, b"\0")
        self._send(torch.frombuffer(bytearray(encoded), dtype=torch.uint8), rank)

    def close(self) -> None:
        """Release the group; only when no thread is inside :meth:`hear` or :meth:`say`."""
        dist.destroy_process_group(self._group)
        del self._group

    def _receive(self, into: Tensor, rank: int) -> None:
        work = dist.irecv(into, src=rank, group=self._group)
        assert work is not None
        work.wait(_FOREVER)

    def _send(self, tensor: Tensor, rank: int) -> None:
        work = dist.isend(tensor, dst=rank, group=self._group)
        assert work is not None
        work.wait(_FOREVER)


def reason_of(error: Exception) -> str:
    """Gloo's message on a broken connection, without its source location and its guesses."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return re.sub(r"^\[[^\]]*\] ", "", line).partition(". This is typically")[0][:160]
