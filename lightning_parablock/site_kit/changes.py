"""What differs between two versions of a roster, in words."""

from __future__ import annotations

from collections.abc import Iterator

from lightning_parablock.site_kit.roster import Roster
from lightning_parablock.site_kit.roster_parts import RosterSite


def changes(old: Roster, new: Roster) -> list[str]:
    """One line for each difference; of the signatures nothing is said."""
    before, after = ({site.name: site for site in roster.sites} for roster in (old, new))
    lines = [f"site {name} is removed" for name in before if name not in after]
    had = {address: name for name, site in before.items() for address in (site.inner_address, site.outer_address)}
    for name, site in after.items():
        if name not in before:
            again = had.get(site.inner_address) or had.get(site.outer_address or "")
            lines.append(f"site {name} is new" + (f", at an address that site {again} had" if again else ""))
    for name in after:
        if name in before:
            lines += _of_site(before[name], after[name])
    return lines + list(_of_links(old, new))


def _of_site(old: RosterSite, new: RosterSite) -> Iterator[str]:
    keys = ("outer_key", "inner_key", "signing_key")
    if any(getattr(old.card, key) != getattr(new.card, key) for key in keys):
        yield f"site {new.name} has other keys"
    if old.card.endpoint != new.card.endpoint:
        yield f"site {new.name} has the endpoint {new.card.endpoint}, not {old.card.endpoint}"
    if (old.inner_address, old.outer_address) != (new.inner_address, new.outer_address):
        yield f"site {new.name} has other addresses"


def _of_links(old: Roster, new: Roster) -> Iterator[str]:
    if (old.hub is None) != (new.hub is None):
        yield "there is no hub any more" if new.hub is None else "there is a hub, for the first time"
    elif old.hub is not None and new.hub is not None:
        if old.hub.endpoint != new.hub.endpoint:
            yield f"the hub is at {new.hub.endpoint}, not {old.hub.endpoint}"
        if old.hub.key != new.hub.key:
            yield "the hub has another key"
        if old.hub.address != new.hub.address:
            yield f"the hub has the address {new.hub.address}, not {old.hub.address}"
    for name in ("outer_range", "inner_range", "inner_port"):
        if getattr(old, name) != getattr(new, name):
            yield f"{name} is {getattr(new, name)}, not {getattr(old, name)}"
