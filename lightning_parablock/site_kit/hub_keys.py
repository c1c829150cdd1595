"""The hub's own key: of the outer layer alone."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from lightning_parablock.errors import ConfigurationError, IdentityError
from lightning_parablock.site_kit.files import make_private_folder, read_private, write_whole
from lightning_parablock.site_kit.identity import MOST_KEYS_BYTES, default_folder
from lightning_parablock.site_kit.keys import KeyPair, link_keys, new_link_keys
from lightning_parablock.site_kit.memory import SEEN
from lightning_parablock.system.reading import reading

HUB = "hub.json"


def default_hub_folder(federation: str) -> Path:
    """Where the hub keeps the key of a federation unless another folder is named."""
    return default_folder(f"{federation}-hub")


@dataclass(frozen=True)
class HubKeys:
    """The hub's WireGuard keys in a federation.

    Attributes:
        folder: Where they are stored.
        link: The keys.
    """

    folder: Path
    link: KeyPair = field(repr=False)

    @classmethod
    def new(cls, folder: Path) -> HubKeys:
        """New keys, not stored yet.

        Raises:
            IdentityError: the folder has some already.
        """
        if (folder / HUB).exists():
            raise IdentityError(
                f"{folder} holds the key of a hub already, which is not overwritten: federation add and federation "
                "revoke change a federation; for a new one choose another name, or another folder with --keys"
            )
        return cls(folder, new_link_keys())

    @classmethod
    def unfinished(cls, folder: Path) -> HubKeys | None:
        """The keys of a federation whose creation was cut short: beside them no version is remembered.

        Raises:
            IdentityError: they cannot be used, see :meth:`read`.
        """
        if not (folder / HUB).exists() or any(folder.glob(f"*{SEEN}")):
            return None
        return cls.read(folder)

    def store(self) -> None:
        """Write them to their folder, for the owner alone.

        Raises:
            IdentityError: it cannot be written, or others may enter the folder.
        """
        make_private_folder(self.folder)
        try:
            write_whole(self.folder / HUB, json.dumps({"link": self.link.private}) + "\n", is_new=True)
        except ConfigurationError as error:
            raise IdentityError(str(error)) from error

    @classmethod
    def read(cls, folder: Path) -> HubKeys:
        """The keys in a folder.

        Raises:
            IdentityError: there are none, they are damaged, or other users can read them.
        """
        path = folder / HUB
        if not path.exists():
            raise IdentityError(
                f"{folder} holds no key of a hub: run this where federation create was run, or name the folder with "
                "--keys"
            )
        text = read_private(path, MOST_KEYS_BYTES)
        with reading(f"the key in {path}", IdentityError):
            return cls(folder, link_keys(json.loads(text)["link"]))
