"""Members of a run: ranks, their machines, their sites and their clients.

The generation of a :class:`Membership` is part of every message header, so that a group rebuilt for a new membership
cannot mistake an old message for its own.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Membership:
    """The ranks of a run and their clients.

    Attributes:
        generation: Number of times the group was rebuilt; 0 at the start.
        hosts: Name of each rank's machine, for messages.
        clients: Ids of the clients that each rank hosts, ascending.
        rank: Rank of this process.
        sites: Name of each rank's site, for messages; empty if sites have no names.
    """

    generation: int
    hosts: tuple[str, ...]
    clients: tuple[tuple[int, ...], ...]
    rank: int
    sites: tuple[str, ...] = ()

    @property
    def n_ranks(self) -> int:
        """Number of ranks."""
        return len(self.clients)

    @property
    def peers(self) -> list[int]:
        """The other ranks."""
        return [rank for rank in range(self.n_ranks) if rank != self.rank]

    def describe(self, rank: int) -> str:
        """Name for messages, ``client 2 (rank 2 on c)`` or ``site hub (client 2, rank 2 on c)`` if sites have names."""
        clients = self.clients[rank]
        who = f"client {clients[0]}" if len(clients) == 1 else f"clients {', '.join(map(str, clients))}"
        where = f"rank {rank} on {self.hosts[rank]}"
        return f"site {self.sites[rank]} ({who}, {where})" if self.sites else f"{who} ({where})"
