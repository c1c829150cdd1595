"""The bytes of a mask: AES-256 in counter mode, readable at any place."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from lightning_parablock.system.private_extra import primitives

PIECE_BYTES = 1 << 18
"""Bytes per call of the cipher, which releases the interpreter's lock meanwhile. Mask, values and the zeros that are
encrypted fit into a core's cache together; pieces of 1 MiB take half as much time again."""
KEY_BYTES = 32

_BLOCK_BYTES = 16
_ZEROS = bytes(PIECE_BYTES)


def pieces(first_byte: int, stop_byte: int) -> Iterator[tuple[int, int]]:
    """Cut a range into pieces that one call of :meth:`MaskStream.read` takes."""
    for start in range(first_byte, stop_byte, PIECE_BYTES - _BLOCK_BYTES):
        yield start, min(start + PIECE_BYTES - _BLOCK_BYTES, stop_byte)


class MaskStream:
    """The key stream of one key, from counter 0: byte k is the same however the stream is cut.

    Args:
        key: 32 bytes, used for this stream alone.
    """

    def __init__(self, key: bytes) -> None:
        self._ciphers = primitives("ciphers")
        self._algorithm = self._ciphers.algorithms.AES(key)
        if len(key) != KEY_BYTES:
            raise ValueError(f"the key of a mask has {KEY_BYTES} bytes, not {len(key)}")

    def read(self, first_byte: int, stop_byte: int, scratch: bytearray) -> NDArray[np.uint8]:
        """The bytes from ``first_byte`` up to ``stop_byte``, one of the :func:`pieces`.

        Args:
            first_byte: Place in the stream.
            stop_byte: One more than the last byte's place.
            scratch: PIECE_BYTES of memory, overwritten.

        Returns:
            A view of the scratch.
        """
        counter, skip = divmod(first_byte, _BLOCK_BYTES)
        total = skip + stop_byte - first_byte
        mode = self._ciphers.modes.CTR(counter.to_bytes(_BLOCK_BYTES, "big"))
        encryptor = self._ciphers.Cipher(self._algorithm, mode).encryptor()
        encryptor.update_into(memoryview(_ZEROS)[:total], memoryview(scratch)[:total])
        return np.frombuffer(scratch, np.uint8, total - skip, skip)
