"""How a client is named wherever people see one: by its site where sites have names, else by its number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning_parablock.federation.cohorts import hosted_clients


@dataclass(frozen=True)
class ClientNames:
    """The names of a run's clients.

    Attributes:
        sites: Names of the sites in rank order; empty where they have none.
        n_clients: Number of clients; 0 for one per site.
        by_client: Site of each client where sites come and go; then it alone counts.
    """

    sites: tuple[str, ...] = ()
    n_clients: int = 0
    by_client: Mapping[int, str] = field(default_factory=dict[int, str])

    @classmethod
    def of(cls, strategy: Any) -> ClientNames:
        """The names under a strategy; any other strategy than this package's has clients without names."""
        by_client: Mapping[int, str] = getattr(strategy, "client_sites", {})
        return cls(tuple(getattr(strategy, "site_names", ())), getattr(strategy, "n_clients", 0), by_client)

    @property
    def clients(self) -> tuple[int, ...]:
        """Numbers of the clients, ascending; those that are known by their sites where sites come and go."""
        return tuple(sorted(self.by_client)) or tuple(range(self.n_clients))

    def label(self, client: int) -> str:
        """``client 0``; ``site a`` where sites have names; ``client 3 (site b)`` where a site hosts several clients."""
        site = self._site_of(client)
        if site is None:
            return f"client {client}"
        return f"site {site}" if self._has_one_per_site else f"client {client} (site {site})"

    def key(self, client: int) -> str:
        """The same for names of metrics and files: ``client_0``, ``site_a``, or ``client_3`` of several on a site."""
        site = self._site_of(client)
        return f"client_{client}" if site is None or not self._has_one_per_site else f"site_{site}"

    @property
    def _has_one_per_site(self) -> bool:
        return bool(self.by_client) or self.n_clients in (0, len(self.sites))

    def _site_of(self, client: int) -> str | None:
        if self.by_client:
            return self.by_client.get(client)
        if not self.sites:
            return None
        hosted = hosted_clients(self.n_clients or len(self.sites), len(self.sites))
        return next((site for site, clients in zip(self.sites, hosted, strict=True) if client in clients), None)


NO_NAMES = ClientNames()
"""Clients without names of their sites."""
