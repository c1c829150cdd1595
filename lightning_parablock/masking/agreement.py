"""Keys that two sites share and no server knows: X25519 once per session, HKDF once per exchange and lane."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from lightning_parablock.errors import StatementError
from lightning_parablock.masking.streams import KEY_BYTES
from lightning_parablock.system.private_extra import primitives

Lane = Literal["values", "scales", "weights"]
"""What is masked within an exchange: the values of the block, the l_i of its records, the weights n_i."""

PUBLIC_BYTES = 32

_LANES: dict[Lane, int] = {"values": 0, "scales": 1, "weights": 2}
_PURPOSE = b"lightning-parablock mask 1"
_INFO = struct.Struct(">IIQQB")


@dataclass(frozen=True)
class SessionKey:
    """A new X25519 key, for one process and one generation; it exists in this process's memory alone."""

    private: Any = field(repr=False)

    @classmethod
    def new(cls) -> Self:
        """A key from the operating system's random numbers."""
        return cls(primitives("asymmetric.x25519").X25519PrivateKey.generate())

    @property
    def public(self) -> bytes:
        """The 32 bytes that the other sites may know."""
        return self.private.public_key().public_bytes_raw()

    def secret_with(self, public: bytes, site: str) -> bytes:
        """The 32 bytes that this site and the other one have in common.

        Args:
            public: The other site's public session key.
            site: Its name, for messages.

        Raises:
            StatementError: it is no usable key; with some, the secret would be known to everyone.
        """
        x25519 = primitives("asymmetric.x25519")
        try:
            return self.private.exchange(x25519.X25519PublicKey.from_public_bytes(public))
        except ValueError as error:
            raise StatementError(f"the session key of site {site!r} is no X25519 key with which to agree") from error


def pair_key(secret: bytes, salt: bytes, i: int, j: int, round_index: int, block: int, lane: Lane) -> bytes:
    """The key of one mask: HKDF-SHA256 (RFC 5869) of the sites' secret.

    Args:
        secret: X25519 secret of sites i and j.
        salt: Hash of the session's signed statements.
        i: Place of the first site among the session's members, whose names are sorted.
        j: Place of the second; i < j.
        round_index: Round of the exchange.
        block: Index of its block.
        lane: What is masked.
    """
    hkdf = primitives("kdf.hkdf").HKDF
    info = _PURPOSE + _INFO.pack(i, j, round_index, block, _LANES[lane])
    return hkdf(primitives("hashes").SHA256(), KEY_BYTES, salt, info).derive(secret)
