"""Which entries in a lighthouse's list count where a roster says who takes part, and at which address."""

from __future__ import annotations

import logging

from lightning_parablock.elastic.arbiter import Candidate
from lightning_parablock.errors import ProtocolError
from lightning_parablock.meeting.private_links import PrivateLinks

log = logging.getLogger(__name__)

_MOST_SAID = 100
"""Entries that are reported: each costs its author nothing, and a line here."""


class KnownSites:
    """The sites of a federation, by name and inner address.

    Args:
        links: The federation's addresses.
    """

    def __init__(self, links: PrivateLinks) -> None:
        self._links = links
        self._said: set[Candidate] = set()

    def has(self, one: Candidate) -> bool:
        """Whether an entry is that of a site of the federation; one that is not is reported once."""
        try:
            self._links.check_peer_port(one.site, one.desk, "the desk")
            self._links.check_peer_port(one.site, one.store, "the store")
        except ProtocolError as error:
            if one not in self._said and len(self._said) < _MOST_SAID:
                self._said.add(one)
                log.error("parablock: an entry at the lighthouse is left out: %s", error)
            return False
        return True
