"""What a roster is made of: the hub, and one record for each site."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from lightning_parablock.errors import RosterError
from lightning_parablock.site_kit.card import Card
from lightning_parablock.site_kit.endpoints import checked_endpoint
from lightning_parablock.site_kit.keys import check_link_key
from lightning_parablock.site_kit.plain_yaml import Plain
from lightning_parablock.system.reading import reading


@dataclass(frozen=True)
class Hub:
    """The public host that forwards the outer layer. It is trusted with nothing but that.

    Attributes:
        endpoint: UDP ``host:port`` that all sites reach.
        key: WireGuard public key; base64.
        address: In the outer layer.
    """

    endpoint: str
    key: str
    address: str

    def __post_init__(self) -> None:
        checked_endpoint("hub's endpoint", self.endpoint)
        with reading("the hub's key", RosterError):
            check_link_key(self.key)

    def as_plain(self) -> dict[str, Plain]:
        """As it is in the file."""
        return {"endpoint": self.endpoint, "key": self.key, "address": self.address}

    @classmethod
    def of_plain(cls, said: Plain) -> Hub:
        """What :meth:`as_plain` has made."""
        values = fields_of(said, ("endpoint", "key", "address"))
        return cls(text_of(values["endpoint"]), text_of(values["key"]), text_of(values["address"]))


@dataclass(frozen=True)
class RosterSite:
    """One site in a roster.

    Attributes:
        card: Its public card.
        inner_address: In the layer between sites.
        outer_address: In the layer that the hub forwards; None where there is no hub.
    """

    card: Card
    inner_address: str
    outer_address: str | None

    @property
    def name(self) -> str:
        """Name of the site."""
        return self.card.name

    def as_plain(self) -> dict[str, Plain]:
        """As it is in the file."""
        outer: dict[str, Plain] = {} if self.outer_address is None else {"outer": self.outer_address}
        return {"card": self.card.text, **outer, "inner": self.inner_address}

    @classmethod
    def of_plain(cls, name: str, said: Plain, *, has_hub: bool) -> RosterSite:
        """What :meth:`as_plain` has made.

        Args:
            name: Under which it is in the file.
            said: What is there.
            has_hub: Whether the roster has a hub, and so an outer layer.
        """
        values = fields_of(said, ("card", "outer", "inner") if has_hub else ("card", "inner"))
        card = Card.parse(text_of(values["card"]))
        if card.name != name:
            raise RosterError(f"the card under {name!r:.70} is that of site {card.name}")
        return cls(card, text_of(values["inner"]), text_of(values["outer"]) if has_hub else None)


def fields_of(said: Plain, names: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Plain]:
    """A mapping that has these names, may have the optional ones, and no others.

    Raises:
        ValueError: it has not.
    """
    if isinstance(said, str):
        raise ValueError(f"{said!r:.60} is in the place of {', '.join(names)}")
    missing = [name for name in names if name not in said]
    unknown = [name for name in said if name not in (*names, *optional)]
    if missing or unknown:
        raise ValueError(f"it has no {missing[0]!r}" if missing else f"{unknown[0]!r:.60} is not known there")
    return said


def text_of(said: Plain) -> str:
    """A text.

    Raises:
        ValueError: it is a mapping.
    """
    if not isinstance(said, str):
        raise ValueError(f"a mapping of {', '.join(said)!r:.60} is in the place of a text")
    return said


def check_address(owner: str, address: str, network: ipaddress.IPv4Network) -> None:
    """Raise a RosterError unless an address is one of a range and can be a host's."""
    try:
        found = ipaddress.IPv4Address(address)
    except ValueError as error:
        raise RosterError(f"{address!r:.60} of {owner} is no IPv4 address") from error
    if found not in network or found in (network.network_address, network.broadcast_address):
        raise RosterError(f"address {address} of {owner} is not one for hosts in {network}")
    # ipaddress reads one text per address: leading zeros and spaces are errors already
