"""A roster in words, for the person who signs it."""

from __future__ import annotations

from collections.abc import Iterator

from lightning_parablock.site_kit.changes import changes
from lightning_parablock.site_kit.roster import Roster

_COLUMNS = ("site", "outer", "inner", "endpoint", "signature")


def description(roster: Roster, here: str, newest: Roster | None) -> str:
    """Sites, addresses and signatures, and what has changed.

    Args:
        roster: What is to be signed.
        here: The site that reads it.
        newest: The newest version that this site knows; None if it knows none.
    """
    heading = f"federation {roster.federation}, version {roster.version}"
    return "\n".join((heading, *_table(roster, here), *_news(roster, newest)))


def _table(roster: Roster, here: str) -> Iterator[str]:
    if roster.hub is not None:
        yield f"hub at {roster.hub.endpoint}: {roster.hub.address}, forwards between all sites"
    rows: list[tuple[str, ...]] = [_COLUMNS]
    for site in roster.sites:
        name = f"{site.name} (here)" if site.name == here else site.name
        signature = "signed" if site.name in roster.signatures else "-"
        rows.append((name, site.outer_address or "-", site.inner_address, site.card.endpoint or "-", signature))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def _news(roster: Roster, newest: Roster | None) -> Iterator[str]:
    if newest is None:
        yield "this site knows no other version of it"
        return
    if newest.digest == roster.digest:
        yield "this site has seen this version already"
        return
    found = changes(newest, roster)
    yield f"changes since version {newest.version}, the newest that this site knows:"
    yield from (f"  {line}" for line in found or ["none"])
    if roster.previous != newest.digest.hex():
        yield f"  it was not made from that version {newest.version}: ask why before you sign"
