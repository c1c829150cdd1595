"""The public card of a site: its name and public keys in one line that can be mailed.

    parablock-card-1 NAME ENDPOINT KEYS

ENDPOINT is ``-`` where the site has no public one. KEYS is base64 of the outer, inner and signing key and 8 bytes of
SHA-256 over all of the card, which find damage; that no one has exchanged the card is for the roster's fingerprint.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path

from lightning_parablock.checks import check_site_name
from lightning_parablock.errors import CardError, ConfigurationError
from lightning_parablock.site_kit.endpoints import checked_endpoint
from lightning_parablock.site_kit.files import read_bounded
from lightning_parablock.site_kit.keys import KEY_BYTES, check_link_key, check_signing_key, decoded, encoded
from lightning_parablock.system.reading import reading

TAG = "parablock-card-1"
MOST_CARD_BYTES = 4096
_CHECKSUM_BYTES = 8
_NO_ENDPOINT = "-"


@dataclass(frozen=True)
class Card:
    """What the other sites need to know of a site. All of it is public.

    Attributes:
        name: Of the site.
        outer_key: WireGuard public key of the layer that the hub forwards; base64.
        inner_key: WireGuard public key of the layer between sites; base64.
        signing_key: Ed25519 public key; base64.
        endpoint: UDP ``host:port`` at which the site accepts links from anywhere; None for a site that has none.

    Raises:
        CardError: a name, a key or the endpoint cannot be used.
    """

    name: str
    outer_key: str
    inner_key: str
    signing_key: str
    endpoint: str | None = None

    def __post_init__(self) -> None:
        try:
            check_site_name(self.name)
            if self.endpoint is not None:
                checked_endpoint("endpoint", self.endpoint)
        except ConfigurationError as error:
            raise CardError(f"a card cannot be used: {error}") from error
        checks = {"outer": check_link_key, "inner": check_link_key, "signing": check_signing_key}
        for key, check in checks.items():
            with reading(f"the {key} key on the card of site {self.name}", CardError):
                check(getattr(self, f"{key}_key"))
        if self.outer_key == self.inner_key:
            raise CardError(f"the card of site {self.name} has one key for both layers; each needs its own")

    @property
    def text(self) -> str:
        """The card in one line, without its end."""
        keys = b"".join(decoded(key, KEY_BYTES) for key in (self.outer_key, self.inner_key, self.signing_key))
        endpoint = self.endpoint or _NO_ENDPOINT
        return f"{TAG} {self.name} {endpoint} {encoded(keys + _checksum(self.name, endpoint, keys))}"

    @classmethod
    def parse(cls, text: str) -> Card:
        """The card in a text; a mail program may have broken its line.

        Raises:
            CardError: the text is no card, was damaged or cut, or holds what cannot be used.
        """
        tag, name, endpoint, *rest = (text.split() + [""] * 3)[: max(3, len(text.split()))]
        if tag != TAG or not rest:
            raise CardError(f"this is no card: a card is one line, {TAG} NAME ENDPOINT KEYS; got {text.strip()!r:.60}")
        with reading(f"the card of site {name!r:.70}, which may have been cut or altered on its way", CardError):
            data = decoded("".join(rest), 3 * KEY_BYTES + _CHECKSUM_BYTES)
            keys = data[:-_CHECKSUM_BYTES]
            if data[-_CHECKSUM_BYTES:] != _checksum(name, endpoint, keys):
                raise ValueError("its checksum differs; ask for the card again")
        outer, inner, signing = (encoded(keys[at : at + KEY_BYTES]) for at in range(0, len(keys), KEY_BYTES))
        return cls(name, outer, inner, signing, None if endpoint == _NO_ENDPOINT else endpoint)

    @classmethod
    def read(cls, path: Path) -> Card:
        """The card in a file.

        Raises:
            CardError: the file cannot be read, or see :meth:`parse`; names the file.
        """
        text = read_bounded(path, MOST_CARD_BYTES, CardError)
        try:
            return cls.parse(text)
        except CardError as error:
            raise CardError(f"{path}: {error}") from error


def _checksum(name: str, endpoint: str, keys: bytes) -> bytes:
    said = f"{TAG} {name} {endpoint} ".encode()
    return hashlib.sha256(said + base64.b64encode(keys)).digest()[:_CHECKSUM_BYTES]
