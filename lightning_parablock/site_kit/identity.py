"""The private side of a site: its keys, in one folder that no other user may enter."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_parablock.errors import ConfigurationError, IdentityError
from lightning_parablock.site_kit.card import Card
from lightning_parablock.site_kit.files import make_private_folder, read_private, write_whole
from lightning_parablock.site_kit.keys import (
    KeyPair,
    link_keys,
    new_link_keys,
    new_signing_keys,
    signature,
    signing_keys,
)
from lightning_parablock.system.reading import reading

KEYS = "keys.json"
MOST_KEYS_BYTES = 4096
_HOME = ".lightning-parablock"


def default_folder(name: str) -> Path:
    """Where the identity of a site is unless another folder is named."""
    return Path.home() / _HOME / name


@dataclass(frozen=True)
class Identity:
    """A site's own keys.

    Attributes:
        folder: Where they are stored.
        card: The public side of them.
        outer: Keys of the layer that the hub forwards.
        inner: Keys of the layer between sites.
        signing: Keys of signatures.
    """

    folder: Path
    card: Card
    outer: KeyPair = field(repr=False)
    inner: KeyPair = field(repr=False)
    signing: KeyPair = field(repr=False)

    @classmethod
    def create(cls, folder: Path, name: str, endpoint: str | None = None) -> Identity:
        """Make new keys and store them.

        Args:
            folder: Is created with mode 0700.
            name: Of the site.
            endpoint: UDP ``host:port`` at which it accepts links from anywhere; None where it has none.

        Raises:
            CardError: the name or the endpoint cannot be used.
            IdentityError: the folder holds keys already, is open to other users, or cannot be written.
        """
        identity = cls._of(folder, name, endpoint, new_link_keys(), new_link_keys(), new_signing_keys())
        if (folder / KEYS).exists():
            raise IdentityError(f"{folder} holds the keys of a site already; they are not overwritten")
        make_private_folder(folder)
        try:
            write_whole(folder / KEYS, identity._text(), is_new=True)
        except ConfigurationError as error:
            raise IdentityError(str(error)) from error
        return identity

    @classmethod
    def read(cls, folder: Path) -> Identity:
        """The identity in a folder.

        Raises:
            IdentityError: there is none, it is damaged, or other users can read it.
        """
        path = folder / KEYS
        if not path.exists():
            raise IdentityError(f"{folder} holds no keys of a site: lightning-parablock site init NAME makes them")
        text = read_private(path, MOST_KEYS_BYTES)
        with reading(f"the file of keys {path}", IdentityError):
            return cls._parse(folder, json.loads(text))

    def sign(self, message: bytes) -> bytes:
        """The site's Ed25519 signature of a message, 64 bytes."""
        return signature(self.signing, message)

    @classmethod
    def _parse(cls, folder: Path, said: Any) -> Identity:
        pairs = (link_keys(said["outer"]), link_keys(said["inner"]), signing_keys(said["signing"]))
        return cls._of(folder, said["name"], said["endpoint"], *pairs)

    @classmethod
    def _of(
        cls, folder: Path, name: str, endpoint: str | None, outer: KeyPair, inner: KeyPair, signing: KeyPair
    ) -> Identity:
        card = Card(name, outer.public, inner.public, signing.public, endpoint)
        return cls(folder, card, outer, inner, signing)

    def _text(self) -> str:
        said = {
            "name": self.card.name,
            "endpoint": self.card.endpoint,
            "outer": self.outer.private,
            "inner": self.inner.private,
            "signing": self.signing.private,
        }
        return json.dumps(said, indent=2) + "\n"
