"""A digest as digits that people read out to each other."""

from __future__ import annotations

import hashlib
import hmac

from lightning_parablock.errors import RosterError

_GROUPS, _DIGITS = 6, 5
_COST, _BLOCK = 1 << 14, 8
"""Of scrypt (RFC 7914): 16 MiB and some 50 ms. Whoever makes a roster could try many until two of them, each shown to
another site, have the same digits; with 100 bits at this cost that is out of reach."""
_SALT = b"lightning-parablock fingerprint 1"


def fingerprint_of(digest: bytes) -> str:
    """Six groups of five digits."""
    made = hashlib.scrypt(digest, salt=_SALT, n=_COST, r=_BLOCK, p=1, dklen=32)
    digits = str(int.from_bytes(made, "big") % 10 ** (_GROUPS * _DIGITS)).zfill(_GROUPS * _DIGITS)
    return " ".join(digits[at : at + _DIGITS] for at in range(0, len(digits), _DIGITS))


def check_fingerprint(expected: str, given: str) -> None:
    """Raise a RosterError unless the digits are the same; spaces and hyphens do not count.

    Args:
        expected: Of the roster.
        given: What the other sites have read out.
    """
    digits = "".join(letter for letter in given if letter not in " -\t\n")
    if hmac.compare_digest(digits.encode(), expected.replace(" ", "").encode()):
        return
    if len(digits) != _GROUPS * _DIGITS or not (digits.isascii() and digits.isdigit()):
        raise RosterError(
            f"a fingerprint is {_GROUPS} groups of {_DIGITS} digits, all of them; got {given!r:.60}; nothing was signed"
        )
    raise RosterError(
        "the fingerprint differs from that of this file: the other sites have another roster, or somebody has altered "
        "it on its way; nothing was signed. Do not approve it before all sites read the same digits"
    )
