"""Keys and signatures as base64 text: X25519 as WireGuard has it (RFC 7748), and Ed25519 (RFC 8032).

All arithmetic is that of the package ``cryptography``.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any

from lightning_parablock.system.private_extra import primitives

KEY_BYTES, SIGNATURE_BYTES = 32, 64
_FIELD = (1 << 255) - 19
"""Prime of curve 25519."""
_X25519, _ED25519 = "asymmetric.x25519", "asymmetric.ed25519"


@dataclass(frozen=True)
class KeyPair:
    """A private key with its public one.

    Attributes:
        private: 32 bytes in base64, which never leave the site.
        public: 32 bytes in base64.
    """

    private: str
    public: str

    def __repr__(self) -> str:  # the private key must not get into a log or a traceback
        return f"KeyPair(public={self.public!r})"


def encoded(data: bytes) -> str:
    """Bytes in base64."""
    return base64.b64encode(data).decode("ascii")


def decoded(text: str, n_bytes: int) -> bytes:
    """The bytes of a base64 text, which must be written in the one way in which :func:`encoded` writes it.

    Raises:
        ValueError: the text is no base64, has another length, or has stray bits at its end.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"it is not base64: {error}") from error
    if len(data) != n_bytes:
        raise ValueError(f"it has {len(data)} bytes instead of {n_bytes}")
    if encoded(data) != text:
        raise ValueError("it has stray bits at its end")
    return data


def check_link_key(text: str) -> None:
    """Require a WireGuard public key with which a secret can be agreed.

    Raises:
        ValueError: the text is no key, is another spelling of a key, or is a point of low order, for which everyone
            can compute the secret.
    """
    number = int.from_bytes(decoded(text, KEY_BYTES), "little")
    _refuse_another_spelling(number)
    _refuse_low_order(number)


def check_signing_key(text: str) -> None:
    """Require an Ed25519 public key for which a signature proves something.

    Raises:
        ValueError: the text is no key, is another spelling of a key, or is a point of low order, for which everyone
            can sign.
    """
    number = int.from_bytes(decoded(text, KEY_BYTES), "little")
    y = number & ~(1 << 255)  # the highest bit is the sign of x
    _refuse_another_spelling(y)
    _refuse_low_order((1 + y) * pow(1 - y, -1, _FIELD) % _FIELD if y != 1 else 0)  # the same point on curve 25519


def new_link_keys() -> KeyPair:
    """A new WireGuard key pair."""
    return _pair(primitives(_X25519).X25519PrivateKey.generate())


def new_signing_keys() -> KeyPair:
    """A new Ed25519 key pair."""
    return _pair(primitives(_ED25519).Ed25519PrivateKey.generate())


def link_keys(private: str) -> KeyPair:
    """The WireGuard key pair of a private key.

    Raises:
        ValueError: the text is no key.
    """
    return _pair(primitives(_X25519).X25519PrivateKey.from_private_bytes(decoded(private, KEY_BYTES)))


def signing_keys(private: str) -> KeyPair:
    """The Ed25519 key pair of a private key.

    Raises:
        ValueError: the text is no key.
    """
    return _pair(primitives(_ED25519).Ed25519PrivateKey.from_private_bytes(decoded(private, KEY_BYTES)))


def signature(keys: KeyPair, message: bytes) -> bytes:
    """64 bytes that only the owner of the private key can make for this message."""
    private = decoded(keys.private, KEY_BYTES)
    made: bytes = primitives(_ED25519).Ed25519PrivateKey.from_private_bytes(private).sign(message)
    return made


def is_signature(public: str, message: bytes, made: bytes) -> bool:
    """Whether ``made`` is a signature of the message by the owner of an Ed25519 public key (base64)."""
    key = primitives(_ED25519).Ed25519PublicKey.from_public_bytes(decoded(public, KEY_BYTES))
    from cryptography.exceptions import InvalidSignature  # late: an optional dependency, which is here by now

    try:
        key.verify(made, message)
    except InvalidSignature:
        return False
    return True


def _refuse_another_spelling(number: int) -> None:
    if number >= _FIELD:
        raise ValueError("it is another spelling of a smaller number")


def _refuse_low_order(u: int) -> None:
    x25519 = primitives(_X25519)
    point = x25519.X25519PublicKey.from_public_bytes(u.to_bytes(KEY_BYTES, "little"))
    try:
        x25519.X25519PrivateKey.generate().exchange(point)
    except ValueError as error:
        raise ValueError("it is a point of low order, which protects nothing") from error


def _pair(private: Any) -> KeyPair:
    return KeyPair(encoded(private.private_bytes_raw()), encoded(private.public_key().public_bytes_raw()))
